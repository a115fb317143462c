"""What must stay small, and what each core asserts of itself.

T38  No mailbox, no queue, no ring and no table of a node or a client is ever above its bound, and the metadata log is cut in time.
T40  A client does not flood: requests that reach the nodes are at most `FRAMES_PER_SECOND_MAX` per client, over any `WINDOW_SECONDS`.

Each bound is a constant of the code, read when it is compared: a run may have its own (`tests/sim/sizes.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import trio

from govern.actors import administration, election, peer_connector, slot_manager
from govern.actors.node import Node
from govern.client import commands, reads, registrations, views
from govern.client import core as client_core
from govern.client import link as client_link
from govern.client.registry import Registry
from govern.core import controller, dispatch, standing
from govern.core.raft import core as raft_core
from govern.messages import FRAME_BYTES_MAX_TO_NODE
from govern.peer_messages import MEMBERS_MAX, RaftMessage
from govern.testing.world import World

from . import Violation

VALIDATE_EVERY = 10  # sweeps: walking everything costs as much as a simulated second of the rest
WINDOW_SECONDS = 2.0
FRAMES_PER_SECOND_MAX = 200.0
LATE_SWEEPS_MAX = 5
"""So often in a row a log may be found too long: what cuts it are two mails and a write."""
UNASKED_ENTRIES_MAX = 16
"""Behind what has to be cut: the word may find no room, and is said again with the next entries."""

Size = tuple[str, float, float]
"""What, how much of it there is, and the bound."""


class Bounds:
    """Looks at every node, and at the clients that `clients` gives."""

    def __init__(self, world: World, clients: Callable[[], Iterable[tuple[str, Registry]]] = tuple) -> None:
        self._world = world
        self._clients = clients
        self._sweeps = 0
        self._late: dict[str, int] = {}
        self._segments: dict[str, int] = {}
        self._window_began = 0.0
        world.network.taps.append(self._tap)

    def _tap(self, source: str, target: str, number: int, data: bytes) -> None:
        machine, sender = self._world.machines.get(target), self._world.machines.get(source)
        if data and machine is not None and machine.disk is not None and (sender is None or sender.disk is None):
            self._segments[source] = self._segments.get(source, 0) + 1

    def sweep(self) -> None:
        """T38 and T40."""
        self._sweeps += 1
        for machine in self._world.machines.values():
            if machine.node is not None:
                self._look_at(machine.name, machine.node)
        for name, registry in self._clients():
            _compare(name, sizes_of_client(registry))
        now = trio.current_time()
        if now - self._window_began >= WINDOW_SECONDS:
            for client, segments in self._segments.items():
                if segments > FRAMES_PER_SECOND_MAX * (now - self._window_began):
                    raise Violation(f"40: {client} sent {segments} segments in {now - self._window_began:.1f} s")
            self._segments.clear()
            self._window_began = now

    def _look_at(self, name: str, node: Node) -> None:
        _compare(name, sizes_of_actors(node))
        _compare(name, sizes_of_cluster(node))
        self._judge_log(name, node)
        if self._sweeps % VALIDATE_EVERY == 0 and node._shard.loaded:
            node.validate()
            node._peers.validate()

    def _judge_log(self, name: str, node: Node) -> None:
        """The log is cut when enough was applied, as soon as that is on the disk."""
        elects = node._election
        core = None if elects is None else elects.core
        if core is None or elects is None or elects._to_save is not None or not core.may_compact or self._world.machines[name].paused:
            return
        applied = core.applied - core.log.snapshot.meta.index
        bound = 2 * slot_manager.COMPACT_ENTRIES + UNASKED_ENTRIES_MAX
        self._late[name] = self._late.get(name, 0) + 1 if applied > bound else 0
        if self._late[name] > LATE_SWEEPS_MAX:
            raise Violation(f"38: {name} has {applied} applied entries in its metadata log, and does not cut it; the bound is {bound}")

    def end(self) -> None:
        """Every core of every node asserts itself."""
        for machine in self._world.machines.values():
            if machine.node is not None:
                machine.node.validate()


def _compare(name: str, sizes: Iterable[Size]) -> None:
    for what, size, bound in sizes:
        if size > bound:
            raise Violation(f"38: {name} has {size} {what}; the bound is {bound}")


def sizes_of_actors(node: Node) -> Iterator[Size]:
    """Mailboxes, and what the clients of a node bring."""
    limits = node.config.limits
    for child in node._tree:
        for mailbox in child.mailboxes:
            yield f"messages in {mailbox}", mailbox.statistics().depth, mailbox.statistics().capacity
    yield "operations in memory", len(node._shard._history), limits.history_ops_max
    yield "sessions", len(node._sessions), limits.sessions_max
    yield "connections", node._clients.connections, limits.connections_max
    yield "pending writes", node._dispatch.writes_pending, limits.writes_pending_max + limits.connections_max
    yield "words of operators", node._dispatch.administering, dispatch.ADMINISTERING_MAX


def sizes_of_cluster(node: Node) -> Iterator[Size]:
    """What concerns other nodes."""
    for channel in node._peers._channels.values():
        # a Ping, a Hello or a refusal is put without asking
        yield f"messages for {channel.link}", channel.unsent_messages, peer_connector.QUEUE_MESSAGES_MAX + 2
        yield f"bytes for {channel.link}", channel.unsent_bytes, peer_connector.QUEUE_BYTES_MAX + 2 * peer_connector.HELLO_BYTES_MAX
    yield "strangers", len(node._peers._strangers), peer_connector.STRANGERS_MAX
    manager = node._manager
    yield "words that wait", len(manager._administration._words), dispatch.ADMINISTERING_MAX
    yield "words at the controller", len(manager._administration._asked), administration.ASKED_MAX
    yield "messages to itself", len(manager._local), 0
    yield "readers of tables", len(manager._readers), len(manager._linked)
    if manager.standing is not None:
        yield "heartbeats that are remembered", len(manager.standing._sent), standing.SENT_MAX
    if manager.controller is not None:
        decides = manager.controller
        yield "nodes that wait", len(decides._waiting), controller.NODES_MAX
        yield "records on their way", len(decides._on_its_way), controller.NODES_MAX + controller.DECISIONS_MAX
        decisions = [*decides._resets.values(), *decides._forgets.values()]
        yield "decisions that wait", sum(map(len, decisions)), controller.DECISIONS_MAX
    if node._election is not None:
        yield "changes that wait", len(node._election._changes), election.CHANGES_WAITING_MAX
        if node._election.core is not None:
            yield from sizes_of_raft(node._election.core)


def sizes_of_raft(core: raft_core.RaftCore) -> Iterator[Size]:
    """What a candidate keeps beside what is committed."""
    kinds = len(RaftMessage.__subclasses__())
    yield "messages that wait for the disk", len(core._held) + len(core._releasing), 2 * MEMBERS_MAX * kinds
    yield "entries before the snapshot", core.log.snapshot.meta.index - core.log.base_index, raft_core.KEEP_BEHIND
    if core._leading is not None:
        own = core.last_index - max(core.commit, core._leading.noop_index)
        yield "entries that are not committed", own, raft_core.UNCOMMITTED_MAX
        yield "reads that wait", len(core._leading.reads), raft_core.READS_MAX


def sizes_of_client(registry: Registry) -> Iterator[Size]:
    """What waits for the nodes, in each of its sessions."""
    links = registry._links
    for core in links.cores.living():
        yield "reads that wait", len(core.reads._pending), reads.READS_PENDING_MAX + 1  # a table is asked for without asking
        yield "commands that wait", len(core.commands), commands.COMMANDS_PENDING_MAX
        yield "writes on their way", len(core.registrations._in_flight), registrations.WRITES_IN_FLIGHT_MAX
        yield "subscriptions on their way", len(core.views._in_flight), views.SUBSCRIBES_IN_FLIGHT_MAX
        unanswered = client_core.UNANSWERED_SECONDS_MAX / client_core.HEARTBEAT_SECONDS_MIN
        yield "unanswered heartbeats", len(core._heartbeats), unanswered
        if core in links._links:
            size = links.link_of(core)._outgoing_bytes
            yield "bytes to be sent", size, client_link.OUTGOING_BYTES_MAX + FRAME_BYTES_MAX_TO_NODE
