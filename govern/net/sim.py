"""The simulated network: hosts with names, TCP between them, and faults on demand; the twin of `net/tcp.py`.

One `SimNetwork` is the world; `network.host("node1")` is the Network door of one machine in it. A host's name is its address;
`127.0.0.1`, `::1` and `localhost` mean the host itself. What the wire does is in `net/sim_link.py`; here are the machines at its
ends, and the faults:

    rules, partitions, slowness      are in `net/sim_faults.py`
    cut          connections are reset, a suffix of what was in flight is lost
    crash        a host is fenced: whatever its tasks still do while they are cancelled has no effect on anybody; when it is silent,
                 the peers are not told and their connections stay half-open

N1  Nothing moves but through `run`, and nothing is random but through generators derived from the seed and a name: the same seed
    and the same calls give the same world, and more traffic in one place does not reshuffle another.
N2  A crash fences first. Cancelling a task runs its cleanup, and cleanups write: were they heard, a crash would look like a polite stop.
N3  `ready` is level-triggered, its order is drawn, and every connection that is ready has its turn before one has its second.

Known limits: an address is bound by one listener per port, and the kernel's own buffers are one window per direction.
"""

from __future__ import annotations

import errno
import operator
import random
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final

import attrs
import trio

from .sim_faults import Faults
from .sim_link import CUT, HOLD, End, Judge, Link, Tap, Traffic, Verdict, connect_ends

__all__ = ["CUT", "HOLD", "SimConnection", "SimHost", "SimNetwork", "SimPoller", "SimStream", "Verdict"]

_RECEIVE_BYTES_MAX: Final = 64 * 1024
_BACKLOG_MAX: Final = 4096
_DIAL_SECONDS_MAX: Final = 120.0  # what a kernel waits for an answer to its first packet
_EPHEMERAL_PORT_FIRST: Final = 32768
_OWN_ADDRESSES: Final = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}
_ANY_ADDRESS: Final = ("0.0.0.0", "::")


def _refused(number: int, text: str) -> OSError:
    return OSError(number, text)  # the constructor picks the subclass that belongs to the number


class SimStream(trio.abc.HalfCloseableStream):
    """One end of a connection as a stream."""

    def __init__(self, end: End) -> None:
        self._end = end
        self._openers, self._readers, self._writers = (trio.lowlevel.ParkingLot() for _ in range(3))
        self._receiving = self._sending = False
        end.changed = self._wake

    def __repr__(self) -> str:
        return f"<SimStream {self._end.host} to {self._end.peer}>"

    @property
    def local_host(self) -> str:
        return self._end.host

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._only_sender():
            await trio.lowlevel.checkpoint()
            rest = memoryview(data)
            while not self._end.fenced:
                self._check_sendable()
                rest = rest[self._end.send(rest) :]
                if not rest:
                    return
                if not self._end.writable:
                    await self._writers.park()

    async def wait_send_all_might_not_block(self) -> None:
        with self._only_sender():
            await trio.lowlevel.checkpoint()
            while not self._end.fenced:
                self._check_sendable()
                if self._end.writable:
                    return
                await self._writers.park()

    async def send_eof(self) -> None:
        with self._only_sender():
            await trio.lowlevel.checkpoint()
            if self._end.closed:
                raise trio.ClosedResourceError("this stream is closed")
            self._end.finish()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            if self._end.readable or self._end.closed:
                await trio.lowlevel.checkpoint()  # whoever has to wait yields by that
            while True:
                if self._end.closed:
                    raise trio.ClosedResourceError("this stream is closed")
                data = self._end.recv(max_bytes or _RECEIVE_BYTES_MAX)
                if data is not None:
                    if self._end.broken and not self._end.fenced:
                        raise trio.BrokenResourceError("the connection was reset")
                    return data
                await self._readers.park()
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        self._end.close()
        for lot in (self._openers, self._readers, self._writers):
            lot.unpark_all()
        await trio.lowlevel.checkpoint()

    async def wait_opened(self) -> None:
        """Wait until the dial was answered, one way or the other."""
        while not (self._end.opened or self._end.broken or self._end.fenced):
            await self._openers.park()

    def _wake(self) -> None:
        """Those who can go on now. A reader sleeps through it when only the window of the writer has opened."""
        self._openers.unpark_all()
        if self._end.readable:
            self._readers.unpark_all()
        if self._end.writable:
            self._writers.unpark_all()

    @contextmanager
    def _only_sender(self) -> Generator[None]:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    def _check_sendable(self) -> None:
        if self._end.closed or self._end.finished:
            raise trio.ClosedResourceError("this stream was closed for sending")
        if self._end.broken:
            raise trio.BrokenResourceError("the connection was reset")


class _Listener:
    """A bound port; `changed` is called when a connection waits in the backlog."""

    def __init__(self, host: SimHost, address: tuple[str, int], changed: Callable[[], object]) -> None:
        self.address = address
        self.backlog: deque[End] = deque()
        self._host = host
        self._changed = changed

    def take(self, dialled_address: str, end: End) -> bool:
        """Whether this listener takes a connection that was dialled to that address."""
        bound = self.address[0]
        if bound != dialled_address and (bound not in _ANY_ADDRESS or (bound == "0.0.0.0" and dialled_address == "::1")):
            return False
        if len(self.backlog) == _BACKLOG_MAX:
            return False
        self.backlog.append(end)
        self._changed()
        return True

    def close(self) -> None:
        """Free the port; connections that nobody accepted are reset."""
        self._host.listeners.pop(self.address[1], None)
        while self.backlog:
            self.backlog.popleft().abort()


class SimConnection:
    """One accepted client connection. See `environment.Connection` for what each method promises."""

    def __init__(self, poller: SimPoller, end: End) -> None:
        self.owner: object = None
        self.peer = end.peer
        self.local_host = end.host
        self._poller = poller
        self._end = end
        self._reading = True
        self._writing = False
        end.changed = self._touch

    def __repr__(self) -> str:
        return f"<SimConnection {self._end.host} from {self.peer}>"

    @property
    def is_ready(self) -> bool:
        """Level-triggered: it can be read, or written where that is wanted."""
        return not self._end.closed and ((self._reading and self._end.readable) or (self._writing and self._end.writable))

    def recv(self) -> bytes | None:
        return b"" if self._end.closed else self._end.recv(_RECEIVE_BYTES_MAX)

    def send(self, data: bytes) -> int:
        return self._end.send(data)

    def want_write(self, wanted: bool) -> None:
        self._writing = wanted
        self._touch()

    def want_read(self, wanted: bool) -> None:
        self._reading = wanted
        self._touch()

    def close(self) -> None:
        self._end.close()
        self._poller.forget(self)

    def _touch(self) -> None:
        self._poller.touch(self)


class SimPoller:
    """All connections of one listening port, and one place to wait for them. See `environment.Poller`."""

    def __init__(self, chance: random.Random) -> None:
        self._random = chance
        self._changes = trio.lowlevel.ParkingLot()
        self._connections: dict[SimConnection, None] = {}
        self._touched: dict[SimConnection, None] = {}  # every ready connection is in it, and some that are ready no longer
        self._turn: list[SimConnection] = []  # N3
        self._closed = False
        self._listener: _Listener

    def __repr__(self) -> str:
        return f"<SimPoller {self.address} connections={len(self._connections)}>"

    @property
    def address(self) -> tuple[str, int]:
        return self._listener.address

    def listen(self, listener: _Listener) -> None:
        """Begin: called once, by the host."""
        self._listener = listener

    async def wait(self) -> None:
        if self._has_work():
            await trio.lowlevel.checkpoint()  # whoever has to wait yields by that
        while not self._has_work():
            await self._changes.park()
        if self._closed:
            raise trio.ClosedResourceError("this poller is closed")

    def accept(self, limit: int) -> Sequence[SimConnection]:
        accepted: list[SimConnection] = []
        while self._listener.backlog and len(accepted) < limit:
            connection = SimConnection(self, self._listener.backlog.popleft())
            self._connections[connection] = None
            self.touch(connection)
            accepted.append(connection)
        return accepted

    def ready(self, limit: int) -> Sequence[SimConnection]:
        if not self._turn:
            self._turn = self._find_ready()
            self._random.shuffle(self._turn)
        found: list[SimConnection] = []
        while self._turn and len(found) < limit:
            connection = self._turn.pop()
            if connection.is_ready:
                found.append(connection)
        return found

    def stop_listening(self) -> None:
        self._listener.close()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        for connection in list(self._connections):
            connection.close()
        self.wake()

    def touch(self, connection: SimConnection) -> None:
        """It may have become ready."""
        if connection in self._connections:
            self._touched[connection] = None
            if connection.is_ready:
                self.wake()

    def wake(self) -> None:
        """Look again whether there is something to do."""
        self._changes.unpark_all()

    def forget(self, connection: SimConnection) -> None:
        """It is closed."""
        self._connections.pop(connection, None)
        self._touched.pop(connection, None)

    def _has_work(self) -> bool:
        return self._closed or bool(self._listener.backlog) or bool(self._find_ready())

    def _find_ready(self) -> list[SimConnection]:
        found = [connection for connection in self._touched if connection.is_ready]
        self._touched = dict.fromkeys(found)
        return found


class SimHost:
    """One machine, from its start to its crash: the Network door of the node or client that runs on it."""

    def __init__(self, network: SimNetwork, name: str) -> None:
        self.name = name
        self.fenced = False
        self.listeners: dict[int, _Listener] = {}
        self.ends: dict[End, None] = {}
        self._network = network
        self._port_next = _EPHEMERAL_PORT_FIRST

    def __repr__(self) -> str:
        return f"<SimHost {self.name} connections={len(self.ends)} fenced={self.fenced}>"

    async def dial(self, host: str, port: int) -> SimStream:
        """A new stream. Raises `ConnectionRefusedError` when nobody listens, `TimeoutError` when nothing answers for 120 seconds."""
        await trio.lowlevel.checkpoint()
        self._check_running()
        end = self._network.open_connection(self, host, port)
        stream = SimStream(end)
        try:
            with trio.move_on_after(_DIAL_SECONDS_MAX):
                await stream.wait_opened()
            if end.refused:
                raise _refused(errno.ECONNREFUSED, f"nobody listens at {host}:{port}")
            if end.broken or end.fenced:
                raise _refused(errno.ECONNRESET, f"the connection to {host}:{port} was reset")
            if not end.opened:
                raise _refused(errno.ETIMEDOUT, f"{host}:{port} does not answer")
        except BaseException:
            end.close()
            raise
        return stream

    async def serve(
        self,
        host: str,
        port: int,
        handler: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[tuple[str, int]],
    ) -> None:
        """Listen, and run one task of `handler` per connection, until cancelled. A handler that raises ends it."""
        await trio.lowlevel.checkpoint()
        arrivals = trio.lowlevel.ParkingLot()
        listener = self._listen(host, port, arrivals.unpark_all)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(listener.address)
                while True:
                    while listener.backlog:
                        nursery.start_soon(self._handle, handler, SimStream(listener.backlog.popleft()))
                    await arrivals.park()
        finally:
            listener.close()

    async def open_poller(self, host: str, port: int) -> SimPoller:
        """Listen for client connections; raises `OSError` when it cannot bind."""
        await trio.lowlevel.checkpoint()
        poller = SimPoller(self._network.new_random(f"{self.name}/poller/{port}"))
        poller.listen(self._listen(host, port, poller.wake))
        return poller

    def local_host(self, stream: trio.abc.HalfCloseableStream) -> str:
        """The address of this side of a stream that `dial` returned."""
        assert isinstance(stream, SimStream)
        return stream.local_host

    def fence(self, *, silent: bool = False) -> None:
        """End this life of the machine (N2); a silent one resets nothing."""
        self.fenced = True
        for end in list(self.ends):
            end.fence(silent=silent)
        self.ends.clear()
        for listener in list(self.listeners.values()):
            listener.close()

    @staticmethod
    async def _handle(handler: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]], stream: SimStream) -> None:
        try:
            await handler(stream)
        finally:
            await trio.aclose_forcefully(stream)

    def _check_running(self) -> None:
        if self.fenced:
            raise _refused(errno.ENETDOWN, f"the host {self.name} has crashed")

    def _listen(self, host: str, port: int, changed: Callable[[], object]) -> _Listener:
        self._check_running()
        address = _OWN_ADDRESSES.get(host, host)
        if address not in (*_OWN_ADDRESSES, *_ANY_ADDRESS, self.name):
            raise _refused(errno.EADDRNOTAVAIL, f"{host} is not an address of the host {self.name}")
        while port == 0:
            port = self._port_next if self._port_next not in self.listeners else 0
            self._port_next += 1
        if port in self.listeners:
            raise _refused(errno.EADDRINUSE, f"the port {port} of the host {self.name} is taken")
        listener = _Listener(self, (address, port), changed)
        self.listeners[port] = listener
        return listener


@attrs.frozen
class _Answer:
    """How a dial that arrives finds its listener."""

    network: SimNetwork
    name: str
    port: int

    def __call__(self, end: End) -> bool:
        host = self.network.host(self.name)
        listener = host.listeners.get(self.port)
        if listener is None or not listener.take(end.host, end):
            return False
        host.ends[end] = None
        end.forget = lambda: host.ends.pop(end, None)
        return True


class SimNetwork:
    """The world between the hosts. `seed` is anything whose text is the same in every run."""

    def __init__(self, seed: object, *, delay_seconds_max: float = 0.002, window_bytes: int = 64 * 1024) -> None:
        self._seed = seed
        self._delay_seconds_max = delay_seconds_max
        self._window_bytes = window_bytes
        self._faults = Faults(self.new_random, delay_seconds_max)
        self._traffic = Traffic(self._faults.judge)
        self._hosts: dict[str, SimHost] = {}
        self._links: dict[tuple[str, str], Link] = {}

    @property
    def taps(self) -> list[Tap]:
        """Each is called as `tap(source, target, connection_number, data)` with the bytes that arrive at a machine that lives, before
        its program reads them; with `b""` when a reset arrives that discards some which it has not read. Machines are told by their
        names; both directions of a connection have the same number."""
        return self._traffic.taps

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move everything, until cancelled; one task of the simulation."""
        task_status.started()
        await self._traffic.run()

    def host(self, name: str) -> SimHost:
        """The machine of that name; after a crash, its next life."""
        host = self._hosts.get(name)
        if host is None or host.fenced:
            host = self._hosts[name] = SimHost(self, name)
            if name in self._faults.dark:
                del self._faults.dark[name]
                self._traffic.offer_held()
        return host

    # --- faults ---

    @contextmanager
    def rule(self, judge: Judge) -> Generator[None]:
        """Ask `judge(source, target, data)` about every segment: None (no opinion), a delay in seconds, `CUT` or `HOLD`. The first rule
        with an opinion decides; `data` is empty for the opening and the end of a connection."""
        self._faults.rules.append(judge)
        try:
            yield
        finally:
            self._faults.rules.remove(judge)
            self._traffic.offer_held()

    def partition(self, a: str | Iterable[str], b: str | Iterable[str]) -> None:
        """Hold everything between two groups of hosts, both ways, until `heal`."""
        self._faults.block(a, b)
        self._faults.block(b, a)

    def partition_oneway(self, source: str | Iterable[str], target: str | Iterable[str]) -> None:
        """Hold everything from one group of hosts to another until `heal`; the other way is open."""
        self._faults.block(source, target)

    def isolate(self, name: str) -> None:
        """Hold everything between a host and all others, those of the future too, until `heal`."""
        self._faults.isolated[name] = None

    def slow(self, a: str, b: str, seconds: float) -> None:
        """Every segment between two hosts takes up to so many seconds longer, until `heal`."""
        self._faults.slow(a, b, seconds)

    def clog(self, a: str, b: str, bytes_per_second: float) -> None:
        """Segments between two hosts queue behind each other at that rate, each way, until `heal`."""
        self._faults.clog(a, b, bytes_per_second)

    def heal(self) -> None:
        """End all partitions, isolations, slowness and clogs: what waited arrives now."""
        self._faults.heal()
        self._traffic.offer_held()

    def hold(self, source: str, target: str) -> None:
        """Hold everything from one host to another, one way, until `release`."""
        self._faults.holding[source, target] = None

    def release(self, source: str, target: str) -> None:
        """End a `hold`: what waited arrives now."""
        self._faults.holding.pop((source, target), None)
        self._traffic.offer_held()

    def cut(self, name: str, other: str | None = None) -> None:
        """Reset the connections of a host, or those between two hosts; both ends learn it after a delay."""
        for end in list(self.host(name).ends):
            if other is None or end.outgoing.link.target == other:
                end.cut()

    def crash(self, name: str, *, silent: bool = False) -> None:
        """End the life of a host now: call it before its tasks are cancelled (N2).

        Its peers see a reset after a delay. When it is `silent`, as a machine that lost its power is, they see nothing: what they send
        waits, dials are not answered, and only the next life of the machine, which begins with `host(name)`, answers with resets.
        """
        host = self._hosts.get(name)
        if host is not None and not host.fenced:
            host.fence(silent=silent)
        if silent:
            self._faults.dark[name] = None

    # --- for hosts ---

    def new_random(self, name: str) -> random.Random:
        """A generator of its own for each named thing (N1)."""
        return random.Random(f"{self._seed}/{name}")

    def open_connection(self, host: SimHost, dialled: str, port: int) -> End:
        """The dialling end of a new connection whose opening is on its way; raises `OSError` for a name that nobody has."""
        address = _OWN_ADDRESSES.get(dialled, dialled)
        name = host.name if address in _OWN_ADDRESSES else address
        if name not in self._hosts:
            raise _refused(errno.EHOSTUNREACH, f"no host is called {dialled}")
        here = address if address in _OWN_ADDRESSES else host.name
        dialler = End(here, address, self._window_bytes, None)
        target = End(address, here, self._window_bytes, _Answer(self, name, port))
        host.ends[dialler] = None
        dialler.forget = lambda: host.ends.pop(dialler, None)
        connect_ends(self._traffic, self._link(host.name, name), self._link(name, host.name), dialler, target)
        return dialler

    def _link(self, source: str, target: str) -> Link:
        link = self._links.get((source, target))
        if link is None:
            chance = self.new_random(f"{source}->{target}")
            link = self._links[source, target] = Link(source, target, chance, self._delay_seconds_max)
        return link
