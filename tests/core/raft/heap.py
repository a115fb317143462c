"""Candidates without any trio, joined by a heap of single messages.

    python -m tests.core.raft.heap --runs 100000 --jobs 2
    python -m tests.core.raft.heap --seed N --verbose

Each seed first draws what may go wrong at all: loss, repetition, very old messages, links that break in one direction or both, crashes
with a write outstanding (done or not), slow and hanging disks, disks that are lost, clocks that differ, compaction, changes of the
membership, hand-overs. Then everything is healed and must come to rest. A write of `begin_write` is durable as a whole some time later;
what was not is gone after a crash. What goes wrong in the moments around elections is in `upheaval`.

What must hold at every event, C1 to C13, is in `judge`.
"""

from __future__ import annotations

import argparse
import heapq
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from unittest.mock import patch

import attrs

from govern.core.raft import core as core_module
from govern.core.raft import leading as leading_module
from govern.core.raft.core import RaftCore, Role
from govern.core.raft.membership import majority
from govern.core.raft.types import (
    VOTERS,
    ChangeRefused,
    HardState,
    Membership,
    NotLeader,
    Write,
)
from govern.errors import Overloaded
from govern.peer_messages import (
    AppendAnswer,
    Entry,
    Member,
    RaftMessage,
    SnapshotAnswer,
)

from ..many import run_many
from .disk import Disk
from .judge import RATE_MAX, TIMING, Judge, Place
from .words import describe, describe_write

FAULT_SECONDS: Final = 5.0
HEALING_SECONDS: Final = 12.0


@contextmanager
def small_bounds(entries_bytes: int) -> Iterator[None]:
    """Snapshots of several pieces, logs that are soon too short, two entries in an Append: no run would see them otherwise."""
    with (
        patch.multiple(leading_module, SNAPSHOT_CHUNK_BYTES=8, ENTRIES_BYTES_MAX=entries_bytes),
        patch.object(core_module, "KEEP_BEHIND", 3),
    ):
        yield


@attrs.frozen
class Plan:
    """What may go wrong in a run."""

    loss: float
    repeats: float
    delay: float
    old: float
    breaks: float
    crashes: float
    slow_disk: float
    hangs: float
    wipes: float
    changes: float
    transfers: float
    compaction: float
    proposals: float

    @classmethod
    def draw(cls, chance: random.Random) -> Plan:
        """Each fault exists in some runs only: too many at once hide each other."""

        def sometimes(share: float, *values: float) -> float:
            return chance.choice(values) if chance.random() < share else 0.0

        return cls(
            loss=sometimes(0.5, 0.02, 0.1, 0.3),
            repeats=sometimes(0.4, 0.05, 0.3),
            delay=chance.choice((0.002, 0.01, 0.05)),
            old=sometimes(0.4, 0.01, 0.1),
            breaks=sometimes(0.6, 0.5, 2.0),
            crashes=sometimes(0.6, 0.3, 1.5),
            slow_disk=chance.choice((0.001, 0.01, 0.1)),
            hangs=sometimes(0.3, 0.02, 0.2),
            wipes=sometimes(0.3, 0.5),
            changes=sometimes(0.5, 1.0, 4.0),
            transfers=sometimes(0.4, 1.0, 4.0),
            compaction=sometimes(0.5, 0.1, 0.5),
            proposals=chance.choice((0.2, 3.0, 20.0)),
        )


class Run:
    """One run of a seed. What else it may draw, a subclass says."""

    make_core: Callable[..., RaftCore] = RaftCore
    command = "python -m tests.core.raft.heap"
    fault_seconds = FAULT_SECONDS
    entries_bytes = 70
    blind_to: tuple[str, ...] = ()
    """Checks that are off, so that a broken candidate is found by another one."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.plan = self._draw_plan()
        self.steps = self.proposed = self.crashes = self.wipes = self.changes = self.reads = self.installs = self.transfers = 0
        self.healed_after = 0.0
        self._tell = tell
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._pushed = 0
        self._lost: list[Member] = []
        self._broken: dict[tuple[int, int], float] = {}  # until when nothing goes from one to the other
        self._healed = False
        self._token = 0
        self.judge = Judge(self.blind_to)
        self.places = [self._make_place(node_id) for node_id in range(1, self._draw_size() + 1)]
        self._bootstrap()

    # --- time -------------------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Something happened."""
        if self._tell is not None:
            self._tell(f"{self.now:9.4f}  {text}")

    def after(self, seconds: float, action: Callable[..., None], *args: object) -> None:
        """Let something happen later."""
        self._pushed += 1
        heapq.heappush(self._heap, (self.now + seconds, self._pushed, action, args))

    @property
    def term_max(self) -> int:
        """The highest term in which somebody led."""
        return self.judge.term_max

    def play(self) -> None:
        """Faults, healing, judgement."""
        with small_bounds(self.entries_bytes):
            for act, rate in self._nuisances():
                if rate:
                    self.after(self.chance.expovariate(rate), self._repeat, act, rate)
            self._go_on(self.fault_seconds)
            self._heal()
            last_said = None
            while self.now < self.fault_seconds + HEALING_SECONDS:
                self._go_on(self.now + 0.2)
                last_said = self._find_unconverged()
                if last_said is None:
                    break
            self.healed_after = self.now - self.fault_seconds
            assert last_said is None, f"C11: {last_said}"
            self._compare_logs()

    def _nuisances(self) -> list[tuple[Callable[[], None], float]]:
        """What is done again and again, and how often in a second."""
        return [
            (self._propose, self.plan.proposals),
            (self._ask, 4.0),
            (self._break_link, self.plan.breaks),
            (self._crash_somebody, self.plan.crashes),
            (self._wipe_somebody, self.plan.wipes),
            (self._change_something, self.plan.changes),
            (self._hand_over, self.plan.transfers),
        ]

    def _go_on(self, until: float) -> None:
        while self._heap and self._heap[0][0] < until:
            self.now, _, action, args = heapq.heappop(self._heap)
            action(*args)
            self.steps += 1
        self.now = until

    def _repeat(self, act: Callable[[], None], rate: float) -> None:
        if not self._healed:
            act()
            self.after(self.chance.expovariate(rate), self._repeat, act, rate)

    # --- what a seed draws ------------------------------------------------------------------------------------------------------

    def _draw_plan(self) -> Plan:
        return Plan.draw(self.chance)

    def _draw_size(self) -> int:
        return self.chance.randint(1, 5)

    def _draw_membership(self) -> Membership:
        return Membership(tuple(place.member for place in self.places[: self.chance.randint(1, len(self.places))]))

    # --- candidates -------------------------------------------------------------------------------------------------------------

    def _make_place(self, node_id: int) -> Place:
        disk = Disk()
        member = Member(node_id, b"1".ljust(16, b"\0"))
        self.judge.disks[member] = disk
        return Place(node_id, member, disk, self.chance.uniform(0.9, RATE_MAX), self.chance.uniform(0.0, 100.0))

    def _bootstrap(self) -> None:
        """The first candidate's log names the first voters; nobody else has anything."""
        first = self.places[0]
        membership = self._draw_membership()
        base = self.chance.choice((0, 3))
        first.disk = self.judge.disks[first.member] = Disk(base)
        entry = Entry(base + 1, 1, VOTERS, membership.pack())
        first.disk.write(Write(HardState(1, None, 0), (entry,), None))
        self.judge.begin(base, membership)
        self.judge.know(0, entry)
        for place in self.places:
            self._start(place)
        assert first.core is not None
        first.core.campaign(first.clock(self.now))
        self._look(first)

    def _start(self, place: Place) -> None:
        """A new life, with what is on the disk."""
        disk = place.disk
        place.life += 1
        place.writing, place.reads, place.role = None, {}, Role.FOLLOWER
        place.core = self.make_core(
            place.member,
            hard=disk.hard,
            snapshot=disk.snapshot,
            entries=list(disk.entries),
            timing=TIMING,
            random=self.chance,
            now_us=place.clock(self.now),
        )
        place.commit, place.applied = place.core.commit, place.core.applied
        place.next_tick = float("inf")
        self.say(f"> {place.core!r} lives")
        self._look(place)

    def _stop(self, place: Place) -> None:
        """The end of a life; an outstanding write is done or not."""
        if place.writing is not None and self.chance.random() < 0.5:
            self._make_durable(place, place.writing)
        place.core = place.writing = None
        place.life += 1

    def _tick(self, place: Place, life: int, at: float) -> None:
        if place.life == life and place.core is not None and place.next_tick == at:
            place.next_tick = float("inf")
            now_us = place.clock(self.now)
            if now_us >= place.core.deadline_us:
                place.core.tick(now_us)
            self._look(place)

    def _arrive(self, place: Place, message: RaftMessage) -> None:
        if place.core is not None:
            if self._tell is not None:
                self.say(f"{message.sender.node_id} > {place.node_id}  {describe(message)}")
            if isinstance(message, AppendAnswer | SnapshotAnswer) and message.term == place.core.term:
                place.heard[message.sender] = self.now  # C13
            place.core.step(message, place.clock(self.now))
            self._look(place)

    def _written(self, place: Place, life: int) -> None:
        if place.life != life or place.core is None:
            return
        assert place.writing is not None
        write, place.writing = place.writing, None
        self._make_durable(place, write)
        place.core.end_write(place.clock(self.now))
        self._look(place)

    def _make_durable(self, place: Place, write: Write) -> None:
        self.say(f"# {place.node_id} has written {describe_write(write)}")
        place.disk.write(write)
        if write.hard is not None and write.hard.voted_for is not None:
            self.judge.count_vote(place, write.hard.term, write.hard.voted_for)

    # --- what a candidate has done ----------------------------------------------------------------------------------------------

    def _look(self, place: Place) -> None:
        """After every event: judge, send, write, apply, wait."""
        core = place.core
        assert core is not None
        if self.steps % 4 == 0:
            core.validate()
        if core.role is not place.role:
            place.role = core.role
            self.say(f"= {core!r}")
            if core.role is Role.LEADER:
                self._elected(place, core)
        self.judge.look(place, core, self.now)
        for message in core.take_messages():
            self.judge.message(place, core, message)
            self._send(place, message)
        for token, index in core.take_reads():
            self.judge.read(core, index, place.reads.pop(token))
            self.reads += 1
        for token in core.take_failed_reads():
            del place.reads[token]
        self._apply(place, core)
        if place.writing is None:
            place.writing = core.begin_write()
            if place.writing is not None:
                self.after(self._write_seconds(), self._written, place, place.life)
        at = self.now + max(0.0, (core.deadline_us - place.clock(self.now)) / 1e6 / place.rate) + 1e-6
        if at < place.next_tick - 1e-5 or place.next_tick < self.now:
            place.next_tick = at
            self.after(at - self.now, self._tick, place, place.life, at)

    def _elected(self, place: Place, core: RaftCore) -> None:
        """Somebody leads from now on."""
        self.judge.elected(place, core, self.now, self.places)

    def _write_seconds(self) -> float:
        if self._healed:
            return min(0.3, self.chance.expovariate(1 / self.plan.slow_disk))
        hangs = self.chance.random() < self.plan.hangs
        return self.chance.uniform(0.5, 3.0) if hangs else self.chance.expovariate(1 / self.plan.slow_disk)

    def _apply(self, place: Place, core: RaftCore) -> None:
        installed = core.take_installed()
        if installed is not None:
            self.installs += 1
            self.judge.installed(place, core, installed)
        for entry in core.take_committed(100):
            self.judge.applied(place, entry)
        if self.chance.random() < self.plan.compaction and core.may_compact and place.writing is None:
            snapshot = core.compact(b"%040d" % self.judge.digests[place.applied], place.applied)
            place.disk.save_snapshot(snapshot, *core.kept())
            self.say(f"# {place.node_id} has compacted up to {place.applied}")

    # --- the network ------------------------------------------------------------------------------------------------------------

    def _send(self, place: Place, message: RaftMessage) -> None:
        plan, chance = self.plan, self.chance
        if message.to.node_id > len(self.places):
            return
        target = self.places[message.to.node_id - 1]
        if self._broken and self._broken.get((place.node_id, target.node_id), 0.0) > self.now:
            return
        if self._healed:
            self.after(chance.uniform(0.0005, 2 * plan.delay), self._arrive, target, message)
            return
        if plan.loss and chance.random() < plan.loss:
            return
        for _ in range(1 + (plan.repeats > 0 and chance.random() < plan.repeats)):
            seconds = chance.expovariate(1 / plan.delay)
            if plan.old and chance.random() < plan.old:
                seconds = chance.uniform(0.1, 4.0)
            self.after(seconds, self._arrive, target, message)

    def _break_link(self) -> None:
        """One direction of one link, both, or one candidate from all."""
        ids = [place.node_id for place in self.places]
        one, what, until = self.chance.choice(ids), self.chance.random(), self.now + self.chance.uniform(0.1, 3.0)
        others = [self.chance.choice(ids)] if what < 0.6 else ids
        for other in others:
            if what < 0.3 or what >= 0.5:
                self._broken[one, other] = until
            if what >= 0.3:
                self._broken[other, one] = until
        self.say(f"! {one} is cut off from {others} until {until:.4f} ({what:.2f})")

    # --- what people and machines do --------------------------------------------------------------------------------------------

    def _leader(self) -> Place | None:
        """One that believes to lead, if any does."""
        leaders = [place for place in self.places if place.core is not None and place.core.role is Role.LEADER]
        return self.chance.choice(leaders) if leaders else None

    def _propose(self) -> None:
        place = self._leader()
        if place is not None and place.core is not None:
            for _ in range(self.chance.choice((1, 1, 1, 3))):
                self.proposed += 1
                try:
                    place.core.propose(b"%d" % self.proposed, place.clock(self.now))
                except Overloaded as error:
                    self.say(f"? {place.node_id}: {error}")
            self._look(place)

    def _ask(self) -> None:
        place = self.chance.choice(self.places)
        if place.core is not None:
            self._token += 1
            try:
                place.core.read(self._token, place.clock(self.now))
            except NotLeader:
                return
            place.reads[self._token] = self.judge.committed_last
            self._look(place)

    def _crash_somebody(self) -> None:
        place = self.chance.choice(self.places)
        if place.core is not None:
            self.crashes += 1
            self.say(f"! {place.node_id} dies")
            self._stop(place)
            self.after(self.chance.choice((0.0, 0.05, 1.0, 2.0)), self._come_back, place, place.life)

    def _come_back(self, place: Place, life: int) -> None:
        if place.life == life:
            self._start(place)

    def _wipe_somebody(self) -> None:
        """A disk is lost, and its node comes back as somebody else; never so many that nobody could ever lead again."""
        place = self.chance.choice(self.places)
        lost = [*self._lost, place.member]
        memberships = [other.core.membership for other in self.places if other.core is not None]
        memberships += [View(other.disk).membership for other in self.places]
        if not self.judge.committed:
            return  # nobody else may know who the voters are
        if any(sum(voter not in lost for voter in each.voters) < majority(len(each.voters)) for each in memberships if each.voters):
            return
        self.wipes += 1
        self._lost.append(place.member)
        if place.core is not None:
            self._stop(place)
        place.life += 1
        self._replace_disk(place)
        self.say(f"! the disk of {place.node_id} is lost")
        self._start(place)

    def _replace_disk(self, place: Place) -> None:
        place.member = Member(place.node_id, (b"%d" % (self.wipes + 1)).ljust(16, b"\0"))
        place.disk = self.judge.disks[place.member] = Disk()

    def _change_something(self) -> None:
        """As an operator would, who looks at who is there; or not quite so."""
        place = self._leader()
        if place is None or place.core is None:
            return
        core, now_us = place.core, place.clock(self.now)
        member = self._choose_member(place, core)
        rest = [voter for voter in core.membership.voters if voter != member]
        if member in core.membership.learners and member in self._lost:
            return  # for a moment it seems to be there: a voter that is never heard again could be one too many
        if sum(voter not in self._lost for voter in rest) < majority(len(rest)):
            return
        try:
            if member in core.membership.learners and self.chance.random() < 0.8:
                core.promote(member, now_us)
            elif member in core.membership.members:
                core.remove(member, now_us)
            else:
                core.add_learner(member, now_us)
        except (ChangeRefused, Overloaded) as error:
            self.say(f"? {place.node_id}: {error}")
            return
        self.changes += 1
        self.say(f"* {place.node_id}: {core.membership}")
        self._look(place)

    def _choose_member(self, place: Place, core: RaftCore) -> Member:
        """Whom the next change is about."""
        return self.chance.choice([other.member for other in self.places] + list(core.membership.members))

    def _hand_over(self) -> None:
        place = self._leader()
        if place is None or place.core is None:
            return
        try:
            place.core.transfer(self.chance.choice(place.core.membership.members), place.clock(self.now))
        except ChangeRefused as error:
            self.say(f"? {place.node_id}: {error}")
            return
        self.transfers += 1
        self._look(place)

    def _heal(self) -> None:
        """No more faults, and everybody lives."""
        self.say("--- healed")
        self._healed = True
        self._broken.clear()
        for place in self.places:
            if place.core is None:
                self._start(place)
        self._propose_at = 0

    def _find_unconverged(self) -> str | None:
        """C11: the first thing that is not as it should be."""
        leaders = [place.core for place in self.places if place.core is not None and place.core.role is Role.LEADER]
        if len(leaders) != 1:
            return f"{leaders} lead"
        core = leaders[0]
        if not core.ready_to_serve:
            return f"{core!r} is not ready"
        if self._propose_at != core.term:  # the last word, once in each leadership
            self._propose_at = core.term
            place = self.places[core.me.node_id - 1]
            if core.last_index - core.commit < 100:
                try:
                    core.propose(b"last", place.clock(self.now))
                except Overloaded as error:  # it is being handed over
                    self._propose_at = 0
                    return str(error)
                self._look(place)
            return "the last word is said"
        for place in self.places:
            other = place.core
            assert other is not None
            if place.member in core.membership.members and (other.commit, other.last_index) != (core.commit, core.commit):
                return f"{other!r} is behind {core!r}"
        return None if core.commit == core.last_index else f"{core!r} has not committed"

    def _compare_logs(self) -> None:
        """C2, C8, once more in full."""
        for place in self.places:
            core = place.core
            assert core is not None
            for index in range(core.log.base_index + 1, core.commit + 1):
                assert core.log.entry(index) == self.judge.committed[index], f"C8: {core!r} at {index}"


class View:
    """The membership in force on a disk."""

    def __init__(self, disk: Disk) -> None:
        found = [entry for entry in disk.entries if entry.kind == VOTERS and entry.index > disk.snapshot.meta.index]
        self.membership = Membership.unpack(found[-1].data) if found else disk.snapshot.meta.membership


@attrs.frozen
class Failure:
    """What broke in a run."""

    check: str
    """Which check said so, as C5, or what was raised when it was none of them."""
    text: str


def run_to_end(run: Run, seed: int) -> Failure | None:
    """Play; what broke, if anything did."""
    try:
        run.play()
    except Exception as error:
        said = str(error)
        found = re.match(r"C\d+(?=: )", said) if isinstance(error, AssertionError) else None
        text = f"seed {seed}: {type(error).__name__}: {said}; again: {run.command} --seed {seed} --verbose"
        return Failure(found[0] if found else type(error).__name__, text)
    return None


COUNTED: Final = ("steps", "proposed", "reads", "crashes", "wipes", "changes", "transfers", "installs", "term_max", "healed_after")
Summary = tuple[str | None, tuple[float, ...]]


def summary_of(seed: int, kind: type[Run] = Run) -> Summary:
    """Run one seed; what broke, and what happened in it."""
    run = kind(seed)
    failure = run_to_end(run, seed)
    return (None, tuple(float(getattr(run, name)) for name in COUNTED)) if failure is None else (failure.text, ())


def main(kind_of: Callable[[int], type[Run]], one: Callable[[int], Summary], description: str) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog=kind_of(0).command, description=description)
    parser.add_argument("--runs", type=int, default=1000, help="so many seeds (1000)")
    parser.add_argument("--jobs", type=int, default=1, help="in so many processes (1)")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--verbose", action="store_true", help="with --seed: print what happens")
    found = parser.parse_args()
    if found.seed is not None:
        run = kind_of(found.seed)(found.seed, print if found.verbose else None)
        run.play()
        print(f"{run.plan}\n" + ", ".join(f"{getattr(run, name):g} {name}" for name in COUNTED))
        return 0
    return 1 if run_many(one, COUNTED, range(found.runs), found.jobs) else 0


if __name__ == "__main__":
    from tests.core.raft.heap import summary_of as one  # under its own name: a pool cannot find `__main__`

    sys.exit(main(lambda seed: Run, one, "Candidates alone, message by message."))
