"""What watches a simulated run. Each module checks one family of promises and knows nothing of how the run is made."""

from __future__ import annotations

from typing import Protocol


class Violation(AssertionError):
    """A promise was broken; the text begins with the number of the invariant."""


class Checker(Protocol):
    """One family of invariants: what happens is judged when it happens (`watch.py`), what is there is judged here, by `Violation`."""

    def sweep(self) -> None:
        """Each 100 simulated milliseconds: may walk the whole state."""

    def end(self) -> None:
        """After the healing phase: judges the history."""
