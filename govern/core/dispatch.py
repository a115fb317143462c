"""Dispatch: what each message of a client leads to.

The shell cuts bytes into frames and hands each to `receive`; everything that follows from it is decided here. Reads are answered
on the spot from committed state. Writes are judged as far as the committed state allows, and collected in
`writes` for the store. When the store has committed a batch, `finish` turns its outcomes into answers, and the shell publishes
the services that changed.

While the node is loading, heartbeats are answered (rule E6), and everything else waits its turn in `parked`.

Q1  Every request with an id is answered exactly once, or its connection is closed.
Q2  Requests of one connection take effect in the order in which they were sent.
Q3  A request whose deadline has passed is refused before it is carried out.
Q4  A registration that is repeated while it waits for the log is not written twice: it is answered when the first one is, with the same
    answer. Written twice it would win over what another client has asked for in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

from ..errors import DiskFull, Gone, Invalid, Overloaded, Rejected, RemoteProtocolError, Unassigned
from ..messages import (
    HEARTBEAT_LOADING,
    HEARTBEAT_OK,
    HEARTBEAT_RESYNC,
    PAGE_ITEMS_MAX,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    TO_NODE,
    Administer,
    Applied,
    AskStatus,
    AskTable,
    Deregister,
    Done,
    Drain,
    Evict,
    Explain,
    Explained,
    Goodbye,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Lookup,
    Lost,
    Message,
    Moved,
    NodeStatus,
    Refused,
    Register,
    Resumed,
    Resync,
    ResyncOk,
    ServiceList,
    Services,
    Subscribe,
    Unsubscribe,
    Update,
    build_message,
    encode,
    frame,
    view_frames,
)
from ..model import LSN_ZERO, ServiceKey, check_namespace, pack_client_part
from .drains import TIMEOUT_MS_MAX, Drains
from .entries import DeregisterOp, DrainOp, EntryParts, EvictOp, ExpireOp, Op, RegisterOp, UpdateOp, unpack_entry
from .explain import explain
from .history import CONNECTED, DISCONNECTED, History
from .limits import Limits
from .links import Gate, Link
from .ownership import UNASSIGNED_RETRY_SECONDS, Ownership
from .requests import Identity, Word, Write
from .resync import answer_resync
from .sessions import Session, Sessions, Silent
from .shard import EXPIRED, Outcome, Shard, check_changes
from .subscriptions import Subscriptions
from .suspects import Suspects

HEARTBEAT_MS: Final = 1_000
EXPIRIES_PER_STEP: Final = 4_096
EXPIRIES_PENDING_MAX: Final = 10_000
REPEATS_MAX: Final = 64
"""So often a registration may be repeated while it waits for the log: a client repeats it once for each connection that broke."""
_RETRY_SECONDS: Final = 1.0
ADMINISTERING_MAX: Final = 256
"""Words of operators that wait for the controller; one more is refused."""
_LONG_ANSWERS: Final = (Lookup.TYPE, Subscribe.TYPE, Services.TYPE, Explain.TYPE)
_READS: Final = (Lookup.TYPE, Subscribe.TYPE, Explain.TYPE)
_WRITES: Final = (Register.TYPE, Update.TYPE, Deregister.TYPE, Drain.TYPE, Evict.TYPE)
_ROUTED: Final = frozenset(_READS + _WRITES)


Asked = tuple[bytes, int, ServiceKey, str]
"""Which registration it is, however often it is sent: session id, request id, service and instance id."""


class Dispatch:
    """The requests of all clients of one node."""

    def __init__(
        self,
        *,
        identity: Identity,
        shard: Shard,
        sessions: Sessions,
        suspects: Suspects,
        subscriptions: Subscriptions,
        history: History,
        gate: Gate,
        limits: Limits,
        ownership: Ownership,
        status: Callable[[], dict[str, Any]],
        disk_full: Callable[[], bool],
    ) -> None:
        self.identity = identity
        self.now_us = 0  # monotonic
        self.wall_ms = 0  # for `registered_at` only
        self.writes: list[Write] = []  # to go to the store, in order; the shell takes them from the front
        self.writes_pending = 0
        self.expiries_pending = 0
        self._registering: dict[Asked, list[Link]] = {}  # registrations on their way to the log, and who has repeated them since (Q4)
        self.parked: deque[tuple[Link, list[Any]]] = deque()
        self.words: list[Word] = []  # to go to the slot manager; the shell takes them
        self.administering = 0
        self.to_close: dict[Link, None] = {}
        self.drains = Drains(sessions, subscriptions)
        self.history = history
        self._shard = shard
        self._sessions = sessions
        self._suspects = suspects
        self._subscriptions = subscriptions
        self._gate = gate
        self._limits = limits
        self._ownership = ownership
        self._status = status
        self._disk_full = disk_full
        self._handlers: dict[int, Callable[[Link, Any, int], Message | None]] = {
            Register.TYPE: self._register,
            Update.TYPE: self._update,
            Deregister.TYPE: self._deregister,
            Lookup.TYPE: self._lookup,
            Subscribe.TYPE: self._subscribe,
            Unsubscribe.TYPE: self._unsubscribe,
            Services.TYPE: self._services,
            Goodbye.TYPE: self._goodbye,
            Resync.TYPE: self._resync,
            Drain.TYPE: self._drain,
            Applied.TYPE: self._applied,
            Evict.TYPE: self._evict,
            Explain.TYPE: self._explain,
            Administer.TYPE: self._administer,
        }

    # --- incoming -----------------------------------------------------------------------------------------------------------

    def begin_turn(self, now_us: int, boot_us: int, wall_ms: int) -> None:
        """What the clocks say, before anything else in a turn of the shell."""
        self.now_us = now_us
        self.wall_ms = self.history.wall_ms = wall_ms
        self.note_boot(boot_us)

    def note_boot(self, boot_us: int) -> None:
        """What the clock says that counts suspended time: a process may have stood still in the middle of a turn."""
        self._shard.fresh = self._ownership.is_fresh(boot_us)
        self._shard.terms = self._ownership.terms

    def receive(self, link: Link, raw: list[Any]) -> None:
        """Take one frame of a link. What is to be sent back is in `link.out`; a link that is to be closed is in `to_close`."""
        if link.closing is not None:
            return
        link.heard_us = self._sessions.now_us
        session = link.session
        if session is not None:
            session.stamp_us = self._sessions.now_us
            if session.suspect_ms:
                self._suspects.note_heard(session)
            if raw[0] == Heartbeat.TYPE and len(raw) >= 4:
                self._heartbeat(link, session, raw)
                return
        try:
            self._take(link, raw)
        except RemoteProtocolError as error:
            self.refuse_link(link, "protocol", str(error))

    def refuse_link(self, link: Link, code: str, text: str) -> None:
        """Tell the other side why, once, and close the connection."""
        if link.closing is None:
            link.closing = text
            passes = code in (Overloaded.reason, "timeout", "stopping")  # a client that is told so comes back; others give up
            link.out.append(encode(Refused(code, text, round(_RETRY_SECONDS * 1000) if passes else 0)))
        self.to_close[link] = None

    def _take(self, link: Link, raw: list[Any]) -> None:
        number, request_id = raw[0], raw[1]
        if number not in TO_NODE:
            raise RemoteProtocolError(f"message type {number} is not one that a client sends")
        if not link.greeted:
            if number != Hello.TYPE:
                raise RemoteProtocolError("the first message must be Hello")
            self._hello(link, raw)
            return
        if number == AskStatus.TYPE:
            link.out.append(encode(NodeStatus(self._status()), request_id))
            return
        if number == Heartbeat.TYPE:  # of a link without a session, or malformed
            build_message(raw)
            state = HEARTBEAT_OK if self._shard.loaded else HEARTBEAT_LOADING
            fresh = self._shard.loaded and self._shard.fresh
            link.out.append(encode(HeartbeatOk(state, fresh, self._ownership.table.version), request_id))
            return
        if number == AskTable.TYPE:
            message = build_message(raw)
            assert isinstance(message, AskTable)
            link.out.extend(encode(page, request_id) for page in self._ownership.pages(message.known))
            return
        if number == Hello.TYPE:
            raise RemoteProtocolError("Hello was said already")
        if not self._shard.loaded or self.parked:  # nothing overtakes what was parked (Q2)
            self._park(link, raw)
            return
        self._request(link, raw)

    def _request(self, link: Link, raw: list[Any]) -> None:
        number, request_id = raw[0], raw[1]
        try:
            message = build_message(raw)
            answer: Message | None = None
            if number in _ROUTED and not self._ownership.has_all:
                answer = self._elsewhere(message.service, writes=number in _WRITES)  # type: ignore[attr-defined]
            if answer is None:
                answer = self._handlers[number](link, message, request_id)
        except Rejected as error:
            answer = Refused(error.reason, str(error), round((error.retry_after or 0) * 1000))
        if answer is not None:
            link.out.append(encode(answer, request_id))

    def _elsewhere(self, service: ServiceKey, *, writes: bool) -> Moved | None:
        return self._ownership.elsewhere(service, self._shard.slot_number(service), writes=writes)

    def _park(self, link: Link, raw: list[Any]) -> None:
        if len(self.parked) >= self._limits.requests_parked_max:
            text = "the node is loading and too many requests wait already; try again"
            link.out.append(encode(Refused(Overloaded.reason, text, round(_RETRY_SECONDS * 1000)), raw[1]))
        else:
            self.parked.append((link, raw))

    def note_loaded(self) -> None:
        """The state of before is back; to be told before `release_parked`."""
        if self._shard.slot_numbers():
            self.drains.note_start(self.now_us)

    def release_parked(self, limit: int) -> list[Link]:
        """The node is loaded: take what waited, in order (Q2), `limit` requests at most, and not many more answers than a socket takes.
        Returns the links concerned. A link that takes no answers is refused the lists it asked for."""
        links: dict[Link, None] = {}
        room = self._limits.unsent_bytes_max
        while self.parked and limit > 0 and room > 0:
            link, raw = self.parked.popleft()
            limit -= 1
            if link.closing is not None:
                continue
            links[link] = None
            before = len(link.out)
            try:
                if raw[0] in _LONG_ANSWERS and len(link.unsent) > self._limits.unsent_bytes_max:
                    text = "this connection asked for more than it takes; try again"
                    link.out.append(encode(Refused(Overloaded.reason, text, round(_RETRY_SECONDS * 1000)), raw[1]))
                else:
                    self._request(link, raw)
            except RemoteProtocolError as error:
                self.refuse_link(link, "protocol", str(error))
            room -= sum(map(len, link.out[before:]))
        return list(links)

    def _hello(self, link: Link, raw: list[Any]) -> None:
        try:
            hello = build_message(raw)
        except Invalid as error:
            raise RemoteProtocolError(str(error)) from error
        assert isinstance(hello, Hello)
        identity = self.identity
        if hello.protocol < PROTOCOL_VERSION_MIN:
            text = f"this node speaks protocol versions {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}, the client {hello.protocol}"
            return self.refuse_link(link, "protocol", text)
        if hello.cluster_id and hello.cluster_id != identity.cluster_id:
            return self.refuse_link(link, "cluster", f"this node belongs to cluster {identity.cluster_id}, not {hello.cluster_id[:64]!r}")
        resumed = True
        if hello.session_id:
            if self._sessions.get(hello.session_id) is None and len(self._sessions) >= self._limits.sessions_max:
                text = f"this node has {len(self._sessions)} sessions, its limit (sessions_max)"
                return self.refuse_link(link, Overloaded.reason, text)
            attached = self._sessions.attach(hello.session_id, hello.attempt, link)
            if attached is None:
                return self.refuse_link(link, "superseded", "a newer connection holds this session")
            link.session, former, known = attached
            self._suspects.note_heard(link.session)
            link.who = hello.who
            self.history.note_connection(CONNECTED, link, f"attempt {hello.attempt}")
            resumed = known or not self._shard.loaded
            if isinstance(former, Link):
                self.refuse_link(former, "superseded", "a newer connection took this session over")
        link.greeted = True
        link.who = hello.who
        self._gate.forget(link)
        answer = HelloOk(
            min(hello.protocol, PROTOCOL_VERSION),
            identity.cluster_id,
            identity.node_id,
            identity.version,
            HEARTBEAT_MS,
            resumed,
            self._ownership.table.version,
        )
        link.out.append(encode(answer, raw[1]))
        return None

    def _heartbeat(self, link: Link, session: Session, raw: list[Any]) -> None:
        if not self._shard.loaded:
            state = HEARTBEAT_LOADING
        elif raw[2] == session.count and raw[3] == session.digest:
            state = HEARTBEAT_OK
        else:
            state = HEARTBEAT_RESYNC
        fresh = self._shard.loaded and self._shard.fresh
        link.out.append(frame(msgpack.packb([HeartbeatOk.TYPE, raw[1], state, fresh, self._ownership.table.version])))

    def closed(self, link: Link) -> None:
        """The connection is gone, for whatever reason."""
        link.closing = link.closing or "the other side closed it"
        self._gate.forget(link)
        self.drains.closed(link, self.now_us)
        self.history.note_connection(DISCONNECTED, link, "it said Goodbye" if link.leaving else link.closing)
        self._subscriptions.remove_all(link)
        self.to_close.pop(link, None)
        if link.session is not None:
            self._sessions.detach(link.session, link)
            if link.session.connection is None and not link.leaving:
                self._suspects.note_closed(link.session, self.now_us)

    # --- reads --------------------------------------------------------------------------------------------------------------

    def _lookup(self, link: Link, message: Lookup, request_id: int) -> None:
        link.out.append(view_frames(self._shard.view_bodies(message.service), request_id))

    def _subscribe(self, link: Link, message: Subscribe, request_id: int) -> None:
        service, known = message.service, message.known
        if service not in link.subscriptions and len(link.subscriptions) >= self._limits.subscriptions_per_connection_max:
            raise Overloaded(f"this connection has {len(link.subscriptions)} subscriptions, its limit (subscriptions_per_connection_max)")
        ack = service in self._subscriptions.ack_wanted
        delta = None if known == LSN_ZERO else self._shard.delta_since(service, known, ack)
        if delta is None:
            link.out.append(view_frames(self._shard.view_bodies(service), request_id, ack))
        else:
            link.out.append(encode(Resumed(service, known), request_id))
            if delta[0] is not None:
                link.out.append(delta[0])
        hints = self._subscriptions.hints(service)
        if hints:
            link.out.append(hints)
        self._subscriptions.add(link, service, self._shard.service_lsn(service))
        self.drains.subscribed(link, service, known, delta is not None, self.now_us)

    def _unsubscribe(self, link: Link, message: Unsubscribe, request_id: int) -> None:
        self.drains.unsubscribed(link, message.service, self.now_us)
        self._subscriptions.remove(link, message.service)

    def _services(self, link: Link, message: Services, request_id: int) -> None:
        if not self._ownership.table.assigned_count:  # a cluster that is not formed yet is not empty (RE2)
            raise Unassigned("no slot is assigned to a node yet; try again", UNASSIGNED_RETRY_SECONDS)
        rows = list(self._shard.service_rows(check_namespace(message.namespace) if message.namespace else ""))
        for start in range(0, max(1, len(rows)), PAGE_ITEMS_MAX):
            page = ServiceList(start + PAGE_ITEMS_MAX < len(rows), rows[start : start + PAGE_ITEMS_MAX])
            link.out.append(encode(page, request_id))

    def _explain(self, link: Link, message: Explain, request_id: int) -> Explained:
        self.history.admit(self.now_us)
        return explain(self._shard, self._sessions, self.history, message.service, message.instance_id, self._suspects.seconds)

    def _resync(self, link: Link, message: Resync, request_id: int) -> ResyncOk:
        if link.session is None:
            raise Invalid("this connection has no session: it holds no leases that could be compared")
        return answer_resync(self._shard, link, link.session, message)

    def _administer(self, link: Link, message: Administer, request_id: int) -> None:
        """It is answered when the controller has answered."""
        if self.administering >= ADMINISTERING_MAX:
            raise Overloaded(f"{self.administering} words of operators wait for the controller already; try again", _RETRY_SECONDS)
        self.administering += 1
        self.words.append(Word(link, request_id, message))

    def administered(self, word: Word, answer: Message) -> None:
        """The controller has answered, or there is none."""
        self.administering -= 1
        if word.link.closing is None:
            word.link.out.append(encode(answer, word.request_id))

    # --- writes -------------------------------------------------------------------------------------------------------------

    def _register(self, link: Link, message: Register, request_id: int) -> Message | None:
        session = self._session(link, request_id)
        client_part = pack_client_part(message.instance)
        identity, ephemeral, ttl_ms = message.instance[0], message.instance[9], message.instance[10]
        op = RegisterOp(
            message.service, identity, session.session_id, request_id, message.prior, self.wall_ms, client_part, ephemeral, ttl_ms
        )
        asked = (session.session_id, request_id, message.service, identity)
        repeats = self._registering.get(asked)
        if repeats is not None:
            if len(repeats) >= REPEATS_MAX:
                raise Overloaded(f"this registration was repeated {REPEATS_MAX} times while it waits for the disk", _RETRY_SECONDS)
            repeats.append(link)
            link.writes += 1
            return None
        answer = self._write(link, op, request_id, message.timeout_ms, grows=True)
        if answer is None:
            self._registering[asked] = []
        return answer

    def _update(self, link: Link, message: Update, request_id: int) -> Message | None:
        session = self._session(link, request_id)
        held = self._held(message.service, message.instance_id)
        changes = check_changes(message.changes, held.client)
        op = UpdateOp(message.service, message.instance_id, session.session_id, request_id, message.lease_id, changes)
        return self._write(link, op, request_id, message.timeout_ms, grows="status" not in message.changes)

    def _deregister(self, link: Link, message: Deregister, request_id: int) -> Message | None:
        session = self._session(link, request_id)
        op = DeregisterOp(message.service, message.instance_id, session.session_id, request_id, message.lease_id)
        return self._write(link, op, request_id, message.timeout_ms)

    def _drain(self, link: Link, message: Drain, request_id: int) -> Message | None:
        """It is answered by `core.drains`, when its operation is committed and everybody knows."""
        self._check_writer(link, request_id)
        self.drains.admit()
        op = DrainOp(message.service, message.instance_id, message.lease_id)
        return self._write(link, op, request_id, 0, answer_by_us=self.now_us + min(message.timeout_ms, TIMEOUT_MS_MAX) * 1000)

    def _applied(self, link: Link, message: Applied, request_id: int) -> None:
        self.drains.applied(link, message.service, message.lsn, self.now_us)

    def _evict(self, link: Link, message: Evict, request_id: int) -> Message | None:
        self._check_writer(link, request_id)
        return self._write(link, EvictOp(message.service, message.instance_id), request_id, 0)

    def _goodbye(self, link: Link, message: Goodbye, request_id: int) -> None:
        """The session ends, after everything that its connection asked for before (Q2)."""
        if link.leaving:
            raise RemoteProtocolError("Goodbye was said already")
        link.leaving = True
        self.drains.left(link, self.now_us)
        link.goodbye = request_id
        if not link.writes:
            self._leave(link, request_id)

    def _leave(self, link: Link, request_id: int) -> None:
        """One removal for each ephemeral instance; the last one answers."""
        link.goodbye = None
        session = link.session
        if session is None or session.connection not in (None, link) or not session.count:
            link.out.append(encode(Done(LSN_ZERO), request_id))
            return
        for place, (service, instance_id, lease) in enumerate(session.leases(), 1):
            op = DeregisterOp(service, instance_id, session.session_id, request_id, lease.lease_id)
            asked = (link, request_id) if place == session.count else (None, 0)
            self.writes.append(Write(op, *asked))
        link.writes += 1
        self.writes_pending += session.count

    def _session(self, link: Link, request_id: int) -> Session:
        if link.session is None:
            raise Invalid("this connection has no session: give a session id in Hello to register instances")
        self._check_writer(link, request_id)
        return link.session

    def _check_writer(self, link: Link, request_id: int) -> None:
        if request_id <= 0:
            raise Invalid("a write needs a request id greater than 0")
        if link.leaving:
            raise Invalid("this connection said Goodbye: nothing can be registered or changed over it any more")

    def _held(self, service: ServiceKey, instance_id: str) -> EntryParts:
        entry = self._shard.entries(service).get(instance_id)
        if entry is None:
            raise Gone(f"instance {instance_id} of {service} is not registered")
        return unpack_entry(entry)

    def _write(self, link: Link, op: Op, request_id: int, timeout_ms: int, *, grows: bool = False, answer_by_us: int = 0) -> Message | None:
        known = self._shard.answer_known(op)
        if known is not None:
            return known
        if grows and self._disk_full():  # the rest of the log is kept for removals and for taking instances out of traffic (rule W5)
            raise DiskFull("the disk of this node is full: nothing can be registered until space is made on it", _RETRY_SECONDS)
        if self.writes_pending >= self._limits.writes_pending_max:
            raise Overloaded(f"{self.writes_pending} writes wait for the disk already; try again", _RETRY_SECONDS)
        self.writes_pending += 1
        link.writes += 1
        self.writes.append(Write(op, link, request_id, self.now_us + timeout_ms * 1000 if timeout_ms else 0, answer_by_us))
        return None

    def propose_expiries(self, silent: Sequence[Silent]) -> None:
        """Suspect the sessions that are still as silent as they were when they were named. Ask the log to remove what the final ones hold;
        not while too many such removals wait for the disk already."""
        for session, ttl_ms, stamp_us, _ in silent:
            if session.stamp_us == stamp_us:
                self._suspects.note_silent(session, ttl_ms)
            elif session.suspect_ms:
                self._suspects.note_heard(session)
        if self.expiries_pending < EXPIRIES_PENDING_MAX:
            ops = self._sessions.expiries(silent, EXPIRIES_PER_STEP)
            self.expiries_pending += len(ops)
            self.writes.extend(Write(op) for op in ops)

    # --- outcomes -----------------------------------------------------------------------------------------------------------

    def finish(self, results: list[tuple[Write, Outcome]]) -> tuple[dict[Link, None], dict[ServiceKey, None]]:
        """Answer what the store has carried out or refused: `(links with something to send, services that changed)`."""
        links: dict[Link, None] = {}
        changed: dict[ServiceKey, None] = {}
        for write, outcome in results:
            if outcome.changed is not None:
                changed[outcome.changed] = None
                self._suspects.note_changed(outcome.changed, write.op.instance_id)
                self.history.note_outcome(write.op, outcome, write.link, self._shard, self._sessions)
            loss = outcome.loss
            if loss is not None and loss.reason != EXPIRED:
                session = self._sessions.get(loss.session_id)
                loser = None if session is None else session.connection
                if isinstance(loser, Link):
                    loser.out.append(encode(Lost(loss.service, loss.instance_id, loss.lease_id, loss.reason)))
                    links[loser] = None
            if write.link is not None:
                if type(write.op) is DrainOp and isinstance(outcome.answer, Done):
                    self._answer(write.link, write.request_id, None)
                    self.drains.open(write.op.service, outcome.answer.lsn, write.link, write.request_id, write.answer_by_us, self.now_us)
                    changed[write.op.service] = None  # also when it is draining already: everybody is asked
                else:
                    self._answer(write.link, write.request_id, outcome.answer)
                    if type(write.op) is RegisterOp:
                        self._answer_repeats(write.op, outcome.answer, links)
                links[write.link] = None
        expired = sum(type(write.op) is ExpireOp for write, _ in results)
        self.expiries_pending -= expired
        self.writes_pending -= len(results) - expired
        return links, changed

    def _answer_repeats(self, op: RegisterOp, answer: Message, links: dict[Link, None]) -> None:
        """The registration has come to its end, so whoever has repeated it meanwhile is answered as well (Q4)."""
        for link in self._registering.pop((op.session_id, op.request_id, op.service, op.instance_id)):
            self._answer(link, op.request_id, answer)
            links[link] = None

    def _answer(self, link: Link, request_id: int, answer: Message | None) -> None:
        """One write of a link has come to its end; None: the answer comes later, from elsewhere."""
        link.writes -= 1
        if link.leaving and link.goodbye is None and isinstance(answer, Refused) and answer.code == Gone.reason:
            answer = Done(LSN_ZERO)  # this was the last removal of a Goodbye, and what should be gone is gone
        if answer is not None and (link.closing is None or link.leaving):
            link.out.append(encode(answer, request_id))
        if link.goodbye is not None and not link.writes:
            self._leave(link, link.goodbye)
