"""The load: many sockets in one plain epoll loop, and the processor time that both sides spend.

A lane is one connection with its own frames. In a closed loop a lane has a fixed number of requests under way and sends one more for
each answer; in a paced one all lanes together send at a fixed rate.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs

from ._frames import whole_frames

CORES: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_REGISTERED_TYPE: Final = 7
_QUIET_SECONDS: Final = 0.3


class WrongAnswer(Exception):
    """A server answered something else than it should have; there is no figure."""


# --- processes --------------------------------------------------------------------------------------------------------------


def pin_generator() -> None:
    """Put this process on the last core; the servers get the first."""
    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[-1]})


@attrs.frozen
class Server:
    """A process under load."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    start_seconds: float
    """From the start of the process to its ready line."""

    def cpu_seconds(self) -> float:
        """Processor time so far, all threads."""
        try:
            with open(f"/proc/{self.process.pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_bytes(self) -> int:
        """Memory that is really there now."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def started(module: str, *arguments: str) -> Iterator[Server]:
    """A server on the first core, from its ready line until the block is left. It gets a second to stop and is killed then."""

    def pin() -> None:
        if CORES:
            os.sched_setaffinity(0, {CORES[0]})

    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=pin)
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        ready = process.stdout.readline()
        seconds = time.perf_counter() - began
        if not ready:
            raise WrongAnswer(f"{module} did not start")
        line = json.loads(ready)
        yield Server(process, line["host"], line["port"], seconds)
        process.stdin.close()
        process.wait(10)
    finally:
        process.kill()
        process.wait()


@contextmanager
def node(**keys: object) -> Iterator[Server]:
    """A node with these configuration keys, on a free port."""
    with started("benchmarks._node", "listen=127.0.0.1:0", *(f"{name}={value}" for name, value in keys.items())) as server:
        yield server


@contextmanager
def bare(*arguments: object) -> Iterator[Server]:
    """A baseline."""
    with started("benchmarks._bare", *map(str, arguments)) as server:
        yield server


def _machine_busy_seconds() -> float:
    with open("/proc/stat") as file:
        values = [int(text) for text in file.readline().split()[1:9]]
    return (sum(values) - values[3] - values[4]) / _TICKS


def wait_until_quiet(seconds_max: float) -> None:
    """Wait until the whole machine did next to nothing for a third of a second, but not for ever."""
    end_at = time.perf_counter() + seconds_max
    while time.perf_counter() < end_at:
        busy = _machine_busy_seconds()
        time.sleep(_QUIET_SECONDS)
        if _machine_busy_seconds() - busy < _QUIET_SECONDS / 10:
            return


@contextmanager
def undisturbed() -> Iterator[dict[str, Any]]:
    """Fills the dictionary, when the block is left, with the share of a core that programs without part in the figure had meanwhile.
    All servers must have been started and ended inside."""
    found: dict[str, Any] = {}
    wall, busy, own = time.perf_counter(), _machine_busy_seconds(), sum(os.times()[:4])
    yield found
    seconds = time.perf_counter() - wall
    found["other_cpu"] = max(0.0, _machine_busy_seconds() - busy - (sum(os.times()[:4]) - own)) / seconds


# --- lanes ------------------------------------------------------------------------------------------------------------------


class Lane:
    """One connection whose requests are all the same frame and whose answers are all the same bytes."""

    def __init__(self, server: Server, frame: bytes = b"", answer: bytes = b"") -> None:
        self.socket = socket.create_connection((server.host, server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.frame = frame
        self.answer = answer
        self.under_way = 0
        self.sent_at = 0.0
        self._part = b""

    def ask(self, frame: bytes) -> bytes:
        """Send one frame and wait for one; only while no load is running."""
        self.socket.sendall(frame)
        return self.read_frame()

    def read_frame(self) -> bytes:
        """Wait for one frame."""
        data = self._part
        while not whole_frames(data):
            piece = self.socket.recv(1 << 18)
            if not piece:
                raise WrongAnswer("the server closed the connection")
            data += piece
        size = 4 + int.from_bytes(data[:4], "big")
        self._part = data[size:]
        return data[:size]

    def next_frames(self, count: int) -> bytes:
        """What to send for that many more requests; fewer when there are no more."""
        self.under_way += count
        return self.frame if count == 1 else self.frame * count

    def take(self, data: bytes) -> int:
        """How many answers have come; raises `WrongAnswer`."""
        if data == self.answer and not self._part:
            return 1
        data = self._part + data
        count, rest = divmod(len(data), len(self.answer))
        if data[: len(data) - rest] != self.answer * count or not self.answer.startswith(data[len(data) - rest :]):
            raise WrongAnswer(f"expected {self.answer[:40]!r}, got {data[:200]!r}")
        self._part = data[len(data) - rest :]
        return count


class ListLane(Lane):
    """A connection with frames that are all different, each sent once; every answer must be a `Registered`."""

    def __init__(self, server: Server, frames: Sequence[bytes] = ()) -> None:
        super().__init__(server)
        self.frames = frames
        self.place = 0

    def next_frames(self, count: int) -> bytes:
        chosen = self.frames[self.place : self.place + count]
        self.place += len(chosen)
        self.under_way += len(chosen)
        return chosen[0] if len(chosen) == 1 else b"".join(chosen)

    def take(self, data: bytes) -> int:
        data = self._part + data if self._part else data
        position, count, end = 0, 0, len(data)
        while end - position >= 4:
            length = int.from_bytes(data[position : position + 4], "big")
            if position + 4 + length > end:
                break
            if data[position + 5] != _REGISTERED_TYPE:
                raise WrongAnswer(f"expected Registered, got {data[position : position + 200]!r}")
            count += 1
            position += 4 + length
        self._part = data[position:]
        return count


# --- loops ------------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Sample:
    """What one run came to."""

    operations: int
    seconds: float
    server_cpu_seconds: float
    generator_cpu_seconds: float
    other_cpu_seconds: float
    latencies: Sequence[float]

    @property
    def rate(self) -> float:
        return self.operations / self.seconds

    @property
    def other_cpu(self) -> float:
        """The share of a core that programs without part in the figure had."""
        return max(0.0, self.other_cpu_seconds) / self.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.operations / max(self.server_cpu_seconds, 1e-9)

    def conditions(self) -> dict[str, Any]:
        """The shares of a core that node, generator and other programs had, and the time to the answer."""
        ordered = sorted(self.latencies)
        found = {
            "server_cpu": round(self.server_cpu_seconds / self.seconds, 3),
            "generator_cpu": round(self.generator_cpu_seconds / self.seconds, 3),
            "other_cpu": round(self.other_cpu, 3),
        }
        if ordered:
            found["p50_us"] = round(ordered[len(ordered) // 2] * 1e6, 1)
            found["p99_us"] = round(ordered[len(ordered) * 99 // 100] * 1e6, 1)
        return found


class _Meter:
    """Reads all clocks at once, at the start and at the end of what is measured."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._start = self._read()

    def _read(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), self._server.cpu_seconds(), time.process_time(), _machine_busy_seconds()

    def sample(self, operations: int, latencies: Sequence[float]) -> Sample:
        wall, server, own, all_ = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return Sample(
            operations=operations,
            seconds=wall,
            server_cpu_seconds=server,
            generator_cpu_seconds=own,
            other_cpu_seconds=all_ - server - own,
            latencies=latencies,
        )


def closed_loop(server: Server, lanes: Sequence[Lane], *, depth: int, seconds: float) -> Sample:
    """Keep `depth` requests of every lane under way for some seconds, a fifth of them to warm up; then wait for the last answers."""
    poller = select.epoll()
    by_descriptor = {lane.socket.fileno(): lane for lane in lanes}
    for descriptor in by_descriptor:
        poller.register(descriptor, select.EPOLLIN)
    clock = time.perf_counter
    latencies: list[float] = []
    for lane in lanes:
        lane.sent_at = clock()
        lane.socket.sendall(lane.next_frames(depth))
    meter, done, sample, running = None, 0, None, len(lanes)
    warm_until, end_at = clock() + seconds / 5, clock() + seconds * 6 / 5
    while running:
        events = poller.poll(5.0)
        if not events:
            raise WrongAnswer("the server stopped answering")
        for descriptor, _ in events:
            lane = by_descriptor[descriptor]
            count = lane.take(lane.socket.recv(1 << 17))
            if not count:
                continue
            done += count
            lane.under_way -= count
            more = lane.next_frames(count) if sample is None else b""
            if depth == 1:
                now = clock()
                latencies.append(now - lane.sent_at)
                lane.sent_at = now
            if more:
                lane.socket.sendall(more)
            elif not lane.under_way:
                running -= 1
                poller.modify(descriptor, 0)
            if not more and sample is None and meter is not None:
                sample = meter.sample(done, latencies)  # the frames are used up: what follows is the last few answers
        now = clock()
        if meter is None and now >= warm_until:
            meter, done, latencies = _Meter(server), 0, []
        elif sample is None and meter is not None and now >= end_at:
            sample = meter.sample(done, latencies)
    poller.close()
    if sample is None:
        raise WrongAnswer("the frames were used up before anything was measured")
    return sample


def paced(server: Server, lanes: Sequence[Lane], *, rate: float, seconds: float) -> Sample:
    """Send `rate` requests a second, from one lane after the other, for some seconds."""
    poller = select.epoll()
    by_descriptor = {lane.socket.fileno(): lane for lane in lanes}
    for descriptor in by_descriptor:
        poller.register(descriptor, select.EPOLLIN)
    clock = time.perf_counter
    latencies: list[float] = []
    meter, began, sent, answered = _Meter(server), clock(), 0, 0
    while answered < rate * seconds:
        due = min(int((clock() - began) * rate), int(rate * seconds))
        while sent < due:
            lane = lanes[sent % len(lanes)]
            lane.sent_at = clock()
            lane.socket.sendall(lane.next_frames(1))
            sent += 1
        for descriptor, _ in poller.poll(max(0.0, began + (sent + 1) / rate - clock()) if sent < rate * seconds else 5.0):
            lane = by_descriptor[descriptor]
            count = lane.take(lane.socket.recv(1 << 17))
            lane.under_way -= count
            answered += count
            latencies.append(clock() - lane.sent_at)
    poller.close()
    return meter.sample(answered, latencies)
