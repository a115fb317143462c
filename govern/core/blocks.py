"""Blocks: one slot as a snapshot keeps it.

    state = msgpack [services, barred]
    services: [namespace, name, term, seq, {instance id: entry}]      only those with instances
    barred: [service as text, instance id, session id]                oldest first

A block is read as strictly as it is written: the checksum of the snapshot has proven that these are the bytes of a node, and whatever has
another shape comes from a version with other ideas.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgpack

from ..model import Lsn

BARRED_MAX: Final = 256
"""So many evictions are remembered by each slot."""

Barred = tuple[str, str, bytes]
"""The service as text, the instance id, and the session that does not get it again."""


class Block(NamedTuple):
    """One slot as a snapshot keeps it: everything up to and including `lsn`."""

    slot: int
    lsn: Lsn
    state: bytes


def pack_state(rows: list[list[Any]], barred: Iterable[Barred]) -> bytes:
    """The state of one slot."""
    packed: bytes = msgpack.packb([rows, list(barred)])
    return packed


def unpack_state(state: bytes) -> tuple[list[Any], list[Barred]]:
    """The services and the barred of a block; raises `ValueError` for anything that `pack_state` would not have written."""
    size = len(state)
    parts = msgpack.unpackb(state, max_array_len=size, max_map_len=size, max_bin_len=size, max_str_len=size)
    if type(parts) is not list or [type(part) for part in parts] != [list, list]:
        raise ValueError("a block of a snapshot is a list of services and a list of the barred")
    rows, barred = parts
    for row in rows:
        if type(row) is not list or [type(value) for value in row] != [str, str, int, int, dict] or not row[4]:
            raise ValueError("a service in a block of a snapshot is its namespace, name, term, seq and entries")
    if len(barred) > BARRED_MAX:
        raise ValueError(f"a block of a snapshot bars {len(barred)} sessions, more than {BARRED_MAX}")
    for row in barred:
        if type(row) is not list or [type(value) for value in row] != [str, str, bytes]:
            raise ValueError("who is barred in a block of a snapshot is a service, an instance id and a session id")
    return rows, [(service, instance_id, session_id) for service, instance_id, session_id in barred]
