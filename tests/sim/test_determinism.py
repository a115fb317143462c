"""A seed is a run: the same in this process, again in this process, and in another one with other hashes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from govern.testing import simulate

from .differences import Step, find_difference, record_steps
from .episode import run_episode
from .options import CLUSTER_FAULTS, FAULTS, LATER_CLUSTER_FAULTS, LATER_NODE_FAULTS, Options, draw_options

SECONDS = 40.0
CLUSTER_SECONDS = 25.0
SEED = next(seed for seed in range(100) if draw_options(seed).faults == FAULTS + LATER_NODE_FAULTS)
"""The first seed with all faults."""


def has_all(options: Options) -> bool:
    """Whether everything that can happen to a cluster may happen, operators and a metadata log that is cut included."""
    return options.operated and options.sizes.compact_entries < 100 and options.cluster_faults == CLUSTER_FAULTS + LATER_CLUSTER_FAULTS


CLUSTER_SEED = next(seed for seed in range(100) if has_all(draw_options(seed, nodes=3)))
"""The first one with all of a cluster."""

OnStep = Callable[[float, str], None]


def play() -> list[Step]:
    """All steps of that run."""
    options = draw_options(SEED, SECONDS, nodes=1)
    return record_steps(lambda on_step: run_episode(options, on_step=on_step))


@functools.cache
def steps_of_the_cluster() -> list[Step]:
    """Three nodes with every fault that a cluster has, for a short time."""
    options = draw_options(CLUSTER_SEED, CLUSTER_SECONDS, clients=4, nodes=3)
    return record_steps(lambda on_step: run_episode(options, on_step=on_step))


@pytest.mark.deep
def test_a_cluster_runs_twice_the_same() -> None:
    """In one process; each time it is compared with another process below."""
    one = steps_of_the_cluster()
    steps_of_the_cluster.cache_clear()
    assert len(one) > 1000
    assert find_difference(one, steps_of_the_cluster()) is None


@pytest.mark.parametrize("hashes", ["1", pytest.param("4242", marks=pytest.mark.deep)])
def test_a_cluster_runs_the_same_in_a_process_with_other_hashes(hashes: str, tmp_path: Path) -> None:
    """What three nodes say to each other does not depend on the order of sets either."""
    path = tmp_path / "steps"
    program = (
        "import sys, tests.sim.test_determinism as here\n"
        "lines = [f'{at:.9f} {task}' for at, task in here.steps_of_the_cluster()]\n"
        "open(sys.argv[1], 'w').write('\\n'.join(lines))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    there = [(float(at), task) for at, _, task in (line.partition(" ") for line in path.read_text().splitlines())]
    assert find_difference([(float(f"{at:.9f}"), task) for at, task in steps_of_the_cluster()], there) is None


@pytest.mark.parametrize("hashes", ["1", pytest.param("4242", marks=pytest.mark.deep)])
def test_a_seed_runs_the_same_here_and_in_a_process_with_other_hashes(hashes: str, tmp_path: Path) -> None:
    """Every step of a second run is that of the first. PYTHONHASHSEED orders sets and decides hashes of strings; nothing in a run depends
    on it. This process has drawn its own."""
    here = play()
    assert len(here) > 1000
    assert find_difference(here, play()) is None
    path = tmp_path / "steps"
    command = [sys.executable, "-m", "tests.sim", "--seed", str(SEED), "--seconds", str(SECONDS), "--nodes", "1", "--steps", str(path)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    there = [(float(at), task) for at, _, task in (line.partition(" ") for line in path.read_text().splitlines())]
    assert find_difference([(float(f"{at:.9f}"), task) for at, task in here], there) is None


def test_the_first_step_that_differs_is_named() -> None:
    """A scenario that takes something from outside of its seed is caught, at the step where it shows."""
    outside = iter([0.25, 0.75])

    async def wait_for_the_world_outside() -> None:
        await trio.sleep(next(outside))

    async def scenario(seed: int) -> None:
        await trio.sleep(1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_the_world_outside)

    def run(on_step: OnStep) -> object:
        return simulate(1, scenario, on_step=on_step)

    difference = find_difference(record_steps(run), record_steps(run))
    assert difference is not None
    assert "one:   1.25" in difference
    assert "other: 1.75" in difference
    assert "wait_for_the_world_outside" in difference


def test_a_run_that_ends_early_differs_at_its_end() -> None:
    """A run that is the beginning of the other one is not the same run."""
    steps = [(0.0, "1 a"), (1.0, "2 b")]
    difference = find_difference(steps, steps[:1])
    assert difference is not None
    assert "step 2 differs" in difference
    assert "other: had ended" in difference
    assert find_difference(steps, list(steps)) is None
