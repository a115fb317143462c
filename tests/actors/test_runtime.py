"""Mailboxes and replies: nothing is lost, nothing waits for ever."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from govern.actors.runtime import ActorStopped, Mailbox, MailboxFull, MailboxStatistics, Reply, Request, ask
from govern.errors import Overloaded, Stopped


@attrs.frozen(eq=False)
class Double(Request[int]):
    number: int


# --- mailboxes --------------------------------------------------------------------------------------------------------------


async def test_messages_come_out_in_the_order_in_which_they_went_in() -> None:
    """First in, first out, one by one and in batches; a batch is never longer than its limit and never waits."""
    box: Mailbox[int] = Mailbox("box", capacity=10)
    for number in range(7):
        box.post(number)
    assert await box.get() == 0
    assert box.get_all(3) == [1, 2, 3]
    assert box.get_all(100) == [4, 5, 6]
    assert box.get_all(100) == []


async def test_put_waits_for_room_and_enters_in_turn() -> None:
    """Backpressure: puts wait while the box is full, and enter in the order in which they came, ahead of any later post (M2)."""
    box: Mailbox[str] = Mailbox("box", capacity=1)
    done: list[str] = []

    async def put(message: str) -> None:
        await box.put(message)
        done.append(message)

    await box.put("a")
    async with trio.open_nursery() as nursery:
        for message in "bc":
            nursery.start_soon(put, message)
            await wait_all_tasks_blocked()
        assert done == []
        box.validate()
        assert await box.get() == "a"
        with pytest.raises(MailboxFull):
            box.post("jumps the queue")
        await wait_all_tasks_blocked()
        assert done == ["b"]
        assert box.get_all(10) == ["b", "c"]
    assert done == ["b", "c"]


async def test_post_to_a_full_box_is_refused_at_once() -> None:
    """`MailboxFull` is a rejection that may be repeated later: the message is certainly not in."""
    box: Mailbox[int] = Mailbox("sessions", capacity=2)
    box.post(1)
    box.post(2)
    with pytest.raises(MailboxFull, match="sessions is busy: 2 messages are waiting") as caught:
        box.post(3)
    assert isinstance(caught.value, Overloaded)
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0
    assert box.get_all(10) == [1, 2]


async def test_statistics_count_depth_peak_and_how_often_it_was_full() -> None:
    """A refused post and a put that had to wait both count; the peak stays when the box empties."""
    box: Mailbox[int] = Mailbox("box", capacity=2)
    box.post(1)
    box.post(2)
    with pytest.raises(MailboxFull):
        box.post(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.put, 3)
        await wait_all_tasks_blocked()
        assert box.statistics() == MailboxStatistics(capacity=2, depth=2, peak=2, waiting=1, full_count=2)
        assert repr(box) == "<Mailbox box 2/2>"
        box.get_all(2)
    assert box.statistics() == MailboxStatistics(capacity=2, depth=1, peak=2, waiting=0, full_count=2)


async def test_put_and_get_are_checkpoints_also_when_they_need_not_wait() -> None:
    """A busy loop of puts or gets lets others run."""
    box: Mailbox[int] = Mailbox("box", capacity=1)
    with assert_checkpoints():
        await box.put(1)
    with assert_checkpoints():
        await box.get()


@pytest.mark.parametrize("empty", [True, False])
async def test_a_cancelled_get_loses_nothing(empty: bool) -> None:
    """Cancelled before or while waiting, `get` has taken nothing (M4)."""
    box: Mailbox[int] = Mailbox("box", capacity=1)
    if not empty:
        box.post(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await box.get()
    assert scope.cancelled_caught
    if empty:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.get)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        box.post(1)
    assert box.get_all(2) == [1]


async def test_a_get_that_was_woken_and_then_cancelled_returns_its_message() -> None:
    """The hard case: the message arrives, then the cancellation, and only then does the waiting task run (M4)."""
    box: Mailbox[int] = Mailbox("box", capacity=1)
    got: list[int] = []

    async def get() -> None:
        got.append(await box.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await wait_all_tasks_blocked()
        box.post(1)
        nursery.cancel_scope.cancel()
    assert got + box.get_all(2) == [1]


async def test_a_cancellation_right_after_the_message_moved_comes_too_late() -> None:
    """A get that took its message returns it, and a put that went in returns, when they are cancelled before they run on (M4)."""
    for _ in range(20):  # the scheduler decides whether the cancellation comes first
        box: Mailbox[int] = Mailbox("box", capacity=2)
        box.post(1)
        results: list[int] = []

        async def get(moves: trio.Event, box: Mailbox[int], results: list[int]) -> None:
            moves.set()
            results.append(await box.get())

        async def put(moves: trio.Event, box: Mailbox[int], results: list[int]) -> None:
            moves.set()
            await box.put(2)
            results.append(2)

        for act in (get, put):
            moves = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(act, moves, box, results)
                await moves.wait()
                nursery.cancel_scope.cancel()
        assert results == [1, 2]
        assert box.get_all(2) == [2]


async def test_a_cancelled_put_has_not_put() -> None:
    """Cancelled before or while waiting, the message is not in; cancelled after it entered, `put` returns as if nothing was (M4)."""
    box: Mailbox[int] = Mailbox("box", capacity=1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await box.put(1)
    assert box.get_all(2) == []
    box.post(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.put, 3)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert box.get_all(2) == [2]
    done: list[int] = []

    async def put() -> None:
        await box.put(5)
        done.append(5)

    box.post(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        await wait_all_tasks_blocked()
        assert box.get_all(1) == [4]
        nursery.cancel_scope.cancel()
    assert done == box.get_all(2) == [5]


async def test_close_wakes_everybody_and_fails_what_is_queued() -> None:
    """After `close` nobody waits: not in `put`, not in `get`, not for the reply of a request that was queued; and it stays closed (M3)."""
    full: Mailbox[Double] = Mailbox("full", capacity=1)
    empty: Mailbox[int] = Mailbox("empty", capacity=1)
    ends: list[type[BaseException]] = []

    async def asks() -> None:
        with pytest.raises(Stopped) as caught:
            await ask(full, lambda reply: Double(reply, 1))
        ends.append(caught.type)

    async def gets() -> None:
        with pytest.raises(Stopped) as caught:
            await empty.get()
        ends.append(caught.type)

    async with trio.open_nursery() as nursery:
        for waiter in (asks, asks, gets, gets):
            nursery.start_soon(waiter)
        await wait_all_tasks_blocked()
        full.close()
        empty.close()
    assert ends == [Stopped] * 4  # not ActorStopped: these requests certainly had no effect
    for box in (full, empty):
        box.close()
        box.validate()
        assert box.get_all(1) == []
        with pytest.raises(Stopped):
            await box.get()
    with pytest.raises(Stopped):
        await empty.put(1)
    with pytest.raises(Stopped):
        empty.post(1)
    assert repr(empty) == "<Mailbox empty 0/1 closed>"


async def test_close_leaves_requests_alone_that_are_in_hand() -> None:
    """What the actor took out before the closing is still its own to answer."""
    box: Mailbox[Double] = Mailbox("box", capacity=1)
    reply: Reply[int] = Reply()
    box.post(Double(reply, 4))
    with (await box.get()).reply as in_hand_reply:
        box.close()
        in_hand_reply.answer(8)
    assert await reply.wait() == 8


ACTS = ("put", "post", "get", "get_all", "cancel_put", "cancel_get", "run")


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.integers(1, 3), acts=st.lists(st.sampled_from(ACTS), max_size=30), closes=st.booleans(), random_module=st.random_module()
)
def test_any_interleaving_keeps_every_message_once(capacity: int, acts: Sequence[str], closes: bool, random_module: object) -> None:
    """Whatever tasks put, post, get and are cancelled in whatever order and schedule: each message that was put comes out exactly once,
    none that was not put does, and the box keeps its invariants (M1 to M4)."""
    trio.run(_interleave, capacity, acts, closes)


async def _interleave(capacity: int, acts: Sequence[str], closes: bool) -> None:
    box: Mailbox[int] = Mailbox("box", capacity=capacity)
    entered: list[int] = []
    taken: list[int] = []
    scopes: dict[str, list[trio.CancelScope]] = {"put": [], "get": []}

    async def put(number: int, scope: trio.CancelScope) -> None:
        with scope:
            with suppress(Stopped):
                await box.put(number)
                entered.append(number)

    async def get(scope: trio.CancelScope) -> None:
        with scope:
            with suppress(Stopped):
                taken.append(await box.get())

    async with trio.open_nursery() as nursery:
        for number, act in enumerate(acts):
            match act:
                case "put":
                    scopes["put"].append(trio.CancelScope())
                    nursery.start_soon(put, number, scopes["put"][-1])
                case "get":
                    scopes["get"].append(trio.CancelScope())
                    nursery.start_soon(get, scopes["get"][-1])
                case "post":
                    try:
                        box.post(number)
                        entered.append(number)
                    except MailboxFull:
                        assert box.statistics().depth == capacity
                case "get_all":
                    taken += box.get_all(2)
                case "cancel_put" | "cancel_get":
                    waiting = scopes[act.removeprefix("cancel_")]
                    if waiting:
                        waiting.pop(number % len(waiting)).cancel()
                case "run":
                    await wait_all_tasks_blocked()
                    statistics = box.statistics()
                    assert statistics.depth == len(entered) - len(taken)
            box.validate()
        if closes:
            depth_before = box.statistics().depth
            box.close()
            await wait_all_tasks_blocked()
            box.validate()
            assert len(entered) - len(taken) >= depth_before  # dropped by closing, or put later by none
            assert len(set(taken)) == len(taken)
            assert set(taken) <= set(entered)
        else:
            await wait_all_tasks_blocked()
            while box.statistics().depth:
                taken += box.get_all(1)
                await wait_all_tasks_blocked()
            assert sorted(taken) == sorted(entered)
        nursery.cancel_scope.cancel()


# --- replies ----------------------------------------------------------------------------------------------------------------


async def test_ask_returns_the_answer(autojump_clock: MockClock) -> None:
    """A request goes out with a fresh reply, and the answer comes back."""
    box: Mailbox[Double] = Mailbox("box", capacity=1)

    async def actor() -> None:
        while True:
            request = await box.get()
            with request.reply as reply:
                await trio.sleep(1)
                reply.answer(request.number * 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor)
        assert await ask(box, lambda reply: Double(reply, 21)) == 42
        assert trio.current_time() == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["exception", "cancellation"])
async def test_the_asker_never_hangs_when_the_actor_ends_with_the_request_in_hand(how: str, autojump_clock: MockClock) -> None:
    """Leaving the block by an exception or by cancellation fails the reply with `ActorStopped`: the outcome is unknown."""
    box: Mailbox[Double] = Mailbox("box", capacity=2)

    async def actor() -> None:
        with trio.move_on_after(1):
            request = await box.get()
            with request.reply:
                if how == "cancellation":
                    await trio.sleep_forever()
                raise OSError("disk")

    async def survive() -> None:
        try:
            await actor()
        except OSError:
            assert how == "exception"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(survive)
        with pytest.raises(ActorStopped, match="OSError" if how == "exception" else "Cancelled") as caught:
            await ask(box, lambda reply: Double(reply, 1))
        assert isinstance(caught.value, Stopped)


async def test_forgetting_to_answer_is_a_bug_and_still_wakes_the_asker() -> None:
    """Leaving the block normally without an answer asserts in the actor, and its asker does not hang."""
    request = Double(Reply(), 1)
    with pytest.raises(AssertionError, match="without an answer"):
        with request.reply:
            pass
    with pytest.raises(ActorStopped):
        await request.reply.wait()


async def test_answering_twice_is_a_bug() -> None:
    """A reply is settled exactly once, and the first word stays (M5)."""
    reply: Reply[int] = Reply()
    assert repr(reply) == "<Reply open>"
    reply.answer(1)
    with pytest.raises(AssertionError, match="settled once"):
        reply.answer(2)
    with pytest.raises(AssertionError, match="settled once"):
        reply.fail(OSError())
    assert await reply.wait() == 1
    assert repr(reply) == "<Reply answered>"


async def test_a_failure_given_as_answer_is_raised_in_the_asker() -> None:
    """`fail` carries the very error object."""
    reply: Reply[int] = Reply()
    error = Overloaded("later", 1.0)
    with reply:
        reply.fail(error)
    with pytest.raises(Overloaded) as caught:
        await reply.wait()
    assert caught.value is error


async def test_the_deadline_is_the_askers_and_its_end_harms_nobody(autojump_clock: MockClock) -> None:
    """An asker that gives up leaves the actor alone: the answer goes nowhere, and the next request is served."""
    box: Mailbox[Double] = Mailbox("box", capacity=1)

    async def actor() -> None:
        while True:
            request = await box.get()
            with request.reply as reply:
                await trio.sleep(10)
                reply.answer(request.number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor)
        with trio.move_on_after(1) as scope:
            await ask(box, lambda reply: Double(reply, 1))
        assert scope.cancelled_caught
        assert await ask(box, lambda reply: Double(reply, 2)) == 2
        assert trio.current_time() == 20
        nursery.cancel_scope.cancel()
