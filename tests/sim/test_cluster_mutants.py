"""Broken clusters are found, each within its seeds, and the same stories pass without the break."""

from __future__ import annotations

from typing import Any

import pytest

from .cluster_mutants import MUTANTS, Mutant, find


def deep(mutant: Mutant) -> Any:
    """One for when there is time."""
    return pytest.param(mutant, marks=pytest.mark.deep)


@pytest.mark.parametrize("mutant", [mutant if mutant.short else deep(mutant) for mutant in MUTANTS], ids=lambda mutant: mutant.name)
def test_every_mutant_is_found(mutant: Mutant) -> None:
    """Within the number of seeds that is stated."""
    found = find(mutant)
    assert found is not None, f"nothing found {mutant.name} in {mutant.seeds} seeds"
    print(f"{mutant.name}: found by seed {found[0]} of {mutant.seeds}: {found[1]}")


@pytest.mark.deep
@pytest.mark.parametrize("mutant", {mutant.story: mutant for mutant in MUTANTS}.values(), ids=lambda mutant: mutant.name)
def test_without_a_mutant_its_story_passes(mutant: Mutant) -> None:
    """Otherwise finding it would prove nothing."""
    for seed in range(mutant.seeds):
        mutant.play(seed)
