"""The backup of a node that is alone, put in its place again: what operators are told to do (docs/operations.md) is what works."""

from __future__ import annotations

import pytest
import trio

import govern
from govern.actors.metadata_log import fold_metadata
from govern.environment import Environment
from govern.storage.recover import force_new_cluster
from govern.testing import simulate
from govern.testing.world import PORT, World, open_world

from ..deep import seeds

BELIEVED_SECONDS = 12.0
"""A caller is back within two seconds, and holds back a list that looks older than its own for four; then it asks again each second."""


async def add(world: World, *names: str) -> None:
    """Register persistent instances, and go away."""

    async def program(environment: Environment) -> None:
        async with govern.connect(f"node1:{PORT}", timeout=60, environment=environment) as registry:
            for name in names:
                async with registry.register("orders", id=name, port=1, ephemeral=False):
                    pass
            done.set()

    done = trio.Event()
    await world.run_client(f"writer{len(world.machines)}", program)
    await done.wait()


async def a_backup_is_restored(seed: int) -> list[str]:
    """What a caller sees in the end that was there all the time."""
    async with open_world(seed) as world:
        shown: list[str] = []

        async def watch(environment: Environment) -> None:
            async with (
                govern.connect(f"node1:{PORT}", timeout=60, environment=environment) as registry,
                registry.subscribe("orders") as view,
            ):
                shown[:] = [instance.id for instance in view.instances]
                async for _ in view:
                    shown[:] = [instance.id for instance in view.instances]

        await world.start()
        await add(world, "before")
        await world.run_client("caller", watch)
        await world.stop()
        machine = world.machines["node1"]
        assert machine.disk is not None
        image = machine.disk.image()
        await world.start()
        await add(world, *(f"lost{number}" for number in range(world.random.randint(1, 3))))
        while not shown or shown[-1] == "before":
            await trio.sleep(0.1)
        await world.stop()
        world.roll_back(image)
        await force_new_cluster(machine.disk, node_id=1, fold=fold_metadata)
        await world.start()
        await add(world, *(f"new{number}" for number in range(world.random.randint(0, 4))))
        await trio.sleep(BELIEVED_SECONDS)
        node = world.machines["node1"].node
        assert node is not None
        assert shown == sorted(node._shard.entries(govern.ServiceKey("default", "orders")))
        return shown


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_a_restored_backup_is_what_callers_see(seed: int) -> None:
    """A copy that is just started gives once more the numbers that the lives after it had given, and what a caller knows of those passes
    for current. `recover` moves all numbers on."""
    shown = simulate(seed, a_backup_is_restored, horizon=120).result
    assert "before" in shown
    assert not [name for name in shown if name.startswith("lost")]
