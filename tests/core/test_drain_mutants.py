"""Drains, evictions and explanations that are broken on purpose: the checks of this room must find every one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from govern.core import drains as drains_module
from govern.core.drains import Barrier, Drains
from govern.core.entries import DrainOp
from govern.core.links import Link
from govern.core.shard import Shard, Slot
from govern.core.subscriptions import Subscriptions
from govern.model import LSN_ZERO, Lsn, ServiceKey

from ..deep import usual
from . import test_drains
from .test_drains import DrainMachine
from .test_mutants import SHARD, Mutant, machine, once

DRAIN = machine(DrainMachine)


def nobody_is_asked(patch: pytest.MonkeyPatch) -> None:
    encode = Subscriptions._encode

    def mutant(self: Subscriptions, *arguments: Any) -> Any:
        wanted, self.ack_wanted = self.ack_wanted, {}
        try:
            return encode(self, *arguments)
        finally:
            self.ack_wanted = wanted

    patch.setattr(Subscriptions, "_encode", mutant)


def whoever_knows_already_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    delta_since = Shard.delta_since

    def mutant(self: Shard, key: ServiceKey, since: Lsn, ack: bool = False) -> Any:
        return delta_since(self, key, since, ack and since != self.service_lsn(key))

    patch.setattr(Shard, "delta_since", mutant)


def only_connections_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drains, "_note_away", lambda *arguments: None)


def subscribers_without_session_do_not_count(patch: pytest.MonkeyPatch) -> None:
    links = Subscriptions.links

    def mutant(self: Subscriptions, service: ServiceKey) -> Iterable[Link]:
        return [link for link in links(self, service) if link.session is not None]

    patch.setattr(Subscriptions, "links", mutant)


def whatever_is_applied_counts(patch: pytest.MonkeyPatch) -> None:
    cross_off = Drains._cross_off
    patch.setattr(Drains, "_cross_off", lambda self, subscriber, service, now_us, lsn=None: cross_off(self, subscriber, service, now_us))


def coming_back_counts(patch: pytest.MonkeyPatch) -> None:
    subscribed = Drains.subscribed

    def mutant(self: Drains, link: Link, service: ServiceKey, known: Lsn, resumed: bool, now_us: int) -> None:
        subscribed(self, link, service, Lsn(1 << 60, 0) if resumed else known, resumed, now_us)

    patch.setattr(Drains, "subscribed", mutant)


def coming_back_with_it_does_not_count(patch: pytest.MonkeyPatch) -> None:
    subscribed = Drains.subscribed

    def mutant(self: Drains, link: Link, service: ServiceKey, known: Lsn, resumed: bool, now_us: int) -> None:
        subscribed(self, link, service, LSN_ZERO, resumed, now_us)

    patch.setattr(Drains, "subscribed", mutant)


def a_broken_connection_is_gone_for_good(patch: pytest.MonkeyPatch) -> None:
    closed = Drains.closed

    def mutant(self: Drains, link: Link, now_us: int) -> None:
        closed(self, link, now_us)
        self.left(link, now_us)

    patch.setattr(Drains, "closed", mutant)


def goodbye_does_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drains, "left", lambda self, link, now_us: None)


def unsubscribing_does_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drains, "unsubscribed", lambda self, link, service, now_us: None)


def the_dead_are_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drains, "_forget_if_gone", lambda self, session_id, now_us: False)


def who_is_back_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(drains_module, "RETURN_US", 1 << 60)


def the_time_is_never_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Barrier, "is_done", lambda self, now_us: not self.missing)


def one_left_is_none_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Barrier, "is_done", lambda self, now_us: now_us >= self.deadline_us or len(self.missing) <= 1)


def a_second_barrier_ends_the_asking(patch: pytest.MonkeyPatch) -> None:
    close = Drains._close

    def mutant(self: Drains, barrier: Barrier) -> None:
        close(self, barrier)
        self._subscriptions.ack_wanted.pop(barrier.service, None)

    patch.setattr(Drains, "_close", mutant)


def a_start_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drains, "note_start", lambda self, now_us: None)


def drain_whatever_the_lease(patch: pytest.MonkeyPatch) -> None:
    judge = Shard._judge_change
    patch.setattr(
        Shard, "_judge_change", lambda self, op, held: judge(self, op._replace(lease_id=LSN_ZERO) if isinstance(op, DrainOp) else op, held)
    )


def the_barred_are_not_in_the_block(patch: pytest.MonkeyPatch) -> None:
    block = Shard.block

    def mutant(self: Shard, slot_number: int) -> Any:
        slot = self._slots[slot_number]
        barred, slot.barred = slot.barred, {}
        try:
            return block(self, slot_number)
        finally:
            slot.barred = barred

    patch.setattr(Shard, "block", mutant)


def nobody_is_barred(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Slot, "bar", lambda self, service_text, instance_id, session_id: None)


def everybody_is_barred(patch: pytest.MonkeyPatch) -> None:
    bar = Slot.bar

    def mutant(self: Slot, service_text: str, instance_id: str, session_id: bytes) -> None:
        for number in b"123":
            bar(self, service_text, instance_id, bytes([number]) * 16)

    patch.setattr(Slot, "bar", mutant)


def only_the_known_are_refused(patch: pytest.MonkeyPatch) -> None:
    """The bar is looked at before the log, and not when the operation is applied: what was on its way slips through."""
    apply_register = Shard._apply_register

    def mutant(self: Shard, slot: Slot, *arguments: Any) -> Any:
        barred, slot.barred = slot.barred, {}
        try:
            return apply_register(self, slot, *arguments)
        finally:
            slot.barred = barred

    patch.setattr(Shard, "_apply_register", mutant)


MUTANTS = [
    Mutant(nobody_is_asked, DRAIN, 40),
    Mutant(whoever_knows_already_is_not_asked, DRAIN, 40),
    Mutant(only_connections_count, DRAIN, 40),
    Mutant(subscribers_without_session_do_not_count, DRAIN, 40),
    Mutant(whatever_is_applied_counts, DRAIN, 80),
    Mutant(coming_back_counts, DRAIN, 80),
    Mutant(
        coming_back_with_it_does_not_count,
        once(test_drains.test_a_subscriber_that_knew_before_the_drain_was_asked_for_counts_when_it_comes_back),
    ),
    Mutant(a_broken_connection_is_gone_for_good, DRAIN, 40),
    Mutant(goodbye_does_not_count, DRAIN, 40),
    Mutant(unsubscribing_does_not_count, once(test_drains.test_who_leaves_for_good_is_not_waited_for)),
    Mutant(the_dead_are_waited_for, DRAIN, 40),
    Mutant(who_is_back_is_waited_for, DRAIN, 120),
    Mutant(the_time_is_never_over, DRAIN, 40),
    Mutant(one_left_is_none_left, DRAIN, 40),
    Mutant(a_second_barrier_ends_the_asking, DRAIN, 40),
    Mutant(a_start_is_forgotten, once(test_drains.test_after_a_start_a_drain_waits_for_those_who_may_come_back)),
    Mutant(drain_whatever_the_lease, once(test_drains.test_a_drain_is_refused_under_another_lease_and_for_what_is_not_there)),
    Mutant(the_barred_are_not_in_the_block, SHARD, 300),
    Mutant(nobody_is_barred, SHARD, 30),
    Mutant(everybody_is_barred, SHARD, 30),
    Mutant(only_the_known_are_refused, SHARD, 60),
]


@pytest.mark.parametrize("mutant", usual(MUTANTS, lambda mutant: mutant.examples <= 100), ids=lambda mutant: mutant.breaks.__name__)
def test_every_broken_rule_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails when, and because, the rule is broken: it passes on the cores as they are (that is what the other tests show)."""
    mutant.breaks(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        mutant.check(mutant.examples)
