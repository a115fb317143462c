"""Linearizability: is there one order of all operations that explains what every client was told?

The search of Wing and Gong, one key at a time (operations on different keys do not constrain each other): take an operation that no
finished one precedes, let the model carry it out, go on with the rest, and go back when that leads nowhere. Lowe's memo keeps it from
looking twice at the same set of operations in the same state.

Intervals are closed. An operation whose outcome is unknown may take effect at any time after its call, or never; one that failed did
certainly not, and is left out. The verdict is `OK`, `ILLEGAL` or, when the budget of steps is spent, `UNKNOWN`: never a bool.

Sources: Wing and Gong, "Testing and Verifying Concurrent Objects", 1993; Lowe, "Testing for Linearizability", 2017.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import attrs

STEPS_MAX = 2_000_000

Step = Callable[[Hashable, "Call"], Iterable[Hashable]]


class Verdict(enum.Enum):
    """What the search found."""

    OK = "ok"
    ILLEGAL = "illegal"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Call:
    """One operation on one key. `returned` is infinite and `sure` False when nobody knows whether it happened."""

    name: str
    invoked: float
    returned: float
    sure: bool = True
    arguments: Any = None
    result: Any = None

    def __str__(self) -> str:
        end = "?" if math.isinf(self.returned) else f"{self.returned:.4f}"
        return f"[{self.invoked:.4f}, {end}] {self.name}({self.arguments}) -> {self.result if self.sure else 'unknown'}"


@attrs.frozen(kw_only=True)
class Result:
    """The verdict, the order that explains the most time, and what could not follow it."""

    verdict: Verdict
    longest: tuple[Call, ...]
    stuck: tuple[Call, ...]
    steps: int

    def __str__(self) -> str:
        lines = [f"{self.verdict.value} after {self.steps} steps; the longest order that explains what was told:"]
        lines += [f"  {call}" for call in self.longest[-10:]]
        lines += ["nothing of this can follow:", *(f"  {call}" for call in self.stuck[:10])]
        return "\n".join(lines)


def check(calls: Sequence[Call], initial: Hashable, step: Step, steps_max: int = STEPS_MAX) -> Result:
    """Look for an order. `step(state, call)` gives every state in which the call may leave the key; none when it cannot happen there."""
    ordered = sorted(calls, key=lambda call: call.invoked)
    search = _Search(ordered, initial, step, steps_max)
    return search.run()


class _Search:
    """One search, with its stack on the heap: histories are longer than Python's stack is deep."""

    def __init__(self, calls: Sequence[Call], initial: Hashable, step: Step, steps_max: int) -> None:
        self._calls = calls
        self._step = step
        self._steps_max = steps_max
        self._sure = sum(1 << index for index, call in enumerate(calls) if call.sure)
        self._seen: dict[tuple[int, Hashable], None] = {}
        self._longest: list[int] = []
        self._reached = -math.inf  # the first return that the longest order has not got past
        self._steps = 0
        self._first_return = -math.inf
        self._initial = initial

    def run(self) -> Result:
        """Depth first; each frame of the stack is the rest of the choices that are open at one point."""
        path: list[int] = []
        stack = [iter(self._choices(0, self._initial))]
        done = [0]
        if not self._sure:
            return self._result(Verdict.OK, path, 0)
        while stack:
            choice = next(stack[-1], None)
            if choice is None:
                stack.pop()
                done.pop()
                if path:
                    path.pop()
                continue
            index, state = choice
            mask = done[-1] | 1 << index
            self._steps += 1
            if self._steps > self._steps_max:
                return self._result(Verdict.UNKNOWN, self._longest, done[-1])
            if (mask, state) in self._seen:
                continue
            self._seen[mask, state] = None
            path.append(index)
            if mask & self._sure == self._sure:
                return self._result(Verdict.OK, path, mask)
            done.append(mask)
            choices = self._choices(mask, state)
            if self._first_return > self._reached:
                self._reached, self._longest = self._first_return, list(path)
            stack.append(iter(choices))
        return self._result(Verdict.ILLEGAL, self._longest, sum(1 << index for index in self._longest))

    def _choices(self, mask: int, state: Hashable) -> list[tuple[int, Hashable]]:
        """What may come next: a call that no other open one has returned before, and each state it may lead to."""
        choices: list[tuple[int, Hashable]] = []
        first_return = math.inf
        open_calls: list[int] = []
        for index in range((~mask & (mask + 1)).bit_length() - 1, len(self._calls)):  # from the first that is not done
            call = self._calls[index]
            if call.invoked > first_return:
                break
            if not mask >> index & 1:
                first_return = min(first_return, call.returned)
                open_calls.append(index)
        self._first_return = first_return
        for index in open_calls:
            if self._calls[index].invoked <= first_return:
                choices += [(index, following) for following in self._step(state, self._calls[index])]
        return choices

    def _result(self, verdict: Verdict, path: Sequence[int], mask: int) -> Result:
        stuck = [call for index, call in enumerate(self._calls) if call.sure and not mask >> index & 1]
        longest = tuple(self._calls[index] for index in path)
        return Result(verdict=verdict, longest=longest, stuck=tuple(stuck), steps=self._steps)
