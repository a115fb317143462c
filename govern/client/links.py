"""All links of one client: the shell around `Cores`. It gives each core a link, carries what the rules put out, and wakes whoever waits.

K1  Every core has exactly one link, from the end of the step in which it was made until it has ended.
K2  Whoever waits for a thing of the rules is woken when they say that it changed, at whichever core it is by then.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import trio

from ..environment import Environment, Random
from ..errors import GovernError, Stopped, Unreachable
from ..model import ServiceKey, join_address
from .core import ClientCore, HelloRefused
from .cores import Cores
from .link import Link
from .outbox import Request
from .where import Address


def _reason(failure: GovernError | OSError | None) -> str:
    """Why an address did not work, for people."""
    if failure is None:
        return "no answer"
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror.lower()
    return str(failure) or type(failure).__name__


class Links:
    """The connections of one client, kept up for as long as `run` runs."""

    def __init__(self, environment: Environment, seeds: Sequence[Address]) -> None:
        self.environment = environment
        self.cores = Cores(environment.random.randbytes(16), seeds)
        self.local_host = ""
        """The address of this side of the newest stream."""
        self.failures: dict[Address, GovernError | OSError] = {}
        """Why each address did not work when it was tried last."""
        self.unanswered = ""
        """Of whoever gave up waiting last: where the node was looked for that had not answered, or why it could not; empty when it was
        connected and said nothing."""
        self._links: dict[ClientCore, Link] = {}
        self._bells: dict[object, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._hurry = trio.Event()  # the deadline of the cores is earlier now
        self._sleeps_until = math.inf
        self.flush()

    def __repr__(self) -> str:
        return f"<Links of {self.cores}>"

    @property
    def random(self) -> Random:
        """The door to chance of this client."""
        return self.environment.random

    # --- for those who ask ----------------------------------------------------------------------------------------------------

    def home(self, service: ServiceKey) -> ClientCore:
        """The core for everything of a service, at this moment."""
        return self.cores.home(service, trio.current_time())

    def link_of(self, core: ClientCore) -> Link:
        """The link of a core."""
        return self._links[core]

    def is_out_of_reach(self, service: ServiceKey) -> bool:
        """Whether the node of a service is not connected and could not be reached when it was tried last."""
        core = self.home(service)
        return not core.connected and (core not in self._links or self._links[core].failed)

    def flush(self, core: ClientCore | None = None) -> None:
        """Take what the cores put out, and look at the one that was called, if any; to be called after every call into them."""
        is_all = self.cores.settle(trio.current_time())
        if is_all:
            self._match_links()
        for link in self._links.values():
            if is_all or link.core is core or link.is_dozing or link.core.outbox.has_any:
                self._carry(link)
        if is_all and self.cores.deadline < self._sleeps_until:
            self._hurry.set()

    def _match_links(self) -> None:
        """A link for every core, and none for those that have ended (K1)."""
        for core in self.cores.take_ended():
            self._ring_all(core.outbox.take()[1])
            link = self._links.pop(core, None)
            if link is not None:  # one that was made and found to be needless in the same step never had any
                link.end()
        if not self.cores.closed:
            for core in self.cores.all():
                if core not in self._links:
                    self._start(core)

    def _carry(self, link: Link) -> None:
        frames, things = link.core.outbox.take()
        link.put(frames)
        self._ring_all(things)

    def _ring_all(self, things: list[object]) -> None:
        for thing in things:
            self.ring(thing)  # K2
            if isinstance(thing, ClientCore):
                self.ring(self)

    def _start(self, core: ClientCore) -> None:
        link = self._links[core] = Link(self, core)
        if self._nursery is not None:
            self._nursery.start_soon(link.run)

    # --- for those who wait ---------------------------------------------------------------------------------------------------

    def ring(self, thing: object) -> None:
        """Wake whoever waits for a thing."""
        bell = self._bells.pop(thing, None)
        if bell is not None:
            bell.set()

    async def wait(self, thing: object) -> None:
        """Wait until the thing changes the next time; the links themselves change with any connection. Cancelling has no effect on it."""
        bell = self._bells.setdefault(thing, trio.Event())
        try:
            await bell.wait()
        finally:
            if self._bells.get(thing) is bell and not bell.statistics().tasks_waiting:
                del self._bells[thing]

    async def wait_connected(self) -> None:
        """Wait until every node that is needed is connected; raises `Stopped` when the client has left."""
        self.check_open()
        while not self.cores.connected:
            await self.wait(self)
            self.check_open()

    async def wait_any_connected(self) -> None:
        """Wait until any node is connected; raises `Stopped` when the client has left."""
        while not self.cores.any_connected:
            await self.wait(self)
            self.check_open()

    def check_open(self) -> None:
        """Raise `Stopped` when the client has left."""
        if self.cores.closed:
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
            while not self.cores.any_connected:
                refusal = self.lasting_refusal()
                if refusal is not None:
                    raise refusal
                if not needed and all(address in self.failures for address in self._tried()):
                    return
                await self.wait(self)
            return
        if needed:
            raise Unreachable(self.explain())

    def _tried(self) -> list[Address]:
        return self.cores.addresses(self.cores.entry)

    def explain(self, core: ClientCore | None = None) -> str:
        """One line: which addresses were tried for a node, or for any, and what came of it."""
        core = core or self.cores.entry
        addresses = self.cores.addresses(core)
        whom = "no registry" if core is self.cores.entry else f"node {core.node_id} has not"
        if not addresses:
            return f"{whom} answered: nobody knows its address"
        tried = [f"{join_address(*address)} ({_reason(self.failures.get(address))})" for address in addresses]
        return f"{whom} answered: tried " + ", ".join(tried)

    def note_unanswered(self, core: ClientCore | None, delay: str = "") -> None:
        """Somebody gives up waiting for the node of this core, which has said why it does not answer yet, or nothing."""
        self.unanswered = delay.removesuffix("; try again") if core is not None and core.connected else self.explain(core)

    def lasting_refusal(self) -> GovernError | None:
        """The refusal of a node, when every address has refused this client for good; a later try would not help."""
        refusals = [self.failures.get(address) for address in self._tried()]
        if all(isinstance(failure, HelloRefused) and failure.lasting for failure in refusals):
            first = refusals[0]
            assert isinstance(first, HelloRefused)
            return first.error
        return None

    # --- the tasks ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the connections up until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for link in list(self._links.values()):
                    nursery.start_soon(link.run)
                await self._tick()
            finally:
                self._nursery = None

    async def _tick(self) -> None:
        while True:
            self._hurry = trio.Event()
            self._sleeps_until = self.cores.deadline
            with trio.move_on_at(self._sleeps_until):
                await self._hurry.wait()
            self.flush()
