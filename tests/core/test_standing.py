"""The standing of a node: whom it asks, when it registers again, and how long its lease holds."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from govern.core.standing import ANSWER_US, AVOID_US, HEARTBEAT_US, REFUSED_US, REGISTER_US, SENT_MAX, Health, Standing
from govern.peer_messages import HEARTBEAT_LEASED, HEARTBEAT_UNKNOWN, Member, NodeHeartbeat, NodeHeartbeatOk, NodeRegister, NodeRegistered

ME = Member(4, b"4" * 16)
LIFE = (4, b"4" * 16, 7)
S = 1_000_000


def make(candidates: tuple[int, ...] = (1, 2, 3), leader: int | None = None) -> Standing:
    standing = Standing(ME, 7, clients="c:1", peers="p:1", candidate=False, volatile=True)
    standing.candidates(candidates, leader, 0)
    return standing


def sent(standing: Standing, now_us: int, boot_us: int | None = None, **health: int) -> list[tuple[int, Any]]:
    standing.tick(now_us, now_us if boot_us is None else boot_us, Health(**health))
    return standing.take_messages()


def registered(standing: Standing, now_us: int = 0, index: int = 9) -> None:
    standing.registered(NodeRegistered(*LIFE, 1, index, ""), now_us)


def ok(number: int, code: int = HEARTBEAT_LEASED, lease_ms: int = 4_000, version: int = 9) -> NodeHeartbeatOk:
    return NodeHeartbeatOk(*LIFE, 1, number, code, lease_ms, version, 2)


def told(standing: Standing) -> tuple[bool, str | None]:
    return standing.is_registered, standing.refusal


def fresh(standing: Standing, boot_us: int) -> bool:
    return boot_us < standing.lease_until_us


def leased() -> Standing:
    """Registered, with a lease from boot time 0."""
    standing = make()
    registered(standing)
    assert sent(standing, 0)
    standing.heartbeat_ok(ok(1), 0, 0)
    return standing


def test_it_registers_through_a_candidate_until_it_is_answered() -> None:
    """The message says everything about this life; the first heartbeat follows the answer at once."""
    standing = make()
    assert sent(standing, 0) == [(1, NodeRegister(*LIFE, 1, "c:1", "p:1", False, True))]
    assert sent(standing, REGISTER_US - 1) == []
    assert standing.deadline_us == REGISTER_US
    assert [to for to, _ in sent(standing, REGISTER_US)] == [1]
    assert not standing.is_registered
    registered(standing, REGISTER_US + 1)
    assert (standing.is_registered, standing.newest_version) == (True, 9)
    assert standing.deadline_us == REGISTER_US + 1
    beat = sent(standing, REGISTER_US + 1, table_version=5, loop_lag_ms=1, unsynced_ms=2, sessions=3, instances=4)
    assert beat == [(1, NodeHeartbeat(*LIFE, 1, 1, 5, 1, 2, 3, 4))]
    assert [message.number for _, message in sent(standing, REGISTER_US + 1 + HEARTBEAT_US)] == [2]
    assert repr(standing) == "<Standing node 4 boot 7 registered asks=1>"


def test_without_a_candidate_it_waits_and_asks_the_first_that_comes() -> None:
    """A candidate that comes, or a controller that becomes known, is asked at once."""
    standing = make(())
    assert sent(standing, 0) == []
    standing.candidates((3,), None, 10)
    assert [to for to, _ in sent(standing, 10)] == [3]
    standing.candidates((2, 3), 2, 20)
    assert [to for to, _ in sent(standing, 20)] == [2]
    standing.candidates((2, 3), 2, 30)
    assert sent(standing, 30) == []
    standing.candidates((3,), 2, 40)
    assert [to for to, _ in sent(standing, 40)] == [3]


def test_a_candidate_that_does_not_answer_is_left() -> None:
    """N6: after a second for the next one, and not tried first again for a while; when none answers the turn goes on."""
    standing = make(leader=1)
    asked: dict[int, int] = {}
    for now_us in range(0, 4 * S, 50_000):
        for to, _ in sent(standing, now_us):
            asked.setdefault(to, now_us)
    assert asked == {1: 0, 2: ANSWER_US, 3: 2 * ANSWER_US}
    registered(standing, 4 * S)
    assert [to for to, _ in sent(standing, 4 * S)] == [1]
    standing.heartbeat_ok(ok(1), 4 * S, 4 * S)
    assert standing.controller == 2
    standing.candidates((1, 2, 3), None, 4 * S)
    assert [to for to, _ in sent(standing, 5 * S)] == [1]
    standing.heartbeat_ok(ok(2), 5 * S, 5 * S)
    standing.candidates((1, 2, 3), None, 10 * S)
    assert [to for to, _ in sent(standing, 10 * S)] == [2]


@pytest.mark.parametrize("candidates", [(), (4,), (1, 2, 3)])
@pytest.mark.parametrize("is_registered", [False, True])
def test_there_is_a_pause_between_two_ticks_whoever_is_silent(candidates: tuple[int, ...], is_registered: bool) -> None:
    """Also when the only candidate that can be asked, such as the node itself, gives no answer: the next deadline lies ahead, always."""
    standing = make(candidates)
    if is_registered:
        registered(standing)
    now_us = ticks = 0
    while now_us < 20 * S:
        standing.candidates(candidates, None, now_us)
        sent(standing, now_us)
        assert standing.deadline_us > now_us
        now_us, ticks = standing.deadline_us, ticks + 1
    assert ticks <= 100


def test_the_controller_is_tried_again_after_a_while() -> None:
    """A broken link to the controller makes its node go through another candidate, not for ever."""
    standing = make(leader=1)
    registered(standing)
    sent(standing, 0)
    assert [to for to, _ in sent(standing, ANSWER_US)] == [2]
    standing.heartbeat_ok(ok(2), ANSWER_US, ANSWER_US)
    standing.candidates((1, 2, 3), 1, ANSWER_US + AVOID_US - 1)
    assert [to for to, _ in sent(standing, ANSWER_US + AVOID_US - 1)] == [2]
    standing.heartbeat_ok(ok(3), 2 * S, 2 * S)
    standing.candidates((1, 2, 3), 1, ANSWER_US + AVOID_US)
    assert [to for to, _ in sent(standing, ANSWER_US + AVOID_US)] == [1]


def test_a_new_controller_is_asked_at_once_whatever_it_did_before() -> None:
    """Who did not answer while nobody led is no worse for that when it leads: the lease must not run out for want of a question."""
    standing = make((2, 3), leader=1)
    registered(standing)
    assert [to for to, _ in sent(standing, 0)] == [2]
    assert [to for to, _ in sent(standing, ANSWER_US)] == [3]
    standing.candidates((2, 3), 2, ANSWER_US + 1)
    assert [to for to, _ in sent(standing, ANSWER_US + 1)] == [2]
    assert sent(standing, ANSWER_US + HEARTBEAT_US) == [], "the next one is due half a second after this one"
    assert [to for to, _ in sent(standing, 2 * ANSWER_US + 1)] == [3], "a link to it that is broken in one direction is found out again"


def test_the_lease_runs_from_the_sending_of_the_answered_heartbeat() -> None:
    """N6, on the clock that counts suspended time, and whatever length the answer names."""
    standing = make()
    registered(standing)
    sent(standing, 0, 100 * S)
    assert not fresh(standing, 100 * S)
    standing.heartbeat_ok(ok(1, lease_ms=60_000), 1 * S, 101 * S)
    assert fresh(standing, 104 * S - 1)
    assert not fresh(standing, 104 * S)


def test_answers_that_lend_nothing() -> None:
    """For another life, for a number that was not sent, for one that was answered, or one too long ago."""
    standing = make()
    registered(standing)
    sent(standing, 0)
    for answer in (attrs.evolve(ok(1), boot_no=6), attrs.evolve(ok(1), disk_id=b"5" * 16), attrs.evolve(ok(1), node_id=5), ok(0), ok(2)):
        standing.heartbeat_ok(answer, 0, 0)
    assert not fresh(standing, 0)
    for turn in range(1, SENT_MAX + 1):
        sent(standing, turn * HEARTBEAT_US, 0)
    standing.heartbeat_ok(ok(1), 0, 0)
    assert not fresh(standing, 0)
    standing.heartbeat_ok(ok(3), 0, 0)
    assert fresh(standing, 0)
    standing.heartbeat_ok(ok(2, HEARTBEAT_UNKNOWN), 0, 0)
    assert standing.is_registered, "an answer that was overtaken is of no interest"


def test_who_is_not_known_registers_again() -> None:
    """N8: no lease, and a registration at once."""
    standing = leased()
    assert fresh(standing, 0)
    sent(standing, HEARTBEAT_US)
    standing.heartbeat_ok(ok(2, HEARTBEAT_UNKNOWN), HEARTBEAT_US, HEARTBEAT_US)
    assert not standing.is_registered
    assert not fresh(standing, HEARTBEAT_US)
    assert [type(message) for _, message in sent(standing, HEARTBEAT_US)] == [NodeRegister]
    standing.heartbeat_ok(ok(1), HEARTBEAT_US, HEARTBEAT_US)
    assert not fresh(standing, HEARTBEAT_US)
    registered(standing, S, 12)
    assert [message.number for _, message in sent(standing, S)] == [3]


def test_a_refusal_is_kept_for_people_and_asked_again() -> None:
    """It may end: the process that used the id may be gone by then. A late refusal does not undo a registration."""
    standing = make()
    sent(standing, 0)
    standing.registered(NodeRegistered(*LIFE, 1, 0, "rolled back"), 0)
    assert told(standing) == (False, "rolled back")
    assert repr(standing) == "<Standing node 4 boot 7 refused: rolled back asks=1>"
    assert sent(standing, REGISTER_US)
    assert sent(standing, REGISTER_US + REFUSED_US - 1) == []
    assert sent(standing, REGISTER_US + REFUSED_US)
    standing.registered(NodeRegistered(4, b"4" * 16, 6, 1, 9, ""), S)
    assert not standing.is_registered, "for another life"
    registered(standing)
    assert told(standing) == (True, None)
    standing.registered(NodeRegistered(*LIFE, 1, 0, "late"), 0)
    assert told(standing) == (True, None)


def test_no_heartbeat_while_the_disk_hangs() -> None:
    """P1, and the silence that follows is not held against the candidate."""
    standing = leased()
    assert sent(standing, S, unsynced_ms=3_001) == []
    assert sent(standing, 3 * S, unsynced_ms=9_999) == []
    assert [to for to, _ in sent(standing, 4 * S, unsynced_ms=3_000)] == [1]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_answer_lends_more_than_its_heartbeat_may(data: st.DataObject) -> None:
    """In whatever order answers come, or twice: the node is fresh only within four seconds of the sending of a heartbeat that was answered
    with a lease, and never after it was told that it is not known. Its clock goes back now and then."""
    standing = make()
    registered(standing)
    boot_us = now_us = latest = 0
    times: dict[int, int] = {}
    good_until = 0
    for _ in range(data.draw(st.integers(1, 25))):
        now_us += data.draw(st.sampled_from((0, 100_000, HEARTBEAT_US, 3 * S)))
        boot_us = max(0, now_us + data.draw(st.sampled_from((0, 0, -S, 5 * S))))
        latest = max(latest, boot_us)
        for _, message in sent(standing, now_us, boot_us):
            if isinstance(message, NodeHeartbeat):
                assert message.number == len(times) + 1
                times[message.number] = latest
            else:
                registered(standing, now_us)
        if data.draw(st.booleans()):
            number = data.draw(st.integers(1, len(times) + 1))
            code = data.draw(st.sampled_from((HEARTBEAT_LEASED, HEARTBEAT_LEASED, HEARTBEAT_UNKNOWN)))
            was = standing.is_registered
            standing.heartbeat_ok(ok(number, code), now_us, boot_us)
            if was and not standing.is_registered:
                good_until = 0
            elif code == HEARTBEAT_LEASED:
                good_until = max(good_until, times.get(number, -9 * S) + 4 * S)
        assert not fresh(standing, latest) or latest < good_until


@pytest.mark.parametrize("late_us", [0, 200_000, 2 * S])
def test_a_stopped_loop_sends_one_heartbeat_when_it_goes_on(late_us: int) -> None:
    """Nothing is made up for: the number of heartbeats never exceeds two a second."""
    standing = leased()
    assert len(sent(standing, HEARTBEAT_US + late_us)) == 1
    assert sent(standing, HEARTBEAT_US + late_us + 1) == []
