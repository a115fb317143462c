"""What leaves a node, compared with what its disk has, in the moment in which it leaves.

T7  No message leaves a node that depends on an operation which is not durable: neither the answer to a write, nor a view or a delta that
    shows it, nor a page of a resync that names its lease.

What is durable is not taken from the node's word: an append of the log counts when it has returned *and* the disk keeps nothing of the
segments in its cache; what a start has read counts when the start has synced it. Every byte that a socket of the node takes is read here,
as a client would read it; the questions are read as well, because the answer to a write does not name its service.

Nodes in memory promise nothing of the kind. A disk that lies about a sync makes this checker cry: it is not for runs with one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import attrs

from govern.core.slots import slot_of
from govern.messages import (
    FRAME_BYTES_MAX_TO_CLIENT,
    FRAME_BYTES_MAX_TO_NODE,
    Delta,
    Deregister,
    Done,
    Drain,
    Drained,
    Evict,
    Register,
    Registered,
    ResyncOk,
    Update,
    View,
)
from govern.model import LSN_ZERO, Lsn, ServiceKey
from govern.net.frames import FrameReader
from govern.net.sim import SimConnection
from govern.storage.directory import DataDirectory
from govern.storage.format import Record, segment_number
from govern.storage.log import Log
from govern.storage.sim import SimStorage
from govern.storage.snapshots import Block
from govern.testing.world import World

from . import Violation

WRITES = (Register.TYPE, Update.TYPE, Deregister.TYPE, Drain.TYPE, Evict.TYPE)
ANSWERS = (Registered.TYPE, Done.TYPE, Drained.TYPE)
LISTS = {View.TYPE: 3, Delta.TYPE: 4}
"""Where in the frame the lsn is that a list leads to; its service is the first field."""


@attrs.define(eq=False)
class Stream:
    """Both directions of one connection, as far as they were read."""

    questions: FrameReader = attrs.field(factory=lambda: FrameReader(FRAME_BYTES_MAX_TO_NODE))
    answers: FrameReader = attrs.field(factory=lambda: FrameReader(FRAME_BYTES_MAX_TO_CLIENT))
    services: dict[int, ServiceKey] = attrs.field(factory=dict)
    """Of the writes that were asked for, by request id."""


class Durable:
    """Judges every frame that a node sends. `report` is told of each violation."""

    def __init__(self, world: World, report: Callable[[Violation], None]) -> None:
        self.judged = 0
        self._world = world
        self._report = report
        self._slots: dict[str, dict[int, Lsn]] = {}
        self._streams: WeakKeyDictionary[SimConnection, Stream] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Durable {self.judged} frames>"

    @contextmanager
    def watch(self) -> Generator[None]:
        """Look at every log, start and socket for the length of a run."""
        append, load, send, recv = Log.append, DataDirectory.load, SimConnection.send, SimConnection.recv

        async def append_and_note(log: Log, records: Sequence[Record]) -> None:
            await append(log, records)
            if isinstance(log._storage, SimStorage) and is_synced(log._storage, log.segment_no):
                slots = self._slots.setdefault(log._storage.name, {})
                slots.update({record.slot: Lsn(record.term, record.seq) for record in records})

        async def load_and_note(directory: DataDirectory, on_blocks: Any, on_records: Any) -> Any:
            found: dict[int, Lsn] = {}

            def blocks_and_note(blocks: Sequence[Block]) -> None:
                found.update({block.slot: Lsn(block.term, block.seq) for block in blocks})
                on_blocks(blocks)

            def records_and_note(records: Sequence[Record]) -> None:
                found.update({each.slot: max(Lsn(each.term, each.seq), found.get(each.slot, LSN_ZERO)) for each in records})
                on_records(records)

            report = await load(directory, blocks_and_note, records_and_note)
            assert isinstance(directory._storage, SimStorage)
            self._slots[directory._storage.name] = found if is_synced(directory._storage) else {}
            return report

        def send_and_judge(connection: SimConnection, data: bytes) -> int:
            sent = send(connection, data)
            if sent > 0:
                self._judge(connection, data[:sent])
            return sent

        def recv_and_note(connection: SimConnection) -> bytes | None:
            data = recv(connection)
            if data:
                self._note(connection, data)
            return data

        patches: tuple[tuple[type, str, Any], ...] = (
            (Log, "append", append_and_note),
            (DataDirectory, "load", load_and_note),
            (SimConnection, "send", send_and_judge),
            (SimConnection, "recv", recv_and_note),
        )
        for kind, name, method in patches:
            setattr(kind, name, method)
        try:
            yield
        finally:
            for (kind, name, _), original in zip(patches, (append, load, send, recv), strict=True):
                setattr(kind, name, original)

    # --- reading along --------------------------------------------------------------------------------------------------------

    def _note(self, connection: SimConnection, data: bytes) -> None:
        stream = self._streams.setdefault(connection, Stream())
        for raw in stream.questions.feed(data):
            if raw[0] in WRITES and len(raw) > 2 and type(raw[2]) is list:
                stream.services[raw[1]] = ServiceKey(*raw[2])

    def _judge(self, connection: SimConnection, data: bytes) -> None:
        machine = self._world.machines.get(connection.local_host)
        if machine is None or machine.disk is None:
            return
        stream = self._streams.setdefault(connection, Stream())
        for raw in stream.answers.feed(data):
            self.judged += 1
            if raw[0] in LISTS:
                self._compare(machine.name, raw, ServiceKey(*raw[2]), Lsn(*raw[LISTS[raw[0]]]))
            elif raw[0] in ANSWERS:
                self._compare(machine.name, raw, stream.services.get(raw[1]), Lsn(*raw[-1 if raw[0] != Drained.TYPE else 2]))
            elif raw[0] == ResyncOk.TYPE:
                for namespace, name, _, term, seq in raw[5]:
                    self._compare(machine.name, raw, ServiceKey(namespace, name), Lsn(term, seq))

    def _compare(self, machine: str, raw: list[Any], service: ServiceKey | None, lsn: Lsn) -> None:
        """The answer to a Goodbye has the lsn of a service that nobody has named: then any slot may have it."""
        slots = self._slots.get(machine, {})
        durable = max(slots.values(), default=LSN_ZERO) if service is None else slots.get(slot_of(service), LSN_ZERO)
        if lsn.seq and lsn > durable:  # at seq 0 nothing was written yet
            self._report(Violation(f"7: {machine} sends {raw[:5]} of {service} at {lsn}, and only {durable} is durable"))

    # --- a checker like others --------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """That there was something to be judged."""
        if not self.judged:
            raise Violation("7: no frame of any node was seen")


def is_synced(storage: SimStorage, last: int | None = None) -> bool:
    """Whether the platter has everything of the segments of the log that programs see; up to that one, because the next may just be made
    while batches go on."""
    for name, contents in storage._disk.names.items():
        number = segment_number(name)
        if number is not None and (last is None or number <= last) and contents.unsynced:
            return False
    return True
