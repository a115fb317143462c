"""Durable registrations: each is answered after it is on the disk.

Distinct instances with about 200 bytes each, over a thousand services, from many connections that wait for each answer, from one
that waits, and from one that keeps 128 under way.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from . import _frames
from ._load import Lane, ListLane, Sample, Server, bare, closed_loop, node
from ._report import Emit, Settings, main, pairs, rate_figure

SHAPES = ((64, 1), (1, 1), (1, 128))
METADATA_BYTES = 140
RATE_MAX = 60_000
KEYS = {"instances_per_session_max": 1_000_000}  # one connection would reach the usual 10,000 in a blink


def frames_for(lane: int, count: int) -> list[bytes]:
    """Registrations of one connection; the ids differ from those of every other one."""
    return [
        _frames.register(2 + number, _frames.service(lane * 7 + number), _frames.instance(f"i-{lane:04d}-{number:07d}", METADATA_BYTES))
        for number in range(count)
    ]


@contextmanager
def ready_lanes(server: Server, count: int, frames: list[list[bytes]], *, greet: bool) -> Iterator[list[ListLane]]:
    lanes = [ListLane(server, frames[number]) for number in range(count)]
    if greet:
        for lane in lanes:
            lane.ask(_frames.hello(session=True))
    yield lanes
    for lane in lanes:
        lane.socket.close()


def _run(durable: bool, connections: int, depth: int, frames: list[list[bytes]], seconds: float) -> Sample:
    """One run against a fresh node, so that no run pays for the registrations of the one before."""
    with tempfile.TemporaryDirectory(prefix="govern-bench-", dir=os.environ.get("BENCHMARK_DIR")) as path:
        keys = {**KEYS, "data_dir": os.path.join(path, "node")} if durable else KEYS
        with node(**keys) as server, ready_lanes(server, connections, frames, greet=True) as lanes:
            return closed_loop(server, lanes, depth=depth, seconds=seconds)


def _run_bare(durable: bool, connections: int, depth: int, frame: bytes, seconds: float) -> Sample:
    with tempfile.TemporaryDirectory(prefix="govern-bench-", dir=os.environ.get("BENCHMARK_DIR")) as path:
        kind = ("sync", len(frame), os.path.join(path, "bare")) if durable else ("echo", len(frame), _frames.ANSWER_BYTES)
        with bare(*kind) as server:
            lanes = [Lane(server, frame, bytes(_frames.ANSWER_BYTES)) for _ in range(connections)]
            try:
                return closed_loop(server, lanes, depth=depth, seconds=seconds)
            finally:
                for lane in lanes:
                    lane.socket.close()


def measure(settings: Settings, emit: Emit) -> None:
    for connections, depth in SHAPES:
        rate = RATE_MAX if connections * depth > 1 else RATE_MAX // 6
        frames = [frames_for(lane, int(rate * settings.seconds * 1.4) // connections) for lane in range(connections)]
        for mode in ("durable", "memory"):
            take = partial(_run, mode == "durable", connections, depth, frames, settings.seconds)
            take_baseline = partial(_run_bare, mode == "durable", connections, depth, frames[0][0], settings.seconds)
            samples, baselines = pairs(settings, take, take_baseline)
            name = f"{mode}_registrations_{connections}x{depth}"
            size = len(frames[0][0])
            emit(rate_figure("registrations", name, samples, baselines, connections=connections, depth=depth, request_bytes=size))


if __name__ == "__main__":
    main(measure)
