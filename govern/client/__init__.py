"""The client: `connect` to a registry, register, look up, subscribe."""

from __future__ import annotations

from .answers import Drained, Explanation
from .live_view import LiveView
from .registration import Registration
from .registry import Registry, connect

__all__ = ["Drained", "Explanation", "LiveView", "Registration", "Registry", "connect"]
