"""Whole runs: a fixed set of seeds each time, and many when there is time."""

from __future__ import annotations

import os

import pytest

from .campaign import run_many, run_seed
from .options import NODES_MAX, draw_options

FIXED = (1, 3)
CLUSTERS = ((154, 3),)
"""One in which operators change the candidates while the metadata log is cut again and again."""


@pytest.mark.parametrize("seed", FIXED)
def test_seed(seed: int) -> None:
    """No promise is broken in a simulated minute, faults and all, and everything converges after them."""
    assert run_seed((seed, 60.0, 1)).failure == ""


@pytest.mark.parametrize(("seed", "nodes"), CLUSTERS)
def test_cluster_seed(seed: int, nodes: int) -> None:
    """The same for clusters, shorter: a simulated second of three nodes costs as much as six of one."""
    options = draw_options(seed, nodes=nodes)
    assert options.operated
    assert options.sizes.compact_entries < 100
    assert run_seed((seed, 45.0, nodes)).failure == ""


@pytest.mark.deep
def test_many_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    """500 seeds of two simulated minutes break no promise; the hours simulated and the real time are printed."""
    with capsys.disabled():
        assert run_many(range(500), 120.0, os.cpu_count() or 1, 1) == 0


@pytest.mark.deep
@pytest.mark.parametrize("nodes", range(2, NODES_MAX + 1))
def test_many_clusters(nodes: int, capsys: pytest.CaptureFixture[str]) -> None:
    """500 seeds of one simulated minute, over all sizes, with all that can happen to a cluster."""
    with capsys.disabled():
        assert run_many(range(84 * nodes, 84 * nodes + 84), 60.0, os.cpu_count() or 1, nodes) == 0
