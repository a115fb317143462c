"""Salvage: the way out when a directory is damaged and there is no other copy (rule W3). Only an operator orders it.

It keeps every record that can be proven, sets aside what lies behind the damage, and says what that costs. Nothing is deleted: files that
are given up are renamed to, or copied to, names that end in `.damaged`.

V1  The order of the steps makes every interruption harmless: first the damaged segment is copied, then later segments are renamed from the
    last one down, and only then the damaged part is overwritten with zeros. Stopped anywhere, a second salvage goes on.
V2  When the log has no beginning any more (every snapshot is lost, or the segment at which one begins), a new snapshot gives it one.
V3  Afterwards the directory opens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from ..errors import Corrupt, StorageError
from .directory import read_identity
from .format import (
    SEGMENT_HEADER_BYTES,
    START,
    FormatError,
    Identity,
    Position,
    batch_seed,
    decode_records,
    find_batch,
    last_used,
    read_batch,
    segment_name,
)
from .log import SEGMENT_BYTES, make_segment
from .recovery import LogReader, list_segments
from .snapshots import SnapshotReader, Snapshots

if TYPE_CHECKING:
    from ..environment import Storage


@attrs.frozen(kw_only=True)
class SalvageReport:
    """What was kept and what was not. `slots_dropped` are the slots of which dropped records could still be read."""

    name: str
    damage: str
    """What was wrong, empty when nothing was."""
    blocks_kept: int
    records_kept: int
    records_dropped: int
    batches_dropped: int
    slots_dropped: tuple[int, ...]
    set_aside: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a person."""
        if not self.damage:
            return [f"{self.name} is not damaged: nothing was changed", *self.notes]
        slots = ", ".join(map(str, self.slots_dropped[:20])) + (", …" if len(self.slots_dropped) > 20 else "")
        return [
            f"damage: {self.damage}",
            f"kept: {self.blocks_kept} blocks of the snapshot and {self.records_kept} records of the log behind it",
            f"dropped: {self.records_dropped} readable records in {self.batches_dropped} batches, of slots {slots or '(none)'}",
            f"set aside: {', '.join(self.set_aside) or '(nothing)'}",
            *self.notes,
        ]


async def salvage(storage: Storage, *, segment_bytes: int = SEGMENT_BYTES) -> SalvageReport:
    """Make a damaged directory usable again and say what it cost; a sound one is left as it is.

    Raises `DirectoryInUse`, `FormatTooNew`, `NoSpace`, `StorageFailed`; `StorageError` when there is nothing of ours; `Corrupt` when the
    identity file itself is lost. Interrupted, it can be run again (V1).
    """
    await storage.lock()
    try:
        identity = await read_identity(storage)
        if identity is None:
            raise StorageError(f"{storage.name} is empty: there is nothing to salvage")
        return await _Salvage(storage, identity, segment_bytes).run()
    finally:
        await storage.unlock()


@attrs.define(eq=False)
class _Salvage:
    _storage: Storage
    _identity: Identity
    _segment_bytes: int
    _set_aside: list[str] = attrs.field(factory=list, init=False)
    _slots_dropped: dict[int, None] = attrs.field(factory=dict, init=False)
    _records_dropped: int = attrs.field(default=0, init=False)
    _batches_dropped: int = attrs.field(default=0, init=False)

    async def run(self) -> SalvageReport:
        snapshots = Snapshots(self._storage, self._identity)
        snapshot = await snapshots.open_newest()
        damage, blocks = "", 0
        position = START
        if snapshot is not None:
            position, blocks = snapshot.kept.position, snapshot.blocks
            await snapshot.close()
        numbers = await list_segments(self._storage)
        if snapshot is None and snapshots.lost and 1 not in numbers:
            damage = "every snapshot is lost and the log does not reach back to its beginning"
            position = await self._first_position(numbers)
            await self._begin_anew(snapshots, None, position)
        reader = LogReader(self._storage, self._identity, position, numbers)
        try:
            while await reader.read():
                pass
        except Corrupt as error:
            damage = damage or str(error)
            await self._cut(reader, numbers, snapshots, snapshot)
        return SalvageReport(
            name=self._storage.name,
            damage=damage,
            blocks_kept=blocks,
            records_kept=reader.records,
            records_dropped=self._records_dropped,
            batches_dropped=self._batches_dropped,
            slots_dropped=tuple(sorted(self._slots_dropped)),
            set_aside=tuple(self._set_aside),
            notes=tuple(snapshots.notes),
        )

    async def _cut(self, reader: LogReader, numbers: list[int], snapshots: Snapshots, snapshot: SnapshotReader | None) -> None:
        """Take away everything behind the place where the reader stopped (V1)."""
        current, offset = reader.position.segment_no, reader.position.offset
        data = await reader.load(current)
        self._count_dropped(data, offset, current)
        if last_used(data, offset) > offset:
            await self._copy_aside(current, data)
        for number in sorted((number for number in numbers if number > current), reverse=True):
            self._count_dropped(await reader.load(number), SEGMENT_HEADER_BYTES, number)
            await self._rename_aside(number)
        if len(data) >= offset:
            reader.numbers = [number for number in reader.numbers if number <= current]
            await reader.clean()
            return
        if data:
            await self._rename_aside(current)
        await self._begin_anew(snapshots, snapshot, Position(max(numbers, default=current) + 1, SEGMENT_HEADER_BYTES, 1, 0))

    async def _first_position(self, numbers: list[int]) -> Position:
        """Where the oldest batch lies that can still be read."""
        reader = LogReader(self._storage, self._identity, START, numbers)
        for number in numbers:
            data, seed = await reader.load(number), batch_seed(self._identity, number)
            offset = find_batch(data, SEGMENT_HEADER_BYTES, seed)
            if offset is not None:
                batch = read_batch(data, offset, seed)
                assert batch is not None
                return Position(number, offset, batch.batch_no, batch.crc_before)
        return Position(max(numbers, default=0) + 1, SEGMENT_HEADER_BYTES, 1, 0)

    async def _begin_anew(self, snapshots: Snapshots, source: SnapshotReader | None, position: Position) -> None:
        """Write a snapshot from which the log goes on at `position`, with the blocks of `source` if there is one (V2)."""
        if position.segment_no not in await list_segments(self._storage):
            file = await make_segment(self._storage, self._identity, position.segment_no, self._segment_bytes)
            await file.close()
        writer = await snapshots.begin(position)
        try:
            if source is not None:
                source = await SnapshotReader.open(self._storage, self._identity, source.kept.number)
                try:
                    while blocks := await source.read():
                        for block in blocks:
                            await writer.add(block)
                finally:
                    await source.close()
            await writer.finish()
        finally:
            await writer.close()

    def _count_dropped(self, data: bytes, offset: int, number: int) -> None:
        seed = batch_seed(self._identity, number)
        found = find_batch(data, offset, seed)
        while found is not None:
            batch = read_batch(data, found, seed)
            assert batch is not None
            self._batches_dropped += 1
            try:
                for record in decode_records(batch.payload, batch.record_count):
                    self._records_dropped += 1
                    self._slots_dropped[record.slot] = None
            except FormatError:
                pass  # it is counted as a batch; what it held nobody can say
            found = find_batch(data, batch.end, seed)

    async def _free_name(self, number: int) -> str:
        names = await self._storage.list()
        name, tries = f"{segment_name(number)}.damaged", 1
        while name in names:
            tries += 1
            name = f"{segment_name(number)}.damaged-{tries}"
        self._set_aside.append(name)
        return name

    async def _copy_aside(self, number: int, data: bytes) -> None:
        file = await self._storage.create(await self._free_name(number), 0)
        try:
            await file.write_durable(0, data)
        finally:
            await file.close()
        await self._storage.sync_directory()

    async def _rename_aside(self, number: int) -> None:
        await self._storage.rename(segment_name(number), await self._free_name(number))
        await self._storage.sync_directory()
