"""Power is lost at every I/O operation of a candidate's life: what it promised is there, and nothing that it never could have had.

The model (`raft_model.py`) knows no files. After each crash the log must load one of the states that the step under way passes through,
and goes on from that one. The mutants at the end break one rule each; a crash must reveal them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from govern.errors import StorageError, StorageFailed
from govern.peer_messages import Entry
from govern.storage import raft_log, table_file
from govern.storage.format import Position, Record
from govern.storage.raft_log import RaftLog
from govern.storage.raft_records import STATE, RaftSaved, RaftSnapshot, Replay, VoteState, entry_record, state_record
from govern.storage.sim import Operation, SimFile, SimStorage
from govern.storage.table_file import TableFile

from ..deep import seeds
from .raft_model import BLANK, Step, begun, behind, draw_snapshot, draw_step, open_log, reload, shown, stages


class Model:
    """The state that was confirmed, and what is under way."""

    def __init__(self, first: RaftSaved) -> None:
        self.first = first
        self.state: RaftSaved | None = None
        self.step: Step | None = None
        self.snapshot: RaftSnapshot | None = None
        self.beginning = False

    def possible(self) -> Iterator[RaftSaved | None]:
        """Everything that a start may find now."""
        if self.state is None:
            yield None
            if self.beginning:
                yield self.first
            return
        for state in stages(self.state, self.step or Step(None)):
            yield state
            if self.snapshot is not None:
                yield behind(state, self.snapshot)

    def check(self, found: RaftSaved | None) -> None:
        """What a start found could be there; go on from it."""
        possible = list(self.possible())
        if found not in possible:
            raise AssertionError(
                "\n".join([shown(found), "is none of", *map(shown, possible), f"{self.step is None} {self.snapshot is None}"])
            )
        self.state, self.step, self.snapshot, self.beginning = found, None, None, False


async def take_step(log: RaftLog, model: Model, chance: random.Random) -> None:
    """One write, one snapshot, or both at once."""
    assert model.state is not None
    snapshot = draw_snapshot(model.state, chance) if chance.random() < 0.3 else None
    step = draw_step(model.state, chance) if snapshot is None or chance.random() < 0.5 else None
    model.step, model.snapshot = step, snapshot
    async with trio.open_nursery() as nursery:
        if snapshot is not None:
            nursery.start_soon(log.save_snapshot, snapshot)
        if step is not None:
            nursery.start_soon(log.write, *step)
    *_, model.state = stages(model.state, step or Step(None))
    if snapshot is not None:
        model.state = behind(model.state, snapshot)
    model.step = model.snapshot = None


async def live(storage: SimStorage, model: Model, chance: random.Random, steps: int) -> None:
    """One life: load, check, begin if there is nothing, work, and stop without a goodbye."""
    log, found = await open_log(storage)
    model.check(found)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        if model.state is None:
            model.beginning = True
            first = model.first
            await log.begin(first.snapshot, first.hard, first.entries)
            model.state, model.beginning = first, False
        for _ in range(steps):
            await take_step(log, model, chance)
        nursery.cancel_scope.cancel()
    await log.close()


async def crash_at(number: int, seed: int) -> bool:
    """Four lives; the first event is at operation `number`, a second soon after, so that recovery is interrupted as well. In half of the
    runs the first event kills only the process. False when there are not so many operations."""
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
    model, reached = Model(chance.choice((BLANK, begun()))), False
    for steps in (7, 4, 3, 0):
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


@pytest.mark.parametrize("seed", seeds(2, 30))
def test_a_crash_at_every_operation_leaves_what_was_promised(seed: int) -> None:
    """Whatever sectors and names survive, a start finds the confirmed state or one that the step under way passes through."""
    assert crash_everywhere(seed) > 60


async def test_the_life_does_everything_that_a_crash_could_interrupt() -> None:
    """A quiet run changes segments, deletes some, keeps two snapshots and leaves no unfinished file."""
    door, model = SimStorage(random.Random(1)), Model(begun())
    await live(door, model, random.Random(1), 60)
    names = door.names()
    assert all(name.startswith("raft-") for name in names)
    assert min(name for name in names if name.startswith("raft-log-")) > "raft-log-0000000000000001"
    assert len([name for name in names if name.startswith("raft-snapshot")]) == 2
    model.check(await reload(door.kill()))


@given(st.integers(0, 2**32), st.lists(st.sampled_from(("step", "kill", "crash")), max_size=40))
def test_lives_of_any_length_end_in_the_same_state_as_the_model(seed: int, events: Sequence[str]) -> None:
    """Any steps with any stops between them: what was written is what a start finds, exactly."""

    async def run() -> None:
        chance, door = random.Random(seed), SimStorage(random.Random(seed))
        model = Model(chance.choice((BLANK, begun())))
        await live(door, model, chance, 0)
        log, found = await open_log(door)
        model.check(found)
        for event in events:
            if event == "step":
                await take_step(log, model, chance)
            else:
                await log.close()
                door = door.kill() if event == "kill" else door.crash()
                log, found = await open_log(door)
                model.check(found)
        await log.close()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


# --- mutants ------------------------------------------------------------------------------------------------------------------


def is_found(first: int = 0, stride: int = 3) -> bool:
    """Whether some crash makes the (broken) program lose, invent or refuse something, in twelve seeds from the first on."""
    for seed in range(first, first + 12):
        found: list[BaseException] = []
        try:
            crash_everywhere(seed, stride)
        except* (AssertionError, StorageError) as errors:
            found.append(errors)
        if found:
            return True
    return False


def test_the_mutant_that_writes_the_term_before_the_vote_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With term and vote in two batches, a crash between them leaves the old vote in the new term: a second vote could follow."""
    append = RaftLog._append

    async def append_in_two(log: RaftLog, records: Sequence[Record]) -> None:
        known = log._mirror.hard if log._mirror is not None else None
        if known is not None and records[0].type == STATE and records[0].term > known.term:
            await append(log, [state_record(VoteState(records[0].term, known.voted_for, known.commit))])
        await append(log, records)

    monkeypatch.setattr(RaftLog, "_append", append_in_two)
    assert is_found()


def test_the_mutant_that_does_not_sync_the_vote_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vote that was sent and is not on the disk is given twice."""
    monkeypatch.setattr(SimFile, "write_durable", SimFile.write)
    assert is_found()


def test_the_mutant_that_does_not_sync_the_directory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log goes, and the snapshot that replaces it was never under its name."""

    async def sync_directory(storage: SimStorage) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(SimStorage, "sync_directory", sync_directory)
    assert is_found()


def test_the_mutant_that_does_not_repeat_what_is_behind_a_snapshot_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot counts from its rename on, and the entries behind it lie before the position at which a start begins."""

    async def repeat(log: RaftLog, snapshot: RaftSnapshot) -> Position:
        assert log._log is not None
        position = log._log.position
        hard = log._begun().hard
        assert hard is not None
        await log._append([state_record(hard)])
        return position

    monkeypatch.setattr(RaftLog, "_repeat", repeat)
    assert is_found()


def test_the_mutant_that_repeats_after_the_snapshot_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the rename and the repetition leaves a snapshot without a vote."""
    repeat, write = RaftLog._repeat, RaftLog._write_snapshot

    async def position_only(log: RaftLog, snapshot: RaftSnapshot) -> Position:
        assert log._log is not None
        return log._log.position

    async def write_then_repeat(log: RaftLog, snapshot: RaftSnapshot, position: Position) -> None:
        await write(log, snapshot, position)
        await repeat(log, snapshot)

    monkeypatch.setattr(RaftLog, "_repeat", position_only)
    monkeypatch.setattr(RaftLog, "_write_snapshot", write_then_repeat)
    assert is_found()


def test_the_mutant_whose_repetition_cuts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repetition of several batches that a crash cuts short would cut off the entries that it did not come to."""
    monkeypatch.setattr(raft_log, "repeated_record", entry_record)
    assert is_found()


def test_the_mutant_that_does_not_record_cuts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries behind a replaced one come back."""

    def put(replay: Replay, entry: Entry) -> None:
        if replay.is_blank:
            replay.index = entry.index - 1
        place = entry.index - replay.index - 1
        replay.entries[place : place + 1] = [entry]

    monkeypatch.setattr(Replay, "put", put)
    assert is_found()


def test_the_mutant_that_commits_before_it_replaces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit in front of the entries that it covers would cover the old ones when only it survives."""
    append = RaftLog._append

    async def commit_first(log: RaftLog, records: Sequence[Record]) -> None:
        if len(records) > 1 and records[0].type == STATE and records[-1].type == STATE:
            records = [records[-1], *records[1:]]
        await append(log, records)

    monkeypatch.setattr(RaftLog, "_append", commit_first)
    assert is_found(first=5)


# --- the file `table` -----------------------------------------------------------------------------------------------------------


async def tables_after_crashes(seed: int) -> None:
    """Write two tables, crash at each operation; what is read is the one before or the one after."""
    files = [TableFile(b"c" * 16, joined, bytes([number]) * 3000) for number, joined in ((1, False), (2, True), (3, True))]
    for number in range(1, 30):
        door = SimStorage(random.Random(seed * 100 + number))
        after: list[SimStorage] = []

        def before(operation: Operation, number: int = number, door: SimStorage = door, after: list[SimStorage] = after) -> None:
            if operation.number == number:
                after.append(door.crash())

        door.before = before
        written = -1
        try:
            for file in files:
                await table_file.write_table(door, file)
                written += 1
        except StorageFailed:
            pass
        else:
            after.append(door.crash())
        found = await table_file.read_table(after[0])
        place = files.index(found) if found is not None else -1
        assert written <= place <= written + 1


@pytest.mark.parametrize("seed", range(10))
async def test_a_crash_leaves_the_former_table_or_the_new_one(seed: int) -> None:
    """The file is never torn and never goes back behind what was confirmed."""
    await tables_after_crashes(seed)


async def test_the_mutant_that_replaces_the_table_in_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written over the former one, the file is torn by a crash."""

    async def write_table(storage: SimStorage, file: TableFile) -> None:
        new = await storage.create(table_file.TABLE_NAME, 0)
        await new.write_durable(0, table_file.encode_table(file))
        await storage.sync_directory()

    monkeypatch.setattr(table_file, "write_table", write_table)
    found: list[Exception] = []
    for seed in range(10):
        try:
            await tables_after_crashes(seed)
        except (AssertionError, StorageError) as error:
            found.append(error)
    assert found
