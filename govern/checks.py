"""Checks of message fields: from a decoded msgpack value to the value of a field, or a refusal.

Each takes anything at all and raises `RemoteProtocolError` for what the protocol does not allow, or `Invalid` for a name that breaks
the rules of names; nothing else ever comes out.
"""

from __future__ import annotations

from typing import Any, Final

from .errors import Invalid, RemoteProtocolError
from .model import LSN_ZERO, NODE_ID_MAX, Lsn, ServiceKey, check_name, check_namespace

LEASES_MAX: Final = 512
DEPTH_MAX: Final = 8
"""Mappings and lists within each other; those of operators' words are four deep."""


def _bad(what: str, value: object) -> RemoteProtocolError:
    return RemoteProtocolError(f"expected {what}, got {type(value).__name__}")


def number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise _bad("a number that is not negative", value)
    return value


def flag(value: object) -> bool:
    if type(value) is not bool:
        raise _bad("true or false", value)
    return value


def text(value: object) -> str:
    if type(value) is not str or len(value) > 1024:
        raise _bad("text of at most 1024 characters", value)
    return value


def session_id(value: object) -> bytes:
    if type(value) is not bytes or len(value) not in (0, 16):
        raise _bad("a session id of 16 bytes", value)
    return value


def service(value: object) -> ServiceKey:
    if type(value) is not list or len(value) != 2:
        raise _bad("a service [namespace, name]", value)
    return ServiceKey(check_namespace(value[0]), check_name(value[1]))


def instance_id(value: object) -> str:
    return check_name(value, "instance id")


def lsn(value: object) -> Lsn:
    if type(value) is not list or len(value) != 2:
        raise _bad("an lsn [term, seq]", value)
    if value == [0, 0] and type(value[0]) is type(value[1]) is int:
        return LSN_ZERO  # as in nearly every registration
    return Lsn(number(value[0]), number(value[1]))


def fields(value: object) -> list[Any]:
    if type(value) is not list:
        raise _bad("a list", value)
    return value


def changes(value: object) -> dict[str, Any]:
    if type(value) is not dict:
        raise _bad("a mapping", value)
    return value


def shallow(value: object) -> dict[str, Any]:
    """A mapping that is not deeper than anybody needs, so that what came in by one door can go out by any other."""
    mapping = changes(value)
    level: list[Any] = [mapping]
    for _ in range(DEPTH_MAX):
        inner = [list(each.values()) if type(each) is dict else each for each in level if type(each) in (dict, list)]
        level = [item for items in inner for item in items]
    if any(type(each) in (dict, list) for each in level):
        raise RemoteProtocolError(f"mappings and lists more than {DEPTH_MAX} deep")
    return mapping


def node_or_none(value: object) -> int:
    """The node that an operator means; 0 for none."""
    if number(value) > NODE_ID_MAX:
        raise Invalid(f"there is no node {value}: node ids are from 1 to {NODE_ID_MAX}")
    return number(value)


def leases(value: object) -> list[Any]:
    """Rows of `[namespace, service, instance id, lease term, lease seq]`."""
    rows = fields(value)
    if len(rows) > LEASES_MAX:
        raise RemoteProtocolError(f"a page of {len(rows)} leases is larger than {LEASES_MAX}")
    for row in rows:
        if type(row) is not list or len(row) != 5:
            raise _bad("a lease [namespace, service, instance id, term, seq]", row)
        service(row[:2])
        instance_id(row[2])
        lsn(row[3:])
    return rows


def texts(value: object) -> list[str]:
    return [text(item) for item in fields(value)]


def namespace(value: object) -> str:
    return check_namespace(value)
