"""A whole node under a virtual clock and a simulated network, spoken to by raw clients that know nothing but the wire."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import attrs
import pytest
import trio

from govern.actors.node import Node, open_node
from govern.core.digests import lease_digest
from govern.environment import Environment, SimulatedClock
from govern.messages import (
    FRAME_BYTES_MAX_TO_CLIENT,
    HEARTBEAT_OK,
    Delta,
    Goodbye,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Message,
    Refused,
    Register,
    Registered,
    Subscribe,
    Update,
    View,
    build_message,
    encode,
)
from govern.model import Instance, Lsn, ServiceKey, client_fields
from govern.net.frames import FrameReader
from govern.net.sim import SimNetwork
from govern.storage.sim import SimStorage
from govern.testing import simulate

ORDERS = ServiceKey("default", "orders")
READY_HOLD_SECONDS = 4.0  # nothing expires so soon after the start
M = TypeVar("M", bound=Message)


class RawClient:
    """Frames over a stream, and nothing done by itself."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.request_id = 0
        self.leases: dict[tuple[ServiceKey, str], Lsn] = {}
        self._sending = trio.Lock()
        self._reader = FrameReader(FRAME_BYTES_MAX_TO_CLIENT)
        self._read: deque[tuple[Message, int]] = deque()

    async def give(self, *messages: Message) -> None:
        """Send messages, in one piece."""
        data = []
        for message in messages:
            self.request_id += 1
            data.append(encode(message, self.request_id))
        async with self._sending:
            await self.stream.send_all(b"".join(data))

    async def take(self) -> Message | None:
        """The next message, None when the node closed the connection."""
        while not self._read:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._read.extend((build_message(raw), raw[1]) for raw in self._reader.feed(bytes(data)))
            assert self._reader.error is None
        return self._read.popleft()[0]

    async def until(self, kind: type[M]) -> M:
        """The next message of that kind; others before it are passed over."""
        while True:
            message = await self.take()
            assert message is not None, f"closed before any {kind.__name__}"
            if isinstance(message, kind):
                return message

    async def register(self, identity: str, service: ServiceKey = ORDERS, **fields: object) -> Lsn:
        await self.give(register(identity, service, **fields))
        answer = await self.until(Registered)
        self.leases[service, identity] = answer.lease_id
        return answer.lease_id

    def heartbeat(self) -> Heartbeat:
        digest = 0
        for (service, identity), lease_id in self.leases.items():
            digest ^= lease_digest(service, identity, lease_id)
        return Heartbeat(len(self.leases), digest)

    async def beat(self, seconds: float) -> None:
        """Heartbeats until the connection ends."""
        with suppress(trio.BrokenResourceError):
            while True:
                await self.give(self.heartbeat())
                await trio.sleep(seconds)


def register(identity: str, service: ServiceKey = ORDERS, **fields: object) -> Register:
    return Register(service, client_fields(Instance(id=identity, host="h", port=1, **fields)))  # type: ignore[arg-type]


class World:
    """One node on host `node1`, and clients on hosts of their own."""

    def __init__(self, node: Node, network: SimNetwork, nursery: trio.Nursery) -> None:
        self.node = node
        self.nursery = nursery
        self._network = network
        self._clients = 0

    async def dial(self) -> RawClient:
        self._clients += 1
        return RawClient(await self._network.host(f"client{self._clients}").dial("node1", 7400))

    async def connect(self, *, session: bool = True) -> RawClient:
        """A client that has said Hello."""
        client = await self.dial()
        session_id = self._clients.to_bytes(16, "big") if session else b""
        await client.give(Hello(1, "", f"client{self._clients}", "", session_id, 1))
        await client.until(HelloOk)
        return client

    async def subscriber(self) -> RawClient:
        client = await self.connect(session=False)
        await client.give(Subscribe(ORDERS))
        await client.until(View)
        return client


@asynccontextmanager
async def open_world(seed: int, storage: SimStorage | None = None) -> AsyncIterator[World]:
    """Leaving the block stops the clients' tasks and the network; the node is stopped before them, politely."""
    network = SimNetwork(seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        environment = Environment(network=network.host("node1"), random=random.Random(seed), clock=SimulatedClock(), storage=storage)
        async with open_node(environment=environment, listen="0.0.0.0:7400", insecure=True) as node:
            yield World(node, network, nursery)
            node.validate()
        await trio.sleep(1)  # what the node said in the end arrives
        nursery.cancel_scope.cancel()


def run(seed: int, scenario: Callable[..., Awaitable[object]], *arguments: object) -> tuple[object, str]:
    outcome = simulate(seed, scenario, *arguments, horizon=600)
    return outcome.result, outcome.trace


# --- silence ----------------------------------------------------------------------------------------------------------------


async def one_falls_silent(seed: int, ttl: float) -> float:
    """Seconds from the last frame of a client to the moment a subscriber is told that its instance is gone."""
    async with open_world(seed) as world:
        subscriber = await world.subscriber()
        if ttl > 10:
            world.nursery.start_soon(subscriber.beat, 5.0)
        await trio.sleep(READY_HOLD_SECONDS + random.Random(seed).random())
        client = await world.connect()
        await client.register("dies:1", ttl=ttl)
        for _ in range(3):
            await trio.sleep(ttl / 4)
            await client.give(client.heartbeat())
        last = trio.current_time()
        while True:
            delta = await subscriber.until(Delta)
            if delta.removed:
                assert delta.removed == ["dies:1"]
                return trio.current_time() - last


@pytest.mark.parametrize("seed", range(4))
def test_a_silent_client_is_gone_within_its_ttl_without_any_other_traffic(seed: int) -> None:
    """The subscriber is told between 4.4 and 5.0 seconds after the last frame; nobody else says a word in the meantime."""
    seconds, _ = run(seed, one_falls_silent, 5.0)
    assert isinstance(seconds, float)
    assert 4.4 <= seconds <= 5.0


@pytest.mark.parametrize("ttl", [1.0, 2.5, 60.0])
def test_every_ttl_is_kept(ttl: float) -> None:
    """Shortest, odd and long ones: not before 0.9 ttl less one tick, and told by the ttl."""
    seconds, _ = run(5, one_falls_silent, ttl)
    assert isinstance(seconds, float)
    assert 0.9 * ttl - 0.1 <= seconds <= ttl


def test_the_same_seed_is_the_same_run_of_the_node() -> None:
    """Step by step; another seed is another run."""
    assert run(1, one_falls_silent, 5.0) == run(1, one_falls_silent, 5.0)
    assert run(1, one_falls_silent, 5.0)[1] != run(2, one_falls_silent, 5.0)[1]


async def heartbeats_keep_alive(seed: int) -> None:
    async with open_world(seed) as world:
        subscriber = await world.subscriber()
        world.nursery.start_soon(subscriber.beat, 5.0)
        clients = []
        for ttl, every in [(1.0, 0.25), (5.0, 1.0), (60.0, 10.0)]:
            client = await world.connect()
            await client.register(f"ttl:{ttl}", ttl=ttl)
            world.nursery.start_soon(client.beat, every)
            clients.append(client)
        with trio.move_on_after(90):
            while True:
                assert (await subscriber.until(Delta)).removed == []
        for client in clients:
            assert (await client.until(HeartbeatOk)).state == HEARTBEAT_OK
        assert world.node.status()["instances"] == 3


@pytest.mark.parametrize("seed", range(2))
def test_clients_with_heartbeats_stay(seed: int) -> None:
    """With a heartbeat every quarter of a short ttl, every second, or every ten of sixty: for 90 seconds nobody is removed."""
    run(seed, heartbeats_keep_alive)


async def a_slow_reader_is_alive(seed: int) -> None:
    async with open_world(seed) as world:
        writer = await world.connect()
        world.nursery.start_soon(writer.beat, 1.0)
        large = {f"k{number}": "x" * 60 for number in range(60)}
        for start in range(0, 300, 50):
            await writer.give(*[register(f"i{number}:1", metadata=large, ephemeral=False) for number in range(start, start + 50)])
            for _ in range(50):
                await writer.until(Registered)
        slow = await world.connect()
        await slow.register("slow:1", ServiceKey("default", "mine"))
        await slow.give(Subscribe(ORDERS))
        world.nursery.start_soon(slow.beat, 1.0)
        for _ in range(120):  # a line of 50 KB a second: the view takes more than 20 s
            await trio.sleep(0.2)
            await slow.stream.receive_some(10_000)
            assert world.node.status()["instances"] == 301, trio.current_time()


def test_a_client_on_a_slow_line_does_not_expire_while_it_takes_a_long_view() -> None:
    """The node does not read a connection that owes it so much room, but bytes that are taken are a sign of life as well."""
    run(3, a_slow_reader_is_alive)


# --- the end ----------------------------------------------------------------------------------------------------------------


async def stop_with_writes_under_way(seed: int, goodbye: bool) -> list[Message]:
    storage = SimStorage(random.Random(seed))
    storage.latency_seconds = (0.02, 0.02)
    clients = []
    async with open_world(seed, storage) as world:
        client = await world.connect()
        clients.append(client)
        await client.give(*[register(f"i{number}:1") for number in range(50)], *([Goodbye()] if goodbye else []))
        await trio.sleep(0.01)  # they have arrived, and the disk is busy with the first
    messages = []
    while (message := await clients[0].take()) is not None:
        messages.append(message)
    return messages


@pytest.mark.parametrize("goodbye", [False, True])
def test_a_polite_stop_answers_the_writes_under_way(goodbye: bool) -> None:
    """Fifty registrations are on their way to the disk when the node is told to stop: all are answered, also a Goodbye that waits for them,
    then the client is told `stopping`, once, and the connection is closed."""
    messages, _ = run(1, stop_with_writes_under_way, goodbye)
    assert isinstance(messages, list)
    assert [type(message).__name__ for message in messages] == ["Registered"] * 50 + ["Done"] * goodbye + ["Refused"]
    assert messages[-1].code == "stopping"


async def a_deadline_passes(seed: int) -> list[tuple[str, str]]:
    storage = SimStorage(random.Random(seed))
    async with open_world(seed, storage) as world:
        client = await world.connect()
        storage.latency_seconds = (0.2, 0.2)
        await client.give(register("first:1"))
        await trio.sleep(0.05)
        await client.give(attrs.evolve(register("late:1"), timeout_ms=50), attrs.evolve(register("patient:1"), timeout_ms=5_000))
        answers: list[tuple[str, str]] = []
        while len(answers) < 3:
            answer = await client.take()
            assert isinstance(answer, Registered | Refused)
            answers.append((type(answer).__name__, answer.code if isinstance(answer, Refused) else ""))
        assert world.node.status()["instances"] == 2
        return answers


def test_a_write_whose_deadline_passes_while_the_disk_is_busy_is_not_carried_out() -> None:
    """It is refused as `overloaded` when its turn comes; the one beside it with more patience is registered (Q3)."""
    answers, _ = run(1, a_deadline_passes)
    assert answers == [("Registered", ""), ("Refused", "overloaded"), ("Registered", "")]


async def repeated_over_a_new_connection(seed: int) -> list[Message | None]:
    """A registration is on its way to the disk when its connection breaks; it is said again over the next one, with the same id."""
    storage = SimStorage(random.Random(seed))
    async with open_world(seed, storage) as world:
        first = await world.dial()
        await first.give(Hello(1, "", "x", "", b"s" * 16, 1))
        await first.until(HelloOk)
        storage.latency_seconds = (0.2, 0.2)
        await first.give(register("i1:1"))
        await trio.sleep(0.05)
        second = await world.dial()
        second.request_id = 0
        await second.give(Hello(1, "", "x", "", b"s" * 16, 2), register("i1:1"))
        answers: list[Message | None] = [await first.take(), await first.take(), await second.take(), await second.take()]
        assert world.node.status()["operations"] == 1
        return answers


def test_a_registration_repeated_after_a_break_is_one_registration() -> None:
    """The old connection is told `superseded` and closed; the new one gets the lease of the first try, whose operation was under way."""
    answers, _ = run(1, repeated_over_a_new_connection)
    assert isinstance(answers, list)
    refused, end, hello_ok, registered = answers
    assert isinstance(refused, Refused)
    assert refused.code == "superseded"
    assert end is None
    assert isinstance(hello_ok, HelloOk)
    assert hello_ok.resumed
    assert isinstance(registered, Registered)
    assert registered.lease_id.seq == registered.lsn.seq == 1


# --- subscribers ------------------------------------------------------------------------------------------------------------


async def many_subscribers(seed: int) -> list[Delta]:
    async with open_world(seed) as world:
        subscribers = [await world.subscriber() for _ in range(300)]
        client = await world.connect()
        await client.register("i1:1")
        deltas = [await subscriber.until(Delta) for subscriber in subscribers]
        with trio.move_on_after(1):
            await subscribers[0].take()
            raise AssertionError("it was told twice")
        return deltas


def test_three_hundred_subscribers_are_told_of_one_change() -> None:
    """Each once, with the same delta, in more than one slice."""
    deltas, _ = run(1, many_subscribers)
    assert isinstance(deltas, list)
    assert len(deltas) == 300
    assert all(delta == deltas[0] for delta in deltas)
    assert len(deltas[0].changed) == 1


async def never_reads(seed: int) -> tuple[int, Lsn, Lsn]:
    """`(largest backlog in bytes, lsn of the last commit, lsn that the reader reaches)`"""
    async with open_world(seed) as world:
        subscriber = await world.subscriber()
        client = await world.connect()
        for number in range(100):
            await client.register(f"i{number}:1")
        backlog = 0
        lsn = Lsn(0, 0)
        for turn in range(50):
            await client.give(*[Update(ORDERS, f"i{n}:1", client.leases[ORDERS, f"i{n}:1"], {"zone": f"z{turn}"}) for n in range(100)])
            await trio.sleep(0.05)
            links = [channel.link for channel in world.node._clients._channels.values()]
            backlog = max(backlog, *[len(link.unsent) + sum(map(len, link.out)) for link in links])
        newest = Lsn(client.leases[ORDERS, "i0:1"].term, 5_100)
        while lsn < newest:
            message = await subscriber.take()
            if isinstance(message, View):
                lsn = message.lsn
            elif isinstance(message, Delta):
                assert message.since == lsn or lsn == Lsn(0, 0), "a gap"
                lsn = message.lsn
        return backlog, newest, lsn


def test_a_subscriber_that_does_not_read_costs_one_push_and_gets_the_newest_state_when_it_does() -> None:
    """Five thousand changes behind a socket that takes nothing: what waits for it never exceeds one push of 100 instances; then it reads,
    without a gap, and ends at the last commit."""
    result, _ = run(1, never_reads)
    assert isinstance(result, tuple)
    backlog, committed, reached = result
    assert 0 < backlog < 16 * 1024
    assert reached == committed


# --- patience ---------------------------------------------------------------------------------------------------------------


async def says_hello_never(world: World) -> RawClient:
    return await world.dial()


async def leaves_a_frame_open(world: World) -> RawClient:
    client = await world.connect()
    frame = encode(register("i1:1"), 9)
    await client.stream.send_all(frame[:1])

    async def drip() -> None:
        for byte in frame[1:-1]:
            await trio.sleep(1)
            with suppress(trio.BrokenResourceError):
                await client.stream.send_all(bytes([byte]))

    world.nursery.start_soon(drip)
    return client


async def says_nothing_more(world: World) -> RawClient:
    return await world.connect()


async def runs_out_of_patience(seed: int, begin: Callable[[World], Awaitable[RawClient]]) -> tuple[float, list[Message]]:
    async with open_world(seed) as world:
        started = trio.current_time()
        client = await begin(world)
        messages = []
        while (message := await client.take()) is not None:
            messages.append(message)
        assert world.node.status()["connections"] == 0
        return trio.current_time() - started, messages


@pytest.mark.parametrize(("begin", "seconds"), [(says_hello_never, 5), (leaves_a_frame_open, 10), (says_nothing_more, 15)])
def test_connections_that_use_up_the_patience_are_closed_with_one_reason(
    begin: Callable[[World], Awaitable[RawClient]], seconds: float
) -> None:
    """No Hello for 5 s, a frame dripping in byte by byte for 10 s, silence for 15 s: one Refused, then the end, soon after the limit."""
    result, _ = run(1, runs_out_of_patience, begin)
    assert isinstance(result, tuple)
    after, messages = result
    assert seconds - 0.2 <= after <= seconds + 1.5
    assert [(type(message), message.code) for message in messages] == [(Refused, "timeout")]
