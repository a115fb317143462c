"""Single rules of candidates: refusals, bounds, what a message may contain, and what a new life makes of a disk."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from govern.core.raft import membership
from govern.core.raft.core import READS_MAX, TERM_LEAP_MAX, UNCOMMITTED_MAX, RaftCore, Role
from govern.core.raft.types import (
    DATA,
    VOTERS,
    ChangeRefused,
    HardState,
    Membership,
    NotLeader,
    Snapshot,
    SnapshotMeta,
    Timing,
)
from govern.errors import Overloaded
from govern.peer_messages import (
    MEMBERS_MAX,
    NUMBER_MAX,
    RAFT_MESSAGES,
    Append,
    AppendAnswer,
    Entry,
    InstallSnapshot,
    Member,
    PreVote,
    RaftMessage,
    Vote,
    build_peer_message,
    encode_peer,
    unpack_peer_frame,
)

from .rig import Middle, Rig, make_member

ONE, TWO, THREE, FOUR = (make_member(each) for each in range(1, 5))


def test_terms_of_timeouts_do_not_overlap() -> None:
    """R10: the largest id first, and healthy candidates one after the other."""
    chance = random.Random(1)
    for _ in range(50):
        deadlines = []
        for member in (THREE, TWO, ONE):
            rig = Rig((1, 2, 3))
            disk = rig.seats[member.node_id].disk
            core = RaftCore(
                member,
                hard=disk.hard,
                snapshot=disk.snapshot,
                entries=disk.entries,
                timing=Timing(),
                random=chance,
                now_us=0,
            )
            deadlines.append(core.deadline_us)
        third = 1_000_000 / 3
        assert all(1_000_000 + rank * third <= at <= 1_000_000 + (rank + 0.5) * third + 1 for rank, at in enumerate(deadlines))


def test_a_number_of_voters_that_is_worse_than_another_is_told() -> None:
    """Even ones survive no more than one fewer."""
    assert [count for count in range(membership.VOTERS_MAX + 1) if membership.advice(count)] == [2, 4, 6]
    assert membership.advice(4) == "4 voters survive no more losses than 3: use 3 or 5"


def test_only_the_leader_is_asked() -> None:
    """The error names who leads, if anybody does."""
    rig = Rig((1, 2, 3))
    with pytest.raises(NotLeader, match="there is no leader now"):
        rig.core(2).propose(b"", 0)
    rig.elect(1)
    for act, what in (("propose", b""), ("read", "r"), ("transfer", ONE), ("remove", ONE)):
        with pytest.raises(NotLeader, match="node 1 leads") as found:
            getattr(rig.core(2), act)(what, 0)
        assert found.value.leader == ONE
    assert rig.core(2).progress() == []
    assert [(each.member, each.voter, each.match, each.recent) for each in rig.core(1).progress()] == [
        (ONE, True, 2, True),
        (TWO, True, 2, True),
        (THREE, True, 2, True),
    ]


def test_what_waits_is_bounded() -> None:
    """Proposals that nobody answers, and reads."""
    rig = Rig((1, 2, 3))
    rig.elect(1)
    for _ in range(UNCOMMITTED_MAX):
        rig.core(1).propose(b"", rig.now_us)
    with pytest.raises(Overloaded, match="wait for a majority"):
        rig.core(1).propose(b"", rig.now_us)
    for number in range(READS_MAX):
        rig.core(1).read(number, rig.now_us)
    with pytest.raises(Overloaded, match="reads wait"):
        rig.core(1).read("one too many", rig.now_us)


def test_answers_that_wait_for_the_disk_are_bounded() -> None:
    """A disk that hangs for long costs one answer of each kind and sender."""
    rig = Rig((1, 2, 3))
    rig.seats[2].slow = True
    rig.now_us = 2_000_000
    for term in range(2, 100):
        rig.core(2).step(Vote(TWO, ONE, term, 1, 1, False), rig.now_us)
        rig.core(2).step(Vote(TWO, THREE, term, 1, 1, False), rig.now_us)
        rig.settle(2)
    assert rig.mail == []
    rig.seats[2].slow = False
    rig._write(rig.seats[2])
    rig.settle(2)
    assert len(rig.mail) <= 4


@pytest.mark.parametrize(
    ("act", "member", "text"),
    [
        ("add_learner", TWO, "node 2 is a voter already: there is nothing to add"),
        ("add_learner", FOUR, "node 4 is a learner already: promote it when it has caught up"),
        ("promote", TWO, "node 2 is a voter already: there is nothing to promote"),
        ("promote", make_member(5), "node 5 is no learner: add it first, and promote it when it has caught up"),
        ("promote", FOUR, "node 4 is 100 entries behind: wait until it has caught up"),
        ("remove", make_member(5), "node 5 with this disk is no member: there is nothing to remove"),
        ("remove", make_member(2, disk=7), "node 2 with this disk is no member: there is nothing to remove"),
        ("remove", ONE, "node 1 leads: hand the leadership to another voter first, then remove it"),
        ("transfer", ONE, "node 1 leads already: there is nothing to hand over"),
        ("transfer", FOUR, "node 4 is no voter: promote it first"),
    ],
)
def test_refusals_say_what_to_do(act: str, member: Member, text: str) -> None:
    """One line each."""
    rig = Rig((1, 2, 3), learners=(4,))
    rig.elect(1)
    rig.seats[4].slow = True
    for _ in range(100):
        rig.core(1).propose(b"", rig.now_us)
        rig.settle(1)
        rig.deliver()
    with pytest.raises(ChangeRefused) as found:
        getattr(rig.core(1), act)(member, rig.now_us)
    assert str(found.value) == text


def test_a_voter_that_is_away_is_no_help() -> None:
    """No change after which a majority would need who is not there; removing that one is always right."""
    rig = Rig((1, 2, 3), learners=(4,))
    rig.elect(1)
    rig.cut = dict.fromkeys([(3, 1)])
    rig.advance(1.5)
    with pytest.raises(ChangeRefused, match="node 3 does not answer: choose another voter"):
        rig.core(1).transfer(THREE, rig.now_us)
    with pytest.raises(ChangeRefused, match="2 of the then 2 voters would be needed, and node 3 cannot be reached now"):
        rig.core(1).remove(TWO, rig.now_us)
    rig.core(1).promote(FOUR, rig.now_us)  # three of four are there
    rig.settle(1)
    rig.deliver()
    rig.core(1).remove(THREE, rig.now_us)
    rig.settle(1)
    rig.deliver()
    assert rig.core(4).membership == Membership((ONE, TWO, FOUR))


def test_a_learner_that_hears_nobody_knows_no_leader() -> None:
    """It may have been removed, which nobody told it; and where another one leads by now, it would name the former for ever."""
    rig = Rig((1, 2, 3), learners=(4,))
    rig.elect(1)
    rig.advance(1.0)
    assert rig.core(4).leader == ONE
    rig.core(1).remove(FOUR, rig.now_us)
    rig.settle(1)
    rig.advance(3.0)
    assert FOUR in rig.core(4).membership.learners
    assert rig.core(4).leader is None
    assert rig.core(4).role is Role.FOLLOWER


def test_the_last_voter_stays() -> None:
    """There is always one."""
    rig = Rig((1,))
    rig.elect(1)
    with pytest.raises(ChangeRefused, match="node 1 is the last voter: add and promote another one first"):
        rig.core(1).remove(ONE, rig.now_us)


def test_who_is_alone_has_the_lease_while_it_ticks() -> None:
    """R7 with one voter: from the beginning of its last round."""
    rig = Rig((1,))
    rig.advance(0.5)
    core = rig.core(1)
    assert core.has_lease(rig.now_us)
    assert core.lease_until_us <= rig.now_us + 800_000
    assert not core.has_lease(rig.now_us + 900_000)


def test_who_is_alone_hears_no_candidate_of_a_lost_cluster() -> None:
    """B5: two of the three that were given up come back and elect one of them, in whatever term; the third goes on alone, and leads."""
    jump = 1 << 32
    alone = Snapshot(SnapshotMeta(jump, jump, Membership.of((ONE,), ())), b"")
    core = RaftCore(ONE, hard=HardState(jump, None, jump), snapshot=alone, entries=(), timing=Timing(), random=random.Random(1), now_us=0)
    core.tick(0)
    while core.begin_write() is not None:
        core.end_write(0)
    assert core.role is Role.LEADER
    term = core.term
    core.step(PreVote(ONE, TWO, term + 1, 2, 1), 0)
    core.step(Vote(ONE, TWO, term + 1, 2, 1, True), 0)
    core.step(Append(ONE, TWO, term + 2, 2, 1, 2, 1, ()), 0)
    assert (core.role, core.term) == (Role.LEADER, term)
    assert core.take_messages() == []


def test_a_flapping_link_grows_no_terms() -> None:
    """3 comes and goes for a minute."""
    rig = Rig((1, 2, 3))
    rig.elect(1)
    for _ in range(40):
        rig.cut = dict.fromkeys([(1, 3), (2, 3)])
        rig.advance(1.3)
        rig.cut = {}
        rig.advance(0.2)
    assert [rig.core(each).term for each in (1, 2, 3)] == [2, 2, 2]
    assert rig.core(1).role is Role.LEADER


def test_a_long_tail_costs_one_question_per_term() -> None:
    """However long: the answer names a point, and the leader searches by term."""
    rig = Rig((1, 2, 3))
    rig.elect(1)
    rig.cut = dict.fromkeys([(1, 2), (1, 3), (2, 1), (3, 1)])
    for _ in range(UNCOMMITTED_MAX - 1):
        rig.core(1).propose(b"lost", rig.now_us)
    rig.settle(1)
    rig.deliver()
    rig.advance(2.0)
    assert rig.core(3).role is Role.LEADER
    rig.core(3).propose(b"kept", rig.now_us)
    rig.settle(3)
    rig.deliver()
    rig.cut, rig.lines = {}, []
    rig.advance(0.3)
    assert rig.core(1).last_index == rig.core(3).last_index
    assert sum("no, perhaps" in line for line in rig.lines) <= 2


def test_a_message_for_another_disk_is_dropped() -> None:
    """It changes nothing and is not answered."""
    rig = Rig((1, 2, 3))
    rig.settle(2)
    before = repr(rig.core(2))
    rig.core(2).step(Vote(make_member(2, disk=2), ONE, 9, 9, 9, True), 5_000_000)
    rig.settle(2)
    assert (repr(rig.core(2)), rig.mail) == (before, [])


def test_a_new_life_has_what_the_disk_has() -> None:
    """Kept entries before the snapshot serve followers; the commit index may be behind what is committed."""
    members = Membership((ONE, TWO))
    entries = [Entry(index, 2, DATA, b"") for index in range(4, 9)]
    core = RaftCore(
        ONE,
        hard=HardState(3, TWO, 6),
        snapshot=Snapshot(SnapshotMeta(5, 2, members), b"state"),
        entries=entries,
        timing=Timing(),
        random=Middle(),
        now_us=7,
    )
    assert (core.term, core.voted_for, core.commit, core.applied, core.last_index) == (3, TWO, 6, 5, 8)
    assert core.membership == members
    assert [entry.index for entry in core.take_committed(10)] == [6]
    assert core.begin_write() is None
    core.validate()


MEMBERS = st.sampled_from([ONE, TWO, THREE])
NUMBERS = st.one_of(st.integers(0, 6), st.sampled_from([2**33, 2**41, 2**62 - 1]))


def draw_field(name: str, number: Any) -> Any:
    """Any value that the wire lets through."""
    entry = st.builds(Entry, number, number, st.integers(0, 4), st.sampled_from([b"", b"x", Membership((ONE,)).pack()]))
    return {
        "to": st.sampled_from([TWO, TWO, TWO, make_member(2, disk=2)]),
        "sender": MEMBERS,
        "voters": st.lists(MEMBERS, max_size=3).map(tuple),
        "learners": st.lists(MEMBERS, max_size=2).map(tuple),
        "granted": st.booleans(),
        "transfer": st.booleans(),
        "ok": st.booleans(),
        "last": st.booleans(),
        "data": st.binary(max_size=4),
        "entries": st.one_of(
            st.lists(entry, max_size=3).map(tuple),
            st.builds(lambda at, terms: tuple(Entry(at + n, t, 1, b"") for n, t in enumerate(sorted(terms))), number, st.lists(number)),
        ),
    }.get(name, number)


MESSAGES = st.one_of(
    [st.builds(kind, **{each.name: draw_field(each.name, NUMBERS) for each in kind.__attrs_attrs__}) for kind in RAFT_MESSAGES]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(MESSAGES, st.integers(0, 900_000)), max_size=30), st.booleans())
def test_no_message_is_too_strange(messages: list[tuple[RaftMessage, int]], lead: bool) -> None:
    """Whatever it says, nothing is raised, the rules hold, and what is answered can be sent."""
    rig = Rig((1, 2, 3))
    if lead:
        rig.elect(2)
    for message, wait_us in messages:
        rig.now_us += wait_us
        try:
            rig.core(2).step(message, rig.now_us)
            if rig.now_us >= rig.core(2).deadline_us:
                rig.core(2).tick(rig.now_us)
        except AssertionError as error:  # entries that no leader could have sent, in the place of committed ones
            raise AssertionError(f"{message}") from error
        rig.settle(2)
        for answer in rig.mail:
            assert build_peer_message(unpack_peer_frame(encode_peer(answer)[4:])) == answer
        rig.mail.clear()


def test_a_snapshot_of_nobody_is_not_taken() -> None:
    """A member that is there twice: not from us."""
    rig = Rig((1, 2, 3))
    message = InstallSnapshot(TWO, ONE, 2, 9, 2, (ONE, ONE), (), 0, True, 1, b"")
    rig.core(2).step(message, 0)
    rig.settle(2)
    assert rig.core(2).commit == 1
    assert [type(each) for each in rig.mail] == []


def test_a_membership_is_what_was_packed() -> None:
    """And nothing else is read as one."""
    packed = Membership((ONE, TWO), (THREE,)).pack()
    assert Membership.unpack(packed) == Membership((ONE, TWO), (THREE,))
    for data in (b"", b"\xc0", b"\x92\x90", b"\x92\x91\x01\x90", Membership((ONE,)).pack() + b"x", b"\x92\x91\x92\x01\x02\x90"):
        with pytest.raises(ValueError, match="member"):
            Membership.unpack(data)


def test_a_term_that_no_election_leads_to_is_not_believed() -> None:
    """A word of anybody must not use up the numbers of terms: the next one would be the last. A recovered cluster is far ahead, but not so
    far."""
    rig = Rig((1, 2, 3))
    core = rig.core(2)
    for term in (1 + TERM_LEAP_MAX, NUMBER_MAX - 1, NUMBER_MAX, 1 << 64):
        core.step(Vote(TWO, THREE, term, 9, 1, True), 0)
        core.step(Append(TWO, THREE, term, 1, 1, 1, 1, ()), 0)
        rig.settle(2)
        assert (core.term, core.leader, rig.mail) == (1, None, [])
    core.step(Append(TWO, THREE, 1 + (1 << 32), 1, 1, 1, 1, ()), 0)
    assert (core.term, core.leader) == (1 + (1 << 32), THREE)


def test_a_beginning_that_turns_out_to_be_another_one() -> None:
    """F4: as long as nothing is in a log it begins where the newest leader says, be it before what was said first."""
    rig = Rig((1, 2, 3), blank=(4,))
    core = rig.core(4)
    for term, start in enumerate((900, 20, 30, 10), start=2):
        core.step(Append(FOUR, TWO, term, start, 0, start, 1, ()), 0)
        rig.settle(4)
        assert (core.commit, core.applied, core.last_index) == (start, start, start)
    core.step(Append(FOUR, TWO, 9, 7, 0, 8, 1, (Entry(8, 9, DATA, b"first"),)), 0)
    rig.settle(4)
    assert [entry.data for entry in rig.seats[4].applied] == [b"first"]


def test_a_lower_term_is_answered() -> None:
    """R3, for each kind of request."""
    rig = Rig((1, 2, 3))
    rig.elect(1)
    for message in (
        Append(TWO, THREE, 1, 0, 0, 0, 1, ()),
        InstallSnapshot(TWO, THREE, 1, 9, 1, (ONE,), (), 0, True, 1, b""),
        PreVote(TWO, THREE, 1, 9, 9),
        Vote(TWO, THREE, 1, 9, 9, False),
    ):
        rig.core(2).step(message, rig.now_us)
        rig.settle(2)
        (answer,) = rig.take()
        assert (answer.to, answer.term) == (THREE, 2)
        assert not getattr(answer, "granted", False)
        assert not isinstance(answer, AppendAnswer) or not answer.ok


def test_the_kinds_of_entries_are_numbers_of_the_wire() -> None:
    """They are on disks."""
    assert (DATA, VOTERS) == (1, 2)


def test_a_snapshot_survives_the_death_of_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 dies after the first of two pieces: the second finds nothing, and the leader begins again, an election timeout later."""
    monkeypatch.setattr("govern.core.raft.leading.SNAPSHOT_CHUNK_BYTES", 12)
    monkeypatch.setattr("govern.core.raft.core.KEEP_BEHIND", 0)
    rig = Rig((1, 2, 3))
    rig.elect(1)
    rig.cut = dict.fromkeys([(1, 3)])
    rig.core(1).propose(b"a", rig.now_us)
    rig.settle(1)
    rig.deliver()
    rig.core(1).compact(b"the state as of then", rig.core(1).applied)
    rig.cut = {}
    rig.now_us = rig.core(1).deadline_us
    rig.core(1).tick(rig.now_us)
    rig.settle(1)
    for kind in ("append", "appendanswer", "installsnapshot", "snapshotanswer"):
        rig.deliver(kind=kind)
    rig.sit(THREE, rig.seats[3].disk)
    rig.deliver()
    assert rig.core(3).commit < 3
    rig.advance(1.5)
    assert rig.core(3).commit == rig.core(1).commit == 3
    assert rig.core(1).role is Role.LEADER


def test_members_are_bounded() -> None:
    """Voters and all; a learner can always go."""
    seven = Membership(tuple(make_member(each) for each in range(1, 8)), (make_member(8),))
    with pytest.raises(ChangeRefused, match="7 voters already: leave it a learner, or remove a voter first"):
        membership.promote(seven, make_member(8), 0, lambda member: True)
    full = Membership((ONE,), tuple(make_member(each) for each in range(2, MEMBERS_MAX + 1)))
    with pytest.raises(ChangeRefused, match="63 members, and there cannot be more: remove one first"):
        membership.add_learner(full, make_member(100))
    assert membership.remove(seven, make_member(8), ONE, lambda member: False) == Membership(seven.voters)
