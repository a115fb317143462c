"""The history of a node against plain lists: rings that forget the oldest, one order over both, and a bounded number of looks a second."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from govern.core.history import CONNECTED, DISCONNECTED, REGISTERED, TOLD_PER_SECOND_MAX, UPDATED, Event, History
from govern.core.links import Link
from govern.core.sessions import Session
from govern.errors import Overloaded
from govern.model import ServiceKey

from .rig import ORDERS

SERVICES = (ORDERS, ServiceKey("default", "payments"))
IDS = ("i1", "i2")
SESSIONS = (b"a" * 16, b"b" * 16)
RING = 6
SECOND_US = 1_000_000


class HistoryMachine(RuleBasedStateMachine):
    """Events of two services and two sessions, in rings of six; everything is remembered by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.history._instances, self.history._connections = deque(maxlen=RING), deque(maxlen=RING)
        self.instances: list[tuple[ServiceKey, str, str]] = []
        self.connections: list[tuple[bytes, str]] = []
        self.order: list[str] = []
        self.now_us = 0
        self.second_us = 0  # when the second began in which looks are counted
        self.looks = 0

    @rule(service=st.sampled_from(SERVICES), instance_id=st.sampled_from(IDS), kind=st.sampled_from([REGISTERED, UPDATED]))
    def happen(self, service: ServiceKey, instance_id: str, kind: str) -> None:
        self.history.note(kind, service, instance_id, SESSIONS[0], detail=str(len(self.order)))
        self.instances.append((service, instance_id, str(len(self.order))))
        self.order.append("instance")

    @rule(session_id=st.sampled_from(SESSIONS), kind=st.sampled_from([CONNECTED, DISCONNECTED]), known=st.booleans())
    def connect(self, session_id: bytes, kind: str, known: bool) -> None:
        """Connections without a session are nobody's story."""
        link = Link("10.0.0.1", "10.0.0.9", 0)
        if known:
            link.session = Session(session_id, 0)
            self.connections.append((session_id, str(len(self.order))))
            self.order.append("connection")
        self.history.note_connection(kind, link, str(len(self.order) - 1))

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0]), times=st.sampled_from([1, TOLD_PER_SECOND_MAX]))
    def look(self, seconds: float, times: int) -> None:
        """H3: so many looks since the first of a second; the next second begins with the first look after it."""
        self.now_us += round(seconds * SECOND_US)
        for _ in range(times):
            if self.now_us - self.second_us >= SECOND_US:
                self.second_us, self.looks = self.now_us, 0
            try:
                self.history.admit(self.now_us)
            except Overloaded:
                assert self.looks == TOLD_PER_SECOND_MAX
            else:
                self.looks += 1
                assert self.looks <= TOLD_PER_SECOND_MAX

    @invariant()
    def as_the_lists_say(self) -> None:
        self.history.validate()
        assert len(self.history) == min(RING, len(self.instances)) + min(RING, len(self.connections))
        for service in SERVICES:
            for instance_id in ("", *IDS):
                kept = [each for each in self.instances[-RING:] if each[0] == service and instance_id in ("", each[1])]
                assert [self._words(event) for event in self.history.of_instances(service, instance_id)] == kept
        for session_ids in (SESSIONS[:1], SESSIONS, ()):
            found = self.history.of_connections(session_ids)
            assert [(event[5], event[8]) for event in found] == [each for each in self.connections[-RING:] if each[0] in session_ids]
        both = sorted([*self.history._instances, *self.history._connections])
        assert [int(event[8]) for event in both] == sorted(int(event[8]) for event in both)  # H2

    @staticmethod
    def _words(event: Event) -> tuple[ServiceKey | None, str, str]:
        return event[3], event[4], event[8]


def test_the_history_agrees_with_plain_lists() -> None:
    """Whatever happens in whatever order (H1, H2, H3)."""
    run = settings(max_examples=80, stateful_step_count=30, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(HistoryMachine, settings=run)
