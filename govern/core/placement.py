"""Placement: ranges of slots, and which nodes they go to.

PL1 What is given out is given out once: the items of `spread` are in order, do not overlap, and cover exactly the ranges.
PL2 No node gets two slots more than another.
PL3 Neighbours that say the same are one item: an assignment costs bytes by its borders, not by its slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from .meta import SlotItem
from .slots import SLOT_COUNT
from .table import SlotRun


def join_items(items: Iterable[SlotItem]) -> list[SlotItem]:
    """Items in order of slots, with equal neighbours made one."""
    joined: list[SlotItem] = []
    for item in sorted(items, key=lambda item: item.first):
        last = joined[-1] if joined else None
        if last is not None and (last.last + 1, last.node_id, last.new_copy) == (item.first, item.node_id, item.new_copy):
            joined[-1] = attrs.evolve(last, last=item.last)
        else:
            joined.append(item)
    return joined


def free_ranges(runs: Iterable[SlotRun]) -> list[tuple[int, int]]:
    """The ranges of slots that belong to nobody."""
    free: list[tuple[int, int]] = []
    first = 0
    for run in runs:
        if first < run.first:
            free.append((first, run.first - 1))
        first = run.last + 1
    if first < SLOT_COUNT:
        free.append((first, SLOT_COUNT - 1))
    return free


def spread(ranges: Sequence[tuple[int, int]], node_ids: Sequence[int]) -> list[SlotItem]:
    """New copies of all these slots for these nodes, in this order: no node gets two slots more than another."""
    total = sum(last - first + 1 for first, last in ranges)
    ends = [total * (place + 1) // len(node_ids) for place in range(len(node_ids))]
    items: list[SlotItem] = []
    done = place = 0
    for first, last in ranges:
        while first <= last:
            while ends[place] <= done:
                place += 1
            end = min(last, first + ends[place] - done - 1)
            items.append(SlotItem(first, end, node_ids[place], True))
            done += end - first + 1
            first = end + 1
    return items
