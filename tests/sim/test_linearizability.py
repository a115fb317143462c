"""The checker itself: against brute force on small histories, on the classical examples, and in its cost."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable, Iterable, Sequence

import pytest

from .checkers.linearizability import Call, Verdict, check


def register_step(state: Hashable, call: Call) -> Iterable[Hashable]:
    """A register of one value."""
    if call.name == "write":
        return [call.arguments]
    return [state] if call.result == state else []


def brute_force(calls: Sequence[Call]) -> bool:
    """Try every order of every subset that holds all sure calls."""
    sure = [call for call in calls if call.sure]
    unsure = [call for call in calls if not call.sure]
    for count in range(len(unsure) + 1):
        for chosen in itertools.combinations(unsure, count):
            for order in itertools.permutations([*sure, *chosen]):
                if explains(order):
                    return True
    return False


def explains(order: Sequence[Call]) -> bool:
    for index, call in enumerate(order):
        if any(later.returned < call.invoked for later in order[index + 1 :]):
            return False
    state: Hashable = 0
    for call in order:
        following = list(register_step(state, call))
        if not following:
            return False
        (state,) = following
    return True


def draw_history(chance: random.Random) -> list[Call]:
    calls = []
    for number in range(chance.randint(1, 5)):
        invoked = chance.randrange(8)
        returned: float = invoked + chance.randrange(5)
        if chance.random() < 0.5:
            sure = chance.random() < 0.7
            calls.append(Call(name="write", invoked=invoked, returned=returned if sure else math.inf, sure=sure, arguments=number + 1))
        else:
            calls.append(Call(name="read", invoked=invoked, returned=returned, result=chance.randrange(4)))
    return calls


def test_it_agrees_with_brute_force() -> None:
    """On 2,000 small histories of sure and unsure operations, many legal and many not."""
    chance = random.Random(1)
    found = {Verdict.OK: 0, Verdict.ILLEGAL: 0}
    for _ in range(2000):
        calls = draw_history(chance)
        verdict = check(calls, 0, register_step).verdict
        assert (verdict is Verdict.OK) == brute_force(calls), calls
        found[verdict] += 1
    assert min(found.values()) > 400, found


def write(value: int, invoked: float, returned: float = math.inf) -> Call:
    return Call(name="write", invoked=invoked, returned=returned, sure=returned < math.inf, arguments=value)


def read(value: int, invoked: float, returned: float) -> Call:
    return Call(name="read", invoked=invoked, returned=returned, result=value)


@pytest.mark.parametrize(
    ("calls", "verdict"),
    [
        ([], Verdict.OK),
        ([write(1, 0, 1), read(1, 1, 2)], Verdict.OK),  # closed intervals: the end of one is the beginning of the other
        ([write(1, 0, 1), read(0, 2, 3)], Verdict.ILLEGAL),  # a stale read
        ([write(1, 0, 5), read(1, 1, 2), read(0, 3, 4)], Verdict.ILLEGAL),  # seen, and then not any more
        ([write(1, 0), read(0, 9, 10), read(1, 11, 12)], Verdict.OK),  # unknown, and it happened late
        ([write(1, 0), read(0, 9, 10)], Verdict.OK),  # unknown, and it never did
        ([write(1, 0), read(1, 1, 2), read(0, 3, 4)], Verdict.ILLEGAL),  # unknown, but it cannot happen and then not have happened
    ],
)
def test_classical_histories(calls: list[Call], verdict: Verdict) -> None:
    """Stale reads, reads that go back, and operations that nobody knows the end of."""
    assert check(calls, 0, register_step).verdict is verdict


def history_of(clients: int, count: int) -> list[Call]:
    """A legal history with that many clients at once, each value written once."""
    chance = random.Random(2)
    points = sorted((chance.random() * count, number) for number in range(count))
    calls, state = [], 0
    for point, number in points:
        invoked, returned = point - chance.random() * clients / 2, point + chance.random() * clients / 2
        if chance.random() < 0.5:
            state = number + 1
            calls.append(write(state, invoked, returned))
        else:
            calls.append(read(state, invoked, returned))
    return calls


def test_a_long_history_is_affordable() -> None:
    """A thousand operations of ten clients need a small part of the budget."""
    result = check(history_of(10, 1000), 0, register_step)
    assert result.verdict is Verdict.OK
    assert result.steps < 500_000


def test_a_spent_budget_is_not_an_answer() -> None:
    """Neither legal nor illegal is said when the search was not finished."""
    assert check(history_of(10, 200), 0, register_step, steps_max=50).verdict is Verdict.UNKNOWN


def test_what_went_wrong_is_told() -> None:
    """The longest order and what cannot follow it are named."""
    text = str(check([write(1, 0, 1), read(1, 2, 3), read(0, 4, 5)], 0, register_step))
    assert "[2.0000, 3.0000] read" in text
    assert text.endswith("nothing of this can follow:\n  [4.0000, 5.0000] read(None) -> 0")
