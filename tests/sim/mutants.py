"""The simulator's own test: broken variants of the real code, each of which must be found within its number of seeds.

    python -m tests.sim.mutants

prints for each what found it, and after how many seeds. A mutant that lives would mean that the simulation is too kind or the checkers
are blind. Each runs in short episodes with the faults that should reveal it; the very same episodes pass without it.

Mutants that need rarer luck than a whole node affords live one floor below: no checksum (tests/storage/test_crashes.py), a lease that is
not compared, numbers lost with a refused batch, a snapshot applied twice (tests/core/test_mutants.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import trio

import govern
from govern.actors.client_session import ClientSessions
from govern.actors.shard_store import ShardStore
from govern.client.registrations import Registrations
from govern.client.resync import Resyncer
from govern.client.views import ServiceView, Views
from govern.core import lived
from govern.core import shard as shard_rules
from govern.core.entries import EXPIRE
from govern.core.requests import Write
from govern.core.sessions import Sessions
from govern.core.shard import Outcome, Shard, Slot
from govern.environment import Environment
from govern.messages import delta_frame
from govern.model import Lsn, ServiceKey
from govern.storage.format import Record, segment_number
from govern.storage.log import Log
from govern.storage.sim import SimFile, SimStorage
from govern.testing import simulate
from govern.testing.world import PORT, World, open_world

from .checkers import Violation
from .checkers.durable import Durable
from .episode import run_episode
from .finding import find_all
from .options import Options, draw_options
from .sizes import USUAL

Patch = Callable[[pytest.MonkeyPatch], None]


def no_sync_before_acknowledging(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimFile, "write_durable", SimFile.write)


def no_sync_of_the_directory(patch: pytest.MonkeyPatch) -> None:
    async def sync_directory(storage: SimStorage) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(SimStorage, "sync_directory", sync_directory)


def expiry_not_logged(patch: pytest.MonkeyPatch) -> None:
    append = Log.append

    async def mutant(self: Log, records: Sequence[Record]) -> None:
        logged = [record for record in records if record.type != EXPIRE]
        await trio.lowlevel.checkpoint()
        if logged:
            await append(self, logged)

    patch.setattr(Log, "append", mutant)


def expiry_by_the_clock_of_the_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lived, "STEP_US_MAX", 10**12)
    patch.setattr(lived, "STALL_US", 10**12)


def last_read_skipped(patch: pytest.MonkeyPatch) -> None:
    """Without the pauses after a stall and after a lost lease, which hide it: what arrived meanwhile is in the kernel and is not looked
    at."""

    def mutant(self: ClientSessions, silent: Sequence[Any]) -> None:
        self._dispatch.propose_expiries(silent)

    patch.setattr(ClientSessions, "_read_last", mutant)
    patch.setattr("govern.actors.failure_detector.READY_HOLD_US", 0)
    expiry_by_the_clock_of_the_machine(patch)


def applied_before_logged(patch: pytest.MonkeyPatch) -> None:
    async def mutant(self: ShardStore, numbered: list[tuple[Write, Record]]) -> list[tuple[Write, Outcome]]:
        assert self._directory is not None
        results = [(write, self._shard.apply(record.slot, record.term, record.seq, write.op)) for write, record in numbered]
        await self._directory.log.append([record for _, record in numbered])
        return results

    patch.setattr(ShardStore, "_append", mutant)


def start_not_synced(patch: pytest.MonkeyPatch) -> None:
    """What the life before had written and not synced counts as soon as it is read."""
    sync = SimFile.sync

    async def mutant(self: SimFile) -> None:
        if segment_number(self._name) is None:
            await sync(self)
        else:
            await trio.lowlevel.checkpoint()

    patch.setattr(SimFile, "sync", mutant)


def resume_skips_one(patch: pytest.MonkeyPatch) -> None:
    """Who comes back is told all that it missed but the first change."""
    delta_since = Shard.delta_since

    def mutant(self: Shard, key: ServiceKey, since: Lsn, ack: bool = False) -> tuple[bytes | None, Lsn] | None:
        if since == self.service_lsn(key):
            return delta_since(self, key, since, ack)
        with pytest.MonkeyPatch.context() as unnoticed:
            unnoticed.setattr(shard_rules, "delta_frame", lambda key, _, *rest: delta_frame(key, since, *rest))
            return delta_since(self, key, Lsn(since.term, since.seq + 1), ack)

    patch.setattr(Shard, "delta_since", mutant)


def forgotten_operations_not_missed(patch: pytest.MonkeyPatch) -> None:
    def remembers(self: Slot, lsn: Any) -> bool:
        return bool(lsn.seq <= self.seq)

    patch.setattr(Slot, "remembers", remembers)


def delta_without_gap_check(patch: pytest.MonkeyPatch) -> None:
    """The client takes any delta; found together with a node that answers a resumption from the wrong place."""
    apply = Views._apply

    def mutant(self: Views, view: ServiceView, message: Any) -> None:
        apply(self, view, attrs.evolve(message, since=view.lsn))

    patch.setattr(Views, "_apply", mutant)
    forgotten_operations_not_missed(patch)


def empty_view_on_reload(patch: pytest.MonkeyPatch) -> None:
    disconnected = Views.disconnected

    def mutant(self: Views) -> None:
        disconnected(self)
        for view in self._views.values():
            for instance_id in list(view.instances):
                view.put(instance_id, None)
            self._tell(view)

    patch.setattr(Views, "disconnected", mutant)


def lost_leases_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """The client believes what it had: neither a new session on the node nor a heartbeat's digest makes it register again."""
    connected = Registrations.connected
    patch.setattr(Registrations, "connected", lambda self, *, resumed, other_cluster: connected(self, resumed=True, other_cluster=False))
    patch.setattr(Resyncer, "begin", lambda self, now: None)


def silence_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sessions, "expiries", staticmethod(lambda silent, limit: []))


def cancelled_before_fenced(patch: pytest.MonkeyPatch) -> None:
    """A mutant of the simulator: a killed program says its last words."""

    async def mutant(self: World, name: str) -> None:
        await self._end(self.machines[name])
        self.network.crash(name)

    patch.setattr(World, "kill_client", mutant)


def one_client_is_killed(options: Options) -> None:
    """The story that a mutant of the simulator spoils: a killed program says nothing, so its instance stays until the ttl is over."""

    async def story(seed: int) -> None:
        async with open_world(seed) as world:
            node = await world.start()

            async def program(environment: Environment) -> None:
                where = f"node1:{PORT}"
                async with govern.connect(where, environment=environment) as registry, registry.register("orders", port=1):
                    await trio.sleep_forever()

            await world.run_client("c1", program)
            await trio.sleep(1.0 + world.random.random())
            await world.kill_client("c1")
            await trio.sleep(1.0)
            assert node.status()["instances"] == 1, "a killed program has deregistered its instance"

    simulate(options.seed, story)


def killed_while_syncing(options: Options) -> None:
    """The process is killed when a record is written and not yet synced; the next life reads it from the cache of the machine."""

    async def story(seed: int) -> None:
        violations: list[Violation] = []
        async with open_world(seed) as world:
            durable = Durable(world, violations.append)
            with durable.watch():
                await world.start()
                machine = world.machines["node1"]
                machine.may_fail = True
                disk = machine.disk
                assert disk is not None

                async def program(environment: Environment) -> None:
                    async with govern.connect(f"node1:{PORT}", environment=environment, timeout=60) as registry:
                        async with registry.register("orders", id="i1", port=1), registry.subscribe("orders"):
                            await trio.sleep(1.0 + world.random.random())
                            disk.before = lambda operation: world.end_process("node1") if operation.kind == "sync" else None
                            async with registry.register("orders", id="i2", port=1):
                                await trio.sleep_forever()

                await world.run_client("c1", program)
                await machine.gone.wait()
                disk.before = None
                await world.start()
                await trio.sleep(3.0)
                durable.end()
        if violations:
            raise violations[0]

    simulate(options.seed, story)


def whole_episode(options: Options) -> None:
    """Faults, healing, judgement."""
    run_episode(options)


@attrs.frozen
class Mutant:
    """One broken variant: which faults reveal it, and what it is found by (`finding.py`) within how many seeds from which one on: the first
    one that finds it today, so that in each run of the tests none is played for nothing."""

    patch: Patch
    faults: tuple[str, ...]
    seeds: int
    found_by: str
    play_with: Callable[[Options], None] = whole_episode
    first: int = 0

    @property
    def name(self) -> str:
        return self.patch.__name__

    def trials(self) -> Sequence[int]:
        """The seeds within which it has to be found."""
        return range(self.first, self.first + self.seeds)

    def play(self, seed: int) -> None:
        """One episode, with the seed."""
        self.play_with(options_for(self.faults, seed))


LOG_WITH_A_HOLE = r"AssertionError: \(\d+, \d+, \d+, Lsn\("
"""What the shard says of a record that does not follow the one before (D2), here in the next life."""

# Faults are shared where they may be: each set of them is played once more, without a mutant.
MUTANTS = (
    Mutant(no_sync_before_acknowledging, ("client killed", "power"), 2, "Violation: 7: "),
    Mutant(no_sync_of_the_directory, ("client killed", "power"), 3, "Violation: 17: boot number"),
    Mutant(expiry_not_logged, ("client killed", "power"), 3, LOG_WITH_A_HOLE),
    Mutant(expiry_by_the_clock_of_the_machine, ("pause", "client paused"), 8, "Violation: 26: ", first=2),
    Mutant(last_read_skipped, ("pause", "client paused"), 8, "Violation: 26: ", first=2),
    Mutant(no_sync_before_acknowledging, (), 1, "Violation: 7: "),
    Mutant(applied_before_logged, ("crash in an operation",), 4, "Violation: 13: "),
    Mutant(applied_before_logged, ("slow disk",), 2, "Violation: 7: "),
    Mutant(start_not_synced, (), 3, "Violation: 7: ", killed_while_syncing),
    Mutant(resume_skips_one, ("cut", "partition"), 3, "Violation: 34: "),
    Mutant(forgotten_operations_not_missed, ("cut", "partition"), 3, "Violation: 34: "),
    Mutant(delta_without_gap_check, ("cut", "partition"), 3, "Violation: 34: "),
    Mutant(empty_view_on_reload, ("cut", "partition"), 3, "Violation: 37: "),
    Mutant(lost_leases_not_noticed, ("partition",), 4, "Violation: 45: ", first=2),
    Mutant(silence_never_ends, ("client killed", "power"), 3, "Violation: 30: ", first=1),
    Mutant(cancelled_before_fenced, (), 3, "AssertionError: a killed program has deregistered", one_client_is_killed),
)


def options_for(faults: tuple[str, ...], seed: int) -> Options:
    """A short episode of one node with just these faults, and small rings."""
    drawn = draw_options(seed, seconds=50.0, clients=6, nodes=1)
    return attrs.evolve(
        drawn,
        faults=faults,
        seconds_between_faults=2.0,
        services=2,
        ttl=3.0,
        history_ops_max=3,
        delay_seconds_max=0.002,
        operations_per_second=5.0,
        sizes=USUAL,
    )


if __name__ == "__main__":
    sys.exit(1 if find_all(MUTANTS, sys.argv[1:]) else 0)
