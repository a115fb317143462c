"""Memory: what a hundred thousand instances and a thousand idle connections add to a node's resident set."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import _frames
from ._load import ListLane, Server, node, started
from ._report import Emit, Figure, Settings, main
from .registrations import frames_for

INSTANCES = 100_000
SESSIONS = 100
CONNECTIONS = 1000
METADATA_BYTES = 140
_WINDOW = 500


def register_all(server: Server, lane: ListLane) -> None:
    """Send all frames of a lane, a few hundred at a time, and wait for every answer."""
    lane.ask(_frames.hello(session=True))
    while lane.place < len(lane.frames):
        lane.socket.sendall(lane.next_frames(_WINDOW))
        while lane.under_way:
            lane.under_way -= lane.take(lane.socket.recv(1 << 17))


@contextmanager
def filled(server: Server, instances: int) -> Iterator[None]:
    """That many instances in a thousand services, held by a hundred sessions, while the block lasts."""
    lanes = []
    for number in range(SESSIONS):
        lane = ListLane(server, frames_for(number, instances // SESSIONS))
        register_all(server, lane)
        lane.frames = ()
        lanes.append(lane)
    yield
    for lane in lanes:
        lane.socket.close()


def measure(settings: Settings, emit: Emit) -> None:
    instances = INSTANCES // 10 if settings.quick else INSTANCES
    entry_bytes = len(frames_for(0, 1)[0])
    for mode in ("disk", "memory"):
        growth, entries = [], []
        for _ in range(settings.runs):
            with tempfile.TemporaryDirectory(prefix="govern-bench-", dir=os.environ.get("BENCHMARK_DIR")) as path:
                with node(data_dir=os.path.join(path, "node")) if mode == "disk" else node() as server:
                    before = server.resident_bytes()
                    with filled(server, instances):
                        growth.append((server.resident_bytes() - before) / 1e6 * INSTANCES / instances)
        for _ in range(settings.runs):
            with started("benchmarks._bare", "hold", str(instances), str(entry_bytes)) as server:
                before = server.resident_bytes()
                assert server.process.stdin is not None
                assert server.process.stdout is not None
                server.process.stdin.write(b"\n")
                server.process.stdin.flush()
                server.process.stdout.readline()
                entries.append((server.resident_bytes() - before) / 1e6 * INSTANCES / instances)
        base = sorted(entries)[len(entries) // 2]
        conditions = {
            "mode": mode,
            "instances": instances,
            "sessions": SESSIONS,
            "request_bytes": entry_bytes,
            "fresh_mb": before / 1e6,
            "baseline_mb": base,
            "ratio": sorted(growth)[len(growth) // 2] / base,
        }
        emit(Figure(benchmark="memory", figure=f"memory_100k_instances_{mode}", unit="MB", values=growth, conditions=conditions))
    idle = []
    for _ in range(settings.runs):
        with node() as server:
            before = server.resident_bytes()
            lanes = []
            for _ in range(CONNECTIONS):
                lane = ListLane(server)
                lane.ask(_frames.hello(session=True))
                lanes.append(lane)
            time.sleep(0.2)
            idle.append((server.resident_bytes() - before) / 1e6)
            for lane in lanes:
                lane.socket.close()
    conditions = {"connections": CONNECTIONS, "each": "greeted, with a session, nothing registered"}
    emit(Figure(benchmark="memory", figure="memory_1000_idle_connections", unit="MB", values=idle, conditions=conditions))


if __name__ == "__main__":
    main(measure)
