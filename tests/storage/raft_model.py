"""What a candidate's disk may hold, as a plain value, and lives that write to it; files are unknown here."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from govern.peer_messages import Entry, Member
from govern.storage.format import Identity
from govern.storage.raft_log import RaftLog
from govern.storage.raft_records import RaftSaved, RaftSnapshot, VoteState
from govern.storage.sim import SimStorage

SEGMENT_BYTES = 8192
OURS = Identity(bytes(16), b"d" * 16, 1, True)
MEMBERS = tuple(Member(number, bytes([number]) * 16) for number in (1, 2, 3))


class Step(NamedTuple):
    """One call of `write`."""

    hard: VoteState | None
    entries: tuple[Entry, ...] = ()
    snapshot: RaftSnapshot | None = None


def begun(base: int = 7) -> RaftSaved:
    """What a bootstrap writes."""
    return RaftSaved(VoteState(1, None, base), RaftSnapshot(base, 0, (), (), b""), (Entry(base + 1, 1, 2, b"voters"),))


BLANK = RaftSaved(VoteState(0, None, 0), RaftSnapshot(0, 0, (), (), b""), ())
"""What a candidate begins with that waits to be added."""


def shown(state: RaftSaved | None) -> str:
    """A state in one line, for people."""
    if state is None:
        return "nothing"
    entries = " ".join(f"{entry.index}:{entry.term}:{zlib.crc32(entry.data) % 1000}" for entry in state.entries)
    vote = "-" if state.hard.voted_for is None else state.hard.voted_for.node_id
    return f"term {state.hard.term} vote {vote} commit {state.hard.commit} snapshot {state.snapshot[:2]} entries {entries}"


def last_index(state: RaftSaved) -> int:
    return state.snapshot.index + len(state.entries)


def last_term(state: RaftSaved) -> int:
    return state.entries[-1].term if state.entries else state.snapshot.term


def behind(state: RaftSaved, snapshot: RaftSnapshot) -> RaftSaved:
    """The state with that snapshot in the place of what it covers."""
    if snapshot.index <= state.snapshot.index:
        return state
    place = snapshot.index - state.snapshot.index
    agrees = place <= len(state.entries) and state.entries[place - 1].term == snapshot.term
    commit = max(state.hard.commit, snapshot.index)
    return RaftSaved(state.hard._replace(commit=commit), snapshot, state.entries[place:] if agrees else ())


def put(state: RaftSaved, entry: Entry) -> RaftSaved:
    """The state with that entry in the place of what has its index and everything behind it."""
    if state.snapshot.index == state.snapshot.term == 0 and not state.entries:
        state = state._replace(snapshot=state.snapshot._replace(index=entry.index - 1))
        state = state._replace(hard=state.hard._replace(commit=max(state.hard.commit, entry.index - 1)))
    return state._replace(entries=(*state.entries[: entry.index - state.snapshot.index - 1], entry))


def stages(state: RaftSaved, step: Step) -> Iterator[RaftSaved]:
    """Every state that a crash during a step may leave; the last one is that after the step."""
    yield state
    hard = step.hard or state.hard
    state = state._replace(hard=hard._replace(commit=state.hard.commit))
    yield state
    if step.snapshot is not None:
        state = behind(state, step.snapshot)
        yield state
    entries = [entry for entry in step.entries if entry.index > state.snapshot.index]
    if step.hard is not None:
        first = entries[0].index if entries else last_index(state) + 1
        state = state._replace(hard=hard._replace(commit=max(state.snapshot.index, min(hard.commit, first - 1))))
        yield state
    for entry in entries:
        state = put(state, entry)
        yield state
    if step.hard is not None:
        yield state._replace(hard=hard._replace(commit=max(state.snapshot.index, min(hard.commit, last_index(state)))))


def entries_behind(state: RaftSaved, chance: random.Random, index: int, term: int) -> tuple[Entry, ...]:
    sizes = chance.choice(((10,), (200, 5, 900), (1500, 1500, 1500, 700, 900), ()))
    return tuple(Entry(index + 1 + place, term, chance.choice((0, 1, 2)), chance.randbytes(size)) for place, size in enumerate(sizes))


def draw_step(state: RaftSaved, chance: random.Random) -> Step:
    """A step that a Raft core could ask for: a vote, more entries, other entries, a later commit, a snapshot."""
    hard, last = state.hard, last_index(state)
    if last == 0:
        step = Step(VoteState(hard.term + 1, chance.choice((None, *MEMBERS)), 0), entries_behind(state, chance, 7, hard.term + 1))
        return step if chance.random() < 0.7 else Step(step.hard)
    kind = chance.choice(("vote", "append", "append", "append", "replace", "commit", "install"))
    if kind == "vote":
        return Step(VoteState(hard.term + chance.randint(1, 3), chance.choice((None, *MEMBERS)), hard.commit))
    if kind == "append":
        entries = entries_behind(state, chance, last, hard.term)
        commit = chance.randint(hard.commit, last + len(entries))
        return Step(chance.choice((None, hard._replace(commit=commit))), entries)
    if kind == "replace":
        term, index = hard.term + 1, chance.randint(hard.commit, last)
        entries = entries_behind(state, chance, index, term)
        # Without entries nothing is cut, so nothing of what is still to be replaced may be called committed.
        commit = chance.randint(hard.commit, max(hard.commit, index + len(entries))) if entries else hard.commit
        return Step(VoteState(term, chance.choice((None, *MEMBERS)), commit), entries)
    if kind == "commit":
        return Step(hard._replace(commit=chance.randint(hard.commit, last)))
    index = chance.randint(hard.commit + 1, last + 5)
    term = chance.choice((last_term(state), hard.term + 1))
    snapshot = RaftSnapshot(index, term, MEMBERS, MEMBERS[:1], chance.randbytes(chance.choice((0, 100, 5000))))
    entries = entries_behind(state, chance, index, hard.term + 1)
    if behind(state, snapshot).entries:
        entries = ()
    vote = VoteState(hard.term + 1, None, max(index, hard.commit))
    return Step(vote, entries, snapshot)


def draw_snapshot(state: RaftSaved, chance: random.Random) -> RaftSnapshot | None:
    """The state as of an entry that is committed, if there is one behind the present snapshot."""
    if state.hard.commit <= state.snapshot.index:
        return None
    index = chance.randint(state.snapshot.index + 1, state.hard.commit)
    term = state.entries[index - state.snapshot.index - 1].term
    return RaftSnapshot(index, term, MEMBERS, (), chance.randbytes(chance.choice((10, 3000))))


async def open_log(storage: SimStorage) -> tuple[RaftLog, RaftSaved | None]:
    log = RaftLog.open(storage, OURS, segment_bytes=SEGMENT_BYTES)
    return log, await log.load()


async def reload(storage: SimStorage) -> RaftSaved | None:
    """What a start finds."""
    log, saved = await open_log(storage)
    await log.close()
    return saved


async def prepared(steps: Sequence[Step] = (), base: int = 7) -> tuple[SimStorage, RaftLog]:
    """A log that has begun and has done those steps."""
    storage = SimStorage(random.Random(0))
    log, saved = await open_log(storage)
    assert saved is None
    first = begun(base)
    await log.begin(first.snapshot, first.hard, first.entries)
    for step in steps:
        await log.write(*step)
    return storage, log
