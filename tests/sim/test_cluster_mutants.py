"""Broken clusters are found, each within its seeds, and the same stories pass without the break."""

from __future__ import annotations

import pytest

from ..deep import usual
from .cluster_mutants import MUTANTS, Mutant
from .finding import expect_found

played: dict[tuple[object, int], None] = {}
"""The stories that have passed, with their seeds."""


def play_whole(mutant: Mutant, seed: int) -> None:
    """The story of a mutant with nothing broken; those that several mutants share once."""
    story = (mutant.story, mutant.nodes, mutant.candidates, mutant.sizes)
    if (story, seed) not in played:
        mutant.play(seed)
        played[story, seed] = None


@pytest.mark.parametrize("mutant", usual(MUTANTS, lambda mutant: mutant.short), ids=lambda mutant: mutant.name)
def test_every_mutant_is_found(mutant: Mutant) -> None:
    """Within the number of seeds and by what is stated. Without it the story that found it passes, or finding it would prove nothing."""
    play_whole(mutant, expect_found(mutant).seed)


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_without_a_mutant_its_story_passes(mutant: Mutant) -> None:
    """With all seeds with which it is looked for."""
    for seed in mutant.trials():
        play_whole(mutant, seed)
