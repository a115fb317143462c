"""Testing against a registry that is sick: real nodes and clients on simulated machines, under a virtual clock, from a seed.

`cluster` is what a test of a service needs; `simulate` runs any scenario without a test framework.
"""

from __future__ import annotations

from .cluster import Cluster, NotConverged, cluster
from .run import Deadlock, HorizonPassed, Livelock, Outcome, SimulationFailed, simulate

__all__ = [
    "Cluster",
    "Deadlock",
    "HorizonPassed",
    "Livelock",
    "NotConverged",
    "Outcome",
    "SimulationFailed",
    "cluster",
    "simulate",
]
