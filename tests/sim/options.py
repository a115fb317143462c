"""What a seed decides before anything runs: which faults exist at all, how often they come, and how small everything is.

Faults hide one another, and so do large buffers. So each seed draws a different set of faults (a third have all of them, a third
one only, a third any) and its own sizes; small limits find more.
"""

from __future__ import annotations

import random

import attrs

NODE_FAULTS: tuple[str, ...] = (
    *("power", "power in silence", "kill", "stop", "pause", "crash in an operation"),
    *("input/output error", "disk full", "slow disk", "hang"),
)
NETWORK_FAULTS: tuple[str, ...] = ("cut", "partition", "one way", "slow", "clog", "hold", "isolate")
CLIENT_FAULTS: tuple[str, ...] = ("client killed", "client paused")
FAULTS: tuple[str, ...] = (*NODE_FAULTS, *NETWORK_FAULTS, *CLIENT_FAULTS)


@attrs.frozen(kw_only=True)
class Options:
    """One run. Durations are simulated seconds."""

    seed: int
    seconds: float
    clients: int
    services: int
    keys: int
    ttl: float
    operations_per_second: float
    faults: tuple[str, ...]
    seconds_between_faults: float
    delay_seconds_max: float
    window_bytes: int
    history_ops_max: int
    writes_pending_max: int
    segment_bytes: int
    snapshot_bytes: int

    def __str__(self) -> str:
        rows = attrs.asdict(self)
        rows["faults"] = ", ".join(self.faults) or "none"
        return "\n".join(f"  {name:<24}{value}" for name, value in rows.items())


def draw_options(seed: int, seconds: float = 120.0, clients: int = 20) -> Options:
    """The options of a seed."""
    chance = random.Random(f"{seed}/options")
    kind = chance.randrange(3)
    if kind == 0:
        faults = FAULTS
    elif kind == 1:
        faults = (chance.choice(FAULTS),)
    else:
        faults = tuple(fault for fault in FAULTS if chance.random() < 0.4)
    return Options(
        seed=seed,
        seconds=seconds,
        clients=clients,
        services=chance.choice((1, 3, 5)),
        keys=chance.choice((clients, clients * 2)),
        ttl=chance.choice((3.0, 5.0, 5.0, 8.0)),
        operations_per_second=4.0,
        faults=faults,
        seconds_between_faults=chance.choice((2.0, 5.0, 15.0)),
        delay_seconds_max=chance.choice((0.0005, 0.002, 0.02, 0.1)),
        window_bytes=chance.choice((1024, 4096, 64 * 1024)),
        history_ops_max=chance.choice((2, 10, 100, 65_536)),
        writes_pending_max=chance.choice((5, 100, 10_000)),
        segment_bytes=chance.choice((64 * 1024, 256 * 1024)),
        snapshot_bytes=chance.choice((64 * 1024, 256 * 1024)),
    )
