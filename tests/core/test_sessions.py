"""Sessions: the lazy heap of deadlines against a scan of everything, who owns a session, when it is forgotten; and the lived clock."""

from __future__ import annotations

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from govern.core.entries import ExpireOp
from govern.core.lived import STALL_US, STEP_US_MAX, TICK_US, LivedClock
from govern.core.sessions import (
    RETRY_US,
    SILENCE_MS_DEFAULT,
    Lease,
    Session,
    Sessions,
    Silent,
    overdue_us,
    quiet_us,
    silence_us,
)
from govern.model import Lsn, ServiceKey

SERVICE = ServiceKey("default", "orders")
IDS = [b"1" * 16, b"2" * 16, b"3" * 16]
TTLS_MS = [1_000, 2_000, 5_000, 60_000]


@attrs.define
class Twin:
    """What a scan of everything knows of one session."""

    stamp_us: int
    leases: dict[str, int] = attrs.field(factory=dict)  # instance id -> ttl_ms
    connected: bool = True
    named_us: dict[int, int] = attrs.field(factory=dict)  # ttl_ms -> when it was named last in this silence
    quiet: dict[int, None] = attrs.field(factory=dict)  # the ttls under which it was named as quiet in this silence


class SilenceMachine(RuleBasedStateMachine):
    """Random schedules; time moves in ticks only, as on a node, and after each one `due` is compared with the scan."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions()
        self.twins: dict[bytes, Twin] = {}
        self.attempt = 0
        self.seq = 0

    @initialize()
    def some_start(self) -> None:
        self.sessions.now_us = 700_000

    @rule(who=st.sampled_from(IDS))
    def connect(self, who: bytes) -> None:
        self.attempt += 1
        known = who in self.twins
        attached = self.sessions.attach(who, self.attempt, f"connection {self.attempt}")
        assert attached is not None
        assert attached[2] == known
        twin = self.twins.setdefault(who, Twin(0))
        twin.connected = True
        self._heard(who)

    @precondition(lambda self: self.twins)
    @rule(who=st.sampled_from(IDS))
    def disconnect(self, who: bytes) -> None:
        session = self.sessions.get(who)
        if session is not None and session.connection is not None:
            self.sessions.detach(session, "another connection")
            assert session.connection is not None
            self.sessions.detach(session, session.connection)
            self.twins[who].connected = False

    @rule(who=st.sampled_from(IDS))
    def stamp(self, who: bytes) -> None:
        session = self.sessions.get(who)
        if session is not None:
            session.stamp_us = self.sessions.now_us
            self._heard(who)

    def _heard(self, who: bytes) -> None:
        twin = self.twins[who]
        if twin.stamp_us != self.sessions.now_us:
            twin.stamp_us, twin.named_us, twin.quiet = self.sessions.now_us, {}, {}

    @rule(who=st.sampled_from(IDS), name=st.sampled_from("abc"), ttl_ms=st.sampled_from(TTLS_MS))
    def grant(self, who: bytes, name: str, ttl_ms: int) -> None:
        """A registration is committed; its frame was read just before."""
        self.stamp(who)
        self.twins.setdefault(who, Twin(self.sessions.now_us, connected=False))
        self.seq += 1
        self.sessions.grant(who, SERVICE, name, Lease(Lsn(1, self.seq), ttl_ms))
        self.twins[who].leases[name] = ttl_ms

    @rule(who=st.sampled_from(IDS), name=st.sampled_from("abc"))
    def end(self, who: bytes, name: str) -> None:
        self.sessions.end(who, SERVICE, name)
        if who in self.twins:
            self.twins[who].leases.pop(name, None)

    @rule()
    def grace(self) -> None:
        self.sessions.grant_grace()
        for who in self.twins:
            self._heard(who)

    @rule(ticks=st.integers(1, 12), step_us=st.sampled_from([TICK_US, TICK_US, TICK_US, STEP_US_MAX]))
    def pass_time(self, ticks: int, step_us: int) -> None:
        for _ in range(ticks):
            self.sessions.now_us += step_us
            silent = self.sessions.due(1_000)
            self._compare_quiet([each for each in silent if not each.final])
            self._compare([each for each in silent if each.final])
            self._compare_dying()

    @rule(ticks=st.integers(20, 60))
    def pass_much_time(self, ticks: int) -> None:
        self.pass_time(ticks, TICK_US)

    def _compare_quiet(self, quiet: list[Silent]) -> None:
        """Everybody is named as quiet at the first tick between 0.8 and 0.9 ttl, once in a silence."""
        now_us = self.sessions.now_us
        named = {(each.session.session_id, each.ttl_ms) for each in quiet}
        assert len(named) == len(quiet)
        for each in quiet:
            assert quiet_us(each.ttl_ms) <= now_us - each.stamp_us < silence_us(each.ttl_ms)
            assert each.stamp_us == each.session.stamp_us
            assert Sessions.expiries([each], 1000) == [], "the quiet are not dead"
        for who, twin in self.twins.items():
            for ttl_ms in sorted(set(twin.leases.values())):
                if (who, ttl_ms) in named:
                    assert ttl_ms not in twin.quiet, "named twice"
                    twin.quiet[ttl_ms] = None
                elif quiet_us(ttl_ms) <= now_us - twin.stamp_us < silence_us(ttl_ms):
                    assert ttl_ms in twin.quiet, "not named"

    def _compare_dying(self) -> None:
        """Who was not heard for 0.6 of a ttl and is to be named as dead within a second."""
        now_us = self.sessions.now_us
        expected = {
            who
            for who, twin in self.twins.items()
            for ttl_ms in twin.leases.values()
            if now_us - twin.stamp_us >= overdue_us(ttl_ms) and twin.stamp_us + silence_us(ttl_ms) <= now_us + 1_000_000
        }
        assert {session.session_id for session in self.sessions.dying(1_000_000)} == expected

    def _compare(self, silent: list[Silent]) -> None:
        now_us = self.sessions.now_us
        named = {(each.session.session_id, each.ttl_ms) for each in silent}
        assert len(named) == len(silent), "a session is named once per ttl"
        for each in silent:
            twin = self.twins[each.session.session_id]
            assert now_us - each.session.stamp_us >= silence_us(each.ttl_ms), "it was heard within 0.9 ttl"
            assert each.stamp_us == each.session.stamp_us == twin.stamp_us
            assert each.ttl_ms in twin.leases.values(), "nothing is held under that ttl"
            dies = {(op.instance_id, op.service) for op in Sessions.expiries([each], 1000)}
            assert dies == {(name, SERVICE) for name, ttl_ms in twin.leases.items() if ttl_ms <= each.ttl_ms}
        for who, twin in list(self.twins.items()):
            for ttl_ms in sorted(set(twin.leases.values())):
                if now_us - twin.stamp_us < silence_us(ttl_ms):
                    continue
                last_us = twin.named_us.get(ttl_ms)
                if (who, ttl_ms) in named:
                    assert last_us is None or now_us - last_us >= min(RETRY_US, overdue_us(ttl_ms)), "named too often"
                    twin.named_us[ttl_ms] = now_us
                else:
                    assert last_us is not None, "a silent session was not named at the first tick"
                    assert now_us - last_us < RETRY_US, "a silent session is not named again"
            if self.sessions.get(who) is None:
                assert not twin.connected, "forgotten with a connection"
                assert not twin.leases, "forgotten with a lease"
                assert now_us - twin.stamp_us >= silence_us(SILENCE_MS_DEFAULT), "forgotten too early"
                del self.twins[who]

    @invariant()
    def sound(self) -> None:
        self.sessions.validate()
        assert len(self.sessions) == len(self.twins)
        for session in self.sessions:
            twin = self.twins[session.session_id]
            assert (session.connection is not None) == twin.connected
            assert session.count == len(twin.leases)
        assert self.sessions.connected == sum(twin.connected for twin in self.twins.values())


def test_the_lazy_heap_names_exactly_the_sessions_a_scan_would() -> None:
    """Nobody heard within 0.9 ttl is ever named; everybody silent for that long is named at the first tick after it, and again."""
    run = settings(max_examples=80, stateful_step_count=30, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(SilenceMachine, settings=run)


# --- single claims ----------------------------------------------------------------------------------------------------------


def test_no_more_than_the_limit_is_named_at_once_and_the_rest_follows() -> None:
    """Ten sessions fall silent in one tick and three may be named: all ten have been named after four looks, each once."""
    sessions = Sessions()
    for number in range(10):
        sessions.grant(bytes([number]) * 16, SERVICE, f"i{number}", Lease(Lsn(1, number + 1), 5_000))
    sessions.now_us = silence_us(5_000)
    looks = [sessions.due(3) for _ in range(5)]
    assert [len(look) for look in looks] == [3, 3, 3, 1, 0]
    assert len({each.session.session_id for look in looks for each in look}) == 10


def test_only_an_unchanged_stamp_expires() -> None:
    """A session that was heard between being named and the last read loses nothing (E2)."""
    sessions = Sessions()
    sessions.grant(IDS[0], SERVICE, "a", Lease(Lsn(1, 1), 5_000))
    sessions.now_us = silence_us(5_000)
    silent = sessions.due(10)
    assert sessions.expiries(silent, 1000) == [ExpireOp(SERVICE, "a", Lsn(1, 1))]
    silent[0].session.stamp_us = sessions.now_us
    assert sessions.expiries(silent, 1000) == []


def test_a_lease_renewed_after_a_session_was_named_is_named_in_time() -> None:
    """With the shortest ttl, a session that is heard right after it was named and then falls silent is named at its own deadline, not at
    the end of the pause after the first naming."""
    sessions = Sessions()
    sessions.grant(IDS[0], SERVICE, "a", Lease(Lsn(1, 1), 1_000))
    sessions.now_us = silence_us(1_000)
    (silent,) = sessions.due(10)
    silent.session.stamp_us = sessions.now_us
    sessions.now_us += silence_us(1_000)
    assert len(sessions.due(10)) == 1


attempts = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12)


@given(attempts)
@settings(max_examples=100, derandomize=True, database=None, deadline=None)
def test_the_newest_attempt_owns_the_session(schedule: list[tuple[int, bool]]) -> None:
    """Whatever order connections come and go in: an attempt older than the newest seen never gets the session, one that is connected is not
    replaced by itself, and who lost it is named."""
    sessions = Sessions()
    newest, connected = -1, None
    for number, (attempt, stays) in enumerate(schedule):
        connection = f"connection {number}"
        attached = sessions.attach(IDS[0], attempt, connection)
        if attempt < newest or (attempt == newest and connected is not None):
            assert attached is None
            continue
        assert attached is not None
        session, former, known = attached
        assert (former, known) == (connected, newest >= 0)
        assert session.attempt == attempt
        newest, connected = attempt, connection
        if not stays:
            sessions.detach(session, connection)
            connected = None


def test_a_session_outlives_its_connection_and_its_longest_ttl_decides() -> None:
    """Without a connection, a session that holds nothing is forgotten after the default silence; one with a lease stays until that ends."""
    sessions = Sessions()
    session = attach(sessions, IDS[0])
    other = attach(sessions, IDS[1])
    sessions.grant(IDS[1], SERVICE, "a", Lease(Lsn(1, 1), 60_000))
    sessions.detach(session, "c")
    sessions.detach(other, "c")
    sessions.now_us = silence_us(SILENCE_MS_DEFAULT)
    assert sessions.due(10) == []
    assert sessions.get(IDS[0]) is None
    assert sessions.get(IDS[1]) is other
    sessions.now_us = silence_us(60_000)
    assert [each.ttl_ms for each in sessions.due(10)] == [60_000]
    sessions.end(IDS[1], SERVICE, "a")
    sessions.now_us += 2 * silence_us(SILENCE_MS_DEFAULT)
    assert sessions.due(10) == []
    assert len(sessions) == 0
    sessions.validate()


def attach(sessions: Sessions, session_id: bytes) -> Session:
    attached = sessions.attach(session_id, 1, "c")
    assert attached is not None
    return attached[0]


# --- the lived clock --------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(-5_000_000, 400_000), st.sampled_from([TICK_US, 3_600_000_000])), max_size=50))
@settings(max_examples=100, derandomize=True, database=None, deadline=None)
def test_the_lived_clock_never_goes_back_and_never_leaps(steps_us: list[int]) -> None:
    """Whatever the monotonic clock shows, even backwards: each tick adds between nothing and 250 ms (L1, L2)."""
    monotonic_us = 10_000_000
    clock = LivedClock(monotonic_us)
    highest_us = monotonic_us
    for step_us in steps_us:
        monotonic_us += step_us
        before_us = clock.now_us
        stalled = clock.tick(monotonic_us)
        passed_us = max(0, monotonic_us - highest_us)
        highest_us = max(highest_us, monotonic_us)
        assert clock.now_us - before_us == min(passed_us, STEP_US_MAX)
        assert stalled == (passed_us > STALL_US)


def test_a_stall_of_an_hour_costs_a_client_a_quarter_of_a_second() -> None:
    """Ticks in time add what passed; one that is an hour late adds 250 ms and is counted as a stall."""
    clock = LivedClock(0)
    for number in range(1, 11):
        assert not clock.tick(number * TICK_US)
    assert clock.now_us == 10 * TICK_US
    assert clock.tick(3_600_000_000)
    assert clock.now_us == 10 * TICK_US + STEP_US_MAX
    assert clock.stalls == 1
