"""The registry as a program sees it: `connect` and what can be done inside its block.

Everything here is a thin shell: it checks values at the door, hands wishes to the core, and waits for what the core reports. A block
that ends, however it ends, leaves nothing behind: what was registered in it is deregistered, what was subscribed is not
told any more, and the exception that ended it comes out as it went in.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from ..core.table import EMPTY, Table, apply, read_change
from ..environment import Environment, real_environment
from ..errors import Indeterminate, Unreachable
from ..messages import Administer, AskStatus, AskTable, Explain, Lookup, Services
from ..model import Instance, ServiceInfo, ServiceKey, Status, check_instance, check_name, check_namespace
from .answers import Drained, Explanation
from .cache import Cache
from .claims import Claim
from .draining import DRAIN_SECONDS, wait_drained
from .leaving import GOODBYE_SECONDS_MAX, LeaveBudget
from .links import Links
from .live_view import LiveView
from .reading import READ_SECONDS_MAX, gather_services, wait_answer
from .reads import Asked
from .registration import Registration, read_status
from .where import Where, find_addresses

CONNECT_SECONDS: Final = 5.0
HOST_UNTIL_CONNECTED: Final = "localhost"
"""Stands for the default host until the first connection tells it; it is never sent."""
CACHE_PATIENCE_SECONDS: Final = 1.0
"""So long a subscription waits for the node's list when the cache has one."""
QUESTIONS: Final = ("nodes", "table", "status")
"""The verbs of `administer` that change nothing."""


def _default_id(host: str, port: int) -> str:
    return f"{host}:{port}".replace("%", "@")  # fe80::1%eth0: ids know no percent sign


class Registry:
    """The registry, through a connection to each node that is needed, kept up by themselves. Made by `connect`."""

    def __init__(self, links: Links, namespace: str, cache: Cache | None = None) -> None:
        self.namespace = namespace
        self._links = links
        self._cache = cache
        self._budget = LeaveBudget()

    def __repr__(self) -> str:
        return f"<Registry {self.namespace} {self._links}>"

    @property
    def connected(self) -> bool:
        """Whether there is a connection now to every node that is needed for what is registered, subscribed or asked, and to one at
        least."""
        return self._links.cores.connected

    @property
    def local_host(self) -> str:
        """The address of this side of the newest connection: the host of an instance that names none."""
        return self._links.local_host

    @property
    def cluster_id(self) -> str:
        """The cluster of the node that was spoken to last."""
        return self._links.cores.cluster_id

    @property
    def node_id(self) -> int | None:
        """The node that `status` is of: the one through which the client entered, or another one since that could not be reached."""
        return self._links.cores.entry.node_id

    @property
    def unanswered(self) -> str:
        """For people, when a read was given up before it was answered: the node that was waited for last and where it was looked for, or
        what it said of itself. Empty when it was connected and said nothing."""
        return self._links.unanswered

    async def wait_connected(self) -> None:
        """Wait until it is `connected`. Raises `Stopped` when the registry was left."""
        await trio.lowlevel.checkpoint()
        await self._links.wait_connected()

    def _service(self, name: str, namespace: str | None) -> ServiceKey:
        return ServiceKey(check_namespace(self.namespace if namespace is None else namespace), check_name(name))

    # --- registering ----------------------------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        *,
        port: int,
        host: str | None = None,
        id: str | None = None,  # noqa: A002
        namespace: str | None = None,
        protocol: str = "tcp",
        weight: float = 1.0,
        zone: str = "",
        version: str = "",
        metadata: Mapping[str, str] | None = None,
        ephemeral: bool = True,
        ttl: float = 5.0,
        status: Status | str = Status.UP,
    ) -> AbstractAsyncContextManager[Registration]:
        """Register an instance for as long as the block lasts; inside the block it is durable and visible.

        `host` is the local address of the connection by default, `id` is `host:port`, also for an IPv6 host without brackets. Raises
        `Invalid` at once, before anything is sent. Entering waits for the acknowledgement, over broken connections and busy nodes, until
        it is cancelled; it raises `DiskFull`, `Superseded`, `Evicted` or another `Rejected` when the node refuses for good, `Stopped`
        when the registry was left. A cancelled entry leaves nothing: what may have been written is deregistered.
        Leaving deregisters, within the one second that all leaving has; while disconnected it does not wait, and the removal
        follows with the next connection if the registry still lives, or with the end of the ttl. With `ephemeral=False` leaving
        keeps the instance.
        """
        self._links.check_open()
        own_host = host if host is not None else self._links.local_host or HOST_UNTIL_CONNECTED
        instance = Instance(
            id=_default_id(own_host, port) if id is None else id,
            host=own_host,
            port=port,
            protocol=protocol,
            weight=weight,
            zone=zone,
            version=version,
            metadata={} if metadata is None else dict(metadata),
            status=read_status(status),
            ephemeral=ephemeral,
            ttl=ttl,
        )
        check_instance(instance)
        needs_host = host is None and not self._links.local_host
        return self._registered(self._service(name, namespace), instance, needs_host=needs_host, needs_id=needs_host and id is None)

    @asynccontextmanager
    async def _registered(
        self, service: ServiceKey, instance: Instance, *, needs_host: bool, needs_id: bool
    ) -> AsyncIterator[Registration]:
        self._links.check_open()
        if needs_host:
            await self._links.wait_any_connected()
            host = self._links.local_host
            instance = attrs.evolve(instance, host=host, id=_default_id(host, instance.port) if needs_id else instance.id)
        registrations = self._links.home(service).registrations
        claim = registrations.register(service, instance)
        registrations.pump()
        self._links.flush()
        try:
            await trio.lowlevel.checkpoint()
            while not claim.acknowledged:
                self._links.check_open()
                if claim.refusal is not None:
                    raise claim.refusal
                await self._links.wait(claim)
            yield Registration(self._links, claim)
        finally:
            await self._leave(claim)

    async def _leave(self, claim: Claim) -> None:
        """End a registration with its block. Waits for nothing while there is no connection."""
        core = self._links.home(claim.service)
        if claim.wanted is not None and claim.acknowledged and not claim.ephemeral:
            core.registrations.keep(claim)
        else:
            core.registrations.leave(claim)
            core.registrations.pump()
        self._links.flush()
        with self._budget.spend():
            while self._links.home(claim.service).connected and not claim.over:
                await self._links.wait(claim)

    # --- reading --------------------------------------------------------------------------------------------------------------

    async def lookup(self, name: str, namespace: str | None = None) -> tuple[Instance, ...]:
        """All instances of a service, in the order of their ids; empty for a service that nobody knows.

        Waits at most ten seconds, also over broken connections, then raises `Unreachable`. Raises `Rejected` when the node refuses."""
        instances: list[Instance] = await self._ask(Lookup(self._service(name, namespace)))
        return tuple(sorted(instances, key=lambda instance: instance.id))

    async def services(self, namespace: str | None = None) -> tuple[ServiceInfo, ...]:
        """The services that have instances: of this registry's namespace, of another, or with `""` of all. Every node that answers for
        any is asked, and a list is never short for want of an answer. Waits and raises as `lookup`."""
        namespace = self.namespace if namespace is None else namespace
        infos = await gather_services(self._links, Services(check_namespace(namespace) if namespace else ""))
        return tuple(sorted(infos, key=lambda info: (info.namespace, info.name)))

    async def status(self) -> dict[str, Any]:
        """The state of one node, `node_id`, in the shape of `status --json` (docs/operations.md). Waits and raises as `lookup`."""
        pages: list[dict[str, Any]] = await self._ask(AskStatus())
        return pages[0]

    async def table(self) -> Table:
        """Which node answers for which slots, as one node knows it: its runs have `first`, `last`, `primary`, `copies`, `in_sync`
        and `term`. For operators; a client follows the table by itself. Waits and raises as `lookup`."""
        return apply(EMPTY, read_change(await self._ask(AskTable(0))))

    async def explain(self, name: str, id: str | None = None, namespace: str | None = None) -> Explanation:  # noqa: A002
        """Why an instance of a service, or each of them, is in its view or not: how it stands, and what the node remembers of it, also of
        instances that are gone. Waits and raises as `lookup`."""
        instance_id = "" if id is None else check_name(id, "instance id")
        pages: list[Explanation] = await self._ask(Explain(self._service(name, namespace), instance_id))
        return pages[0]

    async def _ask(self, message: Asked, *, once: bool = False) -> Any:
        self._links.check_open()
        question = self._links.cores.ask(message, trio.current_time(), once=once)
        await wait_answer(self._links, question)
        return question.answer

    # --- for operators --------------------------------------------------------------------------------------------------------

    async def drain(
        self,
        name: str,
        id: str,  # noqa: A002
        timeout: float = DRAIN_SECONDS,  # noqa: ASYNC109
        *,
        namespace: str | None = None,
    ) -> Drained:
        """Take any instance out of traffic, and wait until everybody who subscribes to its service has noticed.

        As `Registration.drain`, for whoever holds the instance. Raises `Gone` when there is no such instance, and never was one that
        this call may have drained; else `Indeterminate`.
        """
        service, instance_id = self._service(name, namespace), check_name(id, "instance id")
        self._links.check_open()
        return await wait_drained(self._links, service, instance_id, trio.current_time() + timeout)

    async def evict(self, name: str, id: str, *, namespace: str | None = None) -> None:  # noqa: A002
        """Remove an instance whoever holds it, and bar its session from registering that id again; returns when that is durable.

        Its owner is told: its `registration.lost` is `evicted`. Waits ten seconds at most. Certainly not done: `Gone` when there is no
        such instance, another `Rejected`, `Unreachable` when it could not be asked. Perhaps done: `Indeterminate` when it was asked
        and the answer did not come; it is never asked twice, for the id may be another's by then. Cancelling ends the waiting: it may
        have been done or not.
        """
        service, instance_id = self._service(name, namespace), check_name(id, "instance id")
        self._links.check_open()
        core = self._links.home(service)
        command = core.commands.evict(service, instance_id)
        if core.connected:
            core.commands.pump(trio.current_time())
        self._links.flush()
        try:
            with trio.move_on_after(READ_SECONDS_MAX):
                await self._links.wait_done(command)
        finally:
            self._links.cores.forget_command(command)
        if not command.done and command.sent:
            raise Indeterminate(f"the eviction was not answered within {READ_SECONDS_MAX:g} s: look whether the instance is gone")
        if not command.done:
            raise Unreachable(self._links.explain(self._links.home(service)))

    async def administer(self, verb: str, node_id: int = 0, **options: Any) -> dict[str, Any]:
        """An operator's word to the whole cluster, and the controller's answer, in the shape that belongs to the verb.

        For operators and their tools: verbs, options and answers are those of the command line. Any node passes it on. Waits ten
        seconds at most. Certainly not done: a `Rejected` with what the controller says, `Unreachable` when it could not be asked. Perhaps
        done: `Indeterminate` when it was asked and the answer did not come. Only a verb that changes nothing is asked again. Cancelling
        ends the waiting: it may have been done or not.
        """
        once = verb not in QUESTIONS
        self._links.check_open()
        question = self._links.cores.ask(Administer(verb, node_id, options), trio.current_time(), once=once)
        try:
            await wait_answer(self._links, question)
        except Unreachable as error:
            if once and question.sent:
                raise Indeterminate(f"{verb} was not answered within {READ_SECONDS_MAX:g} s: look what has become of it") from error
            raise
        result: dict[str, Any] = question.answer[0]
        return result

    # --- subscribing ----------------------------------------------------------------------------------------------------------

    def subscribe(self, name: str, namespace: str | None = None) -> AbstractAsyncContextManager[LiveView]:
        """Keep a live view of a service for as long as the block lasts. Raises `Invalid` at once.

        Entering waits until a committed list is in hand; a service that nobody knows is empty. It waits over broken connections until it is
        cancelled, and raises `Rejected` when the node refuses for good, `Stopped` when the registry was left. With a cache that knows
        the service it waits a second at most, and not at all while there is no connection: then the view is that of the cache, and stale.
        """
        self._links.check_open()
        return self._subscribed(self._service(name, namespace))

    @asynccontextmanager
    async def _subscribed(self, service: ServiceKey) -> AsyncIterator[LiveView]:
        self._links.check_open()
        cursor = self._links.home(service).views.open(service)
        self._links.flush()
        live_view = LiveView(self._links, cursor)
        try:
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(CACHE_PATIENCE_SECONDS if cursor.view.cached else math.inf):
                while not (cursor.view.ready or (cursor.view.cached and self._links.is_out_of_reach(service))):
                    self._links.check_open()
                    if cursor.view.refusal is not None:
                        raise cursor.view.refusal
                    await self._links.wait(cursor)
            cursor.skip()
            yield live_view
        finally:
            if not cursor.view.ready:
                self._links.note_unanswered(self._links.home(service))
            live_view.closed = True
            self._links.home(service).views.close(cursor)
            self._links.ring(cursor)
            self._links.flush()

    # --- the end --------------------------------------------------------------------------------------------------------------

    async def _farewell(self) -> None:
        """Say Goodbye to every node that hears it, and end whatever still waits."""
        cores = self._links.cores
        goodbyes = cores.goodbye()
        self._links.flush()
        with self._budget.spend(GOODBYE_SECONDS_MAX):
            if self._cache is not None:
                await self._cache.save(cores)  # while the answers to Goodbye are on their way
            for core, request in goodbyes:
                while core.connected and not request.done:
                    await self._links.wait(request)
        cores.close()
        self._links.flush()


@asynccontextmanager
async def connect(
    where: Where = None,
    *,
    namespace: str = "default",
    timeout: float = CONNECT_SECONDS,  # noqa: ASYNC109
    cache: str | Path | None = None,
    environment: Environment | None = None,
) -> AsyncIterator[Registry]:
    """Connect to a registry for as long as the block lasts.

    `where` is a node of this process (dialled through its own doors), `"host:port,host:port"`, a sequence of addresses, or None: then
    the variable GOVERN_CONNECT, else 127.0.0.1:7400. The addresses are tried in turn, starting anywhere. Any node of a cluster will do: the
    client learns of the others, goes to the node of each service by itself, and depends on no node that it does not need.

    Raises `Invalid` for a bad address, `Unreachable` when nobody answers within `timeout` seconds (`math.inf` waits), and what the
    nodes say when all of them refuse this client for good. Later breaks are silent: the connection is sought again, and everything that
    was registered and subscribed is put back; `registry.connected` tells. Leaving says Goodbye; together with all that is left inside
    the block it takes at most one second. An exception of the block comes out as it is, never in a group.

    `cache` names a file in which the last known views and nodes are kept, so that a program can start while no node can be reached: with
    a usable file entering does not raise `Unreachable`, and subscriptions begin with what the file knows. It is written when a view
    changes, at most once a second. A file that is damaged or cannot be written is a warning in the log and nothing else.
    """
    check_namespace(namespace)
    addresses, doors = find_addresses(where)
    environment = environment or doors or real_environment()
    links = Links(environment, addresses)
    keeper = None if cache is None else Cache(environment, str(cache))
    known = None if keeper is None else await keeper.load(links.cores)
    registry = Registry(links, namespace, keeper)
    body_error: BaseException | None = None
    crash: BaseException | None = None

    # Shielded, because a cancellation from outside must reach the block first: what is left in it still needs the link. The block has
    # its second for that, and then cancels this scope. It is made here and not in the task, so that this never depends on who runs first.
    upkeep = trio.CancelScope(shield=True, deadline=math.inf)

    async def keep_up(body: trio.CancelScope) -> None:
        nonlocal crash
        with upkeep:
            try:
                await _run(links, keeper)
            except trio.Cancelled:
                raise
            except BaseException as error:  # our own bug, or a signal that hit this task: the block must not go on without its link
                _, crash = error.split(trio.Cancelled) if isinstance(error, BaseExceptionGroup) else (None, error)
                if crash is None:
                    raise
                body.cancel()

    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as body:
                nursery.start_soon(keep_up, body)
                try:
                    try:
                        await links.wait_first(timeout, needed=known is None)
                        yield registry
                    finally:
                        await registry._farewell()
                except BaseException as error:  # raised again below: outside of the nursery, and so outside of any group
                    body_error = error
                upkeep.cancel()
    except BaseExceptionGroup as group:  # never the block's own: that one is in `body_error`
        crash = crash or group
    if crash is not None:
        raise _alone(crash)
    if body_error is not None:
        raise body_error


async def _run(links: Links, keeper: Cache | None) -> None:
    """Keep the connections up, and the cache, until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.run)
        if keeper is not None:
            nursery.start_soon(keeper.run, links)


def _alone(error: BaseException) -> BaseException:
    """The one exception inside of groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
