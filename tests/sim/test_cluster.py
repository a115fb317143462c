"""`govern.testing.cluster`: each verb does what it says, the same seed is the same run, and wrong use is told in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio
from trio.testing import MockClock

import govern
import govern.testing
from govern.environment import Environment
from govern.testing import NotConverged, simulate


def is_stale(view: govern.LiveView) -> bool:
    return view.stale


def is_connected(cluster: govern.testing.Cluster) -> bool:
    return cluster.registry.connected


def ids(view: govern.LiveView) -> list[str]:
    return [instance.id for instance in view.instances]


async def test_a_list_outlives_a_crash(autojump_clock: MockClock) -> None:
    """While the node is down the view shows what was known, and says that it is stale; after the restart all agree again."""
    async with (
        govern.testing.cluster(seed=7) as cluster,
        cluster.registry.register("orders", port=8000, id="o1"),
        cluster.connect("shop") as shop,
        shop.subscribe("orders") as orders,
    ):
        await cluster.crash("node1")
        await trio.sleep(1)
        assert is_stale(orders)
        assert orders.choose() is not None
        await cluster.restart("node1")
        await cluster.converged()
        assert not is_stale(orders)
        assert ids(orders) == ["o1"]


async def serve(environment: Environment) -> None:
    async with govern.connect("node1:7400", environment=environment) as registry, registry.register("orders", port=8000, id="o1"):
        await trio.sleep_forever()


async def test_a_killed_instance_goes_and_a_paused_one_comes_back(autojump_clock: MockClock) -> None:
    """Five seconds after a kill the list is empty; a paused program registers again by itself when it goes on."""
    async with govern.testing.cluster(seed=1) as cluster, cluster.registry.subscribe("orders") as orders:
        await cluster.run("backend", serve)
        await orders.next_change()
        cluster.pause("backend")
        await trio.sleep(6)
        assert ids(orders) == []
        cluster.resume("backend")
        await trio.sleep(3)
        assert ids(orders) == ["o1"]
        await cluster.kill("backend")
        await trio.sleep(5)
        assert ids(orders) == []


@pytest.mark.parametrize("verb", ["partition", "isolate"])
async def test_a_partition_holds_until_it_is_healed(autojump_clock: MockClock, verb: str) -> None:
    """Behind a partition a client is stale and `converged` says so; afterwards it is not."""
    async with govern.testing.cluster() as cluster, cluster.connect("shop") as shop, shop.subscribe("orders") as orders:
        if verb == "partition":
            cluster.partition("shop", "node1")
        else:
            cluster.isolate("shop")
        with pytest.raises(NotConverged, match=r"not converged after 5 s: .* is not connected"):
            await cluster.converged(timeout=5)
        assert is_stale(orders)
        cluster.heal()
        await cluster.converged()
        assert not is_stale(orders)


async def fill(cluster: govern.testing.Cluster) -> None:
    """Write until there is no space."""
    while True:
        async with cluster.registry.register("orders", port=1, metadata={"k": "v" * 1000}):
            pass


async def test_the_other_verbs(autojump_clock: MockClock) -> None:
    """A silent crash, a stop, a cut, a slow way and a full disk have their effects."""
    async with govern.testing.cluster() as cluster:
        cluster.fill_disk("node1")
        with pytest.raises(govern.DiskFull):
            await fill(cluster)
        cluster.free_disk("node1")
        await trio.sleep(2)
        async with cluster.registry.register("orders", port=1):
            cluster.cut("test", "node1")
            await trio.sleep(3)
            assert is_connected(cluster)
            cluster.slow("test", "node1", 0.5)
            began = trio.current_time()
            for _ in range(4):
                await cluster.registry.lookup("orders")
            assert trio.current_time() - began > 0.4
            cluster.heal()
            await cluster.stop("node1")
            await trio.sleep(1)
            assert not is_connected(cluster)
            await cluster.restart("node1")
            await cluster.converged()
            await cluster.crash("node1", silent=True)
            await trio.sleep(0.5)
            assert is_connected(cluster)  # nobody has told it
            await trio.sleep(5)
            assert not is_connected(cluster)
            await cluster.restart("node1")
            await cluster.converged()


async def story(seed: int) -> float:
    async with govern.testing.cluster(seed=seed) as cluster, cluster.registry.register("orders", port=1):
        await cluster.crash("node1")
        await trio.sleep(2)
        await cluster.restart("node1")
        await cluster.converged()
        return trio.current_time()


def test_the_same_seed_is_the_same_run() -> None:
    """In `simulate` too: equal traces for equal seeds."""
    first, second, other = (simulate(seed, story) for seed in (3, 3, 4))
    assert first == second
    assert first.trace != other.trace


async def test_a_service_outlives_the_controller(autojump_clock: MockClock) -> None:
    """Three nodes: the one that decides is killed, and whoever is on another one does not notice."""
    async with govern.testing.cluster(nodes=3, seed=7) as cluster:
        first = cluster.controller
        assert first is not None
        service = next(name for name in map(str, range(100)) if cluster.owner(name) != first)
        async with cluster.registry.register(service, port=80, id="i1"), cluster.connect("shop") as shop, shop.subscribe(service) as view:
            await cluster.kill(first)
            for _ in range(60):
                await trio.sleep(0.1)
                assert not is_stale(view)
                assert ids(view) == ["i1"]
            assert cluster.controller not in (None, first)
            with pytest.raises(NotConverged, match=f"{first} does not run"):
                await cluster.converged(timeout=1)
            await cluster.restart(first)
            await cluster.converged()


async def test_who_the_candidates_are(autojump_clock: MockClock) -> None:
    """The first few, an odd number; and one way is one way."""
    async with govern.testing.cluster(nodes=2, seed=1) as cluster:
        assert cluster.candidates == ("node1",)
        assert cluster.controller == "node1"
        owners = {cluster.owner(str(number)) for number in range(50)}
        assert owners == {"node1", "node2"}, "a node need not be a candidate to answer for services"
        cluster.partition("node2", "node1", one_way=True)
        await trio.sleep(6)
        with pytest.raises(NotConverged, match="node2 has no lease"):
            await cluster.converged(timeout=1)
        cluster.heal()
        await cluster.converged()


async def fail() -> None:
    async with govern.testing.cluster() as cluster:
        await cluster.run("backend", serve)
        raise KeyError("mine")


async def test_an_exception_of_the_block_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    """And nothing of the cluster is left."""
    with pytest.raises(KeyError, match="mine"):
        await fail()
    with pytest.raises(RuntimeError, match="no simulation runs here"):
        govern.testing.scheduler.installed()


async def test_wrong_use_is_told(autojump_clock: MockClock) -> None:
    """Names that nobody has, numbers that are none, unknown keys."""
    for wrong in (0, 16, "three"):
        with pytest.raises(govern.Invalid, match=r"nodes=.* is not valid: use a number from 1 to 15"):
            async with govern.testing.cluster(nodes=wrong):  # type: ignore[arg-type]
                pass
    with pytest.raises(govern.ConfigError, match="unknown key 'colour'"):
        async with govern.testing.cluster(colour="red"):
            pass
    async with govern.testing.cluster() as cluster:
        with pytest.raises(govern.Invalid, match="there is no node 'node2': use node1"):
            await cluster.restart("node2")
        with pytest.raises(govern.Invalid, match="there is no machine 'shop'"):
            cluster.partition("shop", "node1")
        with pytest.raises(govern.Invalid, match="no process runs on 'test'"):
            cluster.pause("test")


def test_a_real_clock_is_refused() -> None:
    """One error that says what to do."""

    async def use() -> None:
        async with govern.testing.cluster():
            pass

    with pytest.raises(RuntimeError, match="autojump_clock"):
        trio.run(use)


def test_the_library_does_not_load_its_testing_tools() -> None:
    """`import govern` costs nothing of this."""
    program = "import sys, govern; sys.exit(any(name.startswith('govern.testing') or name == 'pytest' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
