"""The table against a plain array of sixteen thousand slots: laying over, differences, rows, and rows that somebody made up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from govern.core.slots import SLOT_COUNT
from govern.core.table import (
    ADDRESS_BYTES_MAX,
    COPIES_MAX,
    DOWN,
    EMPTY,
    NODES_MAX,
    STATE_BYTES_MAX,
    UP,
    SlotRun,
    Table,
    TableNode,
    apply,
    difference,
    join_runs,
    node_rows,
    overlay,
    read_nodes,
    read_runs,
    run_rows,
    whole,
)
from govern.errors import RemoteProtocolError
from govern.model import NODE_ID_MAX
from govern.peer_messages import NUMBER_MAX
from govern.storage.table_file import TABLE_BYTES_MAX, TableFile, encode_table

EDGES = (0, 1, 2, 3, 5, 8, 100, 8191, 8192, 16380, 16381, 16382, 16383)
"""Where runs begin and end: close together, so that they touch and overlap."""


@st.composite
def run_lists(draw: st.DrawFn, covering: bool = False) -> tuple[SlotRun, ...]:
    """Runs that do not overlap, of few values, so that neighbours are often equal."""
    cuts = sorted(
        draw(st.sets(st.sampled_from((*EDGES, SLOT_COUNT)), min_size=0 if covering else 2)) | ({0, SLOT_COUNT} if covering else set())
    )
    runs = []
    for first, end in pairwise(cuts):
        if covering or draw(st.booleans()):
            node_id, term = draw(st.integers(1, 3)), draw(st.integers(1, 2))
            runs.append(SlotRun(first, end - 1, node_id, term, ((node_id, term),), (node_id,)))
    return tuple(runs)


node_lists = st.dictionaries(st.integers(1, 5), st.tuples(st.sampled_from((UP, DOWN)), st.integers(0, 3))).map(
    lambda found: tuple(
        TableNode(node_id, f"c{node_id}", "", True, state, bytes(16), boot_no, 1) for node_id, (state, boot_no) in sorted(found.items())
    )
)


def spread_out(runs: tuple[SlotRun, ...]) -> list[Any]:
    """The naive model: what is said of each slot."""
    slots: list[Any] = [None] * SLOT_COUNT
    for run in runs:
        slots[run.first : run.last + 1] = [run.value] * (run.last - run.first + 1)
    return slots


@given(run_lists(), run_lists())
@settings(max_examples=60, deadline=None)
def test_overlay_is_assignment(runs: tuple[SlotRun, ...], news: tuple[SlotRun, ...]) -> None:
    """Laying runs over runs is writing them into the array; the result is in normal form (T1)."""
    slots = spread_out(runs)
    for run in news:
        slots[run.first : run.last + 1] = [run.value] * (run.last - run.first + 1)
    made = overlay(join_runs(runs), news)
    assert spread_out(made) == slots
    Table(1, (), made).validate()


@given(run_lists(), st.sampled_from(EDGES), st.sampled_from(EDGES))
@settings(max_examples=60, deadline=None)
def test_reading_one_slot_and_a_range(runs: tuple[SlotRun, ...], first: int, last: int) -> None:
    """`run_of`, `runs_within` and the counts say what the array says."""
    table = Table(1, (), join_runs(runs))
    slots = spread_out(table.runs)
    for slot in EDGES:
        run = table.run_of(slot)
        assert (None if run is None else run.value) == slots[slot]
    first, last = min(first, last), max(first, last)
    within = table.runs_within(first, last)
    assert all(first <= run.first <= run.last <= last for run in within)
    assert spread_out(tuple(within))[first : last + 1] == slots[first : last + 1]
    assert table.assigned_count == sum(value is not None for value in slots)
    assert table.primaries(1) == table.copies(1) == sum(value is not None and value[0] == 1 for value in slots)


@given(node_lists, run_lists(), node_lists, run_lists(), run_lists(covering=True))
@settings(max_examples=60, deadline=None)
def test_a_difference_leads_there(
    nodes: tuple[TableNode, ...],
    runs: tuple[SlotRun, ...],
    later_nodes: tuple[TableNode, ...],
    news: tuple[SlotRun, ...],
    covering: tuple[SlotRun, ...],
) -> None:
    """T2, also over the wire, and for a reader that has nothing. A difference names nothing that is the same in both."""
    old = Table(1, nodes, join_runs(runs))
    for new in (Table(2, later_nodes, overlay(old.runs, news)), Table(2, later_nodes, join_runs(covering))):
        change = difference(old, new)
        assert apply(old, change) == new
        assert apply(EMPTY, whole(new)) == new
        before, after = spread_out(old.runs), spread_out(change.runs)
        assert all(value is None or value != before[slot] for slot, value in enumerate(after))
        wire = msgpack.unpackb(msgpack.packb([node_rows(change.nodes), run_rows(change.runs)]))
        assert attrs.evolve(change, nodes=read_nodes(wire[0]), runs=read_runs(wire[1])) == change
        apply(old, change).validate()


def test_a_difference_of_nothing_is_empty() -> None:
    """Nothing follows from nothing."""
    table = Table(3, (), (SlotRun(0, 9, 1, 1, ((1, 1),), (1,)),))
    change = difference(table, table)
    assert (change.nodes, change.gone, change.runs) == ((), (), ())
    assert apply(table, change) == table


def test_overlay_of_single_slots_is_one_walk() -> None:
    """Every slot in a run of its own, laid over every slot in a run of its own: the walk does not compare all with all."""
    steps = 0

    class Counted(SlotRun):
        def __getattribute__(self, name: str) -> Any:
            nonlocal steps
            steps += name == "first"
            return super().__getattribute__(name)

    old = [Counted(slot, slot, 1 + slot % 2, 1, ((1, 1),), (1,)) for slot in range(SLOT_COUNT)]
    new = [SlotRun(slot, slot, 1 + slot % 2, 2, ((1, 1),), (1,)) for slot in range(SLOT_COUNT)]
    assert overlay(old, new) == tuple(new)
    assert steps < 10 * SLOT_COUNT


GOOD_NODE = [1, "a:1", "", True, UP, bytes(16), 1, 1]
GOOD_RUN = [0, 9, 1, 5, [[1, 5]], [1]]
values: st.SearchStrategy[Any] = st.sampled_from(
    (None, True, -1, 0, 1, 9, 16384, 1 << 70, 1.0, "", "x", b"", [], [[]], [1], [[1, 5, 7]], [[1]], [[1, "5"]], {}, {"a": 1})
)


@st.composite
def damaged(draw: st.DrawFn, good: list[Any]) -> Any:
    """A row with one value replaced, or cut, or extended, or anything at all."""
    row = list(good)
    how = draw(st.integers(0, 3))
    if how == 0:
        row[draw(st.integers(0, len(row) - 1))] = draw(values)
    elif how == 1:
        del row[draw(st.integers(0, len(row) - 1)) :]
    elif how == 2:
        row.append(draw(values))
    else:
        return draw(values)
    return row


@given(st.lists(damaged(GOOD_RUN), max_size=3), st.lists(damaged(GOOD_NODE), max_size=3))
@settings(max_examples=150, deadline=None)
def test_hostile_rows_are_refused_in_one_way(runs: list[Any], nodes: list[Any]) -> None:
    """Rows from anywhere give a table that holds its invariants, or `RemoteProtocolError`; nothing else."""
    try:
        table = Table(1, read_nodes(nodes), read_runs(runs))
    except RemoteProtocolError:
        return
    Table(1, table.nodes, join_runs(table.runs)).validate()
    assert table.run_of(5) is None or table.run_of(5) in table.runs


@pytest.mark.parametrize(
    "runs",
    [
        [[5, 4, 1, 5, [[1, 5]], [1]]],
        [[0, SLOT_COUNT, 1, 5, [[1, 5]], [1]]],
        [[-1, 4, 1, 5, [[1, 5]], [1]]],
        [GOOD_RUN, GOOD_RUN],
        [[0, 9, 2, 5, [[1, 5]], [2]]],
        [[0, 9, 1, 5, [[1, 5]], [2]]],
        [[0, True, 1, 5, [[1, 5]], [1]]],
    ],
)
def test_runs_that_make_no_table(runs: list[Any]) -> None:
    """Out of order, outside the slots, or with a primary that has no copy or is not in sync."""
    with pytest.raises(RemoteProtocolError):
        read_runs(runs)


def test_nodes_that_make_no_table() -> None:
    """Ids are in order, and each comes once."""
    with pytest.raises(RemoteProtocolError):
        read_nodes([GOOD_NODE, GOOD_NODE])
    assert read_nodes([[*GOOD_NODE, "later"]]) == (TableNode(1, "a:1", "", True, UP, bytes(16), 1, 1),)
    assert read_runs([[*GOOD_RUN, "later"]]) == (SlotRun(0, 9, 1, 5, ((1, 5),), (1,)),)


def test_the_owner_of_a_slot() -> None:
    """A slot's node, by slot; nobody for what is not assigned."""
    table = Table(1, read_nodes([GOOD_NODE]), read_runs([GOOD_RUN]))
    assert table.owner(9) == table.node(1)
    assert table.owner(10) is None
    assert repr(table) == "<Table 1 nodes=[1] runs=1 assigned=10>"


def test_the_largest_table_that_is_read_fits_into_its_file() -> None:
    """T4: every slot in a run of its own with the most copies, the most nodes with the longest addresses, the largest numbers."""
    big, copies = NUMBER_MAX - 1, [[NODE_ID_MAX - place, NUMBER_MAX - 1] for place in range(COPIES_MAX)]
    runs = [[slot, slot, NODE_ID_MAX, big, copies, [copy[0] for copy in copies]] for slot in range(SLOT_COUNT)]
    text, first = "a" * ADDRESS_BYTES_MAX, NODE_ID_MAX - NODES_MAX + 1
    nodes = [[first + place, text, text, True, "s" * STATE_BYTES_MAX, bytes(16), big, big] for place in range(NODES_MAX)]
    table = Table(big, read_nodes(nodes), read_runs(runs))
    data = msgpack.packb([table.version, node_rows(table.nodes), run_rows(table.runs)])
    assert len(encode_table(TableFile(bytes(16), True, data))) <= TABLE_BYTES_MAX
    for rows in ([*nodes, [NODE_ID_MAX + 1, *nodes[0][1:]]], [[1, text + "a", *nodes[0][2:]]], [[*nodes[0][:6], NUMBER_MAX, 1]]):
        with pytest.raises(RemoteProtocolError):
            read_nodes(rows)
    for row in ([*runs[0][:4], [*copies, [1, 1]], [NODE_ID_MAX]], [*runs[0][:3], NUMBER_MAX, *runs[0][4:]]):
        with pytest.raises(RemoteProtocolError):
            read_runs([row])
