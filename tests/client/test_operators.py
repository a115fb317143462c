"""Drain, evict and explain through the shell: what the one who asks waits for, and what is raised."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

import govern
from govern.errors import Gone, Indeterminate, Invalid, Stopped, Unreachable
from govern.model import Status

from .test_shell import doors, open_registry


async def test_a_drain_returns_when_subscribers_know(autojump_clock: MockClock) -> None:
    """Returned means: on the disk of the node, shown to the owner, applied by the subscriber; and `update` can take it back."""
    async with open_registry() as (_, registry):
        async with registry.register("orders", port=80) as registration, registry.subscribe("orders") as view:
            drained = await registration.drain()
            assert (drained.applied, drained.missing, drained.missing_count, drained.complete) == (1, (), 0, True)
            assert registration.instance.status is Status.DRAINING
            (shown,) = view.instances
            assert (shown,) == await registry.lookup("orders")
            assert (shown.status, shown.lsn) == (Status.DRAINING, registration.instance.lsn)
            assert (await registration.drain()).applied == 1
            await registration.update(status="up")
            await trio.sleep(0.1)  # pushes to one subscriber are 20 ms apart
            assert [each.status for each in view.instances] == [Status.UP]


async def test_a_drain_without_subscribers_returns_at_once(autojump_clock: MockClock) -> None:
    """Nobody has to be waited for."""
    async with open_registry() as (_, registry), registry.register("orders", port=80) as registration:
        await trio.sleep(5)  # in its first seconds a node cannot know who has not come back
        before = trio.current_time()
        assert (await registration.drain(timeout=10)).complete
        assert trio.current_time() - before < 0.5


async def test_leaving_goes_on_while_a_drain_waits(autojump_clock: MockClock) -> None:
    """A drain that is cancelled, or forgotten in another task, does not hold up the end of the block."""
    async with open_registry() as (world, registry):
        async with govern.connect("node1", environment=doors(world, "hangs")) as other, other.subscribe("orders"):
            world.network.partition("hangs", "node1")
            before = trio.current_time()
            async with registry.register("orders", port=80) as registration:
                with trio.move_on_after(1):
                    await registration.drain(timeout=60)
                assert trio.current_time() - before == pytest.approx(1, abs=0.1)
            assert trio.current_time() - before < 1.5
            assert await registry.lookup("orders") == ()
            world.network.heal()


async def test_an_eviction_that_cannot_be_asked_is_unreachable_and_one_without_answer_is_in_doubt(autojump_clock: MockClock) -> None:
    """Certainly not done, and perhaps done: two classes, after ten seconds at most."""
    async with open_registry() as (world, registry):
        world.network.hold("node1", "client")
        with pytest.raises(Indeterminate, match="look whether"):
            await registry.evict("orders", "x")
        world.network.release("node1", "client")
        await registry.wait_connected()
        with pytest.raises(Gone):
            await registry.evict("orders", "x")
        await world.crash()
        world.network.host("node1")
        while registry.connected:
            await trio.sleep(0.1)
        before = trio.current_time()
        with pytest.raises(Unreachable, match="node1"):
            await registry.evict("orders", "x")
        assert trio.current_time() - before == pytest.approx(10, abs=0.1)
        with pytest.raises(Unreachable):
            await registry.explain("orders")


async def test_names_are_checked_at_the_door(autojump_clock: MockClock) -> None:
    """Nothing is sent for a name that cannot be."""
    async with open_registry() as (_, registry):
        for ask in (registry.drain, registry.evict, registry.explain):
            with pytest.raises(Invalid):
                await ask("no blanks", "x")
            with pytest.raises(Invalid):
                await ask("orders", "no blanks")


async def test_whoever_waits_at_the_end_is_told(autojump_clock: MockClock) -> None:
    """What was asked and not answered is in doubt; a drain that waits, and everything that is asked later, is stopped."""
    raised: list[str] = []
    async with open_registry() as (world, _), trio.open_nursery() as nursery:
        async with govern.connect("node1", environment=doors(world, "leaves")) as leaves:
            async with leaves.register("orders", port=80) as registration:
                pass

            async def evict() -> None:
                with pytest.raises(Indeterminate):
                    await leaves.evict("orders", "x")
                raised.append("evict")

            async def drain() -> None:
                with pytest.raises(Stopped):
                    await leaves.drain("orders", "x")
                raised.append("drain")

            world.network.hold("node1", "leaves")
            nursery.start_soon(evict)
            nursery.start_soon(drain)
            await trio.sleep(0.1)
        world.network.release("node1", "leaves")
        for ask in (leaves.drain, leaves.evict, leaves.explain):
            with pytest.raises(Stopped):
                await ask("orders", "x")
        with pytest.raises(Stopped):
            await registration.drain()
    assert sorted(raised) == ["drain", "evict"]


async def test_explain_tells_of_the_living_and_the_gone(autojump_clock: MockClock) -> None:
    """One instance, or all of a service; who left is still explained."""
    async with open_registry() as (_, registry):
        async with registry.register("orders", port=80, id="stays"):
            async with registry.register("orders", port=81, id="goes"):
                pass
            everything = await registry.explain("orders")
            assert {each["id"]: each["in_view"] for each in everything.instances} == {"stays": True, "goes": False}
            one = await registry.explain("orders", "goes")
            assert [event["kind"] for event in one.events if event["id"] == "goes"] == ["registered", "deregistered"]
