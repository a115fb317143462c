"""Links between real processes that are cut: a node that is alone, a way that works in one direction, and a link that comes and goes.

Whatever is cut, no term has two controllers, terms do not run away, and when it is mended everything is well again.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from govern.client import connect
from govern.core.table import Table

from .cluster import Cluster, Network, Watch, names_on, watching
from .harness import Programs, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who dials is read from /proc")

FLAPS = 5
FLAP_SECONDS = 2.0
CUT_SECONDS = 6.0
TERMS_MAX = 2
"""By so much terms may grow when a link misbehaves: one election, and one more that crossed with it."""


@asynccontextmanager
async def three_apart(programs: Programs) -> AsyncIterator[tuple[Cluster, Watch, Network, Table]]:
    """A cluster of three that is well, and the network between its nodes."""
    network = Network((1, 2, 3))
    await network.open()
    cluster = Cluster(programs, links=network.ports)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run, cluster)
        await cluster.start(*cluster.ids)
        async with watching(cluster) as watch:
            await watch.wait_well()
            async with connect(cluster.where()) as registry:
                table = await registry.table()
            yield cluster, watch, network, table
        nursery.cancel_scope.cancel()


async def test_cut_links_make_no_second_controller(programs: Programs) -> None:
    """The controller is cut off: the others have a new one, it steps down, and its own services are served on. Then each way to and from
    another node is cut alone. Terms grow by no more than the elections need."""
    async with three_apart(programs) as (cluster, watch, network, table):
        office = await watch.wait_controller()
        others = [node_id for node_id in cluster.ids if node_id != office]
        (name,) = names_on(table, office, 1)
        async with connect(cluster.where()) as registry, registry.register(name, port=1, ttl=2), registry.subscribe(name) as view:
            term = watch.term()
            network.isolate(office)
            found = await watch.wait_controller(*others)
            await wait_until(lambda: watch.says(office, "role") == "candidate", "the one that is cut off to step down")
            await wait_until(lambda: watch.says(office, "fresh") is False, "the end of its lease")
            async with registry.register(name, port=2):
                await wait_until(lambda: len(view.instances) == 2, "a registration on the node that is cut off")
            assert watch.says(office, "controller") is None
            assert watch.controller(*others) == found
            network.mend()
            await watch.wait_well()
            assert watch.term() <= term + TERMS_MAX
            assert [instance.port for instance in view.instances] == [1]
            for first, second in ((found, office), (office, found)):
                await check_one_way(watch, network, first, second)
        assert watch.term() <= term + 3 * TERMS_MAX


async def check_one_way(watch: Watch, network: Network, first: int, second: int) -> None:
    """Nothing goes from one node to another for a while, everything back."""
    network.cut((first, second))
    await trio.sleep(CUT_SECONDS)
    third = next(node_id for node_id in network.ids if node_id not in (first, second))
    office = watch.controller(first, third) or watch.controller(second, third)
    print(f"nothing goes from {first} to {second}: the controller is node {office}, term {watch.term()}")
    network.mend()
    await watch.wait_well()


@pytest.mark.deep
async def test_a_flapping_link_does_not_drive_terms_up(programs: Programs) -> None:
    """A link between the controller and another node that works two seconds and does not work for two: the third hears both, so there
    is no reason for elections. Then the link between the two others."""
    async with three_apart(programs) as (cluster, watch, network, _):
        office = await watch.wait_controller()
        one, two = (node_id for node_id in cluster.ids if node_id != office)
        for first, second in ((office, one), (one, two)):
            term = watch.term()
            for _ in range(FLAPS):
                network.cut((first, second), (second, first))
                await trio.sleep(FLAP_SECONDS)
                network.mend()
                await trio.sleep(FLAP_SECONDS)
            await watch.wait_well()
            print(f"the link between {first} and {second} failed {FLAPS} times: the term grew from {term} to {watch.term()}")
            assert watch.term() <= term + TERMS_MAX
