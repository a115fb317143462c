"""How long leaving may take, all in all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

LEAVE_SECONDS_MAX: Final = 0.8
GOODBYE_SECONDS_MAX: Final = 0.2
"""Kept for the farewell of the whole client; the two together are the one second that a program's end may cost."""


class LeaveBudget:
    """One allowance of waiting for everything that leaves.

    Many blocks that are left at the same time share one deadline, and many that are left one after the other share one
    second: without that, a program with a hundred registrations would need a hundred seconds to end beside a dead node. What was spent
    comes back with the time in which nothing is leaving.
    """

    def __init__(self) -> None:
        self._seconds = LEAVE_SECONDS_MAX
        self._leaving = 0
        self._deadline = 0.0
        self._idle_since = -LEAVE_SECONDS_MAX

    def __repr__(self) -> str:
        return f"<LeaveBudget {self._seconds:.3f} s leaving={self._leaving}>"

    @contextmanager
    def spend(self, extra_seconds: float = 0.0) -> Iterator[None]:
        """Shield the block from cancellation until the shared deadline (and so much longer); then cancel it."""
        if not self._leaving:
            now = trio.current_time()
            self._seconds = min(LEAVE_SECONDS_MAX, self._seconds + now - self._idle_since)
            self._deadline = now + self._seconds
        self._leaving += 1
        try:
            with trio.CancelScope(deadline=self._deadline + extra_seconds, shield=True):
                yield
        finally:
            self._leaving -= 1
            if not self._leaving:
                self._idle_since = trio.current_time()
                self._seconds = max(0.0, self._deadline - self._idle_since)
