"""The shadow: the truth of a run, folded from the operations that the nodes commit.

It stands behind every `Shard` of the run and hears of each operation in the moment in which it is applied: at its commit, and again when
a node loads what its disk has. The rules of what an operation does are written anew here, as plainly as possible, over dictionaries.

    table    (slot, term, seq) -> operation: what any copy ever committed
    fold     what these operations come to, in order
    views    the fold of each service after every change, by lsn

A slot belongs to the node that committed to it last; what is compared with a node is what its slots come to.

T14  One lsn has one content, on whatever node and in whatever life.
T11  The term of a slot never goes back.
T13  What was applied once was acknowledged, or may have been, so it is on the disk: after a restart nothing of it is missing (this is
     13, 15, 21 and 22 of the protocol's list at once).
T20  The state of a node is the fold, at every moment and in every life.
T25  The digest of a session on the node is that of its instances in the fold.

`forgive` gives all of it up for one machine's next life: after a disk was rolled back or lied about a sync. `wiped` says that what a
machine had is gone, each instance of it in that moment; what its slots get from then on is new.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import msgpack
import trio

from govern.core.digests import lease_digest
from govern.core.entries import DeregisterOp, DrainOp, EvictOp, ExpireOp, Op, RegisterOp, UpdateOp, unpack_entry
from govern.core.shard import Shard
from govern.model import LSN_ZERO, Lsn, ServiceKey
from govern.testing.scheduler import process
from govern.testing.world import World

from . import Violation

STATUS_NAMES = ("up", "draining", "down")
METADATA_FIELD, STATUS_FIELD, EPHEMERAL_FIELD, TTL_FIELD = 7, 8, 9, 10
DRAINING = 1
AFTER_ALL = 2**62

Key = tuple[str, str]
View = Mapping[str, tuple[tuple[int, int], str, str]]
KINDS: dict[type, str] = {
    RegisterOp: "register",
    UpdateOp: "update",
    DeregisterOp: "deregister",
    ExpireOp: "expire",
    DrainOp: "drain",
    EvictOp: "evict",
}


@attrs.frozen
class Held:
    """One instance in the fold."""

    session: bytes
    request: int
    lease: Lsn
    lsn: Lsn
    client: tuple[Any, ...]

    @property
    def value(self) -> str:
        return str(dict(self.client[METADATA_FIELD]).get("v", ""))

    @property
    def status(self) -> str:
        return STATUS_NAMES[self.client[STATUS_FIELD]]


@attrs.frozen(kw_only=True)
class Commit:
    """One operation that changed something, when and where it did."""

    at: float
    node: str
    lsn: Lsn
    kind: str
    key: Key
    session: bytes
    before: Held | None
    after: Held | None


@attrs.define
class SlotFold:
    """One slot: whose it is, how far it is folded, how far it ever was, and who is barred."""

    lsn: Lsn = LSN_ZERO
    top: Lsn = LSN_ZERO
    node: str = ""
    barred: dict[tuple[Key, bytes], None] = attrs.field(factory=dict)


def frozen(value: Any) -> Any:
    """A decoded value in a form that can be compared and kept."""
    if isinstance(value, dict):
        return tuple(sorted((key, frozen(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return value


class Shadow:
    """The truth of a run. `report` is told of each violation."""

    def __init__(self, world: World, report: Callable[[Violation], None]) -> None:
        self.commits: list[Commit] = []
        self.listeners: list[Callable[[Commit], None]] = []
        self._world = world
        self._report = report
        self._table: dict[tuple[int, int, int], Op] = {}
        self._slots: dict[int, SlotFold] = {}
        self._held: dict[Key, Held] = {}
        self._views: dict[str, list[tuple[Lsn, View]]] = {}
        self._service_slot: dict[str, int] = {}
        self._checked: dict[str, tuple[int, int]] = {}  # machine -> (boots, applied count) at the last comparison
        self._forgiven: dict[str, int] = {}  # machine -> boots at which it was forgiven

    def __repr__(self) -> str:
        return f"<Shadow {len(self.commits)} commits, {len(self._held)} instances>"

    @contextmanager
    def watch(self) -> Generator[None]:
        """Hear everything that shards apply, for the length of a run."""
        original = Shard.apply

        def apply(shard: Shard, slot: int, term: int, seq: int, op: Op) -> Any:
            known = shard._slots.get(slot)
            if known is None or seq > known.seq:
                self._learn(str(process.get()), slot, term, seq, op)
            return original(shard, slot, term, seq, op)

        setattr(Shard, "apply", apply)  # noqa: B010 - a method of a class, replaced on purpose and put back
        try:
            yield
        finally:
            setattr(Shard, "apply", original)  # noqa: B010

    def forgive(self, machine: str) -> None:
        """The next life of this machine may begin with anything: what it loads becomes the truth."""
        self._forgiven[machine] = self._world.machines[machine].boots
        self._table.clear()
        self._slots.clear()
        self._held.clear()
        self._views.clear()
        self._checked.clear()

    def wiped(self, machine: str) -> None:
        """The disk of this machine is empty from now on, and with it the only copy of its slots."""
        for number, slot in self._slots.items():
            if slot.node != machine:
                continue
            lost = [key for key in self._held if self._service_slot[key[0]] == number]
            for key in lost:
                before = self._held.pop(key)
                commit = Commit(
                    at=trio.current_time(), node=machine, lsn=slot.top, kind="expire", key=key, session=b"", before=before, after=None
                )
                self.commits.append(commit)
                for listener in self.listeners:
                    listener(commit)
            for service in dict.fromkeys(key[0] for key in lost):
                self._views[service].append((Lsn(slot.top.term, AFTER_ALL), {}))
            slot.lsn, slot.node = LSN_ZERO, ""
            slot.barred.clear()

    # --- learning -------------------------------------------------------------------------------------------------------------

    def _learn(self, node: str, number: int, term: int, seq: int, op: Op) -> None:
        if node in self._forgiven:
            return
        known = self._table.setdefault((number, term, seq), op)
        if known is not op and known != op:
            self._report(Violation(f"14: {node} applies {op} at {number}:{term}/{seq}, where {known} was committed"))
        slot = self._slots.setdefault(number, SlotFold())
        if seq <= slot.lsn.seq:
            if known is op:
                self._report(
                    Violation(f"15: {node} applies {op} at {number}:{term}/{seq}, but slot {number} had committed up to {slot.lsn}")
                )
            return
        if seq != slot.lsn.seq + 1:
            self._report(Violation(f"20: {node} applies {number}:{term}/{seq} after {slot.lsn}: something between is missing"))
        if term < slot.top.term:
            self._report(Violation(f"11: {node} applies {number}:{term}/{seq} after {slot.top}: the term went back"))
        slot.lsn = slot.top = Lsn(term, seq)
        slot.node = node
        self._fold(node, number, slot, op)

    def _fold(self, node: str, number: int, slot: SlotFold, op: Op) -> None:
        key = (op.service.name, op.instance_id)
        before = self._held.get(key)
        after = self._result(slot, key, before, op)
        if after is before:
            return
        if after is None:
            del self._held[key]
        else:
            self._held[key] = after
        if isinstance(op, EvictOp) and before is not None:
            slot.barred[key, before.session] = None
        self._service_slot[op.service.name] = number
        session = op.session_id if isinstance(op, (RegisterOp, UpdateOp, DeregisterOp)) else b""
        commit = Commit(
            at=trio.current_time(),
            node=node,
            lsn=slot.lsn,
            kind=KINDS[type(op)],
            key=key,
            session=session,
            before=before,
            after=after,
        )
        self.commits.append(commit)
        self._views.setdefault(key[0], []).append((slot.lsn, self._view(key[0])))
        for listener in self.listeners:
            listener(commit)

    @staticmethod
    def _result(slot: SlotFold, key: Key, held: Held | None, op: Op) -> Held | None:
        """What one operation leaves of one instance; `held` itself when it changes nothing."""
        if isinstance(op, RegisterOp):
            client = frozen(msgpack.unpackb(op.client_part))
            lease = slot.lsn
            if (key, op.session_id) in slot.barred:
                return held
            if held is not None and held.session == op.session_id:
                if op.request_id <= held.request or (op.prior == held.lease and held.client == client):
                    return held
                lease = held.lease if op.prior == held.lease else lease
            elif held is not None and op.prior != LSN_ZERO and held.lease > op.prior:
                return held
            return Held(op.session_id, op.request_id, lease, slot.lsn, client)
        if held is None:
            return None
        if isinstance(op, (UpdateOp, DeregisterOp)):
            if (held.session, held.lease) != (op.session_id, op.lease_id):
                return held
            if isinstance(op, DeregisterOp):
                return None
            if op.request_id <= held.request:
                return held
            changed = tuple(frozen(op.changes.get(number, value)) for number, value in enumerate(held.client))
            return Held(held.session, op.request_id, held.lease, slot.lsn, changed)
        if isinstance(op, DrainOp):
            if op.lease_id not in (LSN_ZERO, held.lease) or held.client[STATUS_FIELD] == DRAINING:
                return held
            drained = (*held.client[:STATUS_FIELD], DRAINING, *held.client[STATUS_FIELD + 1 :])
            return Held(held.session, held.request, held.lease, slot.lsn, drained)
        if isinstance(op, ExpireOp):
            return None if held.lease == op.lease_id else held
        return None  # evicted

    def _view(self, service: str) -> View:
        return {
            key[1]: ((held.lease.term, held.lease.seq), held.status, held.value) for key, held in self._held.items() if key[0] == service
        }

    # --- for other checkers -----------------------------------------------------------------------------------------------------

    def node_of(self, service: str) -> str:
        """The machine that committed something of this service last."""
        return self._slots[self._service_slot[service]].node

    @property
    def held(self) -> Mapping[Key, Held]:
        """Every instance of the fold."""
        return self._held

    def view_at(self, service: str, lsn: tuple[int, int]) -> View | None:
        """The committed view of a service at an lsn; None when its slot has not committed so far. A reign in which nothing was committed
        yet begins with what was there, which is nothing when it was lost."""
        views = self._views.get(service)
        if not views:
            return {}
        if lsn[1] and Lsn(*lsn) > self._slots[self._service_slot[service]].top:
            return None
        found: View = {}
        for at, view in views:
            if at > Lsn(*lsn):
                break
            found = view
        return found

    # --- the checks -------------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Compare each node that is loaded with the fold, when something was applied since the last time."""
        for machine in self._world.machines.values():
            node = machine.node
            if node is None or not node._shard.loaded:
                continue
            if machine.name in self._forgiven and machine.boots > self._forgiven[machine.name]:
                self._adopt(machine.name, node._shard)
            state = (machine.boots, node._shard.applied_count)
            if self._checked.get(machine.name) != state:
                self._checked[machine.name] = state
                self._compare(machine.name, node._shard)

    def end(self) -> None:
        """Compare once more, whatever was applied."""
        self._checked.clear()
        self.sweep()

    def _compare(self, name: str, shard: Shard) -> None:
        held = {key: each for key, each in self._held.items() if self._slots[self._service_slot[key[0]]].node == name}
        for number, fold in self._slots.items():
            if fold.node != name:
                continue
            slot = shard._slots.get(number)
            lsn = LSN_ZERO if slot is None else slot.lsn
            if lsn != fold.lsn:
                raise Violation(f"13: slot {number} of {name} is at {lsn}, but {fold.lsn} was committed")
        found: dict[Key, Held] = {}
        for key in shard._services:
            for instance_id, entry in shard.entries(key).items():
                parts = unpack_entry(entry)
                client = frozen(parts.client)
                found[key.name, instance_id] = Held(parts.session_id, parts.request_id, parts.lease_id, parts.lsn, client)
        if found != held:
            wrong = [key for key in {**found, **held} if found.get(key) != held.get(key)]
            pairs = "; ".join(f"{key}: node {found.get(key)}, fold {held.get(key)}" for key in wrong[:3])
            raise Violation(f"20: the state of {name} is not the fold of what was committed: {pairs}")
        self._compare_digests(name, shard, held)

    def _compare_digests(self, name: str, shard: Shard, mine: Mapping[Key, Held]) -> None:
        digests: dict[bytes, int] = {}
        for (service, instance_id), held in mine.items():
            if held.client[EPHEMERAL_FIELD]:
                digest = lease_digest(ServiceKey("default", service), instance_id, held.lease)
                digests[held.session] = digests.get(held.session, 0) ^ digest
        for session in shard._sessions:
            if session.digest != digests.get(session.session_id, 0):
                raise Violation(f"25: the digest of {session} on {name} is not that of its committed instances")

    def _adopt(self, name: str, shard: Shard) -> None:
        del self._forgiven[name]
        for number, slot in shard._slots.items():
            self._slots[number] = SlotFold(slot.lsn, slot.lsn, name)
        for key in shard._services:
            for instance_id, entry in shard.entries(key).items():
                parts = unpack_entry(entry)
                client = frozen(parts.client)
                self._held[key.name, instance_id] = Held(parts.session_id, parts.request_id, parts.lease_id, parts.lsn, client)
                self._service_slot[key.name] = shard._services[key].slot.number
            self._views[key.name] = [(shard.service_lsn(key), self._view(key.name))]
