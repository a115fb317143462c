"""Whole runs: a fixed set of seeds each time, and many when there is time."""

from __future__ import annotations

import os

import pytest

from .campaign import run_many, run_seed

FIXED = range(1, 9)


@pytest.mark.parametrize("seed", FIXED)
def test_seed(seed: int) -> None:
    """No promise is broken in two simulated minutes, faults and all, and everything converges after them."""
    assert run_seed((seed, 120.0)).failure == ""


@pytest.mark.deep
def test_many_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    """500 seeds of two simulated minutes break no promise; the hours simulated and the real time are printed."""
    with capsys.disabled():
        assert run_many(range(500), 120.0, os.cpu_count() or 1) == 0
