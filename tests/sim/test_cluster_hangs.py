"""Disks that do not answer, and machines that sleep: who is given up for it, who is not, and what a node says of itself meanwhile.

Behind every scenario stand the checkers of consensus and ownership (`stage.py`). The mutants of these rules are in
`cluster_mutants.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from govern.core.meta import NodeFenced, Record
from govern.testing import simulate

from .stage import Stage, open_stage

HANG_GIVEN_UP_SECONDS = 8.5
AWAKE_SECONDS = 1.0
CONTROLLER_AWAKE_SECONDS = 2.0
"""A controller that slept lends nothing for a second, until its lease of before has certainly ended; then comes its next heartbeat."""


def play(seed: int, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scenario on three nodes."""

    async def on_stage(seed: int) -> None:
        async with open_stage(seed, 3) as stage:
            await scenario(stage)

    simulate(seed, on_stage, horizon=600)


def given_up(stage: Stage) -> list[int]:
    """The nodes that are given up from now on; it grows."""
    nodes: list[int] = []

    def note(index: int, record: Record) -> None:
        if isinstance(record, NodeFenced):
            nodes.append(record.node_id)

    stage.consensus.listeners.append(note)
    return nodes


def number(name: str) -> int:
    """The id of a node."""
    return int(name.removeprefix("node"))


def is_fresh(stage: Stage, name: str) -> bool:
    """What a node says of itself."""
    return bool(stage.node(name).status()["fresh"])


def set_hanging(stage: Stage, names: Iterable[str], *, hangs: bool) -> None:
    """From now on the disks of these nodes do not answer, or do again."""
    for name in names:
        disk = stage.world.machines[name].disk
        assert disk is not None
        if hangs:
            disk.hang()
        else:
            disk.unhang()


@contextmanager
def hanging(stage: Stage, *names: str) -> Iterator[None]:
    """The disks of these nodes do not answer, until the block ends, however it does."""
    set_hanging(stage, names, hangs=True)
    try:
        yield
    finally:
        set_hanging(stage, names, hangs=False)


@asynccontextmanager
async def written(stage: Stage, names: Iterable[str]) -> AsyncIterator[Callable[[], None]]:
    """What is yielded lets a client write to each of these nodes; it waits for as long as that takes."""
    services = [stage.service_of(name) for name in names]

    async def hold(service: str) -> None:
        async with shop.register(service, port=80):
            await trio.sleep_forever()

    async with stage.cluster.connect("shop") as shop, trio.open_nursery() as nursery:

        def write() -> None:
            for service in services:
                nursery.start_soon(hold, service)

        yield write
        nursery.cancel_scope.cancel()


async def _one_log_hangs(stage: Stage, name: str) -> None:
    gone = given_up(stage)
    async with written(stage, [name]) as write:
        with hanging(stage, name):
            began = trio.current_time()
            write()
            await trio.sleep(5.0)
            assert gone == [], "it has spoken for three seconds"
            while not gone:
                assert trio.current_time() - began < HANG_GIVEN_UP_SECONDS, f"{name} claims to work while its log hangs"
                await trio.sleep(0.05)
            assert not is_fresh(stage, name)
            await trio.sleep(4.0)
        await trio.sleep(2.0)
        assert is_fresh(stage, name)
    assert gone == [number(name)]
    await stage.cluster.converged()


async def a_log_hangs(stage: Stage) -> None:
    """Its node withholds its heartbeats after three seconds, is given up, and is back when the disk is (row 32)."""
    await _one_log_hangs(stage, stage.others(stage.controller)[0])


async def the_log_of_the_controller_hangs(stage: Stage) -> None:
    """The same: what the others have on their disks is decided."""
    await _one_log_hangs(stage, stage.controller)


async def all_logs_hang(stage: Stage) -> None:
    """Nobody is given up for what is everybody's trouble, neither meanwhile nor when the disks are back. All are fresh then (row 64)."""
    gone, names = given_up(stage), stage.cluster.nodes
    async with written(stage, names) as write:
        with hanging(stage, *names):
            write()
            await trio.sleep(20.0)
            assert not any(is_fresh(stage, name) for name in names), "a node claims to work"
        await trio.sleep(1.0)
        assert gone == [], "a node was given up when the disks were back, before it could speak"
        assert all(is_fresh(stage, name) for name in names)
        await trio.sleep(10.0)
    assert gone == []
    await stage.cluster.converged()


async def all_logs_hang_and_a_node_dies(stage: Stage) -> None:
    """On the controller nobody writes: it does not know that its disk hangs before it wants to decide. The one that died is given up as
    soon as that can be decided, the other one is not."""
    gone, controller = given_up(stage), stage.controller
    dead, alive = stage.others(controller)
    async with written(stage, [alive]) as write:
        with hanging(stage, *stage.cluster.nodes):
            write()
            await trio.sleep(1.0)
            await stage.cluster.kill(dead)
            await trio.sleep(19.0)
            assert gone == []
            degraded = stage.node(controller).status()["degraded"]
        await trio.sleep(1.0)
        assert number(alive) not in gone, "a node that works was given up with the one that died"
        assert any("nobody is given up until they have it" in line for line in degraded), degraded
        assert all(is_fresh(stage, name) for name in (controller, alive))
        await trio.sleep(1.0)
        assert gone == [number(dead)]
        await trio.sleep(10.0)
    assert gone == [number(dead)]
    await stage.cluster.restart(dead)
    await stage.cluster.converged()


async def machines_sleep(stage: Stage) -> None:
    """For a minute, on the clock that counts it, and without a moment on trio's: each lease is over at once, what is read is marked, nobody
    expires, and the lease comes back with the next heartbeat (row 27)."""
    controller, gone = stage.controller, given_up(stage)
    patience = {stage.others(controller)[0]: AWAKE_SECONDS, controller: CONTROLLER_AWAKE_SECONDS}
    async with written(stage, stage.cluster.nodes) as write:
        write()
        await trio.sleep(3.0)
        for name, seconds in patience.items():
            node = stage.node(name)
            stage.world.machines[name].clock.offset_us += 60_000_000
            assert not is_fresh(stage, name), "a lease of before"
            node._clients._begin_turn()  # as when the next request of a client comes
            assert not node._shard.fresh, "clients are told of a lease of before"
            with trio.move_on_after(seconds):
                while not is_fresh(stage, name):
                    await trio.sleep(0.05)
            assert is_fresh(stage, name), f"{name} has no lease after {seconds} s awake"
            await trio.sleep(10.0)
            assert is_fresh(stage, name)
        assert (gone, stage.controller) == ([], controller)
        assert [stage.node(name).status()["instances"] for name in stage.cluster.nodes] == [1, 1, 1]
    await stage.cluster.converged()


async def a_client_dies_while_its_node_sleeps(stage: Stage) -> None:
    """The node wakes up cut off, without a lease, just before the client would expire. It expires nobody, for it may have been given up."""
    name = stage.others(stage.controller)[0]
    await stage.run_dying(name)
    await trio.sleep(1.0)
    await stage.cluster.kill("dying")
    await trio.sleep(3.0)
    stage.cluster.isolate(name)
    stage.world.machines[name].clock.offset_us += 60_000_000
    await trio.sleep(20.0)
    assert stage.node(name).status()["instances"] == 1, "it expired somebody without a lease"
    stage.cluster.heal()
    await trio.sleep(12.0)
    assert stage.node(name).status()["instances"] == 0


SCENARIOS = (
    a_log_hangs,
    the_log_of_the_controller_hangs,
    all_logs_hang,
    all_logs_hang_and_a_node_dies,
    machines_sleep,
    a_client_dies_while_its_node_sleeps,
)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_cluster_bears(scenario: Callable[[Stage], Awaitable[None]]) -> None:
    """Once each."""
    play(1, scenario)


@pytest.mark.deep
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_cluster_bears_it_each_time(seed: int, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    """The same in other orders of events."""
    play(seed, scenario)
