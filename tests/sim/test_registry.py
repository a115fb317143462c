"""Whole nodes and clients under a virtual clock: crashes, restarts, deaths and stalls, and what must hold through all of them."""

from __future__ import annotations

import attrs
import pytest
import trio

import govern
from govern.core.entries import unpack_entry
from govern.environment import Environment
from govern.model import Change, ServiceKey
from govern.testing import simulate
from govern.testing.world import PORT, Program, World, open_world

from ..deep import seeds

SERVICES = ("orders", "payments", "{shop}/cart")


@attrs.define
class Story:
    """What the clients of a run know: who is alive and acknowledged, and what every watcher saw."""

    acknowledged: dict[tuple[str, str], tuple[int, int]] = attrs.field(factory=dict)  # (service, id) -> lease
    removals: list[tuple[str, str]] = attrs.field(factory=list)  # (service, id) seen to go, by the watcher that never dies
    lost: list[str] = attrs.field(factory=list)


def worker(story: Story, name: str, service: str) -> Program:
    """A program that registers one instance, updates it now and then, and looks at its service."""

    async def program(environment: Environment) -> None:
        async with govern.connect(f"node1:{PORT}", timeout=60, environment=environment) as registry:
            async with registry.register(service, id=name, host=name, port=80, metadata={"n": "0"}) as registration:
                story.acknowledged[service, name] = registration.lease_id
                for turn in range(1, 10_000):
                    await trio.sleep(environment.random.uniform(0.2, 3.0))
                    if registration.lost:
                        story.lost.append(name)
                        return
                    await registration.update(metadata={"n": str(turn)})

    return program


def watcher(story: Story, service: str) -> Program:
    """A program that follows one service for ever and checks what it is told."""

    async def program(environment: Environment) -> None:
        async with govern.connect(f"node1:{PORT}", timeout=60, environment=environment) as registry:
            async with registry.subscribe(service) as view:
                lsn = view.lsn
                async for change in view:
                    assert change.lsn >= lsn, f"a view went back from {lsn} to {change.lsn}"
                    lsn = change.lsn
                    story.removals.extend((service, instance_id) for instance_id in change.removed)

    return program


async def start_population(world: World, story: Story, workers: int) -> None:
    for service in SERVICES:
        await world.run_client(f"watch-{SERVICES.index(service)}", watcher(story, service))
    for number in range(workers):
        await world.run_client(f"w{number}", worker(story, f"w{number}", SERVICES[number % len(SERVICES)]))
    await until(lambda: len(story.acknowledged) == workers)


async def until(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.05)


async def crashes_keep_everything(seed: int) -> int:
    async with open_world(seed) as world:
        story = Story()
        await world.start()
        await start_population(world, story, workers=12)
        for _ in range(3):
            await trio.sleep(world.random.uniform(0.5, 6.0))
            await world.crash()
            await trio.sleep(world.random.uniform(0.0, 12.0))
            await world.start()
        await trio.sleep(12.0)
        node = world.machines["node1"].node
        assert node is not None
        node.validate()
        for (service, name), lease_id in story.acknowledged.items():
            entry = node._shard.entries(ServiceKey("default", service)).get(name)
            assert entry is not None, f"{name} of {service} was acknowledged and is gone"
            assert unpack_entry(entry).lease_id == lease_id, f"{name} of {service} was registered anew: it had been lost or expired"
        assert story.removals == []
        assert story.lost == []
        return len(story.acknowledged)


@pytest.mark.parametrize("seed", seeds(2, 12))
def test_nothing_acknowledged_is_lost_and_nothing_healthy_expires_when_the_node_loses_power(seed: int) -> None:
    """Three power losses at random moments, up to 12 s down: every acknowledged lease is still held, and nobody saw an instance go."""
    outcome = simulate(seed, crashes_keep_everything, horizon=300)
    assert outcome.result == 12


async def the_dead_go_and_only_they(seed: int) -> float:
    async with open_world(seed) as world:
        story = Story()
        await world.start()
        await start_population(world, story, workers=9)
        await trio.sleep(6.0)
        victim = "w4"
        await world.kill_client(victim)
        killed_at = trio.current_time()
        await until(lambda: story.removals)
        passed = trio.current_time() - killed_at
        await trio.sleep(10.0)
        assert story.removals == [(SERVICES[4 % 3], victim)]
        return passed


@pytest.mark.parametrize("seed", seeds(2, 8))
def test_a_killed_client_is_removed_within_its_ttl_and_the_others_stay(seed: int) -> None:
    """The watcher is told of a killed client at most 5 s later (its last heartbeat was up to 1 s earlier); of nobody else."""
    outcome = simulate(seed, the_dead_go_and_only_they, horizon=120)
    assert 3.0 < outcome.result <= 5.0


async def a_cut_off_client_comes_back(seed: int) -> list[Change]:
    async with open_world(seed) as world:
        story = Story()
        await world.start()
        await start_population(world, story, workers=3)
        await trio.sleep(5.0)
        world.network.partition("w1", "node1")
        await trio.sleep(20.0)
        assert story.removals == [("payments", "w1")]
        world.network.heal()
        await trio.sleep(5.0)
        node = world.machines["node1"].node
        assert node is not None
        assert "w1" in node._shard.entries(ServiceKey("default", "payments"))
        assert story.lost == []
        return []


def test_a_client_that_was_cut_off_expires_and_registers_again_by_itself() -> None:
    """A partition longer than the ttl removes the instance; after it heals the client is back without anybody's help."""
    simulate(5, a_cut_off_client_comes_back, horizon=120)


def test_a_scenario_repeats_step_by_step() -> None:
    """The same seed gives the same trace of steps, another one another trace."""
    first, second, other = (simulate(seed, the_dead_go_and_only_they, horizon=120) for seed in (3, 3, 4))
    assert first.trace == second.trace != other.trace


def test_a_disk_that_was_slow_once_is_no_complaint_for_ever() -> None:
    """Nothing is written any more, so no later fsync can say that it is well again."""

    async def scenario(seed: int) -> None:
        async with open_world(seed) as world:
            node = await world.start()
            disk = world.machines["node1"].disk
            assert disk is not None
            disk.latency_seconds = (1.0, 1.0)
            environment = world.environment(world.machine("c1", memory=True))
            async with govern.connect(f"node1:{PORT}", environment=environment) as registry:
                async with registry.register("orders", port=80, id="o1", ephemeral=False):
                    (line,) = node.status()["degraded"]
                    assert "the disk is slow" in line
                disk.latency_seconds = (0.0, 0.0)
                await trio.sleep(11)
                assert node.status()["degraded"] == []

    simulate(1, scenario)
