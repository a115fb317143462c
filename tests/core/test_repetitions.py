"""Requests that are repeated because their answers were lost: the truth about the first one is told, and nothing happens twice."""

from __future__ import annotations

from govern.core.dispatch import EXPIRIES_PENDING_MAX
from govern.core.sessions import SILENCE_MS_DEFAULT, silence_us
from govern.messages import Lost, Registered
from govern.model import LSN_ZERO, Lsn

from .rig import ORDERS, A, B, Rig, code_of, register


def test_a_registration_that_was_carried_out_before_the_disk_filled_is_not_denied() -> None:
    """The answer was lost; its repetition gets the lease, not `disk_full`, which would say that nothing happened."""
    rig = Rig()
    first = rig.link(A)
    request_id = rig.give(first, register())
    rig.commit()
    rig.dispatch.closed(first)
    rig.disk_full = True
    second = rig.link(A, attempt=2)
    rig.give(second, register(), request_id)
    assert rig.said(second) == [(Registered(Lsn(1, 1), Lsn(1, 1)), request_id)]
    assert code_of(rig.say(second, register("i2"))) == "disk_full"


def test_a_repeated_registration_does_not_beat_the_one_that_replaced_it() -> None:
    """A registers, B takes the id, A repeats its unanswered request: A's one write had its effect already, and B keeps the id."""
    rig = Rig()
    first, other = rig.link(A), rig.link(B)
    request_id = rig.give(first, register())
    rig.commit()
    first.out.clear()
    rig.dispatch.closed(first)
    lease_of_b = rig.register(other)
    again = rig.link(A, attempt=2)
    rig.give(again, register(), request_id)
    rig.commit()
    assert code_of([answer for answer, _ in rig.said(again)]) == "superseded"
    assert not any(isinstance(answer, Lost) for answer, _ in rig.said(other))
    session = rig.sessions.get(B)
    assert session is not None
    held = session.lease(ORDERS, "i1")
    assert held is not None
    assert held.lease_id == lease_of_b


def test_a_new_registration_of_the_loser_wins_again() -> None:
    """Only the repetition is stale: what A asks for anew, with a new request id and no prior lease, is the newest claim."""
    rig = Rig()
    first, other = rig.link(A), rig.link(B)
    rig.register(first)
    rig.register(other)
    rig.said(first)
    assert rig.register(first, prior=LSN_ZERO) == Lsn(1, 3)


def test_expiries_that_wait_for_the_disk_are_bounded() -> None:
    """While the disk hangs the silent are named every second; proposals stop at the bound and go on when it answers."""
    rig = Rig()
    link = rig.link(A)
    for number in range(40):
        rig.register(link, f"i{number}")
    rig.dispatch.closed(link)
    rig.sessions.now_us += silence_us(SILENCE_MS_DEFAULT)
    for _ in range(EXPIRIES_PENDING_MAX // 40 + 50):
        rig.dispatch.propose_expiries(rig.sessions.due(10))
        rig.sessions.now_us += 1_000_000
    assert EXPIRIES_PENDING_MAX <= rig.dispatch.expiries_pending == len(rig.dispatch.writes) < EXPIRIES_PENDING_MAX + 40
    rig.commit()
    assert rig.shard.instance_count == 0
    assert rig.dispatch.expiries_pending == 0
