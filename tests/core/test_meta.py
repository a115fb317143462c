"""The metadata: each record, an array model under random records, snapshots, and records that nobody should have written."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from govern.core.meta import (
    RECORD_BYTES_MAX,
    ApplyFailed,
    ClusterInit,
    MetaState,
    NodeFenced,
    NodeForgotten,
    NodeJoined,
    Record,
    SlotBatch,
    SlotItem,
    unpack_record,
)
from govern.core.slots import SLOT_COUNT
from govern.core.table import DOWN, EMPTY, UP, SlotRun, apply, difference, whole

from .test_mutants import machine

CLUSTER = b"c" * 16
DISKS = (b"1" * 16, b"2" * 16, b"3" * 16)


def joined(node_id: int, disk: int = 0, boot_no: int = 1, *, volatile: bool = False, clients: str = "c") -> NodeJoined:
    return NodeJoined(node_id, DISKS[disk], boot_no, clients, "p", True, volatile)


def state_of(*records: Record) -> MetaState:
    """The state after these records, at 1, 2 and so on."""
    state = MetaState()
    for index, record in enumerate(records, 1):
        state.apply(index, record.pack())
        state.validate()
    return state


TWO = (ClusterInit(CLUSTER), joined(1), joined(2), SlotBatch("first", (SlotItem(0, 8191, 1, True), SlotItem(8192, 16383, 2, True))))


def test_a_first_assignment() -> None:
    """The term of a slot and the id of its copy are the index of the record that granted it (M4)."""
    state = state_of(*TWO)
    assert state.table.runs == (SlotRun(0, 8191, 1, 4, ((1, 4),), (1,)), SlotRun(8192, 16383, 2, 4, ((2, 4),), (2,)))
    assert (state.version, state.index, state.cluster_id) == (4, 4, CLUSTER)
    assert state.degraded() == []
    assert state.rows()[0] == {
        "node_id": 1,
        "clients": "c",
        "peers": "p",
        "candidate": True,
        "state": UP,
        "primaries": 8192,
        "copies": 8192,
    }
    assert repr(state) == "<MetaState 4 <Table 4 nodes=[1, 2] runs=2 assigned=16384>>"


def test_a_restart_and_its_grants() -> None:
    """A new life is registered at its record; its slots keep their copy and get a new term."""
    state = state_of(*TWO, joined(1, boot_no=2), SlotBatch("restart", (SlotItem(0, 8191, 1, False),)))
    row = state.table.node(1)
    assert row is not None
    assert (row.boot_no, row.registered_at) == (2, 5)
    assert state.table.runs[0] == SlotRun(0, 8191, 1, 6, ((1, 4),), (1,))


def test_the_same_life_again() -> None:
    """It keeps the index of its registration and its grants, is up again, and may have moved; what changes nothing makes no version."""
    fenced = state_of(*TWO, NodeFenced(1, DISKS[0], 1, "silent"))
    assert fenced.table.nodes[0].state == DOWN
    assert fenced.degraded() == ["node 1 is down: silent; 8192 slots are unavailable"]
    state = state_of(*TWO, NodeFenced(1, DISKS[0], 1, "silent"), joined(1, clients="moved"), joined(1, clients="moved"))
    row = state.table.node(1)
    assert row is not None
    assert (row.state, row.registered_at, row.clients) == (UP, 2, "moved")
    assert (state.version, state.index) == (6, 7)


def test_records_that_lost_a_race_change_nothing() -> None:
    """M2: about an older life, an unknown node, or what is done already."""
    state = state_of(*TWO, joined(1, boot_no=2))
    before = state.table
    for index, record in enumerate(
        (
            NodeFenced(1, DISKS[0], 1, "silent"),
            NodeFenced(9, DISKS[0], 1, "silent"),
            joined(1, boot_no=1),
            NodeForgotten(1),
            NodeForgotten(9),
            SlotBatch("restart", (SlotItem(0, 8191, 9, False), SlotItem(8192, 9000, 1, False))),
            SlotBatch("reset", (SlotItem(0, 100, 1, True), SlotItem(101, 102, 9, True))),
        ),
        10,
    ):
        state.apply(index, record.pack())
        state.validate()
        assert state.table == before, record


def test_a_lost_disk_and_its_return() -> None:
    """A node with another disk has lost its copies; with the old disk again, at a number not lower than before, it has them back (M5)."""
    lost = (*TWO, joined(1, 1))
    state = state_of(*lost)
    assert [(run.first, run.last) for run in state.lost_runs()] == [(0, 8191)]
    assert "8192 slots had their only copy on a disk that node 1 no longer has" in state.degraded()[0]
    assert "govern reset 1" in state.degraded()[0]
    assert state_of(*lost, SlotBatch("restart", (SlotItem(0, 8191, 1, False),))).table.runs == state.table.runs
    assert state.nodes[1].former == ((DISKS[0], 1),)
    assert list(state_of(*lost, joined(1, 0, 2)).lost_runs()) == []
    rolled_back = state_of(*TWO, joined(1, 0, 7), joined(1, 1), joined(1, 0, 6))
    assert rolled_back.nodes[1].row.disk_id == DISKS[1]
    reset = state_of(*lost, SlotBatch("reset", (SlotItem(0, 8191, 1, True),)))
    assert reset.degraded() == []
    assert reset.table.runs[0].copies == ((1, 6),)
    assert reset.nodes[1].former == ()
    assert sorted(reset.homes) == [(1, 6), (2, 4)]


def test_an_empty_copy_never_replaces_an_intact_one() -> None:
    """M6, also in the middle of a range of which the rest is free or lost."""
    state = state_of(ClusterInit(CLUSTER), joined(1), joined(2), SlotBatch("a", (SlotItem(100, 200, 1, True), SlotItem(300, 400, 2, True))))
    state.apply(5, joined(2, 1).pack())
    state.apply(6, SlotBatch("b", (SlotItem(0, 1000, 2, True),)).pack())
    state.validate()
    assert [(run.first, run.last, run.primary, run.term) for run in state.table.runs] == [
        (0, 99, 2, 6),
        (100, 200, 1, 4),
        (201, 1000, 2, 6),
    ]


def test_what_was_in_memory_is_gone_with_its_process() -> None:
    """A copy of a node that keeps everything in memory is not intact in the next life, whatever disk that claims."""
    state = state_of(ClusterInit(CLUSTER), joined(1, volatile=True), SlotBatch("a", (SlotItem(0, 9, 1, True),)))
    assert list(state.lost_runs()) == []
    state.apply(4, joined(1, boot_no=2, volatile=True).pack())
    assert len(list(state.lost_runs())) == 1
    assert state.home(state.table.runs[0]).volatile


def test_forgetting() -> None:
    """A node that holds nothing can go; the reader of a difference hears of it."""
    state = state_of(*TWO, joined(3), NodeFenced(3, DISKS[0], 1, "gone"))
    before = state.table
    assert state.degraded() == ["node 3 is down: gone; it holds no slots"]
    state.apply(7, NodeForgotten(3).pack())
    change = difference(before, state.table)
    assert (change.base, change.version, change.gone) == (before.version, 7, (3,))


def test_a_batch_with_an_item_for_each_slot_fits_and_is_quick() -> None:
    """The longest record that can be: below the bound of records, and laid over the same in steps that grow with the slots only."""
    one = SlotBatch("a", tuple(SlotItem(slot, slot, 65_535 - slot % 2, True) for slot in range(SLOT_COUNT)))
    assert len(one.pack()) < RECORD_BYTES_MAX
    state = state_of(ClusterInit(CLUSTER), joined(65_535), joined(65_534), one)
    again = SlotBatch("b", tuple(SlotItem(slot, slot, 65_535 - slot % 2, False) for slot in range(SLOT_COUNT)))
    state.apply(5, again.pack())
    assert {run.term for run in state.table.runs} == {5}
    assert len(state.table.runs) == SLOT_COUNT
    assert MetaState.unpack(state.pack()).table == state.table


@pytest.mark.parametrize("record", [ClusterInit(CLUSTER), joined(1), NodeFenced(1, DISKS[0], 1, "r"), NodeForgotten(1), *TWO])
def test_records_survive_their_bytes(record: Record) -> None:
    assert unpack_record(record.pack()) == record


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb([]),
        msgpack.packb([99]),
        msgpack.packb([True]),
        msgpack.packb([1, CLUSTER, SLOT_COUNT]),
        msgpack.packb([1, CLUSTER, SLOT_COUNT, "crc16", 1]),
        msgpack.packb([1, CLUSTER, 4096, "crc16"]),
        msgpack.packb([1, CLUSTER, SLOT_COUNT, "sha"]),
        msgpack.packb([1, b"d" * 16, SLOT_COUNT, "crc16"]),
        msgpack.packb([1, bytes(16), SLOT_COUNT, "crc16"]),
        msgpack.packb([2, 0, DISKS[0], 1, "c", "p", True, False]),
        msgpack.packb([2, 1, b"short", 1, "c", "p", True, False]),
        msgpack.packb([2, 1, DISKS[0], 1, "c", "p", 1, False]),
        msgpack.packb([4, "1"]),
        msgpack.packb([5, "x", [[0, 1, 1]]]),
        msgpack.packb([5, "x", [[1, 0, 1, True]]]),
        msgpack.packb([5, "x", [[0, SLOT_COUNT, 1, True]]]),
        msgpack.packb([5, "x", [[0, 5, 1, True], [5, 6, 1, True]]]),
    ],
)
def test_what_cannot_be_applied_stops_the_node_and_changes_nothing(data: bytes) -> None:
    """M1"""
    state = state_of(*TWO)
    before = state.pack()
    with pytest.raises(ApplyFailed):
        state.apply(9, data)
    assert state.pack() == before


def _packed(value: object) -> bytes:
    try:
        data: bytes = msgpack.packb(value)
    except OverflowError:
        return b""
    return data


@given(st.binary(max_size=40) | st.recursive(st.integers() | st.text(max_size=2) | st.booleans(), st.lists).map(_packed))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_applied_or_refused(data: bytes) -> None:
    """Nothing but `ApplyFailed` ever comes out."""
    state = state_of(*TWO)
    try:
        state.apply(9, data)
    except ApplyFailed:
        return
    state.validate()


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_damaged_snapshot_is_refused(cut: int) -> None:
    """No bytes are the empty state; half of a snapshot, or one of another format, is nothing."""
    data = state_of(*TWO, joined(1, 1)).pack()
    assert MetaState.unpack(b"").pack() == MetaState().pack()
    with pytest.raises(ApplyFailed):
        MetaState.unpack(data[: cut % len(data)] if cut else msgpack.packb([2, 0, b"", [0, [], []], [], []]))


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """A value with one part of it, however deep, replaced."""
    if isinstance(value, list) and value and draw(st.integers(0, 7)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(damaged(value[place])), *value[place + 1 :]]
    return draw(st.sampled_from((None, True, -1, 0, 1, 2, 9, 1 << 63, 1.5, "", "down", b"", bytes(16), [], [[]], {}, {"a": 1})))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_snapshot_from_anywhere_is_a_state_or_cannot_be_applied(data: st.DataObject) -> None:
    """A leader of this cluster that is out of its mind ends this node in one clear way; never is half of a state taken over."""
    raw = msgpack.unpackb(state_of(*TWO, joined(1, 1), NodeFenced(2, joined(2).disk_id, 1, "silent")).pack())
    try:
        found = MetaState.unpack(msgpack.packb(data.draw(damaged(raw))))
    except ApplyFailed:
        return
    found.validate()
    found.degraded(), found.rows(), found.pack()


class MetaMachine(RuleBasedStateMachine):
    """Random records against an array of a few slots; a second state lives through snapshots only."""

    SLOTS = (0, 1, 2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.state = MetaState()
        self.other = MetaState()
        self.index = 0
        self.nodes: dict[int, dict[str, object]] = {}
        self.boots: dict[tuple[int, bytes], int] = {}
        self.slots: dict[int, tuple[int, int, int, bytes]] = {}  # slot → node, copy, term, disk of the copy
        self.seen = {0: EMPTY}
        self._apply(ClusterInit(CLUSTER))

    def _apply(self, record: Record) -> int:
        self.index += 1
        self.state.apply(self.index, record.pack())
        self.other.apply(self.index, record.pack())
        self.seen[self.state.version] = self.state.table
        return self.index

    @rule(node_id=st.integers(1, 3), disk=st.integers(0, 2), boot_no=st.integers(1, 4))
    def join(self, node_id: int, disk: int, boot_no: int) -> None:
        index = self._apply(joined(node_id, disk, boot_no))
        disk_id, node = DISKS[disk], self.nodes.get(node_id)
        if boot_no < self.boots.get((node_id, disk_id), 0):
            return
        same = node is not None and (node["disk"], node["boot"]) == (disk_id, boot_no)
        at = node["at"] if node is not None and same else index
        self.nodes[node_id] = {"disk": disk_id, "boot": boot_no, "at": at, "up": True}
        self.boots[node_id, disk_id] = boot_no
        self._forget_disks()

    @rule(node_id=st.integers(1, 3), disk=st.integers(0, 2), boot_no=st.integers(1, 4))
    def fence(self, node_id: int, disk: int, boot_no: int) -> None:
        self._apply(NodeFenced(node_id, DISKS[disk], boot_no, "silent"))
        node = self.nodes.get(node_id)
        if node is not None and (node["disk"], node["boot"]) == (DISKS[disk], boot_no):
            node["up"] = False

    @rule(node_id=st.integers(1, 3))
    def forget(self, node_id: int) -> None:
        self._apply(NodeForgotten(node_id))
        if all(owner != node_id for owner, *_ in self.slots.values()):
            self.nodes.pop(node_id, None)
            self._forget_disks()

    @rule(
        grants=st.lists(st.tuples(st.sampled_from(SLOTS), st.integers(1, 3), st.booleans()), min_size=1, unique_by=lambda grant: grant[0])
    )
    def grant(self, grants: list[tuple[int, int, bool]]) -> None:
        index = self._apply(SlotBatch("any", tuple(SlotItem(slot, slot, node_id, new) for slot, node_id, new in sorted(grants))))
        for slot, node_id, new in grants:
            if node_id not in self.nodes:
                continue
            owner, copy_id, _, disk_id = self.slots.get(slot, (0, 0, 0, b""))
            intact = owner in self.nodes and self.nodes[owner]["disk"] == disk_id
            if new and not intact:
                self.slots[slot] = (node_id, index, index, self.nodes[node_id]["disk"])  # type: ignore[assignment]
            elif not new and intact and owner == node_id:
                self.slots[slot] = (owner, copy_id, index, disk_id)
        self._forget_disks()

    def _forget_disks(self) -> None:
        """Boot numbers are remembered for disks that nodes have, or that carry copies (M5)."""
        used = {(owner, disk_id) for owner, _, _, disk_id in self.slots.values()} | {
            (node_id, node["disk"]) for node_id, node in self.nodes.items()
        }
        self.boots = {key: boot_no for key, boot_no in self.boots.items() if key in used}

    @rule()
    def restore(self) -> None:
        self.other = MetaState.unpack(self.state.pack())

    @invariant()
    def agrees(self) -> None:
        self.state.validate()
        assert self.state.pack() == self.other.pack()
        for slot in self.SLOTS:
            run = self.state.table.run_of(slot)
            found = None if run is None else (run.primary, run.copies[0][1], run.term, self.state.home(run).disk_id)
            assert found == self.slots.get(slot), slot
        for node_id, node in self.nodes.items():
            row = self.state.nodes[node_id].row
            assert (row.disk_id, row.boot_no, row.registered_at, row.state == UP) == (node["disk"], node["boot"], node["at"], node["up"])
        assert sorted(self.state.nodes) == sorted(self.nodes)
        for version, table in self.seen.items():
            change = difference(table, self.state.table) if version else whole(self.state.table)
            assert apply(table, change) == self.state.table


def test_random_records() -> None:
    machine(MetaMachine)(60)
