"""The wire: golden bytes of every message, old and new versions talking to each other, and any bytes at all.

The golden frames lie in `tests/data/wire/<Message>.hex`; `pytest --rewrite` writes them afresh (see tests/conftest.py).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType
from typing import Final

import attrs
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from govern import messages
from govern.errors import Invalid, RemoteProtocolError
from govern.messages import MESSAGES, Message
from govern.model import Instance, Lsn, ServiceKey, client_fields

WIRE_DIRECTORY: Final = Path(__file__).parent / "data" / "wire"
REQUEST_ID: Final = 7
HEADER_BYTES: Final = 4
SERVICE: Final = ServiceKey("prod", "orders")
FIELDS: Final = client_fields(Instance(id="10.0.0.1:8080", host="10.0.0.1", port=8080, metadata={"version": "2.1"}))
PUBLIC: Final = [[1, 2, 3, 4, 1_900_000_000_000], FIELDS]

EXAMPLES: Final[tuple[Message, ...]] = (
    messages.Hello(1, "blue", "client 3", "secret", bytes(range(16)), 2),
    messages.HelloOk(1, "blue", 1, "0.1.0", 1000, True, 17),
    messages.Refused("overloaded", "the queue is full", 250),
    messages.Heartbeat(3, 0xDEADBEEFDEADBEEF),
    messages.HeartbeatOk(1, False, 17),
    messages.Register(SERVICE, FIELDS, Lsn(1, 2), 5000),
    messages.Registered(Lsn(1, 2), Lsn(3, 4)),
    messages.Update(SERVICE, "10.0.0.1:8080", Lsn(1, 2), {"weight": 0.5, "metadata": {"a": "b"}}, 5000),
    messages.Deregister(SERVICE, "10.0.0.1:8080", Lsn(1, 2), 5000),
    messages.Done(Lsn(3, 4)),
    messages.Lookup(SERVICE),
    messages.View(SERVICE, Lsn(3, 4), True, False, [PUBLIC]),
    messages.Subscribe(SERVICE, Lsn(3, 4)),
    messages.Resumed(SERVICE, Lsn(3, 4)),
    messages.Delta(SERVICE, Lsn(1, 2), Lsn(3, 4), [PUBLIC], ["10.0.0.2:8080"]),
    messages.Unsubscribe(SERVICE),
    messages.Services("prod"),
    messages.ServiceList(True, [["prod", "orders", 1234, 2]]),
    messages.AskStatus(),
    messages.NodeStatus({"node_id": 1, "mode": "disk", "degraded": []}),
    messages.Goodbye(),
    messages.Lost(SERVICE, "10.0.0.1:8080", Lsn(1, 2), "superseded"),
    messages.Resync([["default", "orders", "10.0.0.1:8080", 1, 2]], more=False),
    messages.ResyncOk([["default", "orders", "a"]], [["default", "orders", "b"]], [], [["default", "orders", "c", 1, 9]]),
    messages.Hint(SERVICE, ["10.0.0.1:8080"], on=True),
    messages.Applied(SERVICE, Lsn(1, 7)),
    messages.Drain(SERVICE, "10.0.0.1:8080", Lsn(1, 2), 5_000),
    messages.Drained(Lsn(1, 8), 3, 1, ["10.0.0.9 caller"]),
    messages.Evict(SERVICE, "10.0.0.1:8080"),
    messages.Explain(SERVICE, "10.0.0.1:8080"),
    messages.Explained([{"id": "10.0.0.1:8080", "status": "up"}], [{"kind": "registered", "at": "2030-01-01T00:00:00.000Z"}]),
    messages.AskTable(16),
    messages.TableRows(True, 16, 17, [[1, "10.0.0.1:7400", "10.0.0.1:7401", True, "up", bytes(16), 3, 5]], [4], [[0, 8191, 1, 9]]),
    messages.Moved(1234, 2, "10.0.0.2:7400", 17),
    messages.Administer("forget", 3, {"force": True}),
    messages.Administered({"node_id": 3}),
)


def encoded_fields(message: Message) -> list[object]:
    fields: list[object] = messages.unpack_frame(messages.encode(message, REQUEST_ID)[HEADER_BYTES:])
    return fields


def decode_or_refuse(payload: bytes) -> tuple[Message, int] | None:
    """What a reader does with a payload; anything but the two allowed errors comes out and fails the test."""
    with contextlib.suppress(Invalid, RemoteProtocolError):
        return messages.decode(payload)
    return None


def message_classes(module: ModuleType) -> list[type[Message]]:
    """Every message that a module defines."""
    return [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message]


def test_there_is_an_example_of_every_message() -> None:
    """Each message of the table has exactly one golden example, so a new message cannot be forgotten."""
    assert [type(example) for example in EXAMPLES] == list(MESSAGES.values())


def test_type_numbers_are_unique_and_split_by_direction() -> None:
    """No number of the type table is used twice, each message class has its own, and each goes one way."""
    numbers = [kind.TYPE for kind in message_classes(messages)]
    assert sorted(numbers) == sorted(MESSAGES)
    assert len(dict.fromkeys(numbers)) == len(numbers)
    assert frozenset(MESSAGES) == messages.TO_NODE | messages.TO_CLIENT
    assert frozenset() == messages.TO_NODE & messages.TO_CLIENT


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_golden_bytes(example: Message, rewrite: bool) -> None:
    """Encoding a message gives the bytes that were kept, and those bytes decode to the message."""
    path = WIRE_DIRECTORY / f"{type(example).__name__}.hex"
    frame = messages.encode(example, REQUEST_ID)
    if rewrite:
        path.write_text(frame.hex(" ", 1) + "\n")
    golden = bytes.fromhex(path.read_text())
    assert frame == golden
    assert int.from_bytes(golden[:HEADER_BYTES]) == len(golden) - HEADER_BYTES
    assert messages.decode(golden[HEADER_BYTES:]) == (example, REQUEST_ID)


def test_there_are_no_other_golden_files() -> None:
    """Every kept file belongs to a message: a renamed one leaves nothing behind."""
    assert sorted(path.stem for path in WIRE_DIRECTORY.glob("*.hex")) == sorted(kind.__name__ for kind in MESSAGES.values())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_fields_of_a_newer_version_are_ignored(example: Message) -> None:
    """Unknown trailing fields, whatever they are, do not change what is understood."""
    payload = msgpack.packb([*encoded_fields(example), "new", {"unknown": [1, 2]}, None])
    assert messages.decode(payload) == (example, REQUEST_ID)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_fields_an_older_version_does_not_send_take_their_default(example: Message) -> None:
    """Without any trailing part of its fields that have defaults a message is understood; without one more it is refused."""
    fields = attrs.fields(type(example))
    required = sum(field.default is attrs.NOTHING for field in fields)
    for kept in range(required, len(fields)):
        message, _ = messages.decode(msgpack.packb(encoded_fields(example)[: 2 + kept]))
        missing = {field.name: field.default for field in fields[kept:]}
        assert message == attrs.evolve(example, **missing)
    if required:
        with pytest.raises(RemoteProtocolError, match="too few fields"):
            messages.decode(msgpack.packb(encoded_fields(example)[: 1 + required]))


def test_an_unknown_type_is_refused() -> None:
    """A message type that is not in the table costs the connection."""
    with pytest.raises(RemoteProtocolError, match="unknown message type"):
        messages.decode(msgpack.packb([max(MESSAGES) + 1, REQUEST_ID]))


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error_of_the_protocol(payload: bytes) -> None:
    """No bytes make the decoder raise anything but `Invalid` and `RemoteProtocolError`."""
    decode_or_refuse(payload)


@settings(max_examples=500)
@given(st.sampled_from(EXAMPLES), st.data())
def test_any_mutated_message_is_a_message_or_an_error_of_the_protocol(example: Message, data: st.DataObject) -> None:
    """Bytes of real messages with pieces replaced, removed or inserted are decoded or refused, and what is decoded is a message."""
    payload = messages.encode(example, REQUEST_ID)[HEADER_BYTES:]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(payload)))
        stop = data.draw(st.integers(start, min(start + 4, len(payload))))
        payload = payload[:start] + data.draw(st.binary(max_size=6)) + payload[stop:]
    decoded = decode_or_refuse(payload)
    assert decoded is None or type(decoded[0]) is MESSAGES[type(decoded[0]).TYPE]


_scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=17)
any_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500)
@given(st.sampled_from(EXAMPLES), st.integers(0, 5), any_values)
def test_any_value_in_any_field_is_a_message_or_an_error_of_the_protocol(example: Message, index: int, value: object) -> None:
    """A value of a wrong type in one field of an otherwise good message is refused with one of the two errors, or means something."""
    fields = encoded_fields(example)
    fields[min(2 + index, len(fields) - 1)] = value
    decode_or_refuse(msgpack.packb(fields))
