"""A new cluster from one candidate's directory: nothing known is lost, no number is used twice, and every interruption is harmless."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import pytest

from govern.errors import Corrupt, DirectoryInUse, NoSpace, StorageError, StorageFailed
from govern.peer_messages import Entry, Member
from govern.storage.directory import open_directory, read_identity
from govern.storage.raft_log import RaftLog
from govern.storage.raft_records import RaftSaved, RaftSnapshot, VoteState
from govern.storage.recover import INDEX_JUMP, RecoverReport, force_new_cluster
from govern.storage.sim import Operation, SimStorage

from .raft_model import BLANK, MEMBERS, SEGMENT_BYTES, begun

JUMP = 1 << 32


def fold(saved: RaftSaved) -> tuple[bytes, tuple[Member, ...]]:
    """The state of these tests is the list of entries that were applied."""
    return saved.snapshot.state + bytes(entry.index for entry in saved.entries), MEMBERS


async def recover(storage: SimStorage) -> RecoverReport:
    return await force_new_cluster(storage, node_id=1, fold=fold, segment_bytes=SEGMENT_BYTES)


async def candidate(first: RaftSaved | None = None, entries: Sequence[Entry] = (), *, cluster: bool = True) -> SimStorage:
    """The directory of a stopped candidate."""
    storage = SimStorage(random.Random(0))
    async with open_directory(storage, random.Random(0), segment_bytes=SEGMENT_BYTES, without_cluster=True) as directory:
        if cluster:
            await directory.adopt_cluster(b"c" * 16)
        if first is not None:
            log = RaftLog.open(storage, directory.identity, segment_bytes=SEGMENT_BYTES)
            await log.load()
            await log.begin(first.snapshot, first.hard, first.entries)
            for entry in entries:
                await log.write(VoteState(entry.term, MEMBERS[0], entry.index - 2), (entry,))
            await log.close()
    return storage


async def found(storage: SimStorage) -> RaftSaved:
    """What the next start finds, and that its log can be written to."""
    async with open_directory(storage, random.Random(0), segment_bytes=SEGMENT_BYTES) as directory:
        log = RaftLog.open(storage, directory.identity, segment_bytes=SEGMENT_BYTES)
        try:
            saved = await log.load()
            assert saved is not None
            await log.write(VoteState(saved.hard.term + 1, MEMBERS[0], saved.hard.commit))
        finally:
            await log.close()
        return saved


def entries(first: int, last: int, term: int = 3) -> list[Entry]:
    return [Entry(index, term, 1, bytes(700)) for index in range(first, last + 1)]


async def test_the_directory_becomes_that_of_the_only_voter() -> None:
    """The state holds everything the log said, the membership is this disk alone, and cluster, disk and slots are what they were."""
    storage = await candidate(begun(), entries(9, 20))
    before = storage.contents("identity")
    report = await recover(storage)
    saved = await found(storage.crash())
    member = Member(1, b"")
    async with open_directory(storage.kill(), random.Random(0), segment_bytes=SEGMENT_BYTES) as directory:
        member = Member(1, directory.identity.disk_id)
        assert directory.identity.cluster_id == b"c" * 16
    assert before.split(b"\n")[2:4] == storage.contents("identity").split(b"\n")[2:4]
    assert saved.snapshot == RaftSnapshot(20 + JUMP, 3 + JUMP, (member,), (), bytes(range(8, 21)))
    assert saved.entries == ()
    assert saved.hard == VoteState(3 + JUMP, None, 20 + JUMP)
    assert report.lines() == [
        "node 1 is now the only candidate of cluster 63636363636363636363636363636363",
        f"kept: the metadata up to entry 20; the next entries begin behind {20 + JUMP}, in term {3 + JUMP}",
        "not proven: the entries 19 to 20 may never have been confirmed",
        "not proven: what other candidates confirmed and this one never received is lost, if there was anything",
        "removed: the candidates 1, 2, 3; empty their data directories before they can reach this cluster again",
        "a majority of them that runs on its old directories is a second controller of this cluster",
    ]


async def test_numbers_never_go_back_however_often_it_is_done() -> None:
    """Each time the next index and the next term are larger than all before, and the work of the life between is kept."""
    storage = await candidate(begun(), entries(9, 12))
    index, term = 12, 3
    for _ in range(3):
        report = await recover(storage)
        assert report.index >= index + INDEX_JUMP
        assert report.term >= term + INDEX_JUMP
        saved = await found(storage.crash())
        storage = storage.kill()
        index, term = report.index, saved.hard.term + 1


async def test_the_next_start_is_later_than_any_that_others_may_know() -> None:
    """Nodes of the lost cluster refuse a directory whose boot number is lower than one that they know."""
    storage = await candidate(begun(), entries(9, 12))
    before = await read_identity(storage)
    await recover(storage)
    after = await read_identity(storage.crash())
    assert before is not None
    assert after == before._replace(boot_no=before.boot_no + JUMP)


async def test_what_is_damaged_is_left_behind_and_named() -> None:
    """The candidate would not start; the entries before the damage are kept, the term is still larger than any before."""
    storage = await candidate(begun(), entries(9, 40))
    names = [name for name in storage.names() if name.startswith("raft-log-")]
    assert len(names) > 3
    storage.flip(names[1], 4100)
    with pytest.raises(Corrupt):
        await found(copy.deepcopy(storage))
    before = storage.names()
    report = await recover(storage)
    assert report.damage.startswith(f"sim/{names[0]} is damaged")
    assert 9 < report.index_before < 30
    saved = await found(storage.crash())
    assert saved.snapshot.index == report.index_before + JUMP
    assert saved.hard.term > JUMP
    assert set(before) <= set(storage.names())  # V4
    assert any(line.startswith("damage: ") for line in report.lines())


async def test_after_damage_of_the_new_snapshot_the_old_cluster_does_not_come_back() -> None:
    """The former snapshot and its log are still there, but they do not lead to the new one: refused."""
    storage = await candidate(begun(), entries(9, 12))
    await recover(storage)
    (name,) = [name for name in storage.names() if name.startswith("raft-snapshot-") and name.endswith("2")]
    storage.flip(name, 600)
    with pytest.raises(Corrupt, match="members remove"):
        await found(storage)


async def test_who_was_never_a_candidate_with_a_log_is_refused() -> None:
    """An empty directory, one without a cluster, one without a log, one with a blank log, one without a snapshot, one in use."""
    for storage, text in (
        (SimStorage(random.Random(0)), "belongs to no cluster"),
        (await candidate(cluster=False), "belongs to no cluster"),
        (await candidate(), "has never been that of a candidate"),
        (await candidate(BLANK), "has an empty metadata log"),
    ):
        with pytest.raises(StorageError, match=text) as caught:
            await recover(storage)
        assert "\n" not in str(caught.value)
    storage = await candidate(begun())
    storage.flip("raft-snapshot-0000000000000001", 600)
    with pytest.raises(Corrupt, match="recover from another candidate"):
        await recover(storage)
    storage = await candidate(begun())
    other = storage.second_door()
    await other.lock()
    with pytest.raises(DirectoryInUse):
        await recover(storage)


async def test_the_directory_of_another_node_is_refused() -> None:
    """Who names the wrong node would get a cluster whose only voter is nobody."""
    storage = await candidate(begun())
    identity = await read_identity(storage)
    assert identity is not None

    def fold_as_node_2(saved: RaftSaved) -> tuple[bytes, tuple[Member, ...]]:
        return fold(saved)[0], (*MEMBERS, Member(2, identity.disk_id))

    with pytest.raises(StorageError, match="is the data directory of node 2, not of node 1"):
        await force_new_cluster(storage, node_id=1, fold=fold_as_node_2, segment_bytes=SEGMENT_BYTES)
    report = await force_new_cluster(storage, node_id=2, fold=fold_as_node_2, segment_bytes=SEGMENT_BYTES)
    assert report.member == Member(2, identity.disk_id)


async def test_a_full_disk_changes_nothing_that_matters() -> None:
    """It can be run again when there is space."""
    storage = await candidate(begun(), entries(9, 12))
    storage.capacity_bytes = storage.used_bytes + 100
    with pytest.raises(NoSpace):
        await recover(copy.deepcopy(storage))
    storage.capacity_bytes = storage.used_bytes + SEGMENT_BYTES + 200
    with pytest.raises(NoSpace):
        await recover(storage)
    storage.capacity_bytes = None
    report = await recover(storage)
    assert (await found(storage)).snapshot.index == report.index == 12 + JUMP


def crash_at(storage: SimStorage, number: int, after: list[SimStorage]) -> None:
    """Lose power at that operation; `after` gets the door to what is left."""

    def before(operation: Operation) -> None:
        if operation.number == number:
            after.append(storage.crash())

    storage.before = before


@pytest.mark.parametrize("seed", range(3))
async def test_a_crash_at_every_operation_leaves_the_old_cluster_the_new_one_or_a_refusal(seed: int) -> None:
    """And run again, it is done; the sum of it is the same."""
    number, outcomes = 0, list[str]()
    finished = False
    while not finished:
        number += 1
        storage = await candidate(begun(), entries(9, 12))
        storage.chance.seed(seed * 1000 + number)
        first, after = storage.operations, list[SimStorage]()

        crash_at(storage, first + number, after)
        try:
            await recover(storage)
            finished = True
            after.append(storage.crash())
        except StorageFailed:
            pass
        storage.before = None
        door = after[0]
        try:
            saved = await found(copy.deepcopy(door))
            outcomes.append("new" if saved.snapshot.index == 12 + JUMP else "old")
            assert saved.snapshot.index in (12 + JUMP, 7)
            assert saved.snapshot.index == 12 + JUMP or saved.entries[-1].index == 12
        except Corrupt:
            outcomes.append("refused")
        report = await recover(door)
        assert report.index in (12 + JUMP, 12 + 2 * JUMP)
        assert (await found(door)).snapshot.index == report.index
    assert outcomes[0] == "old"
    assert outcomes[-1] == "new"
    assert list(dict.fromkeys(outcomes)) in (["old", "refused", "new"], ["old", "new"])
