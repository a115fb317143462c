"""The write-ahead log: what `append` returned for is on the disk.

The log is a row of segments, files of zeros that were allocated and synced before anything is written into them, so that an append
moves no metadata of the file system and meets no full disk. One spare segment is kept ahead by a background task.

L1  One batch is outstanding; the next one is written only after the disk said that the one before is durable (W1).
L2  After a failed write or sync nobody knows what is on the disk: the log is poisoned and appends nothing any more (W4).
L3  A full disk is met only when a spare segment is made. `NoSpace` from `append` means that nothing was written, and the log goes on
    when there is space again. `full` says it earlier, while the current segment still has room for what must not be refused (W5).
L4  A segment has its header, and its name is durable, before the first batch is written into it (W6).
L5  `position`, where a snapshot says that a replay begins, moves only when a whole append is durable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs
import trio

from ..errors import NoSpace, StorageError, StorageFailed
from .format import (
    BATCH_BYTES_MAX,
    BATCH_OVERHEAD,
    SECTOR,
    SEGMENT_HEADER_BYTES,
    START,
    Identity,
    Position,
    Record,
    batch_seed,
    batch_size,
    encode_batch,
    encode_records,
    encode_segment_header,
    segment_name,
)
from .recovery import SALVAGE, LogReader, list_segments

if TYPE_CHECKING:
    from ..environment import File, Storage

SEGMENT_BYTES: Final = 16 << 20
SEGMENT_BYTES_MIN: Final = SEGMENT_HEADER_BYTES + 4 * SECTOR
RETRY_SECONDS: Final = 1.0


@attrs.frozen(kw_only=True)
class LogStatistics:
    """Counted since the log was opened; durations are of the last append."""

    bytes: int
    batches: int
    records: int
    fsync_ms: float
    unsynced_seconds: float
    segment_no: int
    segments: int
    full: bool


@attrs.define(eq=False)
class Log:
    """The log of one data directory. First `recover` until it returns nothing, then `append`; `run` in the background."""

    _storage: Storage
    _identity: Identity
    _segment_bytes: int
    _reader: LogReader
    _segments: list[int]
    """All segments in the directory, ascending, spares included."""

    full: bool = attrs.field(default=False, init=False)
    """True while no spare segment can be made for want of space."""

    position: Position = attrs.field(default=START, init=False)
    """Behind the last append that is durable as a whole (L5)."""

    fsync_ms: float = attrs.field(default=0.0, init=False)
    """How long the last batch took to become durable, on trio's clock."""

    synced_at: float = attrs.field(default=-math.inf, init=False)
    """When that was."""

    _next: Position = attrs.field(default=START, init=False)
    _seed: int = attrs.field(default=0, init=False)
    _file: File | None = attrs.field(default=None, init=False)
    _spares: deque[tuple[int, File]] = attrs.field(factory=deque, init=False)
    _used_up: list[File] = attrs.field(factory=list, init=False)
    _making: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _spare_taken: trio.Event = attrs.field(factory=trio.Event, init=False)
    _failure: StorageError | None = attrs.field(default=None, init=False)
    _append_started: float = attrs.field(default=math.nan, init=False)
    _bytes: int = attrs.field(default=0, init=False)
    _batches: int = attrs.field(default=0, init=False)
    _records: int = attrs.field(default=0, init=False)

    @classmethod
    async def open(
        cls,
        storage: Storage,
        identity: Identity,
        position: Position = START,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        remedy: str = SALVAGE,
    ) -> Log:
        """The log of a locked directory, to be read from `position` on. New segments get `segment_bytes`, a multiple of 512. `remedy` is
        what a person can do about damage."""
        assert segment_bytes >= SEGMENT_BYTES_MIN
        assert segment_bytes % SECTOR == 0
        numbers = await list_segments(storage)
        return cls(storage, identity, segment_bytes, LogReader(storage, identity, position, numbers, remedy=remedy), numbers)

    def __repr__(self) -> str:
        state = "failed" if self._failure else "full" if self.full else "recovering" if self._file is None else "open"
        return f"<Log {state} at {self._next.segment_no}:{self._next.offset}, {len(self._spares)} spare>"

    # --- recovery -----------------------------------------------------------------------------------------------------------

    @property
    def reader(self) -> LogReader:
        """What recovery found: counts and notes."""
        return self._reader

    async def recover(self) -> Sequence[Record]:
        """The records of the next batch, in order; an empty sequence when there are no more. Then the log is ready for `append`.

        Raises `Corrupt` when the log is damaged before its end, `StorageError` when a file is not of this directory, `NoSpace` when
        the first segment cannot be made, `StorageFailed`. A cancelled recovery is begun again by the next start.
        """
        assert self._file is None, "the log is recovered once"
        records = await self._reader.read()
        if not records:
            await self._reader.clean()
            await self._start()
        return records

    async def _start(self) -> None:
        """Open the segment in which the log goes on, and the spares behind it."""
        self._next = self.position = self._reader.position
        current = self._next.segment_no
        self._segments = await list_segments(self._storage)
        self._seed = batch_seed(self._identity, current)
        for number in [number for number in self._segments if number > current]:
            file = await self._storage.open(segment_name(number))
            if file.size == self._segment_bytes and number == current + 1 + len(self._spares):
                self._spares.append((number, file))
            else:  # made under another setting: a spare must hold the largest batch
                await file.close()
                await self._storage.remove(segment_name(number))
                self._segments.remove(number)
        await self._storage.sync_directory()
        if current in self._segments:
            self._file = await self._storage.open(segment_name(current))
        else:
            self._file = await make_segment(self._storage, self._identity, current, self._segment_bytes)
            self._segments.insert(0, current)

    # --- appending ----------------------------------------------------------------------------------------------------------

    async def append(self, records: Sequence[Record]) -> None:
        """Write the records in order and return when all of them are durable. One call at a time, asserted; at least one record.

        The caller applies the records to its state before its next checkpoint: a snapshot relies on it that everything before
        `position` has been applied.

        Raises `NoSpace` when there is no room: certainly nothing was written and the log goes on. Raises `StorageFailed` when the disk
        failed: the records may or may not be there, and so does every later call (L2). Cancelled before it reached the disk, nothing
        was written; a cancelled append that needs several batches may have written some of them. The log stays in order.
        """
        assert self._file is not None, "recover first"
        assert records
        assert math.isnan(self._append_started), "one batch is outstanding at a time (L1)"
        if self._failure is not None:
            raise StorageFailed(str(self._failure)) from self._failure
        self._append_started = trio.current_time()
        try:
            payload_bytes_max = min(BATCH_BYTES_MAX, self._segment_bytes - SEGMENT_HEADER_BYTES - BATCH_OVERHEAD)
            batches = encode_records(records, payload_bytes_max)
            await self._make_room([batch_size(len(payload)) for payload, _ in batches])
            for payload, record_count in batches:
                await self._write(payload, record_count)
            self.position = self._next
        finally:
            self._append_started = math.nan

    async def _make_room(self, sizes: Sequence[int]) -> None:
        """See to it that there are spares for all batches before the first is written, so that `NoSpace` is a clear answer (L3)."""
        assert self._file is not None
        room, needed = self._file.size - self._next.offset, 0
        for size in sizes:
            if size > room:
                needed, room = needed + 1, self._segment_bytes - SEGMENT_HEADER_BYTES
            room -= size
        if needed > len(self._spares):
            if self.full:
                raise NoSpace(f"no space is left for a new segment of the log in {self._storage.name}: free some")
            await self._make_spares(needed)

    async def _write(self, payload: bytes, record_count: int) -> None:
        assert self._file is not None
        if batch_size(len(payload)) > self._file.size - self._next.offset:
            self._take_spare()
        position = self._next
        data, crc = encode_batch(payload, record_count, position.batch_no, position.crc, self._seed)
        started = trio.current_time()
        try:
            await self._file.write_durable(position.offset, data)
        except StorageError as error:  # also NoSpace: a segment is allocated, so this disk does not do what it promised
            raise self._poison(error) from error
        self.synced_at = trio.current_time()
        self.fsync_ms = (self.synced_at - started) * 1000
        self._next = Position(position.segment_no, position.offset + len(data), position.batch_no + 1, crc)
        self._bytes += len(data)
        self._batches += 1
        self._records += record_count

    def _take_spare(self) -> None:
        """Go to the next segment. No I/O: its header and its name are durable already (L4)."""
        assert self._file is not None
        self._used_up.append(self._file)
        number, self._file = self._spares.popleft()
        assert number == self._next.segment_no + 1
        self._seed = batch_seed(self._identity, number)
        self._next = self._next._replace(segment_no=number, offset=SEGMENT_HEADER_BYTES)
        self._spare_taken.set()

    def _poison(self, error: StorageError) -> StorageFailed:
        self._failure = error
        return StorageFailed(f"writing the log in {self._storage.name} failed: {error}")

    # --- segments -----------------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a spare segment ahead, for ever; try again every second while the disk is full. Raises `StorageFailed`."""
        task_status.started()
        while True:
            self._spare_taken = trio.Event()
            while self._used_up:
                await self._used_up.pop().close()
            try:
                await self._make_spares(1)
            except NoSpace:
                await trio.sleep(RETRY_SECONDS)
            else:
                await self._spare_taken.wait()

    async def _make_spares(self, wanted: int) -> None:
        """Make spares until there are `wanted`. Sets `full`; raises `NoSpace`, or `StorageFailed` and poisons the log."""
        async with self._making:
            try:
                while len(self._spares) < wanted:
                    number = self._segments[-1] + 1
                    self._spares.append((number, await make_segment(self._storage, self._identity, number, self._segment_bytes)))
                    self._segments.append(number)
            except NoSpace:
                self.full = True
                raise
            except StorageError as error:
                raise self._poison(error) from error
            self.full = False

    async def remove_before(self, segment_no: int) -> None:
        """Delete the segments below `segment_no`, but never the one in use. Raises `StorageFailed`."""
        for number in [number for number in self._segments if number < min(segment_no, self.position.segment_no)]:
            await self._storage.remove(segment_name(number))
            self._segments.remove(number)
        await self._storage.sync_directory()

    async def close(self) -> None:
        """Close all files. What was not acknowledged may be lost."""
        files = [*self._used_up, *(file for _, file in self._spares), *([self._file] if self._file else [])]
        self._used_up, self._file = [], None
        self._spares.clear()
        for file in files:
            await file.close()

    # --- numbers for people -------------------------------------------------------------------------------------------------

    @property
    def segment_no(self) -> int:
        """The segment in use."""
        return self._next.segment_no

    @property
    def unsynced_seconds(self) -> float:
        """For how long the append that is under way has been waiting, 0 when there is none."""
        return 0.0 if math.isnan(self._append_started) else trio.current_time() - self._append_started

    def statistics(self) -> LogStatistics:
        """A copy of the numbers."""
        return LogStatistics(
            bytes=self._bytes,
            batches=self._batches,
            records=self._records,
            fsync_ms=self.fsync_ms,
            unsynced_seconds=self.unsynced_seconds,
            segment_no=self.segment_no,
            segments=len(self._segments),
            full=self.full,
        )


async def make_segment(storage: Storage, identity: Identity, number: int, segment_bytes: int) -> File:
    """A new segment, ready for batches (L4). When it fails or is cancelled no file is open, and the next attempt replaces it."""
    file = await storage.create(segment_name(number), segment_bytes)
    try:
        await file.write_durable(0, encode_segment_header(identity, number))
        await storage.sync_directory()
    except BaseException:
        await file.close()
        raise
    return file
