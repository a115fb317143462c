"""The shard against a model that is too simple to be wrong: a dictionary of instances per service, and a list of what was committed."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from govern.core.blocks import BARRED_MAX, Block
from govern.core.entries import (
    OP_TYPES,
    DeregisterOp,
    DrainOp,
    EvictOp,
    ExpireOp,
    Op,
    RegisterOp,
    UpdateOp,
    public_form,
    unpack_entry,
    unpack_op,
)
from govern.core.limits import Limits
from govern.core.sessions import Sessions
from govern.core.shard import Loss, Outcome, Shard, check_changes
from govern.core.slots import slot_of
from govern.errors import Invalid
from govern.messages import (
    PAGE_ITEMS_MAX,
    Delta,
    Done,
    Message,
    Refused,
    Registered,
    View,
    view_frames,
)
from govern.model import LSN_ZERO, Instance, Lsn, ServiceKey, client_fields, pack_client_part

from .rig import messages_of

SERVICES = [ServiceKey("default", "a{t}"), ServiceKey("default", "b{t}"), ServiceKey("other", "c")]  # the first two share a slot
INSTANCES = ["i1", "i2", "i3"]
SESSIONS = [b"1" * 16, b"2" * 16, b"3" * 16]
CHANGES: list[dict[str, Any]] = [{"weight": 0.5}, {"status": 1}, {"metadata": {"k": "v"}}, {"zone": "z", "version": "2"}]
TTLS_MS = [1_000, 5_000, 60_000]


# --- the model --------------------------------------------------------------------------------------------------------------


@attrs.define
class Held:
    """One instance as the model keeps it."""

    session_id: bytes
    request_id: int
    lease_id: Lsn
    lsn: Lsn
    at_ms: int
    client: list[Any]

    @property
    def public(self) -> list[Any]:
        return [[*self.lease_id, *self.lsn, self.at_ms], self.client]


State = dict[ServiceKey, dict[str, Held]]
Barred = dict[tuple[ServiceKey, str, bytes], None]


def refused(answer: Message, code: str) -> bool:
    return isinstance(answer, Refused) and answer.code == code


def model_apply(state: State, barred: Barred, op: Op, lsn: Lsn) -> tuple[Message | str, bool, Loss | None]:
    """What an operation must come to: `(answer or code of the refusal, whether the service changed, who lost)`; changes the model."""
    instances = state[op.service]
    held = instances.get(op.instance_id)
    if isinstance(op, RegisterOp):
        client = msgpack.unpackb(op.client_part)
        lease_id, at_ms, loss = lsn, op.registered_at_ms, None
        if (op.service, op.instance_id, op.session_id) in barred:  # D6
            return "evicted", False, None
        if held is not None and held.session_id == op.session_id:
            if op.request_id <= held.request_id or (op.prior == held.lease_id and held.client == client):
                return Registered(held.lease_id, held.lsn), False, None
            if op.prior == held.lease_id:
                lease_id, at_ms = held.lease_id, held.at_ms
        elif held is not None:
            if op.prior != LSN_ZERO and op.prior < held.lease_id:
                return "superseded", False, None
            loss = Loss(held.session_id, op.service, op.instance_id, held.lease_id, held.client[10], "superseded")
        instances[op.instance_id] = Held(op.session_id, op.request_id, lease_id, lsn, at_ms, client)
        return Registered(lease_id, lsn), True, loss
    if isinstance(op, DrainOp | EvictOp):
        return model_operate(instances, barred, op, held, lsn)
    if held is None or held.lease_id != op.lease_id or (not isinstance(op, ExpireOp) and held.session_id != op.session_id):
        return "gone", False, None
    if isinstance(op, UpdateOp):
        if op.request_id <= held.request_id:
            return Done(held.lsn), False, None
        client = list(held.client)
        for number, value in op.changes.items():
            client[number] = value
        instances[op.instance_id] = attrs.evolve(held, request_id=op.request_id, lsn=lsn, client=client)
        return Done(lsn), True, None
    del instances[op.instance_id]
    if isinstance(op, DeregisterOp):
        return Done(lsn), True, None
    return Done(lsn), True, Loss(held.session_id, op.service, op.instance_id, held.lease_id, held.client[10], "expired")


def model_operate(
    instances: dict[str, Held], barred: Barred, op: DrainOp | EvictOp, held: Held | None, lsn: Lsn
) -> tuple[Message | str, bool, Loss | None]:
    """The same for what an operator may do with instances of others."""
    if held is None or (isinstance(op, DrainOp) and op.lease_id not in (LSN_ZERO, held.lease_id)):
        return "gone", False, None
    if isinstance(op, DrainOp):
        if held.client[8] == 1:
            return Done(held.lsn), False, None
        client = [*held.client[:8], 1, *held.client[9:]]
        instances[op.instance_id] = attrs.evolve(held, lsn=lsn, client=client)
        return Done(lsn), True, None
    del instances[op.instance_id]
    barred[op.service, op.instance_id, held.session_id] = None
    return Done(lsn), True, Loss(held.session_id, op.service, op.instance_id, held.lease_id, held.client[10], "evicted")


def model_digest(service: ServiceKey, instance_id: str, lease_id: Lsn) -> int:
    """The documented digest, written down a second time."""
    text = f"{service.namespace}/{service.name} {instance_id} {lease_id.term} {lease_id.seq}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


# --- the machine ------------------------------------------------------------------------------------------------------------

small = st.integers(0, 2)
drafts = st.tuples(st.sampled_from("rrrrruuddeenv"), small, small, small, st.integers(0, 11), st.integers(0, 23))


class ShardMachine(RuleBasedStateMachine):
    """Batches of operations, refused appends, restarts from the log or from a snapshot; after every step shard and model agree."""

    history_ops_max = 6

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(history_ops_max=self.history_ops_max)
        self.sessions = Sessions()
        self.shard = Shard(self.sessions, self.limits)
        self.shard.loaded = True
        self.term = 1
        self.state: State = {service: {} for service in SERVICES}
        self.barred: Barred = {}
        self.log: list[tuple[int, int, int, int, bytes]] = []
        self.lsns: dict[int, Lsn] = {}  # by slot
        self.floors: dict[int, int] = {}
        self.recent: list[tuple[int, int]] = []  # (slot, seq) of what the ring must hold
        self.past: dict[tuple[ServiceKey, Lsn], dict[str, list[Any]]] = {}
        self.old_leases: list[Lsn] = []
        self.request_ids = dict.fromkeys(SESSIONS, 0)
        self.blocks: list[Block] = []
        self.clock_ms = 1_000
        self.lost_ever: dict[tuple[bytes, ServiceKey, str], int] = {}  # the request id of the registration that was replaced
        self.lost_since_start: dict[tuple[bytes, ServiceKey, str], int] = {}
        self._remember_past()

    # --- operations ---------------------------------------------------------------------------------------------------------

    def _lease(self, held: Held | None, choice: int) -> Lsn:
        """The lease an operation names: mostly the right one, at times an old one or one that never was."""
        if choice < 9 and held is not None:
            return held.lease_id
        if choice == 9 and self.old_leases:
            return self.old_leases[0]
        if choice == 10 and self.old_leases:
            return self.old_leases[-1]
        return Lsn(1, 999) if choice == 8 else LSN_ZERO

    def _op(self, draft: tuple[str, int, int, int, int, int]) -> Op:
        kind, service_no, instance_no, session_no, lease_no, detail = draft
        service, identity, session_id = SERVICES[service_no], INSTANCES[instance_no], SESSIONS[session_no]
        held = self.state[service].get(identity)
        if held is not None and kind in "ud" and lease_no < 10:
            session_id = held.session_id
        self.request_ids[session_id] += 1
        request_id = self.request_ids[session_id]
        if detail % 6 == 0 and held is not None:  # a repetition, or something even older
            session_id, request_id = held.session_id, max(1, held.request_id - detail // 12)
        lease_id = self._lease(held, lease_no)
        if kind == "e":
            return ExpireOp(service, identity, lease_id)
        if kind == "n":
            return DrainOp(service, identity, lease_id if detail % 2 else LSN_ZERO)
        if kind == "v":
            return EvictOp(service, identity)
        if kind == "d":
            return DeregisterOp(service, identity, session_id, request_id, lease_id)
        if kind == "u":
            base = held.client if held is not None else client_fields(Instance(id=identity, host="h", port=1))
            changes = check_changes(CHANGES[detail % len(CHANGES)], base)
            return UpdateOp(service, identity, session_id, request_id, lease_id, changes)
        ttl_ms, ephemeral, prior = TTLS_MS[detail % 3], detail % 8 != 7, LSN_ZERO if lease_no < 5 else lease_id
        part = pack_client_part(client_fields(Instance(id=identity, host="h", port=1 + detail % 2, ephemeral=ephemeral, ttl=ttl_ms / 1000)))
        self.clock_ms += 1
        return RegisterOp(service, identity, session_id, request_id, prior, self.clock_ms, part, ephemeral, ttl_ms)

    @rule(batch=st.lists(drafts, min_size=1, max_size=5))
    def commit(self, batch: list[tuple[str, int, int, int, int, int]]) -> None:
        ops = [self._op(draft) for draft in batch]  # all of them drawn up before any is applied: several are in flight
        if batch[0][5] % 3:  # a node asks first; what reaches the log without having been asked must be judged just as well
            ops = [op for op in ops if not self._is_known(op)]
        for slot, term, seq, op in [(*self.shard.number(op, self.term), op) for op in ops]:
            self._commit_one(slot, term, seq, op)

    def _is_known(self, op: Op) -> bool:
        """Whether the answer is known without the log; then it is the one that the log would lead to, or that of a lost fight."""
        known = self.shard.answer_known(op)
        slot = slot_of(op.service)
        lsn = Lsn(self.term, self.lsns.get(slot, LSN_ZERO).seq + 1)
        answer, changed, _ = model_apply(copy.deepcopy(self.state), dict(self.barred), op, lsn)
        key = (op.service, op.instance_id)
        if isinstance(op, RegisterOp) and answer != "evicted" and self.state[op.service].get(op.instance_id) is not None:
            must = op.request_id <= self.lost_since_start.get((op.session_id, *key), 0)
            may = op.request_id <= self.lost_ever.get((op.session_id, *key), 0)
            if must or (may and known is not None and refused(known, "superseded")):
                assert known is not None, "the repetition of a registration that was replaced since"
                assert refused(known, "superseded")
                return True
        if known is None:
            return False
        assert refused(known, answer) if isinstance(answer, str) else known == answer, (op, known, answer)
        assert not changed, op
        return True

    @rule(batch=st.lists(drafts, min_size=1, max_size=3))
    def refuse(self, batch: list[tuple[str, int, int, int, int, int]]) -> None:
        """The log did not take the batch: its numbers are used again."""
        slots = [self.shard.number(self._op(draft), self.term)[0] for draft in batch]
        self.shard.unnumber(dict.fromkeys(slots))

    def _commit_one(self, slot: int, term: int, seq: int, op: Op) -> Outcome:
        before = self.lsns.get(slot, LSN_ZERO)
        assert slot == slot_of(op.service)
        assert (term, seq) == (self.term, before.seq + 1), "numbers are dense"
        lsn = self.lsns[slot] = Lsn(term, seq)
        self.log.append((slot, term, seq, OP_TYPES[type(op)], op.pack()))
        held = self.state[op.service].get(op.instance_id)
        if held is not None:
            self.old_leases = [*self.old_leases[-5:], held.lease_id]
        answer, changed, loss = model_apply(self.state, self.barred, op, lsn)
        if isinstance(op, RegisterOp) and loss is not None and held is not None:
            key = (held.session_id, op.service, op.instance_id)
            self.lost_ever[key] = held.request_id
            if self.sessions.get(held.session_id) is not None:
                self.lost_since_start[key] = held.request_id
        outcome = self.shard.apply(slot, term, seq, op)
        if isinstance(answer, str):
            assert refused(outcome.answer, answer), (op, answer, outcome)
        else:
            assert outcome.answer == answer, op
        assert outcome.changed == (op.service if changed else None), op
        assert outcome.loss == loss, op
        if changed:
            self.recent.append((slot, seq))
            if len(self.recent) > self.history_ops_max:
                oldest_slot, oldest_seq = self.recent.pop(0)
                self.floors[oldest_slot] = oldest_seq
        self._remember_past()
        return outcome

    def _remember_past(self) -> None:
        for service in SERVICES:
            lsn = self.lsns.get(slot_of(service), LSN_ZERO)
            self.past[service, lsn] = {identity: held.public for identity, held in copy.deepcopy(self.state[service]).items()}

    # --- snapshots and restarts -----------------------------------------------------------------------------------------------

    @rule()
    def snapshot(self) -> None:
        self.blocks = [self.shard.block(number) for number in self.shard.slot_numbers()]

    @rule(with_snapshot=st.booleans())
    def restart(self, with_snapshot: bool) -> None:
        """Recover into a new shard, from the log alone or from the last snapshot and the whole log; the machine goes on with it."""
        sessions = Sessions()
        shard = Shard(sessions, self.limits)
        blocks = self.blocks if with_snapshot else []
        for block in blocks:
            shard.load_block(block)
        for slot, term, seq, kind, payload in self.log:
            shard.apply(slot, term, seq, unpack_op(kind, payload))
        shard.loaded = True
        assert_equal_shards(shard, self.shard)
        starts = {block.slot: block.lsn.seq for block in blocks}
        self._forget_recent(starts)
        self.shard, self.sessions = shard, sessions
        self.lost_since_start = {}
        self.term += 1

    def _forget_recent(self, starts: dict[int, int]) -> None:
        """The ring after a recovery holds what was replayed, so far as it fits; the model replays as well."""
        self.recent, self.floors = [], dict(starts)
        state: State = {service: {} for service in SERVICES}
        barred: Barred = {}
        for slot, term, seq, kind, payload in self.log:
            _, changed, _ = model_apply(state, barred, unpack_op(kind, payload), Lsn(term, seq))
            if changed and seq > starts.get(slot, 0):
                self.recent.append((slot, seq))
                if len(self.recent) > self.history_ops_max:
                    oldest_slot, oldest_seq = self.recent.pop(0)
                    self.floors[oldest_slot] = oldest_seq

    # --- what holds after every step ------------------------------------------------------------------------------------------

    @invariant()
    def sound(self) -> None:
        self.shard.validate()
        self.sessions.validate()

    @invariant()
    def views_agree(self) -> None:
        assert self.shard.instance_count == sum(map(len, self.state.values()))
        rows = [(*service, slot_of(service), len(self.state[service])) for service in sorted(SERVICES) if self.state[service]]
        assert list(self.shard.service_rows("")) == rows
        assert list(self.shard.service_rows("other")) == [row for row in rows if row[0] == "other"]
        for service in SERVICES:
            (view, request_id), *more = messages_of(view_frames(self.shard.view_bodies(service), 7))
            assert isinstance(view, View)
            assert not more
            assert request_id == 7
            assert view.lsn == self.shard.service_lsn(service)
            now = {identity: held.public for identity, held in self.state[service].items()}
            assert {public[1][0]: public for public in view.instances} == now, service
            heads = {identity: unpack_entry(entry) for identity, entry in self.shard.entries(service).items()}
            assert {identity: (parts.session_id, parts.request_id) for identity, parts in heads.items()} == {
                identity: (held.session_id, held.request_id) for identity, held in self.state[service].items()
            }

    @invariant()
    def bars_agree(self) -> None:
        for service in SERVICES:
            for identity in INSTANCES:
                for session_id in SESSIONS:
                    must = (service, identity, session_id) in self.barred
                    assert self.shard.is_barred(service, identity, session_id) == must, (service, identity)

    @invariant()
    def digests_agree(self) -> None:
        for session_id in SESSIONS:
            mine = [
                (service, identity, held.lease_id)
                for service in SERVICES
                for identity, held in self.state[service].items()
                if held.session_id == session_id and held.client[9]
            ]
            digest = 0
            for lease in mine:
                digest ^= model_digest(*lease)
            session = self.sessions.get(session_id)
            assert (len(mine), digest) == (0, 0) if session is None else (session.count, session.digest) == (len(mine), digest)

    @invariant()
    def deltas_agree(self) -> None:
        for service, since in self.past:
            self._check_delta(service, since)

    def _check_delta(self, service: ServiceKey, since: Lsn) -> None:
        slot = slot_of(service)
        lsn = self.shard.service_lsn(service)
        now = {identity: held.public for identity, held in self.state[service].items()}
        found = self.shard.delta_since(service, since)
        if since != lsn:
            foreign = Lsn(since.term + 1, since.seq)
            is_start = foreign.seq == 0  # every log begins there
            assert is_start or foreign == lsn or self.shard.delta_since(service, foreign) is None, "an lsn of another history"
        if found is None:
            assert since.seq < self.floors.get(slot, 0), (service, since, self.floors)
            return
        frame, reached = found
        assert reached == lsn
        if frame is None:
            assert since == lsn
            assert self.past[service, since] == now
            return
        assert since.seq >= self.floors.get(slot, 0), "the ring does not reach back that far"
        ((delta, request_id),) = messages_of(frame)
        assert isinstance(delta, Delta)
        assert (delta.service, delta.since, delta.lsn, request_id) == (service, since, lsn, 0)
        rebuilt = dict(self.past[service, since])
        for identity in delta.removed:
            rebuilt.pop(identity, None)
        rebuilt.update({public[1][0]: public for public in delta.changed})
        assert rebuilt == now, (service, since, delta)


def assert_equal_shards(one: Shard, other: Shard) -> None:
    """Equal to the last byte: entries, lsns, and what the sessions hold."""
    for service in SERVICES:
        assert one.entries(service) == other.entries(service), service
        assert one.service_lsn(service) == other.service_lsn(service), service
    one_slots = {number: slot_place(one, number) for number in one.slot_numbers() if one.block(number).lsn != LSN_ZERO}
    other_slots = {number: slot_place(other, number) for number in other.slot_numbers() if other.block(number).lsn != LSN_ZERO}
    assert one_slots == other_slots
    one.validate()


def slot_place(shard: Shard, number: int) -> tuple[Lsn, list[Any]]:
    """The lsn of a slot, and who is barred, in order."""
    block = shard.block(number)
    return block.lsn, msgpack.unpackb(block.state)[1]


@pytest.mark.parametrize("history_ops_max", [1, 3, 1000])
def test_shard_agrees_with_the_model(history_ops_max: int) -> None:
    """Whatever is committed, refused, repeated, snapshotted and recovered: answers, views, deltas and digests are those of the model, for
    rings of one operation up to rings that forget nothing."""
    machine = type("Machine", (ShardMachine,), {"history_ops_max": history_ops_max})
    run = settings(max_examples=50, stateful_step_count=22, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(machine, settings=run)


# --- single claims ----------------------------------------------------------------------------------------------------------


def register_op(service: ServiceKey, identity: str, request_id: int, session_id: bytes = SESSIONS[0], prior: Lsn = LSN_ZERO) -> RegisterOp:
    part = pack_client_part(client_fields(Instance(id=identity, host="h", port=1)))
    return RegisterOp(service, identity, session_id, request_id, prior, 5, part, True, 5_000)


def commit(shard: Shard, op: Op, term: int = 1) -> Outcome:
    slot, term, seq = shard.number(op, term)
    return shard.apply(slot, term, seq, op)


def test_delta_or_view_is_decided_by_how_much_changed() -> None:
    """A reader further behind than `delta_ops_max` instances gets no delta; one exactly that far behind does."""
    shard = Shard(Sessions(), Limits(delta_ops_max=3))
    for number in range(1, 6):
        commit(shard, register_op(SERVICES[0], f"i{number}", number))
    assert shard.delta_since(SERVICES[0], Lsn(1, 1)) is None
    found = shard.delta_since(SERVICES[0], Lsn(1, 2))
    assert found is not None
    assert found[0] is not None
    ((delta, _),) = messages_of(found[0])
    assert isinstance(delta, Delta)
    assert sorted(public[1][0] for public in delta.changed) == ["i3", "i4", "i5"]


def test_search_for_a_delta_is_bounded_when_neighbours_of_the_slot_are_busy() -> None:
    """Operations of other services of the slot are looked at at most four times `delta_ops_max`, then the view is the answer."""
    shard = Shard(Sessions(), Limits(delta_ops_max=2))
    commit(shard, register_op(SERVICES[0], "i1", 1))
    commit(shard, register_op(SERVICES[0], "i2", 2))
    for number in range(3, 30):
        commit(shard, register_op(SERVICES[1], "x", number))
    assert shard.delta_since(SERVICES[0], Lsn(1, 1)) is None


def test_lsns_of_a_lost_history_start_no_delta() -> None:
    """When the end of a log was lost and its place was taken in a later term, a reader at the lost lsn gets the whole view."""
    shard = Shard(Sessions(), Limits())
    for number in range(1, 4):
        commit(shard, register_op(SERVICES[0], f"i{number}", number))
    for number in range(4, 9):
        commit(shard, register_op(SERVICES[0], f"i{number}", number), term=2)
    commit(shard, register_op(SERVICES[0], "i9", 9), term=4)
    remembered = [Lsn(term, seq) for term in range(6) for seq in range(12) if shard.delta_since(SERVICES[0], Lsn(term, seq)) is not None]
    went_through = [*[Lsn(1, seq) for seq in range(1, 4)], *[Lsn(2, seq) for seq in range(4, 9)], Lsn(4, 9)]
    assert remembered == sorted([*[Lsn(term, 0) for term in range(6)], *went_through]), "every log begins at seq 0, in whatever term"


def test_long_views_are_paged_and_share_their_bytes() -> None:
    """A view of more than one page says `more` on all pages but the last; it is encoded once until the service changes."""
    shard = Shard(Sessions(), Limits())
    count = 2 * PAGE_ITEMS_MAX + 1
    for number in range(1, count + 1):
        commit(shard, register_op(SERVICES[0], f"i{number}", number))
    bodies = shard.view_bodies(SERVICES[0])
    assert shard.view_bodies(SERVICES[0]) is bodies
    pages = [message for message, _ in messages_of(view_frames(bodies, 3))]
    assert [page.more for page in pages if isinstance(page, View)] == [True, True, False]
    assert sum(len(page.instances) for page in pages if isinstance(page, View)) == count
    commit(shard, DeregisterOp(SERVICES[0], "i1", SESSIONS[0], count + 1, Lsn(1, 1)))
    assert shard.view_bodies(SERVICES[0]) is not bodies


def test_growth_is_limited_for_the_node_the_service_and_the_session() -> None:
    """Each of the three limits refuses the next new instance, and none of them an instance that is there already."""
    for limits in (Limits(instances_max=2), Limits(instances_per_service_max=2), Limits(instances_per_session_max=2)):
        shard = Shard(Sessions(), limits)
        for number in (1, 2):
            op = register_op(SERVICES[0], f"i{number}", number)
            assert shard.answer_known(op) is None
            commit(shard, op)
        answer = shard.answer_known(register_op(SERVICES[0], "i3", 3))
        assert answer is not None
        assert refused(answer, "overloaded")
        assert shard.answer_known(register_op(SERVICES[0], "i2", 4)) is None


def test_a_block_of_an_empty_slot_keeps_its_place_in_the_log() -> None:
    """A slot whose instances are all gone goes on from its lsn after a snapshot: numbers are never used twice."""
    shard = Shard(Sessions(), Limits())
    commit(shard, register_op(SERVICES[0], "i1", 1))
    commit(shard, DeregisterOp(SERVICES[0], "i1", SESSIONS[0], 2, Lsn(1, 1)))
    recovered = Shard(Sessions(), Limits())
    for number in shard.slot_numbers():
        recovered.load_block(shard.block(number))
    assert recovered.number(register_op(SERVICES[0], "i1", 3), 2) == (slot_of(SERVICES[0]), 2, 3)
    assert recovered.service_lsn(SERVICES[0]) == Lsn(1, 2)


def test_a_slot_remembers_a_bounded_number_of_evictions_also_over_a_restart() -> None:
    """The oldest is forgotten, an eviction that is repeated counts as new, and a block brings the rest back in the same order."""
    shard = Shard(Sessions(), Limits())

    def evict(identity: str, request_id: int) -> None:
        commit(shard, register_op(SERVICES[0], identity, request_id))
        commit(shard, EvictOp(SERVICES[0], identity))

    for number in range(BARRED_MAX):
        evict(f"i{number}", number + 1)
    slot = slot_of(SERVICES[0])
    shard._slots[slot].barred.pop((str(SERVICES[0]), "i1", SESSIONS[0]))  # so that i1 can be evicted a second time
    evict("i1", 1_000)
    evict("i999", 1_001)
    recovered = Shard(Sessions(), Limits())
    recovered.load_block(shard.block(slot))
    for each in (shard, recovered):
        barred = [identity for _, identity, _ in each._slots[slot].barred]
        assert barred == [*[f"i{number}" for number in range(2, BARRED_MAX)], "i1", "i999"]
        assert not each.is_barred(SERVICES[0], "i0", SESSIONS[0])
        assert each.is_barred(SERVICES[0], "i1", SESSIONS[0])
        assert not each.is_barred(SERVICES[0], "i1", SESSIONS[1])
        assert not each.is_barred(SERVICES[1], "i1", SESSIONS[0]), "a neighbour of the slot"


@pytest.mark.parametrize(
    "state",
    [
        [],
        [[]],
        [[], [], []],
        [{}, []],
        [[["default", "a", 1, 1]], []],
        [[["default", "a", 1, 1, {}]], []],
        [[["default", "a", 1, 1, {"i1": b"x"}, 1]], []],
        [[], [["default/a", "i1"]]],
        [[], [["default/a", "i1", "text"]]],
        [[], [["default/a", f"i{number}", b"s"] for number in range(BARRED_MAX + 1)]],
    ],
)
def test_a_block_of_another_shape_is_refused(state: Any) -> None:
    """A snapshot is read as strictly as it is written: a block of a version with other ideas is not half taken over."""
    with pytest.raises(ValueError, match="block of a snapshot"):
        Shard(Sessions(), Limits()).load_block(Block(5, Lsn(1, 1), msgpack.packb(state)))


def test_a_drain_by_somebody_else_leaves_the_owner_its_lease_and_its_last_request() -> None:
    """The lease, the session and the request id stay, so the owner's repetitions are recognised and its lease goes on."""
    shard = Shard(Sessions(), Limits())
    commit(shard, register_op(SERVICES[0], "i1", 7))
    assert commit(shard, DrainOp(SERVICES[0], "i1", LSN_ZERO)).answer == Done(Lsn(1, 2))
    parts = unpack_entry(shard.entries(SERVICES[0])["i1"])
    assert (parts.session_id, parts.request_id, parts.lease_id, parts.lsn, parts.client[8]) == (SESSIONS[0], 7, Lsn(1, 1), Lsn(1, 2), 1)
    assert commit(shard, register_op(SERVICES[0], "i1", 7)).answer == Registered(Lsn(1, 1), Lsn(1, 2))


def test_the_head_of_an_entry_never_leaves_the_node() -> None:
    """What readers get contains no session id."""
    shard = Shard(Sessions(), Limits())
    commit(shard, register_op(SERVICES[0], "i1", 1))
    (entry,) = shard.entries(SERVICES[0]).values()
    assert SESSIONS[0] in entry
    assert SESSIONS[0] not in public_form(entry)
    assert SESSIONS[0] not in b"".join(shard.view_bodies(SERVICES[0]))


@pytest.mark.parametrize(
    "changes", [{}, {"id": "x"}, {"weight": -1}, {"weight": 1, "ttl": 5}, {b"weight": 1}, {"status": 3}, {"metadata": []}, {"x" * 5000: 1}]
)
def test_changes_that_are_not_allowed_are_refused_in_one_short_line(changes: dict[Any, Any]) -> None:
    """An update names known fields and valid values only; the refusal fits the field it travels in."""
    with pytest.raises(Invalid) as caught:
        check_changes(changes, client_fields(Instance(id="a", host="h", port=1)))
    assert len(str(caught.value)) <= 1024


def test_an_operation_type_from_the_future_is_refused() -> None:
    """A log written by a newer version is not guessed at."""
    with pytest.raises(ValueError, match="newer version"):
        unpack_op(99, msgpack.packb(["default", "a", "i1", 1, 1]))
