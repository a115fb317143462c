"""Links between real processes that are cut: a node that is alone, a way that works in one direction, and a link that comes and goes.

Whatever is cut, no term has two controllers, terms do not grow but by the elections that are needed, programs of the nodes that are not
concerned notice nothing, and when it is mended everything is well again.

A controller that is not heard for a second is replaced, and it does not matter to the others whether a link or the machine is to blame. So
"no election" can be claimed only of a time in which the processes did run: that is judged by what `Watch.stood_still` says of the stretch.
That nobody is without a lease and no list is stale is claimed of any time: a machine that stands still for three seconds fails here.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import combinations, permutations

import pytest
import trio

from govern.client import connect
from govern.core.table import Table

from .cluster import Cluster, Network, Watch, names_on, watching
from .harness import Programs, wait_until
from .undisturbed import STILL_SECONDS_MAX, Undisturbed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who dials is read from /proc")

FLAPS = 5
FLAPS_TRIED_MAX = 20
FLAP_SECONDS = 2.0
"""Longer than a candidate waits before it stands for election."""
CUT_SECONDS = 6.0
"""Longer than the silence after which a link is given up (2 s), a lease (4 s) and the silence after which a node is given up (5 s)."""
TERMS_MAX = 2
"""By so much a term may grow when an election is needed: by one, and by one more when candidates crossed."""
PAUSE_SECONDS = 0.5


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
            await wait_whole(watch, network)
            async with connect(cluster.where()) as registry:
                table = await registry.table()
            yield cluster, watch, network, table
        nursery.cancel_scope.cancel()


def linked(watch: Watch, node_id: int, other: int) -> bool:
    """Whether a node says that it has a link to another one."""
    return other in (watch.says(node_id, "links") or [])


async def wait_whole(watch: Watch, network: Network) -> None:
    """Wait until all is well, which it may be while a single way is cut, and until all links are there and no log is behind: a candidate
    whose log is behind could not win the election that must not be."""
    await watch.wait_well()

    def is_whole() -> bool:
        office = watch.controller()
        rows = watch.says(office, "candidates") if office is not None else [{"behind": None}]
        return all(row["behind"] == 0 for row in rows) and all(linked(watch, *two) for two in permutations(network.ids, 2))

    await wait_until(is_whole, "links and logs to be whole again")


async def mend(watch: Watch, network: Network) -> None:
    """Everything goes everywhere again."""
    network.mend()
    await wait_whole(watch, network)


async def test_cut_links_make_no_second_controller(programs: Programs) -> None:
    """The controller is cut off: the others have a new one, it steps down, and its own services are served on. Then each way between the
    controller and another node is cut alone, and last the link between the two fails once: nobody notices."""
    async with three_apart(programs) as (cluster, watch, network, table):
        office = await watch.wait_controller()
        others = [node_id for node_id in cluster.ids if node_id != office]
        (name,) = names_on(table, office, 1)
        calm = Undisturbed(cluster, table)
        async with connect(cluster.where()) as registry, registry.register(name, port=1, ttl=2), registry.subscribe(name) as view:
            term = watch.term()
            async with calm.watched(*others):
                began = trio.current_time()
                network.isolate(office)
                found = await watch.wait_controller(*others)
                took = trio.current_time() - began
                settled = await calm.wait_settled(watch, began, took)
                await wait_until(lambda: watch.says(office, "role") == "candidate", "the one that is cut off to step down")
                await wait_until(lambda: watch.says(office, "fresh") is False, "the end of its lease")
                await wait_until(lambda: view.stale, "its services to be called stale")
                async with registry.register(name, port=2):
                    await wait_until(lambda: len(view.instances) == 2, "a registration on the node that is cut off")
                assert watch.says(office, "controller") is None
                assert watch.controller(*others) == found
                await mend(watch, network)
            calm.check_without_controller(watch, began, took, settled)
            assert watch.term() <= term + TERMS_MAX
            assert [instance.port for instance in view.instances] == [1]
        for first, second in ((found, office), (office, found)):
            await check_one_way(cluster, watch, network, table, first, second)
        await flap(watch, network, found, office)


async def check_one_way(cluster: Cluster, watch: Watch, network: Network, table: Table, first: int, second: int) -> None:
    """Nothing goes from one node to another for a while, everything back; one of the two is the controller. The third hears both and speaks
    to both: nobody is elected, nobody is without a lease, nobody is given up, and no program notices anything."""
    office, term = await watch.wait_controller(), watch.term()
    calm = Undisturbed(cluster, table, pause=PAUSE_SECONDS)
    async with calm.watched(*cluster.ids):
        began = trio.current_time()
        network.cut((first, second))
        await wait_until(lambda: not (linked(watch, first, second) or linked(watch, second, first)), "the link to be given up")
        await trio.sleep_until(began + CUT_SECONDS)
        await calm.wait_rounds()
        await wait_until(lambda: any(watch.controller(*two) for two in combinations(network.ids, 2)), "a controller of two at least")
        await mend(watch, network)
    calm.check_never_stale()
    print(f"nothing went from {first} to {second}, the slowest change took {calm.slowest():.3f} s")
    check_unmoved(watch, began, office, term)


def check_unmoved(watch: Watch, since: float, office: int, term: int) -> bool:
    """Since then every node had a lease and none was given up, and unless the processes stood still the controller and the term are the
    same. Whether these were judged."""
    for node_id in watch.states:
        assert watch.told(since, node_id, "fresh") == [True], (node_id, watch.stories(since))
    complaints = [text for node_id in watch.states for texts in watch.told(since, node_id, "degraded") for text in texts]
    assert not [text for text in complaints if "is down" in text], complaints
    still = watch.stood_still(since)
    print(f"node {office} is controller of term {term}; now it is {watch.controller()}, {watch.term()}; all stood still for {still:.2f} s")
    if still >= STILL_SECONDS_MAX:
        assert watch.term() <= term + TERMS_MAX, watch.stories(since)
        return False
    assert watch.term() == term, watch.stories(since)
    assert watch.told(since, office, "role") == ["controller"], watch.stories(since)
    return True


async def flap(watch: Watch, network: Network, first: int, second: int) -> bool:
    """A link fails for two seconds and works for two. Whether it was judged."""
    office, term = await watch.wait_controller(), watch.term()
    began = trio.current_time()
    network.cut((first, second), (second, first))
    await trio.sleep(FLAP_SECONDS)
    network.mend()
    await trio.sleep(FLAP_SECONDS)
    await mend(watch, network)
    return check_unmoved(watch, began, office, term)


@pytest.mark.deep
async def test_a_flapping_link_does_not_drive_terms_up(programs: Programs) -> None:
    """A link between the controller and another node that works two seconds and does not work for two: the third hears both, so there
    is no reason for elections. Then the link between the two others."""
    async with three_apart(programs) as (cluster, watch, network, _):
        office = await watch.wait_controller()
        one, two = (node_id for node_id in cluster.ids if node_id != office)
        for first, second in ((office, one), (one, two)):
            term, judged, tried = watch.term(), 0, 0
            while judged < FLAPS and tried < FLAPS_TRIED_MAX:
                judged += await flap(watch, network, first, second)
                tried += 1
            print(f"the link between {first} and {second} failed {tried} times: the term grew from {term} to {watch.term()}")
            if judged < FLAPS:
                pytest.skip(f"this machine stands still too often: of {tried} failures {judged} could be judged")


@pytest.mark.deep
@pytest.mark.parametrize("is_deaf", [True, False], ids=["deaf", "mute"])
async def test_a_controller_of_which_one_direction_is_cut(programs: Programs, is_deaf: bool) -> None:
    """Nothing reaches the controller any more, or nothing leaves it. The others have another one, and no program of theirs notices. It
    steps down, has no lease, and is given up in the end. One election is needed and no more, also while it is heard and when it is back."""
    async with three_apart(programs) as (cluster, watch, network, table):
        office, term = await watch.wait_controller(), watch.term()
        others = [node_id for node_id in cluster.ids if node_id != office]
        calm = Undisturbed(cluster, table)
        async with calm.watched(*others):
            began = trio.current_time()
            network.cut(*((other, office) if is_deaf else (office, other) for other in others))
            found = await watch.wait_controller(*others)
            took = trio.current_time() - began
            settled = await calm.wait_settled(watch, began, took)
            elected, then = watch.term(), trio.current_time()
            await wait_until(lambda: watch.says(office, "role") == "candidate", "the controller before to step down")
            await wait_until(lambda: watch.says(office, "fresh") is False, "the end of its lease")
            down = f"node {office} is down"
            await wait_until(
                lambda: any(down in text for text in watch.says(found, "degraded")), "the one that nobody hears to be given up"
            )
            for node_id in others:
                assert watch.told(then, node_id, "fresh") == [True], watch.stories(began)
            await mend(watch, network)
        calm.check_without_controller(watch, began, took, settled)
        still = watch.stood_still(then)
        print(f"term {term}, {elected} after the election of {took:.2f} s, {watch.term()} now; all stood still for {still:.2f} s")
        assert term < elected <= term + TERMS_MAX
        assert watch.term() == elected or still >= STILL_SECONDS_MAX, watch.stories(then)
        assert watch.controller() == found or still >= STILL_SECONDS_MAX, watch.stories(then)
