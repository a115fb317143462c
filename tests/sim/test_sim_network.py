"""The faults of the simulated network do what they are called, and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from govern.net.sim import CUT, HOLD, SimConnection, SimNetwork, SimPoller, SimStream, Verdict
from govern.testing import simulate

SEEDS = range(20)

Scenario = Callable[[SimNetwork], Awaitable[None]]


def run_with_seeds(scenario: Scenario, window_bytes: int = 64 * 1024) -> None:
    async def in_world(seed: int) -> None:
        network = SimNetwork(seed, window_bytes=window_bytes)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            await scenario(network)
            nursery.cancel_scope.cancel()

    for seed in SEEDS:
        simulate(seed, in_world, horizon=10_000)


async def connect(network: SimNetwork, client: str = "a", server: str = "b") -> tuple[SimStream, SimPoller, SimConnection]:
    poller = await network.host(server).open_poller("0.0.0.0", 0)
    stream = await network.host(client).dial(server, poller.address[1])
    await poller.wait()
    (connection,) = poller.accept(1)
    return stream, poller, connection


def send_whole(connection: SimConnection, data: bytes) -> None:
    while data:
        data = data[connection.send(data) :]


async def settle() -> None:
    """Long enough for everything that is not held to arrive."""
    await trio.sleep(1)


# --- rules ------------------------------------------------------------------------------------------------------------------


def test_a_rule_delays_what_it_names_and_only_while_it_is_in_force() -> None:
    """A delay applies from a to b, not back, not to others, and not after its `with`; earlier rules decide first."""

    async def scenario(network: SimNetwork) -> None:
        stream, poller, connection = await connect(network)

        def slow(source: str, target: str, data: bytes) -> float | None:
            return 5.0 if (source, target) == ("a", "b") else None

        with network.rule(slow), network.rule(lambda source, target, data: 0.5):
            started = trio.current_time()
            await stream.send_all(b"x")
            send_whole(connection, b"y")
            assert await stream.receive_some() == b"y"
            assert trio.current_time() == pytest.approx(started + 0.5)
            await poller.wait()
            assert connection.recv() == b"x"
            assert trio.current_time() == pytest.approx(started + 5.0)
        started = trio.current_time()
        send_whole(connection, b"z")
        assert await stream.receive_some() == b"z"
        assert trio.current_time() - started <= 0.002

    run_with_seeds(scenario)


def test_a_later_segment_never_overtakes_an_earlier_one() -> None:
    """Bytes that were delayed by a rule arrive before bytes that were sent after the rule had gone (L1)."""

    async def scenario(network: SimNetwork) -> None:
        stream, _, connection = await connect(network)
        with network.rule(lambda source, target, data: 3.0):
            await stream.send_all(b"first ")
        await stream.send_all(b"second")
        await settle()
        assert connection.recv() is None
        await trio.sleep(3)
        assert connection.recv() == b"first second"

    run_with_seeds(scenario)


def test_a_rule_can_cut() -> None:
    """`CUT` resets the connection of the segment: both ends learn it; others live on."""

    async def scenario(network: SimNetwork) -> None:
        stream, _, connection = await connect(network)
        other_stream, _, other = await connect(network)

        def cut(source: str, target: str, data: bytes) -> Verdict | None:
            return CUT if data.startswith(b"fatal") else None

        with network.rule(cut):
            await stream.send_all(b"f")
            await settle()
            assert connection.recv() == b"f"
            while connection.send(b"fatal") >= 0:
                await settle()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            assert connection.recv() == b""
        await other_stream.send_all(b"fine")
        await settle()
        assert other.recv() == b"fine"

    run_with_seeds(scenario)


def test_held_bytes_arrive_when_the_rule_goes() -> None:
    """`HOLD` keeps a segment and all after it; leaving the `with` lets them arrive, in order and complete."""

    async def scenario(network: SimNetwork) -> None:
        stream, _, connection = await connect(network)
        with network.rule(lambda source, target, data: HOLD if data == b"1" else None):
            for number in range(5):
                await stream.send_all(b"%d" % number)
            await settle()
            assert connection.recv() == b"0"
            assert connection.recv() is None
        await settle()
        assert connection.recv() == b"1234"

    run_with_seeds(scenario)


# --- verbs ------------------------------------------------------------------------------------------------------------------


def test_a_partition_holds_both_ways_and_heals_without_loss() -> None:
    """Nothing passes between the groups, everything passes elsewhere; after `heal` all bytes are there."""

    async def scenario(network: SimNetwork) -> None:
        stream, _, connection = await connect(network)
        bystander, _, reached = await connect(network, "c", "b")
        network.partition("a", ["b"])
        await stream.send_all(b"to b")
        send_whole(connection, b"to a")
        await bystander.send_all(b"hello")
        await trio.sleep(100)
        assert reached.recv() == b"hello"
        assert connection.recv() is None
        with trio.move_on_after(10) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        network.heal()
        await settle()
        assert connection.recv() == b"to b"
        assert await stream.receive_some() == b"to a"

    run_with_seeds(scenario)


def test_dialling_into_a_partition_waits_and_gives_up() -> None:
    """A dial into a partition succeeds when it heals within 120 seconds, and is a `TimeoutError` otherwise."""

    async def scenario(network: SimNetwork) -> None:
        poller = await network.host("b").open_poller("0.0.0.0", 0)
        port = poller.address[1]
        network.partition("a", "b")

        async def heal_later() -> None:
            await trio.sleep(60)
            network.heal()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heal_later)
            stream = await network.host("a").dial("b", port)
            assert 60 <= trio.current_time() < 61
        await stream.aclose()
        network.partition("a", "b")
        with pytest.raises(TimeoutError):
            await network.host("a").dial("b", port)

    run_with_seeds(scenario)


def test_a_one_way_hold_makes_a_half_open_connection() -> None:
    """With a to b held, b still reaches a; `release` lets the rest arrive."""

    async def scenario(network: SimNetwork) -> None:
        stream, _, connection = await connect(network)
        network.hold("a", "b")
        await stream.send_all(b"lost for now")
        send_whole(connection, b"heard")
        await settle()
        assert await stream.receive_some() == b"heard"
        assert connection.recv() is None
        network.release("a", "b")
        await settle()
        assert connection.recv() == b"lost for now"

    run_with_seeds(scenario)


def test_a_cut_loses_a_suffix_and_only_of_its_connections() -> None:
    """After a cut the other side reads a prefix of what was in flight, in order; over the seeds little or most of it is lost."""
    kept: list[int] = []
    sent = b"".join(b"%04d" % number for number in range(50))

    async def scenario(network: SimNetwork) -> None:
        stream, poller, connection = await connect(network)
        other_stream, _, other = await connect(network, "a", "c")
        with network.rule(lambda source, target, data: 1.0 if target == "b" else None):
            for start in range(0, len(sent), 4):
                await stream.send_all(sent[start : start + 4])
                await trio.sleep(0.001)
        network.cut("a", "b")
        received = b""
        while (piece := connection.recv()) != b"":
            received += piece or b""
            await poller.wait()
        assert sent.startswith(received)
        kept.append(len(received))
        assert connection.send(b"x") == -1
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await other_stream.send_all(b"fine")
        await settle()
        assert other.recv() == b"fine"

    run_with_seeds(scenario)
    assert min(kept) < len(sent) // 4
    assert max(kept) > len(sent) * 3 // 4


def test_a_cancelled_dial_leaves_no_connection_behind() -> None:
    """The opening of a cancelled dial may still arrive; the connection it made is at its end at once."""

    async def scenario(network: SimNetwork) -> None:
        poller = await network.host("b").open_poller("0.0.0.0", 0)
        with network.rule(lambda source, target, data: 10.0 if source == "b" else None):
            with trio.move_on_after(5) as scope:
                await network.host("a").dial("b", poller.address[1])
            assert scope.cancelled_caught
            await poller.wait()
            (connection,) = poller.accept(9)
            while connection.recv() != b"":
                await poller.wait()
        await trio.sleep(20)
        assert network.host("a").ends == {}

    run_with_seeds(scenario)


# --- crash ------------------------------------------------------------------------------------------------------------------


def test_a_crash_fences_before_anything_is_cancelled() -> None:
    """What cleanups of a crashed host send reaches nobody, its handles read as ended, and its peers see a reset, not a goodbye (N2)."""

    async def scenario(network: SimNetwork) -> None:
        stream, poller, connection = await connect(network)

        async def stay(stream: trio.abc.HalfCloseableStream) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                    await stream.send_all(b"goodbye")
                    await stream.send_eof()

        dead = network.host("b")
        async with trio.open_nursery() as nursery:
            _, port = await nursery.start(dead.serve, "0.0.0.0", 0, stay)
            peer = await network.host("a").dial("b", port)
            await settle()
            network.crash("b")
            nursery.cancel_scope.cancel()
        assert (connection.recv(), connection.send(b"goodbye")) == (b"", -1)
        connection.close()
        for reset in (stream, peer):
            with pytest.raises(trio.BrokenResourceError):
                await reset.receive_some()
        with pytest.raises(ConnectionRefusedError):
            await network.host("a").dial("b", poller.address[1])
        with pytest.raises(OSError, match="crashed"):
            await dead.open_poller("0.0.0.0", 1)

    run_with_seeds(scenario)


def test_a_host_starts_again_after_a_crash() -> None:
    """The next life of a host listens on the same port; the old poller never sees its connections."""

    async def scenario(network: SimNetwork) -> None:
        _, poller, _ = await connect(network)
        network.crash("b")
        again = await network.host("b").open_poller("0.0.0.0", poller.address[1])
        stream = await network.host("a").dial("b", poller.address[1])
        await again.wait()
        (connection,) = again.accept(9)
        assert list(poller.accept(9)) == []
        poller.close()  # a late cleanup of the old life
        await stream.send_all(b"hello again")
        await settle()
        assert connection.recv() == b"hello again"

    run_with_seeds(scenario)


def test_the_reset_of_a_crash_does_not_pass_a_partition() -> None:
    """A host that crashes behind a partition is silent; its peers learn of the reset when the partition heals."""

    async def scenario(network: SimNetwork) -> None:
        stream, _, _ = await connect(network)
        network.partition("a", "b")
        network.crash("b")
        with trio.move_on_after(50) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        network.heal()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()

    run_with_seeds(scenario)


# --- what a program may rely on ---------------------------------------------------------------------------------------------


def test_in_flight_bytes_are_bounded_and_every_byte_arrives_in_order() -> None:
    """With nobody reading, an end takes exactly one window; with a reader, everything arrives, whatever the fragments (L1, L2)."""
    sent = bytes(range(256)) * 40

    async def scenario(network: SimNetwork) -> None:
        stream, _, connection = await connect(network)
        taken = 0
        while size := connection.send(sent[taken:]):
            taken += size
        assert taken == 1000
        received = b""
        async with trio.open_nursery() as nursery:

            async def send_rest() -> None:
                connection.want_write(True)
                rest = sent[taken:]
                while rest:
                    rest = rest[connection.send(rest) :]
                    await trio.sleep(0.001)

            nursery.start_soon(send_rest)
            while len(received) < len(sent):
                received += await stream.receive_some()
        assert received == sent

    run_with_seeds(scenario, window_bytes=1000)


def test_addresses_of_a_host() -> None:
    """Loopback reaches only the own host, `0.0.0.0` is reached from everywhere, and a foreign address cannot be bound."""

    async def scenario(network: SimNetwork) -> None:
        own, other = network.host("a"), network.host("b")
        poller = await own.open_poller("127.0.0.1", 7400)
        assert poller.address == ("127.0.0.1", 7400)
        await (await own.dial("localhost", 7400)).aclose()
        with pytest.raises(ConnectionRefusedError):
            await other.dial("a", 7400)
        with pytest.raises(OSError, match="is not an address of"):
            await own.open_poller("b", 0)
        with pytest.raises(OSError, match="no host is called"):
            await own.dial("nowhere", 7400)
        everywhere = await own.open_poller("0.0.0.0", 0)
        stream = await other.dial("a", everywhere.address[1])
        await everywhere.wait()
        (connection,) = everywhere.accept(9)
        assert (connection.peer, connection.local_host, other.local_host(stream)) == ("b", "a", "b")

    run_with_seeds(scenario)


def test_traffic_elsewhere_does_not_change_a_link() -> None:
    """The moments at which bytes arrive from a at b are the same with and without a busy pair c and d (L4)."""

    async def arrivals(seed: int, busy: bool) -> list[tuple[float, bytes]]:
        network = SimNetwork(seed)
        seen: list[tuple[float, bytes]] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            stream, poller, connection = await connect(network)
            if busy:
                await connect(network, "c", "d")
            for number in range(20):
                await trio.sleep_until(1.0 + number)
                await stream.send_all(b"message %d" % number)
                received = 0
                while received < len(b"message %d" % number):
                    await poller.wait()
                    data = connection.recv() or b""
                    received += len(data)
                    seen.append((trio.current_time(), data))
            nursery.cancel_scope.cancel()
        return seen

    for seed in range(3):
        assert simulate(seed, arrivals, False).result == simulate(seed, arrivals, True).result
