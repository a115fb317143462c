"""Drains: waiting until everybody who may send traffic to an instance has learned that it should not.

A drain is a change of status like any other; this is what comes after it. At its commit the subscribers of the service are noted: the
*barrier*. Everything that is pushed about the service while a barrier is open asks for `Applied`, and whoever has said it for the lsn of
the drain is crossed off. When nobody is left, or the asker's time is over, the drain is answered.

Subscribers are clients, not connections: one whose connection broke still has its list and still sends traffic, so it stays on the
barrier until it has resumed far enough, or its session ends. A client without a session cannot be told from another one once its
connection is gone, so it counts only while it is connected.

B1  A barrier is answered exactly once, unless the connection of its asker is gone.
B2  It is answered before its time only when every subscriber of the moment of its commit has applied the drain or is gone for good.
B3  Gone for good are: Goodbye, Unsubscribe, the end of the session; or a new connection that for a while has not asked for the service.
B4  In the first seconds after a start with a history a barrier stays open for those who have not come back yet: this node cannot know
    them, and they still have lists of before. Who comes back with a list of before the drain joins the barrier.
B5  What is kept is bounded by the subscriptions of living sessions, and the places of all barriers together by `PLACES_MAX`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..errors import Overloaded
from ..messages import Drained, encode
from ..model import LSN_ZERO, Lsn, ServiceKey
from .links import Link
from .sessions import Sessions
from .subscriptions import Subscriptions

PLACES_MAX: Final = 250_000
"""So many subscribers of all open barriers are waited for; more drains are refused before they are begun."""

MISSING_NAMED_MAX: Final = 100
TIMEOUT_MS_MAX: Final = 24 * 3_600_000
UNKNOWN_US: Final = 4_000_000
"""So long after a start clients may be on their way back (rule E3)."""

RETURN_US: Final = 5_000_000
"""A client that is connected again asks for its services at once; after this it does not want them any more."""

AWAY_MAX: Final = 1_000
"""So many subscriptions of the broken connections of one session are remembered."""

CHECK_US: Final = 250_000
NOT_BACK: Final = "clients that have not come back since this node was started"

Subscriber = bytes | Link
"""The id of a session, or the connection of a client without one."""


def subscriber_of(link: Link) -> Subscriber:
    """Who is behind a connection."""
    return link if link.session is None else link.session.session_id


def name_of(link: Link) -> str:
    """A client as people know it."""
    return f"{link.who or 'a client'} ({link.peer})"


class Barrier:
    """One drain that is committed and not yet answered."""

    __slots__ = ("applied", "deadline_us", "link", "lsn", "missing", "request_id", "service", "unknown_until_us")

    def __init__(self, service: ServiceKey, lsn: Lsn, link: Link, request_id: int, deadline_us: int, unknown_until_us: int) -> None:
        self.service = service
        self.lsn = lsn
        self.link = link
        self.request_id = request_id
        self.deadline_us = deadline_us
        self.unknown_until_us = unknown_until_us  # B4
        self.applied = 0
        self.missing: dict[Subscriber, str] = {}  # and how people know them

    def is_done(self, now_us: int) -> bool:
        return now_us >= self.deadline_us or (not self.missing and now_us >= self.unknown_until_us)

    def answer(self, now_us: int) -> Drained:
        names = list(self.missing.values())
        if now_us < self.unknown_until_us:
            names.append(NOT_BACK)
        return Drained(self.lsn, self.applied, len(names), names[:MISSING_NAMED_MAX])


class Drains:
    """All drains of a node that wait for subscribers. Times are monotonic microseconds unless they are called lived."""

    def __init__(self, sessions: Sessions, subscriptions: Subscriptions) -> None:
        self.answered: dict[Link, None] = {}  # links with an answer in `out`; the shell sends and empties
        self._sessions = sessions
        self._subscriptions = subscriptions
        self._open: dict[ServiceKey, dict[Barrier, None]] = {}
        self._asked: dict[Link, dict[Barrier, None]] = {}
        self._away: dict[bytes, dict[ServiceKey, str]] = {}  # by session: what its broken connection was subscribed to, and its name
        self._away_by_service: dict[ServiceKey, dict[bytes, None]] = {}
        self._places = 0
        self._unknown_until_us = 0

    # --- barriers -----------------------------------------------------------------------------------------------------------

    @property
    def open_count(self) -> int:
        return sum(map(len, self._open.values()))

    def note_start(self, now_us: int) -> None:
        """The node has just loaded the state of a former life (B4)."""
        self._unknown_until_us = now_us + UNKNOWN_US

    def admit(self) -> None:
        """Raise `Overloaded` when too much is waited for already (B5)."""
        if self._places >= PLACES_MAX:
            raise Overloaded(f"drains wait for {self._places} answers of subscribers already; try again", 1.0)

    def open(self, service: ServiceKey, lsn: Lsn, link: Link, request_id: int, deadline_us: int, now_us: int) -> None:
        """A drain was committed at `lsn`. The service is to be published right after this, changed or not: that asks everybody."""
        barrier = Barrier(service, lsn, link, request_id, deadline_us, self._unknown_until_us)
        for each in self._subscriptions.links(service):
            barrier.missing[subscriber_of(each)] = name_of(each)
        for session_id in list(self._away_by_service.get(service, ())):
            if not self._forget_if_gone(session_id, now_us):
                barrier.missing.setdefault(session_id, self._away[session_id][service])
        self._open.setdefault(service, {})[barrier] = None
        self._asked.setdefault(link, {})[barrier] = None
        self._subscriptions.ack_wanted[service] = None
        self._places += 1 + len(barrier.missing)
        self._settle(barrier, now_us)

    def _settle(self, barrier: Barrier, now_us: int) -> None:
        """Answer the barrier if it is done (B1, B2)."""
        if barrier.is_done(now_us):
            self._close(barrier)
            link = barrier.link
            if link.closing is None:
                link.out.append(encode(barrier.answer(now_us), barrier.request_id))
                self.answered[link] = None

    def _close(self, barrier: Barrier) -> None:
        barriers = self._open[barrier.service]
        del barriers[barrier]
        asked = self._asked[barrier.link]
        del asked[barrier]
        if not asked:
            del self._asked[barrier.link]
        self._places -= 1 + len(barrier.missing)
        if not barriers:
            del self._open[barrier.service]
            del self._subscriptions.ack_wanted[barrier.service]

    def _cross_off(self, subscriber: Subscriber, service: ServiceKey, now_us: int, lsn: Lsn | None = None) -> None:
        """This subscriber has applied everything up to `lsn`; None: it is gone for good."""
        for barrier in list(self._open.get(service, ())):
            if (lsn is None or lsn >= barrier.lsn) and barrier.missing.pop(subscriber, None) is not None:
                self._places -= 1
                barrier.applied += 1
                self._settle(barrier, now_us)

    # --- what subscribers do ------------------------------------------------------------------------------------------------

    def applied(self, link: Link, service: ServiceKey, lsn: Lsn, now_us: int) -> None:
        """A subscriber says that its list has everything up to `lsn`."""
        if service in self._open:
            self._cross_off(subscriber_of(link), service, now_us, lsn)

    def subscribed(self, link: Link, service: ServiceKey, known: Lsn, resumed: bool, now_us: int) -> None:
        """A subscription was answered; `resumed`: this node knows the list that the client has."""
        if link.session is not None:
            self._return(link.session.session_id, service)
        if service not in self._open:
            return
        subscriber = subscriber_of(link)
        if resumed:
            self._cross_off(subscriber, service, now_us, known)
        for barrier in self._open.get(service, ()):
            behind = known != LSN_ZERO and not (resumed and known >= barrier.lsn)
            if behind and now_us < barrier.unknown_until_us and subscriber not in barrier.missing:  # B4
                barrier.missing[subscriber] = name_of(link)
                self._places += 1

    def unsubscribed(self, link: Link, service: ServiceKey, now_us: int) -> None:
        """It does not look at that service any more."""
        if link.session is not None:
            self._return(link.session.session_id, service)
        self._cross_off(subscriber_of(link), service, now_us)

    def left(self, link: Link, now_us: int) -> None:
        """It said Goodbye: nothing it has subscribed to matters any more."""
        subscriber = subscriber_of(link)
        if isinstance(subscriber, bytes):
            self._forget(subscriber, now_us)
        for service in list(self._open):
            self._cross_off(subscriber, service, now_us)

    def closed(self, link: Link, now_us: int) -> None:
        """Its connection is gone; to be told before its subscriptions are removed."""
        self.answered.pop(link, None)
        for barrier in list(self._asked.get(link, ())):
            self._close(barrier)  # the drain stands; nobody is left to be told
        session = link.session
        if session is None or link.leaving or self._sessions.get(session.session_id) is not session:
            for service in link.subscriptions:
                self._cross_off(subscriber_of(link), service, now_us)
            return
        successor = session.connection
        known = successor.subscriptions if isinstance(successor, Link) and successor is not link else {}
        for service in link.subscriptions:
            if service not in known:
                self._note_away(session.session_id, service, name_of(link), now_us)

    # --- those whose connection broke ---------------------------------------------------------------------------------------

    def _note_away(self, session_id: bytes, service: ServiceKey, name: str, now_us: int) -> None:
        services = self._away.setdefault(session_id, {})
        services[service] = name
        self._away_by_service.setdefault(service, {})[session_id] = None
        if len(services) > AWAY_MAX:
            oldest = next(iter(services))
            self._return(session_id, oldest)
            self._cross_off(session_id, oldest, now_us)

    def _return(self, session_id: bytes, service: ServiceKey) -> None:
        """That subscription does not wait for its client any more."""
        services = self._away.get(session_id)
        if services is None or services.pop(service, None) is None:
            return
        if not services:
            del self._away[session_id]
        sessions = self._away_by_service[service]
        del sessions[session_id]
        if not sessions:
            del self._away_by_service[service]

    def _forget_if_gone(self, session_id: bytes, now_us: int) -> bool:
        """B3: the session has ended, or has been back for a while without asking for what it had."""
        session = self._sessions.get(session_id)
        link = None if session is None else session.connection
        back = isinstance(link, Link) and self._sessions.now_us - link.opened_us > RETURN_US
        if session is not None and not back:
            return False
        self._forget(session_id, now_us)
        return True

    def _forget(self, session_id: bytes, now_us: int) -> None:
        for service in list(self._away.get(session_id, ())):
            self._return(session_id, service)
            self._cross_off(session_id, service, now_us)

    def check(self, now_us: int) -> None:
        """Look for what no message tells: clients that are gone for good, and drains whose time is over. To be called every second, and
        when `next_check_us` says so."""
        for session_id in list(self._away):
            self._forget_if_gone(session_id, now_us)
        for barriers in list(self._open.values()):
            for barrier in list(barriers):
                self._settle(barrier, now_us)

    def next_check_us(self, now_us: int) -> int | None:
        """When `check` is due; None when no drain waits."""
        deadlines = [barrier.deadline_us for barrier in self._barriers()]
        return min(now_us + CHECK_US, *deadlines) if deadlines else None

    def _barriers(self) -> Iterator[Barrier]:
        for barriers in self._open.values():
            yield from barriers

    def validate(self) -> None:
        """Assert B5, and that both directions of the index agree."""
        pairs = [(session_id, service) for session_id, services in self._away.items() for service in services]
        assert all(session_id in self._away_by_service[service] for session_id, service in pairs)
        assert len(pairs) == sum(map(len, self._away_by_service.values()))
        assert all(self._away.values())
        assert self._places == sum(1 + len(barrier.missing) for barrier in self._barriers())
        assert list(self._subscriptions.ack_wanted) == list(self._open)
        assert all(self._open.values())
        assert all(barrier in self._asked[barrier.link] for barrier in self._barriers())
        assert self.open_count == sum(map(len, self._asked.values()))
