"""Lookups: how often a second a service is read in full, from 32 connections that wait for each answer."""

from __future__ import annotations

from functools import partial

from govern.messages import View

from . import _frames
from ._load import Lane, Server, WrongAnswer, bare, closed_loop, node
from ._report import Emit, Settings, main, pairs, rate_figure

CONNECTIONS = 32
INSTANCES = (10, 100)
METADATA_BYTES = 140


def fill(server: Server, service: int, instances: int) -> Lane:
    """Register the instances of one service; the connection that did it."""
    lane = Lane(server)
    lane.ask(_frames.hello(session=True))
    key = _frames.service(service)
    for number in range(instances):
        lane.ask(_frames.register(2 + number, key, _frames.instance(f"i-{number:08d}", METADATA_BYTES)))
    return lane


def measure(settings: Settings, emit: Emit) -> None:
    for instances in INSTANCES:
        with node() as server:
            writer = fill(server, 1, instances)
            frame = _frames.lookup(_frames.service(1))
            lanes = []
            for _ in range(CONNECTIONS):
                lane = Lane(server, frame)
                lane.ask(_frames.hello(session=False))
                lane.answer = lane.ask(frame)
                (view,) = _frames.messages(lane.answer)
                if not isinstance(view, View) or len(view.instances) != instances:
                    raise WrongAnswer(f"{instances} instances were registered, the answer is {view!r}")
                lanes.append(lane)
            size = len(lanes[0].answer)
            with bare("echo", len(frame), size) as echo:
                echo_lanes = [Lane(echo, frame, bytes(size)) for _ in range(CONNECTIONS)]
                take = partial(closed_loop, server, lanes, depth=1, seconds=settings.seconds)
                samples, baselines = pairs(settings, take, partial(closed_loop, echo, echo_lanes, depth=1, seconds=settings.seconds))
                for lane in (writer, *lanes, *echo_lanes):
                    lane.socket.close()
        name = f"lookups_{instances}_instances"
        emit(rate_figure("lookups", name, samples, baselines, connections=CONNECTIONS, depth=1, answer_bytes=size))


if __name__ == "__main__":
    main(measure)
