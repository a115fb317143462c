"""Fan-out: how long until the last of many subscribers knows of a change, and how many bytes each of them gets for it.

One client registers a new instance, durably; the clock stops when the last subscriber has its delta. Between two changes there is a
pause longer than the 20 ms within which a node merges changes for one connection.
"""

from __future__ import annotations

import os
import select
import tempfile
import time

from govern.messages import Delta, Registered, View

from . import _frames
from ._load import Lane, Server, WrongAnswer, bare, node, undisturbed
from ._report import Emit, Figure, Settings, main, quietest

SUBSCRIBERS = (1, 100, 1000)
PAUSE_SECONDS = 0.03
METADATA_BYTES = 140
SIZES = ((10, 0), (10, 60), (10, 200), (1000, 0), (1000, 60), (1000, 200))
"""Instances of the service, and bytes of metadata of each."""


class Subscribers:
    """Many connections that wait for one frame each."""

    def __init__(self, server: Server, count: int, greetings: list[bytes]) -> None:
        self.lanes: list[Lane] = []
        self.poller = select.epoll()
        self._by_descriptor: dict[int, Lane] = {}
        for _ in range(count):  # one after the other: a node serves only so many strangers of one host at a time
            lane = Lane(server)
            self.lanes.append(lane)
            self._by_descriptor[lane.socket.fileno()] = lane
            for greeting in greetings:
                lane.socket.sendall(greeting)
                data = lane.read_frame()
                while greeting is greetings[-1] and isinstance(view := _frames.messages(data)[0], View) and view.more:
                    data = lane.read_frame()
            self.poller.register(lane.socket, select.EPOLLIN)

    def wait(self, size: int | None) -> tuple[float, int]:
        """The moment in which the last has one whole frame (or so many bytes), and the bytes that all got together."""
        parts: dict[int, bytes] = {}
        whole, total = 0, 0
        while whole < len(self.lanes):
            events = self.poller.poll(10.0)
            if not events:
                raise WrongAnswer(f"only {whole} of {len(self.lanes)} subscribers were told")
            for descriptor, _ in events:
                data = self._by_descriptor[descriptor].socket.recv(1 << 16)
                total += len(data)
                data = parts.pop(descriptor, b"") + data
                if len(data) == size if size else _frames.whole_frames(data) == len(data):
                    whole += 1
                    last = data
                else:
                    parts[descriptor] = data
        moment = time.perf_counter()
        if size is None and not isinstance(_frames.messages(last)[0], Delta):
            raise WrongAnswer(f"expected one delta, got {last[:200]!r}")
        return moment, total

    def close(self) -> None:
        self.poller.close()
        for lane in self.lanes:
            lane.socket.close()


def _round(writer: Lane, frame: bytes, subscribers: Subscribers, size: int | None) -> tuple[float, int]:
    began = time.perf_counter()
    writer.socket.sendall(frame)
    moment, total = subscribers.wait(size)
    if size is None:
        (answer,) = _frames.messages(writer.read_frame())
        if not isinstance(answer, Registered):
            raise WrongAnswer(repr(answer))
    else:
        writer.socket.recv(4096)
    time.sleep(PAUSE_SECONDS)
    return moment - began, total


def _writer(server: Server, instances: int, metadata_bytes: int) -> Lane:
    lane = Lane(server)
    lane.ask(_frames.hello(session=True))
    for number in range(instances):
        lane.ask(_frames.register(2 + number, _frames.service(1), _frames.instance(f"i-{number:08d}", metadata_bytes)))
    return lane


def latencies(settings: Settings, count: int, path: str) -> tuple[list[float], int, float]:
    """Sorted seconds of every change, the bytes of one delta, and the node's processor seconds for each change."""
    greetings = [_frames.hello(session=False), _frames.subscribe(_frames.service(1))]
    with node(data_dir=path) as server:
        writer = _writer(server, 10, METADATA_BYTES)
        subscribers = Subscribers(server, count, greetings)
        taken, total, rounds = [], 0, 20 if settings.quick else 100
        cpu = server.cpu_seconds()
        for number in range(rounds):
            frame = _frames.register(100 + number, _frames.service(1), _frames.instance(f"n-{number:08d}", METADATA_BYTES))
            seconds, size = _round(writer, frame, subscribers, None)
            taken.append(seconds)
            total += size
        cpu = server.cpu_seconds() - cpu
        subscribers.close()
        writer.socket.close()
    return sorted(taken), total // rounds // count, cpu / rounds


def bare_latencies(settings: Settings, count: int, delta_bytes: int) -> list[float]:
    """The same at the baseline: as many bytes to as many connections, without a log."""
    with bare("spread", 239, delta_bytes) as server:
        subscribers = Subscribers(server, count, [])
        writer = Lane(server)
        taken = [_round(writer, bytes(239), subscribers, delta_bytes)[0] for _ in range(20 if settings.quick else 100)]
        subscribers.close()
        writer.socket.close()
    return sorted(taken)


def bytes_per_change(instances: int, metadata_bytes: int) -> int:
    """Bytes that one subscriber gets for one change of a service."""
    with node() as server:
        writer = _writer(server, instances, metadata_bytes)
        subscribers = Subscribers(server, 1, [_frames.hello(session=False), _frames.subscribe(_frames.service(1))])
        frame = _frames.register(100_000, _frames.service(1), _frames.instance("i-00000005", metadata_bytes))
        total = _round(writer, frame, subscribers, None)[1]
        subscribers.close()
        writer.socket.close()
    return total


def measure(settings: Settings, emit: Emit) -> None:
    for count in SUBSCRIBERS:

        def attempt(count: int = count) -> tuple[tuple[list[float], list[float], int, float, float], float]:
            with undisturbed() as others:
                with tempfile.TemporaryDirectory(prefix="govern-bench-", dir=os.environ.get("BENCHMARK_DIR")) as path:
                    times, size, cpu = latencies(settings, count, os.path.join(path, "node"))
                bare_times = bare_latencies(settings, count, size)
            return (times, bare_times, size, cpu, others["other_cpu"]), others["other_cpu"]

        found = [quietest(settings, attempt) for _ in range(settings.runs)]
        runs, bares = [run[0] for run in found], [run[1] for run in found]
        _, _, size, cpu, disturbed = found[len(found) // 2]
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            values = [times[int(len(times) * share)] * 1e3 for times in runs]
            base = sorted(times[int(len(times) * share)] * 1e3 for times in bares)[len(bares) // 2]
            conditions = {
                "subscribers": count,
                "changes": len(runs[0]),
                "delta_bytes": size,
                "server_cpu_ms_per_change": cpu * 1e3,
                "baseline_ms": base,
                "other_cpu": disturbed,
                "ratio": sorted(values)[len(values) // 2] / base,
            }
            emit(Figure(benchmark="fanout", figure=f"last_of_{count}_subscribers_{name}", unit="ms", values=values, conditions=conditions))
    for instances, metadata_bytes in SIZES:
        value = bytes_per_change(instances, metadata_bytes)
        name = f"bytes_per_change_{instances}_instances_{metadata_bytes}_metadata"
        conditions = {"instances": instances, "metadata_bytes": metadata_bytes}
        emit(Figure(benchmark="fanout", figure=name, unit="B", values=[value], conditions=conditions))


if __name__ == "__main__":
    main(measure)
