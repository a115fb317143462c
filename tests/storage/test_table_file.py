"""The file `table`: what it says comes back, whatever is wrong with it is one line, and replacing it is all or nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.errors import Corrupt, FormatTooNew, NoSpace, StorageFailed
from govern.storage import table_file
from govern.storage.sim import SimStorage
from govern.storage.table_file import TABLE_BYTES_MAX, TableFile, decode_table, encode_table, read_table, write_table

files = st.builds(TableFile, st.binary(min_size=16, max_size=16), st.booleans(), st.binary(max_size=300))
EXAMPLE = TableFile(b"c" * 16, True, b"rows")


@given(files)
def test_a_table_comes_back(file: TableFile) -> None:
    """Encoding and decoding are inverse."""
    assert decode_table(encode_table(file)) == file


@given(files, st.data())
def test_no_changed_bit_and_no_missing_byte_is_accepted(file: TableFile, data: st.DataObject) -> None:
    """Damage is damage, and never a newer format."""
    whole = encode_table(file)
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert decode_table(bytes(changed)) is None
    assert decode_table(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    assert decode_table(whole + b"\0") is None


@given(st.binary(max_size=100))
def test_any_payload_is_a_table_or_damage(payload: bytes) -> None:
    """A right checksum over anything else than the fields is damage as well."""
    header = table_file._header.pack(table_file._MAGIC, 1, len(payload), table_file._crc(1, payload))
    found = decode_table(header + payload)
    assert found is None or isinstance(found, TableFile)


async def test_there_is_none_at_first_and_then_the_last_one() -> None:
    """Each write replaces the file; nothing else is left in the directory."""
    storage = SimStorage(random.Random(0))
    assert await read_table(storage) is None
    for number in range(3):
        await write_table(storage, TableFile(b"c" * 16, number > 0, bytes([number]) * 1000))
        storage = storage.crash()
        assert await read_table(storage) == TableFile(b"c" * 16, number > 0, bytes([number]) * 1000)
    assert storage.names() == ["table"]


async def test_what_cannot_be_read_is_one_line_that_says_what_to_do() -> None:
    """Damage, a newer format, and a file that is longer than any table."""
    storage = SimStorage(random.Random(0))
    await write_table(storage, EXAMPLE)
    storage.flip("table", 30)
    with pytest.raises(Corrupt, match=r"sim/table is damaged: remove it; the node learns the table anew from its cluster"):
        await read_table(storage)
    payload = b"what nobody knows yet"
    file = await storage.create("table", 0)
    await file.write_durable(0, table_file._header.pack(table_file._MAGIC, 2, len(payload), table_file._crc(2, payload)) + payload)
    with pytest.raises(FormatTooNew, match=r"sim/table has format 2: start the newer version"):
        await read_table(storage)
    await storage.create("table", TABLE_BYTES_MAX + 1)
    with pytest.raises(Corrupt, match="damaged"):
        await read_table(storage)


async def test_a_full_disk_leaves_the_former_table_and_a_failing_one_is_named() -> None:
    """`NoSpace` changes nothing; a failed sync is a failed disk."""
    storage = SimStorage(random.Random(0))
    await write_table(storage, EXAMPLE)
    storage.capacity_bytes = storage.used_bytes
    with pytest.raises(NoSpace):
        await write_table(storage, TableFile(b"c" * 16, True, b"other"))
    assert await read_table(storage) == EXAMPLE
    storage.capacity_bytes = None
    storage.fails = lambda operation: operation.kind == "sync"
    with pytest.raises(StorageFailed):
        await write_table(storage, TableFile(b"c" * 16, True, b"other"))


def test_a_table_that_is_too_large_is_a_mistake_of_ours() -> None:
    """The bound holds for the writer as for the reader."""
    with pytest.raises(AssertionError):
        encode_table(TableFile(b"c" * 16, True, bytes(TABLE_BYTES_MAX)))
