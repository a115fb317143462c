"""What goes wrong between simulated machines: the faults in force now, and what they say of a segment.

    rule          a function that sees every segment; the first answer of the rules decides; in force inside a `with`
    partition     nothing passes between two groups, both ways or one way; what was sent waits, as TCP sends it again
    isolate       nothing passes between one machine and all others
    slow, clog    segments take longer; segments queue behind each other for a thin pipe
    dark          the machine has no power: nothing reaches it, and nobody is told
    hold          one way, until `release`; apart from the rest, because `heal` does not end it

F1  What blocks comes first, then rules, then what delays.
F2  Delays are drawn from a generator of the ordered pair of machines, so a fault in one place changes no draw in another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Final

import attrs
import trio

from .sim_link import HOLD, Judge, Verdict

USUAL_DELAY_SHARE: Final = 0.1
"""The shortest delay is this part of the longest."""


@attrs.define
class _Clog:
    """A pipe of so many bytes per second; it is busy until `free_at`."""

    bytes_per_second: float
    free_at: float = 0.0


class Faults:
    """The faults of one network. `new_random` makes a generator for a name, `delay_seconds_max` is the usual longest delay."""

    def __init__(self, new_random: Callable[[str], random.Random], delay_seconds_max: float) -> None:
        self.rules: list[Judge] = []
        self.blocked: dict[tuple[str, str], None] = {}
        self.isolated: dict[str, None] = {}
        self.holding: dict[tuple[str, str], None] = {}
        self.dark: dict[str, None] = {}
        self._slow: dict[tuple[str, str], float] = {}
        self._clogs: dict[tuple[str, str], _Clog] = {}
        self._new_random = new_random
        self._delay_seconds_max = delay_seconds_max
        self._generators: dict[tuple[str, str], random.Random] = {}

    def __repr__(self) -> str:
        return f"<Faults blocked={list(self.blocked)} isolated={list(self.isolated)} slow={list(self._slow)} clogged={list(self._clogs)}>"

    def block(self, sources: str | Iterable[str], targets: str | Iterable[str]) -> None:
        """Nothing from any of the sources reaches any of the targets."""
        targets = _names(targets)
        for source in _names(sources):
            for target in targets:
                self.blocked[source, target] = None

    def slow(self, one: str, other: str, seconds: float) -> None:
        """Each segment between the two takes up to so much longer."""
        self._slow[one, other] = self._slow[other, one] = seconds

    def clog(self, one: str, other: str, bytes_per_second: float) -> None:
        """Each way between the two carries no more than that."""
        self._clogs[one, other], self._clogs[other, one] = _Clog(bytes_per_second), _Clog(bytes_per_second)

    def heal(self) -> None:
        """End everything but rules, holds and darkness."""
        self.blocked.clear()
        self.isolated.clear()
        self._slow.clear()
        self._clogs.clear()

    def judge(self, source: str, target: str, data: bytes) -> float | Verdict | None:
        """What happens to a segment: F1."""
        way = (source, target)
        if way in self.blocked or way in self.holding or target in self.dark:
            return HOLD
        if self.isolated and source != target and (source in self.isolated or target in self.isolated):
            return HOLD
        for judge in self.rules:
            verdict = judge(source, target, data)
            if verdict is not None:
                return verdict
        if way in self._slow or way in self._clogs:
            return self._delay(way, len(data))
        return None

    def _delay(self, way: tuple[str, str], size: int) -> float:
        """How long the segment takes over a slow or clogged way (F2)."""
        chance = self._generators.get(way)
        if chance is None:
            chance = self._generators[way] = self._new_random(f"{way[0]}->{way[1]}/slow")
        usual = self._delay_seconds_max
        delay = chance.uniform(usual * USUAL_DELAY_SHARE, usual) + chance.uniform(0.0, self._slow.get(way, 0.0))
        clog = self._clogs.get(way)
        if clog is not None:
            now = trio.current_time()
            clog.free_at = max(clog.free_at, now) + size / clog.bytes_per_second
            delay += clog.free_at - now
        return delay


def _names(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
