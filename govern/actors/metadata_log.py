"""The metadata log as the election sees it: the words of the Raft rules, translated into those of the storage.

The rules and the storage do not know each other (they are two rooms of one floor), so somebody has to carry the values across.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ..core.meta import MetaState
from ..core.raft.types import DATA, VOTERS, HardState, Membership, Snapshot, SnapshotMeta, Write
from ..peer_messages import Entry, Member
from ..storage.raft_log import MemoryRaftLog, RaftLog
from ..storage.raft_records import RaftSaved, RaftSnapshot, VoteState


def _vote_state(hard: HardState) -> VoteState:
    return VoteState(hard.term, hard.voted_for, hard.commit)


def _raft_snapshot(snapshot: Snapshot) -> RaftSnapshot:
    meta = snapshot.meta
    return RaftSnapshot(meta.index, meta.term, meta.membership.voters, meta.membership.learners, snapshot.state)


def fold_metadata(saved: RaftSaved) -> tuple[bytes, tuple[Member, ...]]:
    """The state after all entries of a log, also those that may not be committed, and the members as of there; for `recover`. Raises
    `ApplyFailed`."""
    state = MetaState.unpack(saved.snapshot.state)
    membership = Membership.of(saved.snapshot.voters, saved.snapshot.learners)
    for entry in saved.entries:
        if entry.kind == DATA:
            state.apply(entry.index, entry.data)
        elif entry.kind == VOTERS:
            membership = Membership.unpack(entry.data)
    return state.pack(), membership.members


class MetadataLog:
    """One candidate's part of the metadata log, on a disk or in memory."""

    def __init__(self, log: RaftLog | MemoryRaftLog) -> None:
        self._log = log

    def __repr__(self) -> str:
        return f"<MetadataLog {self._log!r}>"

    async def load(self) -> tuple[HardState, Snapshot, Sequence[Entry]] | None:
        """What is durable; None when no log was begun. Raises `Corrupt`, `FormatTooNew`, `NoSpace` or `StorageFailed`."""
        saved = await self._log.load()
        if saved is None:
            return None
        membership = Membership.of(saved.snapshot.voters, saved.snapshot.learners)
        snapshot = Snapshot(SnapshotMeta(saved.snapshot.index, saved.snapshot.term, membership), saved.snapshot.state)
        return HardState(saved.hard.term, saved.hard.voted_for, saved.hard.commit), snapshot, saved.entries

    async def begin(self, hard: HardState, snapshot: Snapshot, entries: Sequence[Entry]) -> None:
        """Begin the log, durably, all of it or nothing. Raises `NoSpace` or `StorageFailed`."""
        await self._log.begin(_raft_snapshot(snapshot), _vote_state(hard), entries)

    async def write(self, write: Write) -> None:
        """Make one batch durable. Raises `NoSpace`, and the same call may be repeated, or `StorageFailed`."""
        hard = None if write.hard is None else _vote_state(write.hard)
        snapshot = None if write.snapshot is None else _raft_snapshot(write.snapshot)
        await self._log.write(hard, write.entries, snapshot)

    async def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep the state as of an entry instead of the log up to there. Raises `NoSpace`, and nothing has changed, or `StorageFailed`."""
        await self._log.save_snapshot(_raft_snapshot(snapshot))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The background work of the log, for ever."""
        await self._log.run(task_status)

    async def close(self) -> None:
        """Close its files."""
        await self._log.close()
