"""All nodes that a client speaks to: one session with each of those it needs, and every wish at exactly one of them.

A *wish* is a claim, a view, a command or a question. It belongs to a service, the service to a slot, and the routing says which node
answers for that. There is one `ClientCore` a node; wishes go from one to another when the routing says so. One core is the *entry*: it
gets what belongs to no node in particular, and brings news of the table. At first nobody knows which node it is of.

    shell                                cores
    a wish                    ──▶        home(service).…           the core to ask
    a frame has come          ──▶        receive(core, raw, now)
    the stream is gone        ──▶        disconnected(core)
    a dial has failed         ──▶        failed(core)
    after each of these       ──▶        settle(now)               wishes go where they belong; then `outbox.take()` of each core
    `deadline` has come       ──▶        settle(now)

G1  All wishes of one service are at one core, the one that the routing names; what is on its way and must not be repeated elsewhere stays
    where it was sent until it is answered.
G2  The session id is one, request ids and attempts are drawn from one counter: a write that is repeated at another node is recognised.
G3  Whenever a core is connected, the entry is. While none is, the entry looks everywhere: at its own node first, then at the addresses
    that `connect` was given, then at every node that the table knows. Every other core looks for its own node alone.
G4  One client speaks to one cluster. Another one is believed only when no core is connected; then every wish goes to that entry, and starts
    anew there. A node that belongs to none yet, for its disk was lost, is no other cluster: it will be of this one again.
G5  A core that nobody needs any more says Goodbye after 30 seconds and ends; the entry only when another core is needed, for somebody has
    to bring news of the table. While there is a newer table than the one in hand nobody says Goodbye: the node may hold what is claimed at
    another one still.
G6  A node is known by its id: who answers at the address of another node is not spoken to, unless it is the entry that has found it.
G7  A subscription is of one reign over a slot: when the table names a later term, it is made again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..core.slots import slot_of
from ..core.table import Table, read_change
from ..errors import Unreachable
from ..messages import AskTable, HelloOk, build_message
from ..model import Instance, ServiceKey
from .commands import Command
from .core import ClientCore, Phase, Shared, check_protocol
from .outbox import Request
from .reads import Asked, Question
from .routing import Routing
from .views import Memory
from .where import Address

IDLE_SECONDS: Final = 30.0
"""So long a connection is kept that nobody needs: looking the same service up twice a minute should not dial twice a minute."""
GOODBYE_SECONDS: Final = 1.0
"""So long the answer to the Goodbye of a core that is not needed any more is waited for."""
REVIEW_SECONDS: Final = 1.0
"""So often it is looked who is not needed any more; news are looked at at once."""
TABLE_SECONDS_MAX: Final = 5.0
"""A node that has not given the table within this time is not waited for: the next one is asked."""


class Cores:
    """The sessions of one client."""

    def __init__(self, session_id: bytes, seeds: Sequence[Address]) -> None:
        self.session_id = session_id
        self.seeds = list(seeds)
        self.cluster_id = ""
        self.routing = Routing()
        self.closed = False
        self._shared = Shared()  # G2
        self._by_node: dict[int, ClientCore] = {}
        self._idle_since: dict[ClientCore, float] = {}
        self._leaving: dict[ClientCore, float] = {}  # Goodbye was said: until when its answer is waited for
        self._ended: list[ClientCore] = []
        self._is_dirty = False  # some wish may be where it does not belong
        self._has_news = True  # there is something to do for `settle`
        self._next_at = -math.inf
        self._table_question: Question | None = None
        self._table_core: ClientCore | None = None
        self._table_asked_at = -math.inf
        self._table_turn = 0
        self.entry = self._make_core(None)

    def __repr__(self) -> str:
        return f"<Cores {', '.join(map(repr, self.living()))} {self.routing}>"

    def _make_core(self, node_id: int | None) -> ClientCore:
        core = ClientCore(self.session_id, self._shared)
        core.node_id, core.cluster_id = node_id, self.cluster_id
        if node_id is not None:
            self._by_node[node_id] = core
        self._has_news = True
        return core

    @property
    def memory(self) -> Memory:
        """What the cache is woken by."""
        return self._shared.memory

    def begin_with(self, lists: Mapping[ServiceKey, tuple[Instance, ...]], cluster_id: str, table: Table | None) -> None:
        """Begin with what a cache knows. Before anything is wanted."""
        assert not any(core.has_work for core in self.living()), self
        self.entry.views.keep(lists)
        if table is not None:
            self.routing.guess(cluster_id, table)

    # --- who there is ---------------------------------------------------------------------------------------------------------

    def living(self) -> list[ClientCore]:
        """All cores that take wishes, the entry first."""
        others = (core for core in self._by_node.values() if core is not self.entry)
        return [self.entry, *others]

    def all(self) -> list[ClientCore]:
        """The same, and those that are saying Goodbye."""
        return [*self.living(), *self._leaving]

    def take_ended(self) -> list[ClientCore]:
        """The cores that have ended since the last call: their streams are to be closed."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def any_connected(self) -> bool:
        """Whether any node is connected."""
        return self.entry.connected  # G3

    @property
    def connected(self) -> bool:
        """Whether every node that is needed is connected, and one at least."""
        return self.entry.connected and all(core.connected for core in self._by_node.values() if core.has_work)

    def addresses(self, core: ClientCore) -> list[Address]:
        """Where to look for the node of a core (G3); empty while nobody knows."""
        own = None if core.node_id is None else self.routing.address(core.node_id)
        found = [] if own is None else [own]
        if core is self.entry:
            found += [*self.seeds, *self.routing.addresses()]
        return list(dict.fromkeys(found))

    def knows_address(self, core: ClientCore) -> bool:
        """Whether anybody has said where its node is."""
        return core.node_id is not None and self.routing.address(core.node_id) is not None

    def is_needed(self, core: ClientCore) -> bool:
        """Whether somebody depends on its connection: on that of the entry everybody does while there is none."""
        return core.has_work or (core is self.entry and any(other.has_work for other in self._by_node.values()))

    # --- wishes ---------------------------------------------------------------------------------------------------------------

    def home(self, service: ServiceKey, now: float) -> ClientCore:
        """The core for everything of a service (G1)."""
        self._place_wishes(now)
        return self._target(service)

    def _target(self, service: ServiceKey) -> ClientCore:
        node_id = self.routing.owner(slot_of(service))
        return self.entry if node_id is None else self.core_of(node_id)

    def core_of(self, node_id: int) -> ClientCore:
        """The core of a node; a new one when there is none."""
        return self._by_node.get(node_id) or self._make_core(node_id)

    def ask(self, message: Asked, now: float, *, once: bool = False, node_id: int | None = None) -> Question:
        """Ask the node that answers for the service in question, that very node, or else the entry. Raises `Overloaded`."""
        if node_id is not None:
            return self.core_of(node_id).reads.ask(message, pinned=True)
        service = getattr(message, "service", None)
        core = self.entry if service is None else self.home(service, now)
        return core.reads.ask(message, once=once)

    def forget(self, question: Question) -> None:
        """Nobody waits for that answer any more."""
        for core in self.living():
            core.reads.forget(question)

    def forget_command(self, command: Command) -> None:
        """The same for a drain or an eviction: it is not sent if it was not sent yet."""
        for core in self.living():
            core.commands.forget(command)

    def where(self, question: Question) -> ClientCore | None:
        """The core where a question waits for its answer."""
        return next((core for core in self.living() if question in core.reads), None)

    def _place_wishes(self, now: float) -> None:
        """Take every wish that is not where it belongs there (G1)."""
        if not self._is_dirty:
            return
        self._is_dirty = False
        for core in self.living():
            for service in core.services():
                target = self._target(service)
                if target is not core:
                    target.put_in(core.take_out(service), now)
            if core is not self.entry:
                self.entry.reads.put_in(core.reads.take_out(None))

    def _absorb(self, former: ClientCore, core: ClientCore, now: float) -> None:
        """Everything that `former` has goes to `core`, and `former` ends."""
        for service in former.services():
            core.put_in(former.take_out(service), now)
        is_same_node = former.node_id == core.node_id
        core.reads.put_in(former.reads.take_all() if is_same_node else former.reads.take_out(None))
        self._end(former)

    def _end(self, core: ClientCore) -> None:
        if core.node_id is not None and self._by_node.get(core.node_id) is core:
            del self._by_node[core.node_id]
        self._leaving.pop(core, None)
        self._idle_since.pop(core, None)
        self._drop_table_question(core)
        core.close(Unreachable(f"node {core.node_id} is not spoken to any more"))
        self._ended.append(core)

    # --- connections ----------------------------------------------------------------------------------------------------------

    def receive(self, core: ClientCore, raw: list[Any], now: float) -> None:
        """Take one unpacked frame for a core. Raises what `ClientCore.receive` raises, and `Unreachable` when it is not the node that it
        should be: then the stream is to be closed."""
        if core in self._leaving:
            core.receive(raw, now)
            self._has_news = True
            return
        if core.phase is Phase.HELLO and raw[0] == HelloOk.TYPE:
            message = build_message(raw)
            assert isinstance(message, HelloOk)
            check_protocol(message)
            self._greet(core, message, now)
        core.receive(raw, now)
        if not core.connected:
            return
        if not self.entry.connected:
            self._enter_through(core, now)
        self.routing.announced(core.table_version)
        self._has_news = self._has_news or self.routing.is_behind
        if core.moved:
            assert core.node_id is not None
            for moved in core.moved:
                self.routing.moved(core.node_id, moved, now)
            core.moved.clear()
            self._is_dirty = True
        if self._table_core is core:
            self._take_table()

    def _greet(self, core: ClientCore, hello: HelloOk, now: float) -> None:
        """A node has accepted us: is it the one that was looked for, and of our cluster?"""
        if self.cluster_id and hello.cluster_id != self.cluster_id:
            if not hello.cluster_id:
                raise Unreachable("the node belongs to no cluster yet")  # G4
            if self.any_connected:
                raise Unreachable(f"the node belongs to another cluster ({hello.cluster_id})")  # G4
            for other in self.living():
                if other is not core:
                    self._absorb(other, core, now)
            self.entry = core
        if core.node_id != hello.node_id:
            if core is not self.entry:
                self.routing.doubt()
                raise Unreachable(f"node {hello.node_id} answers at the address of node {core.node_id}")  # G6
            self._become(core, hello.node_id, now)
        core.cluster_id, self.cluster_id = self.cluster_id, hello.cluster_id  # the core sees for itself whether they differ
        self.routing.reset(hello.cluster_id)
        self._is_dirty = True
        self._place_wishes(now)

    def _become(self, core: ClientCore, node_id: int, now: float) -> None:
        """The entry has found this node: it is of this node from now on."""
        if core.node_id is not None and self._by_node.get(core.node_id) is core:
            del self._by_node[core.node_id]
        other = self._by_node.pop(node_id, None)
        assert other is None or not other.connected, other  # G3
        core.node_id = node_id
        self._by_node[node_id] = core
        if other is not None:
            self._absorb(other, core, now)

    def _enter_through(self, core: ClientCore, now: float) -> None:
        """This core is the entry from now on (G3)."""
        former, self.entry = self.entry, core
        self._is_dirty = True
        if former.node_id is None:
            self._absorb(former, core, now)

    def disconnected(self, core: ClientCore) -> None:
        """The stream of a core is gone."""
        core.disconnected()
        self._has_news = True
        self._drop_table_question(core)
        if core is self.entry:
            other = self._another_entry()
            if other is not None:
                self.entry, self._is_dirty = other, True  # G3

    def failed(self, core: ClientCore) -> None:
        """The node of a core could not be reached."""
        if core is not self.entry:
            self.routing.doubt()
            self._has_news = True

    # --- the table ------------------------------------------------------------------------------------------------------------

    def _ask_for_table(self, now: float) -> None:
        """Ask a connected node that has the newest table, each time another one (T5)."""
        if self._table_core is not None and now >= self._table_asked_at + TABLE_SECONDS_MAX:
            self._drop_table_question(self._table_core)
        sources = self._table_sources()
        if self._table_core is not None or not sources or now < self.routing.refresh_at:
            return
        core = self._table_core = sources[self._table_turn % len(sources)]
        self._table_turn += 1
        self._table_asked_at = now
        self._table_question = core.reads.ask(AskTable(self.routing.version), pinned=True)
        self.routing.asked(now)

    def _table_sources(self) -> list[ClientCore]:
        newest = max((core.table_version for core in self.living()), default=0)
        return [core for core in self.living() if core.connected and 0 < core.table_version == newest]

    def _take_table(self) -> None:
        question = self._table_question
        if question is not None and question.done:
            self._table_question = self._table_core = None
            self._has_news = True
            if question.error is None and self.routing.take(read_change(question.answer)):
                self._is_dirty = True
                self.entry.outbox.tell(self.memory)
                self._renew_views()

    def _renew_views(self) -> None:
        """Subscriptions of reigns that are over are made again (G7). What goes to another node is asked for there anyway."""
        for core in self.living():
            for service in list(core.views.services()):
                run = self.routing.table.run_of(slot_of(service))
                if run is not None and run.primary == core.node_id:
                    core.views.renew(service, run.term)

    def _drop_table_question(self, core: ClientCore) -> None:
        """It will not be answered by this node: the next one is asked."""
        if self._table_core is core:
            assert self._table_question is not None
            core.reads.forget(self._table_question)
            self._table_question = self._table_core = None
            self.routing.doubt()
            self._has_news = True

    # --- time and the end -----------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `settle` is to be called next."""
        return math.inf if self.closed else self._next_at

    def settle(self, now: float) -> bool:
        """Bring everything where it belongs, and do what is due. False when there was nothing to do: then no core was touched."""
        if self.closed:
            return bool(self._ended)
        if not (self._has_news or self._is_dirty) and now < self._next_at:
            return False
        self._has_news = False
        self._place_wishes(now)
        self._review(now)
        self._place_wishes(now)
        self._ask_for_table(now)
        times = [now + REVIEW_SECONDS, *self._leaving.values(), *(since + IDLE_SECONDS for since in self._idle_since.values())]
        if self._table_core is not None:
            times.append(self._table_asked_at + TABLE_SECONDS_MAX)
        elif self._table_sources():
            times.append(self.routing.refresh_at)
        self._next_at = min(times)
        return True

    def _review(self, now: float) -> None:
        """End what nobody needs (G5)."""
        for core, until in list(self._leaving.items()):
            if core.has_left or now >= until:
                self._end(core)
        for core in list(self._by_node.values()):
            is_last = core is self.entry and self._another_entry(needed=True) is None
            if core.has_work or is_last or self.routing.is_behind:
                self._idle_since.pop(core, None)
            elif not core.connected:
                self._end(core)
            elif now >= self._idle_since.setdefault(core, now) + IDLE_SECONDS:
                self._part_with(core, now)

    def _another_entry(self, *, needed: bool = False) -> ClientCore | None:
        """Another core that is connected; if `needed`, one that is needed besides."""
        others = (core for core in self._by_node.values() if core is not self.entry and core.connected)
        return next((core for core in others if core.has_work or not needed), None)

    def _part_with(self, core: ClientCore, now: float) -> None:
        if core is self.entry:
            other = self._another_entry(needed=True)
            assert other is not None
            self.entry, self._is_dirty = other, True
        assert core.node_id is not None
        self._drop_table_question(core)
        del self._by_node[core.node_id]
        del self._idle_since[core]
        core.goodbye()
        self._leaving[core] = now + GOODBYE_SECONDS

    def goodbye(self) -> list[tuple[ClientCore, Request]]:
        """The client leaves: end the sessions at all nodes, and give back what is to be waited for."""
        requests = [(core, core.goodbye()) for core in self.living()]
        return [(core, request) for core, request in requests if request is not None]

    def close(self) -> None:
        """The client has left: whoever still waits for something gets `Stopped`."""
        self.closed = True
        for core in self.all():
            core.close()
            self._ended.append(core)

    # --- for the cache and for tests --------------------------------------------------------------------------------------------

    def last_known(self) -> dict[ServiceKey, tuple[Instance, ...]]:
        """The last known list of every service that ever had a view; whoever waits for `memory` is woken when it changes."""
        lists = dict(self.memory.kept or {})
        for core in self.living():
            lists.update(core.views.ready_lists())
        return lists

    def validate(self) -> None:
        """Assert the invariants of all parts, after `settle`."""
        self.routing.validate()
        for node_id, core in self._by_node.items():
            assert core.node_id == node_id
        assert self.entry.node_id is None or self._by_node[self.entry.node_id] is self.entry
        assert self.entry.connected or not any(core.connected for core in self._by_node.values())  # G3
        homes: dict[ServiceKey, ClientCore] = {}
        for core in self.living():
            core.validate()
            for service in core.services():
                assert homes.setdefault(service, core) is core is self._target(service), (service, core)  # G1
