"""The client's shell over several nodes, in virtual time: model nodes behind a simulated network, and what a program sees of them."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import govern
from govern.client import reading
from govern.client.cache import SAVE_SECONDS
from govern.client.cores import IDLE_SECONDS, Cores
from govern.client.registry import Registry
from govern.core.slots import slot_of
from govern.environment import Environment, SimulatedClock
from govern.errors import Indeterminate, Unreachable
from govern.messages import FRAME_BYTES_MAX_TO_NODE, Administer, Goodbye, Hello, Message, Services, build_message
from govern.model import ServiceInfo, ServiceKey
from govern.net.frames import FrameReader
from govern.storage.sim import SimFiles
from govern.testing.world import World, open_world

from .fleet import Fleet, FleetNode
from .test_shell import sleep_until

A, B, C = (ServiceKey("default", name) for name in ("a", "b", "c"))


class Serving:
    """The model nodes of a fleet, each a listener on a machine of its own."""

    def __init__(self, world: World, nursery: trio.Nursery, count: int = 3) -> None:
        self.world = world
        self.fleet = Fleet(count)
        self.scopes: dict[int, trio.CancelScope] = {}
        self.said: list[tuple[int, Message]] = []
        self.deaf: dict[int, None] = {}  # they accept, and answer nothing
        self._nursery = nursery

    async def start(self, node_id: int) -> None:
        node = self.fleet.nodes[node_id]
        scope = self.scopes[node_id] = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[Any]) -> None:
            with scope:
                host = self.world.network.host(f"node{node_id}")
                await host.serve("0.0.0.0", node.port, lambda stream: self._serve(node, stream), task_status=task_status)

        await self._nursery.start(run)

    def stop(self, node_id: int) -> None:
        self.scopes[node_id].cancel()
        self.fleet.nodes[node_id].known_sessions = dict.fromkeys(self.fleet.nodes[node_id].known_sessions, 0)

    async def _serve(self, node: FleetNode, stream: trio.abc.HalfCloseableStream) -> None:
        reader = FrameReader(FRAME_BYTES_MAX_TO_NODE)
        node.disconnect()
        try:
            while data := await stream.receive_some(65536):
                for raw in reader.feed(bytes(data)):
                    message = build_message(raw)
                    self.said.append((node.node_id, message))
                    if node.node_id not in self.deaf or isinstance(message, Hello):
                        node.receive(raw)
                out, node.out = b"".join(node.out), []
                if out:
                    await stream.send_all(out)
        except trio.BrokenResourceError:
            node.out.clear()

    def spoken(self, kind: type[Message]) -> list[int]:
        return [node_id for node_id, message in self.said if isinstance(message, kind)]


@asynccontextmanager
async def open_fleet(count: int = 3) -> AsyncIterator[Serving]:
    """Model nodes that all serve and all have the table: a at 1, b at 2, c at 3."""
    async with open_world(1) as world, trio.open_nursery() as nursery:
        serving = Serving(world, nursery, count)
        serving.fleet.assign({A: 1, B: 2, C: 3} if count > 2 else {})
        for node_id in serving.fleet.nodes:
            await serving.start(node_id)
        yield serving
        nursery.cancel_scope.cancel()


def doors(world: World, files: SimFiles | None = None, seed: int = 7) -> Environment:
    return Environment(network=world.network.host("client"), random=random.Random(seed), clock=SimulatedClock(), files=files)


def connected_ids(registry: Registry) -> list[int]:
    return sorted(core.node_id or 0 for core in registry._links.cores.living() if core.connected)


async def test_a_program_sees_one_registry(autojump_clock: MockClock) -> None:
    """Registering, subscribing, reading, draining, evicting: each at the node that answers, through one entry, in one block."""
    async with open_fleet() as serving, AsyncExitStack() as stack:
        registry = await stack.enter_async_context(govern.connect("node2:7400", environment=doors(serving.world)))
        assert registry.node_id == 2
        registrations = [await stack.enter_async_context(registry.register(name, port=80)) for name in ("a", "b", "c")]
        views = [await stack.enter_async_context(registry.subscribe(name)) for name in ("a", "b", "c")]
        assert [len(view.instances) for view in views] == [1, 1, 1]
        assert connected_ids(registry) == [1, 2, 3]
        assert registry.connected
        await registrations[0].update(weight=2.0)
        assert [instance.weight for instance in await registry.lookup("a")] == [2.0]
        assert (await registrations[2].drain()).complete
        assert views[2].instances[0].status is govern.Status.DRAINING
        await registry.evict("b", "client:80")
        assert await registrations[1].wait_lost() == "evicted"
        assert (await registry.explain("c")).events != ()
        assert await registry.status() == {"cluster_id": "cluster1"}
        await stack.aclose()
        assert sorted(serving.spoken(Goodbye)) == [1, 2, 3]
        assert not serving.fleet.store.instances


async def test_services_of_all_nodes_are_one_list(autojump_clock: MockClock) -> None:
    """Sorted by name, each once, whichever node has it; the links that were opened for it are closed after half a minute."""
    async with open_fleet() as serving:
        async with govern.connect("node1:7400", environment=doors(serving.world)) as registry, AsyncExitStack() as stack:
            for name in ("c", "b", "a"):
                await stack.enter_async_context(registry.register(name, port=80))
            infos = await registry.services()
            assert [(info.name, info.instances) for info in infos] == [("a", 1), ("b", 1), ("c", 1)]
            assert sorted(serving.spoken(Services)) == [1, 2, 3]
            await stack.aclose()
            await trio.sleep(IDLE_SECONDS + 3)
            assert connected_ids(registry) == [1]
            assert registry.connected


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_list_of_services_is_never_short(autojump_clock: MockClock, deaf: bool) -> None:
    """A node that is gone, or silent: after ten seconds it is named, and nothing is told of the others."""
    async with open_fleet() as serving:
        async with govern.connect("node1:7400", environment=doors(serving.world)) as registry:
            await registry.services()
            if deaf:
                serving.deaf[3] = None
            else:
                serving.stop(3)
            before = trio.current_time()
            with pytest.raises(Unreachable, match="node 3"):
                await registry.services()
            assert trio.current_time() - before == pytest.approx(10, abs=0.1)
            serving.deaf.clear()


async def test_services_that_merge_silently_short_are_found(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: who does not answer is left out. The test above fails for it."""

    async def forgive(links: Any, *questions: Any, deadline: float = math.inf) -> None:
        links.flush()
        await trio.sleep(1)
        for question in questions:
            question.answer = question.answer or []

    monkeypatch.setattr(reading, "wait_answer", forgive)
    async with open_fleet() as serving:
        async with govern.connect("node1:7400", environment=doors(serving.world)) as registry:
            serving.stop(3)
            assert await registry.services() == ()


def test_a_service_that_two_nodes_name_counts_once() -> None:
    """The one that answers for it is believed, whoever came first."""

    class OneTable:
        cores = Cores(b"o" * 16, [("a", 1)])

    fleet = Fleet()
    OneTable.cores.routing.table = fleet.make_table({A: 2})
    info = [ServiceInfo("default", "a", slot_of(A), number) for number in range(3)]
    answers = {1: [info[1]], 2: [info[2]], 3: [info[0]]}
    assert reading._merge(OneTable, answers) == [info[2]]  # type: ignore[arg-type]


async def test_an_outage_of_one_node_is_seen_and_survived(autojump_clock: MockClock) -> None:
    """Its view is stale and its reads wait; the others go on; when it is back everything is put back."""
    async with open_fleet() as serving, AsyncExitStack() as stack:
        registry = await stack.enter_async_context(govern.connect("node1:7400", environment=doors(serving.world)))
        for name in ("a", "b"):
            await stack.enter_async_context(registry.register(name, port=80))
        views = [await stack.enter_async_context(registry.subscribe(name)) for name in ("a", "b")]
        serving.stop(2)
        await sleep_until(lambda: not registry.connected)
        assert [view.stale for view in views] == [False, True]
        assert len(views[1].instances) == 1
        with pytest.raises(Unreachable, match="node 2"):
            await registry.lookup("b")
        assert [instance.port for instance in await registry.lookup("a")] == [80]
        await serving.start(2)
        await registry.wait_connected()
        await sleep_until(lambda: not views[1].stale)
        assert len(await registry.lookup("b")) == 1


async def test_what_was_lost_is_left_although_nobody_speaks_to_its_node_any_more(autojump_clock: MockClock) -> None:
    """A core that is made for a service of which nothing is wanted ends in the same moment, before it had a link."""
    async with open_fleet() as serving:
        async with govern.connect("node1:7400", environment=doors(serving.world)) as registry:
            async with registry.register("b", port=80) as registration:
                await registry.evict("b", "client:80")
                assert await registration.wait_lost() == "evicted"
                serving.stop(2)
                await sleep_until(lambda: [core.node_id for core in registry._links.cores.living()] == [1])
            assert connected_ids(registry) == [1]


async def test_the_node_through_which_it_entered_may_go(autojump_clock: MockClock) -> None:
    """What is at other nodes does not notice."""
    async with open_fleet() as serving, AsyncExitStack() as stack:
        registry = await stack.enter_async_context(govern.connect("node1:7400", environment=doors(serving.world)))
        await stack.enter_async_context(registry.register("c", port=80))
        view = await stack.enter_async_context(registry.subscribe("c"))
        serving.stop(1)
        serving.stop(2)
        await trio.sleep(5)
        assert registry.connected
        assert registry.node_id == 3
        assert not view.stale
        assert len(await registry.lookup("c")) == 1


async def test_a_slot_that_moves_takes_its_service_along(autojump_clock: MockClock) -> None:
    """Within two seconds, told by the heartbeat; the view never empties, and the owner keeps its registration."""
    async with open_fleet() as serving, AsyncExitStack() as stack:
        registry = await stack.enter_async_context(govern.connect("node1:7400", environment=doors(serving.world)))
        registration = await stack.enter_async_context(registry.register("a", port=80))
        view = await stack.enter_async_context(registry.subscribe("a"))
        serving.fleet.assign({A: 3, B: 2})
        with trio.move_on_after(2.5):
            async for change in view:
                assert change.removed == ()
        assert [connected for connected in connected_ids(registry) if connected == 3] == [3]
        await registration.update(weight=5.0)
        assert [instance.weight for instance in view.instances] == [5.0]
        assert registration.lost is None
        assert not view.stale


async def test_leaving_beside_dead_nodes_takes_one_second_for_all_of_them(autojump_clock: MockClock) -> None:
    """Three nodes, none of which answers any more: one deadline for all."""
    async with open_fleet() as serving:
        async with AsyncExitStack() as stack:
            registry = await stack.enter_async_context(govern.connect("node1:7400", environment=doors(serving.world)))
            for name in ("a", "b", "c"):
                await stack.enter_async_context(registry.register(name, port=80))
            serving.deaf.update(dict.fromkeys((1, 2, 3)))
            before = trio.current_time()
        assert 0.5 < trio.current_time() - before <= 1.001


async def test_one_heartbeat_a_second_for_each_node_that_is_needed(autojump_clock: MockClock) -> None:
    """And nothing else in quiet times."""
    async with open_fleet() as serving, AsyncExitStack() as stack:
        registry = await stack.enter_async_context(govern.connect("node1:7400", environment=doors(serving.world)))
        for name in ("b", "c"):
            await stack.enter_async_context(registry.register(name, port=80))
        await trio.sleep(40)
        serving.said.clear()
        await trio.sleep(20)
        counts = {node_id: sum(said == node_id for said, _ in serving.said) for node_id in (1, 2, 3)}
        assert counts[1] == 0
        assert all(19 <= counts[node_id] <= 21 for node_id in (2, 3))


async def test_an_operator_asks_through_any_node(autojump_clock: MockClock) -> None:
    """The answer is the controller's; a word that changes something is not repeated when nobody knows whether it arrived."""
    async with open_fleet() as serving:
        async with govern.connect("node2:7400", environment=doors(serving.world)) as registry:
            assert await registry.administer("nodes") == {"verb": "nodes"}
            assert await registry.administer("forget", 3, force=True) == {"verb": "forget"}
            (message,) = [each for _, each in serving.said if isinstance(each, Administer) and each.verb == "forget"]
            assert message == Administer("forget", 3, {"force": True})
            serving.deaf[2] = None
            with pytest.raises(Indeterminate):
                await registry.administer("forget", 3)
            assert len([1 for _, each in serving.said if isinstance(each, Administer) and each.verb == "forget"]) == 2


async def test_an_operator_is_told_when_nobody_could_be_asked(autojump_clock: MockClock) -> None:
    """Then it certainly did not happen."""
    async with open_fleet() as serving:
        async with govern.connect("node2:7400", environment=doors(serving.world)) as registry:
            for node_id in (1, 2, 3):
                serving.stop(node_id)
            await sleep_until(lambda: not registry.connected)
            with pytest.raises(Unreachable):
                await registry.administer("forget", 3)
            assert serving.spoken(Administer) == []


async def test_a_program_starts_with_the_table_of_its_cache(autojump_clock: MockClock) -> None:
    """Every address that it was given is dead; the node that it needs lives at an address that only the cache knows."""
    files = SimFiles()
    async with open_fleet() as serving:
        async with govern.connect("node1:7400", environment=doors(serving.world, files), cache="/views") as registry:
            async with registry.register("c", port=80), registry.subscribe("c"):
                await trio.sleep(2 * SAVE_SECONDS)
        serving.stop(1)
        serving.stop(2)
        async with govern.connect("node1:7400", environment=doors(serving.world, files, seed=8), cache="/views") as registry:
            async with registry.register("c", port=81), registry.subscribe("c") as view:
                await sleep_until(lambda: not view.stale)
                assert [instance.port for instance in view.instances] == [81]
                assert registry.node_id == 3


async def test_a_default_host_needs_any_connection_and_not_all(autojump_clock: MockClock) -> None:
    """A node that is down does not keep a program from registering at another one."""
    async with open_fleet() as serving, AsyncExitStack() as stack:
        registry = await stack.enter_async_context(govern.connect("node1:7400", environment=doors(serving.world)))
        await stack.enter_async_context(registry.register("b", port=80))
        serving.stop(2)
        await sleep_until(lambda: not registry.connected)
        with trio.fail_after(1):
            registration = await stack.enter_async_context(registry.register("c", port=80))
        assert registration.instance.host == "client"
