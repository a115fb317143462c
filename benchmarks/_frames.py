"""Frames for the load: encoded once, before the clock starts."""

from __future__ import annotations

import os
import struct
from typing import Any, Final

from govern.core.digests import lease_digest
from govern.messages import PROTOCOL_VERSION, Heartbeat, Hello, Lookup, Message, Register, Registered, Subscribe, decode, encode
from govern.model import LSN_ZERO, ServiceKey

SERVICES: Final = 1000
ANSWER_BYTES: Final = 16
"""The answer of a baseline to a registration: about as long as a node's."""
FILE_BYTES: Final = 64 << 20
TTL_MS: Final = 3_600_000
"""So long that no registration expires while the load pauses."""

_length_at = struct.Struct(">I").unpack_from


def service(number: int) -> ServiceKey:
    """One of the services over which instances are spread."""
    return ServiceKey("bench", f"service-{number % SERVICES}")


def instance(name: str, metadata_bytes: int, *, ttl_ms: int = TTL_MS) -> list[Any]:
    """The client part of an instance with so many bytes of metadata: about 60 bytes more when it is packed."""
    metadata = {}
    if metadata_bytes >= 40:
        metadata = {"rack": "r-17", "build": "2026-11-21.4", "note": "n" * (metadata_bytes - 29)}
    elif metadata_bytes:
        metadata = {"rack": "r" * (metadata_bytes - 4)}
    return [name, "10.20.30.40", 8080, "http", 1.0, "eu-1", "1.4.2", metadata, 0, True, ttl_ms]


def hello(*, session: bool) -> bytes:
    """The greeting of a client, with a session of its own or, for one that only reads, without."""
    return encode(Hello(PROTOCOL_VERSION, "", "benchmark", "", os.urandom(16) if session else b"", 1), 1)


def register(request_id: int, key: ServiceKey, fields: list[Any]) -> bytes:
    return encode(Register(key, fields, LSN_ZERO, 0), request_id)


def lookup(key: ServiceKey) -> bytes:
    return encode(Lookup(key), 1)


def subscribe(key: ServiceKey) -> bytes:
    return encode(Subscribe(key), 1)


def heartbeat(held: list[tuple[ServiceKey, str, Registered]]) -> bytes:
    """The heartbeat that agrees with what the node knows of a session."""
    digest = 0
    for key, identity, answer in held:
        digest ^= lease_digest(key, identity, answer.lease_id)
    return encode(Heartbeat(len(held), digest), 1)


def whole_frames(data: bytes) -> int:
    """The length of the whole frames at the beginning."""
    position, end = 0, len(data)
    while end - position >= 4:
        (length,) = _length_at(data, position)
        if position + 4 + length > end:
            break
        position += 4 + length
    return position


def messages(data: bytes) -> list[Message]:
    """The messages in whole frames."""
    found, position = [], 0
    while position < len(data):
        (length,) = _length_at(data, position)
        found.append(decode(data[position + 4 : position + 4 + length])[0])
        position += 4 + length
    return found
