"""What a member knows of one term's leader: how far their logs agree, and the pieces of its snapshot.

F1  `agreed`: up to there the own log is the leader's. It begins anew with each term, and within a term it only grows.
F2  An acceptance names what agrees *and* is durable (W2). An Append with entries is answered when they are durable; one without is
    answered at once, so that a heartbeat never waits for the disk.
F3  What is committed is in the log of every later leader; an Append that begins before is taken from there on.
F4  A log in which nothing ever was, neither entry nor snapshot, begins wherever a leader's first entry does: before that one the term is
    0 (L5). No acceptance names such a beginning, for after a restart it may be forgotten; and as long as nothing is in the log another
    one takes its place, wherever that lies.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...peer_messages import NUMBER_MAX, Append, AppendAnswer, Entry, InstallSnapshot, Member, RaftMessage, SnapshotAnswer
from .incoming import Incoming
from .log import Log
from .types import DATA, NOOP, VOTERS, Membership, Snapshot, SnapshotMeta


class Following:
    """One member in one term."""

    __slots__ = ("_incoming", "_log", "_me", "_term", "agreed", "round")

    def __init__(self, me: Member, term: int, log: Log) -> None:
        self._me, self._term, self._log = me, term, log
        self.agreed = 0
        self.round = 0  # the newest of the leader's rounds
        self._incoming: Incoming | None = None

    def append(self, message: Append, commit: int) -> tuple[int, RaftMessage | None]:
        """Take what the leader says follows in the log; the commit index after it, and the answer."""
        if not _is_sound(message):
            return commit, None
        self.round = max(self.round, message.round)
        prev, end = message.prev_index, message.prev_index + len(message.entries)
        if message.prev_term == 0 and self._log.is_blank:
            if prev != self._log.last_index:
                self._log.install(Snapshot(SnapshotMeta(prev, 0, Membership()), b""))  # F4
            commit, self.agreed = prev, 0
        if prev < commit:  # F3
            entries = [entry for entry in message.entries if entry.index > commit]
            if entries and entries[0].term < (self._log.term_of(commit) or 0):
                return commit, None  # of no leader: what is committed here would not be in its log
            self._merge(entries)
        elif self._log.term_of(prev) == message.prev_term:
            self._merge(message.entries)
        else:
            return commit, self._refuse(message)
        self.agreed = max(self.agreed, end, commit)
        commit = max(commit, min(message.commit, self.agreed))
        waits = message.entries and self._log.written < self.agreed
        return commit, None if waits else self.accept(message.sender)

    def _merge(self, entries: Sequence[Entry]) -> None:
        """Entries behind a point that agrees: the first that differs takes the place of everything from there on."""
        for at, entry in enumerate(entries):
            if self._log.term_of(entry.index) != entry.term:
                if entry.index <= self._log.last_index:
                    self._log.cut(entry.index)
                    self.agreed = min(self.agreed, entry.index - 1)
                self._log.append(entries[at:])
                return

    def _refuse(self, message: Append) -> RaftMessage:
        """The logs part before; the answer names the last point that may agree: a tail of any length costs one question per term."""
        index = min(message.prev_index, self._log.last_index)
        point = self._log.last_not_after(index, message.prev_term)
        index, term = (0, 0) if point is None else point
        return AppendAnswer(message.sender, self._me, self._term, False, index, term, self.round)

    def accept(self, leader: Member) -> RaftMessage:
        """F2."""
        index = min(self.agreed, self._log.written)
        if self._log.term_of(index) == 0:
            index = 0  # F4
        return AppendAnswer(leader, self._me, self._term, True, index, 0, self.round)

    def install(self, message: InstallSnapshot, commit: int) -> tuple[Snapshot | None, int, RaftMessage | None]:
        """A piece of a snapshot: the whole, if it is complete now and needed; the commit index after it; the answer."""
        if not 0 < message.index_term <= message.term or message.index >= NUMBER_MAX:
            return None, commit, None
        self.round = max(self.round, message.round)
        if message.index <= commit or self._log.term_of(message.index) == message.index_term:
            self._incoming = None
            commit = max(commit, message.index)
            self.agreed = max(self.agreed, commit)  # F3
            return None, commit, self.accept(message.sender)
        if self._incoming is None or not self._incoming.is_of(message):
            try:
                self._incoming = Incoming(message, Membership.of(message.voters, message.learners))
            except ValueError:
                return None, commit, None
        snapshot = self._incoming.take(message)
        if snapshot is None:
            received = self._incoming.received
            return None, commit, SnapshotAnswer(message.sender, self._me, self._term, message.index, received, self.round)
        self._incoming = None
        self._log.install(snapshot)
        self.agreed = snapshot.meta.index
        return snapshot, snapshot.meta.index, self.accept(message.sender)


def _is_sound(message: Append) -> bool:
    """Whether the entries are dense, in the order of their terms, and readable: others are of no leader."""
    index, term = message.prev_index, message.prev_term
    for entry in message.entries:
        index += 1
        if entry.index != index or not max(term, 1) <= entry.term <= message.term or entry.kind not in (NOOP, DATA, VOTERS):
            return False
        term = entry.term
        if entry.kind == VOTERS:
            try:
                Membership.unpack(entry.data)
            except ValueError:
                return False
    return index < NUMBER_MAX and term <= message.term
