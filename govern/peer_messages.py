"""What nodes say to each other: a table of messages of its own, so that no client can ever send one and no node mistakes a client's.

The second element of each frame is 0, for links have no request ids. The numbers start at 101. Any bytes at all lead to a message or to a
`RemoteProtocolError`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, NamedTuple

import attrs

from . import checks
from .errors import LocalProtocolError, RemoteProtocolError
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


def _is_member(value: object) -> Member:
    if type(value) is not list or [type(item) for item in value[:2]] != [int, bytes]:
        raise RemoteProtocolError("a member must be [node id, disk id]")
    return Member(checks.number(value[0]), checks.session_id(value[1]))


def _is_members(value: object) -> tuple[Member, ...]:
    return tuple(_is_member(item) for item in checks.fields(value))


def _is_entries(value: object) -> tuple[Entry, ...]:
    return tuple(_is_entry(item) for item in checks.fields(value))


def _is_entry(value: object) -> Entry:
    if type(value) is not list or len(value) < 4:
        raise RemoteProtocolError("an entry must be [index, term, kind, data]")
    return Entry(checks.number(value[0]), checks.number(value[1]), checks.number(value[2]), _is_bytes(value[3]))


def _is_numbers(value: object) -> tuple[int, ...]:
    return tuple(checks.number(item) for item in checks.fields(value))


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
    boot_no: int = _field(checks.number)
    candidate: bool = _field(checks.flag)
    peers: str = _field(checks.text)
    clients: str = _field(checks.text)
    initial: tuple[int, ...] = _field(_is_numbers)
    life: bytes = _field(checks.session_id, default=NO_LIFE)


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
    cluster_id: bytes = _field(checks.session_id)


# --- Raft -------------------------------------------------------------------------------------------------------------------


@attrs.frozen
class RaftMessage(Message):
    """The base of all Raft messages: for one member, from one member; any other reader drops it."""

    TYPE: ClassVar[int] = -1
    to: Member = _field(_is_member)
    sender: Member = _field(_is_member)
    term: int = _field(checks.number)


@attrs.frozen
class PreVote(RaftMessage):
    """Would you vote for me in this term? It changes nothing (rule R1). `term` is the term that the vote would have."""

    TYPE: ClassVar[int] = 110
    last_index: int = _field(checks.number)
    last_term: int = _field(checks.number)


@attrs.frozen
class PreVoteAnswer(RaftMessage):
    """Granted with the term asked for, refused with one's own (rule R2)."""

    TYPE: ClassVar[int] = 111
    granted: bool = _field(checks.flag)


@attrs.frozen
class Vote(RaftMessage):
    """Vote for me in this term. `transfer`: the leader wants it so, do not wait for its silence."""

    TYPE: ClassVar[int] = 112
    last_index: int = _field(checks.number)
    last_term: int = _field(checks.number)
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
    prev_index: int = _field(checks.number)
    prev_term: int = _field(checks.number)
    commit: int = _field(checks.number)
    round: int = _field(checks.number)
    entries: tuple[Entry, ...] = _field(_is_entries)


@attrs.frozen
class AppendAnswer(RaftMessage):
    """`index` is how far the log agrees and is durable when `ok`; else the last index that may agree, with its term. An Append
    with entries is answered when they are durable, or not at all."""

    TYPE: ClassVar[int] = 115
    ok: bool = _field(checks.flag)
    index: int = _field(checks.number)
    index_term: int = _field(checks.number)
    round: int = _field(checks.number)


@attrs.frozen
class InstallSnapshot(RaftMessage):
    """A piece of the state at (`index`, `index_term`), with the membership as of there."""

    TYPE: ClassVar[int] = 116
    index: int = _field(checks.number)
    index_term: int = _field(checks.number)
    voters: tuple[Member, ...] = _field(_is_members)
    learners: tuple[Member, ...] = _field(_is_members)
    offset: int = _field(checks.number)
    last: bool = _field(checks.flag)
    round: int = _field(checks.number)
    data: bytes = _field(_is_bytes)


@attrs.frozen
class SnapshotAnswer(RaftMessage):
    """Everything up to `offset` has arrived. That the whole is durable, an `AppendAnswer` says."""

    TYPE: ClassVar[int] = 117
    index: int = _field(checks.number)
    offset: int = _field(checks.number)
    round: int = _field(checks.number)


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
    node_id: int = _field(checks.number)
    disk_id: bytes = _field(checks.session_id)
    boot_no: int = _field(checks.number)
    via: int = _field(checks.number)
    clients: str = _field(checks.text)
    peers: str = _field(checks.text)
    candidate: bool = _field(checks.flag)
    volatile: bool = _field(checks.flag)


@attrs.frozen
class NodeRegistered(Message):
    """The answer: `index` is the table version with which the node is a part of the cluster; 0 when it is refused, and `text` says why."""

    TYPE: ClassVar[int] = 131
    node_id: int = _field(checks.number)
    disk_id: bytes = _field(checks.session_id)
    boot_no: int = _field(checks.number)
    via: int = _field(checks.number)
    index: int = _field(checks.number)
    text: str = _field(checks.text)


@attrs.frozen
class NodeHeartbeat(Message):
    """Twice a second, from the loop that serves the slots, and not while the log hangs (rule D10 of the design: it proves that the node
    works). `number` grows with each; `table_version` is what the node has."""

    TYPE: ClassVar[int] = 132
    node_id: int = _field(checks.number)
    disk_id: bytes = _field(checks.session_id)
    boot_no: int = _field(checks.number)
    via: int = _field(checks.number)
    number: int = _field(checks.number)
    table_version: int = _field(checks.number)
    loop_lag_ms: int = _field(checks.number)
    unsynced_ms: int = _field(checks.number)
    sessions: int = _field(checks.number)
    instances: int = _field(checks.number)


HEARTBEAT_LEASED: Final = 0
HEARTBEAT_UNKNOWN: Final = 1
"""The controller does not know this life of the node, or gave it up: it is to register (rule N8)."""


@attrs.frozen
class NodeHeartbeatOk(Message):
    """The lease is good for `lease_ms` from the sending of heartbeat `number` (rule N6), if `code` is 0. `table_version` is the newest."""

    TYPE: ClassVar[int] = 133
    node_id: int = _field(checks.number)
    disk_id: bytes = _field(checks.session_id)
    boot_no: int = _field(checks.number)
    via: int = _field(checks.number)
    number: int = _field(checks.number)
    code: int = _field(checks.number)
    lease_ms: int = _field(checks.number)
    table_version: int = _field(checks.number)
    controller: int = _field(checks.number)


@attrs.frozen
class TableAsk(Message):
    """The table, or what changed since version `known`."""

    TYPE: ClassVar[int] = 134
    known: int = _field(checks.number)


@attrs.frozen
class TablePart(Message):
    """A page of the table, asked for or not; the fields are those of `messages.TableRows`."""

    TYPE: ClassVar[int] = 135
    more: bool = _field(checks.flag)
    base: int = _field(checks.number)
    version: int = _field(checks.number)
    nodes: list[Any] = _field(checks.fields)
    gone: list[Any] = _field(checks.fields)
    runs: list[Any] = _field(checks.fields)


@attrs.frozen
class AskController(Message):
    """An operator's word on its way to the controller. `origin` asked, and knows it by `number`."""

    TYPE: ClassVar[int] = 136
    origin: int = _field(checks.number)
    number: int = _field(checks.number)
    verb: str = _field(checks.text)
    node_id: int = _field(checks.number)
    options: dict[str, Any] = _field(checks.changes)


@attrs.frozen
class ControllerAnswer(Message):
    """The answer; with a `code` it is a refusal, and `text` says why."""

    TYPE: ClassVar[int] = 137
    origin: int = _field(checks.number)
    number: int = _field(checks.number)
    code: str = _field(checks.text)
    text: str = _field(checks.text)
    result: dict[str, Any] = _field(checks.changes)


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
    binary_bytes_max=1024 * 1024,
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
