"""Who is dead is told in time, and who lives is never removed: clients that are killed or stopped, a node that is stopped or killed itself,
and two programs that claim one instance. What is promised as a time is measured and printed."""

from __future__ import annotations

import signal
from functools import partial

import trio

from govern.client import LiveView, Registry, connect
from govern.model import Status

from .harness import PATIENCE_SECONDS, NodeProgram, Program, Programs, free_port, wait_until

TTL_SECONDS = 5.0
SLACK_SECONDS = 1.0
"""For the way from the node's decision into this test's eyes, on a machine that is busy with other things."""
STOPPED_SECONDS = 8.0
SUSPECT_SECONDS = 0.5
SUSPECT_SLACK_SECONDS = 1.5
AGAIN_SECONDS = 3.0
DOWN_SECONDS = 12.0
BACK_SECONDS = 5.0
PEACE_SECONDS = 10.0
INSTANCES = 200


def ids(view: LiveView) -> list[str]:
    return [instance.id for instance in view.instances]


def has(view: LiveView, instance_id: str) -> bool:
    return instance_id in ids(view)


async def make_traffic(node: NodeProgram) -> None:
    """Registrations, removals and lookups, up to a hundred in a second."""
    async with connect(node.address) as registry:
        port = 1
        while True:
            port = port % 60_000 + 1
            async with registry.register("traffic", port=port):
                await registry.lookup("orders")
            await trio.sleep(0.03)


async def follow_deaths(programs: Programs, node: NodeProgram, fates: dict[str, float]) -> None:
    """Kill one client, stop another and leave a third alone; note when each was suspected and removed, and when the stopped one was
    back after it could go on."""
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
                seconds = trio.current_time() - since
                fates |= {f"{instance.id} suspect": seconds for instance in change.updated if instance.status is Status.SUSPECT}
                fates |= {f"{instance_id} removed": seconds for instance_id in change.removed}
                if ids(view) == ["c2-0"]:
                    break
        assert sorted(fates) == ["c0-0 removed", "c0-0 suspect", "c1-0 removed", "c1-0 suspect"]
        since = trio.current_time()
        stopped.send(signal.SIGCONT)
        await wait_until(partial(has, view, "c1-0"), "the stopped client to register again")
        fates["c1-0 back"] = trio.current_time() - since
        assert ids(view) == ["c1-0", "c2-0"]
        assert {instance.status for instance in view.instances} == {Status.UP}
    untouched.send(signal.SIGKILL)


async def test_the_dead_are_removed_in_time_and_the_living_never(programs: Programs) -> None:
    """The stories below at once, since each is mostly waiting."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(check_dead_clients, programs)
        nursery.start_soon(check_stopped_node, programs)
        nursery.start_soon(check_killed_node, programs)
        nursery.start_soon(check_rivals, programs)


async def check_dead_clients(programs: Programs) -> None:
    """A client that is killed is suspect at once, and it and one that is stopped are removed at most 5 s after their last heartbeat, on a
    node with traffic and on an idle one; the client beside them stays, and the stopped one registers itself again when it goes on."""
    busy, idle = await programs.node(), await programs.node(data_dir="data")
    fates: dict[str, dict[str, float]] = {"busy": {}, "idle": {}}
    async with trio.open_nursery() as traffic:
        traffic.start_soon(make_traffic, busy)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_deaths, programs, busy, fates["busy"])
            nursery.start_soon(follow_deaths, programs, idle, fates["idle"])
        traffic.cancel_scope.cancel()
    for name, fate in fates.items():
        print(f"{name} node:", ", ".join(f"{what} after {seconds:.2f} s" for what, seconds in sorted(fate.items())))
        assert fate["c0-0 suspect"] <= SUSPECT_SECONDS + SUSPECT_SLACK_SECONDS
        for client in ("c0-0", "c1-0"):
            assert fate[f"{client} suspect"] <= fate[f"{client} removed"]
            assert fate[f"{client} removed"] <= TTL_SECONDS + SLACK_SECONDS  # its last heartbeat was before the signal
        assert fate["c1-0 back"] <= AGAIN_SECONDS + SLACK_SECONDS


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


async def check_killed_node(programs: Programs) -> None:
    """A node under a hundred sessions is killed with SIGKILL and is away for 12 s. Nobody expires, no view misses an instance for a moment,
    every lease is the one from before, and all clients are back within 5 s, without any brake."""
    port = free_port()
    node = await programs.node(port=port, data_dir="outage")
    loads: list[Program] = [
        programs.start("tests.process.load", node.address, "--clients", "50", "--first", str(first), "--count", "2") for first in (0, 50)
    ]
    async with connect(node.address) as registry, registry.subscribe("orders") as view:
        await wait_until(lambda: len(view.instances) == INSTANCES, "all instances")
        before = [(instance.id, instance.lease_id) for instance in view.instances]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_nobody_gone, view)
            await node.kill()
            await wait_until(lambda: view.stale, "the view to be stale")
            await trio.sleep(DOWN_SECONDS)
            node = await programs.node(port=port, data_dir="outage")
            up_at = trio.current_time()
            while await count_connected(registry) < INSTANCES:
                assert trio.current_time() < up_at + BACK_SECONDS + SLACK_SECONDS
                await trio.sleep(0.1)
            print(f"after an outage of {DOWN_SECONDS:g} s all were back within {trio.current_time() - up_at:.2f} s")
            await trio.sleep_until(up_at + TTL_SECONDS + 2 * SLACK_SECONDS)  # until whoever had not come back would be gone
            assert not view.stale
            assert (await registry.status())["brakes"] == []
            nursery.cancel_scope.cancel()
        assert [(instance.id, instance.lease_id) for instance in await registry.lookup("orders")] == before
        explanation = await registry.explain("orders")
        assert [event for event in explanation.events if event["kind"] in ("expired", "registered")] == []
    assert all(load.process.poll() is None for load in loads)


async def expect_nobody_gone(view: LiveView) -> None:
    """Fails as soon as the view misses an instance."""
    async for change in view:
        assert change.removed == ()
        assert len(view.instances) == INSTANCES


async def count_connected(registry: Registry) -> int:
    """The instances whose clients have a connection to the node."""
    return sum(instance["connected"] for instance in (await registry.explain("orders")).instances)


async def check_rivals(programs: Programs) -> None:
    """Two programs claim one id. The newer has it and keeps it; the older is told once, in one line, and its program goes on; in the ten
    seconds after that nothing changes at all, and the end of the older takes nothing from the newer."""
    node = await programs.node()
    claim = ["register", "orders", "--id", "one", "--port"]
    async with connect(node.address) as registry, registry.subscribe("orders") as view:
        older = programs.govern(*claim, "1", "--", "sleep", "50", connect=node.address)
        await wait_until(lambda: [instance.port for instance in view.instances] == [1], "the older")
        newer = programs.govern(*claim, "2", "--", "sleep", "50", connect=node.address)
        await wait_until(lambda: [instance.port for instance in view.instances] == [2], "the newer")
        await wait_until(lambda: "superseded" in older.err, "the older to be told")
        lsn = view.lsn
        await trio.sleep(PEACE_SECONDS)
        assert view.lsn == lsn, "they fight"
        assert [
            line for line in older.err.splitlines() if "one was lost: superseded; the program goes on" in line
        ] == older.err.splitlines()
        assert len(older.err.splitlines()) == 1
        assert newer.err == ""
        older.send(signal.SIGTERM)
        assert await older.wait_exit() == 128 + signal.SIGTERM
        assert [instance.port for instance in await registry.lookup("orders")] == [2]
        assert view.lsn == lsn
        events = [event["kind"] for event in (await registry.explain("orders", "one")).events]
        assert (events.count("registered"), events.count("superseded")) == (2, 1)
        newer.send(signal.SIGTERM)
        assert await newer.wait_exit() == 128 + signal.SIGTERM
        await wait_until(lambda: not view.instances, "the end of the newer")
