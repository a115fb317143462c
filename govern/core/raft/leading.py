"""One leadership: everything that a leader knows and promises because it leads, gone when it ends.

Rounds prove that a leader still led. Every Append carries the number of the newest round; a member that answers it was, at some moment
after the round began, in this term and with this leader. So when a majority has answered a round,

* nobody else led when the round began, and a read that was waiting when it began may be answered with the commit index of then;
* no majority elects another one for an election timeout from when the round *began* (rule R1), of which the lease takes four fifths.

D1  A read is confirmed by a round that began after it was asked for (R7). At most one round is on the way for reads; who asks meanwhile
    waits for the next, which a heartbeat starts at the latest.
D2  The lease begins when a round began, not when its answers came, and ends for good when the leadership is offered to another (R9): that
    one's voters do not wait for anybody's silence.
D3  Nothing is promised before an entry of this term is committed (R4): neither reads nor changes of the membership.
D4  Who is not in the membership in force is not spoken to, and does not count.
D5  A learner is sent what is committed, and nothing more. It may be a voter and not know it, when the leader that promoted it is gone. If
    it had entries of a later term that nobody else has, it would refuse its vote to whoever has what is committed, and not stand itself
    (R8); with one voter lost for good nobody could be elected any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import attrs

from ...peer_messages import (
    ENTRIES_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES,
    Append,
    AppendAnswer,
    Entry,
    InstallSnapshot,
    Member,
    RaftMessage,
    SnapshotAnswer,
    TimeoutNow,
)
from .log import Log
from .membership import majority
from .progress import Phase, Progress, Sending
from .types import MemberProgress, Timing


@attrs.define(eq=False)
class Transfer:
    """The leadership is being handed over (R9)."""

    to: Member
    until_us: int
    offered: bool = False


class Leading:
    """What exists only on a leader."""

    def __init__(self, me: Member, term: int, log: Log, timing: Timing, now_us: int) -> None:
        self.me = me
        self.term = term
        self.noop_index = log.last_index + 1
        self.transfer: Transfer | None = None
        self.lease_until_us = 0
        self.confirmed: list[tuple[object, int]] = []
        self._log = log
        self._timing = timing
        self._since_us = self._now_us = now_us
        self._round = 0
        self._rounds: deque[tuple[int, int]] = deque()  # (round, when it began), the newest that a majority answered and later ones
        self._waiting: list[object] = []  # reads for the next round
        self._asked: deque[tuple[int, int, list[object]]] = deque()  # (round, commit index then, reads)
        self._members: dict[Member, Progress] = {}
        self.follow_membership()

    # --- members ----------------------------------------------------------------------------------------------------------------

    def follow_membership(self) -> None:
        """The membership in force has changed (D4)."""
        old, self._members = self._members, {}
        for member in self._log.membership.members:
            if member != self.me:
                self._members[member] = old.get(member) or Progress(member, self._log.last_index + 1)

    def is_near(self, member: Member) -> bool:
        """Whether a member was heard within the election timeout; the leader hears itself."""
        progress = self._members.get(member)
        return member == self.me or (progress is not None and progress.recent(self._now_us, self._timing.election_us))

    def match_of(self, member: Member) -> int:
        """How far its log agrees and is durable."""
        return self._log.written if member == self.me else self._members[member].match

    def has_quorum(self, now_us: int) -> bool:
        """R6: whether a majority was heard within the election timeout, or has not had that time yet."""
        voters = self._log.membership.voters
        self._now_us = now_us
        young = now_us - self._since_us < self._timing.election_us
        return young or sum(self.is_near(voter) for voter in voters) >= majority(len(voters))

    def _agreed_by_majority(self, values: list[int]) -> int:
        """The largest number that a majority has reached."""
        return sorted(values, reverse=True)[len(values) // 2]

    def majority_match(self) -> int:
        """How far a majority of the voters agrees; the leader itself counts with what is on its disk."""
        return self._agreed_by_majority([self.match_of(voter) for voter in self._log.membership.voters])

    def report(self) -> Iterator[MemberProgress]:
        """What is known of each member."""
        voters = self._log.membership.voters
        for member in self._log.membership.members:
            yield MemberProgress(member, member in voters, self.match_of(member), self.is_near(member))

    # --- rounds, lease, reads ---------------------------------------------------------------------------------------------------

    @property
    def proved_us(self) -> int | None:
        """When the newest round began that a majority has answered; None when there was none, or it proves nothing any more (D2)."""
        return self.lease_until_us - self._timing.lease_us if self.lease_until_us else None

    def start_round(self, now_us: int, commit: int) -> None:
        """Ask all whether this is still their leader, and let waiting reads go with that (D1)."""
        self._now_us = now_us
        self._round += 1
        self._rounds.append((self._round, now_us))
        for progress in self._members.values():
            progress.due = True
        if self._waiting and commit >= self.noop_index:  # D3
            self._asked.append((self._round, commit, self._waiting))
            self._waiting = []
        self._count_round()

    def read(self, token: object) -> None:
        """A read waits for a round that has not begun (D1)."""
        self._waiting.append(token)

    @property
    def wants_round(self) -> bool:
        """Whether reads wait and no round is on the way for others."""
        return bool(self._waiting) and not self._asked

    @property
    def reads(self) -> list[object]:
        """All reads that are not confirmed."""
        return [token for _, _, tokens in self._asked for token in tokens] + self._waiting

    def _count_round(self) -> None:
        """What the newest round that a majority has answered proves."""
        rounds = [self._round if voter == self.me else self._members[voter].round for voter in self._log.membership.voters]
        newest = self._agreed_by_majority(rounds)
        while self._rounds and self._rounds[0][0] < newest:
            self._rounds.popleft()
        if self._rounds and self._rounds[0][0] == newest and not self._is_offered:  # D2
            self.lease_until_us = self._rounds[0][1] + self._timing.lease_us  # R7
        while self._asked and self._asked[0][0] <= newest:
            _, index, tokens = self._asked.popleft()
            self.confirmed += [(token, index) for token in tokens]

    # --- answers ----------------------------------------------------------------------------------------------------------------

    def appended(self, message: AppendAnswer, now_us: int) -> None:
        """A member took an Append, or refused it."""
        progress = self._heard(message.sender, message.round, now_us)
        if progress is None or message.index > self._log.last_index:
            return
        if message.ok:
            progress.accepted(message.index)
        else:
            point = self._log.last_not_after(message.index, message.index_term)
            progress.refused(message.index, self._log.base_index - 1 if point is None else point[0])

    def received(self, message: SnapshotAnswer, now_us: int) -> None:
        """So much of a snapshot has arrived."""
        progress = self._heard(message.sender, message.round, now_us)
        sending = progress.sending if progress is not None else None
        if sending is None or message.index != sending.snapshot.meta.index:
            return
        if sending.offset < message.offset <= len(sending.snapshot.state):
            sending.offset, sending.in_flight, sending.restart_at = message.offset, None, None
        elif message.offset < sending.offset:
            sending.restart_at = message.offset  # at leisure: an answer that comes late must not start the whole again

    def _heard(self, member: Member, round_: int, now_us: int) -> Progress | None:
        self._now_us = now_us
        progress = self._members.get(member)
        if progress is not None:
            progress.heard_us = now_us
            if progress.round < round_ <= self._round:
                progress.round = round_
                self._count_round()
        return progress

    # --- what is to be said -----------------------------------------------------------------------------------------------------

    def hand_over(self, to: Member, now_us: int) -> None:
        """To this voter, as soon as it has everything (R9)."""
        self.transfer = Transfer(to, now_us + self._timing.election_us)

    @property
    def _is_offered(self) -> bool:
        return self.transfer is not None and self.transfer.offered

    def collect(self, commit: int) -> Iterator[RaftMessage]:
        """Everything that can go now. It costs a look at each member when there is nothing."""
        for progress in self._members.values():
            if progress.phase is not Phase.SNAPSHOT and progress.next <= self._log.base_index and self.is_near(progress.member):
                progress.phase, progress.sending = Phase.SNAPSHOT, Sending(self._log.snapshot)
                progress.in_flight.clear()
            if progress.sending is not None:
                yield from self._collect_snapshot(progress, progress.sending)
            elif progress.next > self._log.base_index:
                yield from self._collect_entries(progress, commit)
            if progress.due:
                yield self._make_heartbeat(progress, commit)
        transfer = self.transfer
        if transfer is not None and not transfer.offered and self._members[transfer.to].match == self._log.last_index:
            transfer.offered = True
            self.lease_until_us = 0  # D2
            yield TimeoutNow(transfer.to, self.me, self.term)

    def _collect_entries(self, progress: Progress, commit: int) -> Iterator[RaftMessage]:
        first, last = progress.next, self._last_for(progress.member, commit)
        while first <= last and progress.may_send:
            entries = self._log.slice(first, last, ENTRIES_BYTES_MAX)
            yield self._make_append(progress, first - 1, commit, entries)
            first += len(entries)
            progress.in_flight.append(first - 1)
            if progress.phase is Phase.REPLICATE:
                progress.next = first
        if progress.phase is Phase.REPLICATE and progress.commit_sent < commit:
            yield self._make_append(progress, progress.next - 1, commit, ())

    def _last_for(self, member: Member, commit: int) -> int:
        """The last entry that is for this member (D5)."""
        return self._log.last_index if member in self._log.membership.voters else commit

    def _collect_snapshot(self, progress: Progress, sending: Sending) -> Iterator[RaftMessage]:
        """The next piece, or the one that was not answered for an election timeout."""
        if sending.in_flight is not None:
            if self._now_us - sending.sent_us < self._timing.election_us:
                return
            if sending.restart_at is not None:
                sending.offset, sending.restart_at = sending.restart_at, None
        meta, state = sending.snapshot.meta, sending.snapshot.state
        end = min(sending.offset + SNAPSHOT_CHUNK_BYTES, len(state))
        sending.in_flight, sending.sent_us = end, self._now_us
        yield InstallSnapshot(
            to=progress.member,
            sender=self.me,
            term=self.term,
            index=meta.index,
            index_term=meta.term,
            voters=meta.membership.voters,
            learners=meta.membership.learners,
            offset=sending.offset,
            last=end == len(state),
            round=self._round,
            data=state[sending.offset : end],
        )

    def _make_heartbeat(self, progress: Progress, commit: int) -> Append:
        """An Append without entries, at the point of which it is hoped that the member agrees there."""
        if progress.sending is not None or progress.next <= self._log.base_index:
            snapshot = self._log.snapshot if progress.sending is None else progress.sending.snapshot
            progress.due = False
            return Append(progress.member, self.me, self.term, snapshot.meta.index, snapshot.meta.term, commit, self._round, ())
        return self._make_append(progress, progress.next - 1, commit, ())

    def _make_append(self, progress: Progress, prev: int, commit: int, entries: tuple[Entry, ...]) -> Append:
        prev_term = self._log.term_of(prev)
        assert prev_term is not None
        progress.commit_sent = commit
        if not entries:  # Appends with entries are answered when those are durable: a round does not wait for that
            progress.due = False
        return Append(progress.member, self.me, self.term, prev, prev_term, commit, self._round, entries)
