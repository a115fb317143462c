"""What a node without a part in the metadata log says of the cluster, from the table alone."""

from __future__ import annotations

from govern.actors.cluster_status import _in_words, _seen_in
from govern.core.table import DOWN, EMPTY, UP, SlotRun, Table, TableNode


def node(node_id: int, state: str, registered_at: int) -> TableNode:
    return TableNode(
        node_id=node_id, disk_id=b"d" * 16, boot_no=1, clients="c:1", peers="p:1", candidate=True, state=state, registered_at=registered_at
    )


def test_the_table_tells_who_is_down_and_whose_slots_did_not_come_back() -> None:
    """A grant from before a node's registration is one of a former life; slots of nobody are counted."""
    runs = (
        SlotRun(first=0, last=99, primary=1, copies=((1, 1),), in_sync=(1,), term=9),
        SlotRun(first=100, last=149, primary=2, copies=((2, 1),), in_sync=(2,), term=9),
        SlotRun(first=150, last=159, primary=3, copies=((3, 1),), in_sync=(3,), term=9),
    )
    nodes = (node(1, UP, 5), node(2, UP, 12), node(3, DOWN, 6), node(4, DOWN, 7))
    assert _seen_in(Table(13, nodes, runs)) == [
        "50 slots of node 2 have not come back with it: if that lasts, they were on a disk that it no longer has, and govern reset 2 gives "
        "them up",
        "node 3 is down; 10 slots are unavailable",
        "node 4 is down; it holds no slots",
        "16224 slots are not assigned to any node yet",
    ]
    assert _seen_in(EMPTY) == []


def test_several_are_named_in_words() -> None:
    """`1`, `1 and 2`, `1, 2 and 3`."""
    assert [_in_words(list("123"[:count])) for count in (1, 2, 3)] == ["1", "1 and 2", "1, 2 and 3"]
