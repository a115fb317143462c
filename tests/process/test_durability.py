"""What was acknowledged is there: after kill -9, after an orderly stop, with clients that never stop working."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pytest
import trio

from govern.client import Registry, connect
from govern.model import Lsn

from .harness import NodeProgram, Program, Programs, free_port, wait_until

SERVICES = 8
CLIENTS = 20


class Ack(NamedTuple):
    """One acknowledged registration."""

    client: int
    service: str
    id: str
    lease_id: Lsn


class Ledger:
    """What the clients of some load programs were told, read from their output as it grows."""

    def __init__(self, loads: Sequence[Program]) -> None:
        self.loads = loads
        self._acks: list[Ack] = []
        self._places = [0] * len(loads)

    @property
    def acks(self) -> list[Ack]:
        """Everything that was acknowledged so far; a line that is half written waits."""
        for number, load in enumerate(self.loads):
            text = load.out
            end = text.rfind("\n") + 1
            for line in text[self._places[number] : end].splitlines():
                words = line.split()
                if words[0] == "ack":
                    self._acks.append(Ack(int(words[1]), words[2], words[3], Lsn(int(words[4]), int(words[5]))))
            self._places[number] = end
        return self._acks

    def clients_since(self, count: int) -> int:
        """How many clients were acknowledged something after the first `count` lines."""
        return len({ack.client for ack in self.acks[count:]})

    @property
    def holding(self) -> int:
        """How many clients have stopped registering."""
        return sum(load.out.count("holding") for load in self.loads)


def start_loads(programs: Programs, node: NodeProgram, clients: int) -> Ledger:
    """Two processes full of clients that register as fast as they can."""
    half = clients // 2
    common = (node.address, "--clients", str(half), "--services", str(SERVICES))
    return Ledger([programs.start("tests.process.load", *common, "--first", str(first)) for first in (0, half)])


async def look_up_all(registry: Registry) -> dict[tuple[str, str], Lsn]:
    """The lease of every instance, by service and id."""
    found = {}
    for info in await registry.services():
        for instance in await registry.lookup(info.name):
            found[info.name, instance.id] = instance.lease_id
    return found


async def watch(registry: Registry, service: str, removed: list[str], *, task_status: trio.TaskStatus[None]) -> None:
    """Subscribe to one service, and note everything that ever went."""
    async with registry.subscribe(service) as view:
        task_status.started()
        async for change in view:
            removed.extend(f"{service} {instance_id}" for instance_id in change.removed)


def has_acks(ledger: Ledger, count: int) -> bool:
    return len(ledger.acks) >= count


def all_went_on(ledger: Ledger, count: int) -> bool:
    return ledger.clients_since(count) == CLIENTS


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.deep)])
async def test_what_was_acknowledged_survives_every_kill(programs: Programs, kills: int) -> None:
    """Twenty clients register without pause while their node is killed again and again, each time at another moment. After each restart
    every client goes on by itself; in the end every acknowledged registration is held under the lease that was acknowledged, and a
    subscriber never saw one go."""
    chance = random.Random(kills)
    port = free_port()
    node = await programs.node(port=port, data_dir="data")
    ledger = start_loads(programs, node, CLIENTS)
    removed: list[str] = []
    async with connect(node.address) as registry, trio.open_nursery() as nursery:
        for number in range(SERVICES):
            await nursery.start(watch, registry, f"orders-{number}", removed)
        for _ in range(kills):
            enough = len(ledger.acks) + chance.randint(200, 1000)
            await wait_until(partial(has_acks, ledger, enough), "registrations")
            await trio.sleep(chance.random() * 0.05)
            await node.kill()
            count = len(ledger.acks)
            node = await programs.node(port=port, data_dir="data")
            restarted_at = trio.current_time()
            await wait_until(partial(all_went_on, ledger, count), "every client to go on")
        for load in ledger.loads:
            load.send(signal.SIGTERM)
        await wait_until(lambda: ledger.holding == CLIENTS, "all clients to hold what they have")
        await trio.sleep_until(restarted_at + 7.0)  # a session that was not resumed would be expired by now
        held = await look_up_all(registry)
        nursery.cancel_scope.cancel()
    acks = ledger.acks
    assert len(acks) > 600 * kills
    missing = {ack for ack in acks if held.get((ack.service, ack.id)) != ack.lease_id}
    assert not missing, f"{len(missing)} of {len(acks)} are not held as acknowledged: {sorted(missing)[:3]}"
    assert len(held) == len(acks)
    assert removed == []


async def test_an_orderly_stop_under_load_loses_nothing(programs: Programs) -> None:
    """SIGTERM in the middle of registrations: the node ends with exit code 0 and without a complaint, and everything that it acknowledged
    is there after the next start."""
    port = free_port()
    node = await programs.node(port=port, data_dir="data")
    ledger = start_loads(programs, node, 10)
    await wait_until(lambda: has_acks(ledger, 500), "registrations")
    node.send(signal.SIGTERM)
    assert await node.wait_exit() == 0
    assert "Traceback" not in node.err
    acks = ledger.acks
    node = await programs.node(port=port, data_dir="data")
    async with connect(node.address) as registry:
        held = await look_up_all(registry)
    missing = {ack for ack in acks if held.get((ack.service, ack.id)) != ack.lease_id}
    assert not missing


FAILING_DISK = """
import errno, os, sys
import govern.storage.files as files
from govern.cli.parser import run
sync = files._sync_data
def fail_on_demand(descriptor):
    if os.path.exists("broken"):
        raise OSError(errno.EIO, "Input/output error")
    sync(descriptor)
files._sync_data = fail_on_demand
sys.exit(run(sys.argv[1:]))
"""


async def test_a_failed_fsync_ends_the_node_at_once(programs: Programs) -> None:
    """When the disk cannot make a registration durable the node ends with exit code 70 and one line, the registration is not acknowledged,
    and the next start on a disk that works holds everything that was."""
    port = free_port()
    arguments = ["-c", FAILING_DISK, "--listen", f"127.0.0.1:{port}", "--data-dir", "data"]
    node = Program("failing", [sys.executable, *arguments], programs.directory, programs.environment())
    try:
        await node.wait_out("\n")
        async with connect(f"127.0.0.1:{port}") as registry:
            for number in range(1, 101):
                async with registry.register("orders", port=number, ephemeral=False):
                    pass
            (programs.directory / "broken").touch()
            entering = registry.register("orders", port=101, ephemeral=False)
            with trio.move_on_after(2.0) as scope:
                await entering.__aenter__()
            assert scope.cancelled_caught, "acknowledged without being durable"
            assert await node.wait_exit() == 70
    finally:
        node.process.kill()
    lines = [line for line in node.err.splitlines() if " info " not in line]
    assert len(lines) == 1, node.err
    assert "disk" in lines[0]
    (programs.directory / "broken").unlink()
    again = await programs.node(port=port, data_dir="data")
    async with connect(again.address) as registry:
        assert {instance.port for instance in await registry.lookup("orders")} >= set(range(1, 101))
