"""Run simulations: `python -m tests.sim --seeds 1000 --jobs 2`, or one again: `python -m tests.sim --seed N --verbose`.

The last line of the output is a JSON object: of one seed `seed`, `ok`, `trace`, `simulated_seconds`, `real_seconds`, `operations` and
`violation`, of many `runs`, `violations`, `failed_seeds`, `simulated_hours` and `real_seconds`. The exit code is 1 on any violation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .campaign import run_many, run_one
from .options import NODES_MAX, draw_options


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; leaves with one line when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Whole nodes and clients under a virtual clock, with faults.")
    parser.add_argument("--seeds", type=_positive, default=100, metavar="N", help="run so many seeds (default 100)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first of them (default 0)")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="in so many processes (default 1)")
    parser.add_argument("--seconds", type=_seconds, default=120.0, metavar="S", help="simulated seconds of a seed (120; at least 40)")
    parser.add_argument(
        "--nodes", type=_nodes, metavar="K", help="clusters of so many nodes (1 to 7; default: the seed draws it, mostly 1)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="run this one only, and print its options")
    parser.add_argument("--verbose", action="store_true", help="with --seed: print everything that happens, in columns")
    parser.add_argument("--steps", metavar="FILE", help="with --seed: write every step of every task to FILE, to compare two runs")
    found = parser.parse_args(arguments)
    if found.seed is None and (found.verbose or found.steps):
        parser.error("--verbose and --steps are for one seed: add --seed N")
    return found


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("use a number of at least 1")
    return number


def _nodes(text: str) -> int:
    number = int(text)
    if not 1 <= number <= NODES_MAX:
        raise argparse.ArgumentTypeError(f"use a number of nodes between 1 and {NODES_MAX}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 40 <= number <= 86_400:
        raise argparse.ArgumentTypeError("use a number of seconds between 40 and 86400")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    found = parse(sys.argv[1:] if arguments is None else arguments)
    if found.seed is not None:
        return run_one(draw_options(found.seed, found.seconds, nodes=found.nodes), verbose=found.verbose, steps=found.steps)
    return 1 if run_many(range(found.first, found.first + found.seeds), found.seconds, found.jobs, found.nodes) else 0


if __name__ == "__main__":
    sys.exit(main())
