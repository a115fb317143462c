"""Three nodes on one machine: how soon they are a cluster, how soon a dead controller is replaced, and what it costs to do nothing.

Every node is a process of its own with its own directory. Times are taken from outside, by asking each node for its status. What goes over
the links of an idle cluster is counted by a relay that stands between the nodes for that figure alone.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from govern.messages import AskStatus, NodeStatus, encode

from . import _frames
from ._load import CORES, Lane, Server, WrongAnswer
from ._report import Emit, Figure, Settings, main

IDS: Final = (1, 2, 3)
SLOTS: Final = 16384
PATIENCE_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.01
REST_SECONDS: Final = 10.0
DEATHS: Final = 20


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Three:
    """A cluster of three processes."""

    def __init__(self, directory: str, dial_ports: Sequence[int], listen_ports: Sequence[int]) -> None:
        self._directory = directory
        self._peers = ",".join(f"{node_id}=127.0.0.1:{port}" for node_id, port in zip(IDS, dial_ports, strict=True))
        self._listen = dict(zip(IDS, listen_ports, strict=True))
        self.servers: dict[int, Server] = {}
        self._lanes: dict[int, Lane] = {}

    def start(self, *node_ids: int) -> None:
        """Start nodes at the same moment, and wait until clients can connect to each."""
        began = time.perf_counter()
        processes = {node_id: self._spawn(node_id) for node_id in node_ids}
        for node_id, process in processes.items():
            assert process.stdout is not None
            ready = _read_ready(process.stdout.readline())
            self.servers[node_id] = Server(process, *ready, time.perf_counter() - began)
            self._lanes[node_id] = Lane(self.servers[node_id])
            self._lanes[node_id].ask(_frames.hello(session=False))

    def _spawn(self, node_id: int) -> subprocess.Popen[bytes]:
        keys = (
            f"node_id={node_id}",
            "listen=127.0.0.1:0",
            f"peer_listen=127.0.0.1:{self._listen[node_id]}",
            f"peers={self._peers}",
            f"data_dir={os.path.join(self._directory, str(node_id))}",
        )

        def unpin() -> None:
            if CORES:
                os.sched_setaffinity(0, CORES)

        command = [sys.executable, "-m", "benchmarks._node", *keys]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=unpin)

    def status(self, node_id: int) -> dict[str, Any]:
        """What a node says of itself."""
        (answer,) = _frames.messages(self._lanes[node_id].ask(encode(AskStatus(), 2)))
        if not isinstance(answer, NodeStatus):
            raise WrongAnswer(f"no status: {answer!r}")
        return answer.status

    def wait(self, is_so: Any, what: str) -> None:
        """Wait until all living nodes say what is wanted."""
        end_at = time.perf_counter() + PATIENCE_SECONDS
        while not is_so({node_id: self.status(node_id) for node_id in self.servers}):
            if time.perf_counter() > end_at:
                raise WrongAnswer(f"no {what} within {PATIENCE_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)

    def kill(self, node_id: int) -> None:
        """kill -9."""
        server, lane = self.servers.pop(node_id), self._lanes.pop(node_id)
        lane.socket.close()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for pipe in (server.process.stdin, server.process.stdout):
            assert pipe is not None
            pipe.close()

    def close(self) -> None:
        """Kill all."""
        for node_id in list(self.servers):
            self.kill(node_id)


def _read_ready(line: bytes) -> tuple[str, int]:
    if not line:
        raise WrongAnswer("a node did not start")
    ready = json.loads(line)
    return ready["host"], ready["port"]


@contextmanager
def three(dial_ports: Sequence[int], listen_ports: Sequence[int]) -> Iterator[Three]:
    """A cluster on an empty directory, nothing started."""
    with tempfile.TemporaryDirectory(prefix="govern-bench-", dir=os.environ.get("BENCHMARK_DIR")) as path:
        cluster = Three(path, dial_ports, listen_ports)
        try:
            yield cluster
        finally:
            cluster.close()


def _has_all_slots(states: dict[int, dict[str, Any]]) -> bool:
    return sum(state["slots"] for state in states.values()) == SLOTS and all(state["fresh"] for state in states.values())


def _controller(states: dict[int, dict[str, Any]]) -> int | None:
    """Whom all name, itself among them."""
    named = list(dict.fromkeys(state["controller"] for state in states.values()))
    found = named[0]
    return found if len(named) == 1 and found in states and states[found]["role"] == "controller" else None


# --- bytes on links -----------------------------------------------------------------------------------------------------------


class Relay:
    """Carries bytes between the nodes, and counts them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in IDS]
        self.ports = [listener.getsockname()[1] for listener in self._listeners]
        self._selector = selectors.DefaultSelector()
        self._ends = False

    def run(self, targets: Sequence[int]) -> None:
        """Carry until `stop`."""
        for listener, target in zip(self._listeners, targets, strict=True):
            self._selector.register(listener, selectors.EVENT_READ, target)
        while not self._ends:
            for key, _ in self._selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                if isinstance(key.data, int):
                    self._accept(key.fileobj, key.data)
                else:
                    self._carry(key.fileobj, key.data)

    def _accept(self, listener: socket.socket, target: int) -> None:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", target))
        except OSError:  # that node has not started yet
            near.close()
            return
        self._selector.register(near, selectors.EVENT_READ, far)
        self._selector.register(far, selectors.EVENT_READ, near)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(65536)
            sink.sendall(data)
        except OSError:
            data = b""
        self.bytes += len(data)
        if not data:
            for each in (source, sink):
                if each.fileno() >= 0:
                    self._selector.unregister(each)
                    each.close()

    def stop(self) -> None:
        """Let `run` return."""
        self._ends = True


def measure_rest(seconds: float) -> tuple[float, dict[str, float]]:
    """Bytes a second on one link of an idle cluster, both ways together, and the share of a core of the controller and of another node."""
    relay, listen_ports = Relay(), _free_ports(3)
    thread = threading.Thread(target=relay.run, args=(listen_ports,), daemon=True)
    thread.start()
    with three(relay.ports, listen_ports) as cluster:
        cluster.start(*IDS)
        cluster.wait(lambda states: _has_all_slots(states) and _controller(states) is not None, "cluster")
        office = _controller({node_id: cluster.status(node_id) for node_id in IDS})
        time.sleep(1.0)
        before, began = {node_id: server.cpu_seconds() for node_id, server in cluster.servers.items()}, time.perf_counter()
        carried = relay.bytes
        time.sleep(seconds)
        took = time.perf_counter() - began
        carried = relay.bytes - carried
        shares = {node_id: (server.cpu_seconds() - before[node_id]) / took for node_id, server in cluster.servers.items()}
    relay.stop()
    thread.join()
    others = [share for node_id, share in shares.items() if node_id != office]
    return carried / took / len(IDS), {"controller": shares[office or 1], "node": sum(others) / len(others)}


# --- figures ------------------------------------------------------------------------------------------------------------------


def cold_start() -> tuple[float, float]:
    """Seconds from the start of three processes to all slots at work, and how many of them the slowest took to be ready for clients."""
    ports = _free_ports(3)
    with three(ports, ports) as cluster:
        began = time.perf_counter()
        cluster.start(*IDS)
        ready = time.perf_counter() - began
        cluster.wait(_has_all_slots, "cluster")
        return time.perf_counter() - began, ready


def deaths(count: int) -> list[float]:
    """Seconds from the death of a controller until the others agree on a new one, so many times."""
    found = []
    ports = _free_ports(3)
    with three(ports, ports) as cluster:
        cluster.start(*IDS)
        for _ in range(count):
            cluster.wait(lambda states: _has_all_slots(states) and _controller(states) is not None, "cluster")
            office = _controller({node_id: cluster.status(node_id) for node_id in IDS})
            assert office is not None
            began = time.perf_counter()
            cluster.kill(office)
            cluster.wait(lambda states: _controller(states) is not None, "new controller")
            found.append(time.perf_counter() - began)
            cluster.start(office)
    return found


def measure(settings: Settings, emit: Emit) -> None:
    load = {"load": os.getloadavg()[0]}
    starts = [cold_start() for _ in range(settings.runs)]
    conditions = {**load, "ready": sorted(ready for _, ready in starts)[len(starts) // 2]}
    emit(
        Figure(benchmark="cluster", figure="cold_start_3_nodes", unit="s", values=[seconds for seconds, _ in starts], conditions=conditions)
    )
    seconds = deaths(3 if settings.quick else DEATHS)
    emit(Figure(benchmark="cluster", figure="new_controller_after_kill", unit="s", values=seconds, conditions=load))
    rests = [measure_rest(2.0 if settings.quick else REST_SECONDS) for _ in range(settings.runs)]
    emit(Figure(benchmark="cluster", figure="idle_link", unit="B/s", values=[rate for rate, _ in rests], conditions=load))
    for who in ("controller", "node"):
        shares = [100 * share[who] for _, share in rests]
        emit(Figure(benchmark="cluster", figure=f"idle_cpu_{who}", unit="% of core", values=shares, conditions=load))


if __name__ == "__main__":
    main(measure)
