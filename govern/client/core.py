"""The rules of a client at one node: its session there, whatever happens to its connections. `cores.py` has one of these for each node.

The shell dials, reads, writes and waits; everything that is decided is decided here, without input or output and without a clock:
`now` is handed in, in seconds of any clock that never goes back.

    shell                                core
    a stream is open          ──▶        dialled(now)              puts Hello out
    a frame has come          ──▶        receive(raw, now)
    `deadline` has come       ──▶        tick(now)
    the stream is gone        ──▶        disconnected()
    after each of these       ◀──        outbox.take()             frames to be sent, things to be woken

C1  `attempt` grows with every connection of the session, to whichever node, so a node always prefers the newest.
C2  After a Hello is accepted: a heartbeat at once, the writes that were not answered, subscriptions, reads.
C3  A `resync` counts only if nothing moved between the heartbeat and its answer, and nothing was on its way; otherwise both sides
    spoke of different moments, and the next heartbeat tells. One that counts is followed by naming every lease (`resync.py`).
C4  Whatever the node sends leads to a new state or to a `ProtocolError`; that costs the connection and nothing else.
C5  A node that does not answer a heartbeat is gone, but it gets a second look: after a stall of this process the answer may be
    lying unread in the socket.
C6  `Moved` says of a request what a refusal says: no effect, again after a pause. What it says of the slot is noted in `moved`, for
    whoever knows the other nodes; the session itself goes nowhere.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Final

import attrs

from .._version import VERSION
from ..errors import GovernError, Invalid, RemoteProtocolError, Stopped, Superseded, Unreachable
from ..messages import (
    HEARTBEAT_RESYNC,
    PROTOCOL_VERSION,
    Administered,
    Delta,
    Done,
    Drained,
    Explained,
    Goodbye,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Hint,
    Lost,
    Message,
    Moved,
    NodeStatus,
    Refused,
    Registered,
    Resumed,
    ResyncOk,
    ServiceList,
    TableRows,
    View,
    build_message,
)
from ..model import ServiceKey
from .claims import Claim
from .commands import Command, Commands
from .outbox import Numbers, Outbox, Request
from .outcomes import STOPPING, UNASSIGNED, error_of
from .reads import Asked, Question, Reads
from .registrations import Registrations
from .resync import Resyncer
from .views import Memory, ServiceView, Views

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
MOVED_MS: Final = 200
"""What a node has sent elsewhere is asked there again only after so long: five times a second when two nodes contradict each other."""


_ANSWERS: Final = (Registered, Done, View, Resumed, ResyncOk, Refused, ServiceList, NodeStatus, Explained, Drained, TableRows, Administered)
"""What may come late, when nobody waits for it any more."""


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


@attrs.frozen
class Wishes:
    """Everything that a client wants of one service."""

    claims: list[Claim]
    view: ServiceView | None
    commands: list[Command]
    questions: list[Question]


@attrs.define
class Shared:
    """What the cores of one client share."""

    numbers: Numbers = attrs.field(factory=Numbers)
    memory: Memory = attrs.field(factory=Memory)
    claimed: dict[tuple[ServiceKey, str], Registrations] = attrs.field(factory=dict)
    """Every id that is claimed, and at which core."""


class ClientCore:
    """One session at one node: its claims, its views, its questions, and its present connection."""

    def __init__(self, session_id: bytes, shared: Shared | None = None) -> None:
        shared = shared or Shared()
        self.outbox = Outbox(1 + session_id[0] / 512, shared.numbers)
        self.registrations = Registrations(self.outbox, shared.claimed)
        self.commands = Commands(self.outbox, self.registrations)
        self.resync = Resyncer(self.outbox, self.registrations)
        self.views = Views(self.outbox, shared.memory)
        self.reads = Reads(self.outbox)
        self.phase = Phase.DOWN
        self.attempt = 0
        self.cluster_id = ""
        self.node_id: int | None = None
        self.moved: list[Moved] = []
        """What it has sent elsewhere since this was emptied (C6)."""
        self._session_id = session_id
        self._numbers = shared.numbers
        self._goodbye: Request | None = None
        self._interval_seconds = HEARTBEAT_SECONDS
        self._heartbeats: dict[int, tuple[float, int]] = {}  # unanswered: id -> (sent at, movements then, or -1: not comparable)
        self._heartbeat_at = 0.0  # when the last one was sent
        self._heard_at = 0.0
        self._doubted_at = math.inf  # C5
        self._dialled_at = 0.0

    def __repr__(self) -> str:
        parts = f"{self.registrations} {self.views} {self.reads}"
        return f"<ClientCore of node {self.node_id} {self.phase.name} attempt={self.attempt} {parts}>"

    @property
    def connected(self) -> bool:
        return self.phase is Phase.UP

    @property
    def table_version(self) -> int:
        """The newest version of the table that the node has named over this connection."""
        return self.views.table_version

    @property
    def has_work(self) -> bool:
        """Whether somebody depends on the connection: it is then sought with more zeal."""
        return bool(len(self.registrations) or len(self.views) or len(self.commands) or self.reads.is_needed)

    # --- what the owner asks for ----------------------------------------------------------------------------------------------

    def ask(self, message: Asked) -> Question:
        """A read; it is repeated over connections until it is answered or forgotten. Raises `Overloaded` beyond the limit."""
        return self.reads.ask(message)

    def goodbye(self) -> Request | None:
        """End the session; the request is done when the node has removed the ephemeral instances. None while disconnected."""
        if not self.connected:
            return None
        self._goodbye = Request(Goodbye(), self.outbox.draw_id())
        self.outbox.send(self._goodbye.message, self._goodbye.request_id)
        return self._goodbye

    @property
    def has_left(self) -> bool:
        """Whether Goodbye was said, and is answered or never will be."""
        return self._goodbye is not None and (self._goodbye.done or not self.connected)

    def close(self, error: GovernError | None = None) -> None:
        """The owner has left, or needs this node no more: whoever still waits for something gets the error, `Stopped` by default."""
        error = error or Stopped("the registry was left: its connect() block has ended")
        self.disconnected()
        self.phase = Phase.CLOSED
        self.reads.close(error)
        self.commands.close(error)
        self.registrations.close(error)
        self.views.close_all()
        self.outbox.tell(self)

    # --- to another node and back -------------------------------------------------------------------------------------------------

    def services(self) -> dict[ServiceKey, None]:
        """The services of which something is wanted that can be taken elsewhere."""
        keys = (*self.registrations.services(), *self.views.services(), *self.commands.services(), *self.reads.services())
        return dict.fromkeys(keys)

    def take_out(self, service: ServiceKey) -> Wishes:
        """Hand over everything that is wanted of a service, for another node."""
        return Wishes(
            self.registrations.take_out(service),
            self.views.take_out(service),
            self.commands.take_out(service),
            self.reads.take_out(service),
        )

    def put_in(self, wishes: Wishes, now: float) -> None:
        """Take over what another core handed over."""
        self.registrations.put_in(wishes.claims)
        if wishes.view is not None:
            self.views.put_in(wishes.view)
        self.commands.put_in(wishes.commands)
        self.reads.put_in(wishes.questions)
        self.registrations.pump()
        self.views.pump()
        if self.connected:
            self.commands.pump(now)

    # --- the connection -------------------------------------------------------------------------------------------------------

    def dialled(self, now: float) -> None:
        """A stream is open: say Hello."""
        assert self.phase is Phase.DOWN, self
        self.phase = Phase.HELLO
        self.attempt = self._numbers.draw_attempt()  # C1
        self._dialled_at = self._heard_at = now
        self.outbox.send(Hello(PROTOCOL_VERSION, "", f"govern-python/{VERSION}", "", self._session_id, self.attempt))

    def disconnected(self) -> None:
        """The stream is gone, for whatever reason."""
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.DOWN
        self.views.table_version = 0
        self.moved.clear()
        self.outbox.frames.clear()  # they were for that stream
        self._heartbeats.clear()
        self._doubted_at = math.inf
        self.resync.disconnected()
        self.commands.disconnected()
        self.registrations.disconnected()
        self.views.disconnected()
        self.reads.disconnected()
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
            self.reads.deadline,
            self.commands.deadline,
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
        self.reads.wake(now)
        self.commands.pump(now)

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
        check_protocol(message)
        other_cluster = bool(self.cluster_id) and message.cluster_id != self.cluster_id
        self.cluster_id, self.node_id = message.cluster_id, message.node_id
        self.views.table_version = message.table_version
        self._interval_seconds = min(message.heartbeat_ms / 1000 or HEARTBEAT_SECONDS, HEARTBEAT_SECONDS_MAX)
        self.phase = Phase.UP
        self._goodbye = None
        self._send_heartbeat(now)  # C2
        self.registrations.connected(resumed=message.resumed, other_cluster=other_cluster)
        self.views.connected(now, other_cluster=other_cluster)
        self.reads.connected()
        self.outbox.tell(self)

    def _dispatch(self, message: Message, request_id: int, now: float) -> None:
        if request_id == 0:
            self._pushed(message)
        elif isinstance(message, Moved):
            if self._answered(request_id, Refused(UNASSIGNED, f"node {message.node_id} answers for that slot", MOVED_MS), now):
                self.moved.append(message)  # C6
        elif isinstance(message, HeartbeatOk):
            self._heartbeat_answered(message, request_id, now)
        elif self._goodbye is not None and request_id == self._goodbye.request_id:
            if not self._goodbye.done:
                self.outbox.finish(self._goodbye)
        elif not self._answered(request_id, message, now) and not isinstance(message, _ANSWERS):
            raise RemoteProtocolError(f"{type(message).__name__} is not expected from a node")

    def _answered(self, request_id: int, message: Message, now: float) -> bool:
        """Give an answer to whoever waits for it; False when nobody does (any more)."""
        if self.reads.answered(request_id, message, now) or self.commands.answered(request_id, message, now):
            return True
        if isinstance(message, Registered | Done):
            return self.registrations.answered(request_id, message, now)
        if isinstance(message, View | Resumed):
            return self.views.answered(request_id, message, now)
        if isinstance(message, ResyncOk):
            return self.resync.answered(request_id, message, now)
        if isinstance(message, Refused):
            return any(part.answered(request_id, message, now) for part in (self.registrations, self.views, self.resync))
        return False

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
        self.views.table_version = max(self.table_version, message.table_version)
        self.views.node_fresh(message.fresh, now)
        _, movements = heartbeat
        if message.state == HEARTBEAT_RESYNC and movements == self.registrations.movements:  # C3
            self.resync.begin(now)

    def validate(self) -> None:
        """Assert the invariants of all parts; for tests."""
        self.registrations.validate()
        self.commands.validate()
        self.views.validate()
        self.reads.validate()
        assert self.connected or not self._heartbeats


def check_protocol(hello: HelloOk) -> None:
    """Raise `HelloRefused` when the node speaks a protocol that this client does not."""
    if not 1 <= hello.protocol <= PROTOCOL_VERSION + 1:
        error = RemoteProtocolError(f"the node speaks protocol {hello.protocol}, this client {PROTOCOL_VERSION}: upgrade one of them")
        raise HelloRefused(error, lasting=True)
