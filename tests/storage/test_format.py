"""The formats: what was encoded is decoded, and any other bytes are refused in one known way."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from govern.storage import format as storage_format
from govern.storage import snapshots
from govern.storage.format import (
    SECTOR,
    SEGMENT_HEADER_BYTES,
    FormatError,
    Identity,
    NewerFormat,
    Position,
    Record,
    batch_seed,
    batch_size,
    check_segment_header,
    decode_identity,
    decode_records,
    encode_batch,
    encode_identity,
    encode_records,
    encode_segment_header,
    find_batch,
    last_used,
    read_batch,
    segment_name,
    segment_number,
)
from govern.storage.snapshots import Block, Kept

OURS = Identity(bytes(range(16)), bytes(range(16, 32)), 7)
OTHER = Identity(bytes(16), bytes(16), 7)
u64 = st.integers(0, 2**64 - 1)
records = st.lists(
    st.builds(Record, st.integers(0, 16383), u64, u64, st.integers(0, 255), st.binary(max_size=300)), min_size=1, max_size=20
)


@given(records, st.integers(1000, 5000))
def test_records_come_back_in_order_from_as_many_batches_as_needed(given_records: list[Record], limit: int) -> None:
    """Encoding and decoding are inverse, no payload is longer than the limit, and none is empty."""
    batches = encode_records(given_records, limit)
    assert [record for payload, count in batches for record in decode_records(payload, count)] == given_records
    assert all(0 < len(payload) <= limit for payload, _ in batches)


@given(records, u64, st.integers(0, 2**32 - 1))
def test_a_batch_is_found_where_it_was_written_and_nowhere_else(given_records: list[Record], batch_no: int, crc_before: int) -> None:
    """Behind zeros at any multiple of 512 a batch is found by looking on, read back, and padded to the next such multiple."""
    ((payload, count),) = encode_records(given_records)
    seed = batch_seed(OURS, 3)
    data, crc = encode_batch(payload, count, batch_no, crc_before, seed)
    assert len(data) == batch_size(len(payload))
    assert len(data) % SECTOR == 0
    whole = bytes(2 * SECTOR) + data
    assert find_batch(whole, 0, seed) == 2 * SECTOR
    assert find_batch(whole, 2 * SECTOR + 1, seed) is None
    batch = read_batch(whole, 2 * SECTOR, seed)
    assert batch == storage_format.Batch(batch_no, crc_before, crc, count, payload, len(whole))
    for other in (batch_seed(OURS, 4), batch_seed(OTHER, 3)):  # another segment, another directory
        assert read_batch(data, 0, other) is None
        assert find_batch(whole, 0, other) is None


@given(st.data())
def test_no_changed_bit_of_a_batch_is_accepted(data: st.DataObject) -> None:
    """A flipped bit anywhere but in the padding makes a batch invalid; so does a missing end."""
    ((payload, count),) = encode_records(data.draw(records))
    seed = batch_seed(OURS, 1)
    batch, _ = encode_batch(payload, count, 1, 0, seed)
    used = len(payload) + storage_format.BATCH_OVERHEAD
    changed = bytearray(batch)
    changed[data.draw(st.integers(0, used - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert read_batch(bytes(changed), 0, seed) is None
    assert read_batch(batch[: data.draw(st.integers(0, used - 1))], 0, seed) is None


def mostly_right(data: st.DataObject) -> bytes:
    """Bytes that a decoder would like to believe: valid ones with something overwritten, cut or added."""
    whole = bytearray(
        data.draw(
            st.sampled_from(
                (
                    b"",
                    encode_identity(OURS),
                    encode_segment_header(OURS, 1)[:200],
                    encode_batch(encode_records([Record(1, 2, 3, 4, b"x" * 40)])[0][0], 1, 1, 0, batch_seed(OURS, 1))[0],
                    snapshots.encode_header(OURS, Kept(1, Position(1, 4096, 1, 0))),
                    snapshots.encode_block(Block(1, 2, 3, 4, b"state")),
                )
            )
        )
    )
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(whole)))
        piece = data.draw(st.binary(max_size=12))
        whole[at : at + data.draw(st.sampled_from((0, len(piece))))] = piece
    return bytes(whole[: data.draw(st.integers(0, len(whole)))])


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """No bytes make a parser raise anything but `FormatError`, and what a parser accepts it would write in the same way."""
    raw = mostly_right(data)
    seed = batch_seed(OURS, 1)
    batch = read_batch(raw, 0, seed)
    if batch is not None:
        assert encode_batch(batch.payload, batch.record_count, batch.batch_no, batch.crc_before, seed)[1] == batch.crc
    found = find_batch(raw, 0, seed)
    assert found is None or read_batch(raw, found, seed) is not None
    with contextlib.suppress(FormatError):
        assert encode_identity(decode_identity(raw)) == raw
    with contextlib.suppress(FormatError):
        assert not check_segment_header(raw, OURS, 1) or raw[:32] == encode_segment_header(OURS, 1)[:32]
    for count in (0, 1, 2**32 - 1):
        with contextlib.suppress(FormatError):
            assert len(decode_records(raw, count)) == count
    for decode in (snapshots.decode_block, lambda raw: snapshots.decode_header(raw, OURS)):
        with contextlib.suppress(FormatError):
            decode(raw)


@given(st.binary(max_size=200), st.integers(0, 200_000))
@example(b"", 0)
@example(b"x", 65536)
@example(b"x", 65535)
def test_the_zeros_at_the_end_are_measured(data: bytes, zeros: int) -> None:
    """`last_used` is where the last byte that is not zero ends, and never before the offset asked."""
    used = last_used(data + bytes(zeros), 0)
    assert used == len(data.rstrip(b"\0"))
    assert last_used(data + bytes(zeros), used + 5) == used + 5


def test_lengths_that_are_lies_allocate_nothing() -> None:
    """A batch and a record that claim four gigabytes are refused without asking for memory."""
    seed = batch_seed(OURS, 1)
    body = struct.pack("<IIQII", storage_format._BATCH_MAGIC, 2**32 - 1, 1, 0, 2**32 - 1)
    lie = (body + struct.pack("<I", zlib.crc32(body, seed))).ljust(SECTOR, b"\0")
    tracemalloc.start()
    assert read_batch(lie, 0, seed) is None
    with pytest.raises(FormatError, match="longer than its batch"):
        decode_records(struct.pack("<IBHQQ", 2**32 - 1, 1, 1, 1, 1), 2**32 - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_looked_for_batch_is_found_among_many_false_starts() -> None:
    """A segment full of the magic number costs one look per 512 bytes, not one per byte."""
    seed = batch_seed(OURS, 1)
    data, _ = encode_batch(b"", 0, 9, 0, seed)
    decoys = b"govB" * (1 << 16)
    assert find_batch(decoys + data, 0, seed) == len(decoys)
    assert find_batch(decoys, 0, seed) is None


def test_an_identity_says_which_version_wrote_it() -> None:
    """Damage, a foreign file and a newer version are three different answers."""
    data = encode_identity(OURS)
    assert decode_identity(data) == OURS
    with pytest.raises(NewerFormat, match="format 3"):
        decode_identity(data.replace(b"format 1", b"format 3") + b"and what nobody knows yet")
    with pytest.raises(FormatError, match="damaged"):
        decode_identity(data.replace(b"format 1", b"format 2"))
    with pytest.raises(FormatError, match="damaged"):
        decode_identity(data.replace(b"boot_no 7", b"boot_no 8"))
    with pytest.raises(FormatError, match="not an identity"):
        decode_identity(b"[settings]\n")


def test_what_files_are_sealed_with_does_not_change_when_a_cluster_is_adopted() -> None:
    """A directory made without a cluster is of format 2 for ever and seals with zeros; one of format 1 is written as it always was."""
    young = Identity(bytes(16), bytes(range(16, 32)), 1, True)
    joined = young._replace(cluster_id=bytes(range(16)), boot_no=7)
    for identity in (young, joined):
        assert encode_identity(identity).startswith(b"govern data directory\nformat 2\n")
        assert decode_identity(encode_identity(identity)) == identity
    assert batch_seed(young, 3) == batch_seed(joined, 3) != batch_seed(OURS, 3)
    assert check_segment_header(encode_segment_header(young, 3), joined, 3)
    assert snapshots.decode_header(snapshots.encode_header(young, Kept(1, Position(1, 4096, 1, 0))), joined).number == 1
    assert encode_identity(OURS).startswith(b"govern data directory\nformat 1\n")
    with pytest.raises(FormatError, match="data directory"):
        check_segment_header(encode_segment_header(OURS, 3), joined, 3)


def test_a_segment_header_says_whose_it_is() -> None:
    """An undamaged header of another directory or another segment is an error, a damaged one is only no header."""
    header = encode_segment_header(OURS, 5)
    assert len(header) == SEGMENT_HEADER_BYTES
    assert check_segment_header(header, OURS, 5)
    assert check_segment_header(header, OURS._replace(boot_no=99), 5)
    assert not check_segment_header(bytes(SEGMENT_HEADER_BYTES), OURS, 5)
    assert not check_segment_header(header[:40] + b"x" + header[41:], OURS, 5)
    with pytest.raises(FormatError, match="segment 5"):
        check_segment_header(header, OURS, 6)
    with pytest.raises(FormatError, match="data directory"):
        check_segment_header(header, OTHER, 5)


def test_names_and_numbers() -> None:
    """Names of segments sort as their numbers do, and only such names are segments."""
    assert segment_name(12) == "log-0000000000000012"
    assert segment_number(segment_name(12)) == 12
    assert sorted(map(segment_name, (2, 10, 1))) == [segment_name(1), segment_name(2), segment_name(10)]
    for name in ("log-12", "log-0000000000000012.damaged", "log-٠٠٠٠٠٠٠٠٠٠٠٠٠٠١٢", "snapshot-0000000000000012", "lock"):
        assert segment_number(name) is None
