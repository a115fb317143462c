"""The wire between clients and nodes: one table of messages (`govern.wire` says what a table is), and nothing else is said there.

What is wrong with the values of an *instance* is no error of the protocol: it is told to the client as `Invalid`, and its connection
lives on.

`request_id` is chosen by the client, greater than 0, and increases over the life of a *session*: a write that is repeated
after a reconnect carries its old id, so the store recognises it. Answers carry the id of their request; pushes carry 0.

The instances inside views and deltas are pre-packed bytes (see `govern.model`): the encoders for those frames take bytes and
join them, so one change is encoded once however many read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

import attrs
import msgpack

from . import checks
from .errors import LocalProtocolError
from .model import LSN_ZERO, Lsn, ServiceKey
from .wire import LENGTH, MessageTable
from .wire import Message as Message
from .wire import field as _field
from .wire import frame as frame

PROTOCOL_VERSION: Final = 1
PROTOCOL_VERSION_MIN: Final = 1
"""The oldest version that is still spoken; a newer other side speaks ours."""
FRAME_BYTES_MAX_TO_NODE: Final = 256 * 1024
FRAME_BYTES_MAX_TO_CLIENT: Final = 8 * 1024 * 1024
PAGE_ITEMS_MAX: Final = 512
"""Long answers are cut into pages of this many items; every page but the last says `more`."""


# --- the messages -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Hello(Message):
    """First message of a client. `attempt` grows with each connection of a session: an older attempt never takes it over."""

    TYPE: ClassVar[int] = 1
    protocol: int = _field(checks.number)
    cluster_id: str = _field(checks.text)  # empty: any
    who: str = _field(checks.text)
    token: str = _field(checks.text)
    session_id: bytes = _field(checks.session_id)  # empty: no session, lookups and subscriptions only
    attempt: int = _field(checks.number)


@attrs.frozen
class HelloOk(Message):
    """First message of a node. `resumed` is False when the session was not known: the client registers everything again."""

    TYPE: ClassVar[int] = 2
    protocol: int = _field(checks.number)
    cluster_id: str = _field(checks.text)
    node_id: int = _field(checks.number)
    version: str = _field(checks.text)
    heartbeat_ms: int = _field(checks.number)
    resumed: bool = _field(checks.flag, default=False)
    table_version: int = _field(checks.number, default=0)


@attrs.frozen
class Refused(Message):
    """The request (or with request_id 0 the connection) is refused: it had no effect. `code` is `Rejected.reason` or another code
    of docs/protocol.md; with the code `unknown` the effect is not known."""

    TYPE: ClassVar[int] = 3
    code: str = _field(checks.text)
    text: str = _field(checks.text)
    retry_after_ms: int = _field(checks.number, default=0)  # 0: repeating the same request never helps


@attrs.frozen
class Heartbeat(Message):
    """One a second for everything a client has at a node: how many registrations, and the xor of their digests."""

    TYPE: ClassVar[int] = 4
    count: int = _field(checks.number)
    digest: int = _field(checks.number)


HEARTBEAT_OK: Final = 0
HEARTBEAT_RESYNC: Final = 1
HEARTBEAT_LOADING: Final = 2


@attrs.frozen
class HeartbeatOk(Message):
    """`state` is 0 when count and digest agree, 1 when they do not (register again), 2 while the node is loading."""

    TYPE: ClassVar[int] = 5
    state: int = _field(checks.number)
    fresh: bool = _field(checks.flag, default=True)
    table_version: int = _field(checks.number, default=0)


@attrs.frozen
class Register(Message):
    """Register or replace one instance. `prior` is the lease of an earlier registration of the same session: when another session
    holds a newer lease, the answer is `superseded` instead of a fight. `timeout_ms` 0 means no deadline."""

    TYPE: ClassVar[int] = 6
    service: ServiceKey = _field(checks.service)
    instance: list[Any] = _field(checks.fields)  # the fields of the client part, validated by `pack_client_part`
    prior: Lsn = _field(checks.lsn, default=LSN_ZERO)
    timeout_ms: int = _field(checks.number, default=0)


@attrs.frozen
class Registered(Message):
    """The registration is durable and visible."""

    TYPE: ClassVar[int] = 7
    lease_id: Lsn = _field(checks.lsn)
    lsn: Lsn = _field(checks.lsn)


@attrs.frozen
class Update(Message):
    """Change weight, zone, version, metadata or status of a registration that is still held under `lease_id`."""

    TYPE: ClassVar[int] = 8
    service: ServiceKey = _field(checks.service)
    instance_id: str = _field(checks.instance_id)
    lease_id: Lsn = _field(checks.lsn)
    changes: dict[str, Any] = _field(checks.changes)
    timeout_ms: int = _field(checks.number, default=0)


@attrs.frozen
class Deregister(Message):
    """Remove a registration that is still held under `lease_id`; one that is gone already is answered `gone`."""

    TYPE: ClassVar[int] = 9
    service: ServiceKey = _field(checks.service)
    instance_id: str = _field(checks.instance_id)
    lease_id: Lsn = _field(checks.lsn)
    timeout_ms: int = _field(checks.number, default=0)


@attrs.frozen
class Done(Message):
    """The update or removal is durable and visible."""

    TYPE: ClassVar[int] = 10
    lsn: Lsn = _field(checks.lsn)


@attrs.frozen
class Lookup(Message):
    """All instances of one service, from the committed state; answered by one or more `View` pages."""

    TYPE: ClassVar[int] = 11
    service: ServiceKey = _field(checks.service)


@attrs.frozen
class View(Message):
    """The whole list of a service at `lsn`, or one page of it: the list is complete with the page that has `more` False."""

    TYPE: ClassVar[int] = 12
    service: ServiceKey = _field(checks.service)
    lsn: Lsn = _field(checks.lsn)
    fresh: bool = _field(checks.flag)
    more: bool = _field(checks.flag)
    instances: list[Any] = _field(checks.fields)  # public forms
    ack: bool = _field(checks.flag, default=False)  # somebody waits for `Applied` of this lsn


@attrs.frozen
class Subscribe(Message):
    """Keep telling the changes of a service. `known` is the lsn of the view in hand: only what came after it is sent. Answered
    by `View` pages with the request's id, or by `Resumed`."""

    TYPE: ClassVar[int] = 13
    service: ServiceKey = _field(checks.service)
    known: Lsn = _field(checks.lsn, default=LSN_ZERO)


@attrs.frozen
class Resumed(Message):
    """The subscription goes on from the `known` lsn: a `Delta` follows if there is anything to tell."""

    TYPE: ClassVar[int] = 14
    service: ServiceKey = _field(checks.service)
    lsn: Lsn = _field(checks.lsn)


@attrs.frozen
class Delta(Message):
    """What changed in a service after `since`, up to and including `lsn`: the newest public form of each changed instance, and the
    ids that are gone. It applies only to a view whose lsn is `since`."""

    TYPE: ClassVar[int] = 15
    service: ServiceKey = _field(checks.service)
    since: Lsn = _field(checks.lsn)
    lsn: Lsn = _field(checks.lsn)
    changed: list[Any] = _field(checks.fields)
    removed: list[str] = _field(checks.texts)
    ack: bool = _field(checks.flag, default=False)  # somebody waits for `Applied` of this lsn


@attrs.frozen
class Unsubscribe(Message):
    """Stop telling the changes of a service. Not answered."""

    TYPE: ClassVar[int] = 16
    service: ServiceKey = _field(checks.service)


@attrs.frozen
class Services(Message):
    """The services of one namespace (empty text: of all) that have instances; answered by `ServiceList` pages."""

    TYPE: ClassVar[int] = 17
    namespace: str = _field(checks.text)


@attrs.frozen
class ServiceList(Message):
    """One page of `[namespace, name, slot, instances]`."""

    TYPE: ClassVar[int] = 18
    more: bool = _field(checks.flag)
    services: list[Any] = _field(checks.fields)


@attrs.frozen
class AskStatus(Message):
    """What state is the node in?"""

    TYPE: ClassVar[int] = 19


@attrs.frozen
class NodeStatus(Message):
    """The status of a node, in the documented shape of `status --json`."""

    TYPE: ClassVar[int] = 20
    status: dict[str, Any] = _field(checks.changes)


@attrs.frozen
class Goodbye(Message):
    """The client leaves for good: its session ends now and its ephemeral instances are removed at once. Answered by `Done`."""

    TYPE: ClassVar[int] = 21


@attrs.frozen
class Lost(Message):
    """Pushed to a session: its registration of this instance is no longer held, and why: `superseded` or `evicted`."""

    TYPE: ClassVar[int] = 22
    service: ServiceKey = _field(checks.service)
    instance_id: str = _field(checks.instance_id)
    lease_id: Lsn = _field(checks.lsn)
    reason: str = _field(checks.text)


@attrs.frozen
class Resync(Message):
    """What a session believes to hold: one page of `[namespace, service, instance id, lease term, lease seq]`, after a heartbeat was
    answered with resync. Each page is answered by `ResyncOk`."""

    TYPE: ClassVar[int] = 23
    leases: list[Any] = _field(checks.leases)
    more: bool = _field(checks.flag)


@attrs.frozen
class ResyncOk(Message):
    """How that differs from what the node holds, as `[namespace, service, instance id]` each: `unknown` ones are to be registered again,
    `superseded` and `evicted` ones are lost. With the last page, `extra`: `[namespace, service, instance id, lease term, lease seq]` of
    leases that the session did not name, 512 at most."""

    TYPE: ClassVar[int] = 24
    unknown: list[Any] = _field(checks.fields)
    superseded: list[Any] = _field(checks.fields)
    evicted: list[Any] = _field(checks.fields)
    extra: list[Any] = _field(checks.fields)


@attrs.frozen
class Hint(Message):
    """Pushed to subscribers: these instances of a service are suspect from now on (or are not any more). An overlay of this node: it is
    in no log and has no lsn, and a view or delta that names the instance replaces it."""

    TYPE: ClassVar[int] = 25
    service: ServiceKey = _field(checks.service)
    instance_ids: list[str] = _field(checks.texts)
    on: bool = _field(checks.flag)


@attrs.frozen
class Applied(Message):
    """A subscriber has applied everything of a service up to `lsn`; said at once when a push had `ack`. Not answered."""

    TYPE: ClassVar[int] = 26
    service: ServiceKey = _field(checks.service)
    lsn: Lsn = _field(checks.lsn)


@attrs.frozen
class Drain(Message):
    """Set an instance to draining, and answer when every subscriber that was there at that moment has applied it, or after `timeout_ms`.
    `lease_id` zero: whoever holds it (an operator drains). Answered by `Drained`."""

    TYPE: ClassVar[int] = 27
    service: ServiceKey = _field(checks.service)
    instance_id: str = _field(checks.instance_id)
    lease_id: Lsn = _field(checks.lsn, default=LSN_ZERO)
    timeout_ms: int = _field(checks.number, default=10_000)


@attrs.frozen
class Drained(Message):
    """The instance is draining, durably. `applied` subscribers have told so; `missing` names (at most 100 of) those that have not."""

    TYPE: ClassVar[int] = 28
    lsn: Lsn = _field(checks.lsn)
    applied: int = _field(checks.number)
    missing_count: int = _field(checks.number)
    missing: list[str] = _field(checks.texts)


@attrs.frozen
class Evict(Message):
    """Remove an instance whoever holds it, and bar its session from registering that id again. Answered by `Done`."""

    TYPE: ClassVar[int] = 29
    service: ServiceKey = _field(checks.service)
    instance_id: str = _field(checks.instance_id)


@attrs.frozen
class Explain(Message):
    """Why is an instance (empty id: each of the service) in the view or not? Answered by one `Explained`."""

    TYPE: ClassVar[int] = 30
    service: ServiceKey = _field(checks.service)
    instance_id: str = _field(checks.text, default="")


@attrs.frozen
class Explained(Message):
    """What the node knows now, one mapping an instance, and what it remembers, one mapping an event, oldest first."""

    TYPE: ClassVar[int] = 31
    instances: list[Any] = _field(checks.fields)
    events: list[Any] = _field(checks.fields)


@attrs.frozen
class AskTable(Message):
    """Ask for the table. `known` is the version that the asker has, 0 for none: the answer may then be only what changed."""

    TYPE: ClassVar[int] = 32
    known: int = _field(checks.number)


@attrs.frozen
class TableRows(Message):
    """The table, in pages: rows of `core.table`. With `base` 0 it is the whole table, else what leads from version `base` to `version`; a
    reader that has the version already gets no rows."""

    TYPE: ClassVar[int] = 33
    more: bool = _field(checks.flag)
    base: int = _field(checks.number)
    version: int = _field(checks.number)
    nodes: list[Any] = _field(checks.fields)
    gone: list[Any] = _field(checks.fields)
    runs: list[Any] = _field(checks.fields)


@attrs.frozen
class Moved(Message):
    """The service belongs to a slot of another node: the request had no effect here, and is to be sent there. `address` is `host:port`."""

    TYPE: ClassVar[int] = 34
    slot: int = _field(checks.number)
    node_id: int = _field(checks.number)
    address: str = _field(checks.text)
    table_version: int = _field(checks.number)


@attrs.frozen
class Administer(Message):
    """An operator's word to the whole cluster; whichever node gets it passes it to the controller. `node_id` is 0 where none is meant."""

    TYPE: ClassVar[int] = 35
    verb: str = _field(checks.text)
    node_id: int = _field(checks.node_or_none)
    options: dict[str, Any] = _field(checks.shallow)


@attrs.frozen
class Administered(Message):
    """The answer of the controller, in the shape that belongs to the verb."""

    TYPE: ClassVar[int] = 36
    result: dict[str, Any] = _field(checks.changes)


_TABLE: Final = MessageTable(
    (
        Hello,
        HelloOk,
        Refused,
        Heartbeat,
        HeartbeatOk,
        Register,
        Registered,
        Update,
        Deregister,
        Done,
        Lookup,
        View,
        Subscribe,
        Resumed,
        Delta,
        Unsubscribe,
        Services,
        ServiceList,
        AskStatus,
        NodeStatus,
        Goodbye,
        Lost,
        Resync,
        ResyncOk,
        Hint,
        Applied,
        Drain,
        Drained,
        Evict,
        Explain,
        Explained,
        AskTable,
        TableRows,
        Moved,
        Administer,
        Administered,
    ),
    items_max=1024,
    entries_max=64,
    text_bytes_max=64 * 1024,
    binary_bytes_max=64 * 1024,
)
MESSAGES: Final = _TABLE.by_type
TO_NODE: Final = frozenset(
    kind.TYPE
    for kind in (
        Hello,
        Heartbeat,
        Register,
        Update,
        Deregister,
        Lookup,
        Subscribe,
        Unsubscribe,
        Services,
        AskStatus,
        Goodbye,
        Resync,
        Applied,
        Drain,
        Evict,
        Explain,
        AskTable,
        Administer,
    )
)
TO_CLIENT: Final = frozenset(MESSAGES) - TO_NODE

# --- decoding ---------------------------------------------------------------------------------------------------------------

unpack_frame: Final = _TABLE.unpack
build_message: Final = _TABLE.build
"""Raises `RemoteProtocolError`, or `Invalid` for names that break their rules."""


def decode(payload: bytes | memoryview) -> tuple[Message, int]:
    """One frame's payload as `(message, request_id)`; raises `RemoteProtocolError` or `Invalid`."""
    raw = unpack_frame(payload)
    return build_message(raw), raw[1]


# --- encoding ---------------------------------------------------------------------------------------------------------------


def encode(message: Message, request_id: int = 0) -> bytes:
    """The whole frame of a message; raises `LocalProtocolError` when it would be larger than any reader accepts."""
    payload = _TABLE.pack(message, request_id)
    if len(payload) > FRAME_BYTES_MAX_TO_NODE:  # rarely, so only then is it asked which limit it is
        bytes_max = FRAME_BYTES_MAX_TO_NODE if message.TYPE in TO_NODE else FRAME_BYTES_MAX_TO_CLIENT
        if len(payload) > bytes_max:
            raise LocalProtocolError(f"{type(message).__name__} of {len(payload)} bytes is larger than the limit of {bytes_max}")
    return frame(payload)


def _array_header(count: int) -> bytes:
    header: bytes = msgpack.Packer().pack_array_header(count)
    return header


def pack_items(items: Sequence[bytes]) -> bytes:
    """A msgpack array of items that are packed already."""
    return _array_header(len(items)) + b"".join(items)


def pack_head(*values: object) -> bytes:
    """Several values packed one after the other: a part of an array whose header comes from elsewhere."""
    return b"".join(map(msgpack.packb, values))


def join_frame(type_number: int, request_id: int, field_count: int, body: bytes) -> bytes:
    """A frame whose fields are packed already."""
    head = bytes((0x90 | field_count + 2, type_number)) + msgpack.packb(request_id)  # a small array; a small number is its own byte
    return b"".join((LENGTH.pack(len(head) + len(body)), head, body))  # one copy: a view is tens of kilobytes


def view_bodies(service: ServiceKey, lsn: Lsn, fresh: bool, publics: Sequence[bytes]) -> list[bytes]:
    """The packed fields of the `View` pages of a service: everything but the request id and `ack`, so that they can be kept and shared."""
    pages = [publics[start : start + PAGE_ITEMS_MAX] for start in range(0, len(publics), PAGE_ITEMS_MAX)] or [()]
    return [pack_head(service, lsn, fresh, page is not pages[-1]) + pack_items(page) for page in pages]


def view_frames(bodies: Iterable[bytes], request_id: int, ack: bool = False) -> bytes:
    """The `View` frames for one asker, joined. With `ack` each of them asks for it; a reader answers when it has the last one."""
    end = pack_head(True) if ack else b""
    return b"".join([join_frame(View.TYPE, request_id, 6 if ack else 5, body + end) for body in bodies])


def delta_frame(service: ServiceKey, since: Lsn, lsn: Lsn, changed: Sequence[bytes], removed: Sequence[str], ack: bool = False) -> bytes:
    """The `Delta` push, the same bytes for every subscriber at `since`."""
    body = pack_head(service, since, lsn) + pack_items(changed) + pack_head(list(removed), *([True] if ack else []))
    return join_frame(Delta.TYPE, 0, 6 if ack else 5, body)
