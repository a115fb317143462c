"""A small world for simulated scenarios: machines, their disks, nodes that crash and come back, clients that live and die.

A node is a factory plus a disk: `start` runs it, `crash` takes the power away (the network and the disk are fenced first, then the
tasks are cancelled, so that no cleanup of a dead process has an effect), and `start` brings it back on what the disk kept. A client
is a program that runs on a machine of its own until it ends or is killed.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio

import govern
from govern.actors.node import Node, open_node
from govern.config import build_config
from govern.environment import Environment, SimulatedClock
from govern.net.sim import SimNetwork
from govern.storage.sim import SimStorage

PORT = 7400
Program = Callable[[Environment], Awaitable[None]]


@attrs.define(eq=False)
class Machine:
    """One machine: its disk, and whatever runs on it now."""

    name: str
    disk: SimStorage | None
    boots: int = 0
    node: Node | None = None
    scope: trio.CancelScope | None = None
    gone: trio.Event = attrs.field(factory=trio.Event)


class World:
    """Everything in one simulated run; `nursery` holds every program."""

    def __init__(self, seed: int, nursery: trio.Nursery, network: SimNetwork) -> None:
        self.seed = seed
        self.network = network
        self.random = random.Random(f"{seed}/scenario")
        self.machines: dict[str, Machine] = {}
        self._nursery = nursery

    def machine(self, name: str, *, memory: bool = False) -> Machine:
        if name not in self.machines:
            disk = None if memory else SimStorage(random.Random(f"{self.seed}/{name}/disk"), name=name)
            self.machines[name] = Machine(name, disk)
        return self.machines[name]

    def environment(self, machine: Machine) -> Environment:
        return Environment(
            network=self.network.host(machine.name),
            random=random.Random(f"{self.seed}/{machine.name}/{machine.boots}"),
            clock=SimulatedClock(),
            storage=machine.disk,
        )

    # --- nodes --------------------------------------------------------------------------------------------------------------

    async def start(self, name: str = "node1", *, memory: bool = False, **keys: object) -> Node:
        """Start (or restart) a node and wait until it is ready."""
        machine = self.machine(name, memory=memory)
        machine.boots += 1
        machine.gone = trio.Event()
        await self._nursery.start(self._run_node, machine, keys)
        assert machine.node is not None
        return machine.node

    async def _run_node(
        self, machine: Machine, keys: dict[str, object], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        scope = machine.scope = trio.CancelScope()
        settings = {"listen": f"0.0.0.0:{PORT}", "insecure": True, "segment_bytes": 64 * 1024, "snapshot_bytes": 64 * 1024, **keys}
        try:
            with scope:
                async with open_node(build_config(("scenario", settings)), environment=self.environment(machine)) as node:
                    machine.node = node
                    task_status.started()
                    await trio.sleep_forever()
        except govern.GovernError:
            if not scope.cancel_called:  # the last words of a node whose power is gone are of no interest
                raise
        finally:
            machine.node = None
            machine.gone.set()

    async def crash(self, name: str = "node1") -> None:
        """The power goes: what was not synced may be lost."""
        machine = self.machines[name]
        self.network.crash(name)
        if machine.disk is not None:
            machine.disk = machine.disk.crash()
        await self._end(machine)

    async def stop(self, name: str = "node1") -> None:
        """An orderly stop."""
        machine = self.machines[name]
        await self._end(machine)
        if machine.disk is not None:
            machine.disk = machine.disk.kill()

    async def _end(self, machine: Machine) -> None:
        assert machine.scope is not None
        machine.scope.cancel()
        await machine.gone.wait()

    # --- clients ------------------------------------------------------------------------------------------------------------

    async def run_client(self, name: str, program: Program) -> Machine:
        """Run a program on a machine of its own until it returns or `kill_client`."""
        machine = self.machine(name, memory=True)
        machine.boots += 1
        machine.gone = trio.Event()
        await self._nursery.start(self._run_program, machine, program)
        return machine

    async def _run_program(self, machine: Machine, program: Program, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        scope = machine.scope = trio.CancelScope()
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
async def open_world(seed: int) -> AsyncIterator[World]:
    """A world with a running network; leaving it ends everything that still runs."""
    network = SimNetwork(seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield World(seed, nursery, network)
        nursery.cancel_scope.cancel()
