"""The digest of a registration: how a client and a node compare everything a session holds in one number.

The digest of a set of registrations is the xor of the digests of its members, so both sides keep it up to date with one
xor per change. The service is part of it: equal instance ids in two services would otherwise cancel each other out.
"""

from __future__ import annotations

import hashlib

from ..model import Lsn, ServiceKey


def lease_digest(service: ServiceKey, instance_id: str, lease_id: Lsn) -> int:
    """64 bits: the first 8 bytes, big endian, of BLAKE2b over the text `namespace/service instance_id term seq`. A blank occurs in no
    name and a slash in no namespace, so no two registrations have the same text."""
    text = f"{service[0]}/{service[1]} {instance_id} {lease_id[0]} {lease_id[1]}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
