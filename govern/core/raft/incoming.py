"""A snapshot that arrives piece by piece.

Pieces are taken in order only. What arrives twice is answered again, what arrives too early is answered with what is missing; either way
the answer is the number of bytes that are here, so that both sides agree after any loss.
"""

from __future__ import annotations

from typing import Final

from ...peer_messages import InstallSnapshot
from .types import Membership, Snapshot, SnapshotMeta

SNAPSHOT_BYTES_MAX: Final = 256 * 1024 * 1024
"""No table of slots and nodes is nearly so large; a peer that sends more is not heard further."""


class Incoming:
    """The pieces so far of one snapshot from one leader."""

    __slots__ = ("_meta", "_state", "_term")

    def __init__(self, message: InstallSnapshot, membership: Membership) -> None:
        self._meta = SnapshotMeta(message.index, message.index_term, membership)
        self._term = message.term
        self._state = bytearray()

    @property
    def received(self) -> int:
        """So many bytes are here."""
        return len(self._state)

    def is_of(self, message: InstallSnapshot) -> bool:
        """Whether a piece belongs to this snapshot."""
        return (message.term, message.index, message.index_term) == (self._term, self._meta.index, self._meta.term)

    def take(self, message: InstallSnapshot) -> Snapshot | None:
        """One piece; the whole, if this was the last."""
        if message.offset == self.received and self.received + len(message.data) <= SNAPSHOT_BYTES_MAX:
            self._state += message.data
            if message.last:
                return Snapshot(self._meta, bytes(self._state))
        return None
