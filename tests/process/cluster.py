"""Clusters of real processes: nodes from configuration files, an eye on all of them, and a network between them that can be cut.

`Cluster` writes a TOML file for each node and starts and kills nodes by their number. `Watch` asks every node for its status, over and
over, and keeps what each said last and who was seen as controller in which term. `Network` is a TCP proxy before the port for links of
each node; the system tells it which process dials, so any way from one node to another can be cut and mended.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from govern.core.slots import slot_of
from govern.core.table import Table
from govern.messages import AskStatus, NodeStatus, encode
from govern.model import ServiceKey

from .harness import NodeProgram, Programs, Raw, free_ports, hello, raw_connection, wait_until

LOOK_SECONDS: Final = 0.1
ANSWER_SECONDS: Final = 3.0
LONG_SECONDS: Final = 90.0
"""Bounds of the ordinary tests: they say that something happens at all, on a machine that does ten other things."""
TOLD: Final = ("role", "controller", "term", "fresh", "links", "degraded")
NAMES_MAX: Final = 100_000


class Cluster:
    """The processes of one cluster, by node id, each with a file `nodeN.toml` and a directory `nodeN`."""

    def __init__(self, programs: Programs, count: int = 3, *, links: Mapping[int, int] | None = None) -> None:
        """`links` are the ports under which the nodes find each other, when those are not the ones on which they listen."""
        self.programs = programs
        ports = free_ports(2 * count)
        self.ids = tuple(range(1, count + 1))
        self.clients = {node_id: f"127.0.0.1:{port}" for node_id, port in zip(self.ids, ports, strict=False)}
        self.link_ports = dict(zip(self.ids, ports[count:], strict=True))
        self.peers = {node_id: f"127.0.0.1:{(links or self.link_ports)[node_id]}" for node_id in self.ids}
        self.nodes: dict[int, NodeProgram] = {}

    def port(self, node_id: int) -> int:
        """Where clients reach a node."""
        return int(self.clients[node_id].rpartition(":")[2])

    def _write_file(self, node_id: int, peers: Iterable[int], is_alone: bool) -> str:
        """The configuration file of a node; its name. A node that is alone opens no port for links."""
        lines = [f"node_id = {node_id}", f'listen = "{self.clients[node_id]}"', f'data_dir = "node{node_id}"']
        lines += [] if is_alone else [f'peer_listen = "127.0.0.1:{self.link_ports[node_id]}"']
        lines += ["[peers]", *(f'{other} = "{self.peers[other]}"' for other in peers)]
        name = f"node{node_id}.toml"
        (self.programs.directory / name).write_text("\n".join(lines) + "\n")
        return name

    def launch(self, node_id: int, *, peers: Iterable[int] | None = None, is_alone: bool = False) -> NodeProgram:
        """Start a node, and wait for nothing."""
        name = self._write_file(node_id, self.ids if peers is None else peers, is_alone)
        node = self.programs.start("govern", "--config", name, kind=NodeProgram)
        assert isinstance(node, NodeProgram)
        node.address, node.port = self.clients[node_id], self.port(node_id)
        self.nodes[node_id] = node
        return node

    async def start(self, *node_ids: int, peers: Iterable[int] | None = None) -> None:
        """Start nodes and wait for their ready lines."""
        for node in [self.launch(node_id, peers=peers) for node_id in node_ids]:
            await node.wait_out("\n", LONG_SECONDS)

    async def kill(self, *node_ids: int) -> None:
        """kill -9, all at once."""
        killed = [self.nodes.pop(node_id) for node_id in node_ids]
        for node in killed:
            node.process.kill()
        for node in killed:
            await node.wait_exit()

    def where(self, *node_ids: int) -> str:
        """For `connect`: these nodes, or all."""
        return ",".join(self.clients[node_id] for node_id in node_ids or self.ids)

    async def ask(self, *words: str, through: int, code: int = 0) -> str:
        """What a verb says: on stdout, or, when there is nothing, the one line on stderr."""
        found, out, err = await self.programs.run(*words, connect=self.clients[through])
        assert found == code, (words, found, out, err)
        assert len(err.splitlines()) <= 1, err
        return out or err


class Watch:
    """An eye on the nodes of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.states: dict[int, Mapping[str, Any]] = {}
        """What each node said last; nothing of those that do not answer."""
        self.reigns: dict[tuple[str, int], dict[int, None]] = {}
        """Who was seen as controller, by cluster and term."""
        self._told: dict[int, list[tuple[float, dict[str, Any]]]] = {}  # of each node: what it said, from when on
        self._answered: dict[int, float] = {}  # when each node answered last
        self._pauses: list[tuple[float, int, float]] = []  # when which node had been silent for how long, beyond the time between two looks

    async def run(self) -> None:
        """Look until cancelled."""
        async with trio.open_nursery() as nursery:
            for node_id in self._cluster.ids:
                nursery.start_soon(self._follow, node_id)

    async def _follow(self, node_id: int) -> None:
        while True:
            try:
                async with raw_connection(self._cluster.port(node_id)) as raw:
                    await self._look(node_id, raw)
            except (OSError, AssertionError, trio.BrokenResourceError):
                pass  # it is down
            self.states.pop(node_id, None)
            await trio.sleep(LOOK_SECONDS)

    async def _look(self, node_id: int, raw: Raw) -> None:
        with trio.move_on_after(ANSWER_SECONDS) as scope:
            await raw.send(hello())
            await raw.read_message()
            while await raw.send(encode(AskStatus(), 2)):
                answer = await raw.read_message()
                assert isinstance(answer, NodeStatus), answer
                self._note(node_id, answer.status)
                await trio.sleep(LOOK_SECONDS)
                scope.deadline = trio.current_time() + ANSWER_SECONDS

    def _note(self, node_id: int, state: Mapping[str, Any]) -> None:
        now = trio.current_time()
        self._pauses.append((now, node_id, now - self._answered.get(node_id, now) - LOOK_SECONDS))
        self._answered[node_id] = now
        self.states[node_id] = state
        told, known = {name: state[name] for name in TOLD}, self._told.setdefault(node_id, [])
        if not known or known[-1][1] != told:
            known.append((now, told))
        if state["role"] == "controller":
            self.reigns.setdefault((state["cluster_id"], state["term"]), {})[node_id] = None

    def says(self, node_id: int, field: str) -> Any:
        """A field of what a node said last; an empty text when it says nothing."""
        return self.states.get(node_id, {}).get(field, "")

    def told(self, since: float, node_id: int, field: str) -> list[Any]:
        """All that a node has said in a field of `TOLD` since then, in order and without repetitions; first what it had said before."""
        known = self._told.get(node_id, [])
        values = [told[field] for at, told in known if at <= since][-1:] + [told[field] for at, told in known if at > since]
        return [value for number, value in enumerate(values) if not number or values[number - 1] != value]

    def stories(self, since: float) -> dict[int, list[tuple[float, dict[str, Any]]]]:
        """What each node has said since then, for whoever has to find out what happened."""
        return {node_id: [(round(at - since, 2), told) for at, told in known if at > since] for node_id, known in self._told.items()}

    def stood_still(self, since: float, *among: int) -> float:
        """The longest time since then for which a node did not answer, summed over these nodes or all, in seconds. Whatever stood still is
        in it, be it the node, this process or the machine."""
        now = trio.current_time()
        longest = {node_id: max(0.0, now - self._answered.get(node_id, 0.0) - LOOK_SECONDS) for node_id in among or self._cluster.ids}
        for at, node_id, seconds in self._pauses:
            if at > since and node_id in longest:
                longest[node_id] = max(longest[node_id], seconds)
        return sum(longest.values())

    def controller(self, *among: int) -> int | None:
        """The controller that all of these nodes agree on, itself among them; None while they do not."""
        named = {self.states[node_id]["controller"] if node_id in self.states else None for node_id in among or self._cluster.ids}
        if len(named) != 1:
            return None
        (found,) = named
        is_in_office = found in self.states and self.states[found]["role"] == "controller"
        return found if is_in_office else None

    async def wait_controller(self, *among: int, seconds: float = LONG_SECONDS) -> int:
        """Wait until these nodes agree on a controller that is one of them."""
        await wait_until(
            lambda: self.controller(*among) in (among or self._cluster.ids), f"a controller of {among}: {self.states}", seconds
        )
        found = self.controller(*among)
        assert found is not None
        return found

    async def wait_well(self, *among: int, seconds: float = LONG_SECONDS) -> None:
        """Wait until these nodes have a controller, all slots and nothing to complain about."""
        ids = among or self._cluster.ids

        def are_well() -> bool:
            known = [self.states.get(node_id) for node_id in ids]
            return self.controller(*ids) is not None and all(each is not None and each["fresh"] and not each["degraded"] for each in known)

        await self._wait(are_well, "all to be well", seconds)

    async def _wait(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while not condition():
                await trio.sleep(LOOK_SECONDS)
        told = {node_id: {name: state[name] for name in TOLD} for node_id, state in self.states.items()}
        assert condition(), f"waited {seconds:g} s in vain for {what}: {told}"

    def term(self) -> int:
        """The newest term that anybody has."""
        return max((state["term"] for state in self.states.values()), default=0)

    def check_reigns(self) -> None:
        """At most one controller per term."""
        assert all(len(reigns) == 1 for reigns in self.reigns.values()), self.reigns


@asynccontextmanager
async def watching(cluster: Cluster) -> AsyncIterator[Watch]:
    """A `Watch` for as long as the block lasts; at its end no term may have had two controllers."""
    watch = Watch(cluster)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield watch
        nursery.cancel_scope.cancel()
    watch.check_reigns()


def names_on(table: Table, node_id: int, count: int, prefix: str = "shop") -> list[str]:
    """Names of services for which a node answers."""
    found = []
    for number in range(NAMES_MAX):
        owner = table.owner(slot_of(ServiceKey("default", f"{prefix}{number}")))
        if owner is not None and owner.node_id == node_id:
            found.append(f"{prefix}{number}")
            if len(found) == count:
                break
    return found


# --- the network --------------------------------------------------------------------------------------------------------------------


class Network:
    """What stands between the nodes. A way that is cut carries nothing, and delivers what was sent when it is mended, as TCP does."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = tuple(ids)
        self.ports = dict(zip(self.ids, free_ports(len(self.ids)), strict=True))
        self._listeners: dict[int, list[trio.SocketListener]] = {}
        self._cut: dict[tuple[int, int], None] = {}
        self._changed = trio.Event()

    async def open(self) -> None:
        """Take the ports, so that nobody else is given them."""
        for node_id, port in self.ports.items():
            self._listeners[node_id] = await trio.open_tcp_listeners(port, host="127.0.0.1")

    async def run(self, cluster: Cluster) -> None:
        """Carry, between these nodes, until cancelled."""
        async with trio.open_nursery() as nursery:
            for node_id, listeners in self._listeners.items():
                nursery.start_soon(trio.serve_listeners, partial(self._carry, cluster, node_id), listeners)

    def cut(self, *ways: tuple[int, int]) -> None:
        """Nothing goes from the first of each pair to the second any more."""
        self._cut.update(dict.fromkeys(ways))

    def mend(self, *ways: tuple[int, int]) -> None:
        """It goes again; without any way named, everywhere."""
        self._cut = {way: None for way in self._cut if ways and way not in ways}
        self._changed.set()
        self._changed = trio.Event()

    def isolate(self, node_id: int) -> None:
        """Cut a node off from all others, both ways."""
        self.cut(
            *((node_id, other) for other in self.ids if other != node_id), *((other, node_id) for other in self.ids if other != node_id)
        )

    async def _carry(self, cluster: Cluster, node_id: int, near: trio.SocketStream) -> None:
        try:
            dialler = _dialler(cluster, near.socket.getpeername()[1])
            await self._wait_open((dialler, node_id))
            await self._wait_open((node_id, dialler))  # no connection comes about while one way is cut
            async with await trio.open_tcp_stream("127.0.0.1", cluster.link_ports[node_id]) as far:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, (dialler, node_id))
                    nursery.start_soon(self._pump, far, near, (node_id, dialler))
        except* (OSError, LookupError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one of the two sides is gone, and now so is the other
        finally:
            await trio.aclose_forcefully(near)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, way: tuple[int, int]) -> None:
        while data := await source.receive_some(65536):
            await self._wait_open(way)
            await sink.send_all(data)
        await self._wait_open(way)
        raise trio.ClosedResourceError

    async def _wait_open(self, way: tuple[int, int]) -> None:
        while way in self._cut:
            await self._changed.wait()


def _dialler(cluster: Cluster, port: int) -> int:
    """The node whose process has this local port. Raises `LookupError` when it has closed it already."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port:
            name = f"socket:[{words[9]}]"
            for node_id, node in cluster.nodes.items():
                if name in _open_files(node.process.pid):
                    return node_id
    raise LookupError(port)


def _open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed in between
            found.append(str(link.readlink()))
    return found
