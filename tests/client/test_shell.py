"""The client's shell in virtual time: dialling, waiting, leaving, and what a user's block sees, over a simulated network."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import govern
from govern.client.core import ClientCore, Phase
from govern.client.leaving import LeaveBudget
from govern.client.registry import Registry
from govern.client.where import find_addresses
from govern.environment import Environment, Network, SimulatedClock
from govern.errors import GovernError, Invalid, Stopped, Superseded, Unreachable
from govern.messages import Delta, Hello, HelloOk, Message, Refused, decode, encode
from govern.model import LSN_ZERO, Lsn, ServiceKey
from govern.testing.world import World, open_world

Handler = Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]


class Dials:
    """A network door that writes down when it was used."""

    def __init__(self, network: Network) -> None:
        self.times: list[float] = []
        self.addresses: list[tuple[str, int]] = []
        self._network = network

    async def dial(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        self.times.append(trio.current_time())
        self.addresses.append((host, port))
        return await self._network.dial(host, port)

    def local_host(self, stream: trio.abc.HalfCloseableStream) -> str:
        return self._network.local_host(stream)

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


def doors(world: World, name: str = "client", *, dials: Dials | None = None) -> Environment:
    """The doors of a client's machine."""
    network: Network = world.network.host(name) if dials is None else dials  # type: ignore[assignment]
    return Environment(network=network, random=random.Random(name), clock=SimulatedClock())


async def serve(world: World, nursery: trio.Nursery, name: str, handler: Handler) -> None:
    """Something that listens like a node and behaves as the handler does."""
    await nursery.start(world.network.host(name).serve, "0.0.0.0", 7400, handler)


async def hear(stream: trio.abc.HalfCloseableStream) -> Message:
    """The first frame that arrives."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        more = await stream.receive_some()
        assert more, "the stream ended within a frame"
        data += more
    return decode(data[4 : 4 + int.from_bytes(data[:4], "big")])[0]


@asynccontextmanager
async def open_registry(seed: int = 1) -> AsyncIterator[tuple[World, Registry]]:
    """A world with one node in memory and one connected client."""
    async with open_world(seed) as world:
        await world.start(memory=True)
        async with govern.connect("node1", environment=doors(world)) as registry:
            yield world, registry


async def sleep_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition in virtual time, a minute at most."""
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.01)


# --- where and when -----------------------------------------------------------------------------------------------------------


def test_addresses_are_read_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text with commas, sequences, IPv6, host names and a missing port; GOVERN_CONNECT, and the default without it."""
    assert find_addresses("10.0.0.1:7500, [::1]:7400,db.example,,10.0.0.1:7500")[0] == [
        ("10.0.0.1", 7500),
        ("::1", 7400),
        ("db.example", 7400),
    ]
    assert find_addresses(["a:1", "b:2"])[0] == [("a", 1), ("b", 2)]
    monkeypatch.setenv("GOVERN_CONNECT", "c:3")
    assert find_addresses(None)[0] == [("c", 3)]
    monkeypatch.delenv("GOVERN_CONNECT")
    assert find_addresses(None)[0] == [("127.0.0.1", 7400)]
    for bad in ("", "a:0", "a:x", "a b:1", [], [7400]):
        with pytest.raises(Invalid):
            find_addresses(bad)  # type: ignore[arg-type]


async def test_connect_gives_up_after_its_timeout_and_says_why(autojump_clock: MockClock) -> None:
    """One line names each address and what came of it."""
    async with open_world(1) as world:
        world.machine("node1")
        world.network.host("node1")
        before = trio.current_time()
        with pytest.raises(Unreachable, match=r"tried node1:7400 \(.*nobody listens.*\), nowhere:1 \(.*\)"):
            async with govern.connect("node1:7400,nowhere:1", timeout=3, environment=doors(world)):
                pytest.fail("entered")
        assert trio.current_time() - before == pytest.approx(3, abs=0.01)


async def test_connect_can_wait_for_ever(autojump_clock: MockClock) -> None:
    """`math.inf` waits until a node comes up, and asks for it at most ten seconds apart."""
    async with open_world(1) as world:
        dials = Dials(world.network.host("client"))
        world.network.host("node1")

        async def start_late() -> None:
            await trio.sleep(300)
            await world.start(memory=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start_late)
            async with govern.connect("node1", timeout=math.inf, environment=doors(world, dials=dials)) as registry:
                assert registry.connected
        assert 300 <= trio.current_time() <= 311
        assert 2 < max(dials.gaps) <= 10.1


async def test_a_dead_address_does_not_delay_the_first_connection(autojump_clock: MockClock) -> None:
    """In the first round every address is tried without a pause."""
    async with open_world(1) as world:
        await world.start(memory=True)
        world.network.host("dead")
        before = trio.current_time()
        async with govern.connect(["dead:1", "dead:2", "dead:3", "node1:7400"], environment=doors(world)) as registry:
            assert registry.connected
        assert trio.current_time() - before < 0.1


@pytest.mark.parametrize("code", ["cluster", "protocol", "denied"])
async def test_a_refusal_for_good_is_told_at_once(autojump_clock: MockClock, code: str) -> None:
    """A node that will never take this client does not cost the whole timeout, and its text reaches the user."""

    async def refuse(stream: trio.abc.HalfCloseableStream) -> None:
        await hear(stream)
        await stream.send_all(encode(Refused(code, "wrong door")))

    async with open_world(1) as world, trio.open_nursery() as nursery:
        await serve(world, nursery, "node1", refuse)
        with pytest.raises(GovernError, match="wrong door"):
            async with govern.connect("node1", environment=doors(world)):
                pytest.fail("entered")
        assert trio.current_time() < 0.5
        nursery.cancel_scope.cancel()


async def test_a_node_that_never_answers_hello_is_left_after_five_seconds(autojump_clock: MockClock) -> None:
    """A listener that is mute does not hold the client for ever: the next address is tried."""

    async def mute(stream: trio.abc.HalfCloseableStream) -> None:
        await trio.sleep_forever()

    async with open_world(1) as world, trio.open_nursery() as nursery:
        await serve(world, nursery, "mute", mute)
        await world.start(memory=True)
        async with govern.connect("mute,node1", timeout=20, environment=doors(world)) as registry:
            assert registry.node_id == 1
        nursery.cancel_scope.cancel()


# --- reconnecting -------------------------------------------------------------------------------------------------------------


async def test_everything_comes_back_with_a_new_node(autojump_clock: MockClock) -> None:
    """The node is lost with all it had: the registration and the view are put back by themselves, and the view was never empty."""
    async with open_registry() as (world, registry):
        async with registry.register("orders", port=80) as registration, registry.subscribe("orders") as view:
            former = registry.cluster_id
            await world.crash()
            await sleep_until(lambda: not registry.connected)
            assert view.stale
            assert len(view.instances) == 1
            await world.start(memory=True)
            await registry.wait_connected()
            await sleep_until(lambda: not view.stale and view.instances != () and view.instances[0].lease_id == registration.lease_id)
            assert registry.cluster_id != former
            assert registration.lost is None
            assert [instance.id for instance in await registry.lookup("orders")] == [registration.instance.id]


async def test_a_client_that_is_needed_comes_back_within_two_seconds_and_an_idle_one_takes_its_time(autojump_clock: MockClock) -> None:
    """With registrations the pauses grow to two seconds at most; without anything to lose, to ten."""
    for busy, bound in ((True, 2.0), (False, 10.0)):
        async with open_world(1) as world, AsyncExitStack() as stack:
            await world.start(memory=True)
            dials = Dials(world.network.host("client"))
            registry = await stack.enter_async_context(govern.connect("node1", environment=doors(world, dials=dials)))
            if busy:
                await stack.enter_async_context(registry.register("orders", port=80))
            await world.crash()
            world.network.host("node1")
            await trio.sleep(300)
            assert bound * 0.7 < max(dials.gaps) <= bound + 0.1
            assert len(dials.gaps) > 300 / bound


async def test_work_that_arrives_shortens_the_pause(autojump_clock: MockClock) -> None:
    """A client that dozed between two attempts wakes up when it is needed."""
    async with open_registry() as (world, registry):
        await world.crash()
        await trio.sleep(100)
        await world.start(memory=True)
        for _ in range(10):
            before = trio.current_time()
            if not registry.connected:
                await registry.lookup("orders")
                assert trio.current_time() - before < 2.5


async def test_a_node_behind_a_pulled_cable_is_noticed(autojump_clock: MockClock) -> None:
    """No reset, no end of stream, only silence: within five seconds the connection counts as gone."""
    async with open_registry() as (world, registry):
        world.network.partition("client", "node1")
        before = trio.current_time()
        await sleep_until(lambda: not registry.connected)
        assert 2.9 < trio.current_time() - before < 5
        world.network.heal()
        await registry.wait_connected()


async def test_a_node_that_talks_nonsense_is_left_with_growing_pauses(autojump_clock: MockClock) -> None:
    """Garbage after a good Hello costs the connection, never the program, and is not retried in a tight loop."""

    async def babble(stream: trio.abc.HalfCloseableStream) -> None:
        await hear(stream)
        await stream.send_all(encode(HelloOk(1, "c", 1, "0", 1000)) + b"\x00\x00\x00\x02\xc1\xc1")

    async with open_world(1) as world, trio.open_nursery() as nursery:
        await serve(world, nursery, "node1", babble)
        dials = Dials(world.network.host("client"))
        with trio.move_on_after(60):
            async with govern.connect("node1", timeout=math.inf, environment=doors(world, dials=dials)) as registry:
                async with registry.subscribe("orders"):
                    pytest.fail("entered")
        assert 30 < len(dials.times) < 120
        nursery.cancel_scope.cancel()


async def test_each_connection_is_a_later_attempt_of_one_session(autojump_clock: MockClock) -> None:
    """The session id stays, the attempt grows."""
    hellos: list[Hello] = []

    async def hang_up(stream: trio.abc.HalfCloseableStream) -> None:
        hello = await hear(stream)
        assert isinstance(hello, Hello)
        hellos.append(hello)

    async with open_world(1) as world, trio.open_nursery() as nursery:
        await serve(world, nursery, "node1", hang_up)
        with pytest.raises(Unreachable, match="closed the connection"):
            async with govern.connect("node1", environment=doors(world)):
                pytest.fail("entered")
        nursery.cancel_scope.cancel()
    assert [hello.attempt for hello in hellos] == list(range(1, len(hellos) + 1))
    assert len({hello.session_id for hello in hellos}) == 1


# --- registering --------------------------------------------------------------------------------------------------------------


async def test_host_and_id_have_defaults(autojump_clock: MockClock) -> None:
    """The host is the address from which the node is reached, the id is `host:port`."""
    async with open_registry() as (_, registry):
        async with registry.register("orders", port=80) as registration:
            assert registration.instance.host == "client"
            assert registration.instance.id == "client:80"
            assert registration.service == ServiceKey("default", "orders")
            assert registration.lease_id == registration.instance.lease_id > LSN_ZERO


@pytest.mark.parametrize(("host", "name"), [("2001:db8::7", "2001:db8::7:80"), ("fe80::1%eth0", "fe80::1@eth0:80")])
async def test_an_ipv6_host_makes_an_id_too(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    """Ids know neither brackets nor percent signs: the default id of such a host has none, and the instance is registered."""
    async with open_registry() as (_, registry):
        monkeypatch.setattr(registry._links, "local_host", host)
        async with registry.register("orders", port=80) as registration:
            assert (registration.instance.host, registration.instance.id) == (host, name)
        async with registry.register("orders", port=80, host="::1") as registration:
            assert (registration.instance.id, registration.instance.address) == ("::1:80", "[::1]:80")


async def test_bad_values_never_leave_the_program(autojump_clock: MockClock) -> None:
    """Every argument is checked at the door, and the block is not entered."""
    async with open_registry() as (_, registry):
        wrong: list[dict[str, Any]] = [
            {"port": 0},
            {"weight": -1},
            {"ttl": 0.5},
            {"metadata": {"a": 1}},
            {"status": "suspect"},
            {"status": "odd"},
            {"host": "a b"},
        ]
        for values in wrong:
            with pytest.raises(Invalid):
                registry.register("orders", **{"port": 80, **values})
        with pytest.raises(Invalid):
            registry.subscribe("no blanks allowed")
        with pytest.raises(Invalid):
            await registry.lookup("orders", namespace="no/slash")
        async with registry.register("orders", port=80) as registration:
            with pytest.raises(Invalid):
                await registration.update(weight=-1)
        assert (await registry.status())["operations"] == 2


async def test_update_changes_what_is_given(autojump_clock: MockClock) -> None:
    """Returned means visible; what is not given stays."""
    async with open_registry() as (_, registry):
        async with registry.register("orders", port=80, zone="a") as registration:
            await registration.update(weight=0.5, status="draining", metadata={"k": "v"})
            (instance,) = await registry.lookup("orders")
            assert (instance.weight, instance.status, instance.zone, instance.metadata) == (0.5, govern.Status.DRAINING, "a", {"k": "v"})
            assert registration.instance.lsn == instance.lsn


async def test_an_update_waits_for_the_next_connection(autojump_clock: MockClock) -> None:
    """A broken connection, and even a node that forgot everything, only delay it."""
    async with open_registry() as (world, registry):
        async with registry.register("orders", port=80) as registration:
            await world.crash()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: registration.update(weight=7.0))
                await trio.sleep(3)
                await world.start(memory=True)
            assert [instance.weight for instance in await registry.lookup("orders")] == [7.0]


async def test_a_cancelled_entry_leaves_nothing(autojump_clock: MockClock) -> None:
    """Whoever gives up while entering has registered nothing, also when the node gets the request much later."""
    async with open_registry() as (world, registry):
        world.network.hold("node1", "client")
        with trio.move_on_after(0.5):
            async with registry.register("orders", port=80):
                pytest.fail("entered")
        world.network.release("node1", "client")
        await trio.sleep(10)
        assert await registry.lookup("orders") == ()


async def test_persistent_instances_stay_until_they_are_deregistered(autojump_clock: MockClock) -> None:
    """Leaving the block keeps them, `deregister` removes them, and a second `deregister` has nothing to do."""
    async with open_registry() as (_, registry):
        async with registry.register("orders", port=80, ephemeral=False):
            pass
        async with registry.register("orders", port=81, ephemeral=False) as registration:
            await registration.deregister()
            await registration.deregister()
            with pytest.raises(govern.Gone):
                await registration.update(weight=2.0)
        assert [instance.port for instance in await registry.lookup("orders")] == [80]


async def test_the_newest_registration_wins_and_the_other_does_not_fight(autojump_clock: MockClock) -> None:
    """Two clients claim one id: the second gets it, the first is told why, and nothing moves after that."""
    async with open_registry() as (world, registry):
        async with registry.register("orders", port=80, id="x") as first:
            async with govern.connect("node1", environment=doors(world, "rival")) as other:
                async with other.register("orders", port=81, id="x") as second:
                    with trio.fail_after(1):
                        assert await first.wait_lost() == "superseded" == first.lost
                    with pytest.raises(Superseded):
                        await first.update(weight=2.0)
                    operations = (await registry.status())["operations"]
                    await trio.sleep(30)
                    assert (await registry.status())["operations"] == operations
                    assert second.lost is None
                    assert [instance.port for instance in await registry.lookup("orders")] == [81]


# --- reading ------------------------------------------------------------------------------------------------------------------


async def test_lookup_is_sorted_and_knows_namespaces(autojump_clock: MockClock) -> None:
    """Instances come in the order of their ids; a service of another namespace is another service."""
    async with open_registry() as (_, registry):
        async with AsyncExitStack() as stack:
            for port in (83, 81, 82):
                await stack.enter_async_context(registry.register("orders", port=port))
            await stack.enter_async_context(registry.register("orders", port=90, namespace="test"))
            assert [instance.port for instance in await registry.lookup("orders")] == [81, 82, 83]
            assert [instance.port for instance in await registry.lookup("orders", "test")] == [90]
            assert [(info.name, info.instances) for info in await registry.services()] == [("orders", 3)]
            assert [(info.namespace, info.instances) for info in await registry.services("")] == [("default", 3), ("test", 1)]


async def test_a_read_waits_ten_seconds_and_no_longer(autojump_clock: MockClock) -> None:
    """Without a node a read fails with `Unreachable`; a node that comes back in time answers it."""
    async with open_registry() as (world, registry):
        await world.crash()
        before = trio.current_time()
        with pytest.raises(Unreachable, match="node1"):
            await registry.lookup("orders")
        assert trio.current_time() - before == pytest.approx(10, abs=0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.status)
            await trio.sleep(2)
            await world.start(memory=True)


# --- live views ---------------------------------------------------------------------------------------------------------------


async def test_a_live_view_tells_changes_in_order_and_ends_with_its_block(autojump_clock: MockClock) -> None:
    """Each change is told once, and the loop of another task ends when the block is left."""
    told: list[tuple[list[int], list[str]]] = []
    async with open_registry() as (_, registry), trio.open_nursery() as nursery:
        async with registry.subscribe("orders") as view:

            async def follow() -> None:
                async for change in view:
                    told.append(([instance.port for instance in change.added], list(change.removed)))

            nursery.start_soon(follow)
            async with registry.register("orders", port=80):
                await trio.sleep(1)
            await trio.sleep(1)
    assert told == [([80], []), ([], ["client:80"])]


async def test_one_loop_at_a_time(autojump_clock: MockClock) -> None:
    """A second loop beside the first is a mistake and said to be one; a second loop after the first is fine."""
    async with open_registry() as (_, registry):
        async with registry.subscribe("orders") as view, registry.register("orders", port=80) as registration:
            async for _ in view:
                with pytest.raises(RuntimeError, match="already"):
                    aiter(view)
                break
            await registration.update(weight=2.0)
            async for change in view:
                assert [instance.weight for instance in change.updated] == [2.0]
                break


async def test_a_slow_consumer_sees_one_merged_change(autojump_clock: MockClock) -> None:
    """Ten updates while the consumer was busy are one change, and an instance that came and went is none."""
    async with open_registry() as (_, registry):
        async with registry.register("orders", port=80) as registration, registry.subscribe("orders") as view:
            for number in range(10):
                await registration.update(weight=float(number))
            async with registry.register("orders", port=81):
                pass
            await trio.sleep(1)
            changes = []
            with trio.move_on_after(1):
                async for change in view:
                    changes.append(change)
            assert [[instance.weight for instance in change.updated] for change in changes] == [[9.0]]
            assert not changes[0].added
            assert changes[0].lsn == view.lsn


async def test_late_pushes_do_no_harm(autojump_clock: MockClock) -> None:
    """A push for a service that nobody subscribes to is ignored and the connection lives on."""

    async def push(stream: trio.abc.HalfCloseableStream) -> None:
        await hear(stream)
        await stream.send_all(encode(HelloOk(1, "c", 1, "0", 1000)))
        await stream.send_all(encode(Delta(ServiceKey("default", "orders"), Lsn(1, 1), Lsn(1, 2), [], [])))
        await trio.sleep_forever()

    async with open_world(1) as world, trio.open_nursery() as nursery:
        await serve(world, nursery, "node1", push)
        async with govern.connect("node1", environment=doors(world)) as registry:
            await trio.sleep(2)
            assert registry.connected
        nursery.cancel_scope.cancel()


# --- leaving ------------------------------------------------------------------------------------------------------------------


async def test_leaving_says_goodbye(autojump_clock: MockClock) -> None:
    """After the block the node has nothing of the client any more, at once."""
    async with open_world(1) as world:
        node = await world.start(memory=True)
        async with govern.connect("node1", environment=doors(world)) as registry:
            async with registry.register("orders", port=80):
                assert node.status()["instances"] == 1
            assert node.status()["instances"] == 0
        assert trio.current_time() < 0.5


async def test_leaving_beside_a_dead_link_takes_one_second_altogether(autojump_clock: MockClock) -> None:
    """Nobody answers any more: twenty nested registrations and the registry itself are left within one second."""
    async with open_world(1) as world:
        await world.start(memory=True)
        async with AsyncExitStack() as stack:
            registry = await stack.enter_async_context(govern.connect("node1", environment=doors(world)))
            for port in range(1, 21):
                await stack.enter_async_context(registry.register("orders", port=port))
            world.network.partition("client", "node1")
            before = trio.current_time()
        assert 0.5 < trio.current_time() - before <= 1.001


async def test_many_registrations_that_are_cancelled_together_share_the_second(autojump_clock: MockClock) -> None:
    """The same with a task per registration, cancelled from outside."""
    async with open_world(1) as world:
        await world.start(memory=True)
        before = math.inf
        async with govern.connect("node1", environment=doors(world)) as registry, trio.open_nursery() as nursery:

            async def hold(port: int, task_status: trio.TaskStatus[None]) -> None:
                async with registry.register("orders", port=port):
                    task_status.started()
                    await trio.sleep_forever()

            for port in range(1, 21):
                await nursery.start(lambda task_status, port=port: hold(port, task_status))
            world.network.partition("client", "node1")
            before = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - before <= 1.001


async def test_leaving_while_disconnected_does_not_wait(autojump_clock: MockClock) -> None:
    """The link is known to be down: the block is left at once, and the removal follows with the next connection."""
    async with open_registry() as (world, registry):
        async with registry.register("orders", port=80):
            world.network.partition("client", "node1")
            await sleep_until(lambda: not registry.connected)
            before = trio.current_time()
        assert trio.current_time() == before
        world.network.heal()
        await registry.wait_connected()
        await trio.sleep(0.5)
        assert await registry.lookup("orders") == ()


class LateDials(Dials):
    """From some moment on a dial cannot be stopped: it succeeds two seconds later, also when nobody wants it any more."""

    late = False

    async def dial(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        stream = await super().dial(host, port)
        if self.late:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
        return stream


async def test_a_dial_that_succeeds_just_when_the_block_is_left_is_closed_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program leaves while a node comes back: its core has ended, and is not told of a stream."""
    told: list[Phase] = []
    dialled = ClientCore.dialled

    def listen(core: ClientCore, now: float) -> None:
        told.append(core.phase)
        dialled(core, now)

    monkeypatch.setattr(ClientCore, "dialled", listen)
    async with open_world(1) as world:
        await world.start(memory=True)
        dials = LateDials(world.network.host("client"))
        async with govern.connect("node1", environment=doors(world, dials=dials)) as registry:
            await world.kill("node1")
            await sleep_until(lambda: not registry.connected)
            await world.start(memory=True)
            dials.late = True
            seen = len(dials.times)
            await sleep_until(lambda: len(dials.times) > seen)
        assert told == [Phase.DOWN]
        node = world.machines["node1"].node
        assert node is not None
        await trio.sleep(1)
        assert node.status()["connections"] == 0


async def test_the_allowance_for_leaving_comes_back_with_time(autojump_clock: MockClock) -> None:
    """What was waited in vain is missing right afterwards, and there again later."""
    budget = LeaveBudget()
    for expected, rest in ((0.8, 0.0), (0.0, 0.5), (0.5, 10.0), (0.8, 0.0)):
        before = trio.current_time()
        with budget.spend():
            await trio.sleep(100)
        assert trio.current_time() - before == pytest.approx(expected)
        await trio.sleep(rest)


async def test_after_leaving_everything_says_so(autojump_clock: MockClock) -> None:
    """Handles that outlive their registry raise `Stopped`, those who wait are woken, and loops end."""
    async with open_world(1) as world:
        await world.start(memory=True)
        async with trio.open_nursery() as nursery:
            errors: list[type[BaseException]] = []

            async def wait(call: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(GovernError) as caught:
                    await call()
                errors.append(caught.type)

            async with govern.connect("node1", environment=doors(world)) as registry:
                async with registry.register("orders", port=80, ephemeral=False) as registration:
                    pass
                async with registry.register("orders", port=81) as other:
                    world.network.hold("node1", "client")
                    nursery.start_soon(wait, lambda: other.update(weight=2.0))
                    nursery.start_soon(wait, lambda: registry.lookup("orders"))
                    await trio.sleep(0.1)
        assert errors == [Stopped, Stopped]
        assert not registry.connected
        with pytest.raises(Stopped):
            registry.register("orders", port=82)
        with pytest.raises(Stopped):
            await registry.lookup("orders")
        with pytest.raises(Stopped):
            await registry.wait_connected()
        with pytest.raises(Stopped):
            await registration.update(weight=1.0)


# --- exceptions ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), ExceptionGroup("mine", [OSError()]), SystemExit(3)])
async def test_an_exception_of_the_block_comes_out_as_it_went_in(autojump_clock: MockClock, error: BaseException) -> None:
    """The very same object, not wrapped, through all three kinds of blocks."""
    async with open_world(1) as world:
        await world.start(memory=True)

        async def fail() -> None:
            async with govern.connect("node1", environment=doors(world)) as registry:
                async with registry.register("orders", port=80), registry.subscribe("orders"):
                    raise error

        with pytest.raises(type(error)) as caught:
            await fail()
        assert caught.value is error


async def test_an_exception_survives_a_cancellation_at_the_same_time(autojump_clock: MockClock) -> None:
    """The block raises while a scope around it is cancelled: the exception is not lost."""
    async with open_world(1) as world:
        await world.start(memory=True)
        with trio.CancelScope() as scope:

            async def fail() -> None:
                async with govern.connect("node1", environment=doors(world)):
                    scope.cancel()
                    raise ValueError("mine")

            with pytest.raises(ValueError, match="mine"):
                await fail()


async def test_cancellation_from_outside_goes_through(autojump_clock: MockClock) -> None:
    """A scope around the block ends it, at any depth, with nothing but a cancellation."""
    async with open_world(1) as world:
        node = await world.start(memory=True)
        with trio.move_on_after(1) as scope:
            async with govern.connect("node1", environment=doors(world)) as registry:
                async with registry.register("orders", port=80), registry.subscribe("orders"):
                    await trio.sleep_forever()
        assert scope.cancelled_caught
        assert node.status()["instances"] == 0


async def test_a_block_in_a_cancelled_scope_is_not_entered(autojump_clock: MockClock) -> None:
    """Connecting, registering and subscribing are cancellation points from the start, and leave nothing running."""
    async with open_registry() as (world, registry):
        for block in (
            govern.connect("node1", environment=doors(world)),
            registry.register("orders", port=80),
            registry.subscribe("orders"),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                async with block:
                    pytest.fail("entered")
            assert scope.cancelled_caught
        await trio.sleep(1)
        assert (await registry.status())["instances"] == 0


async def test_our_own_bug_ends_the_block(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the link is not hidden: the block is cancelled and the crash comes out, alone."""
    async with open_world(1) as world:
        await world.start(memory=True)

        def crash(raw: object, now: float) -> None:
            raise AssertionError("a bug")

        async def run() -> None:
            async with govern.connect("node1", environment=doors(world)) as registry:
                monkeypatch.setattr(registry._links.cores.entry, "receive", crash)
                await trio.sleep_forever()

        with pytest.raises(AssertionError, match="a bug"):
            await run()
