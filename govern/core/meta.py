"""The metadata: what the replicated log of the candidates says about the cluster's nodes and slots.

The log stores results, never questions: the controller decides and writes down what shall be, and every candidate that applies the same
records holds the same state, whatever version of govern it runs. A record is a msgpack array `[kind, fields…]` in a DATA entry.

M1  `apply` is total and depends on nothing but the state, the index and the bytes. A record that this version cannot understand, or that
    no controller would write, raises `ApplyFailed`: the node has to stop, for it may not go on with a state that others do not share.
M2  A record about a life of a node that is no longer the current one, or about a node or a copy that is gone, changes nothing: it lost
    a race.
M3  Equal states pack to equal bytes.
M4  The version of the table is the index of the last record that changed it. The term of a slot is the index of the record that granted
    it, the id of a copy that of the record that created it; so none is ever used twice and all only grow.
M5  For each disk that carries copies, and for the current one of each node, the highest boot number is remembered. A registration
    with a lower one changes nothing (rule N3).
M6  An empty copy never takes the place of one that is intact: of one that lies on the disk that its node has now.

A life of a node is (`disk_id`, `boot_no`). Registering a new life sets `registered_at`; grants with an older term are not that life's.
Known limit: a disk that was rolled back and then started until its boot number has caught up again is not recognised by that number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import attrs
import msgpack

from ..errors import GovernError, RemoteProtocolError
from ..model import NODE_ID_MAX
from .slots import SLOT_COUNT
from .table import (
    DOWN,
    EMPTY,
    UP,
    SlotRun,
    Table,
    TableNode,
    node_rows,
    overlay,
    read_nodes,
    read_runs,
    run_rows,
)

FORMAT: Final = 1
NO_CLUSTER: Final = bytes(16)
"""The cluster id of who belongs to no cluster yet."""
SLOT_HASH: Final = "crc16"
RECORD_BYTES_MAX: Final = 256 * 1024
"""A record goes into one Append with its neighbours. A batch with an item for each slot is smaller than this."""


class ApplyFailed(GovernError):
    """A committed record cannot be applied by this version of govern: the node has to stop (M1)."""


# --- records ----------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Record:
    """The base of all records."""

    KIND: ClassVar[int] = -1

    def pack(self) -> bytes:
        """The bytes for a DATA entry."""
        data: bytes = msgpack.packb([self.KIND, *attrs.astuple(self)])
        assert len(data) <= RECORD_BYTES_MAX, len(data)
        return data


@attrs.frozen
class ClusterInit(Record):
    """The cluster exists. The first record of each log."""

    KIND: ClassVar[int] = 1
    cluster_id: bytes
    slots: int = SLOT_COUNT
    hash: str = SLOT_HASH


@attrs.frozen
class NodeJoined(Record):
    """A life of a node is registered. For the current life again: it is up again, at these addresses, and keeps its grants."""

    KIND: ClassVar[int] = 2
    node_id: int
    disk_id: bytes
    boot_no: int
    clients: str
    peers: str
    candidate: bool
    volatile: bool


@attrs.frozen
class NodeFenced(Record):
    """A life of a node is given up, and why: it has to register again before it gets a lease."""

    KIND: ClassVar[int] = 3
    node_id: int
    disk_id: bytes
    boot_no: int
    reason: str


@attrs.frozen
class NodeForgotten(Record):
    """A node that holds nothing is gone for good."""

    KIND: ClassVar[int] = 4
    node_id: int


@attrs.frozen
class SlotItem:
    """Slots `first` to `last` are granted to a node, with a new term: with a new, empty copy, or with the one that it has."""

    first: int
    last: int
    node_id: int
    new_copy: bool


@attrs.frozen
class SlotBatch(Record):
    """Slots are granted, and why. Items are in order of slots and do not overlap."""

    KIND: ClassVar[int] = 5
    cause: str
    items: tuple[SlotItem, ...]


_KINDS: Final[dict[int, type[Record]]] = {kind.KIND: kind for kind in (ClusterInit, NodeJoined, NodeFenced, NodeForgotten, SlotBatch)}
_FIELD_TYPES: Final[dict[int, tuple[type, ...]]] = {
    ClusterInit.KIND: (bytes, int, str),
    NodeJoined.KIND: (int, bytes, int, str, str, bool, bool),
    NodeFenced.KIND: (int, bytes, int, str),
    NodeForgotten.KIND: (int,),
    SlotBatch.KIND: (str, list),
}


def unpack_record(data: bytes) -> Record:
    """A record from the bytes of a DATA entry; raises `ApplyFailed`. Fields that a later version added at the end are not accepted: what
    they mean would be missing here."""
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, RecursionError) as error:
        raise ApplyFailed(f"a metadata record is not readable: {type(error).__name__}") from error
    if type(raw) is not list or not raw or type(raw[0]) is not int or raw[0] not in _KINDS:
        raise ApplyFailed("a metadata record is of a kind that this version of govern does not know: install the newer one on this node")
    kind, values = _KINDS[raw[0]], raw[1:]
    if tuple(map(type, values)) != _FIELD_TYPES[kind.KIND]:
        raise ApplyFailed(f"a metadata record {kind.__name__} has other fields than this version of govern knows")
    if kind is SlotBatch:
        return SlotBatch(values[0], _read_items(values[1]))
    record = kind(*values)
    if isinstance(record, (NodeJoined, NodeFenced)) and not (0 < record.node_id <= NODE_ID_MAX and len(record.disk_id) == 16):
        raise ApplyFailed(f"a metadata record {kind.__name__} names node {record.node_id} with a disk id of {len(record.disk_id)} bytes")
    return record


def _read_items(rows: list[Any]) -> tuple[SlotItem, ...]:
    end = -1
    items: list[SlotItem] = []
    for row in rows:
        if type(row) is not list or [type(value) for value in row] != [int, int, int, bool]:
            raise ApplyFailed("a metadata record SlotBatch has an item that is not [first, last, node, new copy]")
        item = SlotItem(*row)
        if not end < item.first <= item.last < SLOT_COUNT:
            raise ApplyFailed("a metadata record SlotBatch has slots out of order")
        end = item.last
        items.append(item)
    return tuple(items)


# --- the state --------------------------------------------------------------------------------------------------------------


@attrs.frozen
class MetaNode:
    """What is known of a node beyond its row in the table. `fenced` is why it is down, else empty. `former` are its other disks that still
    count, with their boot numbers (M5)."""

    row: TableNode
    volatile: bool
    fenced: str = ""
    former: tuple[tuple[bytes, int], ...] = ()

    def boot_of(self, disk_id: bytes) -> int:
        """The highest boot number that is known of a disk; 0 for one that is not known."""
        return self.row.boot_no if disk_id == self.row.disk_id else dict(self.former).get(disk_id, 0)

    def is_life(self, disk_id: bytes, boot_no: int) -> bool:
        """Whether that is its current life."""
        return (self.row.disk_id, self.row.boot_no) == (disk_id, boot_no)


@attrs.frozen
class CopyHome:
    """Where a copy was created: on which disk, and whether that forgets with its process."""

    disk_id: bytes
    volatile: bool


class MetaState:
    """The metadata as of one applied record."""

    def __init__(self) -> None:
        self.cluster_id = NO_CLUSTER
        self.index = 0
        """Of the last record that was applied."""
        self.table: Table = EMPTY
        self.nodes: dict[int, MetaNode] = {}
        self.homes: dict[tuple[int, int], CopyHome] = {}
        """Of each copy (`node_id`, `copy_id`) in the table."""

    def __repr__(self) -> str:
        return f"<MetaState {self.index} {self.table!r}>"

    @property
    def version(self) -> int:
        """Of the table (M4)."""
        return self.table.version

    def apply(self, index: int, data: bytes) -> Record:
        """Apply the record of one committed DATA entry, and return it; raises `ApplyFailed`, and then nothing has changed."""
        assert index > self.index, (index, self.index)
        record = unpack_record(data)
        _APPLY[record.KIND](self, index, record)
        self.index = index
        return record

    def home(self, run: SlotRun) -> CopyHome:
        """Where the primary's copy of a run lies."""
        return self.homes[run.primary, dict(run.copies)[run.primary]]

    def is_intact(self, run: SlotRun) -> bool:
        """Whether the primary's copy of a run is still there: on the disk that the node has now, and not gone with a process."""
        row, home = self.nodes[run.primary].row, self.home(run)
        return home.disk_id == row.disk_id and not (home.volatile and run.term < row.registered_at)

    def lost_runs(self) -> Iterator[SlotRun]:
        """The runs whose only copy is not there any more."""
        return (run for run in self.table.runs if not self.is_intact(run))

    def degraded(self) -> list[str]:
        """What does not work, one line each, for people: nodes that are down, slots without a node, slots that lost their only copy."""
        texts = []
        for node_id in sorted(self.nodes):
            node, slots = self.nodes[node_id], self.table.primaries(node_id)
            if node.row.state == DOWN:
                texts.append(
                    f"node {node_id} is down: {node.fenced}; " + (f"{slots} slots are unavailable" if slots else "it holds no slots")
                )
        missing = SLOT_COUNT - self.table.assigned_count
        if missing:
            texts.append(f"{missing} slots are not assigned to any node yet")
        lost: dict[int, int] = {}
        for run in self.lost_runs():
            lost[run.primary] = lost.get(run.primary, 0) + run.last - run.first + 1
        for node_id, slots in sorted(lost.items()):
            texts.append(
                f"{slots} slots had their only copy on a disk that node {node_id} no longer has: start the node on its old data "
                f"directory, or give up what was in them: govern reset {node_id}"
            )
        return texts

    def rows(self) -> list[dict[str, Any]]:
        """The nodes, for people and tools. Who is a voter is not known here."""
        return [
            {
                "node_id": row.node_id,
                "clients": row.clients,
                "peers": row.peers,
                "candidate": row.candidate,
                "state": row.state,
                "primaries": self.table.primaries(row.node_id),
                "copies": self.table.copies(row.node_id),
            }
            for row in self.table.nodes
        ]

    # --- one record each ---------------------------------------------------------------------------------------------------------

    def _apply_init(self, index: int, record: ClusterInit) -> None:
        if (record.slots, record.hash) != (SLOT_COUNT, SLOT_HASH):
            raise ApplyFailed(
                f"the cluster has {record.slots} slots by {record.hash}; this version of govern knows only {SLOT_COUNT} by {SLOT_HASH}"
            )
        if self.cluster_id not in (NO_CLUSTER, record.cluster_id) or len(record.cluster_id) != 16 or record.cluster_id == NO_CLUSTER:
            raise ApplyFailed(f"the log of cluster {self.cluster_id.hex()} begins another cluster, {record.cluster_id.hex()}")
        self.cluster_id = record.cluster_id

    def _apply_joined(self, index: int, record: NodeJoined) -> None:
        node = self.nodes.get(record.node_id)
        former: dict[bytes, int] = {}
        registered_at = index
        if node is not None:
            if record.boot_no < node.boot_of(record.disk_id):
                return  # M5
            if node.is_life(record.disk_id, record.boot_no):
                registered_at = node.row.registered_at
            former = dict(node.former)
            former[node.row.disk_id] = node.row.boot_no
            former.pop(record.disk_id, None)
        row = TableNode(record.node_id, record.clients, record.peers, record.candidate, UP, record.disk_id, record.boot_no, registered_at)
        changed = MetaNode(row, record.volatile, "", tuple(sorted(former.items())))
        if changed != node:
            self._set_nodes(index, {**self.nodes, record.node_id: changed}, self.table.runs)

    def _apply_fenced(self, index: int, record: NodeFenced) -> None:
        node = self.nodes.get(record.node_id)
        if node is None or node.row.state == DOWN or not node.is_life(record.disk_id, record.boot_no):
            return  # M2
        changed = attrs.evolve(node, row=attrs.evolve(node.row, state=DOWN), fenced=record.reason)
        self._set_nodes(index, {**self.nodes, record.node_id: changed}, self.table.runs)

    def _apply_forgotten(self, index: int, record: NodeForgotten) -> None:
        if record.node_id not in self.nodes or self.table.copies(record.node_id):
            return  # M2
        self._set_nodes(index, {node_id: node for node_id, node in self.nodes.items() if node_id != record.node_id}, self.table.runs)

    def _apply_batch(self, index: int, record: SlotBatch) -> None:
        news: list[SlotRun] = []
        for item in record.items:
            node = self.nodes.get(item.node_id)
            if node is None:
                continue  # M2
            if item.new_copy:
                self.homes[item.node_id, index] = CopyHome(node.row.disk_id, node.volatile)
                news.extend(self._create(index, item))
            else:
                news.extend(
                    attrs.evolve(run, term=index)
                    for run in self.table.runs_within(item.first, item.last)
                    if run.primary == item.node_id and self.is_intact(run)  # M2
                )
        if news:
            self._set_nodes(index, self.nodes, overlay(self.table.runs, news))
        else:
            self._prune()

    def _create(self, index: int, item: SlotItem) -> Iterator[SlotRun]:
        """The parts of an item where nothing intact lies (M6), with a new copy."""
        first = item.first
        for run in self.table.runs_within(item.first, item.last):
            if self.is_intact(run):
                if first < run.first:
                    yield _new_run(index, item.node_id, first, run.first - 1)
                first = run.last + 1
        if first <= item.last:
            yield _new_run(index, item.node_id, first, item.last)

    def _set_nodes(self, index: int, nodes: dict[int, MetaNode], runs: tuple[SlotRun, ...]) -> None:
        """The next version of the table."""
        self.nodes = nodes
        self.table = Table(index, tuple(nodes[node_id].row for node_id in sorted(nodes)), runs)
        self._prune()

    def _prune(self) -> None:
        """Forget the homes of copies that are gone, and former disks that carry none (M5)."""
        there = dict.fromkeys(copy for run in self.table.runs for copy in run.copies)
        self.homes = {copy: home for copy, home in self.homes.items() if copy in there}
        used = dict.fromkeys((node_id, home.disk_id) for (node_id, _), home in self.homes.items())
        for node_id, node in self.nodes.items():
            former = tuple((disk_id, boot_no) for disk_id, boot_no in node.former if (node_id, disk_id) in used)
            if former != node.former:
                self.nodes = {**self.nodes, node_id: attrs.evolve(node, former=former)}

    # --- snapshots ---------------------------------------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """The state as bytes, for a snapshot (M3)."""
        nodes = [self.nodes[node_id] for node_id in sorted(self.nodes)]
        extras = [[node.volatile, node.fenced, [list(pair) for pair in node.former]] for node in nodes]
        homes = [[*copy, home.disk_id, home.volatile] for copy, home in sorted(self.homes.items())]
        table = [self.version, node_rows(self.table.nodes), run_rows(self.table.runs)]
        data: bytes = msgpack.packb([FORMAT, self.index, self.cluster_id, table, extras, homes])
        return data

    @classmethod
    def unpack(cls, data: bytes) -> MetaState:
        """The state of a snapshot; of no bytes at all, the empty state. Raises `ApplyFailed`."""
        state = cls()
        if not data:
            return state
        try:
            number, *fields = msgpack.unpackb(data, raw=False, strict_map_key=True)
            if number != FORMAT:
                raise ApplyFailed(f"the metadata snapshot has format {number}; this version of govern knows only {FORMAT}")
            state.index, state.cluster_id, (version, nodes, runs), extras, homes = fields
            state.table = Table(version, read_nodes(nodes), read_runs(runs))
            for row, (volatile, fenced, former) in zip(state.table.nodes, extras, strict=True):
                state.nodes[row.node_id] = MetaNode(row, volatile, fenced, tuple((disk_id, boot_no) for disk_id, boot_no in former))
            state.homes = {(node_id, copy_id): CopyHome(disk_id, volatile) for node_id, copy_id, disk_id, volatile in homes}
            state._check_types()
        except (ValueError, TypeError, RecursionError, RemoteProtocolError) as error:
            raise ApplyFailed(f"the metadata snapshot is not readable: {error}") from error
        flaw = state._find_flaw()
        if flaw is not None:
            raise ApplyFailed(f"the metadata snapshot contradicts itself: {flaw}")
        return state

    def _check_types(self) -> None:
        """Of what `unpack` took from anywhere; raises `TypeError`."""
        values: list[tuple[object, type]] = [(self.index, int), (self.cluster_id, bytes), (self.version, int)]
        for node in self.nodes.values():
            values += [(node.volatile, bool), (node.fenced, str)]
            values += [each for disk_id, boot_no in node.former for each in ((disk_id, bytes), (boot_no, int))]
        for (node_id, copy_id), home in self.homes.items():
            values += [(node_id, int), (copy_id, int), (home.disk_id, bytes), (home.volatile, bool)]
        for value, kind in values:
            if type(value) is not kind:
                raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")

    def validate(self) -> None:
        """Assert that the parts agree with each other."""
        self.table.validate()
        flaw = self._find_flaw()
        assert flaw is None, flaw

    def _find_flaw(self) -> str | None:
        """In what the parts do not agree with each other."""
        copies = [copy for run in self.table.runs for copy in run.copies]
        if tuple(self.nodes[node_id].row for node_id in sorted(self.nodes)) != self.table.nodes:
            return "the nodes are not those of the table"
        if self.version > self.index:
            return f"version {self.version} of the table is of a later entry than {self.index}"
        if sorted(self.homes) != sorted(dict.fromkeys(copies)):
            return "the homes are not those of the copies in the table"
        for node in self.nodes.values():
            row = node.row
            if (row.state == DOWN) != bool(node.fenced) or row.registered_at > self.version or row.disk_id in dict(node.former):
                return f"{node}"
        for run in self.table.runs:
            if run.term > self.version or not all(node_id in self.nodes and copy_id <= run.term for node_id, copy_id in run.copies):
                return f"{run}"
        return None


def _new_run(index: int, node_id: int, first: int, last: int) -> SlotRun:
    return SlotRun(first, last, node_id, index, ((node_id, index),), (node_id,))


_APPLY: Final[dict[int, Callable[[MetaState, int, Any], None]]] = {
    ClusterInit.KIND: MetaState._apply_init,
    NodeJoined.KIND: MetaState._apply_joined,
    NodeFenced.KIND: MetaState._apply_fenced,
    NodeForgotten.KIND: MetaState._apply_forgotten,
    SlotBatch.KIND: MetaState._apply_batch,
}
