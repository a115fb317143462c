"""A table of messages: from bytes to a message or a refusal, and back. There are two: `messages` for clients, `peer_messages` for nodes.

A frame is `u32 length (big endian) | msgpack array [type, number, fields…]`; `number` is the id of a request, or 0. The number of a type
never changes its meaning; fields are only ever added at the end: a reader ignores fields it does not know and fills in the default for
fields that are missing, so versions n and n-1 talk to each other.

A message is a frozen attrs class. Each field names the check that turns the decoded msgpack value into the value of the field, and
refuses everything else (`govern.checks`).

T1  Any bytes lead to a message or to one of the errors that the checks raise: mostly `RemoteProtocolError`.
T2  Every limit on a decoded value is enforced while it is decoded, before memory is set aside for it.
T3  No two messages of a table have one type.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

import attrs
import msgpack

from .errors import RemoteProtocolError

LENGTH: Final = struct.Struct(">I")
"""What stands before every payload."""


@attrs.frozen
class Message:
    """The base of all messages; `TYPE` is the number on the wire."""

    TYPE: ClassVar[int] = -1


def field(check: Callable[[object], Any], **options: Any) -> Any:
    """A field of a message, with the check of its decoded value."""
    return attrs.field(metadata={"check": check}, **options)


def frame(payload: bytes) -> bytes:
    """The payload with its length before it."""
    return LENGTH.pack(len(payload)) + payload


class MessageTable:
    """All messages of one kind of connection, and the limits of what may be in them: items of an array, entries of a map, bytes of a text,
    bytes of a byte string."""

    def __init__(
        self, messages: Iterable[type[Message]], *, items_max: int, entries_max: int, text_bytes_max: int, binary_bytes_max: int
    ) -> None:
        self.by_type: dict[int, type[Message]] = {}
        for kind in messages:
            assert kind.TYPE not in self.by_type, f"{kind.__name__} has the type of {self.by_type[kind.TYPE].__name__}"  # T3
            self.by_type[kind.TYPE] = kind
        fields = {number: attrs.fields(kind) for number, kind in self.by_type.items()}
        self._checks = {number: tuple(each.metadata["check"] for each in of_kind) for number, of_kind in fields.items()}
        self._names = {number: tuple(each.name for each in of_kind) for number, of_kind in fields.items()}
        self._items_max, self._entries_max = items_max, entries_max
        self._text_bytes_max, self._binary_bytes_max = text_bytes_max, binary_bytes_max

    def unpack(self, payload: bytes | memoryview) -> list[Any]:
        """One frame's payload as `[type, number, fields…]`, with every limit enforced while decoding; raises `RemoteProtocolError`."""
        try:
            raw = msgpack.unpackb(
                payload,
                strict_map_key=True,
                raw=False,
                max_array_len=self._items_max,
                max_map_len=self._entries_max,
                max_str_len=self._text_bytes_max,
                max_bin_len=self._binary_bytes_max,
                max_ext_len=0,
            )
        except (ValueError, TypeError, RecursionError) as error:  # msgpack's own errors are all ValueErrors; TypeError: unhashable map key
            raise RemoteProtocolError(f"not a msgpack frame: {type(error).__name__}") from error
        if type(raw) is not list or len(raw) < 2 or type(raw[0]) is not int or type(raw[1]) is not int or not 0 <= raw[1] < 1 << 63:
            raise RemoteProtocolError("a frame must be an array of a type, a request id and fields")
        return raw

    def build(self, raw: list[Any]) -> Message:
        """The message of an unpacked frame; raises `RemoteProtocolError`, or what else the checks of its fields raise."""
        checks = self._checks.get(raw[0])
        if checks is None:
            raise RemoteProtocolError(f"unknown message type {raw[0]}")
        kind = self.by_type[raw[0]]
        try:
            return kind(*[check(value) for check, value in zip(checks, raw[2:], strict=False)])
        except TypeError:
            raise RemoteProtocolError(f"{kind.__name__} has too few fields") from None

    def pack(self, message: Message, number: int) -> bytes:
        """The payload of a message."""
        of_kind = message.TYPE
        payload: bytes = msgpack.packb([of_kind, number, *[getattr(message, name) for name in self._names[of_kind]]])
        return payload
