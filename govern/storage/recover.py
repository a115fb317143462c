"""A new cluster from what one candidate has, when most candidates are lost for good. Only an operator orders it, on a stopped node.

The directory becomes that of the only voter. Everything it knows of the metadata stays, as far as it can be read: also the entries of which
it cannot know whether they were committed, for a leader that is elected with this log would commit them too.

What the lost candidates had and this one has not is gone, and with it numbers that they gave away: the terms of slots are indexes of the
log, and clients compare them. Therefore

V1  The next index and the next term are larger than any that the lost cluster can have used: both jump by 2**32. A candidate of the old
    cluster that turns up after all speaks of terms long past, and nobody listens to it who has heard of the new ones. That holds for the
    numbers, not for the world: lost candidates that together are a majority of the old membership still elect a controller of their own,
    of the same cluster id, for whoever reaches only them. So each of them must be wiped before it can reach the recovered candidate or
    its nodes again; the report says so.
V2  The identity stays: cluster, disk and data of the slots are the same; every node registers anew and gets new terms for its slots. Only
    the boot number jumps likewise: a directory that comes from a backup would not be let in by nodes that knew a later start of it.
V3  It takes effect with one rename. Interrupted before, the candidate starts as it was, or does not start at all, and it is run again. The
    boot number jumps behind that: a candidate that was rolled back never looks newer than it is while it has its old log.
V4  Nothing is believed that is not proven by checksums; what cannot be proven is named. Nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from ..errors import Corrupt, StorageError
from ..peer_messages import Member
from .directory import read_identity, skip_boots
from .format import NO_CLUSTER, SEGMENT_HEADER_BYTES, FormatError, Identity, Position
from .log import Log, make_segment
from .prefix import RAFT_PREFIX, PrefixedStorage
from .raft_log import RAFT_SEGMENT_BYTES
from .raft_records import RaftSaved, RaftSnapshot, Replay, VoteState, installed_record, read_snapshot, snapshot_blocks, state_record
from .recovery import LogReader, list_segments
from .snapshots import Block, Snapshots

if TYPE_CHECKING:
    from ..environment import Storage

INDEX_JUMP: Final = 1 << 32
"""At ten thousand entries a second, a lost majority needs five days to use up so many; metadata changes a few times an hour."""

Fold = Callable[[RaftSaved], tuple[bytes, tuple[Member, ...]]]
"""Gives the packed state after all entries of a log, and the members as of there. Storage does not know what entries mean."""


@attrs.frozen(kw_only=True)
class RecoverReport:
    """What was made of what. Indexes and terms are those of the metadata log."""

    name: str
    cluster_id: bytes
    member: Member
    index_before: int
    index: int
    term: int
    entries_unproven: int
    """Entries behind the last one that was known to be committed; they were kept."""
    members_removed: tuple[Member, ...]
    damage: str
    """What could not be read, empty when everything could."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a person."""
        others = ", ".join(str(member.node_id) for member in self.members_removed)
        lines = [
            f"node {self.member.node_id} is now the only candidate of cluster {self.cluster_id.hex()}",
            f"kept: the metadata up to entry {self.index_before}; the next entries begin behind {self.index}, in term {self.term}",
        ]
        if self.entries_unproven:
            first = self.index_before - self.entries_unproven + 1
            lines.append(f"not proven: the entries {first} to {self.index_before} may never have been confirmed")
        if self.damage:
            lines.append(f"damage: {self.damage}; what was behind it is lost")
        lines.append("not proven: what other candidates confirmed and this one never received is lost, if there was anything")
        if others:
            lines.append(f"removed: the candidates {others}; empty their data directories before they can reach this cluster again")
            lines.append("a majority of them that runs on its old directories is a second controller of this cluster")
        return [*lines, *self.notes]


async def force_new_cluster(storage: Storage, *, node_id: int, fold: Fold, segment_bytes: int = RAFT_SEGMENT_BYTES) -> RecoverReport:
    """Make the directory of a stopped candidate that of the only voter of its cluster, and say what that costs.

    Raises `DirectoryInUse`, `FormatTooNew`, `NoSpace`, `StorageFailed`; `StorageError` when the directory was never that of a candidate
    with a log; `Corrupt` when the identity, or every snapshot of the log, is lost: then another candidate's directory is needed.
    Interrupted, it can be run again (V3).
    """
    await storage.lock()
    try:
        identity = await read_identity(storage)
        if identity is None or identity.cluster_id == NO_CLUSTER:
            raise StorageError(f"{storage.name} belongs to no cluster: recover from the data directory of a candidate")
        report = await _Recovery(PrefixedStorage(storage, RAFT_PREFIX), identity, segment_bytes).run(node_id, fold)
        await skip_boots(storage, identity, INDEX_JUMP)  # V2
        return report
    finally:
        await storage.unlock()


class _Recovery:
    def __init__(self, storage: PrefixedStorage, identity: Identity, segment_bytes: int) -> None:
        self._storage = storage
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._snapshots = Snapshots(storage, identity)
        self._damage = ""

    async def run(self, node_id: int, fold: Fold) -> RecoverReport:
        saved = await self._read()
        last = saved.entries[-1] if saved.entries else None
        index_before = last.index if last else saved.snapshot.index
        term_before = max(saved.hard.term, last.term if last else saved.snapshot.term)
        state, members = fold(saved)
        member = Member(node_id, self._identity.disk_id)
        owners = [other.node_id for other in members if other.disk_id == member.disk_id]
        if owners and node_id not in owners:
            raise StorageError(f"{self._storage.name} is the data directory of node {owners[0]}, not of node {node_id}")
        snapshot = RaftSnapshot(index_before + INDEX_JUMP, term_before + INDEX_JUMP, (member,), (), state)  # V1
        await self._begin_anew(snapshot)
        return RecoverReport(
            name=self._storage.name,
            cluster_id=self._identity.cluster_id,
            member=member,
            index_before=index_before,
            index=snapshot.index,
            term=snapshot.term,
            entries_unproven=index_before - saved.hard.commit,
            members_removed=tuple(other for other in members if other != member),
            damage=self._damage,
            notes=tuple(self._snapshots.notes),
        )

    async def _read(self) -> RaftSaved:
        """Everything that is proven (V4)."""
        reader = await self._snapshots.open_newest()
        if reader is None and self._snapshots.lost:
            raise Corrupt(f"no snapshot of the metadata log in {self._storage.name} can be read: recover from another candidate")
        if reader is None:
            raise StorageError(f"{self._storage.name} has never been that of a candidate: recover from one that has")
        blocks: list[Block] = []
        try:
            while more := await reader.read():
                blocks += more
            snapshot = read_snapshot(blocks)
        except FormatError as error:
            raise Corrupt(f"a snapshot of the metadata log in {self._storage.name} cannot be read ({error})") from error
        finally:
            await reader.close()
        replay = Replay(snapshot.index, snapshot.term)
        numbers = await list_segments(self._storage)
        log = LogReader(self._storage, self._identity, reader.kept.position, numbers, remedy="they were kept")
        try:
            while records := await log.read():
                for record in records:
                    replay.apply(record)
        except Corrupt as error:
            self._damage = str(error)
        except FormatError as error:
            self._damage = f"the metadata log cannot be followed any further ({error})"
        if replay.is_blank:
            raise StorageError(f"{self._storage.name} has an empty metadata log: recover from a candidate that was a member")
        hard = replay.hard or VoteState(0, None, 0)
        commit = min(max(hard.commit, replay.index), replay.last_index)
        return RaftSaved(hard._replace(commit=commit), snapshot._replace(index=replay.index), tuple(replay.entries))

    async def _begin_anew(self, snapshot: RaftSnapshot) -> None:
        """A new segment behind all others, and the snapshot that begins there: it counts from its rename on (V3)."""
        number = max(await list_segments(self._storage), default=0) + 1
        file = await make_segment(self._storage, self._identity, number, self._segment_bytes)
        await file.close()
        position = Position(number, SEGMENT_HEADER_BYTES, 1, 0)
        log = await Log.open(self._storage, self._identity, position, segment_bytes=self._segment_bytes)
        try:
            found = await log.recover()
            assert not found, "a new segment is empty"
            await log.append([state_record(VoteState(snapshot.term, None, snapshot.index)), installed_record(snapshot)])
        finally:
            await log.close()
        writer = await self._snapshots.begin(position)
        try:
            for block in snapshot_blocks(snapshot):
                await writer.add(block)
            await writer.finish()
        finally:
            await writer.close()
        await self._snapshots.finished(writer.kept)
