"""A cluster for one scenario, with the checkers of consensus and ownership behind it: whatever else a test looks at, they look as well."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

import govern
from govern.actors.node import Node
from govern.environment import Environment
from govern.testing import Cluster
from govern.testing.world import PORT, World, cluster_keys, open_world, usual_candidates

from .checkers import Checker, Violation
from .checkers.bounds import Bounds
from .checkers.consensus import Consensus
from .checkers.owners import Owners
from .checkers.pairs import Pairs
from .checkers.watch import SWEEP_SECONDS


@attrs.define(eq=False)
class Stage:
    """What a scenario works with."""

    world: World
    cluster: Cluster
    consensus: Consensus
    owners: Owners

    def node(self, name: str) -> Node:
        """A node that runs."""
        node = self.world.machines[name].node
        assert node is not None, f"{name} does not run"
        return node

    @property
    def term(self) -> int:
        """The newest that had a leader."""
        return max(self.consensus.leaders)

    @property
    def controller(self) -> str:
        """The one node that decides."""
        name = self.cluster.controller
        assert name is not None, "there is no controller, or there are two"
        return name

    def others(self, *names: str) -> list[str]:
        """The nodes that are not named."""
        return [name for name in self.cluster.nodes if name not in names]

    def service_of(self, name: str) -> str:
        """A service for which that node answers."""
        return next(service for number in range(1000) if self.cluster.owner(service := f"s{number}") == name)

    async def run_dying(self, name: str) -> None:
        """Let a program on the machine `dying` be registered as `dead`, through that node and in the first service of it."""
        service = self.service_of(name)

        async def hold(environment: Environment) -> None:
            async with govern.connect(f"{name}:{PORT}", environment=environment) as registry, registry.register(service, port=1, id="dead"):
                await trio.sleep_forever()

        await self.cluster.run("dying", hold)

    async def until_controller(self, *, other_than: str = "", within: float) -> float:
        """Wait for a controller; returns after how many seconds there was one."""
        began = trio.current_time()
        with trio.fail_after(within):
            while self.cluster.controller in (None, other_than):
                await trio.sleep(0.05)
        return trio.current_time() - began


@asynccontextmanager
async def open_stage(seed: int, nodes: int = 3, candidates: int | None = None, **keys: Any) -> AsyncIterator[Stage]:
    """A cluster that has formed. The first thing that a checker sees ends the block, and is raised, whatever else came of it."""
    violations: list[Violation] = []
    own = cluster_keys(nodes, usual_candidates(nodes) if candidates is None else candidates)
    try:
        async with open_world(seed) as world:
            consensus = Consensus(world, violations.append)
            owners, pairs, bounds = Owners(world, consensus, violations.append), Pairs(world), Bounds(world)
            with consensus.watch(), owners.watch():
                cluster = Cluster(world, {name: {**each, **keys} for name, each in own.items()})
                await cluster._begin()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_sweep, (owners, pairs, bounds), violations, nursery.cancel_scope)
                    yield Stage(world, cluster, consensus, owners)
                    nursery.cancel_scope.cancel()
                consensus.end()
                owners.end()
    finally:
        if violations:
            raise violations[0]


async def _sweep(checkers: Sequence[Checker], violations: list[Violation], scope: trio.CancelScope) -> None:
    while not violations:
        await trio.sleep(SWEEP_SECONDS)
        try:
            for checker in checkers:
                checker.sweep()
        except Violation as violation:
            violations.append(violation)
    scope.cancel()
