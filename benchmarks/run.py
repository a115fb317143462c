"""All figures: `python -m benchmarks.run [--quick]`, and at the end a table for people and the lines of JSON.

`--quick` takes one short run of each and shows in about two minutes whether anything is far off; only the full run is a measurement.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Final

from . import cluster, disk, fanout, heartbeats, lookups, memory, registrations, restart
from ._load import pin_generator
from ._report import Emit, Figure, Settings

ALL: Final[dict[str, Callable[[Settings, Emit], None]]] = {
    "disk": disk.measure,
    "registrations": registrations.measure,
    "heartbeats": heartbeats.measure,
    "lookups": lookups.measure,
    "fanout": fanout.measure,
    "memory": memory.measure,
    "restart": restart.measure,
    "cluster": cluster.measure,
}


def table(figures: list[Figure]) -> str:
    """The figures in columns: value, spread, processor time of the node for each operation, beside the baseline."""
    lines = [f"{'figure':45} {'median':>9} {'min':>9} {'max':>9} {'unit':12} {'us CPU/op':>9} {'ratio':>7} {'generator':>9} {'others':>7}"]
    for figure in figures:
        values = [figure.value, min(figure.values), max(figure.values)]
        numbers = " ".join(f"{value:9.0f}" if value >= 100 else f"{value:9.3g}" for value in values)
        known = [figure.conditions.get(name) for name in ("us_per_operation", "", "generator_cpu", "other_cpu")]
        known[1] = figure.ratio
        widths = (9, 7, 9, 7)
        rest = " ".join(f"{'-' if value is None else format(value, '.3g'):>{width}}" for value, width in zip(known, widths, strict=True))
        lines.append(f"{figure.figure:45} {numbers} {figure.unit:12} {rest}")
    return "\n".join(lines)


def run() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run of each figure")
    settings = Settings(parser.parse_args().quick)
    pin_generator()
    figures: list[Figure] = []

    def emit(figure: Figure) -> None:
        figures.append(figure)
        print(f"  {figure.as_text()}", file=sys.stderr, flush=True)

    for number, (name, measure) in enumerate(ALL.items(), 1):
        print(f"[{number}/{len(ALL)}] {name}, {time.strftime('%H:%M:%S')}", file=sys.stderr, flush=True)
        measure(settings, emit)
    print(table(figures))
    for figure in figures:
        print(figure.as_json())


if __name__ == "__main__":
    run()
