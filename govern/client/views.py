"""Live views as a client sees them: the instances of a service, kept current by deltas, and what each consumer has not seen yet.

V1  A view changes only by a whole list or by a delta that starts exactly at its lsn; its lsn goes back only by V10 and V13.
V2  What does not fit is answered by subscribing again: with the lsn in hand, and after a second misfit in a row from nothing.
V3  A list that is not empty is never replaced by an empty one of a node that is not fresh. Such a list is held back.
    For whatever reason a list is held back, the node is asked again with every heartbeat in which it says that it is fresh.
V4  While disconnected the view stays as it is and says that it is stale.
V5  A consumer that is slow gets one change that leads from what it saw last to what is now; what came and went meanwhile is not in it.
V6  All consumers of a service share one subscription.
V7  Suspicion is an overlay: it shows in an instance that is up, and nowhere else. A list or a delta that names the instance, a resumed
    subscription and the node's own word end it; the node hints anew at whoever is suspect still.
V8  `Applied` is said of a list or a delta exactly when it has become the view: from then on nobody can be given what it removed.
V9  A view from the cache is stale until the node has answered, and its lsn is zero: the node sends the whole list. V3 protects it too.
V10 After a change of cluster a list that lacks an instance in hand is held back for four seconds: a registry that lost its memory learns
    of the living only as they come back.
V11 A view can be taken to another node. It keeps its list and its lsn, and is stale until that node has answered.
V12 A subscription ends with the reign of the node over the slot. A term is the version of the table that granted it: when it is later
    than what the node had when it was asked, it is asked again, from the lsn in hand.
V13 Of one history neither the lsn nor its seq goes back. So a list that is older than the view, or has a smaller seq and lacks an instance,
    is of a slot that lost what it had: its disk was lost and given up, or had to be salvaged. It is held back as in V10, here from the
    first heartbeat in which that node says that it is fresh; if the node still says so afterwards, it is a fact and becomes the view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from ..errors import GovernError, RemoteProtocolError
from ..messages import Applied, Delta, Hint, Refused, Resumed, Subscribe, Unsubscribe, View
from ..model import LSN_ZERO, Change, Instance, Lsn, ServiceKey, Status, instance_from_public
from .balance import Choice
from .outbox import Alarms, Outbox
from .outcomes import STOPPING, UNASSIGNED, UNKNOWN, error_of

SUBSCRIBES_IN_FLIGHT_MAX: Final = 64
"""Subscriptions that are asked for at the same time: each may be answered by a long list."""
INSTANCES_MAX: Final = 1_000_000
"""A longer list than this is not collected: it is a fault of the other side."""
DOUBT_SECONDS: Final = 4.0
"""As long as a node waits for its clients after a start: by then the living have registered again."""


def read_instance(public: Any) -> Instance:
    """An instance from the decoded public form, every field of its type; raises `RemoteProtocolError`."""
    try:
        instance = instance_from_public(public)
        texts = (instance.id, instance.host, instance.protocol, instance.zone, instance.version, *instance.metadata.values())
        numbers = (instance.port, *instance.lease_id, *instance.lsn)
        is_sound = (
            all(type(text) is str for text in texts)
            and all(type(number) is int for number in numbers)
            and type(instance.weight) is float
            and type(instance.ephemeral) is bool
            and all(type(key) is str for key in instance.metadata)
        )
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError) as error:
        raise RemoteProtocolError(f"an instance cannot be read: {type(error).__name__}") from error
    if not is_sound:
        raise RemoteProtocolError("an instance has a field of the wrong type")
    return instance


def read_instances(publics: list[Any]) -> dict[str, Instance]:
    """Instances by id; raises `RemoteProtocolError`."""
    instances = map(read_instance, publics)
    return {instance.id: instance for instance in instances}


class Cursor:
    """One consumer of a view: what it saw last, as far as it differs from what is now."""

    def __init__(self, view: ServiceView) -> None:
        self.view = view
        self._seen: dict[str, Instance | None] = {}  # of each instance that changed since: what it was when it was seen last

    def __repr__(self) -> str:
        return f"<Cursor {self.view.service} behind={len(self._seen)}>"

    def note(self, instance_id: str, former: Instance | None) -> None:
        """The instance is about to change from `former`."""
        self._seen.setdefault(instance_id, former)

    def skip(self) -> None:
        """Everything up to now counts as seen."""
        self._seen = {}

    def take(self) -> Change | None:
        """The change since the last one, or None when there is no difference (V5)."""
        seen, self._seen = self._seen, {}
        added: list[Instance] = []
        updated: list[Instance] = []
        removed: list[str] = []
        for instance_id, former in sorted(seen.items()):
            current = self.view.instances.get(instance_id)
            if current == former:
                continue
            if current is None:
                removed.append(instance_id)
            elif former is None:
                added.append(current)
            else:
                updated.append(current)
        if not (added or updated or removed):
            return None
        return Change(service=self.view.service, lsn=self.view.lsn, added=tuple(added), updated=tuple(updated), removed=tuple(removed))


@attrs.define(eq=False)
class ServiceView:
    """The instances of one service and the state of its subscription."""

    service: ServiceKey
    instances: dict[str, Instance] = attrs.field(factory=dict)
    lsn: Lsn = LSN_ZERO
    ready: bool = False
    """A whole committed list was in hand at least once."""
    cached: bool = False
    """What is shown comes from the cache (V9)."""
    live: bool = False
    """The node of this connection keeps it current."""
    fresh: bool = False
    held_back: bool = False
    doubt_until: float = math.inf
    """Until when a list that has lost its history is held back (V13): infinite before the node has said that it is fresh, minus infinite
    when it is to be believed."""
    misfits: int = 0
    asked: int = 0
    """The request id of the subscription that is being asked for, or 0."""
    asked_version: int = 0
    """The version of the table that the node had when it was asked last, as far as it had said."""
    pages: dict[str, Instance] | None = None
    pages_lsn: Lsn = LSN_ZERO
    refusal: GovernError | None = None
    cursors: dict[Cursor, None] = attrs.field(factory=dict)
    suspects: dict[str, Instance] = attrs.field(factory=dict)
    """What those that are shown as suspect really are (V7)."""
    ordered: tuple[Instance, ...] | None = None
    prepared: Choice | None = None

    def __repr__(self) -> str:
        state = "live" if self.live else "asked" if self.asked else "waiting"
        return f"<ServiceView {self.service} {state} lsn={tuple(self.lsn)} instances={len(self.instances)}>"

    @property
    def stale(self) -> bool:
        """Whether changes may have happened that are not in it (V4)."""
        return not (self.live and self.fresh) or self.held_back

    def leave_node(self) -> None:
        """Nothing that the node was asked for is waited for, and nothing that it said of itself counts any more."""
        self.live, self.asked, self.pages, self.doubt_until = False, 0, None, math.inf

    def sorted_instances(self) -> tuple[Instance, ...]:
        """All instances by id; put in order once per change."""
        if self.ordered is None:
            self.ordered = tuple(self.instances[instance_id] for instance_id in sorted(self.instances))
        return self.ordered

    def choice(self) -> Choice:
        """Those among whom to choose; prepared once per change."""
        if self.prepared is None:
            self.prepared = Choice(self.sorted_instances())
        return self.prepared

    def without_suspicion(self) -> tuple[Instance, ...]:
        """All instances as they are stored."""
        return tuple(self.suspects.get(instance_id, instance) for instance_id, instance in self.instances.items())

    def hint(self, instance_ids: Iterable[str], *, on: bool) -> None:
        """The node's word of who is suspect and who is not any more (V7)."""
        for instance_id in instance_ids:
            shown = self.instances.get(instance_id)
            if on and shown is not None and shown.status is Status.UP:
                self.put(instance_id, attrs.evolve(shown, status=Status.SUSPECT))
                self.suspects[instance_id] = shown
            elif not on and instance_id in self.suspects:
                self.put(instance_id, self.suspects[instance_id])

    def put(self, instance_id: str, instance: Instance | None) -> None:
        """Set or remove one instance, and remember for every consumer what it was."""
        former = self.instances.get(instance_id)
        for cursor in self.cursors:
            cursor.note(instance_id, former)
        if instance is None:
            self.instances.pop(instance_id, None)
        else:
            self.instances[instance_id] = instance
        self.suspects.pop(instance_id, None)
        self.ordered = self.prepared = None


class Memory:
    """What the views of a client share, at whichever nodes they are. Whoever waits for it is woken when a list has changed."""

    def __init__(self) -> None:
        self.kept: dict[ServiceKey, tuple[Instance, ...]] | None = None
        """The last lists of services that have no view any more, for the cache; None when there is none."""
        self.doubt_until = -math.inf
        """Until when lists that lack an instance are held back (V10)."""


class Views:
    """All views that one client has at one node."""

    def __init__(self, outbox: Outbox, memory: Memory | None = None) -> None:
        self.memory = memory or Memory()
        self.table_version = 0
        """The newest version of the table that the node has named."""
        self._outbox = outbox
        self._connected = False
        self._views: dict[ServiceKey, ServiceView] = {}
        self._queue: dict[ServiceView, None] = {}
        self._in_flight: dict[int, ServiceView] = {}
        self._held_back: dict[ServiceView, None] = {}
        self._fresh = True
        self._retries: Alarms[ServiceView] = Alarms()

    def __repr__(self) -> str:
        return f"<Views {len(self._views)} queued={len(self._queue)} in_flight={len(self._in_flight)}>"

    def __len__(self) -> int:
        return len(self._views)

    @property
    def deadline(self) -> float:
        return self._retries.deadline if self._connected else float("inf")

    # --- the cache ------------------------------------------------------------------------------------------------------------

    def keep(self, lists: Mapping[ServiceKey, tuple[Instance, ...]]) -> None:
        """Begin with these last known lists, and keep the last list of every service from now on. Before the first view is opened."""
        assert not self._views, self
        self.memory.kept = dict(lists)

    def last_known(self) -> dict[ServiceKey, tuple[Instance, ...]]:
        """The last known list of every service that ever had a view."""
        return {**(self.memory.kept or {}), **self.ready_lists()}

    def ready_lists(self) -> dict[ServiceKey, tuple[Instance, ...]]:
        """The lists of those that had a whole committed one."""
        return {service: view.without_suspicion() for service, view in self._views.items() if view.ready}

    # --- what the owner asks for ----------------------------------------------------------------------------------------------

    def open(self, service: ServiceKey) -> Cursor:
        """A consumer of the service's view, from now on (V6)."""
        view = self._views.get(service)
        if view is None:
            view = self._views[service] = ServiceView(service)
            kept = self.memory.kept
            if kept is not None and service in kept:
                view.instances, view.cached = {instance.id: instance for instance in kept[service]}, True
            self._queue[view] = None
            self.pump()
        cursor = Cursor(view)
        view.cursors[cursor] = None
        return cursor

    def close(self, cursor: Cursor) -> None:
        """The consumer is gone; with the last one the subscription ends."""
        view = cursor.view
        del view.cursors[cursor]
        if view.cursors or self._views.get(view.service) is not view:
            return
        self._discard(view)
        if self._connected and (view.live or view.asked or view.misfits):
            self._outbox.send(Unsubscribe(view.service))
            self.pump()

    def _discard(self, view: ServiceView) -> None:
        if self.memory.kept is not None and view.ready:
            self.memory.kept[view.service] = view.without_suspicion()
        self._remove_from_books(view)

    def _remove_from_books(self, view: ServiceView) -> None:
        del self._views[view.service]
        self._queue.pop(view, None)
        self._retries.cancel(view)
        self._held_back.pop(view, None)
        self._in_flight.pop(view.asked, None)  # an answer that still comes is ignored

    # --- to another node and back -------------------------------------------------------------------------------------------------

    def services(self) -> Iterable[ServiceKey]:
        """The services that have a view."""
        return self._views

    def take_out(self, service: ServiceKey) -> ServiceView | None:
        """Hand over the view of a service, if there is one (V11)."""
        view = self._views.get(service)
        if view is None:
            return None
        if self._connected and (view.live or view.asked or view.misfits):
            self._outbox.send(Unsubscribe(service))
        self._remove_from_books(view)
        view.leave_node()
        view.misfits = 0
        self._tell(view)
        return view

    def put_in(self, view: ServiceView) -> None:
        """Take over a view from another node (V11)."""
        assert view.service not in self._views, view
        self._views[view.service] = view
        self._queue[view] = None

    def renew(self, service: ServiceKey, term: int) -> None:
        """The reign of the node over the service began with this version of the table: who asked before that is asked again (V12)."""
        view = self._views.get(service)
        if view is not None and (view.live or view.asked) and view.asked_version < term:
            self._in_flight.pop(view.asked, None)  # an answer that still comes is ignored
            view.leave_node()
            self._ask_again(view)
            self._tell(view)

    # --- the connection -------------------------------------------------------------------------------------------------------

    def connected(self, now: float, *, other_cluster: bool) -> None:
        """A connection is up: subscribe again, from the lsn in hand."""
        self._connected = True
        if other_cluster:
            self.memory.doubt_until = now + DOUBT_SECONDS  # V10
        for view in self._views.values():
            if other_cluster:
                view.lsn = LSN_ZERO  # its numbers mean nothing there; its instances stay until there is a new list
            self._retries.cancel(view)
            self._queue[view] = None
        self.pump()

    def disconnected(self) -> None:
        """The connection is gone; nothing that was asked for will be answered."""
        self._connected = False
        for view in self._views.values():
            view.leave_node()
            if view.cached and not view.ready:
                self._tell(view)  # whoever waits for a list takes that of the cache now
        self._in_flight.clear()

    def node_fresh(self, fresh: bool, now: float) -> None:
        """What the node says of itself with each heartbeat. Costs something only when it is news."""
        if now >= self.memory.doubt_until:
            self.memory.doubt_until = -math.inf
        if fresh != self._fresh:
            self._set_fresh(fresh)
        if fresh and self._held_back:
            for view in list(self._held_back):
                view.doubt_until = min(view.doubt_until, now + DOUBT_SECONDS) if now < view.doubt_until else -math.inf
                self._ask_again(view)

    def _set_fresh(self, fresh: bool) -> None:
        self._fresh = fresh
        for view in self._views.values():
            view.fresh = fresh

    def wake(self, now: float) -> None:
        """The moment of `deadline` has come."""
        for view in self._retries.due(now):
            self._queue[view] = None
        self.pump()

    def pump(self) -> None:
        """Ask for subscriptions, as far as the window allows."""
        while self._connected and self._queue and len(self._in_flight) < SUBSCRIBES_IN_FLIGHT_MAX:
            view = next(iter(self._queue))
            del self._queue[view]
            if view.asked:
                continue
            view.asked, view.asked_version = self._outbox.draw_id(), self.table_version
            view.live, view.pages = False, None
            self._in_flight[view.asked] = view
            self._outbox.send(Subscribe(view.service, self._known(view)), view.asked)

    def _known(self, view: ServiceView) -> Lsn:
        return LSN_ZERO if view.misfits > 1 or not view.ready else view.lsn  # V2

    def _ask_again(self, view: ServiceView) -> None:
        if not view.asked and view not in self._retries:
            self._queue[view] = None
            self.pump()

    # --- what the node says ---------------------------------------------------------------------------------------------------

    def answered(self, request_id: int, message: View | Resumed | Refused, now: float) -> bool:
        """Take an answer to a subscription; False when it is not for one of ours."""
        view = self._in_flight.get(request_id)
        if view is None:
            return False
        if isinstance(message, View) and message.more:
            if view.asked == request_id:
                self._collect(view, message)
            return True
        del self._in_flight[request_id]
        if self._views.get(view.service) is view and view.asked == request_id:
            if not isinstance(message, Refused) and message.service != view.service:
                raise RemoteProtocolError(f"asked for {view.service}, got {message.service}")
            view.asked = 0
            if isinstance(message, View):
                self._collect(view, message)
                self._replace(view, message)
            elif isinstance(message, Resumed):
                self._resume(view)
            else:
                self._refused(view, message, now)
        self.pump()
        return True

    def _collect(self, view: ServiceView, message: View) -> None:
        if view.pages is None:
            view.pages, view.pages_lsn = {}, message.lsn
        elif view.pages_lsn != message.lsn:
            raise RemoteProtocolError(f"the pages of {view.service} are of different lsns")
        view.pages |= read_instances(message.instances)
        if len(view.pages) > INSTANCES_MAX:
            raise RemoteProtocolError(f"the list of {view.service} has more than {INSTANCES_MAX} instances")

    def _replace(self, view: ServiceView, message: View) -> None:
        """The list is complete: it becomes the view, unless it must be held back (V3, V10, V13)."""
        instances, view.pages = view.pages or {}, None
        view.live, view.fresh = True, message.fresh
        if self._fresh and not message.fresh:
            self._set_fresh(False)  # the node says it of itself
        is_lacking = not view.instances.keys() <= instances.keys()
        is_loss = bool(view.instances) and not instances and not message.fresh  # V3
        if self.memory.doubt_until > -math.inf and is_lacking:
            is_loss = True  # V10
        has_forgotten = view.ready and (message.lsn < view.lsn or (message.lsn.seq < view.lsn.seq and is_lacking))  # V13
        is_believed = message.fresh and view.doubt_until == -math.inf
        view.held_back = is_loss or (has_forgotten and not is_believed)
        if view.held_back:
            self._held_back[view] = None
        else:
            self._held_back.pop(view, None)
            view.ready, view.lsn, view.misfits, view.doubt_until = True, message.lsn, 0, math.inf
            for instance_id in [instance_id for instance_id in view.instances if instance_id not in instances]:
                view.put(instance_id, None)
            for instance_id, instance in instances.items():
                if view.instances.get(instance_id) != instance:
                    view.put(instance_id, instance)
            self._changed(view)
            if message.ack:
                self._outbox.send(Applied(view.service, view.lsn))  # V8
        self._tell(view)

    def _resume(self, view: ServiceView) -> None:
        if self._known(view) == LSN_ZERO:  # at the lsn zero every service is empty: this is a whole list
            view.pages = {}
            self._replace(view, View(view.service, LSN_ZERO, True, False, []))
            return
        self._held_back.pop(view, None)
        view.live, view.held_back, view.fresh, view.doubt_until = True, False, self._fresh, math.inf
        view.hint(list(view.suspects), on=False)  # V7: what ended meanwhile was told to nobody
        self._tell(view)

    def _refused(self, view: ServiceView, message: Refused, now: float) -> None:
        patient = view.ready or view.cached or message.retry_after_ms > 0 or message.code in (STOPPING, UNASSIGNED, UNKNOWN)
        if patient:
            self._retries.set(view, now + self._outbox.pause(message))
        else:
            view.refusal = error_of(message)
            self._discard(view)
        self._tell(view)

    def pushed(self, message: View | Delta | Hint) -> None:
        """Take a push. One for a service that is not (or not yet again) subscribed is late, and ignored."""
        view = self._views.get(message.service)
        if view is None or not view.live:
            return
        if isinstance(message, Hint):
            view.hint(message.instance_ids, on=message.on)
            self._tell(view)
            return
        if isinstance(message, View):
            self._collect(view, message)
            if not message.more:
                self._replace(view, message)
            return
        if view.held_back and view.fresh and view.pages is None:
            return  # the whole list is asked for with every heartbeat: not at each of the many that come back to a slot that lost them
        if message.since != view.lsn or view.pages is not None or view.held_back:
            view.misfits += 1
            view.live = False
            self._ask_again(view)
        else:
            self._apply(view, message)
        self._tell(view)

    def _apply(self, view: ServiceView, message: Delta) -> None:
        is_question = message.ack and not message.changed and not message.removed  # it moves nothing and asks where the view stands
        if message.lsn < message.since or (message.lsn == message.since and not is_question):
            raise RemoteProtocolError(f"a delta of {view.service} from {tuple(message.since)} back to {tuple(message.lsn)}")
        changed = read_instances(message.changed)
        for instance_id in message.removed:
            view.put(instance_id, None)
        for instance_id, instance in changed.items():
            view.put(instance_id, instance)
        view.lsn, view.misfits = message.lsn, 0
        if not is_question:
            self._changed(view)
        if message.ack:
            self._outbox.send(Applied(view.service, view.lsn))  # V8

    def _changed(self, view: ServiceView) -> None:
        """A list has changed for good: news for the cache."""
        view.cached = False
        if self.memory.kept is not None:
            self._outbox.tell(self.memory)

    def _tell(self, view: ServiceView) -> None:
        for cursor in view.cursors:
            self._outbox.tell(cursor)

    def close_all(self) -> None:
        """The client leaves: wake every consumer."""
        for view in self._views.values():
            self._tell(view)

    def validate(self) -> None:
        """Assert that every view is live, asked for, or about to be; for tests."""
        for service, view in self._views.items():
            assert view.service == service, view
            assert view.cursors, view
            assert not (view.live and view.asked), view
            assert not view.asked or self._in_flight.get(view.asked) is view
            assert not self._connected or view.live or view.asked or view in self._queue or view in self._retries, view
            for instance_id, stored in view.suspects.items():  # V7
                assert stored.status is Status.UP
                assert view.instances[instance_id] == attrs.evolve(stored, status=Status.SUSPECT)
