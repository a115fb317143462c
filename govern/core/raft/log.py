"""The log as it stands in memory, and how much of it is on the disk.

Memory runs ahead of the disk: entries are appended, replaced and compacted at once, and a `Write` for the disk is made of what has changed
when the disk is free. One write is outstanding at a time.

                base           begun      last
    . . . . . . . |  written | being    | not yet
    compacted     |          | written  | taken

L1  Indices are dense, terms never decrease along the log, and every entry behind `base` is here.
L2  `written <= begun <= last`: up to `written` the entries *that stand here* are durable. Whatever is cut off takes all marks down with it,
    also that of the outstanding write: an entry that was replaced while it was being written, even by itself in the end, counts as written
    only after another write (the "A-B-A" race of disks that answer late).
L3  The membership in force is that of the last `VOTERS` entry in the log, committed or not, else that of the snapshot.
L4  `base.index <= snapshot.index <= last`: entries behind the snapshot's back are kept for followers that are not far behind.
L5  A snapshot of term 0 is the beginning of a log: nothing is before it, in any log. Where it lies, the first entry says.

Nothing here costs more than the entries it is about: terms are kept as runs, so that the search for a point where two logs may agree is
a bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from ...peer_messages import Entry
from .types import VOTERS, Membership, Snapshot, SnapshotMeta


class Log:
    """A snapshot, the entries behind it and some before, and the marks of the disk."""

    __slots__ = ("_batch_last", "_begun", "_entries", "_memberships", "_runs", "base_index", "install_pending", "snapshot", "written")

    def __init__(self, snapshot: Snapshot, entries: Sequence[Entry]) -> None:
        if snapshot.meta.term == 0:  # L5
            start = entries[0].index - 1 if entries else 0
            snapshot = Snapshot(SnapshotMeta(start, 0, Membership()), b"")
        self.snapshot = snapshot
        self.base_index = snapshot.meta.index
        self._entries: list[Entry] = []
        self._runs: list[tuple[int, int]] = [(snapshot.meta.index, snapshot.meta.term)]  # (first index, term), the base is the first
        self._memberships: list[tuple[int, Membership]] = []  # of entries behind the snapshot
        if entries and entries[0].index <= snapshot.meta.index <= entries[-1].index:
            first, *entries = entries  # its term makes it the new base
            self.base_index, self._runs = first.index, [(first.index, first.term)]
        if entries and entries[-1].index >= snapshot.meta.index:
            self.append(entries)
        assert self.term_of(snapshot.meta.index) == snapshot.meta.term, "the log does not agree with its snapshot"
        self.written = self._begun = self.last_index
        self._batch_last = 0  # how far the outstanding write will have written
        self.install_pending = False

    @property
    def last_index(self) -> int:
        """The index of the last entry, or of the base."""
        return self.base_index + len(self._entries)

    @property
    def is_blank(self) -> bool:
        """Whether nothing ever was in it (L5)."""
        return self.last_term == 0

    @property
    def last_term(self) -> int:
        """Its term."""
        return self._runs[-1][1]

    @property
    def membership(self) -> Membership:
        """The one in force (L3)."""
        return self._memberships[-1][1] if self._memberships else self.snapshot.meta.membership

    @property
    def membership_index(self) -> int:
        """Since which entry."""
        return self._memberships[-1][0] if self._memberships else self.snapshot.meta.index

    def membership_at(self, index: int) -> Membership:
        """The one as of an entry that is not before the snapshot."""
        return next((each for at, each in reversed(self._memberships) if at <= index), self.snapshot.meta.membership)

    def term_of(self, index: int) -> int | None:
        """The term of an entry, None when it is not here."""
        if not self.base_index <= index <= self.last_index:
            return None
        return self._runs[0][1] if index == self.base_index else self._entries[index - self.base_index - 1].term

    def entry(self, index: int) -> Entry:
        """One that is here."""
        return self._entries[index - self.base_index - 1]

    def last_not_after(self, index: int, term: int) -> tuple[int, int] | None:
        """The last point `(index, term)` here that is after neither: no later one can agree with a log that has this term at this index.
        None when that would lie before the base, where something was."""
        run = bisect_right(self._runs, term, key=lambda each: each[1]) - 1
        if run < 0 or index < self.base_index:
            return (self.base_index, 0) if self._runs[0][1] == 0 else None
        end = self._runs[run + 1][0] - 1 if run + 1 < len(self._runs) else self.last_index
        found = min(index, end)
        found_term = self.term_of(found)
        assert found_term is not None
        return found, found_term

    def slice(self, first: int, last: int, bytes_max: int | None = None) -> tuple[Entry, ...]:
        """Entries from `first` to `last`; with `bytes_max` no more than so many bytes of them, but at least one."""
        start, end = first - self.base_index - 1, last - self.base_index
        assert start >= 0, "compacted"
        if bytes_max is not None:
            end, size = min(end, len(self._entries)), 0
            for at in range(start, end):
                size += len(self._entries[at].data) + 32
                if size > bytes_max and at > start:
                    end = at
                    break
        return tuple(self._entries[start:end])

    def append(self, entries: Iterable[Entry]) -> None:
        """Entries behind the last one."""
        for entry in entries:
            assert entry.index == self.last_index + 1, "L1: dense"
            assert entry.term >= max(self.last_term, 1), "L1: in the order of terms"
            if entry.term > self.last_term:
                self._runs.append((entry.index, entry.term))
            self._entries.append(entry)
            if entry.kind == VOTERS and entry.index > self.snapshot.meta.index:
                self._memberships.append((entry.index, Membership.unpack(entry.data)))

    def cut(self, first: int) -> None:
        """Everything from index `first` on is gone, and the membership that it brought (L2, L3)."""
        assert first > self.snapshot.meta.index, "what is in the snapshot is committed"
        del self._entries[first - self.base_index - 1 :]
        while self._runs[-1][0] >= first:
            self._runs.pop()
        while self._memberships and self._memberships[-1][0] >= first:
            self._memberships.pop()
        self.written = min(self.written, first - 1)
        self._begun = min(self._begun, first - 1)
        self._batch_last = min(self._batch_last, first - 1)

    def compact(self, snapshot: Snapshot, keep: int) -> None:
        """A newer snapshot of the owner; `keep` entries behind its back stay."""
        index = snapshot.meta.index
        self.snapshot = snapshot
        self._memberships = [each for each in self._memberships if each[0] > index]
        base = max(self.base_index, index - keep)
        if base > self.base_index:
            term = self.term_of(base)
            assert term is not None
            del self._entries[: base - self.base_index]
            self._runs = [(base, term)] + [run for run in self._runs if run[0] > base]
            self.base_index = base

    def install(self, snapshot: Snapshot) -> None:
        """A snapshot of the leader takes the place of everything; nothing is durable until it is (L2)."""
        self.snapshot = snapshot
        self.base_index = self._begun = snapshot.meta.index
        self._entries, self._memberships = [], []
        self._runs = [(snapshot.meta.index, snapshot.meta.term)]
        self.written = self._batch_last = 0
        self.install_pending = True

    def begin_write(self) -> tuple[tuple[Entry, ...], Snapshot | None]:
        """What the disk does not have yet; it is being written from now on."""
        entries = self.slice(self._begun + 1, self.last_index)
        snapshot = self.snapshot if self.install_pending else None
        self.install_pending = False
        self._begun = self._batch_last = self.last_index
        return entries, snapshot

    @property
    def unwritten(self) -> bool:
        """Whether the next write would have entries or a snapshot."""
        return self._begun < self.last_index or self.install_pending

    def end_write(self) -> None:
        """The outstanding write is durable; what was replaced meanwhile is not (L2)."""
        self.written = max(self.written, self._batch_last)
        self._batch_last = 0

    def validate(self) -> None:
        """L1 to L4."""
        assert self.base_index <= self.snapshot.meta.index <= self.last_index, "L4"
        assert self.base_index <= self._begun, "L2: the disk has no gap"
        assert max(self.written, self._batch_last) <= self._begun <= self.last_index, "L2"
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(self._runs, self._runs[1:], strict=False)), "L1: runs"
        assert self.term_of(self.snapshot.meta.index) == self.snapshot.meta.term, "L4: the snapshot's term"
        assert all(at > self.snapshot.meta.index for at, _ in self._memberships), "L3"
