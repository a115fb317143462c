"""Simulation: a scenario of nodes and clients under a virtual clock, where the same seed gives the same run."""

from __future__ import annotations

from .run import Deadlock, HorizonPassed, Livelock, Outcome, SimulationFailed, simulate

__all__ = ["Deadlock", "HorizonPassed", "Livelock", "Outcome", "SimulationFailed", "simulate"]
