"""The simulator is tested: every mutant is found within its seeds, and without it the same episodes pass."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from .finding import expect_found
from .mutants import MUTANTS, Mutant, options_for
from .options import Options


@functools.cache
def play_whole(faults: tuple[str, ...], play: Callable[[Options], None], seed: int) -> None:
    """One of those episodes, with nothing broken; those that several mutants share once."""
    play(options_for(faults, seed))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_found(mutant: Mutant) -> None:
    """Within the number of seeds and by what is stated. Without it the episode that found it passes, or finding it would prove nothing."""
    play_whole(mutant.faults, mutant.play_with, expect_found(mutant).seed)


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_without_a_mutant_its_episodes_pass(mutant: Mutant) -> None:
    """All in which it is looked for."""
    for seed in mutant.trials():
        play_whole(mutant.faults, mutant.play_with, seed)
