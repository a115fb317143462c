"""Slots: the fixed 16384 shares into which all services are divided.

A service belongs to the slot `crc16(key) % 16384` where the key is `namespace/name`; when the name carries a non-empty `{tag}`,
the tag alone is the key, so that services with one tag share a slot. The function is CRC16/XMODEM, and the tag rule is the one
of the Redis Cluster specification (`CLUSTER KEYSLOT`), so other tools can compute it.
"""

from __future__ import annotations

import binascii
from typing import Final

from ..model import ServiceKey

SLOT_COUNT: Final = 16384


def key_slot(key: str) -> int:
    """The slot of any key, with the tag rule: the part between the first `{` and the first `}` after it, if not empty."""
    start = key.find("{")
    if start >= 0:
        end = key.find("}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key.encode(), 0) % SLOT_COUNT


def slot_of(service: ServiceKey) -> int:
    """The slot of a service."""
    return key_slot(f"{service.namespace}/{service.name}")
