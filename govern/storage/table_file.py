"""The file `table`: what a node that is not the controller knows of its cluster between two lives.

It says that the node has joined, and holds the last table it had, so that a node which starts without any other can tell its clients where
to look. It is a memory and no authority: whoever answers for a slot is decided by the controller alone.

    magic (16), format u32, length u32, crc u32 of everything else; msgpack [cluster_id, joined, table]

B1  The file is replaced as a whole: written beside, synced, renamed, the directory synced. A crash leaves the former one or the new one.
B2  It is written before the identity file names the cluster (rule D6): a directory with a cluster has said "joined" before.
B3  Its length is bounded and compared before it is read; any bytes are either a table file or `Corrupt`.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

import attrs
import msgpack

from ..errors import Corrupt, FormatTooNew

if TYPE_CHECKING:
    from ..environment import Storage

TABLE_NAME: Final = "table"
TABLE_NEW_NAME: Final = "table.new"
TABLE_VERSION: Final = 1
TABLE_BYTES_MAX: Final = 8 << 20
"""Every slot in a run of its own, and thousands of nodes, take about 3 MiB."""
_MAGIC: Final = b"govern table\r\n\x1a\n"
_header = struct.Struct("<16sIII")


@attrs.frozen
class TableFile:
    """What the file says. `table` is bytes that mean something only to the caller."""

    cluster_id: bytes
    joined: bool
    table: bytes


def encode_table(file: TableFile) -> bytes:
    """The contents of the file."""
    payload: bytes = msgpack.packb([file.cluster_id, file.joined, file.table])
    assert _header.size + len(payload) <= TABLE_BYTES_MAX, f"a table of {len(payload)} bytes"
    return _header.pack(_MAGIC, TABLE_VERSION, len(payload), _crc(TABLE_VERSION, payload)) + payload


def _crc(version: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_MAGIC + version.to_bytes(4, "little") + len(payload).to_bytes(4, "little")))


def decode_table(data: bytes) -> TableFile | int | None:
    """What the bytes say; the number of a format that is newer than this one; None when they are damaged (B3)."""
    if len(data) < _header.size:
        return None
    magic, version, length, crc = _header.unpack_from(data)
    payload = data[_header.size :]
    if magic != _MAGIC or length != len(payload) or crc != _crc(version, payload):
        return None
    if version > TABLE_VERSION:
        return int(version)
    try:
        fields = msgpack.unpackb(payload)
    except (ValueError, RecursionError):
        return None
    if type(fields) is not list or [type(field) for field in fields] != [bytes, bool, bytes]:
        return None
    return TableFile(*fields)


async def read_table(storage: Storage) -> TableFile | None:
    """What the file of a locked directory says, None when there is none.

    Raises `Corrupt` or `FormatTooNew`, with one line that says what to do; `StorageFailed`.
    """
    try:
        file = await storage.open(TABLE_NAME)
    except FileNotFoundError:
        return None
    try:
        found = decode_table(await file.read(0, file.size)) if file.size <= TABLE_BYTES_MAX else None
    finally:
        await file.close()
    if found is None:
        raise Corrupt(f"{storage.path(TABLE_NAME)} is damaged: remove it; the node learns the table anew from its cluster")
    if isinstance(found, int):
        raise FormatTooNew(f"{storage.path(TABLE_NAME)} has format {found}: start the newer version of govern that wrote it")
    return found


async def write_table(storage: Storage, file: TableFile) -> None:
    """Replace the file, durably (B1). One call at a time.

    Raises `NoSpace`: the former file is still there. Raises `StorageFailed`: nobody knows which of the two is there, and the node must end.
    Cancelled, it is one of the two.
    """
    data = encode_table(file)
    new = await storage.create(TABLE_NEW_NAME, 0)
    try:
        await new.write_durable(0, data)
    finally:
        await new.close()
    await storage.rename(TABLE_NEW_NAME, TABLE_NAME)
    await storage.sync_directory()
