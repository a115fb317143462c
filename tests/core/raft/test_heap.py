"""Short runs of candidates alone, and the broken candidates that they must find."""

from __future__ import annotations

import pytest

from ..many import run_many
from .heap import COUNTED, Run, summary_of
from .mutants import DEEP, MUTANTS, find

RUNS = 150
RUNS_DEEP = 100_000


def test_short_runs() -> None:
    """No promise is broken, and the runs are not empty: everything that may happen does."""
    counts = dict.fromkeys(COUNTED, 0.0)
    for seed in range(RUNS):
        run = Run(seed)
        run.play()
        for name in COUNTED:
            counts[name] += getattr(run, name)
    assert counts["proposed"] > 20 * RUNS
    assert counts["reads"] > 2 * RUNS
    assert counts["crashes"] > RUNS
    assert counts["term_max"] > 2 * RUNS
    for name in ("wipes", "changes", "transfers", "installs"):
        assert counts[name] > RUNS / 20, name


def test_a_run_repeats() -> None:
    """The same seed tells the same story."""
    stories: list[list[str]] = [[], []]
    for story in stories:
        Run(25, story.append).play()
    assert stories[0] == stories[1]
    assert len(stories[0]) > 100


@pytest.mark.deep
def test_many_short_runs() -> None:
    """A hundred thousand of them; the totals are printed."""
    assert run_many(summary_of, COUNTED, range(RUNS_DEEP)) == []


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in DEEP])
def test_every_mutant_is_found(name: str) -> None:
    """Within its number of runs; the seed is printed."""
    found = find(name, MUTANTS[name][1])
    assert found is not None, f"nothing found {name!r} in {MUTANTS[name][1]} runs"
    print(f"{name}: found by seed {found[0]}: {found[1][:200]}")


@pytest.mark.deep
@pytest.mark.parametrize("name", DEEP)
def test_every_rare_mutant_is_found(name: str) -> None:
    """Those that need more luck; each has a directed story besides (`test_stories`)."""
    test_every_mutant_is_found(name)
