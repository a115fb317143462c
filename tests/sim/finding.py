"""How a broken variant is found: it is played with one seed after the other, and what comes out first must be what it is to be found by.

`found_by` is a pattern for the type and the first line of that: a checker's number, or what a story says of it. So a variant that trips
over itself is not found by that.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import attrs
import pytest


class Broken(Protocol):
    """One broken variant."""

    @property
    def name(self) -> str:
        """What is broken."""

    @property
    def patch(self) -> Callable[[pytest.MonkeyPatch], None]:
        """Break it."""

    @property
    def found_by(self) -> str:
        """The pattern for what comes out."""

    def trials(self) -> Sequence[int]:
        """The seeds within which it has to be found."""

    def play(self, seed: int) -> None:
        """Play what reveals it, once."""


@attrs.frozen
class Found:
    """With which seed something came out, after how many, what it was, and whether that is what the variant is to be found by."""

    seed: int
    tried: int
    text: str
    is_expected: bool


def find(broken: Broken) -> Found | None:
    """The first thing that came out; None when nothing did."""
    for tried, seed in enumerate(broken.trials(), 1):
        with pytest.MonkeyPatch.context() as patch:
            broken.patch(patch)
            try:
                broken.play(seed)
            except Exception as error:
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                return Found(seed, tried, text, re.match(broken.found_by, text) is not None)
    return None


def expect_found(broken: Broken) -> Found:
    """Fail unless it is found by what it is to be found by."""
    found = find(broken)
    assert found is not None, f"nothing found {broken.name} in {len(broken.trials())} seeds"
    assert found.is_expected, f"{broken.name} is to be found by {broken.found_by!r}, and what came out is {found.text}"
    print(f"{broken.name}: found by seed {found.seed}, try {found.tried} of {len(broken.trials())}: {found.text}")
    return found


def find_all(variants: Iterable[Broken], names: Sequence[str]) -> int:
    """Try them all, or those that are named, and print a line for each; how many were not found."""
    logging.disable()  # broken nodes complain a lot
    living = 0
    for broken in variants:
        if names and broken.name not in names:
            continue
        began = time.perf_counter()
        found = find(broken)
        seconds = time.perf_counter() - began
        living += found is None or not found.is_expected
        verdict = "LIVES" if found is None else f"{found.tried} of {len(broken.trials())}" if found.is_expected else "OTHER"
        print(f"{broken.name:<41} {verdict:<8} {seconds:5.1f} s  {'' if found is None else found.text[:110]}", flush=True)
    return living
