"""The order of tasks, drawn from a seed; a clock that jumps; and processes that stand still.

Trio is deterministic but for one thing: the order in which it takes the tasks that can run. Its private names govern that order: a flag
that makes it repeatable, and a generator that shuffles the tasks of a pass. A `Scheduler` is put in the place of the generator and sees
every pass. The clock is trio's own `MockClock`, without its way over the machine's clock: the time is asked for several times in each step
of each task. This is the only module that touches private names of trio; a test says so plainly when a new trio no longer has them.

S1  While a scheduler is in force, the order of tasks depends on its seed and on what the tasks do, and on nothing else.
S2  A task of a frozen process is not stepped. What would have woken it is kept, as a stopped process keeps its signals; after `thaw` it
    goes on with that. Time goes on meanwhile, for it as for everybody.
S3  Trio is as it was when the scheduler is no longer in force, also after an error.
S4  Time stands still while a task can run. When none can, it is the next deadline.

A task belongs to the process in whose context it was started: `process` is a context variable, and children inherit it.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import trio
from trio._core import _run as _trio_run
from trio.testing import MockClock

process: Final[ContextVar[object]] = ContextVar("process", default=None)
"""The simulated process of the running task; None for the world around them."""


class Scheduler:
    """What stands in the place of trio's generator; see `install`."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(f"{seed}/scheduler")
        self._frozen: dict[object, list[trio.lowlevel.Task]] = {}

    def __repr__(self) -> str:
        return f"<Scheduler, {len(self._frozen)} processes frozen>"

    def shuffle(self, batch: list[trio.lowlevel.Task]) -> None:
        """Called by trio with the tasks of each pass, oldest first; they are taken from the end."""
        if self._frozen:
            for task in batch:
                kept = self._frozen.get(task.context.get(process))
                if kept is not None:
                    kept.append(task)
            batch[:] = [task for task in batch if task.context.get(process) not in self._frozen]
        self._random.shuffle(batch)

    def freeze(self, name: object) -> None:
        """Let the process of that name stand still until `thaw` (S2), from the loop's next pass on. It must not be the caller's own."""
        assert name is not None, "the world cannot stop"
        assert process.get() != name, "a process cannot stop itself"
        self._frozen.setdefault(name, [])

    def thaw(self, name: object) -> None:
        """Let a frozen process go on; nothing for one that is not frozen."""
        _trio_run.GLOBAL_RUN_CONTEXT.runner.runq.extend(self._frozen.pop(name, ()))

    def is_frozen(self, name: object) -> bool:
        """Whether the process of that name stands still."""
        return name in self._frozen


def make_clock() -> MockClock:
    """A clock that starts at 0 and jumps as soon as every task waits (S4). Trio takes no other class than its own for that, and allows no
    class below it."""
    clock = MockClock(autojump_threshold=0)
    vars(clock)["current_time"] = partial(getattr, clock, "_virtual_base")  # a rate of 0 adds nothing to it
    return clock


@contextmanager
def install(scheduler: Scheduler) -> Generator[None]:
    """Put a scheduler in force for the length of a block (S3), around a trio loop or inside of one."""
    names: dict[str, Any] = vars(_trio_run)  # by name, because trio declares them final
    saved = {name: names[name] for name in ("_ALLOW_DETERMINISTIC_SCHEDULING", "_r")}
    names.update(_ALLOW_DETERMINISTIC_SCHEDULING=True, _r=scheduler)
    try:
        yield
    finally:
        names.update(saved)


def installed() -> Scheduler:
    """The scheduler in force; raises `RuntimeError` when there is none."""
    scheduler = vars(_trio_run)["_r"]
    if not isinstance(scheduler, Scheduler):
        raise RuntimeError("no simulation runs here: use govern.testing.simulate or govern.testing.cluster")
    return scheduler
