"""One link: the shell around the rules of a client at one node. It dials, reads, writes and waits, and decides nothing but when to dial.

L1  One stream at a time. It is closed before the next one is dialled.
L2  What the rules put out leaves in order, and everything that waits leaves in one send.
L3  A stream that breaks, a node that breaks the protocol and a node that is silent all lead to the same: the next address, after a
    pause with full jitter. Nothing of it is raised into the program; `connected` tells.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from ..errors import GovernError, Unreachable
from ..messages import FRAME_BYTES_MAX_TO_CLIENT
from ..net.frames import FrameReader
from .core import ClientCore, Phase
from .where import Address

if TYPE_CHECKING:
    from .links import Links

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


class Link:
    """The connection to one node, kept up for as long as `run` runs and the core lives."""

    def __init__(self, links: Links, core: ClientCore) -> None:
        self.core = core
        self.failed = False
        """Whether the node could not be reached since it was connected last."""
        self._links = links
        self._turn = int(links.random.random() * len(links.cores.seeds)) if core.node_id is None else 0
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._writable = trio.Event()
        self._moved = trio.Event()  # the core's deadline is earlier now
        self._sleeps_until = math.inf
        self.is_dozing = False
        """In a long pause, which ends when somebody needs the node."""
        self._work_came = trio.Event()
        self._greeted_at = math.inf
        self._failure: GovernError | OSError | None = None
        self._stream_scope: trio.CancelScope | None = None
        self._scope = trio.CancelScope()
        self._failed_in_a_row = 0

    def __repr__(self) -> str:
        return f"<Link {self.core}>"

    # --- what the rules want --------------------------------------------------------------------------------------------------

    def put(self, frames: list[bytes]) -> None:
        """Send these, and look at what the core wants; to be called after every call into it."""
        if frames:
            self._outgoing += frames
            self._outgoing_bytes += sum(map(len, frames))
            self._writable.set()
            if self._outgoing_bytes > OUTGOING_BYTES_MAX:
                self._fail(Unreachable(f"the node does not read: {self._outgoing_bytes} bytes wait"))
        if self.core.deadline < self._sleeps_until:
            self._moved.set()
        if self.is_dozing and self._links.cores.is_needed(self.core):
            self._work_came.set()

    def end(self) -> None:
        """The core has ended: close the stream and dial no more."""
        self._scope.cancel()

    # --- the connection -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection up until cancelled, or until the core ends."""
        with self._scope:
            while self.core.phase is not Phase.CLOSED:
                addresses = self._links.cores.addresses(self.core)
                self._greeted_at = math.inf
                if addresses:
                    address = addresses[self._turn % len(addresses)]
                    self._turn += 1
                    await self._try(address)
                else:
                    self.failed = True
                    self._links.cores.failed(self.core)
                    self._links.flush(self.core)
                self._failed_in_a_row += 1
                if self.core.node_id is not None or self._failed_in_a_row >= len(addresses):
                    await self._pause((self._failed_in_a_row - 1) // max(len(addresses), 1))

    async def _try(self, address: Address) -> None:
        """Use one address for as long as it works."""
        failure = await self._connect_once(address)
        self.failed = True
        self._links.failures[address] = failure
        self._links.cores.failed(self.core)
        self.core.views.disconnected()  # also when there never was a connection: whoever waits for a list takes that of the cache now
        self.core.outbox.tell(self.core)
        self._links.flush(self.core)
        if self._greeted_at < math.inf and self._links.cores.knows_address(self.core):
            self._turn = 0  # the node may be back in a moment
        if trio.current_time() - self._greeted_at > STEADY_SECONDS:
            self._failed_in_a_row = 0

    async def _pause(self, rounds: int) -> None:
        """Full jitter: anything from 0 to a bound that doubles. When work arrives meanwhile, the smaller bound holds from then on."""
        uniform = self._links.random.uniform
        doubled = BACKOFF_SECONDS_MIN * 2 ** min(rounds, 10)
        if not self._links.cores.is_needed(self.core):
            self._work_came, self.is_dozing = trio.Event(), True
            with trio.move_on_after(uniform(0, min(doubled, BACKOFF_SECONDS_MAX_IDLE))) as idle:
                await self._work_came.wait()
            self.is_dozing = False
            if idle.cancelled_caught:
                return
        await trio.sleep(uniform(0, min(doubled, BACKOFF_SECONDS_MAX_BUSY)))

    async def _connect_once(self, address: Address) -> GovernError | OSError:
        """Dial one address and serve the stream until it ends; returns why it did."""
        network = self._links.environment.network
        try:
            with trio.fail_after(DIAL_SECONDS_MAX):
                stream = await network.dial(*address)
        except trio.TooSlowError:
            return Unreachable(f"no connection within {DIAL_SECONDS_MAX:g} s")
        except OSError as error:
            return error
        self._failure = None
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # a dial that succeeds is no checkpoint, and the core may have ended meanwhile
            self._links.local_host = network.local_host(stream)
            return await self._serve(stream)
        finally:
            self._links.cores.disconnected(self.core)
            self._outgoing, self._outgoing_bytes = [], 0
            self._links.flush(self.core)
            await trio.aclose_forcefully(stream)  # L1

    async def _serve(self, stream: trio.abc.HalfCloseableStream) -> GovernError | OSError:
        async with trio.open_nursery() as nursery:
            self._stream_scope = nursery.cancel_scope
            self.core.dialled(trio.current_time())
            self._links.flush(self.core)
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
                self._links.cores.receive(self.core, raw, now)
            if self._greeted_at == math.inf and self.core.connected:
                self._greeted_at, self.failed = now, False
            if reader.error is not None:
                raise reader.error
            self._links.flush(self.core)

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
                self._links.flush(self.core)
