"""Broken variants of the storage that several tests of tests use."""

from __future__ import annotations

from govern.storage import format as storage_format


def read_batch_without_checksum(data: bytes, offset: int, seed: int) -> storage_format.Batch | None:
    """`read_batch` that takes the stored checksum for the computed one."""
    header = storage_format._batch_header
    if offset + header.size > len(data):
        return None
    magic, length, batch_no, crc_before, count, _ = header.unpack_from(data, offset)
    start = offset + header.size
    if magic != storage_format._BATCH_MAGIC or length > len(data) - start - 4:
        return None
    crc = int.from_bytes(data[start + length : start + length + 4], "little")
    end = offset + storage_format.batch_size(length)
    return storage_format.Batch(batch_no, crc_before, crc, count, data[start : start + length], end)
