"""Directed stories of rules that need rare luck to be missed: each is told with sound candidates, and once with the one that breaks it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from unittest.mock import patch

import pytest

from govern.core.raft import leading as leading_module
from govern.core.raft.core import RaftCore, Role
from govern.core.raft.leading import Leading
from govern.core.raft.log import Log
from govern.core.raft.types import HardState, NotLeader
from govern.peer_messages import Append, AppendAnswer, PreVote, PreVoteAnswer, RaftMessage

from . import mutants, test_log
from .heap import Run
from .judge import TIMING, Place
from .rig import Rig, make_member

Cores = Callable[..., RaftCore]


def make_rig(cores: Cores, *voters: int, learners: tuple[int, ...] = ()) -> Rig:
    """Candidates of one kind."""
    kind: type[Rig] = type("StoryRig", (Rig,), {"make_core": staticmethod(cores)})
    return kind(voters, learners)


def cut(rig: Rig, *alone: int) -> None:
    """These reach nobody, and nobody them; all other links work."""
    rig.cut = {(one, other): None for one in rig.seats for other in rig.seats if one in alone or other in alone}


def win(rig: Rig, node_id: int) -> None:
    """One is elected, and its Appends are not delivered yet."""
    rig.now_us += 1_100_000
    rig.core(node_id).tick(rig.now_us)  # whoever still believes to lead sees that nobody answers
    rig.settle(node_id)
    for _ in range(2):  # at first it may only learn that its term is old
        rig.core(node_id).campaign(rig.now_us)
        rig.settle(node_id)
        for kind in ("prevote", "prevoteanswer", "vote", "voteanswer"):
            rig.deliver(kind=kind)
        if rig.core(node_id).role is Role.LEADER:
            return
        rig.mail.clear()
    raise RuntimeError(f"this story needs another leader than {rig.core(node_id)!r}")


def hand_heartbeats(rig: Rig, messages: list[RaftMessage]) -> None:
    """Appends with entries are lost."""
    for message in messages:
        if isinstance(message, Append) and not message.entries:
            rig.hand(message)


def an_old_entry_is_not_counted(cores: Cores) -> None:
    """Figure 8 of the paper: an entry of an earlier term on three of five disks can still be replaced, so it is not committed by that."""
    with patch.object(leading_module, "ENTRIES_BYTES_MAX", 1):
        rig = make_rig(cores, 1, 2, 3, 4, 5)
        rig.elect(1)
        rig.cut = dict.fromkeys([(1, 3), (1, 4), (1, 5), (2, 1)])
        rig.core(1).propose(b"a", rig.now_us)  # entry 3 of term 2, at 1 and 2 only
        rig.settle(1)
        rig.deliver()
        cut(rig, 1, 2)
        win(rig, 5)  # entry 3 of term 3, at 5 only
        rig.mail.clear()
        cut(rig, 4, 5)
        win(rig, 1)
        hand_heartbeats(rig, rig.take(1, 2))  # 2 has entry 3, and does not get the no-op
        for kind in ("append", "appendanswer", "append", "appendanswer"):  # entry 3 of term 2 reaches 3
            rig.deliver(kind=kind)
        rig.mail.clear()
        assert rig.core(3).log.term_of(3) == 2
        cut(rig, 1, 2)
        rig.elect(5)
    assert rig.core(5).commit >= 3
    rig.judge()


def the_first_change_waits(cores: Cores) -> None:
    """Two leaders change the same committed membership: one adds 5, the other removes 1 (see `own_term_guard.txt`)."""
    rig = make_rig(cores, 1, 2, 3, 4, learners=(5,))
    rig.elect(1)
    rig.cut = dict.fromkeys([(1, 2), (1, 3), (1, 4)])
    rig.core(1).promote(make_member(5), rig.now_us)
    rig.settle(1)
    rig.deliver()
    cut(rig, 1, 5)
    win(rig, 2)
    hand_heartbeats(rig, rig.take(2, kind="append"))  # 3 and 4 hear it, and do not get its no-op yet
    rig.deliver(kind="appendanswer")
    rig.core(2).remove(make_member(1), rig.now_us)
    cut(rig, 1, 5, 4)
    rig.settle(2)
    rig.deliver()
    cut(rig, 2, 3)
    rig.elect(1)
    rig.judge()


def a_long_log_of_an_old_term_is_behind(cores: Cores) -> None:
    """1 has six entries that nobody else has; 2 and 3 have committed fewer, of a later term."""
    rig = make_rig(cores, 1, 2, 3)
    rig.elect(1)
    cut(rig, 1)
    for _ in range(6):
        rig.core(1).propose(b"lost", rig.now_us)
    rig.settle(1)
    rig.deliver()
    rig.elect(3)
    cut(rig, 3)
    with contextlib.suppress(RuntimeError):
        rig.elect(1)
    assert rig.core(1).role is not Role.LEADER, f"{rig.core(1)!r}, without what {rig.core(2)!r} has"


def a_later_term_is_not_stuck(cores: Cores) -> None:
    """3 is in a much later term than the others, and hears a leader whose term is over for it."""
    rig = make_rig(cores, 1, 2, 3)
    cut(rig, 3)
    rig.elect(1)
    disk = rig.seats[3].disk
    disk.hard = HardState(7, make_member(3), disk.hard.commit)
    rig.sit(make_member(3), disk)
    rig.cut.clear()
    rig.advance(6.0)
    commits = [seat.core.commit for seat in rig.seats.values()]
    assert len(set(commits)) == 1, f"{[seat.core for seat in rig.seats.values()]}"


def old_answers_give_no_lease(cores: Cores) -> None:
    """Answers to an earlier leadership of 1 come when nobody answers this one."""
    rig = make_rig(cores, 1, 2, 3)
    rig.elect(1)
    rig.advance(0.65)
    rig.core(1).tick(rig.core(1).deadline_us)
    rig.settle(1)
    rig.deliver(kind="append")
    kept = rig.take(kind="appendanswer")
    cut(rig, 1)
    rig.elect(3)
    rig.cut.clear()
    rig.advance(0.5)
    rig.elect(1)
    cut(rig, 1)
    rig.advance(0.95)
    rig.cut.clear()
    for message in kept:
        rig.hand(message)
    assert kept
    assert not rig.core(1).has_lease(rig.now_us), f"{rig.core(1)!r}"


def who_hears_a_leader_is_not_asked_away(cores: Cores) -> None:
    """3 does not hear 1 any more; everybody else does."""
    rig = make_rig(cores, 1, 2, 3)
    rig.elect(1)
    rig.cut = {(1, 3): None}
    rig.advance(5.0)
    assert rig.core(1).role is Role.LEADER, f"{rig.core(1)!r}"
    assert rig.core(3).term == rig.core(1).term == 2


def a_restart_forgets_no_leader(cores: Cores) -> None:
    """3 answers the leader, begins a new life, and is asked for its vote by 2."""
    rig = make_rig(cores, 1, 2, 3)
    rig.elect(1)
    rig.cut = {(1, 2): None, (2, 1): None}
    rig.advance(1.3)
    rig.sit(make_member(3), rig.seats[3].disk)
    rig.core(2).campaign(rig.now_us)
    rig.settle(2)
    rig.deliver()
    assert rig.core(1).has_lease(rig.now_us)
    assert rig.core(2).role is not Role.LEADER, f"{rig.core(2)!r} while 1 has the lease"


def a_deposed_leader_has_heard_itself(cores: Cores) -> None:
    """One led until a moment ago, and learns of a later term that nobody leads. A majority heard it: so it votes for nobody before an
    election timeout is over since the round with which that is proven, for leases are counted on it."""
    rig = make_rig(cores, 1, 2, 3)
    rig.elect(1)
    rig.advance(0.5)
    core = rig.core(1)
    proved_us = core.proved_us
    assert proved_us is not None
    assert rig.now_us - proved_us < TIMING.election_us // 2
    rig.hand(AppendAnswer(core.me, make_member(3), core.term + 1, False, 0, 0, 0))
    assert core.role is Role.FOLLOWER
    rig.mail.clear()
    for after_us, granted in ((TIMING.election_us - 1, False), (TIMING.election_us, True)):
        rig.now_us = proved_us + after_us
        core.step(PreVote(core.me, make_member(3), core.term + 1, core.last_index, core.log.last_term), rig.now_us)
        rig.settle(1)
        (answer,) = rig.take(1, 3)
        assert isinstance(answer, PreVoteAnswer)
        assert answer.granted is granted


def a_leader_alone_steps_down(cores: Cores) -> None:
    """Nobody answers 1."""
    rig = make_rig(cores, 1, 2, 3)
    rig.elect(1)
    cut(rig, 1)
    rig.advance(1.3)
    assert rig.core(1).role is not Role.LEADER
    with pytest.raises(NotLeader):
        rig.core(1).propose(b"lost", rig.now_us)


def offer(rig: Rig) -> None:
    """1 has offered the leadership to 3, which took it; 1 hears nothing of that."""
    rig.elect(1)
    rig.core(1).transfer(make_member(3), rig.now_us)
    rig.settle(1)
    rig.cut = dict.fromkeys([(2, 1), (3, 1)])
    rig.deliver()
    assert rig.core(3).role is rig.core(1).role is Role.LEADER
    assert rig.core(3).ready_to_serve


def an_offer_ends_the_lease(cores: Cores) -> None:
    """The voters of the other one do not wait for anybody's silence."""
    rig = make_rig(cores, 1, 2, 3)
    offer(rig)
    assert not rig.core(1).has_lease(rig.now_us)


def a_read_waits_for_a_new_round(cores: Cores) -> None:
    """1 is no leader any more, and does not know; what was answered before proves nothing."""
    rig = make_rig(cores, 1, 2, 3)
    offer(rig)
    rig.core(1).read("r", rig.now_us)
    rig.settle(1)
    rig.deliver()
    assert not any("may be answered" in line for line in rig.lines)


class Lockstep(Run):
    """Equal clocks, equal disks, equal links: only different timeouts can make one the first."""

    def _make_place(self, node_id: int) -> Place:
        place = super()._make_place(node_id)
        place.rate, place.offset = 1.0, 0.0
        return place

    def _bootstrap(self) -> None:
        rig = Rig(range(1, 6))
        self.places = [self._make_place(node_id) for node_id in range(1, 6)]
        for place in self.places:
            place.disk = self.judge.disks[place.member] = rig.seats[place.node_id].disk
        self.judge.begin(0, rig.core(1).membership)
        self.judge.commit(rig.core(1).log.entry(1))
        for place in self.places:
            self._start(place)

    def _send(self, place: Place, message: RaftMessage) -> None:
        self.after(0.01, self._arrive, self.places[message.to.node_id - 1], message)

    def _write_seconds(self) -> float:
        return 0.001

    def first_leader(self) -> float | None:
        """When there was a leader, within ten seconds."""
        while self.now < 10.0 and not any(place.role is Role.LEADER for place in self.places):
            self._go_on(self.now + 0.01)
        return self.now if self.now < 10.0 else None


def somebody_is_first(cores: Cores) -> None:
    """R10: in lockstep the one with the largest id is elected, in one attempt."""
    run = type("Story", (Lockstep,), {"make_core": staticmethod(cores)})(1)
    first = run.first_leader()
    assert first is not None, "no leader in ten seconds"
    assert first < 1.2
    assert run.places[4].role is Role.LEADER


def every_campaign_has_its_own_timeout(cores: Cores) -> None:
    """R10: nobody answers 2, which campaigns again and again; it never leaves its range."""
    disk = Rig((1, 2, 3)).seats[2].disk
    options = {"hard": disk.hard, "snapshot": disk.snapshot, "entries": disk.entries, "timing": TIMING, "now_us": 0}
    core = cores(make_member(2), random=random.Random(1), **options)
    patiences, before_us = [], 0
    for _ in range(20):
        core.tick(core.deadline_us)
        assert core.role is Role.PRE_CANDIDATE
        patiences.append(core.deadline_us - before_us)
        before_us = core.deadline_us
    assert all(4 / 3 <= patience / TIMING.election_us <= 4.5 / 3 for patience in patiences[1:])
    assert len(dict.fromkeys(patiences)) == len(patiences), f"a timeout came twice: {patiences}"


class EqualAtFirst(random.Random):
    """Chance by which two candidates first draw what makes their timeouts equal. `voters` is how many each of them knows."""

    def __init__(self, voters: int, seed: int) -> None:
        super().__init__(seed)
        self._first: float | None = 0.05 * voters

    def uniform(self, a: float, b: float) -> float:
        """The first time bad luck, then luck."""
        first, self._first = self._first, None
        return super().uniform(a, b) if first is None else first


class HalfPromoted(Lockstep):
    """The leader died while it made 4 a voter: 4 knows, 3 does not, and by rank both are the first. Each needs the vote of 2."""

    def _bootstrap(self) -> None:
        rig = Rig((1, 2, 3), (4,))
        rig.elect(1)
        rig.cut = dict.fromkeys([(1, 2), (1, 3)])
        rig.core(1).promote(make_member(4), rig.now_us)
        rig.settle(1)
        rig.deliver()
        self.judge.begin(0, Rig((1, 2, 3), (4,)).core(1).membership)
        for index in (1, 2):
            self.judge.commit(rig.core(1).log.entry(index))
        self.places = [self._make_place(node_id) for node_id in range(1, 5)]
        for place in self.places:
            place.disk = self.judge.disks[place.member] = rig.seats[place.node_id].disk
        for place in self.places[1:]:
            known = len(rig.core(place.node_id).membership.voters)
            self.chance = EqualAtFirst(known, place.node_id)
            self._start(place)

    def _send(self, place: Place, message: RaftMessage) -> None:
        is_late = (place.node_id, message.to.node_id) == (3, 2)  # a hair: so 2 votes for 4, which lacks the vote of 3 then
        self.after(0.0101 if is_late else 0.01, self._arrive, self.places[message.to.node_id - 1], message)


def equal_draws_part(cores: Cores) -> None:
    """R10: the first campaigns of 3 and 4 split the votes, in the same moment; the next ones do not."""
    run = type("Story", (HalfPromoted,), {"make_core": staticmethod(cores)})(1)
    first = run.first_leader()
    assert first is not None, "no leader in ten seconds"
    assert first > 1.2, "there was no split vote"


class SameDraw(RaftCore):
    """R10: everybody draws the same."""

    def _draw(self, now_us: int) -> None:
        self._patience_us = 1_250_000
        self._election_us = now_us + self._patience_us


class ReadJoinsRound(RaftCore):
    """D1: a read is confirmed by what was answered before it."""

    def read(self, token: object, now_us: int) -> None:
        with patch.object(Leading, "read", mutants.read_joins_round):
            super().read(token, now_us)
        assert self._leading is not None
        self._leading._count_round()


STORIES: list[tuple[Callable[[Cores], None], type[RaftCore]]] = [
    (an_old_entry_is_not_counted, mutants.OldEntriesCounted),
    (the_first_change_waits, mutants.ChangesAtOnce),
    (a_long_log_of_an_old_term_is_behind, mutants.VotesForShortLogs),
    (a_later_term_is_not_stuck, mutants.LowerTermUnanswered),
    (old_answers_give_no_lease, mutants.OldTermsCount),
    (who_hears_a_leader_is_not_asked_away, mutants.VotesWhileLed),
    (a_restart_forgets_no_leader, mutants.RestartForgetsLeader),
    (a_deposed_leader_has_heard_itself, mutants.ForgetsThatItLed),
    (a_leader_alone_steps_down, mutants.StaysLeader),
    (an_offer_ends_the_lease, mutants.OfferedKeepsLease),
    (a_read_waits_for_a_new_round, ReadJoinsRound),
    (somebody_is_first, SameDraw),
    (every_campaign_has_its_own_timeout, mutants.DrawnOnce),
    (equal_draws_part, mutants.DrawnOnce),
]


@pytest.mark.parametrize("story", [story for story, _ in STORIES], ids=lambda story: story.__name__)
def test_sound_candidates(story: Callable[[Cores], None]) -> None:
    """The rule holds; what comes first in `the_first_change_waits` is a refusal."""
    if story is the_first_change_waits:
        with pytest.raises(Exception, match="not committed yet: try again in a moment"):
            story(RaftCore)
    else:
        story(RaftCore)


@pytest.mark.parametrize(("story", "mutant"), STORIES, ids=lambda value: value.__name__)
def test_broken_candidates(story: Callable[[Cores], None], mutant: type[RaftCore]) -> None:
    """The story is found out."""
    with pytest.raises((AssertionError, pytest.fail.Exception)) as found:
        story(mutant)
    print(f"{mutant.__name__}: {found.value}"[:200])


def test_what_was_replaced_while_it_was_written() -> None:
    """L2, and the one that takes the late word of the disk for what stands there now."""
    with patch.object(Log, "cut", mutants.cut_keeps_marks), pytest.raises(AssertionError):
        test_log.test_an_entry_that_comes_back_is_written_again()
