"""Short runs of a cluster's cores, and the mutants that they must find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from govern.core import controller as controller_module
from govern.core import meta as meta_module
from govern.core import ownership as ownership_module
from govern.core.controller import Controller
from govern.core.meta import MetaNode, MetaState, NodeJoined
from govern.core.ownership import Ownership
from govern.core.standing import Standing
from govern.core.table import SlotRun, Table
from govern.peer_messages import NodeHeartbeat, NodeHeartbeatOk, NodeRegister

from .cluster_heap import COUNTED, Run, failure_of, summary_of
from .many import run_many

RUNS = 80
RUNS_DEEP = 100_000


def test_short_runs() -> None:
    """No promise is broken, and the runs are not empty: leaders change, processes start again, some are given up, slots move on."""
    elections = starts = fences = records = 0
    for seed in range(RUNS):
        run = Run(seed)
        run.play()
        elections += run.elections
        starts += run.starts
        fences += run.fences
        records += len(run.log)
    assert elections > 2 * RUNS
    assert starts > 5 * RUNS
    assert fences > RUNS / 2
    assert records > 8 * RUNS


@pytest.mark.deep
def test_many_short_runs() -> None:
    """A hundred thousand of them; the totals are printed."""
    assert run_many(summary_of, COUNTED, range(RUNS_DEEP)) == []


# --- the mutants ------------------------------------------------------------------------------------------------------------


def lease_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """The lease runs from the receipt of the answer."""
    heartbeat_ok = Standing.heartbeat_ok

    def mutant(self: Standing, answer: NodeHeartbeatOk, now_us: int, boot_us: int) -> None:
        self._sent = dict.fromkeys(self._sent, boot_us)
        heartbeat_ok(self, answer, now_us, boot_us)

    patch.setattr(Standing, "heartbeat_ok", mutant)


def lease_without_the_leaders(patch: pytest.MonkeyPatch) -> None:
    """A leader lends whether it has a lease itself or not."""
    heartbeat = Controller.heartbeat
    patch.setattr(Controller, "heartbeat", lambda self, message, now_us, proved_us: heartbeat(self, message, now_us, now_us))


def own_node_gets_a_full_lease(patch: pytest.MonkeyPatch) -> None:
    """A leader lends its own node as much as it lends others."""
    patch.setattr(Controller, "_lease_ms", lambda self, node_id, proved_us: 4_000)


def fresh_by_any_table(patch: pytest.MonkeyPatch) -> None:
    """A lease counts whatever the table says."""
    patch.setattr(Ownership, "is_fresh", lambda self, boot_us: boot_us < self.lease_until_us)


def acting_on_old_grants(patch: pytest.MonkeyPatch) -> None:
    """A node acts on what was granted to its life before."""

    def mutant(table: Table, me: Any, boot_no: int) -> tuple[SlotRun, ...]:
        row = table.node(me.node_id)
        return () if row is None else tuple(run for run in table.runs if run.primary == me.node_id)

    patch.setattr(ownership_module, "runs_of", mutant)


def acting_for_another_life(patch: pytest.MonkeyPatch) -> None:
    """A node does not look at which of its lives the table means."""

    def mutant(table: Table, me: Any, boot_no: int) -> tuple[SlotRun, ...]:
        row = table.node(me.node_id)
        return () if row is None else tuple(run for run in table.runs if run.primary == me.node_id and run.term > row.registered_at)

    patch.setattr(ownership_module, "runs_of", mutant)


def term_reused(patch: pytest.MonkeyPatch) -> None:
    """A restarted node goes on with the terms that it had."""
    joined = meta_module._APPLY[NodeJoined.KIND]

    def mutant(self: MetaState, index: int, record: NodeJoined) -> None:
        node = self.nodes.get(record.node_id)
        if node is not None and node.row.disk_id == record.disk_id and record.boot_no > node.row.boot_no:
            self.nodes = {
                **self.nodes,
                record.node_id: attrs.evolve(node, row=attrs.evolve(node.row, boot_no=record.boot_no, state="down")),
            }
        joined(self, index, record)

    patch.setitem(meta_module._APPLY, NodeJoined.KIND, mutant)


def unregistered_life_leased(patch: pytest.MonkeyPatch) -> None:
    """Who is not known (any more) gets a lease too."""
    heartbeat = Controller.heartbeat

    def mutant(self: Controller, message: NodeHeartbeat, now_us: int, proved_us: int | None) -> NodeHeartbeatOk | None:
        answer = heartbeat(self, message, now_us, proved_us)
        return None if answer is None else attrs.evolve(answer, code=0, lease_ms=4_000)

    patch.setattr(Controller, "heartbeat", mutant)


def leased_while_being_given_up(patch: pytest.MonkeyPatch) -> None:
    """A heartbeat that comes when the record is on its way is answered with a lease."""
    patch.setattr(Controller, "_is_changing", lambda self, node_id: False)
    patch.setattr(Controller, "_joins", lambda self, joins=Controller._joins: [r for r in joins(self) if r not in self._on_its_way])
    patch.setattr(Controller, "_fences", lambda self, fences=Controller._fences: [r for r in fences(self) if r not in self._on_its_way])


def answered_before_applied(patch: pytest.MonkeyPatch) -> None:
    """A registration is answered as soon as it is proposed."""
    patch.setattr(Controller, "_is_settled", lambda self, message: self._is_changing(message.node_id))


def answered_before_granted(patch: pytest.MonkeyPatch) -> None:
    """A registration is answered before its slots are granted again."""
    patch.setattr(Controller, "_is_settled", lambda self, message: self._is_known(message) and not self._is_changing(message.node_id))


def lower_boot_accepted(patch: pytest.MonkeyPatch) -> None:
    """A disk that was rolled back is taken in."""
    patch.setattr(MetaNode, "boot_of", lambda self, disk_id: 0)


def another_disk_at_once(patch: pytest.MonkeyPatch) -> None:
    """A process with another disk is taken in while the one before may still run."""
    refusal = Controller._refusal

    def mutant(self: Controller, message: NodeRegister) -> str | None:
        text = refusal(self, message)
        return None if text is not None and "in use" in text else text

    patch.setattr(Controller, "_refusal", mutant)


def previous_leader_literally(patch: pytest.MonkeyPatch) -> None:
    """The silence of the leader before counts from its last sign of life, however long before the election that was."""
    patch.setattr(controller_module, "ELECTION_US", 60_000_000)


def credit_of_two_elections(patch: pytest.MonkeyPatch) -> None:
    """The silence of the leader before counts from two election timeouts before the start, if it was not heard since."""
    patch.setattr(controller_module, "ELECTION_US", 2_000_000)


def given_up_too_early(patch: pytest.MonkeyPatch) -> None:
    """Silence counts from before the election for all nodes."""
    init = Controller.__init__

    def mutant(self: Controller, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self._heard = dict.fromkeys(self._heard, -3_000_000)

    patch.setattr(Controller, "__init__", mutant)


def silence_shorter_than_the_lease(patch: pytest.MonkeyPatch) -> None:
    """A node is given up after three and a half seconds."""
    patch.setattr(controller_module, "SILENCE_US", 3_500_000)


def intact_copies_replaced(patch: pytest.MonkeyPatch) -> None:
    """A restarted node gets new, empty copies, and nobody minds."""
    item = controller_module._item
    patch.setattr(controller_module, "_item", lambda run, is_new: item(run, True))
    patch.setattr(
        MetaState,
        "_create",
        lambda self, index, item: [SlotRun(item.first, item.last, item.node_id, index, ((item.node_id, index),), (item.node_id,))],
    )


def former_disks_not_in_the_snapshot(patch: pytest.MonkeyPatch) -> None:
    """A candidate that restarts forgets which boot numbers the former disks had."""
    unpack = MetaState.unpack

    def mutant(data: bytes) -> MetaState:
        state = unpack(data)
        state.nodes = {node_id: attrs.evolve(node, former=()) for node_id, node in state.nodes.items()}
        return state

    patch.setattr(MetaState, "unpack", mutant)


def grants_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """A new controller does not look for grants that its predecessor owed."""
    look = Controller._look

    def mutant(self: Controller) -> None:
        look(self)
        self._due = [item for item in self._due if item.node_id in self._here and self._lived_us > 0 and item.node_id in self._waiting]

    patch.setattr(Controller, "_look", mutant)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], range]] = [
    (lease_from_the_answer, range(60)),
    (lease_without_the_leaders, range(100, 130)),
    (own_node_gets_a_full_lease, range(60)),
    (fresh_by_any_table, range(10)),
    (acting_on_old_grants, range(40)),
    (acting_for_another_life, range(60)),
    (term_reused, range(10)),
    (unregistered_life_leased, range(20)),
    (leased_while_being_given_up, range(190, 220)),
    (answered_before_applied, range(10)),
    (answered_before_granted, range(10)),
    (lower_boot_accepted, range(50)),
    (another_disk_at_once, range(30)),
    (previous_leader_literally, range(60)),
    (credit_of_two_elections, range(130, 160)),
    (given_up_too_early, range(20)),
    (silence_shorter_than_the_lease, range(20)),
    (intact_copies_replaced, range(10)),
    (former_disks_not_in_the_snapshot, range(220, 250)),
    (grants_are_not_repeated, range(520, 550)),
]


@pytest.mark.parametrize(("mutant", "runs"), MUTANTS, ids=[mutant.__name__ for mutant, _ in MUTANTS])
def test_every_mutant_is_found(mutant: Callable[[pytest.MonkeyPatch], None], runs: range) -> None:
    """By one of these runs, which passes without it; which one is printed."""
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        found = next((seed for seed in runs if failure_of(seed) is not None), None)
    assert found is not None, f"nothing found {mutant.__name__} in {runs}"
    assert failure_of(found) is None, f"run {found} fails without {mutant.__name__} too"
    print(f"{mutant.__name__}: found by run {found} of {runs}")
