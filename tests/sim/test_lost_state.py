"""A registry that comes back without its memory: callers keep what they know until the registered programs have come back to it."""

from __future__ import annotations

import pytest
import trio

import govern
from govern.environment import Environment
from govern.testing import simulate
from govern.testing.world import PORT, open_world

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
