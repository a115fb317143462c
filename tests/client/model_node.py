"""A node as simple as the session protocol allows: one dictionary, no log, no batches. The client's rules are tested against it.

It keeps every state it ever had, so that a view can be compared with the state at its lsn. It is told to misbehave from outside: to forget,
to restart, to refuse, to lose a push.
"""

from __future__ import annotations

from typing import Any

import attrs

from govern.core.digests import lease_digest
from govern.messages import (
    Applied,
    AskStatus,
    Delta,
    Deregister,
    Done,
    Drain,
    Drained,
    Evict,
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
    Register,
    Registered,
    Resumed,
    Resync,
    ResyncOk,
    ServiceList,
    Services,
    Subscribe,
    Unsubscribe,
    Update,
    View,
    build_message,
    encode,
)
from govern.model import LSN_ZERO, Lsn, ServiceKey, pack_client_part

FIELDS = {"weight": 4, "zone": 5, "version": 6, "metadata": 7, "status": 8}
Key = tuple[ServiceKey, str]


@attrs.define
class Held:
    """One stored instance."""

    session_id: bytes
    request_id: int
    lease_id: Lsn
    lsn: Lsn
    fields: list[Any]

    def public(self) -> list[Any]:
        return [[*self.lease_id, *self.lsn, 0], self.fields]


class ModelNode:
    """The state of a node, and at most one connection to it."""

    def __init__(self) -> None:
        self.cluster = 1
        self.term = 1
        self.seq = 0
        self.instances: dict[Key, Held] = {}
        self.lsns: dict[ServiceKey, Lsn] = {}
        self.history: dict[tuple[int, ServiceKey, Lsn], dict[str, list[Any]]] = {}
        self.known_sessions: dict[bytes, int] = {}
        self.page_items = 2
        self.whole_pushes = False
        self.refusals: list[Refused] = []  # for the next writes, in order
        self.fresh = True
        self.session_id: bytes | None = None  # of the present connection
        self.subscriptions: dict[ServiceKey, Lsn] = {}
        self.out: list[bytes] = []
        self.applied: dict[tuple[int, int], int] = {}  # (cluster, request id) -> how often it changed the state
        self.barred: dict[tuple[bytes, Key], None] = {}
        self.suspects: dict[Key, None] = {}
        self.drains: dict[int, tuple[ServiceKey, Lsn]] = {}  # request id -> what the subscriber has to apply
        self.named: dict[Key, None] = {}  # on the pages of a resync
        self.resyncs = 0

    # --- the connection -----------------------------------------------------------------------------------------------------

    def disconnect(self) -> None:
        self.session_id = None
        self.subscriptions.clear()
        self.drains.clear()
        self.named.clear()
        self.out.clear()

    def receive(self, raw: list[Any]) -> None:
        message, request_id = build_message(raw), raw[1]
        answer = self.answer(message, request_id)
        if answer is not None:
            self.send(answer, request_id)

    def send(self, message: Message, request_id: int = 0) -> None:
        self.out.append(encode(message, request_id))

    def answer(self, message: Message, request_id: int) -> Message | None:
        match message:
            case Hello(session_id=session_id, attempt=attempt):
                resumed = session_id in self.known_sessions
                assert attempt > self.known_sessions.get(session_id, 0)
                self.known_sessions[session_id] = attempt
                self.session_id = session_id
                return HelloOk(1, f"cluster{self.cluster}", 1, "0", 1000, resumed)
            case Heartbeat(count, digest):
                return HeartbeatOk(0 if (count, digest) == self.holds() else 1, self.fresh)
            case Register() | Update() | Deregister() | Drain() | Evict() if self.refusals:
                return self.refusals.pop(0)
            case Resync():
                return self.resync(message)
            case Drain():
                return self.drain(message, request_id)
            case Evict(service, instance_id):
                return self.evict((service, instance_id))
            case Applied(service, lsn):
                self.acknowledge(service, lsn)
            case Explain(service, instance_id):
                return Explained([{"id": instance_id}], [{"kind": "registered", "service": str(service)}])
            case Register():
                return self.register(message, request_id)
            case Update():
                return self.update(message, request_id)
            case Deregister():
                return self.deregister(message, request_id)
            case Lookup(service):
                self.send_view(service, request_id)
            case Subscribe(service, known):
                if known != LSN_ZERO and known == self.lsn_of(service):
                    self.send(Resumed(service, known), request_id)
                else:
                    self.send_view(service, request_id)
                self.subscriptions[service] = self.lsn_of(service)
                self.hint_all(service)
            case Unsubscribe(service):
                self.subscriptions.pop(service, None)
            case Services():
                rows: dict[ServiceKey, int] = {}
                for service, _ in self.instances:
                    rows[service] = rows.get(service, 0) + 1
                return ServiceList(False, [[*service, 0, count] for service, count in rows.items()])
            case AskStatus():
                return NodeStatus({"cluster_id": f"cluster{self.cluster}"})
            case Goodbye():
                self.end_session()
                return Done(LSN_ZERO)
            case _:
                raise AssertionError(message)
        return None

    def holds(self) -> tuple[int, int]:
        """Count and digest of the session that is connected."""
        count = digest = 0
        for (service, instance_id), held in self.instances.items():
            if held.session_id == self.session_id and held.fields[9]:
                count += 1
                digest ^= lease_digest(service, instance_id, held.lease_id)
        return count, digest

    # --- writes -------------------------------------------------------------------------------------------------------------

    def register(self, message: Register, request_id: int) -> Message:
        pack_client_part(message.instance)
        assert self.session_id is not None
        key = (message.service, message.instance[0])
        held = self.instances.get(key)
        if held is not None and held.session_id == self.session_id:
            if request_id <= held.request_id or (message.prior == held.lease_id and held.fields == message.instance):
                return Registered(held.lease_id, held.lsn)
        elif held is not None and LSN_ZERO != message.prior < held.lease_id:
            return Refused("superseded", "somebody else holds it")
        if (self.session_id, key) in self.barred:
            return Refused("evicted", "an operator evicted it")
        self.applied[self.cluster, request_id] = self.applied.get((self.cluster, request_id), 0) + 1
        lsn = self.put(key, self.session_id, request_id, message.instance, message.prior)
        return Registered(self.instances[key].lease_id, lsn)

    def put(self, key: Key, session_id: bytes, request_id: int, fields: list[Any], prior: Lsn = LSN_ZERO) -> Lsn:
        lsn = self.next_lsn()
        former = self.instances.get(key)
        keeps = former is not None and former.session_id == session_id and former.lease_id == prior
        lease_id = prior if keeps else lsn
        self.instances[key] = Held(session_id, request_id, lease_id, lsn, fields)
        if former is not None and former.session_id != session_id and former.session_id == self.session_id:
            self.send(Lost(key[0], key[1], former.lease_id, "superseded"))
        self.changed(key, lsn)
        return lsn

    def update(self, message: Update, request_id: int) -> Message:
        key = (message.service, message.instance_id)
        held = self.instances.get(key)
        if held is None or held.session_id != self.session_id or held.lease_id != message.lease_id:
            return Refused("gone", "not held")
        if request_id <= held.request_id:
            return Done(held.lsn)
        fields = list(held.fields)
        for name, value in message.changes.items():
            fields[FIELDS[name]] = value
        pack_client_part(fields)
        lsn = self.next_lsn()
        self.instances[key] = Held(held.session_id, request_id, held.lease_id, lsn, fields)
        self.changed(key, lsn)
        return Done(lsn)

    def deregister(self, message: Deregister, request_id: int) -> Message:
        key = (message.service, message.instance_id)
        held = self.instances.get(key)
        if held is None or held.session_id != self.session_id or held.lease_id != message.lease_id:
            return Refused("gone", "not held")
        return Done(self.remove(key))

    def remove(self, key: Key) -> Lsn:
        del self.instances[key]
        self.suspects.pop(key, None)
        lsn = self.next_lsn()
        self.changed(key, lsn)
        return lsn

    def resync(self, message: Resync) -> Message:
        """As the rules say: what differs is named, and with the last page what was not named."""
        self.resyncs += 1
        unknown, superseded, evicted, extra = [], [], [], []
        for namespace, name, instance_id, *lease in message.leases:
            key = (ServiceKey(namespace, name), instance_id)
            held = self.instances.get(key)
            if held is not None and held.session_id == self.session_id:
                self.named[key] = None
                if held.lease_id == Lsn(*lease):
                    continue
            assert self.session_id is not None
            if (self.session_id, key) in self.barred:
                evicted.append([namespace, name, instance_id])
            elif held is not None and held.session_id != self.session_id and held.lease_id > Lsn(*lease):
                superseded.append([namespace, name, instance_id])
            else:
                unknown.append([namespace, name, instance_id])
        if not message.more:
            for (service, instance_id), held in self.instances.items():
                if held.session_id == self.session_id and held.fields[9] and (service, instance_id) not in self.named:
                    extra.append([*service, instance_id, *held.lease_id])
            self.named.clear()
        return ResyncOk(unknown, superseded, evicted, extra)

    def drain(self, message: Drain, request_id: int) -> Message | None:
        """Set to draining; answered when the one subscriber there is has applied it."""
        key = (message.service, message.instance_id)
        held = self.instances.get(key)
        if held is None or (message.lease_id != LSN_ZERO and (held.session_id, held.lease_id) != (self.session_id, message.lease_id)):
            return Refused("gone", "not held")
        if held.fields[8] != 1:
            held.fields = [*held.fields[:8], 1, *held.fields[9:]]
            held.lsn = self.next_lsn()
            if message.service in self.subscriptions:
                self.drains[request_id] = (message.service, held.lsn)
            self.changed(key, held.lsn)
        elif message.service in self.subscriptions:
            lsn = self.subscriptions[message.service]
            self.drains[request_id] = (message.service, lsn)
            self.send(Delta(message.service, lsn, lsn, [], [], True))
        if request_id in self.drains:
            return None
        return Drained(held.lsn, 0, 0, [])

    def acknowledge(self, service: ServiceKey, lsn: Lsn) -> None:
        assert lsn <= self.lsn_of(service), "nobody can have applied what never was"
        for request_id, (of, needed) in list(self.drains.items()):
            if of == service and lsn >= needed:
                del self.drains[request_id]
                self.send(Drained(needed, 1, 0, []), request_id)

    def evict(self, key: Key) -> Message:
        held = self.instances.get(key)
        if held is None:
            return Refused("gone", "no such instance")
        self.barred[held.session_id, key] = None
        lsn = self.remove(key)
        if held.session_id == self.session_id:
            self.send(Lost(*key, held.lease_id, "evicted"))
        return Done(lsn)

    # --- suspicion ----------------------------------------------------------------------------------------------------------

    def hint(self, key: Key, *, on: bool) -> None:
        if on:
            self.suspects[key] = None
        else:
            self.suspects.pop(key, None)
        if key[0] in self.subscriptions:
            self.send(Hint(key[0], [key[1]], on))

    def hint_all(self, service: ServiceKey) -> None:
        """What a new subscriber, or one that got a whole list, is told of present suspects."""
        ids = [instance_id for of, instance_id in self.suspects if of == service]
        if ids:
            self.send(Hint(service, ids, True))

    def next_lsn(self) -> Lsn:
        self.seq += 1
        return Lsn(self.term, self.seq)

    # --- reads --------------------------------------------------------------------------------------------------------------

    def lsn_of(self, service: ServiceKey) -> Lsn:
        return self.lsns.get(service, LSN_ZERO)

    def state(self, service: ServiceKey) -> dict[str, list[Any]]:
        return {instance_id: held.public() for (of, instance_id), held in self.instances.items() if of == service}

    def send_view(self, service: ServiceKey, request_id: int) -> None:
        publics = list(self.state(service).values())
        lsn = self.lsn_of(service)
        pages = [publics[start : start + self.page_items] for start in range(0, len(publics), self.page_items)] or [[]]
        for page in pages:
            ack = any(of == service for of, _ in self.drains.values())
            self.send(View(service, lsn, self.fresh, page is not pages[-1], page, ack), request_id)

    def changed(self, key: Key, lsn: Lsn) -> None:
        service, instance_id = key
        self.lsns[service] = lsn
        self.history[self.cluster, service, lsn] = self.state(service)
        since = self.subscriptions.get(service)
        if since is None:
            return
        self.subscriptions[service] = lsn
        if self.whole_pushes:
            self.send_view(service, 0)
            self.hint_all(service)
            return
        ack = any(of == service for of, _ in self.drains.values())
        if key in self.instances:
            self.send(Delta(service, since, lsn, [self.instances[key].public()], [], ack))
            if key in self.suspects:
                self.send(Hint(service, [instance_id], True))
        else:
            self.send(Delta(service, since, lsn, [], [instance_id], ack))

    # --- misfortunes --------------------------------------------------------------------------------------------------------

    def end_session(self) -> None:
        for key, held in list(self.instances.items()):
            if held.session_id == self.session_id and held.fields[9]:
                self.remove(key)

    def forget_sessions(self) -> None:
        """Every session was silent for too long: its ephemeral instances expire, and it is unknown from now on."""
        self.disconnect()
        self.known_sessions.clear()
        for key, held in list(self.instances.items()):
            if held.fields[9]:
                self.remove(key)

    def restart(self) -> None:
        """Stop and start on the same directory: what is stored stays, sessions are rebuilt from it."""
        self.disconnect()
        self.term += 1
        ephemeral = [held.session_id for held in self.instances.values() if held.fields[9]]
        self.known_sessions = dict.fromkeys(ephemeral, 0)

    def wipe(self) -> None:
        """Start again with nothing, as another cluster."""
        self.disconnect()
        self.cluster += 1
        self.term, self.seq = 1, 0
        self.instances.clear()
        self.lsns.clear()
        self.suspects.clear()
        self.barred.clear()
        self.known_sessions.clear()
