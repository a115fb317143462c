"""One disk of three candidates rots, is put back to an earlier image, or runs twice: the cluster goes on, and is whole again after people
have done what the one line says.

What is promised for a single node stands in test_disk_rot.py. With others to compare with there is more: nobody who has forgotten what it
confirmed votes or decides, as long as one node that runs knows better.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from govern.errors import StorageError
from govern.storage.prefix import RAFT_PREFIX
from govern.storage.sim import SimStorage
from govern.storage.table_file import TABLE_NAME
from govern.testing import simulate

from .columns import Columns
from .operators import Operators
from .rot import proven_places
from .stage import Stage, open_stage

RAFT_SNAPSHOTS = f"{RAFT_PREFIX}snapshot-"


def deep(seed: int) -> Any:
    """A seed for when there is time."""
    return pytest.param(seed, marks=pytest.mark.deep)


def play(seed: int, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scenario on three candidates."""

    async def on_stage(seed: int) -> None:
        async with open_stage(seed, 3) as stage:
            await scenario(stage)

    simulate(seed, on_stage, horizon=600)


def disk_of(stage: Stage, name: str) -> SimStorage:
    disk = stage.world.machines[name].disk
    assert disk is not None
    stage.world.machines[name].may_fail = True
    return disk


def status_of(stage: Stage, name: str) -> list[str]:
    lines: list[str] = stage.node(name).status()["degraded"]
    assert not any("\n" in line for line in lines)
    return lines


async def restart_a_few_times(stage: Stage, name: str, times: int) -> None:
    for _ in range(times):
        await stage.cluster.crash(name)
        await stage.cluster.restart(name)
        await trio.sleep(1)


async def replace(stage: Stage, name: str) -> None:
    """An empty directory, and the words that give it its former part; then all is well."""
    if stage.world.machines[name].running:
        await stage.world.stop(name)
    stage.consensus.wiped(name)
    stage.world.wipe(name)
    await stage.cluster.restart(name)
    assert await Operators(stage.world, stage.cluster.nodes, stage.consensus, Columns(), 0).replace_disk(name)
    await stage.cluster.converged()
    rows = stage.node(stage.controller).status()["candidates"]
    assert [(row["node_id"], row["voter"], row["reachable"]) for row in rows] == [(node_id, True, True) for node_id in (1, 2, 3)]


async def goes_on(stage: Stage, without: str) -> None:
    """The other two have a controller and their leases, and take registrations."""
    others = stage.others(without)
    await stage.until_controller(within=3)
    for _ in range(20):
        await trio.sleep(0.2)
        assert all(stage.node(name).status()["fresh"] for name in others)
    async with stage.cluster.connect("shop") as shop:
        for name in others:
            async with shop.register(stage.service_of(name), port=80, id="i1"):
                pass


# --- put back -----------------------------------------------------------------------------------------------------------------


async def put_back(stage: Stage, name: str, restarts: int) -> None:
    """Start the node that many times, and then once more on the disk that it had before."""
    image = disk_of(stage, name).image()
    await restart_a_few_times(stage, name, restarts)
    me = stage.node(name)._me
    await stage.cluster.crash(name)
    stage.consensus.put_back(name, me)
    stage.world.roll_back(image, name)
    await stage.cluster.restart(name)


async def a_candidate_is_put_back(stage: Stage) -> None:
    """It is out within a second, it and who keeps it out say why, and it is of no use for a majority (row 42)."""
    controller = stage.controller
    name = stage.world.random.choice(stage.others(controller))
    await put_back(stage, name, stage.world.random.randint(2, 4))
    await trio.sleep(1)
    (line,) = status_of(stage, name)
    assert "this node has no part in its cluster any more" in line
    assert "its data directory was rolled back; start it with an empty one" in line
    status = stage.node(name).status()
    assert (status["role"], status["links"], status["fresh"], status["slots"]) == ("node", [], False, 0)
    assert any("was rolled back" in each for other in stage.others(name) for each in status_of(stage, other))
    await goes_on(stage, name)
    await stage.cluster.kill(controller)
    await trio.sleep(8)
    assert stage.cluster.controller is None, "two of three disks have to agree, and only one knows anything"
    await stage.cluster.restart(controller)
    await stage.until_controller(within=4)
    await replace(stage, name)


async def a_plain_node_is_put_back(stage: Stage) -> None:
    """It never had a vote; it loses its slots in the same way."""
    controller = stage.controller
    name = "node4"
    await put_back(stage, name, 2)
    await trio.sleep(3)
    (line,) = status_of(stage, name)
    assert "was rolled back" in line
    assert stage.controller == controller


@pytest.mark.parametrize("seed", [0, deep(1), deep(2), deep(3)])
def test_a_candidate_that_is_put_back(seed: int) -> None:
    """And the cluster is whole again after its disk was emptied."""
    play(seed, a_candidate_is_put_back)


def test_a_node_that_is_no_candidate_is_put_back() -> None:
    """Whoever knows of its later starts keeps it out, whether it may vote or not."""

    async def on_stage(seed: int) -> None:
        async with open_stage(seed, 4, 3) as stage:
            await a_plain_node_is_put_back(stage)

    simulate(1, on_stage, horizon=600)


# --- twice ----------------------------------------------------------------------------------------------------------------------


async def a_directory_runs_on_two_machines(stage: Stage) -> None:
    """Both are out within a second of the start of the second one and say so; the right one, started again, is back (row 43)."""
    name = stage.others(stage.controller)[0]
    disk = disk_of(stage, name)
    await stage.cluster.stop(name)
    image = disk.image()
    await stage.cluster.restart(name)
    await trio.sleep(2)
    twin = stage.world.machine("twin")
    assert twin.disk is not None
    twin.disk.restore(image)
    keys = {**stage.cluster._keys[name], "advertise": "twin"}
    stage.owners.has_twin(stage.node(name)._me)
    await stage.world.start("twin", **keys)
    await trio.sleep(1)
    for each in (name, "twin"):
        (line,) = status_of(stage, each)
        assert "two processes call themselves start number 2" in line
        assert stage.node(each).status()["links"] == []
        assert not stage.node(each).status()["fresh"]
    assert any("two processes call themselves" in each for other in stage.others(name) for each in status_of(stage, other))
    await stage.world.stop("twin")
    await goes_on(stage, name)
    await stage.cluster.restart(name)
    await trio.sleep(2)
    assert stage.node(name).status()["fresh"]


@pytest.mark.parametrize("seed", [0, deep(1), deep(2), deep(3)])
def test_a_directory_that_runs_twice(seed: int) -> None:
    """Nobody can know which of the two is right."""
    play(seed, a_directory_runs_on_two_machines)


# --- bits that flip -------------------------------------------------------------------------------------------------------------


async def refused(stage: Stage, name: str) -> str:
    """The node does not start; the one line that it says."""
    with pytest.raises(StorageError) as caught:
        await stage.cluster.restart(name)
    line = str(caught.value)
    assert "\n" not in line
    return line


async def is_refused_and_replaced(stage: Stage, name: str, why: str) -> None:
    """The line names the damage and the remedy, the others go on meanwhile, and the remedy helps."""
    line = await refused(stage, name)
    assert why in line
    assert "`members remove`" in line
    await goes_on(stage, name)
    await replace(stage, name)


async def a_bit_of_the_metadata_log_flips(stage: Stage) -> None:
    """That candidate does not start, whichever batch it was; the others go on, and after its replacement all is well (row 40)."""
    name = stage.controller
    disk = disk_of(stage, name)
    await stage.cluster.kill(name)
    chance = stage.world.random
    places = proven_places(disk)
    assert len(places) > 3
    file, first, end = chance.choice(places)
    disk.flip(file, chance.randrange(first, end), 1 << chance.randrange(8))
    await is_refused_and_replaced(stage, name, "raft-log-0000000000000001 is damaged at byte")


async def a_bit_of_the_only_snapshot_of_the_metadata_flips(stage: Stage) -> None:
    """A log that begins nowhere is no log: the same."""
    name = stage.others(stage.controller)[0]
    disk = disk_of(stage, name)
    await stage.cluster.kill(name)
    (file,) = [each for each in disk.names() if each.startswith(RAFT_SNAPSHOTS)]
    disk.flip(file, stage.world.random.randrange(len(disk.contents(file))))
    await is_refused_and_replaced(stage, name, "no snapshot of the metadata log")


async def a_bit_of_the_table_flips(stage: Stage) -> None:
    """The file is a memory and no authority: without it the node starts with everything it had."""
    name = stage.world.random.choice(stage.others(stage.controller))
    disk = disk_of(stage, name)
    async with stage.cluster.connect("shop") as shop, shop.register(stage.service_of(name), port=80, id="i1") as mine:
        before = mine.lease_id
        await stage.cluster.kill(name)
        disk.flip(TABLE_NAME, stage.world.random.randrange(len(disk.contents(TABLE_NAME))))
        line = await refused(stage, name)
        assert "is damaged: remove it" in line
        disk.restore({each: data for each, data in disk.image().items() if each != TABLE_NAME})
        await stage.cluster.restart(name)
        await stage.cluster.converged()
        assert mine.lease_id == before


@pytest.mark.parametrize(
    "scenario", [a_bit_of_the_metadata_log_flips, a_bit_of_the_only_snapshot_of_the_metadata_flips, a_bit_of_the_table_flips]
)
@pytest.mark.parametrize("seed", [0, deep(1), deep(2), deep(3)])
def test_one_disk_of_three_rots(seed: int, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    """What is not proven is not used, and the others have it all."""
    play(seed, scenario)


@pytest.mark.parametrize("seed", [0, deep(1), deep(2), deep(3)])
def test_a_bit_of_one_of_two_snapshots_of_the_metadata_flips(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one and the log lead to the same state: the candidate starts, and nobody notices."""
    monkeypatch.setattr("govern.actors.slot_manager.COMPACT_ENTRIES", 3)

    async def flip_one(stage: Stage) -> None:
        name = stage.others(stage.controller)[0]
        disk = disk_of(stage, name)
        other = stage.others(stage.controller, name)[0]
        await restart_a_few_times(stage, other, 3)
        await stage.cluster.kill(name)
        files = [each for each in disk.names() if each.startswith(RAFT_SNAPSHOTS) and each[-1].isdigit()]
        assert len(files) == 2
        file = stage.world.random.choice(files)
        disk.flip(file, stage.world.random.randrange(len(disk.contents(file))))
        await stage.cluster.restart(name)
        await stage.cluster.converged()

    play(seed, flip_one)
