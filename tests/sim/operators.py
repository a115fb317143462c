"""What operators do in a simulated cluster, with the words of the command line: they replace lost disks, and they change the candidates.

A node that lost its disk comes back with an empty one. When its former life has been given up it is registered; then its slots begin again
(`reset`), and a candidate takes its former self's place among the voters (`members remove`, `add`, `promote`).

Where they change candidates, they do it under all faults: the leadership is handed over, a node is added and promoted, another one removed.
What is asked for may be refused, or be done although nobody was told. A voter is removed only when the living make a majority of all
memberships that may come of it, and while no disk is being replaced: the cluster must be able to converge whatever becomes of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import trio

import govern
from govern.actors.node import Node
from govern.errors import GovernError
from govern.peer_messages import Member
from govern.testing.world import PORT, World, node_name

from .checkers.consensus import Consensus
from .columns import Columns

LOOK_SECONDS = 0.5
OPERATION_SECONDS_MAX = 60.0
SECONDS_BETWEEN_CHANGES = 4.0
VOTERS_MIN = 2
"""Fewer would be one: then there are no elections any more."""


class Operators:
    """All operators of a run."""

    def __init__(self, world: World, nodes: Sequence[str], consensus: Consensus, columns: Columns, seed: int) -> None:
        self.counts: dict[str, int] = {}
        self.at_work = trio.Lock()
        """Held while one of them is in the middle of something that others must not come between."""
        self._world = world
        self._nodes = nodes
        self._consensus = consensus
        self._columns = columns
        self._chance = random.Random(f"{seed}/operators")

    async def run(self, until: float) -> None:
        """Change something now and then, until that virtual time."""
        while True:
            await trio.sleep_until(min(until, trio.current_time() + self._chance.expovariate(1 / SECONDS_BETWEEN_CHANGES)))
            if trio.current_time() >= until:
                return
            async with self.at_work:
                verb, node_id = self._choose()
                if verb:
                    await self._say(verb, node_id, self._chance.sample(list(self._nodes), 2))

    def _choose(self) -> tuple[str, int]:
        """A word that may be said now; an empty one when there is none."""
        membership = self._consensus.membership
        if membership is None:
            return "", 0
        voters, learners = ([member.node_id for member in members] for members in (membership.voters, membership.learners))
        others = [node_id for node_id in map(number_of, self._nodes) if node_id not in voters + learners]
        words = [("transfer", self._chance.choice([0, *voters]))]
        words += [("members.add", node_id) for node_id in others] + 2 * [("members.promote", node_id) for node_id in learners]
        words += [("members.remove", node_id) for node_id in voters if self._may_remove(node_id)]
        words += [("members.remove", node_id) for node_id in learners]
        verb = self._chance.choice(list(dict.fromkeys(verb for verb, _ in words)))
        return self._chance.choice([word for word in words if word[0] == verb])

    def _may_remove(self, node_id: int) -> bool:
        for membership in self._consensus.possible_memberships():
            left = [voter for voter in membership.voters if voter.node_id != node_id]
            if len(left) < VOTERS_MIN or 2 * sum(map(self._lives, left)) <= len(left):
                return False
        return True

    def _lives(self, member: Member) -> bool:
        machine = self._world.machines[node_name(member.node_id)]
        return machine.node is not None and not machine.paused and machine.node._me == member

    async def _say(self, verb: str, node_id: int, nodes: Sequence[str]) -> None:
        """Say a word to one of these nodes."""
        where = ",".join(f"{node}:{PORT}" for node in nodes)
        machine = self._world.machine("operator", memory=True)
        machine.boots += 1
        environment = self._world.environment(machine)
        name = self._nodes[0] if node_id == 0 else node_name(node_id)
        try:
            async with govern.connect(where, environment=environment, timeout=5) as registry:
                await registry.administer(verb, node_id)
            self._columns.add(name, f"* {verb} {node_id}")
            self.counts[verb] = self.counts.get(verb, 0) + 1
        except GovernError as error:
            self._columns.add(name, f"* {verb} {node_id}: {error}")

    async def replace_disk(self, name: str) -> bool:
        """Let a node whose disk was lost have its part again; returns when it has, or False after a minute."""
        with trio.move_on_after(OPERATION_SECONDS_MAX):
            while True:
                await trio.sleep(LOOK_SECONDS)
                verb = next_word(self._world, name, self._nodes)
                if verb == "":
                    return True
                if verb is not None:
                    await self._say(verb, number_of(name), self._nodes)
        return False


def number_of(name: str) -> int:
    """The id of the node on a machine."""
    return int(name.removeprefix("node"))


def controller_of(world: World, names: Sequence[str]) -> str | None:
    """The machine whose node decides now, of these; of two that believe so, the one of the later term."""
    leading = [(node._election.term, name) for name in names if (node := _deciding(world, name)) is not None and node._election is not None]
    return max(leading)[1] if leading else None


def _deciding(world: World, name: str) -> Node | None:
    node = world.machines[name].node
    return node if node is not None and not world.machines[name].paused and node._manager.controller is not None else None


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
