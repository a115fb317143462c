"""What runs each time, and what runs only when there is time."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(usual: int, deep: int) -> list[Any]:
    """The values of a parameter `seed`: the first few for every run, those up to `deep` for the deep one."""
    return [*range(usual), *(pytest.param(seed, marks=pytest.mark.deep) for seed in range(usual, deep))]
