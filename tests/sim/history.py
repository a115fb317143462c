"""What the clients of a run did and saw, written down as it happens: the evidence that the checkers judge.

An operation has three possible ends: `ok`, it happened; `fail`, it certainly did not; `unknown`, it may have happened, then or later.
That is what the errors of govern promise to tell: `Rejected` and `Unreachable` are fail, `Indeterminate` and everything that was cut off
(a cancelled call, a killed client) are unknown. Times are virtual seconds; nothing is ever removed.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

import attrs
import trio


class End(enum.Enum):
    """How an operation ended."""

    PENDING = "pending"
    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


@attrs.define(eq=False, kw_only=True)
class Operation:
    """One call of one client. `key` is (service, instance id); for a lookup the id is empty and `result` maps ids to values."""

    number: int
    client: str
    kind: str  # register, update, deregister, drain, evict, lookup
    key: tuple[str, str]
    value: str = ""  # what it writes: unique in the run, in the metadata key `v`
    invoked: float
    returned: float = math.inf
    end: End = End.PENDING
    result: Any = None

    def finish(self, end: End, result: Any = None) -> None:
        """Write down how it ended; once."""
        assert self.end is End.PENDING, f"{self} ended twice"
        self.end, self.result, self.returned = end, result, trio.current_time()


@attrs.frozen(kw_only=True)
class Sight:
    """What one subscription showed at one moment, after one change of its view."""

    client: str
    life: int  # which life of the client, and which subscription in it: (life, number) is one stream
    number: int
    service: str
    at: float
    lsn: tuple[int, int]  # (term, seq)
    values: Mapping[str, tuple[tuple[int, int], str, str]]  # id -> (lease, status, value)
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    reset: bool
    stale: bool


class History:
    """Everything that happened, in order."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.sights: list[Sight] = []

    def __repr__(self) -> str:
        return f"<History {len(self.operations)} operations, {len(self.sights)} sights>"

    def begin(self, client: str, kind: str, key: tuple[str, str], value: str = "") -> Operation:
        """An operation begins now."""
        operation = Operation(number=len(self.operations), client=client, kind=kind, key=key, value=value, invoked=trio.current_time())
        self.operations.append(operation)
        return operation
