"""The link: the shell around the client's rules. It dials, reads, writes and waits, and decides nothing but whom to dial next.

L1  One stream at a time. It is closed before the next one is dialled.
L2  What the rules put out leaves in order, and everything that waits leaves in one send.
L3  A stream that breaks, a node that breaks the protocol and a node that is silent all lead to the same: the next address, after a
    pause with full jitter. Nothing of it is raised into the program; `connected` tells.
L4  Whoever waits for a thing of the core is woken when the core says that it changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from ..environment import Environment, Random
from ..errors import GovernError, Stopped, Unreachable
from ..messages import FRAME_BYTES_MAX_TO_CLIENT
from ..model import join_address
from ..net.frames import FrameReader
from .core import ClientCore, HelloRefused, Phase
from .outbox import Request
from .where import Address

DIAL_SECONDS_MAX: Final = 5.0
BACKOFF_SECONDS_MIN: Final = 0.2
BACKOFF_SECONDS_MAX_BUSY: Final = 2.0
"""While registrations, subscriptions or reads depend on the connection. Longer pauses would let leases expire after an outage."""
BACKOFF_SECONDS_MAX_IDLE: Final = 10.0
STEADY_SECONDS: Final = 2.0
"""A connection that lasted so long was a good one: the pauses start small again."""
OUTGOING_BYTES_MAX: Final = 8 * 1024 * 1024
"""More than this waiting for the socket means that the node does not read: the stream is given up."""
_RECEIVE_BYTES: Final = 256 * 1024


def _reason(failure: GovernError | OSError | None) -> str:
    """Why an address did not work, for people."""
    if failure is None:
        return "no answer"
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror.lower()
    return str(failure) or type(failure).__name__


class Link:
    """The connection of one client, kept up for as long as `run` runs."""

    def __init__(self, core: ClientCore, environment: Environment, addresses: Sequence[Address]) -> None:
        self.core = core
        self.local_host = ""
        """The address of this side of the newest stream."""
        self.failures: dict[Address, GovernError | OSError] = {}
        """Why each address did not work when it was tried last."""
        self._environment = environment
        self._addresses = list(addresses)
        self._turn = int(environment.random.random() * len(self._addresses))
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._bells: dict[object, trio.Event] = {}
        self._writable = trio.Event()
        self._moved = trio.Event()  # the core's deadline is earlier now
        self._sleeps_until = math.inf
        self._work_came = trio.Event()
        self._greeted_at = math.inf
        self._failure: GovernError | OSError | None = None
        self._stream_scope: trio.CancelScope | None = None
        self._failed_in_a_row = 0

    def __repr__(self) -> str:
        return f"<Link to {', '.join(join_address(*address) for address in self._addresses)} {self.core}>"

    @property
    def random(self) -> Random:
        """The door to chance of this client."""
        return self._environment.random

    # --- for those who wait ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Take what the core put out; to be called after every call into the core."""
        frames, changed = self.core.outbox.take()
        if frames:
            self._outgoing += frames
            self._outgoing_bytes += sum(map(len, frames))
            self._writable.set()
            if self._outgoing_bytes > OUTGOING_BYTES_MAX:
                self._fail(Unreachable(f"the node does not read: {self._outgoing_bytes} bytes wait"))
        for thing in changed:
            bell = self._bells.pop(thing, None)
            if bell is not None:
                bell.set()  # L4
        if self.core.deadline < self._sleeps_until:
            self._moved.set()
        if self.core.has_work:
            self._work_came.set()

    async def wait(self, thing: object) -> None:
        """Wait until the thing changes the next time. Cancelling has no effect on it."""
        bell = self._bells.setdefault(thing, trio.Event())
        try:
            await bell.wait()
        finally:
            if self._bells.get(thing) is bell and not bell.statistics().tasks_waiting:
                del self._bells[thing]

    async def wait_connected(self) -> None:
        """Wait until there is a connection; raises `Stopped` when the client has left."""
        while not self.core.connected:
            self.check_open()
            await self.wait(self.core)

    def check_open(self) -> None:
        """Raise `Stopped` when the client has left."""
        if self.core.phase is Phase.CLOSED:
            raise Stopped("the registry was left: its connect() block has ended")

    async def wait_done(self, request: Request) -> None:
        """Wait until the request is over, and raise its error if it has one. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not request.done:
            await self.wait(request)
        if request.error is not None:
            raise copy.copy(request.error)  # several may wait for what ended with the same error

    async def wait_first(self, seconds: float, *, needed: bool = True) -> None:
        """Wait for the first connection. Raises what every node says against this client, or `Unreachable` after so many seconds; unless a
        connection is `needed`, it returns then, or as soon as every address has failed once."""
        with trio.move_on_after(seconds):
            while not self.core.connected:
                refusal = self.lasting_refusal()
                if refusal is not None:
                    raise refusal
                if not needed and len(self.failures) == len(self._addresses):
                    return
                await self.wait(self.core)
            return
        if needed:
            raise Unreachable(self.explain())

    def explain(self) -> str:
        """One line: which addresses were tried, and what came of it."""
        tried = [f"{join_address(*address)} ({_reason(self.failures.get(address))})" for address in self._addresses]
        return "no registry answered: tried " + ", ".join(tried)

    def lasting_refusal(self) -> GovernError | None:
        """The refusal of a node, when every address has refused this client for good; a later try would not help."""
        refusals = [self.failures.get(address) for address in self._addresses]
        if all(isinstance(failure, HelloRefused) and failure.lasting for failure in refusals):
            first = refusals[0]
            assert isinstance(first, HelloRefused)
            return first.error
        return None

    # --- the connection -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection up until cancelled."""
        while True:
            address = self._addresses[self._turn % len(self._addresses)]
            self._turn += 1
            self._greeted_at = math.inf
            self.failures[address] = await self._connect_once(address)
            self.core.outbox.tell(self.core)
            self.flush()
            if trio.current_time() - self._greeted_at > STEADY_SECONDS:
                self._failed_in_a_row = 0
            self._failed_in_a_row += 1
            if self.core.node_id is not None or self._failed_in_a_row >= len(self._addresses):
                await self._pause()

    async def _pause(self) -> None:
        """Full jitter: anything from 0 to a bound that doubles. When work arrives meanwhile, the smaller bound holds from then on."""
        uniform = self._environment.random.uniform
        doubled = BACKOFF_SECONDS_MIN * 2 ** min(self._failed_in_a_row - 1, 10)
        if not self.core.has_work:
            self._work_came = trio.Event()
            with trio.move_on_after(uniform(0, min(doubled, BACKOFF_SECONDS_MAX_IDLE))) as idle:
                await self._work_came.wait()
            if idle.cancelled_caught:
                return
        await trio.sleep(uniform(0, min(doubled, BACKOFF_SECONDS_MAX_BUSY)))

    async def _connect_once(self, address: Address) -> GovernError | OSError:
        """Dial one address and serve the stream until it ends; returns why it did."""
        network = self._environment.network
        try:
            with trio.fail_after(DIAL_SECONDS_MAX):
                stream = await network.dial(*address)
        except trio.TooSlowError:
            return Unreachable(f"no connection within {DIAL_SECONDS_MAX:g} s")
        except OSError as error:
            return error
        self._failure = None
        try:
            self.local_host = network.local_host(stream)
            return await self._serve(stream)
        finally:
            self.core.disconnected()
            self._outgoing, self._outgoing_bytes = [], 0
            self.flush()
            await trio.aclose_forcefully(stream)  # L1

    async def _serve(self, stream: trio.abc.HalfCloseableStream) -> GovernError | OSError:
        async with trio.open_nursery() as nursery:
            self._stream_scope = nursery.cancel_scope
            self.core.dialled(trio.current_time())
            self.flush()
            for work in (self._read, self._write, self._tick):
                nursery.start_soon(self._until_failure, work, stream)
        self._stream_scope = None
        assert self._failure is not None, "the tasks of a stream end only with a failure"
        return self._failure

    async def _until_failure(
        self, work: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]], stream: trio.abc.HalfCloseableStream
    ) -> None:
        try:
            await work(stream)
        except (GovernError, OSError) as error:
            self._fail(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._fail(Unreachable("the connection broke"))

    def _fail(self, failure: GovernError | OSError) -> None:
        """Give the stream up; the first reason counts."""
        if self._failure is None and self._stream_scope is not None:
            self._failure = failure
            self._stream_scope.cancel()

    async def _read(self, stream: trio.abc.HalfCloseableStream) -> None:
        reader = FrameReader(FRAME_BYTES_MAX_TO_CLIENT)
        while True:
            data = await stream.receive_some(_RECEIVE_BYTES)
            if not data:
                raise Unreachable("the node closed the connection")
            now = trio.current_time()
            for raw in reader.feed(bytes(data)):
                self.core.receive(raw, now)
            if self._greeted_at == math.inf and self.core.connected:
                self._greeted_at = now
            if reader.error is not None:
                raise reader.error
            self.flush()

    async def _write(self, stream: trio.abc.HalfCloseableStream) -> None:
        while True:
            while not self._outgoing:
                self._writable = trio.Event()
                await self._writable.wait()
            data = b"".join(self._outgoing)  # L2
            self._outgoing = []
            await stream.send_all(data)
            self._outgoing_bytes -= len(data)

    async def _tick(self, stream: trio.abc.HalfCloseableStream) -> None:
        while True:
            self._moved = trio.Event()
            self._sleeps_until = self.core.deadline
            with trio.move_on_at(self._sleeps_until):
                await self._moved.wait()
            now = trio.current_time()
            if now >= self.core.deadline:
                self.core.tick(now)
                self.flush()
