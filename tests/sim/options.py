"""What a seed decides before anything runs: how many nodes, which faults exist at all, how often they come, and how small everything is.

Faults hide one another, and so do large buffers. So each seed draws a different set of faults (a third have all of them, a third
one only, a third any) and its own sizes; small limits find more. Most seeds are of one node: what is said of a cluster is drawn apart, so
that such a seed does not change when clusters learn something new.
"""

from __future__ import annotations

import random

import attrs

from govern.testing.world import CANDIDATES_MAX, cluster_keys

from .sizes import USUAL, Sizes

NODE_FAULTS: tuple[str, ...] = (
    *("power", "power in silence", "kill", "stop", "pause", "crash in an operation"),
    *("input/output error", "disk full", "slow disk", "hang"),
)
NETWORK_FAULTS: tuple[str, ...] = ("cut", "partition", "one way", "slow", "clog", "hold", "isolate")
CLIENT_FAULTS: tuple[str, ...] = ("client killed", "client paused")
FAULTS: tuple[str, ...] = (*NODE_FAULTS, *NETWORK_FAULTS, *CLIENT_FAULTS)
CLUSTER_FAULTS: tuple[str, ...] = (
    *("controller killed", "controller paused", "controller isolated", "controller's disk hangs", "controller's disk full"),
    *("majority down", "everything restarted", "wiped", "nodes cut", "nodes slow", "nodes one way", "split", "line", "flapping"),
)
LATER_NODE_FAULTS: tuple[str, ...] = ("sleeps",)
LATER_CLUSTER_FAULTS: tuple[str, ...] = ("controller sleeps", "put back", "rotten")
"""Drawn apart, so that a seed keeps what it had before there were these."""
BOOT_SECONDS_MAX = 400 * 24 * 3600.0
WALL_SECONDS_MAX = 24 * 3600.0
"""How far the clocks of two machines are apart, at most: that since their start, and that for people."""
NODES_MAX = 7
CLUSTER_SHARE = 0.25
"""Of the seeds for which nobody says how many nodes there are."""


@attrs.frozen(kw_only=True)
class Options:
    """One run. Durations are simulated seconds."""

    seed: int
    seconds: float
    nodes: int = 1
    candidates: int = 1
    clients: int
    services: int
    keys: int
    ttl: float
    operations_per_second: float
    faults: tuple[str, ...]
    cluster_faults: tuple[str, ...] = ()
    seconds_between_faults: float
    delay_seconds_max: float
    window_bytes: int
    history_ops_max: int
    writes_pending_max: int
    segment_bytes: int
    snapshot_bytes: int
    sizes: Sizes = USUAL
    operated: bool = False
    """Whether operators change the candidates of the cluster, and who leads it."""

    def __str__(self) -> str:
        rows = attrs.asdict(self, recurse=False)
        rows["faults"] = ", ".join(self.faults) or "none"
        rows["cluster_faults"] = ", ".join(self.cluster_faults) or "none"
        return "\n".join(f"  {name:<24}{value}" for name, value in rows.items())

    @property
    def node_keys(self) -> dict[str, dict[str, object]]:
        """The keys of each node. Where operators are at work every node can become a candidate."""
        keys = cluster_keys(self.nodes, self.candidates)
        return {name: {**own, "candidate": True} for name, own in keys.items()} if self.operated else keys

    @property
    def node_names(self) -> tuple[str, ...]:
        """The machines of the nodes."""
        return tuple(cluster_keys(self.nodes, self.candidates))

    def draw_clock(self, machine: str) -> tuple[int, float]:
        """How far two clocks of a machine are ahead: the one since its start in microseconds, and the one for people in seconds."""
        chance = random.Random(f"{self.seed}/{machine}/clock")
        wall = chance.choice((0.0, chance.uniform(-1.0, 1.0), chance.uniform(-WALL_SECONDS_MAX, WALL_SECONDS_MAX)))
        return round(chance.uniform(0.0, BOOT_SECONDS_MAX) * 1e6), wall

    @property
    def candidate_names(self) -> tuple[str, ...]:
        """Those of the candidates: the first few."""
        return self.node_names[: self.candidates]


def _draw_faults(chance: random.Random, known: tuple[str, ...]) -> tuple[str, ...]:
    kind = chance.randrange(3)
    if kind == 0:
        return known
    if kind == 1:
        return (chance.choice(known),)
    return tuple(fault for fault in known if chance.random() < 0.4)


def _add_later(chance: random.Random, faults: tuple[str, ...], known: tuple[str, ...], later: tuple[str, ...]) -> tuple[str, ...]:
    """All of them where there are all others, some where there are several, and now and then one in the place of the only one."""
    if faults == known:
        return faults + later
    if len(faults) == 1:
        return (chance.choice(later),) if chance.random() < len(later) / len(known) else faults
    return faults + tuple(fault for fault in later if chance.random() < 0.4)


def draw_options(seed: int, seconds: float = 120.0, clients: int = 20, *, nodes: int | None = None) -> Options:
    """The options of a seed; `nodes` says how many there are to be, None lets the seed draw it."""
    chance = random.Random(f"{seed}/options")
    alone = Options(
        seed=seed,
        seconds=seconds,
        clients=clients,
        faults=_draw_faults(chance, FAULTS),
        services=chance.choice((1, 3, 5)),
        keys=chance.choice((clients, clients * 2)),
        ttl=chance.choice((3.0, 5.0, 5.0, 8.0)),
        operations_per_second=4.0,
        seconds_between_faults=chance.choice((2.0, 5.0, 15.0)),
        delay_seconds_max=chance.choice((0.0005, 0.002, 0.02, 0.1)),
        window_bytes=chance.choice((1024, 4096, 64 * 1024)),
        history_ops_max=chance.choice((2, 10, 100, 65_536)),
        writes_pending_max=chance.choice((5, 100, 10_000)),
        segment_bytes=chance.choice((64 * 1024, 256 * 1024)),
        snapshot_bytes=chance.choice((64 * 1024, 256 * 1024)),
        sizes=Sizes.draw(random.Random(f"{seed}/sizes")),
    )
    later = random.Random(f"{seed}/later")
    alone = attrs.evolve(alone, faults=_add_later(later, alone.faults, FAULTS, LATER_NODE_FAULTS))
    chance = random.Random(f"{seed}/cluster")
    drawn = chance.randint(2, NODES_MAX) if chance.random() < CLUSTER_SHARE else 1
    nodes = drawn if nodes is None else nodes
    if nodes == 1:
        return alone
    candidates = min(chance.choice((1, 2, 3, 3, 3, 4, 5, 5)), nodes, CANDIDATES_MAX)
    return attrs.evolve(
        alone,
        nodes=nodes,
        candidates=candidates,
        cluster_faults=_add_later(later, _draw_faults(chance, CLUSTER_FAULTS), CLUSTER_FAULTS, LATER_CLUSTER_FAULTS),
        services=chance.choice((3, 5, 8)),
        operated=later.random() < 0.5,
    )
