"""The frame reader: any bytes, cut anywhere, give the same frames or the same error, within bounded memory."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from typing import Any, Final

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from govern.messages import frame
from govern.net.frames import FrameReader

BYTES_MAX: Final = 200


def read_pieces(pieces: Iterable[bytes], bytes_max: int = BYTES_MAX) -> tuple[list[list[Any]], str | None, int]:
    """All frames, the error's text and what is pending, after feeding the pieces; checks the bounds after each piece."""
    reader = FrameReader(bytes_max)
    frames: list[list[Any]] = []
    fed = 0
    for piece in pieces:
        failed = reader.error is not None
        found = reader.feed(piece)
        assert not (failed and found), "nothing is read after an error"
        frames += found
        fed += len(piece)
        assert reader.pending_bytes <= min(fed, 4 + bytes_max)  # F2
    return frames, None if reader.error is None else str(reader.error), reader.pending_bytes


def cut_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


good_frames = st.builds(
    lambda number, request_id, rest: frame(msgpack.packb([number, request_id, rest])),
    st.integers(0, 30),
    st.integers(0, 1 << 40),
    st.binary(max_size=40),
)
any_frames = st.binary(max_size=30).map(frame)
lengths = st.integers(0, 1 << 32).map(lambda length: (length % (1 << 32)).to_bytes(4))
streams = st.lists(st.one_of(good_frames, good_frames, any_frames, lengths, st.binary(max_size=10)), max_size=8).map(b"".join)


@settings(max_examples=500)
@given(streams, st.lists(st.integers(0, 1 << 16), max_size=12))
def test_the_pieces_do_not_matter(data: bytes, cuts: list[int]) -> None:
    """Whole, cut anywhere, and byte by byte: the same frames, the same error, the same rest (F1, F2)."""
    whole = read_pieces([data])
    assert read_pieces(cut_pieces(data, cuts)) == whole
    assert read_pieces([data[index : index + 1] for index in range(len(data))]) == whole


@given(st.lists(good_frames, max_size=8), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_good_frames_are_all_read(frames: list[bytes], cuts: list[int]) -> None:
    """Every frame that was written is read, in order, and nothing is left over."""
    expected = [msgpack.unpackb(data[4:]) for data in frames]
    assert read_pieces(cut_pieces(b"".join(frames), cuts)) == (expected, None, 0)


@pytest.mark.parametrize("bad", [b"\0\0\0\0", (BYTES_MAX + 1).to_bytes(4), b"\xff\xff\xff\xff", b"\0\0\0\x01\xc1"], ids=repr)
def test_frames_before_a_bad_one_are_not_lost(bad: bytes) -> None:
    """An empty frame, one that is too long and one that is not msgpack are refused; what came before in the same piece is read (F3)."""
    reader = FrameReader(BYTES_MAX)
    assert reader.feed(frame(msgpack.packb([4, 1])) + bad + frame(msgpack.packb([4, 2]))) == [[4, 1]]
    assert reader.error is not None
    assert reader.feed(frame(msgpack.packb([4, 3]))) == []
    assert reader.pending_bytes == 0


def test_a_length_is_refused_before_its_payload_arrives() -> None:
    """The four bytes of a length that is too large are enough for the error; the largest allowed one is read."""
    reader = FrameReader(BYTES_MAX)
    reader.feed((BYTES_MAX + 1).to_bytes(4)[:3])
    assert reader.error is None
    reader.feed((BYTES_MAX + 1).to_bytes(4)[3:])
    assert "201 bytes" in str(reader.error)
    largest = [1, 2, b"x" * (BYTES_MAX - 5)]
    assert len(msgpack.packb(largest)) == BYTES_MAX
    assert read_pieces([frame(msgpack.packb(largest))]) == ([largest], None, 0)


def test_memory_grows_with_received_bytes_not_with_promised_ones() -> None:
    """A frame that promises 8 MiB costs nothing before it arrives, and in single bytes no more than it is long (F2)."""
    reader = FrameReader(8 << 20)
    reader.feed((8 << 20).to_bytes(4) + b"\x93")
    assert sys.getsizeof(reader._pending) < 200
    for _ in range(10_000):
        reader.feed(b"x")
    assert reader.pending_bytes == 10_005
    assert sys.getsizeof(reader._pending) < 2 * 10_005


def test_a_partial_frame_shows_until_it_is_whole() -> None:
    """`pending_bytes` tells that the other side owes the rest of a frame, so that it can be given a deadline."""
    reader = FrameReader(BYTES_MAX)
    data = frame(msgpack.packb([4, 1, 2, 3]))
    assert (reader.feed(data[:-1]), reader.pending_bytes) == ([], len(data) - 1)
    assert (reader.feed(data[-1:] + data[:2]), reader.pending_bytes) == ([[4, 1, 2, 3]], 2)
    assert (reader.feed(data[2:]), reader.pending_bytes) == ([[4, 1, 2, 3]], 0)
