"""Suspects: instances whose client has given no sign of life for a while, but not for long enough to be removed.

An overlay of this node. It is in no log, no entry and no lsn: a subscriber that knows of it sends its traffic elsewhere first, and one
that does not loses nothing but that. There are two reasons for suspicion: a connection closed without Goodbye and its session has none
300 ms later, or a session was silent for 0.8 of a ttl.

U1  An instance is suspect only while it is there and its session, which holds it, is suspected under its ttl.
U2  Any frame of the session ends the suspicion of all its instances, and so does a new connection.
U3  When more than a fifth of the sessions, and at least 20, lose their connection within a second, no suspicion follows from that: the
    fault is probably not theirs. Their silence will tell.
U4  What subscribers are to be told is taken from what is true when it is told, so nothing has to be remembered in order.
U5  Whatever is forgotten here is told by what replaces it: the delta or view that names the instance ends its overlay, and
    `core.subscriptions` hints again at the suspects among what it puts out.

Times are monotonic microseconds for connections (they are exact) and lived ones for silence.
"""

from __future__ import annotations

from typing import Final

from ..model import LSN_ZERO, Lsn, ServiceKey
from .entries import session_of, unpack_entry
from .history import SUSPECT, UNSUSPECT, History
from .sessions import Session, Sessions
from .shard import Shard

CLOSED_US: Final = 300_000
TOGETHER_US: Final = 1_000_000
TOGETHER_MIN: Final = 20
TOGETHER_PARTS: Final = 5  # more than one in so many
EVERY_TTL_MS: Final = 1 << 62


class Suspects:
    """The suspect instances of a node."""

    def __init__(self, shard: Shard, sessions: Sessions, history: History) -> None:
        self._history = history
        self._shard = shard
        self._sessions = sessions
        self._closed: dict[Session, int] = {}  # connections lost within the last second, and when, oldest first
        self._waiting: dict[Session, int] = {}  # when those become suspect if they do not come back, soonest first
        self._many = False
        self._suspected: dict[Session, None] = {}
        self._by_service: dict[ServiceKey, dict[str, Session]] = {}
        self._changed: dict[ServiceKey, dict[str, None]] = {}  # became suspect or stopped being it, and subscribers do not know

    def __len__(self) -> int:
        return sum(map(len, self._by_service.values()))

    # --- reasons ------------------------------------------------------------------------------------------------------------

    def note_closed(self, session: Session, now_us: int) -> None:
        """The connection of a session is gone, it did not say Goodbye, and it has no other."""
        self._closed.pop(session, None)
        self._closed[session] = now_us
        self._prune(now_us)
        many = len(self._closed) >= TOGETHER_MIN and TOGETHER_PARTS * len(self._closed) > len(self._sessions)  # U3
        if many and not self._many:
            for other in self._closed:
                self._waiting.pop(other, None)
        self._many = many
        if not many:
            self._waiting.pop(session, None)
            self._waiting[session] = now_us + CLOSED_US

    def _prune(self, now_us: int) -> None:
        while self._closed:
            session, at_us = next(iter(self._closed.items()))
            if now_us - at_us <= TOGETHER_US:
                return
            del self._closed[session]

    @property
    def next_us(self) -> int | None:
        """When `wake` is due; None when nothing is."""
        return next(iter(self._waiting.values()), None)

    def wake(self, now_us: int) -> None:
        """Suspect those whose connection has been gone for 300 ms."""
        while self._waiting:
            session, at_us = next(iter(self._waiting.items()))
            if at_us > now_us:
                return
            del self._waiting[session]
            if session.connection is None and self._sessions.get(session.session_id) is session:
                self._suspect(session, EVERY_TTL_MS)

    def note_silent(self, session: Session, ttl_ms: int) -> None:
        """A session was silent for 0.8 of that ttl, even at a last look."""
        self._suspect(session, ttl_ms)

    def _suspect(self, session: Session, ttl_ms: int) -> None:
        leases = [(service, instance_id, lease.ttl_ms) for service, instance_id, lease in session.leases() if lease.ttl_ms <= ttl_ms]
        if ttl_ms <= session.suspect_ms or not leases:
            return
        if not session.suspect_ms:
            session.suspect_since_us = self._sessions.now_us
        session.suspect_ms = ttl_ms
        self._suspected[session] = None
        closed = session.connection is None and ttl_ms == EVERY_TTL_MS
        silent = f"silent for {(self._sessions.now_us - session.stamp_us) / 1e6:.1f} s"
        for service, instance_id, lease_ttl_ms in leases:
            suspects = self._by_service.setdefault(service, {})
            if instance_id not in suspects:
                detail = "its connection closed" if closed else f"{silent} of a ttl of {lease_ttl_ms / 1000:g} s"
                self._history.note(SUSPECT, service, instance_id, session.session_id, detail=detail)
                suspects[instance_id] = session
                self._changed.setdefault(service, {})[instance_id] = None

    def note_heard(self, session: Session) -> None:
        """A frame of the session was read, or it has a connection again (U2)."""
        self._waiting.pop(session, None)
        if session.suspect_ms:
            for service, instance_id, _ in session.leases():
                if self._drop(service, instance_id):
                    self._history.note(UNSUSPECT, service, instance_id, session.session_id, detail="its client was heard again")
                    self._changed.setdefault(service, {})[instance_id] = None
            self._acquit(session)

    def _acquit(self, session: Session) -> None:
        session.suspect_ms = 0
        self._suspected.pop(session, None)

    def note_changed(self, service: ServiceKey, instance_id: str) -> None:
        """An operation changed an instance. Subscribers are told of it, and a removal or another holder needs no other word (U5)."""
        if not self._suspected and not self._by_service:
            return
        before = self._by_service.get(service, {}).get(instance_id)
        entry = self._shard.entries(service).get(instance_id)
        holder = None if entry is None else self._sessions.get(session_of(entry))
        if holder is None or not _is_doubted(holder, service, instance_id):
            self._drop(service, instance_id)
        else:
            self._by_service.setdefault(service, {})[instance_id] = holder
            if before is not holder:  # somebody may have been given the new state before this was known here
                self._changed.setdefault(service, {})[instance_id] = None
        if before is not None and not any(lease.ttl_ms <= before.suspect_ms for _, _, lease in before.leases()):
            self._acquit(before)

    def _drop(self, service: ServiceKey, instance_id: str) -> bool:
        """It is not suspect any more; False if it was not."""
        suspects = self._by_service.get(service)
        if suspects is None or suspects.pop(instance_id, None) is None:
            return False
        if not suspects:
            del self._by_service[service]
        return True

    # --- what is known ------------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is something that subscribers are to be told."""
        return bool(self._changed)

    def take_changed(self) -> list[tuple[ServiceKey, list[str]]]:
        """The instances of which subscribers are to be told, once; what they are to be told is in `split` at that moment (U4)."""
        changed, self._changed = self._changed, {}
        return [(service, list(ids)) for service, ids in changed.items()]

    def split(self, service: ServiceKey, instance_ids: list[str]) -> tuple[list[str], list[str]]:
        """Those of these instances that are suspect now, and those that are not."""
        on = dict.fromkeys(each for each in instance_ids if self._is_suspect(service, each))
        return list(on), [each for each in instance_ids if each not in on]

    def _is_suspect(self, service: ServiceKey, instance_id: str) -> bool:
        """Also between the moment in which an operation is applied and the one in which `note_changed` hears of it (U1)."""
        session = self._by_service.get(service, {}).get(instance_id)
        return session is not None and _is_doubted(session, service, instance_id)

    def of(self, service: ServiceKey, since: Lsn = LSN_ZERO) -> list[str]:
        """The suspects of a service whose entry was written after `since`: those that a push from there on names."""
        entries = self._shard.entries(service)
        return [
            each
            for each in self._by_service.get(service, ())
            if self._is_suspect(service, each) and (since == LSN_ZERO or unpack_entry(entries[each]).lsn > since)
        ]

    def seconds(self, service: ServiceKey, instance_id: str) -> float | None:
        """For how long the session of an instance has been suspected; None when the instance is not suspect."""
        if not self._is_suspect(service, instance_id):
            return None
        return (self._sessions.now_us - self._by_service[service][instance_id].suspect_since_us) / 1e6

    def validate(self) -> None:
        """Assert that nothing is kept that is over; what an operation has ended may wait for its `note_changed`."""
        assert all(self._by_service.values())
        for service, suspects in self._by_service.items():
            for instance_id, session in suspects.items():
                assert session in self._suspected or session.lease(service, instance_id) is None, (service, instance_id)
        for session in self._suspected:
            assert session.suspect_ms, session
        for session in self._sessions:
            assert bool(session.suspect_ms) == (session in self._suspected), session


def _is_doubted(session: Session, service: ServiceKey, instance_id: str) -> bool:
    """Whether the session holds that instance now, under a ttl for which it is suspected."""
    lease = session.lease(service, instance_id)
    return lease is not None and lease.ttl_ms <= session.suspect_ms
