"""What a client shows beside the stored state and says about it: suspicion, acknowledgements, the choice of an instance."""

from __future__ import annotations

import random
from collections import Counter

import msgpack
import pytest

from govern.client.balance import Choice
from govern.errors import RemoteProtocolError
from govern.messages import Applied, Delta, Hint, View
from govern.model import Instance, Lsn, ServiceKey, Status, client_fields

from .helpers import ORDERS, Pair
from .model_node import ModelNode

RIVAL = b"r" * 16


def put(node: ModelNode, instance_id: str, **fields: object) -> None:
    instance = Instance(**{"id": instance_id, "host": "h", "port": 1, **fields})  # type: ignore[arg-type]
    node.put((ORDERS, instance_id), RIVAL, node.seq + 1, client_fields(instance))


def statuses(pair: Pair) -> dict[str, str]:
    (view,) = pair.core.views._views.values()
    return {instance.id: str(instance.status) for instance in view.sorted_instances()}


def test_a_hint_shows_and_goes_without_moving_the_lsn() -> None:
    """Suspicion is a change of its own: `updated`, with the lsn that was; and so is its end."""
    pair = Pair()
    put(pair.node, "one")
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    cursor.skip()
    lsn = cursor.view.lsn
    for on, status in ((True, Status.SUSPECT), (False, Status.UP)):
        pair.node.hint((ORDERS, "one"), on=on)
        pair.settle()
        change = cursor.take()
        assert change is not None
        assert [(instance.id, instance.status) for instance in change.updated] == [("one", status)]
        assert change.lsn == cursor.view.lsn == lsn
        assert not cursor.view.stale
        pair.core.validate()
    pair.node.hint((ORDERS, "one"), on=False)
    pair.settle()
    assert cursor.take() is None


def test_only_what_is_up_can_be_suspect() -> None:
    """Draining and down say more than a doubt; an unknown id says nothing."""
    pair = Pair()
    put(pair.node, "draining", status=Status.DRAINING)
    put(pair.node, "down", status=Status.DOWN)
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    cursor.skip()
    pair.give(Hint(ORDERS, ["draining", "down", "nobody"], True))
    assert statuses(pair) == {"down": "down", "draining": "draining"}
    assert cursor.take() is None


def test_a_delta_about_a_suspect_ends_the_suspicion() -> None:
    """What was changed or removed is shown as it is; the others stay suspect, and a node that doubts still says so again."""
    pair = Pair()
    for name in ("changed", "removed", "still"):
        put(pair.node, name)
    pair.connect()
    pair.core.views.open(ORDERS)
    pair.settle()
    pair.give(Hint(ORDERS, ["changed", "removed", "still"], True))
    put(pair.node, "changed", weight=2.0)
    pair.node.remove((ORDERS, "removed"))
    pair.settle()
    assert statuses(pair) == {"changed": "up", "still": "suspect"}
    pair.core.validate()
    pair.give(Hint(ORDERS, ["changed"], True))
    assert statuses(pair) == {"changed": "suspect", "still": "suspect"}
    pair.node.whole_pushes = True
    put(pair.node, "new")
    pair.settle()
    assert statuses(pair) == {"changed": "up", "new": "up", "still": "up"}


def test_suspicion_outlives_the_connection_and_ends_with_the_next() -> None:
    """While disconnected the overlay stays; the node says with the resumed subscription who is suspect now."""
    pair = Pair()
    put(pair.node, "one")
    put(pair.node, "two")
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.node.hint((ORDERS, "one"), on=True)
    pair.settle()
    pair.drop()
    assert statuses(pair) == {"one": "suspect", "two": "up"}
    assert cursor.view.stale
    pair.node.suspects.clear()
    pair.node.hint((ORDERS, "two"), on=True)
    pair.connect()
    assert statuses(pair) == {"one": "up", "two": "suspect"}


def test_a_new_subscriber_sees_who_is_suspect_already() -> None:
    """The hint that follows the list is applied to it."""
    pair = Pair()
    put(pair.node, "one")
    pair.node.hint((ORDERS, "one"), on=True)
    pair.connect()
    pair.core.views.open(ORDERS)
    pair.settle()
    assert statuses(pair) == {"one": "suspect"}


def test_hints_for_what_is_not_subscribed_are_ignored() -> None:
    """A late hint does no harm."""
    pair = Pair()
    pair.connect()
    pair.give(Hint(ServiceKey("default", "other"), ["x"], True))
    assert not pair.sent()


# --- acknowledgements ---------------------------------------------------------------------------------------------------------


def test_applied_is_said_when_it_is_true_and_was_asked_for() -> None:
    """Once for each push with `ack`, after it became the view; a list says it with its last page."""
    pair = Pair()
    put(pair.node, "one")
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    since = cursor.view.lsn
    public = pair.node.instances[ORDERS, "one"].public()
    pair.give(Delta(ORDERS, since, Lsn(1, 5), [], ["one"]))
    assert not pair.sent()
    pair.give(Delta(ORDERS, Lsn(1, 5), Lsn(1, 6), [public], [], True))
    assert cursor.view.lsn == Lsn(1, 6)
    assert pair.sent() == [Applied(ORDERS, Lsn(1, 6))]
    pair.give(View(ORDERS, Lsn(1, 7), True, True, [public], True))
    assert not pair.sent()
    pair.give(View(ORDERS, Lsn(1, 7), True, False, [], True))
    assert pair.sent() == [Applied(ORDERS, Lsn(1, 7))]


def test_an_empty_delta_only_asks() -> None:
    """A push that moves nothing is a question: it is answered, and nobody is told of a change. Without the question it is nonsense."""
    pair = Pair()
    put(pair.node, "one")
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    cursor.skip()
    pair.give(Delta(ORDERS, cursor.view.lsn, cursor.view.lsn, [], [], True))
    assert pair.sent() == [Applied(ORDERS, cursor.view.lsn)]
    assert cursor.take() is None
    with pytest.raises(RemoteProtocolError):
        pair.give(Delta(ORDERS, cursor.view.lsn, cursor.view.lsn, [], []))


def test_what_was_not_applied_is_not_acknowledged() -> None:
    """A delta that does not fit, and a list that is held back, are not said to be applied."""
    pair = Pair()
    put(pair.node, "one")
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.give(View(ORDERS, Lsn(1, 9), False, False, [], True))  # empty, and of a node that is not fresh
    assert len(cursor.view.instances) == 1
    assert not [message for message in pair.sent() if isinstance(message, Applied)]
    pair.give(Delta(ORDERS, Lsn(1, 20), Lsn(1, 21), [], ["one"], True))
    assert not [message for message in pair.sent() if isinstance(message, Applied)]


def test_a_list_that_was_asked_for_is_acknowledged_too() -> None:
    """A subscriber that comes while somebody drains counts as soon as it has the list."""
    pair = Pair()
    pair.connect()
    pair.core.views.open(ORDERS)
    frames, _ = pair.core.outbox.take()
    pair.give(View(ORDERS, Lsn(1, 3), True, False, [], True), msgpack.unpackb(frames[0][4:])[1])
    assert pair.sent() == [Applied(ORDERS, Lsn(1, 3))]


# --- choosing -----------------------------------------------------------------------------------------------------------------


def instances(*rows: tuple[str, float, Status]) -> list[Instance]:
    return [Instance(id=name, host="h", port=1, weight=weight, status=status) for name, weight, status in rows]


UP, SUSPECT, DRAINING, DOWN = Status.UP, Status.SUSPECT, Status.DRAINING, Status.DOWN


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([("a", 1.0, UP), ("b", 1.0, SUSPECT), ("c", 1.0, DRAINING), ("d", 0.0, UP), ("e", 1.0, DOWN)], {"a"}),
        ([("b", 1.0, SUSPECT), ("c", 1.0, DRAINING), ("d", 0.0, UP)], {"b"}),
        ([("c", 1.0, DRAINING), ("d", 0.0, UP), ("e", 1.0, DOWN)], {"c", "e"}),
        ([("d", 0.0, UP), ("e", 0.0, DOWN)], {"d", "e"}),
        ([], {None}),
    ],
)
def test_the_best_tier_is_chosen_from(rows: list[tuple[str, float, Status]], chosen: set[str | None]) -> None:
    """Up with weight, then suspect, then all; and nothing of nothing."""
    choice, chance = Choice(instances(*rows)), random.Random(1)
    picked = {None if (instance := choice.pick(chance)) is None else instance.id for _ in range(200)}
    assert picked == chosen


def test_weights_are_shares() -> None:
    """An instance of three times the weight gets three times the requests."""
    choice, chance = Choice(instances(("a", 1.0, UP), ("b", 3.0, UP), ("c", 0.0, UP))), random.Random(1)
    count = Counter(instance.id for _ in range(8000) if (instance := choice.pick(chance)) is not None)
    assert count["c"] == 0
    assert 2.7 < count["b"] / count["a"] < 3.3


def test_the_last_float_below_one_still_picks() -> None:
    """The sums of weights are floats: whatever the chance is, somebody is picked."""

    class Edge(random.Random):
        def random(self) -> float:
            return 1 - 2**-53

    for weights in ((0.1, 0.2, 0.3), (1e-12, 10_000.0), (1 / 3,) * 7):
        rows = [(str(number), weight, UP) for number, weight in enumerate(weights)]
        assert Choice(instances(*rows)).pick(Edge()) is not None


def test_the_choice_follows_the_view() -> None:
    """Every delta and every hint counts for the next choice."""
    pair = Pair()
    for name in ("one", "two"):
        put(pair.node, name)
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    chance = random.Random(1)

    def chosen() -> set[str]:
        return {instance.id for _ in range(50) if (instance := cursor.view.choice().pick(chance)) is not None}

    assert chosen() == {"one", "two"}
    pair.node.hint((ORDERS, "one"), on=True)
    pair.settle()
    assert chosen() == {"two"}
    pair.node.remove((ORDERS, "two"))
    pair.settle()
    assert chosen() == {"one"}
