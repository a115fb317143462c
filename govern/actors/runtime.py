"""What actors talk through: bounded mailboxes, and replies that cannot be forgotten.

An actor is a task that owns its state alone; everybody else sends it messages. A message is a frozen attrs class, and the input of
an actor is a union of such classes. Two things go wrong with plain queues, and this module exists to rule them out:

* A queue without a bound hides overload until memory ends. A `Mailbox` always has a capacity, and the sender chooses what a full one
  means: `await put` waits its turn, `post` raises `MailboxFull` at once and lets the sender drop, merge or refuse.
* A request whose receiver crashes leaves its asker waiting for ever. A `Reply` is opened by the receiver with `with`; leaving the
  block without an answer fails it. Requests that nobody has looked at are failed when the mailbox closes.

A mailbox belongs to the supervisor, not to the actor that reads it: what is queued survives a restart of the actor. The message that
was in its hand when it crashed is gone, and its asker is told so: there is no second try of a message that kills its reader.

Who may wait for whom: two actors that wait for each other's full mailbox, or for each other's reply, never wake up. So a child asks
and puts only towards children that started before it; in the other direction it posts.

Invariants:

M1  0 <= depth <= capacity.
M2  A put waits only while the mailbox is full and open; the waiting puts enter in the order in which they came.
M3  A message that was put is given out exactly once, in the order of entry, or dropped by `close`, which fails its reply.
M4  A cancelled `get` has taken nothing; a cancelled `put` has put nothing; `MailboxFull` and `Stopped` from either mean the same.
M5  A reply is settled exactly once. Answering twice is a bug of ours.

Known limit: everything here lives in one trio loop; nothing is safe to call from another thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

import attrs
import trio

from ..errors import Overloaded, Stopped

M = TypeVar("M")
R = TypeVar("R")

RETRY_AFTER_SECONDS: Final = 1.0
"""What a refused sender is told: a healthy reader empties its mailbox many times in a second."""


class MailboxFull(Overloaded):
    """The mailbox has no room, so the message was certainly not put."""


class ActorStopped(Stopped):
    """The actor ended with the request in its hand: the outcome is unknown. Plain `Stopped` means that it never looked at the request."""


# --- replies ----------------------------------------------------------------------------------------------------------------


class Reply(Generic[R]):
    """The place where one answer to one request appears.

    The receiver uses it as a context manager around its work: if the block is left by an exception or by cancellation before the
    answer was given, the asker gets `ActorStopped`. Leaving the block normally without an answer is a bug. An asker that no longer
    waits is no concern of the receiver: its answer goes nowhere.
    """

    __slots__ = ("_error", "_event", "_value")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._error: Exception | None = None
        self._value: R

    @property
    def settled(self) -> bool:
        """Whether the answer or the failure is there."""
        return self._event.is_set()

    def answer(self, value: R) -> None:
        """Give the answer; the asker wakes up with it."""
        assert not self.settled, f"a reply is settled once: {self!r} got {value!r}"  # M5
        self._value = value
        self._event.set()

    def fail(self, error: Exception) -> None:
        """Give a failure instead of an answer; it is raised in the asker."""
        assert not self.settled, f"a reply is settled once: {self!r} got {error!r}"  # M5
        self._error = error
        self._event.set()

    async def wait(self) -> R:
        """The answer. Raises what `fail` was given, or `ActorStopped` or `Stopped`. Cancelling the wait does not cancel the work."""
        await self._event.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def __enter__(self) -> Reply[R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if not self.settled:
            self.fail(ActorStopped(_why_stopped(error)))
            assert error is not None, "a request was left without an answer"

    def __repr__(self) -> str:
        return f"<Reply {'open' if not self.settled else self._error or 'answered'!s}>"


@attrs.frozen(eq=False)
class Request(Generic[R]):
    """The base of messages that want an answer. A subclass adds its fields after `reply`."""

    reply: Reply[R] = attrs.field(repr=False)


def _why_stopped(error: BaseException | None) -> str:
    cause = "without an answer" if error is None else f"by {type(error).__name__}"
    return f"the actor ended {cause} while it worked on the request: its outcome is unknown"


# --- mailboxes --------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class MailboxStatistics:
    """How a mailbox fares: messages now and at most so far, puts waiting now, and how often it was met full (waits and refusals)."""

    capacity: int
    depth: int
    peak: int
    waiting: int
    full_count: int


@attrs.define(eq=False)
class _WaitingPut(Generic[M]):
    message: M
    entered: bool = False


class Mailbox(Generic[M]):
    """A bounded queue of messages to one actor, in order of entry.

    `name` appears in errors and logs. `capacity` is the number of messages it holds; the reason for the number stands where the
    mailbox is made.
    """

    def __init__(self, name: str, *, capacity: int) -> None:
        assert capacity >= 1, f"mailbox {name}: the capacity is at least 1, not {capacity}"
        self.name = name
        self.capacity = capacity
        self._queue: deque[M] = deque()
        self._putters: dict[trio.lowlevel.Task, _WaitingPut[M]] = {}  # in order of arrival; not empty only while the queue is full (M2)
        self._getters = trio.lowlevel.ParkingLot()
        self._closed = False
        self._peak = 0
        self._full_count = 0

    async def put(self, message: M) -> None:
        """Put the message in, waiting for room behind those who came earlier. Raises `Stopped` when the mailbox is closed, also while
        waiting. Always a checkpoint; when it is cancelled, the message was not put."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed or len(self._queue) < self.capacity:
            self.post(message)
            await trio.lowlevel.cancel_shielded_checkpoint()  # the message is in: from here on the put cannot be undone (M4)
            return
        self._full_count += 1
        task = trio.lowlevel.current_task()
        waiting = self._putters[task] = _WaitingPut(message)

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._putters[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if not waiting.entered:  # woken by `close`, not by `_take`
            raise Stopped(f"{self.name} has stopped")

    def post(self, message: M) -> None:
        """Put the message in now. Raises `MailboxFull` when there is no room, `Stopped` when the mailbox is closed."""
        if self._closed:
            raise Stopped(f"{self.name} has stopped")
        if len(self._queue) >= self.capacity:
            self._full_count += 1
            raise MailboxFull(f"{self.name} is busy: {self.capacity} messages are waiting", RETRY_AFTER_SECONDS)
        self._enter(message)

    async def get(self) -> M:
        """The next message, waiting for one. Raises `Stopped` when the mailbox is closed. Always a checkpoint; when it is cancelled,
        nothing was taken."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._queue:
            message = self._take()
            await trio.lowlevel.cancel_shielded_checkpoint()  # the message is in our hand: a cancellation here would lose it (M4)
            return message
        while not self._queue:
            if self._closed:
                raise Stopped(f"{self.name} has stopped")
            # Once unparked, this task cannot be cancelled before it runs, so whoever was woken for a message takes it, or finds that
            # another getter did and waits again.
            await self._getters.park()
        return self._take()

    def get_all(self, limit: int) -> list[M]:
        """What is queued now, at most `limit` messages, without waiting; those whose put waits for room come in as the others go out."""
        messages: list[M] = []
        while self._queue and len(messages) < limit:
            messages.append(self._take())
        return messages

    def close(self) -> None:
        """Take no more messages. Requests that are still queued fail with `Stopped`, and so does everybody who waits in `put` or `get`.
        Closing twice is allowed."""
        self._closed = True
        dropped, self._queue = self._queue, deque()
        for message in dropped:
            if isinstance(message, Request) and not message.reply.settled:
                message.reply.fail(Stopped(f"{self.name} stopped before it looked at the request"))
        putters, self._putters = self._putters, {}
        for task in putters:
            trio.lowlevel.reschedule(task)
        self._getters.unpark_all()

    def statistics(self) -> MailboxStatistics:
        """A snapshot of the counters."""
        return MailboxStatistics(
            capacity=self.capacity,
            depth=len(self._queue),
            peak=self._peak,
            waiting=len(self._putters),
            full_count=self._full_count,
        )

    def validate(self) -> None:
        """Assert the invariants."""
        assert len(self._queue) <= self.capacity  # M1
        assert not self._putters or len(self._queue) == self.capacity  # M2
        assert not (self._closed and (self._queue or self._putters or self._getters))  # M3: nothing is left behind by closing

    def __repr__(self) -> str:
        return f"<Mailbox {self.name} {len(self._queue)}/{self.capacity}{' closed' if self._closed else ''}>"

    def _enter(self, message: M) -> None:
        self._queue.append(message)
        self._peak = max(self._peak, len(self._queue))
        self._getters.unpark()

    def _take(self) -> M:
        message = self._queue.popleft()
        if self._putters:
            task = next(iter(self._putters))
            waiting = self._putters.pop(task)
            waiting.entered = True
            self._enter(waiting.message)  # here and not in the woken task: nobody can slip in between (M2)
            trio.lowlevel.reschedule(task)
        return message


async def ask(mailbox: Mailbox[Any], build: Callable[[Reply[R]], object]) -> R:
    """Put the request that `build` makes around a fresh reply, and wait for the answer.

    There is no timeout of its own: the deadline is that of the caller's cancel scope. Raises `Stopped` when the actor certainly did
    not look at the request, `ActorStopped` when it ended while working on it, or what the actor answered with. After a cancellation the
    request may still be done.
    """
    reply: Reply[R] = Reply()
    await mailbox.put(build(reply))
    return await reply.wait()
