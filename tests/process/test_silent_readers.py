"""Subscribers that never read: they cost the node no memory and nobody else any time, and once they read they have the newest state."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from govern.client import Registration, connect
from govern.messages import Delta, Heartbeat, HeartbeatOk, HelloOk, Message, Resumed, Subscribe, View, encode
from govern.model import LSN_ZERO, Lsn, ServiceKey

from .harness import NodeProgram, Programs, Raw, hello, wait_until

ORDERS = ServiceKey("default", "orders")
SILENT_READERS = 50
WRITERS = 100
BUFFER_BYTES = 4096
SEGMENT_BYTES = 1000
GROWTH_BYTES_MAX = 30_000_000
"""For what a node keeps anyway, mostly 65,536 operations for deltas. A hundred bytes of each change for each reader were far more."""


@attrs.define
class Reader:
    """A subscriber that believes what it reads, once it reads."""

    raw: Raw
    lsn: Lsn = LSN_ZERO
    instances: dict[str, dict[str, str]] = attrs.field(factory=dict)  # id -> metadata
    messages: int = 0

    def take(self, message: Message) -> None:
        """Apply one message."""
        self.messages += 1
        if isinstance(message, View):
            if self.lsn != message.lsn:
                self.instances.clear()
            self.lsn, changed, removed = message.lsn, message.instances, []
        elif isinstance(message, Delta):
            assert message.since == self.lsn
            self.lsn, changed, removed = message.lsn, message.changed, message.removed
        else:
            assert isinstance(message, HelloOk | HeartbeatOk | Resumed), message
            return
        self.instances |= {client[0]: client[7] for _, client in changed}
        for instance_id in removed:
            del self.instances[instance_id]

    async def read_to(self, lsn: Lsn) -> None:
        """Read until that state is reached."""
        while self.lsn < lsn:
            self.take(await self.raw.read_message())


@contextlib.asynccontextmanager
async def connection(node: NodeProgram, known: Lsn) -> AsyncIterator[Raw]:
    """A subscription to the service on a connection that holds little between here and there."""
    with trio.socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)  # the kernel's buffer at the node's side follows from it
        await sock.connect(("127.0.0.1", node.port))
        raw = Raw(trio.SocketStream(sock))
        await raw.send(hello() + encode(Subscribe(ORDERS, known), 2))
        yield raw


async def keep_alive(raw: Raw) -> None:
    """Send a sign of life now and then, so that not being read is all that the node can hold against it."""
    for request_id in range(3, 1_000):
        await trio.sleep(3.0)
        await raw.send(encode(Heartbeat(0, 0), request_id))


@pytest.mark.parametrize("changes", [10_000, pytest.param(100_000, marks=pytest.mark.deep)])
async def test_readers_that_never_read_cost_nothing_and_catch_up(programs: Programs, changes: int) -> None:
    """Fifty subscribers never read while a hundred instances change all the time. The node's memory does not grow with that; whoever does
    read is current at once; and a silent one that begins to read, or comes back on a new connection, gets to the newest state with a few
    messages instead of all."""
    node = await programs.node()
    async with connect(node.address) as registry, contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
        entering = [registry.register("orders", port=1 + number, id=f"i{number}") for number in range(WRITERS)]
        registrations = [await stack.enter_async_context(one) for one in entering]
        view = await stack.enter_async_context(registry.subscribe("orders"))
        silent = [await stack.enter_async_context(connection(node, LSN_ZERO)) for _ in range(SILENT_READERS)]
        for raw in silent:
            nursery.start_soon(keep_alive, raw)
        while (await registry.status())["subscriptions"] < SILENT_READERS + 1:
            await trio.sleep(0.01)
        await change(registrations, changes // 10)
        bytes_before = resident_bytes(node)
        began_at = trio.current_time()
        await change(registrations, changes)
        grown = resident_bytes(node) - bytes_before
        seconds = trio.current_time() - began_at
        print(f"{changes} changes in {seconds:.1f} s under {SILENT_READERS} readers that never read: {grown / 1e6:+.1f} MB")
        assert grown <= GROWTH_BYTES_MAX

        newest = max(registration.instance.lsn for registration in registrations)
        await wait_until(lambda: view.lsn >= newest, "the view of one that reads", 5.0)
        expected = {instance.id: instance.metadata for instance in await registry.lookup("orders")}
        assert {instance.id: instance.metadata for instance in view.instances} == expected

        late = Reader(silent[0])
        await late.read_to(view.lsn)
        assert late.instances == expected
        print(f"one that read at last was current after {late.messages} messages")
        assert late.messages < changes / 10, "it was not spared the changes in between"
        again = Reader(silent[1])
        await again.read_to(Lsn(newest.term, 1))  # the list that it got when it subscribed
        assert again.lsn < newest
        again.raw = await stack.enter_async_context(connection(node, again.lsn))
        await again.read_to(view.lsn)
        assert again.instances == expected
        assert node.process.poll() is None
        nursery.cancel_scope.cancel()


async def change(registrations: list[Registration], changes: int) -> None:
    """Change all instances in turn, all at once, so many times altogether."""

    async def change_one(registration: Registration) -> None:
        for number in range(changes // WRITERS):
            await registration.update(metadata={"build": f"2026-11-21.{number:06}", "region": "eu-central-1"})

    async with trio.open_nursery() as nursery:
        for registration in registrations:
            nursery.start_soon(change_one, registration)


def resident_bytes(node: NodeProgram) -> int:
    """How much memory the node's process uses now."""
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")
