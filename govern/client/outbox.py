"""What the rules of the client hand to its shell: frames to be sent, things that changed, and moments to be woken at.

The rules never wait and never call back. They put frames into the outbox and name the things that changed; the shell takes
both after every call, sends the frames in order and wakes whoever waits for those things.
"""

from __future__ import annotations

import heapq
import math
from typing import Any, Generic, TypeVar

import attrs

from ..errors import GovernError
from ..messages import Message, Refused, encode
from .outcomes import pause_of

T = TypeVar("T")


@attrs.define(eq=False)
class Request:
    """One question to the node and, once it is done, its answer or the error that ended it."""

    message: Message
    request_id: int = 0
    """0 until it is sent for the first time; a repetition keeps it."""
    in_doubt: bool = False
    """It was on its way when a connection broke, or when it was taken to another node: it may have had its effect."""
    pages: list[Any] = attrs.field(factory=list)
    answer: Any = None
    error: GovernError | None = None
    done: bool = False

    def __repr__(self) -> str:
        return f"<Request {self.request_id} {type(self.message).__name__} {'done' if self.done else 'open'}>"


class Numbers:
    """What only ever grows over the whole life of a session, whichever nodes it speaks to: request ids, by which a repeated write is
    recognised, also at another node, and attempts, by which a node prefers the newest connection."""

    def __init__(self) -> None:
        self._last_id = 0
        self._last_attempt = 0

    def draw_id(self) -> int:
        """A request id that was never used in this session."""
        self._last_id += 1
        return self._last_id

    def draw_attempt(self) -> int:
        """The number of the next connection."""
        self._last_attempt += 1
        return self._last_attempt


class Outbox:
    """The one way out of the rules, to one node.

    `spread` is this session's share of jitter, from 1 to 1.5: clients that were refused at the same moment and told the same pause do not
    come back at the same moment.
    """

    def __init__(self, spread: float = 1.0, numbers: Numbers | None = None) -> None:
        self.spread = spread
        self.frames: list[bytes] = []
        self.changed: dict[object, None] = {}  # in the order in which they changed first
        self._numbers = numbers or Numbers()

    def draw_id(self) -> int:
        """A request id that was never used in this session."""
        return self._numbers.draw_id()

    def send(self, message: Message, request_id: int = 0) -> None:
        """Put one frame out."""
        self.frames.append(encode(message, request_id))

    def tell(self, thing: object) -> None:
        """Wake whoever waits for this thing."""
        self.changed[thing] = None

    def pause(self, refused: Refused) -> float:
        """Seconds to wait before what was refused is asked again."""
        return pause_of(refused) * self.spread

    def finish(self, request: Request, answer: Any = None, error: GovernError | None = None) -> None:
        """The request is over, one way or the other."""
        assert not request.done, request
        request.answer, request.error, request.done = answer, error, True
        request.pages = []
        self.tell(request)

    @property
    def has_any(self) -> bool:
        """Whether there is anything to be taken."""
        return bool(self.frames or self.changed)

    def take(self) -> tuple[list[bytes], list[object]]:
        """All that was put out since the last call: frames in order, and the things that changed."""
        frames, changed = self.frames, list(self.changed)
        self.frames, self.changed = [], {}
        return frames, changed


class Alarms(Generic[T]):
    """Things that want another try at some moment; each at most once."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._waiting: dict[T, int] = {}
        self._set_count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, item: T) -> bool:
        return item in self._waiting

    def set(self, item: T, at: float) -> None:
        """Name the item when `at` has come, and not at the moment it was set to before."""
        self._set_count += 1
        self._waiting[item] = self._set_count
        heapq.heappush(self._heap, (at, self._set_count, item))

    def cancel(self, item: T) -> None:
        """Do not name the item any more."""
        self._waiting.pop(item, None)

    @property
    def deadline(self) -> float:
        """When to call `due` next, or infinity."""
        while self._heap and self._waiting.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: float) -> list[T]:
        """The items whose moment has come, earliest first."""
        items: list[T] = []
        while self.deadline <= now:
            _, _, item = heapq.heappop(self._heap)
            del self._waiting[item]
            items.append(item)
        return items
