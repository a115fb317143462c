"""Height one: controllers and nodes of a cluster without any trio, joined by a heap of single messages.

    python -m tests.core.cluster_heap --runs 100000 --jobs 2
    python -m tests.core.cluster_heap --seed N --verbose

The metadata log is a model: one total order, and leaders of which only the newest with a majority can add to it. Elections keep the rules
of voting (nobody votes who heard a leader within an election timeout), so leases of leaders are as the real ones. All else is real: the
metadata of each candidate, the controller of each leader, the standing and the ownership of each process. Messages get lost,
come twice or late; links break in one pair or around one node; processes die, are stopped for a while, come back, with their disk, without
it, with an older state of it, or while another one uses their id; clocks have offsets and run a little wrong.

K1  In one term of a slot at most one process ever acts as its primary.
K2  No two processes are fresh for one slot at the same time.
K3  A process that is fresh is registered and up in the committed metadata: its lease is over before it is given up.
K4  A process acts, or calls anything fresh, only by a table that knows this life of it, and acts on grants younger than its registration.
K5  The term of a slot only grows, and does so whenever its primary or its copies change; the boot number of a disk never goes down.
K6  A registration is answered when its record and its grants are applied.
K7  All candidates hold the same bytes at the same index, also when restored from a snapshot.
K8  No empty copy takes the place of one that is intact.
K9  When the faults are over every process is registered and fresh, has the newest table, and together they answer for all slots, after
    an operator gave up what was on lost disks.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections.abc import Callable

import attrs

from govern.core.controller import Controller, DecisionRefused
from govern.core.meta import ClusterInit, MetaState, NodeFenced, NodeJoined, Record, SlotBatch
from govern.core.ownership import Ownership
from govern.core.slots import SLOT_COUNT
from govern.core.standing import Health, Standing
from govern.core.table import Table, TableChange, apply, difference, whole
from govern.peer_messages import Member, NodeHeartbeat, NodeHeartbeatOk, NodeRegister, NodeRegistered

from .many import run_many

FAULT_SECONDS = 14.0
HEALING_SECONDS = 60.0
ELECTION = 1.0
RAFT_TICK = 0.1
SAMPLE = (0, 1, 3276, 4095, 4096, 5461, 8191, 8192, 10000, 12287, 12288, 16383)
CLUSTER_ID = b"c" * 16


@attrs.define(eq=False)
class Disk:
    """A data directory: what a process finds when it starts. One that is rolled back never catches up with its own boot number here; that
    is the known limit of such numbers."""

    disk_id: bytes
    boot_no: int = 100


@attrs.define(eq=False)
class Process:
    """One life of a node. `meta` and what follows only for candidates."""

    node_id: int
    disk: Disk
    boot_no: int
    standing: Standing
    ownership: Ownership
    volatile: bool
    offset_us: int
    rate: float
    alive: bool = True
    frozen_until: float = 0.0
    mail: list[Callable[[], None]] = attrs.field(factory=list)
    tick_at: float = -1.0
    stop_seconds: float = 0.0  # with its next message it is stopped for so long
    meta: MetaState | None = None
    heard_at: float = -100.0  # the last Append from a leader
    leads: Leader | None = None
    follows: Leader | None = None

    @property
    def table(self) -> Table:
        """The newest that it has."""
        return self.ownership.table

    def __repr__(self) -> str:
        return f"{self.node_id}/{self.disk.disk_id.hex()[:4]}/{self.boot_no}"


@attrs.define(eq=False)
class Leader:
    """The leadership of a process in one term of the metadata log."""

    process: Process
    term: int
    before: tuple[int, float] | None
    pending: list[Record | None] = attrs.field(factory=list)  # None is a no-op
    acked_at: float = -100.0
    controller: Controller | None = None
    committing: bool = False


class Run:
    """One run of a seed."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.steps = 0
        self.elections = 0
        self.fences = 0
        self.starts = 0
        self._tell = tell
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._pushed = 0
        self._cuts: dict[tuple[int, int], float] = {}
        self._disks = 0
        self._acted: dict[tuple[int, int], Process] = {}
        self._packs: dict[int, bytes] = {}
        self._boots: dict[bytes, int] = {}  # of the disks that count: those that nodes have now, and those with copies
        self._voted = dict.fromkeys(range(1, 4), 0)  # in which term each candidate voted last
        self._calm = False
        faults = (self._fault_crash, self._fault_freeze, self._fault_cut, self._fault_isolate, self._fault_disk, self._reset)
        self._faults = [fault for fault in faults if self.chance.random() < 0.5] or [self._fault_freeze]  # each run has its own weather
        self._delay = self.chance.choice((0.02, 0.02, 0.3))
        self._leader: Leader | None = None  # the newest
        self.log: list[tuple[int, Record]] = [(1, ClusterInit(CLUSTER_ID))]
        self._index = 1
        self.truth = MetaState()
        """The committed metadata."""
        self.truth.apply(1, self.log[0][1].pack())
        self.candidates = tuple(range(1, self.chance.choice((1, 3, 3, 3)) + 1))
        self.node_ids = tuple(range(1, max(self.candidates) + self.chance.choice((0, 1, 1, 2)) + 1))
        self._volatile = [node_id for node_id in self.node_ids if node_id not in self.candidates and self.chance.random() < 0.3]
        self._machines = {node_id: (self.chance.randint(0, 10**9), self.chance.uniform(0.99, 1.01)) for node_id in self.node_ids}
        self._homes = {node_id: self._new_disk() for node_id in self.node_ids}
        self.processes: list[Process] = []

    def say(self, text: str) -> None:
        """Something happened."""
        if self._tell is not None:
            self._tell(f"{self.now:9.4f}  {text}")

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen later."""
        self._pushed += 1
        heapq.heappush(self._heap, (self.now + seconds, self._pushed, action))

    def play(self) -> None:
        """Faults, healing, judgement."""
        for node_id in self.node_ids:
            self.after(self.chance.random(), lambda node_id=node_id: self._start(node_id))  # type: ignore[misc]
        self.after(self.chance.expovariate(1.0), self._break_something)
        self.after(RAFT_TICK, self._raft)
        while self._heap and self._heap[0][0] < FAULT_SECONDS + HEALING_SECONDS:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            self.steps += 1
            if not self._calm and self.now > FAULT_SECONDS:
                self._heal()
            if self._calm and self.steps % 20 == 0 and self._find_unfinished() is None:
                break
        problem = self._find_unfinished()
        assert problem is None, f"K9: {problem}"
        self.truth.validate()

    # --- processes ---------------------------------------------------------------------------------------------------------------

    def _new_disk(self) -> Disk:
        self._disks += 1
        return Disk(self._disks.to_bytes(2, "big") * 8)

    def _start(self, node_id: int) -> None:
        """A process starts on the directory of its node; in memory always on a new one."""
        if any(process.disk is self._homes[node_id] for process in self.processes):
            return
        if node_id in self._volatile:
            self._homes[node_id] = self._new_disk()
        disk = self._homes[node_id]
        disk.boot_no += 1
        self.starts += 1
        offset_us, rate = self._machines[node_id]
        me = Member(node_id, disk.disk_id)
        candidate = node_id in self.candidates
        options = {"clients": f"c{node_id}", "peers": "p", "candidate": candidate, "volatile": node_id in self._volatile}
        standing = Standing(me, disk.boot_no, **options)  # type: ignore[arg-type]
        process = Process(node_id, disk, disk.boot_no, standing, Ownership(me, disk.boot_no), node_id in self._volatile, offset_us, rate)
        if candidate:
            process.meta = self._restored()
            process.heard_at = self.now  # it does not vote at once: it may have heard a leader in its life before
        self.processes.append(process)
        self.say(f"{process!r} starts")
        self._tick(process)

    def _restored(self) -> MetaState:
        """The metadata of a candidate that starts: from a snapshot, then the log."""
        data = self.chance.choice([b"", *list(self._packs.values())[-4:]])
        meta = MetaState.unpack(data)
        assert not data or meta.pack() == data, "K7: a snapshot gives another state"
        return meta

    def _die(self, process: Process) -> None:
        self.say(f"! {process!r} dies")
        process.alive = False
        self.processes.remove(process)

    def _us(self, process: Process) -> int:
        """The clock of a process, for both purposes."""
        return process.offset_us + int(self.now * 1e6 * process.rate)

    def _deliver(self, process: Process, action: Callable[[], None]) -> None:
        """Let a process handle something; while it is stopped it waits."""
        if not process.alive:
            return
        if self.now < process.frozen_until:
            process.mail.append(action)
            return
        action()

    def _freeze(self, process: Process, seconds: float) -> None:
        self.say(f"! {process!r} is stopped for {seconds:.1f} s")
        process.frozen_until = self.now + seconds

        def resume() -> None:
            if process.alive and self.now >= process.frozen_until:
                taken, process.mail = process.mail, []
                self.chance.shuffle(taken)
                for action in taken:
                    self._deliver(process, action)
                self._tick(process)

        self.after(seconds + 0.0001, resume)

    def _tick(self, process: Process) -> None:
        """The standing of a process does what is due, and asks for the table if there is a newer one."""
        if not process.alive or self.now < process.frozen_until:
            return
        reached = [node_id for node_id in self.candidates if node_id == process.node_id or not self._is_cut(process.node_id, node_id)]
        leader = process.follows.process.node_id if process.follows is not None else None
        now_us = self._us(process)
        process.standing.candidates(reached, leader, now_us)
        process.standing.tick(now_us, now_us, Health(table_version=process.table.version))
        messages = process.standing.take_messages()
        if messages and process.stop_seconds:
            self._freeze(process, process.stop_seconds)
            process.stop_seconds = 0.0
        for to, message in messages:
            self._send(process.node_id, to, lambda candidate, message=message: self._forward(candidate, message))  # type: ignore[misc]
        if process.standing.newest_version > process.table.version and reached and self.chance.random() < 0.5:
            self._ask_table(process, self.chance.choice(reached))
        wait = max((process.standing.deadline_us - now_us) / 1e6 / process.rate, 0.001) + self.chance.random() * 0.01
        process.tick_at = at = self.now + wait
        self.after(wait, lambda: self._tick(process) if process.tick_at == at else None)

    # --- messages ----------------------------------------------------------------------------------------------------------------

    def _is_cut(self, first: int, second: int) -> bool:
        return self._cuts.get((min(first, second), max(first, second)), 0.0) > self.now

    def _send(self, source: int, target: int, handle: Callable[[Process], None]) -> None:
        """To every process of a node, over the link of the two nodes; late, twice, or not at all."""
        times = 1
        if source != target and not self._calm:
            times = self.chance.choices((0, 1, 2), (0.03, 0.94, 0.03))[0]
        for _ in range(times):
            late = not self._calm and source != target and self.chance.random() < 0.05
            delay = self.chance.uniform(0, 3.0 if late else 0.02 if self._calm else self._delay)

            def arrive() -> None:
                if source == target or not self._is_cut(source, target):
                    for process in [process for process in self.processes if process.node_id == target]:
                        self._deliver(process, lambda process=process: handle(process))  # type: ignore[misc]

            if source == target or not self._is_cut(source, target):
                self.after(delay, arrive)

    def _forward(self, candidate: Process, message: NodeRegister | NodeHeartbeat) -> None:
        """A candidate passes a message on to the controller."""
        if candidate.leads is not None:
            self._handle(candidate, message)
        elif candidate.follows is not None:
            self._send(candidate.node_id, candidate.follows.process.node_id, lambda process: self._handle(process, message))

    def _handle(self, process: Process, message: NodeRegister | NodeHeartbeat) -> None:
        """The controller reads a message."""
        leader = process.leads
        if leader is None or leader.controller is None:
            return
        if isinstance(message, NodeRegister):
            leader.controller.register(message, self._us(process))
        else:
            answer = leader.controller.heartbeat(message, self._us(process), self._has_lease(leader))
            if answer is not None:
                self._return(process.node_id, answer)
        self._work(leader)

    def _return(self, source: int, answer: NodeRegistered | NodeHeartbeatOk) -> None:
        """An answer goes back through the candidate by which the question came."""

        def arrive(process: Process) -> None:
            now_us = self._us(process)
            if isinstance(answer, NodeRegistered):
                process.standing.registered(answer, now_us)
            else:
                process.standing.heartbeat_ok(answer, now_us, now_us)
            process.ownership.lease_until_us = process.standing.lease_until_us
            self._judge(process)
            self._tick(process)

        self._send(source, answer.via, lambda candidate: self._send(candidate.node_id, answer.node_id, arrive))

    def _ask_table(self, process: Process, candidate_id: int) -> None:
        def answer(candidate: Process) -> None:
            assert candidate.meta is not None
            change = whole(candidate.meta.table)
            self._send(candidate.node_id, process.node_id, lambda reader: self._take_change(reader, change))

        self._send(process.node_id, candidate_id, answer)

    def _take_change(self, process: Process, change: TableChange) -> None:
        if change.version > process.table.version and change.base in (0, process.table.version):
            table = apply(process.table, change)
            assert table == self._table_of(change.version), (process, change)
            assert not process.ownership.goes_back(table), f"K5: {process!r} acts in a term above that of {table!r}"
            assert process.ownership.take(table)
            self._judge(process)

    def _table_of(self, version: int) -> Table:
        return MetaState.unpack(self._packs[version]).table

    # --- the model of the log ----------------------------------------------------------------------------------------------------

    def _working(self, node_id: int) -> Process | None:
        """The process of a candidate, if it can do anything now."""
        for process in self.processes:
            if process.node_id == node_id and process.meta is not None and self.now >= process.frozen_until:
                return process
        return None

    def _reached(self, process: Process) -> list[Process]:
        """The candidates that work and that this one has a link to, itself too."""
        working = [
            self._working(node_id)
            for node_id in self.candidates
            if node_id == process.node_id or not self._is_cut(process.node_id, node_id)
        ]
        return [other for other in working if other is not None]

    def _is_majority(self, processes: list[Process]) -> bool:
        return 2 * len(processes) > len(self.candidates)

    def _has_lease(self, leader: Leader) -> bool:
        return (self.now - leader.acked_at) * leader.process.rate < 0.8 * ELECTION

    def _raft(self) -> None:
        """Leaders send and count answers, those without a majority step down, and somebody stands for election."""
        self.after(RAFT_TICK * self.chance.uniform(0.5, 1.0), self._raft)
        for process in list(self.processes):
            leader = process.leads
            if leader is None or self.now < process.frozen_until:
                continue
            reached = self._reached(process)
            if any(self._voted[other.node_id] > leader.term for other in reached):
                self._step_down(process)
            elif self._is_majority(reached):
                leader.acked_at = self.now
                for other in reached:
                    if other.follows is not leader or self.chance.random() < 0.9:
                        other.follows, other.heard_at = leader, self.now
                        self._catch_up(other)
                if leader.controller is not None:
                    leader.controller.tick(self._us(process))
                    self._work(leader)
            elif self.now - leader.acked_at > ELECTION:
                self._step_down(process)
        node_id = self.chance.choice(self.candidates)
        candidate = self._working(node_id)
        if candidate is not None and candidate.leads is None:
            self._stand(candidate)

    def _step_down(self, process: Process) -> None:
        self.say(f"{process!r} leads no longer")
        process.leads = process.follows = None

    def _stand(self, candidate: Process) -> None:
        alone = len(self.candidates) == 1
        voters = [other for other in self._reached(candidate) if other.leads is None and (alone or self.now - other.heard_at >= ELECTION)]
        if candidate not in voters or not self._is_majority(voters):
            return
        old = self._leader
        before = (old.process.node_id, candidate.heard_at) if old is not None and old.process.node_id != candidate.node_id else None
        leader = Leader(candidate, 1 if old is None else old.term + 1, before)
        if old is not None:
            leader.pending = old.pending[: self.chance.randint(0, len(old.pending))]
        leader.pending.append(None)
        self._leader = candidate.leads = candidate.follows = leader
        for other in voters:
            other.follows, other.heard_at = leader, self.now
            self._voted[other.node_id] = leader.term
        self.elections += 1
        self.say(f"{candidate!r} is elected in term {leader.term}; {len(leader.pending) - 1} entries survive")
        self._commit_soon(leader)

    def _commit_soon(self, leader: Leader) -> None:
        if leader.committing or not leader.pending:
            return
        leader.committing = True

        def commit() -> None:
            leader.committing = False
            process = leader.process
            if not process.alive or process.leads is not leader:
                return
            if self.now >= process.frozen_until and leader is self._leader and self._is_majority(self._reached(process)):
                self._commit(leader)
            self._commit_soon(leader)

        self.after(self.chance.uniform(0.001, 0.02 if self._calm else self._delay), commit)

    def _commit(self, leader: Leader) -> None:
        count = self.chance.randint(1, len(leader.pending))
        taken, leader.pending = leader.pending[:count], leader.pending[count:]
        for record in taken:
            self._index += 1
            if record is not None:
                self._watch(self._index, record)
                self.log.append((self._index, record))
            elif leader.pending == [] or None not in leader.pending:
                self._catch_up(leader.process)
                self._lead(leader)
        self._catch_up(leader.process)

    def _lead(self, leader: Leader) -> None:
        process = leader.process
        assert process.meta is not None
        before = None
        if leader.before is not None:
            node_id, heard_at = leader.before
            before = node_id, process.offset_us + int(heard_at * 1e6 * process.rate)
        leader.controller = Controller(
            process.meta, Member(process.node_id, process.disk.disk_id), self._us(process), self.candidates, previous=before
        )

    def _catch_up(self, process: Process) -> None:
        """A candidate applies what is committed."""
        meta = process.meta
        assert meta is not None
        leader = process.leads
        version, before = meta.version, meta.table
        for index, record in self.log:
            if index > meta.index:
                meta.apply(index, record.pack())
                data = self._packs.setdefault(index, meta.pack())
                assert data == meta.pack(), f"K7: {process!r} holds something else at {index}"
                if leader is not None and leader.controller is not None:
                    leader.controller.applied(record, self._us(process))
        if meta.version != version:
            for node_id in self.node_ids:
                change = difference(before, meta.table) if self.chance.choice((0, version)) else whole(meta.table)
                self._send(process.node_id, node_id, lambda reader, change=change: self._take_change(reader, change))  # type: ignore[misc]
        if leader is not None:
            self._work(leader)

    def _work(self, leader: Leader) -> None:
        """What the controller wants to be done."""
        controller = leader.controller
        if controller is None or leader.process.leads is not leader:
            return
        for answer in controller.take_answers():
            self._judge_answer(controller.meta, answer)
            self._return(leader.process.node_id, answer)
        records = controller.take_proposals()
        for record in records:
            self.say(f"{leader.process!r} proposes {record}")
            leader.pending.append(record)
        controller.take_decided()
        self._commit_soon(leader)

    # --- judgement ---------------------------------------------------------------------------------------------------------------

    def _watch(self, index: int, record: Record) -> None:
        """A record is committed: K5 and K8, and whoever is fresh is judged again."""
        before = {slot: self.truth.table.run_of(slot) for slot in SAMPLE}
        intact = {slot: run is not None and self.truth.is_intact(run) for slot, run in before.items()}
        self.truth.apply(index, record.pack())
        self._packs.setdefault(index, self.truth.pack())
        self.say(f"committed {index}: {record}")
        for slot, old in before.items():
            new = self.truth.table.run_of(slot)
            if old is not None:
                assert new is not None, f"K5: slot {slot} belongs to nobody again"
                assert new.term > old.term or new.value == old.value, f"K5: slot {slot} from {old} to {new}"
                assert new.copies == old.copies or not intact[slot], f"K8: slot {slot} from {old} to {new}"
            if isinstance(record, SlotBatch) and any(item.first <= slot <= item.last for item in record.items) and old is not None:
                assert new is not None
                assert new.term == index or new.value == old.value, f"K5: slot {slot} granted with {new}"
        if isinstance(record, NodeJoined):
            row = self.truth.nodes[record.node_id].row
            assert row.boot_no >= self._boots.get(row.disk_id, 0), f"K5: {record}"
            self._boots[row.disk_id] = row.boot_no
        known = [node.row.disk_id for node in self.truth.nodes.values()] + [home.disk_id for home in self.truth.homes.values()]
        self._boots = {disk_id: boot_no for disk_id, boot_no in self._boots.items() if disk_id in known}
        self.fences += isinstance(record, NodeFenced)
        for process in self.processes:
            self._judge(process)

    def _judge_answer(self, meta: MetaState, answer: NodeRegistered) -> None:
        if answer.index:
            node = meta.nodes.get(answer.node_id)
            assert node is not None, f"K6: {answer}"
            assert node.is_life(answer.disk_id, answer.boot_no), f"K6: {answer}"
            for run in meta.table.runs:
                waits = run.primary == answer.node_id and run.term < node.row.registered_at
                assert not (waits and meta.is_intact(run)), f"K6: {answer} before {run}"

    def _judge(self, process: Process) -> None:
        """K1 to K4 for what this process believes now."""
        if not process.alive:
            return
        acting = [(slot, term) for slot in SAMPLE if (term := process.ownership.terms[slot])]
        row = process.table.node(process.node_id)
        for slot, term in acting:
            assert self._acted.setdefault((slot, term), process) is process, f"K1: slot {slot} in {term}"
            assert row is not None, f"K4: {process!r}"
            assert (row.disk_id, row.boot_no) == (process.disk.disk_id, process.boot_no), f"K4: {process!r} acts for {row}"
            assert term > row.registered_at, f"K4: {process!r} acts for slot {slot} on a grant to the life before"
        if not process.ownership.is_fresh(self._us(process)):
            return
        node = self.truth.nodes.get(process.node_id)
        assert row is not None, f"K4: {process!r} is fresh by a table that does not know it"
        assert (row.disk_id, row.boot_no) == (process.disk.disk_id, process.boot_no), f"K4: {process!r} is fresh by a table with {row}"
        assert node is not None, f"K3: {process!r}"
        assert node.is_life(process.disk.disk_id, process.boot_no), f"K3: {process!r} is fresh, registered is {node.row}"
        assert node.row.state == "up", f"K3: {process!r} is fresh and was given up"
        for other in self.processes:
            if other is not process and self.now >= other.frozen_until and other.ownership.is_fresh(self._us(other)):
                clash = [slot for slot, _ in acting if other.ownership.terms[slot]]
                assert not clash, f"K2: {process!r} and {other!r} for {clash}"

    # --- faults ------------------------------------------------------------------------------------------------------------------

    def _break_something(self) -> None:
        if self._calm:
            return
        self.after(self.chance.expovariate(0.8), self._break_something)
        self.chance.choice(self._faults)()

    def _fault_crash(self) -> None:
        if self.processes:
            process = self.chance.choice(self.processes)
            self._die(process)
            self.after(self.chance.choice((0.05, 1.0, 8.0)), lambda: self._start(process.node_id))

    def _fault_freeze(self) -> None:
        if self.processes:
            process, seconds = self.chance.choice(self.processes), self.chance.choice((0.3, 3.0, 5.1, 7.0))
            if self.chance.random() < 0.5:
                process.stop_seconds = seconds * self.chance.uniform(0.9, 1.1)
            else:
                self._freeze(process, seconds)

    def _fault_cut(self) -> None:
        first, second = self.chance.choice(self.node_ids), self.chance.choice(self.candidates)
        self._cuts[min(first, second), max(first, second)] = self.now + self.chance.choice((0.5, 3.0, 8.0))
        self.say(f"! link {first}-{second} breaks")

    def _fault_isolate(self) -> None:
        node_id, seconds = self.chance.choice(self.node_ids), self.chance.choice((0.5, 3.0, 8.0))
        for other in self.node_ids:
            if other != node_id:
                self._cuts[min(node_id, other), max(node_id, other)] = self.now + seconds
        self.say(f"! node {node_id} is alone for {seconds} s")

    def _fault_disk(self) -> None:
        """A node that is no candidate gets another disk: a new one, while its old process may go on, or an older state of it."""
        if self.node_ids == self.candidates:
            return
        node_id = self.chance.choice(self.node_ids[len(self.candidates) :])
        how = self.chance.choice(("wipe", "twice", "back"))
        self.say(f"! the disk of node {node_id}: {how}")
        running = [process for process in self.processes if process.node_id == node_id]
        if how == "twice":
            for process in running:
                if self.chance.random() < 0.5:
                    self._freeze(process, 7.0)
            old, self._homes[node_id] = self._homes[node_id], self._new_disk()
            self.after(self.chance.choice((1.0, 9.0)), lambda: self._return_disk(node_id, old))
        else:
            for process in running:
                self._die(process)
            disk = self._homes[node_id]
            seen = self._boots.get(disk.disk_id) == disk.boot_no  # else nobody could tell that it is older
            self._homes[node_id] = Disk(disk.disk_id, disk.boot_no - 50) if how == "back" and seen else self._new_disk()
        self.after(self.chance.choice((0.1, 6.0)), lambda: self._start(node_id))

    def _return_disk(self, node_id: int, old: Disk) -> None:
        """The node that ran twice goes back to its old disk."""
        if not self._calm:
            for process in [process for process in self.processes if process.node_id == node_id and process.disk is not old]:
                self._die(process)
            self._homes[node_id] = old
            self.after(0.1, lambda: self._start(node_id))

    def _heal(self) -> None:
        """The faults are over: one process for each node, a new disk for those that are refused, and somebody who resets."""
        self.say("! calm")
        self._calm = True
        self._cuts.clear()
        for process in list(self.processes):
            if process.disk is not self._homes[process.node_id]:
                self._die(process)
            elif process.frozen_until > self.now:
                self._freeze(process, 0.0)
        for node_id in self.node_ids:
            self._start(node_id)
        self.after(1.0, self._operate)

    def _operate(self) -> None:
        self.after(1.0, self._operate)
        for process in list(self.processes):
            if process.standing.refusal is not None and "rolled back" in process.standing.refusal:
                self._die(process)
                self._homes[process.node_id] = self._new_disk()
                self._start(process.node_id)
        self._reset()

    def _reset(self) -> None:
        """An operator gives up what is lost."""
        leader = self._leader
        if leader is None or leader.controller is None or leader.process.leads is not leader or self.now < leader.process.frozen_until:
            return
        for node_id in dict.fromkeys(run.primary for run in leader.controller.meta.lost_runs()):
            try:
                slots = leader.controller.reset(node_id, None)
            except DecisionRefused as refusal:
                self.say(f"{refusal}")
            else:
                self.say(f"! {slots} slots of node {node_id} are given up")
        self._work(leader)

    def _find_unfinished(self) -> str | None:
        """What is not as it should be at the end; None when all is well."""
        if not self._calm:
            return "no end of faults"
        covered = 0
        for process in self.processes:
            if not process.ownership.is_fresh(self._us(process)):
                return f"{process.standing!r} is not fresh"
            if process.table != self.truth.table:
                return f"{process!r} has {process.table!r}"
            covered += process.ownership.acting_count
        if len(self.processes) != len(self.node_ids) or covered != SLOT_COUNT or self.truth.degraded():
            return f"{covered} slots; {self.truth.degraded()}"
        return None


COUNTED = ("steps", "records", "elections", "starts", "fences")


def failure_of(seed: int) -> str | None:
    """Run one seed; what broke, if anything did."""
    return summary_of(seed)[0]


def summary_of(seed: int) -> tuple[str | None, tuple[float, ...]]:
    """Run one seed; what broke, and what happened in it."""
    run = Run(seed)
    try:
        run.play()
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}; again: python -m tests.core.cluster_heap --seed {seed} --verbose", ()
    return None, (run.steps, len(run.log), run.elections, run.starts, run.fences)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.core.cluster_heap", description="The cores of a cluster, message by message.")
    parser.add_argument("--runs", type=int, default=1000, help="so many seeds (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=1, help="in so many processes (1)")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--verbose", action="store_true", help="with --seed: print what happens")
    found = parser.parse_args()
    if found.seed is not None:
        run = Run(found.seed, print if found.verbose else None)
        run.play()
        print(f"{run.steps} steps, {len(run.log)} records, {run.elections} elections, {run.starts} starts, {run.fences} given up")
        return 0
    from tests.core.cluster_heap import summary_of as one  # under its own name: a pool cannot find `__main__`

    return 1 if run_many(one, COUNTED, range(found.first, found.first + found.runs), found.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
