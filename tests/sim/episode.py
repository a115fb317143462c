"""One run: a seed becomes a world, breaks for a while, heals, and is judged.

    options ─▶ node and clients start ─▶ fault phase ─▶ healing phase ─▶ final checks ─▶ Report

In the healing phase nothing is broken any more and nobody begins anything new. Within `HEALING_SECONDS` it must be true that

C1  every client is connected, and every registration that it holds is held by it on the node that answers for it, under the lease that
    the client shows (45);
C2  the nodes hold nothing else (46): the dead are gone;
C3  every open view is that of its node: the same lsn, the same instances, not stale (45, 49);
C4  every node runs and says nothing is degraded (49);
C5  one node is the controller and all know it (41), every slot has one node that acts for it (42), nothing that was proposed waits
    (47), and all candidates have the same metadata (48);

and it stays so until the run is over; by then every operation has come to an end.

A run without this phase would accept a registry that does nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from govern.actors.node import Node
from govern.core.entries import unpack_entry
from govern.core.slots import SLOT_COUNT, slot_of
from govern.model import ServiceKey
from govern.testing import Outcome, simulate
from govern.testing.scheduler import process
from govern.testing.world import World, open_world

from .checkers import Violation
from .checkers.bounds import Bounds
from .checkers.consensus import Consensus
from .checkers.durable import Durable
from .checkers.expiry import Expiry
from .checkers.owners import Owners
from .checkers.pairs import Pairs
from .checkers.register import Linearizability
from .checkers.shadow import Commit, Shadow
from .checkers.subscriptions import Subscriptions
from .checkers.watch import Watch
from .columns import Columns
from .history import End, History
from .nemesis import Nemesis
from .operators import Operators
from .options import Options
from .workload import Workload

HEALING_SECONDS = 25.0
LOOK_SECONDS = 0.25


@attrs.frozen(kw_only=True)
class Report:
    """What a run was."""

    operations: int
    ends: dict[str, int]
    commits: int
    sights: int
    faults: dict[str, int]
    words: dict[str, int]
    """What operators have said, and was done."""
    nodes: int
    terms: int
    lives: int
    healed_after: float
    undecided: int
    """Keys for which the search of the linearizability checker was given up."""

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        faults = ", ".join(f"{count} {fault}" for fault, count in sorted((self.faults | self.words).items())) or "no faults"
        return (
            f"{self.operations} operations ({ends}), {self.commits} commits, {self.sights} sights, {self.lives} lives of {self.nodes}"
            f" nodes, {self.terms} terms; healed after {self.healed_after:.1f} s; {faults}"
        )


def run_episode(options: Options, columns: Columns | None = None, **hooks: object) -> Outcome[Report]:
    """Run one seed. Raises what was broken, a `Violation` or whatever else came out; `hooks` go to `simulate`."""
    columns = columns or Columns(options.node_names)
    with options.sizes.in_force():
        return simulate(options.seed, _play, options, columns, horizon=options.seconds * 3 + 300, **hooks)  # type: ignore[arg-type]


@attrs.define(eq=False)
class Judges:
    """The checkers that stand behind the code of a run from its first step."""

    shadow: Shadow
    expiry: Expiry
    durable: Durable
    consensus: Consensus
    owners: Owners

    @classmethod
    def of(cls, world: World, watch: Watch) -> Judges:
        shadow, consensus = Shadow(world, watch.report), Consensus(world, watch.report)
        owners = Owners(world, consensus, watch.report)
        return cls(shadow, Expiry(world, shadow, watch.report), Durable(world, watch.report), consensus, owners)

    @contextmanager
    def watch(self) -> Generator[None]:
        with self.shadow.watch(), self.expiry.watch(), self.durable.watch(), self.consensus.watch(), self.owners.watch():
            yield


async def _play(seed: int, options: Options, columns: Columns) -> Report:
    scope = trio.CancelScope()
    watch = Watch(scope)
    report: Report | None = None
    with scope:
        async with open_world(seed, delay_seconds_max=options.delay_seconds_max, window_bytes=options.window_bytes) as world:
            judges = Judges.of(world, watch)
            judges.shadow.listeners.append(lambda commit: columns.add(commit.node, _say(commit)))
            judges.consensus.listeners.append(lambda index, record: columns.add(str(process.get()), f"= {index} {_short(record)}"))
            with judges.watch():
                report = await _run_phases(world, options, columns, watch, judges)
    if watch.violation is not None:
        raise watch.violation
    assert report is not None
    return report


def _say(commit: Commit) -> str:
    value = "" if commit.after is None else f" = {commit.after.value}"
    return f"# {commit.lsn} {commit.kind} {commit.key[0]}/{commit.key[1]}{value}"


def _short(record: object) -> str:
    return str(record)[:55]


async def _run_phases(world: World, options: Options, columns: Columns, watch: Watch, judges: Judges) -> Report:
    history = History()
    shadow = judges.shadow
    workload = Workload(world, options, history, columns)
    linearizability = Linearizability(history, shadow, workload.sessions)
    bounds = Bounds(world, lambda: [(client.name, client.registry) for client in workload.living.values()])
    seen = (bounds, Pairs(world), Subscriptions(history, shadow), linearizability)
    watch.checkers = (shadow, judges.expiry, judges.durable, judges.consensus, judges.owners, *seen)
    sizes: dict[str, Any] = {
        "history_ops_max": options.history_ops_max,
        "writes_pending_max": options.writes_pending_max,
        "segment_bytes": options.segment_bytes,
        "snapshot_bytes": options.snapshot_bytes,
    }
    keys = {name: {**own, **sizes} for name, own in options.node_keys.items()}
    operators = Operators(world, options.node_names, judges.consensus, columns, options.seed)
    nemesis = Nemesis(world, options, workload, judges.expiry, shadow, judges.consensus, columns, keys, operators)
    for name in (*options.node_names, *workload.names):
        clock = world.machine(name, memory=name not in options.node_names).clock
        clock.offset_us, clock.wall_offset = options.draw_clock(name)
    for name in options.node_names:
        await world.start(name, **keys[name])
        world.machines[name].may_fail = True
    for name in workload.names:
        await workload.start(name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await nemesis.run(options.seconds - HEALING_SECONDS)
        await trio.sleep_until(options.seconds - HEALING_SECONDS)
        columns.add(options.node_names[0], "! everything is healed")
        workload.calm = True
        began = trio.current_time()
        await _heal(world, options, workload, shadow)
        healed_after = trio.current_time() - began
        await trio.sleep_until(began + HEALING_SECONDS)  # whatever was asked last is answered by then; the last fault may have ended late
        problem = find_unconverged(world, options, workload, shadow)
        if problem is not None:
            raise Violation(f"45: converged {healed_after:.1f} s after everything was healed, and then not any more: {problem}")
        pending = [operation for operation in history.operations if operation.end is End.PENDING]
        if pending:
            raise Violation(f"45: {pending[0]} was never answered")
        watch.ask(end=True)
        nursery.cancel_scope.cancel()
    ends: dict[str, int] = {}
    for operation in history.operations:
        ends[operation.end.value] = ends.get(operation.end.value, 0) + 1
    return Report(
        operations=len(history.operations),
        ends=ends,
        commits=len(shadow.commits),
        sights=len(history.sights),
        faults=nemesis.counts,
        words=operators.counts,
        nodes=options.nodes,
        terms=max(judges.consensus.leaders),
        lives=sum(world.machines[name].boots for name in options.node_names),
        healed_after=healed_after,
        undecided=linearizability.unknown,
    )


async def _heal(world: World, options: Options, workload: Workload, shadow: Shadow) -> None:
    """Wait until everything has converged."""
    problem: str | None = "nothing was looked at"
    with trio.move_on_after(HEALING_SECONDS):
        while problem is not None:
            await trio.sleep(LOOK_SECONDS)
            problem = find_unconverged(world, options, workload, shadow)
    if problem is not None:
        raise Violation(f"45: {HEALING_SECONDS:g} s after everything was healed: {problem}")


def find_unconverged(world: World, options: Options, workload: Workload, shadow: Shadow) -> str | None:
    """The first thing that is not as C1 to C5 want it; None when all is well."""
    nodes: dict[int, Node] = {}
    for name in options.node_names:
        node = world.machines[name].node
        if node is None:
            return f"{name} does not run"
        nodes[node.config.node_id] = node
    return _find_in_cluster(nodes) or _find_in_clients(nodes, workload, shadow)


def _find_in_cluster(nodes: Mapping[int, Node]) -> str | None:
    """C4 and C5."""
    controllers = [node_id for node_id, node in nodes.items() if node._manager.controller is not None]
    if len(controllers) != 1:
        return f"41: the controllers are {controllers}"
    leading = nodes[controllers[0]]
    assert leading._manager.controller is not None
    assert leading._election is not None
    assert leading._election.core is not None
    for node_id, node in nodes.items():
        if node.status()["degraded"]:
            return f"49: node {node_id} is degraded: {node.status()['degraded']}"
        if node._manager.leader != controllers[0] or not node.status()["fresh"]:
            return f"49: node {node_id} follows {node._manager.leader}, and fresh is {node.status()['fresh']}"
        if node._ownership.table != leading._ownership.table:
            return f"48: node {node_id} has {node._ownership.table}, the controller {leading._ownership.table}"
    acting = sum(node._ownership.acting_count for node in nodes.values())
    if acting != SLOT_COUNT:
        return f"42: {acting} slots are served"
    core, controller = leading._election.core, leading._manager.controller
    if controller._on_its_way or controller._waiting or core.commit != core.last_index:
        return f"47: something waits: {controller} {core}"
    packed = [nodes[voter.node_id]._manager.meta.pack() for voter in core.membership.voters]
    if any(each != packed[0] for each in packed):
        return f"48: the metadata of {core.membership.voters} differ"
    return None


def _find_in_clients(nodes: Mapping[int, Node], workload: Workload, shadow: Shadow) -> str | None:
    """C1 to C3."""
    if len(workload.living) != len(workload.names):
        return f"only {len(workload.living)} clients are connected"
    table = next(iter(nodes.values()))._ownership.table
    held = {key: entry.lease for key, entry in shadow.held.items()}
    for client in workload.living.values():
        if not client.registry.connected:
            return f"{client.name} is not connected"
        for key, registration in client.held.items():
            if registration.lost is None and held.pop(key, None) != registration.lease_id:
                return f"{client.name} believes to hold {key} under {registration.lease_id}; the node has {shadow.held.get(key)}"
        for view in client.views.values():
            key = ServiceKey("default", view.service.name)
            owner = table.owner(slot_of(key))
            assert owner is not None
            node = nodes[owner.node_id]
            entries = node._shard.entries(key)
            shown = {instance.id: instance.lsn for instance in view.instances}
            kept = {instance_id: unpack_entry(entry).lsn for instance_id, entry in entries.items()}
            is_current = view.lsn == node._shard.service_lsn(view.service) or not kept
            # an empty list moves with its slot, and nobody is told
            if view.stale or not is_current or shown != kept:
                return f"{client.name} sees {view.service} at {view.lsn} (stale: {view.stale}): {shown}; the node has {kept}"
    if held:
        return f"nobody holds {list(held)} any more, and they are still there"
    return None
