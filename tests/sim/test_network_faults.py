"""The faults of the simulated network beyond partitions: one way, isolation, slowness, clogs, silent crashes, taps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from govern.net.sim import SimNetwork, SimStream
from govern.testing import simulate


@asynccontextmanager
async def echo_pair(seed: int) -> AsyncIterator[tuple[SimNetwork, SimStream]]:
    """A server that answers what it hears, and a stream to it."""
    network = SimNetwork(seed)

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await nursery.start(lambda task_status: network.host("b").serve("0.0.0.0", 7, serve, task_status=task_status))
        yield network, await network.host("a").dial("b", 7)
        nursery.cancel_scope.cancel()


async def ask(stream: SimStream, data: bytes = b"x") -> float:
    """How long an answer takes."""
    began = trio.current_time()
    await stream.send_all(data)
    left = len(data)
    while left:
        left -= len(await stream.receive_some())
    return trio.current_time() - began


def run(scenario: object) -> None:
    simulate(5, scenario, horizon=500)  # type: ignore[arg-type]


@pytest.mark.parametrize("closed", [("a", "b"), ("b", "a")])
def test_a_way_that_is_closed_holds_what_is_sent(closed: tuple[str, str]) -> None:
    """Nothing passes until `heal`, and then everything does; the other way is open all the time."""

    async def scenario(seed: int) -> None:
        async with echo_pair(seed) as (network, stream):
            arrived: list[str] = []
            network.taps.append(lambda source, target, number, data: arrived.append(source + target))
            network.partition_oneway(*closed)
            with trio.move_on_after(5) as patience:
                await ask(stream)
            assert patience.cancelled_caught
            assert arrived == ([] if closed == ("a", "b") else ["ab"])
            network.heal()
            assert await stream.receive_some() == b"x"

    run(scenario)


def test_an_isolated_machine_reaches_nobody_but_itself() -> None:
    """Those that come later neither; and its own loopback works."""

    async def scenario(seed: int) -> None:
        async with echo_pair(seed) as (network, stream):
            network.isolate("b")
            with trio.move_on_after(5) as patience:
                await ask(stream)
            assert patience.cancelled_caught
            with trio.move_on_after(5) as patience:
                await network.host("c").dial("b", 7)
            assert patience.cancelled_caught
            async with await network.host("b").dial("localhost", 7) as own:
                assert await ask(own) < 1
            network.heal()
            assert await stream.receive_some() == b"x"

    run(scenario)


def test_slow_and_clogged_ways_take_longer_until_they_are_healed() -> None:
    """Up to so many seconds more for each segment; and so many bytes a second."""

    async def scenario(seed: int) -> None:
        async with echo_pair(seed) as (network, stream):
            assert await ask(stream) < 0.1
            network.slow("a", "b", 1.0)
            assert sum([await ask(stream) for _ in range(10)]) > 3.0
            network.heal()
            network.clog("a", "b", 1000.0)
            assert 3.9 < await ask(stream, bytes(4000)) < 9.0
            network.heal()
            assert await ask(stream, bytes(4000)) < 0.1

    run(scenario)


def test_a_silent_crash_tells_nobody() -> None:
    """The peer waits, its dials are not answered; the next life of the machine resets the old connection."""

    async def scenario(seed: int) -> None:
        async with echo_pair(seed) as (network, stream):
            network.crash("b", silent=True)
            with trio.move_on_after(30) as patience:
                await ask(stream)
            assert patience.cancelled_caught
            with trio.move_on_after(30) as patience:
                await network.host("a").dial("b", 7)
            assert patience.cancelled_caught
            network.host("b")  # the machine is back, and nobody listens there yet
            with pytest.raises(trio.BrokenResourceError):
                await ask(stream)
            with pytest.raises(ConnectionRefusedError):
                await network.host("a").dial("b", 7)

    run(scenario)


def test_a_tap_hears_what_arrives_with_the_number_of_its_connection() -> None:
    """Both ways under one number, other connections under others; nothing that arrives at a dead machine."""

    async def scenario(seed: int) -> None:
        async with echo_pair(seed) as (network, stream):
            heard: list[tuple[str, str, int, bytes]] = []
            network.taps.append(lambda *what: heard.append(what))
            await ask(stream, b"one")
            async with await network.host("a").dial("b", 7) as second:
                await ask(second, b"two")
            (first, *_), (last, *_) = heard[0:1], heard[-1:]
            assert b"".join(data for *_, number, data in heard if number == first[2]) == b"oneone"
            assert b"".join(data for *_, number, data in heard if number == last[2]) == b"twotwo"
            assert first[2] != last[2]
            heard.clear()
            await stream.send_all(b"three")
            network.crash("b")
            await trio.sleep(1)
            assert heard == []

    run(scenario)


def test_a_tap_is_told_when_a_reset_discards_what_nobody_has_read() -> None:
    """And not when everything was read before it."""

    async def scenario(seed: int) -> None:
        async with echo_pair(seed) as (network, _):
            listener = await network.host("b").open_poller("0.0.0.0", 8)
            heard: list[bytes] = []
            network.taps.append(lambda *what: heard.append(what[-1]))
            for reads in (True, False):
                stream = await network.host("a").dial("b", 8)
                await stream.send_all(b"x")
                await trio.sleep(1)
                (connection,) = listener.accept(2)
                if reads:
                    assert connection.recv() == b"x"
                connection.send(b"unread at the other end: closing it is a reset")
                await trio.sleep(1)
                heard.clear()
                await trio.aclose_forcefully(stream)
                await trio.sleep(1)
                assert heard == ([] if reads else [b""])

    run(scenario)
