"""Candidates that are broken on purpose. Each breaks one rule as a careless edit might; the heap, or a directed story, must find it.

python -m tests.core.raft.mutants            how many runs each one needs
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import attrs

from govern.core.raft.core import RaftCore, Role
from govern.core.raft.following import Following
from govern.core.raft.leading import Leading
from govern.core.raft.log import Log
from govern.core.raft.types import HardState, Write
from govern.peer_messages import AppendAnswer, Entry, Member, PreVote, RaftMessage, Vote

from .heap import Failure, Plan, Run, run_to_end
from .judge import Place
from .upheaval import Figure8, Partings, Restarts, Upheaval


class NoNoop(RaftCore):
    """R4: a new leader waits for its first proposal."""

    def _append_noop(self) -> None:
        assert self._leading is not None
        self._leading.noop_index = 0


class OldEntriesCounted(RaftCore):
    """R5: what a majority has is committed, whoever's it is."""

    def _may_commit(self, index: int) -> bool:
        return True


class VoteForgotten(RaftCore):
    """The vote is kept in memory only."""

    def begin_write(self) -> Write | None:
        write = super().begin_write()
        return write and attrs.evolve(write, hard=write.hard and attrs.evolve(write.hard, voted_for=None))


class TermThenVote(RaftCore):
    """Term and vote reach the disk in two writes, one directly behind the other; the answer waits for the first."""

    _owed: HardState | None = None  # the second write
    _is_second = False

    def begin_write(self) -> Write | None:
        if self._owed is not None and not self._write_outstanding:
            self._write_outstanding = self._is_second = True
            owed, self._owed = self._owed, None
            return Write(owed, (), None)
        before = self._durable
        write = super().begin_write()
        hard = None if write is None else write.hard
        if write is None or hard is None or hard.voted_for is None or (hard.term, hard.voted_for) == (before.term, before.voted_for):
            return write
        self._owed = hard
        return attrs.evolve(write, hard=attrs.evolve(hard, voted_for=None))

    def end_write(self, now_us: int) -> None:
        if self._is_second:
            self._write_outstanding = self._is_second = False
        else:
            super().end_write(now_us)


class VotesAgain(RaftCore):
    """R1: who asks later in the same term gets the vote as well."""

    def _on_vote(self, message: Vote, now_us: int) -> None:
        if message.term == self.term and self.role is Role.FOLLOWER:
            self.voted_for = None
        super()._on_vote(message, now_us)


class AnswersAtOnce(RaftCore):
    """W1: answers do not wait for the disk."""

    def _send_durable(self, message: RaftMessage) -> None:
        self._out.append(message)


class ManyChanges(RaftCore):
    """R11: changes of the membership do not wait for each other."""

    def _may_change(self, leading: Leading) -> bool:
        return self.commit >= leading.noop_index


class ChangesAtOnce(RaftCore):
    """R4, R11: a new leader changes the membership before anything of its own is committed."""

    def _may_change(self, leading: Leading) -> bool:
        return self.commit >= self.log.membership_index


class LowerTermUnanswered(RaftCore):
    """R3: an Append of a lower term is dropped."""

    def step(self, message: RaftMessage, now_us: int) -> None:
        if message.term >= self.term or isinstance(message, PreVote | Vote):
            super().step(message, now_us)


class OldTermsCount(RaftCore):
    """R7: an answer to a round counts, in whichever term it was given."""

    def step(self, message: RaftMessage, now_us: int) -> None:
        if isinstance(message, AppendAnswer) and message.term < self.term:
            message = attrs.evolve(message, term=self.term, ok=False, index=0)
        super().step(message, now_us)


class VotesWhileLed(RaftCore):
    """R1: a member that hears its leader votes all the same."""

    def _hears_leader(self, now_us: int) -> bool:
        return False


class RestartForgetsLeader(RaftCore):
    """R1: after a restart a member votes at once."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._heard_us = None


class ForgetsThatItLed(RaftCore):
    """R1: whoever led until now heard nobody, so it votes at once."""

    def _end_leadership(self) -> None:
        heard_us = self._heard_us
        super()._end_leadership()
        self._heard_us = heard_us


class VotesForShortLogs(RaftCore):
    """R1: only the last index is compared."""

    def _is_behind(self, message: PreVote | Vote) -> bool:
        return message.last_index < self.log.last_index


class StaysLeader(RaftCore):
    """R6: a leader that nobody answers goes on."""

    def _beat(self, leading: Leading, now_us: int) -> None:
        leading._since_us = now_us
        super()._beat(leading, now_us)


class DrawnOnce(RaftCore):
    """R10: a candidate draws once, when it starts, and stands with the same timeout again and again.

    Two candidates that know the same voters never notice: by their rank each has a range of its own, half a range away from the next, so
    their timeouts differ whatever they drew. But while the membership changes two may know different voters, and then their ranges
    overlap; equal draws would split the votes in every term. So nothing but another draw parts them.
    """

    _drawn: float | None = None

    def _draw(self, now_us: int) -> None:
        if self._drawn is None:
            self._drawn = self._random.uniform(0.0, 0.5)
        chance, self._random = self._random, Always(self._drawn)
        super()._draw(now_us)
        self._random = chance


@attrs.frozen
class Always:
    """Chance that has made up its mind."""

    value: float

    def uniform(self, a: float, b: float) -> float:
        """Always this."""
        return self.value


class OfferedKeepsLease(RaftCore):
    """R9: an offer of the leadership leaves the lease."""

    def take_messages(self) -> list[RaftMessage]:
        until_us = self.lease_until_us
        messages = super().take_messages()
        if self._leading is not None:
            self._leading.lease_until_us = max(until_us, self._leading.lease_until_us)
        return messages


class LeavesOneOut(RaftCore):
    """The first of several committed entries is not handed out."""

    def take_committed(self, limit: int) -> list[Entry]:
        entries = super().take_committed(limit)
        return entries[len(entries) > 1 :]


def class_of(core: type[RaftCore], among: type[Run] = Run, blind_to: tuple[str, ...] = ()) -> type[Run]:
    """Runs with these candidates."""
    return type(core.__name__, (among,), {"make_core": core, "blind_to": blind_to})


def patched(owner: type, name: str, mutant: object, among: type[Run] = Run, blind_to: tuple[str, ...] = ()) -> type[Run]:
    """Runs in which something below the candidates is broken."""

    def play(run: Run) -> None:
        with patch.object(owner, name, mutant):
            among.play(run)

    return type("Patched", (among,), {"play": play, "blind_to": blind_to})


def _counted_before_written(self: Leading, member: Member) -> int:
    """W3: the leader counts itself with what is in its memory."""
    return self._log.last_index if member == self.me else self._members[member].match


def read_joins_round(self: Leading, token: object) -> None:
    """D1: a read is confirmed by the round that is on the way, or was answered already."""
    self._asked.append((self._round, max(self.noop_index, self._log.snapshot.meta.index), [token]))


def cut_keeps_marks(self: Log, first: int) -> None:
    """L2: what is being written counts as written, whatever became of it."""
    marks = self._batch_last
    _cut(self, first)
    self._batch_last = min(marks, self.last_index + 1)


def _accept_everything(self: Following, leader: Member) -> RaftMessage:
    """W2: what is in memory is acknowledged."""
    return AppendAnswer(leader, self._me, self._term, True, self.agreed, 0, self.round)


def _everything_for_all(self: Leading, member: Member, commit: int) -> int:
    """D5: learners are sent what is not committed."""
    return self._log.last_index


_cut = Log.cut


class WipedDiskKeepsName(Figure8):
    """A node with an empty disk comes back as the voter that it was."""

    def _draw_plan(self) -> Plan:
        return attrs.evolve(super()._draw_plan(), wipes=0.5)

    def _replace_disk(self, place: Place) -> None:
        self._lost.remove(place.member)
        place.disk = self.judge.disks[place.member] = type(place.disk)()


@attrs.frozen
class Broken:
    """A mutant, and what is expected of the heap."""

    kind: type[Run]
    check: str
    """The check that finds it. Whatever else fails, in the candidates or in another check, is not what was broken."""
    runs: int
    """How many seeds that may take."""
    deep: bool = False
    """Needs more luck than a normal test has time for."""
    first: int = 0
    """The first of them; 0 but for what a few thousand seeds find once."""


MUTANTS: dict[str, Broken] = {
    "no no-op": Broken(class_of(NoNoop), "C10", 40),
    "old entries counted": Broken(class_of(OldEntriesCounted, Figure8), "C3", 150),
    "vote forgotten": Broken(class_of(VoteForgotten), "C7", 5),
    "vote forgotten, and nobody compares answers with the disk": Broken(class_of(VoteForgotten, Restarts, ("C7",)), "C4", 400, deep=True),
    "term, then vote": Broken(class_of(TermThenVote), "C7", 5),
    "term, then vote, and nobody compares answers with the disk": Broken(class_of(TermThenVote, Restarts, ("C7",)), "C4", 3000, deep=True),
    "votes again": Broken(class_of(VotesAgain, Figure8), "C4", 20),
    "answers at once": Broken(class_of(AnswersAtOnce), "C7", 5),
    "many changes": Broken(class_of(ManyChanges), "C6", 40),
    "changes at once": Broken(class_of(ChangesAtOnce, Partings), "C3", 1000, deep=True),
    "offered keeps lease": Broken(class_of(OfferedKeepsLease), "C9", 80),
    "counted before written": Broken(patched(Leading, "match_of", _counted_before_written), "C5", 15),
    "read joins round": Broken(patched(Leading, "read", read_joins_round), "C10", 10),
    "replaced while written": Broken(patched(Log, "cut", cut_keeps_marks, Figure8), "C7", 30),
    "accepts everything": Broken(patched(Following, "accept", _accept_everything), "C7", 5),
    "wiped disk keeps name": Broken(WipedDiskKeepsName, "C3", 40),
    "votes while led": Broken(class_of(VotesWhileLed, Restarts), "C12", 10),
    "forgets that it led": Broken(class_of(ForgetsThatItLed, Restarts), "C12", 3000, deep=True),
    "restart forgets leader": Broken(class_of(RestartForgetsLeader, Restarts), "C12", 20),
    "votes for short logs": Broken(class_of(VotesForShortLogs, Figure8), "C3", 20),
    "stays leader": Broken(class_of(StaysLeader), "C13", 10),
    "old terms count": Broken(class_of(OldTermsCount, Restarts), "C13", 40),
    "lower term unanswered": Broken(class_of(LowerTermUnanswered, Restarts), "C11", 300, deep=True),
    "learner ahead": Broken(patched(Leading, "_last_for", _everything_for_all), "C14", 20),
    "learner ahead, and nobody looks at what it is sent": Broken(
        patched(Leading, "_last_for", _everything_for_all, blind_to=("C14",), among=Upheaval), "C11", 10, first=4010
    ),
    "one committed entry left out": Broken(class_of(LeavesOneOut), "C8", 10),
}
"""What the heap finds; those that are not here have a story of their own in `test_stories`, and `tests/README.md` says why."""


def find(broken: Broken) -> tuple[int, Failure] | None:
    """The first seed with which the expected check finds a mutant, and what it says."""
    for seed in range(broken.first, broken.first + broken.runs):
        failure = run_to_end(broken.kind(seed), seed)
        if failure is not None and failure.check == broken.check:
            return seed, failure
    return None


if __name__ == "__main__":
    for name in sys.argv[1:] or MUTANTS:
        found = find(MUTANTS[name])
        print(f"{name:<60} {'LIVES' if found is None else f'seed {found[0]}: {found[1].check}'}", flush=True)
