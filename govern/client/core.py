"""The rules of a client: one session with the registry, whatever happens to its connections.

The shell dials, reads, writes and waits; everything that is decided is decided here, without input or output and without a clock:
`now` is handed in, in seconds of any clock that never goes back.

    shell                                core
    a stream is open          ──▶        dialled(now)              puts Hello out
    a frame has come          ──▶        receive(raw, now)
    `deadline` has come       ──▶        tick(now)
    the stream is gone        ──▶        disconnected()
    after each of these       ◀──        outbox.take()             frames to be sent, things to be woken

C1  `attempt` grows with every connection, so the node always prefers the newest.
C2  After a Hello is accepted: a heartbeat at once, the writes that were not answered, subscriptions, reads.
C3  A `resync` counts only if nothing moved between the heartbeat and its answer, and nothing was on its way; otherwise both sides
    spoke of different moments, and the next heartbeat tells. One that counts is followed by naming every lease (`resync.py`).
C4  Whatever the node sends leads to a new state or to a `ProtocolError`; that costs the connection and nothing else.
C5  A node that does not answer a heartbeat is gone, but it gets a second look: after a stall of this process the answer may be
    lying unread in the socket.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Final

from .._version import VERSION
from ..errors import GovernError, Invalid, Overloaded, RemoteProtocolError, Stopped, Superseded, Unreachable
from ..messages import (
    HEARTBEAT_RESYNC,
    PROTOCOL_VERSION,
    AskStatus,
    Delta,
    Done,
    Drained,
    Explain,
    Explained,
    Goodbye,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Hint,
    Lookup,
    Lost,
    Message,
    NodeStatus,
    Refused,
    Registered,
    Resumed,
    ResyncOk,
    ServiceList,
    Services,
    View,
    build_message,
)
from ..model import ServiceInfo
from .answers import Explanation
from .commands import Commands
from .outbox import Outbox, Request
from .outcomes import STOPPING, error_of
from .registrations import Registrations
from .resync import Resyncer
from .views import INSTANCES_MAX, Views, read_instances

HELLO_SECONDS_MAX: Final = 5.0
"""So long may a node take to answer Hello."""
HEARTBEAT_SECONDS: Final = 1.0
"""The interval when the node names none."""
HEARTBEAT_SECONDS_MIN: Final = 0.05
HEARTBEAT_SECONDS_MAX: Final = 5.0
SILENCE_SECONDS_MAX: Final = 3.0
"""A heartbeat that is not answered for so long, with nothing else coming in either, means that the node is gone."""
UNANSWERED_SECONDS_MAX: Final = 30.0
"""The same when other frames do come in: a long list on a slow line may hold the answer up."""
SECOND_LOOK_SECONDS: Final = 0.25
READS_PENDING_MAX: Final = 1024
"""Reads that wait for their answer; one more is refused with `Overloaded`."""


class Phase(enum.Enum):
    """Where the connection stands."""

    DOWN = "there is no connection"
    HELLO = "Hello was sent"
    UP = "Hello was accepted"
    CLOSED = "the client has left"


class HelloRefused(GovernError):
    """The node does not want this client, or speaks another protocol. `error` says it for the user."""

    def __init__(self, error: GovernError, *, lasting: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.lasting = lasting


class ClientCore:
    """One session: its claims, its views, its questions, and its present connection."""

    def __init__(self, session_id: bytes) -> None:
        self.outbox = Outbox(spread=1 + session_id[0] / 512)
        self.registrations = Registrations(self.outbox)
        self.commands = Commands(self.outbox, self.registrations)
        self.resync = Resyncer(self.outbox, self.registrations)
        self.views = Views(self.outbox)
        self.phase = Phase.DOWN
        self.attempt = 0
        self.cluster_id = ""
        self.node_id: int | None = None
        self._session_id = session_id
        self._reads: dict[int, Request] = {}
        self._goodbye: Request | None = None
        self._interval_seconds = HEARTBEAT_SECONDS
        self._heartbeats: dict[int, tuple[float, int]] = {}  # unanswered: id -> (sent at, movements then, or -1: not comparable)
        self._heartbeat_at = 0.0  # when the last one was sent
        self._heard_at = 0.0
        self._doubted_at = math.inf  # C5
        self._dialled_at = 0.0

    def __repr__(self) -> str:
        return f"<ClientCore {self.phase.name} attempt={self.attempt} {self.registrations} {self.views} reads={len(self._reads)}>"

    @property
    def connected(self) -> bool:
        return self.phase is Phase.UP

    @property
    def has_work(self) -> bool:
        """Whether somebody depends on the connection: it is then sought with more zeal."""
        return bool(len(self.registrations) or len(self.views) or len(self.commands) or self._reads)

    # --- what the owner asks for ----------------------------------------------------------------------------------------------

    def ask(self, message: Lookup | Services | AskStatus | Explain) -> Request:
        """A read; it is repeated over connections until it is answered or forgotten. Raises `Overloaded` beyond the limit."""
        if len(self._reads) >= READS_PENDING_MAX:
            raise Overloaded(f"{READS_PENDING_MAX} reads of this client wait for an answer", 1.0)
        request = Request(message, self.outbox.draw_id())
        self._reads[request.request_id] = request
        if self.connected:
            self.outbox.send(message, request.request_id)
        return request

    def forget(self, request: Request) -> None:
        """Nobody waits for this read any more."""
        self._reads.pop(request.request_id, None)

    def goodbye(self) -> Request | None:
        """End the session; the request is done when the node has removed the ephemeral instances. None while disconnected."""
        if not self.connected:
            return None
        self._goodbye = Request(Goodbye(), self.outbox.draw_id())
        self.outbox.send(self._goodbye.message, self._goodbye.request_id)
        return self._goodbye

    def close(self) -> None:
        """The owner has left: whoever still waits for something gets `Stopped`."""
        error = Stopped("the registry was left: its connect() block has ended")
        self.disconnected()
        self.phase = Phase.CLOSED
        for request in self._reads.values():
            self.outbox.finish(request, error=error)
        self._reads.clear()
        self.commands.close(error)
        self.registrations.close(error)
        self.views.close_all()
        self.outbox.tell(self)

    # --- the connection -------------------------------------------------------------------------------------------------------

    def dialled(self, now: float) -> None:
        """A stream is open: say Hello."""
        assert self.phase is Phase.DOWN, self
        self.phase = Phase.HELLO
        self.attempt += 1  # C1
        self._dialled_at = self._heard_at = now
        self.outbox.send(Hello(PROTOCOL_VERSION, "", f"govern-python/{VERSION}", "", self._session_id, self.attempt))

    def disconnected(self) -> None:
        """The stream is gone, for whatever reason."""
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.DOWN
        self.outbox.frames.clear()  # they were for that stream
        self._heartbeats.clear()
        self._doubted_at = math.inf
        self.resync.disconnected()
        self.commands.disconnected()
        self.registrations.disconnected()
        self.views.disconnected()
        for request in self._reads.values():
            request.pages = []
        if self._goodbye is not None:
            self.outbox.tell(self._goodbye)
        self.outbox.tell(self)

    @property
    def interval_seconds(self) -> float:
        """Between two heartbeats: what the node wishes, and at least four times within the smallest ttl."""
        ttl_min = self.registrations.ttl_min
        wanted = self._interval_seconds if ttl_min is None else min(self._interval_seconds, ttl_min / 4)
        return max(wanted, HEARTBEAT_SECONDS_MIN)

    @property
    def deadline(self) -> float:
        """When `tick` is to be called next."""
        if self.phase is Phase.HELLO:
            return self._dialled_at + HELLO_SECONDS_MAX
        if self.phase is not Phase.UP:
            return math.inf
        return min(
            self._heartbeat_due_at,
            self._silent_at,
            self._doubted_at + SECOND_LOOK_SECONDS,
            self.registrations.deadline,
            self.views.deadline,
        )

    @property
    def _heartbeat_due_at(self) -> float:
        """A session that has said Goodbye has nothing to keep alive."""
        return self._heartbeat_at + self.interval_seconds if self._goodbye is None else math.inf

    @property
    def heard_at(self) -> float:
        """When something was read from the node for the last time."""
        return self._heard_at

    @property
    def _silent_at(self) -> float:
        """When the node is to be doubted for its silence."""
        if not self._heartbeats or self._doubted_at < math.inf:
            return math.inf
        asked_at, _ = next(iter(self._heartbeats.values()))
        silence = max(SILENCE_SECONDS_MAX, 3 * self.interval_seconds)
        return min(max(asked_at, self._heard_at) + silence, asked_at + UNANSWERED_SECONDS_MAX)

    def tick(self, now: float) -> None:
        """Do what is due; raises `Unreachable` when the node has to be given up."""
        if self.phase is Phase.HELLO and now >= self._dialled_at + HELLO_SECONDS_MAX:
            raise Unreachable(f"no answer to Hello within {HELLO_SECONDS_MAX:g} s")
        if self.phase is not Phase.UP:
            return
        if now >= self._doubted_at + SECOND_LOOK_SECONDS:
            raise Unreachable("the node does not answer heartbeats any more")
        if now >= self._silent_at:
            self._doubted_at = now
        if now >= self._heartbeat_due_at:
            self._send_heartbeat(now)
        self.registrations.wake(now)
        self.views.wake(now)

    def _send_heartbeat(self, now: float) -> None:
        registrations = self.registrations
        request_id = self.outbox.draw_id()
        self._heartbeat_at = now
        self._heartbeats[request_id] = (now, registrations.movements if registrations.settled else -1)
        self.outbox.send(Heartbeat(registrations.count, registrations.digest), request_id)

    # --- what the node says ---------------------------------------------------------------------------------------------------

    def receive(self, raw: list[Any], now: float) -> None:
        """Take one unpacked frame. Raises `RemoteProtocolError` or `HelloRefused`: then the stream is to be closed (C4)."""
        try:
            message, request_id = build_message(raw), raw[1]
        except Invalid as error:
            raise RemoteProtocolError(f"the node sent a name that breaks the rules: {error}") from error
        self._heard_at = now
        if self._doubted_at < math.inf and self._heartbeats:
            asked_at, _ = next(iter(self._heartbeats.values()))
            if now < asked_at + UNANSWERED_SECONDS_MAX:
                self._doubted_at = math.inf
        if self.phase is Phase.HELLO:
            self._greeted(message, now)
        elif self.phase is Phase.UP:
            self._dispatch(message, request_id, now)
        if self.phase is Phase.UP and len(self.commands):
            self.commands.pump(now)  # a lease that a drain waited for may have come

    def _greeted(self, message: Message, now: float) -> None:
        if isinstance(message, Refused):
            raise HelloRefused(error_of(message), lasting=message.retry_after_ms == 0 and message.code not in (STOPPING, Superseded.reason))
        if not isinstance(message, HelloOk):
            raise RemoteProtocolError(f"expected HelloOk, got {type(message).__name__}")
        if not 1 <= message.protocol <= PROTOCOL_VERSION + 1:
            error = RemoteProtocolError(f"the node speaks protocol {message.protocol}, this client {PROTOCOL_VERSION}: upgrade one of them")
            raise HelloRefused(error, lasting=True)
        other_cluster = bool(self.cluster_id) and message.cluster_id != self.cluster_id
        self.cluster_id, self.node_id = message.cluster_id, message.node_id
        self._interval_seconds = min(message.heartbeat_ms / 1000 or HEARTBEAT_SECONDS, HEARTBEAT_SECONDS_MAX)
        self.phase = Phase.UP
        self._goodbye = None
        self._send_heartbeat(now)  # C2
        self.registrations.connected(resumed=message.resumed, other_cluster=other_cluster)
        self.views.connected(now, other_cluster=other_cluster)
        for request in self._reads.values():
            self.outbox.send(request.message, request.request_id)
        self.outbox.tell(self)

    def _dispatch(self, message: Message, request_id: int, now: float) -> None:
        if request_id == 0:
            self._pushed(message)
        elif isinstance(message, HeartbeatOk):
            self._heartbeat_answered(message, request_id, now)
        elif request_id in self._reads:
            self._read_answered(self._reads[request_id], message)
        elif self._goodbye is not None and request_id == self._goodbye.request_id:
            if not self._goodbye.done:
                self.outbox.finish(self._goodbye)
        elif self.commands.answered(request_id, message):
            pass
        elif isinstance(message, Registered | Done):
            self.registrations.answered(request_id, message, now)
        elif isinstance(message, View | Resumed):
            self.views.answered(request_id, message, now)
        elif isinstance(message, ResyncOk):
            self.resync.answered(request_id, message, now)
        elif isinstance(message, Refused):
            for part in (self.registrations, self.views, self.resync):
                if part.answered(request_id, message, now):
                    break
        elif not isinstance(message, ServiceList | NodeStatus | Explained | Drained):  # late answers: nobody waits for them any more
            raise RemoteProtocolError(f"{type(message).__name__} is not expected from a node")

    def _pushed(self, message: Message) -> None:
        if isinstance(message, Refused):
            raise RemoteProtocolError(f"the node ended the connection: {message.text} ({message.code})")
        if isinstance(message, View | Delta | Hint):
            self.views.pushed(message)
        elif isinstance(message, Lost):
            self.registrations.lost(message)
        else:
            raise RemoteProtocolError(f"{type(message).__name__} is not expected without a request")

    def _heartbeat_answered(self, message: HeartbeatOk, request_id: int, now: float) -> None:
        heartbeat = self._heartbeats.get(request_id)
        if heartbeat is None:
            return
        while request_id in self._heartbeats:  # answers come in order: older ones are answered with it
            del self._heartbeats[next(iter(self._heartbeats))]
        self._doubted_at = math.inf
        self.views.node_fresh(message.fresh, now)
        _, movements = heartbeat
        if message.state == HEARTBEAT_RESYNC and movements == self.registrations.movements:  # C3
            self.resync.begin(now)

    def _read_answered(self, request: Request, message: Message) -> None:
        asked = request.message
        more = False
        if isinstance(message, Refused):
            if message.code == STOPPING:
                return  # the next connection asks again
            self.forget(request)
            self.outbox.finish(request, error=error_of(message))
            return
        if isinstance(asked, Lookup) and isinstance(message, View) and message.service == asked.service:
            request.pages += read_instances(message.instances).values()
            more = message.more
        elif isinstance(asked, Services) and isinstance(message, ServiceList):
            request.pages += map(_read_service, message.services)
            more = message.more
        elif isinstance(asked, AskStatus) and isinstance(message, NodeStatus):
            request.pages.append(message.status)
        elif isinstance(asked, Explain) and isinstance(message, Explained):
            request.pages.append(Explanation(instances=_read_mappings(message.instances), events=_read_mappings(message.events)))
        else:
            raise RemoteProtocolError(f"{type(message).__name__} is no answer to {type(asked).__name__}")
        if len(request.pages) > INSTANCES_MAX:
            raise RemoteProtocolError(f"an answer of more than {INSTANCES_MAX} items")
        if not more:
            self.forget(request)
            self.outbox.finish(request, request.pages)

    def validate(self) -> None:
        """Assert the invariants of all parts; for tests."""
        self.registrations.validate()
        self.commands.validate()
        self.views.validate()
        assert self.connected or not self._heartbeats


def _read_mappings(rows: list[Any]) -> tuple[dict[str, Any], ...]:
    if not all(type(row) is dict and all(type(key) is str for key in row) for row in rows):
        raise RemoteProtocolError("an explanation is made of mappings from text")
    return tuple(rows)


def _read_service(row: Any) -> ServiceInfo:
    if type(row) is not list or [type(value) for value in row[:4]] != [str, str, int, int]:
        raise RemoteProtocolError("a service must be [namespace, name, slot, instances]")
    return ServiceInfo(*row[:4])
