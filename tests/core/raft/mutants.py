"""Candidates that are broken on purpose. Each breaks one rule as a careless edit might; the heap, or a directed story, must find it.

python -m tests.core.raft.mutants            how many runs each one needs
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import attrs

from govern.core.raft.core import RaftCore
from govern.core.raft.following import Following
from govern.core.raft.leading import Leading
from govern.core.raft.log import Log
from govern.core.raft.types import Write
from govern.peer_messages import AppendAnswer, Member, PreVote, RaftMessage, Vote

from .heap import Place, Run, failure_of


class Mutant(Run):
    """A run of broken candidates."""


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
    """Term and vote reach the disk one after the other; the answer waits for the first."""

    _half = False

    def begin_write(self) -> Write | None:
        write = super().begin_write()
        if write is not None and write.hard is not None and write.hard.voted_for is not None and not self._half:
            self._half = True
            return attrs.evolve(write, hard=attrs.evolve(write.hard, voted_for=None))
        self._half = False
        return write


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


def class_of(core: type[RaftCore]) -> Callable[[], type[Run]]:
    """Runs with these candidates."""
    return lambda: type(core.__name__, (Mutant,), {"make_core": core})


def patched(owner: type, name: str, mutant: object) -> Callable[[], type[Run]]:
    """Runs in which something below the candidates is broken."""

    class Patched(Mutant):
        def play(self) -> None:
            before = getattr(owner, name)
            setattr(owner, name, mutant)
            try:
                super().play()
            finally:
                setattr(owner, name, before)

    return lambda: Patched


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


_cut = Log.cut


class WipedDiskKeepsName(Mutant):
    """A node with an empty disk comes back as the voter that it was."""

    def _replace_disk(self, place: Place) -> None:
        self._lost.remove(place.member)
        place.disk = self._disks[place.member] = type(place.disk)()


MUTANTS: dict[str, tuple[Callable[[], type[Run]], int]] = {
    "no no-op": (class_of(NoNoop), 40),
    "vote forgotten": (class_of(VoteForgotten), 5),
    "term, then vote": (class_of(TermThenVote), 5),
    "answers at once": (class_of(AnswersAtOnce), 5),
    "many changes": (class_of(ManyChanges), 40),
    "offered keeps lease": (class_of(OfferedKeepsLease), 80),
    "counted before written": (patched(Leading, "match_of", _counted_before_written), 15),
    "read joins round": (patched(Leading, "read", read_joins_round), 10),
    "accepts everything": (patched(Following, "accept", _accept_everything), 5),
    "wiped disk keeps name": (lambda: WipedDiskKeepsName, 40),
    "votes while led": (class_of(VotesWhileLed), 600),
    "lower term unanswered": (class_of(LowerTermUnanswered), 1500),
}
"""How many runs of the heap each one may need; those that are not here have a story of their own in `test_stories`."""
DEEP: tuple[str, ...] = ("votes while led", "lower term unanswered")
"""Those that need more luck than a normal test has time for."""


def find(name: str, runs: int) -> tuple[int, str] | None:
    """The first seed that finds a mutant, and what it says."""
    kind = MUTANTS[name][0]()
    for seed in range(runs):
        failure = failure_of(seed, kind)
        if failure is not None:
            return seed, failure
    return None


if __name__ == "__main__":
    for name in sys.argv[1:] or MUTANTS:
        print(f"{name:>24}: {find(name, MUTANTS[name][1])}"[:220], flush=True)
