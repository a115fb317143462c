"""The two small doors: what every clock and every source of chance must do, real or simulated."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from govern.environment import Clock, Random, SimulatedClock, SystemClock, real_environment


@pytest.fixture(params=["real", "simulated"])
def clock(request: pytest.FixtureRequest, autojump_clock: MockClock) -> Clock:
    """Both twins; the simulated one runs on trio's virtual time."""
    return SystemClock() if request.param == "real" else SimulatedClock(offset_us=5_000_000, wall_offset=-3.0)


@pytest.fixture(params=["real", "simulated"])
def chance(request: pytest.FixtureRequest) -> Random:
    """Both twins."""
    return real_environment().random if request.param == "real" else random.Random(7)


async def test_a_boot_clock_never_goes_back(clock: Clock) -> None:
    """Successive readings are whole microseconds and never decrease."""
    readings = []
    for _ in range(50):
        readings.append(clock.boot_us())
        await trio.sleep(0.001)
    assert all(type(reading) is int for reading in readings)
    assert readings == sorted(readings)


async def test_a_wall_clock_tells_a_time_of_this_century(clock: Clock) -> None:
    """People read it: seconds since the epoch, after 2020."""
    assert 1_577_836_800 < clock.wall() < 4_102_444_800


async def test_the_simulated_clocks_follow_virtual_time_with_their_own_offsets(autojump_clock: MockClock) -> None:
    """An hour of virtual time is an hour on both clocks, and the offsets stay."""
    clock = SimulatedClock(offset_us=11, wall_offset=2.0)
    boot_us, wall = clock.boot_us(), clock.wall()
    await trio.sleep(3600)
    assert clock.boot_us() - boot_us == pytest.approx(3600e6, abs=1)
    assert clock.wall() - wall == pytest.approx(3600)
    assert clock.boot_us() - SimulatedClock().boot_us() == 11


def test_the_real_boot_clock_is_clamped_when_the_system_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hypervisor that sets the clock back is not believed."""
    readings = iter([5_000_000, 9_000_000, 2_000_000, 9_500_000])
    monkeypatch.setattr("govern.environment.time.clock_gettime_ns", lambda clock_id: next(readings))
    clock = SystemClock()
    assert [clock.boot_us() for _ in range(4)] == [5_000, 9_000, 9_000, 9_500]


def test_chance_stays_in_its_bounds(chance: Random) -> None:
    """`random` is in [0, 1), `uniform` between its bounds, `randbytes` as long as asked and not the same twice."""
    assert all(0 <= chance.random() < 1 for _ in range(200))
    assert all(2 <= chance.uniform(2, 3) <= 3 for _ in range(200))
    first, second = chance.randbytes(16), chance.randbytes(16)
    assert len(first) == len(second) == 16
    assert first != second
