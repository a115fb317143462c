"""Ownership, tables and their readers: any history of tables, any order of pages, and a plain array that knows who acts for what.

Two writers follow the same history, each as far behind as it likes, and send pages to two readers over links that break and are made again.
The nodes are those of the readers and of one writer: they start again, and are registered when the history says so. Pages have two items
and a writer remembers one table besides its own, so that there are answers of several pages and readers that are too far behind.

Checked after every step, of everybody: that it acts for exactly those slots that the array gives to this life of it (O1), that neither its
version nor the term of a slot goes back (O2), that it is fresh only by a table that knows it (O3), and its table against the history. At
the end everybody asks again, and has the newest table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from unittest.mock import patch

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from govern.core import ownership as ownership_module
from govern.core.ownership import Ownership
from govern.core.slots import SLOT_COUNT
from govern.core.table import DOWN, EMPTY, UP, SlotRun, Table, TableChange, TableNode, TableReader, apply, difference, overlay
from govern.errors import RemoteProtocolError
from govern.messages import TableRows
from govern.peer_messages import Member

from .test_mutants import machine

EDGES = (0, 1, 2, 5, 8191, 16382, 16383, SLOT_COUNT)
"""Where runs begin and end; the slots before them are those that are looked at."""
SLOTS = tuple(edge for edge in EDGES if edge < SLOT_COUNT)
NODES = (1, 2, 3)
IDLE = 4
"""A node that comes and goes, and never has any slots."""
WRITERS, READERS = (1, 9), (2, 3)
"""The nodes of each; 9 is in no table, and the disk of a node has its number."""
LEASES_US = (0, 10, 20)
Spread = tuple[tuple[int, ...], tuple[int, ...]]
"""The writers that have a new table at once, and the readers that have it from them at once."""
SPREADS = st.sampled_from((((), ()), (WRITERS[:1], ()), (WRITERS[1:], READERS[:1]), (WRITERS, READERS)))


@attrs.frozen
class Known:
    """What one version says, in plain words: the lives of the nodes, and of each slot the primary and the term."""

    table: Table
    lives: dict[int, tuple[int, int]]  # node → boot number, registered at
    slots: dict[int, tuple[int, int]]


@attrs.define(eq=False)
class Seat:
    """One life of a node, and what it was seen to do."""

    node_id: int
    ownership: Ownership
    terms: dict[int, int] = attrs.field(factory=dict)
    version: int = 0


@attrs.define(eq=False)
class Wire:
    """From a writer to a reader: pages on their way, and those that came."""

    pages: deque[TableRows] = attrs.field(factory=deque)
    reader: TableReader = attrs.field(factory=TableReader)


class OwnershipMachine(RuleBasedStateMachine):
    """Two writers, two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = patch.multiple(ownership_module, PAGE_ITEMS_MAX=2, TABLES_KEPT=1)
        self.patches.start()
        self.boots = dict.fromkeys((*WRITERS, *READERS, IDLE), 1)
        self.seats = {node_id: self.live(node_id) for node_id in (*WRITERS, *READERS)}
        self.history = {0: Known(EMPTY, {}, {})}
        self.wires = {(writer, reader): Wire() for writer in WRITERS for reader in READERS}
        for node_id, edges in zip(NODES, ({0, 5}, {5, 8191}, {8191, SLOT_COUNT}), strict=True):
            self.a_node_is_registered(node_id, True, 0, ((), ()))
            self.slots_are_granted(node_id, edges, (WRITERS, READERS))

    def live(self, node_id: int) -> Seat:
        return Seat(node_id, Ownership(Member(node_id, bytes([node_id]) * 16), self.boots[node_id]))

    # --- the history ----------------------------------------------------------------------------------------------------------

    @property
    def newest(self) -> Known:
        return self.history[max(self.history)]

    def commit(
        self, version: int, nodes: dict[int, TableNode], runs: tuple[SlotRun, ...], slots: dict[int, tuple[int, int]], spreads: Spread
    ) -> None:
        """The next version, and who has it at once."""
        table = Table(version, tuple(nodes[node_id] for node_id in sorted(nodes)), runs)
        table.validate()
        self.history[version] = Known(table, {node.node_id: (node.boot_no, node.registered_at) for node in table.nodes}, slots)
        writers, readers = spreads
        for writer in writers:
            self.a_writer_follows(writer, 0, bool(readers))
            for reader in readers:
                self.pages_arrive(writer, reader, len(self.wires[writer, reader].pages))

    def next_version(self, skipped: int) -> int:
        """Records that leave the table alone have indexes too."""
        return self.newest.table.version + 1 + skipped

    @rule(node_id=st.sampled_from(NODES), is_up=st.sampled_from((True, True, False)), skipped=st.integers(0, 2), spreads=SPREADS)
    def a_node_is_registered(self, node_id: int, is_up: bool, skipped: int, spreads: Spread) -> None:
        """In its present life; or it is given up."""
        known, version = self.newest, self.next_version(skipped)
        nodes = {node.node_id: node for node in known.table.nodes}
        before = nodes.get(node_id)
        if before is None or before.boot_no != self.boots[node_id]:
            before = TableNode(node_id, f"c{node_id}", "", True, UP, bytes([node_id]) * 16, self.boots[node_id], version)
        nodes[node_id] = attrs.evolve(before, state=UP if is_up else DOWN)
        self.commit(version, nodes, known.table.runs, known.slots, spreads)

    @rule(node_id=st.sampled_from(NODES), edges=st.sets(st.sampled_from(EDGES), min_size=2, max_size=2), spreads=SPREADS)
    def slots_are_granted(self, node_id: int, edges: set[int], spreads: Spread) -> None:
        known, version = self.newest, self.next_version(0)
        if node_id in known.lives:
            first, end = sorted(edges)
            run = SlotRun(first, end - 1, node_id, version, ((node_id, version),), (node_id,))
            slots = {**known.slots, **{slot: (node_id, version) for slot in SLOTS if first <= slot < end}}
            self.commit(version, {node.node_id: node for node in known.table.nodes}, overlay(known.table.runs, [run]), slots, spreads)

    @rule(spreads=SPREADS)
    def the_idle_node_comes_or_goes(self, spreads: Spread) -> None:
        known = self.newest
        if IDLE not in known.lives:
            self.a_node_is_registered(IDLE, True, 0, spreads)
        else:
            nodes = {node.node_id: node for node in known.table.nodes if node.node_id != IDLE}
            self.commit(self.next_version(0), nodes, known.table.runs, known.slots, spreads)

    # --- who follows it -------------------------------------------------------------------------------------------------------

    @rule(writer=st.sampled_from(WRITERS), behind=st.integers(0, 3), tells=st.booleans())
    def a_writer_follows(self, writer: int, behind: int, tells: bool) -> None:
        """A table of the history, the newest or an older one; it tells its readers what changed."""
        ownership = self.seats[writer].ownership
        base, version = ownership.table.version, sorted(self.history)[-1 - behind :][0]
        assert ownership.take(self.history[version].table) == (version > base), "O2: only a newer table is followed"
        for reader in READERS if tells and version > base else ():
            self.wires[writer, reader].pages.extend(ownership.pages(base))

    @rule(writer=st.sampled_from(WRITERS), reader=st.sampled_from(READERS))
    def a_reader_asks(self, writer: int, reader: int) -> None:
        self.wires[writer, reader].pages.extend(self.seats[writer].ownership.pages(self.seats[reader].ownership.table.version))

    @rule(writer=st.sampled_from(WRITERS), reader=st.sampled_from(READERS), count=st.integers(1, 4))
    def pages_arrive(self, writer: int, reader: int, count: int) -> None:
        wire, ownership = self.wires[writer, reader], self.seats[reader].ownership
        for _ in range(min(count, len(wire.pages))):
            try:
                change = wire.reader.add(wire.pages.popleft())
            except RemoteProtocolError:
                continue  # half of an answer over the link of before, and the same answer again: all of it is dropped
            if change is not None and change.version > ownership.table.version and change.base in (0, ownership.table.version):
                table = apply(ownership.table, change)
                assert not ownership.goes_back(table), "O2: the term of a slot goes back"
                assert ownership.take(table)

    @rule(writer=st.sampled_from(WRITERS), reader=st.sampled_from(READERS), is_noticed=st.booleans())
    def a_link_breaks(self, writer: int, reader: int, is_noticed: bool) -> None:
        """What is under way is lost. A reader that saw one link replaced by the next goes on where it was."""
        wire = self.wires[writer, reader]
        self.wires[writer, reader] = Wire(reader=TableReader() if is_noticed else wire.reader)

    @rule(node_id=st.sampled_from((*WRITERS, *READERS)), kept=st.booleans())
    def a_node_starts_again(self, node_id: int, kept: bool) -> None:
        """With the table that was on its disk, or without it."""
        table = self.seats[node_id].ownership.table
        self.boots[node_id] += 1
        self.seats[node_id] = self.live(node_id)
        if kept:
            self.seats[node_id].ownership.take(table)
        for wire in self.wires:
            if node_id in wire:
                self.wires[wire] = Wire()

    @rule(node_id=st.sampled_from((*WRITERS, *READERS)), until_us=st.sampled_from(LEASES_US))
    def a_lease_is_lent(self, node_id: int, until_us: int) -> None:
        self.seats[node_id].ownership.lease_until_us = until_us

    # --- judgement --------------------------------------------------------------------------------------------------------------

    @invariant()
    def everybody_acts_by_the_history(self) -> None:
        for seat in self.seats.values():
            ownership = seat.ownership
            version = ownership.table.version
            assert version >= seat.version, "O2: a version goes back"
            seat.version, known = version, self.history[version]
            assert ownership.table == known.table, "a table that is not in the history"
            boot_no, registered_at = known.lives.get(seat.node_id, (0, 0))
            is_known = boot_no == ownership.boot_no
            for slot in SLOTS:
                primary, term = known.slots.get(slot, (0, 0))
                acts = is_known and primary == seat.node_id and term > registered_at
                assert ownership.terms[slot] == (term if acts else 0), f"O1: {ownership!r} at {slot}"
                assert ownership.terms[slot] >= (seat.terms.get(slot, 0) if acts else 0), "O2: a term goes back"
                seat.terms[slot] = max(ownership.terms[slot], seat.terms.get(slot, 0))
            fresh = [at for at in LEASES_US if ownership.is_fresh(at)]
            assert fresh == [at for at in LEASES_US if is_known and at < ownership.lease_until_us], "O3"

    def teardown(self) -> None:
        for writer in WRITERS:
            self.seats[writer].ownership.take(self.newest.table)
        for writer, reader in list(self.wires) * 2:  # twice, because the first answer may meet half of another one
            self.a_reader_asks(writer, reader)
            self.pages_arrive(writer, reader, len(self.wires[writer, reader].pages))
        self.patches.stop()
        for seat in self.seats.values():
            seat.ownership.validate()
            assert seat.ownership.table == self.newest.table, "not everybody has the newest table"


OwnershipMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
test_any_history_of_tables = OwnershipMachine.TestCase


# --- mutants ----------------------------------------------------------------------------------------------------------------


def old_grants_count(patch: pytest.MonkeyPatch) -> None:
    """O1: a restarted node acts on what was granted before it was registered."""

    def mutant(table: Table, me: Member, boot_no: int) -> tuple[SlotRun, ...]:
        row = table.node(me.node_id)
        is_mine = row is not None and (row.disk_id, row.boot_no) == (me.disk_id, boot_no)
        return tuple(run for run in table.runs if is_mine and run.primary == me.node_id)

    patch.setattr(ownership_module, "runs_of", mutant)


def lives_not_compared(patch: pytest.MonkeyPatch) -> None:
    """O1: by the table of its life before a node acts."""

    def mutant(table: Table, me: Member, boot_no: int) -> tuple[SlotRun, ...]:
        row = table.node(me.node_id)
        return tuple(run for run in table.runs if row is not None and run.primary == me.node_id and run.term > row.registered_at)

    patch.setattr(ownership_module, "runs_of", mutant)


def older_tables_followed(patch: pytest.MonkeyPatch) -> None:
    """O2: whatever comes last is followed."""
    take = Ownership.take

    def mutant(self: Ownership, table: Table) -> bool:
        if 0 < table.version < self.table.version:
            self.table = EMPTY
        return take(self, table)

    patch.setattr(Ownership, "take", mutant)


def fresh_by_any_table(patch: pytest.MonkeyPatch) -> None:
    """O3: only the lease counts."""
    patch.setattr(Ownership, "is_fresh", lambda self, boot_us: boot_us < self.lease_until_us)


def readers_far_behind_get_a_difference(patch: pytest.MonkeyPatch) -> None:
    """T2: from the oldest table that is kept, as if it were that of the reader."""
    change_since = Ownership.change_since

    def mutant(self: Ownership, version: int) -> TableChange:
        if 0 < version < self.table.version and self._recent and self._recent[0].version > version:
            return attrs.evolve(difference(self._recent[0], self.table), base=version)
        return change_since(self, version)

    patch.setattr(Ownership, "change_since", mutant)


def the_gone_stay(patch: pytest.MonkeyPatch) -> None:
    """T2: a change does not name the nodes that are gone."""
    patch.setattr(ownership_module, "difference", lambda old, new: attrs.evolve(difference(old, new), gone=()))


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], int]] = [
    (old_grants_count, 60),
    (lives_not_compared, 60),
    (older_tables_followed, 60),
    (fresh_by_any_table, 20),
    (readers_far_behind_get_a_difference, 120),
    (the_gone_stay, 120),
]


@pytest.mark.parametrize(("mutant", "examples"), MUTANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_mutant_is_found(mutant: Callable[[pytest.MonkeyPatch], None], examples: int) -> None:
    """Within so many examples of the machine."""
    with pytest.MonkeyPatch.context() as patched:
        mutant(patched)
        with pytest.raises((AssertionError, RemoteProtocolError)) as found:
            machine(OwnershipMachine)(examples)
    print(f"{mutant.__name__}: {found.value}"[:200])
