"""A data directory as the node sees it: one lock, one identity, the snapshots, the log.

D1  The lock is taken before anything is read and given back last.
D2  `boot_no` is durable before `open_directory` returns, so no two lives of a node share one.
D3  Nothing is written into a directory that holds files but no identity: it is somebody else's.
D4  Loading gives the blocks of the newest good snapshot and then the log from where that snapshot began, in order. A record may be in both;
    whoever applies it skips what its block already holds.
D5  Nothing is deleted but snapshots and segments that two good snapshots have made needless.
D6  A directory belongs to one cluster for ever, and the id of it is durable before the node says to anybody that it has one.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from ..errors import Corrupt, FormatTooNew, StorageError, StorageFailed
from .format import NO_CLUSTER, START, FormatError, Identity, NewerFormat, Record, decode_identity, encode_identity, segment_number
from .log import SEGMENT_BYTES, Log
from .prefix import RAFT_PREFIX
from .recovery import list_segments
from .snapshots import Block, SnapshotReader, Snapshots, snapshot_number
from .table_file import TABLE_NAME

if TYPE_CHECKING:
    from ..environment import Random, Storage

IDENTITY_NAME: Final = "identity"
IDENTITY_NEW_NAME: Final = "identity.new"
NAMES_IGNORED: Final = ("lock", "lost+found", IDENTITY_NEW_NAME)
RECORDS_PER_CALL: Final = 512


@attrs.frozen(kw_only=True)
class LoadReport:
    """What loading found. `notes` are lines that a person should read; normally there are none."""

    blocks: int
    records: int
    notes: tuple[str, ...]


class DataDirectory:
    """An open, locked data directory. `load` it once, then use `log.append` and `snapshot`, with `run` in the background."""

    def __init__(self, storage: Storage, identity: Identity, segment_bytes: int) -> None:
        self.identity = identity
        self._storage = storage
        self._segment_bytes = segment_bytes
        self._snapshots = Snapshots(storage, identity)
        self._log: Log | None = None
        self._loaded = False
        self._snapshot_running = False
        self._bytes_at_snapshot = 0

    def __repr__(self) -> str:
        return f"<DataDirectory {self.name}, boot {self.identity.boot_no}, snapshots {[kept.number for kept in self._snapshots.kept]}>"

    @property
    def name(self) -> str:
        """What people call it: the path."""
        return self._storage.name

    @property
    def log(self) -> Log:
        """The log; only after `load`."""
        assert self._loaded, "load first"
        assert self._log is not None
        return self._log

    @property
    def bytes_since_snapshot(self) -> int:
        """How much log a restart would have to read; grows with every append, shrinks with every snapshot."""
        return self.log.statistics().bytes - self._bytes_at_snapshot

    @property
    def storage(self) -> Storage:
        """The files, for what a candidate keeps beside: `RaftLog`, and the table (`table_file`)."""
        return self._storage

    async def adopt_cluster(self, cluster_id: bytes) -> None:
        """Make it durable that this directory belongs to that cluster (D6). It must not belong to another one, asserted.

        What says that the node has joined is written first (`write_table`): a directory with a cluster never waits to form one.
        Raises `NoSpace`: then everything is as before. Raises `StorageFailed`: the node must end.
        """
        assert len(cluster_id) == len(NO_CLUSTER)
        assert cluster_id != NO_CLUSTER
        assert self.identity.cluster_id in (NO_CLUSTER, cluster_id), "a directory belongs to one cluster for ever (D6)"
        if self.identity.cluster_id == NO_CLUSTER:
            identity = self.identity._replace(cluster_id=cluster_id)
            await _write_identity(self._storage, identity)
            self.identity = identity

    # --- loading ------------------------------------------------------------------------------------------------------------

    async def load(self, on_blocks: Callable[[Sequence[Block]], None], on_records: Callable[[Sequence[Record]], None]) -> LoadReport:
        """Give everything that is known, in order (D4): blocks first, about 1 MiB a call, then records, at most 512 a call.

        The callbacks are plain functions, and between two calls other tasks run. Afterwards the log can be appended to.

        Raises `Corrupt` when the log is damaged before its end or no way from a good snapshot to the log is left; `FormatTooNew`,
        `NoSpace`, `StorageFailed`. Cancelled or failed, the directory can only be closed.
        """
        assert self._log is None, "a directory is loaded once"
        reader = await self._snapshots.open_newest()
        await self._check_beginning(reader)
        blocks = await self._load_blocks(reader, on_blocks) if reader is not None else 0
        position = reader.kept.position if reader is not None else START
        log = self._log = await Log.open(self._storage, self.identity, position, segment_bytes=self._segment_bytes)
        read_bytes = 0
        while records := await log.recover():
            for first in range(0, len(records), RECORDS_PER_CALL):
                on_records(records[first : first + RECORDS_PER_CALL])
                await trio.lowlevel.checkpoint()
            read_bytes += sum(len(record.payload) for record in records)
        self._loaded = True
        self._bytes_at_snapshot = -read_bytes
        notes = (*self._snapshots.notes, *log.reader.notes)
        return LoadReport(blocks=blocks, records=log.reader.records, notes=notes)

    async def _check_beginning(self, reader: SnapshotReader | None) -> None:
        """Without a good snapshot everything must be in the log, from its first segment on."""
        if reader is None and self._snapshots.lost and 1 not in await list_segments(self._storage):
            raise Corrupt(
                f"no snapshot in {self.name} can be read and the log does not reach back to its beginning: restore a backup, or "
                "`python -m govern --salvage` keeps what the log has"
            )

    async def _load_blocks(self, reader: SnapshotReader, on_blocks: Callable[[Sequence[Block]], None]) -> int:
        try:
            while blocks := await reader.read():
                on_blocks(blocks)
        except FormatError as error:
            raise Corrupt(f"a snapshot in {self.name} changed while it was read ({error}): check the disk, then start again") from error
        finally:
            await reader.close()
        return reader.blocks

    # --- serving ------------------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The background work of the log, for ever. Raises `StorageFailed` when the disk fails; then the node must end (W4)."""
        await self.log.run(task_status)

    async def snapshot(self, blocks: Iterable[Block] | AsyncIterable[Block]) -> None:
        """Write a snapshot of `blocks`, then delete what is no longer needed (D5). One call at a time, asserted.

        Blocks are taken one by one, when there is room for the next, so a generator captures each slot between two steps of the loop.
        There must be a block for every slot that ever had an operation, also when it is empty now, or its lsn would be forgotten;
        several blocks for one slot are allowed. A block holds only what the log has made durable.

        Raises `NoSpace`: the unfinished file is gone and everything is as before. Raises `StorageFailed`: the node must end. Cancelled,
        the unfinished file is removed by the next start or replaced by the next snapshot.
        """
        assert not self._snapshot_running, "one snapshot at a time"
        self._snapshot_running = True
        log, log_bytes = self.log, self.log.statistics().bytes
        try:
            writer = await self._snapshots.begin(log.position)
            try:
                if isinstance(blocks, AsyncIterable):
                    async for block in blocks:
                        await writer.add(block)
                else:
                    for block in blocks:
                        await writer.add(block)
                        await trio.lowlevel.checkpoint()
                await writer.finish()
            except StorageFailed:
                await writer.close()  # and nothing else: after a failed write the disk is left alone (W4)
                raise
            except BaseException:
                await writer.abandon()
                raise
            self._bytes_at_snapshot = log_bytes
            await log.remove_before(await self._snapshots.finished(writer.kept))
        finally:
            self._snapshot_running = False

    async def close(self) -> None:
        """Close all files."""
        if self._log is not None:
            await self._log.close()


# --- opening ----------------------------------------------------------------------------------------------------------------


async def read_identity(storage: Storage) -> Identity | None:
    """The identity of a locked directory, None when it is new.

    Raises `FormatTooNew`, `Corrupt`, or `StorageError` when the directory is not ours (D3).
    """
    names = [name for name in await storage.list() if name not in NAMES_IGNORED]
    if IDENTITY_NAME not in names:
        if not names:
            return None
        if any(_is_data(name) for name in names):
            raise Corrupt(f"the file {IDENTITY_NAME} is missing in {storage.name}, but there is data: restore that file from a backup")
        raise StorageError(f"{storage.name} is not a data directory of govern and not empty ({names[0]}): name an empty or a new one")
    file = await storage.open(IDENTITY_NAME)
    try:
        data = await file.read(0, min(file.size, 4096))
    finally:
        await file.close()
    try:
        return decode_identity(data)
    except NewerFormat as error:
        raise FormatTooNew(f"{storage.name} has {error}: start the newer version of govern that wrote it") from error
    except FormatError as error:
        raise Corrupt(f"{storage.name}/{IDENTITY_NAME} is damaged ({error}): restore that file from a backup") from error


def _is_data(name: str) -> bool:
    numbered = segment_number(name) is not None or snapshot_number(name) is not None
    return numbered or name == TABLE_NAME or name.startswith(RAFT_PREFIX)


async def _write_identity(storage: Storage, identity: Identity) -> None:
    data = encode_identity(identity)
    file = await storage.create(IDENTITY_NEW_NAME, 0)
    try:
        await file.write_durable(0, data)
    finally:
        await file.close()
    await storage.rename(IDENTITY_NEW_NAME, IDENTITY_NAME)
    await storage.sync_directory()


async def skip_boots(storage: Storage, identity: Identity, count: int) -> None:
    """Let the starts of a locked directory count on behind a gap, durably: the next one is later than any that others may know of.

    Raises `NoSpace`: then everything is as before. Raises `StorageFailed`.
    """
    await _write_identity(storage, identity._replace(boot_no=identity.boot_no + count))


@asynccontextmanager
async def open_directory(
    storage: Storage, random: Random, *, segment_bytes: int = SEGMENT_BYTES, without_cluster: bool = False
) -> AsyncIterator[DataDirectory]:
    """Lock a data directory, create it when it is new, and count this start (D1, D2, D3).

    A new one gets a `cluster_id` at once, or, `without_cluster`, zeros until `adopt_cluster`.

    Raises `DirectoryInUse`, `FormatTooNew`, `Corrupt`, `NoSpace`, `StorageFailed` or another `StorageError`, each with one line that
    says what to do. Leaving closes all files and gives the lock back, also when cancelled.
    """
    await storage.lock()
    try:
        known = await read_identity(storage)
        cluster_id = NO_CLUSTER if without_cluster or known else random.randbytes(16)
        identity = (known or Identity(cluster_id, random.randbytes(16), 0, without_cluster)).next_boot()
        await _write_identity(storage, identity)
        directory = DataDirectory(storage, identity, segment_bytes)
        try:
            yield directory
        finally:
            await directory.close()
    finally:
        await storage.unlock()
