"""A cluster of model nodes and the cores of one client, joined by hand: the test decides who runs, who is reached and what arrives.

The nodes share one store, as if every slot had a copy everywhere, and a table says who answers for it. A node acts by the table that it has
learned, which may be an old one: it says Moved by it, and refuses what it believes to own but does not.
"""

from __future__ import annotations

from typing import Any

import attrs

from govern.client.claims import Claim
from govern.client.core import ClientCore, HelloRefused, Phase
from govern.client.cores import Cores
from govern.client.outbox import Request
from govern.client.where import Address
from govern.core.slots import SLOT_COUNT, slot_of
from govern.core.table import EMPTY, UP, SlotRun, Table, TableNode, difference, join_runs, node_rows, run_rows, whole
from govern.errors import RemoteProtocolError, Unreachable
from govern.messages import (
    FRAME_BYTES_MAX_TO_CLIENT,
    Administer,
    Administered,
    Applied,
    AskTable,
    HeartbeatOk,
    HelloOk,
    Message,
    Moved,
    Refused,
    TableRows,
    Unsubscribe,
    build_message,
)
from govern.model import Instance, Lsn, ServiceKey
from govern.net.frames import FrameReader

from .model_node import Held, Key, ModelNode

OURS = b"o" * 16


@attrs.define
class Store:
    """What all nodes of a cluster have together."""

    cluster: int = 1
    """0 stands for none."""
    term: int = 1
    seq: int = 0
    instances: dict[Key, Held] = attrs.field(factory=dict)
    lsns: dict[ServiceKey, Lsn] = attrs.field(factory=dict)
    history: dict[tuple[int, ServiceKey, Lsn], dict[str, list[Any]]] = attrs.field(factory=dict)
    applied: dict[tuple[int, int], int] = attrs.field(factory=dict)
    barred: dict[tuple[bytes, Key], None] = attrs.field(factory=dict)
    table: Table = EMPTY
    tables: dict[int, Table] = attrs.field(factory=dict)

    @property
    def cluster_id(self) -> str:
        return f"cluster{self.cluster}" if self.cluster else ""


class FleetNode(ModelNode):
    """One node of the cluster."""

    def __init__(self, node_id: int, store: Store) -> None:
        super().__init__()
        self.node_id = node_id
        self.host = f"node{node_id}"
        self.port = 7400
        self.running = True
        self.table = EMPTY
        self.table_asks = 0
        self.moved_said = 0
        self.administered: list[str] = []
        self.join(store)

    def __repr__(self) -> str:
        return f"<FleetNode {self.node_id} {'running' if self.running else 'down'} {self.table}>"

    def join(self, store: Store) -> None:
        self.store = store
        self.instances, self.lsns, self.history = store.instances, store.lsns, store.history
        self.applied, self.barred = store.applied, store.barred

    @property
    def address(self) -> Address:
        return self.host, self.port

    def next_lsn(self) -> Lsn:
        self.store.seq += 1
        return Lsn(self.store.term, self.store.seq)

    def owns(self, service: ServiceKey) -> bool:
        owner = self.store.table.owner(slot_of(service))
        return owner is not None and owner.node_id == self.node_id

    def is_mine(self, service: ServiceKey) -> bool:
        return self.owns(service) or not self.store.table.version

    def lsn_of(self, service: ServiceKey) -> Lsn:
        return self.lsns.get(service, Lsn(0, 0))

    def answer(self, message: Message, request_id: int) -> Message | None:
        if isinstance(message, AskTable):
            self.send_table(message.known, request_id)
            return None
        if isinstance(message, Administer):
            self.administered.append(message.verb)
            return Administered({"verb": message.verb})
        service = getattr(message, "service", None)
        if service is not None and not isinstance(message, Unsubscribe | Applied) and self.table.version:
            slot = slot_of(service)
            owner = self.table.owner(slot)
            if owner is None:
                return Refused("unassigned", "nobody answers for that slot", 300)
            if owner.node_id != self.node_id:
                self.moved_said += 1
                return Moved(slot, owner.node_id, owner.clients, self.table.version)
            if not self.owns(service):
                return Refused("unassigned", "this node does not answer for that slot any more", 300)
        answer = super().answer(message, request_id)
        if isinstance(answer, HelloOk):
            return attrs.evolve(answer, cluster_id=self.store.cluster_id, node_id=self.node_id, table_version=self.table.version)
        if isinstance(answer, HeartbeatOk):
            return attrs.evolve(answer, table_version=self.table.version)
        return answer

    def state(self, service: ServiceKey) -> dict[str, list[Any]]:
        return super().state(service)

    def holds(self) -> tuple[int, int]:
        mine, every = {key: held for key, held in self.instances.items() if self.is_mine(key[0])}, self.instances
        self.instances = mine
        try:
            return super().holds()
        finally:
            self.instances = every

    def resync(self, message: Any) -> Message:
        mine, every = {key: held for key, held in self.instances.items() if self.is_mine(key[0])}, self.instances
        self.instances = mine
        try:
            return super().resync(message)
        finally:
            self.instances = every

    def end_session(self) -> None:
        for key, held in list(self.instances.items()):
            if held.session_id == self.session_id and held.fields[9] and self.is_mine(key[0]):
                self.remove(key)

    def send_table(self, known: int, request_id: int) -> None:
        self.table_asks += 1
        before = self.store.tables.get(known)
        change = difference(before, self.table) if before is not None and known <= self.table.version else whole(self.table)
        if known == self.table.version:
            change = attrs.evolve(change, base=known, nodes=(), gone=(), runs=())
        halves = [(node_rows(change.nodes), [], []), ([], list(change.gone), run_rows(change.runs))]
        for nodes, gone, runs in halves:
            self.send(TableRows(runs is not halves[1][2], change.base, change.version, nodes, gone, runs), request_id)


class Pipe:
    """One connection between a core and a node."""

    def __init__(self, node: FleetNode) -> None:
        self.node = node
        self.to_node: list[list[Any]] = []
        self.to_client: list[list[Any]] = []


def unpack(data: bytes) -> list[list[Any]]:
    return FrameReader(FRAME_BYTES_MAX_TO_CLIENT).feed(data)


class Fleet:
    """The nodes, the client's cores, and the pipes between them."""

    def __init__(self, count: int = 3, *, cores: type[Cores] = Cores) -> None:
        self.now = 100.0
        self.store = Store()
        self.nodes = {node_id: FleetNode(node_id, self.store) for node_id in range(1, count + 1)}
        self.cores = cores(OURS, [("node1", 7400), ("node2", 7400)])
        self.pipes: dict[ClientCore, Pipe] = {}
        self.cut: dict[int, None] = {}  # nodes that the client cannot reach
        self.turns: dict[ClientCore, int] = {}
        self.said: list[tuple[int, Message]] = []  # what the client put out to a node that was connected
        self.told: list[object] = []

    # --- the cluster ----------------------------------------------------------------------------------------------------------

    def make_table(self, owners: dict[ServiceKey, int | None], default: int = 1) -> Table:
        """A new version: these services where they are said to be, everything else at `default`."""
        version = self.store.table.version + 1
        self.store.term = version
        slots: dict[int, int | None] = {slot_of(service): node_id for service, node_id in owners.items()}
        runs: list[SlotRun] = []
        first = 0
        for slot in [*sorted(slots), SLOT_COUNT]:
            if first < slot:
                runs.append(SlotRun(first, slot - 1, default, 1, ((default, 1),), (default,)))
            owner = slots.get(slot)
            if owner is not None:
                runs.append(SlotRun(slot, slot, owner, version, ((owner, version),), (owner,)))
            first = slot + 1
        nodes = tuple(TableNode(node.node_id, "{}:{}".format(*node.address), "", True, UP, bytes(16), 1, 1) for node in self.nodes.values())
        self.store.table = self.store.tables[version] = Table(version, nodes, join_runs(runs))
        self.store.table.validate()
        return self.store.table

    def learn(self, *node_ids: int) -> None:
        """These nodes, or all, have the newest table."""
        for node_id in node_ids or self.nodes:
            node = self.nodes[node_id]
            for service in list(node.subscriptions):
                old, new = (table.run_of(slot_of(service)) for table in (node.table, self.store.table))
                if old is not None and new is not None and old.term != new.term:
                    del node.subscriptions[service]  # they end with the reign
            node.table = self.store.table

    def assign(self, owners: dict[ServiceKey, int | None], default: int = 1) -> None:
        """A new table that everybody knows."""
        self.make_table(owners, default)
        self.learn()

    def stop(self, node_id: int) -> None:
        self.nodes[node_id].running = False
        self.break_links(node_id)

    def start(self, node_id: int) -> None:
        self.nodes[node_id].running = True
        self.nodes[node_id].known_sessions = {OURS: 0}

    def break_links(self, node_id: int) -> None:
        for core, pipe in list(self.pipes.items()):
            if pipe.node.node_id == node_id:
                self.drop(core)

    # --- the pipes ------------------------------------------------------------------------------------------------------------

    def drop(self, core: ClientCore) -> None:
        """The stream of a core breaks."""
        pipe = self.pipes.pop(core, None)
        if pipe is not None:
            pipe.node.disconnect()
        self.cores.disconnected(core)
        self.collect()

    def collect(self) -> None:
        """As the shell's flush: settle, end what has ended, and take what was put out."""
        self.cores.settle(self.now)
        for core in self.cores.take_ended():
            pipe = self.pipes.pop(core, None)
            if pipe is not None:
                pipe.node.disconnect()
            self.told += core.outbox.take()[1]
        for core in self.cores.all():
            frames, changed = core.outbox.take()
            self.told += changed
            pipe = self.pipes.get(core)
            for raw in unpack(b"".join(frames)):
                if pipe is not None:
                    pipe.to_node.append(raw)
                    self.said.append((pipe.node.node_id, build_message(raw)))

    def dial(self, core: ClientCore) -> bool:
        """Try the next address of a core that has no stream."""
        addresses = self.cores.addresses(core)
        turn = self.turns.get(core, 0)
        self.turns[core] = turn + 1
        if not addresses:
            return False
        address = addresses[turn % len(addresses)]
        node = next((node for node in self.nodes.values() if node.address == address), None)
        if node is None or not node.running or node.node_id in self.cut:
            self.cores.failed(core)
            self.collect()
            return False
        for other, pipe in list(self.pipes.items()):
            if pipe.node is node:  # the session is taken over
                self.drop(other)
        if core.phase is not Phase.DOWN:  # it ended when the other one was dropped
            return False
        self.pipes[core] = Pipe(node)
        core.dialled(self.now)
        self.collect()
        return True

    def dial_all(self) -> None:
        for core in self.cores.living():
            if core.phase is Phase.DOWN and core not in self.pipes:
                self.dial(core)

    def reach_node(self, core: ClientCore, count: int = 1_000_000) -> None:
        pipe = self.pipes.get(core)
        if pipe is not None:
            for raw in pipe.to_node[:count]:
                pipe.node.receive(raw)
            del pipe.to_node[:count]
            self.collect_nodes()

    def collect_nodes(self) -> None:
        """What the nodes have put out goes into their pipes, or nowhere."""
        pipes = {pipe.node.node_id: pipe for pipe in self.pipes.values()}
        for node in self.nodes.values():
            raws = unpack(b"".join(node.out))
            node.out.clear()
            if node.node_id in pipes:
                pipes[node.node_id].to_client += raws

    def reach_client(self, core: ClientCore, count: int = 1_000_000) -> None:
        for _ in range(count):
            pipe = self.pipes.get(core)
            if pipe is None or not pipe.to_client:
                break
            try:
                self.cores.receive(core, pipe.to_client.pop(0), self.now)
            except (Unreachable, HelloRefused, RemoteProtocolError):
                self.drop(core)
                self.cores.failed(core)
            self.collect()

    def exchange(self) -> None:
        """Let everything arrive everywhere."""
        self.collect()
        for _ in range(1000):
            moving = [core for core, pipe in self.pipes.items() if pipe.to_node or pipe.to_client]
            if not moving:
                return
            for core in moving:
                self.reach_node(core)
                self.reach_client(core)
        raise AssertionError("it never comes to rest")

    def tick(self) -> None:
        for core in self.cores.all():
            if core.deadline <= self.now:
                try:
                    core.tick(self.now)
                except Unreachable:
                    self.drop(core)
        self.collect()

    def run(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass with everything working as it can."""
        until = self.now + seconds
        self.dial_all()
        self.exchange()
        while self.now < until - 1e-9:
            self.now += step
            self.tick()
            self.dial_all()
            self.exchange()
            self.cores.validate()

    # --- the client -----------------------------------------------------------------------------------------------------------

    def home(self, service: ServiceKey) -> ClientCore:
        return self.cores.home(service, self.now)

    def register(self, service: ServiceKey, instance_id: str = "one", **fields: Any) -> Claim:
        values: dict[str, Any] = {"id": instance_id, "host": "h", "port": 1, **fields}
        registrations = self.home(service).registrations
        claim = registrations.register(service, Instance(**values))
        registrations.pump()
        self.collect()
        return claim

    def leave(self, claim: Claim) -> None:
        registrations = self.home(claim.service).registrations
        registrations.leave(claim)
        registrations.pump()
        self.collect()

    def update(self, claim: Claim, **changes: Any) -> Request:
        registrations = self.home(claim.service).registrations
        request = registrations.update(claim, changes)
        registrations.pump()
        self.collect()
        return request

    def spoken(self, kind: type[Message]) -> list[int]:
        """Which nodes were told messages of this kind, in order."""
        return [node_id for node_id, message in self.said if isinstance(message, kind)]
