"""Explain: why is an instance in the view of its service, or why not?

The answer puts together what the node knows now (entry, session, connection, suspicion) and what it remembers (`core.history`).

X1  One row per instance: those in the view first, then those that are gone, as far as the history goes back.
X2  Rows and events are bounded: 512 and 500. Of more events the newest are told, of more instances the first.
X3  Nothing in it lets a reader act as somebody else: sessions are shown by their first 8 hexadecimal digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgpack

from ..messages import PAGE_ITEMS_MAX, Explained
from ..model import ServiceKey, Status, instance_from_public
from .entries import public_form, session_of
from .history import REMOVALS, Event, History, event_json, short
from .links import Link
from .sessions import Sessions
from .shard import Shard

EVENTS_TOLD_MAX: Final = 500

SuspectSeconds = Callable[[ServiceKey, str], float | None]
"""For how long an instance has been suspect, None when it is not."""


def explain(
    shard: Shard, sessions: Sessions, history: History, service: ServiceKey, instance_id: str, suspect_seconds: SuspectSeconds
) -> Explained:
    """Everything known of one instance, or with an empty id of all of the service. Of an instance that never was: nothing."""
    entries = shard.entries(service)
    events = history.of_instances(service, instance_id)
    rows: dict[str, dict[str, Any]] = {}
    session_ids: dict[bytes, None] = {}
    for identity in [instance_id] if instance_id else entries:
        if identity in entries and len(rows) < PAGE_ITEMS_MAX:
            rows[identity] = _present(sessions, identity, entries[identity], suspect_seconds(service, identity))
            session_ids[session_of(entries[identity])] = None
    for event in reversed(events):
        session_ids[event[5]] = None
        if event[4] not in entries and event[4] not in rows and len(rows) < PAGE_ITEMS_MAX:
            rows[event[4]] = _gone(sessions, event)
    told = sorted(events + history.of_connections(session_ids))[-EVENTS_TOLD_MAX:]
    return Explained(list(rows.values()), [event_json(event) for event in told])


def _present(sessions: Sessions, identity: str, entry: bytes, suspect_seconds: float | None) -> dict[str, Any]:
    instance = instance_from_public(msgpack.unpackb(public_form(entry)))
    suspect = suspect_seconds is not None and instance.status is Status.UP
    return {
        "id": identity,
        "status": str(Status.SUSPECT if suspect else instance.status),
        "in_view": True,
        "registered_at": instance.registered_at,
        **_session(sessions, session_of(entry)),
        "suspect_seconds": None if suspect_seconds is None else round(suspect_seconds, 1),
        "ttl": instance.ttl,
        "ephemeral": instance.ephemeral,
        "lease_id": list(instance.lease_id),
        "lsn": list(instance.lsn),
    }


def _gone(sessions: Sessions, last: Event) -> dict[str, Any]:
    """A row for an instance that is not there any more: its status is the last that happened to it."""
    kind = last[2]
    return {
        "id": last[4],
        "status": kind if kind in REMOVALS else "gone",
        "in_view": False,
        "registered_at": "",
        **_session(sessions, last[5]),
        "suspect_seconds": None,
        "ttl": None,
        "ephemeral": None,
        "lease_id": None,
        "lsn": None,
    }


def _session(sessions: Sessions, session_id: bytes) -> dict[str, Any]:
    """Who is behind an instance: its client, if it is connected, and when it was heard."""
    session = sessions.get(session_id)
    link = None if session is None else session.connection
    return {
        "session": short(session_id),
        "who": link.who if isinstance(link, Link) else "",
        "peer": link.peer if isinstance(link, Link) else "",
        "connected": isinstance(link, Link),
        "last_heard_seconds": None if session is None else round((sessions.now_us - session.stamp_us) / 1e6, 1),
    }
