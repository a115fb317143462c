"""The durable part of a candidate: its vote, the metadata log, and the snapshot that the log begins with.

The log and the snapshots are those of the slots (`log.py`, `snapshots.py`) once more, in the same directory under names with a prefix. What
differs is what happens when one of them is damaged: a candidate that has forgotten a vote, or an entry that it confirmed, could elect two
controllers. So nothing is ever salvaged here: the candidate does not start, and another one takes its place.

A snapshot counts from its rename on, all at once. Its header names a position in the log, and what a start needs is repeated there first:

    1  append the vote and the entries behind the snapshot    repeats what the log says already: harmless if it stays alone
    2  write the snapshot, rename it                          from now on a start begins here and finds 1
    3  append INSTALLED before anything else relies on it     a start from the snapshot before, because this one was damaged, then knows
                                                              whether the log leads to the same state
    4  delete what two good snapshots have made needless

L1  What `write` returned for is on the disk. Ordinarily that is one batch, which costs one sync.
L2  Whatever is lost in a crash, a start finds what a candidate could have had: the vote and term first, entries without gaps, and a commit
    that never covers an entry which was to be replaced. Therefore the commit goes behind the entries of its batch when it covers them.
L3  Before the first snapshot, which `begin` writes, there is no log: what an interrupted `begin` left does not count.
L4  Damage is refused (`Corrupt`), never cut; only a torn tail, which was never confirmed to anybody, is cut off. Known limit: damage of the
    very last batch looks like a torn tail. A damaged snapshot costs nothing while the one before it and the log lead to the same state.
L5  The entries behind the snapshot stay in memory, for step 1; they are the objects of the Raft core, not copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from ..errors import Corrupt, NoSpace, StorageFailed
from .format import START, FormatError, Identity, Position, Record, segment_name
from .log import Log
from .prefix import RAFT_PREFIX, PrefixedStorage
from .raft_records import (
    RaftSaved,
    RaftSnapshot,
    Replay,
    VoteState,
    entry_record,
    installed_record,
    read_snapshot,
    repeated_record,
    snapshot_blocks,
    state_record,
)
from .snapshots import Block, SnapshotReader, Snapshots

if TYPE_CHECKING:
    from ..environment import Storage
    from ..peer_messages import Entry

RAFT_SEGMENT_BYTES: Final = 1 << 20
"""Metadata changes seldom: a spare of this size bears thousands of votes on a full disk (rule W5)."""
ENTRY_BYTES_MAX: Final = 512 * 1024
"""An entry lies in one batch, and a batch in one segment."""
REMEDY: Final = (
    "this candidate has forgotten what it confirmed and does not start; empty its data directory and replace it with `members remove` and "
    "`members add`, or, if no other candidate is left, use `recover --force-new-cluster`"
)


class RaftLog:
    """The log of one candidate. `open` and `load` once; `begin` if that gave nothing; then `write` and `save_snapshot`, with `run` in the
    background."""

    def __init__(self, storage: PrefixedStorage, identity: Identity, segment_bytes: int) -> None:
        self.notes: tuple[str, ...] = ()
        """What `load` found that a person should read; normally nothing."""
        self._storage = storage
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._snapshots = Snapshots(storage, identity)
        self._log: Log | None = None
        self._mirror: Replay | None = None
        self._appending = trio.Lock()
        self._storing = trio.Lock()
        self._interrupted = False
        self._failure: StorageFailed | None = None
        self._bytes_at_snapshot = 0

    @classmethod
    def open(cls, storage: Storage, identity: Identity, *, segment_bytes: int = RAFT_SEGMENT_BYTES) -> RaftLog:
        """The log in a locked directory; nothing is touched yet."""
        return cls(PrefixedStorage(storage, RAFT_PREFIX), identity, segment_bytes)

    def __repr__(self) -> str:
        state = "failed" if self._failure else "not begun" if self._mirror is None else repr(self._mirror)
        return f"<RaftLog {state}, {self._log!r}>"

    # --- loading ------------------------------------------------------------------------------------------------------------

    async def load(self) -> RaftSaved | None:
        """Everything that is durable; None when this directory has never been a candidate with a log (L3).

        Raises `Corrupt` when anything is damaged (L4), `FormatTooNew`, `NoSpace`, `StorageFailed`. Cancelled or failed, the log can only be
        closed.
        """
        assert self._log is None, "a log is loaded once"
        reader = await self._snapshots.open_newest()
        if reader is None and self._snapshots.lost:
            raise Corrupt(f"no snapshot of the metadata log in {self._storage.name} can be read: {REMEDY}")
        snapshot = None if reader is None else await self._read_snapshot(reader)
        position = START if reader is None else reader.kept.position
        log = self._log = await Log.open(self._storage, self._identity, position, segment_bytes=self._segment_bytes, remedy=REMEDY)
        mirror = None if snapshot is None else Replay(snapshot.index, snapshot.term)
        read_bytes = 0
        while records := await log.recover():
            read_bytes += sum(len(record.payload) for record in records)
            if mirror is not None:
                self._replay(mirror, records)
        self._bytes_at_snapshot = -read_bytes
        self.notes = (*self._snapshots.notes, *log.reader.notes)
        if mirror is None or snapshot is None:
            return None
        if mirror.hard is None:
            raise self._corrupt("the vote is missing")
        snapshot = snapshot._replace(index=mirror.index)  # P3: it may be blank
        mirror.hard = mirror.hard._replace(commit=min(max(mirror.hard.commit, snapshot.index), mirror.last_index))
        if not mirror.confirmed:
            await self._append([installed_record(snapshot)])  # step 3, which the life that wrote the snapshot did not come to
        self._mirror = mirror
        return RaftSaved(mirror.hard, snapshot, tuple(mirror.entries))

    async def _read_snapshot(self, reader: SnapshotReader) -> RaftSnapshot:
        blocks: list[Block] = []
        try:
            while more := await reader.read():
                blocks += more
            return read_snapshot(blocks)
        except FormatError as error:
            raise Corrupt(f"a snapshot of the metadata log in {self._storage.name} cannot be read ({error}): {REMEDY}") from error
        finally:
            await reader.close()

    def _replay(self, mirror: Replay, records: Sequence[Record]) -> None:
        try:
            for record in records:
                mirror.apply(record)
        except FormatError as error:
            raise self._corrupt(str(error)) from error

    def _corrupt(self, what: str) -> Corrupt:
        assert self._log is not None
        path = self._storage.path(segment_name(self._log.reader.position.segment_no))
        return Corrupt(f"the metadata log is damaged before byte {self._log.reader.position.offset} of {path}, {what}: {REMEDY}")

    # --- writing ------------------------------------------------------------------------------------------------------------

    async def begin(self, snapshot: RaftSnapshot, hard: VoteState, entries: Sequence[Entry] = ()) -> None:
        """Write the first log, all of it or nothing: the state it begins with, and the entries behind that. A commit before that state
        counts as its index. A candidate that waits to be added begins with nothing at index 0; its first entry may then have any index.
        Any other beginning without a term comes with entries, asserted.

        Raises `NoSpace`: nothing has begun and it can be tried again. Raises `StorageFailed`: the node must end.
        """
        assert self._log is not None, "load first"
        assert self._mirror is None, "a log begins once"
        mirror = Replay(snapshot.index, snapshot.term)
        for entry in entries:
            mirror.put(entry)
        assert hard.commit <= mirror.last_index
        assert entries or snapshot.term or not snapshot.index, "a log of term 0 begins before its first entry"
        mirror.hard = hard = hard._replace(commit=max(hard.commit, mirror.index))
        async with self._storing, self._appending:
            position = self._log.position
            await self._append([state_record(hard), *map(entry_record, entries)])
            await self._write_snapshot(snapshot, position)
            self._mirror = mirror

    async def write(self, hard: VoteState | None, entries: Sequence[Entry] = (), snapshot: RaftSnapshot | None = None) -> None:
        """Make a step of the Raft core durable: first the snapshot, then the entries in the place of that index and everything behind it,
        and the vote. Returns when all of it is on the disk (L1). One call at a time.

        A commit beyond the last entry is written as that entry's index. Entries that the snapshot covers are left out. A snapshot of
        term 0, the beginning of a log in which nothing is yet, is not written: the first entry says where it lies, and until then it may
        be forgotten. Whoever named it may have been wrong, and a start could not take it back.

        Raises `NoSpace`: the same call can be repeated, and unless there was a snapshot certainly nothing was written. Raises
        `StorageFailed` when the disk failed, and so does every later call. Cancelled, the log can only be closed.
        """
        if snapshot is None or not snapshot.term:
            async with self._appending:
                await self._write(hard, entries)
            return
        async with self._storing, self._appending:
            if snapshot.index > self._begun().index:
                await self._install(snapshot, hard)
            await self._write(hard, entries, [installed_record(snapshot)])

    async def _write(self, hard: VoteState | None, entries: Sequence[Entry], records: Sequence[Record] = ()) -> None:
        mirror = self._begun()
        entries = [entry for entry in entries if entry.index > mirror.index]
        first = entries[0].index if entries else mirror.last_index + 1
        last = entries[-1].index if entries else mirror.last_index
        assert mirror.hard is not None
        assert mirror.hard.commit < first, f"entry {first} would replace what is committed in {mirror}"  # P1
        assert first <= mirror.last_index + 1 or mirror.is_blank, f"entry {first} does not follow in {mirror}"  # P2, P3
        assert [entry.index for entry in entries] == list(range(first, last + 1)), "entries must follow each other"
        assert all(len(entry.data) <= ENTRY_BYTES_MAX for entry in entries)
        records = [*records, *map(entry_record, entries)]
        if hard is not None:
            hard = hard._replace(commit=max(first - 1 if mirror.is_blank else mirror.index, min(hard.commit, last)))
            early = hard._replace(commit=min(hard.commit, first - 1))  # L2
            records = [state_record(early), *records, *([state_record(hard)] if early != hard else [])]
        if records:
            await self._append(records)
        for entry in entries:
            mirror.put(entry)
        mirror.hard = hard or mirror.hard

    async def _append(self, records: Sequence[Record]) -> None:
        assert self._log is not None
        if self._failure is not None:
            raise StorageFailed(str(self._failure)) from self._failure
        assert not self._interrupted, "after a cancelled write nobody knows what is in the log"
        self._interrupted = True
        try:
            await self._log.append(records)
        except NoSpace:
            self._interrupted = False
            raise
        except StorageFailed as error:
            self._interrupted, self._failure = False, error
            raise
        self._interrupted = False

    # --- snapshots ----------------------------------------------------------------------------------------------------------

    async def save_snapshot(self, snapshot: RaftSnapshot) -> None:
        """Put the state as of an entry in the place of the log up to there, and delete what that makes needless. Writes go on meanwhile.

        The entry is committed and durable (`last_index` tells), asserted. A snapshot that is not newer than the present one is left out.

        Raises `NoSpace`: everything is as before. Raises `StorageFailed`: the node must end. Cancelled, the unfinished file is removed by
        the next start or replaced by the next snapshot.
        """
        async with self._storing:
            async with self._appending:
                mirror = self._begun()
                if snapshot.index <= mirror.index:
                    return
                assert mirror.agrees(snapshot.index, snapshot.term), f"{snapshot.index} is not durable, {mirror}"
                position = await self._repeat(snapshot)
            await self._write_snapshot(snapshot, position)
            self._stand_behind(snapshot)

    async def _install(self, snapshot: RaftSnapshot, hard: VoteState | None) -> None:
        """Put a snapshot from the leader in the place of what it covers: steps 1 and 2."""
        mirror = self._begun()
        assert mirror.hard is not None
        if hard is not None:
            # The new term and vote go first: a snapshot of a term that this candidate has not reached is nothing it could have had (L2).
            early = hard._replace(commit=mirror.hard.commit)
            await self._append([state_record(early)])
            mirror.hard = early
        position = await self._repeat(snapshot)
        self._interrupted = True  # cancelled from here on, the disk may be ahead of the mirror
        try:
            await self._write_snapshot(snapshot, position)
        except NoSpace:
            self._interrupted = False
            raise
        self._interrupted = False
        self._stand_behind(snapshot)

    async def _repeat(self, snapshot: RaftSnapshot) -> Position:
        """Step 1: append what a start from that snapshot needs, and return where it begins."""
        mirror = self._begun()
        assert self._log is not None
        assert mirror.hard is not None
        position = self._log.position
        agrees = mirror.agrees(snapshot.index, snapshot.term)
        tail = mirror.entries[snapshot.index - mirror.index :] if agrees else ()
        await self._append([state_record(mirror.hard), *map(repeated_record, tail)])
        return position

    async def _write_snapshot(self, snapshot: RaftSnapshot, position: Position) -> None:
        """Steps 2 and 4."""
        assert self._log is not None
        try:
            writer = await self._snapshots.begin(position)
            try:
                for block in snapshot_blocks(snapshot):
                    await writer.add(block)
                await writer.finish()
            except StorageFailed:
                await writer.close()  # and nothing else: after a failed write the disk is left alone (W4)
                raise
            except BaseException:
                await writer.abandon()
                raise
            log_bytes = self._log.statistics().bytes
            await self._log.remove_before(await self._snapshots.finished(writer.kept))
        except StorageFailed as error:
            self._failure = error
            raise
        self._bytes_at_snapshot = log_bytes

    def _stand_behind(self, snapshot: RaftSnapshot) -> None:
        mirror = self._begun()
        assert mirror.hard is not None
        mirror.move_to(snapshot)
        mirror.hard = mirror.hard._replace(commit=max(mirror.hard.commit, snapshot.index))

    # --- the background, and the end ------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a spare segment ahead, for ever. Raises `StorageFailed` when the disk fails; then the node must end (W4)."""
        assert self._log is not None, "load first"
        await self._log.run(task_status)

    async def close(self) -> None:
        """Close all files."""
        if self._log is not None:
            await self._log.close()

    # --- what is known ------------------------------------------------------------------------------------------------------

    def _begun(self) -> Replay:
        assert self._mirror is not None, "there is no log: load, and begin one if that gives none"
        return self._mirror

    @property
    def last_index(self) -> int:
        """The last entry, or the snapshot, that is durable."""
        return self._begun().last_index

    @property
    def full(self) -> bool:
        """True while the disk has no room for a spare segment: what is not needed should not be written (W5)."""
        return self._log is not None and self._log.full

    @property
    def bytes_since_snapshot(self) -> int:
        """How much log a restart would have to read; grows with every write, shrinks with every snapshot."""
        assert self._log is not None, "load first"
        return self._log.statistics().bytes - self._bytes_at_snapshot

    @property
    def fsync_ms(self) -> float:
        """How long the last batch took to become durable, on trio's clock."""
        return 0.0 if self._log is None else self._log.fsync_ms

    @property
    def unsynced_seconds(self) -> float:
        """For how long the write that is under way has been waiting, 0 when there is none."""
        return 0.0 if self._log is None else self._log.unsynced_seconds


class MemoryRaftLog:
    """The log of a candidate that keeps everything in memory: the same methods, and nothing is kept. A restart is another member."""

    notes: tuple[str, ...] = ()
    full = False
    bytes_since_snapshot = 0
    fsync_ms = 0.0
    unsynced_seconds = 0.0

    def __init__(self) -> None:
        self.last_index = 0

    def __repr__(self) -> str:
        return "<MemoryRaftLog>"

    async def load(self) -> RaftSaved | None:
        """None: there is never anything from before."""
        await trio.lowlevel.checkpoint()
        return None

    async def begin(self, snapshot: RaftSnapshot, hard: VoteState, entries: Sequence[Entry] = ()) -> None:
        """Nothing but a checkpoint."""
        await trio.lowlevel.checkpoint()
        self.last_index = snapshot.index + len(entries)

    async def write(self, hard: VoteState | None, entries: Sequence[Entry] = (), snapshot: RaftSnapshot | None = None) -> None:
        """Nothing but a checkpoint."""
        await trio.lowlevel.checkpoint()
        if snapshot is not None:
            self.last_index = max(self.last_index, snapshot.index)
        if entries:
            self.last_index = entries[-1].index

    async def save_snapshot(self, snapshot: RaftSnapshot) -> None:
        """Nothing but a checkpoint."""
        await trio.lowlevel.checkpoint()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait for ever."""
        task_status.started()
        await trio.sleep_forever()

    async def close(self) -> None:
        """Nothing."""
        await trio.lowlevel.checkpoint()
