"""One simulated run: trio with a virtual clock, and every choice of its scheduler drawn from a seed.

What orders the tasks is `scheduler.py`; here is the run around it: the clock, the trace, and the watch that ends what would not end.

R1  The same seed and the same scenario give the same steps, in this process and in any other, whatever PYTHONHASHSEED is; provided that
    the scenario takes everything else that can differ from its environment, and uses neither threads nor sockets.
R2  A run ends. All tasks waiting for each other without any deadline is a `Deadlock`, found at once; a scenario that lives on but
    never finishes meets its horizon, in virtual seconds (`HorizonPassed`); tasks that keep each other busy while no virtual time passes are
    a `Livelock`.
R3  What a scenario raises comes out as it was raised, out of exception groups when it is alone in them, with the seed in a note.

The trace is a running hash over every step of every task: its number, its name and the virtual time. Two runs are the same when their
traces are. The moment at which trio *schedules* a task is not part of it: that order depends on addresses and is erased again before
the tasks run.

Known limit: a task that waits without a deadline behind a shield can be stopped by nobody, so such a deadlock is a hang.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import attrs
import trio

from .scheduler import Scheduler, install, make_clock

T = TypeVar("T")

_IDLE_PASSES_MAX: Final = 1000
_STEPS_PER_MOMENT_MAX: Final = 1_000_000
_STEPS_KEPT: Final = 20
_STEPS_PER_HASH: Final = 256
_address_in_name = re.compile(r"0x[0-9a-f]+")


class SimulationFailed(Exception):
    """A simulated run did not come to its end."""


class Deadlock(SimulationFailed):
    """All tasks wait, and no deadline will ever wake one of them."""


class Livelock(SimulationFailed):
    """Tasks run and run while the virtual time stands still."""


class HorizonPassed(SimulationFailed):
    """The scenario had not finished at its horizon."""


_REASONS: Final[dict[type[SimulationFailed], str]] = {
    Deadlock: "every task waits and nothing will wake one",
    Livelock: "tasks run and run while the virtual time stands still",
    HorizonPassed: "the scenario was not finished at its horizon",
}


@attrs.frozen(kw_only=True)
class Outcome(Generic[T]):
    """A run that came to its end: what the scenario returned, and what the run was.

    `steps` counts the steps of all tasks. `trace` is a hash over them, hexadecimal: two runs are the same when their traces are.
    `simulated_seconds` is when the scenario ended, by the virtual clock.
    """

    result: T
    trace: str
    steps: int
    simulated_seconds: float


class _Trace:
    """A hash over all steps so far. Tasks are numbered as they are born, which is the same in every run; addresses are not."""

    def __init__(self, on_step: Callable[[float, str], None] | None) -> None:
        self.steps = 0
        self._on_step = on_step
        self.last: deque[tuple[float, str]] = deque(maxlen=_STEPS_KEPT)
        self._hash = hashlib.blake2b(digest_size=16)
        self._unhashed: list[tuple[float, str]] = []
        self._labels: dict[trio.lowlevel.Task, str] = {}
        self._born = 0

    @property
    def digest(self) -> str:
        self._hash_steps()
        return self._hash.hexdigest()

    def spawned(self, task: trio.lowlevel.Task) -> None:
        self._born += 1
        self._labels[task] = f"{self._born} {_address_in_name.sub('', task.name)}"

    def step(self, now: float, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        step = (now, self._labels[task])
        self.last.append(step)
        self._unhashed.append(step)
        if len(self._unhashed) >= _STEPS_PER_HASH:
            self._hash_steps()
        if self._on_step is not None:
            self._on_step(*step)

    def exited(self, task: trio.lowlevel.Task) -> None:
        del self._labels[task]

    def _hash_steps(self) -> None:
        self._hash.update("".join(map(repr, self._unhashed)).encode())
        self._unhashed.clear()


class _Watch(trio.abc.Instrument):
    """Writes the trace, and ends a run that would not end by itself (R2). One instrument and not two: trio's way to it costs as much as
    what it does.

    A deadlock shows as trio polling again and again while no task runs: the virtual clock would have jumped to any deadline there is. The
    horizon is not a deadline, because then there always would be one. An instrument that raises is removed by trio without a word, so
    this one writes down what it saw and cancels the scenario.
    """

    def __init__(self, clock: trio.abc.Clock, trace: _Trace, scope: trio.CancelScope, horizon: float) -> None:
        self.found: type[SimulationFailed] | None = None
        self._clock = clock
        self._trace = trace
        self._scope = scope
        self._horizon = horizon
        self._idle_passes = 0
        self._steps_now = 0
        self._now = 0.0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._trace.spawned(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._trace.exited(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._idle_passes = 0
        now = self._clock.current_time()
        self._trace.step(now, task)
        if now != self._now:
            self._now, self._steps_now = now, 0
            if self.found is None and now > self._horizon:
                self._stop(HorizonPassed)
        self._steps_now += 1
        if self.found is None and self._steps_now > _STEPS_PER_MOMENT_MAX:
            self._stop(Livelock)

    def before_io_wait(self, timeout: float) -> None:
        self._idle_passes += 1
        if self.found is None and self._idle_passes > _IDLE_PASSES_MAX:
            self._stop(Deadlock)

    def _stop(self, found: type[SimulationFailed]) -> None:
        self.found = found
        self._scope.cancel()


def simulate(
    seed: int,
    scenario: Callable[..., Awaitable[T]],
    *args: object,
    horizon: float = 3600.0,
    on_step: Callable[[float, str], None] | None = None,
) -> Outcome[T]:
    """Run `await scenario(seed, *args)` under a virtual clock that starts at 0 and jumps over idle time.

    Everything is decided by `seed` (R1). `horizon` is in virtual seconds. `on_step` is told the virtual time and the
    task of every step, so that two runs can be compared; it must not raise. Raises what the scenario raises (R3), or `Deadlock`,
    `Livelock` or `HorizonPassed` (R2). Not to be called from inside a running trio loop.
    """
    scope = trio.CancelScope()
    clock, trace = make_clock(), _Trace(on_step)
    watch = _Watch(clock, trace, scope, horizon)
    end_seconds = [0.0]

    async def run_scenario() -> list[T]:
        results: list[T] = []
        try:
            with scope:
                results.append(await scenario(seed, *args))
        finally:
            end_seconds[0] = trio.current_time()
        return results

    failure: BaseException | None = None
    results: list[T] = []
    try:
        with install(Scheduler(seed)):
            results = trio.run(run_scenario, clock=clock, instruments=[watch])
    except BaseException as error:
        failure = error
    if failure is None and results:
        return Outcome(result=results[0], trace=trace.digest, steps=trace.steps, simulated_seconds=end_seconds[0])
    raise _explain(failure, watch.found, f"seed {seed}, {end_seconds[0]:.6f} simulated seconds", trace)


def _explain(failure: BaseException | None, found: type[SimulationFailed] | None, story: str, trace: _Trace) -> BaseException:
    """The one exception of a run that failed. What cleanups raised after the watch had ended the run is its cause."""
    if found is None:
        assert failure is not None, "only the watch cancels a scenario from outside"
        failed = alone(failure)
        failed.add_note(f"in a simulation: {story}")
    else:
        failed = found(f"{_REASONS[found]} ({story})")
        failed.__cause__ = failure
    steps = "\n".join(f"  {seconds:.6f} {label}" for seconds, label in trace.last)
    failed.add_note(f"{trace.steps} steps, trace {trace.digest}; the last ones:\n{steps}")
    return failed


def alone(error: BaseException) -> BaseException:
    """The exception itself, without the groups around it when it is alone in them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
