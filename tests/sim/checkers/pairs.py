"""The links between nodes, as they lie on the wire.

T50  A pair of nodes ends with one link: two are never in use side by side for longer than it takes to see it.

A link counts as in use while segments arrive on it; a quiet one says Ping twice a second.
"""

from __future__ import annotations

import attrs
import trio

from govern.testing.world import World

from . import Violation

IN_USE_SECONDS = 1.0
SIDE_BY_SIDE_SECONDS = 4.0
"""More than the silence after which a link is given up: the far end of a link that broke may go on to use it for so long."""


@attrs.define
class Wire:
    """One connection: when something arrived on it first and last."""

    first: float
    last: float


class Pairs:
    """Listens to what nodes say to each other."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._wires: dict[tuple[str, ...], dict[int, Wire]] = {}
        world.network.taps.append(self._tap)

    def _tap(self, source: str, target: str, number: int, data: bytes) -> None:
        ends = [self._world.machines.get(name) for name in (source, target)]
        if data and all(end is not None and end.disk is not None for end in ends):
            now = trio.current_time()
            wire = self._wires.setdefault(tuple(sorted((source, target))), {}).setdefault(number, Wire(now, now))
            wire.last = now

    def sweep(self) -> None:
        """T50."""
        now = trio.current_time()
        for pair, wires in self._wires.items():
            for number in [number for number, wire in wires.items() if now - wire.last > IN_USE_SECONDS]:
                del wires[number]
            old = [wire for wire in wires.values() if now - wire.first > SIDE_BY_SIDE_SECONDS]
            if len(old) > 1:
                raise Violation(f"50: {' and '.join(pair)} have used {len(old)} links side by side for {SIDE_BY_SIDE_SECONDS:g} s")

    def end(self) -> None:
        """Nothing more than `sweep`."""
        self.sweep()
