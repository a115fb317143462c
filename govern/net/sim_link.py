"""What happens between two simulated machines: segments in flight, and the two ends of a connection.

The model is TCP as a program sees it. The bytes of one direction keep their order and are never lost, repeated or changed while the
connection lives; what can differ between two runs is *when* they arrive and in which pieces, and whether the connection lives. So the
faults are delay, fragmentation, stall, half-open and reset; single bytes are never lost inside a connection.

A connection has two `End`s and two `Pipe`s, one per direction. Everything that one end tells the other is a segment in the pipe:
opening, bytes, the end of bytes, a reset. All segments of a network lie in one heap, ordered by the virtual time at which they are
due and then by the order in which they were sent.

L1  A pipe delivers in the order of sending, also after a stall.
L2  At most `window_bytes` of one direction are in flight or unread; an end takes no more bytes until the other side has read some.
L3  A reset loses a suffix of what is in flight, never something in the middle; what comes after a reset is never delivered.
L4  Every choice is drawn from the generator of the link, that is of the ordered pair of hosts: traffic between A and B changes nothing
    between C and D.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs
import trio

_FRAGMENTED_SHARE: Final = 0.25  # of the sends, into two to four pieces
_PARTIAL_SHARE: Final = 0.0625  # of the sends: fewer bytes are taken than there is room for


class Verdict(enum.Enum):
    """What a rule says of a segment, besides nothing at all or a delay."""

    CUT = "the connection is reset"
    HOLD = "the segment and all after it wait until it is offered again and no longer held"


CUT: Final = Verdict.CUT
HOLD: Final = Verdict.HOLD

Judge = Callable[[str, str, bytes], "float | Verdict | None"]
Tap = Callable[[str, str, int, bytes], None]


class Kind(enum.Enum):
    """What a segment tells the other end."""

    OPEN = "a dial arrives"
    OPENED = "the dial was taken by a listener"
    REFUSED = "nobody listens there"
    DATA = "bytes"
    FINISHED = "no more bytes will come"
    RESET = "the connection is broken"


@attrs.define(eq=False)
class Segment:
    """One thing in flight. A lost one is still in the heap, and does nothing when it is due."""

    kind: Kind
    data: bytes = b""
    lost: bool = False


class Traffic:
    """The heap of everything in flight, and who judges it."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.held: dict[Pipe, None] = {}
        self.taps: list[Tap] = []
        self.connections = 0
        self._heap: list[tuple[float, int, Pipe, Segment]] = []
        self._sent = 0
        self._sleep = trio.CancelScope()

    def schedule(self, due: float, pipe: Pipe, segment: Segment) -> None:
        """Let the segment arrive at `due`."""
        if not self._heap or due < self._heap[0][0]:
            self._sleep.deadline = due
        self._sent += 1
        heapq.heappush(self._heap, (due, self._sent, pipe, segment))

    def offer_held(self) -> None:
        """Judge again what waits, after the rules have changed."""
        held, self.held = self.held, {}
        for pipe in held:
            pipe.offer_waiting()

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            while self._heap and self._heap[0][0] <= trio.current_time():
                _, _, pipe, segment = heapq.heappop(self._heap)
                pipe.deliver(segment)
            self._sleep = trio.CancelScope(deadline=self._heap[0][0] if self._heap else math.inf)
            with self._sleep:
                await trio.sleep_forever()


@attrs.define(eq=False)
class Link:
    """The way from one host to another: its chance, and its usual delay."""

    source: str
    target: str
    random: random.Random
    delay_seconds_max: float

    def draw_delay(self) -> float:
        return self.random.uniform(self.delay_seconds_max / 10, self.delay_seconds_max)


class Pipe:
    """One direction of one connection, from `sender` to `receiver`."""

    def __init__(self, traffic: Traffic, link: Link, sender: End, receiver: End, number: int) -> None:
        self.link = link
        self.number = number
        self.used_bytes = 0  # L2: in flight, waiting or unread
        self._traffic = traffic
        self._sender = sender
        self._receiver = receiver
        self._due = 0.0  # L1: nothing arrives before what was sent earlier
        self._flying: deque[Segment] = deque()
        self._waiting: deque[Segment] = deque()  # held by a rule, in order, not in the heap
        self._over = False  # L3: a reset is on its way, nothing follows it

    def offer(self, kind: Kind, data: bytes = b"") -> None:
        """Send a segment, as the rules allow."""
        if not self._over:
            self._over = kind is Kind.RESET
            self._waiting.append(Segment(kind, data))
            if len(self._waiting) == 1:
                self.offer_waiting()

    def offer_waiting(self) -> None:
        """Send what waits until a rule holds it."""
        while self._waiting:
            verdict = self._traffic.judge(self.link.source, self.link.target, self._waiting[0].data)
            if verdict is HOLD:
                self._traffic.held[self] = None
                return
            if verdict is CUT:
                self._sender.cut()
                return
            delay_seconds = verdict if isinstance(verdict, (int, float)) else self.link.draw_delay()
            self._fly(self._waiting.popleft(), delay_seconds)

    def reset(self) -> None:
        """The sender breaks the connection: a suffix of its bytes is lost, and the reset goes the way of all segments."""
        if not self._over:
            self._lose_suffix()
            held = self._waiting[0] if self._waiting else None
            self._waiting.clear()
            if held is not None and held.kind is Kind.OPEN:
                self._waiting.append(held)  # without it the reset would be the first thing the other side hears
            self.offer(Kind.RESET)

    def forget_waiting(self) -> None:
        """The sender is gone and will not send again what a rule held."""
        self._waiting.clear()

    def reset_from_between(self) -> None:
        """Something between the hosts breaks the connection: as `reset`, but no rule is asked."""
        if not self._over or self._waiting:
            self._over = True
            self._lose_suffix()
            self._waiting.clear()
            self._fly(Segment(Kind.RESET), self.link.draw_delay())

    def _lose_suffix(self) -> None:
        flying = [segment for segment in self._flying if segment.kind is Kind.DATA]
        for segment in flying[self.link.random.randint(0, len(flying)) :]:
            segment.lost = True

    def deliver(self, segment: Segment) -> None:
        """The segment is due."""
        first = self._flying.popleft()
        assert first is segment, "a pipe delivers in the order of sending (L1)"
        if segment.lost:
            return
        discards = segment.kind is Kind.RESET and self._receiver.has_unread
        if self._receiver.hears and (segment.kind is Kind.DATA or discards):
            for tap in self._traffic.taps:
                tap(self.link.source, self.link.target, self.number, segment.data)
        self._receiver.arrive(segment)

    def free(self, size: int) -> None:
        """The receiver has read so many bytes; the sender has room again."""
        self.used_bytes -= size
        self._sender.changed()

    def _fly(self, segment: Segment, delay_seconds: float) -> None:
        self._due = max(self._due, trio.current_time() + delay_seconds)
        self._flying.append(segment)
        self._traffic.schedule(self._due, self, segment)


def _nothing() -> None:
    """What an end does when nobody watches it."""


class End:
    """One end of a connection, without tasks; `changed` is called whenever it may have become readable or writable."""

    incoming: Pipe
    outgoing: Pipe

    def __init__(self, host: str, peer: str, window_bytes: int, dialled: Callable[[End], bool] | None) -> None:
        self.host = host
        """The address of this side."""
        self.peer = peer
        """The address of the other side."""
        self.opened = dialled is not None
        """On the side that dialled: a listener took it."""
        self.refused = False
        self.changed: Callable[[], object] = _nothing
        self.forget: Callable[[], object] = _nothing
        """Called once, when this end is closed."""
        self.broken = False
        """Reset: what was unread is gone."""
        self.fenced = False
        """The host crashed: nothing that is done with this end has an effect any more."""
        self.closed = False
        self._dialled = dialled
        self._window_bytes = window_bytes
        self._unread: deque[bytes] = deque()
        self._peer_finished = False
        self.finished = False
        """This side has said that it sends no more."""

    @property
    def hears(self) -> bool:
        """Bytes that arrive now can still be read."""
        return not (self.fenced or self.closed or self.broken)

    @property
    def has_unread(self) -> bool:
        """Bytes have arrived that were not read."""
        return bool(self._unread)

    @property
    def readable(self) -> bool:
        """`recv` would not give None."""
        return bool(self._unread) or self._peer_finished or self.broken or self.fenced

    @property
    def writable(self) -> bool:
        """`send` would not give 0."""
        return self.broken or self.fenced or self.outgoing.used_bytes < self._window_bytes

    def recv(self, size: int) -> bytes | None:
        """At most `size` of the bytes that have arrived; None when there are none now; `b""` at the end, or when broken."""
        if self.broken or self.fenced:
            return b""
        if not self._unread:
            return b"" if self._peer_finished else None
        data = self._unread.popleft() if len(self._unread) == 1 else self._join_unread()
        if len(data) > size:
            self._unread.appendleft(data[size:])
            data = data[:size]
        self.incoming.free(len(data))
        return data

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """How many of the bytes were taken; -1 when the connection is broken, or this side has said that it is finished."""
        if self.broken or self.fenced or self.finished:
            return -1
        pipe, chance = self.outgoing, self.outgoing.link.random
        size = min(len(data), self._window_bytes - pipe.used_bytes)
        if size > 1 and chance.random() < _PARTIAL_SHARE:
            size = chance.randint(1, size)
        if size <= 0:
            return 0
        taken = bytes(data[:size])
        pipe.used_bytes += size
        cuts = [0, size]
        if size > 1 and chance.random() < _FRAGMENTED_SHARE:
            cuts = [0, *sorted(chance.randint(1, size - 1) for _ in range(chance.randint(1, 3))), size]
        for start, stop in itertools.pairwise(cuts):
            if start < stop:
                pipe.offer(Kind.DATA, taken[start:stop])
        return size

    def finish(self) -> None:
        """Send no more bytes; the other direction goes on."""
        if not (self.finished or self.broken or self.fenced):
            self.finished = True
            self.outgoing.offer(Kind.FINISHED)

    def close(self) -> None:
        """Neither read nor write any more. Bytes that were not read are answered with a reset, as TCP does."""
        if self.closed:
            return
        if self._unread and not (self.broken or self.fenced):
            self.outgoing.reset()
        self.finish()
        self.closed = True
        self._unread.clear()
        self.forget()

    def abort(self) -> None:
        """Close with a reset."""
        if not self.fenced:
            self.outgoing.reset()
        self.close()

    def cut(self) -> None:
        """Something between the hosts resets the connection: both ends learn it after a delay."""
        self.outgoing.reset_from_between()
        self.incoming.reset_from_between()

    def fence(self, *, silent: bool = False) -> None:
        """The host of this end is gone: nothing more leaves it, and the other side is reset, unless it happens in silence."""
        if not self.fenced:
            if silent:
                self.outgoing.forget_waiting()
            else:
                self.outgoing.reset()
            self.fenced = True
            self._unread.clear()
            self.changed()

    def arrive(self, segment: Segment) -> None:
        """A segment of the other end is here."""
        if self.fenced:
            if segment.kind is not Kind.RESET:
                self.outgoing.reset()  # the next life of the machine knows nothing of this connection, and says so
            return
        if segment.kind is Kind.OPEN:
            self._arrive_dial()
        elif segment.kind is Kind.OPENED:
            self.opened = True
        elif segment.kind is Kind.REFUSED:
            self.refused = self.broken = True
        elif segment.kind is Kind.FINISHED:
            self._peer_finished = True
        elif segment.kind is Kind.RESET:
            self.broken = True
            self._unread.clear()
        elif self.closed:
            self.outgoing.reset()  # nobody will ever read these bytes, and the sender must learn it
        elif not self.broken:
            self._unread.append(segment.data)
        self.changed()

    def _arrive_dial(self) -> None:
        assert self._dialled is not None, "only the side that was dialled is opened"
        if self._dialled(self):
            self.outgoing.offer(Kind.OPENED)
        else:
            self.closed = self.broken = True
            self.outgoing.offer(Kind.REFUSED)

    def _join_unread(self) -> bytes:
        data = b"".join(self._unread)
        self._unread.clear()
        return data


def connect_ends(traffic: Traffic, there: Link, back: Link, dialler: End, dialled: End) -> None:
    """Join two ends by two pipes and send the opening."""
    traffic.connections += 1
    dialler.outgoing = dialled.incoming = Pipe(traffic, there, dialler, dialled, traffic.connections)
    dialled.outgoing = dialler.incoming = Pipe(traffic, back, dialled, dialler, traffic.connections)
    dialler.outgoing.offer(Kind.OPEN)
