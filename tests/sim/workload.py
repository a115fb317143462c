"""The clients of a run: each a program on a machine of its own that registers, changes, drains, looks up and subscribes, and writes down
what it did and what it was told.

Each client has a few ids of its own, and now and then takes one of another client's, so that ids are fought for. Every write carries a
value that nobody else writes, in the metadata key `v`: then a stale answer cannot look like a fresh one.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

import govern
from govern.client.live_view import LiveView
from govern.client.registration import Registration
from govern.client.registry import Registry
from govern.environment import Environment
from govern.errors import Evicted, GovernError, Rejected, Superseded, Unreachable
from govern.testing.world import PORT, World

from .columns import Columns
from .history import End, History, Operation, Sight
from .options import Options

PATIENCE_SECONDS = 8.0
PADDING_BYTES_MAX = 1500
"""Some values are padded, so that a batch of the log is more than one sector of the disk and its segments fill up."""
SHARED_SHARE = 0.15
"""Of the registrations, for an id that belongs to another client."""


@attrs.define(eq=False)
class Client:
    """What one life of a client holds now, for the judgement at the end."""

    name: str
    label: str
    registry: Registry
    held: dict[tuple[str, str], Registration] = attrs.field(factory=dict)
    leaving: dict[tuple[str, str], trio.Event] = attrs.field(factory=dict)
    views: dict[int, LiveView] = attrs.field(factory=dict)


class Workload:
    """All clients of a run."""

    def __init__(self, world: World, options: Options, history: History, columns: Columns) -> None:
        self.history = history
        self.living: dict[str, Client] = {}
        self.sessions: dict[bytes, str] = {}
        self.calm = False
        """While True nobody begins anything new."""
        self._world = world
        self._where = ",".join(f"{name}:{PORT}" for name in options.node_names)
        self._options = options
        self._columns = columns
        self._values = itertools.count(1)
        self._streams = itertools.count(1)

    @property
    def names(self) -> list[str]:
        """The machines of the clients."""
        return [f"c{number}" for number in range(self._options.clients)]

    async def start(self, name: str) -> None:
        """Start a client, or its next life."""
        await self._world.run_client(name, lambda environment: self._live(name, environment))

    async def _live(self, name: str, environment: Environment) -> None:
        life = self._world.machines[name].boots
        chance = random.Random(f"{self._options.seed}/{name}/{life}/workload")
        try:
            async with (
                govern.connect(self._where, environment=environment, timeout=math.inf) as registry,
                trio.open_nursery() as nursery,
            ):
                client = self.living[name] = Client(name, f"{name}/{life}", registry)
                self.sessions[registry._links.cores.session_id] = client.label
                nursery.start_soon(self._watch, client, life, chance)
                while True:
                    await trio.sleep(chance.expovariate(self._options.operations_per_second / self._options.clients))
                    if not self.calm:
                        self._act(client, chance, nursery)
        finally:
            self.living.pop(name, None)

    # --- what a client does -----------------------------------------------------------------------------------------------------

    def _act(self, client: Client, chance: random.Random, nursery: trio.Nursery) -> None:
        """Begin one operation."""
        key = self._choose_key(client, chance)
        what = chance.choices(
            ("register", "update", "leave", "drain", "lookup", "evict"), weights=(30, 30, 12, 4, 20, 1 if chance.random() < 0.5 else 0)
        )[0]
        if what == "register" and key not in client.leaving:
            client.leaving[key] = trio.Event()
            nursery.start_soon(self._hold, client, key)
        elif what == "evict":
            nursery.start_soon(self._evict, client, key)
        elif what == "lookup" or not client.held:
            nursery.start_soon(self._look_up, client, key[0])
        else:
            key = chance.choice(list(client.held))
            if what == "leave":
                client.leaving[key].set()
            else:
                nursery.start_soon(self._update if what == "update" else self._drain, client, key)

    def _choose_key(self, client: Client, chance: random.Random) -> tuple[str, str]:
        """Mostly an id of its own."""
        options = self._options
        per_client = options.keys // options.clients
        owner = int(client.name[1:]) if chance.random() > SHARED_SHARE else chance.randrange(options.clients)
        number = owner * per_client + chance.randrange(per_client)
        return f"s{number % options.services}", f"i{number}"

    async def _hold(self, client: Client, key: tuple[str, str]) -> None:
        """Register, hold until it is time to leave or the registration is lost, deregister."""
        value = f"v{next(self._values)}"
        operation = self._begin(client, "register", key, value)
        try:
            with trio.move_on_after(PATIENCE_SECONDS) as patience:
                async with self._recorded(operation):
                    block = client.registry.register(
                        key[0], id=key[1], port=80, host=client.name, metadata=self._metadata(value), ttl=self._options.ttl
                    )
                    async with block as registration:
                        patience.deadline = math.inf
                        operation.finish(End.OK)
                        self._columns.add(client.name, f"register {key[0]}/{key[1]}: ok {registration.lease_id}")
                        client.held[key] = registration
                        await self._hold_until_told(client, key, registration)
                        del client.held[key]
                        await self._deregister(client, key, registration)
        finally:
            client.held.pop(key, None)
            client.leaving.pop(key, None)

    def _metadata(self, value: str) -> dict[str, str]:
        """The value, with a padding that follows from it."""
        padding = random.Random(value).choice((0, 0, 0, PADDING_BYTES_MAX))
        return {"v": value, "padding": "x" * padding}

    async def _hold_until_told(self, client: Client, key: tuple[str, str], registration: Registration) -> None:
        async with trio.open_nursery() as nursery:

            async def end_when_lost() -> None:
                await registration.wait_lost()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_when_lost)
            await client.leaving[key].wait()
            nursery.cancel_scope.cancel()

    async def _deregister(self, client: Client, key: tuple[str, str], registration: Registration) -> None:
        if registration.lost is not None:
            return
        async with self._operation(client, "deregister", key):
            await registration.deregister()

    async def _update(self, client: Client, key: tuple[str, str]) -> None:
        value = f"v{next(self._values)}"
        async with self._operation(client, "update", key, value):
            await client.held[key].update(metadata=self._metadata(value))

    async def _drain(self, client: Client, key: tuple[str, str]) -> None:
        async with self._operation(client, "drain", key) as operation:
            drained = await client.held[key].drain(timeout=3.0)
            if not drained.complete:  # the registry itself may be the one that is missing
                operation.finish(End.UNKNOWN)

    async def _evict(self, client: Client, key: tuple[str, str]) -> None:
        async with self._operation(client, "evict", key):
            await client.registry.evict(key[0], key[1])

    async def _look_up(self, client: Client, service: str) -> None:
        async with self._operation(client, "lookup", (service, "")) as operation:
            found = await client.registry.lookup(service)
            shown = {instance.id: (plain_status(instance.status), instance.metadata["v"]) for instance in found}
            operation.finish(End.OK, shown)

    # --- writing down -----------------------------------------------------------------------------------------------------------

    def _begin(self, client: Client, kind: str, key: tuple[str, str], value: str = "") -> Operation:
        self._columns.add(client.name, f"{kind} {key[0]}/{key[1]} {value}")
        return self.history.begin(client.label, kind, key, value)

    @asynccontextmanager
    async def _operation(self, client: Client, kind: str, key: tuple[str, str], value: str = "") -> AsyncIterator[Operation]:
        operation = self._begin(client, kind, key, value)
        with trio.move_on_after(PATIENCE_SECONDS):
            async with self._recorded(operation):
                yield operation
                if operation.end is End.PENDING:
                    operation.finish(End.OK)
        self._columns.add(client.name, f"{kind} {key[0]}/{key[1]}: {operation.end.value}")

    @asynccontextmanager
    async def _recorded(self, operation: Operation) -> AsyncIterator[None]:
        """Write down how an operation ends when it does not end well: what was cut off, nobody knows."""
        try:
            yield
        except Rejected as error:
            # A registration that was superseded or evicted may have been in force before that.
            ended = operation.kind == "register" and isinstance(error, (Superseded, Evicted))
            if operation.end is End.PENDING:
                operation.finish(End.UNKNOWN if ended else End.FAIL)
        except GovernError as error:
            if operation.end is End.PENDING:
                operation.finish(End.FAIL if isinstance(error, Unreachable) else End.UNKNOWN)
        finally:
            if operation.end is End.PENDING:
                operation.finish(End.UNKNOWN)

    # --- watching ---------------------------------------------------------------------------------------------------------------

    async def _watch(self, client: Client, life: int, chance: random.Random) -> None:
        """Subscribe to one service after the other, for a while each."""
        while True:
            service = f"s{chance.randrange(self._options.services)}"
            number = next(self._streams)
            async with client.registry.subscribe(service) as view:
                self._see(client, life, number, view, None)
                client.views[number] = view
                try:
                    with trio.move_on_after(chance.expovariate(1 / 40.0)):
                        async for change in view:
                            self._see(client, life, number, view, change)
                    while self.calm:
                        await trio.sleep(0.5)
                finally:
                    del client.views[number]

    def _see(self, client: Client, life: int, number: int, view: LiveView, change: govern.Change | None) -> None:
        shown = {i.id: ((i.lease_id.term, i.lease_id.seq), i.status.value, i.metadata["v"]) for i in view.instances}
        self.history.sights.append(
            Sight(
                client=client.name,
                life=life,
                number=number,
                service=view.service.name,
                at=trio.current_time(),
                lsn=(view.lsn.term, view.lsn.seq),
                values=shown,
                added=() if change is None else tuple(instance.id for instance in change.added),
                changed=() if change is None else tuple(instance.id for instance in change.updated),
                removed=() if change is None else change.removed,
                reset=change is None or change.full,
                stale=view.stale,
            )
        )


def plain_status(status: govern.Status) -> str:
    """Without the node's opinion on who is silent."""
    return "up" if status is govern.Status.SUSPECT else status.value
