"""The table: which node answers for which slot, and where the nodes are.

A `Table` is one version of that, and never changes; the version is the index of the metadata record that made it. Nodes and clients hold
one and replace it by a newer one. On the wire it travels as rows, whole or as what changed since a version that the reader names.

T1  Runs are sorted and do not overlap; neighbours that say the same are one run. A slot that is in no run belongs to nobody yet.
T2  `apply(old, difference(old, new)) == new`: a reader that follows the changes has the table that its writer has.
T3  A version is made once. Two tables of one cluster with one version are equal.
T4  Rows from anywhere make a table of a bounded size, which any file and any frame for tables can hold, or none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, Protocol

import attrs

from ..errors import RemoteProtocolError
from ..model import NODE_ID_MAX
from ..peer_messages import DISK_ID_BYTES, NUMBER_MAX
from .slots import SLOT_COUNT

UP: Final = "up"
DOWN: Final = "down"
NODES_MAX: Final = 4096
"""Nodes in one table: more than any cluster has."""
COPIES_MAX: Final = 16
"""Copies of a slot, and so nodes in sync: far more than anybody keeps."""
ADDRESS_BYTES_MAX: Final = 300
"""The longest host name, and a port."""
STATE_BYTES_MAX: Final = 16
ROWS_MAX: Final = SLOT_COUNT + 2 * NODES_MAX
"""Rows of one table that a reader takes: every slot in a run of its own, and nodes, and pages."""


@attrs.frozen
class TableNode:
    """One node. `clients` and `peers` are `host:port`; `peers` is empty for a node that takes no links. `registered_at` is the version at
    which this life of the node (`disk_id`, `boot_no`) was registered: grants older than that are not its own."""

    node_id: int
    clients: str
    peers: str
    candidate: bool
    state: str
    disk_id: bytes
    boot_no: int
    registered_at: int


@attrs.frozen
class SlotRun:
    """Slots `first` to `last` that share everything: the primary, its term, the copies `(node_id, copy_id)` and the nodes in sync."""

    first: int
    last: int
    primary: int
    term: int
    copies: tuple[tuple[int, int], ...]
    in_sync: tuple[int, ...]

    @property
    def value(self) -> tuple[object, ...]:
        """What neighbours must share to be one run."""
        return self.primary, self.term, self.copies, self.in_sync


@attrs.frozen(repr=False)
class Table:
    """One version. Nodes are sorted by id, runs by slot (T1)."""

    version: int = 0
    nodes: tuple[TableNode, ...] = ()
    runs: tuple[SlotRun, ...] = ()
    _firsts: tuple[int, ...] = attrs.field(init=False, eq=False, repr=False)
    _by_id: dict[int, TableNode] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_firsts", tuple(run.first for run in self.runs))
        object.__setattr__(self, "_by_id", {node.node_id: node for node in self.nodes})

    def __repr__(self) -> str:
        return f"<Table {self.version} nodes={sorted(self._by_id)} runs={len(self.runs)} assigned={self.assigned_count}>"

    @property
    def assigned_count(self) -> int:
        """How many slots belong to somebody."""
        return sum(run.last - run.first + 1 for run in self.runs)

    @property
    def unassigned_count(self) -> int:
        """How many slots belong to nobody yet."""
        return SLOT_COUNT - self.assigned_count

    def node(self, node_id: int) -> TableNode | None:
        """A node by its id."""
        return self._by_id.get(node_id)

    def run_of(self, slot: int) -> SlotRun | None:
        """The run that a slot is in; None for a slot that belongs to nobody."""
        place = bisect_right(self._firsts, slot) - 1
        return self.runs[place] if place >= 0 and slot <= self.runs[place].last else None

    def runs_within(self, first: int, last: int) -> list[SlotRun]:
        """The runs between two slots, cut at both."""
        within: list[SlotRun] = []
        for place in range(max(bisect_right(self._firsts, first) - 1, 0), bisect_right(self._firsts, last)):
            run = self.runs[place]
            if run.last >= first:
                within.append(attrs.evolve(run, first=max(run.first, first), last=min(run.last, last)))
        return within

    def owner(self, slot: int) -> TableNode | None:
        """The node that answers for a slot."""
        run = self.run_of(slot)
        return None if run is None else self._by_id.get(run.primary)

    def primaries(self, node_id: int) -> int:
        """For how many slots a node answers."""
        return sum(run.last - run.first + 1 for run in self.runs if run.primary == node_id)

    def copies(self, node_id: int) -> int:
        """Of how many slots a node has a copy, its primaries included."""
        return sum(run.last - run.first + 1 for run in self.runs if any(node == node_id for node, _ in run.copies))

    def validate(self) -> None:
        """Assert T1."""
        ids = [node.node_id for node in self.nodes]
        assert ids == sorted(dict.fromkeys(ids)), ids
        end, value = -1, None
        for run in self.runs:
            assert end < run.first <= run.last < SLOT_COUNT, run
            assert run.value != value or run.first > end + 1, run
            assert any(node == run.primary for node, _ in run.copies), run
            assert run.primary in run.in_sync, run
            end, value = run.last, run.value


EMPTY: Final = Table()


@attrs.frozen
class TableChange:
    """From version `base` to `version`: nodes that are new or different, ids of nodes that are gone, and runs that replace whatever was
    there. With base 0 it is the whole table."""

    base: int
    version: int
    nodes: tuple[TableNode, ...] = ()
    gone: tuple[int, ...] = ()
    runs: tuple[SlotRun, ...] = ()


def join_runs(runs: Iterable[SlotRun]) -> tuple[SlotRun, ...]:
    """Sorted runs with equal neighbours made one (T1)."""
    joined: list[SlotRun] = []
    for run in sorted(runs, key=lambda run: run.first):
        if joined and joined[-1].last + 1 == run.first and joined[-1].value == run.value:
            joined[-1] = attrs.evolve(joined[-1], last=run.last)
        else:
            joined.append(run)
    return tuple(joined)


def overlay(runs: Iterable[SlotRun], news: Iterable[SlotRun]) -> tuple[SlotRun, ...]:
    """The runs with `news`, which do not overlap each other, in the place of what they cover. Both are walked once."""
    cover = sorted(news, key=lambda run: run.first)
    kept: list[SlotRun] = []
    place = 0
    for run in runs:
        first = run.first
        while place < len(cover) and cover[place].last < first:
            place += 1
        at = place
        while at < len(cover) and cover[at].first <= run.last:
            if cover[at].first > first:
                kept.append(attrs.evolve(run, first=first, last=cover[at].first - 1))
            first = cover[at].last + 1
            at += 1
        if first <= run.last:
            kept.append(run if first == run.first else attrs.evolve(run, first=first))
    return join_runs([*kept, *cover])


def whole(table: Table) -> TableChange:
    """The table as a change from nothing."""
    return TableChange(0, table.version, table.nodes, (), table.runs)


def difference(old: Table, new: Table) -> TableChange:
    """What leads from one version to a later one of the same cluster. Slots never become nobody's again, so runs only replace runs."""
    before = {node.node_id: node for node in old.nodes}
    nodes = tuple(node for node in new.nodes if before.get(node.node_id) != node)
    gone = tuple(node_id for node_id in before if new.node(node_id) is None)
    return TableChange(old.version, new.version, nodes, gone, tuple(_differing(old, new)))


def _differing(old: Table, new: Table) -> list[SlotRun]:
    """The parts of the new runs that say something else than the old table does."""
    pieces: list[SlotRun] = []
    for run in new.runs:
        first = run.first
        while first <= run.last:
            was = old.run_of(first)
            if was is None:
                place = bisect_right(old._firsts, first)
                last = min(run.last, old._firsts[place] - 1 if place < len(old._firsts) else run.last)
            else:
                last = min(run.last, was.last)
            if was is None or was.value != run.value:
                pieces.append(attrs.evolve(run, first=first, last=last))
            first = last + 1
    return list(join_runs(pieces))


def apply(table: Table, change: TableChange) -> Table:
    """The table after a change (T2). The change is whole, or its base is the version of the table; asserted."""
    if not change.base:
        return Table(change.version, change.nodes, change.runs)
    assert change.base == table.version, (table, change.base)
    gone = dict.fromkeys(change.gone)
    nodes = {node.node_id: node for node in table.nodes if node.node_id not in gone}
    nodes.update({node.node_id: node for node in change.nodes})
    return Table(change.version, tuple(nodes[node_id] for node_id in sorted(nodes)), overlay(table.runs, change.runs))


# --- rows -------------------------------------------------------------------------------------------------------------------


def node_rows(nodes: Iterable[TableNode]) -> list[list[Any]]:
    """Nodes as rows for the wire and for files."""
    return [list(attrs.astuple(node)) for node in nodes]


def run_rows(runs: Iterable[SlotRun]) -> list[list[Any]]:
    """Runs as rows for the wire and for files."""
    return [[run.first, run.last, run.primary, run.term, [list(copy) for copy in run.copies], list(run.in_sync)] for run in runs]


_NODE_TYPES: Final = (int, str, str, bool, str, bytes, int, int)


def read_nodes(rows: Sequence[Any]) -> tuple[TableNode, ...]:
    """Nodes from rows; more items than are known are ignored. Raises `RemoteProtocolError`, also when they are not in order."""
    if len(rows) > NODES_MAX:
        raise RemoteProtocolError(f"a table of {len(rows)} nodes: {NODES_MAX} are the most")
    nodes = tuple(_read_node(row) for row in rows)
    if any(node.node_id >= later.node_id for node, later in pairwise(nodes)):
        raise RemoteProtocolError("the nodes of a table must be in the order of their ids, each once")
    return nodes


def _read_node(row: Any) -> TableNode:
    if type(row) is not list or tuple(map(type, row[: len(_NODE_TYPES)])) != _NODE_TYPES:
        raise RemoteProtocolError("a node of the table must be [id, clients, peers, candidate, state, disk, boot, registered at]")
    node = TableNode(*row[: len(_NODE_TYPES)])
    if not (
        1 <= node.node_id <= NODE_ID_MAX
        and len(node.clients.encode()) <= ADDRESS_BYTES_MAX
        and len(node.peers.encode()) <= ADDRESS_BYTES_MAX
        and len(node.state.encode()) <= STATE_BYTES_MAX
        and len(node.disk_id) == DISK_ID_BYTES
        and 0 <= node.boot_no < NUMBER_MAX
        and 0 <= node.registered_at < NUMBER_MAX
    ):
        raise RemoteProtocolError(f"a node of the table has a value out of bounds: {node.node_id}")
    return node


def read_runs(rows: Sequence[Any]) -> tuple[SlotRun, ...]:
    """Runs from rows; more items than are known are ignored. Raises `RemoteProtocolError`, also when they are not in order."""
    return _in_order(tuple(_read_run(row) for row in rows))


def _in_order(runs: tuple[SlotRun, ...]) -> tuple[SlotRun, ...]:
    if any(run.last >= later.first for run, later in pairwise(runs)):
        raise RemoteProtocolError("the runs of a table must be in order")
    return runs


def _read_run(row: Any) -> SlotRun:
    if type(row) is not list or [type(value) for value in row[:6]] != [int, int, int, int, list, list]:
        raise RemoteProtocolError("a run of the table must be [first, last, primary, term, copies, in sync]")
    first, last, primary, term, copies, in_sync = row[:6]
    if not (0 <= first <= last < SLOT_COUNT and 0 <= term < NUMBER_MAX and len(copies) <= COPIES_MAX and len(in_sync) <= COPIES_MAX):
        raise RemoteProtocolError("a run of the table has a value out of bounds")
    pairs = tuple(_read_copy(copy) for copy in copies)
    if not all(type(node_id) is int and 1 <= node_id <= NODE_ID_MAX for node_id in in_sync):
        raise RemoteProtocolError("nodes in sync are told by their ids")
    if primary not in in_sync or all(node_id != primary for node_id, _ in pairs):
        raise RemoteProtocolError("the primary of a run must have a copy and be in sync")
    return SlotRun(first, last, primary, term, pairs, tuple(in_sync))


def _read_copy(copy: Any) -> tuple[int, int]:
    if type(copy) is not list or [type(value) for value in copy[:2]] != [int, int]:
        raise RemoteProtocolError("a copy must be [node, copy id]")
    if not (1 <= copy[0] <= NODE_ID_MAX and 0 <= copy[1] < NUMBER_MAX):
        raise RemoteProtocolError("a copy has a value out of bounds")
    return copy[0], copy[1]


# --- pages ------------------------------------------------------------------------------------------------------------------


class TablePage(Protocol):
    """A page of a table on the wire, between nodes or towards a client."""

    @property
    def more(self) -> bool: ...
    @property
    def base(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def nodes(self) -> list[Any]: ...
    @property
    def gone(self) -> list[Any]: ...
    @property
    def runs(self) -> list[Any]: ...


def read_change(pages: Sequence[TablePage]) -> TableChange:
    """The pages of one answer as a change; raises `RemoteProtocolError` when they do not belong together or make no table."""
    return _joined([_read_page(page) for page in pages])


def _read_page(page: TablePage) -> TableChange:
    if not (type(page.base) is type(page.version) is int and 0 <= page.base < NUMBER_MAX and 0 <= page.version < NUMBER_MAX):
        raise RemoteProtocolError("a version of the table is out of bounds")
    if len(page.gone) > NODES_MAX or not all(type(node_id) is int for node_id in page.gone):
        raise RemoteProtocolError("nodes that are gone are told by their ids")
    return TableChange(page.base, page.version, read_nodes(page.nodes), tuple(page.gone), read_runs(page.runs))


def _joined(parts: Sequence[TableChange]) -> TableChange:
    first = parts[0]
    if any((part.base, part.version) != (first.base, first.version) for part in parts):
        raise RemoteProtocolError("the pages of a table are of different versions")
    nodes = tuple(node for part in parts for node in part.nodes)
    if any(node.node_id >= later.node_id for node, later in pairwise(nodes)):
        raise RemoteProtocolError("the nodes of a table must be in the order of their ids, each once")
    runs = _in_order(tuple(run for part in parts for run in part.runs))
    return TableChange(first.base, first.version, nodes, tuple(node_id for part in parts for node_id in part.gone), runs)


class TableReader:
    """Puts the pages of a table together. Pages of two answers never mix: one that does not continue what is there begins anew. Each
    page is read when it comes, so that what waits for the last one is bounded (T4)."""

    def __init__(self) -> None:
        self._parts: list[TableChange] = []
        self._rows = 0

    def add(self, page: TablePage) -> TableChange | None:
        """Take one page; the change, when it was the last one. Raises `RemoteProtocolError`, and what was there is dropped."""
        try:
            part = _read_page(page)
        except RemoteProtocolError:
            self._take()
            raise
        if self._parts and (part.base, part.version) != (self._parts[0].base, self._parts[0].version):
            self._take()
        self._parts.append(part)
        self._rows += 1 + len(part.nodes) + len(part.gone) + len(part.runs)
        if self._rows > ROWS_MAX:
            self._take()
            raise RemoteProtocolError(f"a table of more than {ROWS_MAX} rows")
        return None if page.more else _joined(self._take())

    def _take(self) -> list[TableChange]:
        parts, self._parts, self._rows = self._parts, [], 0
        return parts
