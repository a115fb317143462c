"""Cores that are broken on purpose: the checks of this room must find every one of them, each within its number of examples.

A check that cannot fail proves nothing. Each mutant changes one decision of a core, as a careless edit might; the check named with it
must then fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from govern.core import sessions as sessions_module
from govern.core.digests import lease_digest
from govern.core.dispatch import Dispatch
from govern.core.entries import DrainOp, ExpireOp
from govern.core.links import Gate
from govern.core.sessions import Session, Sessions
from govern.core.shard import Service, Shard, Slot
from govern.core.subscriptions import Subscriptions
from govern.model import Lsn, ServiceKey

from ..deep import usual
from . import test_dispatch, test_links, test_shard, test_subscriptions
from .test_sessions import SilenceMachine
from .test_shard import ShardMachine
from .test_subscriptions import PushMachine

Check = Callable[[int], None]


def machine(kind: type[RuleBasedStateMachine]) -> Check:
    """Run a state machine for so many examples, without shrinking what it finds."""

    def check(examples: int) -> None:
        run = settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            print_blob=False,
        )
        run_state_machine_as_test(kind, settings=run)

    return check


def once(test: Callable[[], None]) -> Check:
    """One test without random examples, or with its own."""

    def check(examples: int) -> None:
        test()

    return check


class SmallRing(ShardMachine):
    history_ops_max = 3


class SmallRingOfPushes(PushMachine):
    history_ops_max = 2


SHARD, SILENCE, PUSH, PUSH_FAR_BEHIND = machine(SmallRing), machine(SilenceMachine), machine(PushMachine), machine(SmallRingOfPushes)


# --- the mutants ------------------------------------------------------------------------------------------------------------


def expire_whatever_the_lease(patch: pytest.MonkeyPatch) -> None:
    apply_removal = Shard._apply_removal

    def mutant(self: Shard, slot: Slot, lsn: Lsn, op: Any, service: Service, held: Any) -> Any:
        return apply_removal(self, slot, lsn, op._replace(lease_id=held.lease_id) if isinstance(op, ExpireOp) else op, service, held)

    patch.setattr(Shard, "_apply_removal", mutant)


def change_whatever_the_lease(patch: pytest.MonkeyPatch) -> None:
    judge = Shard._judge_change
    patch.setattr(Shard, "_judge_change", lambda self, op, held: judge(self, op._replace(lease_id=held.lease_id), held))


def change_whoever_asks(patch: pytest.MonkeyPatch) -> None:
    judge = Shard._judge_change

    def mutant(self: Shard, op: Any, held: Any) -> Any:
        return judge(self, op if isinstance(op, DrainOp) else op._replace(session_id=held.session_id), held)

    patch.setattr(Shard, "_judge_change", mutant)


def repeated_registrations_not_recognised(patch: pytest.MonkeyPatch) -> None:
    judge = Shard._judge_register

    def mutant(self: Shard, op: Any, held: Any) -> Any:
        return judge(self, op._replace(request_id=max(op.request_id, held.request_id + 1)), held)

    patch.setattr(Shard, "_judge_register", mutant)


def fights_are_not_ended(patch: pytest.MonkeyPatch) -> None:
    judge = Shard._judge_register

    def mutant(self: Shard, op: Any, held: Any) -> Any:
        return judge(self, op, held) if held.session_id == op.session_id else None

    patch.setattr(Shard, "_judge_register", mutant)


def ring_floor_ignored(patch: pytest.MonkeyPatch) -> None:
    remembers = Slot.remembers

    def mutant(self: Slot, lsn: Lsn) -> bool:
        floor, self.floor = self.floor, 0
        try:
            return remembers(self, lsn)
        finally:
            self.floor = floor

    patch.setattr(Slot, "remembers", mutant)


def terms_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Slot, "remembers", lambda self, lsn: self.floor <= lsn.seq <= self.seq)


def ring_off_by_one(patch: pytest.MonkeyPatch) -> None:
    remember = Shard._remember
    patch.setattr(Shard, "_remember", lambda self, slot, past: remember(self, slot, (past[0] - 1, *past[1:])))


def stale_view_kept(patch: pytest.MonkeyPatch) -> None:
    put = Shard._put

    def mutant(self: Shard, slot: Slot, service: Service, instance_id: str, lsn: Lsn, entry: bytes) -> None:
        bodies = service.bodies
        put(self, slot, service, instance_id, lsn, entry)
        service.bodies = bodies

    patch.setattr(Shard, "_put", mutant)


def operations_of_the_snapshot_applied_again(patch: pytest.MonkeyPatch) -> None:
    apply = Shard.apply

    def mutant(self: Shard, number: int, term: int, seq: int, op: Any) -> Any:
        slot = self._slots.get(number)
        if slot is not None and seq <= slot.seq:
            slot.seq, slot.term = seq - 1, min(term, slot.term)
        return apply(self, number, term, seq, op)

    patch.setattr(Shard, "apply", mutant)


def numbers_of_a_refused_batch_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shard, "unnumber", lambda self, slots: None)


def leases_of_the_loser_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sessions, "end", lambda self, session_id, service, instance_id: None)


def digest_without_service(patch: pytest.MonkeyPatch) -> None:
    nowhere = ServiceKey("", "")
    patch.setattr(sessions_module, "lease_digest", lambda service, identity, lease: lease_digest(nowhere, identity, lease))


def silence_too_long(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sessions_module, "silence_us", lambda ttl_ms: ttl_ms * 1_000)


def silence_too_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sessions_module, "silence_us", lambda ttl_ms: ttl_ms * 800)


def deadlines_of_one_ttl_only(patch: pytest.MonkeyPatch) -> None:
    watch = Sessions._watch

    def mutant(self: Sessions, session: Session, ttl_ms: int, at_us: int | None = None) -> None:
        if at_us is None and ttl_ms != sessions_module.SILENCE_MS_DEFAULT:
            at_us = session.stamp_us + sessions_module.silence_us(sessions_module.SILENCE_MS_DEFAULT)
        watch(self, session, ttl_ms, at_us)

    patch.setattr(Sessions, "_watch", mutant)


def expiry_of_leases_with_a_longer_ttl(patch: pytest.MonkeyPatch) -> None:
    expiries = Sessions.expiries
    patch.setattr(
        Sessions, "expiries", staticmethod(lambda silent, limit: expiries([each._replace(ttl_ms=1 << 40) for each in silent], limit))
    )


def older_attempts_take_over(patch: pytest.MonkeyPatch) -> None:
    attach = Sessions.attach

    def mutant(self: Sessions, session_id: bytes, attempt: int, connection: object) -> Any:
        session = self.get(session_id)
        if session is not None:
            session.attempt = -1
        return attach(self, session_id, attempt, connection)

    patch.setattr(Sessions, "attach", mutant)


def pushes_not_noted(patch: pytest.MonkeyPatch) -> None:
    put_out = Subscriptions._put_out

    def mutant(self: Subscriptions, link: Any, service: ServiceKey, since: Lsn, *rest: Any) -> bool:
        done = put_out(self, link, service, since, *rest)
        link.subscriptions[service] = since
        return done

    patch.setattr(Subscriptions, "_put_out", mutant)


def late_links_forgotten(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: Subscriptions, now_us: int) -> list[list[Any]]:
        for link in self.late:
            link.late.clear()
        self.late.clear()
        return []

    patch.setattr(Subscriptions, "push_late", mutant)


def full_sockets_pushed_to(patch: pytest.MonkeyPatch) -> None:
    push = Subscriptions._push

    def mutant(self: Subscriptions, link: Any, *rest: Any) -> bool:
        unsent, link.unsent = link.unsent, b""
        try:
            return push(self, link, *rest)
        finally:
            link.unsent = unsent

    patch.setattr(Subscriptions, "_push", mutant)


def goodbye_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "_goodbye", lambda self, link, message, request_id: self._leave(link, request_id))


def one_victim_named_again_and_again(patch: pytest.MonkeyPatch) -> None:
    admit = Gate.admit

    def mutant(self: Gate, link: Any) -> Any:
        first = next(iter(self._strangers), None)
        victim = admit(self, link)
        return victim and first

    patch.setattr(Gate, "admit", mutant)
    patch.setattr(Gate, "forget", lambda self, link: None)


@attrs.frozen
class Mutant:
    """What is broken, the check that must find it, and within how many examples."""

    breaks: Callable[[pytest.MonkeyPatch], None]
    check: Check
    examples: int = 1


MUTANTS = [
    Mutant(expire_whatever_the_lease, SHARD, 30),
    Mutant(change_whatever_the_lease, SHARD, 30),
    Mutant(change_whoever_asks, SHARD, 400),
    Mutant(repeated_registrations_not_recognised, SHARD, 30),
    Mutant(fights_are_not_ended, SHARD, 30),
    Mutant(ring_floor_ignored, SHARD, 30),
    Mutant(terms_ignored, SHARD, 30),
    Mutant(ring_off_by_one, SHARD, 30),
    Mutant(stale_view_kept, SHARD, 30),
    Mutant(operations_of_the_snapshot_applied_again, SHARD, 30),
    Mutant(numbers_of_a_refused_batch_lost, SHARD, 30),
    Mutant(leases_of_the_loser_kept, SHARD, 30),
    Mutant(digest_without_service, SHARD, 30),
    Mutant(silence_too_long, SILENCE, 30),
    Mutant(silence_too_short, SILENCE, 30),
    Mutant(deadlines_of_one_ttl_only, SILENCE, 30),
    Mutant(expiry_of_leases_with_a_longer_ttl, SILENCE, 30),
    Mutant(pushes_not_noted, PUSH, 30),
    Mutant(late_links_forgotten, PUSH, 100),
    Mutant(ring_floor_ignored, PUSH_FAR_BEHIND, 30),
    Mutant(terms_ignored, once(test_shard.test_lsns_of_a_lost_history_start_no_delta)),
    Mutant(full_sockets_pushed_to, once(test_subscriptions.test_a_link_that_takes_nothing_owes_its_lsn_and_nothing_else)),
    Mutant(older_attempts_take_over, once(test_dispatch.test_a_newer_connection_takes_the_session_over_and_an_older_one_never_does)),
    Mutant(goodbye_at_once, once(test_dispatch.test_goodbye_waits_for_what_was_asked_before_it)),
    Mutant(one_victim_named_again_and_again, once(test_links.test_one_host_cannot_crowd_out_the_others)),
]


@pytest.mark.parametrize("mutant", usual(MUTANTS, lambda mutant: mutant.examples <= 100), ids=lambda mutant: mutant.breaks.__name__)
def test_every_broken_core_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails when, and because, the core is broken: it passes on the core as it is (that is what the other tests show)."""
    mutant.breaks(monkeypatch)
    with pytest.raises(AssertionError):
        mutant.check(mutant.examples)
