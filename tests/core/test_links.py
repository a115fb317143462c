"""The patience of a node with its connections: how many strangers wait at the gate, and what is overdue."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from govern.core.limits import Limits
from govern.core.links import SATURATED_US, SATURATED_US_MAX, Gate, Link, overdue

LIMITS = Limits(handshakes_max=4, handshakes_per_host_max=2, unsent_bytes_max=10)
SECOND_US = 1_000_000


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)), max_size=40))
@settings(max_examples=150, derandomize=True, database=None, deadline=None)
def test_the_gate_keeps_its_limits_and_lets_the_oldest_go(arrivals: list[tuple[str, int]]) -> None:
    """However strangers arrive and leave, also many before a victim is really closed: never more than the limits are counted, each is
    named at most once, and the one that goes is the oldest of its host, or of all. A plain list says who that is."""
    gate = Gate(LIMITS)
    waiting: list[Link] = []
    for host, leaving in arrivals:
        link = Link(host, "me", 0)
        waiting.append(link)
        of_host = [each for each in waiting if each.peer == host]
        expected = None
        if len(of_host) > LIMITS.handshakes_per_host_max:
            expected = of_host[0]
        elif len(waiting) > LIMITS.handshakes_max:
            expected = waiting[0]
        assert gate.admit(link) is expected
        if expected is not None:
            waiting.remove(expected)
            gate.forget(expected)  # it is closed later; that it is counted out already does not matter
        if leaving == 3 and waiting:
            gate.forget(waiting.pop(len(waiting) // 2))
        assert len(gate) == len(waiting) <= LIMITS.handshakes_max


class GateMachine(RuleBasedStateMachine):
    """Connections that arrive, say Hello and leave, turns that accept as many as they may, and time; a plain list says who is there."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(LIMITS)
        self.waiting: list[Link] = []
        self.others: list[Link] = []  # greeted, or told to go and not yet closed
        self.full: list[int] = []
        self.now_us = 0

    @rule(host=st.sampled_from("abc"))
    def arrive(self, host: str) -> None:
        link = Link(host, "me", self.now_us)
        self.waiting.append(link)
        of_host = [each for each in self.waiting if each.peer == host]
        victim = self.gate.admit(link)
        if len(of_host) > LIMITS.handshakes_per_host_max:
            assert victim is of_host[0]
        elif len(self.waiting) > LIMITS.handshakes_max:
            assert victim is self.waiting[0]
        else:
            assert victim is None
        if victim is not None:
            self.waiting.remove(victim)
            self.others.append(victim)

    @rule(place=st.integers(0, 3))
    def greet(self, place: int) -> None:
        if place < len(self.waiting):
            link = self.waiting.pop(place)
            link.greeted = True
            self.gate.forget(link)
            self.others.append(link)

    @rule(place=st.integers(0, 3), stranger=st.booleans())
    def close(self, place: int, stranger: bool) -> None:
        """Of who is no stranger, the gate knows nothing any more."""
        links = self.waiting if stranger else self.others
        if place < len(links):
            self.gate.forget(links.pop(place))

    @rule()
    def accept_all_it_may(self) -> None:
        self.gate.note_full_accept(self.now_us)
        self.full.append(self.now_us)

    @rule(us=st.sampled_from([1, SATURATED_US - 1, SATURATED_US, SATURATED_US_MAX]), accepting=st.booleans())
    def pass_time(self, us: int, accepting: bool) -> None:
        """A flood of connections goes on through all of it, or there is none."""
        until_us = self.now_us + us
        while accepting and self.now_us + SATURATED_US // 2 < until_us:
            self.now_us += SATURATED_US // 2
            self.accept_all_it_may()
        self.now_us = until_us

    @invariant()
    def as_the_lists_say(self) -> None:
        self.gate.validate()
        assert len(self.gate) == len(self.waiting)
        began_us = before_us = -SATURATED_US
        for at_us in self.full:
            began_us = began_us if at_us - before_us < SATURATED_US else at_us
            before_us = at_us
        expected = self.now_us - before_us < SATURATED_US and self.now_us - began_us < SATURATED_US_MAX and bool(self.full)
        assert self.gate.is_saturated(self.now_us) == expected


def test_the_gate_agrees_with_plain_lists() -> None:
    """Who is a stranger, who has to go, and whether clients wait to be accepted (K1, E3)."""
    run = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(GateMachine, settings=run)


def test_one_host_cannot_crowd_out_the_others() -> None:
    """A host with many strangers loses its own; those of other hosts stay."""
    gate = Gate(LIMITS)
    quiet = Link("quiet", "me", 0)
    assert gate.admit(quiet) is None
    noisy = [Link("noisy", "me", 0) for _ in range(10)]
    victims = [gate.admit(link) for link in noisy]
    assert victims == [None, None, *noisy[:8]]
    assert len(gate) == 3


def greeted(heard_us: int = 0) -> Link:
    link = Link("host", "me", 0)
    link.greeted = True
    link.heard_us = heard_us
    return link


def test_a_stranger_has_five_seconds() -> None:
    """At the limit it stays, after it it goes; having said Hello it stays."""
    link = Link("host", "me", 3 * SECOND_US)
    assert overdue(link, 8 * SECOND_US, LIMITS) is None
    assert overdue(link, 8 * SECOND_US + 1, LIMITS) == "no Hello in time"
    link.greeted = True
    assert overdue(link, 8 * SECOND_US + 1, LIMITS) is None


@pytest.mark.parametrize(
    ("field", "seconds", "reason"),
    [
        ("partial_since_us", 10, "a frame was not finished in time"),
        ("stalled_since_us", 60, "nothing was read from this connection for too long"),
        ("heard_us", 15, "no heartbeat in time"),
    ],
)
def test_each_patience_ends_just_after_its_limit(field: str, seconds: int, reason: str) -> None:
    """Exactly at the limit a link stays; a microsecond later it is overdue, for that reason."""
    since_us = 100 * SECOND_US
    link = greeted(heard_us=since_us + seconds * SECOND_US)
    setattr(link, field, since_us)
    assert overdue(link, since_us + seconds * SECOND_US, LIMITS) is None
    assert overdue(link, since_us + seconds * SECOND_US + 1, LIMITS) == reason


def test_a_link_that_the_node_does_not_read_is_not_called_silent() -> None:
    """Above `unsent_bytes_max` the node reads nothing, so only the stall of the socket counts."""
    link = greeted()
    link.unsent = bytes(LIMITS.unsent_bytes_max + 1)
    link.stalled_since_us = 20 * SECOND_US
    assert overdue(link, 80 * SECOND_US, LIMITS) is None
    assert overdue(link, 80 * SECOND_US + 1, LIMITS) == "nothing was read from this connection for too long"
    link.unsent = bytes(LIMITS.unsent_bytes_max)
    assert overdue(link, 80 * SECOND_US, LIMITS) == "no heartbeat in time"
