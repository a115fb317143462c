"""A node dies at a chosen I/O operation of its disk, under a workload of 200 operations, and starts again.

The workload is one client that registers, changes and removes, one operation after the other, with values large enough to fill segments
and to cause snapshots. It is run once without a crash to count the operations of the disk; then once per operation. The shadow judges
every state that is recovered: all that was committed is there, nothing else is but what had been logged, and the client ends up with
just what it was told.
"""

from __future__ import annotations

import random

import trio

import govern
from govern.environment import Environment
from govern.storage.sim import Operation
from govern.testing import simulate
from govern.testing.world import PORT, World, open_world

from .checkers import Violation
from .checkers.shadow import Shadow

OPERATIONS = 200
INSTANCES = 5
PADDING = "x" * 1500
SIZE = 64 * 1024
"""Of a segment, and of the log after which there is a snapshot."""


def crash_at(number: int, *, power: bool) -> int:
    """Let the node die at that operation of its disk, 0 for never; returns how many operations there were in all."""
    return simulate(number, _play, number, power, horizon=600).result


async def _play(seed: int, number: int, power: bool) -> int:
    violations: list[Violation] = []
    async with open_world("crash points") as world:
        shadow = Shadow(world, violations.append)
        with shadow.watch():
            finished = trio.Event()

            async def program(environment: Environment) -> None:
                await _work(environment, random.Random(1), finished)

            disk = world.machine("node1").disk
            assert disk is not None
            disk.before = lambda operation: _die(world, operation, number, power)
            world.machines["node1"].may_fail = True
            await _start(world)
            await world.run_client("c1", program)
            while not finished.is_set():
                await trio.sleep(0.25)
                if world.machines["node1"].node is None:
                    await _start(world)
                shadow.sweep()
            await trio.sleep(1.0)
            shadow.end()
            node = world.machines["node1"].node
            assert node is not None
            node.validate()
            assert node.status()["instances"] == INSTANCES, node.status()
    if violations:
        raise violations[0]
    disk = world.machines["node1"].disk
    assert disk is not None
    return disk.operations


def _die(world: World, operation: Operation, number: int, power: bool) -> None:
    if operation.number == number:
        if power:
            world.cut_power("node1")
        else:
            world.end_process("node1")


async def _start(world: World) -> None:
    """Start until it serves: the crash may come while it loads."""
    while world.machines["node1"].node is None:
        if world.machines["node1"].running:
            await world.machines["node1"].gone.wait()
        try:
            await world.start("node1", segment_bytes=SIZE, snapshot_bytes=SIZE)
        except (govern.GovernError, RuntimeError):
            await trio.sleep(0.1)


async def _work(environment: Environment, chance: random.Random, finished: trio.Event) -> None:
    """The workload; at its end every instance is registered."""
    async with govern.connect(f"node1:{PORT}", environment=environment, timeout=60) as registry, trio.open_nursery() as nursery:
        held: dict[int, tuple[govern.Registration, trio.Event, trio.Event]] = {}

        async def hold(number: int, task_status: trio.TaskStatus[govern.Registration]) -> None:
            left, gone = trio.Event(), trio.Event()
            async with registry.register("orders", id=f"i{number}", port=1, metadata={"p": PADDING}) as registration:
                held[number] = (registration, left, gone)
                task_status.started(registration)
                await left.wait()
                await registration.deregister()
            gone.set()

        for done in range(OPERATIONS):
            number = done % INSTANCES if done >= OPERATIONS - INSTANCES else chance.randrange(INSTANCES)
            if number not in held:
                await nursery.start(hold, number)
            elif done < OPERATIONS - INSTANCES and chance.random() < 0.3:
                _, left, gone = held.pop(number)
                left.set()
                await gone.wait()
            else:
                await held[number][0].update(metadata={"p": PADDING, "n": str(done)})
        finished.set()
        await trio.sleep_forever()
