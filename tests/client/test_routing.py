"""Routing by itself: which table counts, which hint is followed, and how often the table is asked for."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.client.routing import HOPS_MAX, HOPS_SECONDS, REFRESH_SECONDS, Routing, read_address
from govern.core.table import SlotRun, Table, TableChange, TableNode, difference, node_rows, read_change, run_rows, whole
from govern.errors import RemoteProtocolError
from govern.messages import Moved, TableRows


def node(node_id: int, port: int = 7400) -> TableNode:
    return TableNode(node_id, f"node{node_id}:{port}", "", True, "up", bytes(16), 1, 1)


def table(version: int, *owners: int, nodes: tuple[int, ...] = (1, 2, 3)) -> Table:
    """A table of a few slots: slot n belongs to the n-th of these; 0 is nobody."""
    runs = tuple(SlotRun(slot, slot, owner, 1, ((owner, 1),), (owner,)) for slot, owner in enumerate(owners) if owner)
    return Table(version, tuple(map(node, nodes)), runs)


def moved(node_id: int, version: int, slot: int = 0, port: int = 7400) -> Moved:
    return Moved(slot, node_id, f"node{node_id}:{port}", version)


def with_table(version: int, *owners: int) -> Routing:
    routing = Routing()
    assert routing.take(whole(table(version, *owners)))
    return routing


# --- T1, T6 -------------------------------------------------------------------------------------------------------------------


def test_without_a_table_nobody_is_known() -> None:
    """Then any node is asked."""
    routing = Routing()
    assert (routing.owner(0), routing.owners(), routing.addresses(), routing.version) == (None, (), [], 0)
    assert routing.refresh_at == math.inf


def test_an_older_table_never_replaces_a_newer_one() -> None:
    """Neither whole nor as a change, and one of the same version is no news."""
    routing = with_table(5, 1, 2)
    for older in (whole(table(4, 3, 3)), whole(table(5, 3, 3)), TableChange(4, 5), TableChange(5, 5), TableChange(0, 0)):
        assert not routing.take(older)
    assert (routing.owner(0), routing.owner(1), routing.owners()) == (1, 2, (1, 2))


def test_a_change_leads_from_the_version_in_hand_and_from_no_other() -> None:
    """What it would lead on from is not here: it is not taken, and the table stays wanted."""
    routing = with_table(5, 1, 2)
    routing.announced(7)
    assert not routing.take(difference(table(6, 3, 3), table(7, 3, 1)))
    assert routing.refresh_at < math.inf
    assert routing.take(difference(table(5, 1, 2), table(7, 3, 2)))
    assert (routing.version, routing.owner(0), routing.refresh_at) == (7, 3, math.inf)


def test_a_table_from_a_cache_is_a_guess() -> None:
    """It routes; whatever a node says replaces it, also a lower version, and nothing is built upon it."""
    routing = Routing()
    routing.guess("c", table(9, 1, 2))
    assert (routing.owner(1), routing.version) == (2, 0)
    assert not routing.take(difference(table(9, 1, 2), table(10, 1, 3)))
    routing.moved(2, moved(3, 4, slot=1), 0.0)
    assert routing.owner(1) == 3
    assert routing.take(whole(table(6, 1, 1)))
    assert (routing.owner(1), routing.version) == (1, 6)


def test_another_cluster_has_another_table() -> None:
    """Everything that was known belongs to the cluster that was spoken to before."""
    routing = Routing()
    routing.reset("first")
    routing.take(whole(table(5, 1, 2)))
    routing.moved(1, moved(3, 6), 0.0)
    routing.reset("first")
    assert routing.owner(0) == 3
    routing.reset("second")
    assert (routing.owner(0), routing.version, routing.refresh_at) == (None, 0, math.inf)
    assert routing.take(whole(table(1, 2)))


# --- T2, T3, T4 ---------------------------------------------------------------------------------------------------------------


def test_a_hint_is_followed_until_a_table_as_new_is_here() -> None:
    """At once, with the address that came with it, and no longer than it is the newest word."""
    routing = with_table(5, 1, 1)
    routing.moved(1, moved(2, 7, port=99), 0.0)
    assert (routing.owner(0), routing.owner(1), routing.address(2)) == (2, 1, ("node2", 99))
    assert routing.refresh_at < math.inf
    assert routing.take(whole(table(6, 1, 1)))
    assert (routing.owner(0), routing.address(2)) == (2, ("node2", 99))
    assert routing.take(whole(table(7, 3, 1)))
    assert (routing.owner(0), routing.address(2), routing.refresh_at) == (3, ("node2", 7400), math.inf)


def test_an_older_hint_counts_for_nothing() -> None:
    """A node that is behind sends nobody back."""
    routing = with_table(5, 1)
    routing.moved(1, moved(2, 4), 0.0)
    assert routing.owner(0) == 1
    routing.moved(1, moved(2, 8), 0.0)
    routing.moved(2, moved(3, 7), 0.0)
    assert routing.owner(0) == 2


def test_only_the_node_that_is_believed_to_answer_sends_elsewhere() -> None:
    """A hundred requests that were on their way are answered with Moved: the slot goes on once. A node that names itself says nothing."""
    routing = with_table(5, 1)
    for _ in range(100):
        routing.moved(1, moved(2, 6), 0.0)
    routing.moved(3, moved(1, 6), 0.0)
    routing.moved(2, moved(2, 6), 0.0)
    assert routing.owner(0) == 2
    routing.moved(2, moved(3, 6), 0.0)  # four hops are left
    assert routing.owner(0) == 3


def test_two_nodes_that_contradict_each_other_are_followed_five_times_a_second() -> None:
    """Then the slot stays until the second is over; other slots are not touched by that."""
    routing = with_table(5, 1, 1)
    now, hops = 0.0, 0
    for _ in range(1000):
        now += 0.01
        at = routing.owner(0)
        assert at is not None
        routing.moved(at, moved(3 - at, 5), now)
        hops += routing.owner(0) != at
    assert 5 * 9 <= hops <= HOPS_MAX * (now / HOPS_SECONDS + 1)
    routing.moved(1, moved(2, 5, slot=1), now)
    assert routing.owner(1) == 2


def test_a_slot_that_does_not_exist_is_a_breach() -> None:
    """The node is left, and no memory is spent on it."""
    routing = Routing()
    with pytest.raises(RemoteProtocolError, match="no slot"):
        routing.moved(1, moved(2, 5, slot=16384), 0.0)


def test_a_hint_without_a_usable_address_is_still_a_hint() -> None:
    """Where the node is, the table says then."""
    routing = with_table(5, 1)
    routing.moved(1, Moved(0, 2, "", 6), 0.0)
    assert (routing.owner(0), routing.address(2)) == (2, ("node2", 7400))
    assert [read_address(text) for text in ("a:1", "[::1]:2", "a:0", "a", "", "a b:1")] == [("a", 1), ("::1", 2), None, None, None, None]


# --- T5 -----------------------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["announce", "doubt", "take", "moved", "nothing"]),
            st.integers(1, 12),
            st.sampled_from([0.0, 0.01, 0.4, 1.0, 3.0]),
        ),
        max_size=60,
    )
)
def test_the_table_is_asked_for_once_a_second_at_most_and_whenever_there_is_a_reason(events: list[tuple[str, int, float]]) -> None:
    """Whatever happens and however often; and whoever has heard of a newer one asks as long as it is not here."""
    routing = Routing()
    now, asked = 0.0, []
    newest = 0
    for event, version, wait in events:
        now += wait
        if event == "announce":
            routing.announced(version)
            newest = max(newest, version)
        elif event == "doubt":
            routing.doubt()
        elif event == "take":
            routing.take(whole(table(version, 1, 2)))
        elif event == "moved":
            routing.moved(routing.owner(0) or 1, moved(version % 3 + 1, version), now)
            newest = max(newest, version)
        if newest > routing.version:
            assert routing.refresh_at < math.inf
        if routing.refresh_at <= now:
            routing.asked(now)
            asked.append(now)
        routing.validate()
    assert all(later - earlier >= REFRESH_SECONDS - 1e-9 for earlier, later in itertools.pairwise(asked))


# --- pages --------------------------------------------------------------------------------------------------------------------


def test_pages_make_a_change() -> None:
    """Nodes, ids that are gone and runs, from all pages together."""
    new = table(5, 1, 2, 3)
    nodes, runs = node_rows(new.nodes), run_rows(new.runs)
    pages = [
        TableRows(True, 0, 5, nodes[:2], [], []),
        TableRows(True, 0, 5, nodes[2:], [7], runs[:1]),
        TableRows(False, 0, 5, [], [], runs[1:]),
    ]
    assert read_change(pages) == TableChange(0, 5, new.nodes, (7,), new.runs)


@pytest.mark.parametrize(
    "pages",
    [
        [TableRows(True, 0, 5, [], [], []), TableRows(False, 0, 6, [], [], [])],
        [TableRows(False, 0, 5, node_rows([node(2), node(1)]), [], [])],
        [TableRows(False, 0, 5, node_rows([node(1), node(1)]), [], [])],
        [TableRows(False, 0, 5, [[1]], [], [])],
        [TableRows(False, 1, 5, [], ["x"], [])],
        [TableRows(False, 0, 5, [], [], [[3, 2, 1, 1, [[1, 1]], [1]]])],
        [TableRows(True, 0, 5, [], [], [[5, 5, 1, 1, [[1, 1]], [1]]]), TableRows(False, 0, 5, [], [], [[4, 4, 1, 1, [[1, 1]], [1]]])],
    ],
)
def test_pages_that_make_no_table_are_a_breach(pages: list[TableRows]) -> None:
    """Nothing of them is used."""
    with pytest.raises(RemoteProtocolError):
        read_change(pages)
