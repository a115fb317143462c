"""Suspicion, the brake and resync broken on purpose: the checks of this room must find every one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from govern.core import brake as brake_module
from govern.core import dispatch as dispatch_module
from govern.core import resync as resync_module
from govern.core import sessions as sessions_module
from govern.core import suspects as suspects_module
from govern.core.brake import Brake
from govern.core.sessions import Session, Sessions, Silent
from govern.core.shard import Shard
from govern.core.subscriptions import Subscriptions
from govern.core.suspects import Suspects
from govern.model import LSN_ZERO, Lsn, ServiceKey

from . import test_brake, test_dispatch, test_resync, test_suspects
from .test_mutants import PUSH, SILENCE, Check, Mutant, once

RESYNC: Check = once(test_resync.test_each_difference_is_named_for_what_it_is)


# --- silence and suspicion --------------------------------------------------------------------------------------------------


def quiet_too_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sessions_module, "quiet_us", lambda ttl_ms: ttl_ms * 850)


def overdue_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sessions_module, "overdue_us", lambda ttl_ms: ttl_ms * 500)


def the_dying_stay_dying_when_heard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sessions, "dying", lambda self, within_us: list(dict.fromkeys(session for session, _ in self._overdue)))


def the_quiet_are_expired(patch: pytest.MonkeyPatch) -> None:
    expiries = Sessions.expiries
    patch.setattr(Sessions, "expiries", staticmethod(lambda silent, limit: expiries([each._replace(final=True) for each in silent], limit)))


def frames_do_not_end_a_doubt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Suspects, "note_heard", lambda self, session: None)


def every_ttl_is_doubted(patch: pytest.MonkeyPatch) -> None:
    silent = Suspects.note_silent
    patch.setattr(Suspects, "note_silent", lambda self, session, ttl_ms: silent(self, session, 1 << 62))


def removals_are_not_noticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Suspects, "note_changed", lambda self, service, instance_id: None)


def a_return_in_time_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: Suspects, now_us: int) -> None:
        while self._waiting and next(iter(self._waiting.values())) <= now_us:
            self._suspect(self._waiting.popitem()[0], suspects_module.EVERY_TTL_MS)

    patch.setattr(Suspects, "wake", mutant)
    heard = Suspects.note_heard

    def keep_waiting(self: Suspects, session: Session) -> None:
        waiting = dict(self._waiting)
        heard(self, session)
        self._waiting = waiting

    patch.setattr(Suspects, "note_heard", keep_waiting)


def many_together_are_hinted_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(suspects_module, "TOGETHER_MIN", 1 << 30)


def few_together_are_not_hinted_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(suspects_module, "TOGETHER_PARTS", 1 << 30)


def one_that_flaps_is_many(patch: pytest.MonkeyPatch) -> None:
    closed = Suspects.note_closed

    def mutant(self: Suspects, session: Session, now_us: int) -> None:
        if session in self._closed:
            self._closed[Session(bytes(16), len(self._closed))] = now_us
        closed(self, session, now_us)

    patch.setattr(Suspects, "note_closed", mutant)


# --- hints ------------------------------------------------------------------------------------------------------------------


def no_hint_behind_a_push(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Subscriptions, "hints", lambda self, service, since=LSN_ZERO: b"")


def no_hint_behind_a_delta(patch: pytest.MonkeyPatch) -> None:
    hints = Subscriptions.hints

    def mutant(self: Subscriptions, service: ServiceKey, since: Lsn = LSN_ZERO) -> bytes:
        return hints(self, service) if since == LSN_ZERO else b""

    patch.setattr(Subscriptions, "hints", mutant)


def missed_hints_forgotten(patch: pytest.MonkeyPatch) -> None:
    put_out = Subscriptions._put_out

    def mutant(self: Subscriptions, link: Any, *rest: Any) -> bool:
        link.astray.clear()
        return put_out(self, link, *rest)

    patch.setattr(Subscriptions, "_put_out", mutant)


# --- the brake --------------------------------------------------------------------------------------------------------------


def never_engaged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(brake_module, "SESSIONS_MIN", 1 << 30)


def engaged_for_few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(brake_module, "SESSIONS_MIN", 10)


def held_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(brake_module, "HOLD_US", 1 << 60)


def released_all_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(brake_module, "RELEASE_SECONDS", 1)


def the_heard_are_let_go_too(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: Brake, passed_us: int) -> list[Silent]:
        released, self._held = list(self._held.values()), {}
        self.engaged_us, self.releasing = None, False
        return released

    patch.setattr(Brake, "_release", mutant)


def held_twice_for_one_silence(patch: pytest.MonkeyPatch) -> None:
    judge = Brake.judge

    def mutant(self: Brake, *arguments: Any) -> list[Silent]:
        self._released = {}
        return judge(self, *arguments)

    patch.setattr(Brake, "judge", mutant)


def only_the_named_are_counted(patch: pytest.MonkeyPatch) -> None:
    judge = Brake.judge

    def mutant(self: Brake, named: Iterable[Silent], dying: Any, *rest: Any) -> list[Silent]:
        return judge(self, list(named), [silent.session for silent in named], *rest)

    patch.setattr(Brake, "judge", mutant)


def the_rest_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sessions, "_note_all_overdue", lambda self: None)


def those_gone_already_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Brake, "_note_passed", lambda self, dead, now_us: None)


# --- resync -----------------------------------------------------------------------------------------------------------------


def all_differences_are_unknown(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resync_module, "_judge", lambda *arguments: "unknown")


def any_other_holder_has_won(patch: pytest.MonkeyPatch) -> None:
    judge = resync_module._judge
    patch.setattr(
        resync_module, "_judge", lambda shard, session, service, identity, lease: judge(shard, session, service, identity, LSN_ZERO)
    )


def the_barred_are_not_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shard, "is_barred", lambda self, service, instance_id, session_id: False)


def every_page_names_the_extra(patch: pytest.MonkeyPatch) -> None:
    answer = resync_module.answer_resync

    def mutant(shard: Shard, link: Any, session: Session, page: Any) -> Any:
        link.named = {}
        return answer(shard, link, session, page)

    patch.setattr(dispatch_module, "answer_resync", mutant)


def parked_lists_are_put_out_without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatch_module, "_LONG_ANSWERS", ())


CLOSED = once(test_suspects.test_a_closed_connection_is_a_hint_after_300_ms_exactly_and_a_return_ends_it)
IN_TIME = once(test_suspects.test_a_return_within_300_ms_and_a_goodbye_are_no_reason_for_doubt)
MANY = once(test_suspects.test_many_that_lose_their_connection_together_are_not_hinted_at)
AGAIN = once(test_suspects.test_an_operation_on_a_suspect_hints_again_behind_its_delta_and_its_removal_does_not)
FEW = once(test_suspects.test_a_few_a_fifth_or_one_after_the_other_are_hinted_at)
MOST = once(test_brake.test_most_at_once_are_all_held_and_then_go_a_fifth_each_second)
RETURN = once(test_brake.test_who_comes_back_is_not_removed_and_the_rest_does_not_wait_for_the_end)

MUTANTS = [
    Mutant(quiet_too_late, SILENCE, 30),
    Mutant(overdue_too_early, SILENCE, 30),
    Mutant(the_dying_stay_dying_when_heard, SILENCE, 30),
    Mutant(the_quiet_are_expired, SILENCE, 30),
    Mutant(frames_do_not_end_a_doubt, once(test_suspects.test_any_frame_ends_the_doubt)),
    Mutant(every_ttl_is_doubted, once(test_suspects.test_silence_is_measured_against_each_ttl_of_its_own)),
    Mutant(removals_are_not_noticed, AGAIN),
    Mutant(a_return_in_time_is_not_noticed, IN_TIME),
    Mutant(many_together_are_hinted_at, MANY),
    Mutant(few_together_are_not_hinted_at, FEW),
    Mutant(one_that_flaps_is_many, FEW),
    Mutant(no_hint_behind_a_push, PUSH, 60),
    Mutant(no_hint_behind_a_delta, AGAIN),
    Mutant(missed_hints_forgotten, PUSH, 60),
    Mutant(never_engaged, MOST),
    Mutant(engaged_for_few, once(test_brake.test_forty_of_sixty_are_not_held)),
    Mutant(held_for_ever, MOST),
    Mutant(released_all_at_once, MOST),
    Mutant(the_heard_are_let_go_too, RETURN),
    Mutant(held_twice_for_one_silence, once(test_brake.test_those_whose_removal_waits_for_the_disk_are_not_held_again)),
    Mutant(only_the_named_are_counted, MOST),
    Mutant(the_rest_is_not_counted, once(test_brake.test_more_at_once_than_one_tick_names_are_counted_all_the_same)),
    Mutant(those_gone_already_are_not_counted, once(test_brake.test_deaths_spread_over_the_window_count_together)),
    Mutant(all_differences_are_unknown, RESYNC),
    Mutant(any_other_holder_has_won, RESYNC),
    Mutant(the_barred_are_not_told, RESYNC),
    Mutant(every_page_names_the_extra, once(test_resync.test_extra_looks_back_over_all_pages_since_the_last_one)),
    Mutant(parked_lists_are_put_out_without_end, once(test_dispatch.test_parked_lists_are_not_put_out_faster_than_the_socket_takes_them)),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks.__name__)
def test_every_broken_core_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails when, and because, the core is broken: it passes on the core as it is (that is what the other tests show)."""
    mutant.breaks(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        mutant.check(mutant.examples)
