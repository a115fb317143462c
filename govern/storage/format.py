"""What the bytes of a data directory mean: the identity file, log segments, batches and records. No file is touched here.

    identity   text, six lines, the last one a checksum of the others; readable by people, replaced as a whole
    segment    header (4 KiB): magic, version, seal (cluster_id, disk_id), segment_no, crc; then batches until the zeros begin
    batch      header: magic u32, payload length u32, batch_no u64, crc of the batch before u32, records u32, header crc u32
               payload; crc u32 of header and payload; zeros up to the next multiple of 512 bytes
    record     length u32, type u8, slot u16, term u64, seq u64; payload

All integers are little-endian. Every checksum of a batch is seeded with the identity of the directory and the number of the
segment, so bytes of another directory, of another segment, or of a payload that a client made to look like a batch, are not a batch.

F1  A batch is valid when both checksums are right. It continues the log when besides its number and its `crc of the batch before` fit;
    numbers run on over segments. A batch that continues the log therefore proves that nothing before it is missing, also across a
    change of segment; that is why a segment header says nothing about the segment before it.
F2  Nothing here raises anything but `FormatError` for any bytes at all, and nothing is allocated because of a length that bytes claim:
    a length is compared with the bytes in hand first.
F3  A batch begins at a multiple of 512, the unit in which disks tear. Zeros are never a batch.
F4  What files are sealed with never changes in the life of a directory. One that was made before its cluster was known (identity format 2)
    has zeros there in the place of the cluster, also after it has joined one.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

FORMAT_VERSION: Final = 1
IDENTITY_VERSION: Final = 2
NO_CLUSTER: Final = bytes(16)
SECTOR: Final = 512
SEGMENT_HEADER_BYTES: Final = 4096
BATCH_BYTES_MAX: Final = 1 << 20  # payload of one batch; the writer splits what is longer

_SEGMENT_MAGIC: Final = b"govern log\r\n\x1a\n\x00\x00"
_BATCH_MAGIC: Final = 0x42_76_6F_67  # "govB" in the file
_BATCH_MAGIC_BYTES: Final = _BATCH_MAGIC.to_bytes(4, "little")
_ZEROS: Final = bytes(1 << 16)
_segment_header = struct.Struct("<16sI16s16sQI")
_batch_header = struct.Struct("<IIQIII")
_batch_header_body = struct.Struct("<IIQII")
_record_header = struct.Struct("<IBHQQ")
_u32 = struct.Struct("<I")

BATCH_OVERHEAD: Final = _batch_header.size + _u32.size


class FormatError(ValueError):
    """These bytes are not what they should be."""


class NewerFormat(FormatError):
    """These bytes were written by a later version; the message names the version."""


class Record(NamedTuple):
    """One operation of one slot as it stands in the log. `type` is 0..255 and means something only to the caller."""

    slot: int
    term: int
    seq: int
    type: int
    payload: bytes


class Position(NamedTuple):
    """A place between two batches of the log: where the next batch goes, its number, and the checksum of the one before it."""

    segment_no: int
    offset: int
    batch_no: int
    crc: int


START: Final = Position(1, SEGMENT_HEADER_BYTES, 1, 0)


class Identity(NamedTuple):
    """Which directory this is, and how often it has been started: `boot_no` grows by one with every start.

    `cluster_id` is zeros until the cluster is known; `made_without_cluster` says that it was so at first.
    """

    cluster_id: bytes
    disk_id: bytes
    boot_no: int
    made_without_cluster: bool = False

    @property
    def seal(self) -> bytes:
        """What headers and checksums of files of this directory contain (F4): 16 bytes of the cluster, 16 of the disk."""
        return (NO_CLUSTER if self.made_without_cluster else self.cluster_id) + self.disk_id

    def next_boot(self) -> Identity:
        """The identity of the start after this one."""
        return self._replace(boot_no=self.boot_no + 1)


# --- identity ---------------------------------------------------------------------------------------------------------------

_IDENTITY_TITLE: Final = "govern data directory"
_identity_fields_match = re.compile(rb"cluster_id ([0-9a-f]{32})\ndisk_id ([0-9a-f]{32})\nboot_no ([0-9]{1,19})").fullmatch


def encode_identity(identity: Identity) -> bytes:
    """The contents of the identity file."""
    version = IDENTITY_VERSION if identity.made_without_cluster else 1
    text = (
        f"{_IDENTITY_TITLE}\nformat {version}\ncluster_id {identity.cluster_id.hex()}\n"
        f"disk_id {identity.disk_id.hex()}\nboot_no {identity.boot_no}\n"
    )
    return f"{text}crc {zlib.crc32(text.encode()):08x}\n".encode()


def decode_identity(data: bytes) -> Identity:
    """Read an identity file; raises `NewerFormat` when a later version wrote it and `FormatError` when it is damaged."""
    lines = data[:SECTOR].split(b"\n")
    if lines[0] != _IDENTITY_TITLE.encode() or len(lines) < 2 or not lines[1].startswith(b"format "):
        raise FormatError("not an identity file")
    version = lines[1][7:15]
    if version.isdigit() and int(version) > IDENTITY_VERSION:
        raise NewerFormat(f"format {int(version)}")
    match = _identity_fields_match(b"\n".join(lines[2:5]))
    if match is None:
        raise FormatError("damaged")
    cluster_id, disk_id = bytes.fromhex(match[1].decode()), bytes.fromhex(match[2].decode())
    identity = Identity(cluster_id, disk_id, int(match[3]), version == b"%d" % IDENTITY_VERSION)
    if encode_identity(identity) != data:
        raise FormatError("damaged")
    return identity


# --- segments ---------------------------------------------------------------------------------------------------------------


def segment_name(segment_no: int) -> str:
    """The file name of a segment; names sort as numbers do."""
    return f"log-{segment_no:016d}"


def segment_number(name: str) -> int | None:
    """The number of the segment of that file name, or None when it is no segment."""
    digits = name[4:]
    return int(digits) if name.startswith("log-") and len(digits) == 16 and digits.isascii() and digits.isdigit() else None


def encode_segment_header(identity: Identity, segment_no: int) -> bytes:
    """The first 4 KiB of a segment."""
    body = _segment_header.pack(_SEGMENT_MAGIC, FORMAT_VERSION, identity.seal[:16], identity.disk_id, segment_no, 0)[:-4]
    return (body + _u32.pack(zlib.crc32(body))).ljust(SEGMENT_HEADER_BYTES, b"\0")


def check_segment_header(data: bytes, identity: Identity, segment_no: int) -> bool:
    """True when this is the header of that segment; False when it is damaged or was never written.

    Raises `NewerFormat`, and `FormatError` when it is the undamaged header of something else: such a file must not be written to.
    """
    if len(data) < _segment_header.size:
        return False
    magic, version, cluster_id, disk_id, number, crc = _segment_header.unpack_from(data)
    if magic != _SEGMENT_MAGIC or crc != zlib.crc32(data[: _segment_header.size - 4]):
        return False
    if version > FORMAT_VERSION:
        raise NewerFormat(f"format {version}")
    if (cluster_id + disk_id, number) != (identity.seal, segment_no):
        raise FormatError(f"it is segment {number} of the data directory {disk_id.hex()}")
    return True


# --- batches ----------------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """A valid batch found in a segment: its payload, and where the next one would begin."""

    batch_no: int
    crc_before: int
    crc: int
    record_count: int
    payload: bytes
    end: int


def batch_seed(identity: Identity, segment_no: int) -> int:
    """What the checksums of all batches of a segment start from (F1)."""
    return zlib.crc32(identity.seal + segment_no.to_bytes(8, "little"))


def batch_size(payload_bytes: int) -> int:
    """What a batch with that payload takes in the file."""
    return -(-(payload_bytes + BATCH_OVERHEAD) // SECTOR) * SECTOR


def encode_batch(payload: bytes, count: int, batch_no: int, crc_before: int, seed: int) -> tuple[bytes, int]:
    """The bytes of a batch, padded, and its checksum, which the next batch repeats."""
    body = _batch_header_body.pack(_BATCH_MAGIC, len(payload), batch_no, crc_before, count)
    header = body + _u32.pack(zlib.crc32(body, seed))
    crc = zlib.crc32(payload, zlib.crc32(header, seed))
    return b"".join((header, payload, _u32.pack(crc))).ljust(batch_size(len(payload)), b"\0"), crc


def read_batch(data: bytes, offset: int, seed: int) -> Batch | None:
    """The valid batch that begins at `offset`, or None. Its place in the chain is for the caller to judge."""
    start = offset + _batch_header.size
    if start > len(data):
        return None
    magic, length, batch_no, crc_before, count, header_crc = _batch_header.unpack_from(data, offset)
    if magic != _BATCH_MAGIC or length > len(data) - start - 4:  # F2: nothing is cut out before its length was compared
        return None
    if header_crc != zlib.crc32(data[offset : start - 4], seed):
        return None
    payload = data[start : start + length]
    crc = zlib.crc32(payload, zlib.crc32(data[offset:start], seed))
    if _u32.unpack_from(data, start + length)[0] != crc:
        return None
    return Batch(batch_no, crc_before, crc, count, payload, offset + batch_size(length))


def find_batch(data: bytes, offset: int, seed: int) -> int | None:
    """The first place at or after `offset`, in steps of 512 bytes, where a valid batch begins (rule W2)."""
    offset = -(-offset // SECTOR) * SECTOR
    while True:
        found = data.find(_BATCH_MAGIC_BYTES, offset)
        if found < 0:
            return None
        offset = -(-found // SECTOR) * SECTOR
        if found == offset:
            if read_batch(data, found, seed) is not None:
                return found
            offset += SECTOR


def last_used(data: bytes, offset: int) -> int:
    """Where the zeros begin that fill `data` to its end, but at least `offset`."""
    end = len(data)
    while end > offset:
        start = max(offset, end - len(_ZEROS))
        if data[start:end] != _ZEROS[: end - start]:  # comparing is ten times as fast as stripping
            return start + len(data[start:end].rstrip(b"\0"))
        end = start
    return offset


# --- records ----------------------------------------------------------------------------------------------------------------


def encode_records(records: Iterable[Record], payload_bytes_max: int = BATCH_BYTES_MAX) -> list[tuple[bytes, int]]:
    """The payloads of as few batches as hold the records in order, each with the number of its records.

    A record that fits into no batch is a mistake of the caller and asserted.
    """
    pack = _record_header.pack
    parts = [pack(len(payload), kind, slot, term, seq) + payload for slot, term, seq, kind, payload in records]
    whole = b"".join(parts)
    if len(whole) <= payload_bytes_max:
        return [(whole, len(parts))]
    batches: list[tuple[bytes, int]] = []
    batch: list[bytes] = []
    size = 0
    for part in parts:
        assert len(part) <= payload_bytes_max, f"a record of {len(part)} bytes does not fit into a batch of {payload_bytes_max}"
        if size + len(part) > payload_bytes_max:
            batches.append((b"".join(batch), len(batch)))
            batch, size = [], 0
        batch.append(part)
        size += len(part)
    batches.append((b"".join(batch), len(batch)))
    return batches


def decode_records(payload: bytes, count: int) -> Sequence[Record]:
    """The records of a batch; raises `FormatError` unless exactly `count` of them fill the payload."""
    records: list[Record] = []
    unpack, header = _record_header.unpack_from, _record_header.size
    offset, end = 0, len(payload)
    while offset < end:
        if end - offset < header:
            raise FormatError("a record is cut off")
        length, kind, slot, term, seq = unpack(payload, offset)
        offset += header
        if length > end - offset:
            raise FormatError("a record is longer than its batch")
        records.append(Record(slot, term, seq, kind, payload[offset : offset + length]))
        offset += length
    if len(records) != count:
        raise FormatError(f"{len(records)} records instead of {count}")
    return records
