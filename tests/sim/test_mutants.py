"""The simulator is tested: every mutant is found within its seeds, and without it the same episodes pass."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS, Mutant, find, options_for


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_found(mutant: Mutant) -> None:
    """Within the number of seeds that is stated."""
    found = find(mutant)
    assert found is not None, f"nothing found {mutant.name} in {mutant.seeds} seeds"
    print(f"{mutant.name}: found by seed {found[0]} of {mutant.seeds}: {found[1]}")


@pytest.mark.parametrize("mutant", {(mutant.faults, mutant.play): mutant for mutant in MUTANTS}.values(), ids=lambda mutant: mutant.name)
def test_without_a_mutant_its_episodes_pass(mutant: Mutant) -> None:
    """Otherwise finding it would prove nothing."""
    mutant.play(options_for(mutant, mutant.first))
