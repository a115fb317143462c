"""The simulated disk itself: it must be as unkind as it says, no less and no more."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
import trio.testing

from govern.errors import NoSpace, StorageError, StorageFailed
from govern.storage.sim import SECTOR, Operation, SimStorage


async def two_versions(seed: int) -> bytes:
    """What a crash leaves of four sectors that were synced as `a`, then overwritten as `b`, then as `c`."""
    storage = SimStorage(random.Random(seed))
    await storage.lock()
    file = await storage.create("f", 0)
    await storage.sync_directory()
    await file.write_durable(0, b"a" * 4 * SECTOR)
    await file.write(0, b"b" * 4 * SECTOR)
    await file.write(0, b"c" * 4 * SECTOR)
    return storage.crash().contents("f")


async def test_a_crash_leaves_any_version_of_each_sector() -> None:
    """Old, middle and new versions of a sector survive, in any mixture, but a sector is never torn inside."""
    mixtures = Counter([await two_versions(seed) for seed in range(200)])
    sectors = Counter(content[start : start + SECTOR] for content in mixtures for start in range(0, len(content), SECTOR))
    assert sorted(sectors) == [letter * SECTOR for letter in (b"a", b"b", b"c")]
    assert len(mixtures) > 20
    assert b"a" * 4 * SECTOR in mixtures
    assert b"c" * 4 * SECTOR in mixtures


async def test_what_was_synced_survives_every_crash() -> None:
    """Contents after `sync`, names after `sync_directory`: whatever the seed."""
    for seed in range(50):
        storage = SimStorage(random.Random(seed))
        await storage.lock()
        file = await storage.create("new", 1000)
        await file.write(100, b"kept")
        await file.sync()
        await storage.rename("new", "name")
        await storage.sync_directory()
        storage = storage.crash()
        assert storage.names() == ["name"]
        assert storage.contents("name") == bytes(100) + b"kept" + bytes(896)


async def test_names_are_lost_until_the_directory_is_synced() -> None:
    """A creation, a renaming and a removal each survive some crashes and not others."""
    seen: Counter[tuple[str, ...]] = Counter()
    for seed in range(100):
        storage = SimStorage(random.Random(seed))
        await storage.lock()
        for name in ("old", "gone"):
            await storage.create(name, 1)
        await storage.sync_directory()
        await storage.create("made", 1)
        await storage.rename("old", "new")
        await storage.remove("gone")
        seen[tuple(storage.crash().names())] += 1
    assert seen[("gone", "old")] > 0
    assert seen[("made", "new")] > 0
    assert len(seen) == 8


async def test_the_dead_cannot_write() -> None:
    """After a crash the old door and its files raise at every operation; only closing and unlocking are silent (M1)."""
    for end in (SimStorage.crash, SimStorage.kill):
        storage = SimStorage(random.Random(0))
        await storage.lock()
        file = await storage.create("f", 1)
        await storage.sync_directory()
        reborn = end(storage)
        await reborn.lock()
        operations = storage.operations
        for operation in (
            file.write(0, b"ghost"),
            file.write_durable(0, b"ghost"),
            file.sync(),
            file.read(0, 1),
            storage.create("g", 1),
            storage.rename("f", "g"),
            storage.remove("f"),
            storage.sync_directory(),
            storage.list(),
            storage.lock(),
        ):
            with pytest.raises(StorageFailed):
                await operation
        await file.close()
        await storage.unlock()
        assert storage.operations == operations
        assert reborn.contents("f") == b"\0"
        with pytest.raises(StorageError):
            await reborn.second_door().lock()  # the ghost's `unlock` has not freed the lock of the living


async def test_a_killed_process_loses_nothing_that_it_wrote() -> None:
    """The machine lives: unsynced bytes and names stay. A later loss of power may still take them."""
    storage = SimStorage(random.Random(0))
    await storage.lock()
    file = await storage.create("f", 0)
    await file.write(0, b"unsynced")
    reborn = storage.kill()
    assert reborn.contents("f") == b"unsynced"
    survivors = [(await written_and_killed(seed)).crash().names() for seed in range(20)]
    assert [] in survivors
    assert ["f"] in survivors


async def written_and_killed(seed: int) -> SimStorage:
    storage = SimStorage(random.Random(seed))
    await storage.lock()
    await storage.create("f", 0)
    return storage.kill()


async def test_after_a_failed_sync_a_later_one_succeeds_falsely() -> None:
    """What the failed sync lost is read back until the power goes, and no later sync brings it to the platter (M2)."""
    lost = 0
    for seed in range(30):
        storage = SimStorage(random.Random(seed))
        await storage.lock()
        file = await storage.create("f", 0)
        await storage.sync_directory()
        await file.write(0, b"data")
        storage.fails = lambda operation: operation.kind == "sync"
        with pytest.raises(StorageFailed, match="Input/output error"):
            await file.sync()
        storage.fails = None
        await file.sync()
        assert await file.read(0, 4) == b"data"
        lost += storage.crash().contents("f") != b"data"
    assert 0 < lost < 30


async def test_a_disk_has_an_end() -> None:
    """Creating and growing beyond the capacity raises `NoSpace` and leaves nothing; overwriting and removing always work."""
    storage = SimStorage(random.Random(0))
    await storage.lock()
    storage.capacity_bytes = 1000
    file = await storage.create("f", 900)
    with pytest.raises(NoSpace):
        await storage.create("g", 200)
    with pytest.raises(NoSpace):
        await file.write(850, bytes(200))
    assert storage.names() == ["f"]
    assert storage.used_bytes == 900
    await file.write(0, bytes(900))
    await storage.remove("f")
    assert storage.used_bytes == 0


async def test_operations_take_the_time_they_are_told(autojump_clock: trio.testing.MockClock) -> None:
    """Latency is virtual time, drawn from the seed, and a cancelled operation is finished first (M3)."""
    storage = SimStorage(random.Random(0))
    await storage.lock()
    file = await storage.create("f", 0)
    storage.latency_seconds = (1.0, 1.0)
    with trio.move_on_after(0.5):
        await file.write_durable(0, b"whole")
    assert trio.current_time() == pytest.approx(2.0)
    storage.latency_seconds = (0.0, 0.0)
    assert await file.read(0, 9) == b"whole"


async def test_the_hook_sees_every_step_that_can_be_torn() -> None:
    """Numbers are dense; `create` and `write_durable` are two steps each (M4)."""
    storage = SimStorage(random.Random(0))
    seen: list[Operation] = []
    storage.before = seen.append
    await storage.lock()
    file = await storage.create("f", 1)
    await file.write_durable(0, b"x")
    await storage.sync_directory()
    assert [(operation.kind, operation.name) for operation in seen] == [
        ("lock", "lock"),
        ("create", "f"),
        ("allocate", "f"),
        ("write", "f"),
        ("sync", "f"),
        ("sync directory", ""),
    ]
    assert [operation.number for operation in seen] == [1, 2, 3, 4, 5, 6]
    assert storage.operations == 6


async def test_a_sync_covers_what_was_written_before_it_began(autojump_clock: trio.testing.MockClock) -> None:
    """A write that arrives while the disk syncs is for the next sync, also when two syncs overlap."""
    survived: Counter[bytes] = Counter()
    for seed in range(40):
        storage = SimStorage(random.Random(seed))
        await storage.lock()
        file = await storage.create("f", 0)
        await storage.sync_directory()
        await file.write(0, b"1")
        storage.latency_seconds = (1.0, 1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.sync)
            nursery.start_soon(file.sync)
            await trio.sleep(0.5)
            storage.latency_seconds = (0.0, 0.0)
            await file.write(0, b"2")
        survived[storage.crash().contents("f")] += 1
    assert sorted(survived) == [b"1", b"2"]
