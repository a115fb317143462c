"""The failure detector, tick by tick: when it names silent sessions, and when it holds its tongue."""

from __future__ import annotations

import pytest

from govern.actors.failure_detector import READY_HOLD_US, STALL_HOLD_US, FailureDetector
from govern.actors.mail import LastRead, SessionsMail
from govern.actors.runtime import Mailbox
from govern.core.brake import Brake
from govern.core.limits import Limits
from govern.core.links import Gate
from govern.core.lived import TICK_US, LivedClock
from govern.core.sessions import Lease, Sessions, silence_us
from govern.core.shard import Shard
from govern.model import Lsn, ServiceKey
from tests.core.rig import alone

SERVICE = ServiceKey("default", "orders")
ALIVE, DEAD = b"a" * 16, b"d" * 16
HOUR_US = 3_600_000_000


class HandClock:
    """Stands where it was put."""

    def __init__(self) -> None:
        self.now_us = 0

    def boot_us(self) -> int:
        return self.now_us

    def wall(self) -> float:
        return 0.0


class Rig:
    """A detector whose ticks are made by hand; one session is heard before every tick, one never."""

    def __init__(self, *, mailbox_capacity: int = 1_000) -> None:
        self.sessions = Sessions()
        self.shard = Shard(self.sessions, Limits())
        self.gate = Gate(Limits())
        self.mailbox: Mailbox[SessionsMail] = Mailbox("sessions", capacity=mailbox_capacity)
        self.brake = Brake()
        self.ownership = alone()
        self.clock = HandClock()
        self.detector = FailureDetector(
            shard=self.shard,
            sessions=self.sessions,
            ownership=self.ownership,
            clock=self.clock,
            gate=self.gate,
            brake=self.brake,
            sessions_mailbox=self.mailbox,
        )
        self.lived = LivedClock(0)
        self.now_us = 0
        for number, session_id in enumerate((ALIVE, DEAD), 1):
            self.sessions.grant(session_id, SERVICE, f"i{number}", Lease(Lsn(1, number), 5_000))

    def tick(self, after_us: int = TICK_US) -> list[bytes]:
        """The sessions named as dead at this tick."""
        alive = self.sessions.get(ALIVE)
        assert alive is not None
        alive.stamp_us = self.sessions.now_us
        self.now_us += after_us
        self.clock.now_us = self.now_us
        self.detector._tick(self.lived, self.now_us)
        named = [silent for mail in self.mailbox.get_all(1_000) if isinstance(mail, LastRead) for silent in mail.silent]
        return [silent.session.session_id for silent in named if silent.final]

    def until_named(self) -> int:
        """Lived time from now to the tick at which the dead one is named; the living one never is."""
        started_us = self.sessions.now_us
        for _ in range(1_000):
            named = self.tick()
            assert ALIVE not in named
            if named:
                return self.sessions.now_us - started_us
        raise AssertionError("nobody was named")


def test_nobody_is_named_while_loading_and_everybody_starts_with_full_grace() -> None:
    """An hour of loading names nobody; from its end a silent session has its whole 0.9 ttl again (E3, E5)."""
    rig = Rig()
    for _ in range(200):
        assert rig.tick() == []
    rig.shard.loaded = True
    rig.tick()
    assert rig.until_named() == silence_us(5_000)


def test_nobody_is_named_in_the_first_four_seconds() -> None:
    """Clients with a short ttl may still be in their reconnect backoff after the start (E3)."""
    rig = Rig()
    rig.sessions.grant(DEAD, SERVICE, "short", Lease(Lsn(1, 9), 1_000))
    rig.shard.loaded = True
    rig.tick()
    assert rig.until_named() == READY_HOLD_US > silence_us(1_000)


def test_nobody_is_named_without_a_lease_nor_in_the_first_four_seconds_after_it() -> None:
    """Without a lease another node may have the slots, and who speaks there is silent here (E3)."""
    rig = Rig()
    rig.shard.loaded = True
    rig.ownership.lease_until_us = 10 * TICK_US
    for _ in range(200):
        assert rig.tick() == []
    rig.ownership.lease_until_us = HOUR_US
    assert rig.until_named() == READY_HOLD_US


@pytest.mark.parametrize("stall_us", [1_100_000, 10_000_000, HOUR_US])
def test_a_stall_of_any_length_expires_nobody_who_speaks_again(stall_us: int) -> None:
    """However long the node stood still: a client that was heard until then and is heard after it is never named, nobody is named for two
    seconds, and then the dead are (E1, E3)."""
    rig = Rig()
    rig.shard.loaded = True
    for _ in range(43):
        assert rig.tick() == []
    assert rig.tick(stall_us) == []
    assert rig.until_named() == STALL_HOLD_US


def test_while_connections_wait_to_be_accepted_nobody_is_named_for_a_bounded_time() -> None:
    """A healthy client may be among those that wait; but a flood of connections does not keep the dead for ever (E3)."""
    rig = Rig()
    rig.shard.loaded = True
    for _ in range(44):
        assert rig.tick() == []
    for _ in range(90):
        rig.gate.note_full_accept(rig.sessions.now_us)
        assert rig.tick() == []
    for _ in range(20):
        rig.gate.note_full_accept(rig.sessions.now_us)
        if rig.tick():
            break
    else:
        raise AssertionError("the flood kept the dead alive")


def test_a_full_mailbox_drops_the_names_and_they_are_said_again() -> None:
    """The detector never waits for the sessions: what it could not say it says a second later."""
    rig = Rig(mailbox_capacity=1)
    rig.shard.loaded = True
    rig.mailbox.post(LastRead([]))
    for _ in range(44):
        rig.detector._tick(rig.lived, rig.now_us)
        rig.now_us += TICK_US
    rig.mailbox.get_all(10)
    assert rig.until_named() <= 1_100_000
