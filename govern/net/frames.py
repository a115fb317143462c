"""Frames: bytes of a connection in, unpacked frames out; no input or output of its own.

A frame is `u32 length (big endian) | payload`. TCP hands over bytes in any pieces, so a reader keeps the piece of a frame that
has not arrived whole. What holds, whatever the other side sends:

F1  The frames, and the error if there is one, depend on the bytes alone, not on how they were cut into pieces.
F2  What a reader keeps is never more than the bytes it was fed, and never more than one frame: a length is refused as soon as
    it is known, and nothing is set aside for bytes that were only promised.
F3  Frames that came before a bad one are not lost with it.
F4  The cost of a byte is constant: a frame that arrives byte by byte is not copied again for each of them.

The usual piece holds exactly one whole frame of some ten bytes, and that case touches no buffer at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from ..errors import RemoteProtocolError
from ..messages import unpack_frame

_HEADER_BYTES: Final = 4
_length_at = struct.Struct(">I").unpack_from


class FrameReader:
    """The frames of one direction of one connection; no payload may be larger than `bytes_max`. `unpack` makes an array of a payload,
    within the limits of those who talk there, and raises `RemoteProtocolError`."""

    __slots__ = ("_bytes_max", "_needed", "_pending", "_unpack", "error")

    def __init__(self, bytes_max: int, unpack: Callable[[bytes], list[Any]] = unpack_frame) -> None:
        self.error: RemoteProtocolError | None = None
        """Why this connection must be closed; once set, nothing is read any more."""
        self._bytes_max = bytes_max
        self._unpack = unpack
        self._pending = bytearray()
        self._needed = _HEADER_BYTES  # bytes from the start of `_pending` until the next decision: the header, then the frame

    def __repr__(self) -> str:
        return f"<FrameReader pending={self.pending_bytes} error={self.error}>"

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished frame are kept; while it is not 0 the other side owes the rest."""
        return len(self._pending)

    def feed(self, data: bytes) -> list[list[Any]]:
        """The frames that are whole now, in order, each as `[type, request_id, fields…]`.

        Never raises for what the bytes are: look at `error` after the frames have been served.
        """
        if self.error is not None:
            return []
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return []
            data = bytes(self._pending)
            self._pending.clear()
        frames: list[list[Any]] = []
        position, end = 0, len(data)
        self._needed = _HEADER_BYTES
        try:
            while end - position >= _HEADER_BYTES:
                (length,) = _length_at(data, position)
                if not 0 < length <= self._bytes_max:
                    raise RemoteProtocolError(f"a frame of {length} bytes: 1 to {self._bytes_max} are allowed")
                start = position + _HEADER_BYTES
                if start + length > end:
                    self._needed = _HEADER_BYTES + length
                    break
                position = start + length
                frames.append(self._unpack(data[start:position]))
        except RemoteProtocolError as error:
            self.error = error
            return frames
        if position < end:
            self._pending += data[position:]
        return frames
