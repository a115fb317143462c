"""Heartbeats: how many a node answers, and what a thousand quiet clients cost it.

Every connection has a session of its own with one registration, and its heartbeats carry the right count and digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from govern.messages import HEARTBEAT_OK, HeartbeatOk, Registered, encode

from . import _frames
from ._load import Lane, Server, WrongAnswer, bare, closed_loop, node, paced
from ._report import Emit, Figure, Settings, main, pairs, rate_figure

CONNECTIONS = 1000


def greeted(server: Server, number: int) -> Lane:
    """A connection with a session that holds one registration."""
    lane = Lane(server)
    lane.ask(_frames.hello(session=True))
    key, name = _frames.service(number), f"i-{number:08d}"
    (answer,) = _frames.messages(lane.ask(_frames.register(1, key, _frames.instance(name, 100))))
    if not isinstance(answer, Registered):
        raise WrongAnswer(repr(answer))
    lane.frame = _frames.heartbeat([(key, name, answer)])
    lane.answer = encode(HeartbeatOk(HEARTBEAT_OK, True, answer.lease_id.term), 1)  # the table is as old as the grant of all slots
    return lane


@contextmanager
def lanes_of(server: Server, count: int) -> Iterator[list[Lane]]:
    lanes = [greeted(server, number) for number in range(count)]
    try:
        yield lanes
    finally:
        for lane in lanes:
            lane.socket.close()


@contextmanager
def bare_lanes(count: int, like: Lane) -> Iterator[tuple[Server, list[Lane]]]:
    """The same traffic at the baseline."""
    with bare("echo", len(like.frame), len(like.answer)) as server:
        lanes = [Lane(server, like.frame, bytes(len(like.answer))) for _ in range(count)]
        yield server, lanes
        for lane in lanes:
            lane.socket.close()


def measure(settings: Settings, emit: Emit) -> None:
    with node() as server, lanes_of(server, CONNECTIONS) as lanes, bare_lanes(CONNECTIONS, lanes[0]) as (echo, echo_lanes):
        samples, baselines = pairs(
            settings,
            lambda: closed_loop(server, lanes, depth=1, seconds=settings.seconds),
            lambda: closed_loop(echo, echo_lanes, depth=1, seconds=settings.seconds),
        )
        emit(rate_figure("heartbeats", "heartbeats_1000_connections", samples, baselines, connections=CONNECTIONS, depth=1))
        slow, slow_echo = pairs(
            settings,
            lambda: paced(server, lanes, rate=CONNECTIONS, seconds=2 * settings.seconds),
            lambda: paced(echo, echo_lanes, rate=CONNECTIONS, seconds=2 * settings.seconds),
        )
    share = [sample.server_cpu_seconds / sample.seconds * 100 for sample in slow]
    share_echo = sorted(sample.server_cpu_seconds / sample.seconds * 100 for sample in slow_echo)[len(slow_echo) // 2]
    conditions = {"connections": CONNECTIONS, "rate": CONNECTIONS, **slow[-1].conditions(), "baseline": share_echo}
    conditions["ratio"] = sorted(share)[len(share) // 2] / max(share_echo, 1e-9)
    name = "cpu_1000_connections_1_per_second"
    emit(Figure(benchmark="heartbeats", figure=name, unit="% of a core", values=share, conditions=conditions))


if __name__ == "__main__":
    main(measure)
