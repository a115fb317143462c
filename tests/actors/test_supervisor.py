"""Supervision: order, restarts, budgets and errors, all in virtual time."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from govern.actors.runtime import Mailbox, Reply, Request, ask
from govern.actors.supervisor import Child, ChildReturned, Restart, Run, Strategy, Supervision, Supervisor, unwrap
from govern.errors import Stopped


class Stage:
    """Children that write down what happens to them, and crash on command."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.orders: dict[str, Callable[[], Awaitable[None]]] = {}
        self.woken: dict[str, trio.Event] = {}

    def actor(self, name: str, restart: Restart = Restart.PERMANENT, **options: Any) -> Child:
        """A child that starts, then obeys one order, then waits; its end is logged whatever it is."""

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            self.log.append(f"{name} starts")
            self.woken[name] = trio.Event()
            await trio.lowlevel.checkpoint()
            task_status.started()
            self.log.append(f"{name} up")
            try:
                await self.woken[name].wait()
                await self.orders.pop(name)()
            finally:
                self.log.append(f"{name} ends")

        return child(name, run, restart, **options)

    def order(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        self.orders[name] = act
        self.woken[name].set()

    def crash(self, name: str, error: BaseException) -> None:
        async def act() -> None:
            raise error

        self.order(name, act)

    def finish(self, name: str) -> None:
        self.order(name, trio.lowlevel.checkpoint)


def child(name: str, run: Run, restart: Restart = Restart.PERMANENT, grace_seconds: float = 1.0, **options: Any) -> Child:
    return Child(name=name, run=run, restart=restart, grace_seconds=grace_seconds, **options)


def supervisor(*children: Child, strategy: Strategy = Strategy.ONE_FOR_ONE, **limits: Any) -> Supervisor:
    return Supervisor("tree", children, random=random.Random(1), supervision=Supervision(strategy=strategy, **limits))


async def settle(seconds: float = 2.0) -> None:
    """Let every backoff pass."""
    await trio.sleep(seconds)


async def hang_until_cancelled(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


# --- order ------------------------------------------------------------------------------------------------------------------


async def test_children_start_left_to_right_and_stop_right_to_left(autojump_clock: MockClock) -> None:
    """A child starts when the one before it is up; cancelling from outside ends each after the one behind it is gone (V1, V2)."""
    stage = Stage()
    tree = supervisor(*(stage.actor(name) for name in "abc"))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        assert stage.log == ["a starts", "a up", "b starts", "b up", "c starts", "c up"]
        assert repr(tree) == "<Supervisor tree a:up b:up c:up>"
        stage.log.clear()
        nursery.cancel_scope.cancel()
    assert stage.log == ["c ends", "b ends", "a ends"]
    assert repr(tree) == "<Supervisor tree a:gone b:gone c:gone>"


@attrs.frozen(eq=False)
class Save(Request[str]):
    text: str


async def test_a_session_flushes_through_a_store_that_still_lives(autojump_clock: MockClock) -> None:
    """The last words of a child reach the children to its left: here through several waits, while everything is being stopped."""
    box: Mailbox[Save] = Mailbox("store", capacity=4)
    saved: list[str] = []

    async def store(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            with (await box.get()).reply as reply:
                await trio.sleep(0.2)
                saved.append("text")
                reply.answer("saved")

    async def session(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(1, shield=True):
                for _ in range(3):
                    assert await ask(box, lambda reply: Save(reply, "text")) == "saved"

    tree = supervisor(child("store", store, Restart.VITAL, mailboxes=[box]), child("session", session, Restart.VITAL))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        nursery.cancel_scope.cancel()
    assert saved == ["text"] * 3
    with pytest.raises(Stopped):
        box.post(Save(Reply(), "late"))


async def test_cancelling_during_the_start_stops_what_was_started(autojump_clock: MockClock) -> None:
    """A start that is stuck can be cancelled; the children before it stop in order and the ones after it never start."""
    stage = Stage()
    box: Mailbox[int] = Mailbox("never", capacity=1)

    async def stuck(*, task_status: trio.TaskStatus[None]) -> None:
        stage.log.append("stuck starts")
        try:
            await trio.sleep_forever()
        finally:
            stage.log.append("stuck ends")

    tree = supervisor(stage.actor("a"), child("stuck", stuck), stage.actor("c", mailboxes=[box]))
    with trio.move_on_after(1) as scope:
        await tree.run()
    assert scope.cancelled_caught
    assert trio.current_time() == 1
    assert stage.log == ["a starts", "a up", "stuck starts", "stuck ends", "a ends"]
    with pytest.raises(Stopped):
        box.post(1)


async def test_a_hung_cleanup_is_bounded_by_its_grace(autojump_clock: MockClock) -> None:
    """Shielded cleanup with a deadline costs at most its grace, each child its own; then the next one is stopped."""
    stage = Stage()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(3, shield=True):
                await trio.sleep_forever()

    tree = supervisor(stage.actor("a"), child("b", run, grace_seconds=3), child("c", run, grace_seconds=3))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 6


async def test_a_cleanup_that_overstays_does_not_keep_the_others_alive(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """When a child shields itself without a deadline, its siblings are stopped after its grace all the same, and the log names it."""
    stage = Stage()
    release = trio.Event()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await release.wait()

    tree = supervisor(stage.actor("a"), child("hung", run, grace_seconds=3))
    async with running(tree) as result:
        result.scope.cancel()
        await trio.sleep(2.5)
        assert "a ends" not in stage.log
        await trio.sleep(1)
        assert "a ends" in stage.log
        release.set()
    assert "hung did not end within its grace of 3 s" in caplog.text


# --- restarts ---------------------------------------------------------------------------------------------------------------


async def test_a_permanent_child_is_restarted_alone_and_later(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """ONE_FOR_ONE: only the crashed child starts again, not before its backoff, and the crash is logged with its name."""
    stage = Stage()
    tree = supervisor(*(stage.actor(name) for name in "abc"), backoff_seconds_min=0.4)
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        stage.log.clear()
        stage.crash("b", OSError("cable"))
        await trio.sleep(0.19)
        assert stage.log == ["b ends"]
        await trio.sleep(0.22)
        assert stage.log == ["b ends", "b starts", "b up"]
        assert tree.statistics().restarts == {"a": 0, "b": 1, "c": 0}
        nursery.cancel_scope.cancel()
    assert "tree: b crashed and is restarted" in caplog.text
    assert "OSError: cable" in caplog.text


async def test_rest_for_one_restarts_the_later_siblings_only(autojump_clock: MockClock) -> None:
    """REST_FOR_ONE: the children to the right stop from right to left, and start again from left to right, each after the one before."""
    stage = Stage()
    tree = supervisor(*(stage.actor(name) for name in "abcd"), strategy=Strategy.REST_FOR_ONE)
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        stage.log.clear()
        stage.crash("b", OSError())
        await settle()
        assert stage.log == ["b ends", "d ends", "c ends", "b starts", "b up", "c starts", "c up", "d starts", "d up"]
        assert tree.statistics().restarts == {"a": 0, "b": 1, "c": 1, "d": 1}
        stage.log.clear()
        nursery.cancel_scope.cancel()
    assert stage.log == ["d ends", "c ends", "b ends", "a ends"]


async def test_rest_for_one_with_two_crashes_at_once(autojump_clock: MockClock) -> None:
    """A child that crashed by itself waits for a child to its left that crashed too: the order of starting holds whatever came first."""
    for first, second in (("a", "b"), ("b", "a")):
        stage = Stage()
        tree = supervisor(*(stage.actor(name) for name in "abc"), strategy=Strategy.REST_FOR_ONE)
        async with trio.open_nursery() as nursery:
            await nursery.start(tree.run)
            stage.log.clear()
            stage.crash(first, OSError())
            stage.crash(second, OSError())
            await settle(4)
            assert [line for line in stage.log if "ends" not in line] == ["a starts", "a up", "b starts", "b up", "c starts", "c up"]
            nursery.cancel_scope.cancel()


async def test_a_crash_while_a_later_child_starts_for_the_first_time(autojump_clock: MockClock) -> None:
    """REST_FOR_ONE: a first start that was halted is repeated, and the supervisor goes on to the children after it."""
    stage = Stage()
    attempts: list[int] = []

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        attempts.append(1)
        await trio.sleep(1)
        await hang_until_cancelled(task_status=task_status)

    tree = supervisor(stage.actor("a"), child("slow", slow), stage.actor("c"), strategy=Strategy.REST_FOR_ONE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await trio.sleep(0.5)
        stage.crash("a", OSError())
        await settle(5)
        assert len(attempts) == 2
        assert stage.log == ["a starts", "a up", "a ends", "a starts", "a up", "c starts", "c up"]
        nursery.cancel_scope.cancel()


async def test_the_third_restart_within_the_period_escalates(autojump_clock: MockClock) -> None:
    """Two restarts within five seconds are granted; the third crash comes out of `run` as it was raised, the siblings stopped (V3)."""
    stage = Stage()
    tree = supervisor(stage.actor("a"), stage.actor("b"))
    last = OSError("third")
    async with running(tree) as result:
        for error in (OSError("first"), OSError("second")):
            stage.crash("b", error)
            await settle(1.5)
        stage.crash("b", last)
    assert isinstance(result.error, OSError)
    assert "third" in str(result.error)
    assert result.error is last
    assert stage.log[-1] == "a ends"
    assert tree.statistics().restarts == {"a": 0, "b": 2}


async def test_restarts_outside_the_period_are_forgotten(autojump_clock: MockClock) -> None:
    """The budget counts the last five seconds only."""
    stage = Stage()
    tree = supervisor(stage.actor("a"))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        for _ in range(6):
            stage.crash("a", OSError())
            await settle(3)
        assert tree.statistics().restarts == {"a": 6}
        nursery.cancel_scope.cancel()


async def test_a_permanent_child_that_returns_has_crashed(autojump_clock: MockClock) -> None:
    """Returning is restarted and counted; past the budget the error says what happened."""
    stage = Stage()
    tree = supervisor(stage.actor("a"), restarts_max=1)
    async with running(tree) as result:
        stage.finish("a")
        await settle()
        assert stage.log[-2:] == ["a starts", "a up"]
        stage.finish("a")
    assert isinstance(result.error, ChildReturned)
    assert "a returned" in str(result.error)


async def test_a_transient_child_may_return_but_not_crash(autojump_clock: MockClock) -> None:
    """TRANSIENT: a crash is restarted, a return is the end of this child and of nobody else; its mailbox closes then (V6)."""
    stage = Stage()
    box: Mailbox[int] = Mailbox("box", capacity=1)
    tree = supervisor(stage.actor("a", Restart.TRANSIENT, mailboxes=[box]), stage.actor("b"))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        stage.crash("a", OSError())
        await settle()
        assert tree.statistics().restarts == {"a": 1, "b": 0}
        box.post(1)
        stage.finish("a")
        await settle()
        assert repr(tree) == "<Supervisor tree a:gone b:up>"
        with pytest.raises(Stopped):
            box.post(2)
        nursery.cancel_scope.cancel()


async def test_a_temporary_child_is_missed_by_nobody(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """TEMPORARY: its crash is logged and not restarted, and does not use the budget."""
    stage = Stage()
    tree = supervisor(stage.actor("a", Restart.TEMPORARY), stage.actor("b"), restarts_max=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        stage.crash("a", OSError("late"))
        await settle()
        assert repr(tree) == "<Supervisor tree a:gone b:up>"
        nursery.cancel_scope.cancel()
    assert "a crashed and is not restarted" in caplog.text


@pytest.mark.parametrize("ending", ["crash", "return"])
async def test_the_end_of_a_vital_child_stops_everything(autojump_clock: MockClock, ending: str) -> None:
    """VITAL: no restart; the others stop from right to left, and its error comes out of `run`."""
    stage = Stage()
    tree = supervisor(stage.actor("a"), stage.actor("store", Restart.VITAL), stage.actor("c"))
    async with running(tree) as result:
        stage.log.clear()
        if ending == "crash":
            stage.crash("store", OSError("disk"))
        else:
            stage.finish("store")
    assert isinstance(result.error, OSError if ending == "crash" else ChildReturned)
    assert stage.log == ["store ends", "c ends", "a ends"]


@pytest.mark.parametrize("restart", list(Restart))
async def test_an_assertion_stops_everything_whatever_the_policy(autojump_clock: MockClock, restart: Restart) -> None:
    """An AssertionError, even one deep inside nested groups, is never followed by a restart (V4)."""
    stage = Stage()
    bug = AssertionError("our bug")

    async def nested() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail, bug)

    tree = supervisor(stage.actor("a"), stage.actor("b", restart), stage.actor("c"))
    async with running(tree) as result:
        stage.order("b", nested)
    assert isinstance(result.error, AssertionError)
    assert result.error is bug
    assert tree.statistics().restarts == {"a": 0, "b": 0, "c": 0}
    assert stage.log[-3:] == ["b ends", "c ends", "a ends"]


async def test_errors_in_groups_are_crashes_like_any_other(autojump_clock: MockClock) -> None:
    """A child whose nursery raises a group is restarted, and past the budget the one error inside comes out with its own cause."""
    stage = Stage()
    cause = KeyError("cause")
    error = OSError("inside")
    error.__cause__ = cause

    async def nested() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail, error)

    tree = supervisor(stage.actor("a"), restarts_max=1)
    async with running(tree) as result:
        stage.order("a", nested)
        await settle()
        assert tree.statistics().restarts == {"a": 1}
        stage.order("a", nested)
    assert isinstance(result.error, OSError)
    assert "inside" in str(result.error)
    assert result.error is error
    assert result.error.__cause__ is cause


async def test_a_failed_first_start_comes_out_and_stops_the_rest(autojump_clock: MockClock) -> None:
    """A child that cannot come up, such as a listener whose port is taken, is not restarted: whoever starts the node has to know."""
    stage = Stage()

    async def bind(*, task_status: trio.TaskStatus[None]) -> None:
        stage.log.append("binds")
        await fail(OSError("port in use"))

    tree = supervisor(stage.actor("a"), child("listener", bind), stage.actor("c"))
    with pytest.raises(OSError, match="port in use"):
        await tree.run()
    assert stage.log == ["a starts", "a up", "binds", "a ends"]


async def test_the_first_error_wins_and_the_others_are_logged(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Crashes that follow from the first fatal one neither hide it nor make a group of it (V5)."""
    stage = Stage()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await hang_until_cancelled(task_status=task_status)
        finally:
            async with trio.open_nursery():
                raise ValueError("could not say goodbye")

    tree = supervisor(child("a", run), stage.actor("b", Restart.VITAL), child("c", run))
    async with running(tree) as result:
        stage.crash("b", OSError("disk"))
    assert isinstance(result.error, OSError)
    assert "disk" in str(result.error)
    assert caplog.text.count("failed while the others were stopping") == 2


async def test_an_error_during_an_ordered_stop_comes_out(autojump_clock: MockClock) -> None:
    """Failing to clean up is not swallowed, and the children to the left are stopped all the same."""
    stage = Stage()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await hang_until_cancelled(task_status=task_status)
        finally:
            raise ValueError("could not say goodbye")

    tree = supervisor(stage.actor("a"), child("b", run))
    async with running(tree) as result:
        result.scope.cancel()
    assert isinstance(result.error, ValueError)
    assert "goodbye" in str(result.error)
    assert stage.log[-1] == "a ends"


async def test_speaking_to_a_sibling_that_is_gone_is_no_failure_of_the_stop(autojump_clock: MockClock) -> None:
    """While the supervisor stops, a child may still post to one on its right whose mailbox is closed: that must not look like a crash."""
    stage = Stage()
    box: Mailbox[int] = Mailbox("right", capacity=1)

    async def detector(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep(1)
        box.post(1)

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await hang_until_cancelled(task_status=task_status)
        finally:
            with trio.move_on_after(2, shield=True):
                await trio.sleep_forever()

    tree = supervisor(
        stage.actor("a"),
        child("detector", detector, Restart.VITAL),
        child("slow", slow, grace_seconds=2),
        stage.actor("right", mailboxes=[box]),
    )
    async with running(tree) as result:
        result.scope.cancel()
    assert result.error is None
    assert stage.log[-1] == "a ends"
    assert trio.current_time() == 2


async def test_cancellation_during_a_backoff(autojump_clock: MockClock) -> None:
    """A child that waits for its restart is gone at once when the supervisor stops, and is not started again."""
    stage = Stage()
    tree = supervisor(stage.actor("a"), stage.actor("b"))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        stage.crash("b", OSError())
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 0
    assert stage.log[-2:] == ["b ends", "a ends"]


async def test_a_supervisor_is_a_child_of_another(autojump_clock: MockClock) -> None:
    """A spent budget reaches the parent, which restarts the whole branch, built anew."""
    stage = Stage()

    async def branch(*, task_status: trio.TaskStatus[None]) -> None:
        await supervisor(stage.actor("x"), stage.actor("y"), restarts_max=0).run(task_status=task_status)

    tree = supervisor(child("branch", branch))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        stage.log.clear()
        stage.crash("x", OSError())
        await settle()
        assert stage.log == ["x ends", "y ends", "x starts", "x up", "y starts", "y up"]
        nursery.cancel_scope.cancel()


# --- mailboxes, helpers and shape -------------------------------------------------------------------------------------------


async def test_the_mailbox_survives_a_restart_and_the_request_in_hand_does_not(autojump_clock: MockClock) -> None:
    """The asker of the request that killed the actor learns that the outcome is unknown; what was queued behind it is answered by the next
    life of the actor."""
    box: Mailbox[Save] = Mailbox("store", capacity=4)
    answers: list[str] = []

    async def store(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            request = await box.get()
            with request.reply as reply:
                if request.text == "poison":
                    raise OSError("poison")
                reply.answer(request.text)

    async def asker(text: str) -> None:
        try:
            answers.append(await ask(box, lambda reply: Save(reply, text)))
        except Stopped as error:
            answers.append(type(error).__name__)

    tree = supervisor(child("store", store, mailboxes=[box]))
    async with trio.open_nursery() as nursery:
        await nursery.start(tree.run)
        for text in ("poison", "a", "b"):
            nursery.start_soon(asker, text)
            await trio.lowlevel.checkpoint()
        await settle()
        assert sorted(answers) == ["ActorStopped", "a", "b"]
        nursery.cancel_scope.cancel()


async def test_nobody_waits_for_a_vital_actor_that_crashed(autojump_clock: MockClock) -> None:
    """Requests that were queued when it crashed fail with `Stopped`, so that the children to the right can end within their grace."""
    stage = Stage()
    box: Mailbox[Save] = Mailbox("store", capacity=4)
    seen: list[type[BaseException]] = []

    async def session(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        with trio.CancelScope(shield=True):
            try:
                await ask(box, lambda reply: Save(reply, "x"))
            except Stopped as error:
                seen.append(type(error))
        await trio.sleep_forever()

    tree = supervisor(stage.actor("store", Restart.VITAL, mailboxes=[box]), child("session", session, Restart.VITAL))
    async with running(tree) as result:
        await trio.testing.wait_all_tasks_blocked()
        stage.crash("store", OSError("disk"))
    assert isinstance(result.error, OSError)
    assert "disk" in str(result.error)
    assert seen == [Stopped]
    assert trio.current_time() == 0


def test_unwrap() -> None:
    """One error at any depth comes out as itself; several stay the group they are."""
    one = OSError()
    assert unwrap(one) is one
    assert unwrap(ExceptionGroup("outer", [ExceptionGroup("inner", [one])])) is one
    two = ExceptionGroup("two", [one, ValueError()])
    assert unwrap(two) is two


async def test_keyboard_interrupt_is_never_hidden(autojump_clock: MockClock) -> None:
    """What is no error of a child is not judged by the policy: it ends the supervisor as it is."""
    stage = Stage()
    tree = supervisor(stage.actor("a"), stage.actor("b", Restart.TEMPORARY))
    async with running(tree) as result:
        stage.crash("b", KeyboardInterrupt())
    assert isinstance(result.error, KeyboardInterrupt)
    assert stage.log[-1] == "a ends"


def test_wrong_trees_are_refused() -> None:
    """Names are unique; a vital child never stands right of one whose restart would take it along; backoff leaves room for the budget."""
    same = child("a", hang_until_cancelled)
    with pytest.raises(AssertionError, match="unique"):
        supervisor(same, same)
    vital = child("b", hang_until_cancelled, Restart.VITAL)
    supervisor(vital, same, strategy=Strategy.REST_FOR_ONE)
    supervisor(same, vital)
    with pytest.raises(AssertionError, match="vital"):
        supervisor(same, vital, strategy=Strategy.REST_FOR_ONE)
    with pytest.raises(AssertionError):
        Supervision(restarts_max=10)


async def fail(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


@attrs.define(eq=False)
class Result:
    """How `run` of a supervisor ended."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    error: BaseException | None = None

    async def watch(self, tree: Supervisor, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self.scope:
                await tree.run(task_status=task_status)
        except (Exception, KeyboardInterrupt) as error:
            self.error = error


@asynccontextmanager
async def running(tree: Supervisor) -> AsyncIterator[Result]:
    """Run a supervisor beside the block, then wait until it ends by itself; what it raised is in the result, exactly as it was."""
    result = Result()
    async with trio.open_nursery() as nursery:
        await nursery.start(result.watch, tree)
        yield result


async def test_a_child_that_speaks_to_one_that_is_gone_is_no_second_failure(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A tree stops for the error of a child on the right, and the one on the left still posts to the one between: no error to tell."""
    middle = Mailbox[int]("middle", capacity=1)

    async def left(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
            await middle.put(1)

    async def steady(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def right(*, task_status: trio.TaskStatus[None]) -> None:
        raise OSError("the address is in use")

    tree = [
        Child(name="left", run=left, restart=Restart.VITAL, grace_seconds=5.0),
        Child(name="middle", run=steady, restart=Restart.VITAL, grace_seconds=5.0, mailboxes=[middle]),
        Child(name="right", run=right, restart=Restart.VITAL, grace_seconds=5.0),
    ]
    with caplog.at_level(logging.INFO), pytest.raises(OSError, match="in use"):
        await Supervisor("tree", tree, random=random.Random(1)).run()
    assert [record.levelname for record in caplog.records if "left" in record.getMessage()] == ["INFO"]
