"""The nouns of the registry: services, instances, lsns, changes; and the limits that their values must keep.

Values are validated once, at the door, by the functions of this module, and never again behind it. A node keeps an
instance as packed bytes, not as an object (a hundred thousand objects cost memory and garbage-collector pauses):

    client part = msgpack [id, host, port, protocol, weight, zone, version, metadata, status, ephemeral, ttl_ms]
    server part = msgpack [lease term, lease seq, term, seq, registered_at_ms]
    public form = msgpack [server part, client part]      what lookups, views and deltas carry

The client part is always packed *here*, from validated values, never copied from what a client sent: no foreign msgpack
(an unusual integer width, an extension type) reaches the decoders of other clients.
"""

from __future__ import annotations

import datetime
import enum
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import attrs
import msgpack

from .errors import Invalid

METADATA_KEYS_MAX: Final = 64
METADATA_BYTES_MAX: Final = 4096
TTL_SECONDS_MIN: Final = 1.0
TTL_SECONDS_MAX: Final = 3600.0
TTL_SECONDS_DEFAULT: Final = 5.0
WEIGHT_MAX: Final = 10_000.0
NODE_ID_MAX: Final = 65_535

_name_matches = re.compile(r"[A-Za-z0-9._:/@{}-]{1,255}").fullmatch
_namespace_matches = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_host_matches = re.compile(r"[A-Za-z0-9._:%-]{1,255}").fullmatch
_text_matches = re.compile(r"[A-Za-z0-9._:/@+ -]{0,64}").fullmatch

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_packb: Callable[[object], bytes] = msgpack.packb


class ServiceKey(NamedTuple):
    """A service: a name inside a namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Lsn(NamedTuple):
    """The place of one operation in the log of its slot; ordered, and unique for its content.

    `term` is the index of the metadata record that granted the slot to its node, so it grows with each grant, and `seq` grows by one with
    every operation of the slot. In JSON it is `[term, seq]`.
    """

    term: int
    seq: int


LSN_ZERO: Final = Lsn(0, 0)


class Status(enum.StrEnum):
    """What a caller should think of an instance.

    `up`: send traffic. `draining`: it is leaving, send nothing new. `down`: its own program says so. `suspect`: its
    connection broke; it may be gone (an overlay of the node that serves the view, never stored).
    """

    UP = "up"
    DRAINING = "draining"
    DOWN = "down"
    SUSPECT = "suspect"


_STATUS_TO_WIRE: Final = {Status.UP: 0, Status.DRAINING: 1, Status.DOWN: 2, Status.SUSPECT: 3}
_STATUS_FROM_WIRE: Final = {number: status for status, number in _STATUS_TO_WIRE.items()}


@attrs.frozen(kw_only=True)
class Instance:
    """One running copy of a service, as every client sees it.

    `weight` is its share of traffic (1.0 is usual, 0 is none). `ephemeral` instances leave with their session, persistent ones
    stay until they are deregistered. `ttl` is in seconds: the promise within which an instance that died is gone.
    `registered_at` is the node's wall clock at registration, ISO 8601 in UTC: for people only, nothing is decided by it.
    `lease_id` is the lsn of the registration, `lsn` that of the last change.
    """

    id: str
    host: str
    port: int
    protocol: str = "tcp"
    weight: float = 1.0
    zone: str = ""
    version: str = ""
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    status: Status = Status.UP
    ephemeral: bool = True
    ttl: float = TTL_SECONDS_DEFAULT
    registered_at: str = ""
    lease_id: Lsn = LSN_ZERO
    lsn: Lsn = LSN_ZERO

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 host."""
        return join_address(self.host, self.port)

    def to_json(self) -> dict[str, Any]:
        """The fields in the JSON shape of `lookup` in docs/operations.md: lsns as `[term, seq]`."""
        return {
            "id": self.id,
            "host": self.host,
            "port": self.port,
            "protocol": self.protocol,
            "weight": self.weight,
            "zone": self.zone,
            "version": self.version,
            "metadata": dict(self.metadata),
            "status": str(self.status),
            "ephemeral": self.ephemeral,
            "ttl": self.ttl,
            "registered_at": self.registered_at,
            "lease_id": list(self.lease_id),
            "lsn": list(self.lsn),
        }


@attrs.frozen
class ServiceInfo:
    """One line of the list of services: where it lives and how many instances it has."""

    namespace: str
    name: str
    slot: int
    instances: int

    def to_json(self) -> dict[str, Any]:
        """The fields in the JSON shape of `services` in docs/operations.md."""
        return {"namespace": self.namespace, "name": self.name, "slot": self.slot, "instances": self.instances}


@attrs.frozen(kw_only=True)
class Change:
    """One step of a live view, already applied when it is seen: what was added and updated, and the ids that went.

    `lsn` is where the view stands after it. `full` says that `added` is the whole list, as in the first line of `govern watch`; what a
    live view yields are differences. A change is true when it changes anything.
    """

    service: ServiceKey
    lsn: Lsn
    added: tuple[Instance, ...] = ()
    updated: tuple[Instance, ...] = ()
    removed: tuple[str, ...] = ()
    full: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.updated or self.removed)


# --- the door: validation -------------------------------------------------------------------------------------------------


def _refuse(what: str, value: object, rule: str) -> Invalid:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # Python refuses to print numbers of thousands of digits, and lists a thousand deep
        shown = f"that is a {type(value).__name__}"
    return Invalid(f"{what} {shown if len(shown) <= 80 else shown[:77] + '...'} is not valid: use {rule}")


def check_name(value: object, what: str = "service name") -> str:
    """A service name or an instance id; raises `Invalid`."""
    if type(value) is not str or _name_matches(value) is None:
        raise _refuse(what, value, "1 to 255 characters from A-Z a-z 0-9 . _ : / @ { } -")
    return value


def check_namespace(value: object) -> str:
    """A namespace; raises `Invalid`."""
    if type(value) is not str or _namespace_matches(value) is None:
        raise _refuse("namespace", value, "1 to 64 characters from A-Z a-z 0-9 . _ -")
    return value


def check_host(value: object) -> str:
    """A host name or an IP address as text; raises `Invalid`."""
    if type(value) is not str or _host_matches(value) is None:
        raise _refuse("host", value, "a host name or an IP address")
    return value


def check_port(value: object) -> int:
    """A TCP or UDP port that an instance can be reached at; raises `Invalid`."""
    if type(value) is not int or not 1 <= value <= 65535:
        raise _refuse("port", value, "a number from 1 to 65535")
    return value


def check_text(value: object, what: str) -> str:
    """A short free text: protocol, zone or version; raises `Invalid`."""
    if value == "":
        return ""
    if type(value) is not str or _text_matches(value) is None:
        raise _refuse(what, value, "at most 64 characters from A-Z a-z 0-9 . _ : / @ + - and blanks")
    return value


def check_weight(value: object) -> float:
    """A share of traffic; raises `Invalid`."""
    if type(value) not in (float, int) or not 0 <= value <= WEIGHT_MAX:  # type: ignore[operator]
        raise _refuse("weight", value, "a number from 0 to 10000")
    return float(value)  # type: ignore[arg-type]


def check_metadata(value: object) -> Mapping[str, str]:
    """Text by text key: at most 64 keys and 4 KiB altogether; raises `Invalid`."""
    if not isinstance(value, Mapping):
        raise _refuse("metadata", value, "a mapping from text to text")
    if not value:
        return value
    if len(value) > METADATA_KEYS_MAX:
        raise Invalid(f"metadata has {len(value)} keys: at most {METADATA_KEYS_MAX} are allowed")
    size = 0
    for key, text in value.items():
        if type(key) is not str or type(text) is not str or not key:
            raise _refuse("metadata entry", (key, text), "text for both the key and the value, the key not empty")
        try:
            size += len(key.encode()) + len(text.encode())
        except UnicodeEncodeError:
            raise _refuse("metadata entry", (key, text), "text that can be encoded as UTF-8") from None
    if size > METADATA_BYTES_MAX:
        raise Invalid(f"metadata has {size} bytes: at most {METADATA_BYTES_MAX} are allowed")
    return value


def check_ttl(value: object) -> float:
    """Seconds after the last heartbeat within which a dead instance is gone; raises `Invalid`."""
    if type(value) not in (float, int) or not TTL_SECONDS_MIN <= value <= TTL_SECONDS_MAX:  # type: ignore[operator]
        raise _refuse("ttl", value, "seconds from 1 to 3600")
    return float(value)  # type: ignore[arg-type]


def _check_status(value: object) -> int:
    if type(value) is not int or value not in _STATUS_FROM_WIRE or value == _STATUS_TO_WIRE[Status.SUSPECT]:
        raise _refuse("status", value, "up, draining or down")
    return value


def _status_to_wire(value: object) -> int:
    if not isinstance(value, str) or value not in _STATUS_TO_WIRE or value == Status.SUSPECT:
        raise _refuse("status", value, "up, draining or down")
    return _STATUS_TO_WIRE[Status(value)]


def _check_ttl_ms(value: object) -> int:
    if type(value) is not int or not TTL_SECONDS_MIN * 1000 <= value <= TTL_SECONDS_MAX * 1000:
        raise _refuse("ttl", value, "milliseconds from 1000 to 3600000")
    return value


def check_instance(value: Instance) -> Instance:
    """The same checks as `pack_client_part`, for the side that registers: bad input never leaves the caller."""
    pack_client_part(client_fields(value))
    return value


# --- the packed forms -----------------------------------------------------------------------------------------------------

CLIENT_PART_FIELDS: Final = 11


def client_fields(instance: Instance) -> list[Any]:
    """What a client sends of an instance, in the order of the client part; raises `Invalid` for values that have no form on the wire."""
    return [
        instance.id,
        instance.host,
        instance.port,
        instance.protocol,
        check_weight(instance.weight),
        instance.zone,
        instance.version,
        dict(instance.metadata) if isinstance(instance.metadata, Mapping) else instance.metadata,
        _status_to_wire(instance.status),
        instance.ephemeral,
        round(check_ttl(instance.ttl) * 1000),
    ]


def pack_client_part(fields: object) -> bytes:
    """Validate the fields of a client part, wherever they came from, and pack them afresh; raises `Invalid`."""
    if type(fields) is not list or len(fields) < CLIENT_PART_FIELDS:
        raise _refuse("instance", fields, f"the {CLIENT_PART_FIELDS} fields of an instance")
    identity, host, port, protocol, weight, zone, version, metadata, status, ephemeral, ttl_ms = fields[:CLIENT_PART_FIELDS]
    if type(ephemeral) is not bool:
        raise _refuse("ephemeral", ephemeral, "true or false")
    return _packb(
        [
            check_name(identity, "instance id"),
            check_host(host),
            check_port(port),
            check_text(protocol, "protocol"),
            check_weight(weight),
            check_text(zone, "zone"),
            check_text(version, "version"),
            check_metadata(metadata),
            _check_status(status),
            ephemeral,
            _check_ttl_ms(ttl_ms),
        ]
    )


def pack_server_part(lease_id: Lsn, lsn: Lsn, registered_at_ms: int) -> bytes:
    """What the node knows of an instance and clients may see."""
    return _packb([lease_id[0], lease_id[1], lsn[0], lsn[1], registered_at_ms])


def pack_public(server_part: bytes, client_part: bytes) -> bytes:
    """The public form: an array of the two parts, by plain concatenation."""
    return b"\x92" + server_part + client_part


def instance_from_public(public: list[Any]) -> Instance:
    """An `Instance` from the decoded public form; raises `ValueError`, `TypeError`, `IndexError` or `KeyError` on a malformed one."""
    (lease_term, lease_seq, term, seq, registered_at_ms), client = public[0][:5], public[1]
    identity, host, port, protocol, weight, zone, version, metadata, status, ephemeral, ttl_ms = client[:CLIENT_PART_FIELDS]
    return Instance(
        id=identity,
        host=host,
        port=port,
        protocol=protocol,
        weight=weight,
        zone=zone,
        version=version,
        metadata=metadata,
        status=_STATUS_FROM_WIRE[status],
        ephemeral=ephemeral,
        ttl=ttl_ms / 1000,
        registered_at=format_time_ms(registered_at_ms),
        lease_id=Lsn(lease_term, lease_seq),
        lsn=Lsn(term, seq),
    )


# --- small helpers of the whole house -------------------------------------------------------------------------------------


def format_time_ms(milliseconds: int) -> str:
    """Milliseconds since the epoch as ISO 8601 in UTC, for people; raises `ValueError` beyond the year 9999."""
    try:
        moment = _EPOCH + datetime.timedelta(milliseconds=milliseconds)  # whole numbers: a float would lose milliseconds one day
    except OverflowError:
        raise ValueError(f"{milliseconds} ms since 1970 is no time of the calendar") from None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str, *, port_default: int | None = None) -> tuple[str, int]:
    """`host:port` or `[v6]:port` into its two parts; raises `Invalid` with a hint. Port 0 is allowed: it means any free one."""
    text = text.strip()
    host, separator, port_text = text.rpartition(":")
    if not separator or text.endswith("]") or (":" in host and not host.startswith("[")):
        host, port_text = text, "" if port_default is None else str(port_default)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port_text.isascii() or not port_text.isdigit() or len(port_text) > 5 or int(port_text) > 65535:
        raise _refuse("address", text, "HOST:PORT, for example 127.0.0.1:7400 or [::1]:7400")
    return check_host(host), int(port_text)
