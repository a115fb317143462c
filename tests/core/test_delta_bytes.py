"""What one change costs on the wire: little, and it is encoded once for everybody."""

from __future__ import annotations

import struct

import pytest

from govern.core.links import Link
from govern.messages import Delta, Deregister, Drain, Message, Register, Registered, Subscribe, Update
from govern.model import Instance, Lsn, client_fields

from .rig import ORDERS, A, Rig, messages_of

INSTANCES = 1_000
SUBSCRIBERS = 50
PAYLOAD_BYTES_MAX = 200
METADATA = {"region": "eu-central-1", "build": "2026-11-21.4711", "shard": "0123", "team": "orders-eu"}
"""All 60 bytes that the figure allows, keys and values."""


def wish(number: int) -> Register:
    """Registers an instance as they look in practice."""
    host, port = f"10.11.12.{number % 250}", 8_000 + number
    instance = Instance(
        id=f"{host}:{port}", host=host, port=port, protocol="http", zone="eu-1a", version="12.34.5", metadata=METADATA, ttl=5.0
    )
    return Register(ORDERS, client_fields(instance))


def crowded() -> tuple[Rig, Link, str, Lsn, list[Link]]:
    """A service of many instances and subscribers, long unchanged: the owner's link, one instance, its lease, the readers."""
    rig = Rig()
    owner = rig.link(A)
    for number in range(INSTANCES):
        rig.give(owner, wish(number))
    rig.commit()
    leases = [answer.lease_id for answer, _ in rig.said(owner) if isinstance(answer, Registered)]
    assert len(leases) == INSTANCES
    readers = [rig.link(b"") for _ in range(SUBSCRIBERS)]
    for reader in readers:
        rig.give(reader, Subscribe(ORDERS))
        rig.said(reader)
    rig.dispatch.now_us += 1_000_000
    return rig, owner, wish(INSTANCES // 2).instance[0], leases[INSTANCES // 2], readers


CHANGES = ("registered", "updated", "draining", "removed")


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_among_a_thousand_instances_is_one_small_delta_that_is_encoded_once(change: str) -> None:
    """Whatever happens to one of a thousand instances with 60 bytes of metadata: each of fifty subscribers is put out exactly one frame of
    at most 200 bytes of payload, which is the very same object for all of them, and nothing but that instance is in it."""
    assert sum(map(len, (*METADATA, *METADATA.values()))) == 60
    rig, owner, victim, lease_id, readers = crowded()
    wishes: dict[str, Message] = {
        "registered": wish(INSTANCES),
        "updated": Update(ORDERS, victim, lease_id, {"weight": 0.123456789}),
        "draining": Drain(ORDERS, victim, lease_id, 10_000),
        "removed": Deregister(ORDERS, victim, lease_id),
    }
    rig.give(owner, wishes[change])
    rig.commit()
    first = readers[0].out
    assert len(first) == 1
    for reader in readers:
        assert len(reader.out) == 1
        assert reader.out[0] is first[0], "encoded more than once"
    (frame,) = first
    (length,) = struct.unpack_from(">I", frame)
    assert len(frame) == 4 + length, "more than one frame"
    assert length <= PAYLOAD_BYTES_MAX

    ((delta, request_id),) = messages_of(frame)
    assert isinstance(delta, Delta)
    assert request_id == 0
    assert len(delta.changed) + len(delta.removed) == 1
    assert delta.lsn == rig.shard.service_lsn(ORDERS) > delta.since
