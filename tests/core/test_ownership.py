"""Ownership: for what a node acts, whom it names for the rest, and what may be called fresh."""

from __future__ import annotations

import attrs
import pytest

from govern.core.ownership import TABLES_KEPT, Ownership
from govern.core.slots import SLOT_COUNT
from govern.core.table import EMPTY, UP, SlotRun, Table, TableNode, apply, read_change
from govern.errors import Unassigned
from govern.messages import Moved
from govern.model import ServiceKey
from govern.peer_messages import Member

ME = Member(1, b"d" * 16)


def table(version: int, boot_no: int, registered_at: int) -> Table:
    node = TableNode(1, "c", "p", True, UP, ME.disk_id, boot_no, registered_at)
    return Table(version, (node,), (SlotRun(0, SLOT_COUNT - 1, 1, 5, ((1, 5),), (1,)),))


def test_a_lease_counts_only_with_a_table_that_knows_this_life() -> None:
    """N1: the lease of the new life may be there before its table; by the one of the former life this node still has all slots, and
    answers reads, which somebody else may own by now."""
    ownership = Ownership(ME, 2)
    ownership.take(table(5, boot_no=1, registered_at=4))
    ownership.lease_until_us = 1000
    assert not ownership.is_fresh(500)
    ownership.take(table(8, boot_no=2, registered_at=7))
    assert ownership.is_fresh(500)
    assert not ownership.is_fresh(1000)


def test_a_node_acts_on_what_was_granted_to_this_life() -> None:
    """O1: not on grants to a life before, not by a table that knows another life, another disk, or nothing of this node."""
    row = TableNode(1, "c", "p", True, UP, ME.disk_id, 7, 5)
    mine, older = SlotRun(0, 9, 1, 8, ((1, 8),), (1,)), SlotRun(10, 19, 1, 5, ((1, 4),), (1,))
    others = SlotRun(20, 29, 3, 8, ((3, 8),), (3,))

    def acts(*nodes: TableNode) -> list[int]:
        ownership = Ownership(ME, 7)
        ownership.take(Table(9, nodes, (mine, older, others)))
        ownership.validate()
        return [slot for slot, term in enumerate(ownership.terms) if term]

    assert acts(row) == list(range(10))
    assert acts(attrs.evolve(row, boot_no=8)) == []
    assert acts(attrs.evolve(row, disk_id=b"5" * 16)) == []
    assert acts() == []


def test_what_is_asked_for_is_here_elsewhere_or_nowhere() -> None:
    """SL5: Moved names the owner, or the slot is `unassigned`; what a former life had is read, not written, until this one is known."""
    ownership = Ownership(ME, 2)
    ours, theirs = ServiceKey("default", "a"), ServiceKey("default", "b")
    with pytest.raises(Unassigned, match="is not assigned to a node yet"):
        ownership.elsewhere(ours, 1, writes=False)
    other = TableNode(2, "there:7400", "", True, UP, b"o" * 16, 1, 3)
    former = TableNode(1, "here:7400", "", True, UP, ME.disk_id, 1, 2)
    ownership.take(Table(4, (former, other), (SlotRun(0, 9, 1, 4, ((1, 4),), (1,)), SlotRun(10, 19, 2, 4, ((2, 4),), (2,)))))
    assert ownership.elsewhere(theirs, 10, writes=True) == Moved(10, 2, "there:7400", 4)
    assert ownership.elsewhere(ours, 1, writes=False) is None
    with pytest.raises(Unassigned, match="not given slot 1"):
        ownership.elsewhere(ours, 1, writes=True)
    present = TableNode(1, "here:7400", "", True, UP, ME.disk_id, 2, 5)
    ownership.take(Table(5, (present, other), ownership.table.runs))
    with pytest.raises(Unassigned):
        ownership.elsewhere(ours, 1, writes=False)
    ownership.take(Table(6, (present, other), (SlotRun(0, 9, 1, 6, ((1, 4),), (1,)), ownership.table.runs[1])))
    assert ownership.elsewhere(ours, 1, writes=True) is None
    assert (ownership.acting_count, ownership.terms[9], ownership.terms[10]) == (10, 6, 0)
    ownership.validate()


def test_a_table_never_goes_back() -> None:
    """O2: neither its version, nor the term of a slot; what a stranger sends is looked at before it is followed."""
    ownership = Ownership(ME, 1)
    node = TableNode(1, "here:7400", "", True, UP, ME.disk_id, 1, 2)
    assert ownership.take(Table(7, (node,), (SlotRun(0, 9, 1, 7, ((1, 4),), (1,)),)))
    assert not ownership.take(Table(7, (node,), ()))
    lower = Table(8, (node,), (SlotRun(0, 9, 1, 6, ((1, 4),), (1,)),))
    assert ownership.goes_back(lower)
    assert not ownership.goes_back(Table(8, (node,), (SlotRun(0, 9, 1, 8, ((1, 4),), (1,)),)))
    with pytest.raises(AssertionError, match="a term went back"):
        ownership.take(lower)


def test_readers_get_what_changed_or_everything() -> None:
    """The pages for a reader lead from its version to the newest; from one that is not kept any more, the whole table does."""
    ownership = Ownership(ME, 1)
    node = TableNode(1, "here:7400", "", True, UP, ME.disk_id, 1, 2)
    tables = [Table(version, (node,), (SlotRun(0, version, 1, 3, ((1, 3),), (1,)),)) for version in range(3, 3 + TABLES_KEPT + 5)]
    for table in tables:
        ownership.take(table)
    for known in (EMPTY, tables[0], tables[-2], tables[-1]):
        change = read_change(list(ownership.pages(known.version)))
        assert (apply(known, change) if change.base else apply(EMPTY, change)) == tables[-1]
    assert read_change(list(ownership.pages(tables[-2].version))).base == tables[-2].version
    assert read_change(list(ownership.pages(tables[0].version))).base == 0
