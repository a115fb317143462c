"""Processes that stand still, and every way to die meanwhile."""

from __future__ import annotations

import pytest
import trio

import govern
from govern.environment import Environment
from govern.testing import simulate
from govern.testing.world import PORT, World, open_world


async def hold(environment: Environment) -> None:
    async with govern.connect(f"node1:{PORT}", environment=environment) as registry, registry.register("orders", port=1, id="o1"):
        await trio.sleep_forever()


async def start(world: World) -> govern.Node:
    node = await world.start()
    await world.run_client("c1", hold)
    await trio.sleep(2.05)
    assert node.status()["instances"] == 1
    return node


def test_a_paused_node_expires_nobody() -> None:
    """Eight seconds under SIGSTOP, and nothing is held against the clients; twice the same."""

    async def scenario(seed: int) -> int:
        async with open_world(seed) as world:
            node = await start(world)
            ticks = node._sessions.now_us
            world.pause()
            await trio.sleep(8)
            assert node._sessions.now_us == ticks, "a paused process has lived"
            world.resume()
            await trio.sleep(6)
            return int(node.status()["instances"])

    first, second = simulate(3, scenario), simulate(3, scenario)
    assert first == second
    assert first.result == 1


def test_a_paused_client_expires_and_comes_back() -> None:
    """Its kernel lives, it does not: after its ttl it is gone, and when it goes on it registers again."""

    async def scenario(seed: int) -> list[int]:
        async with open_world(seed) as world:
            node = await start(world)
            world.pause("c1")
            await trio.sleep(8)
            paused = node.status()["instances"]
            world.resume("c1")
            await trio.sleep(4)
            return [paused, node.status()["instances"]]

    assert simulate(4, scenario).result == [0, 1]


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        ("kill", "paused"),
        ("crash", "paused"),
        ("stop", "paused"),
        ("kill", "hanging"),
        ("crash", "hanging"),
        ("kill", "paused and hanging"),
        ("crash", "paused and hanging"),
    ],
)
def test_a_process_ends_whatever_state_it_is_in(verb: str, state: str) -> None:
    """Paused or waiting for a disk that does not answer: it is gone, and starts again. An orderly stop lets a paused process go on."""

    async def scenario(seed: int) -> None:
        async with open_world(seed) as world:
            await start(world)
            disk = world.machines["node1"].disk
            assert disk is not None
            if "hanging" in state:
                disk.hang()
            await world.run_client("c2", hold)  # somebody writes
            await trio.sleep(1)
            if "paused" in state:
                world.pause()
            began = trio.current_time()
            await getattr(world, verb)()
            assert trio.current_time() - began < 2.0
            disk = world.machines["node1"].disk
            assert disk is not None
            disk.unhang()
            node = await world.start()
            await trio.sleep(5)
            assert node.status()["instances"] == 1

    simulate(6, scenario, horizon=300)


def test_a_world_ends_while_a_process_stands_still() -> None:
    """And what the scenario raised comes out."""

    async def scenario(seed: int) -> None:
        async with open_world(seed) as world:
            await start(world)
            world.pause("c1")
            world.pause()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        simulate(1, scenario)
