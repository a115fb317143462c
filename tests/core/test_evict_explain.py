"""Evict and explain, and the history that explanations are made from."""

from __future__ import annotations

from typing import Any

import pytest

from govern.core.history import CONNECTED, EVENTS_MAX, REGISTERED, TOLD_PER_SECOND_MAX, UPDATED, History
from govern.core.links import Link
from govern.core.sessions import Silent
from govern.messages import (
    Deregister,
    Done,
    Drain,
    Evict,
    Explain,
    Explained,
    Goodbye,
    Hello,
    Lost,
    Refused,
    Resync,
    ResyncOk,
    Update,
    decode,
    encode,
)
from govern.model import LSN_ZERO, Lsn, ServiceKey

from .rig import ORDERS, A, B, Rig, code_of, register

# --- evict ------------------------------------------------------------------------------------------------------------------


def evict(rig: Rig, link: Link, identity: str = "i1") -> int:
    request_id = rig.give(link, Evict(ORDERS, identity))
    rig.commit()
    return request_id


def test_an_evicted_client_is_told_and_does_not_get_the_id_again() -> None:
    """It learns the reason at once, its registration of that id is refused as `evicted`, and it may register any other; another client
    may have the id, and the evicted one then does not get it back either, with or without `prior`."""
    rig = Rig()
    owner, operator, heir = rig.link(A), rig.link(b""), rig.link(B)
    lease_id = rig.register(owner)
    request_id = evict(rig, operator)
    assert rig.said(operator) == [(Done(Lsn(1, 2)), request_id)]
    assert rig.said(owner) == [(Lost(ORDERS, "i1", lease_id, "evicted"), 0)]
    for prior in (LSN_ZERO, lease_id):
        answers = rig.say(owner, register("i1", prior=prior))
        assert code_of(answers) == "evicted"
        (answer,) = answers
        assert isinstance(answer, Refused)
        assert answer.retry_after_ms == 0, "trying again never helps"
    rig.register(owner, "i2")
    rig.register(owner, "i1", ServiceKey("default", "other"))
    rig.register(heir, "i1")
    assert code_of(rig.say(owner, register("i1"))) == "evicted"
    assert not rig.dispatch.writes, "none of this cost a log record"


def test_an_eviction_that_overtakes_a_registration_on_its_way_holds() -> None:
    """The owner's new registration is under way when the eviction is committed before it: it is refused when its turn comes."""
    rig = Rig()
    owner, operator = rig.link(A), rig.link(b"")
    lease_id = rig.register(owner)
    rig.give(operator, Evict(ORDERS, "i1"))
    request_id = rig.give(owner, register("i1", zone="z", prior=lease_id))
    rig.commit()
    answers = {number: message for message, number in rig.said(owner)}
    assert isinstance(answers[0], Lost)
    refused = answers[request_id]
    assert isinstance(refused, Refused)
    assert refused.code == "evicted"
    assert rig.shard.instance_count == 0


def test_an_evicted_client_that_was_not_there_learns_it_when_it_compares() -> None:
    """Its connection was broken when it was evicted: naming its leases tells it."""
    rig = Rig()
    owner = rig.link(A)
    lease_id = rig.register(owner)
    rig.register(owner, "i2")
    rig.dispatch.closed(owner)
    evict(rig, rig.link(b""))
    (answer,) = rig.say(rig.link(A, 2), Resync([["default", "orders", "i1", *lease_id]], False))
    assert isinstance(answer, ResyncOk)
    assert answer.evicted == [["default", "orders", "i1"]]
    assert answer.unknown == answer.superseded == []


def test_nothing_is_evicted_that_is_not_there() -> None:
    """Also not a second time; and one who said Goodbye or gives no id evicts nobody."""
    rig = Rig()
    rig.register(rig.link(A))
    operator = rig.link(b"")
    rig.give(operator, Evict(ORDERS, "i1"), 0)
    assert code_of([message for message, _ in rig.said(operator)]) == "invalid"
    evict(rig, operator)
    rig.said(operator)
    assert code_of(rig.say(operator, Evict(ORDERS, "i1"))) == "gone"
    leaving = rig.link(B)
    rig.say(leaving, Goodbye())
    assert code_of(rig.say(leaving, Evict(ORDERS, "i1"))) == "invalid"


# --- explain ----------------------------------------------------------------------------------------------------------------


def explain(rig: Rig, identity: str = "") -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, str, str]]]:
    """The rows by instance id, and `(kind, id, session, detail)` of the events; it is read back as a client would."""
    (answer,) = rig.say(rig.link(b""), Explain(ORDERS, identity))
    assert isinstance(answer, Explained)
    assert decode(encode(answer, 1)[4:])[0] == answer
    rows = {row["id"]: row for row in answer.instances}
    assert len(rows) == len(answer.instances)
    return rows, [(event["kind"], event["id"], event["session"], event["detail"]) for event in answer.events]


def named(rig: Rig, session_id: bytes, who: str) -> Link:
    link = Link("10.0.0.7", "10.0.0.9", rig.sessions.now_us)
    rig.gate.admit(link)
    rig.say(link, Hello(1, "", who, "", session_id, 1))
    return link


HEX_A, HEX_B = A.hex()[:8], B.hex()[:8]


def test_a_living_instance_is_explained() -> None:
    """Who registered it and when, by which session, whether it is connected, when it was heard last, and what happened since."""
    rig = Rig()
    rig.dispatch.wall_ms = rig.dispatch.history.wall_ms = 1_700_000_000_000
    link = named(rig, A, "shop")
    lease_id = rig.register(link, ttl=10)
    rig.sessions.now_us += 2_500_000
    rig.give(link, Update(ORDERS, "i1", lease_id, {"weight": 0.5, "zone": "z"}))
    rig.commit()
    rig.sessions.now_us += 1_500_000
    rows, events = explain(rig, "i1")
    assert rows["i1"] == {
        "id": "i1",
        "status": "up",
        "in_view": True,
        "registered_at": "2023-11-14T22:13:20.000Z",
        "session": HEX_A,
        "who": "shop",
        "peer": "10.0.0.7",
        "connected": True,
        "last_heard_seconds": 1.5,
        "suspect_seconds": None,
        "ttl": 10.0,
        "ephemeral": True,
        "lease_id": [1, 1],
        "lsn": [1, 2],
    }
    assert events == [
        ("connected", "", HEX_A, "attempt 1"),
        ("registered", "i1", HEX_A, ""),
        ("updated", "i1", HEX_A, "weight, zone"),
    ]
    rig.dispatch.closed(link)
    rows, events = explain(rig, "i1")
    assert (rows["i1"]["connected"], rows["i1"]["who"], rows["i1"]["in_view"]) == (False, "", True)
    assert events[-1] == ("disconnected", "", HEX_A, "the other side closed it")


def test_an_expired_instance_is_explained() -> None:
    """It is not in the view, because its session was silent for so long."""
    rig = Rig()
    link = named(rig, A, "shop")
    rig.register(link)
    rig.dispatch.closed(link)
    session = rig.sessions.get(A)
    assert session is not None
    rig.sessions.now_us += 4_600_000
    rig.dispatch.propose_expiries([Silent(session, 5_000, session.stamp_us)])
    rig.commit()
    for identity in ("i1", ""):
        rows, events = explain(rig, identity)
        assert (rows["i1"]["status"], rows["i1"]["in_view"], rows["i1"]["session"]) == ("expired", False, HEX_A)
        assert events[-1] == ("expired", "i1", HEX_A, "silent for 4.6 s of a ttl of 5 s")


def test_an_expiry_that_came_after_all_says_no_less_than_it_was_proposed_for() -> None:
    """The client was heard between the proposal and the commit; the reason is the silence before."""
    rig = Rig()
    rig.register(rig.link(A))
    session = rig.sessions.get(A)
    assert session is not None
    rig.sessions.now_us += 4_600_000
    rig.dispatch.propose_expiries([Silent(session, 5_000, session.stamp_us)])
    session.stamp_us = rig.sessions.now_us
    rig.commit()
    assert explain(rig, "i1")[1][-1] == ("expired", "i1", HEX_A, "silent for 4.5 s of a ttl of 5 s")


def test_evicted_superseded_drained_and_left_instances_are_explained() -> None:
    """Each with who did it; sessions are shown by eight digits, which nobody can act with."""
    rig = Rig()
    first, second, operator = named(rig, A, "old"), named(rig, B, "new"), named(rig, b"", "ann")
    rig.register(first)
    rig.register(second)
    rig.give(operator, Drain(ORDERS, "i1"))
    rig.commit()
    assert explain(rig)[0]["i1"]["status"] == "draining"
    evict(rig, operator)
    lease_id = rig.register(second, "i2")
    rig.give(second, Deregister(ORDERS, "i2", lease_id))
    rig.commit()
    rig.register(second, "i3")
    rig.give(second, Goodbye())
    rig.commit()
    (answer,) = rig.say(rig.link(b""), Explain(ORDERS, ""))
    assert isinstance(answer, Explained)
    told = [(event["kind"], event["id"], event["session"], event["who"], event["detail"]) for event in answer.events if event["id"]]
    assert told == [
        ("registered", "i1", HEX_A, "old (10.0.0.7)", ""),
        ("superseded", "i1", HEX_A, "new (10.0.0.7)", f"session {HEX_B} registered this id"),
        ("registered", "i1", HEX_B, "new (10.0.0.7)", ""),
        ("draining", "i1", HEX_B, "ann (10.0.0.7)", "drained by an operator"),
        ("evicted", "i1", HEX_B, "ann (10.0.0.7)", "its session may not register this id again"),
        ("registered", "i2", HEX_B, "new (10.0.0.7)", ""),
        ("deregistered", "i2", HEX_B, "new (10.0.0.7)", ""),
        ("registered", "i3", HEX_B, "new (10.0.0.7)", ""),
        ("deregistered", "i3", HEX_B, "new (10.0.0.7)", "its client said Goodbye"),
    ]
    rows, _ = explain(rig)
    assert {identity: (row["status"], row["in_view"]) for identity, row in rows.items()} == {
        "i1": ("evicted", False),
        "i2": ("deregistered", False),
        "i3": ("deregistered", False),
    }
    assert A.hex() not in repr(answer)
    assert repr(A) not in repr(answer)


def test_what_never_was_is_explained_by_nothing() -> None:
    """No row, no event, no error; other services and instances do not mix in."""
    rig = Rig()
    rig.register(rig.link(A), "i1", ServiceKey("default", "other"))
    rig.register(rig.link(B), "i2")
    assert explain(rig, "i1") == ({}, [])
    assert list(explain(rig)[0]) == ["i2"]


def test_refused_and_repeated_requests_are_no_events() -> None:
    """Only what changed the registry is history."""
    rig = Rig()
    link = rig.link(A)
    rig.register(link)
    for number in (rig.request_id, rig.request_id):
        rig.give(link, register("i1"), number)
        rig.commit()
    rig.give(link, Update(ORDERS, "i1", Lsn(1, 99), {"weight": 0.5}))
    rig.commit()
    assert [kind for kind, *_ in explain(rig, "i1")[1]] == [CONNECTED, REGISTERED]


def test_an_explanation_is_bounded_and_tells_the_newest_events() -> None:
    """512 instances and 500 events at most, and it fits into one frame that a client accepts."""
    rig = Rig()
    link = rig.link(A)
    for number in range(600):
        rig.give(link, register(f"i{number}"))
    rig.commit()
    rig.said(link)
    rows, events = explain(rig)
    assert len(rows) == 512
    assert len(events) == 500
    assert events[-1][:2] == ("registered", "i599")


def test_the_history_is_bounded_and_a_storm_of_connections_does_not_push_out_the_rest() -> None:
    """The oldest are forgotten, of events of instances and of connections by themselves."""
    history = History()
    link = Link("peer", "here", 0)
    history.note_connection(CONNECTED, link)
    assert len(history) == 0, "a connection without a session"
    rig = Rig()
    link = rig.link(A)
    history.note(UPDATED, ORDERS, "rare", A)
    for number in range(EVENTS_MAX + 5):
        history.note_connection(CONNECTED, link, str(number))
    assert len(history) == EVENTS_MAX + 1
    assert [event[4] for event in history.of_instances(ORDERS, "rare")] == ["rare"]
    assert history.of_connections([A])[0][8] == "5"
    assert history.of_connections([B]) == []
    for number in range(EVENTS_MAX):
        history.note(UPDATED, ORDERS, f"i{number}", A)
    assert len(history) == 2 * EVENTS_MAX
    assert history.of_instances(ORDERS, "rare") == []


def test_explanations_are_given_a_bounded_number_of_times_a_second() -> None:
    """Whoever asks on and on cannot keep the node busy with its past; a second later it is told again."""
    rig = Rig()
    link = rig.link(b"")
    for _ in range(TOLD_PER_SECOND_MAX):
        assert isinstance(rig.say(link, Explain(ORDERS))[0], Explained)
    assert code_of(rig.say(link, Explain(ORDERS))) == "overloaded"
    rig.dispatch.now_us += 1_000_000
    assert isinstance(rig.say(link, Explain(ORDERS))[0], Explained)


@pytest.mark.parametrize("identity", ["", "i1"])
def test_explain_waits_while_the_node_is_loading(identity: str) -> None:
    """A node that does not know yet says nothing, instead of that there is nothing."""
    rig = Rig(loaded=False)
    link = rig.link(b"")
    rig.give(link, Explain(ORDERS, identity))
    assert rig.said(link) == []
    rig.shard.loaded = True
    rig.dispatch.release_parked(10)
    assert [type(message) for message, _ in rig.said(link)] == [Explained]
