"""The heap of candidates in times of many elections.

    python -m tests.core.raft.upheaval --runs 100000 --jobs 2
    python -m tests.core.raft.upheaval --seed N --verbose

Some rules matter only when a few rare things happen one after the other, each within milliseconds of an election: an entry of an earlier
term that is copied once more and then replaced (Figure 8 of the paper), two leaders that change the same membership, a vote that is asked
for in the moment after a restart. Faults that come at any time meet them in hardly any run of `heap`. Here they come when somebody was
elected or the membership is being changed; the checks are the same. An Append has one entry, for what is between two entries is what
these runs are about, and a run lasts longer, for the stories need several leaders.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Final

import attrs

from govern.core.raft.core import RaftCore, Role
from govern.core.raft.types import Membership
from govern.peer_messages import Append, AppendAnswer, Member, PreVote, RaftMessage, Vote, VoteAnswer

from .heap import Plan, Run, Summary, main, summary_of
from .judge import Place

EVERYTHING: Final = 1000
"""More Appends than a leader has."""


@attrs.frozen
class Temper:
    """How often what happens around the elections of a run."""

    doomed: float = 0.0
    """Only a few Appends with entries of a new leader arrive, and soon it dies."""
    mute: float = 0.0
    """A request for a vote does not arrive."""
    parting: float = 0.0
    """The network parts in two when somebody is elected or changes the membership, before it can say so."""
    hasty: float = 0.0
    """An operator changes the membership as soon as somebody leads."""
    tears: float = 0.0
    """Single links break, many of them for about an election timeout: as often in a second."""
    restarts: float = 0.0
    """Who is asked for its vote, or has just given it, dies and lives again at once."""
    echoes: float = 0.0
    """An answer to an Append, or a request for a vote, comes once more, seconds later."""

    @classmethod
    def draw(cls, chance: random.Random) -> Temper:
        """One to three of them: too many at once hide each other."""
        names = [field.name for field in attrs.fields(cls)]
        drawn = chance.sample(names, chance.choice((1, 1, 2, 3)))
        return cls(**{name: chance.choice((0.3, 0.7, 1.0)) if name in drawn else 0.0 for name in names})


class Upheaval(Run):
    """One run of a seed, with more elections than a cluster ever has."""

    command = "python -m tests.core.raft.upheaval"
    fault_seconds = 15.0
    entries_bytes = 1

    def _draw_temper(self) -> Temper:
        return Temper.draw(self.chance)

    def _draw_plan(self) -> Plan:
        """Less of what comes at any time."""
        chance = self.chance
        self.temper = self._draw_temper()
        self._reach: dict[int, dict[int, int]] = {}  # of how many more Appends of a doomed leader get where
        return attrs.evolve(
            Plan.draw(chance),
            loss=chance.choice((0.0, 0.0, 0.05)),
            old=chance.choice((0.0, 0.0, 0.05)),
            breaks=0.0,
            crashes=chance.choice((0.0, 0.0, 0.3)),
            hangs=0.0,
            wipes=chance.choice((0.0, 0.0, 0.0, 0.5)),
            transfers=chance.choice((0.0, 0.0, 1.0)),
            changes=2.0 if self.temper.hasty or self.temper.parting else 0.0,
            proposals=chance.choice((0.0, 0.2, 3.0)),
        )

    def _draw_size(self) -> int:
        return self.chance.choice((3, 3, 3, 4, 5, 5))

    def _draw_membership(self) -> Membership:
        """All are there from the start; the last one may be a learner."""
        members = tuple(place.member for place in self.places)
        voters = len(members) - (self.chance.random() < 0.5)
        return Membership(members[:voters], members[voters:])

    def _nuisances(self) -> list[tuple[Callable[[], None], float]]:
        return [*super()._nuisances(), (self._tear, self.temper.tears), (self._part, 0.5 * self.temper.parting)]

    # --- elections --------------------------------------------------------------------------------------------------------------

    def _elected(self, place: Place, core: RaftCore) -> None:
        super()._elected(place, core)
        self._reach.pop(place.node_id, None)
        if self._healed:
            return
        chance, temper = self.chance, self.temper
        if chance.random() < temper.doomed:
            same = chance.choice((0, 0, 0, 1, 2, 2))
            is_same = chance.random() < 0.6
            self._reach[place.node_id] = {
                other.node_id: same if is_same else chance.choice((0, 0, 1, 2, EVERYTHING)) for other in self.places
            }
            self.after(chance.choice((0.05, 0.3, 1.0)), self._doom, place, place.life, chance.choice((0.0, 1.0, 1.0, 2.0)))
        if chance.random() < temper.parting:
            self._part(place)
        if chance.random() < temper.hasty:
            for seconds in (0.01, 0.03, 0.1):
                self.after(chance.uniform(0.0, seconds), self._change_at, place, place.life)

    def _doom(self, place: Place, life: int, seconds: float) -> None:
        """It is dead for so long."""
        if place.life == life and not self._healed:
            self.crashes += 1
            self.say(f"! {place.node_id} dies")
            self._stop(place)
            self.after(seconds, self._come_back, place, place.life)

    def _send(self, place: Place, message: RaftMessage) -> None:
        if self._healed:
            super()._send(place, message)
            return
        chance, temper = self.chance, self.temper
        reach = self._reach.get(place.node_id)
        if reach is not None and isinstance(message, Append) and message.entries:
            if not reach[message.to.node_id]:
                return
            reach[message.to.node_id] -= 1
        if not isinstance(message, Vote) or chance.random() >= temper.mute:
            super()._send(place, message)
        if isinstance(message, AppendAnswer | Vote) and chance.random() < temper.echoes:
            self.after(chance.uniform(0.3, 6.0), self._arrive, self.places[message.to.node_id - 1], message)
        if isinstance(message, VoteAnswer) and message.granted and chance.random() < temper.restarts:
            self.after(0.0, self._doom, place, place.life, 0.0)

    def _arrive(self, place: Place, message: RaftMessage) -> None:
        is_asked = isinstance(message, PreVote | Vote) and place.core is not None and place.role is not Role.LEADER
        if is_asked and not self._healed and self.chance.random() < self.temper.restarts:
            self._doom(place, place.life, 0.0)
            self._start(place)
        super()._arrive(place, message)

    # --- changes ----------------------------------------------------------------------------------------------------------------

    def _change_at(self, place: Place, life: int) -> None:
        if place.life == life and place.role is Role.LEADER and not self._healed:
            self._change_something()

    def _change_something(self) -> None:
        place = self._leader()
        if place is not None and self.chance.random() < self.temper.parting:
            self._part(place)
        super()._change_something()

    def _choose_member(self, place: Place, core: RaftCore) -> Member:
        """Rather a learner, or somebody who cannot be heard."""
        chance, membership = self.chance, core.membership
        if chance.random() < 0.3:
            return super()._choose_member(place, core)
        if membership.learners and chance.random() < 0.7:
            return chance.choice(membership.learners)
        silent = [member for member in membership.voters if self._broken.get((member.node_id, place.node_id), 0.0) > self.now]
        return chance.choice(silent or membership.voters)

    # --- the network ------------------------------------------------------------------------------------------------------------

    def _part(self, around: Place | None = None) -> None:
        """In two, for longer than an election; or together again. One of these is in the smaller part."""
        chance = self.chance
        self._broken.clear()
        if chance.random() < 0.2:
            self.say("! all links work")
            return
        ids = range(1, len(self.places) + 1)
        one = chance.choice(ids) if around is None else around.node_id
        side = [one, *chance.sample([each for each in ids if each != one], chance.choice((0, 1)) if len(ids) > 3 else 0)]
        until = self.now + chance.uniform(1.0, 4.0)
        for one in side:
            for other in ids:
                if other not in side:
                    self._broken[one, other] = self._broken[other, one] = until
        self.say(f"! {side} are cut off from the others until {until:.4f}")

    def _tear(self) -> None:
        """One link, or some, each in one direction for itself."""
        chance, ids = self.chance, range(1, len(self.places) + 1)
        if chance.random() < 0.5:
            one, other = chance.sample(ids, 2)
            self._broken[one, other] = self._broken[other, one] = self.now + chance.uniform(1.0, 5.0)
        else:
            for one in ids:
                for other in ids:
                    if chance.random() < 0.3:
                        self._broken[one, other] = self.now + chance.uniform(*chance.choice(((0.9, 1.4), (0.3, 3.0))))
        self.say(f"! broken are {sorted(link for link, until in self._broken.items() if until > self.now)}")


class Figure8(Upheaval):
    """Three candidates, and each leader dies before much of what it has is copied."""

    def _draw_temper(self) -> Temper:
        return Temper(doomed=1.0)

    def _draw_size(self) -> int:
        return 3

    def _draw_membership(self) -> Membership:
        return Membership(tuple(place.member for place in self.places))


class Partings(Upheaval):
    """Four voters and a learner, in two parts that are others with each election and each change of the membership."""

    def _draw_temper(self) -> Temper:
        return Temper(parting=self.chance.choice((0.5, 0.9)), hasty=1.0, doomed=self.chance.choice((0.0, 0.5)))

    def _draw_size(self) -> int:
        return 5

    def _draw_membership(self) -> Membership:
        *voters, learner = (place.member for place in self.places)
        return Membership(tuple(voters), (learner,))


class Restarts(Upheaval):
    """Three candidates; links break, votes are lost or late, and voters live again at once."""

    def _draw_temper(self) -> Temper:
        chance = self.chance
        return Temper(tears=1.0, restarts=0.7, echoes=chance.choice((0.0, 0.7)), mute=chance.choice((0.0, 0.3)))

    def _draw_size(self) -> int:
        return 3

    def _draw_membership(self) -> Membership:
        return Membership(tuple(place.member for place in self.places))


KINDS: Final[tuple[type[Upheaval], ...]] = (Upheaval, Figure8, Partings, Restarts)


def kind_of(seed: int) -> type[Upheaval]:
    """Each of them gets every fourth seed."""
    return KINDS[seed % len(KINDS)]


def summary_of_upheaval(seed: int) -> Summary:
    """Run one seed; what broke, and what happened in it."""
    return summary_of(seed, kind_of(seed))


if __name__ == "__main__":
    from tests.core.raft.upheaval import summary_of_upheaval as one  # under its own name: a pool cannot find `__main__`

    sys.exit(main(kind_of, one, "Candidates alone, with many elections."))
