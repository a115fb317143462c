"""Drains and evictions of a whole node under a virtual clock: with subscribers that answer, are slow, break, die and never answer."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import trio

from govern.actors.node import Node, open_node
from govern.config import build_config
from govern.environment import Environment, SimulatedClock
from govern.messages import (
    Applied,
    Delta,
    Drain,
    Drained,
    Evict,
    Explain,
    Explained,
    Goodbye,
    Hello,
    HelloOk,
    Lost,
    Message,
    Refused,
    Register,
    Registered,
    Resumed,
    Subscribe,
    View,
)
from govern.model import LSN_ZERO, Instance, Lsn, client_fields
from govern.net.sim import SimNetwork
from govern.storage.sim import SimStorage

from .test_node_sim import ORDERS, RawClient, register, run


class Place:
    """A network with a disk on which one node after the other lives, and clients with names."""

    def __init__(self, seed: int, network: SimNetwork, nursery: trio.Nursery) -> None:
        self.network = network
        self.nursery = nursery
        self.storage = SimStorage(random.Random(seed))
        self._seed = seed

    @asynccontextmanager
    async def node(self, **keys: int) -> AsyncIterator[Node]:
        environment = Environment(
            network=self.network.host("node1"), random=random.Random(self._seed), clock=SimulatedClock(), storage=self.storage
        )
        config = build_config(("test", {"listen": "0.0.0.0:7400", "insecure": True, **keys}))
        async with open_node(config, environment=environment) as node:
            yield node
            node.validate()

    async def dial(self, who: str, attempt: int = 1, *, session: bool = True) -> RawClient:
        """A client that has said Hello; its name is its session."""
        client = RawClient(await self.network.host(who).dial("node1", 7400))
        await client.give(Hello(1, "", who, "", who.encode().ljust(16, b".") if session else b"", attempt))
        await client.until(HelloOk)
        self.nursery.start_soon(beat, client)
        return client


async def beat(client: RawClient) -> None:
    """A heartbeat every second, until either side closes the connection."""
    with suppress(trio.ClosedResourceError):
        await client.beat(1.0)


@asynccontextmanager
async def open_place(seed: int) -> AsyncIterator[Place]:
    network = SimNetwork(seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield Place(seed, network, nursery)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Reader:
    """A subscriber that applies what it is told, and says so when it is asked to."""

    client: RawClient
    lsn: Lsn = LSN_ZERO
    says_so: bool = True
    asked: int = 0

    async def read(self) -> None:
        """Until the connection ends."""
        with suppress(trio.ClosedResourceError):
            while (message := await self.client.take()) is not None:
                await self.apply(message)

    async def apply(self, message: Message) -> None:
        if isinstance(message, View | Delta):
            assert isinstance(message, View) or message.since == self.lsn, "a gap"
            self.lsn = message.lsn
            self.asked += message.ack
            if message.ack and self.says_so:
                await self.client.give(Applied(ORDERS, message.lsn))


def after(lsn: Lsn) -> Lsn:
    """The lsn of the next change of the same service in the same term."""
    return Lsn(lsn.term, lsn.seq + 1)


async def subscribe(place: Place, who: str, *, session: bool = True, says_so: bool = True) -> Reader:
    """A subscriber that has its first list and reads on."""
    reader = Reader(await place.dial(who, session=session), says_so=says_so)
    await reader.client.give(Subscribe(ORDERS))
    await reader.apply(await reader.client.until(View))
    place.nursery.start_soon(reader.read)
    return reader


async def resume(place: Place, who: str, former: Reader, attempt: int = 2) -> Reader:
    """The same client over a new connection, with the list it has."""
    reader = Reader(await place.dial(who, attempt), former.lsn)
    await reader.client.give(Subscribe(ORDERS, former.lsn))
    answer = await reader.client.until(Resumed)
    assert answer.lsn == former.lsn
    place.nursery.start_soon(reader.read)
    return reader


# --- drain ------------------------------------------------------------------------------------------------------------------


async def drain_among_fifty(seed: int, stubborn: bool, dies: bool) -> tuple[float, Lsn, Drained, list[Reader]]:
    """`(how long it took, the lsn of the change, the answer, the readers that live)`"""
    async with open_place(seed) as place, place.node() as node:
        owner = await place.dial("owner")
        lease_id = await owner.register("i1:1")
        readers = [await subscribe(place, f"reader{number}", session=number % 5 > 0) for number in range(47)]
        readers.append(await subscribe(place, "stubborn", says_so=not stubborn))
        breaks = await subscribe(place, "breaks")
        dead = await subscribe(place, "dead")
        await breaks.client.stream.aclose()
        if dies:
            await dead.client.stream.aclose()
        await trio.sleep(0.5)
        started = trio.current_time()
        await owner.give(Drain(ORDERS, "i1:1", lease_id, 10_000))
        await trio.sleep(1)
        assert node.status()["drains"] == 1
        readers.append(await resume(place, "breaks", breaks))
        answer = await owner.until(Drained)
        seconds = trio.current_time() - started
        with trio.move_on_after(15):
            await owner.until(Drained)
            raise AssertionError("it was answered twice")
        assert node.status()["drains"] == 0
        return seconds, after(lease_id), answer, readers


def test_a_drain_is_answered_when_the_last_subscriber_has_come_back_and_applied_it() -> None:
    """Forty-nine answer within a moment; the one whose connection broke resumes after a second with its old list, and is waited for."""
    result, _ = run(1, drain_among_fifty, False, False)
    assert isinstance(result, tuple)
    seconds, change, answer, readers = result
    assert 1.0 <= seconds <= 1.1
    assert answer == Drained(change, 50, 0, [])
    assert [(reader.lsn, reader.asked) for reader in readers] == [(change, 1)] * 49


def test_a_drain_waits_for_a_dead_subscriber_until_its_session_has_ended() -> None:
    """Its connection broke and it never comes back: it could still send traffic, as far as anybody knows, for 4.5 s."""
    result, _ = run(2, drain_among_fifty, False, True)
    assert isinstance(result, tuple)
    seconds, change, answer, _ = result
    assert 3.9 <= seconds <= 5.0  # it died half a second before
    assert answer == Drained(change, 50, 0, [])


def test_a_drain_names_who_has_not_applied_it_when_its_time_is_over() -> None:
    """Exactly then, and only the one that never answers; the dead one is gone by then, and the instance is draining all the same."""
    result, _ = run(3, drain_among_fifty, True, True)
    assert isinstance(result, tuple)
    seconds, change, answer, readers = result
    assert 10.0 <= seconds <= 10.01
    assert answer == Drained(change, 49, 1, ["stubborn (stubborn)"])
    assert all(reader.lsn == change for reader in readers)


async def repeated_over_a_restart(seed: int) -> tuple[float, float, Lsn, Drained, Message]:
    """`(when the slow subscriber had applied it, when the drain was answered, the lsn of the change, the answer, the view in the end)`"""
    async with open_place(seed) as place:
        async with place.node():
            owner = await place.dial("owner")
            lease_id = await owner.register("i1:1")
            slow = await subscribe(place, "slow", says_so=False)
            await owner.give(Drain(ORDERS, "i1:1", lease_id, 10_000))
            await trio.sleep(0.2)
            assert slow.lsn == after(lease_id)
            slow.lsn = lease_id  # it is so slow that it has read the change, but not yet acted on it
        async with place.node() as node:
            owner = await place.dial("owner", 2)
            await owner.give(Drain(ORDERS, "i1:1", lease_id, 10_000))
            await trio.sleep(1)
            assert node.status()["drains"] == 1, "nobody has come back yet, and the node must not think that there is nobody"
            await resume(place, "slow", slow)
            applied = trio.current_time()
            answer = await owner.until(Drained)
            answered = trio.current_time()
            await owner.give(Subscribe(ORDERS))
            return applied, answered, after(lease_id), answer, await owner.until(View)


def test_a_drain_that_is_repeated_after_a_restart_waits_for_those_who_come_back() -> None:
    """The node stops while a drain waits, and its successor knows nobody: it waits its four seconds for subscribers, the one that comes
    back with the old list is told and applies it, and only then is the drain answered."""
    result, _ = run(4, repeated_over_a_restart)
    assert isinstance(result, tuple)
    applied, answered, change, answer, view = result
    assert applied < answered <= applied + 4
    assert answer == Drained(change, 1, 0, [])
    assert isinstance(view, View)
    assert view.instances[0][1][8] == 1


async def the_asker_is_gone(seed: int) -> None:
    async with open_place(seed) as place, place.node() as node:
        owner = await place.dial("owner")
        lease_id = await owner.register("i1:1")
        await subscribe(place, "stubborn", says_so=False)
        await owner.give(Drain(ORDERS, "i1:1", lease_id, 60_000))
        await trio.sleep(0.1)
        assert node.status()["drains"] == 1
        await owner.stream.aclose()
        await trio.sleep(0.1)
        assert node.status()["drains"] == 0
        other = await place.dial("other")
        await other.give(Drain(ORDERS, "i1:1", LSN_ZERO, 1_000), Goodbye())
        assert (await other.until(Drained)).missing == ["stubborn (stubborn)"]


def test_nothing_waits_for_an_asker_that_is_gone_and_anybody_may_drain() -> None:
    """The connection of the owner breaks; an operator drains the same instance again, and is answered after its own time."""
    run(5, the_asker_is_gone)


# --- evict ------------------------------------------------------------------------------------------------------------------


async def evicted_for_good(seed: int) -> None:
    async with open_place(seed) as place:
        async with place.node(snapshot_bytes=64 * 1024) as node:
            owner, operator = await place.dial("owner"), await place.dial("operator", session=False)
            lease_id = await owner.register("i1:1")
            reader = await subscribe(place, "reader")
            await operator.give(Evict(ORDERS, "i1:1"))
            assert await owner.until(Lost) == Lost(ORDERS, "i1:1", lease_id, "evicted")
            del owner.leases[ORDERS, "i1:1"]
            await owner.give(again := Register(ORDERS, client_fields(Instance(id="i1:1", host="h", port=1)), lease_id))
            assert (await owner.until(Refused)).code == "evicted"
            await trio.sleep(0.1)
            assert reader.lsn == after(lease_id)
            large = {f"k{number}": "x" * 60 for number in range(60)}
            for number in range(20):
                await owner.register(f"large{number}:1", metadata=large, ephemeral=False)
                del owner.leases[ORDERS, f"large{number}:1"]
            while not any(name.startswith("snapshot-") and name[-1].isdigit() for name in place.storage.names()):
                await trio.sleep(0.1)
            assert node.status()["instances"] == 20
        async with place.node():
            owner, heir = await place.dial("owner", 2), await place.dial("heir")
            await owner.give(again)
            assert (await owner.until(Refused)).code == "evicted"
            await heir.give(register("i1:1"))
            await heir.until(Registered)
            await heir.give(Explain(ORDERS, "i1:1"))
            (row,) = (await heir.until(Explained)).instances
            assert (row["session"], row["who"], row["in_view"]) == (b"heir".hex(), "heir", True)


def test_an_evicted_client_does_not_come_back_not_even_after_a_restart_from_a_snapshot() -> None:
    """It is told, its registration is refused, before and after; somebody else gets the id."""
    run(6, evicted_for_good)
