"""The judge of candidates: what must hold at every event, whatever happened.

`heap` and `upheaval` tell it what a candidate has done, at once, and in C5 it looks at the disks of all.

C1  One leader per term.
C2  An (index, term) names one entry with one predecessor, wherever it appears.
C3  What is committed is in the log of every leader of a later term.
C4  One vote per member and term, counted from the disks and from what is said.
C5  The commit index of a life never goes back; what is handed out is committed; what a leader commits is on the disks of a majority.
C6  A leader has at most one change of the membership uncommitted; committed memberships that follow each other differ by one voter at most.
C7  No message speaks of anything that is not on the sender's disk.
C8  All hand out the same entries, and snapshots are of their fold.
C9  While one has the lease there is no leader of a later term.
C10 The index of a read is not lower than what was committed when it was asked for.
C11 (at the end) One leads, everybody has everything, and new proposals are committed.
C12 Nobody else is elected in a later term before an election timeout is over, by the fastest clock, since a round began that a majority
    answered; unless the leader has handed over. Leases of nodes are counted from that.
C13 Who leads has heard a majority within an election timeout and a heartbeat, by its own clock.
C14 Nobody sends a learner of its own membership an entry that it does not know to be committed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Final

import attrs

from govern.core.raft.core import RaftCore, Role
from govern.core.raft.membership import majority
from govern.core.raft.types import VOTERS, Membership, Snapshot, Timing, Write
from govern.peer_messages import Append, AppendAnswer, Entry, Member, PreVote, PreVoteAnswer, RaftMessage, TimeoutNow, Vote, VoteAnswer

from .disk import Disk

TIMING: Final = Timing()
RATE_MAX: Final = 1.1
"""No clock is faster."""


@attrs.define(eq=False)
class Place:
    """Where a node runs: its disk, its clock, and its core while it lives."""

    node_id: int
    member: Member
    disk: Disk
    rate: float
    offset: float
    core: RaftCore | None = None
    life: int = 0
    writing: Write | None = None
    next_tick: float = 0.0
    commit: int = 0
    applied: int = 0
    role: Role = Role.FOLLOWER
    voted: tuple[int, Member | None] = (0, None)
    reads: dict[object, int] = attrs.field(factory=dict)
    heard: dict[Member, float] = attrs.field(factory=dict)
    """When each member's last answer to its Appends and snapshots came, since it leads."""
    led_since: float = 0.0

    def clock(self, now: float) -> int:
        """Its own time."""
        return int((self.offset + now * self.rate) * 1e6)

    def moment(self, clock_us: int) -> float:
        """When that is by its own time."""
        return (clock_us / 1e6 - self.offset) / self.rate


class Judge:
    """Everything that was ever said, written and committed in a run. `blind_to` are checks that are off, so that a broken candidate is
    found by another one."""

    def __init__(self, blind_to: Sequence[str] = ()) -> None:
        self.term_max = 0
        self.disks: dict[Member, Disk] = {}  # also of those that are lost: they had what they had (C5)
        self.committed: dict[int, Entry] = {}  # C3, C8
        self.committed_last = 0
        self.digests: dict[int, int] = {}  # C8
        self._blind_to = blind_to
        self._leaders: dict[int, Member] = {}  # C1
        self._known: dict[tuple[int, int], tuple[int, Entry]] = {}  # C2
        self._memberships: list[Membership] = []  # C6
        self._votes: dict[tuple[Member, int], Member] = {}  # C4
        self._proved_at: dict[Member, float] = {}  # C12
        self._handed_over: dict[Member, int] = {}  # to whom the leader gave up, and in which term it was going to stand

    def begin(self, base: int, membership: Membership) -> None:
        """The logs are empty up to here, and these are the first voters."""
        self._memberships.append(membership)
        self.committed_last = self._base = base
        self.digests[base] = 0

    def know(self, term_before: int, entry: Entry) -> None:
        """It was seen, with the term of the one before: C2."""
        known = self._known.setdefault((entry.index, entry.term), (term_before, entry))
        assert known == (term_before, entry), f"C2: {(term_before, entry)} and {known}"

    # --- votes and leaders -----------------------------------------------------------------------------------------------------

    def count_vote(self, place: Place, term: int, voted_for: Member) -> None:
        """C4: it is on the disk, or was said."""
        before = self._votes.setdefault((place.member, term), voted_for)
        assert before == voted_for, f"C4: {place.member} votes for {before} and {voted_for} in term {term}"

    def look(self, place: Place, core: RaftCore, now: float) -> None:
        """Something happened at this candidate: C5, C9, C12, C13."""
        if core.proved_us is not None:
            self._proved_at[place.member] = place.moment(core.proved_us)
        if core.role is Role.LEADER:
            if core.term < self.term_max:
                assert not core.has_lease(place.clock(now)), f"C9: {core!r} has the lease in term {self.term_max}"
            self._judge_quorum(place, core, now)
        assert core.commit >= place.commit, f"C5: {core!r} went back from {place.commit}"
        if core.commit > place.commit:
            self._judge_commit(place, core)

    def _judge_quorum(self, place: Place, core: RaftCore, now: float) -> None:
        """C13. A new leader has that time from its election on."""
        since = now - (TIMING.election_us + TIMING.heartbeat_us) / 1e6 / place.rate - 1e-3
        if since > place.led_since:
            voters = core.membership.voters
            count = sum(voter == place.member or place.heard.get(voter, 0.0) >= since for voter in voters)
            assert count >= majority(len(voters)), f"C13: {core!r} leads, and has heard {count} of {len(voters)} lately"

    def elected(self, place: Place, core: RaftCore, now: float, places: Sequence[Place]) -> None:
        """It leads from now on: C1, C3, C9, C12."""
        place.led_since, place.heard = now, {}
        before = self._leaders.setdefault(core.term, place.member)
        assert before == place.member, f"C1: {before} and {place.member} lead in term {core.term}"
        if core.term < self.term_max:
            return  # by votes that came late; a majority is beyond that term, so nothing is ever committed in it
        self.term_max = core.term
        since = now - max((at for leader, at in self._proved_at.items() if leader != place.member), default=-math.inf)
        if self._handed_over.get(place.member) != core.term:
            assert since >= TIMING.election_us / 1e6 / RATE_MAX, f"C12: {core!r} is elected {since:.3f} s after a majority heard a leader"
        last = self.committed.get(self.committed_last)
        if last is not None:
            here = core.log.term_of(last.index)
            assert here == last.term or core.log.snapshot.meta.index > last.index, f"C3: {core!r} leads without {last}"
        for other in places:
            if other.core is not None and other.core.role is Role.LEADER and other.core.term < core.term:
                assert not other.core.has_lease(other.clock(now)), f"C9: {other.core!r} has the lease when {core!r} is elected"

    # --- what is committed -----------------------------------------------------------------------------------------------------

    def _judge_commit(self, place: Place, core: RaftCore) -> None:
        if core.role is Role.LEADER:  # C5
            term = core.log.term_of(core.commit)
            assert term is not None
            voters = core.membership.voters
            count = sum(self.disks[voter].has(core.commit, term) for voter in voters)
            assert count >= majority(len(voters)), f"C5: {core!r} commits what is on {count} of {len(voters)} disks"
            pending = sum(entry.kind == VOTERS for entry in core.log.slice(core.commit + 1, core.log.last_index))
            assert pending <= 1, f"C6: {core!r} has {pending} changes uncommitted"
        for index in range(max(place.commit, core.log.base_index, self.committed_last) + 1, core.commit + 1):
            self.commit(core.log.entry(index))
        place.commit = core.commit

    def commit(self, entry: Entry) -> None:
        """The first to know."""
        assert entry.index == self.committed_last + 1, "C8: committed entries are dense"
        self.committed[entry.index] = entry
        self.digests[entry.index] = zlib.crc32(b"%d %d %d " % entry[:3] + entry.data, self.digests[self.committed_last])
        self.committed_last = entry.index
        if entry.kind == VOTERS:
            before, after = self._memberships[-1].voters, Membership.unpack(entry.data).voters
            different = [voter for voter in before + after if (voter in before) != (voter in after)]
            assert len(different) <= 1, f"C6: {before} is followed by {after}"
            self._memberships.append(Membership.unpack(entry.data))

    def read(self, core: RaftCore, index: int, committed: int) -> None:
        """A read is answered: C10. `committed` was when it was asked for."""
        assert index >= committed, f"C10: a read at {core!r} gets {index}, {committed} was committed when it was asked for"

    def installed(self, place: Place, core: RaftCore, snapshot: Snapshot) -> None:
        """It goes on from a snapshot: C6, C8."""
        place.applied = snapshot.meta.index
        assert int(snapshot.state.decode()) == self.digests[place.applied], f"C8: {core!r} has a snapshot of something else"
        at = [at for at, entry in self.committed.items() if at <= place.applied and entry.kind == VOTERS]
        assert snapshot.meta.membership == Membership.unpack(self.committed[at[-1]].data), f"C6: {snapshot}"

    def applied(self, place: Place, entry: Entry) -> None:
        """It was handed out as committed: C8."""
        assert entry.index == max(place.applied, self._base) + 1, f"C8: {entry} is handed out behind {place.applied}"
        place.applied = entry.index
        assert entry == self.committed[entry.index], f"C8: {entry} was committed as {self.committed[entry.index]}"

    # --- what is said ----------------------------------------------------------------------------------------------------------

    def message(self, place: Place, core: RaftCore, message: RaftMessage) -> None:
        """It leaves this candidate: C4, C7, C14, and C2 of what a leader says."""
        if isinstance(message, TimeoutNow):
            self._proved_at.pop(place.member, None)  # C12: it hands over
        if isinstance(message, Vote) and message.transfer:
            self._handed_over[place.member] = message.term
        if isinstance(message, VoteAnswer) and message.granted:
            self.count_vote(place, message.term, message.to)
        if "C7" not in self._blind_to:
            self._judge_durable(core, message, place.disk)
        if isinstance(message, Append) and message.entries and "C14" not in self._blind_to:
            is_for_all = message.to in core.membership.voters
            assert is_for_all or message.entries[-1].index <= core.commit, f"C14: {message} to a learner, and committed is {core.commit}"
        for entry in getattr(message, "entries", ()):
            before = core.log.term_of(entry.index - 1)
            assert before is not None
            self.know(before, entry)

    def _judge_durable(self, core: RaftCore, message: RaftMessage, disk: Disk) -> None:
        """C7."""
        hard = disk.hard
        if isinstance(message, PreVote) or (isinstance(message, PreVoteAnswer) and message.granted):
            return
        assert message.term <= hard.term, f"C7: {message} and the disk has {hard}"
        if isinstance(message, Vote):
            assert hard.term > message.term or hard.voted_for == message.sender, f"C7: {message} and the disk has {hard}"
        elif isinstance(message, VoteAnswer) and message.granted:
            assert hard.term > message.term or hard.voted_for == message.to, f"C7: {message} and the disk has {hard}"
        elif isinstance(message, AppendAnswer) and message.ok and message.index:
            term = core.log.term_of(message.index)  # None: compacted since the answer was written, and then the snapshot has it
            assert disk.has(message.index, -1 if term is None else term), f"C7: {message}, which is not on the disk"
