"""Nodes without any candidate: what each goes on with, what it knows after a restart, and where a client that comes to it is led.

Behind every scenario stand the checkers of consensus and ownership (`stage.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

import govern
from govern.core.slots import slot_of
from govern.core.table import Table
from govern.messages import Heartbeat, HeartbeatOk, Hello, HelloOk, Lookup, Message, Moved, Refused, View
from govern.model import Instance, ServiceKey
from govern.testing.world import PORT

from ..actors.test_node_sim import RawClient, register
from ..deep import seeds
from .stage import Stage
from .test_cluster_faults import play

NODES, CANDIDATES = 5, 3
STALE_SECONDS = 4.5
"""The last lease that was lent is over after so long."""


def ids(instances: Sequence[Instance]) -> list[str]:
    return [instance.id for instance in instances]


def key(service: str) -> ServiceKey:
    return ServiceKey("default", service)


def complaint(stage: Stage, name: str) -> str:
    """The one line that a node says about all that does not work."""
    (line,) = stage.node(name).status()["degraded"]
    assert "\n" not in line
    return str(line)


@asynccontextmanager
async def entered(stage: Stage, name: str) -> AsyncIterator[govern.Registry]:
    """A new client that knows one address."""
    machine = f"visitor{len(stage.world.machines)}"
    async with govern.connect(f"{name}:{PORT}", environment=stage.cluster.environment(machine)) as registry:
        yield registry


async def ask(stage: Stage, name: str, *questions: Message) -> list[Message]:
    """What a node answers, word for word: to a Hello, and to each question."""
    stream = await stage.cluster.environment("asker").network.dial(name, PORT)
    async with stream:
        client = RawClient(stream)
        answers: list[Message] = []
        for question in (Hello(1, "", "asker", "", b"s" * 16, round(trio.current_time() * 1000)), *questions):
            await client.give(question)
            answer = await client.take()
            assert answer is not None, f"{name} closed the connection after {question}"
            answers.append(answer)
        return answers


async def judge_restarted(stage: Stage, name: str, table: Table, here: str, elsewhere: str, owner: str) -> None:
    """A node that has not been registered in its present life, and has the table of the one before: it reads what it had, says that this is
    not fresh, takes no write, and names who answers for the rest (rules N1, SL5, SL6)."""
    questions = (Lookup(key(here)), register("new", key(here)), Lookup(key(elsewhere)), register("new", key(elsewhere)), Heartbeat(0, 0))
    hello, read, written, asked, sent, beat = await ask(stage, name, *questions)
    assert isinstance(hello, HelloOk)
    assert hello.table_version == table.version, f"{name} has not kept its table"
    assert isinstance(read, View)
    assert isinstance(written, Refused)
    assert isinstance(beat, HeartbeatOk)
    assert beat.table_version == table.version
    assert (read.fresh, beat.fresh, len(read.instances)) == (False, False, 1)
    assert written.code == "unassigned"
    expected = Moved(slot_of(key(elsewhere)), int(owner.removeprefix("node")), f"{owner}:{PORT}", table.version)
    assert (asked, sent) == (expected, expected)
    async with entered(stage, name) as registry:
        assert ids(await registry.lookup(here)) == ["old"]
        assert await registry.table() == table
        async with registry.subscribe(here) as view:
            assert (view.stale, ids(view.instances)) == (True, ["old"])
    assert (stage.node(name).status()["fresh"], stage.node(name).status()["slots"]) == (False, 0)
    assert "what this node had before it started stays, can be read but not changed, and does not expire" in complaint(stage, name)


async def a_node_starts_alone(stage: Stage, name: str) -> None:
    """The power of all is gone, and one is back: it leads clients to those that are not, and to each that comes (`table_file.py`)."""
    owner = "node5"
    here, elsewhere = stage.service_of(name), stage.service_of(owner)
    async with stage.cluster.connect("shop") as shop:
        for service in (here, elsewhere):
            async with shop.register(service, port=80, id="old", ephemeral=False):
                pass
    table = stage.node(name)._ownership.table
    await trio.sleep(0.5)
    for each in stage.cluster.nodes:
        await stage.cluster.crash(each)
    await stage.cluster.restart(name)
    await judge_restarted(stage, name, table, here, elsewhere, owner)
    async with entered(stage, name) as registry:
        await stage.cluster.restart(owner)
        assert ids(await registry.lookup(elsewhere)) == ["old"]
    for each in stage.others(name, owner):
        await stage.cluster.restart(each)
    await stage.cluster.converged()


async def a_simple_node_starts_alone(stage: Stage) -> None:
    """One that is no candidate."""
    await a_node_starts_alone(stage, "node4")


async def a_candidate_starts_alone(stage: Stage) -> None:
    """One of three."""
    await a_node_starts_alone(stage, "node2")


async def every_candidate_is_down(stage: Stage) -> None:
    """The other nodes go on with all that they have, clients come and go, nothing expires, and one that restarts serves stale reads. Then
    the candidates are back, and what was due happens."""
    steady, restarted = stage.others(*stage.cluster.candidates)
    services = [stage.service_of(name) for name in (steady, restarted)]
    async with stage.cluster.connect("shop") as shop, stage.cluster.connect("viewer") as viewer, trio.open_nursery() as nursery:
        held = [await nursery.start(hold, shop, service, "old") for service in services]
        leases = [registration.lease_id for registration in held]
        async with viewer.subscribe(services[0]) as view, viewer.subscribe(services[1]) as other:
            await stage.run_dying(steady)
            await trio.sleep(1)
            for name in stage.cluster.candidates:
                await stage.cluster.kill(name)
            await trio.sleep(STALE_SECONDS)
            for name in (steady, restarted):
                assert not stage.node(name).status()["fresh"]
                assert "no controller has answered since it ended" in complaint(stage, name)
                assert "nothing expires, and reads are marked stale" in complaint(stage, name)
            await nursery.start(hold, shop, services[0], "new")
            await stage.cluster.kill("dying")
            await clients_find_their_way(stage, restarted, services, view)
            table = stage.node(restarted)._ownership.table
            await stage.cluster.crash(restarted)
            await stage.cluster.restart(restarted)
            await judge_restarted(stage, restarted, table, services[1], services[0], steady)
            await clients_find_their_way(stage, restarted, services, view)
            await trio.sleep(6)  # longer than any ttl
            assert ids(await viewer.lookup(services[0])) == ids(view.instances) == ["dead", "new", "old"], "nothing expires"
            assert ids(await viewer.lookup(services[1])) == ids(other.instances) == ["old"]
            assert (view.stale, other.stale, shop.connected, viewer.connected) == (True, True, True, True)
            for name in stage.cluster.candidates:
                await stage.cluster.restart(name)
            await stage.cluster.converged()
            await trio.sleep(6)
            assert (ids(view.instances), ids(other.instances)) == (["new", "old"], ["old"]), "now the dead one goes"
            assert [registration.lease_id for registration in held] == leases
            nursery.cancel_scope.cancel()


async def hold(registry: govern.Registry, service: str, id: str, *, task_status: trio.TaskStatus[govern.Registration]) -> None:  # noqa: A002
    """Stay registered."""
    async with registry.register(service, port=80, id=id) as registration:
        task_status.started(registration)
        await trio.sleep_forever()


async def clients_find_their_way(stage: Stage, name: str, services: Sequence[str], view: govern.LiveView) -> None:
    """A new client that knows this node alone reads here, and is led to the other one, registers there, and is seen and leaves."""
    async with entered(stage, name) as registry:
        assert ids(await registry.lookup(services[1])) == ["old"]
        assert ids(await registry.lookup(services[0])) == ["dead", "new", "old"]
        with trio.fail_after(1):
            async with registry.register(services[0], port=81, id="visitor"):
                await trio.sleep(0.1)
                assert ids(view.instances) == ["dead", "new", "old", "visitor"]
        await trio.sleep(0.1)
        assert ids(view.instances) == ["dead", "new", "old"]


SCENARIOS = (a_simple_node_starts_alone, pytest.param(a_candidate_starts_alone, marks=pytest.mark.deep), every_candidate_is_down)


@pytest.mark.parametrize("seed", seeds(1, 10))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_cluster_bears(seed: int, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    """The failures of all candidates at once, in other orders of events when there is time."""
    play(seed, scenario, nodes=NODES, candidates=CANDIDATES)
