"""A registry inside of a test: real nodes and real clients on simulated machines, under a virtual clock, with failures on demand.

    async def test_my_service_survives(autojump_clock):
        async with govern.testing.cluster(seed=7) as cluster:
            async with cluster.registry.register("orders", port=8000), cluster.registry.subscribe("orders") as orders:
                await cluster.crash("node1")
                assert orders.choose() is not None       # the list outlives the registry
                await cluster.restart("node1")
                await cluster.converged()

With `nodes=3` it is a cluster: `cluster.controller` is the node that decides, `cluster.owner("orders")` the one that answers for a service.

Everything is the code that runs in production; only the network, the disk, the clock and chance are simulated. Minutes pass in
milliseconds, and the same seed is the same run. Your own program takes part when it gets its doors from the cluster: pass
`environment=cluster.environment("shop")` to `govern.connect`, or use `cluster.connect("shop")`.

K1  The clock must be virtual: pytest-trio's `autojump_clock` fixture, or `govern.testing.simulate`. A real one is refused.
K2  The order of tasks comes from the seed for as long as the block lasts.
K3  Leaving the block ends everything that runs in it, and an exception of the block comes out as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from trio.testing import MockClock

from ..actors.node import Node
from ..client.core import ClientCore
from ..client.registry import Registry, connect
from ..core.entries import unpack_entry
from ..core.slots import SLOT_COUNT, slot_of
from ..environment import Environment
from ..errors import Invalid
from ..model import ServiceKey, check_name
from .run import alone
from .scheduler import Scheduler, install
from .world import PORT, Program, World, cluster_keys, open_world, usual_candidates

NODES_MAX: Final = 15
"""A virtual second of a cluster costs the more real time the more nodes it has."""
CONVERGED_SECONDS: Final = 30.0
FORMED_SECONDS: Final = 30.0
"""So long a new cluster may take until every slot has its node; two seconds are usual."""
_LOOK_SECONDS: Final = 0.05


class NotConverged(AssertionError):
    """The cluster did not come to rest in time; the text says what is missing."""


class Cluster:
    """The nodes, the machines and the failures of one simulated registry. Made by `cluster`.

    Machines have names: those of the nodes (`nodes`), and any name that you use for a client. Times are virtual seconds.
    """

    registry: Registry
    """A client that is connected from the start, on a machine called `test`."""

    def __init__(self, world: World, keys: dict[str, dict[str, Any]]) -> None:
        self.nodes = tuple(keys)
        """The names of the nodes."""
        self.candidates = tuple(name for name in keys if keys[name].get("candidate", True))
        """The names of those that can become the controller."""
        self._world = world
        self._keys = keys
        self._registries: list[Registry] = []

    def __repr__(self) -> str:
        return f"<Cluster {', '.join(self.nodes)} at {trio.current_time():.3f} s>"

    # --- who does what ----------------------------------------------------------------------------------------------------------

    @property
    def controller(self) -> str | None:
        """The name of the node that decides now, as it believes itself; None while there is none, or while there are two, for one that was
        cut off takes a second to see it."""
        found = [name for name in self.nodes if (node := self._node(name)) is not None and node._manager.controller is not None]
        return found[0] if len(found) == 1 else None

    def owner(self, service: str, namespace: str = "default") -> str | None:
        """The name of the node that answers for a service, by the newest table of all nodes; None while nobody does."""
        running = [node for name in self.nodes if (node := self._node(name)) is not None]
        tables = sorted((node._ownership.table for node in running), key=lambda table: table.version)
        row = tables[-1].owner(slot_of(ServiceKey(namespace, check_name(service)))) if tables else None
        return None if row is None else next(name for name in self.nodes if self._node_id(name) == row.node_id)

    def _node(self, name: str) -> Node | None:
        return self._world.machines[name].node

    def _node_id(self, name: str) -> int:
        return int(self._keys[name].get("node_id", 1))

    # --- clients ----------------------------------------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """The addresses of the nodes, for `govern.connect` together with an `environment`."""
        return ",".join(f"{name}:{PORT}" for name in self.nodes)

    def environment(self, machine: str) -> Environment:
        """The doors of a simulated machine: its network, its small files, its clocks and its chance. Your own protocols may use its
        `network` as well, to dial and to serve between machines; they then meet the same failures."""
        return self._world.environment(self._world.machine(machine, memory=True))

    @asynccontextmanager
    async def connect(self, machine: str, **arguments: Any) -> AsyncIterator[Registry]:
        """A registry for a program on that machine, as `govern.connect` gives it; `arguments` are those of `govern.connect`."""
        async with connect(self.where, environment=self.environment(machine), **arguments) as registry:
            self._registries.append(registry)
            try:
                yield registry
            finally:
                self._registries.remove(registry)

    async def run(self, machine: str, program: Program) -> None:
        """Start `await program(environment)` as the process of that machine. It ends with the block, or with `kill`. What it raises
        ends the block."""
        await self._world.run_client(machine, program)

    # --- processes --------------------------------------------------------------------------------------------------------------

    async def crash(self, machine: str, *, silent: bool = False) -> None:
        """The power of a machine goes. What a node had acknowledged is on its disk. Connections are reset; with `silent` nobody is told,
        as when a cable is pulled."""
        if machine in self.nodes:
            await self._world.crash(machine, silent=silent)
        else:
            self._check_running(machine)
            self._world.network.crash(machine, silent=silent)
            await self._world.kill_client(machine)

    async def kill(self, machine: str) -> None:
        """SIGKILL: the process is gone, its machine resets its connections."""
        self._check_running(machine)
        if machine in self.nodes:
            await self._world.kill(machine)
        else:
            await self._world.kill_client(machine)

    async def stop(self, node: str) -> None:
        """An orderly stop of a node."""
        self._check_running(self._check_node(node))
        await self._world.stop(node)

    async def restart(self, node: str) -> None:
        """Start a node again on what its disk has; returns when it serves. One that still runs is stopped first, in order."""
        if self._world.machines[self._check_node(node)].running:
            await self._world.stop(node)
        await self._start(node)

    async def _start(self, node: str) -> None:
        await self._world.start(node, **self._keys[node])

    async def _begin(self) -> None:
        """Start all nodes at once, and wait until every slot has its node."""
        try:
            async with trio.open_nursery() as nursery:
                for name in self.nodes:
                    nursery.start_soon(self._start, name)
        except BaseExceptionGroup as group:
            raise alone(group) from None
        problem = self._find_unformed()
        with trio.move_on_after(FORMED_SECONDS):
            while problem is not None:
                await trio.sleep(_LOOK_SECONDS)
                problem = self._find_unformed()
        if problem is not None:
            raise NotConverged(f"the cluster has not formed within {FORMED_SECONDS:g} s: {problem}")

    def pause(self, machine: str) -> None:
        """SIGSTOP: the process makes no step until `resume`. Only for nodes and for what `run` started."""
        self._check_running(machine)
        self._world.pause(machine)

    def resume(self, machine: str) -> None:
        """SIGCONT."""
        self._check_running(machine)
        self._world.resume(machine)

    # --- network and disk -------------------------------------------------------------------------------------------------------

    def partition(self, a: str | Iterable[str], b: str | Iterable[str], *, one_way: bool = False) -> None:
        """Let nothing pass between two machines or groups of machines, until `heal`; with `one_way` nothing from `a` to `b`."""
        if one_way:
            self._world.network.partition_oneway(self._known(a), self._known(b))
        else:
            self._world.network.partition(self._known(a), self._known(b))

    def isolate(self, machine: str) -> None:
        """Let nothing pass between a machine and all others, until `heal`."""
        self._world.network.isolate(*self._known(machine))

    def slow(self, a: str, b: str, seconds: float) -> None:
        """Let everything between two machines take up to so much longer, until `heal`."""
        self._known([a, b])
        self._world.network.slow(a, b, seconds)

    def cut(self, a: str, b: str) -> None:
        """Reset the connections between two machines, once."""
        self._known([a, b])
        self._world.network.cut(a, b)

    def heal(self) -> None:
        """End all partitions, isolations and slowness. Nodes that are down stay down: see `restart`."""
        self._world.network.heal()

    def fill_disk(self, node: str) -> None:
        """Leave no space on the disk of a node until `free_disk`: registrations are refused with `DiskFull`, everything else goes on."""
        disk = self._world.machines[self._check_node(node)].disk
        assert disk is not None
        disk.capacity_bytes = disk.used_bytes

    def free_disk(self, node: str) -> None:
        """There is space again."""
        disk = self._world.machines[self._check_node(node)].disk
        assert disk is not None
        disk.capacity_bytes = None

    # --- rest -------------------------------------------------------------------------------------------------------------------

    async def converged(self, timeout: float = CONVERGED_SECONDS) -> None:  # noqa: ASYNC109
        """Wait until every client agrees with the registry; raises `NotConverged` after `timeout` seconds with what is missing.

        That is: every node runs, is registered and has a lease; one of them is the controller, all of them know it, and every slot has
        its node; every registry of `connect`, and `registry`, is connected and has heard from its nodes since the call; what each of them
        registered is on the node that answers for it, under the lease that it shows; and each of its views is the committed list there
        and not stale. Nothing is healed by this, and a quiet cluster needs a second, the time between two heartbeats.
        """
        began = trio.current_time()
        problem: str | None = "nothing was looked at"
        with trio.move_on_after(timeout):
            while problem is not None:
                await trio.sleep(_LOOK_SECONDS)
                problem = self._find_unconverged(began)
        if problem is not None:
            raise NotConverged(f"not converged after {timeout:g} s: {problem}")

    def _find_unformed(self) -> str | None:
        """What a cluster lacks that works, without its clients."""
        for name in self.nodes:
            if self._node(name) is None:
                return f"{name} does not run: restart it"
        if self.controller is None:
            return "no node is the controller, or two believe that they are"
        newest = max(node._ownership.table.version for name in self.nodes if (node := self._node(name)) is not None)
        acting = 0
        for name in self.nodes:
            node = self._node(name)
            assert node is not None
            acting += node._ownership.acting_count
            if not node.status()["fresh"]:
                return f"{name} has no lease: {node.status()['degraded']}"
            if node._manager.leader != self._node_id(self.controller):
                return f"{name} does not know that {self.controller} is the controller"
            if node._ownership.table.version != newest:
                return f"{name} has version {node._ownership.table.version} of the table; the newest is {newest}"
        return None if acting == SLOT_COUNT else f"only {acting} slots of {SLOT_COUNT} have a node that answers for them"

    def _find_unconverged(self, began: float) -> str | None:
        problem = self._find_unformed()
        for registry in self._registries if problem is None else []:
            if not registry.connected:
                return f"{registry} is not connected"
            for core in registry._links.cores.living():
                problem = problem or self._find_difference(registry, core, began)
        return problem

    def _find_difference(self, registry: Registry, core: ClientCore, began: float) -> str | None:
        """In what a client and a node do not agree."""
        if core.heard_at <= began:
            return f"{registry} has not heard from node {core.node_id} since"
        if not core.registrations.settled:
            return f"{registry} has writes that were not answered"
        names = [name for name in self.nodes if self._node_id(name) == core.node_id]
        node = self._node(names[0]) if names else None
        if node is None:
            return f"{registry} speaks to node {core.node_id}, which does not run"
        for claim in core.registrations.held():
            entry = node._shard.entries(claim.service).get(claim.instance_id)
            if entry is None or unpack_entry(entry).lease_id != claim.lease or not node._ownership.terms[slot_of(claim.service)]:
                return f"{claim.instance_id} of {claim.service} is not on {names[0]} as its owner believes"
        for view in core.views._views.values():
            # What changes nothing moves the lsn of an empty service, and is not told to anybody.
            is_empty = not view.instances and not node._shard.entries(view.service)
            if view.stale or (view.lsn != node._shard.service_lsn(view.service) and not is_empty):
                return f"the view of {view.service} is behind: {view}"
        return None

    def _check_node(self, name: str) -> str:
        if name not in self.nodes:
            raise Invalid(f"there is no node {name!r}: use {' or '.join(self.nodes)}")
        return name

    def _check_running(self, machine: str) -> None:
        found = self._world.machines.get(machine)
        if found is None or not found.running:
            raise Invalid(f"no process runs on {machine!r}: start one with `run`, or use a node: {', '.join(self.nodes)}")

    def _known(self, machines: str | Iterable[str]) -> list[str]:
        names = [machines] if isinstance(machines, str) else list(machines)
        for name in names:
            if name not in self._world.machines:
                raise Invalid(f"there is no machine {name!r}: use one of {', '.join(self._world.machines)}")
        return names


@asynccontextmanager
async def cluster(*, nodes: int = 1, seed: int = 0, **keys: object) -> AsyncIterator[Cluster]:
    """A simulated registry for as long as the block lasts, and a client that is connected to it.

    Of several `nodes` the first are the candidates: all but one of an even number, five at most. The block is entered when the cluster
    has formed and every slot has its node. `keys` are configuration keys of every node. Everything that is left to chance follows from
    `seed`. Raises `RuntimeError` when the clock of this trio loop is not virtual (K1), `Invalid` for a wrong number of nodes,
    `ConfigError` for a wrong key.
    """
    if not isinstance(nodes, int) or not 1 <= nodes <= NODES_MAX:
        raise Invalid(f"nodes={nodes!r} is not valid: use a number from 1 to {NODES_MAX}")
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, MockClock) or clock.autojump_threshold > 1:
        raise RuntimeError(
            "govern.testing.cluster needs a virtual clock: take pytest-trio's autojump_clock fixture in the test, or run it with"
            " govern.testing.simulate"
        )
    own_keys = {name: {**given, **keys} for name, given in cluster_keys(nodes, usual_candidates(nodes)).items()}
    body_error: BaseException | None = None
    try:
        with install(Scheduler(seed)):
            async with open_world(seed) as world:
                made = Cluster(world, own_keys)
                await made._begin()
                async with made.connect("test") as registry:
                    made.registry = registry
                    try:
                        yield made
                    except BaseException as error:  # raised again below, outside of every nursery and so of every group
                        body_error = error
    except BaseExceptionGroup as group:  # of a node or of a program that `run` started; the block's own is in `body_error`
        raise alone(group) from None
    if body_error is not None:
        raise body_error
