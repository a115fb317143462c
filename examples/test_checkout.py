"""Test your own service against a registry that is sick, in milliseconds.

    pytest examples/test_checkout.py

`Checkout` is the service under test: it sends each order to an instance of `payments`, and parks orders while there is none. The tests
ask what its users would ask: does it go on when the registry crashes? When a payment instance is killed? When it is cut off?
The registry is the real one; its machines, network, disk and clock are simulated, and every run with the same seed is the same.
"""

from __future__ import annotations

import trio

import govern
import govern.testing
from govern.environment import Environment


class Checkout:
    """Our service: it knows where payments are from a live view of the registry."""

    def __init__(self, payments: govern.LiveView) -> None:
        self._payments = payments
        self.parked: list[str] = []

    def order(self, name: str) -> str | None:
        """The payment instance that gets this order; None when it had to be parked."""
        instance = self._payments.choose()
        if instance is None:
            self.parked.append(name)
            return None
        return instance.id


async def payment(environment: Environment) -> None:
    """A payment service on a machine of its own."""
    async with govern.connect("node1:7400", environment=environment) as registry, registry.register("payments", port=8000, id="p1"):
        await trio.sleep_forever()


async def wait_until_listed(payments: govern.LiveView) -> None:
    while not payments.instances:
        await payments.next_change()


async def test_checkout_goes_on_while_the_registry_is_down(autojump_clock: object) -> None:
    """The registry loses its power for a minute: no order is parked, and afterwards nothing has to be repaired."""
    async with govern.testing.cluster(seed=7) as cluster, cluster.registry.subscribe("payments") as payments:
        checkout = Checkout(payments)
        await cluster.run("payment-machine", payment)
        await wait_until_listed(payments)
        await cluster.crash("node1")
        for number in range(60):
            assert checkout.order(f"order {number}") == "p1"
            await trio.sleep(1)
        await cluster.restart("node1")
        await cluster.converged()
        assert checkout.order("one more") == "p1"
        assert checkout.parked == []


async def test_checkout_parks_orders_when_payments_died(autojump_clock: object) -> None:
    """A killed payment instance is gone after five seconds, and orders are parked until there is one again."""
    async with govern.testing.cluster(seed=7) as cluster, cluster.registry.subscribe("payments") as payments:
        checkout = Checkout(payments)
        await cluster.run("payment-machine", payment)
        await wait_until_listed(payments)
        await cluster.kill("payment-machine")
        await trio.sleep(5)
        assert checkout.order("during the outage") is None
        await cluster.run("payment-machine", payment)
        await wait_until_listed(payments)
        assert checkout.order("afterwards") == "p1"
        assert checkout.parked == ["during the outage"]


async def test_checkout_knows_that_its_list_is_old(autojump_clock: object) -> None:
    """Cut off from the registry it goes on with what it knew, and can tell."""
    async with govern.testing.cluster(seed=7) as cluster, cluster.registry.subscribe("payments") as payments:
        await cluster.run("payment-machine", payment)
        await wait_until_listed(payments)
        cluster.partition("test", "node1")
        await trio.sleep(10)
        assert payments.stale
        assert Checkout(payments).order("on an island") == "p1"
        cluster.heal()
        await cluster.converged()
