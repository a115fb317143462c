"""The brake against a model that looks at all sessions at every tick: who is dying, who is held, who may go, in any order of deaths,
returns and removals."""

from __future__ import annotations

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from govern.core.brake import HOLD_US, RELEASE_SECONDS, SESSIONS_MIN, WINDOW_US, Brake
from govern.core.lived import TICK_US
from govern.core.sessions import Lease, Session, Sessions, Silent, overdue_us, silence_us
from govern.model import Lsn

from .rig import ORDERS

TTLS_MS = (5_000, 7_000)
COUNTS = (100, 60, 120, 49)
TICKS = st.sampled_from([50, 110, 3, 20])
"""Enough to die of, to be held through, or hardly anything."""


@attrs.define(eq=False)
class Held:
    """One session in the queue of the model."""

    session: Session
    stamp_us: int
    since_us: int

    @property
    def silent(self) -> bool:
        return self.session.stamp_us == self.stamp_us


class BrakeMachine(RuleBasedStateMachine):
    """Sessions that beat at every tick unless they are silent, and a store that removes when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions()
        self.brake = Brake()
        self.all: list[Session] = []
        self.silent: dict[Session, None] = {}
        self.removals: dict[Session, int] = {}  # proposed, with the stamp of that moment
        self.engaged_us: int | None = None
        self.releasing = False
        self.queue: list[Held] = []
        self.released: dict[Session, int] = {}
        self.passed: dict[Session, int] = {}  # let pass without the brake, and when

    @initialize(count=st.sampled_from(COUNTS))
    def begin(self, count: int) -> None:
        for number in range(count):
            self.register(number)
        self._pass_time(20)

    def register(self, number: int) -> None:
        session_id = number.to_bytes(16, "big")
        self.sessions.grant(session_id, ORDERS, f"i{number}", Lease(Lsn(1, number + 1), TTLS_MS[number % 2]))
        session = self.sessions.get(session_id)
        assert session is not None
        if number == len(self.all):
            self.all.append(session)
        self.all[number] = session

    # --- what happens -------------------------------------------------------------------------------------------------------

    @rule(first=st.sampled_from([0, 0, 10, 40]), many=st.sampled_from([120, 80, 50, 10]), ticks=TICKS)
    def fall_silent(self, first: int, many: int, ticks: int) -> None:
        self.silent.update(dict.fromkeys(self.all[first : first + many]))
        self._pass_time(ticks)

    @rule(first=st.sampled_from([0, 5, 30, 60]), many=st.sampled_from([10, 120, 1, 30]), ticks=st.sampled_from([3, 20]))
    def come_back(self, first: int, many: int, ticks: int) -> None:
        """They are heard at the next tick, and register again what they lost."""
        for number, session in list(enumerate(self.all))[first : first + many]:
            self.silent.pop(session, None)
            if not session.count:
                session.stamp_us = self.sessions.now_us
                self.register(number)
        self._pass_time(ticks)

    @rule()
    def commit(self) -> None:
        """The store removes what those held that were let go, whether they were heard since or not (E4)."""
        for session in self.removals:
            for service, instance_id, _ in list(session.leases()):
                self.sessions.end(session.session_id, service, instance_id)
        self.removals.clear()

    @rule(ticks=TICKS)
    def pass_time(self, ticks: int) -> None:
        self._pass_time(ticks)

    def _pass_time(self, ticks: int) -> None:
        for _ in range(ticks):
            self._tick()

    def _tick(self) -> None:
        now_us = self.sessions.now_us = self.sessions.now_us + TICK_US
        for session in self.all:
            if session not in self.silent:
                session.stamp_us = now_us
        named = self.sessions.due(2048)
        many, dead = self._look(named, now_us)
        passing = self.brake.judge(named, self.sessions.dying(WINDOW_US), self.sessions.holders, now_us)
        self._compare(named, dead, many, passing, now_us)
        self.brake.validate()
        self.removals.update({silent.session: silent.stamp_us for silent in passing if silent.final})

    # --- the model ----------------------------------------------------------------------------------------------------------

    def _look(self, named: list[Silent], now_us: int) -> tuple[bool, list[Silent]]:
        """Whether most are dying, by a look at all of them (B1); and who was named as dead for the first time in its silence (B3)."""
        self.passed = {session: at_us for session, at_us in self.passed.items() if now_us - at_us < WINDOW_US}
        gone = sum(not session.count for session in self.passed)
        dying = holders = 0
        for session in self.all:
            if session.count:
                (ttl_ms,) = [lease.ttl_ms for _, _, lease in session.leases()]
                silence = now_us - session.stamp_us
                holders += 1
                ends_soon = silence >= overdue_us(ttl_ms) and session.stamp_us + silence_us(ttl_ms) <= now_us + WINDOW_US
                dying += ends_soon and self.released.get(session) != session.stamp_us
        many = dying + gone >= SESSIONS_MIN and 2 * (dying + gone) > holders + gone
        return many, [silent for silent in named if silent.final and self.released.get(silent.session) != silent.stamp_us]

    def _compare(self, named: list[Silent], dead: list[Silent], many: bool, passing: list[Silent], now_us: int) -> None:
        if self.engaged_us is None and not (many and dead):
            assert passing == named
            for silent in dead:
                self.passed.pop(silent.session, None)
                self.passed[silent.session] = now_us
            return
        if self.engaged_us is None:
            self.engaged_us = now_us
        for silent in dead:
            if not any(held.session is silent.session and held.silent for held in self.queue):
                self.queue = [held for held in self.queue if held.session is not silent.session]
                self.queue.append(Held(silent.session, silent.stamp_us, now_us))
        assert passing[: len(named)] == [silent._replace(final=False) if silent in dead else silent for silent in named]
        self.releasing = self.releasing or not many or now_us - self.engaged_us >= HOLD_US
        self._compare_release(passing[len(named) :], now_us)

    def _compare_release(self, released: list[Silent], now_us: int) -> None:
        assert self.releasing or not released
        for silent in released:
            self.queue = self.queue[next(place for place, held in enumerate(self.queue) if held.silent) :]  # B4: the oldest that is silent
            held = self.queue.pop(0)
            assert (silent.session, silent.stamp_us, silent.final) == (held.session, held.stamp_us, True)
            self.released[silent.session] = silent.stamp_us
        waiting = [held for held in self.queue if held.silent]
        assert all(now_us - held.since_us <= HOLD_US + RELEASE_SECONDS * 1_000_000 + TICK_US for held in waiting)  # B2
        if self.brake.engaged_us is None:
            assert self.releasing
            assert not waiting
            self.engaged_us, self.releasing, self.queue, self.passed = None, False, [], {}

    @invariant()
    def as_the_model_says(self) -> None:
        assert self.brake.engaged_us == self.engaged_us
        assert self.brake.releasing == self.releasing
        assert (self.brake.reason is None) == (self.engaged_us is None)
        still_held = [session for session, silent in self.brake._held.items() if session.stamp_us == silent.stamp_us]
        assert still_held == [held.session for held in self.queue if held.silent]
        self.brake.validate()
        self.sessions.validate()


def test_the_brake_agrees_with_the_model() -> None:
    """Whoever dies, returns and is removed, in whatever order (B1 to B4)."""
    run = settings(max_examples=25, stateful_step_count=15, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(BrakeMachine, settings=run)
