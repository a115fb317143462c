"""What goes wrong in the fault phase of a run, and that it ends.

One task makes the faults of nodes (two in a larger cluster), one those of the network and the clients, and in a cluster one those of the
cluster as such: of whoever is the controller, of majorities, of the links between nodes. So a fault of one kind meets faults of the
others, and a node that is down is never crashed again. Every fault is in the log of the run. Each task finishes what it began when the
phase is over.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import trio
import trio.lowlevel

from govern.errors import GovernError
from govern.storage.sim import Operation, SimStorage
from govern.testing.world import World

from .checkers.consensus import Consensus, machines_of
from .checkers.expiry import Expiry
from .checkers.shadow import Shadow
from .columns import Columns
from .operators import Operators, controller_of
from .options import CLIENT_FAULTS, LATER_NODE_FAULTS, NETWORK_FAULTS, NODE_FAULTS, Options
from .rot import all_know_better, proven_places, with_the_past_of
from .workload import Workload

RETRY_SECONDS = 0.5
DYING_SECONDS_MAX = 7.0
FREE_BYTES_WHEN_FULL = 600
FLAP_SECONDS = 2.0
SLEEP_SECONDS_MAX = 60.0
KNOWN_SECONDS_MAX = 10.0


class Nemesis:
    """The one who breaks things. `keys` are the configuration keys of every life of each node."""

    def __init__(
        self,
        world: World,
        options: Options,
        workload: Workload,
        expiry: Expiry,
        shadow: Shadow,
        consensus: Consensus,
        columns: Columns,
        keys: dict[str, dict[str, Any]],
        operators: Operators,
    ) -> None:
        self.counts: dict[str, int] = {}
        self._world = world
        self._options = options
        self._workload = workload
        self._expiry = expiry
        self._shadow = shadow
        self._consensus = consensus
        self._columns = columns
        self._keys = keys
        self._operators = operators
        self._nodes = list(keys)
        self._busy: dict[str, None] = {}
        self._where = random.Random(f"{options.seed}/nemesis/where")
        self._until = 0.0
        self._may_wipe = True
        self._faults: dict[str, Callable[[random.Random, str], Awaitable[None]]] = {
            "power": self._power,
            "power in silence": self._power_in_silence,
            "kill": self._kill,
            "stop": self._stop,
            "pause": self._pause,
            "sleeps": self._sleeps,
            "crash in an operation": self._crash_in_operation,
            "input/output error": self._input_output_error,
            "disk full": self._disk_full,
            "slow disk": self._slow_disk,
            "hang": self._hang,
            "cut": self._cut,
            "partition": self._partition,
            "one way": self._one_way,
            "slow": self._slow,
            "clog": self._clog,
            "hold": self._hold,
            "isolate": self._isolate,
            "client killed": self._kill_client,
            "client paused": self._pause_client,
        }
        self._cluster_faults: dict[str, Callable[[random.Random], Awaitable[None]]] = {
            "controller killed": self._of_the_controller(self._kill),
            "controller paused": self._of_the_controller(self._pause),
            "controller sleeps": self._of_the_controller(self._sleeps),
            "controller isolated": self._of_the_controller(self._isolate_node),
            "controller's disk hangs": self._of_the_controller(self._hang),
            "controller's disk full": self._of_the_controller(self._disk_full),
            "majority down": self._majority_down,
            "everything restarted": self._everything_restarted,
            "wiped": self._wiped,
            "put back": self._put_back,
            "rotten": self._rotten,
            "nodes cut": self._nodes_cut,
            "nodes slow": self._nodes_slow,
            "nodes one way": self._nodes_one_way,
            "split": self._split,
            "line": self._line,
            "flapping": self._flapping,
        }

    def _disk(self, name: str) -> SimStorage:
        disk = self._world.machines[name].disk
        assert disk is not None
        return disk

    async def run(self, until: float) -> None:
        """Break things until that virtual time; returns when the last fault has ended and every node is up."""
        self._until = until
        options = self._options
        rest = [fault for fault in options.faults if fault in (*NETWORK_FAULTS, *CLIENT_FAULTS)]
        async with trio.open_nursery() as nursery:
            for number in range(1 if options.nodes < 4 else 2):
                name = "node" if number == 0 else f"node/{number}"
                faults = [fault for fault in options.faults if fault in (*NODE_FAULTS, *LATER_NODE_FAULTS)]
                nursery.start_soon(self._go_on, name, faults, self._break_node)
            nursery.start_soon(self._go_on, "rest", rest, self._break_rest)
            nursery.start_soon(self._go_on, "cluster", list(options.cluster_faults), self._break_cluster)
            if options.operated:
                nursery.start_soon(self._operators.run, until)
        with self._expiry.excused():
            self._world.network.heal()
            await self._bring_back(*self._nodes)

    async def _go_on(self, name: str, faults: list[str], break_one: Callable[[str, random.Random], Awaitable[None]]) -> None:
        chance = random.Random(f"{self._options.seed}/nemesis/{name}")
        while faults:
            await trio.sleep(chance.expovariate(1 / self._options.seconds_between_faults))
            if trio.current_time() >= self._until:
                return
            with self._expiry.excused():
                await break_one(chance.choice(faults), chance)

    def _begins(self, fault: str, where: str) -> None:
        self.counts[fault] = self.counts.get(fault, 0) + 1
        self._columns.add(where, f"! {fault}")

    async def _break_node(self, fault: str, chance: random.Random) -> None:
        free = [name for name in self._nodes if name not in self._busy]
        if free:
            name = self._where.choice(free)
            with self._occupy(name):
                self._begins(fault, name)
                await self._faults[fault](chance, name)
                await self._bring_back(name)
                self._columns.add(name, f"! {fault}: over")

    async def _break_rest(self, fault: str, chance: random.Random) -> None:
        name = self._where.choice(self._nodes)
        self._begins(fault, name)
        await self._faults[fault](chance, name)
        self._columns.add(name, f"! {fault}: over")

    async def _break_cluster(self, fault: str, chance: random.Random) -> None:
        self._begins(fault, self._nodes[0])
        await self._cluster_faults[fault](chance)
        self._columns.add(self._nodes[0], f"! {fault}: over")

    @contextmanager
    def _occupy(self, *names: str) -> Generator[None]:
        """While this lasts no other fault of a node meets these."""
        self._busy.update(dict.fromkeys(names))
        try:
            yield
        finally:
            for name in names:
                del self._busy[name]

    async def _bring_back(self, *names: str) -> None:
        """Start these nodes again that are down, for whatever reason."""
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._bring_one_back, name)

    async def _bring_one_back(self, name: str) -> None:
        """A disk that fails at the start is tried again."""
        machine = self._world.machines[name]
        while True:
            if machine.dying or (machine.running and machine.node is None):
                await machine.gone.wait()
            if machine.node is not None:
                return
            try:
                await self._world.start(name, **self._keys[name])
                self._columns.add(name, f"* ready, life {machine.boots}")
            except GovernError as error:
                self._columns.add(name, f"* cannot start: {error}")
                self._disk(name).fails = None
                await trio.sleep(RETRY_SECONDS)

    # --- one node -------------------------------------------------------------------------------------------------------------

    async def _power(self, chance: random.Random, name: str) -> None:
        await self._world.crash(name)
        await trio.sleep(chance.choice((0.0, 0.3, chance.uniform(0.0, 8.0))))

    async def _power_in_silence(self, chance: random.Random, name: str) -> None:
        await self._world.crash(name, silent=True)
        await trio.sleep(chance.choice((0.0, 0.3, chance.uniform(0.0, 8.0))))

    async def _kill(self, chance: random.Random, name: str) -> None:
        await self._world.kill(name)
        await trio.sleep(chance.choice((0.0, 0.3, chance.uniform(0.0, 8.0))))

    async def _stop(self, chance: random.Random, name: str) -> None:
        await self._world.stop(name)
        await trio.sleep(chance.choice((0.0, 0.3, chance.uniform(0.0, 8.0))))

    async def _pause(self, chance: random.Random, name: str) -> None:
        self._world.pause(name)
        await trio.sleep(chance.choice((0.2, 1.5, chance.uniform(0.0, 12.0))))
        self._world.resume(name)

    async def _sleeps(self, chance: random.Random, name: str) -> None:
        """The machine is suspended: nobody is there, on its network neither, and only its clock since the start goes on. What the world
        does not have the time to wait for is added to that clock: so it is ahead of the time in which timers are counted, as after a sleep.
        """
        machine, others = self._world.machines[name], [other for other in (*self._nodes, *self._workload.names) if other != name]
        seconds, waited = chance.uniform(0.0, SLEEP_SECONDS_MAX), chance.choice((0.0, 1.5, chance.uniform(0.0, 12.0)))
        self._columns.add(name, f"! sleeps for {seconds:.1f} s")
        self._world.pause(name)
        for other in others:
            self._world.network.hold(name, other)
            self._world.network.hold(other, name)
        await trio.sleep(min(seconds, waited))
        machine.clock.offset_us += round(max(0.0, seconds - waited) * 1e6)
        for other in others:
            self._world.network.release(name, other)
            self._world.network.release(other, name)
        self._world.resume(name)

    async def _crash_in_operation(self, chance: random.Random, name: str) -> None:
        """The power goes, or the process is killed, just before one of the next operations of the disk."""
        left = chance.randint(1, 12)

        def before(operation: Operation) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._columns.add(name, f"! the power goes at {operation.kind} of {operation.name}")
                self._world.cut_power(name)

        self._disk(name).before = before
        with trio.move_on_after(5.0):
            await self._world.machines[name].gone.wait()
        self._disk(name).before = None

    async def _input_output_error(self, chance: random.Random, name: str) -> None:
        left = chance.randint(1, 12)

        def fails(operation: Operation) -> bool:
            nonlocal left
            left -= operation.kind in ("write", "sync", "create", "rename", "sync directory", "allocate")
            return left <= 0

        self._disk(name).fails = fails
        with trio.move_on_after(5.0):
            await self._world.machines[name].gone.wait()
        self._disk(name).fails = None
        with trio.move_on_after(DYING_SECONDS_MAX):  # it may have met the error just now, and be on its way out
            await self._world.machines[name].gone.wait()

    async def _disk_full(self, chance: random.Random, name: str) -> None:
        disk = self._disk(name)
        disk.capacity_bytes = disk.used_bytes + chance.choice((0, FREE_BYTES_WHEN_FULL))
        await trio.sleep(chance.uniform(0.5, 8.0))
        self._disk(name).capacity_bytes = None
        await trio.sleep(1.0)

    async def _slow_disk(self, chance: random.Random, name: str) -> None:
        self._disk(name).latency_seconds = (0.0, chance.choice((0.005, 0.1, 1.0)))
        await trio.sleep(chance.uniform(0.5, 8.0))
        self._disk(name).latency_seconds = (0.0, 0.0)

    async def _hang(self, chance: random.Random, name: str) -> None:
        self._disk(name).hang()
        await trio.sleep(chance.uniform(0.2, 8.0))
        if chance.random() < 0.3:
            await self._world.crash(name)
        self._disk(name).unhang()

    # --- the network and the clients ----------------------------------------------------------------------------------------------

    def _some(self, chance: random.Random) -> list[str]:
        names = self._workload.names
        return chance.sample(names, chance.choice((1, 1, 2, len(names))))

    async def _last(self, chance: random.Random) -> None:
        await trio.sleep(chance.choice((0.1, 1.0, chance.uniform(0.0, 12.0))))

    async def _cut(self, chance: random.Random, node: str) -> None:
        for name in self._some(chance):
            self._world.network.cut(name)
        await trio.lowlevel.checkpoint()

    async def _partition(self, chance: random.Random, node: str) -> None:
        self._world.network.partition(node, self._some(chance))
        await self._last(chance)
        self._world.network.heal()

    async def _one_way(self, chance: random.Random, node: str) -> None:
        names = self._some(chance)
        if chance.random() < 0.5:
            self._world.network.partition_oneway(node, names)
        else:
            self._world.network.partition_oneway(names, node)
        await self._last(chance)
        self._world.network.heal()

    async def _slow(self, chance: random.Random, node: str) -> None:
        for name in self._some(chance):
            self._world.network.slow(name, node, chance.choice((0.05, 0.5, 2.0)))
        await self._last(chance)
        self._world.network.heal()

    async def _clog(self, chance: random.Random, node: str) -> None:
        for name in self._some(chance):
            self._world.network.clog(name, node, chance.choice((100.0, 1000.0, 20_000.0)))
        await self._last(chance)
        self._world.network.heal()

    async def _hold(self, chance: random.Random, node: str) -> None:
        names, both = self._some(chance), chance.random() < 0.5
        for name in names:
            self._world.network.hold(name, node)
            if both:
                self._world.network.hold(node, name)
        await self._last(chance)
        for name in names:
            self._world.network.release(name, node)
            self._world.network.release(node, name)

    async def _isolate(self, chance: random.Random, node: str) -> None:
        self._world.network.isolate(chance.choice([node, *self._workload.names]))
        await self._last(chance)
        self._world.network.heal()

    async def _kill_client(self, chance: random.Random, node: str) -> None:
        name = chance.choice(self._workload.names)
        await self._world.kill_client(name)
        await self._last(chance)
        await self._workload.start(name)

    async def _pause_client(self, chance: random.Random, node: str) -> None:
        name = chance.choice(self._workload.names)
        self._world.pause(name)
        await self._last(chance)
        self._world.resume(name)

    # --- the cluster ----------------------------------------------------------------------------------------------------------------

    def _of_the_controller(self, fault: Callable[[random.Random, str], Awaitable[None]]) -> Callable[[random.Random], Awaitable[None]]:
        """That fault, for whoever is the controller now; nothing when nobody is."""

        async def of_the_controller(chance: random.Random) -> None:
            name = controller_of(self._world, self._nodes)
            if name is None or name in self._busy:
                await trio.lowlevel.checkpoint()
                return
            with self._occupy(name):
                self._columns.add(name, "! it is the controller")
                await fault(chance, name)
                await self._bring_back(name)

        return of_the_controller

    async def _isolate_node(self, chance: random.Random, name: str) -> None:
        self._world.network.partition(name, [other for other in self._nodes if other != name])
        await self._last(chance)
        self._world.network.heal()

    async def _majority_down(self, chance: random.Random) -> None:
        voters = self._voters
        names = chance.sample(voters, len(voters) // 2 + 1)
        await self._crash_together(chance, [name for name in names if name not in self._busy])

    async def _everything_restarted(self, chance: random.Random) -> None:
        await self._crash_together(chance, [name for name in self._nodes if name not in self._busy])

    async def _crash_together(self, chance: random.Random, names: Sequence[str]) -> None:
        with self._occupy(*names):
            for name in names:
                self._columns.add(name, "! power, with others")
                self._world.cut_power(name)
            await self._last(chance)
            await self._bring_back(*names)

    async def _wiped(self, chance: random.Random) -> None:
        """A node loses its disk, and operators do what is to be done."""
        await self._damage(chance, lambda: self._nodes, self._world.crash)

    async def _damage(self, chance: random.Random, names: Callable[[], Sequence[str]], damage: Callable[[str], Awaitable[None]]) -> None:
        """Do that to one of these nodes; who they are is asked when operators are done, for they may change it. What is down afterwards is
        of no use any more: its disk is emptied, and operators replace it. One at a time, and never so that no majority is left. Not while
        the cluster is being formed: for a moment the first candidate alone has its log."""
        async with self._operators.at_work:
            await self._damage_one(chance, names(), damage)

    async def _damage_one(self, chance: random.Random, names: Sequence[str], damage: Callable[[str], Awaitable[None]]) -> None:
        free = [name for name in names if name not in self._busy and self._can_be_lost(name)]
        if not free or not self._may_wipe or not self._consensus.committed:
            await trio.lowlevel.checkpoint()
            return
        name = chance.choice(free)
        with self._occupy(name):
            await damage(name)
            if self._world.machines[name].running:
                return
            self._columns.add(name, "! its disk is lost")
            self._shadow.wiped(name)
            self._consensus.wiped(name)
            self._world.wipe(name)
            await self._last(chance)
            await self._bring_back(name)
        self._may_wipe = await self._operators.replace_disk(name)

    @property
    def _voters(self) -> list[str]:
        """The machines of those who vote, by what was committed last; before anything was, of the first candidates."""
        membership = self._consensus.membership
        return list(self._options.candidate_names) if membership is None else machines_of(membership)

    def _may_vote(self, name: str) -> bool:
        """Whether it is, or may become, one of those who vote."""
        return any(name in machines_of(membership) for membership in self._consensus.possible_memberships())

    def _can_be_lost(self, name: str) -> bool:
        """Whether a majority is left without this disk, whatever becomes of changes that are on their way."""
        return all(name not in voters or len(voters) > 2 for voters in map(machines_of, self._consensus.possible_memberships()))

    async def _put_back(self, chance: random.Random) -> None:
        """What a candidate has of the metadata log is that of some starts ago, and its table and boot number with it; only while all other
        candidates run and know of the later starts, for else nobody could notice. It is out until its disk is emptied."""

        async def put_back(name: str) -> None:
            image = self._disk(name).image()
            for _ in range(2):
                await self._world.crash(name)
                await self._bring_back(name)
            node = self._world.machines[name].node
            others = [self._world.machines[other] for other in self._nodes if other != name and self._may_vote(other)]
            with trio.move_on_after(KNOWN_SECONDS_MAX) as patience:
                while node is not None and not all_know_better([other.node for other in others], node, image):
                    await trio.sleep(RETRY_SECONDS)
            if node is None or patience.cancelled_caught:
                await self._bring_back(name)
                return
            await self._world.crash(name)
            self._columns.add(name, "! it is put back")
            self._consensus.put_back(name, node._me)
            self._world.roll_back(with_the_past_of(image, self._disk(name).image()), name)
            await self._bring_back(name)
            await self._last(chance)
            await self._world.crash(name)

        await self._damage(chance, lambda: self._voters, put_back)

    async def _rotten(self, chance: random.Random) -> None:
        """A bit of the metadata log of a candidate flips, where it is proven: it does not start, or has no need of that place any more."""

        async def rot(name: str) -> None:
            await self._world.crash(name)
            places = proven_places(self._disk(name))
            if not places:
                await self._bring_back(name)
                return
            file, first, end = chance.choice(places)
            self._columns.add(name, f"! a bit flips in {file}")
            self._disk(name).flip(file, chance.randrange(first, end), 1 << chance.randrange(8))
            try:
                await self._world.start(name, **self._keys[name])
            except GovernError as error:
                self._columns.add(name, f"* cannot start: {error}")

        await self._damage(chance, lambda: self._voters, rot)

    def _two_nodes(self, chance: random.Random) -> list[str]:
        voters = self._voters
        names = voters if len(voters) > 1 and chance.random() < 0.7 else self._nodes
        return chance.sample(names, 2)

    async def _nodes_cut(self, chance: random.Random) -> None:
        self._world.network.cut(*self._two_nodes(chance))
        await trio.lowlevel.checkpoint()

    async def _nodes_slow(self, chance: random.Random) -> None:
        for _ in range(chance.randint(1, len(self._nodes))):
            one, other = self._two_nodes(chance)
            self._world.network.slow(one, other, chance.choice((0.05, 0.5, 2.0)))
        await self._last(chance)
        self._world.network.heal()

    async def _nodes_one_way(self, chance: random.Random) -> None:
        for _ in range(chance.randint(1, len(self._nodes))):
            self._world.network.partition_oneway(*self._two_nodes(chance))
        await self._last(chance)
        self._world.network.heal()

    async def _split(self, chance: random.Random) -> None:
        one = chance.sample(self._nodes, chance.randint(1, len(self._nodes) - 1))
        self._world.network.partition(one, [name for name in self._nodes if name not in one])
        await self._last(chance)
        self._world.network.heal()

    async def _line(self, chance: random.Random) -> None:
        """Each node reaches only its neighbours."""
        row = chance.sample(self._nodes, len(self._nodes))
        for number, name in enumerate(row):
            if row[number + 2 :]:
                self._world.network.partition(name, row[number + 2 :])
        await self._last(chance)
        self._world.network.heal()

    async def _flapping(self, chance: random.Random) -> None:
        one, other = self._two_nodes(chance)
        for _ in range(chance.randint(2, 4)):
            self._world.network.partition(one, other)
            await trio.sleep(FLAP_SECONDS)
            self._world.network.heal()
            await trio.sleep(FLAP_SECONDS)
