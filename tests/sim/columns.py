"""The log of a run for people: what happened, in the order of virtual time, with one column per node and one for the clients.

    seconds     node1                                    clients
     12.0331    ! power                                  c3 update orders/i7 = v41
     12.5010    # 2:2/41 register orders/i3
     12.5100                                             c3 update orders/i7: ok

`!` is a fault that begins or ends, `#` a committed operation, `=` a committed record of the cluster, `*` the node itself.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

import trio

EVENTS_MAX = 4000
WIDTH = 62
WIDTH_OF_MANY = 30
"""For more nodes than one: what is said does not fit into its column then, and still shows where it happens."""


class Columns:
    """The last events of a run; with `echo` each is printed at once."""

    def __init__(self, nodes: tuple[str, ...] = ("node1",), *, echo: bool = False) -> None:
        self._nodes = nodes
        self._events: deque[tuple[float, str, str]] = deque(maxlen=EVENTS_MAX)
        self._echo = echo
        self._width = WIDTH if len(nodes) == 1 else WIDTH_OF_MANY

    @property
    def last_at(self) -> float:
        """When the last event was, in simulated seconds."""
        return self._events[-1][0] if self._events else 0.0

    def add(self, machine: str, text: str) -> None:
        """Something happened on a machine, now."""
        event = (trio.current_time(), machine, text)
        self._events.append(event)
        if self._echo:
            print(self._line(*event), flush=True)

    def lines(self, count: int) -> Iterator[str]:
        """The last events, with a heading."""
        yield "   seconds  " + "".join(f"{node:<{self._width}}" for node in self._nodes) + "clients"
        for event in itertools.islice(self._events, max(0, len(self._events) - count), None):
            yield self._line(*event)

    def _line(self, at: float, machine: str, text: str) -> str:
        column = self._nodes.index(machine) if machine in self._nodes else len(self._nodes)
        what = text if machine in self._nodes else f"{machine} {text}"
        return f"{at:>10.4f}  {'':<{column * self._width}}{what}".rstrip()
