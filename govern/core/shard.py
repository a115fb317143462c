"""The shard: all slots of this node, and the one function that changes them.

Operations are numbered when they are appended to the log (`number`), and change the state when the log has them on disk
(`apply`). Between the two they are invisible. `apply` is total and deterministic: whatever the operation, it either
changes the state in the one way that follows from the operation and the state, or changes nothing but the slot's lsn, and says so.
Recovery calls the very same function with what it reads from the log.

D1  State = fold of the committed operations in lsn order; only committed state is readable.
D2  `seq` is dense per slot: 1, 2, 3, …; a slot's term never decreases.
    Before the first one of all, the slot is at seq 0 of the term in which it is held: a slot that was given up and begins anew, empty, is
    later than everything that was committed in it before.
D3  Every change of a service is in the slot's ring of recent operations, or below the ring's floor.
D4  An operation under a lease that is not the entry's lease never changes the entry (so nothing late removes something newer).
D5  A repeated operation (same session, request id not newer than the entry's) changes nothing and is answered as the first time.
D6  A session whose instance was evicted does not get that id again, also after a restart: who is barred is a part of the slot's state.

The ring is one first-in-first-out history over all slots: a bounded number of operations, the oldest forgotten first. A slot remembers
a bounded number of barred sessions, likewise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack
from sortedcontainers import SortedDict

from ..errors import Evicted, Gone, Invalid, Overloaded, Rejected, Superseded
from ..messages import Done, Message, Refused, Registered, delta_frame, view_bodies
from ..model import CLIENT_PART_FIELDS, LSN_ZERO, Lsn, ServiceKey, pack_client_part
from .blocks import BARRED_MAX, Barred, Block, pack_state, unpack_state
from .entries import (
    DeregisterOp,
    DrainOp,
    EntryParts,
    EvictOp,
    ExpireOp,
    Op,
    RegisterOp,
    UpdateOp,
    pack_entry,
    public_form,
    unpack_entry,
)
from .limits import Limits
from .sessions import Lease, Sessions
from .slots import SLOT_COUNT, slot_of

FIELD_NUMBERS: Final = {"weight": 4, "zone": 5, "version": 6, "metadata": 7, "status": 8}
"""The fields an update may change, by their place in the client part."""

FIELD_NAMES: Final = {number: name for name, number in FIELD_NUMBERS.items()}
STATUS_FIELD: Final = FIELD_NUMBERS["status"]
STATUS_DRAINING: Final = 1
EXPIRED: Final = "expired"


Past = tuple[int, str, str, bytes | None]
"""One committed operation in the ring: its seq, the service as text, the instance id, and the entry it left behind, None when it removed
it. A plain tuple of atoms, because the garbage collector stops walking those."""


class Loss(NamedTuple):
    """A session lost an instance other than by its own wish, and why: `superseded`, `evicted` or `expired`."""

    session_id: bytes
    service: ServiceKey
    instance_id: str
    lease_id: Lsn
    ttl_ms: int
    reason: str


class Outcome(NamedTuple):
    """What applying one operation came to: the answer for who asked, and the service that changed, if one did."""

    answer: Message
    changed: ServiceKey | None = None
    loss: Loss | None = None


class Service:
    """The committed instances of one service, and its encoded view."""

    __slots__ = ("bodies", "bodies_fresh", "entries", "key", "lsn", "slot", "text")

    def __init__(self, key: ServiceKey, slot: Slot) -> None:
        self.key = key
        self.slot = slot
        self.text = str(key)
        self.lsn = LSN_ZERO
        self.entries: dict[str, bytes] = {}
        self.bodies: list[bytes] | None = None
        self.bodies_fresh = True


class Slot:
    """One slot that has been used: its place in its log, its recent operations."""

    __slots__ = ("appended", "barred", "floor", "number", "ring", "seq", "term", "terms")

    def __init__(self, number: int) -> None:
        self.number = number
        self.term = 0
        self.seq = 0  # committed
        self.appended = 0  # numbered, perhaps not committed
        self.floor = 0  # the ring holds every change after this seq
        self.ring: deque[Past] = deque()
        self.barred: dict[Barred, None] = {}  # oldest first (D6)
        self.terms: list[Lsn] = []  # the first known lsn of each term: one item per start of the node that this log remembers

    @property
    def lsn(self) -> Lsn:
        return Lsn(self.term, self.seq)

    def remembers(self, lsn: Lsn) -> bool:
        """Whether this log went through exactly that lsn, and the ring holds every change after it. An lsn of the same seq from a log whose
        end was lost is not the same place; but at seq 0 every log is empty, whichever term it was held in (D2)."""
        if lsn.seq == 0:
            return self.floor == 0
        if not self.floor <= lsn.seq <= self.seq:
            return False
        term = 0
        for first in reversed(self.terms):
            if first.seq <= lsn.seq:
                term = first.term
                break
        return term == lsn.term

    def bar(self, service_text: str, instance_id: str, session_id: bytes) -> None:
        """This session does not get that id again."""
        self.barred.pop((service_text, instance_id, session_id), None)
        self.barred[service_text, instance_id, session_id] = None
        if len(self.barred) > BARRED_MAX:
            del self.barred[next(iter(self.barred))]


def _refused(error: Rejected) -> Refused:
    return Refused(error.reason, str(error), round((error.retry_after or 0) * 1000))


def _superseded(op: RegisterOp) -> Refused:
    return _refused(Superseded(f"instance {op.instance_id} of {op.service} was registered by another client since"))


def _evicted(op: RegisterOp) -> Refused:
    return _refused(Evicted(f"instance {op.instance_id} of {op.service} was evicted: this client may not register that id again"))


def _gone(op: Op) -> Refused:
    return _refused(Gone(f"instance {op.instance_id} of {op.service} is not registered"))


class Shard:
    """All slots of a node: their committed state, and what it takes to change and to read it."""

    def __init__(self, sessions: Sessions, limits: Limits) -> None:
        self.loaded = False
        self.fresh = True
        """Whether the lease of the node holds, so that nobody else can own its slots; kept by the shells before they read."""
        self.terms: Sequence[int] = [0] * SLOT_COUNT
        """The term in which the node holds each slot, 0 for those that it does not hold; kept likewise."""
        self.instance_count = 0
        self.applied_count = 0
        self._barring = False  # whether any slot bars anybody: nearly always not, and then a registration pays nothing for the question
        self._sessions = sessions
        self._limits = limits
        self._slots: dict[int, Slot] = {}
        self._services: SortedDict[ServiceKey, Service] = SortedDict()  # only those with instances
        self._slot_services: dict[int, dict[ServiceKey, Service]] = {}
        self._history: deque[Slot] = deque()  # one mention per ring item, oldest first

    # --- writing ------------------------------------------------------------------------------------------------------------

    def slot_number(self, service: ServiceKey) -> int:
        """The slot of a service, without computing it for one that has instances."""
        known: Service | None = self._services.get(service)
        return slot_of(service) if known is None else known.slot.number

    def number(self, op: Op, term: int) -> tuple[int, int, int]:
        """The next `(slot, term, seq)` for an operation that is about to be appended."""
        service: Service | None = self._services.get(op.service)
        slot = self._slot(op.service) if service is None else service.slot
        slot.appended += 1
        return slot.number, term, slot.appended

    def unnumber(self, slots: Iterable[int]) -> None:
        """The log certainly did not take what was numbered in these slots since the last commit: the numbers are free again."""
        for number in slots:
            self._slots[number].appended = self._slots[number].seq

    def answer_known(self, op: Op) -> Message | None:
        """The answer, when the committed state already decides it, so that a repetition or a stale request costs no log record."""
        service = self._services.get(op.service)
        entry = None if service is None else service.entries.get(op.instance_id)
        if isinstance(op, RegisterOp):
            if self.is_barred(op.service, op.instance_id, op.session_id):
                return _evicted(op)
            if entry is None:
                return self._refuse_growth(op, service)
            session = self._sessions.get(op.session_id)
            if session is not None and session.was_replaced(op.service, op.instance_id, op.request_id):
                return _superseded(op)
            return self._judge_register(op, unpack_entry(entry))
        if isinstance(op, ExpireOp):
            return None
        if entry is None:
            return _gone(op)
        return None if isinstance(op, EvictOp) else self._judge_change(op, unpack_entry(entry))

    def is_barred(self, service: ServiceKey, instance_id: str, session_id: bytes) -> bool:
        """Whether that session was evicted from that id (D6)."""
        if not self._barring:
            return False
        slot = self._slots.get(slot_of(service))
        return slot is not None and (str(service), instance_id, session_id) in slot.barred

    def _refuse_growth(self, op: RegisterOp, service: Service | None) -> Refused | None:
        limits = self._limits
        session = self._sessions.get(op.session_id)
        if self.instance_count >= limits.instances_max:
            return _refused(Overloaded(f"this node holds {self.instance_count} instances, its limit (instances_max)"))
        if service is not None and len(service.entries) >= limits.instances_per_service_max:
            return _refused(Overloaded(f"{op.service} has {len(service.entries)} instances, the limit (instances_per_service_max)"))
        if session is not None and session.count >= limits.instances_per_session_max:
            return _refused(Overloaded(f"this client has {session.count} instances, the limit (instances_per_session_max)"))
        return None

    def _judge_register(self, op: RegisterOp, held: EntryParts) -> Message | None:
        """The answer to a registration that must not change `held`, or None."""
        if held.session_id == op.session_id:
            if op.request_id <= held.request_id:
                return Registered(held.lease_id, held.lsn)  # D5
            if op.prior == held.lease_id and msgpack.packb(held.client) == op.client_part:
                return Registered(held.lease_id, held.lsn)
        elif op.prior != LSN_ZERO and held.lease_id > op.prior:
            return _superseded(op)
        return None

    def _judge_change(self, op: UpdateOp | DeregisterOp | DrainOp, held: EntryParts) -> Message | None:
        """The answer to an update, a drain or a removal that must not change `held`, or None."""
        if isinstance(op, DrainOp):
            if op.lease_id not in (LSN_ZERO, held.lease_id):
                return _refused(Gone(f"instance {op.instance_id} of {op.service} is not held under that lease any more"))  # D4
            return None
        if held.session_id != op.session_id or held.lease_id != op.lease_id:
            return _refused(Gone(f"instance {op.instance_id} of {op.service} is not held under that lease any more"))  # D4
        if isinstance(op, UpdateOp) and op.request_id <= held.request_id:
            return Done(held.lsn)  # D5
        return None

    def apply(self, slot_number: int, term: int, seq: int, op: Op) -> Outcome:
        """Carry out one committed operation (D1). Operations that a snapshot already contains are skipped."""
        slot = self._slots.get(slot_number) or self._add_slot(slot_number)
        if seq <= slot.seq:
            return Outcome(Done(slot.lsn))
        if not slot.seq and not self.loaded:
            slot.seq = slot.floor = seq - 1  # a salvaged log may begin late: what came before is known to be lost
        assert seq == slot.seq + 1, (slot_number, term, seq, slot.lsn)  # D2
        assert term >= slot.term, (slot_number, term, seq, slot.lsn)
        if term != slot.term:
            slot.terms.append(Lsn(term, seq))
        slot.term, slot.seq, slot.appended = term, seq, max(seq, slot.appended)
        self.applied_count += 1
        lsn = Lsn(term, seq)
        service = self._services.get(op.service)
        entry = None if service is None else service.entries.get(op.instance_id)
        if type(op) is RegisterOp:
            return self._apply_register(slot, lsn, op, service, entry)
        if entry is None:
            return Outcome(_gone(op))
        held = unpack_entry(entry)
        if type(op) is UpdateOp or type(op) is DrainOp:
            return self._apply_change(slot, lsn, op, service, held)
        assert type(op) is DeregisterOp or type(op) is ExpireOp or type(op) is EvictOp
        return self._apply_removal(slot, lsn, op, service, held)

    def _apply_register(self, slot: Slot, lsn: Lsn, op: RegisterOp, service: Service | None, entry: bytes | None) -> Outcome:
        if slot.barred and (str(op.service), op.instance_id, op.session_id) in slot.barred:
            return Outcome(_evicted(op))
        lease_id, registered_at_ms, loss = lsn, op.registered_at_ms, None
        if entry is not None:
            held = unpack_entry(entry)
            answer = self._judge_register(op, held)
            if answer is not None:
                return Outcome(answer)
            if held.session_id == op.session_id and op.prior == held.lease_id:
                lease_id, registered_at_ms = held.lease_id, held.registered_at_ms
            elif held.session_id != op.session_id:
                loss = Loss(held.session_id, op.service, op.instance_id, held.lease_id, held.ttl_ms, Superseded.reason)
                loser = self._sessions.get(held.session_id)
                if loser is not None:
                    loser.note_replaced(op.service, op.instance_id, held.request_id)
            self._sessions.end(held.session_id, op.service, op.instance_id)
        else:
            self.instance_count += 1
        new = pack_entry(op.session_id, op.request_id, lease_id, lsn, registered_at_ms, op.client_part)
        if service is None:
            service = self._add_service(slot, op.service)
        self._put(slot, service, op.instance_id, lsn, new)
        if op.ephemeral:
            self._sessions.grant(op.session_id, service.key, op.instance_id, Lease(lease_id, op.ttl_ms))
        return Outcome(Registered(lease_id, lsn), service.key, loss)

    def _apply_change(self, slot: Slot, lsn: Lsn, op: UpdateOp | DrainOp, service: Service, held: EntryParts) -> Outcome:
        answer = self._judge_change(op, held)
        if answer is not None:
            return Outcome(answer)
        client = list(held.client)
        if isinstance(op, DrainOp):
            if client[STATUS_FIELD] == STATUS_DRAINING:
                return Outcome(Done(held.lsn))
            client[STATUS_FIELD] = STATUS_DRAINING
            session_id, request_id = held.session_id, held.request_id  # whoever drains it: its own last request stays recognised (D5)
        else:
            for number, value in op.changes.items():
                client[number] = value
            session_id, request_id = op.session_id, op.request_id
        packed = msgpack.packb(client)
        new = pack_entry(session_id, request_id, held.lease_id, lsn, held.registered_at_ms, packed)
        self._put(slot, service, op.instance_id, lsn, new)
        return Outcome(Done(lsn), service.key)

    def _apply_removal(self, slot: Slot, lsn: Lsn, op: DeregisterOp | ExpireOp | EvictOp, service: Service, held: EntryParts) -> Outcome:
        loss = None
        if isinstance(op, DeregisterOp):
            answer = self._judge_change(op, held)
            if answer is not None:
                return Outcome(answer)
        elif isinstance(op, EvictOp):
            loss = Loss(held.session_id, op.service, op.instance_id, held.lease_id, held.ttl_ms, Evicted.reason)
            slot.bar(service.text, op.instance_id, held.session_id)
            self._barring = True
        elif held.lease_id != op.lease_id:
            return Outcome(_refused(Gone("the lease changed before its expiry was carried out")))  # D4
        else:
            loss = Loss(held.session_id, op.service, op.instance_id, held.lease_id, held.ttl_ms, EXPIRED)
        self._sessions.end(held.session_id, op.service, op.instance_id)
        self.instance_count -= 1
        del service.entries[op.instance_id]
        service.lsn, service.bodies = lsn, None
        if not service.entries:
            del self._services[service.key]
            del self._slot_services[slot.number][service.key]
        self._remember(slot, (lsn.seq, service.text, op.instance_id, None))
        return Outcome(Done(lsn), service.key, loss)

    def _put(self, slot: Slot, service: Service, instance_id: str, lsn: Lsn, entry: bytes) -> None:
        service.entries[instance_id] = entry
        service.lsn, service.bodies = lsn, None
        self._remember(slot, (lsn.seq, service.text, instance_id, entry))

    def _remember(self, slot: Slot, past: Past) -> None:
        slot.ring.append(past)
        self._history.append(slot)
        if len(self._history) > self._limits.history_ops_max:
            oldest = self._history.popleft()
            oldest.floor = oldest.ring.popleft()[0]  # D3

    def _slot(self, service: ServiceKey) -> Slot:
        number = slot_of(service)
        return self._slots.get(number) or self._add_slot(number)

    def _add_slot(self, number: int) -> Slot:
        slot = self._slots[number] = Slot(number)
        return slot

    def _add_service(self, slot: Slot, key: ServiceKey) -> Service:
        service = self._services[key] = Service(key, slot)
        self._slot_services.setdefault(slot.number, {})[key] = service
        return service

    # --- reading ------------------------------------------------------------------------------------------------------------

    def service_lsn(self, key: ServiceKey) -> Lsn:
        """The lsn of a service's view. A service without instances is empty as of everything its slot has committed, or
        as of the beginning of the term in which nothing was committed yet (D2)."""
        service: Service | None = self._services.get(key)
        if service is not None:
            return service.lsn
        number = slot_of(key)
        slot = self._slots.get(number)
        return Lsn(self.terms[number], 0) if slot is None or not slot.seq else slot.lsn

    def view_bodies(self, key: ServiceKey) -> list[bytes]:
        """The packed `View` pages of a service, kept until it changes, or the node begins or ceases to be fresh."""
        service: Service | None = self._services.get(key)
        if service is None:
            return view_bodies(key, self.service_lsn(key), self.fresh, ())
        if service.bodies is None or service.bodies_fresh is not self.fresh:
            service.bodies = view_bodies(key, service.lsn, self.fresh, [public_form(entry) for entry in service.entries.values()])
            service.bodies_fresh = self.fresh
        return service.bodies

    def entries(self, key: ServiceKey) -> dict[str, bytes]:
        """The committed entries of a service by instance id; to be read, not changed."""
        service = self._services.get(key)
        return {} if service is None else service.entries

    def delta_since(self, key: ServiceKey, since: Lsn, ack: bool = False) -> tuple[bytes | None, Lsn] | None:
        """The `Delta` frame from `since` to now and the lsn it leads to; None when the ring does not reach back that far or so much changed
        that the view is the better answer. When nothing changed there is no frame, or with `ack` an empty one that asks for `Applied`."""
        lsn = self.service_lsn(key)
        if since == lsn:
            return delta_frame(key, since, lsn, (), (), True) if ack else None, lsn
        slot = self._slots.get(slot_of(key))
        if slot is None or not slot.remembers(since):
            return None
        latest: dict[str, bytes | None] = {}
        text = str(key)
        for looked_at, (seq, service_text, instance_id, entry) in enumerate(reversed(slot.ring)):
            if seq <= since.seq:
                break
            if service_text == text:
                latest.setdefault(instance_id, entry)
            if looked_at >= self._limits.delta_ops_max * 4 or len(latest) > self._limits.delta_ops_max:
                return None
        changed = [public_form(entry) for entry in latest.values() if entry is not None]
        removed = [instance_id for instance_id, entry in latest.items() if entry is None]
        return delta_frame(key, since, lsn, changed, removed, ack), lsn

    def service_rows(self, namespace: str) -> Iterator[tuple[str, str, int, int]]:
        """`(namespace, name, slot, instances)` of every service of a namespace (all when empty), in order."""
        keys = self._services.irange(ServiceKey(namespace, "")) if namespace else iter(self._services)
        for key in keys:
            if namespace and key.namespace != namespace:
                return
            yield key.namespace, key.name, slot_of(key), len(self._services[key].entries)

    @property
    def service_count(self) -> int:
        return len(self._services)

    # --- snapshots ----------------------------------------------------------------------------------------------------------

    def slot_numbers(self) -> list[int]:
        """The slots that have been used, in order."""
        return sorted(self._slots)

    def block(self, slot_number: int) -> Block:
        """One slot as it is now, for a snapshot (rule: taken between two steps of the loop)."""
        slot = self._slots[slot_number]
        services = self._slot_services.get(slot_number, {})
        rows = [[key.namespace, key.name, service.lsn.term, service.lsn.seq, service.entries] for key, service in services.items()]
        return Block(slot_number, slot.lsn, pack_state(rows, slot.barred))

    def load_block(self, block: Block) -> None:
        """Take over one slot from a snapshot; only before any operation of that slot was applied."""
        slot = self._add_slot(block.slot)
        slot.term, slot.seq, slot.appended, slot.floor = *block.lsn, block.lsn.seq, block.lsn.seq
        slot.terms.append(block.lsn)
        rows, barred = unpack_state(block.state)
        slot.barred = dict.fromkeys(barred)
        self._barring = self._barring or bool(barred)
        for namespace, name, term, seq, entries in rows:
            service = self._add_service(slot, ServiceKey(namespace, name))
            service.lsn, service.entries = Lsn(term, seq), entries
            self.instance_count += len(entries)
            for instance_id, entry in entries.items():
                parts = unpack_entry(entry)
                if parts.ephemeral:
                    self._sessions.grant(parts.session_id, service.key, instance_id, Lease(parts.lease_id, parts.ttl_ms))

    def validate(self) -> None:
        """Assert D2, D3 and the cross references; for tests and the simulator, it walks everything."""
        total = 0
        for key, service in self._services.items():
            assert service.entries, key
            assert self._slot_services[slot_of(service.key)][key] is service, key
            total += len(service.entries)
            for instance_id, entry in service.entries.items():
                parts = unpack_entry(entry)
                assert parts.client[0] == instance_id
                assert len(parts.client) == CLIENT_PART_FIELDS
                assert parts.lease_id <= parts.lsn <= service.lsn <= self._slots[slot_of(key)].lsn, (key, parts)
                session = self._sessions.get(parts.session_id)
                held = None if session is None else session.lease(key, instance_id)
                assert (held is not None and held.lease_id == parts.lease_id) == parts.ephemeral, (key, instance_id)
        assert total == self.instance_count
        assert sum(len(services) for services in self._slot_services.values()) == len(self._services)
        assert self._barring or not any(slot.barred for slot in self._slots.values())
        for slot in self._slots.values():
            assert slot.appended >= slot.seq
            assert len(slot.barred) <= BARRED_MAX
            if slot.ring:
                assert slot.floor < slot.ring[0][0] <= slot.ring[-1][0] <= slot.seq
        assert sum(len(slot.ring) for slot in self._slots.values()) == len(self._history) <= self._limits.history_ops_max


def check_changes(changes: dict[str, Any], client_part: list[Any]) -> dict[int, Any]:
    """Validated changes by field number, checked together with the rest of the instance; raises `Invalid`."""
    unknown = sorted(str(name) for name in changes if name not in FIELD_NUMBERS)
    if unknown or not changes:
        raise Invalid(f"an update changes weight, zone, version, metadata or status, not {', '.join(unknown)[:80] or 'nothing'}")
    numbered = {FIELD_NUMBERS[name]: value for name, value in changes.items()}
    candidate = [numbered.get(number, value) for number, value in enumerate(client_part)]
    packed = msgpack.unpackb(pack_client_part(candidate))
    return {number: packed[number] for number in numbered}
