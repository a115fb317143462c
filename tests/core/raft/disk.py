"""A disk for candidates in tests: what a `Write` means, in a few lines."""

from __future__ import annotations

from govern.core.raft.types import HardState, Membership, Snapshot, SnapshotMeta, Write
from govern.peer_messages import Entry


class Disk:
    """What survives."""

    def __init__(self, base: int = 0) -> None:
        self.hard = HardState()
        self.snapshot = Snapshot(SnapshotMeta(base, 0, Membership()), b"")
        self.entries: list[Entry] = []

    def write(self, write: Write) -> None:
        """One batch, whole."""
        if write.hard is not None:
            self.hard = write.hard
        if write.snapshot is not None:
            meta = write.snapshot.meta
            keep = self.term_of(meta.index) == meta.term
            self.entries = [entry for entry in self.entries if keep and entry.index > meta.index]
            self.snapshot = write.snapshot
        if write.entries:
            first = write.entries[0].index
            while self.entries and self.entries[-1].index >= first:
                self.entries.pop()
            assert first == (self.entries[-1].index if self.entries else self.snapshot.meta.index) + 1, "a gap in the log"
            self.entries += write.entries

    def save_snapshot(self, snapshot: Snapshot, hard: HardState, kept: tuple[Entry, ...]) -> None:
        """The log begins anew."""
        self.snapshot, self.hard, self.entries = snapshot, hard, list(kept)

    def term_of(self, index: int) -> int | None:
        """The term of an entry that is here."""
        if index == self.snapshot.meta.index:
            return self.snapshot.meta.term
        at = index - self.entries[0].index if self.entries else -1
        return self.entries[at].term if 0 <= at < len(self.entries) else None

    def has(self, index: int, term: int) -> bool:
        """Whether this entry, or a snapshot that has it, is here."""
        return index <= self.snapshot.meta.index or self.term_of(index) == term
