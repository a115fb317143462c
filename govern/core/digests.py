"""The digest of a registration: how a client and a node compare everything a session holds in one number.

The digest of a set of registrations is the xor of the digests of its members, so both sides keep it up to date with one
xor per change. The service is part of it: equal instance ids in two services would otherwise cancel each other out.
"""

from __future__ import annotations

import hashlib

from ..model import Lsn, ServiceKey


def lease_key(service: ServiceKey, instance_id: str) -> str:
    """`namespace/service instance_id`. A blank occurs in no name and a slash in no namespace, so no two instances have the same key, and it
    can be taken apart again."""
    return f"{service[0]}/{service[1]} {instance_id}"


def key_digest(key: str, term: int, seq: int) -> int:
    """64 bits: the first 8 bytes, big endian, of BLAKE2b over the text `namespace/service instance_id term seq`."""
    return int.from_bytes(hashlib.blake2b(f"{key} {term} {seq}".encode(), digest_size=8).digest(), "big")


def lease_digest(service: ServiceKey, instance_id: str, lease_id: Lsn) -> int:
    """The digest of one registration."""
    return key_digest(lease_key(service, instance_id), lease_id[0], lease_id[1])
