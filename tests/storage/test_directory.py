"""The data directory as a node uses it: identity, loading, snapshots, and the ways out when something is damaged."""

from __future__ import annotations

import copy
import os
import pathlib
import random
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from govern.errors import Corrupt, DirectoryInUse, FormatTooNew, NoSpace, StorageError, StorageFailed
from govern.storage.directory import DataDirectory, LoadReport, open_directory
from govern.storage.files import DirectoryStorage
from govern.storage.format import NO_CLUSTER, Record
from govern.storage.salvage import SalvageReport, salvage
from govern.storage.sim import Operation, SimStorage
from govern.storage.snapshots import Block

SMALL = 8192


class Loaded:
    """What a load gave: the newest block of each slot, and the records that its block does not hold."""

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.records: list[Record] = []
        self.calls: list[int] = []
        self.report = LoadReport(blocks=0, records=0, notes=())

    def on_blocks(self, blocks: Sequence[Block]) -> None:
        self.calls.append(len(blocks))
        self.blocks.update((block.slot, block) for block in blocks)

    def on_records(self, records: Sequence[Record]) -> None:
        self.calls.append(len(records))
        self.records += [record for record in records if record.slot not in self.blocks or record.seq > self.blocks[record.slot].seq]

    def sequence(self, slot: int = 1) -> list[int]:
        """The numbers of all operations of a slot: those of its block, then those of the log."""
        known = list(range(1, self.blocks[slot].seq + 1)) if slot in self.blocks else []
        return known + [record.seq for record in self.records if record.slot == slot]


async def load(directory: DataDirectory) -> Loaded:
    loaded = Loaded()
    loaded.report = await directory.load(loaded.on_blocks, loaded.on_records)
    return loaded


async def reload(storage: SimStorage) -> Loaded:
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
        return await load(directory)


async def work(storage: SimStorage, appends: int, snapshot_after: Sequence[int] = ()) -> None:
    """One start that appends single operations of slot 1, with snapshots after those numbers."""
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
        seq = len((await load(directory)).sequence())
        for _ in range(appends):
            seq += 1
            await directory.log.append([Record(1, directory.identity.boot_no, seq, 1, bytes(600))])
            if seq in snapshot_after:
                await directory.snapshot([Block(1, 1, 1, seq, b"state")])


def snapshots_of(storage: SimStorage) -> list[str]:
    return [name for name in storage.names() if name.startswith("snapshot")]


# --- identity -----------------------------------------------------------------------------------------------------------------


async def test_identity_stays_and_every_start_is_counted() -> None:
    """The ids are drawn once; `boot_no` grows by one with each start and is durable before anything else happens."""
    storage = SimStorage(random.Random(0))
    seen = []
    for number in range(4):
        async with open_directory(storage, random.Random(number), segment_bytes=SMALL) as directory:
            seen.append(directory.identity)
        storage = storage.crash()
    assert [identity.boot_no for identity in seen] == [1, 2, 3, 4]
    assert len({identity[:2] for identity in seen}) == 1
    assert seen[0].cluster_id != seen[0].disk_id


async def test_one_holder_at_a_time_also_after_a_cancelled_stop() -> None:
    """The lock is held while the directory is open and given back on every way out."""
    storage = SimStorage(random.Random(0))
    other = storage.second_door()
    with trio.CancelScope() as scope:
        async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
            await load(directory)
            with pytest.raises(DirectoryInUse):
                async with open_directory(other, random.Random(0)):
                    pass
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    async with open_directory(other, random.Random(0), segment_bytes=SMALL):
        pass


async def test_a_directory_of_somebody_else_is_refused_and_not_written_to() -> None:
    """Files but no identity: one clear line, and nothing is changed; data without its identity is another line."""
    for name, kind, what in (
        ("letters.txt", StorageError, "not a data directory"),
        ("log-0000000000000001", Corrupt, "identity is missing"),
        ("raft-log-0000000000000001", Corrupt, "identity is missing"),
        ("table", Corrupt, "identity is missing"),
    ):
        storage = SimStorage(random.Random(0))
        await storage.lock()
        await storage.create(name, 0)
        await storage.unlock()
        with pytest.raises(kind, match=what):
            async with open_directory(storage, random.Random(0)):
                pass
        assert storage.names() == [name]


async def test_a_cluster_is_adopted_once_and_nothing_written_before_is_lost() -> None:
    """A new directory may wait for its cluster; what it wrote before and after is read back under the id that it adopted."""
    storage = SimStorage(random.Random(0))
    for cluster_id in (NO_CLUSTER, b"c" * 16, b"c" * 16):
        async with open_directory(storage, random.Random(0), segment_bytes=SMALL, without_cluster=True) as directory:
            loaded = await load(directory)
            if cluster_id != NO_CLUSTER:
                await directory.adopt_cluster(cluster_id)
                await directory.adopt_cluster(cluster_id)
            seq = len(loaded.sequence()) + 1
            await directory.log.append([Record(1, directory.identity.boot_no, seq, 1, bytes(600))])
            await directory.snapshot([Block(1, 1, 1, seq, b"state")])
            assert directory.identity.cluster_id == cluster_id
        storage = storage.crash()
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL, without_cluster=True) as directory:
        assert directory.identity.cluster_id == b"c" * 16
        assert len((await load(directory)).sequence()) == 3
        with pytest.raises(AssertionError, match="for ever"):
            await directory.adopt_cluster(b"d" * 16)


async def test_a_directory_that_drew_its_cluster_stays_readable_for_older_versions() -> None:
    """Without peers nothing about the identity file is new, and asking to wait for a cluster changes nothing for a known directory."""
    storage = SimStorage(random.Random(0))
    await reload(storage)
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL, without_cluster=True) as directory:
        assert directory.identity.cluster_id != NO_CLUSTER
    assert b"format 1\n" in storage.contents("identity")


async def test_a_full_disk_leaves_the_identity_as_it_was() -> None:
    """An adoption that finds no space has not happened, and can be repeated."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL, without_cluster=True) as directory:
        storage.capacity_bytes = storage.used_bytes
        with pytest.raises(NoSpace):
            await directory.adopt_cluster(b"c" * 16)
        assert directory.identity.cluster_id == NO_CLUSTER
        storage.capacity_bytes = None
        await directory.adopt_cluster(b"c" * 16)


async def test_leftovers_of_a_first_start_and_of_the_file_system_do_not_matter() -> None:
    """An unfinished identity of an interrupted first start, and `lost+found`, are no foreign files."""
    storage = SimStorage(random.Random(0))
    await storage.lock()
    await storage.create("lost+found", 0)
    await storage.create("identity.new", 0)
    await storage.unlock()
    await reload(storage)


async def test_a_newer_format_and_a_damaged_identity_are_refused() -> None:
    """Each with one line that says what to do."""
    for old, new, kind in ((b"format 1", b"format 3", FormatTooNew), (b"boot_no 1", b"boot_no 7", Corrupt)):
        storage = SimStorage(random.Random(0))
        await reload(storage)
        file = await storage.open("identity")
        await file.write(0, storage.contents("identity").replace(old, new))
        with pytest.raises(kind, match=r"identity|format 3") as caught:
            await reload(storage)
        assert "\n" not in str(caught.value)


# --- loading and snapshots ----------------------------------------------------------------------------------------------------


async def test_blocks_come_first_then_the_log_in_small_pieces() -> None:
    """Loading never hands over more than 512 records or about 1 MiB of blocks at a time, and lets other tasks run between."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0)) as directory:
        await load(directory)
        await directory.snapshot(Block(slot, 1, 1, 0, bytes(300_000)) for slot in range(20))
        await directory.log.append([Record(7, 1, seq, 1, b"x" * 50) for seq in range(1, 3001)])
    async with open_directory(storage, random.Random(0)) as directory:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            loaded = await load(directory)
            nursery.cancel_scope.cancel()
    assert loaded.report.blocks == 20
    assert loaded.report.records == 3000
    assert list(loaded.blocks) == list(range(20))
    assert loaded.sequence(7) == list(range(1, 3001))
    assert loaded.calls[:7] == [3, 3, 3, 3, 3, 3, 2]
    assert max(loaded.calls) == 512
    assert turns > len(loaded.calls)


async def test_a_snapshot_is_taken_slot_by_slot_while_appends_go_on(autojump_clock: trio.testing.MockClock) -> None:
    """Blocks are asked for lazily; what is appended before, during and after is neither lost nor doubled."""
    storage = SimStorage(random.Random(0))
    seq = [0] * 8

    async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
        await load(directory)
        storage.latency_seconds = (0.001, 0.01)

        async def appending() -> None:
            for number in range(100):
                slot = number % 8
                await directory.log.append([Record(slot, 1, seq[slot] + 1, 1, bytes(100))])
                seq[slot] += 1

        def captured() -> Iterator[Block]:
            for slot in range(8):
                yield Block(slot, 1, 1, seq[slot], bytes(2_000_000))

        async def captured_asynchronously() -> AsyncIterator[Block]:
            for block in captured():
                await trio.sleep(0.02)
                yield block

        async with trio.open_nursery() as nursery:
            await nursery.start(directory.run)
            async with trio.open_nursery() as working:
                working.start_soon(appending)
                await trio.sleep(0.1)
                await directory.snapshot(captured())
                await directory.snapshot(captured_asynchronously())
            nursery.cancel_scope.cancel()
        assert sum(seq) == 100
    loaded = await reload(storage)
    assert [loaded.sequence(slot) for slot in range(8)] == [list(range(1, count + 1)) for count in seq]
    assert 0 < sum(block.seq for block in loaded.blocks.values()) < 100


async def test_a_snapshot_during_an_append_of_several_batches_misses_none_of_them(autojump_clock: trio.testing.MockClock) -> None:
    """A replay begins before an append of which only some batches are durable: the caller has applied none of its records yet."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
        await load(directory)
        storage.latency_seconds = (1.0, 1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.log.append, [Record(1, 1, seq, 1, bytes(1500)) for seq in range(1, 13)])
            while directory.log.statistics().batches < 2:
                await trio.sleep(0.5)
            storage.latency_seconds = (0.0, 0.0)
            await directory.snapshot([Block(1, 1, 0, 0, b"")])
    storage = storage.crash()
    assert (await reload(storage)).sequence() == list(range(1, 13))


async def test_two_snapshots_are_kept_and_the_log_from_the_older_one_on() -> None:
    """Segments go only when two good snapshots have made them needless, and then they do go."""
    storage = SimStorage(random.Random(0))
    await work(storage, 20, snapshot_after=(18,))
    assert "log-0000000000000001" in storage.names()
    assert snapshots_of(storage) == ["snapshot-0000000000000001"]
    await work(storage, 40, snapshot_after=(30, 45, 55))
    assert snapshots_of(storage) == ["snapshot-0000000000000003", "snapshot-0000000000000004"]
    first = min(name for name in storage.names() if name.startswith("log-"))
    assert first > "log-0000000000000003"
    assert (await reload(storage)).sequence() == list(range(1, 61))


async def test_how_much_a_restart_would_read_is_known() -> None:
    """`bytes_since_snapshot` grows with appends, falls to nothing with a snapshot, and survives a restart."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0)) as directory:
        await load(directory)
        assert directory.bytes_since_snapshot == 0
        await directory.log.append([Record(1, 1, 1, 1, bytes(5000))])
        assert directory.bytes_since_snapshot > 5000
        await directory.snapshot([Block(1, 1, 1, 1, b"")])
        assert directory.bytes_since_snapshot == 0
        await directory.log.append([Record(1, 1, 2, 1, bytes(4000))])
    async with open_directory(storage, random.Random(0)) as directory:
        await load(directory)
        assert 4000 <= directory.bytes_since_snapshot < 5000


async def test_a_snapshot_that_finds_no_space_changes_nothing() -> None:
    """`NoSpace` from a snapshot: no unfinished file is left, older ones stay, appends go on, and the next one succeeds."""
    storage = SimStorage(random.Random(0))
    await work(storage, 5, snapshot_after=(5,))
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
        await load(directory)
        storage.capacity_bytes = storage.used_bytes + 100_000
        with pytest.raises(NoSpace):
            await directory.snapshot(Block(1, 1, 1, 5, bytes(60_000)) for _ in range(100))
        assert snapshots_of(storage) == ["snapshot-0000000000000001"]
        await directory.log.append([Record(1, 2, 6, 1, b"")])
        storage.capacity_bytes = None
        await directory.snapshot([Block(1, 1, 1, 6, b"")])
    assert snapshots_of(storage) == ["snapshot-0000000000000001", "snapshot-0000000000000002"]
    assert (await reload(storage)).sequence() == list(range(1, 7))


async def test_a_snapshot_that_meets_a_failing_disk_leaves_the_disk_alone() -> None:
    """Rule W4 holds for snapshots too: `StorageFailed`, and not one operation more."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
        await load(directory)
        failed_at: list[int] = []

        def fails(operation: Operation) -> bool:
            if operation.kind == "sync":
                failed_at.append(operation.number)
            return operation.kind == "sync"

        storage.fails = fails
        with pytest.raises(StorageFailed):
            await directory.snapshot([Block(1, 1, 1, 1, b"")])
        assert [storage.operations] == failed_at


async def test_an_unfinished_snapshot_is_removed_by_the_next_start() -> None:
    """A cancelled snapshot leaves at most its unfinished file, and the next start removes it."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
        await load(directory)
        with trio.CancelScope() as scope:

            def blocks() -> Iterator[Block]:
                yield Block(1, 1, 1, 0, b"")
                scope.cancel()
                yield Block(2, 1, 1, 0, b"")

            await directory.snapshot(blocks())
        assert scope.cancelled_caught
        assert snapshots_of(storage) == ["snapshot.new"]
    await reload(storage)
    assert snapshots_of(storage) == []


# --- damage -------------------------------------------------------------------------------------------------------------------


async def test_a_flipped_bit_in_the_newest_snapshot_costs_nothing() -> None:
    """The one before it and its log give the same state; the bad file is set aside and a note says so."""
    original = SimStorage(random.Random(0))
    await work(original, 40, snapshot_after=(10, 20, 30))
    chance = random.Random(1)
    newest = snapshots_of(original)[-1]
    for _ in range(50):
        storage = copy.deepcopy(original)
        storage.flip(newest, chance.randrange(len(storage.contents(newest))), 1 << chance.randrange(8))
        loaded = await reload(storage)
        if newest in storage.names():  # the flip hit a byte that stands for nothing
            pytest.fail("a flip anywhere is covered by the checksum")
        assert loaded.sequence() == list(range(1, 41))
        assert f"{newest}.damaged" in storage.names()
        assert [newest in note for note in loaded.report.notes] == [True]
        await work(storage, 10, snapshot_after=(45,))
        assert (await reload(storage)).sequence() == list(range(1, 51))
        assert f"{newest}.damaged" in storage.names()


async def test_a_bad_first_snapshot_is_replaced_by_the_whole_log() -> None:
    """With only one snapshot the log still reaches back to its beginning."""
    storage = SimStorage(random.Random(0))
    await work(storage, 15, snapshot_after=(10,))
    storage.flip(snapshots_of(storage)[0], 600)
    assert (await reload(storage)).sequence() == list(range(1, 16))


async def test_when_both_snapshots_are_bad_the_start_is_refused_until_salvage() -> None:
    """One line that says what to do; salvage keeps what the log has and the directory opens again and goes on."""
    storage = SimStorage(random.Random(0))
    await work(storage, 40, snapshot_after=(10, 20, 30))
    for name in snapshots_of(storage):
        storage.flip(name, 600)
    for _ in range(2):
        with pytest.raises(Corrupt, match="--salvage"):
            await reload(storage)
    report = await salvage(storage, segment_bytes=SMALL)
    assert "every snapshot is lost" in report.damage
    assert report.records_kept > 10
    loaded = await reload(storage)
    assert [record.seq for record in loaded.records] == list(range(41 - report.records_kept, 41))
    await work_on(storage, 41)
    assert [record.seq for record in (await reload(storage)).records][-1] == 41


async def work_on(storage: SimStorage, seq: int) -> None:
    async with open_directory(storage, random.Random(0), segment_bytes=SMALL) as directory:
        await load(directory)
        await directory.log.append([Record(1, 9, seq, 1, b"")])


async def damaged_in_the_middle() -> SimStorage:
    storage = SimStorage(random.Random(0))
    await work(storage, 30, snapshot_after=(5,))
    storage.flip("log-0000000000000004", 4096 + 1024 + 40)
    return storage


def check_salvaged(report: SalvageReport, storage: SimStorage) -> None:
    assert report.blocks_kept == 1
    assert report.records_kept > 3
    assert 0 < report.records_dropped < 30 - report.records_kept
    assert report.slots_dropped == (1,)
    assert "log-0000000000000004.damaged" in report.set_aside
    assert all(name in storage.names() for name in report.set_aside)
    lines = report.lines()
    assert lines[0].startswith("damage: ")
    assert all("\n" not in line for line in lines)


async def test_salvage_keeps_the_proven_records_and_sets_the_rest_aside() -> None:
    """After damage in the middle the start is refused; after salvage it succeeds with exactly the records before the damage."""
    storage = await damaged_in_the_middle()
    before = storage.contents("log-0000000000000004")
    with pytest.raises(Corrupt, match="log-0000000000000004 is damaged at byte 5120"):
        await reload(storage)
    report = await salvage(storage, segment_bytes=SMALL)
    check_salvaged(report, storage)
    assert storage.contents("log-0000000000000004.damaged") == before
    loaded = await reload(storage)
    assert loaded.sequence() == list(range(1, 5 + report.records_kept + 1))
    await work(storage, 30)
    assert (await reload(storage)).sequence() == list(range(1, 5 + report.records_kept + 31))


async def test_salvage_interrupted_anywhere_can_be_run_again() -> None:
    """A crash at each of its operations, then a second salvage: the same records are kept, and no damaged file is lost (V1)."""
    original = await damaged_in_the_middle()
    number = original.operations
    expected = (await salvage(copy.deepcopy(original), segment_bytes=SMALL)).records_kept
    while True:
        number += 1
        storage = copy.deepcopy(original)
        before = storage.contents("log-0000000000000004")
        after: list[SimStorage] = []

        def crash(operation: Operation, number: int = number, storage: SimStorage = storage, after: list[SimStorage] = after) -> None:
            if operation.number == number:
                after.append(storage.crash())

        storage.before = crash
        try:
            await salvage(storage, segment_bytes=SMALL)
        except StorageFailed:
            storage = after[0]
        else:
            break
        storage.before = None
        await salvage(storage, segment_bytes=SMALL)
        assert (await reload(storage)).sequence() == list(range(1, 5 + expected + 1))
        assert before in [storage.contents(name) for name in storage.names() if name.startswith("log-0000000000000004")]
    assert number > original.operations + 20


async def test_salvage_without_the_segment_in_which_the_snapshot_begins() -> None:
    """The snapshot alone is kept and given a new place in the log (V2)."""
    storage = SimStorage(random.Random(0))
    await work(storage, 30, snapshot_after=(10, 20))
    for number in range(1, 7):
        await storage.remove(f"log-{number:016d}")
    with pytest.raises(Corrupt):
        await reload(storage)
    report = await salvage(storage, segment_bytes=SMALL)
    assert report.records_kept == 0
    assert report.records_dropped > 0
    assert (await reload(storage)).sequence() == list(range(1, 21))
    await work(storage, 3)
    assert (await reload(storage)).sequence() == list(range(1, 24))


async def test_salvage_of_a_sound_directory_changes_nothing() -> None:
    """It says that nothing is damaged; of an empty directory it says that there is nothing."""
    storage = SimStorage(random.Random(0))
    with pytest.raises(StorageError, match="nothing to salvage"):
        await salvage(storage)
    await work(storage, 20, snapshot_after=(10,))
    before = {name: storage.contents(name) for name in storage.names()}
    report = await salvage(storage, segment_bytes=SMALL)
    assert report.damage == ""
    assert "not damaged" in report.lines()[0]
    assert {name: storage.contents(name) for name in storage.names()} == before


# --- on a real disk -----------------------------------------------------------------------------------------------------------


async def test_a_life_on_a_real_directory(tmp_path: pathlib.Path) -> None:
    """The whole room over real files: appends, snapshots, rotation and restarts give back what was acknowledged."""
    seq = 0
    for _ in range(3):
        async with open_directory(DirectoryStorage(str(tmp_path)), random.SystemRandom(), segment_bytes=65536) as directory:
            loaded = await load(directory)
            assert loaded.sequence() == list(range(1, seq + 1))
            async with trio.open_nursery() as nursery:
                await nursery.start(directory.run)
                for step in range(60):
                    await directory.log.append(
                        [Record(1, directory.identity.boot_no, seq + 1 + number, 1, bytes(300)) for number in range(10)]
                    )
                    seq += 10
                    if step % 25 == 24:
                        await directory.snapshot([Block(1, 1, 1, seq, bytes(100_000))])
                nursery.cancel_scope.cancel()
    assert len([name for name in os.listdir(tmp_path) if name.startswith("snapshot-")]) == 2


# --- hostile files ------------------------------------------------------------------------------------------------------------


async def read_hostile(storage: SimStorage) -> None:
    try:
        loaded = await reload(storage)
    except StorageError as error:
        assert "\n" not in str(error)
    else:
        assert loaded.sequence() == list(range(1, len(loaded.sequence()) + 1))
        await work(storage, 2)


@pytest.fixture(scope="module")
def aged() -> SimStorage:
    storage = SimStorage(random.Random(0))
    trio.run(work, storage, 12, (5, 9))
    return storage


@given(st.data())
def test_files_of_any_contents_are_loaded_or_refused(aged: SimStorage, data: st.DataObject) -> None:
    """Whatever somebody wrote into the files, loading ends with one line or with a row of operations that has no gap (§21.21)."""
    storage = copy.deepcopy(aged)
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(storage.names()))
        content = storage.contents(name)
        at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, min(150, len(content) - 1)))
        for index, byte in enumerate(data.draw(st.binary(min_size=1, max_size=24))):
            if at + index < len(content):
                storage.flip(name, at + index, byte)
    trio.run(read_hostile, storage)
