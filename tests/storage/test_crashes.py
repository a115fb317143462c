"""Power is lost at every I/O operation of a whole life of a data directory, with many seeds; and the test itself is tested.

The life: starts, appends (some of several batches), changes of segment, snapshots, deletion of segments, stops without a goodbye.
After each crash the directory is opened again and must give back exactly what was appended: everything acknowledged, in order, and
beyond it at most the one append that was under way, as a prefix. The model knows nothing of files: it is a list of records.

The mutants at the end are broken on purpose, each in one way that a crash should reveal. If a change to the simulated disk made it too
kind, they would live, and their tests fail.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from govern.errors import Corrupt, StorageError, StorageFailed
from govern.storage import format as storage_format
from govern.storage import recovery
from govern.storage.directory import DataDirectory, LoadReport, open_directory
from govern.storage.format import Record
from govern.storage.sim import Operation, SimFile, SimStorage
from govern.storage.snapshots import Block, SnapshotWriter

from ..deep import seeds
from .mutants import read_batch_without_checksum

SEGMENT_BYTES = 8192
SLOTS = 3


class Model:
    """What the program knows: every record it appended, and how many of them were acknowledged."""

    def __init__(self) -> None:
        self.appended: list[Record] = []
        self.acknowledged = 0
        self.seq = [0] * SLOTS


class Store:
    """The state of a node in one life: per slot the list of its records, fed by loading and by appends."""

    def __init__(self) -> None:
        self.slots: dict[int, list[Record]] = {}
        self.report: LoadReport | None = None

    def on_blocks(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self.slots[block.slot] = list(storage_format.decode_records(block.state, block.seq))

    def on_records(self, records: Sequence[Record]) -> None:
        for record in records:
            known = self.slots.setdefault(record.slot, [])
            if record.seq > len(known):
                assert record.seq == len(known) + 1, f"a gap before {record.seq} of slot {record.slot}"
                known.append(record)
            else:
                assert known[record.seq - 1] == record, "one lsn with two contents"

    def blocks(self) -> list[Block]:
        return [Block(slot, 1, 1, len(known), b"".join(map(encoded, known))) for slot, known in sorted(self.slots.items())]


def encoded(record: Record) -> bytes:
    ((payload, _),) = storage_format.encode_records([record])
    return payload


async def load(directory: DataDirectory) -> Store:
    store = Store()
    store.report = await directory.load(store.on_blocks, store.on_records)
    return store


def check(model: Model, store: Store) -> None:
    """Everything acknowledged is there and nothing that was never appended; then forget what was lost with the unacknowledged append."""
    found = sum(map(len, store.slots.values()))
    expected: dict[int, list[Record]] = {}
    for record in model.appended[:found]:
        expected.setdefault(record.slot, []).append(record)
    assert found >= model.acknowledged, f"{model.acknowledged} were acknowledged, {found} are there"
    assert found <= len(model.appended), "more is there than ever was appended"
    assert store.slots == expected, "the log is not a prefix of what was appended"
    del model.appended[found:]
    model.acknowledged = found
    model.seq = [len(store.slots.get(slot, ())) for slot in range(SLOTS)]


async def append(directory: DataDirectory, store: Store, model: Model, chance: random.Random, count: int, size: int) -> None:
    records = []
    for _ in range(count):
        slot = chance.randrange(SLOTS)
        model.seq[slot] += 1
        records.append(Record(slot, directory.identity.boot_no, model.seq[slot], 1, chance.randbytes(chance.randrange(size))))
    model.appended += records
    await directory.log.append(records)
    store.on_records(records)
    model.acknowledged = len(model.appended)


async def live(storage: SimStorage, model: Model, chance: random.Random, steps: int) -> None:
    """One life of a node: load, check, work, and stop without closing anything in order."""
    async with open_directory(storage, chance, segment_bytes=SEGMENT_BYTES) as directory:
        store = await load(directory)
        check(model, store)
        async with trio.open_nursery() as nursery:
            await nursery.start(directory.run)
            for step in range(steps):
                await append(directory, store, model, chance, *chance.choice(((1, 50), (3, 400), (6, 1200), (12, 1000))))
                if step % 3 == 2:
                    await directory.snapshot(store.blocks())
            nursery.cancel_scope.cancel()


async def crash_at(number: int, seed: int) -> bool:
    """Four lives; the power is lost at operation `number` and once more soon after, so that recovery itself is interrupted as well.

    In half of the runs the first event is only the death of the process: the next life then reads what nobody has synced, and must
    not take it for durable.

    False when there are no so many operations.
    """
    chance = random.Random(seed)
    door = SimStorage(random.Random(seed * 1000 + number))
    crashes = [number + chance.randrange(1, 30), number]
    kill_first = chance.random() < 0.5
    after: list[SimStorage] = []

    def before(operation: Operation) -> None:
        if crashes and operation.number == crashes[-1]:
            crashes.pop()
            after.append(door.kill() if crashes and kill_first else door.crash())

    door.before = before
    model, reached = Model(), False
    for steps in (7, 4, 3, 3, 0):
        if steps == 0:
            reached = len(crashes) < 2
            crashes.clear()
        try:
            await live(door, model, chance, steps)
        except* StorageFailed:
            if not after:
                raise
        door = after.pop() if after else door.kill()
    return reached


def crash_everywhere(seed: int, stride: int = 1) -> int:
    """Run the lives once per operation, crashing there; the number of the last operation."""

    async def everywhere() -> int:
        number = 1
        while await crash_at(number, seed):
            number += stride
        return number

    return trio.run(everywhere, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("seed", seeds(1, 8))
def test_a_crash_at_every_operation_loses_nothing_that_was_acknowledged(seed: int) -> None:
    """Whatever sectors and names survive, recovery succeeds and gives back what was acknowledged, in order and without inventions."""
    assert crash_everywhere(seed) > 100


async def test_the_life_does_everything_that_a_crash_could_interrupt() -> None:
    """A quiet run of the life changes segments, deletes some, keeps two snapshots and leaves no unfinished file."""
    door, model = SimStorage(random.Random(1)), Model()
    await live(door, model, random.Random(1), 12)
    names = door.names()
    assert names[0] == "identity"
    assert min(name for name in names if name.startswith("log-")) > "log-0000000000000001"
    assert [name for name in names if name.startswith("snapshot")] == ["snapshot-0000000000000003", "snapshot-0000000000000004"]


# --- mutants ------------------------------------------------------------------------------------------------------------------


def is_found(stride: int = 3) -> bool:
    """Whether some crash makes the (broken) program lose, invent or refuse something."""
    for seed in range(20):
        found: list[BaseException] = []
        try:
            crash_everywhere(seed, stride)
        except* (AssertionError, StorageError) as errors:
            found.append(errors)
        if found:
            return True
    return False


def test_the_mutant_that_acknowledges_before_the_sync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sync of an append, acknowledged records are lost."""
    monkeypatch.setattr(SimFile, "write_durable", SimFile.write)
    assert is_found()


def test_the_mutant_that_does_not_sync_files_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sync before its rename, a snapshot is torn after the log that could replace it is gone."""

    async def sync(file: SimFile) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(SimFile, "sync", sync)
    assert is_found()


def test_the_mutant_that_does_not_sync_the_directory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without syncs of the directory, a whole segment with acknowledged records disappears with its name."""

    async def sync_directory(storage: SimStorage) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(SimStorage, "sync_directory", sync_directory)
    assert is_found()


def test_the_mutant_that_trusts_checksums_blindly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checksums a torn batch is taken for a whole one, and records come back that nobody appended."""

    monkeypatch.setattr(recovery, "read_batch", read_batch_without_checksum)
    assert is_found()


def test_the_mutant_that_deletes_the_log_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """When segments go before the snapshot that replaces them is under its name, a crash between the two loses them."""

    async def finish(writer: SnapshotWriter) -> None:
        await writer.close()

    monkeypatch.setattr(SnapshotWriter, "finish", finish)
    assert is_found()


# --- bits that rot ------------------------------------------------------------------------------------------------------------


async def aged(seed: int) -> tuple[SimStorage, Model, int]:
    """A directory after one life without snapshots, its model, and how many records there were before the last append."""
    storage, chance, model = SimStorage(random.Random(seed)), random.Random(seed), Model()
    async with open_directory(storage, chance, segment_bytes=SEGMENT_BYTES) as directory:
        store = await load(directory)
        for _ in range(12):
            before_last = len(model.appended)
            await append(directory, store, model, chance, 3, 600)
    return storage, model, before_last


async def lost_by_a_flip(seed: int) -> int:
    """Flip one bit anywhere in the log; how many flips made records disappear without a word."""
    storage, model, before_last = await aged(seed)
    chance, silent, refusals = random.Random(seed), 0, list[str]()
    for _ in range(60):
        copied = copy.deepcopy(storage)
        name = chance.choice([name for name in copied.names() if name.startswith("log-")])
        copied.flip(name, chance.randrange(len(copied.contents(name))), 1 << chance.randrange(8))
        try:
            async with open_directory(copied, chance, segment_bytes=SEGMENT_BYTES) as directory:
                store = await load(directory)
        except Corrupt as error:
            refusals.append(str(error))
            continue
        if sum(map(len, store.slots.values())) < before_last:
            silent += 1
        else:
            check(with_fewer_acknowledged(model, before_last), store)
    assert all("records before it are proven" in line and "--salvage" in line and "\n" not in line for line in refusals)
    return silent


def with_fewer_acknowledged(model: Model, acknowledged: int) -> Model:
    """The same history with fewer acknowledgements: a flip in the last batch looks like a torn tail."""
    prefix = Model()
    prefix.appended, prefix.acknowledged = list(model.appended), acknowledged
    return prefix


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_in_the_log_is_never_a_silent_loss(seed: int) -> None:
    """Either the start is refused with one line, or everything is there; only the very last batch may be taken for a torn tail."""
    assert trio.run(lost_by_a_flip, seed) == 0


def test_the_mutant_that_cuts_at_the_first_bad_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without looking on behind the first bad batch (W2), a flipped bit silently loses what follows."""

    async def check_behind(reader: recovery.LogReader) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(recovery.LogReader, "_check_behind", check_behind)
    assert trio.run(lost_by_a_flip, 1) > 0
