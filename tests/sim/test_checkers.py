"""The checkers: what each promise forbids is found in a small history that breaks it, and a good one passes.

Whole nodes that break promises are in `mutants.py`; here are the rules that are judged from what subscribers saw and clients were told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from .checkers import Violation
from .checkers.linearizability import Call, Verdict, check
from .checkers.register import step
from .checkers.subscriptions import Subscriptions
from .history import History, Sight

ONE, TWO = ((1, 1), "up", "v1"), ((1, 2), "up", "v2")
Shown = Mapping[str, tuple[tuple[int, int], str, str]]


class Truth:
    """Stands for the shadow: what was committed at seq 1, 2 and 3."""

    views: Mapping[tuple[int, int], Shown] = {(1, 1): {"a": ONE}, (1, 2): {"a": ONE, "b": TWO}, (1, 3): {"b": TWO}}

    def view_at(self, service: str, lsn: tuple[int, int]) -> Shown | None:
        return self.views.get(lsn)


def sight(seq: int, values: Shown, **what: Any) -> Sight:
    fields: dict[str, Any] = {"added": (), "changed": (), "removed": (), "reset": False, "stale": False, **what}
    return Sight(client="c1", life=1, number=1, service="s", at=float(seq), lsn=(1, seq), values=values, **fields)


def judge(*sights: Sight) -> None:
    history = History()
    history.sights.extend(sights)
    Subscriptions(history, Truth()).end()  # type: ignore[arg-type]


BEGIN = sight(1, {"a": ONE}, reset=True)


def test_a_good_stream_passes() -> None:
    """One change after the other, two at once, suspicion on and off, and a full view that goes back."""
    suspect = ((1, 1), "suspect", "v1")
    judge(
        BEGIN,
        sight(1, {"a": suspect}, changed=("a",)),
        sight(2, {"a": ONE, "b": TWO}, changed=("a",), added=("b",)),
        sight(3, {"b": TWO}, removed=("a",)),
        sight(1, {"a": ONE}, added=("a",), removed=("b",), reset=True),
        sight(3, {"b": TWO}, added=("b",), removed=("a",)),
    )


@pytest.mark.parametrize(
    ("sights", "number"),
    [
        ([sight(3, {"b": TWO}, reset=True), sight(2, {"a": ONE, "b": TWO}, added=("a",))], "31"),
        ([BEGIN, sight(2, {"a": ONE, "b": TWO}, added=("a", "b"))], "32"),
        ([BEGIN, sight(2, {"a": ONE, "b": TWO})], "32"),
        ([BEGIN, sight(1, {"a": ((1, 1), "draining", "v1")})], "32"),
        ([BEGIN, sight(2, {"b": TWO}, added=("b",), removed=("a",))], "34"),
        ([BEGIN, sight(9, {"a": ONE})], "36"),
        ([BEGIN, sight(2, {}, removed=("a",))], "37"),
    ],
)
def test_a_broken_stream_is_found(sights: list[Sight], number: str) -> None:
    """And the text says which promise, to whom and where."""
    with pytest.raises(Violation, match=rf"^{number}: c1 \(life 1, stream 1\) of s at"):
        judge(*sights)


def call(name: str, invoked: float, owner: str = "c1", value: str = "", **fields: Any) -> Call:
    fields = {"returned": invoked + 1, **fields}
    return Call(name=name, invoked=invoked, arguments=(owner, value), **fields)


def lookup(invoked: float, found: tuple[str, str] | None) -> Call:
    return call("lookup", invoked, result=found)


REGISTER = call("register", 0, value="v1")


@pytest.mark.parametrize(
    ("calls", "verdict"),
    [
        ([REGISTER, lookup(2, ("up", "v1"))], Verdict.OK),
        ([REGISTER, lookup(2, None)], Verdict.ILLEGAL),  # 24: acknowledged, and not there
        ([REGISTER, call("gone", 2, returned=2.0), lookup(3, None)], Verdict.OK),
        ([REGISTER, call("gone", 2, returned=2.0), lookup(3, ("up", "v1"))], Verdict.ILLEGAL),
        ([REGISTER, call("update", 2, value="v2"), lookup(4, ("up", "v1"))], Verdict.ILLEGAL),
        ([REGISTER, call("update", 2, value="v2", returned=99.0, sure=False), lookup(4, ("up", "v1"))], Verdict.OK),
        ([REGISTER, call("register", 2, "c2", "v2"), call("update", 4, "c1", "v3")], Verdict.ILLEGAL),  # c1 does not hold it any more
        ([REGISTER, call("drain", 2), lookup(4, ("draining", "v1"))], Verdict.OK),
        ([REGISTER, call("evict", 2), lookup(4, ("up", "v1"))], Verdict.ILLEGAL),
        ([REGISTER, call("register", 2, "c2", "v2"), call("deregister", 4, "c1"), lookup(6, ("up", "v2"))], Verdict.OK),
    ],
)
def test_the_registry_as_a_model(calls: list[Call], verdict: Verdict) -> None:
    """What the history of one key may tell, and what it may not."""
    assert check(calls, None, step).verdict is verdict
