"""A few candidates in one place, where nothing happens by itself: messages wait to be delivered, writes to be done, clocks to go on.

Chance is in the middle: with three voters 1, 2, 3 the timeouts are 1083 ms for 3, 1417 ms for 2, 1750 ms for 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from govern.core.raft.core import RaftCore, Role
from govern.core.raft.types import VOTERS, HardState, Membership, Timing, Write
from govern.peer_messages import Entry, Member, RaftMessage

from .disk import Disk
from .words import describe, describe_member, describe_write


def make_member(node_id: int, disk: int = 1) -> Member:
    """A node on its first disk, or another."""
    return Member(node_id, str(disk).encode().ljust(16, b"\0"))


class Middle:
    """Chance that is always in the middle."""

    def uniform(self, a: float, b: float) -> float:
        """Half way."""
        return (a + b) / 2


@attrs.define(eq=False)
class Seat:
    """One candidate and its disk."""

    member: Member
    disk: Disk
    core: RaftCore
    slow: bool = False
    writing: Write | None = None
    seen: str = ""
    applied: list[Entry] = attrs.field(factory=list)
    tokens: list[str] = attrs.field(factory=list)


class Rig:
    """Candidates 1, 2, …; the first voters are in the log of all of them from the start."""

    make_core: Callable[..., RaftCore] = RaftCore

    def __init__(self, voters: Iterable[int] = (1, 2, 3), learners: Iterable[int] = (), blank: Iterable[int] = ()) -> None:
        self.now_us = 0
        self.mail: list[RaftMessage] = []
        self.lines: list[str] = []
        self.cut: dict[tuple[int, int], None] = {}
        self.quiet = False
        membership = Membership(tuple(make_member(each) for each in voters), tuple(make_member(each) for each in learners))
        self.seats: dict[int, Seat] = {}
        for member in membership.members:
            disk = Disk()
            disk.write(Write(HardState(1, None, 1), (Entry(1, 1, VOTERS, membership.pack()),), None))
            self.sit(member, disk)
        for node_id in blank:
            self.sit(make_member(node_id), Disk())

    def sit(self, member: Member, disk: Disk) -> Seat:
        """A candidate begins a life with what is on a disk."""
        core = self.make_core(
            member,
            hard=disk.hard,
            snapshot=disk.snapshot,
            entries=list(disk.entries),
            timing=Timing(),
            random=Middle(),
            now_us=self.now_us,
        )
        seat = self.seats[member.node_id] = Seat(member, disk, core)
        seat.seen = self._state(seat)
        return seat

    def core(self, node_id: int) -> RaftCore:
        """Its rules."""
        return self.seats[node_id].core

    def say(self, line: str) -> None:
        """A line of the transcript."""
        self.lines.append(line)

    def settle(self, node_id: int) -> None:
        """After a candidate was told something: what it says waits to be delivered, what it writes is written unless its disk is slow."""
        seat = self.seats[node_id]
        while True:
            seat.core.validate()
            self.mail += seat.core.take_messages()
            if seat.writing is not None:
                break
            seat.writing = seat.core.begin_write()
            if seat.writing is None or seat.slow:
                break
            self._write(seat)
        state = self._state(seat)
        if state != seat.seen:
            seat.seen = state
            self.say(f"    {describe_member(seat.member)} {state}")
        installed = seat.core.take_installed()
        if installed is not None:
            self.say(f"    {node_id} installs the snapshot of {installed.meta.index}/{installed.meta.term}")
        seat.applied += seat.core.take_committed(1000)
        for token, index in seat.core.take_reads():
            self.say(f"    {node_id}: read {token} may be answered as of {index}")
        for token in seat.core.take_failed_reads():
            self.say(f"    {node_id}: read {token} has failed")

    def _state(self, seat: Seat) -> str:
        core = seat.core
        if core.role is Role.LEADER:
            return f"leads in term {core.term}"
        if core.role is Role.CANDIDATE:
            return f"stands for election in term {core.term}"
        if core.role is Role.PRE_CANDIDATE:
            return f"asks around, in term {core.term}"
        return f"follows {describe_member(core.leader)} in term {core.term}"

    def _write(self, seat: Seat) -> None:
        assert seat.writing is not None
        seat.disk.write(seat.writing)
        seat.writing = None
        seat.core.end_write(self.now_us)

    def finish_write(self, node_id: int) -> None:
        """The outstanding write of a slow disk is done."""
        seat = self.seats[node_id]
        assert seat.writing is not None, f"{node_id} has no write outstanding"
        self.say(f"    {node_id} has written: {describe_write(seat.writing)}")
        self._write(seat)
        self.settle(node_id)

    def take(self, sender: int | None = None, to: int | None = None, kind: str | None = None) -> list[RaftMessage]:
        """Messages that wait, in their order, out of the mail."""
        found = [
            message
            for message in self.mail
            if sender in (None, message.sender.node_id)
            and to in (None, message.to.node_id)
            and kind in (None, type(message).__name__.lower())
        ]
        self.mail = [message for message in self.mail if message not in found]
        return found

    def deliver(self, sender: int | None = None, to: int | None = None, kind: str | None = None) -> None:
        """Deliver what waits; without arguments also everything that comes of it."""
        everything = (sender, to, kind) == (None, None, None)
        while found := self.take(sender, to, kind):
            for message in found:
                self.hand(message)
            if not everything:
                break

    def hand(self, message: RaftMessage) -> None:
        """One message arrives, unless the link is cut."""
        ends = message.sender.node_id, message.to.node_id
        if ends in self.cut or ends[1] not in self.seats:
            return
        if not self.quiet:
            self.say(f"{describe_member(message.sender)} > {describe_member(message.to)}  {describe(message)}")
        self.core(ends[1]).step(message, self.now_us)
        self.settle(ends[1])

    def advance(self, seconds: float) -> None:
        """Time goes on; what is due happens in its order, and messages take no time."""
        until = self.now_us + round(seconds * 1e6)
        while True:
            node_id = min(self.seats, key=lambda each: (self.core(each).deadline_us, each))
            due = self.core(node_id).deadline_us
            if due > until:
                break
            self.now_us = max(self.now_us, due)
            self.core(node_id).tick(self.now_us)
            self.settle(node_id)
            self.deliver()
        self.now_us = until

    def elect(self, node_id: int) -> None:
        """Make one leader and let everybody know."""
        self.now_us += 2_000_000  # nobody hears a leader any more, and one that nobody answers sees it
        for each in self.seats:
            if self.core(each).role is Role.LEADER:
                self.core(each).tick(self.now_us)
                self.settle(each)
        for _ in range(2):  # at first it may only learn that its term is old
            self.core(node_id).campaign(self.now_us)
            self.settle(node_id)
            self.deliver()
        if self.core(node_id).role is not Role.LEADER:
            raise RuntimeError(f"this story needs another leader than {self.core(node_id)!r}")

    def judge(self) -> None:
        """One leader per term, and everybody was handed the same."""
        terms = [seat.core.term for seat in self.seats.values() if seat.core.role is Role.LEADER]
        assert len(set(terms)) == len(terms), f"two leaders in one term: {terms}"
        handed: dict[int, Entry] = {}
        for seat in self.seats.values():
            for entry in seat.applied:
                assert handed.setdefault(entry.index, entry) == entry, f"{entry} and {handed[entry.index]} are both committed"
