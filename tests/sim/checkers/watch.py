"""When the checkers are asked: every 100 simulated milliseconds, and at the end.

What costs little is not asked for at all: each checker stands behind the doors and the cores that it judges, and judges a vote, an append,
a frame, a proposal or an operation in the moment in which it happens, before any other task has its next step. `sweep` is for what has to
walk the whole state. The first violation is written down, and the scope of the run cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from . import Checker, Violation

SWEEP_SECONDS = 0.1


class Watch:
    """Asks the checkers, and keeps the first violation."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.violation: BaseException | None = None
        self.checkers: Sequence[Checker] = ()
        self._scope = scope

    def report(self, violation: BaseException) -> None:
        """The run is over: this was seen."""
        if self.violation is None:
            self.violation = violation
            self._scope.cancel()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self.ask(end=False)

    def ask(self, *, end: bool) -> None:
        """Ask all of them now."""
        if self.violation is None:
            try:
                for checker in self.checkers:
                    checker.end() if end else checker.sweep()
            except AssertionError as violation:
                self.report(violation)


__all__ = ["SWEEP_SECONDS", "Violation", "Watch"]
