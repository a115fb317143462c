"""Routing: which node a service is asked at, and when the table is fetched again.

The *table* says which node answers for which slot. A client has one as soon as a node gave it one, and keeps it until it gets a newer
one. Between two tables a node that is asked for what it does not answer for says `Moved`: that is a *hint*, and it is followed at once.

    owner(slot)    the node of the hint, else the node of the table, else None: then any node is asked, and says where to go
    moved(…)       a node has said Moved
    announced(…)   a node has named the version that it has
    take(change)   the table, or what has changed in it, is here

T1  An older table never replaces a newer one of the same cluster. A table from a cache is a guess: every table of a node replaces it.
T2  A hint counts if it is of the version in hand or a newer one, and until a table of its version or a newer one is here. An older hint
    never replaces a newer one.
T3  Only the node that is believed to answer for a slot sends it elsewhere: what others say of it is late.
T4  A slot is sent on five times a second at most; then it stays where it is until the second is over or a table says otherwise. So nodes
    that contradict each other cost a few messages, whatever they say.
T5  The table is asked for when a node has named a newer version, or a node could not be reached, and at most once a second.
T6  Another cluster has another table: the old one and its hints go with the old cluster.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from ..core.slots import SLOT_COUNT
from ..core.table import EMPTY, Table, TableChange, apply
from ..errors import Invalid, RemoteProtocolError
from ..messages import Moved
from ..model import split_address
from .where import Address

REFRESH_SECONDS: Final = 1.0
"""Between two requests for the table (T5)."""
HOPS_MAX: Final = 5
HOPS_SECONDS: Final = 1.0
"""So often, in this time, a slot is sent on (T4)."""


@attrs.frozen
class Hint:
    """What a node has said of a slot that is not its own."""

    node_id: int
    version: int


@attrs.frozen
class Told:
    """Where a node is, according to a hint."""

    address: Address
    version: int


class Routing:
    """The table of one client, and what it has heard since."""

    def __init__(self) -> None:
        self.table: Table = EMPTY
        self.cluster_id = ""
        """The cluster that the table is of."""
        self._is_guess = True  # no node has given this table (T1)
        self._hints: dict[int, Hint] = {}  # by slot: 16384 at most
        self._told: dict[int, Told] = {}  # by node
        self._hops: dict[int, tuple[float, int]] = {}  # by slot: since when, and how often it was sent on
        self._announced = 0
        self._doubted = False
        self._asked_at = -math.inf

    def __repr__(self) -> str:
        guess = " guessed" if self._is_guess else ""
        return f"<Routing {self.table}{guess} hints={len(self._hints)} announced={self._announced}>"

    @property
    def version(self) -> int:
        """Of the table that a node gave; 0 while there is none."""
        return 0 if self._is_guess else self.table.version

    # --- what is asked of it --------------------------------------------------------------------------------------------------

    def owner(self, slot: int) -> int | None:
        """The node to ask about a slot; None when nobody is known to answer for it."""
        hint = self._hints.get(slot)
        if hint is not None:
            return hint.node_id
        node = self.table.owner(slot)
        return None if node is None else node.node_id

    def owners(self) -> tuple[int, ...]:
        """All nodes that answer for any slot, as the table says, in order."""
        primaries = dict.fromkeys(run.primary for run in self.table.runs)
        return tuple(node.node_id for node in self.table.nodes if node.node_id in primaries)

    def address(self, node_id: int) -> Address | None:
        """Where a node is: by whichever of table and hints is newer; None when nobody said."""
        told = self._told.get(node_id)
        if told is not None:
            return told.address
        node = self.table.node(node_id)
        return None if node is None else read_address(node.clients)

    def addresses(self) -> list[Address]:
        """Where any node is."""
        found = (self.address(node.node_id) for node in self.table.nodes)
        return [address for address in found if address is not None]

    # --- what is heard --------------------------------------------------------------------------------------------------------

    def moved(self, asked: int, message: Moved, now: float) -> None:
        """The node that was asked says who answers for the slot."""
        if message.slot >= SLOT_COUNT:
            raise RemoteProtocolError(f"there is no slot {message.slot}")
        self.announced(message.table_version)
        hint = self._hints.get(message.slot)
        if message.table_version < (self.version if hint is None else hint.version):
            return  # T2
        if message.node_id == asked or self.owner(message.slot) not in (asked, None):
            return  # T3
        since, count = self._hops.get(message.slot, (-math.inf, 0))
        if now >= since + HOPS_SECONDS:
            since, count = now, 0
        if count >= HOPS_MAX:
            return  # T4
        self._hops[message.slot] = (since, count + 1)
        self._hints[message.slot] = Hint(message.node_id, message.table_version)
        address = read_address(message.address)
        told = self._told.get(message.node_id)
        if address is not None and (told is None or told.version <= message.table_version):
            self._told[message.node_id] = Told(address, message.table_version)

    def announced(self, version: int) -> None:
        """A node has named the version that it has."""
        self._announced = max(self._announced, version)

    def doubt(self) -> None:
        """A node could not be reached: perhaps it is elsewhere by now."""
        self._doubted = True

    def reset(self, cluster_id: str) -> None:
        """The nodes are of this cluster (T6)."""
        if cluster_id != self.cluster_id:
            self.table, self.cluster_id, self._is_guess = EMPTY, cluster_id, True
            self._hints, self._told, self._hops = {}, {}, {}
            self._announced, self._doubted = 0, False

    # --- the table ------------------------------------------------------------------------------------------------------------

    @property
    def refresh_at(self) -> float:
        """When the table is to be asked for; infinity while there is no reason (T5)."""
        return self._asked_at + REFRESH_SECONDS if self._doubted or self.is_behind else math.inf

    @property
    def is_behind(self) -> bool:
        """Whether a node has named a newer table than the one in hand."""
        return self._announced > self.version

    def asked(self, now: float) -> None:
        """A node was asked for the table."""
        self._asked_at, self._doubted = now, False

    def guess(self, cluster_id: str, table: Table) -> None:
        """Begin with a table from a cache (T1)."""
        assert self.table is EMPTY, self
        self.table, self.cluster_id = table, cluster_id

    def take(self, change: TableChange) -> bool:
        """Take what a node has answered; returns whether it is news."""
        if not change.version or (not self._is_guess and change.version <= self.table.version):
            return False  # T1
        if change.base and (self._is_guess or change.base != self.table.version):
            return False  # what it would lead on from is not here: it is asked for again
        self.table, self._is_guess = apply(self.table, change), False
        self._hints = {slot: hint for slot, hint in self._hints.items() if hint.version > change.version}  # T2
        self._told = {node_id: told for node_id, told in self._told.items() if told.version > change.version}
        return True

    def validate(self) -> None:
        """Assert what always holds; for tests."""
        self.table.validate()
        assert all(hint.version >= self.version or self._is_guess for hint in self._hints.values())  # T2
        assert not self._is_guess or self.version == 0
        assert all(count <= HOPS_MAX for _, count in self._hops.values())  # T4


def read_address(text: str) -> Address | None:
    """An address as nodes tell it; None for one that cannot be dialled."""
    try:
        address = split_address(text)
    except Invalid:
        return None
    return address if address[1] else None
