"""One simulated run: trio with a virtual clock, and every choice of its scheduler drawn from a seed.

Trio is deterministic but for one thing: the order in which it takes the tasks that can run. Two private names of trio govern that
order, a flag and a generator; they are set for the time of a run and put back after it. This is the only module that touches them, and
a test says so plainly when a new trio no longer has them.

R1  The same seed and the same scenario give the same steps, in this process and in any other, whatever PYTHONHASHSEED is; provided that
    the scenario takes everything else that can differ from its environment, and uses neither threads nor sockets.
R2  A run ends. All tasks waiting for each other without any deadline is a `Deadlock`, found at once; a scenario that lives on but
    never finishes meets its horizon, in virtual seconds (`HorizonPassed`).
R3  What a scenario raises comes out as it was raised, out of exception groups when it is alone in them, with the seed in a note.

The trace is a running hash over every step of every task: its number, its name and the virtual time. Two runs are the same when their
traces are. The moment at which trio *schedules* a task is not part of it: that order depends on addresses and is erased again before
the tasks run.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import attrs
import trio
from trio._core import _run as _trio_run
from trio.testing import MockClock

T = TypeVar("T")

_IDLE_PASSES_MAX: Final = 1000
_STEPS_KEPT: Final = 20
_address_in_name = re.compile(r"0x[0-9a-f]+")


class SimulationFailed(Exception):
    """A simulated run did not come to its end."""


class Deadlock(SimulationFailed):
    """All tasks wait, and no deadline will ever wake one of them."""


class HorizonPassed(SimulationFailed):
    """The scenario had not finished at its horizon."""


@attrs.frozen(kw_only=True)
class Outcome(Generic[T]):
    """A run that came to its end: what the scenario returned, and what the run was."""

    result: T
    trace: str
    steps: int
    simulated_seconds: float


class _Trace(trio.abc.Instrument):
    """A hash over all steps so far. Tasks are numbered as they are born, which is the same in every run; addresses are not."""

    def __init__(self) -> None:
        self.steps = 0
        self.last: deque[tuple[float, str]] = deque(maxlen=_STEPS_KEPT)
        self._hash = hashlib.blake2b(digest_size=16)
        self._labels: dict[trio.lowlevel.Task, str] = {}
        self._born = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._born += 1
        self._labels[task] = f"{self._born} {_address_in_name.sub('', task.name)}"

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        step = (trio.current_time(), self._labels[task])
        self.last.append(step)
        self._hash.update(repr(step).encode())

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        del self._labels[task]


class _DeadlockWatch(trio.abc.Instrument):
    """Notices that trio polls again and again and no task runs: with a virtual clock that jumps to every deadline, nothing ever will.

    An instrument that raises is removed by trio without a word, so it writes down what it saw and cancels the run.
    """

    def __init__(self, scope: trio.CancelScope) -> None:
        self.found = False
        self._scope = scope
        self._idle_passes = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._idle_passes = 0

    def before_io_wait(self, timeout: float) -> None:
        self._idle_passes += 1
        if (
            self._idle_passes > _IDLE_PASSES_MAX
            and not self.found
            and trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
        ):
            self.found = True
            self._scope.cancel()


def simulate(
    seed: int,
    scenario: Callable[..., Awaitable[T]],
    *args: object,
    horizon: float = 3600.0,
) -> Outcome[T]:
    """Run `await scenario(seed, *args)` under a virtual clock that starts at 0 and jumps over idle time.

    Everything is decided by `seed` (R1). `horizon` is in virtual seconds. Raises what the scenario raises (R3), `Deadlock` or
    `HorizonPassed` (R2). Not to be called from inside a running trio loop.
    """
    stopped, horizon_scope = trio.CancelScope(), trio.CancelScope()
    trace, watch = _Trace(), _DeadlockWatch(stopped)
    end_seconds = [0.0]

    async def run_scenario() -> list[T]:
        results: list[T] = []
        horizon_scope.deadline = horizon
        try:
            with stopped, horizon_scope:
                results.append(await scenario(seed, *args))
        finally:
            end_seconds[0] = trio.current_time()
        return results

    saved: Any = _trio_run._ALLOW_DETERMINISTIC_SCHEDULING, _trio_run._r.getstate()
    vars(_trio_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True  # declared final, so that nobody but trio's own tests sets it by accident
    _trio_run._r.seed(seed)
    failure: BaseException | None = None
    results: list[T] = []
    try:
        results = trio.run(run_scenario, clock=MockClock(autojump_threshold=0), instruments=[trace, watch])
    except BaseException as error:
        failure = error
    finally:
        vars(_trio_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = saved[0]
        _trio_run._r.setstate(saved[1])
    story = f"seed {seed}, {trace.steps} steps, {end_seconds[0]:.6f} simulated seconds, trace {trace.digest}"
    if failure is None and results:
        return Outcome(result=results[0], trace=trace.digest, steps=trace.steps, simulated_seconds=end_seconds[0])
    raise _explain(failure, watch.found, story, trace.last)


def _explain(failure: BaseException | None, deadlock: bool, story: str, last: deque[tuple[float, str]]) -> BaseException:
    """The one exception of a run that failed."""
    steps = "\n".join(f"  {seconds:.6f} {label}" for seconds, label in last)
    if deadlock:
        failed: BaseException = Deadlock(f"every task waits and no deadline is set ({story})")
        failed.__cause__ = failure
    elif failure is None:
        failed = HorizonPassed(f"the scenario was not finished at its horizon ({story})")
    else:
        failed = _alone(failure)
        failed.add_note(f"in a simulation: {story}")
    failed.add_note(f"the last steps:\n{steps}")
    return failed


def _alone(error: BaseException) -> BaseException:
    """The exception itself, without the groups around it when it is alone in them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
