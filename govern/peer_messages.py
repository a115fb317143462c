"""What nodes say to each other: a table of messages of its own, so that no client can ever send one and no node mistakes a client's.

The second element of each frame is 0, for links have no request ids. The numbers start at 101. Any bytes at all lead to a message or to a
`RemoteProtocolError`.

Every field is checked here, at the door, for what it can be at all: ids, addresses, numbers that stay numbers of the wire when they grow,
sizes that fit into a file. So nothing behind this door meets a value that it would have to assert. What a message *says* may still be
wrong; whether it is believed is for its reader.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, NamedTuple

import attrs

from . import checks
from .errors import Invalid, LocalProtocolError, RemoteProtocolError
from .model import NODE_ID_MAX, split_address
from .wire import Message, MessageTable, frame
from .wire import field as _field

PEER_PROTOCOL_VERSION: Final = 1
PEER_PROTOCOL_VERSION_MIN: Final = 1
"""The oldest version that is still spoken; a newer other side speaks ours."""
FRAME_BYTES_MAX_PEER: Final = 8 * 1024 * 1024
SNAPSHOT_CHUNK_BYTES: Final = 256 * 1024
"""A snapshot travels in pieces of this size, so that heartbeats are never far behind it."""
ENTRIES_BYTES_MAX: Final = 256 * 1024
"""About so much of the log goes into one Append."""
BYTES_MAX: Final = 256 * 1024
"""The largest piece of bytes in a message: the data of an entry, or a piece of a snapshot. No metadata record is larger."""
NUMBER_MAX: Final = 1 << 62
"""No term, index, version or counter is so large; who says so is not believed, for numbers must stay numbers of the wire when they grow."""
MEMBERS_MAX: Final = 63
"""So many voters and learners together: far more than anybody should have (a leader speaks with each one), and a bound for readers."""
KIND_MAX: Final = 255
"""Kinds of entries; three are known."""
DISK_ID_BYTES: Final = 16


NO_LIFE: Final = bytes(16)
"""Of a node that says nothing of its life."""
LIFE_REFUSALS: Final = ("rolled_back", "cloned")
"""What is refused is not the link but this life of the node: its disk had a later one, or has another one under the same number."""


class Member(NamedTuple):
    """One candidate as Raft knows it: a node on one disk. A node with a new disk is another member (KIP-853)."""

    node_id: int
    disk_id: bytes


class Entry(NamedTuple):
    """One entry of the metadata log."""

    index: int  # type: ignore[assignment]  # the word of the field; nobody searches an entry as a tuple
    term: int
    kind: int
    data: bytes


def _is_bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise RemoteProtocolError(f"expected bytes, got {type(value).__name__}")
    return value


def _is_number(value: object) -> int:
    if type(value) is not int or not 0 <= value < NUMBER_MAX:
        raise RemoteProtocolError(f"expected a number that is not negative and less than 2**62, got {_shown(value)}")
    return value


def _is_node_id(value: object) -> int:
    if type(value) is not int or not 1 <= value <= NODE_ID_MAX:
        raise RemoteProtocolError(f"expected a node id from 1 to {NODE_ID_MAX}, got {_shown(value)}")
    return value


def _is_node_id_or_0(value: object) -> int:
    return 0 if value == 0 and type(value) is int else _is_node_id(value)


def _shown(value: object) -> str:
    return str(value) if type(value) is int else type(value).__name__


def _is_id(value: object) -> bytes:
    if type(value) is not bytes or len(value) != DISK_ID_BYTES:
        raise RemoteProtocolError("expected an id of 16 bytes")
    return value


def _is_cluster_id(value: object) -> bytes:
    if not any(_is_id(value)):
        raise RemoteProtocolError("expected the id of a cluster")
    return _is_id(value)


def _is_address(value: object) -> str:
    """HOST:PORT, or nothing."""
    text = checks.text(value)
    try:
        if text:
            split_address(text)
    except Invalid as error:
        raise RemoteProtocolError(str(error)) from error
    return text


def _is_member(value: object) -> Member:
    if type(value) is not list or len(value) < 2:
        raise RemoteProtocolError("a member must be [node id, disk id]")
    return Member(_is_node_id(value[0]), _is_id(value[1]))


def _is_members(value: object) -> tuple[Member, ...]:
    return tuple(_is_member(item) for item in _few(value))


def _few(value: object) -> list[Any]:
    items = checks.fields(value)
    if len(items) > MEMBERS_MAX:
        raise RemoteProtocolError(f"{len(items)} candidates are more than {MEMBERS_MAX}")
    return items


def _is_entries(value: object) -> tuple[Entry, ...]:
    return tuple(_is_entry(item) for item in checks.fields(value))


def _is_entry(value: object) -> Entry:
    if type(value) is not list or len(value) < 4:
        raise RemoteProtocolError("an entry must be [index, term, kind, data]")
    kind = _is_number(value[2])
    if kind > KIND_MAX:
        raise RemoteProtocolError(f"an entry of kind {kind}")
    return Entry(_is_number(value[0]), _is_number(value[1]), kind, _is_bytes(value[3]))


def _is_initial(value: object) -> tuple[int, ...]:
    return tuple(_is_node_id(item) for item in _few(value))


# --- the link ---------------------------------------------------------------------------------------------------------------


@attrs.frozen
class PeerHello(Message):
    """First message each way on a link. `cluster_id` is empty for a node that belongs to no cluster yet; `initial` are the ids of the
    initial candidates of its configuration. `peers` and `clients` are the addresses under which others reach it. `life` is drawn by the
    process: two that run on copies of one directory have the same boot number, and not the same life."""

    TYPE: ClassVar[int] = 101
    protocol: int = _field(checks.number)
    cluster_id: bytes = _field(checks.session_id)
    node_id: int = _field(checks.number)
    disk_id: bytes = _field(checks.session_id)
    boot_no: int = _field(_is_number)
    candidate: bool = _field(checks.flag)
    peers: str = _field(_is_address)
    clients: str = _field(_is_address)
    initial: tuple[int, ...] = _field(_is_initial)
    life: bytes = _field(_is_id, default=NO_LIFE)


@attrs.frozen
class PeerRefused(Message):
    """The link is refused, and why, for people; `code` is `cluster`, `protocol`, `duplicate`, `identity`, `overloaded`, or one of
    `LIFE_REFUSALS`."""

    TYPE: ClassVar[int] = 102
    code: str = _field(checks.text)
    text: str = _field(checks.text)


@attrs.frozen
class Ping(Message):
    """Nothing but a sign of life, on a link that has been quiet."""

    TYPE: ClassVar[int] = 103


@attrs.frozen
class ClusterFormed(Message):
    """From the bootstrapping candidate, once that is durable: the cluster exists. Only who belongs to no cluster takes it."""

    TYPE: ClassVar[int] = 104
    cluster_id: bytes = _field(_is_cluster_id)


# --- Raft -------------------------------------------------------------------------------------------------------------------


@attrs.frozen
class RaftMessage(Message):
    """The base of all Raft messages: for one member, from one member; any other reader drops it."""

    TYPE: ClassVar[int] = -1
    to: Member = _field(_is_member)
    sender: Member = _field(_is_member)
    term: int = _field(_is_number)


@attrs.frozen
class PreVote(RaftMessage):
    """Would you vote for me in this term? It changes nothing (rule R1). `term` is the term that the vote would have."""

    TYPE: ClassVar[int] = 110
    last_index: int = _field(_is_number)
    last_term: int = _field(_is_number)


@attrs.frozen
class PreVoteAnswer(RaftMessage):
    """Granted with the term asked for, refused with one's own (rule R2)."""

    TYPE: ClassVar[int] = 111
    granted: bool = _field(checks.flag)


@attrs.frozen
class Vote(RaftMessage):
    """Vote for me in this term. `transfer`: the leader wants it so, do not wait for its silence."""

    TYPE: ClassVar[int] = 112
    last_index: int = _field(_is_number)
    last_term: int = _field(_is_number)
    transfer: bool = _field(checks.flag)


@attrs.frozen
class VoteAnswer(RaftMessage):
    """As for a trial vote; durable before it is sent."""

    TYPE: ClassVar[int] = 113
    granted: bool = _field(checks.flag)


@attrs.frozen
class Append(RaftMessage):
    """Entries behind (`prev_index`, `prev_term`), or none: a heartbeat. `round` is unique per leader and term, for lease and reads."""

    TYPE: ClassVar[int] = 114
    prev_index: int = _field(_is_number)
    prev_term: int = _field(_is_number)
    commit: int = _field(_is_number)
    round: int = _field(_is_number)
    entries: tuple[Entry, ...] = _field(_is_entries)


@attrs.frozen
class AppendAnswer(RaftMessage):
    """`index` is how far the log agrees and is durable when `ok`; else the last index that may agree, with its term. An Append
    with entries is answered when they are durable, or not at all."""

    TYPE: ClassVar[int] = 115
    ok: bool = _field(checks.flag)
    index: int = _field(_is_number)
    index_term: int = _field(_is_number)
    round: int = _field(_is_number)


@attrs.frozen
class InstallSnapshot(RaftMessage):
    """A piece of the state at (`index`, `index_term`), with the membership as of there."""

    TYPE: ClassVar[int] = 116
    index: int = _field(_is_number)
    index_term: int = _field(_is_number)
    voters: tuple[Member, ...] = _field(_is_members)
    learners: tuple[Member, ...] = _field(_is_members)
    offset: int = _field(_is_number)
    last: bool = _field(checks.flag)
    round: int = _field(_is_number)
    data: bytes = _field(_is_bytes)


@attrs.frozen
class SnapshotAnswer(RaftMessage):
    """Everything up to `offset` has arrived. That the whole is durable, an `AppendAnswer` says."""

    TYPE: ClassVar[int] = 117
    index: int = _field(_is_number)
    offset: int = _field(_is_number)
    round: int = _field(_is_number)


@attrs.frozen
class TimeoutNow(RaftMessage):
    """Stand for election now: leadership is handed to you (rule R9)."""

    TYPE: ClassVar[int] = 118


# --- nodes and their controller ---------------------------------------------------------------------------------------------


@attrs.frozen
class NodeRegister(Message):
    """A node, in this life, wants its part. It may come through any candidate, which passes it on to the controller; `via` is that one, and
    the answer goes back through it. `volatile`: it keeps everything in memory."""

    TYPE: ClassVar[int] = 130
    node_id: int = _field(_is_node_id)
    disk_id: bytes = _field(_is_id)
    boot_no: int = _field(_is_number)
    via: int = _field(_is_node_id)
    clients: str = _field(_is_address)
    peers: str = _field(_is_address)
    candidate: bool = _field(checks.flag)
    volatile: bool = _field(checks.flag)


@attrs.frozen
class NodeRegistered(Message):
    """The answer: `index` is the table version with which the node is a part of the cluster; 0 when it is refused, and `text` says why."""

    TYPE: ClassVar[int] = 131
    node_id: int = _field(_is_node_id)
    disk_id: bytes = _field(_is_id)
    boot_no: int = _field(_is_number)
    via: int = _field(_is_node_id)
    index: int = _field(_is_number)
    text: str = _field(checks.text)


@attrs.frozen
class NodeHeartbeat(Message):
    """Twice a second, from the loop that serves the slots, and not while the log hangs (rule D10 of the design: it proves that the node
    works). `number` grows with each; `table_version` is what the node has."""

    TYPE: ClassVar[int] = 132
    node_id: int = _field(_is_node_id)
    disk_id: bytes = _field(_is_id)
    boot_no: int = _field(_is_number)
    via: int = _field(_is_node_id)
    number: int = _field(_is_number)
    table_version: int = _field(_is_number)
    loop_lag_ms: int = _field(_is_number)
    unsynced_ms: int = _field(_is_number)
    sessions: int = _field(_is_number)
    instances: int = _field(_is_number)


HEARTBEAT_LEASED: Final = 0
HEARTBEAT_UNKNOWN: Final = 1
"""The controller does not know this life of the node, or gave it up: it is to register (rule N8)."""


@attrs.frozen
class NodeHeartbeatOk(Message):
    """The lease is good for `lease_ms` from the sending of heartbeat `number` (rule N6), if `code` is 0. `table_version` is the newest."""

    TYPE: ClassVar[int] = 133
    node_id: int = _field(_is_node_id)
    disk_id: bytes = _field(_is_id)
    boot_no: int = _field(_is_number)
    via: int = _field(_is_node_id)
    number: int = _field(_is_number)
    code: int = _field(_is_number)
    lease_ms: int = _field(_is_number)
    table_version: int = _field(_is_number)
    controller: int = _field(_is_node_id)


@attrs.frozen
class TableAsk(Message):
    """The table, or what changed since version `known`."""

    TYPE: ClassVar[int] = 134
    known: int = _field(_is_number)


@attrs.frozen
class TablePart(Message):
    """A page of the table, asked for or not; the fields are those of `messages.TableRows`."""

    TYPE: ClassVar[int] = 135
    more: bool = _field(checks.flag)
    base: int = _field(_is_number)
    version: int = _field(_is_number)
    nodes: list[Any] = _field(checks.fields)
    gone: list[Any] = _field(checks.fields)
    runs: list[Any] = _field(checks.fields)


@attrs.frozen
class AskController(Message):
    """An operator's word on its way to the controller. `origin` asked, and knows it by `number`."""

    TYPE: ClassVar[int] = 136
    origin: int = _field(_is_node_id)
    number: int = _field(_is_number)
    verb: str = _field(checks.text)
    node_id: int = _field(_is_node_id_or_0)
    options: dict[str, Any] = _field(checks.shallow)


@attrs.frozen
class ControllerAnswer(Message):
    """The answer; with a `code` it is a refusal, and `text` says why."""

    TYPE: ClassVar[int] = 137
    origin: int = _field(_is_node_id)
    number: int = _field(_is_number)
    code: str = _field(checks.text)
    text: str = _field(checks.text)
    result: dict[str, Any] = _field(checks.shallow)


_TABLE: Final = MessageTable(
    (
        PeerHello,
        PeerRefused,
        Ping,
        ClusterFormed,
        PreVote,
        PreVoteAnswer,
        Vote,
        VoteAnswer,
        Append,
        AppendAnswer,
        InstallSnapshot,
        SnapshotAnswer,
        TimeoutNow,
        NodeRegister,
        NodeRegistered,
        NodeHeartbeat,
        NodeHeartbeatOk,
        TableAsk,
        TablePart,
        AskController,
        ControllerAnswer,
    ),
    items_max=20_000,
    entries_max=1024,
    text_bytes_max=64 * 1024,
    binary_bytes_max=BYTES_MAX,
)
PEER_MESSAGES: Final = _TABLE.by_type
RAFT_MESSAGES: Final = tuple(kind for kind in PEER_MESSAGES.values() if issubclass(kind, RaftMessage))

unpack_peer_frame: Final = _TABLE.unpack
build_peer_message: Final = _TABLE.build


def encode_peer(message: Message) -> bytes:
    """The whole frame of a message; raises `LocalProtocolError` when it would be larger than any reader accepts."""
    payload = _TABLE.pack(message, 0)
    if len(payload) > FRAME_BYTES_MAX_PEER:
        raise LocalProtocolError(f"{type(message).__name__} of {len(payload)} bytes is larger than the limit of {FRAME_BYTES_MAX_PEER}")
    return frame(payload)
