"""The log over a simulated disk that fails, fills up and waits: what an append promises, and what it says when it cannot keep it."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
import trio
import trio.testing

from govern.errors import Corrupt, FormatTooNew, NoSpace, StorageError, StorageFailed
from govern.storage.format import (
    BATCH_BYTES_MAX,
    SEGMENT_HEADER_BYTES,
    Identity,
    Record,
    encode_segment_header,
    last_used,
    segment_name,
)
from govern.storage.log import SEGMENT_BYTES, Log
from govern.storage.sim import Operation, SimStorage

OURS = Identity(bytes(range(16)), bytes(range(16, 32)), 1)
SMALL = 8192


def record(seq: int, size: int = 10) -> Record:
    return Record(seq % 5, 1, seq, 1, bytes([seq % 256]) * size)


async def opened(storage: SimStorage, segment_bytes: int = SMALL) -> tuple[Log, list[Record]]:
    log = await Log.open(storage, OURS, segment_bytes=segment_bytes)
    found: list[Record] = []
    while records := await log.recover():
        found += records
    return log, found


async def reopened(log: Log, storage: SimStorage, segment_bytes: int = SMALL) -> tuple[Log, list[Record]]:
    await log.close()
    return await opened(storage, segment_bytes)


async def test_what_was_appended_is_recovered_in_order_over_many_segments() -> None:
    """Batches and segments do not show: records come back as one row, twice, and appending goes on where it ended."""
    storage = SimStorage(random.Random(0))
    log, found = await opened(storage)
    assert found == []
    appended: list[Record] = []
    for step in range(30):
        records = [record(step * 3 + number, 100 * step % 900) for number in range(3)]
        await log.append(records)
        appended += records
        if step in (7, 19):
            log, found = await reopened(log, storage)
            assert found == appended
    assert log.segment_no > 4
    log, found = await reopened(log, storage)
    assert found == appended
    assert not log.reader.tail_truncated
    assert log.reader.notes == []
    await log.close()


async def test_an_append_larger_than_a_batch_is_split_in_order() -> None:
    """Three megabytes of records need several batches of at most about one, and still come back in order."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage, SEGMENT_BYTES)
    records = [record(number, 10_000) for number in range(330)]
    await log.append(records)
    assert log.statistics().batches == 4
    assert log.statistics().bytes < 4 * (BATCH_BYTES_MAX + 512)
    _, found = await reopened(log, storage, SEGMENT_BYTES)
    assert found == records


async def test_one_append_at_a_time_is_asserted(autojump_clock: trio.testing.MockClock) -> None:
    """A second append while one is under way is a mistake of the caller (L1), and the first is not disturbed by it."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    storage.latency_seconds = (1.0, 1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.append, [record(1)])
        await trio.sleep(0.5)
        with pytest.raises(AssertionError, match="one batch is outstanding"):
            await log.append([record(2)])
    _, found = await reopened(log, storage)
    assert found == [record(1)]


async def test_after_an_io_error_nothing_is_written_any_more() -> None:
    """Rule W4: the append that met the error and every later one raise `StorageFailed`, and the later ones do not touch the disk."""
    for kind in ("write", "sync"):
        storage = SimStorage(random.Random(0))
        log, _ = await opened(storage)
        await log.append([record(1)])

        def fails(operation: Operation, kind: str = kind) -> bool:
            return operation.kind == kind

        storage.fails = fails
        with pytest.raises(StorageFailed, match="Input/output error"):
            await log.append([record(2)])
        storage.fails = None
        operations = storage.operations
        for _ in range(3):
            with pytest.raises(StorageFailed):
                await log.append([record(3)])
        assert storage.operations == operations
        _, found = await reopened(log, storage)
        assert found[0] == record(1)
        assert record(3) not in found


async def test_an_error_while_a_spare_is_made_ends_the_background_task_and_the_log() -> None:
    """The disk that fails beside the log is the disk of the log."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    storage.fails = lambda operation: operation.kind == "allocate"
    with pytest.raises(StorageFailed):
        await log.run()
    storage.fails = None
    with pytest.raises(StorageFailed):
        await log.append([record(1)])


async def fill(log: Log, storage: SimStorage, first: int) -> list[Record]:
    """Append until there is no room; what was acknowledged."""
    acknowledged: list[Record] = []
    while True:
        try:
            await log.append([record(first + len(acknowledged), 700)])
        except NoSpace as error:
            assert "free some" in str(error)
            return acknowledged
        acknowledged.append(record(first + len(acknowledged), 700))


async def test_a_full_disk_is_told_early_and_left_again(autojump_clock: trio.testing.MockClock) -> None:
    """`full` is true while the current segment still has room; then appends raise `NoSpace` and write nothing; with space it goes on."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        await trio.testing.wait_all_tasks_blocked()
        assert not log.statistics().full
        storage.capacity_bytes = storage.used_bytes
        acknowledged: list[Record] = []
        while log.segment_no == 1:
            await log.append([record(len(acknowledged), 700)])
            acknowledged.append(record(len(acknowledged), 700))
        await trio.sleep(0.1)
        assert log.statistics().full
        await log.append([record(len(acknowledged), 100)])  # a deregistration
        acknowledged.append(record(len(acknowledged), 100))
        acknowledged += await fill(log, storage, len(acknowledged))
        operations = storage.operations
        with pytest.raises(NoSpace):
            await log.append([record(999, 700)])
        assert storage.operations == operations
        storage.capacity_bytes = None
        await trio.sleep(1.1)
        assert not log.statistics().full
        await log.append([record(len(acknowledged), 700)])
        acknowledged.append(record(len(acknowledged), 700))
        nursery.cancel_scope.cancel()
    _, found = await reopened(log, storage)
    assert found == acknowledged


async def test_no_room_for_all_batches_of_an_append_means_none_is_written() -> None:
    """`NoSpace` is said before the first batch, so that it means "certainly not written"."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    storage.capacity_bytes = storage.used_bytes + SMALL
    with pytest.raises(NoSpace):
        await log.append([record(number, 3000) for number in range(4)])
    await log.append([record(7)])
    _, found = await reopened(log, storage)
    assert found == [record(7)]


async def test_numbers_about_a_slow_disk(autojump_clock: trio.testing.MockClock) -> None:
    """The age of the append under way grows while the disk hangs, and the time of the last one is known."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    storage.latency_seconds = (2.0, 2.0)
    assert log.unsynced_seconds == 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.append, [record(1)])
        await trio.sleep(3.5)
        assert log.unsynced_seconds == pytest.approx(3.5)
    assert log.unsynced_seconds == 0.0
    assert log.fsync_ms == pytest.approx(4000)
    assert log.statistics().records == 1


async def test_a_cancelled_append_leaves_the_log_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """Cancelled while the disk works, an append is finished first; the next one continues the chain."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    storage.latency_seconds = (1.0, 1.0)
    with trio.move_on_after(0.5):
        await log.append([record(1)])
    assert trio.current_time() == pytest.approx(2.0)
    with trio.move_on_after(1) as scope:
        scope.cancel()
        await log.append([record(2)])
    assert scope.cancelled_caught
    await log.append([record(3)])
    _, found = await reopened(log, storage)
    assert found == [record(1), record(3)]


async def torn(seed: int) -> tuple[SimStorage, bool]:
    """A log with one good batch and a crash in the middle of a large second one."""
    storage = SimStorage(random.Random(seed))
    log, _ = await opened(storage, 65536)
    await log.append([record(1)])
    after: list[SimStorage] = []

    def before(operation: Operation) -> None:
        if operation.kind == "sync":
            after.append(storage.crash())

    storage.before = before
    with pytest.raises(StorageFailed):
        await log.append([record(number, 250) for number in range(2, 60)])
    after[0].before = None
    data = after[0].contents(segment_name(1))
    return after[0], last_used(data, SEGMENT_HEADER_BYTES + 512) > SEGMENT_HEADER_BYTES + 512


async def test_nothing_is_left_behind_a_torn_tail() -> None:
    """The remains of a torn batch are zeros before anything new is written (R3), also if recovery itself is cut short by a crash."""
    with_remains = 0
    for seed in range(40):
        storage, has_remains = await torn(seed)
        log, found = await opened(storage, 65536)
        if len(found) > 1:  # every sector survived
            continue
        with_remains += has_remains
        assert found == [record(1)]
        assert log.reader.tail_truncated == has_remains
        assert last_used(storage.contents(segment_name(1)), 0) <= SEGMENT_HEADER_BYTES + 512
        await log.append([record(2)])
        log, found = await reopened(log, storage, 65536)
        assert found == [record(1), record(2)]
        assert not log.reader.tail_truncated
    assert with_remains > 10


async def test_a_sector_lost_as_zeros_in_the_middle_is_damage() -> None:
    """An all-zero header is not taken for the end while a valid batch lies behind it."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    for number in range(4):
        await log.append([record(number)])
    await log.close()
    for offset in range(512):
        where = SEGMENT_HEADER_BYTES + 512 + offset
        storage.flip(segment_name(1), where, storage.contents(segment_name(1))[where])  # every byte becomes zero
    with pytest.raises(Corrupt, match=r"log-0000000000000001 is damaged at byte 4608; 1 records before it are proven"):
        await opened(storage)


async def test_a_write_that_went_to_the_wrong_place_is_damage() -> None:
    """A batch that is valid but stands where another one belongs does not continue the log: its number and its link tell."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    for number in range(4):
        await log.append([record(number)])
    await log.close()
    file = await storage.open(segment_name(1))
    await file.write(SEGMENT_HEADER_BYTES + 1024, await file.read(SEGMENT_HEADER_BYTES + 512, 512))
    with pytest.raises(Corrupt, match="at byte 5120; 2 records"):
        await opened(storage)


async def test_a_missing_segment_is_damage() -> None:
    """A segment that disappeared between others is a gap, not an end; without the first one there is no beginning."""
    for missing in (1, 2):
        storage = SimStorage(random.Random(0))
        log, _ = await opened(storage)
        for number in range(12):
            await log.append([record(number, 900)])
        assert log.segment_no > 2
        await log.close()
        await storage.remove(segment_name(missing))
        with pytest.raises(Corrupt):
            await opened(storage)


async def test_a_damaged_header_loses_nothing() -> None:
    """Batches prove themselves: a segment whose header is damaged is read, the header is written again, and a note says so."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    await log.append([record(1)])
    await log.close()
    storage.flip(segment_name(1), 20)
    log, found = await opened(storage)
    assert found == [record(1)]
    assert len(log.reader.notes) == 1
    log, found = await reopened(log, storage)
    assert found == [record(1)]
    assert log.reader.notes == []


async def test_segments_of_others_and_of_the_future_are_refused() -> None:
    """A segment with an undamaged header of another directory or of a later version is never written to (R4)."""
    theirs = encode_segment_header(OURS._replace(disk_id=bytes(16)), 1)
    for header, kind in ((theirs, StorageError), (newer(encode_segment_header(OURS, 1)), FormatTooNew)):
        storage = SimStorage(random.Random(0))
        log, _ = await opened(storage)
        await log.close()
        file = await storage.open(segment_name(1))
        await file.write(0, header)
        with pytest.raises(kind, match=segment_name(1)):
            await opened(storage)
        assert storage.contents(segment_name(1))[:512] == header[:512]


def newer(header: bytes) -> bytes:
    body = header[:16] + struct.pack("<I", 2) + header[20:60]
    return body + struct.pack("<I", zlib.crc32(body)) + header[64:]


async def test_spares_of_another_size_are_made_anew() -> None:
    """After the segment size was changed, old spares are replaced and old segments still read."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage, 65536)
    await log.append([record(1)])
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert log.statistics().segments == 2
    log, found = await reopened(log, storage, SMALL)
    assert found == [record(1)]
    assert log.statistics().segments == 1
    await log.append([record(number, 3000) for number in range(2, 40)])
    _, found = await reopened(log, storage, SMALL)
    assert len(found) == 39


async def test_old_segments_are_removed_but_never_the_one_in_use() -> None:
    """`remove_before` keeps the segment in use whatever it is asked."""
    storage = SimStorage(random.Random(0))
    log, _ = await opened(storage)
    for number in range(12):
        await log.append([record(number, 900)])
    current = log.segment_no
    await log.remove_before(2)
    assert storage.names()[0] == segment_name(2)
    await log.remove_before(10_000)
    assert storage.names()[0] == segment_name(current)
    await log.append([record(99)])
    await log.close()


async def test_repr_says_what_state_it_is_in() -> None:
    """The repr is the line in the log of the node."""
    log = await Log.open(SimStorage(random.Random(0)), OURS, segment_bytes=SMALL)
    assert repr(log) == "<Log recovering at 1:4096, 0 spare>"
    while await log.recover():
        pass
    assert repr(log) == "<Log open at 1:4096, 0 spare>"
