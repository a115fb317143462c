"""Reading the log back: from a position to the last proven batch, and the judgement what lies behind that.

The last batch that was being written when the machine stopped may be torn: any subset of its sectors can be on the disk. Such a
tail was never acknowledged and is cut off. A batch that was damaged after it had been synced is something else: cutting there would
silently lose what was acknowledged. The two are told apart by looking on.

R1  One batch is outstanding at a time (W1), so a valid batch anywhere proves that every byte before it was once synced. Hence: the
    chain ends at a place where no batch continues it; if a valid batch lies anywhere behind that place, in the same segment or a later
    one, the place is damaged (`Corrupt`); if none does, it is the end (W2). An all-zero header is judged in the same way, because
    a sector can be lost as zeros.
R2  A batch that did not fit at the end of a segment is the first of the next one. It continues the chain, so the rest of the segment
    before it holds nothing that counts, whatever its bytes are.
R3  What lies behind the end is overwritten with zeros, durably, before anything is appended. Otherwise a later, shorter batch would be
    followed by the remains of the torn one, and the rule "zeros follow the end" that R1 and people rely on would be gone.
R4  A segment with an undamaged header of another directory is never written to: the whole directory is refused.
R5  What was read is synced before it counts. After the death of a process, not of the machine, the last batch may be known to the
    system's cache only; without a sync of our own, a later loss of power would take it back although it has been shown to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from ..errors import Corrupt, FormatTooNew, StorageError
from .format import (
    SEGMENT_HEADER_BYTES,
    START,
    FormatError,
    Identity,
    NewerFormat,
    Position,
    Record,
    batch_seed,
    check_segment_header,
    decode_records,
    encode_segment_header,
    find_batch,
    last_used,
    read_batch,
    segment_name,
    segment_number,
)

if TYPE_CHECKING:
    from ..environment import Storage

SEGMENT_BYTES_MAX: Final = 256 << 20  # a longer file is none of ours; it is not read into memory
_KEPT_MAX: Final = 3
SALVAGE: Final = "`python -m govern --salvage` keeps them and sets the damaged segment aside"


async def list_segments(storage: Storage) -> list[int]:
    """The numbers of all segments in the directory, ascending."""
    return [number for name in await storage.list() if (number := segment_number(name)) is not None]


class LogReader:
    """Reads records from `position` on; `position` moves with every batch and is at last the place for the next one.

    `numbers` are the segments at or behind the start; `records` and `batches` count what was read; `notes` are lines for people, and
    `remedy` is what they can do about damage.
    """

    def __init__(self, storage: Storage, identity: Identity, position: Position, numbers: Sequence[int], *, remedy: str = SALVAGE) -> None:
        self.position = position
        self.numbers = [number for number in numbers if number >= position.segment_no]
        self.records = 0
        self.batches = 0
        self.notes: list[str] = []
        self.tail_truncated = False
        self._storage = storage
        self._identity = identity
        self._remedy = remedy
        self._data: bytes | None = None
        self._kept: dict[int, bytes] = {}
        self._seed = 0

    def __repr__(self) -> str:
        return f"<LogReader at {self.position.segment_no}:{self.position.offset}, {self.records} records>"

    async def read(self) -> Sequence[Record]:
        """The records of the next batch; an empty sequence at the end. A checkpoint.

        Raises `Corrupt` when batches are missing or damaged before the end, `StorageError` when a segment is not of this directory,
        `StorageFailed`. After a cancellation it can be called again.
        """
        await trio.lowlevel.checkpoint()
        if self._data is None:
            await self._enter(self.position.segment_no)
        while True:
            assert self._data is not None
            batch = read_batch(self._data, self.position.offset, self._seed)
            if batch is None or (batch.batch_no, batch.crc_before) != (self.position.batch_no, self.position.crc):
                if await self._continue_in_next_segment():
                    continue
                await self._check_behind()
                return ()
            try:
                records = decode_records(batch.payload, batch.record_count)
            except FormatError as error:
                raise self.corrupt(f"holds a batch that cannot be read ({error})") from error
            self.position = Position(self.position.segment_no, batch.end, batch.batch_no + 1, batch.crc)
            self.batches += 1
            self.records += len(records)
            if records:
                return records

    def corrupt(self, what: str) -> Corrupt:
        """The one line for damage at the present position."""
        return Corrupt(
            f"{self._storage.path(segment_name(self.position.segment_no))} {what} at byte {self.position.offset}; {self.records} records "
            f"before it are proven: {self._remedy}"
        )

    async def load(self, number: int) -> bytes:
        """All bytes of a segment, nothing when it does not exist. Raises `FormatTooNew` or `StorageError` when it is not ours (R4)."""
        name = segment_name(number)
        try:
            file = await self._storage.open(name)
        except FileNotFoundError:
            return b""
        try:
            if file.size > SEGMENT_BYTES_MAX:
                raise StorageError(f"{self._storage.path(name)} has {file.size} bytes and is no segment of the log: move it away")
            data = await file.read(0, file.size)
        finally:
            await file.close()
        try:
            check_segment_header(data, self._identity, number)
        except NewerFormat as error:
            raise FormatTooNew(f"{self._storage.path(name)} has {error}: start the newer version of govern that wrote it") from error
        except FormatError as error:
            raise StorageError(f"{self._storage.path(name)} does not belong there, {error}: move it away") from error
        return data

    async def _load_once(self, number: int) -> bytes:
        """`load`, for the segments that recovery looks at more than once: the current one and the spares behind it stay in memory."""
        data = self._kept.get(number)
        if data is None:
            data = await self.load(number)
            self._kept = {kept: bytes_ for kept, bytes_ in self._kept.items() if kept >= self.position.segment_no}
            if len(self._kept) < _KEPT_MAX:
                self._kept[number] = data
        return data

    async def _enter(self, number: int) -> None:
        self._data = await self._load_once(number)
        self._seed = batch_seed(self._identity, number)

    async def _continue_in_next_segment(self) -> bool:
        """Go to the next segment if its first batch continues the chain (R2)."""
        number = self.position.segment_no + 1
        if number not in self.numbers:
            return False
        data, seed = await self._load_once(number), batch_seed(self._identity, number)
        batch = read_batch(data, SEGMENT_HEADER_BYTES, seed)
        if batch is None or (batch.batch_no, batch.crc_before) != (self.position.batch_no, self.position.crc):
            return False
        self._data, self._seed = data, seed
        self.position = self.position._replace(segment_no=number, offset=SEGMENT_HEADER_BYTES)
        return True

    async def _check_behind(self) -> None:
        """Raise `Corrupt` when a valid batch lies anywhere behind the end of the chain (R1), or when the end is where no file is."""
        assert self._data is not None
        if len(self._data) < self.position.offset and self.position != START:
            raise self.corrupt("is missing or ends")
        if find_batch(self._data, self.position.offset, self._seed) is not None:
            raise self.corrupt("is damaged")
        for number in self.numbers:
            if number > self.position.segment_no:
                found = find_batch(await self._load_once(number), SEGMENT_HEADER_BYTES, batch_seed(self._identity, number))
                if found is not None:
                    raise self.corrupt("is damaged or followed by a gap")

    async def clean(self) -> None:
        """Make what was read durable (R5) and everything behind it zeros (R3), and remove later segments that were never finished.

        Only after `read` came to the end. Raises `StorageFailed`, `NoSpace`; interrupted at any point, the next start does the same.
        """
        self._data = None
        first = last = self.position.segment_no
        for number in [number for number in self.numbers if number >= first]:
            data = await self._load_once(number)
            header_is_good = check_segment_header(data, self._identity, number)
            if number == first:  # before the first batch of all there is nothing to keep: a segment without a header is made anew
                keep, offset = header_is_good or self.position != START, self.position.offset
            else:
                keep, offset = header_is_good and number == last + 1, SEGMENT_HEADER_BYTES
            if keep:
                last = number
                await self._settle(number, data, offset, header_is_good)
            else:
                await self._storage.remove(segment_name(number))
                self.numbers.remove(number)
        self._kept = {}
        await self._storage.sync_directory()

    async def _settle(self, number: int, data: bytes, offset: int, header_is_good: bool) -> None:
        """Zeros from `offset` on, a good header before, and all of it durable (R3, R5)."""
        end = last_used(data, offset)
        file = await self._storage.open(segment_name(number))
        try:
            if not header_is_good:
                self.notes.append(f"the header of {segment_name(number)} was damaged and has been written again")
                await file.write(0, encode_segment_header(self._identity, number))
            if end > offset:
                self.tail_truncated = True
                self.notes.append(f"an unfinished batch of {end - offset} bytes was cut off the end of {segment_name(number)}")
                await file.write(offset, bytes(end - offset))
            await file.sync()
        finally:
            await file.close()
