"""What must stay small, and what each core asserts of itself.

T38  No mailbox, no ring and no table of a node is ever above its bound.
T40  A client does not flood: requests that reach the nodes are at most `FRAMES_PER_SECOND_MAX` per client, over any `WINDOW_SECONDS`.
"""

from __future__ import annotations

import trio

from govern.testing.world import World

from . import Violation

VALIDATE_EVERY = 10  # sweeps: walking everything costs as much as a simulated second of the rest
WINDOW_SECONDS = 2.0
FRAMES_PER_SECOND_MAX = 200.0


class Bounds:
    """Looks at every node."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sweeps = 0
        self._segments: dict[str, int] = {}
        self._window_began = 0.0
        world.network.taps.append(self._tap)

    def _tap(self, source: str, target: str, number: int, data: bytes) -> None:
        machine, sender = self._world.machines.get(target), self._world.machines.get(source)
        if machine is not None and machine.disk is not None and (sender is None or sender.disk is None):
            self._segments[source] = self._segments.get(source, 0) + 1

    def step(self) -> None:
        """Nothing: mailboxes are channels with a capacity, and cores assert at their doors."""

    def sweep(self) -> None:
        """T38 and T40."""
        self._sweeps += 1
        for machine in self._world.machines.values():
            if machine.node is not None:
                self._look_at(machine.name)
        now = trio.current_time()
        if now - self._window_began >= WINDOW_SECONDS:
            for client, segments in self._segments.items():
                if segments > FRAMES_PER_SECOND_MAX * (now - self._window_began):
                    raise Violation(f"40: {client} sent {segments} segments in {now - self._window_began:.1f} s")
            self._segments.clear()
            self._window_began = now

    def _look_at(self, name: str) -> None:
        node = self._world.machines[name].node
        assert node is not None
        limits = node.config.limits
        for child in node._tree:
            for mailbox in child.mailboxes:
                depth, capacity = mailbox.statistics().depth, mailbox.statistics().capacity
                if depth > capacity:
                    raise Violation(f"38: the mailbox {mailbox} of {name} holds {depth} messages; its bound is {capacity}")
        for what, size, bound in (
            ("operations in memory", len(node._shard._history), limits.history_ops_max),
            ("sessions", len(node._sessions), limits.sessions_max),
            ("connections", node._clients.connections, limits.connections_max),
            ("pending writes", node._dispatch.writes_pending, limits.writes_pending_max + limits.connections_max),
        ):
            if size > bound:
                raise Violation(f"38: {name} has {size} {what}; the bound is {bound}")
        if self._sweeps % VALIDATE_EVERY == 0 and node._shard.loaded:
            node.validate()

    def end(self) -> None:
        """Every core of every node asserts itself."""
        for machine in self._world.machines.values():
            if machine.node is not None:
                machine.node.validate()
