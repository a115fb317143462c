"""Every state that a crash leaves behind is legal, wherever in 200 operations it comes."""

from __future__ import annotations

import pytest

from .crash_points import crash_at

STRIDE = 80


@pytest.mark.parametrize("power", [True, False], ids=["power", "kill"])
def test_a_crash_at_some_operations(power: bool) -> None:
    """One in forty, by turns with the power and without; all of them in the deep run."""
    last = crash_at(0, power=power)
    assert last > 400, "the workload hardly uses the disk"
    for number in range(8 if power else 1 + STRIDE // 2, last, STRIDE):
        crash_at(number, power=power)


@pytest.mark.deep
@pytest.mark.parametrize("power", [True, False], ids=["power", "kill"])
def test_a_crash_at_every_operation(power: bool) -> None:
    """All of them."""
    for number in range(1, crash_at(0, power=power) + 1):
        crash_at(number, power=power)
