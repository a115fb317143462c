"""The checkers of clusters can fail: each rule is broken in a small story, and the text says which one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from govern.core.meta import ClusterInit, MetaState, NodeFenced, NodeJoined, SlotBatch, SlotItem
from govern.core.ownership import Ownership
from govern.core.raft.core import RaftCore, Role
from govern.core.raft.types import DATA, NOOP, VOTERS, HardState, Membership, Snapshot, SnapshotMeta, Timing, Write
from govern.core.slots import SLOT_COUNT
from govern.core.table import SlotRun, Table, TableNode
from govern.peer_messages import HEARTBEAT_LEASED, AppendAnswer, Entry, Member, NodeHeartbeatOk, Vote, VoteAnswer
from govern.testing import simulate
from govern.testing.world import World, node_name, open_world

from .checkers import Violation
from .checkers.consensus import Consensus
from .checkers.owners import Owners
from .checkers.pairs import Pairs

A, B, C, D = (Member(number, bytes([number]) * 16) for number in (1, 2, 3, 4))
VOTERS_ABC = Membership((A, B, C))


class NoChance:
    def uniform(self, a: float, b: float) -> float:
        return a


def core(me: Member, *entries: Entry, term: int = 1, membership: Membership = VOTERS_ABC) -> RaftCore:
    """A candidate that starts with this log behind index 1."""
    snapshot = Snapshot(SnapshotMeta(1, 1, membership), b"")
    return RaftCore(me, hard=HardState(term, None, 1), snapshot=snapshot, entries=entries, timing=Timing(), random=NoChance(), now_us=0)


def leading(me: Member, *votes: Member, term: int = 2) -> RaftCore:
    found = core(me, term=term)
    found.role = Role.LEADER
    found._votes = dict.fromkeys(votes, True)
    return found


def entry(index: int, term: int, data: bytes = b"x", kind: int = NOOP) -> Entry:
    return Entry(index, term, kind, data)


@attrs.define(eq=False)
class Bench:
    """Both checkers, on a world in which nothing runs."""

    world: World
    consensus: Consensus
    owners: Owners
    seen: list[str]

    def vote(self, voter: Member, term: int, candidate: Member) -> None:
        self.consensus.wrote(node_name(voter.node_id), HardState(term, candidate, 0), (), None)

    def write(self, member: Member, *entries: Entry) -> None:
        self.consensus.wrote(node_name(member.node_id), None, entries, None)

    def commit(self, index: int, record: Any) -> None:
        """Everybody has it, and node 1 hands it out."""
        each = Entry(index, 1, DATA, record.pack())
        for member in (A, B, C):
            self.write(member, each)
        self.consensus.hands_out("node1", core(A), [each])


def two_leaders(bench: Bench) -> None:
    for leader, voters in ((A, (A, B)), (C, (C,))):
        for voter in voters:
            bench.vote(voter, 2, leader)
        bench.consensus.leads(node_name(leader.node_id), leading(leader, *voters))


def a_vote_that_is_on_no_disk(bench: Bench) -> None:
    bench.vote(A, 2, A)
    bench.consensus.leads("node1", leading(A, A, B))


def two_votes_in_a_term(bench: Bench) -> None:
    bench.vote(B, 2, A)
    bench.vote(B, 2, C)


def a_vote_is_forgotten(bench: Bench) -> None:
    bench.vote(B, 2, A)
    bench.consensus.loaded("node2", HardState(2, None, 0), Snapshot(SnapshotMeta(0, 0, Membership()), b""), ())


def a_term_is_forgotten(bench: Bench) -> None:
    bench.vote(B, 2, A)
    bench.consensus.loaded("node2", HardState(1, None, 0), Snapshot(SnapshotMeta(0, 0, Membership()), b""), ())


def a_log_is_shorter_after_a_start(bench: Bench) -> None:
    bench.write(B, entry(2, 1), entry(3, 1))
    bench.consensus.loaded("node2", HardState(1, None, 0), Snapshot(SnapshotMeta(0, 0, Membership()), b""), (entry(2, 1),))


def two_entries_in_one_place(bench: Bench) -> None:
    for name, data in (("node1", b"x"), ("node2", b"y")):
        bench.consensus.writes(name, core(A if name == "node1" else B), Write(None, (entry(2, 1, data),), None))


def another_term_before(bench: Bench) -> None:
    for name, term in (("node1", 1), ("node2", 2)):
        logged = core(A if name == "node1" else B, entry(2, term), term=2)
        bench.consensus.writes(name, logged, Write(None, (entry(3, 2),), None))


def two_entries_committed_in_one_place(bench: Bench) -> None:
    for member in (A, B, C):
        bench.write(member, entry(2, 1))
    bench.consensus.hands_out("node1", core(A), [entry(2, 1)])
    bench.consensus.hands_out("node2", core(B), [entry(2, 1, b"y")])


def a_leader_without_what_is_committed(bench: Bench) -> None:
    two_entries = [entry(2, 1), entry(3, 1)]
    for member in (A, B, C):
        bench.write(member, *two_entries)
        bench.vote(member, 2, A)
    bench.consensus.hands_out("node2", core(B), two_entries)
    bench.consensus.leads("node1", leading(A, A, B))


def a_commit_without_a_majority(bench: Bench) -> None:
    bench.write(A, entry(2, 1))
    bench.consensus.hands_out("node1", core(A), [entry(2, 1)])


def a_commit_goes_back(bench: Bench) -> None:
    raft = core(A, entry(2, 1))
    raft.commit = 2
    bench.consensus.hands_out("node1", raft, [])
    raft.commit = 1
    bench.consensus.hands_out("node1", raft, [])


def two_open_changes(bench: Bench) -> None:
    changes = [entry(index, 1, Membership((A, B, C), (Member(index, b"z" * 16),)).pack(), VOTERS) for index in (2, 3)]
    raft = core(A, *changes)
    raft.role = Role.LEADER
    bench.consensus.writes("node1", raft, None)


def two_voters_at_once(bench: Bench) -> None:
    for index, membership in ((2, Membership((A, B))), (3, Membership((A, C)))):
        change = entry(index, 1, membership.pack(), VOTERS)
        for member in (A, B, C):
            bench.write(member, change)
        bench.consensus.hands_out("node1", core(A), [change])


def a_vote_is_asked_for_too_early(bench: Bench) -> None:
    bench.vote(A, 2, C)
    bench.consensus.sends("node1", Vote(B, A, 2, 1, 1, False))


def a_vote_is_granted_too_early(bench: Bench) -> None:
    bench.consensus.wrote("node1", HardState(2, None, 0), (), None)
    bench.consensus.sends("node1", VoteAnswer(B, A, 2, True))


def a_term_is_named_too_early(bench: Bench) -> None:
    bench.vote(A, 2, A)
    bench.consensus.sends("node1", VoteAnswer(B, A, 3, False))


def an_entry_is_confirmed_too_early(bench: Bench) -> None:
    bench.vote(A, 2, A)
    bench.write(A, entry(2, 1))
    bench.consensus.committed[3] = entry(3, 1)
    bench.consensus.sends("node1", AppendAnswer(B, A, 2, True, 3, 0, 1))


def two_states_after_one_record(bench: Bench) -> None:
    for name, cluster_id in (("node1", b"1" * 16), ("node2", b"2" * 16)):
        state = MetaState()
        state.apply(2, ClusterInit(cluster_id).pack())
        bench.consensus.applied(name, state)


def a_snapshot_without_a_record(bench: Bench) -> None:
    state = MetaState()
    state.apply(2, ClusterInit(b"1" * 16).pack())
    bench.commit(3, joined(A))
    bench.consensus.took_over("node1", 3, state)


def a_wiped_disk_writes(bench: Bench) -> None:
    bench.consensus.writes("node1", core(A), None)
    bench.consensus.wiped("node1")
    bench.consensus.writes("node1", core(A), None)


def a_wiped_disk_counts(bench: Bench) -> None:
    for member in (A, B):
        bench.write(member, entry(2, 1))
    bench.consensus.writes("node2", core(B), None)
    bench.consensus.wiped("node2")
    bench.consensus.hands_out("node1", core(A), [entry(2, 1)])


def a_wiped_disk_votes(bench: Bench) -> None:
    bench.consensus.writes("node2", core(B), None)
    for voter in (A, B):
        bench.vote(voter, 2, A)
    bench.consensus.wiped("node2")
    bench.consensus.leads("node1", leading(A, A, B))


def a_disk_that_was_put_back_writes(bench: Bench) -> None:
    bench.consensus.writes("node1", core(A), None)
    bench.consensus.put_back("node1", A)
    bench.consensus.writes("node1", core(A), None)
    assert not bench.seen, "a process that runs on it is no part of the cluster yet"
    bench.consensus.writes("node1", core(A), Write(None, (entry(2, 1),), None))


def a_disk_that_was_put_back_counts(bench: Bench) -> None:
    bench.consensus.writes("node2", core(B), None)
    bench.consensus.put_back("node2", B)
    for member in (A, B):
        bench.write(member, entry(2, 1))
    bench.consensus.hands_out("node1", core(A), [entry(2, 1)])


def a_disk_that_was_put_back_votes(bench: Bench) -> None:
    bench.consensus.writes("node2", core(B), None)
    bench.consensus.put_back("node2", B)
    for voter in (A, B):
        bench.vote(voter, 2, A)
    bench.consensus.leads("node1", leading(A, A, B))


def joined(member: Member, boot_no: int = 1) -> NodeJoined:
    return NodeJoined(member.node_id, member.disk_id, boot_no, "h:1", "h:2", True, False)


def table(version: int, *runs: SlotRun, registered_at: int = 2) -> Table:
    rows = tuple(TableNode(m.node_id, "h:1", "h:2", True, "up", m.disk_id, 1, registered_at) for m in (A, B))
    return Table(version, rows, runs)


def run(primary: int, term: int, first: int = 0, last: int = 99) -> SlotRun:
    return SlotRun(first, last, primary, term, ((primary, 3),), (primary,))


def follow(bench: Bench, member: Member, what: Table, boot_no: int = 1) -> Ownership:
    ownership = Ownership(member, boot_no)
    ownership.take(what)
    bench.owners.took(node_name(member.node_id), ownership)
    return ownership


def two_owners_in_one_term(bench: Bench) -> None:
    bench.commit(2, joined(A))
    bench.commit(3, joined(B))
    follow(bench, A, table(4, run(1, 4)))
    follow(bench, B, table(4, run(2, 4, first=50)))


def two_writers_in_one_term(bench: Bench) -> None:
    for member in (A, B):
        follow(bench, member, table(4))
        bench.owners.numbered(node_name(member.node_id), 7, 4, object())  # type: ignore[arg-type]


def a_role_without_registration(bench: Bench) -> None:
    follow(bench, A, table(4, run(1, 4)))


def a_term_from_before_the_registration(bench: Bench) -> None:
    bench.commit(5, joined(A))
    follow(bench, A, table(6, run(1, 4), registered_at=2))


def two_lives_with_one_number(bench: Bench) -> None:
    bench.commit(2, joined(A))
    follow(bench, A, table(4))
    bench.world.machines["node1"].boots += 1
    follow(bench, A, table(4))


def a_table_goes_back(bench: Bench) -> None:
    follow(bench, A, table(5))
    follow(bench, A, table(4))


def a_term_that_does_not_grow(bench: Bench) -> None:
    state = MetaState()
    state.apply(2, ClusterInit(b"1" * 16).pack())
    state.apply(3, joined(A).pack())
    state.apply(4, SlotBatch("first", (SlotItem(0, 99, 1, True),)).pack())
    bench.owners.applied(state)
    state.table = attrs.evolve(state.table, version=5, runs=tuple(attrs.evolve(each, term=3) for each in state.table.runs))
    bench.owners.applied(state)


def somebody_else_in_sync(bench: Bench) -> None:
    state = MetaState()
    state.table = table(4, attrs.evolve(run(1, 4), in_sync=(1, 2)))
    bench.owners.applied(state)


def one_has_more_slots(bench: Bench) -> None:
    state = MetaState()
    state.table = table(4, run(1, 4, last=SLOT_COUNT // 2), run(2, 4, SLOT_COUNT // 2 + 1, SLOT_COUNT - 1))
    bench.owners.applied(state)


def given_up_with_a_lease(bench: Bench) -> None:
    bench.commit(2, joined(A))
    follow(bench, A, table(4, run(1, 4)))
    machine = bench.world.machines["node1"]
    machine.scope = trio.CancelScope()
    bench.owners.sent("node1", 1)
    bench.owners.answered("node1", NodeHeartbeatOk(*A, 1, 1, 1, HEARTBEAT_LEASED, 4000, 4, 1))
    bench.commit(5, NodeFenced(*A, 1, "silent"))
    machine.scope = None


@attrs.define
class FreshNode:
    """Stands for a node that believes in its lease."""

    _ownership: Ownership


def fresh(bench: Bench, member: Member, what: Table) -> None:
    bench.commit(member.node_id + 1, joined(member))
    ownership = follow(bench, member, what)
    ownership.lease_until_us = 10**12
    bench.world.machines[node_name(member.node_id)].node = FreshNode(ownership)  # type: ignore[assignment]


def a_lease_that_nobody_lent(bench: Bench) -> None:
    fresh(bench, A, table(4, run(1, 4)))
    with pytest.raises(Violation) as found:
        bench.owners.sweep()
    bench.seen.append(str(found.value))


def two_fresh_owners(bench: Bench) -> None:
    for member, term in ((A, 4), (B, 5)):
        fresh(bench, member, table(term, run(member.node_id, term)))
        name = node_name(member.node_id)
        bench.owners.sent(name, 1)
        bench.owners.answered(name, NodeHeartbeatOk(*member, 1, 1, 1, HEARTBEAT_LEASED, 4000, 4, 1))
    with pytest.raises(Violation) as found:
        bench.owners.sweep()
    bench.seen.append(str(found.value))


def an_expiry_without_a_lease(bench: Bench) -> None:
    from govern.core.entries import ExpireOp
    from govern.model import Lsn, ServiceKey

    bench.commit(2, joined(A))
    follow(bench, A, table(4, run(1, 4)))
    bench.owners.numbered("node1", 7, 4, ExpireOp(ServiceKey("default", "s"), "i", Lsn(4, 1)))


def a_deposed_controller_lends(bench: Bench) -> None:
    for leader, term in ((A, 2), (B, 3)):
        for voter in (A, B):
            bench.vote(voter, term, leader)
        bench.consensus.leads(node_name(leader.node_id), leading(leader, A, B, term=term))
    bench.owners.lends("node1")


BROKEN: tuple[tuple[str, Callable[[Bench], None]], ...] = (
    ("1", two_leaders),
    ("1", a_deposed_controller_lends),
    ("2", two_entries_in_one_place),
    ("2", another_term_before),
    ("2", two_entries_committed_in_one_place),
    ("3", a_leader_without_what_is_committed),
    ("4", a_vote_that_is_on_no_disk),
    ("4", two_votes_in_a_term),
    ("4", a_vote_is_forgotten),
    ("4", a_term_is_forgotten),
    ("4", a_log_is_shorter_after_a_start),
    ("5", a_commit_without_a_majority),
    ("5", a_commit_goes_back),
    ("6", two_open_changes),
    ("6", two_voters_at_once),
    ("7", a_vote_is_asked_for_too_early),
    ("7", a_vote_is_granted_too_early),
    ("7", a_term_is_named_too_early),
    ("7", an_entry_is_confirmed_too_early),
    ("8", two_states_after_one_record),
    ("8", a_snapshot_without_a_record),
    ("9", a_wiped_disk_writes),
    ("5", a_wiped_disk_counts),
    ("9", a_wiped_disk_votes),
    ("9", a_disk_that_was_put_back_writes),
    ("5", a_disk_that_was_put_back_counts),
    ("9", a_disk_that_was_put_back_votes),
    ("10", two_owners_in_one_term),
    ("10", two_writers_in_one_term),
    ("11", a_term_that_does_not_grow),
    ("11", a_table_goes_back),
    ("12", somebody_else_in_sync),
    ("17", a_role_without_registration),
    ("17", a_term_from_before_the_registration),
    ("17", two_lives_with_one_number),
    ("19", given_up_with_a_lease),
    ("19", a_lease_that_nobody_lent),
    ("19", two_fresh_owners),
    ("27", an_expiry_without_a_lease),
    ("44", one_has_more_slots),
)


@pytest.mark.parametrize(("number", "story"), BROKEN, ids=lambda each: each if isinstance(each, str) else each.__name__)
def test_what_is_broken_is_found(number: str, story: Callable[[Bench], None]) -> None:
    """By its number."""

    async def tell(seed: int) -> list[str]:
        seen: list[str] = []
        async with open_world(seed) as world:
            consensus = Consensus(world, lambda violation: seen.append(str(violation)))
            bench = Bench(world, consensus, Owners(world, consensus, lambda violation: seen.append(str(violation))), seen)
            for member in (A, B, C):
                world.machine(node_name(member.node_id))
            story(bench)
            for machine in world.machines.values():
                machine.node = None
        return seen

    seen = simulate(1, tell).result
    assert any(text.startswith(f"{number}: ") for text in seen), seen


def test_two_links_are_found() -> None:
    """Segments on two connections of one pair, for longer than a change of links takes."""

    async def talk(seed: int) -> None:
        async with open_world(seed) as world:
            for member in (A, B):
                world.machine(node_name(member.node_id))
            pairs = Pairs(world)
            for _ in range(10):
                pairs.sweep()
                await trio.sleep(0.5)
                pairs._tap("node1", "node2", 1, b"x")
                pairs._tap("node2", "node1", 2, b"x")
            with pytest.raises(Violation, match="50: node1 and node2 have used 2 links side by side"):
                pairs.sweep()

    simulate(1, talk)
