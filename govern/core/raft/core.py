"""One candidate: what it is at the moment, what it is told, and what it hands out.

The rules R1 to R11 and W1 to W4 that are cited here are those of the package. What exists only on a leader is in `leading`, what a member
knows of its leader in `following`, the log in `log`; here are elections, what waits for the disk, and the doors to the owner.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

from ...errors import Overloaded
from ...peer_messages import (
    NUMBER_MAX,
    Append,
    AppendAnswer,
    Entry,
    InstallSnapshot,
    Member,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    SnapshotAnswer,
    TimeoutNow,
    Vote,
    VoteAnswer,
)
from . import membership
from .following import Following
from .leading import Leading
from .log import Log
from .types import (
    DATA,
    NOOP,
    VOTERS,
    Chance,
    ChangeRefused,
    HardState,
    MemberProgress,
    Membership,
    NotLeader,
    Snapshot,
    SnapshotMeta,
    Timing,
    Write,
)

UNCOMMITTED_MAX: Final = 256
"""Proposals that are not committed; with the largest records that is 64 MiB."""
TERM_LEAP_MAX: Final = 1 << 40
"""A term that is so far beyond the own one is not believed: one word must not use up the numbers that elections of years would need. Who
comes back to a cluster that was recovered meanwhile (B5) meets a leap of 2**32, and of several if it was recovered several times."""
READS_MAX: Final = 10_000
"""Reads that wait for a round."""
KEEP_BEHIND: Final = 5_000
"""Entries that stay behind a snapshot's back, so that a follower that was away for a moment needs no snapshot."""


class Role(enum.Enum):
    """What a candidate is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class RaftCore:
    """One candidate. Every method is given the time of now, in microseconds of a clock that does not go back, and returns at once.

    After any call the owner sends `take_messages`, makes `begin_write` durable when it is not None and no other write is outstanding, then
    calls `end_write`, and applies `take_installed` and `take_committed`. `tick` is to be called at `deadline_us`.
    """

    def __init__(
        self,
        me: Member,
        *,
        hard: HardState,
        snapshot: Snapshot,
        entries: Sequence[Entry],
        timing: Timing,
        random: Chance,
        now_us: int,
    ) -> None:
        self.me = me
        self.role = Role.FOLLOWER
        self.leader: Member | None = None
        self.log = Log(snapshot, entries)
        self.term = hard.term
        self.voted_for = hard.voted_for
        start = self.log.snapshot.meta.index
        self.commit = start if self.log.is_blank else max(hard.commit, start)
        self.applied = start
        assert self.commit <= self.log.last_index, "what is known to be committed is in the log"
        self._timing = timing
        self._random = random
        self._durable = self._writing = HardState(hard.term, hard.voted_for, self.commit)
        self._write_outstanding = False
        self._leading: Leading | None = None
        self._votes: dict[Member, bool] = {}
        self._transfer_wanted = False  # this candidature was ordered by the leader
        self._following = Following(me, self.term, self.log)
        self._installed: Snapshot | None = None
        self._failed_reads: list[object] = []
        self._confirmed: list[tuple[object, int]] = []
        self._out: list[RaftMessage] = []
        self._held: dict[tuple[Member, int], RaftMessage] = {}  # until what they speak of is durable (W1); the last one of each kind
        self._releasing: list[RaftMessage] = []  # with the outstanding write
        self._heard_us: int | None = now_us if hard.term else None  # R1
        self._next_beat_us = 0
        self._draw(now_us)
        if self.membership.voters == (me,):
            self._election_us = now_us  # who is alone waits for nobody

    def __repr__(self) -> str:
        leader = "nobody" if self.leader is None else self.leader.node_id
        log = f"commit {self.commit} applied {self.applied} written {self.log.written} last {self.log.last_index}/{self.log.last_term}"
        return f"<{self.me.node_id} {self.role.value} of term {self.term}, {leader} leads, {log}>"

    # --- what others may know ---------------------------------------------------------------------------------------------------

    @property
    def last_index(self) -> int:
        """The index of the last entry of the log."""
        return self.log.last_index

    @property
    def membership(self) -> Membership:
        """The one in force."""
        return self.log.membership

    @property
    def deadline_us(self) -> int:
        """When `tick` is to be called."""
        return self._next_beat_us if self._leading is not None else self._election_us

    @property
    def lease_until_us(self) -> int:
        """Until when nobody else can lead, as far as is known (R7); 0 when this is not the leader."""
        return 0 if self._leading is None else self._leading.lease_until_us

    @property
    def proved_us(self) -> int | None:
        """When the newest round began that a majority has answered, and with which the lease began; None when nothing is proved."""
        return None if self._leading is None else self._leading.proved_us

    def has_lease(self, now_us: int) -> bool:
        """Whether nobody else can lead now."""
        return now_us < self.lease_until_us

    @property
    def ready_to_serve(self) -> bool:
        """Whether this is the leader, and its owner has been handed everything that earlier leaders committed."""
        return self._leading is not None and self.applied >= self._leading.noop_index

    def progress(self) -> list[MemberProgress]:
        """What a leader knows of each member; empty on others."""
        return [] if self._leading is None else list(self._leading.report())

    # --- what the owner wants ---------------------------------------------------------------------------------------------------

    def propose(self, data: bytes, now_us: int) -> int:
        """Append an entry and return its index; it will be handed out by `take_committed`, under that index and this term, or be lost.

        Raises `NotLeader`, and `Overloaded` when too much is uncommitted or the leadership is being handed over.
        """
        return self._append_own(DATA, data, self._accepting())

    def add_learner(self, member: Member, now_us: int) -> int:
        """Let a new member receive what is committed; returns the index of the change. Raises `NotLeader`, `ChangeRefused`,
        `Overloaded`."""
        leading = self._accepting_change()
        return self._change(membership.add_learner(self.membership, member), leading)

    def promote(self, member: Member, now_us: int) -> int:
        """Make a voter of a learner; returns the index of the change. Raises `NotLeader`, `ChangeRefused`, `Overloaded`."""
        leading = self._accepting_change()
        lag = self.commit - leading.match_of(member) if member in self.membership.members else 0
        return self._change(membership.promote(self.membership, member, lag, leading.is_near), leading)

    def remove(self, member: Member, now_us: int) -> int:
        """Remove a voter or learner; returns the index of the change. Raises `NotLeader`, `ChangeRefused`, `Overloaded`."""
        leading = self._accepting_change()
        return self._change(membership.remove(self.membership, member, self.me, leading.is_near), leading)

    def transfer(self, to: Member, now_us: int) -> None:
        """Hand the leadership to another voter (R9). Raises `NotLeader`, and `ChangeRefused` when that one cannot take it."""
        leading = self._lead()
        if to == self.me:
            raise ChangeRefused(f"node {to.node_id} leads already: there is nothing to hand over")
        if to not in self.membership.voters:
            raise ChangeRefused(f"node {to.node_id} is no voter: promote it first")
        if not leading.is_near(to):
            raise ChangeRefused(f"node {to.node_id} does not answer: choose another voter, or bring it back first")
        if leading.transfer is not None:
            raise ChangeRefused("the leadership is being handed over already: ask again in a moment")
        leading.hand_over(to, now_us)

    def read(self, token: object, now_us: int) -> None:
        """Find out up to where a read has to wait: `take_reads` returns `(token, index)`, or `take_failed_reads` the token. A read answered
        from a state as of `index` or later has seen every write that was committed when it was asked for. Raises `NotLeader`, `Overloaded`.
        """
        leading = self._lead()
        if len(leading.reads) >= READS_MAX:
            raise Overloaded(f"{READS_MAX} reads wait already", retry_after=1.0)
        leading.read(token)
        self._start_reads(leading, now_us)

    def campaign(self, now_us: int) -> None:
        """Stand for election at once, by a trial vote first unless there is no other voter. Nothing happens on a leader or a non-voter."""
        if self._leading is None and self.me in self.membership.voters:
            self._try(now_us)

    @property
    def may_compact(self) -> bool:
        """Whether everything that was handed out is durable here, so that a snapshot of it can take the place of the log."""
        return self._installed is None and self.log.snapshot.meta.index < self.applied <= self.log.written

    def compact(self, state: bytes, index: int) -> Snapshot:
        """The owner's state as of `index`, up to which it was handed everything, takes the place of the log up to there; only when
        `may_compact`. The owner makes the returned snapshot durable, with what is `kept`, when no write is outstanding."""
        assert self.may_compact, "what a snapshot replaces is on the disk"
        assert self.log.snapshot.meta.index < index <= self.applied, "a snapshot is of what was handed out"
        term = self.log.term_of(index)
        assert term is not None
        snapshot = Snapshot(SnapshotMeta(index, term, self.log.membership_at(index)), state)
        self.log.compact(snapshot, KEEP_BEHIND)
        return snapshot

    def kept(self) -> tuple[HardState, tuple[Entry, ...]]:
        """What is durable now besides the snapshot: a disk that has this and the newest snapshot has everything it needs. The entries
        begin before the snapshot's index when there are any. No write may be outstanding."""
        assert not self._write_outstanding
        return self._durable, self.log.slice(self.log.base_index + 1, max(self.log.written, self.log.base_index))

    def _lead(self) -> Leading:
        if self._leading is None:
            raise NotLeader(self.leader)
        return self._leading

    def _accepting(self) -> Leading:
        leading = self._lead()
        if leading.transfer is not None:
            raise Overloaded("the leadership is being handed over", retry_after=0.2)
        if self.log.last_index - self.commit >= UNCOMMITTED_MAX:
            raise Overloaded(f"{UNCOMMITTED_MAX} changes wait for a majority already", retry_after=1.0)
        return leading

    def _accepting_change(self) -> Leading:
        leading = self._accepting()
        if not self._may_change(leading):
            raise ChangeRefused("the last change, or the first entry of this leader, is not committed yet: try again in a moment")
        return leading

    def _may_change(self, leading: Leading) -> bool:
        """R4, R11."""
        return self.commit >= leading.noop_index and self.commit >= self.log.membership_index

    def _change(self, after: Membership, leading: Leading) -> int:
        index = self._append_own(VOTERS, after.pack(), leading)
        leading.follow_membership()
        return index

    def _append_own(self, kind: int, data: bytes, leading: Leading) -> int:
        index = self.log.last_index + 1
        self.log.append([Entry(index, self.term, kind, data)])
        return index

    # --- what the owner takes ---------------------------------------------------------------------------------------------------

    def take_messages(self) -> list[RaftMessage]:
        """What may be sent now. Any of it may get lost."""
        if self._leading is not None:
            self._out += self._leading.collect(self.commit)
        out, self._out = self._out, []
        return out

    def begin_write(self) -> Write | None:
        """The next batch for the disk; None while one is outstanding or there is nothing. A commit index alone is not worth a write."""
        if self._write_outstanding or (self._is_durable and not self.log.unwritten):
            return None
        wanted = self._hard_state()
        self._write_outstanding = True
        self._writing = wanted
        self._releasing, self._held = list(self._held.values()), {}
        entries, snapshot = self.log.begin_write()
        return Write(wanted if wanted != self._durable else None, entries, snapshot)

    def end_write(self, now_us: int) -> None:
        """The outstanding batch is durable: what depends on it may leave."""
        assert self._write_outstanding
        self._write_outstanding = False
        self._durable = self._writing
        written = self.log.written
        self.log.end_write()
        self._out += self._releasing
        self._releasing = []
        if self._is_durable:
            self._out += self._held.values()
            self._held = {}
        if self._leading is not None:
            self._advance_commit(self._leading, now_us)
        elif self.role is Role.CANDIDATE:
            self._count_own_vote(now_us)
        elif self.leader is not None and self._following.agreed and self.log.written != written:
            self._send_durable(self._following.accept(self.leader))  # W2

    @property
    def _is_durable(self) -> bool:
        """Whether term and vote are."""
        return (self._durable.term, self._durable.voted_for) == (self.term, self.voted_for)

    def _hard_state(self) -> HardState:
        return HardState(self.term, self.voted_for, self.commit)

    def take_committed(self, limit: int) -> list[Entry]:
        """The next committed entries, each once and in order; nothing while an installed snapshot has not been taken."""
        if self._installed is not None:
            return []
        last = min(self.commit, self.applied + limit)
        entries = self.log.slice(self.applied + 1, last) if last > self.applied else ()
        self.applied = max(self.applied, last)
        return list(entries)

    def take_installed(self) -> Snapshot | None:
        """A snapshot that came from the leader: it takes the place of the owner's state."""
        installed, self._installed = self._installed, None
        if installed is not None:
            self.applied = installed.meta.index
        return installed

    def take_reads(self) -> list[tuple[object, int]]:
        """Confirmed reads: each may be answered as soon as everything up to its index is applied."""
        confirmed, self._confirmed = self._confirmed, []
        if self._leading is not None:
            confirmed += self._leading.confirmed
            self._leading.confirmed = []
        return confirmed

    def take_failed_reads(self) -> list[object]:
        """Reads of a leadership that ended: ask the next leader."""
        failed, self._failed_reads = self._failed_reads, []
        return failed

    # --- what happens -----------------------------------------------------------------------------------------------------------

    def tick(self, now_us: int) -> None:
        """Time has passed."""
        if self._leading is not None:
            if now_us >= self._next_beat_us:
                self._beat(self._leading, now_us)
        elif now_us >= self._election_us:
            self._draw(now_us)
            if self.me in self.membership.voters:  # R8
                self._try(now_us)
            else:
                self.leader = None  # who is no voter may have been removed: nobody would say so, or that another one leads

    def step(self, message: RaftMessage, now_us: int) -> None:
        """A message has arrived. Whatever it says, nothing is raised."""
        if message.to != self.me or message.sender == self.me:
            return
        if not 0 < message.term < min(NUMBER_MAX, self.term + TERM_LEAP_MAX):
            return  # of no election
        if self.membership.voters == (self.me,) and message.sender not in self.membership.members:
            return  # any later membership would be in this log: this one is of a cluster that was given up (B5), or was removed
        if isinstance(message, PreVote):
            self._on_pre_vote(message, now_us)
        elif isinstance(message, Vote):
            self._on_vote(message, now_us)
        elif isinstance(message, PreVoteAnswer) and message.granted:
            self._on_pre_vote_answer(message, now_us)
        elif message.term < self.term:
            if isinstance(message, Append | InstallSnapshot):
                self._send_durable(AppendAnswer(message.sender, self.me, self.term, False, 0, 0, 0))  # R3
        elif isinstance(message, Append | InstallSnapshot):
            self._on_leader(message, now_us)
        else:
            if message.term > self.term and not isinstance(message, TimeoutNow):
                self._follow(message.term, None, now_us)
            self._on_answer(message, now_us)

    def _on_answer(self, message: RaftMessage, now_us: int) -> None:
        """Something of this term that is neither a request nor from the leader, but for its offer."""
        leading = self._leading
        if message.term != self.term:
            return
        if isinstance(message, VoteAnswer):
            if self.role is Role.CANDIDATE:
                self._votes.setdefault(message.sender, message.granted)
                self._count_votes(now_us)
        elif isinstance(message, TimeoutNow):
            if self.leader == message.sender and leading is None and self.me in self.membership.voters:
                self._transfer_wanted = True
                self._stand(now_us)
        elif isinstance(message, AppendAnswer) and leading is not None:
            leading.appended(message, now_us)
            self._advance_commit(leading, now_us)
        elif isinstance(message, SnapshotAnswer) and leading is not None:
            leading.received(message, now_us)
            self._start_reads(leading, now_us)

    # --- elections --------------------------------------------------------------------------------------------------------------

    def _draw(self, now_us: int) -> None:
        """R10: when to stand, unless a leader is heard before."""
        voters = self.membership.voters
        rank = sum(voter > self.me for voter in voters)
        share = (rank + self._random.uniform(0.0, 0.5)) / max(1, len(voters))
        self._patience_us = round(self._timing.election_us * (1.0 + share))
        self._election_us = now_us + self._patience_us

    def _hears_leader(self, now_us: int) -> bool:
        """R1."""
        heard_us = self._heard_us
        return self.role is Role.LEADER or (heard_us is not None and now_us - heard_us < self._timing.election_us)

    def _is_behind(self, message: PreVote | Vote) -> bool:
        """Whether the log of a candidate is older than the own one."""
        return (message.last_term, message.last_index) < (self.log.last_term, self.log.last_index)

    def _on_pre_vote(self, message: PreVote, now_us: int) -> None:
        granted = message.term > self.term and not self._is_behind(message) and not self._hears_leader(now_us)
        if granted:
            self._out.append(PreVoteAnswer(message.sender, self.me, message.term, True))  # R2
        else:
            self._send_durable(PreVoteAnswer(message.sender, self.me, self.term, False))  # R3

    def _on_vote(self, message: Vote, now_us: int) -> None:
        granted = False
        if message.transfer or not self._hears_leader(now_us):
            if message.term > self.term:
                self._follow(message.term, None, now_us)
            granted = message.term == self.term and self.voted_for in (None, message.sender) and not self._is_behind(message)
        if granted:  # R1
            self.voted_for = message.sender
            self._draw(now_us)
        self._send_durable(VoteAnswer(message.sender, self.me, self.term, granted))  # R2, R3

    def _on_pre_vote_answer(self, message: PreVoteAnswer, now_us: int) -> None:
        if self.role is Role.PRE_CANDIDATE and message.term == self.term + 1:
            self._votes[message.sender] = True
            self._count_votes(now_us)

    def _try(self, now_us: int) -> None:
        """Ask whether anybody would vote for this member. No term grows: a member that cannot be heard disturbs nobody."""
        self._transfer_wanted = False
        if self.membership.voters == (self.me,):
            self._stand(now_us)
            return
        self.role, self.leader = Role.PRE_CANDIDATE, None
        self._votes = {self.me: True}
        self._draw(now_us)
        for voter in self.membership.voters:
            if voter != self.me:
                self._out.append(PreVote(voter, self.me, self.term + 1, self.log.last_index, self.log.last_term))

    def _stand(self, now_us: int) -> None:
        """Ask for votes in a new term, when that and the own vote are durable (W1)."""
        self._end_leadership()
        self.role, self.leader = Role.CANDIDATE, None
        self.term += 1
        self.voted_for = self.me
        self._following = Following(self.me, self.term, self.log)
        self._votes = {}
        self._draw(now_us)
        for voter in self.membership.voters:
            if voter != self.me:
                request = Vote(voter, self.me, self.term, self.log.last_index, self.log.last_term, self._transfer_wanted)
                self._send_durable(request)

    def _count_own_vote(self, now_us: int) -> None:
        if (self._durable.term, self._durable.voted_for) == (self.term, self.me):
            self._votes[self.me] = True
            self._count_votes(now_us)

    def _count_votes(self, now_us: int) -> None:
        voters = self.membership.voters
        if sum(self._votes.get(voter, False) for voter in voters) < membership.majority(len(voters)):
            return
        if self.role is Role.PRE_CANDIDATE:
            self._stand(now_us)
        else:
            self._become_leader(now_us)

    def _become_leader(self, now_us: int) -> None:
        self.role, self.leader = Role.LEADER, self.me
        self._leading = Leading(self.me, self.term, self.log, self._timing, now_us)
        self._append_noop()
        self._next_beat_us = now_us + self._timing.heartbeat_us
        self._leading.start_round(now_us, self.commit)

    def _append_noop(self) -> None:
        """R4."""
        assert self._leading is not None
        self._append_own(NOOP, b"", self._leading)

    def _follow(self, term: int, leader: Member | None, now_us: int) -> None:
        """Be a follower, perhaps of a new term."""
        if term > self.term:
            self.term, self.voted_for = term, None
            self._following = Following(self.me, self.term, self.log)
        if self._leading is not None:
            self._end_leadership()
            self._draw(now_us)
        self.role, self.leader = Role.FOLLOWER, leader

    # --- leading ----------------------------------------------------------------------------------------------------------------

    def _beat(self, leading: Leading, now_us: int) -> None:
        """R6, R7, R9."""
        if not leading.has_quorum(now_us):
            self._follow(self.term, None, now_us)
            return
        transfer = leading.transfer
        if transfer is not None and now_us >= transfer.until_us:
            leading.transfer = None
            if transfer.offered:
                self._transfer_wanted = True
                self._stand(now_us)
                return
        self._next_beat_us = now_us + self._timing.heartbeat_us
        leading.start_round(now_us, self.commit)

    def _start_reads(self, leading: Leading, now_us: int) -> None:
        """Reads that wait get a round of their own as soon as no other is on the way."""
        if leading.wants_round and self.commit >= leading.noop_index:
            leading.start_round(now_us, self.commit)

    def _advance_commit(self, leading: Leading, now_us: int) -> None:
        """R5."""
        index = leading.majority_match()
        if index > self.commit and self._may_commit(index):
            self.commit = index
        self._start_reads(leading, now_us)

    def _may_commit(self, index: int) -> bool:
        return self.log.term_of(index) == self.term

    def _end_leadership(self) -> None:
        leading, self._leading = self._leading, None
        if leading is not None:
            self._heard_us = leading.proved_us  # R1: it was the leader itself that it heard
            self._confirmed += leading.confirmed
            self._failed_reads += leading.reads

    # --- following --------------------------------------------------------------------------------------------------------------

    def _on_leader(self, message: Append | InstallSnapshot, now_us: int) -> None:
        """The leader of this term, or of a newer one, is heard."""
        if message.term == self.term and (self._leading is not None or self.leader not in (None, message.sender)):
            return  # one term has one leader: this is not of our protocol
        self._follow(message.term, message.sender, now_us)
        self._heard_us = now_us
        self._election_us = now_us + self._patience_us
        was_blank = self.log.is_blank
        if isinstance(message, Append):
            self.commit, answer = self._following.append(message, self.commit)
        else:
            snapshot, self.commit, answer = self._following.install(message, self.commit)
            if snapshot is not None:
                self._installed = snapshot
        if self._installed is None:
            start = self.log.snapshot.meta.index
            self.applied = start if was_blank else max(self.applied, start)  # F4: there is nothing before the beginning
        if answer is not None:
            self._send_durable(answer)

    # --- sending ----------------------------------------------------------------------------------------------------------------

    def _send_durable(self, message: RaftMessage) -> None:
        """At once if what it speaks of is durable, else after the write that makes it so (W1). Of several that wait, of one kind and for
        one member, the last is enough: any message may get lost."""
        if self._is_durable:
            self._out.append(message)
        else:
            self._held[message.to, message.TYPE] = message

    def validate(self) -> None:
        """What must hold between any two calls."""
        self.log.validate()
        assert self.applied <= self.commit <= self.log.last_index, "handed out ≤ committed ≤ known"
        assert self.log.snapshot.meta.index <= self.commit, "a snapshot is of what is committed"
        assert (self._leading is not None) == (self.role is Role.LEADER), "a leadership is a leader's"
        assert self.role is Role.FOLLOWER or self.me in self.membership.voters, "R8"
        assert self._durable.term <= self.term, "terms do not go back"
        if self._leading is not None:
            assert (self._durable.term, self.leader) == (self.term, self.me), "W1: a leader's term is durable"
        assert self._following.agreed <= self.log.last_index, "what agrees is here"
