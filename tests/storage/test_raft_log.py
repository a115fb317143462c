"""The log of a candidate: what comes back, what a full or failing disk does, and what damage is refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from govern.errors import Corrupt, NoSpace, StorageError, StorageFailed
from govern.peer_messages import Entry
from govern.storage.directory import open_directory
from govern.storage.format import FormatError, Record
from govern.storage.raft_log import ENTRY_BYTES_MAX, RAFT_SEGMENT_BYTES, MemoryRaftLog, RaftLog
from govern.storage.raft_records import (
    ENTRY,
    INSTALLED,
    REPEATED,
    STATE,
    RaftSaved,
    RaftSnapshot,
    Replay,
    VoteState,
    entry_record,
    read_snapshot,
    repeated_record,
    snapshot_blocks,
    state_record,
)
from govern.storage.salvage import salvage
from govern.storage.sim import Operation, SimStorage
from govern.storage.snapshots import Block

from .raft_model import BLANK, MEMBERS, OURS, SEGMENT_BYTES, Step, begun, open_log, prepared, reload
from .test_directory import load as load_slots


def entry(index: int, term: int = 1, size: int = 10) -> Entry:
    return Entry(index, term, 1, bytes([index % 256]) * size)


def snapshot(index: int, term: int = 1, size: int = 100) -> RaftSnapshot:
    return RaftSnapshot(index, term, MEMBERS, (), b"s" * size)


async def loaded(storage: SimStorage) -> RaftSaved:
    saved = await reload(storage)
    assert saved is not None
    return saved


# --- what comes back ------------------------------------------------------------------------------------------------------------


async def test_a_directory_that_was_never_a_candidate_has_no_log() -> None:
    """Loading gives None, again and again, until a log has begun."""
    storage = SimStorage(random.Random(0))
    for _ in range(3):
        assert await reload(storage) is None
        storage = storage.crash()


async def test_what_was_written_comes_back() -> None:
    """The vote, the entries, and the commit; an entry takes the place of its index and everything behind it."""
    storage, log = await prepared(
        [
            Step(VoteState(2, MEMBERS[0], 7), (entry(9, 2), entry(10, 2), entry(11, 2))),
            Step(VoteState(3, None, 9), (entry(10, 3),)),
            Step(VoteState(3, MEMBERS[2], 10)),
        ]
    )
    assert log.last_index == 10
    await log.close()
    saved = await loaded(storage.crash())
    assert saved == RaftSaved(VoteState(3, MEMBERS[2], 10), begun().snapshot, (*begun().entries, entry(9, 2), entry(10, 3)))


async def test_an_ordinary_write_is_one_sync() -> None:
    """Vote, commit and entries are one batch, and the disk is asked once."""
    storage, log = await prepared()
    kinds: list[str] = []
    storage.before = lambda operation: kinds.append(operation.kind)
    await log.write(VoteState(2, MEMBERS[0], 9), (entry(9, 2), entry(10, 2)))
    assert kinds == ["write", "sync"]
    await log.close()


async def test_a_commit_beyond_the_log_counts_as_its_end_and_one_before_the_snapshot_as_its_index() -> None:
    """What comes back never claims more than is there, nor less than the snapshot proves."""
    storage, log = await prepared([Step(VoteState(1, None, 99))])
    await log.close()
    assert (await loaded(storage)).hard.commit == 8
    storage = SimStorage(random.Random(0))
    log, _ = await open_log(storage)
    await log.begin(snapshot(20), VoteState(1, None, 0))
    await log.close()
    assert (await loaded(storage)).hard.commit == 20


async def test_a_waiting_candidate_begins_where_its_first_entry_says() -> None:
    """A blank log takes entries of any index, and a vote before them; then it has a beginning like any other."""
    storage = SimStorage(random.Random(0))
    log, _ = await open_log(storage)
    await log.begin(BLANK.snapshot, BLANK.hard)
    await log.write(VoteState(3, MEMBERS[1], 0))
    await log.close()
    assert await loaded(storage) == BLANK._replace(hard=VoteState(3, MEMBERS[1], 0))
    log, _ = await open_log(storage)
    await log.write(VoteState(3, MEMBERS[1], 8), (entry(8, 3), entry(9, 3)))
    with pytest.raises(AssertionError, match="does not follow"):
        await log.write(None, (entry(20, 3),))
    await log.close()
    for _ in range(2):
        saved = await loaded(storage)
        assert (saved.snapshot.index, saved.hard.commit, [each.index for each in saved.entries]) == (7, 8, [8, 9])


async def test_an_own_snapshot_takes_the_place_of_the_log_and_lets_old_segments_go() -> None:
    """The entries behind it stay; after two of them the first segments are gone, and what a restart reads is small again."""
    storage, log = await prepared()
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        for index in range(9, 100):
            await log.write(VoteState(1, None, index), (entry(index, 1, 500),))
            if index % 30 == 0:
                before = log.bytes_since_snapshot
                await log.save_snapshot(snapshot(index - 3))
                await log.save_snapshot(snapshot(index - 5))  # an older one is left out
                assert log.bytes_since_snapshot < before
        nursery.cancel_scope.cancel()
    await log.close()
    saved = await loaded(storage.crash())
    assert saved.snapshot == snapshot(87)
    assert [each.index for each in saved.entries] == list(range(88, 100))
    assert "raft-log-0000000000000001" not in storage.names()


async def test_writes_go_on_while_a_snapshot_is_written(autojump_clock: trio.testing.MockClock) -> None:
    """Only the repetition keeps a write waiting, not the file."""
    storage, log = await prepared([Step(VoteState(1, None, 12), tuple(entry(index) for index in range(9, 15)))])
    storage.latency_seconds = (0.01, 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.save_snapshot, snapshot(12, size=30_000_000))
        await trio.sleep(0.05)
        started = trio.current_time()
        await log.write(VoteState(2, MEMBERS[0], 14), (entry(15, 2),))
        assert trio.current_time() - started < 0.06
        assert "raft-snapshot-0000000000000002" not in storage.names()
    await log.close()
    storage.latency_seconds = (0.0, 0.0)
    saved = await loaded(storage.crash())
    assert (saved.hard, saved.snapshot.index) == (VoteState(2, MEMBERS[0], 14), 12)
    assert [each.index for each in saved.entries] == [13, 14, 15]


async def test_a_snapshot_of_the_leader_keeps_what_agrees_and_drops_what_does_not() -> None:
    """The rest of the log stays only when the log has the snapshot's term at its index; entries of the same write come behind."""
    entries = tuple(entry(index, 2) for index in range(9, 15))
    for taken, term, kept in ((12, 2, [13, 14]), (12, 3, []), (40, 3, [])):
        storage, log = await prepared([Step(VoteState(2, None, 9), entries)])
        await log.write(VoteState(4, None, taken), (), snapshot(taken, term))
        await log.write(VoteState(4, None, taken), (), snapshot(taken, term))  # repeated after a full disk: once more is harmless
        await log.close()
        saved = await loaded(storage.crash())
        assert (saved.snapshot, [each.index for each in saved.entries]) == (snapshot(taken, term), kept)
        assert saved.hard == VoteState(4, None, taken)
    storage, log = await prepared()
    await log.write(VoteState(4, None, 41), (entry(40, 3), entry(41, 3), entry(42, 3)), snapshot(40, 3))
    await log.close()
    assert [each.index for each in (await loaded(storage)).entries] == [41, 42]


async def test_our_own_mistakes_are_asserted() -> None:
    """Gaps, replacing what is committed, a snapshot of what is not durable, and too large an entry are bugs of the caller."""
    _, log = await prepared([Step(VoteState(1, None, 9), (entry(9), entry(10)))])
    with pytest.raises(AssertionError, match="does not follow"):
        await log.write(None, (entry(12),))
    with pytest.raises(AssertionError, match="committed"):
        await log.write(None, (entry(9, 2),))
    with pytest.raises(AssertionError, match="must follow each other"):
        await log.write(None, (entry(11), entry(13)))
    with pytest.raises(AssertionError, match="is not durable"):
        await log.save_snapshot(snapshot(11))
    with pytest.raises(AssertionError):
        await log.write(None, (entry(11, 1, ENTRY_BYTES_MAX + 1),))
    await log.close()


async def test_the_largest_entry_fits_into_a_segment_of_the_usual_size() -> None:
    """A batch lies in one segment; an entry in one batch."""
    storage = SimStorage(random.Random(0))
    log = RaftLog.open(storage, OURS)
    await log.load()
    with pytest.raises(AssertionError, match="begins before its first entry"):
        await log.begin(begun().snapshot, begun().hard)
    await log.begin(begun().snapshot, begun().hard, [entry(8, 1, ENTRY_BYTES_MAX)])
    await log.write(VoteState(1, None, 7), tuple(entry(index, 1, ENTRY_BYTES_MAX) for index in range(9, 13)))
    await log.close()
    assert len(storage.contents("raft-log-0000000000000001")) == RAFT_SEGMENT_BYTES
    log = RaftLog.open(storage, OURS)
    saved = await log.load()
    assert saved is not None
    assert [len(each.data) for each in saved.entries] == [ENTRY_BYTES_MAX] * 5
    await log.close()


# --- full and failing disks -------------------------------------------------------------------------------------------------------


async def test_votes_survive_a_full_disk(autojump_clock: trio.testing.MockClock) -> None:
    """The spare segment ahead has room for many votes; then a write is refused and nothing of it is there, until there is space."""
    storage, log = await prepared()
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        await trio.testing.wait_all_tasks_blocked()
        storage.capacity_bytes = storage.used_bytes
        term, refused = 1, False
        while not refused:
            try:
                await log.write(VoteState(term + 1, MEMBERS[0], 7))
                term += 1
            except NoSpace:
                refused = True
        assert (term > 10, log.full) == (True, True)
        with pytest.raises(NoSpace):
            await log.save_snapshot(snapshot(8))
        storage.capacity_bytes = None
        await trio.sleep(2)
        assert not log.full
        await log.write(VoteState(term + 1, MEMBERS[0], 8))
        await log.save_snapshot(snapshot(8))
        nursery.cancel_scope.cancel()
    await log.close()
    assert (await loaded(storage)).hard == VoteState(term + 1, MEMBERS[0], 8)


async def test_a_full_disk_during_a_snapshot_leaves_everything_as_it_was() -> None:
    """Neither an own snapshot nor one of the leader is lost or half there; each can be repeated."""
    storage, log = await prepared([Step(VoteState(1, None, 10), tuple(entry(index) for index in range(9, 13)))])
    storage.capacity_bytes = storage.used_bytes + 1000
    with pytest.raises(NoSpace):
        await log.save_snapshot(snapshot(10, size=5000))
    with pytest.raises(NoSpace):
        await log.write(VoteState(5, None, 40), (), snapshot(40, 5, size=5000))
    assert "raft-snapshot.new" not in storage.names()
    await log.write(VoteState(6, MEMBERS[1], 11))
    saved = await loaded(storage.second_door())
    assert (saved.hard, saved.snapshot.index, len(saved.entries)) == (VoteState(6, MEMBERS[1], 11), 7, 5)
    storage.capacity_bytes = None
    await log.write(VoteState(7, None, 40), (), snapshot(40, 5, size=5000))
    await log.close()
    assert (await loaded(storage)).snapshot == snapshot(40, 5, size=5000)


@pytest.mark.parametrize("kind", ["write", "sync", "create", "rename", "sync directory"])
async def test_after_a_failure_of_the_disk_nothing_is_written_any_more(kind: str) -> None:
    """Whatever operation failed, the log is poisoned (rule W4): the node must end."""
    storage, log = await prepared([Step(VoteState(1, None, 8), (entry(9), entry(10)))])
    storage.fails = lambda operation: operation.kind == kind
    with pytest.raises(StorageFailed):
        await log.write(VoteState(2, None, 30), (), snapshot(30, 2))
    storage.fails = None
    operations = storage.operations
    for _ in range(2):
        with pytest.raises(StorageFailed):
            await log.write(VoteState(3, MEMBERS[0], 8))
    assert storage.operations == operations
    await log.close()


async def test_a_cancelled_snapshot_of_the_leader_allows_no_more_writes() -> None:
    """The disk may be ahead of what the program knows: the log can only be closed, and the next start decides."""
    storage, log = await prepared()

    async def cancelled_at(operation_kind: str) -> None:
        with trio.CancelScope() as scope:
            storage.before = lambda operation: scope.cancel() if operation.kind == operation_kind else None
            await log.write(VoteState(2, None, 30), (), snapshot(30, 2))
        assert scope.cancelled_caught
        storage.before = None

    await cancelled_at("rename")
    with pytest.raises(AssertionError, match="cancelled"):
        await log.write(VoteState(3, None, 8))
    await log.close()
    assert (await loaded(storage.crash())).hard.term == 2


# --- damage -----------------------------------------------------------------------------------------------------------------------


async def aged() -> tuple[SimStorage, RaftSaved]:
    """Several segments behind two snapshots, the last of the leader; and what is in them."""
    storage, log = await prepared([Step(VoteState(1, None, 20), tuple(entry(index, 1, 400) for index in range(9, 30)))])
    await log.save_snapshot(snapshot(15))
    for index in range(30, 60):
        await log.write(VoteState(1, None, index), (entry(index, 1, 400),))
    await log.close()
    return storage, await loaded(storage)


async def test_damage_is_refused_with_one_line_that_says_what_to_do() -> None:
    """A flipped bit anywhere: the start is refused, or everything is there but perhaps the very last write."""
    storage, saved = await aged()
    chance, refusals = random.Random(1), 0
    for _ in range(120):
        copied = copy.deepcopy(storage)
        name = chance.choice([name for name in copied.names() if name.startswith("raft-")])
        copied.flip(name, chance.randrange(len(copied.contents(name))), 1 << chance.randrange(8))
        try:
            found = await loaded(copied)
        except Corrupt as error:
            refusals += 1
            assert "\n" not in str(error)
            assert "does not start" in str(error)
            assert "members remove" in str(error)
            assert "salvage" not in str(error)
            continue
        entries = [each for each in found.entries if each.index > saved.snapshot.index]
        assert entries in (list(saved.entries), list(saved.entries[:-1]))
        assert found.hard.commit == found.snapshot.index + len(found.entries)
    assert refusals > 10


async def test_a_damaged_snapshot_costs_nothing_while_the_log_leads_to_the_same_state() -> None:
    """The one before it is taken, set aside is the damaged one, and a line says so."""
    storage, saved = await aged()
    storage.flip("raft-snapshot-0000000000000002", 700)
    log, found = await open_log(storage)
    assert found is not None
    assert found.hard == saved.hard
    assert found.snapshot.index == 7
    assert found.entries[-len(saved.entries) :] == saved.entries
    assert "raft-snapshot-0000000000000002.damaged" in storage.names()
    assert any("snapshot-0000000000000002" in note for note in log.notes)
    await log.write(VoteState(9, None, 59), (entry(60, 9),))
    await log.save_snapshot(snapshot(50))
    await log.close()
    assert (await loaded(storage)).snapshot == snapshot(50)


@pytest.mark.parametrize("crash", [False, True])
async def test_without_the_snapshot_of_the_leader_the_former_log_is_not_brought_back(crash: bool) -> None:
    """When it is damaged, the log before does not lead to what was confirmed with it: refused, also when a crash came right behind it."""
    storage, log = await prepared([Step(VoteState(1, None, 9), (entry(9), entry(10)))])
    if crash:

        def before(operation: Operation) -> None:
            if "raft-snapshot-0000000000000002" in storage.names() and operation.kind == "write":
                storage.kill()

        storage.before = before
        with pytest.raises(StorageFailed):
            await log.write(VoteState(2, None, 40), (), snapshot(40, 2))
        storage.before = None
    else:
        await log.write(VoteState(2, None, 40), (), snapshot(40, 2))
    await log.close()
    door = storage.kill()
    assert (await loaded(door)).snapshot.index == 40
    door.flip("raft-snapshot-0000000000000002", 700)
    with pytest.raises(Corrupt, match=r"the snapshot at 40 is missing.*does not start"):
        await loaded(door)


async def test_without_any_snapshot_the_candidate_does_not_start() -> None:
    """The log alone says nothing: what an interrupted beginning leaves would look the same."""
    storage, log = await prepared()
    await log.close()
    storage.flip("raft-snapshot-0000000000000001", 600)
    for _ in range(2):
        with pytest.raises(Corrupt, match=r"no snapshot of the metadata log in sim can be read.*members remove"):
            await loaded(storage)


async def test_a_newer_format_and_files_of_another_disk_are_named_as_they_are_called() -> None:
    """The line names the file with its prefix."""
    storage, log = await prepared()
    await log.close()
    other = RaftLog.open(storage, OURS._replace(disk_id=b"e" * 16), segment_bytes=SEGMENT_BYTES)
    copied = copy.deepcopy(storage)
    await copied.remove("raft-snapshot-0000000000000001")
    stranger = RaftLog.open(copied, OURS._replace(disk_id=b"e" * 16), segment_bytes=SEGMENT_BYTES)
    with pytest.raises(StorageError, match=r"sim/raft-log-0000000000000001 does not belong there"):
        await stranger.load()
    with pytest.raises(Corrupt, match="no snapshot"):
        await other.load()


records = st.builds(
    Record,
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(0, 12),
    st.sampled_from((STATE, ENTRY, INSTALLED, REPEATED, 5)),
    st.one_of(st.binary(max_size=20), st.just(b""), st.just(state_record(VoteState(1, MEMBERS[0], 0)).payload)),
)


@given(st.lists(records, max_size=30), st.integers(0, 5), st.integers(0, 2))
def test_any_records_are_a_log_without_gaps_or_a_format_error(given_records: Sequence[Record], index: int, term: int) -> None:
    """Whatever stands there, entries follow each other; a record that has no place is refused."""
    replay = Replay(index, term)
    try:
        for record in given_records:
            replay.apply(record)
    except FormatError:
        pass
    assert [each.index for each in replay.entries] == list(range(replay.index + 1, replay.last_index + 1))
    assert replay.agrees(replay.index, replay.term)


@given(st.lists(st.binary(max_size=40), max_size=4), st.integers(0, 1))
def test_any_blocks_are_a_snapshot_or_a_format_error(states: Sequence[bytes], slot: int) -> None:
    """Nothing else comes out of the door."""
    blocks = [Block(slot if place == 0 else 1, 0, 1, 1, state) for place, state in enumerate(states)]
    try:
        found = read_snapshot(blocks)
    except FormatError:
        return
    assert isinstance(found, RaftSnapshot)


def test_snapshots_and_records_come_back() -> None:
    """Of any size, also an empty one and one of several pieces."""
    for size in (0, 5, (1 << 20) + 1, 3 << 20):
        whole = RaftSnapshot(7, 3, MEMBERS, MEMBERS[:1], b"x" * size)
        assert read_snapshot(list(snapshot_blocks(whole))) == whole
    replay = Replay(7, 0)
    for record in (state_record(VoteState(2, MEMBERS[1], 7)), entry_record(entry(8)), repeated_record(entry(8)), repeated_record(entry(9))):
        replay.apply(record)
    assert (replay.hard, replay.entries) == (VoteState(2, MEMBERS[1], 7), [entry(8), entry(9)])
    with pytest.raises(FormatError, match="is missing"):
        replay.apply(repeated_record(entry(8, 5)))


# --- in one directory with the slots ----------------------------------------------------------------------------------------------


async def test_both_logs_live_in_one_directory() -> None:
    """Neither sees the files of the other; a directory from before clusters opens as it always did, and can become a candidate."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0), segment_bytes=SEGMENT_BYTES) as directory:
        await load_slots(directory)
        await directory.log.append([Record(1, 1, 1, 1, b"of the slots")])
    for start in range(2, 5):
        async with open_directory(storage, random.Random(0), segment_bytes=SEGMENT_BYTES) as directory:
            slots = await load_slots(directory)
            assert slots.sequence() == list(range(1, start))
            log = RaftLog.open(directory.storage, directory.identity, segment_bytes=SEGMENT_BYTES)
            saved = await log.load()
            assert (saved is None) == (start == 2)
            if saved is None:
                base = directory.identity.boot_no
                await log.begin(RaftSnapshot(base, 0, (), (), b""), VoteState(1, None, base), (entry(base + 1),))
            await directory.log.append([Record(1, 1, start, 1, b"of the slots")])
            await log.write(VoteState(start, None, 3))
            await directory.snapshot([Block(1, 1, 1, start, b"")])
            await log.close()
        storage = storage.crash()
    names = storage.names()
    assert sorted(name for name in names if name.startswith("raft-")) == [name for name in names if "raft" in name]
    assert (await salvage(storage)).damage == ""
    assert [name for name in storage.names() if name.startswith("raft-")] == [name for name in names if name.startswith("raft-")]


async def test_salvage_leaves_the_log_of_a_candidate_alone() -> None:
    """It repairs the log of the slots; not a byte under the prefix, nor the table, is touched."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0), segment_bytes=SEGMENT_BYTES) as directory:
        await load_slots(directory)
        for seq in range(1, 30):
            await directory.log.append([Record(1, 1, seq, 1, bytes(600))])
        log = RaftLog.open(directory.storage, directory.identity, segment_bytes=SEGMENT_BYTES)
        await log.load()
        await log.begin(begun().snapshot, begun().hard, begun().entries)
        await log.close()
    file = await storage.create("table", 100)
    await file.close()
    storage.flip("log-0000000000000001", 4100)
    before = {name: storage.contents(name) for name in storage.names() if not name.startswith("log-")}
    report = await salvage(storage, segment_bytes=SEGMENT_BYTES)
    assert report.damage
    assert {name: storage.contents(name) for name in before} == before


# --- the twin without a disk ------------------------------------------------------------------------------------------------------


async def test_the_log_in_memory_answers_like_one_that_is_always_new(autojump_clock: trio.testing.MockClock) -> None:
    """The same methods with the same arguments; nothing is kept."""

    def methods(kind: type) -> dict[str, Callable[..., object]]:
        return {name: value for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}

    assert set(methods(RaftLog)) == set(methods(MemoryRaftLog))
    log = MemoryRaftLog()
    assert await log.load() is None
    await log.begin(begun().snapshot, begun().hard, begun().entries)
    assert log.last_index == 8
    await log.write(VoteState(2, None, 8), (entry(9), entry(10)))
    await log.write(VoteState(2, None, 8))
    assert log.last_index == 10
    await log.save_snapshot(snapshot(9))
    await log.write(None, (), snapshot(50))
    assert log.last_index == 50
    assert (log.full, log.bytes_since_snapshot, log.fsync_ms, log.unsynced_seconds, log.notes) == (False, 0, 0.0, 0.0, ())
    with trio.move_on_after(5) as scope:
        await log.run()
    assert scope.cancelled_caught
    await log.close()


async def test_its_numbers_and_its_repr(autojump_clock: trio.testing.MockClock) -> None:
    """For status: how long the disk took and has been taking; for people: one line."""
    storage, log = await prepared()
    storage.latency_seconds = (0.02, 0.02)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.write, VoteState(2, None, 8))
        await trio.sleep(0.01)
        assert log.unsynced_seconds == pytest.approx(0.01)
    assert log.fsync_ms == pytest.approx(40)
    assert log.unsynced_seconds == 0
    assert repr(log).startswith("<RaftLog <Replay VoteState(term=2")
    await log.close()
