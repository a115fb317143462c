"""The mass brake under random deaths and returns, through the sessions it looks at, tick by tick."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from govern.core.brake import HOLD_US, RELEASE_SECONDS, SESSIONS_MIN, WINDOW_US, Brake
from govern.core.lived import TICK_US
from govern.core.sessions import Lease, Session, Sessions, Silent, silence_us
from govern.model import Lsn, ServiceKey

SERVICE = ServiceKey("default", "orders")
TTL_MS = 5_000
SECOND_US = 1_000_000


class Rig:
    """Sessions that beat once a second, each at a tick of its own, until they are told to stop; and a store that removes late."""

    def __init__(self, count: int, *, enabled: bool = True, commit_us: int = TICK_US) -> None:
        self.sessions = Sessions()
        self.brake = Brake(enabled=enabled)
        self.all = [self._add(number) for number in range(count)]
        self.silent: dict[Session, None] = {}
        self.named_us: dict[Session, int] = {}  # when it was named as dead first in this silence
        self.passed_us: dict[Session, int] = {}  # when it was let pass first in this silence
        self.removed_us: dict[Session, int] = {}
        self._commit_us = commit_us
        self._removals: list[tuple[int, Session]] = []
        self._ticks = 0
        self.pass_time(30)

    def _add(self, number: int) -> Session:
        session_id = number.to_bytes(16, "big")
        self.sessions.grant(session_id, SERVICE, f"i{number}", Lease(Lsn(1, number + 1), TTL_MS))
        session = self.sessions.get(session_id)
        assert session is not None
        return session

    def pass_time(self, ticks: int) -> None:
        for _ in range(ticks):
            self._tick()

    def _tick(self) -> None:
        self._ticks += 1
        sessions = self.sessions
        for number, session in enumerate(self.all):
            if session not in self.silent and (number + self._ticks) % 10 == 0:
                session.stamp_us = sessions.now_us
                self.named_us.pop(session, None)
                self.passed_us.pop(session, None)
        sessions.now_us += TICK_US
        named = sessions.due(2048)
        for silent in named:
            if silent.final:
                self.named_us.setdefault(silent.session, sessions.now_us)
        passing = self.brake.judge(named, sessions.dying(WINDOW_US), sessions.holders, sessions.now_us)
        assert [silent for silent in passing if silent.session.stamp_us != silent.stamp_us] == [], "it was heard (B4)"
        for silent in passing:
            if silent.final:
                assert silent.session in self.named_us, "nobody is let pass who was not named"
                if silent.session not in self.passed_us:
                    self.passed_us[silent.session] = sessions.now_us
                    self._removals.append((sessions.now_us + self._commit_us, silent.session))
        while self._removals and self._removals[0][0] <= sessions.now_us:
            _, session = self._removals.pop(0)
            if session in self.passed_us and session.count:
                number = self.all.index(session)
                sessions.end(session.session_id, SERVICE, f"i{number}")
                self.removed_us[session] = sessions.now_us
        sessions.validate()

    def kill(self, numbers: range) -> None:
        self.silent.update(dict.fromkeys(self.all[numbers.start : numbers.stop]))

    def held_us(self) -> list[int]:
        """How long each was held that was named as dead and was let pass."""
        return [self.passed_us[session] - at_us for session, at_us in self.named_us.items() if session in self.passed_us]


schedules = st.lists(
    st.tuples(st.sampled_from(["kill", "kill", "return", "wait"]), st.integers(0, 119), st.integers(1, 120), st.integers(1, 60)), max_size=8
)


@given(st.integers(1, 120), schedules, st.sampled_from([TICK_US, 3 * SECOND_US]))
@settings(max_examples=40)
def test_nobody_who_stays_silent_is_held_for_longer_than_the_hold_and_the_release(
    count: int, schedule: list[tuple[str, int, int, int]], commit_us: int
) -> None:
    """Whoever dies and returns in whatever order, however slow the disk is: each that stays silent is let pass within ten seconds and the
    five of the release, at most; in the end nobody is held, the brake is off, and exactly the silent are gone (B2, B3)."""
    rig = Rig(count, commit_us=commit_us)
    for kind, first, many, ticks in schedule:
        if kind == "kill":
            rig.kill(range(first, min(first + many, count)))
        elif kind == "return":
            for session in rig.all[first : first + many]:
                rig.silent.pop(session, None)
        rig.pass_time(ticks)
    rig.pass_time((silence_us(TTL_MS) + HOLD_US + (RELEASE_SECONDS + 5) * SECOND_US + commit_us) // TICK_US)
    assert all(held_us <= HOLD_US + (RELEASE_SECONDS + 1) * SECOND_US for held_us in rig.held_us())
    assert all(not session.count for session in rig.silent)
    assert all(session.count for session in rig.all if session not in rig.silent and session not in rig.removed_us)
    assert rig.brake.held == 0
    assert rig.brake.engaged_us is None
    assert rig.brake.reason is None


@given(st.integers(1, 160), st.integers(0, 160), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 80)), max_size=6))
@settings(max_examples=40)
def test_few_or_not_most_never_engage_it(count: int, limit: int, deaths: list[tuple[int, int]]) -> None:
    """Fewer than 50, or at most half of all: whenever they die, each is let pass at the tick at which it is named (B1)."""
    dead = min(limit, max(SESSIONS_MIN - 1, count // 2) if count // 2 >= SESSIONS_MIN else SESSIONS_MIN - 1, count)
    rig = Rig(count)
    killed = 0
    for ticks, many in deaths:
        rig.kill(range(killed, min(dead, killed + many)))
        killed = min(dead, killed + many)
        rig.pass_time(ticks)
        assert rig.brake.engaged_us is None
    for _ in range(60):
        rig.pass_time(1)
        assert rig.brake.engaged_us is None
    assert all(held_us == 0 for held_us in rig.held_us())
    assert all(not session.count for session in rig.silent)


def test_most_at_once_are_all_held_and_then_go_a_fifth_each_second() -> None:
    """80 of 100 fall silent within a second: not one of them goes before ten seconds are over; then 16 each second, oldest first."""
    rig = Rig(100)
    rig.kill(range(80))
    started_us = rig.sessions.now_us
    while rig.brake.engaged_us is None:
        rig.pass_time(1)
        assert rig.sessions.now_us - started_us < silence_us(TTL_MS)
    reason = rig.brake.reason
    assert reason == "80 of 100 sessions fell silent together: 8 are held for 10 s at most, then a fifth of them expires each second"
    engaged_us = rig.brake.engaged_us
    rig.pass_time(HOLD_US // TICK_US - 1)
    assert rig.passed_us == {}
    assert rig.brake.held == 80
    gone = []
    for _ in range(RELEASE_SECONDS):
        rig.pass_time(10)
        gone.append(len(rig.passed_us))
    assert gone == [16, 32, 48, 64, 80]
    assert list(rig.passed_us) == list(rig.named_us)
    assert rig.brake.reason is None
    assert rig.sessions.now_us - engaged_us < HOLD_US + (RELEASE_SECONDS + 1) * SECOND_US


def test_who_comes_back_is_not_removed_and_the_rest_does_not_wait_for_the_end() -> None:
    """80 of 100 fall silent, 70 return after five seconds: none of these is removed, and the other ten go within five seconds more."""
    rig = Rig(100)
    rig.kill(range(80))
    rig.pass_time(100)
    assert rig.brake.held == 80
    for session in rig.all[:70]:
        del rig.silent[session]
    returned_us = rig.sessions.now_us
    rig.pass_time(70)
    assert all(session.count for session in rig.all[:70])
    assert max(rig.passed_us[session] for session in rig.all[70:80]) - returned_us <= (RELEASE_SECONDS + 2) * SECOND_US
    assert rig.brake.reason is None


def test_forty_of_sixty_are_not_held() -> None:
    """Most, but fewer than fifty: in a small registry that is a rack or a deployment, and callers need to know (B1)."""
    rig = Rig(60)
    rig.kill(range(40))
    rig.pass_time(60)
    assert rig.held_us() == [0] * 40
    assert all(not session.count for session in rig.silent)


def test_those_whose_removal_waits_for_the_disk_are_not_held_again() -> None:
    """160 of 200 are held and let go, and the disk takes three seconds for each removal: who is named again meanwhile passes, and the brake
    is not put on once more for the same silence (B3)."""
    rig = Rig(200, commit_us=3 * SECOND_US)
    rig.kill(range(160))
    engaged: dict[int, int] = {}  # since when, and until when
    for _ in range(300):
        rig.pass_time(1)
        if rig.brake.engaged_us is not None:
            engaged[rig.brake.engaged_us] = rig.sessions.now_us
    ((since_us, until_us),) = engaged.items()
    assert until_us - since_us <= HOLD_US + RELEASE_SECONDS * SECOND_US
    assert all(not session.count for session in rig.silent)


def test_deaths_spread_over_the_window_count_together() -> None:
    """Of a hundred, ten die every half second: what has gone already counts with what is dying, and the last ones are held."""
    rig = Rig(100)
    for first in range(0, 80, 10):
        rig.kill(range(first, first + 10))
        rig.pass_time(5)
    rig.pass_time(40)
    assert rig.brake.engaged_us is not None
    assert rig.brake.held > 0


def test_more_at_once_than_one_tick_names_are_counted_all_the_same() -> None:
    """Three thousand fall silent while nobody is named for a while: the first tick names 2,048 of them and lets none pass."""
    sessions, brake = Sessions(), Brake()
    for number in range(3_000):
        sessions.grant(number.to_bytes(16, "big"), SERVICE, f"i{number}", Lease(Lsn(1, number + 1), TTL_MS))
    for number in range(3_000, 5_500):
        sessions.grant(number.to_bytes(16, "big"), SERVICE, f"i{number}", Lease(Lsn(1, number + 1), 60_000))
    sessions.now_us = 2 * silence_us(TTL_MS)
    named = sessions.due(2048)
    assert len(named) == 2048
    passing = brake.judge(named, sessions.dying(WINDOW_US), sessions.holders, sessions.now_us)
    assert [silent for silent in passing if silent.final] == []
    assert brake.held == 2048


def test_switched_off_it_lets_everybody_pass() -> None:
    """With `brake = false` all of a hundred go when they are named."""
    rig = Rig(100, enabled=False)
    rig.kill(range(100))
    rig.pass_time(60)
    assert rig.held_us() == [0] * 100
    assert rig.brake.reason is None


def test_a_session_named_under_a_longer_ttl_later_keeps_its_place() -> None:
    """It is held once, goes once, and then with everything that its silence has cost it."""
    brake = Brake()
    sessions = [Session(number.to_bytes(16, "big"), 0) for number in range(60)]
    for number, session in enumerate(sessions):
        session.put(SERVICE, f"i{number}", Lease(Lsn(1, number + 1), 1_000))
    brake.judge([Silent(session, 1_000, 0) for session in sessions], sessions, 60, 0)
    brake.judge([Silent(sessions[0], 5_000, 0)], sessions, 60, SECOND_US)
    assert brake.held == 60
    released: list[Silent] = []
    for tick in range(HOLD_US // TICK_US + 60):
        released += [silent for silent in brake.judge([], sessions, 60, SECOND_US + tick * TICK_US) if silent.final]
    assert [silent.session for silent in released] == sessions
    assert released[0].ttl_ms == 5_000
