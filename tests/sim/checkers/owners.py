"""Who acts for which slot, with which right, and under which lease.

Leases are counted here anew, from what each node sent and what came back, on the true clock of its machine.

T1   A deposed controller lends nothing: no lease is lent when somebody leads a later term.
T10  Of each slot and term one life of one node acts as the primary: by its table, and when it numbers operations.
T11  The term of a slot grows with each grant; no table of a node goes back.
T12  With one copy a slot is in sync with its primary, and with nobody else.
T17  A life acts only after its registration is committed, and under terms granted since then; no two lives have one boot number.
T19  No two living nodes are fresh for one slot. No node believes in a lease that nobody lent, and no life is given up while its lease
     holds.
T44  In no table has a node two slots more than another one that has any: they stay where they were assigned first, as even as can be.
T27  Nothing expires on a node without a lease, at the moment in which the expiry is numbered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import attrs

from govern.core.controller import Controller
from govern.core.entries import ExpireOp, Op
from govern.core.meta import MetaState, NodeFenced, NodeJoined, Record
from govern.core.ownership import Ownership
from govern.core.shard import Shard
from govern.core.slots import SLOT_COUNT
from govern.core.standing import LEASE_MS, Standing
from govern.core.table import EMPTY, Table
from govern.peer_messages import HEARTBEAT_LEASED, Member, NodeHeartbeat, NodeHeartbeatOk
from govern.testing.scheduler import process
from govern.testing.world import World, node_name

from . import Violation
from .consensus import Consensus
from .patching import patched

Life = tuple[int, bytes, int]
"""Node id, disk id, boot number: what the records of the log know."""


@attrs.frozen
class Part:
    """Slots for which a life acts in one term."""

    first: int
    last: int
    life: Life

    def meets(self, other: Part) -> bool:
        return self.first <= other.last and other.first <= self.last


@attrs.define(eq=False)
class Lent:
    """What one life of a machine knows of its lease."""

    until_us: int = 0
    sent_us: dict[int, int] = attrs.field(factory=dict)


def parts_of(ownership: Ownership) -> list[tuple[int, Part]]:
    """The slots for which a node acts, as `(term, part)`."""
    life = (*ownership.me, ownership.boot_no)
    found: list[tuple[int, Part]] = []
    first = 0
    while first < SLOT_COUNT and ownership.acting_count:
        run = ownership.table.run_of(first)
        last = SLOT_COUNT - 1 if run is None else run.last
        term = ownership.terms[first]
        if ownership.terms[first : last + 1] != [term] * (last + 1 - first):
            last = first  # terms that are not as the table would have them are looked at one by one
        if term:
            found.append((term, Part(first, last, life)))
        first = last + 1
    return found


class Owners:
    """Stands behind every node of a run. `report` is told of each violation."""

    def __init__(self, world: World, consensus: Consensus, report: Callable[[Violation], None]) -> None:
        self._world = world
        self._consensus = consensus
        self._twins: dict[Member, None] = {}
        self._report = report
        self._registered: dict[Life, int] = {}
        self._lives: dict[Life, tuple[str, int]] = {}  # -> machine and its boots
        self._acting: dict[int, list[Part]] = {}  # by term
        self._writers: dict[tuple[int, int], Life] = {}  # (slot, term)
        self._versions: dict[tuple[str, int], int] = {}
        self._here: dict[str, Ownership] = {}  # the newest of each machine
        self._parts: dict[str, list[Part]] = {}  # what that one acts for
        self._lent: dict[tuple[str, int], Lent] = {}
        self._table: Table = EMPTY
        consensus.listeners.append(self._committed)

    def __repr__(self) -> str:
        return f"<Owners {len(self._acting)} terms of {len(self._registered)} lives>"

    def watch(self) -> AbstractContextManager[None]:
        """Look at every node for the length of a run."""
        return _watch(self)

    def _life_of(self, machine: str) -> tuple[str, int]:
        return machine, self._world.machines[machine].boots

    def _lent_to(self, machine: str) -> Lent:
        return self._lent.setdefault(self._life_of(machine), Lent())

    def _boot_us(self, machine: str) -> int:
        return self._world.machines[machine].clock.boot_us()

    # --- what is committed ----------------------------------------------------------------------------------------------------

    def _committed(self, index: int, record: Record) -> None:
        if isinstance(record, NodeJoined):
            self._registered.setdefault((record.node_id, record.disk_id, record.boot_no), index)
        elif isinstance(record, NodeFenced):
            machine = self._lives.get((record.node_id, record.disk_id, record.boot_no))
            if machine is not None and machine == self._life_of(machine[0]) and self._world.machines[machine[0]].running:
                left_us = self._lent_to(machine[0]).until_us - self._boot_us(machine[0])
                if left_us > 0:
                    self._report(Violation(f"19: {machine[0]} is given up, and its lease holds for {left_us / 1e6:.3f} s"))

    def applied(self, state: MetaState) -> None:
        """A candidate has applied a record: T11, T12, T44, for each version once."""
        if state.version <= self._table.version:
            return
        old, self._table = self._table, state.table
        self._judge_balance(state.table)
        for run in state.table.runs:
            if run.in_sync != (run.primary,) or [node_id for node_id, _ in run.copies] != [run.primary]:
                self._report(Violation(f"12: {run} has one copy, and it is not just its primary that is in sync"))
            for before in old.runs_within(run.first, run.last):
                if run.term < before.term or (run.term == before.term and (run.primary, run.copies) != (before.primary, before.copies)):
                    self._report(Violation(f"11: {before} becomes {run}: its term did not grow"))

    def _judge_balance(self, table: Table) -> None:
        """T44, once the slots are assigned."""
        counts = {row.node_id: table.primaries(row.node_id) for row in table.nodes if table.primaries(row.node_id)}
        if not table.unassigned_count and max(counts.values()) - min(counts.values()) > 1:
            self._report(Violation(f"44: the slots are spread unevenly: {counts}"))

    # --- what nodes do ----------------------------------------------------------------------------------------------------------

    def took(self, machine: str, ownership: Ownership) -> None:
        """A node follows a table: T10, T11, T17."""
        self._here[machine] = ownership
        life, mine = self._life_of(machine), (*ownership.me, ownership.boot_no)
        if self._lives.setdefault(mine, life) != life and not self._may_repeat(ownership.me):
            self._report(Violation(f"17: boot number {ownership.boot_no} of {machine} was that of an earlier life, on the same disk"))
        if ownership.table.version < self._versions.get(life, 0):
            self._report(Violation(f"11: {machine} goes back from table {self._versions[life]} to {ownership.table.version}"))
        self._versions[life] = ownership.table.version
        parts = parts_of(ownership)
        self._parts[machine] = [part for _, part in parts]
        for term, part in parts:
            self._judge_right(machine, mine, term)
            known = self._acting.setdefault(term, [])
            for other in known:
                if other.meets(part) and other.life != part.life:
                    self._report(Violation(f"10: {part} and {other} both act in term {term}"))
            if part not in known:
                known.append(part)

    def has_twin(self, member: Member) -> None:
        """This disk was copied and runs twice: its boot numbers tell no lives apart."""
        self._twins[member] = None

    def _may_repeat(self, member: Member) -> bool:
        return member in self._twins or self._consensus.is_put_back(member)

    def _judge_right(self, machine: str, life: Life, term: int) -> None:
        registered = self._registered.get(life)
        if registered is None or term <= registered:
            self._report(Violation(f"17: {machine} acts in term {term}; this life was registered at {registered}"))

    def numbered(self, machine: str, slot: int, term: int, op: Op) -> None:
        """A node appends an operation: T10, T17, T27."""
        ownership = self._here.get(machine)
        life = (0, b"", 0) if ownership is None else (*ownership.me, ownership.boot_no)
        if self._writers.setdefault((slot, term), life) != life:
            self._report(Violation(f"10: {life} writes to slot {slot} in term {term}, where {self._writers[slot, term]} wrote"))
        self._judge_right(machine, life, term)
        if isinstance(op, ExpireOp) and self._lent_to(machine).until_us <= self._boot_us(machine):
            self._report(Violation(f"27: {machine} appends {op} without a lease"))

    def sent(self, machine: str, number: int) -> None:
        """A heartbeat of a node leaves it."""
        self._lent_to(machine).sent_us[number] = self._boot_us(machine)

    def answered(self, machine: str, answer: NodeHeartbeatOk) -> None:
        """A node has the answer to a heartbeat."""
        lent = self._lent_to(machine)
        sent_us = lent.sent_us.get(answer.number)
        if answer.code != HEARTBEAT_LEASED:
            lent.until_us = 0
        elif sent_us is not None:
            lent.until_us = max(lent.until_us, sent_us + 1000 * min(answer.lease_ms, LEASE_MS))

    def lends(self, machine: str) -> None:
        """A controller lends a lease: T1."""
        term, newest = self._consensus.leading.get(machine, 0), max(self._consensus.leaders, default=0)
        if term < newest:
            self._report(Violation(f"1: {machine}, controller of term {term}, lends a lease while term {newest} has a leader"))

    # --- a checker like others --------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """T19, over all nodes that live and move."""
        fresh: list[tuple[str, Part]] = []
        for machine in self._world.machines.values():
            node = machine.node
            if node is None or machine.paused or not node._ownership.is_fresh(machine.clock.boot_us()):
                continue
            if self._lent_to(machine.name).until_us <= machine.clock.boot_us():
                raise Violation(f"19: {machine.name} is fresh by a lease that nobody lent")
            fresh += [(machine.name, part) for part in self._parts.get(machine.name, ())]
        for (one, part), (other, its) in itertools.combinations(sorted(fresh, key=lambda each: each[1].first), 2):
            if one != other and part.meets(its):
                raise Violation(f"19: {one} and {other} are both fresh for slots {part.first} to {part.last}")

    def end(self) -> None:
        """That there was something to be judged."""
        if not self._acting:
            raise Violation("10: no node acted for any slot")
        self.sweep()


@contextmanager
def _watch(checker: Owners) -> Generator[None]:
    take, number, apply = Ownership.take, Shard.number, MetaState.apply
    send_heartbeat, heartbeat_ok, lend = Standing._send_heartbeat, Standing.heartbeat_ok, Controller.heartbeat

    def here() -> str:
        return str(process.get())

    def take_and_judge(ownership: Ownership, table: Table) -> bool:
        is_new = take(ownership, table)
        if is_new:
            checker.took(here(), ownership)
        return is_new

    def number_and_judge(shard: Shard, op: Any, term: int) -> tuple[int, int, int]:
        numbers = number(shard, op, term)
        checker.numbered(here(), numbers[0], numbers[1], op)
        return numbers

    def apply_and_judge(state: MetaState, index: int, data: bytes) -> Record:
        record = apply(state, index, data)
        checker.applied(state)
        return record

    def send_and_note(standing: Standing, target: int, health: Any) -> None:
        send_heartbeat(standing, target, health)
        checker.sent(here(), standing._number)

    def answer_and_note(standing: Standing, answer: NodeHeartbeatOk, now_us: int, boot_us: int) -> None:
        if standing._is_mine(answer) and answer.number in standing._sent:
            checker.answered(here(), answer)
        heartbeat_ok(standing, answer, now_us, boot_us)

    def lend_and_judge(controller: Controller, message: NodeHeartbeat, now_us: int, proved_us: int | None) -> NodeHeartbeatOk | None:
        answer = lend(controller, message, now_us, proved_us)
        if answer is not None and answer.code == HEARTBEAT_LEASED:
            checker.lends(node_name(controller.me.node_id))
        return answer

    with patched(
        (Ownership, "take", take_and_judge),
        (Shard, "number", number_and_judge),
        (MetaState, "apply", apply_and_judge),
        (Standing, "_send_heartbeat", send_and_note),
        (Standing, "heartbeat_ok", answer_and_note),
        (Controller, "heartbeat", lend_and_judge),
    ):
        yield
