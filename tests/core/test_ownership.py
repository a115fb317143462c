"""Ownership: what may be called fresh."""

from __future__ import annotations

from govern.core.ownership import Ownership
from govern.core.slots import SLOT_COUNT
from govern.core.table import UP, SlotRun, Table, TableNode
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
