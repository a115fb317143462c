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
S5  Silence is named in steps, each once as long as the stamp stays: overdue at 0.6 of a ttl, quiet at 0.8, dead at 0.9 (this one again
    every second).
S6  `holders` is how many sessions hold at least one lease.

Nothing here removes an instance: `due` names silent sessions, the failure detector proposes, the log decides (rule E4).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from ..model import Lsn, ServiceKey
from .digests import key_digest, lease_digest, lease_key
from .entries import ExpireOp

SILENCE_MS_DEFAULT: Final = 5_000
RETRY_US: Final = 1_000_000  # an expiry that was proposed but not carried out is proposed again after this, or after the silence if shorter

REPLACED_MAX: Final = 1_000


class Lease(NamedTuple):
    """One ephemeral instance of a session, and how long its session may be silent."""

    lease_id: Lsn
    ttl_ms: int


class Silent(NamedTuple):
    """A session that was not heard for 0.9 of a ttl, or for 0.8 if not `final`, and the stamp it had then."""

    session: Session
    ttl_ms: int
    stamp_us: int
    final: bool = True


class Session:
    """One client's relation to this node."""

    __slots__ = (
        "_held",
        "attempt",
        "connection",
        "count",
        "digest",
        "replaced",
        "session_id",
        "stamp_us",
        "suspect_ms",
        "suspect_since_us",
        "watched",
    )

    def __init__(self, session_id: bytes, stamp_us: int) -> None:
        self.session_id = session_id
        self.stamp_us = stamp_us
        self.attempt = 0
        self.connection: object | None = None
        self.count = 0
        self.digest = 0
        self._held: dict[str, tuple[int, int, int]] = {}  # only atoms inside, so the garbage collector never walks it
        self.replaced: dict[str, int] = {}  # instances that another session took, and the request id of the registration that lost
        self.suspect_ms = 0  # its instances with this ttl or a shorter one are suspect (`core.suspects`)
        self.suspect_since_us = 0
        self.watched: dict[int, None] = {}  # the ttls that have an entry in the heap

    def lease(self, service: ServiceKey, instance_id: str) -> Lease | None:
        """What the session holds of that instance."""
        held = self._held.get(lease_key(service, instance_id))
        return None if held is None else Lease(Lsn(held[0], held[1]), held[2])

    def leases(self) -> Iterator[tuple[ServiceKey, str, Lease]]:
        """Everything the session holds."""
        for key, (term, seq, ttl_ms) in self._held.items():
            service, _, instance_id = key.partition(" ")
            namespace, _, name = service.partition("/")
            yield ServiceKey(namespace, name), instance_id, Lease(Lsn(term, seq), ttl_ms)

    def holds_under(self, ttl_ms: int) -> bool:
        """Whether any lease has exactly that ttl."""
        return any(held[2] == ttl_ms for held in self._held.values())

    def put(self, service: ServiceKey, instance_id: str, lease: Lease) -> None:
        """Hold this lease, in place of one of the same instance."""
        key = lease_key(service, instance_id)
        (term, seq), ttl_ms = lease
        former = self._held.get(key)
        if former is None:
            self.count += 1
        else:
            self.digest ^= key_digest(key, former[0], former[1])
        self._held[key] = (term, seq, ttl_ms)
        self.digest ^= key_digest(key, term, seq)

    def drop(self, service: ServiceKey, instance_id: str) -> None:
        """Do not hold that instance any more, if it is held."""
        key = lease_key(service, instance_id)
        held = self._held.pop(key, None)
        if held is not None:
            self.count -= 1
            self.digest ^= key_digest(key, held[0], held[1])

    def note_replaced(self, service: ServiceKey, instance_id: str, request_id: int) -> None:
        """Another session took that instance from the registration that had this request id."""
        if len(self.replaced) >= REPLACED_MAX:
            del self.replaced[next(iter(self.replaced))]
        self.replaced[lease_key(service, instance_id)] = request_id

    def was_replaced(self, service: ServiceKey, instance_id: str, request_id: int) -> bool:
        """Whether a registration with that request id was carried out and has lost the instance since: its repetition must not win."""
        return request_id <= self.replaced.get(lease_key(service, instance_id), -1)

    def __repr__(self) -> str:
        return f"<Session {self.session_id.hex()[:8]} attempt={self.attempt} leases={self.count} stamp={self.stamp_us}>"


def silence_us(ttl_ms: int) -> int:
    """How long a session may be silent before expiry is proposed: 0.9 ttl, so that subscribers are told by ttl."""
    return ttl_ms * 900


def overdue_us(ttl_ms: int) -> int:
    """How long a session that beats every quarter of its ttl is never silent: 0.6 ttl is two missed heartbeats."""
    return ttl_ms * 600


def quiet_us(ttl_ms: int) -> int:
    """How long a session may be silent before its instances are suspect: 0.8 ttl."""
    return ttl_ms * 800


class Sessions:
    """All sessions of a node."""

    def __init__(self) -> None:
        self.now_us = 0  # lived time, moved by the failure detector only
        self.holders = 0
        self._overdue: dict[
            tuple[Session, int], int
        ] = {}  # session and ttl -> the stamp it had; those heard since are weeded out in passing
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
        self.holders += not session.count
        session.put(service, instance_id, lease)
        if lease.ttl_ms not in session.watched:
            self._watch(session, lease.ttl_ms)

    def end(self, session_id: bytes, service: ServiceKey, instance_id: str) -> None:
        """The session does not hold this instance any more."""
        session = self._sessions.get(session_id)
        if session is not None and session.count:
            session.drop(service, instance_id)
            self.holders -= not session.count

    # --- silence ------------------------------------------------------------------------------------------------------------

    def _watch(self, session: Session, ttl_ms: int, at_us: int | None = None) -> None:
        session.watched[ttl_ms] = None
        self._pushed += 1
        deadline_us = session.stamp_us + overdue_us(ttl_ms) if at_us is None else at_us
        heapq.heappush(self._heap, (deadline_us, self._pushed, session, ttl_ms))

    def grant_grace(self) -> None:
        """Treat every session as heard just now: at the end of loading, and after anything that kept clients away (rule E5)."""
        for session in self._sessions.values():
            session.stamp_us = self.now_us

    def due(self, limit: int) -> list[Silent]:
        """Sessions that were silent for 0.8 (quiet) or 0.9 (final) of a ttl under which they hold instances, at most `limit`. Final ones
        are named again after a second for as long as it stays so. Sessions that hold nothing and have no connection are forgotten on
        the way (S4)."""
        silent: list[Silent] = []
        while self._heap and self._heap[0][0] <= self.now_us and len(silent) < limit:
            _, _, session, ttl_ms = heapq.heappop(self._heap)
            del session.watched[ttl_ms]
            if session.holds_under(ttl_ms):
                self._look_at(session, ttl_ms, silent)
            else:
                self._overdue.pop((session, ttl_ms), None)
                if ttl_ms == SILENCE_MS_DEFAULT:
                    self._look_at_idle(session)
        if len(silent) == limit:
            self._note_all_overdue()
        return silent

    def _look_at(self, session: Session, ttl_ms: int, silent: list[Silent]) -> None:
        """Take the step that the silence of a session has reached under one ttl, and come back at the next (S5)."""
        stamp_us = session.stamp_us
        silence = self.now_us - stamp_us
        if silence < overdue_us(ttl_ms):
            self._overdue.pop((session, ttl_ms), None)
            self._watch(session, ttl_ms)
            return
        self._overdue[session, ttl_ms] = stamp_us
        if silence < quiet_us(ttl_ms):
            self._watch(session, ttl_ms, stamp_us + quiet_us(ttl_ms))
        elif silence < silence_us(ttl_ms):
            silent.append(Silent(session, ttl_ms, stamp_us, final=False))
            self._watch(session, ttl_ms, stamp_us + silence_us(ttl_ms))
        else:
            silent.append(Silent(session, ttl_ms, stamp_us))
            self._watch(session, ttl_ms, self.now_us + min(RETRY_US, overdue_us(ttl_ms)))

    def _look_at_idle(self, session: Session) -> None:
        deadline_us = session.stamp_us + silence_us(SILENCE_MS_DEFAULT)
        if deadline_us <= self.now_us and session.connection is None and not session.count:
            del self._sessions[session.session_id]
            return
        again_us = self.now_us + overdue_us(SILENCE_MS_DEFAULT)  # not later: a lease granted from now on has its first step then
        self._watch(session, SILENCE_MS_DEFAULT, min(deadline_us, again_us) if deadline_us > self.now_us else again_us)

    def _note_all_overdue(self) -> None:
        """So many fell silent that not all were looked at in this step: note the rest as overdue, so that their number is known."""
        for at_us, _, session, ttl_ms in self._heap:
            if at_us <= self.now_us and session.count and self.now_us - session.stamp_us >= overdue_us(ttl_ms):
                self._overdue[session, ttl_ms] = session.stamp_us

    def dying(self, within_us: int) -> list[Session]:
        """The sessions that have been silent for too long already and will be named as dead within that time, unless they are heard."""
        found: dict[Session, None] = {}
        for (session, ttl_ms), stamp_us in self._overdue.items():
            if session.stamp_us == stamp_us and session.count and stamp_us + silence_us(ttl_ms) <= self.now_us + within_us:
                found[session] = None
        return list(found)

    @staticmethod
    def expiries(silent: Iterable[Silent], limit: int) -> list[ExpireOp]:
        """What to propose for sessions that are still as silent as they were when they were named (rule E2), about `limit` at most:
        sessions beyond it are named again after a second."""
        ops: list[ExpireOp] = []
        for session, ttl_ms, stamp_us, final in silent:
            if len(ops) >= limit:
                break
            if final and session.stamp_us == stamp_us:
                leases = [(service, instance_id, lease) for service, instance_id, lease in session.leases() if lease.ttl_ms <= ttl_ms]
                ops.extend(ExpireOp(service, instance_id, lease.lease_id) for service, instance_id, lease in leases)
        return ops

    def validate(self) -> None:
        """Assert S1, S2, S4 and S6."""
        for session in self._sessions.values():
            leases = list(session.leases())
            assert session.count == len(leases), session
            digest = 0
            for service, instance_id, lease in leases:
                digest ^= lease_digest(service, instance_id, lease.lease_id)
                assert lease.ttl_ms in session.watched, (session, lease)
            assert session.digest == digest, session
            assert SILENCE_MS_DEFAULT in session.watched, session
        watched = sum(len(session.watched) for session in self._sessions.values())
        assert watched == sum(self._sessions.get(entry[2].session_id) is entry[2] for entry in self._heap)
        assert self.holders == sum(bool(session.count) for session in self._sessions.values())
