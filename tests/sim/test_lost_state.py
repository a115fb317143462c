"""A registry that comes back without its memory: callers keep what they know until the registered programs have come back to it."""

from __future__ import annotations

import pytest
import trio

import govern
from govern.environment import Environment
from govern.testing import simulate
from govern.testing.world import PORT, Program, open_world

from .columns import Columns
from .operators import Operators
from .stage import Stage, open_stage

PROVIDERS = 5


async def a_node_in_memory_restarts(seed: int) -> tuple[int, list[str]]:
    """The smallest number of instances that a caller saw, and what it saw go."""
    async with open_world(seed) as world:
        await world.start(memory=True)
        seen: list[int] = []
        gone: list[str] = []

        def provider(name: str) -> object:
            async def program(environment: Environment) -> None:
                async with govern.connect(f"node1:{PORT}", timeout=60, environment=environment) as registry:
                    async with registry.register("orders", id=name, host=name, port=80):
                        await trio.sleep_forever()

            return program

        async def caller(environment: Environment) -> None:
            async with govern.connect(f"node1:{PORT}", timeout=60, environment=environment) as registry:
                async with registry.subscribe("orders") as view:
                    seen.append(len(view.instances))
                    async for change in view:
                        seen.append(len(view.instances))
                        gone.extend(change.removed)

        for number in range(PROVIDERS):
            program = provider(f"p{number}")
            assert callable(program)
            await world.run_client(f"p{number}", program)
        await trio.sleep(2.0)
        await world.run_client("caller", caller)
        await trio.sleep(2.0)
        await world.crash()
        await trio.sleep(world.random.uniform(0.1, 3.0))
        dead = f"p{PROVIDERS - 1}"
        await world.kill_client(dead)
        await world.start(memory=True)
        await trio.sleep(12.0)
        return min(seen), gone


@pytest.mark.parametrize("seed", range(6))
def test_a_caller_keeps_its_list_until_the_others_are_back(seed: int) -> None:
    """Nobody who lives is missed for a moment; the one who died meanwhile goes in the end."""
    smallest, gone = simulate(seed, a_node_in_memory_restarts, horizon=120).result
    assert smallest == PROVIDERS - 1
    assert gone == [f"p{PROVIDERS - 1}"]


async def a_lost_disk_is_given_up(seed: int) -> None:
    """The disk of a node is lost, and what was on it is given up, while callers follow three services: one whose programs live but for
    one, one whose only program died, and one that nobody had registered any more."""
    async with open_stage(seed) as stage:
        name = stage.world.random.choice(stage.others(stage.controller))
        services = [service for number in range(1000) if stage.cluster.owner(service := f"s{number}") == name]
        busy, dead, empty = services[:3]
        programs = {f"p{number}": busy for number in range(PROVIDERS)} | {"dying": dead, "leaving": empty}
        for machine, service in programs.items():
            await stage.cluster.run(machine, _provider(stage, machine, service))
        await trio.sleep(2.0)
        async with (
            stage.cluster.connect("caller") as caller,
            caller.subscribe(busy) as many,
            caller.subscribe(dead) as one,
            caller.subscribe(empty) as none,
        ):
            async with stage.cluster.connect("operator") as operator:
                await operator.evict(empty, "leaving")
            await trio.sleep(1.0)
            assert [len(view.instances) for view in (many, one, none)] == [PROVIDERS, 1, 0]
            former = [view.lsn for view in (many, one, none)]
            await stage.cluster.crash(name)
            for machine in ("p0", "dying"):
                await stage.cluster.kill(machine)
            stage.consensus.wiped(name)
            stage.world.wipe(name)
            await stage.cluster.restart(name)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_see_living, many)
                assert await Operators(stage.world, stage.cluster.nodes, stage.consensus, Columns(), seed).replace_disk(name)
                assert [instance.id for instance in one.instances] == ["dying"], "nobody can know yet who is still there"
                await trio.sleep(10.0)
                nursery.cancel_scope.cancel()
            assert [[instance.id for instance in view.instances] for view in (many, one, none)] == [[f"p{n}" for n in range(1, 5)], [], []]
            assert not any(view.stale for view in (many, one, none))
            assert all(view.lsn > lsn for view, lsn in zip((many, one, none), former, strict=True))
            await stage.cluster.run("dying", _provider(stage, "dying", dead))
            await trio.sleep(2.0)
            assert [instance.id for instance in one.instances] == ["dying"], "and the subscription is of the new reign"
            await stage.cluster.converged()


def _provider(stage: Stage, name: str, service: str) -> Program:
    async def program(environment: Environment) -> None:
        async with govern.connect(stage.cluster.where, timeout=60, environment=environment) as registry:
            async with registry.register(service, id=name, host=name, port=80):
                await trio.sleep_forever()

    return program


async def _see_living(view: govern.LiveView) -> None:
    """Whoever lives is there all the time."""
    async for _ in view:
        shown = [instance.id for instance in view.instances]
        assert [name for name in shown if name != "p0"] == [f"p{number}" for number in range(1, PROVIDERS)], (trio.current_time(), shown)


@pytest.mark.parametrize("seed", range(4))
def test_a_caller_follows_when_a_lost_disk_is_given_up(seed: int) -> None:
    """It keeps its lists as long as those who live need to come back, and then believes: a list that is empty now is shown as empty."""
    simulate(seed, a_lost_disk_is_given_up, horizon=300)
