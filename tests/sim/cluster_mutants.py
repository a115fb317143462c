"""Broken variants of a cluster, each of which must be found within its number of seeds, by what is said of it there.

    python -m tests.sim.cluster_mutants

Each runs in a short story on a few nodes, with the checkers of consensus and ownership behind it (`stage.py`); the same stories
pass without it. What needs rarer luck lives in the cores alone (tests/core/raft/heap.py, tests/core/test_cluster_heap.py).
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio

from govern.actors import slot_manager as slot_manager_rules
from govern.actors.client_session import ClientSessions
from govern.actors.cluster_files import DiskClusterFiles
from govern.actors.election import Election
from govern.actors.failure_detector import FailureDetector
from govern.actors.mail import Compact, Written
from govern.actors.metadata_log import MetadataLog
from govern.actors.node import Node
from govern.actors.peer_connector import PeerConnector
from govern.actors.shard_store import ShardStore
from govern.actors.slot_manager import SlotManager
from govern.core import controller as controller_rules
from govern.core import ownership as ownership_rules
from govern.core.controller import Controller
from govern.core.ownership import Ownership, runs_of
from govern.core.peering import Peering, PeerLink, Phase, Step
from govern.core.placement import spread
from govern.core.raft.core import RaftCore
from govern.core.raft.leading import Leading
from govern.core.raft.types import Write
from govern.core.standing import Standing
from govern.core.table import EMPTY, Table
from govern.environment import Environment, SimulatedClock
from govern.model import NODE_ID_MAX
from govern.peer_messages import Entry
from govern.storage import directory as directory_rules
from govern.storage.format import Identity, Position
from govern.storage.prefix import RAFT_PREFIX
from govern.storage.raft_log import RaftLog
from govern.storage.raft_records import RaftSnapshot
from govern.storage.sim import Operation
from govern.testing import simulate
from govern.testing.scheduler import process

from .checkers.watch import SWEEP_SECONDS
from .finding import find_all
from .sizes import USUAL, Sizes
from .stage import Stage, open_stage
from .test_cluster_hangs import (
    a_client_dies_while_its_node_sleeps,
    a_log_hangs,
    all_logs_hang,
    all_logs_hang_and_a_node_dies,
    machines_sleep,
)
from .test_table_pushes import tables_are_pushed
from .test_without_candidates import a_simple_node_starts_alone

Patch = Callable[[pytest.MonkeyPatch], None]

# --- what is broken ---------------------------------------------------------------------------------------------------------


def lease_without_term_check(patch: pytest.MonkeyPatch) -> None:
    """A controller lends leases as long as it has not heard that it was deposed."""
    patch.setattr(Election, "proved_us", lambda self, now_us: now_us if self.leads else None)


def acts_before_registration(patch: pytest.MonkeyPatch) -> None:
    """A node acts on what a former life was given."""
    mine = lambda table, me, boot_no: tuple(run for run in table.runs if run.primary == me.node_id)  # noqa: E731
    patch.setattr(ownership_rules, "runs_of", mine)


def acts_on_old_grants(patch: pytest.MonkeyPatch) -> None:
    """A registered life takes the terms of the one before."""

    def mutant(table: Table, me: Any, boot_no: int) -> Any:
        row = table.node(me.node_id)
        if row is None or (row.disk_id, row.boot_no) != (me.disk_id, boot_no):
            return runs_of(table, me, boot_no)
        return tuple(run for run in table.runs if run.primary == me.node_id)

    patch.setattr(ownership_rules, "runs_of", mutant)


def lease_counted_from_receipt(patch: pytest.MonkeyPatch) -> None:
    heartbeat_ok = Standing.heartbeat_ok

    def mutant(self: Standing, answer: Any, now_us: int, boot_us: int) -> None:
        if answer.number in self._sent:
            self._sent[answer.number] = boot_us
        heartbeat_ok(self, answer, now_us, boot_us)

    patch.setattr(Standing, "heartbeat_ok", mutant)


def given_up_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(controller_rules, "SILENCE_US", 3_000_000)


def stale_table_accepted(patch: pytest.MonkeyPatch) -> None:
    take = Ownership.take

    def mutant(self: Ownership, table: Table) -> bool:
        self.table = Table(0, self.table.nodes, self.table.runs)
        return take(self, table)

    patch.setattr(Ownership, "take", mutant)


def boot_number_not_durable(patch: pytest.MonkeyPatch) -> None:
    write = directory_rules._write_identity

    async def mutant(storage: Any, identity: Any) -> None:
        if identity.boot_no == 1:
            await write(storage, identity)
        await trio.lowlevel.checkpoint()

    patch.setattr(directory_rules, "_write_identity", mutant)


def a_wiped_disk_keeps_its_name(patch: pytest.MonkeyPatch) -> None:
    next_boot = Identity.next_boot
    patch.setattr(Identity, "next_boot", lambda self: next_boot(self)._replace(disk_id=f"{process.get():<16}".encode()))


def a_rolled_back_disk_keeps_its_vote(patch: pytest.MonkeyPatch) -> None:
    """A life with a boot number that was there before is let in."""
    patch.setattr(Peering, "_judge_boot", lambda self, other: None)


def vote_not_persisted(patch: pytest.MonkeyPatch) -> None:
    write = MetadataLog.write

    async def mutant(self: MetadataLog, batch: Write) -> None:
        hard = batch.hard
        await write(self, attrs.evolve(batch, hard=None if hard is None else attrs.evolve(hard, voted_for=None)))

    patch.setattr(MetadataLog, "write", mutant)


def votes_in_advance(patch: pytest.MonkeyPatch) -> None:
    """What speaks of a term or a vote leaves before they are durable."""
    patch.setattr(RaftCore, "_send_durable", lambda self, message: self._out.append(message))


def sent_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    """The shell tells the rules that a batch is durable when it begins to write it."""

    async def mutant(self: Election) -> None:
        while True:
            await self._writing.wait()
            self._writing = trio.Event()
            if self._write is not None:
                assert self.core is not None
                self.core.end_write(self._now_us())
                self._send_all()
                await self._log.write(self._write)
                self._write = None
                self._give_to_disk()
                await self._mailbox.put(Written())

    patch.setattr(Election, "_write_batches", mutant)


def snapshot_named_too_late(patch: pytest.MonkeyPatch) -> None:
    """The state of before some entries goes by the index of the last of them."""
    apply = SlotManager._apply

    def mutant(self: SlotManager, entries: Sequence[Entry], now_us: int) -> None:
        before = self.meta.pack()
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(slot_manager_rules, "Compact", lambda index, state: Compact(index, before))
            apply(self, entries, now_us)

    patch.setattr(SlotManager, "_apply", mutant)


def never_compacted(patch: pytest.MonkeyPatch) -> None:
    """The slot manager forgets how much it has applied."""
    apply = SlotManager._apply

    def mutant(self: SlotManager, entries: Sequence[Entry], now_us: int) -> None:
        self._entries_since = self._bytes_since = -(10**9)
        apply(self, entries, now_us)

    patch.setattr(SlotManager, "_apply", mutant)


def log_cut_before_the_snapshot(patch: pytest.MonkeyPatch) -> None:
    """What a snapshot makes needless goes before the snapshot is there."""
    write_snapshot = RaftLog._write_snapshot

    async def mutant(self: RaftLog, snapshot: RaftSnapshot, position: Position) -> None:
        assert self._log is not None
        await self._log.remove_before(position.segment_no)
        await write_snapshot(self, snapshot, position)

    patch.setattr(RaftLog, "_write_snapshot", mutant)


def commits_alone(patch: pytest.MonkeyPatch) -> None:
    """What the leader itself has counts as committed."""
    patch.setattr(Leading, "majority_match", lambda self: self.match_of(self.me))


class Careless:
    """What a node knows of who acts for what, but that it takes every lease for good."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ownership, name)

    def is_fresh(self, boot_us: int) -> bool:
        return True


def expires_without_lease(patch: pytest.MonkeyPatch) -> None:
    """Who finds the silent, and who writes their expiry, do not look at the lease."""
    for actor in (FailureDetector, ShardStore):
        init = actor.__init__

        def mutant(self: Any, init: Any = init, **options: Any) -> None:
            init(self, **{**options, "ownership": Careless(options["ownership"])})

        patch.setattr(actor, "__init__", mutant)


def claims_to_work_while_its_log_hangs(patch: pytest.MonkeyPatch) -> None:
    """Heartbeats do not look at the log."""
    health = Node._health
    patch.setattr(Node, "_health", lambda self: attrs.evolve(health(self), unsynced_ms=0))


def gives_up_while_the_log_hangs(patch: pytest.MonkeyPatch) -> None:
    """Who is silent is given up as soon as the log takes it, whenever that is."""
    patch.setattr(Controller, "_is_log_proved", True)


def gives_up_when_the_log_is_back(patch: pytest.MonkeyPatch) -> None:
    """Nobody has time to speak before."""
    patch.setattr(controller_rules, "SPEAK_US", 0)


def reads_the_monotonic_clock(patch: pytest.MonkeyPatch) -> None:
    """A node counts its lease on a clock that stands still while its machine sleeps."""
    init = Node.__init__

    def mutant(self: Node, config: Any, environment: Environment, directory: Any) -> None:
        init(self, config, attrs.evolve(environment, clock=SimulatedClock()), directory)

    patch.setattr(Node, "__init__", mutant)


def clients_are_told_by_the_monotonic_clock(patch: pytest.MonkeyPatch) -> None:
    """Only what clients are told goes by it."""
    init = ClientSessions.__init__
    patch.setattr(ClientSessions, "__init__", lambda self, **options: init(self, **{**options, "clock": SimulatedClock()}))


def leases_are_counted_on_the_monotonic_clock(patch: pytest.MonkeyPatch) -> None:
    """Only heartbeats and their answers go by it."""
    init = SlotManager.__init__
    patch.setattr(SlotManager, "__init__", lambda self, **options: init(self, **{**options, "clock": SimulatedClock()}))


def expires_by_the_monotonic_clock(patch: pytest.MonkeyPatch) -> None:
    """Who is silent, and whether that counts, goes by it."""
    for actor in (FailureDetector, ShardStore):
        init = actor.__init__

        def mutant(self: Any, init: Any = init, **options: Any) -> None:
            init(self, **{**options, "clock": SimulatedClock()})

        patch.setattr(actor, "__init__", mutant)


def table_not_kept(patch: pytest.MonkeyPatch) -> None:
    """A node knows after a restart which cluster it belongs to, and nothing of it."""
    load = DiskClusterFiles.load

    async def mutant(self: DiskClusterFiles) -> tuple[bytes, Table] | None:
        kept = await load(self)
        return None if kept is None else (kept[0], EMPTY)

    patch.setattr(DiskClusterFiles, "load", mutant)


def table_not_pushed(patch: pytest.MonkeyPatch) -> None:
    """Nodes that are no candidates learn of a new table when an answer to their heartbeat names it."""
    patch.setattr(PeerConnector, "send_to_all", lambda self, node_ids, message: None)


def slots_spread_unevenly(patch: pytest.MonkeyPatch) -> None:
    """The first node gets two shares."""
    patch.setattr(controller_rules, "spread", lambda ranges, node_ids: spread(ranges, [node_ids[0], *node_ids]))


def two_links(patch: pytest.MonkeyPatch) -> None:
    """Both dial at once, and a second link comes up beside the first."""
    bring_up, due_at = Peering._bring_up, Peering._due_at

    def mutant(self: Peering, link: PeerLink, now: float) -> Step:
        step = bring_up(self, link, now)
        if step.replaced is not None:
            step.replaced.phase = Phase.UP
        return attrs.evolve(step, replaced=None)

    patch.setattr(Peering, "_judge_life", lambda self, mine, other: None)
    patch.setattr(Peering, "_bring_up", mutant)
    patch.setattr(Peering, "_due_at", staticmethod(lambda me, node_id, peer: due_at(NODE_ID_MAX, node_id, peer)))


# --- in which stories -------------------------------------------------------------------------------------------------------


async def a_cluster_forms(stage: Stage) -> None:
    """Nothing else."""
    await trio.sleep(SWEEP_SECONDS)


async def the_controllers_are_stopped(stage: Stage) -> None:
    """One after the other: each comes back to heartbeats, and to the word that it was deposed, in any order."""
    for _ in range(3):
        before = stage.controller
        stage.cluster.pause(before)
        await trio.sleep(3 + stage.world.random.random())
        stage.cluster.resume(before)
        await trio.sleep(1)


async def one_node_after_the_other_restarts(stage: Stage) -> None:
    for name in stage.cluster.nodes:
        await stage.cluster.crash(name)
        await trio.sleep(stage.world.random.random())
        await stage.cluster.restart(name)
        await trio.sleep(2)


async def one_node_restarts_often(stage: Stage) -> None:
    await one_restarts_often(stage, stage.others(stage.controller)[0], 3)


async def a_node_is_cut_off(stage: Stage) -> None:
    stage.cluster.isolate(stage.others(stage.controller)[0])
    await trio.sleep(6)


async def answers_come_late(stage: Stage) -> None:
    controller = stage.controller
    other = stage.others(controller)[0]
    for name in stage.others(controller):
        stage.cluster.slow(controller, name, 0.6)
    await trio.sleep(5)
    stage.cluster.isolate(other)
    await trio.sleep(8)


async def a_disk_is_lost(stage: Stage) -> None:
    name = stage.others(stage.controller)[0]
    await stage.cluster.crash(name)
    stage.consensus.wiped(name)
    stage.world.wipe(name)
    await stage.cluster.restart(name)
    await trio.sleep(3)


async def a_disk_is_put_back(stage: Stage) -> None:
    """To an image from before its last starts, of which both other nodes know; then one of the two is needed for a majority."""
    controller = stage.controller
    name = stage.others(controller)[0]
    disk = stage.world.machines[name].disk
    assert disk is not None
    image = disk.image()
    for _ in range(3):
        await stage.cluster.crash(name)
        await stage.cluster.restart(name)
        await trio.sleep(1)
    stage.consensus.put_back(name, stage.node(name)._me)
    await stage.cluster.crash(name)
    stage.world.roll_back(image, name)
    await stage.cluster.restart(name)
    await trio.sleep(1)
    await stage.cluster.kill(controller)
    await trio.sleep(4)


async def controllers_are_killed(stage: Stage) -> None:
    """And whoever has just voted loses its power, in the middle of everything."""
    for _ in range(3):
        before = stage.controller
        await stage.cluster.kill(before)
        await trio.sleep(stage.world.random.uniform(1.0, 1.6))
        for name in stage.others(before):
            await stage.cluster.crash(name)
        for name in stage.cluster.nodes:
            await stage.cluster.restart(name)
        await stage.until_controller(within=10)
        await trio.sleep(1)


async def disks_are_slow(stage: Stage) -> None:
    """Elections while a write takes a moment."""
    for name in stage.cluster.nodes:
        disk = stage.world.machines[name].disk
        assert disk is not None
        disk.latency_seconds = (0.01, 0.1)
    await stage.cluster.kill(stage.controller)
    await trio.sleep(4)


async def a_candidate_is_away_while_the_log_is_cut(stage: Stage) -> None:
    """It comes back to a log that begins later, and what it lacks is sent as a snapshot; another one begins with a snapshot of its own."""
    away, other = stage.others(stage.controller)
    await stage.cluster.crash(away)
    await one_restarts_often(stage, other, 8)
    await stage.cluster.restart(away)
    await trio.sleep(2)
    await stage.cluster.crash(other)
    await stage.cluster.restart(other)
    await stage.cluster.converged()


async def power_is_lost_at_each_snapshot(stage: Stage) -> None:
    """Just before the snapshot gets its name."""
    controller = stage.controller
    name, other = stage.others(controller)
    machine = stage.world.machines[name]

    def before(operation: Operation) -> None:
        if operation.kind == "rename" and operation.name.startswith(RAFT_PREFIX):
            stage.world.cut_power(name)

    for _ in range(4):
        assert machine.disk is not None
        machine.disk.before = before
        await one_restarts_often(stage, other, 5)
        machine.disk.before = None
        if not machine.running:
            await stage.cluster.restart(name)
    await stage.cluster.converged()


async def one_restarts_often(stage: Stage, name: str, times: int) -> None:
    """Each time a few records are written: a new life is registered, and has its slots again."""
    for _ in range(times):
        await stage.cluster.crash(name)
        await stage.cluster.restart(name)
        await trio.sleep(1.5)


async def the_controller_is_alone(stage: Stage) -> None:
    """Cut off with one node to register: what it proposes then reaches nobody."""
    controller = stage.controller
    name = "node4"
    await stage.cluster.kill(name)
    others = [other for other in stage.others(controller) if other != name]
    stage.cluster.partition(controller, others)
    await stage.cluster.restart(name)
    await trio.sleep(3)


async def the_majority_goes_and_a_client_dies(stage: Stage) -> None:
    left = stage.others(stage.controller)[0]
    await stage.run_dying(left)
    await trio.sleep(1)
    for name in stage.others(left):
        await stage.cluster.crash(name)
    await trio.sleep(6)
    await stage.cluster.kill("dying")
    await trio.sleep(8)


async def everybody_dials(stage: Stage) -> None:
    for name in stage.cluster.nodes:
        stage.cluster.cut(name, stage.others(name)[0])
    await trio.sleep(10)


@attrs.frozen
class Mutant:
    """One broken variant: the story that reveals it, and what it is found by (`finding.py`) within how many seeds. A `short` one is looked
    for in each run of the tests."""

    patch: Patch
    story: Callable[[Stage], Awaitable[None]]
    seeds: int
    found_by: str
    nodes: int = 3
    candidates: int | None = None
    short: bool = False
    sizes: Sizes = USUAL

    @property
    def name(self) -> str:
        return self.patch.__name__

    def trials(self) -> Sequence[int]:
        """The seeds within which it has to be found."""
        return range(self.seeds)

    def play(self, seed: int) -> None:
        """Tell the story once, with the seed."""

        async def on_stage(seed: int) -> None:
            async with open_stage(seed, self.nodes, self.candidates) as stage:
                await self.story(stage)

        with self.sizes.in_force():
            simulate(seed, on_stage, horizon=300)


SMALL_LOG = Sizes(compact_entries=3, keep_behind=0, raft_segment_bytes=8 * 1024)
"""A metadata log that is cut all the time."""
MUTANTS = (
    Mutant(lease_without_term_check, the_controllers_are_stopped, 3, "Violation: 1: .* lends a lease", short=True),
    Mutant(acts_before_registration, one_node_after_the_other_restarts, 1, "Violation: 17: .* registered at None", short=True),
    Mutant(acts_on_old_grants, one_node_after_the_other_restarts, 1, "Violation: 17: .* acts in term"),
    Mutant(lease_counted_from_receipt, answers_come_late, 3, "Violation: 19: .* a lease that nobody lent", short=True),
    Mutant(given_up_too_early, a_node_is_cut_off, 2, "Violation: 19: .* is given up, and its lease holds"),
    Mutant(stale_table_accepted, one_node_after_the_other_restarts, 3, "Violation: 11: .* goes back from table", short=True),
    Mutant(boot_number_not_durable, one_node_restarts_often, 1, "Violation: 17: boot number", short=True),
    Mutant(a_wiped_disk_keeps_its_name, a_disk_is_lost, 1, "Violation: 9: .* whose disk was wiped"),
    Mutant(a_rolled_back_disk_keeps_its_vote, a_disk_is_put_back, 1, "Violation: 9: .* whose disk was put back", short=True),
    Mutant(vote_not_persisted, controllers_are_killed, 1, "Violation: 4: .* starts with a vote"),
    Mutant(votes_in_advance, disks_are_slow, 4, "Violation: 7: .* sends Vote"),
    Mutant(sent_before_it_is_written, disks_are_slow, 1, "Violation: 7: .* sends Vote", short=True),
    Mutant(
        *(snapshot_named_too_late, a_candidate_is_away_while_the_log_is_cut, 1, "Violation: 8: .* without record"),
        short=True,
        sizes=SMALL_LOG,
    ),
    Mutant(never_compacted, a_candidate_is_away_while_the_log_is_cut, 1, "Violation: 38: .* does not cut it", sizes=SMALL_LOG),
    Mutant(log_cut_before_the_snapshot, power_is_lost_at_each_snapshot, 2, "Corrupt: node./raft-log", sizes=SMALL_LOG),
    Mutant(commits_alone, the_controller_is_alone, 2, "Violation: 5: .* takes Entry", 4),
    Mutant(expires_without_lease, the_majority_goes_and_a_client_dies, 1, "Violation: 27: .* without a lease", short=True),
    Mutant(claims_to_work_while_its_log_hangs, a_log_hangs, 1, "AssertionError: .* claims to work while its log hangs", short=True),
    Mutant(gives_up_while_the_log_hangs, all_logs_hang_and_a_node_dies, 1, "AssertionError: a node that works was given up", short=True),
    Mutant(gives_up_when_the_log_is_back, all_logs_hang, 3, "AssertionError: a node was given up when"),
    Mutant(reads_the_monotonic_clock, machines_sleep, 1, "AssertionError: a lease of before", short=True),
    Mutant(clients_are_told_by_the_monotonic_clock, machines_sleep, 1, "AssertionError: clients are told of a lease of before"),
    Mutant(leases_are_counted_on_the_monotonic_clock, machines_sleep, 1, "AssertionError: .* has no lease after"),
    Mutant(expires_by_the_monotonic_clock, a_client_dies_while_its_node_sleeps, 1, "Violation: 27: .* without a lease"),
    Mutant(table_not_kept, a_simple_node_starts_alone, 1, "AssertionError: .* has not kept its table", 5, 3, short=True),
    Mutant(table_not_pushed, tables_are_pushed, 1, "AssertionError: version .* of the table was pushed to nobody", 6, 3),
    Mutant(slots_spread_unevenly, a_cluster_forms, 1, "Violation: 44: ", short=True),
    Mutant(two_links, everybody_dials, 3, "Violation: 50: .* side by side"),
)


if __name__ == "__main__":
    sys.exit(1 if find_all(MUTANTS, sys.argv[1:]) else 0)
