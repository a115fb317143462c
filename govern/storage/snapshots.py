"""Snapshots: the state of every slot in one file, written while the node serves.

A snapshot is not a picture of one moment. Each block is the state of one slot (or of a part of it) at its own lsn, taken when
the writer came to it, and the log repeats what came later: replay begins at the position which the log had when the snapshot was
begun, and skips what a block already holds. So nothing ever stops for a snapshot.

    file     header (512 bytes: magic, version, seal (cluster_id, disk_id), number, position in the log, crc); blocks; index; trailer
    block    slot u16, term_seen u64, term u64, seq u64, length u32, crc u32; state
    index    per block: offset u64, length u32
    trailer  magic, offset of the index u64, blocks u64, SHA-256 of everything before

S1  A snapshot exists under its name only when it is whole: written beside, synced, renamed, the directory synced.
S2  The two newest are kept, and all of the log from the position of the older one on. One bad snapshot therefore loses nothing. With
    a single snapshot the whole log is kept: "older" is then the beginning of everything.
S3  A snapshot that cannot be read is renamed to `….damaged`, never deleted, and never counts as one of the two.
S4  Lengths are compared with the size of the file before anything is read by them; any bytes are either a snapshot or `FormatError`.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from ..errors import FormatTooNew
from .format import FORMAT_VERSION, SECTOR, FormatError, Identity, NewerFormat, Position

if TYPE_CHECKING:
    from ..environment import File, Storage

SNAPSHOTS_KEPT: Final = 2
UNFINISHED_NAME: Final = "snapshot.new"
HEADER_BYTES: Final = SECTOR
_WRITE_BYTES: Final = 1 << 20
_SYNC_BYTES: Final = 8 << 20  # synced now and then, so that the log never waits behind one huge flush at the end
_READ_BYTES: Final = 1 << 20
_HEADER_MAGIC: Final = b"govern snapshot\n"
_TRAILER_MAGIC: Final = b"govern index\r\n\x1a\n"
_header = struct.Struct("<16sI16s16sQQQQII")
_block = struct.Struct("<HQQQII")
_entry = struct.Struct("<QI")
_trailer = struct.Struct("<16sQQ32s")


class Block(NamedTuple):
    """The state of one slot at lsn (`term`, `seq`), or a part of it; `state` means something only to the caller."""

    slot: int
    term_seen: int
    term: int
    seq: int
    state: bytes


class Kept(NamedTuple):
    """A snapshot in the directory and the position from which the log completes it."""

    number: int
    position: Position


def snapshot_name(number: int) -> str:
    """The file name of a snapshot; names sort as numbers do."""
    return f"snapshot-{number:016d}"


def snapshot_number(name: str) -> int | None:
    """The number of the snapshot of that file name, or None when it is none."""
    digits = name[9:]
    return int(digits) if name.startswith("snapshot-") and len(digits) == 16 and digits.isascii() and digits.isdigit() else None


# --- bytes ------------------------------------------------------------------------------------------------------------------


def encode_header(identity: Identity, kept: Kept) -> bytes:
    """The first 512 bytes of a snapshot."""
    body = _header.pack(_HEADER_MAGIC, FORMAT_VERSION, identity.seal[:16], identity.disk_id, kept.number, *kept.position, 0)[:-4]
    return (body + zlib.crc32(body).to_bytes(4, "little")).ljust(HEADER_BYTES, b"\0")


def decode_header(data: bytes, identity: Identity) -> Kept:
    """Read a header; raises `NewerFormat`, or `FormatError` when it is damaged or of another directory."""
    if len(data) < HEADER_BYTES:
        raise FormatError("too short")
    magic, version, cluster_id, disk_id, number, segment_no, offset, batch_no, crc_before, crc = _header.unpack_from(data)
    if magic != _HEADER_MAGIC or crc != zlib.crc32(data[: _header.size - 4]):
        raise FormatError("its header is damaged")
    if version > FORMAT_VERSION:
        raise NewerFormat(f"format {version}")
    if cluster_id + disk_id != identity.seal:
        raise FormatError(f"it is of the data directory {disk_id.hex()}")
    return Kept(number, Position(segment_no, offset, batch_no, crc_before))


def encode_block(block: Block) -> bytes:
    """The bytes of a block."""
    body = _block.pack(block.slot, block.term_seen, block.term, block.seq, len(block.state), 0)[:-4]
    return b"".join((body, zlib.crc32(block.state, zlib.crc32(body)).to_bytes(4, "little"), block.state))


def decode_block(data: bytes) -> Block:
    """Read a block that fills `data`; raises `FormatError`."""
    if len(data) < _block.size:
        raise FormatError("a block is cut off")
    slot, term_seen, term, seq, length, crc = _block.unpack_from(data)
    state = data[_block.size :]
    if length != len(state) or crc != zlib.crc32(state, zlib.crc32(data[: _block.size - 4])):
        raise FormatError("a block is damaged")
    return Block(slot, term_seen, term, seq, state)


# --- writing ----------------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class SnapshotWriter:
    """Writes one snapshot: `add` every block, then `finish`; or `abandon`. Holds at most about 1 MiB beside the largest block."""

    kept: Kept
    _storage: Storage
    _file: File
    _buffer: bytearray
    _index: bytearray = attrs.field(factory=bytearray, init=False)
    _offset: int = attrs.field(default=0, init=False)
    _synced: int = attrs.field(default=0, init=False)
    _sha256: hashlib._Hash = attrs.field(factory=hashlib.sha256, init=False)

    @classmethod
    async def create(cls, storage: Storage, identity: Identity, kept: Kept) -> SnapshotWriter:
        """Begin snapshot `kept.number` in the file `snapshot.new`. Raises `NoSpace` or `StorageFailed`."""
        file = await storage.create(UNFINISHED_NAME, 0)
        return cls(kept, storage, file, bytearray(encode_header(identity, kept)))

    async def add(self, block: Block) -> None:
        """Write a block after the others. Raises `NoSpace` or `StorageFailed`; then only `abandon` is left."""
        data = encode_block(block)
        self._index += _entry.pack(self._offset + len(self._buffer), len(data))
        self._buffer += data
        if len(self._buffer) >= _WRITE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        data = bytes(self._buffer)
        self._sha256.update(data)
        await self._file.write(self._offset, data)
        self._offset += len(data)
        self._buffer.clear()
        if self._offset - self._synced >= _SYNC_BYTES:
            await self._file.sync()
            self._synced = self._offset

    async def finish(self) -> None:
        """Make the snapshot whole and durable under its name (S1). Raises `NoSpace` or `StorageFailed`."""
        index_offset = self._offset + len(self._buffer)
        self._buffer += self._index
        self._buffer += _trailer.pack(_TRAILER_MAGIC, index_offset, len(self._index) // _entry.size, b"")[:-32]
        await self._flush()
        await self._file.write(self._offset, self._sha256.digest())
        await self._file.sync()
        await self._file.close()
        await self._storage.rename(UNFINISHED_NAME, snapshot_name(self.kept.number))
        await self._storage.sync_directory()

    async def close(self) -> None:
        """Close the file; unless finished, it stays as it is."""
        await self._file.close()

    async def abandon(self) -> None:
        """Close and remove the unfinished file."""
        await self._file.close()
        await self._storage.remove(UNFINISHED_NAME)


# --- reading ----------------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class SnapshotReader:
    """A snapshot whose SHA-256 was right when it was opened; `read` gives its blocks."""

    kept: Kept
    blocks: int
    _file: File
    _index: bytes
    _index_offset: int
    _next: int = attrs.field(default=0, init=False)

    @classmethod
    async def open(cls, storage: Storage, identity: Identity, number: int) -> SnapshotReader:
        """Open and verify a snapshot. Raises `FormatError` when it is damaged, `NewerFormat`, `StorageFailed`."""
        file = await storage.open(snapshot_name(number))
        try:
            body_bytes = file.size - 32
            if file.size < HEADER_BYTES + _trailer.size:
                raise FormatError("too short")
            kept = decode_header(await file.read(0, HEADER_BYTES), identity)
            magic, index_offset, blocks, digest = _trailer.unpack(await file.read(file.size - _trailer.size, _trailer.size))
            sha256 = hashlib.sha256()
            for offset in range(0, body_bytes, _READ_BYTES):
                sha256.update(await file.read(offset, min(_READ_BYTES, body_bytes - offset)))
            if magic != _TRAILER_MAGIC or sha256.digest() != digest:
                raise FormatError("its checksum is wrong")
            if kept.number != number or index_offset + blocks * _entry.size + _trailer.size != file.size:  # S4
                raise FormatError("its index is damaged")
            index = await file.read(index_offset, blocks * _entry.size)
        except BaseException:
            await file.close()
            raise
        return cls(kept, blocks, file, index, index_offset)

    async def read(self) -> Sequence[Block]:
        """The next blocks, about 1 MiB of them; an empty sequence at the end. Raises `FormatError` or `StorageFailed`."""
        wanted: list[int] = []
        start = end = None
        while self._next < self.blocks:
            offset, length = _entry.unpack_from(self._index, self._next * _entry.size)
            if start is None:
                start = end = offset
            if offset != end or length > self._index_offset - offset:  # S4: blocks lie one behind the other, before the index
                raise FormatError("its index is damaged")
            if wanted and end + length - start > _READ_BYTES:
                break
            wanted.append(length)
            end = offset + length
            self._next += 1
        if start is None or end is None:
            return ()
        data = await self._file.read(start, end - start)
        blocks, offset = [], 0
        for length in wanted:
            blocks.append(decode_block(data[offset : offset + length]))
            offset += length
        return blocks

    async def close(self) -> None:
        """Close the file."""
        await self._file.close()


# --- the two that are kept --------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Snapshots:
    """The snapshots of one directory: which are kept, which is loaded, and which part of the log they need."""

    _storage: Storage
    _identity: Identity
    kept: list[Kept] = attrs.field(factory=list, init=False)
    """Ascending; filled by `open_newest`."""
    notes: list[str] = attrs.field(factory=list, init=False)
    lost: bool = attrs.field(default=False, init=False)
    """True when there has been a snapshot, readable or not."""
    _number_max: int = attrs.field(default=0, init=False)

    async def open_newest(self) -> SnapshotReader | None:
        """The newest good snapshot, or None when there is none; the damaged ones that were met are set aside (S3).

        Afterwards `kept` holds the good one and the one before it. Raises `FormatTooNew`, `StorageFailed`.
        """
        names = await self._storage.list()
        if UNFINISHED_NAME in names:
            await self._storage.remove(UNFINISHED_NAME)
        numbers = [number for name in names if (number := snapshot_number(name.removesuffix(".damaged"))) is not None]
        self._number_max = max(numbers, default=0)
        self.lost = bool(numbers)
        reader: SnapshotReader | None = None
        for number in sorted((number for name in names if (number := snapshot_number(name)) is not None), reverse=True):
            try:
                if reader is None:
                    reader = await SnapshotReader.open(self._storage, self._identity, number)
                    self.kept.insert(0, reader.kept)
                else:
                    self.kept.insert(0, await self._read_header(number))
            except NewerFormat as error:
                raise FormatTooNew(f"{self._storage.path(snapshot_name(number))} has {error}: start the newer version of govern") from error
            except FormatError as error:
                self.notes.append(f"{snapshot_name(number)} cannot be read, {error}: it is now called {snapshot_name(number)}.damaged")
                await self._storage.rename(snapshot_name(number), f"{snapshot_name(number)}.damaged")
        await self._storage.sync_directory()
        return reader

    async def _read_header(self, number: int) -> Kept:
        file = await self._storage.open(snapshot_name(number))
        try:
            return decode_header(await file.read(0, HEADER_BYTES), self._identity)
        finally:
            await file.close()

    async def begin(self, position: Position) -> SnapshotWriter:
        """A writer for the next snapshot. Raises `NoSpace` or `StorageFailed`."""
        return await SnapshotWriter.create(self._storage, self._identity, Kept(self._number_max + 1, position))

    async def finished(self, kept: Kept) -> int:
        """Note a finished snapshot, delete those that are no longer needed, and return the first segment that still is (S2)."""
        self._number_max = kept.number
        self.kept.append(kept)
        while len(self.kept) > SNAPSHOTS_KEPT:
            await self._storage.remove(snapshot_name(self.kept[0].number))
            del self.kept[0]
        await self._storage.sync_directory()
        return self.kept[0].position.segment_no if len(self.kept) == SNAPSHOTS_KEPT else 1
