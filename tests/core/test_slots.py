"""Slots: the same numbers as Redis Cluster's CLUSTER KEYSLOT."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.core.slots import SLOT_COUNT, key_slot, slot_of
from govern.model import ServiceKey


def crc16_bit_by_bit(data: bytes) -> int:
    """CRC16/XMODEM from its definition: polynomial x^16 + x^12 + x^5 + 1, starting at 0, most significant bit first."""
    crc = 0
    for byte in data:
        for bit in range(7, -1, -1):
            feedback = (crc >> 15) ^ (byte >> bit & 1)
            crc = (crc << 1 & 0xFFFF) ^ (0x1021 if feedback else 0)
    return crc


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        ("", 0),
        ("foo", 12182),
        ("bar", 5061),
        ("hello", 866),
        ("123456789", 12739),  # the check value 0x31C3 of the catalogue of CRCs
    ],
)
def test_known_slots(key: str, slot: int) -> None:
    """Published numbers come out."""
    assert key_slot(key) == slot


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("{user1000}.following", "user1000"),
        ("prod/{user1000}.followers", "user1000"),
        ("foo{}{bar}", "foo{}{bar}"),  # the first pair is empty: no tag at all
        ("foo{{bar}}zap", "{bar"),  # the first `}` after the first `{`
        ("foo{bar}{zap}", "bar"),
        ("foo{bar", "foo{bar"),
        ("foo}bar", "foo}bar"),
        ("}foo{", "}foo{"),
        ("foo}{bar}", "bar"),
        ("{}", "{}"),
        ("{a}", "a"),
    ],
)
def test_the_tag_rule(key: str, hashed: str) -> None:
    """Of a key with a tag only the tag counts; an empty or unbalanced pair of braces is no tag."""
    assert key_slot(key) == crc16_bit_by_bit(hashed.encode()) % SLOT_COUNT


@given(st.text())
def test_the_fast_function_agrees_with_the_definition(text: str) -> None:
    """For any text without a tag, in UTF-8."""
    key = text.replace("{", "")
    assert key_slot(key) == crc16_bit_by_bit(key.encode()) % SLOT_COUNT


@given(st.text(), st.text(), st.text(min_size=1))
def test_keys_with_one_tag_share_a_slot(before: str, after: str, tag: str) -> None:
    """Whatever stands around the tag does not matter."""
    before, tag = before.replace("{", ""), "t" + tag.replace("}", "")
    assert key_slot(f"{before}{{{tag}}}{after}") == key_slot(f"{{{tag}}}") == crc16_bit_by_bit(tag.encode()) % SLOT_COUNT


def test_a_service_hashes_with_its_namespace() -> None:
    """Without a tag the namespace takes part, with one only the tag does."""
    assert slot_of(ServiceKey("default", "orders")) == key_slot("default/orders")
    assert slot_of(ServiceKey("prod", "{shop}/orders")) == slot_of(ServiceKey("test", "{shop}/payments")) == key_slot("shop")
