"""One suite for both twins of the Network door: what is promised in govern/environment.py holds for real TCP and in the simulation.

A simulated run is repeated with several seeds, so that fragments, partial sends and orders differ. A real run waits on conditions; its
timeout only bounds a test that has failed.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio
from trio.testing import MockClock, check_half_closeable_stream

from govern.environment import Connection, Network, Poller
from govern.net.sim import SimNetwork
from govern.net.tcp import TcpNetwork
from govern.testing import simulate


@attrs.frozen
class World:
    """A machine that listens and a machine that dials; for the real twin they are the same."""

    server: Network
    client: Network
    bind_host: str
    dial_host: str
    seconds_for_progress: float
    """A level-triggered wait returns at once while anything is ready: who waits for more than that must let time pass."""

    async def let_time_pass(self) -> None:
        await trio.sleep(self.seconds_for_progress)

    async def open_poller(self) -> Poller:
        return await self.server.open_poller(self.bind_host, 0)

    async def dial(self, poller: Poller) -> trio.abc.HalfCloseableStream:
        return await self.client.dial(self.dial_host, poller.address[1])

    async def connect(self, poller: Poller) -> tuple[trio.abc.HalfCloseableStream, Connection]:
        stream = await self.dial(poller)
        while True:
            await poller.wait()
            for connection in poller.accept(1):
                return stream, connection


Scenario = Callable[[World], Awaitable[None]]
Run = Callable[[Scenario], None]


def run_real(scenario: Scenario) -> None:
    async def bounded() -> None:
        with trio.fail_after(30):
            await scenario(World(TcpNetwork(), TcpNetwork(), "127.0.0.1", "127.0.0.1", 0))

    trio.run(bounded)


def run_simulated(seed: int, scenario: Scenario) -> None:
    async def in_world(seed: int) -> None:
        network = SimNetwork(seed)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            await scenario(World(network.host("server"), network.host("client"), "0.0.0.0", "server", 0.001))
            nursery.cancel_scope.cancel()

    simulate(seed, in_world, horizon=1000)


@pytest.fixture(params=["real", "simulated-1", "simulated-2", "simulated-3"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "real":
        return run_real
    seed = int(request.param.rpartition("-")[2])
    return lambda scenario: run_simulated(seed, scenario)


async def receive_exactly(stream: trio.abc.HalfCloseableStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return data


async def poll_exactly(poller: Poller, connection: Connection, size: int) -> bytes:
    data = b""
    while len(data) < size:
        await poller.wait()
        if connection in poller.ready(100):
            piece = connection.recv()
            assert piece != b"", f"the connection ended after {len(data)} of {size} bytes"
            data += piece or b""
    return data


async def poll_end(poller: Poller, connection: Connection) -> bytes:
    """Everything up to the end that the other side made."""
    data = b""
    while True:
        await poller.wait()
        if connection in poller.ready(100):
            piece = connection.recv()
            if piece == b"":
                return data
            data += piece or b""


async def drain(stream: trio.abc.HalfCloseableStream) -> None:
    while await stream.receive_some():
        pass


async def wait_again_and_again(poller: Poller) -> None:
    while True:
        await poller.wait()


def send_whole(connection: Connection, data: bytes) -> None:
    """For answers that are far smaller than any buffer."""
    while data:
        sent = connection.send(data)
        assert sent > 0
        data = data[sent:]


# --- streams ----------------------------------------------------------------------------------------------------------------


def test_streams_carry_bytes_both_ways_and_end_separately(run: Run) -> None:
    """What is sent arrives in order in both directions, and ending one direction leaves the other open."""
    sent = bytes(range(256)) * 1000

    async def scenario(world: World) -> None:
        async def answer(stream: trio.abc.HalfCloseableStream) -> None:
            received = b""
            while piece := await stream.receive_some():
                received += piece
            await stream.send_all(received[::-1])

        async with trio.open_nursery() as nursery:
            host, port = await nursery.start(world.server.serve, world.bind_host, 0, answer)
            assert (host, port > 0) == (world.bind_host, True)
            for _ in range(2):
                async with await world.client.dial(world.dial_host, port) as stream:
                    await stream.send_all(sent)
                    await stream.send_eof()
                    assert await receive_exactly(stream, len(sent)) == sent[::-1]
                    assert await stream.receive_some() == b""
            nursery.cancel_scope.cancel()

    run(scenario)


def test_dialling_where_nobody_listens_is_an_os_error(run: Run) -> None:
    """A dial that nobody takes ends with `OSError`, also after a listener was there and has gone."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        poller.close()
        with pytest.raises(OSError, match=r"."):
            await world.dial(poller)

    run(scenario)


def test_a_connection_to_itself_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dial to a port on which nobody listens, and that the kernel gives to the dialling side itself, is refused like any other."""

    async def dial_itself(host: str, port: int) -> trio.SocketStream:
        sock = trio.socket.socket()
        await sock.bind((host, port))
        await sock.connect(sock.getsockname())
        opened.append(trio.SocketStream(sock))
        return opened[-1]

    async def scenario() -> None:
        with pytest.raises(ConnectionRefusedError):
            await TcpNetwork().dial("127.0.0.1", 0)

    opened: list[trio.SocketStream] = []
    monkeypatch.setattr(trio, "open_tcp_stream", dial_itself)
    trio.run(scenario)
    assert opened[0].socket.fileno() == -1


def test_a_port_is_bound_once(run: Run) -> None:
    """A second listener on a port is refused with `OSError`, for both ways to listen."""

    async def never(stream: trio.abc.HalfCloseableStream) -> None:
        raise AssertionError("nobody dials")

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        with pytest.raises(OSError, match=r"."):
            await world.server.open_poller(world.bind_host, poller.address[1])
        with pytest.raises(OSError, match=r"."):
            await world.server.serve(world.bind_host, poller.address[1], never, task_status=trio.TASK_STATUS_IGNORED)
        poller.close()

    run(scenario)


def test_addresses_are_told_plainly(run: Run) -> None:
    """Both sides know the address at which they are reached, and a fresh connection belongs to nobody."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        stream, connection = await world.connect(poller)
        assert connection.peer == world.client.local_host(stream)
        assert connection.local_host == world.dial_host
        assert connection.owner is None
        assert poller.address[0] == world.bind_host
        await stream.aclose()
        poller.close()

    run(scenario)


def test_ipv6_loopback(run: Run) -> None:
    """`::1` can be bound and dialled, and is shown as such."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")

    async def scenario(world: World) -> None:
        poller = await world.server.open_poller("::1", 0)
        stream = await world.server.dial("::1", poller.address[1])
        await poller.wait()
        (connection,) = poller.accept(9)
        assert (poller.address[0], connection.peer, connection.local_host) == ("::1", "::1", "::1")
        assert world.server.local_host(stream) == "::1"
        await stream.aclose()
        poller.close()

    run(scenario)


def test_an_ipv4_caller_of_an_ipv6_listener_is_shown_as_ipv4() -> None:
    """Through `::` also IPv4 callers come in, and their address carries no `::ffff:`."""
    try:
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True).close()
    except (OSError, ValueError):
        pytest.skip("this machine has no dual stack")

    async def scenario(world: World) -> None:
        poller = await world.server.open_poller("::", 0)
        stream, connection = await world.connect(poller)
        assert (connection.peer, connection.local_host) == ("127.0.0.1", "127.0.0.1")
        await stream.aclose()
        poller.close()

    run_real(scenario)


# --- the poller -------------------------------------------------------------------------------------------------------------


def test_a_connection_is_read_and_answered(run: Run) -> None:
    """Requests of a dialled stream arrive at the poller's connection, and its answers at the stream; between them there is nothing."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        stream, connection = await world.connect(poller)
        for number in range(20):
            request = b"request %d" % number
            await stream.send_all(request)
            assert await poll_exactly(poller, connection, len(request)) == request
            assert connection.recv() is None
            send_whole(connection, request * 3)
            assert await receive_exactly(stream, len(request) * 3) == request * 3
        await stream.aclose()
        poller.close()

    run(scenario)


def test_ready_is_level_triggered(run: Run) -> None:
    """A connection whose bytes were not read is ready again, and one whose bytes were read is not."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        stream, connection = await world.connect(poller)
        await stream.send_all(b"x")
        for _ in range(3):
            await poller.wait()
            assert list(poller.ready(10)) == [connection]
        assert connection.recv() == b"x"
        assert list(poller.ready(10)) == []
        await stream.aclose()
        poller.close()

    run(scenario)


def test_a_slow_reader_stops_the_sender_and_want_write_tells_when_it_goes_on(run: Run) -> None:
    """`send` takes what there is room for, 0 when there is none; with `want_write` the connection is ready again once the other side
    has read, and no byte is lost, repeated or out of order."""
    sent = bytes(range(251)) * 40_000

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        stream, connection = await world.connect(poller)
        rest = memoryview(sent)
        while taken := connection.send(bytes(rest[:100_000])):
            rest = rest[taken:]
        assert rest, "the other side has not read: the sender must have been stopped"
        assert list(poller.ready(10)) == []
        connection.want_write(True)

        async def read() -> None:
            assert await receive_exactly(stream, len(sent)) == sent

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            while rest:
                await poller.wait()
                for ready in poller.ready(10):
                    taken = ready.send(bytes(rest[:100_000]))
                    assert taken >= 0
                    rest = rest[taken:]
        await poller.wait()
        assert list(poller.ready(10)) == [connection], "there is room, and it is still wanted"
        connection.want_write(False)
        assert list(poller.ready(10)) == []
        await stream.aclose()
        poller.close()

    run(scenario)


def test_the_end_of_the_other_side_reads_as_empty_bytes_and_answers_still_go_out(run: Run) -> None:
    """After the other side has sent its last byte, `recv` gives the rest and then `b""`, and `send` still reaches it."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        stream, connection = await world.connect(poller)
        await stream.send_all(b"last words")
        await stream.send_eof()
        assert await poll_end(poller, connection) == b"last words"
        send_whole(connection, b"farewell")
        connection.close()
        assert await receive_exactly(stream, 8) == b"farewell"
        assert await stream.receive_some() == b""
        await stream.aclose()
        poller.close()

    run(scenario)


def test_a_closed_connection_is_never_ready_again(run: Run) -> None:
    """Closing takes a connection out of `ready`, also one that was ready already; closing twice is allowed; the other side is told."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        first_stream, first = await world.connect(poller)
        second_stream, second = await world.connect(poller)
        await first_stream.send_all(b"x")
        await second_stream.send_all(b"x")
        while len(poller.ready(10)) < 2:
            await world.let_time_pass()
        (taken,) = poller.ready(1)
        other = second if taken is first else first
        other.close()
        other.close()
        other.want_write(True)
        assert other not in [*poller.ready(10), *poller.ready(10)]
        assert (other.recv(), other.send(b"x")) == (b"", -1)
        with pytest.raises(trio.BrokenResourceError):  # it had not read everything, so the other side is reset
            await drain(first_stream if other is first else second_stream)
        await first_stream.aclose()
        await second_stream.aclose()
        poller.close()

    run(scenario)


def test_a_broken_connection_writes_as_minus_one_and_reads_as_its_end(run: Run) -> None:
    """When the other side is gone, sending never raises: it gives -1 sooner or later, and then `recv` gives `b""`."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        stream, connection = await world.connect(poller)
        send_whole(connection, b"never read")
        await stream.receive_some(1)
        await stream.aclose()
        assert await poll_end(poller, connection) == b""
        connection.want_write(True)
        while connection.send(b"x" * 1000) >= 0:
            await world.let_time_pass()
        assert connection.recv() == b""
        assert connection.send(b"x") == -1
        connection.close()
        poller.close()

    run(scenario)


def test_many_connections_take_turns(run: Run) -> None:
    """Of 150 ready connections, asked for 7 at a time, none has a second turn before each had its first; accepting is bounded too."""
    count = 150

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        streams: list[trio.abc.HalfCloseableStream] = []
        connections: dict[Connection, None] = {}
        for _ in range(count):
            streams.append(await world.dial(poller))
        while len(connections) < count:
            await poller.wait()
            accepted = poller.accept(11)
            assert len(accepted) <= 11
            connections.update(dict.fromkeys(accepted))
        for stream in streams:
            await stream.send_all(b"x")
        while len(poller.ready(count)) < count:
            await world.let_time_pass()
        turns: list[Connection] = []
        while len(turns) < count:
            found = poller.ready(7)
            assert len(found) <= 7
            turns += found
        assert len(dict.fromkeys(turns)) == count
        assert connections.keys() == dict.fromkeys(turns).keys()
        poller.close()
        for stream in streams:
            await stream.aclose()

    run(scenario)


def test_stop_listening_keeps_the_connections(run: Run) -> None:
    """After `stop_listening` nobody new comes in, and those who are in are served."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        stream, connection = await world.connect(poller)
        poller.stop_listening()
        poller.stop_listening()
        with pytest.raises(OSError, match=r"."):
            await world.dial(poller)
        assert list(poller.accept(10)) == []
        await stream.send_all(b"still here")
        assert await poll_exactly(poller, connection, 10) == b"still here"
        await stream.aclose()
        poller.close()

    run(scenario)


def test_closing_a_poller_ends_everything(run: Run) -> None:
    """After `close` the connections are ended, `ready` is empty, and a task in `wait` is woken with `ClosedResourceError`."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        stream, connection = await world.connect(poller)

        async def wait_for_ever() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await wait_again_and_again(poller)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_ever)
            await trio.testing.wait_all_tasks_blocked()
            poller.close()
            poller.close()
        with pytest.raises(trio.ClosedResourceError):
            await poller.wait()
        assert (list(poller.ready(10)), list(poller.accept(10)), connection.recv()) == ([], [], b"")
        assert await stream.receive_some() == b""
        await stream.aclose()

    run(scenario)


def test_waiting_is_a_checkpoint_and_can_be_cancelled(run: Run) -> None:
    """`wait` lets other tasks run even when something is ready, and is cancelled like any wait."""

    async def scenario(world: World) -> None:
        poller = await world.open_poller()
        with trio.CancelScope() as scope:
            scope.cancel()
            await poller.wait()
        assert scope.cancelled_caught
        stream, connection = await world.connect(poller)
        await stream.send_all(b"x")
        await poller.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await poller.wait()
        assert scope.cancelled_caught
        assert await poll_exactly(poller, connection, 1) == b"x"
        await stream.aclose()
        poller.close()

    run(scenario)


# --- one twin only ----------------------------------------------------------------------------------------------------------


def test_out_of_descriptors_the_listener_rests_and_comes_back() -> None:
    """With no descriptor left, `accept` gives nothing and the poller does not spin; after 100 ms, or when a connection closes, the
    connection that waited is accepted."""

    async def scenario() -> None:
        poller = await TcpNetwork().open_poller("127.0.0.1", 0)
        streams = [await TcpNetwork().dial("127.0.0.1", poller.address[1]) for _ in range(3)]
        await poller.wait()
        (first,) = poller.accept(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        await poller.wait()
        started = trio.current_time()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert list(poller.accept(10)) == []
            await poller.wait()  # nothing can be done before the pause is over
            assert trio.current_time() >= started + 0.1
            assert list(poller.accept(10)) == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        paused = trio.current_time()
        first.close()
        await poller.wait()
        assert trio.current_time() == paused, "a closed connection ends the pause at once"
        assert len(poller.accept(10)) == 2
        poller.close()
        for stream in streams:
            await stream.aclose()

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


def test_simulated_streams_keep_the_contract_of_trio_streams() -> None:
    """Trio's own checks for half-closeable streams pass: busy, closed and broken errors, checkpoints, end of bytes."""

    async def scenario(seed: int) -> None:
        network = SimNetwork(seed, delay_seconds_max=0.0, window_bytes=4096)

        async def make_pair() -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
            served: list[trio.abc.HalfCloseableStream] = []

            async def keep(stream: trio.abc.HalfCloseableStream) -> None:
                served.append(stream)
                arrived.set()
                await trio.sleep_forever()

            arrived = trio.Event()
            _, port = await nursery.start(network.host("server").serve, "0.0.0.0", 0, keep)
            stream = await network.host("client").dial("server", port)
            await arrived.wait()
            return stream, served[0]

        async def make_clogged_pair() -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
            left, right = await make_pair()
            for stream in (left, right):
                with trio.move_on_after(1):
                    await stream.send_all(b"x" * 10_000)
            return left, right

        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            await check_half_closeable_stream(make_pair, make_clogged_pair)
            nursery.cancel_scope.cancel()

    simulate(5, scenario)
