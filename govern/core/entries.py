"""Entries and operations: what a slot stores, and what its log says.

An *entry* is one instance as the store keeps it, a single `bytes` object (a hundred thousand of them cost the garbage collector
nothing):

    entry = session_id (16 bytes) | request_id (8 bytes, big endian) | public form (see govern.model)

The head says which session registered it and with which request, so that a repeated request is recognised after a
restart; it never leaves the node. The rest is exactly what readers get.

An *operation* is what a client, an operator or the failure detector wants to happen to one instance. Its record in the log holds
the operation itself, not its outcome: the outcome follows from the operation and the committed state (`core.shard`), the
same way today, at recovery and on a replica.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgpack

from ..model import Lsn, ServiceKey, pack_public, pack_server_part

_HEAD = struct.Struct(">16sQ")
HEAD_BYTES: Final = _HEAD.size
SESSION_NONE: Final = bytes(16)

REGISTER: Final = 1
UPDATE: Final = 2
DEREGISTER: Final = 3
EXPIRE: Final = 4
DRAIN: Final = 5
EVICT: Final = 6


class EntryParts(NamedTuple):
    """An entry taken apart, for the moments in which it is changed or judged."""

    session_id: bytes
    request_id: int
    lease_id: Lsn
    lsn: Lsn
    registered_at_ms: int
    client: list[Any]

    @property
    def ephemeral(self) -> bool:
        return bool(self.client[9])

    @property
    def ttl_ms(self) -> int:
        return int(self.client[10])


def pack_entry(session_id: bytes, request_id: int, lease_id: Lsn, lsn: Lsn, registered_at_ms: int, client_part: bytes) -> bytes:
    """One entry from its parts; the client part is packed already."""
    return _HEAD.pack(session_id, request_id) + pack_public(pack_server_part(lease_id, lsn, registered_at_ms), client_part)


def unpack_entry(entry: bytes) -> EntryParts:
    """The parts of an entry that this node packed itself."""
    session_id, request_id = _HEAD.unpack_from(entry)
    (lease_term, lease_seq, term, seq, registered_at_ms), client = msgpack.unpackb(entry[HEAD_BYTES:])
    return EntryParts(session_id, request_id, Lsn(lease_term, lease_seq), Lsn(term, seq), registered_at_ms, client)


def session_of(entry: bytes) -> bytes:
    """The id of the session that registered it."""
    return entry[: len(SESSION_NONE)]


def public_form(entry: bytes) -> bytes:
    """What readers get of an entry."""
    return entry[HEAD_BYTES:]


class RegisterOp(NamedTuple):
    """Put an instance in place; `prior` is the lease that its session believed to hold, or zero."""

    service: ServiceKey
    instance_id: str
    session_id: bytes
    request_id: int
    prior: Lsn
    registered_at_ms: int
    client_part: bytes
    ephemeral: bool
    ttl_ms: int

    def pack(self) -> bytes:
        service, identity, session_id, request_id, prior, at_ms, client_part, _, _ = self
        packed: bytes = msgpack.packb([*service, identity, session_id, request_id, *prior, at_ms, client_part])
        return packed


class UpdateOp(NamedTuple):
    """Change some fields of the client part, if the lease is still held by this session. `changes` is validated: field number -> value."""

    service: ServiceKey
    instance_id: str
    session_id: bytes
    request_id: int
    lease_id: Lsn
    changes: dict[int, Any]

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb([*self.service, self.instance_id, self.session_id, self.request_id, *self.lease_id, self.changes])
        return packed


class DeregisterOp(NamedTuple):
    """Remove an instance, if the lease is still held by this session."""

    service: ServiceKey
    instance_id: str
    session_id: bytes
    request_id: int
    lease_id: Lsn

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb([*self.service, self.instance_id, self.session_id, self.request_id, *self.lease_id])
        return packed


class ExpireOp(NamedTuple):
    """Remove an instance whose session fell silent, if the lease is still the same (rule E4)."""

    service: ServiceKey
    instance_id: str
    lease_id: Lsn

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb([*self.service, self.instance_id, *self.lease_id])
        return packed


class DrainOp(NamedTuple):
    """Set an instance to draining, if the lease is still the same; under lease zero, whoever holds it."""

    service: ServiceKey
    instance_id: str
    lease_id: Lsn

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb([*self.service, self.instance_id, *self.lease_id])
        return packed


class EvictOp(NamedTuple):
    """Remove an instance whoever holds it, and bar its session from registering that id again."""

    service: ServiceKey
    instance_id: str

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb([*self.service, self.instance_id])
        return packed


Op = RegisterOp | UpdateOp | DeregisterOp | ExpireOp | DrainOp | EvictOp
OP_TYPES: Final[dict[type[Op], int]] = {
    RegisterOp: REGISTER,
    UpdateOp: UPDATE,
    DeregisterOp: DEREGISTER,
    ExpireOp: EXPIRE,
    DrainOp: DRAIN,
    EvictOp: EVICT,
}


def unpack_op(type_number: int, payload: bytes) -> Op:
    """The operation of a log record; raises `ValueError` for a type this version does not know."""
    values = msgpack.unpackb(payload, strict_map_key=False)
    service, identity = ServiceKey(values[0], values[1]), values[2]
    if type_number == REGISTER:
        session_id, request_id, term, seq, at_ms, client_part = values[3:9]
        client = msgpack.unpackb(client_part)
        return RegisterOp(service, identity, session_id, request_id, Lsn(term, seq), at_ms, client_part, client[9], client[10])
    if type_number == UPDATE:
        return UpdateOp(service, identity, values[3], values[4], Lsn(values[5], values[6]), values[7])
    if type_number == DEREGISTER:
        return DeregisterOp(service, identity, values[3], values[4], Lsn(values[5], values[6]))
    if type_number == EXPIRE:
        return ExpireOp(service, identity, Lsn(values[3], values[4]))
    if type_number == DRAIN:
        return DrainOp(service, identity, Lsn(values[3], values[4]))
    if type_number == EVICT:
        return EvictOp(service, identity)
    raise ValueError(f"unknown operation type {type_number}: this log was written by a newer version")
