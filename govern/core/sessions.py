"""Sessions: who keeps which instances alive, and whose silence has lasted too long.

A session is a client's relation to this node. It outlives its connections. Everything the client has here lives by one
stamp: the lived time of the last frame that was read from it. A heartbeat writes that stamp and nothing else.

Deadlines are kept in a lazy heap: one entry per session and distinct ttl, looked at only when its time comes. If the session was heard
in the meantime the entry goes back with the later deadline, so a heartbeat costs no heap operation (about four
microseconds of heap work per session and ttl instead).

S1  `count` and `digest` are those of the session's committed ephemeral instances.
S2  A session takes part in `due` for every distinct ttl it holds, and for `SILENCE_MS_DEFAULT`.
S3  The connection with the highest attempt owns the session; a lower one never takes it over, however late it comes.
S4  A session is forgotten only when it has neither a connection nor a lease.

Nothing here removes an instance: `due` names silent sessions, the failure detector proposes, the log decides (rule E4).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from ..model import Lsn, ServiceKey
from .digests import lease_digest
from .entries import ExpireOp

SILENCE_MS_DEFAULT: Final = 5_000
RETRY_US: Final = 1_000_000  # an expiry that was proposed but not carried out is proposed again after this, or after the silence if shorter


class Lease(NamedTuple):
    """One ephemeral instance of a session, and how long its session may be silent."""

    lease_id: Lsn
    ttl_ms: int


class Silent(NamedTuple):
    """A session that was not heard for 0.9 of a ttl, and the stamp it had then."""

    session: Session
    ttl_ms: int
    stamp_us: int


class Session:
    """One client's relation to this node."""

    __slots__ = ("attempt", "connection", "count", "digest", "leases", "session_id", "stamp_us", "watched")

    def __init__(self, session_id: bytes, stamp_us: int) -> None:
        self.session_id = session_id
        self.stamp_us = stamp_us
        self.attempt = 0
        self.connection: object | None = None
        self.count = 0
        self.digest = 0
        self.leases: dict[tuple[ServiceKey, str], Lease] = {}
        self.watched: dict[int, None] = {}  # the ttls that have an entry in the heap

    def __repr__(self) -> str:
        return f"<Session {self.session_id.hex()[:8]} attempt={self.attempt} leases={self.count} stamp={self.stamp_us}>"


def silence_us(ttl_ms: int) -> int:
    """How long a session may be silent before expiry is proposed: 0.9 ttl, so that subscribers are told by ttl."""
    return ttl_ms * 900


class Sessions:
    """All sessions of a node."""

    def __init__(self) -> None:
        self.now_us = 0  # lived time, moved by the failure detector only
        self._sessions: dict[bytes, Session] = {}
        self._heap: list[tuple[int, int, Session, int]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, session_id: bytes) -> Session | None:
        return self._sessions.get(session_id)

    @property
    def connected(self) -> int:
        """How many sessions have a connection now."""
        return sum(session.connection is not None for session in self._sessions.values())

    # --- connections --------------------------------------------------------------------------------------------------------

    def attach(self, session_id: bytes, attempt: int, connection: object) -> tuple[Session, object | None, bool] | None:
        """Give a session to a new connection: `(session, the connection that lost it, whether the session was known)`, or None
        when a newer attempt has it, or this very one is connected already (S3)."""
        session = self._sessions.get(session_id)
        known = session is not None
        if session is None:
            session = self._add(session_id)
        if attempt < session.attempt or (attempt == session.attempt and session.connection is not None):
            return None
        former, session.connection, session.attempt = session.connection, connection, attempt
        session.stamp_us = self.now_us
        return session, former, known

    def detach(self, session: Session, connection: object) -> None:
        """The connection is gone; the session stays until its silence has lasted too long (rule E8)."""
        if session.connection is connection:
            session.connection = None

    def _add(self, session_id: bytes) -> Session:
        session = self._sessions[session_id] = Session(session_id, self.now_us)
        self._watch(session, SILENCE_MS_DEFAULT)
        return session

    # --- leases, told by the shard when an operation is applied ---------------------------------------------------------------

    def grant(self, session_id: bytes, service: ServiceKey, instance_id: str, lease: Lease) -> None:
        """The session holds this lease from now on. An unknown session (found while loading) is created with full grace (rule E5)."""
        session = self._sessions.get(session_id) or self._add(session_id)
        key = (service, instance_id)
        former = session.leases.get(key)
        if former is not None:
            self._forget(session, key, former)
        session.leases[key] = lease
        session.count += 1
        session.digest ^= lease_digest(service, instance_id, lease.lease_id)
        if lease.ttl_ms not in session.watched:
            self._watch(session, lease.ttl_ms)

    def end(self, session_id: bytes, service: ServiceKey, instance_id: str) -> Session | None:
        """The session does not hold this instance any more."""
        session = self._sessions.get(session_id)
        if session is not None:
            lease = session.leases.pop((service, instance_id), None)
            if lease is not None:
                self._forget(session, (service, instance_id), lease)
        return session

    def _forget(self, session: Session, key: tuple[ServiceKey, str], lease: Lease) -> None:
        session.count -= 1
        session.digest ^= lease_digest(*key, lease.lease_id)

    # --- silence ------------------------------------------------------------------------------------------------------------

    def _watch(self, session: Session, ttl_ms: int, at_us: int | None = None) -> None:
        session.watched[ttl_ms] = None
        self._pushed += 1
        deadline_us = session.stamp_us + silence_us(ttl_ms) if at_us is None else at_us
        heapq.heappush(self._heap, (deadline_us, self._pushed, session, ttl_ms))

    def grant_grace(self) -> None:
        """Treat every session as heard just now: at the end of loading, and after anything that kept clients away (rule E5)."""
        for session in self._sessions.values():
            session.stamp_us = self.now_us

    def due(self, limit: int) -> list[Silent]:
        """Sessions that were silent for 0.9 of a ttl under which they hold instances, at most `limit`. Each is named again after a second
        for as long as it stays so. Sessions that hold nothing and have no connection are forgotten on the way (S4)."""
        silent: list[Silent] = []
        while self._heap and self._heap[0][0] <= self.now_us and len(silent) < limit:
            _, _, session, ttl_ms = heapq.heappop(self._heap)
            del session.watched[ttl_ms]
            holds = any(lease.ttl_ms == ttl_ms for lease in session.leases.values())
            if not holds and ttl_ms != SILENCE_MS_DEFAULT:
                continue
            deadline_us = session.stamp_us + silence_us(ttl_ms)
            if deadline_us > self.now_us:
                self._watch(session, ttl_ms, deadline_us)
            elif holds:
                silent.append(Silent(session, ttl_ms, session.stamp_us))
                self._watch(session, ttl_ms, self.now_us + min(RETRY_US, silence_us(ttl_ms)))
            elif session.connection is None and not session.leases:
                del self._sessions[session.session_id]
            else:
                self._watch(session, ttl_ms, self.now_us + silence_us(ttl_ms))
        return silent

    @staticmethod
    def expiries(silent: Iterable[Silent]) -> list[ExpireOp]:
        """What to propose for sessions that are still as silent as they were when they were named (rule E2)."""
        return [
            ExpireOp(service, instance_id, lease.lease_id)
            for session, ttl_ms, stamp_us in silent
            if session.stamp_us == stamp_us
            for (service, instance_id), lease in session.leases.items()
            if lease.ttl_ms <= ttl_ms
        ]

    def validate(self) -> None:
        """Assert S1, S2 and S4."""
        for session in self._sessions.values():
            assert session.count == len(session.leases), session
            digest = 0
            for (service, instance_id), lease in session.leases.items():
                digest ^= lease_digest(service, instance_id, lease.lease_id)
                assert lease.ttl_ms in session.watched, (session, lease)
            assert session.digest == digest, session
            assert SILENCE_MS_DEFAULT in session.watched, session
        watched = sum(len(session.watched) for session in self._sessions.values())
        assert watched == sum(self._sessions.get(entry[2].session_id) is entry[2] for entry in self._heap)
