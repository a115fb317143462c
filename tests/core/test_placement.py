"""Ranges of slots: shares that are even, and items that say the same made one."""

from __future__ import annotations

import random
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.core.meta import ClusterInit, MetaState, NodeJoined, SlotBatch, SlotItem
from govern.core.placement import free_ranges, join_items, spread
from govern.core.slots import SLOT_COUNT


@pytest.mark.parametrize("count", range(1, 51))
def test_shares_are_even(count: int) -> None:
    """Every slot goes to somebody, in the order of the ids, and nobody has two more than another (PL1, PL2)."""
    items = spread([(0, SLOT_COUNT - 1)], list(range(1, count + 1)))
    shares = [item.last - item.first + 1 for item in items]
    assert [item.node_id for item in items] == list(range(1, count + 1))
    assert sum(shares) == SLOT_COUNT
    assert max(shares) - min(shares) <= 1
    assert all(before.last + 1 == after.first for before, after in pairwise(items))


@given(st.sets(st.integers(0, 60)), st.integers(1, 9))
def test_shares_of_what_is_left(taken: set[int], count: int) -> None:
    """The same for slots with holes between them."""
    meta = MetaState()
    meta.apply(1, ClusterInit(b"c" * 16).pack())
    meta.apply(2, NodeJoined(1, b"1" * 16, 1, "", "", True, False).pack())
    if taken:
        meta.apply(3, SlotBatch("x", tuple(join_items(SlotItem(slot, slot, 1, True) for slot in taken))).pack())
    free = free_ranges(meta.table.runs)
    items = spread(free, list(range(1, count + 1)))
    shares = [sum(item.last - item.first + 1 for item in items if item.node_id == node_id) for node_id in range(1, count + 1)]
    assert sum(shares) == SLOT_COUNT - len(taken)
    assert max(shares) - min(shares) <= 1
    covered = [slot for item in items for slot in range(item.first, item.last + 1)]
    assert covered == [slot for slot in range(SLOT_COUNT) if slot not in taken]


@given(st.dictionaries(st.integers(0, 40), st.tuples(st.integers(1, 2), st.booleans())), st.randoms(use_true_random=False))
def test_equal_neighbours_are_one_item(wanted: dict[int, tuple[int, bool]], chance: random.Random) -> None:
    """Slot by slot they say what was said, and no two items that touch could be one (PL3)."""
    said = [SlotItem(slot, slot, *what) for slot, what in wanted.items()]
    chance.shuffle(said)
    items = join_items(said)
    assert {slot: (item.node_id, item.new_copy) for item in items for slot in range(item.first, item.last + 1)} == wanted
    assert all(before.last < after.first for before, after in pairwise(items))
    assert not any(
        attrs.evolve(before, first=after.first, last=after.last) == after and before.last + 1 == after.first
        for before, after in pairwise(items)
    )
