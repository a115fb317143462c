"""What runs each time, and what runs only when there is time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

Value = TypeVar("Value")


def seeds(usual: int, deep: int) -> list[Any]:
    """The values of a parameter `seed`: the first few for every run, those up to `deep` for the deep one."""
    return [*range(usual), *(pytest.param(seed, marks=pytest.mark.deep) for seed in range(usual, deep))]


def usual(values: Iterable[Value], is_usual: Callable[[Value], bool]) -> list[Any]:
    """These values of a parameter, some of them for every run and the others for the deep one."""
    return [value if is_usual(value) else pytest.param(value, marks=pytest.mark.deep) for value in values]
