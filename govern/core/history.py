"""History: what happened to instances and to the sessions behind them, for people who ask why.

Nothing is decided by it. It is in memory only, begins with the process, and forgets its oldest events; the log and the entries have what
must not be forgotten. Writing one down has to be cheap, because every registration does: an event is a plain tuple of atoms, and
everything for the eye is done when somebody asks.

Connections have a ring of their own. When ten thousand clients reconnect at once, that must not push out why an instance expired.

H1  Each ring holds at most `EVENTS_MAX` events, the oldest are forgotten first.
H2  The order of events over both rings is the order in which they were written down; the wall clock in them is for people.
H3  Looking through it takes a millisecond or two, so it is done a bounded number of times a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from ..errors import Overloaded
from ..model import LSN_ZERO, ServiceKey, format_time_ms
from .entries import SESSION_NONE, DeregisterOp, DrainOp, EvictOp, Op, RegisterOp, UpdateOp, session_of
from .links import Link
from .sessions import Sessions, silence_us
from .shard import FIELD_NAMES, STATUS_DRAINING, STATUS_FIELD, Outcome, Shard

EVENTS_MAX: Final = 10_000
TOLD_PER_SECOND_MAX: Final = 20

REGISTERED: Final = "registered"
UPDATED: Final = "updated"
DRAINING: Final = "draining"
DEREGISTERED: Final = "deregistered"
EXPIRED: Final = "expired"
EVICTED: Final = "evicted"
SUPERSEDED: Final = "superseded"
SUSPECT: Final = "suspect"
UNSUSPECT: Final = "unsuspect"
CONNECTED: Final = "connected"
DISCONNECTED: Final = "disconnected"

REMOVALS: Final = (DEREGISTERED, EXPIRED, EVICTED)
"""The kinds after which an instance is not there any more."""

Event = tuple[int, int, str, ServiceKey | None, str, bytes, str, str, str]
"""Its place among all events, wall clock in milliseconds, kind, service and instance id (None and empty for connections), session id, who
and peer (of whoever did it; empty when nobody did), detail."""


def short(session_id: bytes) -> str:
    """A session as people see it: enough to compare, not enough to take it over."""
    return "" if session_id == SESSION_NONE else session_id.hex()[:8]


def event_json(event: Event) -> dict[str, Any]:
    """An event in its documented shape."""
    _, wall_ms, kind, _, instance_id, session_id, who, peer, detail = event
    name = f"{who} ({peer})" if who and peer else who or peer
    return {"at": format_time_ms(wall_ms), "kind": kind, "id": instance_id, "session": short(session_id), "who": name, "detail": detail}


class History:
    """The last events of a node."""

    def __init__(self) -> None:
        self.wall_ms = 0  # set by the shell before each turn
        self._count = 0
        self._told = 0
        self._told_since_us = 0
        self._instances: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._connections: deque[Event] = deque(maxlen=EVENTS_MAX)

    def __len__(self) -> int:
        return len(self._instances) + len(self._connections)

    # --- writing down -------------------------------------------------------------------------------------------------------

    def note(self, kind: str, service: ServiceKey, instance_id: str, session_id: bytes, link: Link | None = None, detail: str = "") -> None:
        """Something happened to an instance of that session; `link` is whose doing it was, if somebody's."""
        self._count += 1
        who, peer = ("", "") if link is None else (link.who, link.peer)
        self._instances.append((self._count, self.wall_ms, kind, service, instance_id, session_id, who, peer, detail))

    def note_connection(self, kind: str, link: Link, detail: str = "") -> None:
        """A session has a connection, or lost it. Connections without a session are nobody's story."""
        if link.session is not None:
            self._count += 1
            self._connections.append(
                (self._count, self.wall_ms, kind, None, "", link.session.session_id, link.who, link.peer, detail),
            )

    def note_outcome(self, op: Op, outcome: Outcome, link: Link | None, shard: Shard, sessions: Sessions) -> None:
        """An operation was carried out and changed its service."""
        service, instance_id, loss = op.service, op.instance_id, outcome.loss
        if type(op) is RegisterOp:
            if loss is not None:
                self.note(SUPERSEDED, service, instance_id, loss.session_id, link, f"session {short(op.session_id)} registered this id")
            again = "" if op.prior == LSN_ZERO else "again, by a client that held it before"
            self.note(REGISTERED, service, instance_id, op.session_id, link, again)
        elif type(op) is UpdateOp:
            kind = DRAINING if op.changes.get(STATUS_FIELD) == STATUS_DRAINING else UPDATED
            self.note(kind, service, instance_id, op.session_id, link, ", ".join([FIELD_NAMES[number] for number in op.changes]))
        elif type(op) is DrainOp:
            entry = shard.entries(service).get(instance_id)  # gone again by now, at times
            how = "drained by an operator" if op.lease_id == LSN_ZERO else "drained under its lease"
            self.note(DRAINING, service, instance_id, SESSION_NONE if entry is None else session_of(entry), link, how)
        elif type(op) is DeregisterOp:
            said_goodbye = link is None or link.leaving
            self.note(DEREGISTERED, service, instance_id, op.session_id, link, "its client said Goodbye" if said_goodbye else "")
        elif type(op) is EvictOp:
            assert loss is not None
            self.note(EVICTED, service, instance_id, loss.session_id, link, "its session may not register this id again")
        else:
            assert loss is not None
            session = sessions.get(loss.session_id)
            silent_us = silence_us(loss.ttl_ms)
            if session is not None:  # it may have been heard again after the removal was proposed
                silent_us = max(silent_us, sessions.now_us - session.stamp_us)
            detail = f"silent for {silent_us / 1e6:.1f} s of a ttl of {loss.ttl_ms / 1000:g} s"
            self.note(EXPIRED, service, instance_id, loss.session_id, None, detail)

    # --- telling ------------------------------------------------------------------------------------------------------------

    def admit(self, now_us: int) -> None:
        """Somebody wants to look through it; raises `Overloaded` when too many did within this second (H3)."""
        if now_us - self._told_since_us >= 1_000_000:
            self._told, self._told_since_us = 0, now_us
        if self._told >= TOLD_PER_SECOND_MAX:
            raise Overloaded(f"this node explains {TOLD_PER_SECOND_MAX} times a second at most; try again", 1.0)
        self._told += 1

    def of_instances(self, service: ServiceKey, instance_id: str) -> list[Event]:
        """What happened to one instance, or with an empty id to any of the service; oldest first."""
        return [event for event in self._instances if event[3] == service and (not instance_id or event[4] == instance_id)]

    def of_connections(self, session_ids: Iterable[bytes]) -> list[Event]:
        """When these sessions came and went; oldest first."""
        wanted = dict.fromkeys(session_ids)
        return [event for event in self._connections if event[5] in wanted]

    def validate(self) -> None:
        """Assert H1, and H2: every event has a place of its own, in order."""
        for ring in (self._instances, self._connections):
            assert len(ring) <= EVENTS_MAX
            places = [event[0] for event in ring]
            assert places == sorted(places)
        assert len({event[0] for event in (*self._instances, *self._connections)}) == len(self)
        assert self._count >= len(self)
