"""A new table reaches the nodes that are no candidates at once, as what has changed, and without their asking.

The versions that heartbeats name would lead there as well, half a second later: they are the second way, for what is lost. So nothing else
misses a push that does not come.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import attrs
import pytest
import trio

from govern.actors.slot_manager import SlotManager
from govern.core import ownership as ownership_rules
from govern.core.ownership import Ownership
from govern.core.table import DOWN, UP, Table
from govern.messages import Message
from govern.peer_messages import TableAsk, TablePart
from govern.testing.scheduler import process
from govern.testing.world import node_name

from ..deep import seeds
from .checkers.patching import patched
from .stage import Stage
from .test_cluster_faults import play

NODES, CANDIDATES = 6, 3
PUSHED_SECONDS = 0.05
"""A few ways over the network, of two milliseconds each. A node that has to ask learns of a version with one of its heartbeats, of which
there are two a second."""


@attrs.define
class Seen:
    """What was said of tables between nodes, and who followed which."""

    asking: dict[str, None] = attrs.field(factory=dict)
    """Who asked for one."""
    pages: dict[str, list[TablePart]] = attrs.field(factory=dict)
    """What came to each node."""
    taken: dict[str, dict[int, float]] = attrs.field(factory=dict)
    """For each node when it followed which version."""

    def since(self, name: str, version: int) -> dict[int, float]:
        """The versions above this one that a node has followed."""
        return {newer: at for newer, at in self.taken[name].items() if newer > version}


@contextmanager
def watched() -> Generator[Seen]:
    """Look at every message of a table, and every table that is followed."""
    seen = Seen()
    receive, take = SlotManager._receive, Ownership.take

    def receive_and_note(self: SlotManager, node_id: int, message: Message, now_us: int) -> None:
        if isinstance(message, TableAsk):
            seen.asking[node_name(node_id)] = None
        elif isinstance(message, TablePart):
            seen.pages.setdefault(str(process.get()), []).append(message)
        receive(self, node_id, message, now_us)

    def take_and_note(self: Ownership, table: Table) -> bool:
        is_new = take(self, table)
        if is_new:
            seen.taken.setdefault(str(process.get()), {})[table.version] = trio.current_time()
        return is_new

    with patched((SlotManager, "_receive", receive_and_note), (Ownership, "take", take_and_note)):
        yield seen


async def tables_are_pushed(stage: Stage) -> None:
    """Two nodes die, are given up, and come back; the other one that is no candidate is told of each step in a moment."""
    controller, (told, *dying) = stage.controller, stage.others(*stage.cluster.candidates)
    with watched() as seen, patch.object(ownership_rules, "PAGE_ITEMS_MAX", 1):  # so that what has changed needs several pages
        for act, state, seconds in ((stage.cluster.kill, DOWN, 6.0), (stage.cluster.restart, UP, 2.0)):
            before = stage.node(controller)._ownership.table.version
            async with trio.open_nursery() as nursery:
                for name in dying:
                    nursery.start_soon(act, name)
            await trio.sleep(seconds)
            judge_pushes(seen, before, controller, told)
            tables = [stage.node(name)._ownership.table for name in (controller, told)]
            assert tables[0] == tables[1], "the same changes lead to another table"
            assert [row.state for row in tables[1].nodes if f"node{row.node_id}" in dying] == [state] * len(dying)
    judge_pages(seen.pages[told])
    assert stage.controller == controller
    await stage.cluster.converged()


def judge_pushes(seen: Seen, before: int, controller: str, told: str) -> None:
    decided, heard = seen.since(controller, before), seen.since(told, before)
    assert decided, "nothing was decided"
    for version, at in decided.items():
        late = min((taken for newer, taken in heard.items() if newer >= version), default=float("inf")) - at
        assert late <= PUSHED_SECONDS, f"version {version} of the table was pushed to nobody: {told} has it {late:.3f} s later"
    assert told not in seen.asking


def judge_pages(pages: Sequence[TablePart]) -> None:
    """Nothing whole was sent, and some of it in parts."""
    assert all(page.base for page in pages), "the whole table was sent"
    assert any(page.more for page in pages), "nothing came in parts"


@pytest.mark.parametrize("seed", seeds(1, 10))
def test_a_new_table_is_pushed(seed: int) -> None:
    """In a moment, as what has changed, in parts, and without a question."""
    play(seed, tables_are_pushed, nodes=NODES, candidates=CANDIDATES)
