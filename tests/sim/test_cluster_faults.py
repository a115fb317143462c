"""A cluster that loses its controller, its majority, its links or all its nodes: who goes on with what, and how fast the rest comes back.

Behind every scenario stand the checkers of consensus and ownership (`stage.py`): one leader a term, no act of a deposed controller, no
slot with two nodes, no lease that nobody lent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import govern
from govern.testing import simulate
from govern.testing.world import PORT

from .stage import Stage, open_stage


def deep(value: object) -> Any:
    """A parameter for when there is time."""
    return pytest.param(value, marks=pytest.mark.deep)


def play(seed: int, scenario: Callable[[Stage], Awaitable[None]], nodes: int = 3, candidates: int | None = None) -> None:
    """Run a scenario on a cluster that has formed."""

    async def on_stage(seed: int) -> None:
        async with open_stage(seed, nodes, candidates) as stage:
            await scenario(stage)

    simulate(seed, on_stage, horizon=600)


async def hold_and_watch(stage: Stage, services: list[str], seconds: float) -> int:
    """A client that holds an instance of each service and watches it; counts how often anything looked wrong, each 50 ms."""
    wrong = 0
    async with stage.cluster.connect("shop") as shop:
        async with trio.open_nursery() as nursery:
            views: list[govern.LiveView] = []

            async def take_part(service: str, *, task_status: trio.TaskStatus[None]) -> None:
                async with shop.register(service, port=80, id="i1") as mine, shop.subscribe(service) as view:
                    views.append(view)
                    task_status.started()
                    await mine.wait_lost()

            for service in services:
                await nursery.start(take_part, service)
            until = trio.current_time() + seconds
            while trio.current_time() < until:
                await trio.sleep(0.05)
                wrong += any(view.stale or [each.id for each in view.instances] != ["i1"] for view in views) or not shop.connected
                with trio.fail_after(0.5):
                    assert len(await shop.lookup(services[0])) == 1
            nursery.cancel_scope.cancel()
    return wrong


async def the_controller_is_killed(stage: Stage) -> None:
    controller = stage.controller
    services = [stage.service_of(name) for name in stage.others(controller)]
    took: list[float] = []

    async def kill() -> None:
        await trio.sleep(1)
        await stage.cluster.kill(controller)
        took.append(await stage.until_controller(other_than=controller, within=2.5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        assert await hold_and_watch(stage, services, 8) == 0, "a service on another node was disturbed"
    assert took
    for name in stage.others(controller):
        (line,) = stage.node(name).status()["degraded"]
        assert f"{controller.replace('node', 'node ')} is down" in line
    await stage.cluster.restart(controller)
    await stage.cluster.converged()


async def the_controller_stands_still(stage: Stage) -> None:
    """Three seconds of SIGSTOP: another one decides, and the first one steps down when it goes on (row 25)."""
    before, term = stage.controller, stage.term
    stage.cluster.pause(before)
    await trio.sleep(2.5)
    deciding = [name for name in stage.others(before) if stage.node(name)._manager.controller is not None]
    assert len(deciding) == 1
    await trio.sleep(0.5)
    stage.cluster.resume(before)
    await trio.sleep(1.0)
    assert stage.controller == deciding[0], "the one that was stopped has stepped down"
    assert stage.term == term + 1
    await trio.sleep(3.0)
    assert stage.node(before).status()["fresh"], "three seconds are no reason to be given up"
    await stage.cluster.converged()


async def the_majority_is_gone(stage: Stage) -> None:
    """Two of three candidates crash: the node that is left goes on with all it has, nothing expires, and it says so (row 8)."""
    left = stage.others(stage.controller)[0]
    service = stage.service_of(left)
    async with stage.cluster.connect("shop") as shop, stage.cluster.connect("viewer") as viewer, viewer.subscribe(service) as view:
        await stage.run_dying(left)
        async with shop.register(service, port=80, id="old"):
            await trio.sleep(1)
            for name in stage.others(left):
                await stage.cluster.crash(name)
            await trio.sleep(6)
            async with shop.register(service, port=81, id="new"):  # a registration, and a push
                await trio.sleep(0.5)
                assert [each.id for each in view.instances] == ["dead", "new", "old"]
                await stage.cluster.kill("dying")
                await trio.sleep(12)
                assert len(await viewer.lookup(service)) == 3, "nothing expires"
                status = stage.node(left).status()
                assert not status["fresh"]
                (line,) = [line for line in status["degraded"] if "controller" in line]
                assert "cannot be reached" in line
                assert "2 of 3 must agree" in line
                assert "does not expire" in line
                assert "\n" not in line
                for name in stage.others(left):
                    await stage.cluster.restart(name)
                await trio.sleep(16)
                assert [each.id for each in view.instances] == ["new", "old"], "now the dead one goes"
                await stage.cluster.converged()


async def everything_loses_power(stage: Stage) -> None:
    """All nodes crash and start: what was acknowledged is there under the same lease, and it serves within five seconds (row 7)."""
    services = [stage.service_of(name) for name in stage.cluster.nodes]
    async with stage.cluster.connect("shop") as shop, trio.open_nursery() as nursery:
        held: list[govern.Registration] = []

        async def hold(service: str, *, task_status: trio.TaskStatus[None]) -> None:
            async with shop.register(service, port=80, id="i1") as registration:
                held.append(registration)
                task_status.started()
                await trio.sleep_forever()

        for service in services:
            await nursery.start(hold, service)
        leases = [registration.lease_id for registration in held]
        for name in stage.cluster.nodes:
            await stage.cluster.crash(name)
        await trio.sleep(3)
        began = trio.current_time()
        async with trio.open_nursery() as starting:
            for name in stage.cluster.nodes:
                starting.start_soon(stage.cluster.restart, name)
        for service in services:
            with trio.move_on_at(began + 5.0) as patience:
                while not await shop.lookup(service):
                    await trio.sleep(0.1)
            assert not patience.cancelled_caught, f"{service} is not served after 5 s"
        await stage.cluster.converged()
        assert [registration.lease_id for registration in held] == leases
        assert not any(registration.lost for registration in held)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("scenario", [the_controller_is_killed, the_controller_stands_still, the_majority_is_gone, everything_loses_power])
def test_a_cluster_bears(scenario: Callable[[Stage], Awaitable[None]]) -> None:
    """The failures that everybody asks about first."""
    play(1, scenario)


@pytest.mark.deep
@pytest.mark.parametrize("scenario", [the_controller_is_killed, the_controller_stands_still, the_majority_is_gone, everything_loses_power])
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_cluster_bears_it_each_time(seed: int, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    """The same in other orders of events."""
    play(seed, scenario)


async def a_link_flaps(stage: Stage) -> None:
    """Two seconds on, two off, between the controller and another candidate: no election, no node without a lease (row 18)."""
    controller, term = stage.controller, stage.term
    other = stage.others(controller)[0]
    for _ in range(3):
        stage.cluster.partition(controller, other)
        await trio.sleep(2)
        stage.cluster.heal()
        await trio.sleep(2)
        assert stage.node(other).status()["fresh"]
    assert (stage.controller, stage.term) == (controller, term)


@pytest.mark.parametrize("middle", [deep(0), 1, deep(2)])
def test_candidates_in_a_line(middle: int) -> None:
    """A–B–C, whoever is the controller: there is one within three seconds, and terms grow by two at most (row 17)."""

    async def in_a_line(stage: Stage) -> None:
        term = stage.term
        names = sorted(stage.cluster.nodes, key=lambda name: name != stage.controller)
        ends = [name for number, name in enumerate(names) if number != middle]
        stage.cluster.partition(ends[0], ends[1])
        await trio.sleep(3)
        await stage.until_controller(within=0.2)
        for _ in range(10):
            await trio.sleep(1)
            assert stage.cluster.controller is not None
        assert stage.term <= term + 2
        assert all(stage.node(name).status()["fresh"] for name in names)
        stage.cluster.heal()
        await stage.cluster.converged()

    play(3, in_a_line)


def test_a_flapping_link_elects_nobody() -> None:
    """Trial votes keep the term."""
    play(5, a_link_flaps)


@pytest.mark.parametrize("to_controller", [True, deep(False)], ids=["towards the controller", "from the controller"])
def test_one_way_loss(to_controller: bool) -> None:
    """A node that does not reach the controller, or is not reached, goes through another candidate and is not given up (rows 14 and 15)."""

    async def one_way(stage: Stage) -> None:
        controller, node = stage.controller, "node4"
        assert node not in stage.cluster.candidates
        ends = (node, controller) if to_controller else (controller, node)
        stage.cluster.partition(*ends, one_way=True)
        for _ in range(60):
            await trio.sleep(0.2)
            assert stage.node(node).status()["fresh"], trio.current_time()
        assert stage.controller == controller
        row = stage.node(controller)._manager.meta.table.node(4)
        assert row is not None
        assert row.state == "up"

    play(2, one_way, nodes=4)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(1, 6))
def test_partitions_of_every_kind(seed: int) -> None:
    """Halves, one way or both, drawn anew each two seconds, between five nodes: the checkers look; then all agree again."""

    async def partitions(stage: Stage) -> None:
        chance, names = stage.world.random, list(stage.cluster.nodes)
        for _ in range(8):
            one = chance.sample(names, chance.randint(1, 4))
            other = [name for name in names if name not in one]
            stage.cluster.partition(one, other, one_way=chance.random() < 0.5)
            await trio.sleep(chance.choice((0.5, 2.0, 4.0)))
            if chance.random() < 0.5:
                stage.cluster.heal()
        stage.cluster.heal()
        await stage.cluster.converged()

    play(seed, partitions, nodes=5)


@pytest.mark.parametrize("nodes", [1, 3, 5, deep(7)])
def test_a_cold_start_takes_three_seconds(nodes: int) -> None:
    """Until every slot has its node, and no two nodes differ by more than one, candidates or not: they all start together."""

    async def look(stage: Stage) -> None:
        assert trio.current_time() <= 3.0
        counts = [stage.node(name).status()["slots"] for name in stage.cluster.nodes]
        assert sum(counts) == 16384
        assert max(counts) - min(counts) <= 1
        await trio.lowlevel.checkpoint()

    play(1, look, nodes=nodes)


def test_a_node_that_joins_later_is_listed_without_slots() -> None:
    """It has no part yet, and is fresh all the same; clients enter through it and are led to who answers."""

    async def join(stage: Stage) -> None:
        peers = stage.node("node1").config.peers
        keys: dict[str, Any] = {"node_id": 9, "peers": peers, "peer_listen": "0.0.0.0:7401", "advertise": "node9", "candidate": False}
        node = await stage.world.start("node9", **keys)
        with trio.fail_after(3):
            while not node.status()["fresh"]:
                await trio.sleep(0.05)
        assert node.status()["slots"] == 0
        assert [row.node_id for row in node._ownership.table.nodes] == [1, 2, 3, 9]
        environment = stage.world.environment(stage.world.machine("shop", memory=True))
        async with govern.connect(f"node9:{PORT}", environment=environment) as registry, registry.register("orders", port=80, id="o1"):
            owner = stage.cluster.owner("orders")
            assert owner is not None
            assert stage.node(owner).status()["instances"] == 1
            assert [each.id for each in await registry.lookup("orders")] == ["o1"]

    play(1, join)


def test_a_candidate_that_was_away_when_it_was_removed_serves_again() -> None:
    """Nobody told it, and no leader speaks with it: it asks the others for the table, and for who decides."""

    async def remove(stage: Stage) -> None:
        name = stage.others(stage.controller)[0]
        await stage.cluster.crash(name)
        async with stage.cluster.connect("operator") as registry:
            await registry.administer("members.remove", int(name.removeprefix("node")))
        await stage.cluster.restart(name)
        await stage.cluster.converged()
        assert stage.node(name)._me not in stage.node(stage.controller)._election.membership.members  # type: ignore[union-attr]

    play(1, remove)
