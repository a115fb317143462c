"""The words between nodes: golden bytes of every message, old and new versions talking to each other, and any bytes at all.

The golden frames lie in `tests/data/wire/peer/<Message>.hex`; `pytest --rewrite` writes them afresh (see tests/conftest.py).
"""

from __future__ import annotations

import contextlib
from typing import Final

import attrs
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from govern import messages, peer_messages
from govern.core.meta import RECORD_BYTES_MAX
from govern.errors import LocalProtocolError, RemoteProtocolError
from govern.net.frames import FrameReader
from govern.peer_messages import (
    FRAME_BYTES_MAX_PEER,
    PEER_MESSAGES,
    Entry,
    Member,
    RaftMessage,
    build_peer_message,
    encode_peer,
    unpack_peer_frame,
)
from govern.wire import Message, MessageTable

from .test_messages import HEADER_BYTES, WIRE_DIRECTORY, any_values, message_classes

PEER_DIRECTORY: Final = WIRE_DIRECTORY / "peer"
ONE: Final = Member(1, bytes(range(16)))
TWO: Final = Member(2, bytes(range(16, 32)))
DISK: Final = TWO.disk_id
CLUSTER: Final = b"the blue cluster"
LIFE: Final = (2, DISK, 9)  # node, disk, boot

APPEND: Final = peer_messages.Append(ONE, TWO, 5, 100, 4, 99, 77, (Entry(101, 5, 0, b""), Entry(102, 5, 1, b"record")))
PIECE: Final = peer_messages.InstallSnapshot(ONE, TWO, 5, 90, 3, (ONE, TWO), (Member(3, DISK),), 262_144, True, 78, b"the state")

EXAMPLES: Final[tuple[Message, ...]] = (
    peer_messages.PeerHello(1, CLUSTER, *LIFE, True, "10.0.0.2:7401", "10.0.0.2:7400", (1, 2, 3), b"this life".ljust(16)),
    peer_messages.PeerRefused("cluster", "node 1 is of another cluster"),
    peer_messages.Ping(),
    peer_messages.ClusterFormed(CLUSTER),
    peer_messages.PreVote(ONE, TWO, 5, 100, 4),
    peer_messages.PreVoteAnswer(TWO, ONE, 5, True),
    peer_messages.Vote(ONE, TWO, 5, 100, 4, False),
    peer_messages.VoteAnswer(TWO, ONE, 5, True),
    APPEND,
    peer_messages.AppendAnswer(TWO, ONE, 5, True, 102, 5, 77),
    PIECE,
    peer_messages.SnapshotAnswer(TWO, ONE, 5, 90, 262_153, 78),
    peer_messages.TimeoutNow(ONE, TWO, 5),
    peer_messages.NodeRegister(*LIFE, 1, "10.0.0.2:7400", "10.0.0.2:7401", True, False),
    peer_messages.NodeRegistered(*LIFE, 1, 120, ""),
    peer_messages.NodeHeartbeat(*LIFE, 1, 33, 120, 2, 0, 40, 3000),
    peer_messages.NodeHeartbeatOk(*LIFE, 1, 33, peer_messages.HEARTBEAT_LEASED, 4000, 121, 1),
    peer_messages.TableAsk(120),
    peer_messages.TablePart(False, 120, 121, [], [3], [[0, 8191, 1, 9]]),
    peer_messages.AskController(2, 8, "forget", 3, {"force": True}),
    peer_messages.ControllerAnswer(2, 8, "", "", {"node_id": 3}),
)


def of(kind: type[Message]) -> Message:
    return next(example for example in EXAMPLES if type(example) is kind)


def nested(depth: int) -> dict[str, object]:
    """Lists in a mapping, so deep altogether."""
    inner: object = 1
    for _ in range(depth - 1):
        inner = [inner]
    return {"a": inner}


examples: Final = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)


def encoded_fields(message: Message) -> list[object]:
    fields: list[object] = unpack_peer_frame(encode_peer(message)[HEADER_BYTES:])
    return fields


def decode(payload: bytes) -> Message:
    return build_peer_message(unpack_peer_frame(payload))


def decode_or_refuse(payload: bytes) -> Message | None:
    """What a reader does with a payload; anything but the one allowed error comes out and fails the test."""
    with contextlib.suppress(RemoteProtocolError):
        return decode(payload)
    return None


def test_there_is_an_example_of_every_message() -> None:
    """Each message of the table has exactly one golden example, so a new message cannot be forgotten."""
    assert [type(example) for example in EXAMPLES] == list(PEER_MESSAGES.values())


def test_clients_and_nodes_share_no_type() -> None:
    """No client can say a word of nodes: the numbers are disjoint, and the classes of this module are all in its table."""
    assert [number for number in PEER_MESSAGES if number in messages.MESSAGES] == []
    classes = [kind for kind in message_classes(peer_messages) if kind is not RaftMessage]
    assert sorted(kind.TYPE for kind in classes) == sorted(PEER_MESSAGES)


def test_no_two_messages_of_a_table_have_one_type() -> None:
    """A number that is used twice is a bug of ours, found when the table is made."""
    with pytest.raises(AssertionError, match="has the type of"):
        MessageTable((peer_messages.Ping, peer_messages.Ping), items_max=1, entries_max=1, text_bytes_max=1, binary_bytes_max=1)


@examples
def test_golden_bytes(example: Message, rewrite: bool) -> None:
    """Encoding a message gives the bytes that were kept, and those bytes decode to the message."""
    path = PEER_DIRECTORY / f"{type(example).__name__}.hex"
    frame = encode_peer(example)
    if rewrite:
        path.write_text(frame.hex(" ", 1) + "\n")
    golden = bytes.fromhex(path.read_text())
    assert frame == golden
    assert int.from_bytes(golden[:HEADER_BYTES]) == len(golden) - HEADER_BYTES
    assert decode(golden[HEADER_BYTES:]) == example


def test_there_are_no_other_golden_files() -> None:
    """Every kept file belongs to a message: a renamed one leaves nothing behind."""
    assert sorted(path.stem for path in PEER_DIRECTORY.glob("*")) == sorted(kind.__name__ for kind in PEER_MESSAGES.values())


@examples
def test_fields_of_a_newer_version_are_ignored_and_fields_that_are_missing_refused(example: Message) -> None:
    """Unknown trailing fields do not change what is understood; without its last field that has no default a message is none."""
    fields = encoded_fields(example)
    assert decode(msgpack.packb([*fields, "new", {"unknown": [1, 2]}, None])) == example
    required = sum(field.default is attrs.NOTHING for field in attrs.fields(type(example)))
    assert type(decode(msgpack.packb(fields[: 2 + required]))) is type(example)
    if required:
        with pytest.raises(RemoteProtocolError, match="too few fields"):
            decode(msgpack.packb(fields[: 1 + required]))


def test_the_words_of_clients_are_not_understood_between_nodes() -> None:
    """A client that strays to the port of nodes, and a node that strays to that of clients, cost their connection."""
    with pytest.raises(RemoteProtocolError, match="unknown message type"):
        decode(messages.encode(messages.AskStatus(), 1)[HEADER_BYTES:])
    with pytest.raises(RemoteProtocolError, match="unknown message type"):
        messages.decode(encode_peer(peer_messages.Ping())[HEADER_BYTES:])


@pytest.mark.parametrize(
    ("example", "index", "value", "error"),
    [
        (EXAMPLES[4], 0, [1], "a member must be"),
        (EXAMPLES[4], 0, [1, bytes(15)], "16 bytes"),
        (EXAMPLES[4], 0, ["1", DISK], "a node id from 1 to 65535, got str"),
        (EXAMPLES[4], 0, [0, DISK], "a node id from 1 to 65535, got 0"),
        (EXAMPLES[4], 0, [1, b""], "16 bytes"),
        (EXAMPLES[4], 2, 1 << 62, r"less than 2\*\*62"),
        (APPEND, 7, [[1, 2, 3]], "an entry must be"),
        (APPEND, 7, [[1, 2, 3, "text"]], "expected bytes"),
        (APPEND, 7, [[1, 2, 256, b""]], "of kind 256"),
        (APPEND, 7, [[1 << 63, 2, 1, b""]], r"less than 2\*\*62"),
        (APPEND, 7, [[1, 2, 1, bytes(peer_messages.BYTES_MAX + 1)]], "not a msgpack frame"),
        (APPEND, 7, {}, "a list"),
        (PIECE, 5, [7], "a member must be"),
        (PIECE, 5, [[1, DISK]] * 64, "64 candidates are more than 63"),
        (PIECE, 9, bytes(peer_messages.BYTES_MAX + 1), "not a msgpack frame"),
        (of(peer_messages.PeerHello), 2, True, "a number"),
        (of(peer_messages.PeerHello), 4, 1 << 62, "a number"),
        (of(peer_messages.PeerHello), 6, "nowhere", "HOST:PORT"),
        (of(peer_messages.PeerHello), 7, "10.0.0.2:7400,10.0.0.3:7400", "HOST:PORT"),
        (of(peer_messages.PeerHello), 8, [-1], "a node id"),
        (of(peer_messages.PeerHello), 8, list(range(1, 65)), "64 candidates are more than 63"),
        (of(peer_messages.ClusterFormed), 0, bytes(16), "the id of a cluster"),
        (of(peer_messages.NodeRegister), 0, 65_536, "a node id"),
        (of(peer_messages.NodeRegister), 1, b"", "16 bytes"),
        (of(peer_messages.NodeRegister), 2, 1 << 63, "a number"),
        (of(peer_messages.NodeRegister), 3, 0, "a node id"),
        (of(peer_messages.NodeRegister), 4, "x" * 1000, "HOST:PORT"),
        (of(peer_messages.NodeHeartbeat), 4, (1 << 64) - 1, "a number"),
        (of(peer_messages.NodeHeartbeatOk), 7, 1 << 62, "a number"),
        (of(peer_messages.TablePart), 2, 1 << 62, "a number"),
        (of(peer_messages.AskController), 3, 65_536, "a node id"),
        (of(peer_messages.AskController), 4, nested(9), "more than 8 deep"),
        (of(peer_messages.ControllerAnswer), 4, nested(900), "more than 8 deep"),
    ],
)
def test_a_value_of_a_wrong_form_is_refused(example: Message, index: int, value: object, error: str) -> None:
    """The checks of members, entries, ids, addresses and numbers say what they miss."""
    fields = encoded_fields(example)
    fields[2 + index] = value
    with pytest.raises(RemoteProtocolError, match=error):
        decode(msgpack.packb(fields))


def test_what_is_nested_as_deep_as_is_allowed_is_taken() -> None:
    """And an operator's word without a node."""
    word = peer_messages.AskController(2, 8, "transfer", 0, nested(8))
    assert decode(encode_peer(word)[HEADER_BYTES:]) == word


def test_the_largest_pieces_fit_and_nothing_larger_is_sent() -> None:
    """A piece of a snapshot and a full Append fit into a frame; what no reader would take is refused before it is sent."""
    piece = attrs.evolve(PIECE, data=bytes(peer_messages.SNAPSHOT_CHUNK_BYTES))
    assert decode(encode_peer(piece)[HEADER_BYTES:]) == piece
    entries = tuple(Entry(index, 5, 1, bytes(RECORD_BYTES_MAX)) for index in range(32))
    full = attrs.evolve(APPEND, entries=entries[:31])
    assert decode(encode_peer(full)[HEADER_BYTES:]) == full
    with pytest.raises(LocalProtocolError, match="larger than the limit"):
        encode_peer(attrs.evolve(APPEND, entries=entries))


@given(st.lists(st.integers(1, 300), max_size=20))
def test_a_reader_of_peer_frames_has_the_limits_of_peers(sizes: list[int]) -> None:
    """A frame reader with the unpacking of peers takes what one for clients would refuse, in any pieces."""
    sent = [*EXAMPLES, peer_messages.Append(ONE, TWO, 5, 1, 1, 1, 1, tuple(Entry(index, 1, 1, b"") for index in range(2000)))]
    data = b"".join(map(encode_peer, sent))
    reader = FrameReader(FRAME_BYTES_MAX_PEER, unpack_peer_frame)
    frames = []
    for size in sizes:
        frames += reader.feed(data[:size])
        data = data[size:]
    frames += reader.feed(data)
    assert (reader.error, [build_peer_message(raw) for raw in frames]) == (None, sent)


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error_of_the_protocol(payload: bytes) -> None:
    """No bytes make the decoder raise anything but `RemoteProtocolError`."""
    decode_or_refuse(payload)


@settings(max_examples=500)
@given(st.sampled_from(EXAMPLES), st.data())
def test_any_mutated_message_is_a_message_or_an_error_of_the_protocol(example: Message, data: st.DataObject) -> None:
    """Bytes of real messages with pieces replaced, removed or inserted are decoded or refused, and what is decoded is a message."""
    payload = encode_peer(example)[HEADER_BYTES:]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(payload)))
        stop = data.draw(st.integers(start, min(start + 4, len(payload))))
        payload = payload[:start] + data.draw(st.binary(max_size=6)) + payload[stop:]
    decoded = decode_or_refuse(payload)
    assert decoded is None or type(decoded) is PEER_MESSAGES[type(decoded).TYPE]


@settings(max_examples=500)
@given(st.sampled_from(EXAMPLES), st.integers(0, 11), any_values)
def test_any_value_in_any_field_is_a_message_or_an_error_of_the_protocol(example: Message, index: int, value: object) -> None:
    """A value of a wrong type in one field of an otherwise good message is refused, or means something that can be said again."""
    fields = encoded_fields(example)
    fields[min(2 + index, len(fields) - 1)] = value
    decoded = decode_or_refuse(msgpack.packb(fields))
    assert decoded is None or decode(encode_peer(decoded)[HEADER_BYTES:]) == decoded
