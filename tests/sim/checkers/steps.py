"""When the checkers are asked: after every step of every task, every 100 simulated milliseconds, and at the end.

An instrument that raises is removed by trio without a word; so the first violation is written down, and the scope of the run cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from . import Checker, Violation

SWEEP_SECONDS = 0.1


class Watch(trio.abc.Instrument):
    """Asks the checkers while it is installed, and keeps the first violation."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.violation: BaseException | None = None
        self.checkers: Sequence[Checker] = ()
        self._scope = scope

    def report(self, violation: BaseException) -> None:
        """The run is over: this was seen."""
        if self.violation is None:
            self.violation = violation
            self._scope.cancel()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Of every task, and of the checkers' own as well."""
        if self.violation is None:
            try:
                for checker in self.checkers:
                    checker.step()
            except AssertionError as violation:
                self.report(violation)

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
