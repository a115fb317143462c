"""Candidates come and go: a cluster grows from one to five and back, a dead candidate is replaced, a lost majority is recovered from.
What operators do is done with the command line, and what they are told is read."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import trio

from govern.client import connect

from .cluster import LONG_SECONDS, Cluster, Watch, names_on, watching
from .harness import Programs, wait_until
from .test_cluster import three

JUMP = 1 << 32


async def refused(cluster: Cluster, words: str, through: int = 1) -> str:
    """The one line of a verb that ends with exit code 1."""
    code, out, err = await cluster.programs.run(*words.split(), connect=cluster.clients[through])
    assert (code, out) == (1, ""), (words, out, err)
    assert len(err.splitlines()) == 1, err
    return err


async def promote(cluster: Cluster, node_id: int, through: int = 1) -> str:
    """Add and promote a node that has joined; what is said in the end."""
    async with connect(cluster.clients[through]) as registry:
        await registry.administer("members.add", node_id)
        with trio.fail_after(LONG_SECONDS):
            while (await member(cluster, node_id, through))["match"] == 0:
                await trio.sleep(0.1)
    code, out, err = await cluster.programs.run("members", "promote", str(node_id), connect=cluster.clients[through])
    assert code == 0, err
    return out + err


async def member(cluster: Cluster, node_id: int, through: int) -> dict[str, object]:
    """What the controller knows of a candidate."""
    async with connect(cluster.clients[through]) as registry:
        found = [each for each in (await registry.administer("nodes"))["members"] if each["node_id"] == node_id]
    assert isinstance(found[-1], dict)
    return found[-1]


async def join(cluster: Cluster, watch: Watch, *node_ids: int) -> None:
    """Start nodes with empty directories that know node 1 alone, and wait until they are registered."""
    await cluster.start(*node_ids, peers=(1,))
    for node_id in node_ids:
        await wait_until(lambda node_id=node_id: watch.says(node_id, "fresh"), f"node {node_id} to be registered")  # type: ignore[misc]


@pytest.mark.deep
async def test_a_cluster_grows_from_one_to_five_and_shrinks_again(programs: Programs) -> None:
    """A node with data becomes three and five candidates and then one again; what it holds is there all the time. Wrong steps are refused
    in one line that says what to do, unwise numbers of voters are warned of."""
    cluster = Cluster(programs, 5)
    async with watching(cluster) as watch:
        cluster.launch(1, peers=(), is_alone=True)
        await watch.wait_well(1)
        async with connect(cluster.clients[1]) as registry, registry.register("orders", port=1, ephemeral=False):
            pass
        cluster.nodes[1].send(signal.SIGTERM)
        assert await cluster.nodes[1].wait_exit() == 0
        assert ", peers none, data node1" in cluster.nodes[1].out
        await cluster.start(1, peers=())
        await watch.wait_well(1)
        await join(cluster, watch, 2, 3)
        await check_first_refusals(cluster)
        assert "warning: 2 voters survive no more losses than 1: use 1 or 3" in await promote(cluster, 2)
        assert "node 3 is a voter now; voters: 1, 2, 3\n" in await promote(cluster, 3)
        await watch.wait_well(1, 2, 3)
        await join(cluster, watch, 4, 5)
        await check_stopped_learner(cluster, watch)
        assert "voters: 1, 2, 3, 4, 5\n" in await promote(cluster, 5, through=3)
        await watch.wait_well()
        async with connect(cluster.clients[4]) as registry:
            assert [each.port for each in await registry.lookup("orders")] == [1]
        await check_shrinking(cluster, watch)
        async with connect(cluster.clients[1]) as registry:
            assert [each.port for each in await registry.lookup("orders")] == [1]
        rows = json.loads(await cluster.ask("nodes", "--json", through=1))
        assert [(row["node_id"], row["voter"], row["primaries"]) for row in rows] == [(1, True, 16384)]


async def check_first_refusals(cluster: Cluster) -> None:
    """What cannot be done with one voter and two that have joined."""
    running = {
        "members add 9": "node 9 has not registered",
        "members promote 2": "node 2 is not a member: members are 1",
        "members remove 2": "node 2 is not a member: members are 1",
        "members remove 1": "node 1 is the last voter",
        "transfer": "no other voter",
        "transfer 3": "node 3 is not a member",
        "reset 1": "node 1 has lost nothing",
        "reset 9": "there is no node 9",
        "forget 2": "node 2 is up: stop it first",
        "forget 9": "there is no node 9",
    }
    for words, text in running.items():
        assert text in await refused(cluster, words, through=2), words
    rows = json.loads(await cluster.ask("nodes", "--json", through=3))
    assert [(row["node_id"], row["candidate"], row["voter"], row["primaries"]) for row in rows] == [
        (1, True, True, 16384),
        (2, True, False, 0),
        (3, True, False, 0),
    ]


async def check_stopped_learner(cluster: Cluster, watch: Watch) -> None:
    """A learner that does not answer is not promoted; when it goes on it is, and four voters are warned of."""
    async with connect(cluster.clients[1]) as registry:
        await registry.administer("members.add", 4)
        cluster.nodes[4].send(signal.SIGSTOP)
        with trio.fail_after(LONG_SECONDS):
            while (await member(cluster, 4, 1))["recent"]:
                await trio.sleep(0.2)
        assert "node 4 does not answer: start it" in await refused(cluster, "members promote 4")
        assert "node 4 is a learner already" in await refused(cluster, "members add 4")
        cluster.nodes[4].send(signal.SIGCONT)
        with trio.fail_after(LONG_SECONDS):
            while not (await member(cluster, 4, 1))["recent"]:
                await trio.sleep(0.2)
    said = await cluster.programs.run("members", "promote", "4", connect=cluster.clients[2])
    assert said == (
        0,
        "node 4 is a voter now; voters: 1, 2, 3, 4\n",
        "govern: warning: 4 voters survive no more losses than 3: use 3 or 5\n",
    )


async def check_shrinking(cluster: Cluster, watch: Watch) -> None:
    """From five to one: the controller is moved to node 1 first, the others are removed, stopped and forgotten."""
    office = await watch.wait_controller()
    assert f"node {office} leads: hand the leadership to another voter first" in await refused(cluster, f"members remove {office}")
    if office == 1:
        assert "node 1 leads already: there is nothing to hand over" in await refused(cluster, "transfer 1")
        assert "another candidate is told" in await cluster.ask("transfer", through=2)
        await wait_until(lambda: watch.controller() not in (None, 1), "another controller")
    assert "node 1 is told to stand for election" in await cluster.ask("transfer", "1", through=3)
    await wait_until(lambda: watch.controller() == 1, "node 1 in office")
    await cluster.kill(5)
    async with connect(cluster.clients[1]) as registry:
        with trio.fail_after(LONG_SECONDS):
            while (await member(cluster, 5, 1))["recent"]:
                await trio.sleep(0.2)
        for node_id in (4, 3):
            await registry.administer("members.remove", node_id)
        assert "2 of the then 2 voters would be needed, and node 5 cannot be reached now" in await refused(cluster, "members remove 2")
        assert "node 5 is removed; voters: 1, 2\n" in await cluster.ask("members", "remove", "5", through=1)
        await registry.administer("members.remove", 2)
        await cluster.kill(2, 3, 4)
        for node_id in (2, 3, 4, 5):
            await wait_until(lambda node_id=node_id: "down" in str(watch.says(1, "degraded")), f"node {node_id} to be given up")  # type: ignore[misc]
            with trio.fail_after(LONG_SECONDS):
                while not any(row["state"] == "down" for row in (await registry.administer("nodes"))["nodes"] if row["node_id"] == node_id):
                    await trio.sleep(0.2)
            await registry.administer("forget", node_id)
    await watch.wait_well(1)


async def test_a_candidate_whose_disk_was_lost_is_replaced(programs: Programs) -> None:
    """A node is killed and its directory emptied. It joins again as somebody else: what was on the old disk is unavailable until it is
    given up, the old member is removed and the new one added and promoted. A directory of another cluster is not let in."""
    async with three(programs) as (cluster, watch, table):
        last = 1 + await watch.wait_controller() % 3
        other = 1 + last % 3
        (name,) = names_on(table, last, 1)
        await cluster.kill(last)
        await check_foreign_directory(cluster, watch, last)
        shutil.rmtree(programs.directory / f"node{last}")
        await cluster.start(last)
        await wait_until(
            lambda: "begins anew" in str(watch.says(last, "degraded")) or watch.says(last, "fresh"), "it to join", LONG_SECONDS
        )
        await wait_until(lambda: watch.says(last, "fresh"), "the new disk to be registered", LONG_SECONDS)
        await wait_until(lambda: f"govern reset {last}" in str(watch.says(last, "degraded")), "word of the lost slots")
        assert watch.says(last, "role") == "node"
        code, status, _ = await programs.run("status", connect=cluster.clients[last])
        assert code == 1
        assert f"govern reset {last}" in " ".join(status.split())
        assert f"node {last} is removed" in await cluster.ask("members", "remove", str(last), through=last)
        assert f"node {last} is a voter now; voters: 1, 2, 3\n" in await promote(cluster, last, through=other)
        said = await cluster.ask("reset", str(last), through=other)
        assert said == f"the lost slots of node {last} begin again, empty; living clients register again by themselves\n"
        await watch.wait_well()
        async with connect(cluster.clients[other]) as registry, registry.register(name, port=1):
            assert [each.port for each in await registry.lookup(name)] == [1]


async def check_foreign_directory(cluster: Cluster, watch: Watch, node_id: int) -> None:
    """A directory that belongs to another cluster: the node says which it is and why nobody speaks to it, and the others go on."""
    directory = cluster.programs.directory / f"node{node_id}"
    kept = directory.with_name("kept")
    directory.rename(kept)
    alone = cluster.launch(node_id, peers=(), is_alone=True)
    await alone.wait_out("\n")
    await cluster.kill(node_id)
    await cluster.start(node_id)
    foreign = cluster.nodes[node_id]
    await wait_until(lambda: "another cluster" in foreign.err, "the refusal", LONG_SECONDS)
    await wait_until(lambda: "another cluster" in str(watch.says(node_id, "degraded")), "the complaint of the foreigner")
    await wait_until(lambda: "another cluster" in str(watch.says(1 + node_id % 3, "degraded")), "the complaint of another")
    assert watch.says(node_id, "links") == []
    assert watch.controller(*(other for other in cluster.ids if other != node_id)) is not None
    await cluster.kill(node_id)
    shutil.rmtree(directory)
    kept.rename(directory)


async def test_a_lost_majority_is_recovered_from(programs: Programs) -> None:
    """All three die, and two disks with them. `recover` makes the third a cluster of its own, when somebody who means it says so; the
    others join with empty directories. What was on the third is there, and no number that a client compares goes back."""
    async with three(programs) as (cluster, watch, table):
        name, *_ = names_on(table, 1, 1)
        async with connect(cluster.where()) as registry, registry.register(name, port=1, ephemeral=False), registry.subscribe(name) as view:
            words = ("recover", "--force-new-cluster", "--node-id", "1", "--data-dir")
            code, _, err = await programs.run(*words, "node1", "--yes")
            assert (code, len(err.splitlines())) == (1, 1)
            assert "in use by process" in err
            before = (view.lsn, table.version, watch.term())
            await cluster.kill(*cluster.ids)
            for node_id in (2, 3):
                shutil.rmtree(programs.directory / f"node{node_id}")
            await check_recover_words(programs)
            await recover(programs)
            await cluster.start(1)
            await watch.wait_controller(1)
            await wait_until(lambda: not view.stale, "the node to serve again", LONG_SECONDS)
            assert [each.port for each in view.instances] == [1]
            async with registry.register(name, port=2) as registration:
                assert registration.lease_id > before[0]
                assert registration.lease_id[0] > JUMP
            assert watch.term() > max(JUMP, before[2])
            assert watch.says(1, "table_version") > max(JUMP, before[1])
            await cluster.start(2, 3)
            for node_id in (2, 3):
                await wait_until(lambda node_id=node_id: watch.says(node_id, "fresh"), f"node {node_id} to join", LONG_SECONDS)  # type: ignore[misc]
                await promote(cluster, node_id)
                await registry.administer("reset", node_id)
            await watch.wait_well()
            assert len(watch.says(3, "candidates")) == 3
            for number, other in ((2, names_on(table, 2, 1)[0]), (3, names_on(table, 3, 1)[0])):
                async with registry.register(other, port=number):
                    assert [each.port for each in await registry.lookup(other)] == [number]


async def check_recover_words(programs: Programs) -> None:
    """Nothing is done without the right words, or with a directory that was never a candidate's."""
    (programs.directory / "empty").mkdir()
    words = ("recover", "--node-id", "1", "--data-dir", "node1")
    wrong: list[tuple[tuple[str, ...], int, str]] = [
        (words, 2, "--force-new-cluster"),
        ((*words, "--force-new-cluster"), 1, "nothing was changed"),  # nobody types anything
        (("recover", "--force-new-cluster", "--node-id", "1", "--data-dir", "empty", "--yes"), 1, "empty belongs to no cluster"),
        (("recover", "--force-new-cluster", "--node-id", "1", "--data-dir", "absent", "--yes"), 1, "absent"),
        (("recover", "--force-new-cluster", "--node-id", "2", "--data-dir", "node1", "--yes"), 1, "of node 1, not of node 2"),
    ]
    running = [(programs.govern(*arguments), code, text) for arguments, code, text in wrong]
    for program, code, text in running:
        assert await program.wait_exit(LONG_SECONDS) == code, (program.process.args, program.err)
        assert len(program.err.splitlines()) == 1, program.err
        assert text in program.err
    assert not (programs.directory / "absent").exists()


async def recover(programs: Programs) -> None:
    """With the words typed."""
    typed = programs.directory / "typed"
    typed.write_text("force new cluster\n")
    with typed.open() as stdin:
        code, out, err = await programs.run("recover", "--force-new-cluster", "--node-id", "1", "--data-dir", "node1", stdin=stdin)
    assert (code, err) == (0, ""), err
    assert "node 1 is now the only candidate of cluster" in out
    assert "removed: the candidates 2, 3" in out
