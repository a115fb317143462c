"""Ownership: for which slots this node acts, in which term, and who acts for the others.

Everything follows from the table and from which life of which node this is; there is no second place that knows it. The slot manager puts
in each newer table and each longer lease; requests, commits and expiries ask here.

O1  A node acts for a slot only when the table names it as primary, in this life (`disk_id`, `boot_no`), with a term above the record
    that registered this life (rules N1, P1). So a restarted process never acts on what a former life was given.
O2  A table never replaces a newer one; the term of a slot never goes back.
O3  The lease says what may be called fresh and whether somebody may expire (rules P8, E3); it is never asked before a write. It counts
    only with a table that knows this life (rule N1): the one of a former life may name this node where somebody else acts by now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from ..errors import Unassigned
from ..messages import PAGE_ITEMS_MAX, Moved, TableRows
from ..model import ServiceKey
from ..peer_messages import Member
from .slots import SLOT_COUNT
from .table import EMPTY, SlotRun, Table, TableChange, TableNode, difference, node_rows, run_rows, whole

UNASSIGNED_RETRY_SECONDS: Final = 0.2
"""The first assignment after a cold start, or the new term of a restarted node, is a matter of one round among the candidates."""
TABLES_KEPT: Final = 64
"""Readers that are not further behind than so many versions get what changed instead of the whole table."""


def runs_of(table: Table, me: Member, boot_no: int) -> tuple[SlotRun, ...]:
    """The runs for which a life of a node is the primary by this table: granted since it was registered."""
    row = table.node(me.node_id)
    if row is None or (row.disk_id, row.boot_no) != (me.disk_id, boot_no):
        return ()
    return tuple(run for run in table.runs if run.primary == me.node_id and run.term > row.registered_at)


class Ownership:
    """What this life of a node knows about who acts for what."""

    def __init__(self, me: Member, boot_no: int) -> None:
        self.me = me
        self.boot_no = boot_no
        self.table = EMPTY
        self.terms: list[int] = [0] * SLOT_COUNT
        """The term in which this node acts for each slot; 0: it does not (O1)."""
        self.acting_count = 0
        self.lease_until_us = 0
        self._recent: deque[Table] = deque(maxlen=TABLES_KEPT)

    def __repr__(self) -> str:
        return f"<Ownership of node {self.me.node_id}: {self.acting_count} slots by {self.table}>"

    def is_fresh(self, boot_us: int) -> bool:
        """Whether nobody else can have been given the slots of this node: its lease holds, on the clock that counts suspended time (O3)."""
        return boot_us < self.lease_until_us and self.is_registered

    @property
    def is_registered(self) -> bool:
        """Whether the table knows this life of the node."""
        node = self.table.node(self.me.node_id)
        return node is not None and (node.disk_id, node.boot_no) == (self.me.disk_id, self.boot_no)

    @property
    def has_all(self) -> bool:
        """Whether this node acts for every slot, as a node that is alone does."""
        return self.acting_count == SLOT_COUNT

    def elsewhere(self, service: ServiceKey, slot: int, *, writes: bool) -> Moved | None:
        """Where the service lives, when not here. Raises `Unassigned` when nobody acts for its slot now. A node that was not registered in
        this life may still be read: it has what it had, has no lease, and so calls nothing fresh (rule SL5)."""
        if self.terms[slot]:
            return None
        owner = self.owner(slot)
        if owner is None:
            raise Unassigned(f"slot {slot} of {service} is not assigned to a node yet; try again", UNASSIGNED_RETRY_SECONDS)
        if owner.node_id != self.me.node_id:
            return Moved(slot, owner.node_id, owner.clients, self.table.version)
        if writes or self.is_registered:
            text = f"this node was not given slot {slot} of {service} in its present life yet; try again"
            raise Unassigned(text, UNASSIGNED_RETRY_SECONDS)
        return None

    def owner(self, slot: int) -> TableNode | None:
        """Who acts for a slot; None when it belongs to nobody yet."""
        return self.table.owner(slot)

    def goes_back(self, table: Table) -> bool:
        """Whether a table gives this life of the node a slot in a lower term than it acts in: no log leads there."""
        runs = runs_of(table, self.me, self.boot_no)
        return any(run.term < max(self.terms[run.first : run.last + 1]) for run in runs)

    def take(self, table: Table) -> bool:
        """Follow a newer table; False for one that is not newer (O2)."""
        if table.version <= self.table.version:
            return False
        if self.table is not EMPTY:
            self._recent.append(self.table)
        self.table = table
        terms = [0] * SLOT_COUNT
        count = 0
        for run in runs_of(table, self.me, self.boot_no):  # O1
            length = run.last - run.first + 1
            assert max(self.terms[run.first : run.last + 1]) <= run.term, "a term went back"  # O2
            terms[run.first : run.last + 1] = [run.term] * length
            count += length
        self.terms, self.acting_count = terms, count
        return True

    def change_since(self, version: int) -> TableChange:
        """What leads a reader from its version to the present one; the whole table when that version is not kept."""
        if version == self.table.version:
            return TableChange(version, version)
        for table in self._recent:
            if table.version == version:
                return difference(table, self.table)
        return whole(self.table)

    def pages(self, known: int) -> Iterator[TableRows]:
        """The answer to whoever has version `known`, in pages."""
        change = self.change_since(known)
        if len(change.gone) > PAGE_ITEMS_MAX:
            change = whole(self.table)
        nodes, runs = node_rows(change.nodes), run_rows(change.runs)
        length = max(len(nodes), len(runs), 1)
        for start in range(0, length, PAGE_ITEMS_MAX):
            end = start + PAGE_ITEMS_MAX
            gone = list(change.gone) if start == 0 else []
            yield TableRows(end < length, change.base, change.version, nodes[start:end], gone, runs[start:end])

    def validate(self) -> None:
        """Assert the invariants, for all slots."""
        self.table.validate()
        assert self.acting_count == SLOT_COUNT - self.terms.count(0)
        acting = 0
        for run in self.table.runs:
            length = run.last - run.first + 1
            terms = self.terms[run.first : run.last + 1]
            assert terms in ([0] * length, [run.term] * length), run  # O1
            assert not terms[0] or run.primary == self.me.node_id, run
            acting += length if terms[0] else 0
        assert acting == self.acting_count, "no term outside of the table"
