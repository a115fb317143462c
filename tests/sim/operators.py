"""What operators do in a simulated cluster after a disk was lost, with the words of the command line.

The node comes back with an empty disk. When its former life has been given up it is registered; then its slots begin again (`reset`), and a
candidate takes its former self's place among the voters (`members remove`, `add`, `promote`).
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

import govern
from govern.actors.node import Node
from govern.errors import GovernError
from govern.testing.world import PORT, World

from .columns import Columns

LOOK_SECONDS = 0.5
OPERATION_SECONDS_MAX = 60.0


def controller_of(world: World, names: Sequence[str]) -> str | None:
    """The machine whose node decides now, of these; of two that believe so, the one of the later term."""
    leading = [(node._election.term, name) for name in names if (node := _deciding(world, name)) is not None and node._election is not None]
    return max(leading)[1] if leading else None


def _deciding(world: World, name: str) -> Node | None:
    node = world.machines[name].node
    return node if node is not None and not world.machines[name].paused and node._manager.controller is not None else None


async def replace_disk(world: World, name: str, nodes: Sequence[str], columns: Columns) -> bool:
    """Let a node whose disk was lost have its part again; returns when it has, or False after a minute."""
    where = ",".join(f"{node}:{PORT}" for node in nodes)
    environment = world.environment(world.machine("operator", memory=True))
    with trio.move_on_after(OPERATION_SECONDS_MAX):
        while True:
            await trio.sleep(LOOK_SECONDS)
            verb = next_word(world, name, nodes)
            if verb == "":
                return True
            if verb is None:
                continue
            node_id = int(name.removeprefix("node"))
            try:
                async with govern.connect(where, environment=environment, timeout=5) as registry:
                    await registry.administer(verb, node_id)
                columns.add(name, f"* {verb} {node_id}")
            except GovernError as error:
                columns.add(name, f"* {verb} {node_id}: {error}")
    return False


def next_word(world: World, name: str, nodes: Sequence[str]) -> str | None:
    """What is to be said next: empty when nothing is, None while it has to be waited."""
    machine, controller = world.machines[name], controller_of(world, nodes)
    leading = None if controller is None else world.machines[controller].node
    if machine.node is None or leading is None or leading._election is None:
        return None
    me, meta, membership = machine.node._me, leading._manager.meta, leading._election.membership
    row = meta.table.node(me.node_id)
    if row is None or row.state != "up" or row.disk_id != me.disk_id:
        return None
    if any(run.primary == me.node_id for run in meta.lost_runs()):
        return "reset"
    if any(member.node_id == me.node_id and member != me for member in membership.members):
        return "members.remove"
    if not row.candidate or me in membership.voters:
        return ""
    return "members.promote" if me in membership.learners else "members.add"
