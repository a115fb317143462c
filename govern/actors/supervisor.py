"""Supervision: which tasks a node is made of, in which order they live, and what a crash means.

The children of a supervisor are a list, and the list is the design: they start from left to right, each once the one before it is up,
and they stop from right to left, each once the one after it is gone. So a child may rely on every child to its left for the whole of
its life, its last words included: a session still flushes through a store that stands further left.

What the end of a child means is data too (`Restart`), and so is what it does to its siblings (`Strategy`). Restarts are for what
meets the world: links, listeners. Whoever owns state that must not be guessed at is `VITAL`: its crash stops everything, and the next
start rebuilds the state from storage.

Invariants:

V1  A child runs only while all children to its left have been started, and under REST_FOR_ONE only while all of them are up.
V2  When the supervisor is cancelled or fails, a child is cancelled only after every child to its right is gone or overstayed its grace.
V3  More than `restarts_max` restarts within `period_seconds` end the supervisor: its parent decides.
V4  An AssertionError is never followed by a restart: our own state is wrong, and only a new start is clean.
V5  The error that comes out of `run` is the first fatal one, as it was raised. Crashes that follow from it, or from the stopping, are
    logged.
V6  The mailboxes of a child are closed once it is gone for good, so that nobody waits for it.

Known limit: trio cannot kill a task. A child that shields its cleanup without a deadline can keep the supervisor from returning; its
siblings are stopped all the same, and the log names it.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from ..errors import GovernError, Stopped
from .runtime import Mailbox

if TYPE_CHECKING:
    from ..environment import Random

logger = logging.getLogger("govern.supervisor")


class ChildReturned(GovernError):
    """A child that has to run for ever returned."""


class Restart(enum.Enum):
    """What the end of a child means."""

    PERMANENT = "permanent"
    """It is restarted whenever it ends; returning counts as a crash."""
    TRANSIENT = "transient"
    """It is restarted when it crashes; it may return when its work is done."""
    TEMPORARY = "temporary"
    """It is never restarted and nobody misses it; a crash is logged."""
    VITAL = "vital"
    """It is never restarted and nobody can do without it: its end, in whatever way, stops the supervisor."""


class Strategy(enum.Enum):
    """Who is restarted together with a child that crashed."""

    ONE_FOR_ONE = "one_for_one"
    """Nobody else."""
    REST_FOR_ONE = "rest_for_one"
    """All children to its right, which may rely on what it held: they are stopped from right to left and started from left to right."""


class Run(Protocol):
    """The body of a child."""

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run until cancelled; call `task_status.started()` once others may rely on it."""


@attrs.frozen(kw_only=True)
class Child:
    """One line of a supervision tree.

    `run` starts the child afresh each time it is called. `grace_seconds` bounds its end: cleanup that awaits stands in
    `trio.move_on_after(seconds, shield=True)` with at most that many. `mailboxes` are those that only this child reads.
    """

    name: str
    run: Run
    restart: Restart
    grace_seconds: float
    mailboxes: Sequence[Mailbox[Any]] = ()


@attrs.frozen(kw_only=True)
class Supervision:
    """How restarts are rationed.

    Before the n-th restart within `period_seconds` the child waits `backoff_seconds_min * 2 ** (n - 1)`, at most
    `backoff_seconds_max`, times a random number from 0.5 to 1. A larger `restarts_max` hides a fault for longer.
    """

    strategy: Strategy = Strategy.ONE_FOR_ONE
    restarts_max: int = 2
    period_seconds: float = 5.0
    backoff_seconds_min: float = 0.1
    backoff_seconds_max: float = 1.0

    def __attrs_post_init__(self) -> None:
        assert self.restarts_max >= 0
        assert 0 < self.backoff_seconds_min <= self.backoff_seconds_max
        # Otherwise waiting alone would use up the period, and a child that crashes at once would be restarted for ever.
        assert self.restarts_max * self.backoff_seconds_max < self.period_seconds


@attrs.frozen(kw_only=True)
class SupervisorStatistics:
    """How often each child was restarted, in start order of the children."""

    restarts: Mapping[str, int]


def unwrap(error: BaseException) -> BaseException:
    """The one error inside nested groups, beside which only cancellations happened; `error` itself when there is no such one."""
    leaves = [leaf for leaf in _leaves(error) if not isinstance(leaf, trio.Cancelled)]
    return leaves[0] if len(leaves) == 1 else error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


@attrs.define(eq=False)
class _Life:
    """What the supervisor knows of one child while it lives."""

    child: Child
    index: int
    stop: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Around everything: cancelling it ends the child for good."""
    turn: trio.CancelScope | None = None
    """Around the present run of the child, or None between two runs: cancelling it ends this run only."""
    up: trio.Event = attrs.field(factory=trio.Event)
    """Set while the present run has started; replaced when it ends. Left set for ever by a child that is done."""
    down: trio.Event = attrs.field(factory=trio.Event)
    """Set while there is no run; replaced when one begins."""
    gone: trio.Event = attrs.field(factory=trio.Event)
    begun: bool = False
    was_up: bool = False
    restarts: int = 0


@attrs.define(eq=False)
class _Status:
    """The task status that a child gets: notes that the child is up, then tells whoever waits for its first start."""

    life: _Life
    outer: trio.TaskStatus[None]

    def started(self, value: None = None) -> None:
        self.life.up.set()
        self.life.was_up = True
        self.outer.started(value)


class Supervisor:
    """Runs its children once: a supervisor whose parent restarts it is built anew each time."""

    def __init__(self, name: str, children: Sequence[Child], *, random: Random, supervision: Supervision | None = None) -> None:
        self.name = name
        self.supervision = Supervision() if supervision is None else supervision
        self._random = random
        self._lives = [_Life(child, index) for index, child in enumerate(children)]
        self._restart_times: deque[float] = deque()
        self._fatal: BaseException | None = None
        self._stopping = False
        assert len({child.name for child in children}) == len(children), f"{name}: the names of children are unique"
        if self.supervision.strategy is Strategy.REST_FOR_ONE:
            vital = [child.restart is Restart.VITAL for child in children]
            assert vital == sorted(vital, reverse=True), f"{name}: a vital child cannot be restarted along with one to its left"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the children, report `started`, and keep them until cancelled; then stop them in reverse order, which may take the sum of
        their graces. Raises the first fatal error: the crash of a vital child, of any child before it was up for the first time, the crash
        that exceeded the restart budget, or an AssertionError."""
        assert not any(life.begun for life in self._lives), f"{self.name} runs once"
        try:
            async with trio.open_nursery() as nursery:
                try:
                    for life in self._lives:
                        await nursery.start(self._keep, life)
                        life.stop.shield = True  # only now: a start that is stuck must remain cancellable
                    task_status.started()
                    await trio.sleep_forever()
                finally:
                    await self._stop_all()
        except BaseExceptionGroup as group:
            error = self._outcome(group)
        raise error  # outside the handler, so that the context and the cause of the error stay what they were

    def statistics(self) -> SupervisorStatistics:
        """A snapshot of the counters."""
        return SupervisorStatistics(restarts={life.child.name: life.restarts for life in self._lives})

    def __repr__(self) -> str:
        states = " ".join(f"{life.child.name}:{_state(life)}" for life in self._lives)
        return f"<Supervisor {self.name} {states}>"

    # --- one child ------------------------------------------------------------------------------------------------------------

    async def _keep(self, life: _Life, *, task_status: trio.TaskStatus[None]) -> None:
        """Run one child until it is gone for good; raises what is fatal, if it is the first."""
        life.begun = True
        error: BaseException | None = None
        try:
            with life.stop:
                await self._live(life, _Status(life, task_status))
        except Exception as caught:  # a child that fails while it is being stopped raises a group, hence out here
            error = unwrap(caught)
        finally:
            life.gone.set()
            _close_mailboxes(life.child)
        if error is None:
            return
        if self._stopping and isinstance(error, Stopped):  # it spoke to a child on its right that is gone already, just before its own turn
            logger.info("%s: %s ended early: %s", self.name, life.child.name, error)
            return
        if self._fatal is not None:  # V5
            logger.error("%s: %s failed while the others were stopping", self.name, life.child.name, exc_info=error)
            return
        self._fatal = error
        if life.was_up and not isinstance(unwrap(error), GovernError):
            logger.critical("%s: stops because of %s", self.name, life.child.name, exc_info=error)
        else:  # an address in use or a damaged disk is no crash: whoever runs the tree gets the error and says it better
            logger.debug("%s: stops because of %s", self.name, life.child.name, exc_info=error)
        raise error

    async def _live(self, life: _Life, status: _Status) -> None:
        """One run after the other; returns when the child is done, raises the error that is fatal."""
        while True:
            error = await self._take_turn(life, status)
            halted = error is None and life.turn is not None and life.turn.cancel_called
            life.turn = None
            if error is not None:
                self._raise_if_fatal(life, error)
            if life.child.restart is Restart.TEMPORARY or (error is None and not halted):
                if error is not None:
                    logger.error("%s: %s crashed and is not restarted", self.name, life.child.name, exc_info=error)
                life.up.set()  # nobody waits for it any more
                return
            delay = 0.0
            if error is not None:
                delay = self._charge(life, error)
                if self.supervision.strategy is Strategy.REST_FOR_ONE:
                    await self._halt_right_of(life)
            life.restarts += 1
            await trio.sleep(delay)
            if self.supervision.strategy is Strategy.REST_FOR_ONE:
                await self._wait_up_left_of(life)
            if life.was_up:  # else it was halted during its first start, and the supervisor still waits for that
                status = _Status(life, trio.TASK_STATUS_IGNORED)

    async def _take_turn(self, life: _Life, status: _Status) -> Exception | None:
        """One run of the child; the error with which it crashed, or None when it returned as it may or was halted."""
        child = life.child
        turn = life.turn = trio.CancelScope()
        life.down = trio.Event()
        try:
            with turn:
                await child.run(task_status=status)
                ending = turn.cancel_called or life.stop.cancel_called
                if child.restart in (Restart.PERMANENT, Restart.VITAL) and not ending:
                    return ChildReturned(f"{child.name} returned, but has to run for ever")
        except Exception as error:
            return error
        finally:
            life.up = trio.Event()
            life.down.set()
        return None

    def _raise_if_fatal(self, life: _Life, error: Exception) -> None:
        ours = any(isinstance(leaf, AssertionError) for leaf in _leaves(error))  # V4
        stopping = life.stop.cancel_called or self._fatal is not None
        if ours or stopping or not life.was_up or life.child.restart is Restart.VITAL:
            raise error

    def _charge(self, life: _Life, error: Exception) -> float:
        """Take one restart from the budget; the seconds to wait before it. Raises the error when the budget is spent (V3)."""
        limits = self.supervision
        now = trio.current_time()
        while self._restart_times and self._restart_times[0] <= now - limits.period_seconds:
            self._restart_times.popleft()
        if len(self._restart_times) >= limits.restarts_max:
            raise error
        self._restart_times.append(now)
        longest = min(limits.backoff_seconds_max, math.ldexp(limits.backoff_seconds_min, len(self._restart_times) - 1))
        delay = longest * self._random.uniform(0.5, 1.0)
        logger.error("%s: %s crashed and is restarted in %.2f s", self.name, life.child.name, delay, exc_info=error)
        return delay

    def _outcome(self, group: BaseExceptionGroup[BaseException]) -> BaseException:
        """What `run` raises: the first fatal error, unless something beyond errors happened, such as KeyboardInterrupt."""
        errors_only = all(isinstance(leaf, (Exception, trio.Cancelled)) for leaf in _leaves(group))
        return self._fatal if self._fatal is not None and errors_only else unwrap(group)

    # --- siblings -------------------------------------------------------------------------------------------------------------

    async def _halt_right_of(self, life: _Life) -> None:
        """End the present runs of all children to the right, from right to left; they begin anew by themselves once all on their left
        are up."""
        for later in reversed(self._lives[life.index + 1 :]):
            if later.turn is not None:
                logger.info("%s: %s is restarted along with %s", self.name, later.child.name, life.child.name)
                later.turn.cancel()
                await self._wait_end(later, later.down)

    async def _wait_up_left_of(self, life: _Life) -> None:
        missing: _Life | None = life
        while missing is not None:
            missing = next((earlier for earlier in self._lives[: life.index] if not earlier.up.is_set()), None)
            if missing is not None:
                await missing.up.wait()  # meanwhile another may have ended, hence the loop

    async def _stop_all(self) -> None:
        """Stop from right to left (V2)."""
        self._stopping = True
        with trio.CancelScope(shield=True):  # bounded by the sum of the graces
            for life in reversed(self._lives):
                if life.begun:
                    life.stop.cancel()
                    await self._wait_end(life, life.gone)
                _close_mailboxes(life.child)

    async def _wait_end(self, life: _Life, end: trio.Event) -> None:
        with trio.move_on_after(life.child.grace_seconds):
            await end.wait()
        if not end.is_set():
            logger.critical("%s: %s did not end within its grace of %g s", self.name, life.child.name, life.child.grace_seconds)


def _close_mailboxes(child: Child) -> None:
    for mailbox in child.mailboxes:
        mailbox.close()


def _state(life: _Life) -> str:
    if life.gone.is_set():
        return "gone"
    return "up" if life.up.is_set() else "down"
