"""The real network: TCP streams for peers, dialling and administration, and a poller for the thousands of client connections.

Streams are trio's own. The poller exists because a task per connection costs three to five times the processor and twenty times the
memory: one task waits on the selector's own descriptor, asks it once per turn which sockets are ready, and reads and writes them
without blocking.

T1  One select per turn: what it reports beyond the caller's limit is kept and served first, so that a busy connection cannot push
    a quiet one aside.
T2  Nothing the other side does raises: a broken connection reads as its end, and writes as -1.
T3  When descriptors run out, the listener leaves the selector until a connection closes or 100 ms have passed. New connections wait in
    the kernel's backlog, and the task does not spin on a listener that cannot be served.
T4  A closed connection is out of the selector before its descriptor can be reused, and never comes out of `ready` again.

Known limit: name resolution happens in a thread of trio's, as everywhere in trio.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

_RECEIVE_BYTES_MAX: Final = 64 * 1024  # a buffer of 256 KiB costs five times the whole call: the allocator maps it afresh each time
_BACKLOG_MAX: Final = 4096  # the kernel lowers it to its own limit (net.core.somaxconn)
_DESCRIPTORS_PAUSE_SECONDS: Final = 0.1
_OUT_OF_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE
_MAPPED_PREFIX: Final = "::ffff:"


def _plain_host(host: str) -> str:
    """An address as people write it: an IPv4 address that came in through an IPv6 socket without its prefix."""
    return host[len(_MAPPED_PREFIX) :] if host.startswith(_MAPPED_PREFIX) and "." in host else host


async def _bind(host: str, port: int) -> socket.socket:
    """A non-blocking listening socket on one address: for a name with several, on the first IPv4 one. Raises `OSError`."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` means every address, IPv4 ones too
        listener.bind(address)
        listener.listen(_BACKLOG_MAX)
    except BaseException:
        listener.close()
        raise
    return listener


def _bound_address(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()[:2]
    return _plain_host(host), port


class TcpConnection:
    """One accepted client connection. See `environment.Connection` for what each method promises."""

    __slots__ = ("_broken", "_events", "_poller", "_receive", "_send", "_socket", "owner", "peer")

    def __init__(self, poller: TcpPoller, accepted: socket.socket, peer: str) -> None:
        self.owner: object = None
        self.peer = peer
        self._poller = poller
        self._socket = accepted
        self._receive = accepted.recv
        self._send = accepted.send
        self._events = _READ
        self._broken = False

    def __repr__(self) -> str:
        return f"<TcpConnection from {self.peer} broken={self._broken}>"

    @property
    def local_host(self) -> str:
        """The address on which the other side reached this node; empty when the connection is closed."""
        try:
            return _plain_host(self._socket.getsockname()[0])
        except OSError:
            return ""

    def recv(self) -> bytes | None:
        if self._broken:
            return b""
        try:
            return self._receive(_RECEIVE_BYTES_MAX)
        except BlockingIOError:
            return None
        except OSError:
            self._broken = True
            return b""

    def send(self, data: bytes) -> int:
        if self._broken:
            return -1
        try:
            return self._send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._broken = True
            return -1

    def want_write(self, wanted: bool) -> None:
        self._want(self._events | _WRITE if wanted else self._events & ~_WRITE)

    def want_read(self, wanted: bool) -> None:
        self._want(self._events | _READ if wanted else self._events & ~_READ)

    def _want(self, events: int) -> None:
        assert events, "a connection that waits for nothing would be forgotten: it is closed instead"
        if events != self._events and self._socket.fileno() >= 0:
            self._events = events
            self._poller._watch(self._socket, events, self)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._broken = True
            self._poller._forget(self._socket)  # T4: before the descriptor is free for another socket
            self._socket.close()


class TcpPoller:
    """All connections of one listening socket, and one place to wait for them. See `environment.Poller`."""

    def __init__(self, listener: socket.socket) -> None:
        self.address = _bound_address(listener)
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, _READ, None)
        self._listening = True
        self._acceptable = False  # the listener was ready at the last select
        self._paused_until: float | None = None  # T3: trio's time
        self._ready: list[TcpConnection] = []  # T1: in reverse, what the last select reported and nobody took yet

    def __repr__(self) -> str:
        return f"<TcpPoller {self.address} connections={len(self._connections())} listening={self._listening}>"

    async def wait(self) -> None:
        if self._selector.get_map() is None:
            raise trio.ClosedResourceError("this poller is closed")
        if self._ready or self._acceptable:
            await trio.lowlevel.checkpoint()
            return
        if self._paused_until is None:
            await trio.lowlevel.wait_readable(self._selector.fileno())
        else:
            with trio.move_on_at(self._paused_until):
                await trio.lowlevel.wait_readable(self._selector.fileno())
            if trio.current_time() >= self._paused_until:
                self._resume_listening()
        self._select()

    def accept(self, limit: int) -> Sequence[TcpConnection]:
        accepted: list[TcpConnection] = []
        if not self._acceptable:
            return accepted
        self._acceptable = False  # if connections are left in the backlog, the next select says so again
        while len(accepted) < limit:
            try:
                client, address = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._pause_listening()
                    break
                continue  # that one connection is gone before it was accepted; the next one may be well
            connection = self._adopt(client, address[0])
            if connection is not None:
                accepted.append(connection)
        return accepted

    def ready(self, limit: int) -> Sequence[TcpConnection]:
        if not self._ready and self._selector.get_map() is not None:
            self._select()
        found: list[TcpConnection] = []
        waiting = self._ready
        while waiting and len(found) < limit:
            connection = waiting.pop()
            if connection._socket.fileno() >= 0:  # T4: it may have been closed since the select
                found.append(connection)
        return found

    def stop_listening(self) -> None:
        if self._listening:
            self._listening = self._acceptable = False
            if self._paused_until is None:
                self._selector.unregister(self._listener)
            self._paused_until = None
            self._listener.close()

    def close(self) -> None:
        self.stop_listening()
        if self._selector.get_map() is None:
            return
        for connection in self._connections():
            connection.close()
        self._ready.clear()
        trio.lowlevel.notify_closing(self._selector.fileno())  # a task in `wait` is woken with `ClosedResourceError`
        self._selector.close()

    # --- inside ---

    def _connections(self) -> list[TcpConnection]:
        watched = self._selector.get_map()
        return [] if watched is None else [key.data for key in list(watched.values()) if key.data is not None]

    def _adopt(self, client: socket.socket, peer: str) -> TcpConnection | None:
        try:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = TcpConnection(self, client, _plain_host(peer))
            self._selector.register(client, _READ, connection)
        except OSError:  # reset before it was served (macOS refuses options then), or the kernel is out of watches
            client.close()
            return None
        return connection

    def _select(self) -> None:
        found = []
        for key, _ in self._selector.select(0):
            if key.data is None:
                self._acceptable = True
            else:
                found.append(key.data)
        found.reverse()
        self._ready = found

    def _watch(self, client: socket.socket, events: int, connection: TcpConnection) -> None:
        self._selector.modify(client, events, connection)

    def _forget(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        self._resume_listening()

    def _pause_listening(self) -> None:
        self._paused_until = trio.current_time() + _DESCRIPTORS_PAUSE_SECONDS
        self._selector.unregister(self._listener)

    def _resume_listening(self) -> None:
        if self._paused_until is not None:
            self._paused_until = None
            self._selector.register(self._listener, _READ, None)


def _is_connected_to_itself(sock: trio.socket.SocketType) -> bool:
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # the other side has closed already, so there is one
        return False


class TcpNetwork:
    """The real twin of `environment.Network`."""

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        """A new stream with `TCP_NODELAY` (trio's streams set it); all addresses of a name are tried. Raises the `OSError` of the last one,
        because that says what is wrong, and trio's own only that all attempts failed.

        A port of the kernel's own range on which nobody listens may be given to this side of the connection, which is then connected to
        itself. That is nobody, and would keep the port from whoever is about to listen on it."""
        try:
            stream = await trio.open_tcp_stream(host, port)
            if not _is_connected_to_itself(stream.socket):
                return stream
            await trio.aclose_forcefully(stream)
            failure: OSError = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except OSError as error:
            attempts = error.__cause__.exceptions if isinstance(error.__cause__, BaseExceptionGroup) else (error,)
            failure = attempts[-1] if isinstance(attempts[-1], OSError) else error
        raise OSError(failure.errno, os.strerror(failure.errno)) if failure.errno and failure.errno > 0 else failure

    async def serve(
        self,
        host: str,
        port: int,
        handler: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[tuple[str, int]],
    ) -> None:
        """Listen, and run one task of `handler` per connection, until cancelled. A handler that raises ends it."""
        listener = await _bind(host, port)
        address = _bound_address(listener)
        async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as accepting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, handler, [accepting])
                task_status.started(address)

    async def open_poller(self, host: str, port: int) -> TcpPoller:
        """Listen for client connections; raises `OSError` when it cannot bind."""
        return TcpPoller(await _bind(host, port))

    def local_host(self, stream: trio.abc.HalfCloseableStream) -> str:
        """The address of this side of a stream that `dial` returned."""
        assert isinstance(stream, trio.SocketStream)
        host: str = stream.socket.getsockname()[0]
        return _plain_host(host)
