"""Three processes, one registry: how it begins, what the death of its controller changes (nothing else), what the loss of most candidates
leaves, and that everything is there again afterwards. Times that are promised are printed, and held to in the deep run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from govern.client import Registry, connect
from govern.core.table import Table
from govern.model import Instance

from .cluster import LONG_SECONDS, Cluster, Watch, names_on, watching
from .harness import Program, Programs, wait_until
from .undisturbed import ELECTION_SECONDS_MAX, Undisturbed

COLD_START_SECONDS = 3.0
DEATHS_DEEP = 100
STOPPED_SECONDS = 3.0
HEADLESS_SECONDS = 12.0


def load() -> str:
    """How busy the machine was, for whoever reads a figure."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


@asynccontextmanager
async def three(programs: Programs) -> AsyncIterator[tuple[Cluster, Watch, Table]]:
    """A cluster of three that is well, an eye on it, and its table."""
    cluster = Cluster(programs)
    await cluster.start(*cluster.ids)
    async with watching(cluster) as watch:
        await watch.wait_well()
        async with connect(cluster.where()) as registry:
            table = await registry.table()
        yield cluster, watch, table


# --- the beginning ----------------------------------------------------------------------------------------------------------------------


async def check_cold_start(programs: Programs, seconds: float) -> Cluster:
    """Start three processes on empty directories, and leave them running."""
    began = trio.current_time()
    cluster = Cluster(programs)
    async with watching(cluster) as watch:
        for node_id in cluster.ids:
            cluster.launch(node_id)
        await watch.wait_well(seconds=seconds)
        took = trio.current_time() - began
        print(f"three empty directories became a cluster with all slots in {took:.2f} s, {load()}")
        assert sum(state["slots"] for state in watch.states.values()) == 16384
        assert len({state["cluster_id"] for state in watch.states.values()}) == 1
    for node_id, node in cluster.nodes.items():
        addresses = f"clients {cluster.clients[node_id]}, peers 127.0.0.1:{cluster.link_ports[node_id]}"
        assert node.out == f"govern node {node_id} ready: {addresses}, data node{node_id}\n"
    return cluster


@pytest.mark.deep
async def test_a_cluster_begins_in_time(programs: Programs) -> None:
    """From the start of three processes on empty directories to all slots at work: three seconds, on a quiet machine."""
    await programs.node()  # all modules are compiled, as an installation leaves them
    await check_cold_start(programs, COLD_START_SECONDS)


async def test_three_files_make_a_cluster_that_is_entered_anywhere(programs: Programs) -> None:
    """Whichever node a client is given: it registers at each service's own node, and finds, watches and lists what is on any. When all
    three processes were killed and started again everything is there, also when every address is another one then."""
    cluster = await check_cold_start(programs, LONG_SECONDS)
    async with watching(cluster) as watch, AsyncExitStack() as stack:
        await watch.wait_well()
        entries = {node_id: await stack.enter_async_context(connect(cluster.clients[node_id])) for node_id in cluster.ids}
        table = await entries[1].table()
        placed: dict[str, Registry] = {}
        for node_id in cluster.ids:
            for entry, name in zip(entries.values(), names_on(table, node_id, 3), strict=True):
                placed[name] = entry
                await stack.enter_async_context(entry.register(name, port=8080, ephemeral=False))
        for name, own in placed.items():
            for entry in entries.values():
                assert [each.port for each in await entry.lookup(name)] == [8080]
            other = next(entry for entry in entries.values() if entry is not own)
            await check_watching(other, own, name)
        for entry in entries.values():
            assert [info.name for info in await entry.services()] == sorted(placed)
        shown = {verb: json.loads(await cluster.ask(verb, "--json", through=2)) for verb in ("nodes", "table", "status", "services")}
        check_shapes(shown, cluster)
        before = {name: await entries[1].lookup(name) for name in placed}
        await cluster.kill(*cluster.ids)
        await wait_until(lambda: not watch.states, "silence")
        await cluster.start(*cluster.ids)
        await watch.wait_well()
        for name, instances in before.items():
            found = await entries[3].lookup(name)
            assert [(each.id, each.lease_id) for each in found] == [(each.id, each.lease_id) for each in instances]
    await cluster.kill(*cluster.ids)
    await check_moved(programs, before)


async def check_moved(programs: Programs, before: Mapping[str, tuple[Instance, ...]]) -> None:
    """The same directories behind other ports: what the nodes kept of each other's addresses is wrong for all."""
    cluster = Cluster(programs)
    await cluster.start(*cluster.ids)
    async with watching(cluster) as watch, connect(cluster.clients[2]) as registry:
        await watch.wait_well()
        for name, instances in before.items():
            assert [each.id for each in await registry.lookup(name)] == [each.id for each in instances]


async def check_watching(watcher: Registry, other: Registry, name: str) -> None:
    """A change that one client makes is told to another."""
    async with watcher.subscribe(name) as view:
        async with other.register(name, port=8081):
            await wait_until(lambda: len(view.instances) == 2, f"the second instance of {name}")
        await wait_until(lambda: len(view.instances) == 1, f"the end of the second instance of {name}")


def check_shapes(shown: dict[str, Any], cluster: Cluster) -> None:
    """What scripts depend on."""
    for row in shown["nodes"]:
        assert row.keys() >= {"node_id", "clients", "peers", "candidate", "voter", "state", "primaries", "copies", "controller"}
        assert (row["candidate"], row["voter"], row["state"]) == (True, True, "up")
    assert [row["clients"] for row in shown["nodes"]] == list(cluster.clients.values())
    assert sum(bool(row["controller"]) for row in shown["nodes"]) == 1
    assert [row["primaries"] for row in shown["nodes"]] == [5461, 5461, 5462]
    assert all(row.keys() >= {"first", "last", "primary", "copies", "in_sync", "term"} for row in shown["table"])
    assert [(row["first"], row["last"]) for row in shown["table"]] == [(0, 5460), (5461, 10921), (10922, 16383)]
    status = shown["status"]
    assert status.keys() >= {"role", "controller", "term", "table_version", "slots", "candidates", "links"}
    assert status["node_id"] == 2
    assert [candidate.keys() for candidate in status["candidates"]] == [{"node_id", "voter", "reachable", "behind"}] * 3
    assert len(shown["services"]) == 9


# --- the death of the controller ----------------------------------------------------------------------------------------------------------


async def check_deaths(programs: Programs, count: int) -> float:
    """Kill the controller and start it again, so many times; the longest time without one."""
    worst = 0.0
    async with three(programs) as (cluster, watch, table):
        for number in range(count):
            office = await watch.wait_controller()
            others = [node_id for node_id in cluster.ids if node_id != office]
            calm = Undisturbed(cluster, table)
            async with calm.watched(*others):
                began = trio.current_time()
                await cluster.kill(office)
                await watch.wait_controller(*others)
                took = trio.current_time() - began
                settled = await calm.wait_settled(watch, began, took)
                await cluster.start(office)
                await watch.wait_well()
            worst = max(worst, took)
            print(f"death {number + 1}: node {office} of term {watch.term()}, the next controller after {took:.2f} s, {load()}")
            calm.check_without_controller(watch, began, took, settled)
    return worst


async def test_the_death_of_the_controller_concerns_nobody_else(programs: Programs) -> None:
    """While the controller is killed and comes back, again and again, the services of the other nodes see no change and are never stale,
    their instances are kept alive, and registrations on them and pushes of each of these go on."""
    print(f"longest time without a controller: {await check_deaths(programs, 2):.2f} s")


@pytest.mark.deep
async def test_a_hundred_deaths_of_the_controller(programs: Programs) -> None:
    """The next controller is agreed on within two and a half seconds, each time, and nothing excuses a stale view."""
    worst = await check_deaths(programs, DEATHS_DEEP)
    print(f"longest time without a controller in {DEATHS_DEEP} deaths: {worst:.2f} s, {load()}")
    assert worst <= ELECTION_SECONDS_MAX


async def test_a_controller_that_stood_still_steps_down(programs: Programs) -> None:
    """Stopped for three seconds, and longer if need be, the controller finds another one in office when it goes on, and follows it. No term
    has two controllers."""
    async with three(programs) as (cluster, watch, table):
        office = await watch.wait_controller()
        others = [node_id for node_id in cluster.ids if node_id != office]
        calm = Undisturbed(cluster, table)
        async with calm.watched(*others):
            began = trio.current_time()
            cluster.nodes[office].send(signal.SIGSTOP)
            await watch.wait_controller(*others)
            took = trio.current_time() - began
            await trio.sleep_until(began + STOPPED_SECONDS)
            cluster.nodes[office].send(signal.SIGCONT)
            await wait_until(lambda: watch.says(office, "role") == "candidate", "the stopped controller to step down")
            settled = await calm.wait_settled(watch, began, took)
            await watch.wait_well()
        assert await watch.wait_controller() != office
        calm.check_without_controller(watch, began, took, settled)
        print(f"the controller stood still; the next one after {took:.2f} s, {load()}")


# --- without a majority -----------------------------------------------------------------------------------------------------------------


@pytest.mark.deep
async def test_without_a_majority_everything_goes_on_and_nothing_expires(programs: Programs) -> None:
    """Two of three candidates are killed. On the third lookups, heartbeats, pushes and registrations go on, and a client that is killed
    meanwhile stays registered. `status` says in one line what is the matter and ends with 1, `nodes` shows what is known. When the others
    are back all is well, and the dead client goes."""
    async with three(programs) as (cluster, watch, table):
        last = 1 + await watch.wait_controller() % 3  # not the controller
        gone = [node_id for node_id in cluster.ids if node_id != last]
        dead_name, name = names_on(table, last, 2)
        doomed: Program = programs.start("tests.process.load", cluster.clients[last], "--count", "1", "--service", dead_name, "--ttl", "2")
        async with connect(cluster.clients[last]) as registry, registry.subscribe(name) as view, registry.subscribe(dead_name) as dead:
            await wait_until(lambda: dead.instances, "the client that will die")
            async with registry.register(name, port=1, ttl=2):
                await cluster.kill(*gone)
                await wait_until(lambda: watch.says(last, "controller") is None, "no controller")
                await wait_until(lambda: watch.says(last, "fresh") is False, "the end of the lease")
                await doomed.kill()
                async with registry.register(name, port=2):
                    await wait_until(lambda: len(view.instances) == 2, "a push of the registration")
                    await trio.sleep(HEADLESS_SECONDS)
                    assert [each.port for each in await registry.lookup(name)] == [1, 2]
                await wait_until(lambda: len(view.instances) == 1, "a push of the removal")
                assert len(dead.instances) == 1
                await check_words_without_majority(cluster, table, last, gone)
                await cluster.start(*gone)
                await watch.wait_well()
                await wait_until(lambda: not dead.instances, "the dead client to go")
                assert [each.port for each in await registry.lookup(name)] == [1]
        assert watch.term() < 30, "terms do not grow while nobody answers"


def rows_of(status: str) -> dict[str, str]:
    """The rows of `status` by name. A row that does not fit goes on in lines without a name; these are put together again."""
    rows: dict[str, str] = {}
    name = ""
    for line in status.splitlines():
        label, _, text = line.partition("  ")
        name = label or name
        rows[name] = f"{rows[name]} {text.strip()}" if name in rows else text.strip()
    return rows


async def check_words_without_majority(cluster: Cluster, table: Table, last: int, gone: list[int]) -> None:
    """What operators are told meanwhile."""
    names = " and ".join(map(str, gone))
    told = json.loads(await cluster.ask("status", "--json", through=last, code=1))
    (line,) = told["degraded"]  # one thing is the matter, in one line
    assert line == (
        f"no controller: candidates {names} cannot be reached, and 2 of 3 must agree on one; until then what is registered stays, can be "
        "read and changed, and does not expire"
    )
    assert (told["fresh"], told["controller"], told["role"]) == (False, None, "candidate")
    status = await cluster.ask("status", through=last, code=1)
    assert rows_of(status)["degraded"] == line  # the one thing in its row, however narrow the terminal is
    assert [f" {node_id} voter, cannot be reached\n" in status for node_id in cluster.ids] == [node_id != last for node_id in cluster.ids]
    assert "controller     none" in status
    assert max(map(len, status.splitlines())) <= 80
    lost = names_on(table, gone[0], 1)[0]
    for verb in ("lookup", "watch"):
        code, out, err = await cluster.programs.run(verb, lost, "--timeout", "2", connect=cluster.clients[last])
        assert (code, out) == (3, "")
        assert err.startswith(f"govern: node {gone[0]} has not answered: tried {cluster.clients[gone[0]]} ("), err
        assert err.endswith("); given up after 2 s\n"), err
    running = {
        words: cluster.programs.govern(*words.split(), connect=cluster.clients[last])
        for words in ("nodes", "nodes --json", "table", "members remove 1", "transfer", "reset 1", "forget 1")
    }
    for words, program in running.items():
        code = await program.wait_exit(LONG_SECONDS)
        if words == "table":
            assert (code, program.err) == (0, "")
            continue
        assert code == 1, (words, program.err)
        assert len(program.err.splitlines()) == 1, program.err
        assert "no controller" in program.err, (words, program.err)
    assert f"this is what node {last} knows" in running["nodes"].err
    rows = json.loads(running["nodes --json"].out)
    assert [(row["node_id"], row["voter"], row["controller"]) for row in rows] == [(1, True, False), (2, True, False), (3, True, False)]
