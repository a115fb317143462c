"""Programs that use the whole client, beside whole nodes, in virtual time: what a team sees of deaths, stalls, outages and restarts."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

import govern
from govern.client.core import ClientCore
from govern.client.registry import Registry
from govern.environment import Environment, Network, SimulatedClock
from govern.messages import Heartbeat, HeartbeatOk, Hello, HelloOk, Lost, Message, Subscribe, View, build_message, encode
from govern.model import Instance, Lsn, Status, client_fields
from govern.net.frames import FrameReader
from govern.storage.sim import SimFiles
from govern.testing import simulate
from govern.testing.world import PORT, Program, World, open_world

from ..deep import seeds

NODE = f"node1:{PORT}"


async def until(condition: Callable[[], object], seconds: float = 60.0) -> float:
    """Wait for a condition; how long it took."""
    before = trio.current_time()
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)
    return trio.current_time() - before


@attrs.define
class Watch:
    """What one subscriber saw of one service: every change with its time, and whether its list was ever empty after it was not."""

    view: govern.LiveView
    registry: Registry
    changes: list[tuple[float, govern.Change]] = attrs.field(factory=list)
    was_empty: bool = False

    async def follow(self) -> None:
        filled = bool(self.view.instances)
        async for change in self.view:
            self.changes.append((trio.current_time(), change))
            self.was_empty = self.was_empty or (filled and not self.view.instances)
            filled = filled or bool(self.view.instances)

    def removed_at(self, instance_id: str) -> float:
        return next((at for at, change in self.changes if instance_id in change.removed), math.inf)

    def first(self, instance_id: str, status: Status) -> float:
        shown = ((at, each) for at, change in self.changes for each in (*change.added, *change.updated))
        return next((at for at, each in shown if each.id == instance_id and each.status is status), math.inf)


@asynccontextmanager
async def watching(world: World, service: str, name: str = "watcher") -> AsyncIterator[Watch]:
    """A subscriber on a machine of its own."""
    environment = world.environment(world.machine(name, memory=True))
    async with trio.open_nursery() as nursery, govern.connect(NODE, environment=environment) as registry:
        async with registry.subscribe(service) as view:
            watch = Watch(view, registry)
            nursery.start_soon(watch.follow)
            yield watch


def holder(service: str, instance_id: str, out: dict[str, tuple[Registry, govern.Registration]]) -> Program:
    """A program that registers one instance and stays."""

    async def program(environment: Environment) -> None:
        async with govern.connect(NODE, environment=environment) as registry:
            async with registry.register(service, id=instance_id, port=80) as registration:
                out[instance_id] = registry, registration
                await trio.sleep_forever()

    return program


# --- deaths and stalls --------------------------------------------------------------------------------------------------------


async def a_client_is_killed(seed: int) -> tuple[float, float]:
    async with open_world(seed) as world:
        held: dict[str, tuple[Registry, govern.Registration]] = {}
        await world.start()
        for name in ("stays", "dies"):
            await world.run_client(name, holder("orders", name, held))
        await until(lambda: len(held) == 2)
        async with watching(world, "orders") as watch:
            await trio.sleep(world.random.uniform(3, 6))
            await world.kill_client("dies")
            killed_at = trio.current_time()
            await until(lambda: watch.first("dies", Status.SUSPECT) < math.inf)
            assert {chosen.id for _ in range(20) if (chosen := watch.view.choose())} == {"stays"}
            lsn = watch.view.lsn
            assert watch.changes[-1][1].lsn == lsn, "suspicion does not move the lsn"
            await until(lambda: watch.removed_at("dies") < math.inf)
            assert watch.first("stays", Status.SUSPECT) == watch.removed_at("stays") == math.inf
            return watch.first("dies", Status.SUSPECT) - killed_at, watch.removed_at("dies") - killed_at


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_client_is_suspect_within_half_a_second_and_gone_within_its_ttl(seed: int) -> None:
    """Subscribers choose others 0.5 s after a kill -9 at the latest, and the instance is gone after 5 s; the one beside it is untouched."""
    suspect, removed = simulate(seed, a_client_is_killed, horizon=60).result
    assert suspect <= 0.5
    assert 3 < removed <= 5


class StoppedCore(ClientCore):
    """The rules of a process that was stopped: nothing is ever due."""

    @property
    def deadline(self) -> float:
        return math.inf


class Door:
    """A network door whose streams give nothing while the process is stopped; what arrives waits in the kernel."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.is_open = trio.Event()
        self.is_open.set()

    async def dial(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        stream = await self.network.dial(host, port)
        receive = stream.receive_some

        async def receive_when_running(max_bytes: int | None = None) -> bytes | bytearray:
            data = await receive(max_bytes)
            await self.is_open.wait()
            return data

        stream.receive_some = receive_when_running  # type: ignore[method-assign]
        return stream

    def local_host(self, stream: trio.abc.HalfCloseableStream) -> str:
        return self.network.local_host(stream)


async def a_client_stands_still(seed: int, *, is_stopped: bool) -> tuple[float, float]:
    """8 s without a sign: its process is stopped, or its cable pulled. When it was removed, and when it was back after it went on."""
    async with open_world(seed) as world:
        await world.start()
        door = Door(world.network.host("still"))
        environment = attrs.evolve(world.environment(world.machine("still", memory=True)), network=door)  # type: ignore[arg-type]
        async with (
            watching(world, "orders") as watch,
            govern.connect(NODE, environment=environment) as registry,
            registry.register("orders", id="still", port=80) as registration,
        ):
            core, lease_id = registry._links.cores.entry, registration.lease_id
            await trio.sleep(world.random.uniform(3, 6))
            stopped_at = trio.current_time()
            if is_stopped:
                core.__class__ = StoppedCore
                door.is_open = trio.Event()
                registry._links.link_of(core)._moved.set()
            else:
                world.network.partition("still", "node1")
            await trio.sleep(8)
            if is_stopped:
                core.__class__ = ClientCore
                door.is_open.set()
                registry._links.link_of(core)._moved.set()
            else:
                world.network.heal()
            back = await until(lambda: any(each.status is Status.UP for each in watch.view.instances))
            assert registration.lost is None
            await until(lambda: registration.lease_id > lease_id)
            await trio.sleep(3)
            assert [each.lease_id for each in watch.view.instances] == [registration.lease_id]
            return watch.removed_at("still") - stopped_at, back


@pytest.mark.parametrize("is_stopped", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_client_that_stood_still_comes_back_by_itself(seed: int, is_stopped: bool) -> None:
    """Removed at most 5 s after its last sign, and back at most 3 s after it can run or speak again, under a new lease."""

    async def scenario(seed: int) -> tuple[float, float]:
        return await a_client_stands_still(seed, is_stopped=is_stopped)

    removed, back = simulate(seed, scenario, horizon=120).result
    assert 2.5 < removed <= 5
    assert back <= 3


async def links_break_at_random(seed: int) -> tuple[int, int]:
    """Ten workers and two watchers whose connections break, stall and heal at random; then calm."""
    async with open_world(seed) as world:
        await world.start()
        held: dict[str, tuple[Registry, govern.Registration]] = {}
        workers = [f"w{number}" for number in range(10)]
        for name in workers:
            await world.run_client(name, holder("orders", name, held))
        await until(lambda: len(held) == 10)
        async with watching(world, "orders", "one") as one, watching(world, "orders", "two") as two:
            for _ in range(40):
                name = world.random.choice([*workers, "one", "two"])
                what = world.random.random()
                if what < 0.4:
                    world.network.cut(name, "node1")
                elif what < 0.8:
                    world.network.partition(name, "node1")
                else:
                    world.network.heal()
                await trio.sleep(world.random.uniform(0, 1.5))
            world.network.heal()
            await trio.sleep(10)
            for watch in (one, two):
                shown = {each.id: (each.status, each.lease_id) for each in watch.view.instances}
                assert shown == {name: (Status.UP, registration.lease_id) for name, (_, registration) in held.items()}
                assert not watch.view.stale
            assert all(registration.lost is None for _, registration in held.values())
            suspicions = sum(each.status is Status.SUSPECT for _, change in one.changes for each in change.updated)
            return suspicions, sum(len(change.removed) for _, change in one.changes)


@pytest.mark.parametrize("seed", seeds(2, 8))
def test_suspicion_never_sticks(seed: int) -> None:
    """Whoever lives is up in every view once the network is well, whatever was doubted, removed and registered anew before."""
    suspicions, _ = simulate(seed, links_break_at_random, horizon=300).result
    assert suspicions > 0


# --- two with one id, and operators -------------------------------------------------------------------------------------------


async def two_claim_one_id(seed: int) -> list[str]:
    async with open_world(seed) as world:
        await world.start()
        held: dict[str, tuple[Registry, govern.Registration]] = {}
        await world.run_client("first", holder("orders", "x", held))
        await until(lambda: held)
        registry, first = held["x"]
        told: list[str] = []
        lost = registry._links.cores.entry.registrations.lost

        def note(message: Lost) -> None:
            told.append(message.reason)
            lost(message)

        registry._links.cores.entry.registrations.lost = note  # type: ignore[method-assign]
        environment = world.environment(world.machine("second", memory=True))
        async with govern.connect(NODE, environment=environment) as other, other.register("orders", id="x", port=81) as second:
            with trio.fail_after(1):
                assert await first.wait_lost() == "superseded"
            operations = (await other.status())["operations"]
            for _ in range(6):
                await trio.sleep(5)
                world.network.cut("first", "node1")
                world.network.cut("second", "node1")
            assert (await other.status())["operations"] == operations, "somebody fights"
            assert second.lost is None
            assert [each.port for each in await other.lookup("orders")] == [81]
        return told


@pytest.mark.parametrize("seed", range(2))
def test_the_newer_of_two_wins_and_the_other_is_told_once(seed: int) -> None:
    """For 30 s, over broken connections of both, nothing is registered any more."""
    assert simulate(seed, two_claim_one_id, horizon=120).result == ["superseded"]


async def an_operator_acts(seed: int) -> list[str]:
    async with open_world(seed) as world:
        await world.start()
        held: dict[str, tuple[Registry, govern.Registration]] = {}
        await world.run_client("owner", holder("orders", "x", held))
        await until(lambda: held)
        owner, registration = held["x"]
        environment = world.environment(world.machine("operator", memory=True))
        async with watching(world, "orders") as watch, govern.connect(NODE, environment=environment) as operator:
            drained = await operator.drain("orders", "x")
            assert (drained.applied, drained.missing, drained.complete) == (1, (), True)
            assert [each.status for each in watch.view.instances] == [Status.DRAINING]
            with pytest.raises(govern.Gone):
                await operator.drain("orders", "nobody")
            await operator.evict("orders", "x")
            assert await registration.wait_lost() == "evicted"
            with pytest.raises(govern.Gone):
                await operator.evict("orders", "x")
            with pytest.raises(govern.Evicted):
                async with owner.register("orders", id="x", port=80):
                    pytest.fail("entered")
            world.network.cut("owner", "node1")
            await trio.sleep(10)
            assert watch.view.instances == ()
            async with operator.register("orders", id="x", port=81):
                pass  # only that session is barred
            explanation = await operator.explain("orders", "x")
            assert [each["id"] for each in explanation.instances] == ["x"]
            assert explanation.instances[0]["in_view"] is False
            assert await operator.explain("nothing") == govern.Explanation()
            return [event["kind"] for event in explanation.events if event["id"] == "x"]


def test_an_operator_drains_evicts_and_is_told_why() -> None:
    """Draining is seen by the subscribers before it returns; who is evicted is told, and stays out; the node remembers all of it."""
    kinds = simulate(1, an_operator_acts, horizon=120).result
    assert kinds == ["registered", "draining", "evicted", "registered", "deregistered"]


# --- a rolling restart --------------------------------------------------------------------------------------------------------


@attrs.define
class Traffic:
    """Which servers take requests now, and what callers met."""

    serving: dict[str, None] = attrs.field(factory=dict)
    calls: int = 0
    errors: list[str] = attrs.field(factory=list)


def server(traffic: Traffic, name: str) -> Program:
    """A server that takes requests from before it is registered until after it was drained."""

    async def program(environment: Environment) -> None:
        async with govern.connect(NODE, environment=environment) as registry:
            for generation in range(3):
                instance_id = f"{name}-{generation}"
                traffic.serving[instance_id] = None
                async with registry.register("orders", id=instance_id, port=80) as registration:
                    await trio.sleep(2.0)
                    drained = await registration.drain()
                    del traffic.serving[instance_id]  # from here on every request would fail
                    if not drained.complete:
                        traffic.errors.append(f"{instance_id} was not drained: {drained.missing}")
                    await trio.sleep(environment.random.uniform(0, 0.5))

    return program


def caller(traffic: Traffic) -> Program:
    """A caller that chooses a server for every request, in a tight loop."""

    async def program(environment: Environment) -> None:
        async with govern.connect(NODE, environment=environment) as registry, registry.subscribe("orders") as view:
            while True:
                chosen = view.choose()
                traffic.calls += 1
                if chosen is None or chosen.id not in traffic.serving:
                    traffic.errors.append(f"{trio.current_time():.3f} chose {chosen}")
                await trio.sleep(0.002)

    return program


async def services_restart_one_by_one(seed: int) -> Traffic:
    async with open_world(seed) as world:
        await world.start()
        traffic = Traffic()
        machines = []
        for number in range(3):
            machines.append(await world.run_client(f"server{number}", server(traffic, f"server{number}")))
            await trio.sleep(0.7)
        for number in range(4):
            await world.run_client(f"caller{number}", caller(traffic))
        for _ in range(5):
            await trio.sleep(1.0)
            world.network.cut("caller3", "node1")  # its view is stale for a moment: the drain waits for it
        # the last server has nobody to take its place, so the story ends before the first of the last generation is drained
        await until(lambda: any(name.endswith("-2") for name in traffic.serving))
        await trio.sleep(0.5)
        return traffic


@pytest.mark.parametrize("seed", seeds(2, 6))
def test_a_rolling_restart_with_drain_costs_no_request(seed: int) -> None:
    """Callers in a tight loop, one of them over breaking connections, never choose a server that has stopped after its drain."""
    traffic = simulate(seed, services_restart_one_by_one, horizon=120).result
    assert traffic.errors == []
    assert traffic.calls > 5000


async def a_subscriber_that_hangs_is_named(seed: int) -> tuple[govern.Drained, float]:
    async with open_world(seed) as world:
        await world.start()
        environment = world.environment(world.machine("owner", memory=True))
        async with watching(world, "orders"), watching(world, "orders", "hangs"):
            async with govern.connect(NODE, environment=environment) as registry, registry.register("orders", port=80) as registration:
                world.network.partition("hangs", "node1")
                before = trio.current_time()
                drained = await registration.drain(timeout=2)
                seconds = trio.current_time() - before
                world.network.heal()
                assert (await registration.drain(timeout=10)).complete
                await world.crash()
                lonely = await registration.drain(timeout=1)
                assert (lonely.applied, lonely.missing_count, lonely.complete) == (0, 1, False)
                assert "registry" in lonely.missing[0]
                return drained, seconds


def test_a_drain_names_who_is_missing_and_never_raises_at_its_timeout() -> None:
    """A subscriber that cannot be reached is named; without any registry, that is what is missing."""
    drained, seconds = simulate(1, a_subscriber_that_hangs_is_named, horizon=120).result
    assert (drained.applied, drained.missing_count) == (1, 1)
    assert "hangs" in drained.missing[0]
    assert 2 <= seconds < 2.5


# --- outages ------------------------------------------------------------------------------------------------------------------


async def the_node_is_down(seed: int, seconds: float, clients: int = 50) -> float:
    """How long after the node is ready the last client was back."""
    async with open_world(seed) as world:
        held: dict[str, tuple[Registry, govern.Registration]] = {}
        await world.start()
        for number in range(clients):
            await world.run_client(f"c{number}", holder("orders", f"c{number}", held))
        await until(lambda: len(held) == clients)
        async with watching(world, "orders") as watch:
            await trio.sleep(3)
            leases = {name: registration.lease_id for name, (_, registration) in held.items()}
            await world.crash()
            await trio.sleep(seconds)
            assert len(watch.view.instances) == clients
            assert watch.view.stale
            await world.start()
            back = await until(lambda: watch.registry.connected and all(registry.connected for registry, _ in held.values()))
            await until(lambda: not watch.view.stale)
            await trio.sleep(12)
            assert [change.removed for _, change in watch.changes if change.removed] == []
            assert not watch.was_empty
            assert {each.id: each.lease_id for each in watch.view.instances} == leases, "something expired and was registered anew"
            assert {each.status for each in watch.view.instances} == {Status.UP}
            return back


@pytest.mark.parametrize("seconds", [1, *(pytest.param(seconds, marks=pytest.mark.deep) for seconds in (5, 12)), 60])
def test_an_outage_of_any_length_expires_nobody(seconds: float) -> None:
    """50 clients and a node that loses power: no view is ever empty, no lease changes, and all are back at most 5 s after it is."""

    async def scenario(seed: int) -> float:
        return await the_node_is_down(seed, seconds)

    assert simulate(int(seconds), scenario, horizon=300).result <= 5


async def an_application_starts_alone(seed: int) -> tuple[float, bool, float]:
    files = SimFiles()
    async with open_world(seed) as world:
        held: dict[str, tuple[Registry, govern.Registration]] = {}
        seen: list[tuple[float, bool, int]] = []

        async def application(environment: Environment) -> None:
            started = trio.current_time()
            environment = attrs.evolve(environment, files=files)
            async with govern.connect(NODE, environment=environment, cache="views.json") as registry:
                async with registry.subscribe("orders") as view:
                    seen.append((trio.current_time() - started, view.stale, len(view.instances)))
                    while view.stale:
                        assert len(view.instances) == 3
                        assert view.choose() is not None
                        await trio.sleep(0.05)
                    seen.append((trio.current_time(), view.stale, len(view.instances)))
                    await trio.sleep_forever()

        await world.start()
        for number in range(3):
            await world.run_client(f"c{number}", holder("orders", f"c{number}", held))
        await until(lambda: len(held) == 3)
        await world.run_client("app", application)
        await trio.sleep(3)
        await world.kill_client("app")  # no farewell: what was written while it ran has to do
        await world.crash()
        seen.clear()
        await world.run_client("app", application)
        await trio.sleep(20)
        assert len(seen) == 1
        await world.start()
        ready_at = trio.current_time()
        await until(lambda: len(seen) == 2)
        assert seen[1][2] == 3
        return seen[0][0], seen[0][1], seen[1][0] - ready_at


def test_an_application_starts_from_its_cache_while_the_registry_is_down() -> None:
    """A program that was killed starts beside a dead registry with the views it had; when the registry is up they become fresh."""
    entered, stale, fresh = simulate(1, an_application_starts_alone, horizon=120).result
    assert entered < 0.5
    assert stale
    assert fresh < 3


# --- a node that knows nothing ------------------------------------------------------------------------------------------------


async def an_empty_push_is_not_believed(seed: int) -> list[tuple[int, bool]]:
    """A node that is not up to date says that there is nobody: it is not believed until it is up to date."""
    public = [[1, 1, 1, 1, 0], client_fields(Instance(id="one", host="h", port=1))]
    lists: list[View] = []
    shown: list[tuple[int, bool]] = []

    def answer(message: Message) -> Message | None:
        if isinstance(message, Hello):
            return HelloOk(1, "c", 1, "0", 1000, True)
        if isinstance(message, Heartbeat):
            return HeartbeatOk(0, lists[0].fresh)
        return lists[0] if isinstance(message, Subscribe) else None

    async def node(stream: trio.abc.HalfCloseableStream) -> None:
        reader = FrameReader(1 << 20)
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                for raw in reader.feed(bytes(data)):
                    said = answer(build_message(raw))
                    if said is not None:
                        await stream.send_all(encode(said, raw[1]))

    async with open_world(seed) as world, trio.open_nursery() as nursery:
        await nursery.start(world.network.host("node1").serve, "0.0.0.0", PORT, node)
        environment = Environment(network=world.network.host("client"), random=random.Random(1), clock=SimulatedClock())
        key = govern.ServiceKey("default", "orders")
        lists[:] = [View(key, Lsn(1, 1), True, False, [public])]
        async with govern.connect(NODE, environment=environment) as registry, registry.subscribe("orders") as view:
            shown.append((len(view.instances), view.stale))
            lists[:] = [View(key, Lsn(2, 0), False, False, [])]
            world.network.cut("client", "node1")
            await trio.sleep(10)
            assert registry.connected
            shown.append((len(view.instances), view.stale))
            lists[:] = [View(key, Lsn(2, 0), True, False, [])]
            await trio.sleep(5)
            shown.append((len(view.instances), view.stale))
        nursery.cancel_scope.cancel()
    return shown


def test_an_empty_list_of_a_node_that_is_not_up_to_date_empties_nothing() -> None:
    """The list stays, and is stale, until the node is up to date and says it again."""
    assert simulate(1, an_empty_push_is_not_believed, horizon=60).result == [(1, False), (1, True), (0, False)]
