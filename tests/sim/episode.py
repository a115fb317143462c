"""One run: a seed becomes a world, breaks for a while, heals, and is judged.

    options ─▶ node and clients start ─▶ fault phase ─▶ healing phase ─▶ final checks ─▶ Report

In the healing phase nothing is broken any more and nobody begins anything new. Within `HEALING_SECONDS` it must be true that

C1  every client is connected, and every registration that it holds is held by it on the node, under the lease that the client shows (45);
C2  the node holds nothing else (46): the dead are gone;
C3  every open view is that of the node: the same lsn, the same instances, not stale (45, 49);
C4  the node says nothing is degraded;

and it stays so until the run is over; by then every operation has come to an end.

A run without this phase would accept a registry that does nothing.
"""

from __future__ import annotations

from typing import Any

import attrs
import trio

from govern.core.entries import unpack_entry
from govern.model import ServiceKey
from govern.testing import Outcome, simulate
from govern.testing.world import World, open_world

from .checkers import Violation
from .checkers.bounds import Bounds
from .checkers.durable import Durable
from .checkers.expiry import Expiry
from .checkers.register import Linearizability
from .checkers.shadow import Commit, Shadow
from .checkers.steps import Watch
from .checkers.subscriptions import Subscriptions
from .columns import Columns
from .history import End, History
from .nemesis import NODE, Nemesis
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
    lives: int
    healed_after: float
    undecided: int
    """Keys for which the search of the linearizability checker was given up."""

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        faults = ", ".join(f"{count} {fault}" for fault, count in sorted(self.faults.items())) or "no faults"
        return (
            f"{self.operations} operations ({ends}), {self.commits} commits, {self.sights} sights, {self.lives} lives of the node;"
            f" healed after {self.healed_after:.1f} s; {faults}"
        )


def run_episode(options: Options, columns: Columns | None = None, **hooks: object) -> Outcome[Report]:
    """Run one seed. Raises what was broken, a `Violation` or whatever else came out; `hooks` go to `simulate`."""
    columns = columns or Columns()
    return simulate(options.seed, _play, options, columns, horizon=options.seconds * 3 + 300, **hooks)  # type: ignore[arg-type]


async def _play(seed: int, options: Options, columns: Columns) -> Report:
    scope = trio.CancelScope()
    watch = Watch(scope)
    report: Report | None = None
    with scope:
        async with open_world(seed, delay_seconds_max=options.delay_seconds_max, window_bytes=options.window_bytes) as world:
            shadow = Shadow(world, watch.report)
            expiry = Expiry(world, shadow, watch.report)
            durable = Durable(world, watch.report)
            shadow.listeners.append(lambda commit: columns.add(commit.node, _say(commit)))
            with shadow.watch(), expiry.watch(), durable.watch():
                report = await _run_phases(world, options, columns, watch, shadow, expiry, durable)
    if watch.violation is not None:
        raise watch.violation
    assert report is not None
    return report


def _say(commit: Commit) -> str:
    value = "" if commit.after is None else f" = {commit.after.value}"
    return f"# {commit.lsn} {commit.kind} {commit.key[0]}/{commit.key[1]}{value}"


async def _run_phases(
    world: World, options: Options, columns: Columns, watch: Watch, shadow: Shadow, expiry: Expiry, durable: Durable
) -> Report:
    history = History()
    workload = Workload(world, options, history, columns)
    linearizability = Linearizability(history, shadow, workload.sessions)
    watch.checkers = (shadow, expiry, durable, Bounds(world), Subscriptions(history, shadow), linearizability)
    keys: dict[str, Any] = {
        "history_ops_max": options.history_ops_max,
        "writes_pending_max": options.writes_pending_max,
        "segment_bytes": options.segment_bytes,
        "snapshot_bytes": options.snapshot_bytes,
    }
    nemesis = Nemesis(world, options, workload, expiry, columns, keys)
    await world.start(NODE, **keys)
    world.machines[NODE].may_fail = True
    for name in workload.names:
        await workload.start(name)
    trio.lowlevel.add_instrument(watch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await nemesis.run(options.seconds - HEALING_SECONDS)
        await trio.sleep_until(options.seconds - HEALING_SECONDS)
        columns.add(NODE, "! everything is healed")
        workload.calm = True
        began = trio.current_time()
        await _heal(world, workload, shadow)
        healed_after = trio.current_time() - began
        await trio.sleep_until(options.seconds)
        problem = find_unconverged(world, workload, shadow)
        if problem is not None:
            raise Violation(f"45: converged {healed_after:.1f} s after everything was healed, and then not any more: {problem}")
        pending = [operation for operation in history.operations if operation.end is End.PENDING]
        if pending:
            raise Violation(f"45: {pending[0]} was never answered")
        watch.ask(end=True)
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(watch)
    ends: dict[str, int] = {}
    for operation in history.operations:
        ends[operation.end.value] = ends.get(operation.end.value, 0) + 1
    return Report(
        operations=len(history.operations),
        ends=ends,
        commits=len(shadow.commits),
        sights=len(history.sights),
        faults=nemesis.counts,
        lives=world.machines[NODE].boots,
        healed_after=healed_after,
        undecided=linearizability.unknown,
    )


async def _heal(world: World, workload: Workload, shadow: Shadow) -> None:
    """Wait until everything has converged."""
    problem: str | None = "nothing was looked at"
    with trio.move_on_after(HEALING_SECONDS):
        while problem is not None:
            await trio.sleep(LOOK_SECONDS)
            problem = find_unconverged(world, workload, shadow)
    if problem is not None:
        raise Violation(f"45: {HEALING_SECONDS:g} s after everything was healed: {problem}")


def find_unconverged(world: World, workload: Workload, shadow: Shadow) -> str | None:
    """The first thing that is not as C1 to C4 want it; None when all is well."""
    node = world.machines[NODE].node
    if node is None:
        return "the node does not run"
    if len(workload.living) != len(workload.names):
        return f"only {len(workload.living)} clients are connected"
    degraded = node.status()["degraded"]
    if degraded:
        return f"the node is degraded: {degraded}"
    held = {key: entry.lease for key, entry in shadow.held.items()}
    for client in workload.living.values():
        if not client.registry.connected:
            return f"{client.name} is not connected"
        for key, registration in client.held.items():
            if registration.lost is None and held.pop(key, None) != registration.lease_id:
                return f"{client.name} believes to hold {key} under {registration.lease_id}; the node has {shadow.held.get(key)}"
        for view in client.views.values():
            entries = node._shard.entries(ServiceKey("default", view.service.name))
            shown = {instance.id: instance.lsn for instance in view.instances}
            kept = {instance_id: unpack_entry(entry).lsn for instance_id, entry in entries.items()}
            is_current = (
                view.lsn == node._shard.service_lsn(view.service) or not kept
            )  # an empty list moves with its slot, and nobody is told
            if view.stale or not is_current or shown != kept:
                return f"{client.name} sees {view.service} at {view.lsn} (stale: {view.stale}): {shown}; the node has {kept}"
    if held:
        return f"nobody holds {list(held)} any more, and they are still there"
    return None
