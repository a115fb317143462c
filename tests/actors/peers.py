"""Nodes that are nothing but a peer connector, in a simulated network, and a journal of what each told."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from govern.actors.peer_connector import PeerConnector
from govern.environment import Network
from govern.messages import Message
from govern.net.frames import FrameReader
from govern.net.sim import SimNetwork
from govern.peer_messages import FRAME_BYTES_MAX_PEER, PeerHello, TableAsk, build_peer_message, encode_peer, unpack_peer_frame
from govern.testing.scheduler import process

PORT: Final = 7401
BLUE: Final = b"the blue cluster"
RED: Final = b"the red cluster!"


def name_of(node_id: int) -> str:
    return f"node{node_id}"


def hello_of(node_id: int, *, boot_no: int = 1, cluster_id: bytes = BLUE, disk: int | None = None) -> PeerHello:
    disk_id = (node_id if disk is None else disk).to_bytes(16)
    return PeerHello(1, cluster_id, node_id, disk_id, boot_no, True, f"{name_of(node_id)}:{PORT}", f"{name_of(node_id)}:7400", (1, 2, 3))


@attrs.frozen
class Told:
    """One call of a connector."""

    at: float
    what: str
    """`up`, `down` or `got`."""
    node_id: int
    detail: object = None


class Teller:
    """A connector and the journal of its calls."""

    def __init__(self, network: Network, hello: PeerHello, host: str | None = "0.0.0.0", port: int = PORT, seed: object = 0) -> None:
        self.hello = hello
        self.journal: list[Told] = []
        self._checked = 0
        self._states: dict[int, str] = {}
        self.greeting: Message | None = None
        """Sent to every node from inside of `on_up`."""
        self.scope = trio.CancelScope()
        self.gone = trio.Event()
        self.connector = PeerConnector(
            network=network,
            random=random.Random(f"{seed}/{hello.node_id}/{hello.boot_no}"),
            hello=lambda: self.hello,
            host=host,
            port=port,
            deliver=lambda node_id, message: self.note("got", node_id, message),
            on_up=lambda node_id, other: self.note("up", node_id, other),
            on_down=lambda node_id: self.note("down", node_id),
        )

    def note(self, what: str, node_id: int, detail: object = None) -> None:
        self.journal.append(Told(trio.current_time(), what, node_id, detail))
        self.check()
        if what == "up" and self.greeting is not None:
            assert self.connector.send(node_id, self.greeting)

    def check(self) -> None:
        """Ups and downs take turns, and messages come only between them (C1)."""
        states = self._states
        while self._checked < len(self.journal):
            told = self.journal[self._checked]
            before = states.get(told.node_id, "down")
            assert told.what != before, f"node {self.hello.node_id} was told {told.what} of node {told.node_id} twice"
            if told.what == "got":
                assert before == "up", f"node {self.hello.node_id} got a message of node {told.node_id} outside of a link"
            else:
                states[told.node_id] = told.what
            self._checked += 1

    def told(self, what: str, node_id: int | None = None) -> list[Told]:
        return [told for told in self.journal if told.what == what and node_id in (None, told.node_id)]

    def got(self, node_id: int) -> list[int]:
        """The numbers that a node has sent here in `TableAsk` messages."""
        return [told.detail.known for told in self.told("got", node_id) if isinstance(told.detail, TableAsk)]

    @property
    def up(self) -> list[int]:
        self.connector.validate()
        return sorted(self.connector.peers())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `scope` is cancelled."""
        process.set(name_of(self.hello.node_id))
        try:
            with self.scope:
                await self.connector.run(task_status=task_status)
        finally:
            self.gone.set()


class Town:
    """Some nodes, each on its machine `node<id>`."""

    def __init__(self, seed: object, network: SimNetwork, nursery: trio.Nursery) -> None:
        self.seed = seed
        self.network = network
        self.nodes: dict[int, Teller] = {}
        self._nursery = nursery

    async def start(
        self, node_id: int, knows: Mapping[int, str] | None = None, *, boot_no: int = 1, cluster_id: bytes = BLUE, dials_only: bool = False
    ) -> Teller:
        """Start a node, or start it again; it knows nodes 1 to 9 unless told otherwise."""
        hello = hello_of(node_id, boot_no=boot_no, cluster_id=cluster_id)
        node = Teller(self.network.host(name_of(node_id)), hello, None if dials_only else "0.0.0.0", seed=self.seed)
        self.nodes[node_id] = node
        node.connector.set_peers(everybody() if knows is None else knows)
        await self._nursery.start(node.run)
        return node

    async def form(self, *node_ids: int, cluster_id: bytes = BLUE) -> list[Teller]:
        """Start these nodes, who know each other and nobody else, and wait until all are linked."""
        await self.form_apart(*node_ids, cluster_id=cluster_id)
        await self.wait_linked()
        return [self.nodes[node_id] for node_id in node_ids]

    async def form_apart(self, *node_ids: int, cluster_id: bytes = BLUE) -> None:
        """The same without waiting."""
        for node_id in node_ids:
            await self.start(node_id, {other: f"{name_of(other)}:{PORT}" for other in node_ids}, cluster_id=cluster_id)

    async def kill(self, node_id: int, *, silent: bool = False) -> None:
        """SIGKILL, or with `silent` the power goes."""
        self.network.crash(name_of(node_id), silent=silent)
        node = self.nodes.pop(node_id)
        node.scope.cancel()
        await node.gone.wait()

    @property
    def linked(self) -> bool:
        """Every node has a link to every other one."""
        return all(node.up == [other for other in sorted(self.nodes) if other != node_id] for node_id, node in self.nodes.items())

    async def wait_linked(self, seconds: float = 30) -> float:
        """Wait for that; how long it took."""
        begun = trio.current_time()
        with trio.fail_after(seconds):
            while not self.linked:
                await trio.sleep(0.01)
        return trio.current_time() - begun

    def check_one_link_each(self) -> None:
        """Each pair has exactly one connection, and both ends mean the same one."""
        names = [name_of(node_id) for node_id in self.nodes]
        pairs = sorted((one, other) for one in self.nodes for other in self.nodes if one < other)
        ends: dict[object, list[int]] = {}
        for node_id in self.nodes:
            for end in self.network.host(name_of(node_id)).ends:
                if end.outgoing.link.target in names:  # not a dial to a machine on which nothing runs
                    ends.setdefault(end.outgoing.number, []).append(node_id)
        assert sorted(tuple(sorted(both)) for both in ends.values()) == pairs


def everybody() -> dict[int, str]:
    return {node_id: f"{name_of(node_id)}:{PORT}" for node_id in range(1, 10)}


@asynccontextmanager
async def open_town(seed: object, **options: float) -> AsyncIterator[Town]:
    """A network with machines `node1` to `node9`, on which nothing runs yet; leaving it ends everything."""
    network = SimNetwork(seed, delay_seconds_max=options.get("delay_seconds_max", 0.002))
    for node_id in range(1, 10):
        network.host(name_of(node_id))
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield Town(seed, network, nursery)
        nursery.cancel_scope.cancel()


class Stranger:
    """Somebody who speaks to the port of nodes by hand."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._reader = FrameReader(FRAME_BYTES_MAX_PEER, unpack_peer_frame)
        self._messages: list[Message] = []

    async def say(self, *messages: Message) -> None:
        await self.stream.send_all(b"".join(map(encode_peer, messages)))

    async def hear(self) -> Message | None:
        """The next message; None when the connection ended."""
        while not self._messages:
            try:
                data = await self.stream.receive_some(65_536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._messages += [build_peer_message(raw) for raw in self._reader.feed(bytes(data))]
        return self._messages.pop(0)
