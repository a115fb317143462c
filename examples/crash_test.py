"""Your own service, tested against a crash of the registry: the power goes for a minute, and its customers notice nothing.

    python examples/crash_test.py          or: pytest examples/crash_test.py

No process, no port, no waiting: nodes, disks and the network are simulated, time jumps, and the same seed gives the same run. The code
under test is the code that you ship; it only gets its doors to the world, the `environment`, from outside.
"""

from __future__ import annotations

import random
import sys
from functools import partial

import trio

import govern
from govern.config import Config
from govern.environment import Environment, SimulatedClock
from govern.net.sim import SimNetwork
from govern.storage.sim import SimStorage
from govern.testing import simulate


class Shop:
    """The service under test: it sells as long as it knows a warehouse to send the order to."""

    def __init__(self) -> None:
        self.sold = 0
        self.refused = 0

    async def run(self, environment: Environment) -> None:
        async with govern.connect("registry:7400", environment=environment) as registry:
            async with registry.subscribe("warehouse") as warehouses, registry.register("shop", port=8080):
                while True:
                    if warehouses.choose() is not None:
                        self.sold += 1
                    else:
                        self.refused += 1
                    await trio.sleep(0.1)


async def run_warehouse(environment: Environment) -> None:
    async with govern.connect("registry:7400", environment=environment) as registry, registry.register("warehouse", port=9090):
        await trio.sleep_forever()


async def run_registry(environment: Environment, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """A node on its simulated disk, until its scope is cancelled."""
    with trio.CancelScope() as scope:
        async with govern.open_node(Config(listen="0.0.0.0:7400", insecure=True), environment=environment):
            task_status.started(scope)
            await trio.sleep_forever()


async def look_up_shops(environment: Environment) -> tuple[govern.Instance, ...]:
    async with govern.connect("registry:7400", environment=environment) as registry:
        return await registry.lookup("shop")


async def scenario(seed: int) -> Shop:
    network = SimNetwork(seed)

    def doors(machine: str, disk: SimStorage | None = None) -> Environment:
        return Environment(network=network.host(machine), random=random.Random(f"{seed} {machine}"), clock=SimulatedClock(), storage=disk)

    disk, shop = SimStorage(random.Random(seed)), Shop()
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        node = await nursery.start(partial(run_registry, doors("registry", disk)))
        nursery.start_soon(run_warehouse, doors("warehouse-1"))
        await trio.sleep(1)
        nursery.start_soon(shop.run, doors("shop-1"))
        await trio.sleep(10)
        before = await look_up_shops(doors("somebody"))
        assert [instance.host for instance in before] == ["shop-1"]

        network.crash("registry")  # the power goes: connections break, and what was not synced is lost
        disk = disk.crash()
        node.cancel()
        sold = shop.sold
        await trio.sleep(60)
        assert shop.sold >= sold + 600  # it sells on, from the view that it has

        await nursery.start(partial(run_registry, doors("registry", disk)))
        await trio.sleep(10)
        assert await look_up_shops(doors("somebody")) == before  # under the same lease: it was kept, and not made anew
        nursery.cancel_scope.cancel()
    return shop


def test_the_shop_sells_on_while_the_registry_is_down() -> None:
    outcome = simulate(1, scenario)
    assert outcome.result.refused == 0
    print(f"The registry was down for 60 of {outcome.simulated_seconds:.0f} simulated seconds.")
    print(f"The shop took {outcome.result.sold} orders, refused none, and was registered before and after under one lease.")


if __name__ == "__main__":
    if len(sys.argv) != 1:
        sys.exit("usage: python examples/crash_test.py")
    test_the_shop_sells_on_while_the_registry_is_down()
