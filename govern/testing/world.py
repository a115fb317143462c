"""A simulated world: machines, their disks, nodes that die in every way and come back, clients that live and die.

A node is a factory plus a disk: `start` runs it, `crash` takes the power away, `kill` is SIGKILL, `stop` is a polite end, `pause` is
SIGSTOP; `start` brings it back on what the disk kept. A client is a program that runs on a machine of its own until it ends or is killed.

W1  Every way to die fences first and cancels second: the network and the disk refuse the dying process before its tasks are cancelled,
    so that no cleanup of a dead process has an effect on anybody. Only `stop` lets a process say its last words.
W2  A machine has at most one process. What runs in it carries the machine's name as its process (`scheduler.process`), so that it can be
    paused as one.
W3  All chance is derived from the seed and a name, one generator per life of a machine.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import trio

from ..actors.node import Node, open_node
from ..config import build_config
from ..environment import Environment, SimulatedClock
from ..errors import GovernError
from ..net.sim import SimNetwork
from ..storage.sim import SimFiles, SimStorage
from .run import alone
from .scheduler import installed, process

PORT = 7400
PEER_PORT = 7401
CANDIDATES_MAX = 5
Program = Callable[[Environment], Awaitable[None]]


def node_name(node_id: int) -> str:
    """The machine of a node."""
    return f"node{node_id}"


def usual_candidates(nodes: int) -> int:
    """How many of so many nodes are candidates: the first few, an odd number, five at most."""
    return min(nodes - (nodes % 2 == 0), CANDIDATES_MAX)


def cluster_keys(nodes: int, candidates: int) -> dict[str, dict[str, object]]:
    """The keys of each node of a cluster, by the name of its machine. The first nodes are the candidates; a node that is alone has no
    peers."""
    if nodes == 1:
        return {node_name(1): {}}
    peers = {node_id: f"{node_name(node_id)}:{PEER_PORT}" for node_id in range(1, candidates + 1)}
    return {
        node_name(node_id): {
            "node_id": node_id,
            "peers": peers,
            "peer_listen": f"0.0.0.0:{PEER_PORT}",
            "advertise": node_name(node_id),
            "candidate": node_id in peers,
        }
        for node_id in range(1, nodes + 1)
    }


@attrs.define(eq=False)
class Machine:
    """One machine: its disk, and whatever runs on it now."""

    name: str
    disk: SimStorage | None
    files: SimFiles = attrs.field(factory=SimFiles)
    clock: SimulatedClock = attrs.field(factory=SimulatedClock)
    boots: int = 0
    node: Node | None = None
    failure: GovernError | None = None
    """Why the process ended by itself, when it did: a failed or full disk, say."""
    may_fail: bool = False
    """Whether a node may end by itself; otherwise that ends the whole simulation."""
    paused: bool = False
    scope: trio.CancelScope | None = None
    gone: trio.Event = attrs.field(factory=trio.Event)

    @property
    def running(self) -> bool:
        """Whether a process runs on it, a paused one included."""
        return self.scope is not None and not self.gone.is_set()

    @property
    def dying(self) -> bool:
        """Whether its process was ended, and its last task is still on its way out."""
        return self.running and self.scope is not None and self.scope.cancel_called


class World:
    """Everything in one simulated run; `nursery` holds every process."""

    def __init__(self, seed: object, nursery: trio.Nursery, network: SimNetwork) -> None:
        self.seed = seed
        self.network = network
        self.random = random.Random(f"{seed}/scenario")
        self.machines: dict[str, Machine] = {}
        self._nursery = nursery

    def __repr__(self) -> str:
        return f"<World seed={self.seed} machines={len(self.machines)}>"

    def machine(self, name: str, *, memory: bool = False) -> Machine:
        """The machine of that name, made when it is new; with a disk unless `memory`."""
        if name not in self.machines:
            disk = None if memory else SimStorage(random.Random(f"{self.seed}/{name}/disk"), name=name)
            self.machines[name] = Machine(name, disk)
        return self.machines[name]

    def environment(self, machine: Machine) -> Environment:
        """The doors of the present life of a machine."""
        return Environment(
            network=self.network.host(machine.name),
            random=random.Random(f"{self.seed}/{machine.name}/{machine.boots}"),
            clock=machine.clock,
            storage=machine.disk,
            files=machine.files,
        )

    # --- nodes --------------------------------------------------------------------------------------------------------------

    async def start(self, name: str = "node1", *, memory: bool = False, **keys: object) -> Node:
        """Start (or restart) a node and wait until it is ready; one with peers does not wait for them. `keys` are configuration keys.

        Raises what `open_node` raises when it does not become ready; nothing runs on the machine then."""
        machine = self.machine(name, memory=memory)
        assert not machine.running, f"a process runs on {name} already"
        self._begin_life(machine)
        try:
            await self._nursery.start(self._run_node, machine, keys)
        except BaseExceptionGroup as group:
            raise alone(group) from None
        if machine.node is None:  # it died again between being ready and this line
            raise machine.failure or RuntimeError(f"{name} did not start: it was ended meanwhile")
        return machine.node

    def _begin_life(self, machine: Machine) -> None:
        machine.boots += 1
        machine.failure = None
        machine.gone = trio.Event()
        machine.scope = trio.CancelScope()

    async def _run_node(
        self, machine: Machine, keys: dict[str, object], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        process.set(machine.name)
        scope = machine.scope
        assert scope is not None
        settings = {"listen": f"0.0.0.0:{PORT}", "insecure": True, "segment_bytes": 64 * 1024, "snapshot_bytes": 64 * 1024, **keys}
        ready = False
        try:
            with scope:
                async with open_node(build_config(("scenario", settings)), environment=self.environment(machine)) as node:
                    machine.node = node
                    ready = True
                    task_status.started()
                    await trio.sleep_forever()
        except GovernError as error:
            if not scope.cancel_called:  # the last words of a process that is gone are of no interest
                machine.failure = error
                self._fence(machine)
                if not (ready and machine.may_fail):
                    raise
        finally:
            machine.node = None
            machine.gone.set()
        if not ready:
            task_status.started()

    def _fence(self, machine: Machine) -> None:
        """The process is gone: its connections are reset by its kernel, what it wrote stays in the page cache (W1)."""
        self.network.crash(machine.name)
        if machine.disk is not None:
            machine.disk = machine.disk.kill()

    async def crash(self, name: str = "node1", *, silent: bool = False) -> None:
        """The power goes: what was not synced may be lost. With `silent` nobody is told: no reset leaves the machine."""
        self.cut_power(name, silent=silent)
        await self._end(self.machines[name])

    def cut_power(self, name: str = "node1", *, silent: bool = False) -> None:
        """As `crash`, from inside of an operation of its disk: it does not wait for the last task to end."""
        machine = self.machines[name]
        self.network.crash(name, silent=silent)
        if machine.disk is not None:
            machine.disk = machine.disk.crash()
        if machine.scope is not None:
            machine.scope.cancel()

    async def kill(self, name: str = "node1") -> None:
        """SIGKILL: the process is gone, the machine lives and keeps what was written."""
        self.end_process(name)
        await self._end(self.machines[name])

    def end_process(self, name: str = "node1") -> None:
        """As `kill`, from inside of an operation of its disk: it does not wait for the last task to end."""
        machine = self.machines[name]
        self._fence(machine)
        if machine.scope is not None:
            machine.scope.cancel()

    async def stop(self, name: str = "node1") -> None:
        """An orderly stop."""
        machine = self.machines[name]
        await self._end(machine)
        if machine.disk is not None:
            machine.disk = machine.disk.kill()

    def wipe(self, name: str = "node1") -> None:
        """The disk of a machine on which nothing runs is empty."""
        self.roll_back({}, name)

    def roll_back(self, image: Mapping[str, bytes], name: str = "node1") -> None:
        """The disk of a machine on which nothing runs is as it was when `disk.image()` was taken."""
        machine = self.machines[name]
        assert not machine.running, f"a process runs on {name}"
        assert machine.disk is not None, f"{name} has no disk"
        machine.disk.restore(image)

    def pause(self, name: str = "node1") -> None:
        """SIGSTOP: no task of the process makes a step until `resume`; its kernel goes on to take what arrives."""
        installed().freeze(name)
        self.machines[name].paused = True

    def resume(self, name: str = "node1") -> None:
        """SIGCONT; nothing for a process that is not paused."""
        if self.machines[name].paused:
            self.machines[name].paused = False
            installed().thaw(name)

    async def _end(self, machine: Machine) -> None:
        self.resume(machine.name)
        if machine.scope is not None:
            machine.scope.cancel()
            await machine.gone.wait()

    # --- clients ------------------------------------------------------------------------------------------------------------

    async def run_client(self, name: str, program: Program) -> Machine:
        """Run a program on a machine of its own until it returns or `kill_client`."""
        machine = self.machine(name, memory=True)
        assert not machine.running, f"a process runs on {name} already"
        self._begin_life(machine)
        await self._nursery.start(self._run_program, machine, program)
        return machine

    async def _run_program(self, machine: Machine, program: Program, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        process.set(machine.name)
        scope = machine.scope
        assert scope is not None
        task_status.started()
        try:
            with scope:
                await program(self.environment(machine))
        finally:
            machine.gone.set()

    async def kill_client(self, name: str) -> None:
        """SIGKILL: nothing is said, the machine resets its connections."""
        self.network.crash(name)
        await self._end(self.machines[name])


@asynccontextmanager
async def open_world(seed: object, *, delay_seconds_max: float = 0.002, window_bytes: int = 64 * 1024) -> AsyncIterator[World]:
    """A world with a running network; leaving it ends everything that still runs. Segments take up to `delay_seconds_max`, and at most
    `window_bytes` of each direction of a connection are under way."""
    network = SimNetwork(seed, delay_seconds_max=delay_seconds_max, window_bytes=window_bytes)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        world = World(seed, nursery, network)
        try:
            yield world
        finally:
            for name in world.machines:
                world.resume(name)  # a process that stands still could not end
        nursery.cancel_scope.cancel()
