"""Whatever a stranger sends, and however slowly, costs its own connection and nothing else."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from govern.client import connect
from govern.messages import Heartbeat, HelloOk, Lookup, Message, Refused, encode
from govern.model import ServiceKey

from .harness import NodeProgram, Programs, frame_of, hello, raw_connection

REGISTER, LOOKUP, SUBSCRIBE, SERVICES = 6, 11, 13, 17
STRANGERS = 1_000


@asynccontextmanager
async def healthy_client(node: NodeProgram) -> AsyncIterator[None]:
    """While the block runs, a well-behaved client registers, is found and leaves, again and again; at the end the node is well."""
    rounds = 0

    async def live() -> None:
        nonlocal rounds
        while True:
            async with connect(node.address) as registry, registry.register("healthy", port=1 + rounds % 60_000) as registration:
                assert [each.id for each in await registry.lookup("healthy")] == [registration.instance.id]
            rounds += 1

    async with connect(node.address) as registry, registry.register("faithful", port=80) as registration:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            yield
            so_far = rounds
            with trio.fail_after(10):
                while rounds < so_far + 2:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert registration.lost is None
        assert len(await registry.lookup("faithful")) == 1
        assert (await registry.status())["degraded"] == []
    assert node.process.poll() is None
    assert "Traceback" not in node.err


async def say(node: NodeProgram, *parts: bytes) -> list[Message]:
    """What the node answers to some bytes until it closes the connection."""
    async with raw_connection(node.port) as raw:
        for part in parts:
            if not await raw.send(part):
                break
        messages = await raw.read_to_end()
        assert isinstance(messages, list)
        return messages


BAD: dict[str, bytes] = {
    "no Hello first": encode(Heartbeat(0, 0), 1),
    "an oversized frame": struct.pack(">I", 0x7FFFFFFF) + b"x",
    "a frame just above the limit": struct.pack(">I", 256 * 1024 + 1),
    "an empty frame": struct.pack(">I", 0),
    "no msgpack": struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
    "no array": struct.pack(">I", 1) + b"\x2a",
    "deep nesting": struct.pack(">I", 100_000) + b"\x91" * 100_000,
    "a huge array header": struct.pack(">I", 5) + b"\xdd\xff\xff\xff\xff",
    "an extension type": struct.pack(">I", 3) + b"\xd4\x01\x00",
    "an unknown type": frame_of(250, 1),
    "a negative request id": frame_of(1, -1, 1),
    "a Hello of wrong types": frame_of(1, 1, "one", 2, 3, 4, 5, 6),
    "a Hello of a bad session id": frame_of(1, 1, 1, "", "test", "", b"short", 1),
    "a Hello of no protocol": frame_of(1, 1, 0, "", "test", "", b"", 1),
    "a Hello of another cluster": frame_of(1, 1, 1, "f" * 32, "test", "", b"", 1),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(64),
    "Hello twice": hello() + hello(),
    "a message that only nodes send": hello() + frame_of(12, 1),
    "a lookup of wrong types": hello() + frame_of(LOOKUP, 2, 7),
    "a heartbeat of wrong types": hello() + frame_of(4, 2, "many", None),
    "garbage after Hello": hello() + b"\xff" * 64,
}


async def test_each_breach_of_the_protocol_is_told_once_and_closed(programs: Programs) -> None:
    """Broken frames, wrong types and other protocols each get exactly one clear refusal, then the end of their connection."""
    node = await programs.node()
    async with healthy_client(node):
        for what, data in BAD.items():
            messages = await say(node, data)
            refusals = [message for message in messages if isinstance(message, Refused)]
            assert len(refusals) == 1, (what, messages)
            assert messages[-1] is refusals[0], (what, messages)
            assert refusals[0].code in ("protocol", "cluster"), (what, refusals)
            assert refusals[0].text, what


async def test_values_out_of_bounds_cost_the_request_and_not_the_connection(programs: Programs) -> None:
    """A name or an instance that breaks its rules is refused as invalid, and the same connection goes on."""
    node = await programs.node()
    instance = ["id", "127.0.0.1", 80, "tcp", 1.0, "", "", {}, 0, True, 5000]
    async with raw_connection(node.port) as raw:
        await raw.send(hello(session_id=bytes(16)))
        assert isinstance(await raw.read_message(), HelloOk)
        bad_requests = [
            frame_of(LOOKUP, 2, ["default", "a name"]),
            frame_of(LOOKUP, 3, ["", "orders"]),
            frame_of(REGISTER, 4, ["default", "orders"], [*instance[:2], 65_536, *instance[3:]]),
            frame_of(REGISTER, 5, ["default", "orders"], [*instance[:7], {"key": 1}, *instance[8:]]),
            frame_of(REGISTER, 6, ["default", "orders"], [*instance[:4], float("nan"), *instance[5:]]),
            frame_of(REGISTER, 7, ["default", "orders"], instance[:5]),
        ]
        for request in bad_requests[:6]:
            await raw.send(request)
            answer = await raw.read_message()
            assert isinstance(answer, Refused), answer
            assert answer.code == "invalid", answer
        await raw.send(frame_of(SERVICES, 9, ""))
        assert not isinstance(await raw.read_message(), Refused)


async def test_random_bytes_end_their_connection_and_nothing_else(programs: Programs) -> None:
    """Three hundred strangers send random bytes, some after a proper Hello; every connection ends or waits for the rest of a frame, and
    a healthy client notices nothing."""
    node = await programs.node()
    chance = random.Random(7)
    async with healthy_client(node):
        for _ in range(6):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    start = hello() if chance.random() < 0.5 else b""
                    nursery.start_soon(send_garbage, node, start + chance.randbytes(chance.randint(1, 20_000)))


async def send_garbage(node: NodeProgram, data: bytes) -> None:
    """Send, say that nothing more comes, and see the connection end."""
    async with raw_connection(node.port) as raw:
        await raw.send(data)
        await raw.finish()
        await raw.read_to_end()


async def test_slow_and_silent_connections_are_closed_and_keep_nobody_out(programs: Programs) -> None:
    """A stranger that sends its Hello byte by byte is closed after 5 s, and one that never finishes a frame after 10 s, each told why. Of a
    thousand connections at once that never say Hello all are closed, the oldest for the newest. Meanwhile healthy clients come and go
    on new connections."""
    slow, flooded = await programs.node(), await programs.node()
    reasons: dict[str, int] = {}
    async with healthy_client(slow), healthy_client(flooded), trio.open_nursery() as nursery:
        nursery.start_soon(expect_end, slow, [bytes([byte]) for byte in hello()], "no Hello in time", 8.0)
        nursery.start_soon(expect_end, slow, [hello(), b"\x00\x00\x01\x00", *[b"\x93"] * 40], "a frame was not finished in time", 14.0)
        for _ in range(STRANGERS):
            nursery.start_soon(stay_silent, flooded, reasons)
    assert reasons["overloaded"] > STRANGERS / 2
    assert reasons.keys() <= {"overloaded", "timeout"}


async def stay_silent(node: NodeProgram, reasons: dict[str, int]) -> None:
    """Say nothing, be closed, and count the reason (a reset may swallow it)."""
    async with raw_connection(node.port) as raw:
        messages = await raw.read_to_end()
    for message in messages:
        assert isinstance(message, Refused)
        reasons[message.code] = reasons.get(message.code, 0) + 1


async def expect_end(node: NodeProgram, parts: list[bytes], reason: str, seconds: float) -> None:
    """Send the parts half a second apart, and be told the reason before the connection is closed, in time."""
    async with raw_connection(node.port) as raw, trio.open_nursery() as nursery:

        async def trickle() -> None:
            for part in parts:
                if not await raw.send(part):
                    return
                await trio.sleep(0.5)

        nursery.start_soon(trickle)
        messages = await raw.read_to_end(seconds)
        assert isinstance(messages[-1], Refused)
        assert messages[-1].text == reason
        nursery.cancel_scope.cancel()


def resident_mib(node: NodeProgram) -> float:
    """The memory that a node really has."""
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of another process is read from /proc")
async def test_clients_that_ask_and_never_read_cost_bounded_memory(programs: Programs) -> None:
    """Ten connections ask for a long list again and again and read none of the answers, which would be gigabytes; the node stops reading
    them, grows by less than 100 MiB, and serves others as before."""
    node = await programs.node()
    async with connect(node.address) as registry, AsyncExitStack() as stack:
        for port in range(1, 101):
            await stack.enter_async_context(registry.register("big", port=port, metadata={"text": "x" * 4000}))
        before = resident_mib(node)
        requests = hello() + b"".join(encode(Lookup(ServiceKey("default", "big")), number) for number in range(2, 5_000))
        stuck = 0

        async def ask_only() -> None:
            nonlocal stuck
            async with raw_connection(node.port) as raw:
                with trio.move_on_after(2.0) as scope:
                    while await raw.send(requests):
                        pass
                stuck += scope.cancelled_caught

        async with healthy_client(node), trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask_only)
        assert stuck == 10
        assert resident_mib(node) - before < 100
