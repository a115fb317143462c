"""Short runs of candidates alone, and the broken candidates that they must find."""

from __future__ import annotations

import pytest

from govern.core.raft.core import RaftCore

from ...deep import usual
from ..many import run_many
from .heap import COUNTED, Run, run_to_end, summary_of
from .mutants import MUTANTS, Broken, class_of, find
from .upheaval import kind_of, summary_of_upheaval

RUNS = 80
RUNS_UPHEAVAL = 20
RUNS_DEEP = 100_000
RUNS_DEEP_UPHEAVAL = 20_000


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


def test_short_upheavals() -> None:
    """Nor is one in times of many elections."""
    terms = crashes = 0
    for seed in range(RUNS_UPHEAVAL):
        run = kind_of(seed)(seed)
        run.play()
        terms, crashes = terms + run.term_max, crashes + run.crashes
    assert terms > 3 * RUNS_UPHEAVAL
    assert crashes > 2 * RUNS_UPHEAVAL


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


@pytest.mark.deep
def test_many_upheavals() -> None:
    """Twenty thousand; they are longer."""
    assert run_many(summary_of_upheaval, COUNTED, range(RUNS_DEEP_UPHEAVAL)) == []


@pytest.mark.parametrize("broken", usual(MUTANTS.values(), lambda broken: not broken.deep), ids=list(MUTANTS))
def test_every_mutant_is_found(broken: Broken) -> None:
    """By the check that is for it, within its number of runs; the seed is printed."""
    found = find(broken)
    assert found is not None, f"{broken.check} found nothing in {broken.runs} runs"
    print(f"found by seed {found[0]}: {found[1].text[:200]}")


class CrashesItself(RaftCore):
    """A careless mutant."""

    def _append_noop(self) -> None:
        raise KeyError("a mistake in the mutant")


def test_a_mutant_that_crashes_is_not_found() -> None:
    """What a broken candidate raises itself is no finding of a check."""
    kind = class_of(CrashesItself)
    failure = run_to_end(kind(0), 0)
    assert failure is not None
    assert failure.check == "KeyError"
    assert find(Broken(kind, "C1", 3)) is None
