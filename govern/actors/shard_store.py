"""The shard store: the only writer of the node's state.

It takes everything that has been queued while the disk was busy with the batch before, numbers it, appends it to the log as one batch,
and when the log says that it is durable, applies it and tells the sessions. So the more there is to do, the larger the batches
become, and the cost of an fsync is shared by all that wait for it.

T1  Nothing is applied, answered or published before `log.append` returned.
T2  Between the return of `log.append` and the last `apply` of the batch there is no checkpoint: a snapshot never sees half a batch.
T3  After an append that failed other than for want of space, nothing is acknowledged any more: the actor ends, and the node with it.
T4  An operation is numbered in the term in which the node acts for its slot at that moment; without one it is refused (rule P1).
T5  Nothing expires without a valid lease of the node when it is appended (rule P8, invariant 27).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import trio

from ..core.blocks import Block
from ..core.entries import OP_TYPES, ExpireOp, unpack_op
from ..core.ownership import Ownership
from ..core.requests import Write
from ..core.sessions import Sessions
from ..core.shard import Outcome, Shard
from ..environment import Clock
from ..errors import DiskFull, NoSpace, Overloaded, Stopped, Unassigned
from ..messages import Refused
from ..model import Lsn
from ..storage.directory import DataDirectory
from ..storage.format import Record
from ..storage.snapshots import Block as StoredBlock
from .mail import Committed, Loaded, ManagerMail, SessionsMail, StoreLoaded, WriteBatch
from .runtime import Mailbox

BATCHES_MAX: Final = 4
"""So many queued write batches become one batch of the log: about a thousand operations, 20 ms of work for the loop."""

RETRY_MS: Final = 1000

_log = logging.getLogger(__name__)


class ShardStore:
    """The actor around `core.shard`. Without a directory it keeps everything in memory."""

    def __init__(
        self,
        *,
        shard: Shard,
        sessions: Sessions,
        ownership: Ownership,
        clock: Clock,
        directory: DataDirectory | None,
        mailbox: Mailbox[WriteBatch],
        sessions_mailbox: Mailbox[SessionsMail],
        manager_mailbox: Mailbox[ManagerMail],
        snapshot_bytes: int,
    ) -> None:
        self.loaded = trio.Event()
        self._shard = shard
        self._sessions = sessions
        self._ownership = ownership
        self._clock = clock
        self._directory = directory
        self._mailbox = mailbox
        self._sessions_mailbox = sessions_mailbox
        self._manager_mailbox = manager_mailbox
        self._snapshot_bytes = snapshot_bytes
        self._snapshot_at_bytes = snapshot_bytes
        self._snapshotting = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Load, then serve until cancelled. Raises `StorageFailed` when the disk does (T3)."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            await self._load()
            if self._directory is not None:
                await nursery.start(self._directory.run)
            while True:
                first = await self._mailbox.get()
                await trio.lowlevel.checkpoint()  # the last few requests of a burst are read meanwhile, and share the fsync
                batches = [first, *self._mailbox.get_all(BATCHES_MAX - 1)]
                await self._commit([write for batch in batches for write in batch.writes])
                self._consider_snapshot(nursery)

    # --- loading ------------------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        if self._directory is not None:
            report = await self._directory.load(self._load_blocks, self._load_records)
            for note in report.notes:
                _log.warning("%s", note)
            _log.info(
                "loaded %d instances of %d services: %d snapshot blocks, %d log records",
                self._shard.instance_count,
                self._shard.service_count,
                report.blocks,
                report.records,
            )
        self._shard.loaded = True
        self.loaded.set()
        await self._tell(Loaded())
        await self._manager_mailbox.put(StoreLoaded())

    def _load_blocks(self, blocks: Sequence[StoredBlock]) -> None:
        for block in blocks:
            self._shard.load_block(Block(block.slot, Lsn(block.term, block.seq), block.state))

    def _load_records(self, records: Sequence[Record]) -> None:
        for slot, term, seq, kind, payload in records:
            self._shard.apply(slot, term, seq, unpack_op(kind, payload))

    # --- serving ------------------------------------------------------------------------------------------------------------

    async def _commit(self, writes: list[Write]) -> None:
        results: list[tuple[Write, Outcome]] = []
        numbered: list[tuple[Write, Record]] = []
        now_us = round(trio.current_time() * 1e6)
        fresh = self._ownership.is_fresh(self._clock.boot_us())
        terms, slot_number = self._ownership.terms, self._shard.slot_number
        for write in writes:
            if write.deadline_us and write.deadline_us < now_us:
                results.append((write, self._certainly_not(write, Overloaded.reason, "the deadline of the request passed before its turn")))
                continue
            term = terms[slot_number(write.op.service)]
            if not term or (type(write.op) is ExpireOp and not fresh):  # T4, T5
                results.append(
                    (write, self._certainly_not(write, Unassigned.reason, "this node does not act for that slot now; try again"))
                )
                continue
            slot, term, seq = self._shard.number(write.op, term)
            numbered.append((write, Record(slot, term, seq, OP_TYPES[type(write.op)], write.op.pack())))
        if numbered:
            results.extend(await self._append(numbered))
        await self._tell(Committed(results))

    async def _append(self, numbered: list[tuple[Write, Record]]) -> list[tuple[Write, Outcome]]:
        if self._directory is None:
            await trio.lowlevel.checkpoint()
        else:
            try:
                await self._directory.log.append([record for _, record in numbered])
            except NoSpace as error:
                self._shard.unnumber(dict.fromkeys(record.slot for _, record in numbered))
                return [(write, self._certainly_not(write, DiskFull.reason, str(error))) for write, _ in numbered]
        apply = self._shard.apply
        return [(write, apply(record.slot, record.term, record.seq, write.op)) for write, record in numbered]  # T2

    def _certainly_not(self, write: Write, code: str, text: str) -> Outcome:
        """The outcome of a write that was not carried out; unless it is the repetition of one that was, which must not be denied."""
        return Outcome(self._shard.answer_known(write.op) or Refused(code, text, RETRY_MS))

    async def _tell(self, message: SessionsMail) -> None:
        try:
            await self._sessions_mailbox.put(message)
        except Stopped:
            _log.debug("no client sessions are left to be told of %s", type(message).__name__)

    # --- snapshots ----------------------------------------------------------------------------------------------------------

    def _consider_snapshot(self, nursery: trio.Nursery) -> None:
        directory = self._directory
        if directory is None or self._snapshotting or directory.bytes_since_snapshot < self._snapshot_at_bytes:
            return
        self._snapshotting = True
        nursery.start_soon(self._snapshot, directory)

    async def _snapshot(self, directory: DataDirectory) -> None:
        try:
            await directory.snapshot(self._blocks())
            self._snapshot_at_bytes = self._snapshot_bytes
        except NoSpace as error:
            self._snapshot_at_bytes = directory.bytes_since_snapshot + self._snapshot_bytes
            _log.warning("no snapshot was written, the log is kept instead: %s", error)
        finally:
            self._snapshotting = False

    def _blocks(self) -> Iterator[StoredBlock]:
        for slot_number in self._shard.slot_numbers():
            slot, lsn, state = self._shard.block(slot_number)
            yield StoredBlock(slot, lsn.term, lsn.term, lsn.seq, state)
