"""What goes wrong in the fault phase of a run, and that it ends.

One task makes the faults of the node, one those of the network and the clients; so a fault of one kind meets faults of the others, and a
node that is down is never crashed again. Every fault is in the log of the run. Each task finishes what it began when the phase is over.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.lowlevel

from govern.errors import GovernError
from govern.storage.sim import Operation, SimStorage
from govern.testing.world import World

from .checkers.expiry import Expiry
from .columns import Columns
from .options import CLIENT_FAULTS, NETWORK_FAULTS, NODE_FAULTS, Options
from .workload import Workload

NODE = "node1"
RETRY_SECONDS = 0.5
DYING_SECONDS_MAX = 7.0
FREE_BYTES_WHEN_FULL = 600


class Nemesis:
    """The one who breaks things. `keys` are the configuration keys of every life of the node."""

    def __init__(self, world: World, options: Options, workload: Workload, expiry: Expiry, columns: Columns, keys: dict[str, Any]) -> None:
        self.counts: dict[str, int] = {}
        self._world = world
        self._options = options
        self._workload = workload
        self._expiry = expiry
        self._columns = columns
        self._keys = keys
        self._until = 0.0
        self._faults: dict[str, Callable[[random.Random], Awaitable[None]]] = {
            "power": self._power,
            "power in silence": self._power_in_silence,
            "kill": self._kill,
            "stop": self._stop,
            "pause": self._pause,
            "crash in an operation": self._crash_in_operation,
            "input/output error": self._input_output_error,
            "disk full": self._disk_full,
            "slow disk": self._slow_disk,
            "hang": self._hang,
            "cut": self._cut,
            "partition": self._partition,
            "one way": self._one_way,
            "slow": self._slow,
            "clog": self._clog,
            "hold": self._hold,
            "isolate": self._isolate,
            "client killed": self._kill_client,
            "client paused": self._pause_client,
        }

    @property
    def _disk(self) -> SimStorage:
        disk = self._world.machines[NODE].disk
        assert disk is not None
        return disk

    async def run(self, until: float) -> None:
        """Break things until that virtual time; returns when the last fault has ended and the node is up."""
        self._until = until
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._go_on, "node", [fault for fault in self._options.faults if fault in NODE_FAULTS])
            nursery.start_soon(self._go_on, "rest", [fault for fault in self._options.faults if fault in (*NETWORK_FAULTS, *CLIENT_FAULTS)])
        with self._expiry.excused():
            self._world.network.heal()
            await self._bring_back()

    async def _go_on(self, name: str, faults: list[str]) -> None:
        chance = random.Random(f"{self._options.seed}/nemesis/{name}")
        while faults:
            await trio.sleep(chance.expovariate(1 / self._options.seconds_between_faults))
            if trio.current_time() >= self._until:
                return
            fault = chance.choice(faults)
            self.counts[fault] = self.counts.get(fault, 0) + 1
            self._columns.add(NODE, f"! {fault}")
            with self._expiry.excused():
                await self._faults[fault](chance)
                if name == "node":
                    await self._bring_back()
            self._columns.add(NODE, f"! {fault}: over")

    async def _bring_back(self) -> None:
        """Start the node again when it is down, for whatever reason; a disk that fails at the start is tried again."""
        machine = self._world.machines[NODE]
        while True:
            if machine.dying:
                await machine.gone.wait()
            if machine.node is not None:
                return
            try:
                await self._world.start(NODE, **self._keys)
                self._columns.add(NODE, f"* ready, life {machine.boots}")
            except GovernError as error:
                self._columns.add(NODE, f"* cannot start: {error}")
                self._disk.fails = None
                await trio.sleep(RETRY_SECONDS)

    # --- the node -------------------------------------------------------------------------------------------------------------

    async def _power(self, chance: random.Random) -> None:
        await self._world.crash(NODE)
        await trio.sleep(chance.choice((0.0, 0.3, chance.uniform(0.0, 8.0))))

    async def _power_in_silence(self, chance: random.Random) -> None:
        await self._world.crash(NODE, silent=True)
        await trio.sleep(chance.choice((0.0, 0.3, chance.uniform(0.0, 8.0))))

    async def _kill(self, chance: random.Random) -> None:
        await self._world.kill(NODE)
        await trio.sleep(chance.choice((0.0, 0.3, chance.uniform(0.0, 8.0))))

    async def _stop(self, chance: random.Random) -> None:
        await self._world.stop(NODE)
        await trio.sleep(chance.choice((0.0, 0.3, chance.uniform(0.0, 8.0))))

    async def _pause(self, chance: random.Random) -> None:
        self._world.pause(NODE)
        await trio.sleep(chance.choice((0.2, 1.5, chance.uniform(0.0, 12.0))))
        self._world.resume(NODE)

    async def _crash_in_operation(self, chance: random.Random) -> None:
        """The power goes, or the process is killed, just before one of the next operations of the disk."""
        left = chance.randint(1, 12)

        def before(operation: Operation) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._columns.add(NODE, f"! the power goes at {operation.kind} of {operation.name}")
                self._world.cut_power(NODE)

        disk = self._disk
        disk.before = before
        with trio.move_on_after(5.0):
            await self._world.machines[NODE].gone.wait()
        self._disk.before = None

    async def _input_output_error(self, chance: random.Random) -> None:
        left = chance.randint(1, 12)

        def fails(operation: Operation) -> bool:
            nonlocal left
            left -= operation.kind in ("write", "sync", "create", "rename", "sync directory", "allocate")
            return left <= 0

        self._disk.fails = fails
        with trio.move_on_after(5.0):
            await self._world.machines[NODE].gone.wait()
        self._disk.fails = None
        with trio.move_on_after(DYING_SECONDS_MAX):  # it may have met the error just now, and be on its way out
            await self._world.machines[NODE].gone.wait()

    async def _disk_full(self, chance: random.Random) -> None:
        self._disk.capacity_bytes = self._disk.used_bytes + chance.choice((0, FREE_BYTES_WHEN_FULL))
        await trio.sleep(chance.uniform(0.5, 8.0))
        self._disk.capacity_bytes = None
        await trio.sleep(1.0)

    async def _slow_disk(self, chance: random.Random) -> None:
        self._disk.latency_seconds = (0.0, chance.choice((0.005, 0.1, 1.0)))
        await trio.sleep(chance.uniform(0.5, 8.0))
        self._disk.latency_seconds = (0.0, 0.0)

    async def _hang(self, chance: random.Random) -> None:
        self._disk.hang()
        await trio.sleep(chance.uniform(0.2, 8.0))
        if chance.random() < 0.3:
            await self._world.crash(NODE)
        self._disk.unhang()

    # --- the network and the clients ----------------------------------------------------------------------------------------------

    def _some(self, chance: random.Random) -> list[str]:
        names = self._workload.names
        return chance.sample(names, chance.choice((1, 1, 2, len(names))))

    async def _last(self, chance: random.Random) -> None:
        await trio.sleep(chance.choice((0.1, 1.0, chance.uniform(0.0, 12.0))))

    async def _cut(self, chance: random.Random) -> None:
        for name in self._some(chance):
            self._world.network.cut(name)
        await trio.lowlevel.checkpoint()

    async def _partition(self, chance: random.Random) -> None:
        self._world.network.partition(NODE, self._some(chance))
        await self._last(chance)
        self._world.network.heal()

    async def _one_way(self, chance: random.Random) -> None:
        names = self._some(chance)
        if chance.random() < 0.5:
            self._world.network.partition_oneway(NODE, names)
        else:
            self._world.network.partition_oneway(names, NODE)
        await self._last(chance)
        self._world.network.heal()

    async def _slow(self, chance: random.Random) -> None:
        for name in self._some(chance):
            self._world.network.slow(name, NODE, chance.choice((0.05, 0.5, 2.0)))
        await self._last(chance)
        self._world.network.heal()

    async def _clog(self, chance: random.Random) -> None:
        for name in self._some(chance):
            self._world.network.clog(name, NODE, chance.choice((100.0, 1000.0, 20_000.0)))
        await self._last(chance)
        self._world.network.heal()

    async def _hold(self, chance: random.Random) -> None:
        names, both = self._some(chance), chance.random() < 0.5
        for name in names:
            self._world.network.hold(name, NODE)
            if both:
                self._world.network.hold(NODE, name)
        await self._last(chance)
        for name in names:
            self._world.network.release(name, NODE)
            self._world.network.release(NODE, name)

    async def _isolate(self, chance: random.Random) -> None:
        self._world.network.isolate(chance.choice([NODE, *self._workload.names]))
        await self._last(chance)
        self._world.network.heal()

    async def _kill_client(self, chance: random.Random) -> None:
        name = chance.choice(self._workload.names)
        await self._world.kill_client(name)
        await self._last(chance)
        await self._workload.start(name)

    async def _pause_client(self, chance: random.Random) -> None:
        name = chance.choice(self._workload.names)
        self._world.pause(name)
        await self._last(chance)
        self._world.resume(name)
