"""Who is dead is told in time, and who lives is never removed: clients that are killed or stopped, and a node that is stopped itself."""

from __future__ import annotations

import signal
from functools import partial

import trio

from govern.client import LiveView, connect

from .harness import PATIENCE_SECONDS, NodeProgram, Program, Programs, wait_until

TTL_SECONDS = 5.0
SLACK_SECONDS = 1.0
"""For the way from the node's decision into this test's eyes, on a machine that is busy with other things."""
STOPPED_SECONDS = 8.0


def ids(view: LiveView) -> list[str]:
    return [instance.id for instance in view.instances]


def has(view: LiveView, instance_id: str) -> bool:
    return instance_id in ids(view)


async def make_traffic(node: NodeProgram) -> None:
    """Registrations, removals and lookups without pause."""
    async with connect(node.address) as registry:
        port = 1
        while True:
            port = port % 60_000 + 1
            async with registry.register("traffic", port=port):
                await registry.lookup("orders")


async def follow_deaths(programs: Programs, node: NodeProgram, fates: dict[str, float]) -> None:
    """Kill one client, stop another and leave a third alone; note how long each was still seen."""
    killed, stopped, untouched = (
        programs.start("tests.process.load", node.address, "--first", str(number), "--count", "1") for number in range(3)
    )
    async with connect(node.address) as registry, registry.subscribe("orders") as view:
        await wait_until(lambda: len(view.instances) == 3, "three instances")
        since = trio.current_time()
        killed.send(signal.SIGKILL)
        stopped.send(signal.SIGSTOP)
        with trio.fail_after(PATIENCE_SECONDS):
            async for change in view:  # the first one is that the three came
                for instance_id in change.removed:
                    fates[instance_id] = trio.current_time() - since
                if len(fates) >= 2:
                    break
        assert sorted(fates) == ["c0-0", "c1-0"]
        assert ids(view) == ["c2-0"]
        stopped.send(signal.SIGCONT)
        await wait_until(partial(has, view, "c1-0"), "the stopped client to register again")
        assert ids(view) == ["c1-0", "c2-0"]
    untouched.send(signal.SIGKILL)


async def test_the_dead_are_removed_in_time_and_the_living_never(programs: Programs) -> None:
    """Both stories at once, since each is mostly waiting."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(check_dead_clients, programs)
        nursery.start_soon(check_stopped_node, programs)


async def check_dead_clients(programs: Programs) -> None:
    """A client that is killed and one that is stopped are removed at most 5 s after their last heartbeat, on a node with traffic and
    on an idle one; the client beside them stays, and the stopped one registers itself again when it goes on."""
    busy, idle = await programs.node(), await programs.node(data_dir="data")
    fates: dict[str, dict[str, float]] = {"busy": {}, "idle": {}}
    async with trio.open_nursery() as traffic:
        traffic.start_soon(make_traffic, busy)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_deaths, programs, busy, fates["busy"])
            nursery.start_soon(follow_deaths, programs, idle, fates["idle"])
        traffic.cancel_scope.cancel()
    for fate in fates.values():
        for seconds in fate.values():
            assert seconds <= TTL_SECONDS + SLACK_SECONDS, fates  # their last heartbeats were before that


async def check_stopped_node(programs: Programs) -> None:
    """A node that stands still for 8 s and goes on removes none of the instances whose clients lived on, and notes that it was stalled."""
    node = await programs.node(data_dir="other")
    loads: list[Program] = [
        programs.start("tests.process.load", node.address, "--clients", "10", "--first", str(first), "--count", "10") for first in (0, 10)
    ]
    async with connect(node.address) as registry, registry.subscribe("orders") as view:
        await wait_until(lambda: len(view.instances) == 200, "200 instances")
        removed: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_removals, view, removed)
            node.send(signal.SIGSTOP)
            await trio.sleep(STOPPED_SECONDS)
            assert view.stale
            node.send(signal.SIGCONT)
            await wait_until(lambda: not view.stale, "the view to be current again")
            await trio.sleep(TTL_SECONDS + SLACK_SECONDS)  # in which whoever was held for dead would go
            nursery.cancel_scope.cancel()
        assert removed == []
        assert len(await registry.lookup("orders")) == 200
        assert (await registry.status())["instances"] == 200
    assert "stalled" in node.err
    assert all(load.process.poll() is None for load in loads)


async def note_removals(view: LiveView, removed: list[str]) -> None:
    """Keep a list of everything that went."""
    async for change in view:
        removed.extend(change.removed)
