"""Dispatch, message by message, over a store that commits when the test says so."""

from __future__ import annotations

from typing import Any

import pytest

from govern.core.digests import lease_digest
from govern.core.limits import Limits
from govern.messages import (
    HEARTBEAT_LOADING,
    HEARTBEAT_OK,
    HEARTBEAT_RESYNC,
    PAGE_ITEMS_MAX,
    AskStatus,
    Delta,
    Deregister,
    Done,
    Goodbye,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Lookup,
    Lost,
    Message,
    NodeStatus,
    Refused,
    Register,
    Registered,
    Resumed,
    ServiceList,
    Services,
    Subscribe,
    Unsubscribe,
    Update,
    View,
)
from govern.model import LSN_ZERO, Instance, Lsn, ServiceKey, client_fields

from .rig import ORDERS, A, B, Rig, alone, code_of, messages_of, register

# --- Hello ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [Heartbeat(0, 0), AskStatus(), Lookup(ORDERS), register(), Goodbye()])
def test_the_first_message_must_be_hello(message: Message) -> None:
    """Anything else before Hello closes the connection with one Refused, and has no effect."""
    rig = Rig()
    link = rig.link()
    rig.give(link, message)
    assert link in rig.dispatch.to_close
    assert code_of([found for found, _ in rig.said(link)]) == "protocol"
    rig.give(link, Hello(1, "", "test", "", A, 1))
    assert rig.said(link) == []
    assert len(rig.sessions) == 0
    assert rig.dispatch.writes == []


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (Hello(0, "", "test", "", A, 1), "protocol"),
        (Hello(1, "c2", "test", "", A, 1), "cluster"),
        (Hello(1, "x\n" * 500, "test", "", A, 1), "cluster"),
    ],
)
def test_hello_of_another_version_or_cluster_is_refused(hello: Hello, code: str) -> None:
    """The connection is told why and closed; no session comes of it, and the reason is one short line."""
    rig = Rig()
    link = rig.link()
    ((answer, request_id),) = [(rig.give(link, hello), rig.said(link))[1][0]]
    assert isinstance(answer, Refused)
    assert (answer.code, request_id) == (code, 0)
    assert "\n" not in answer.text
    assert link in rig.dispatch.to_close
    assert len(rig.sessions) == 0
    assert not link.greeted


def test_hello_counts_the_stranger_out_and_names_the_node() -> None:
    """The right cluster id is accepted, the gate forgets the link, the answer says who is there and whether the session was known."""
    rig = Rig()
    link = rig.link()
    assert len(rig.gate) == 1
    (answer,) = rig.say(link, Hello(1, "c1", "test", "", A, 1))
    assert isinstance(answer, HelloOk)
    assert (answer.cluster_id, answer.node_id, answer.resumed) == ("c1", 7, False)
    assert len(rig.gate) == 0
    rig.dispatch.closed(link)
    (answer,) = rig.say(rig.link(), Hello(1, "", "test", "", A, 2))
    assert isinstance(answer, HelloOk)
    assert answer.resumed


def test_a_second_hello_closes_the_connection() -> None:
    """Hello is said once."""
    rig = Rig()
    link = rig.link(A)
    rig.give(link, Hello(1, "", "test", "", B, 1))
    assert code_of([found for found, _ in rig.said(link)]) == "protocol"
    assert rig.sessions.get(B) is None


def test_a_newer_connection_takes_the_session_over_and_an_older_one_never_does() -> None:
    """The former connection is told `superseded` once and closed, and what it still sends is not looked at; an older Hello is refused, even
    when the newer connection is gone."""
    rig = Rig()
    old = rig.link(A, attempt=3)
    new = rig.link(A, attempt=4)
    assert code_of([found for found, _ in rig.said(old)]) == "superseded"
    rig.give(old, register())
    assert rig.dispatch.writes == []
    rig.dispatch.closed(old)
    session = rig.sessions.get(A)
    assert session is not None
    assert session.connection is new
    for connected in (True, False):
        if not connected:
            rig.dispatch.closed(new)
        late = rig.link()
        rig.give(late, Hello(1, "", "test", "", A, 2))
        assert code_of([found for found, _ in rig.said(late)]) == "superseded"
        assert late in rig.dispatch.to_close


def test_sessions_are_limited() -> None:
    """One more session than `sessions_max` is refused; a known one comes back; a connection without a session needs none."""
    rig = Rig(Limits(sessions_max=1))
    rig.dispatch.closed(rig.link(A))
    link = rig.link()
    rig.give(link, Hello(1, "", "test", "", B, 1))
    assert code_of([found for found, _ in rig.said(link)]) == "overloaded"
    rig.link(A, attempt=2)
    rig.link(b"")


# --- writes: once, in order, or refused ---------------------------------------------------------------------------------------


def test_nothing_is_answered_or_seen_before_it_is_committed() -> None:
    """A registration shows in no lookup and no answer until the store has committed it; then in both, and in the subscriber's delta."""
    rig = Rig()
    link, reader = rig.link(A), rig.link(b"")
    rig.say(reader, Subscribe(ORDERS))
    request_id = rig.give(link, register())
    assert rig.said(link) == rig.said(reader) == []
    (view,) = rig.say(reader, Lookup(ORDERS))
    assert isinstance(view, View)
    assert view.instances == []
    rig.commit()
    assert rig.said(link) == [(Registered(Lsn(1, 1), Lsn(1, 1)), request_id)]
    ((delta, _),) = rig.said(reader)
    assert isinstance(delta, Delta)
    assert (delta.since, delta.lsn) == (LSN_ZERO, Lsn(1, 1))


def test_requests_of_a_connection_take_effect_in_order() -> None:
    """Register, update, deregister of one connection reach the store in that order, however the store cuts its batches."""
    rig = Rig()
    link = rig.link(A)
    lease_id = rig.register(link)
    for weight in (1, 2, 3):
        rig.give(link, Update(ORDERS, "i1", lease_id, {"weight": weight}))
    rig.give(link, Deregister(ORDERS, "i1", lease_id))
    rig.give(link, register())
    rig.commit(2)
    rig.commit()
    answers = [answer for answer, _ in rig.said(link)]
    assert answers == [*[Done(Lsn(1, seq)) for seq in (2, 3, 4, 5)], Registered(Lsn(1, 6), Lsn(1, 6))]


def test_a_repeated_registration_is_recognised() -> None:
    """Under its old request id it is answered with the same lease, at once and without another operation; also over a new connection."""
    rig = Rig()
    link = rig.link(A)
    request_id = rig.give(link, register())
    rig.dispatch.closed(link)
    link = rig.link(A, attempt=2)
    rig.give(link, register(), request_id)  # the first is still on its way
    rig.commit()
    assert rig.said(link) == [(Registered(Lsn(1, 1), Lsn(1, 1)), request_id)]
    rig.give(link, register(), request_id)
    assert rig.said(link) == [(Registered(Lsn(1, 1), Lsn(1, 1)), request_id)]
    assert rig.dispatch.writes == []


def test_writes_that_wait_are_limited() -> None:
    """With `writes_pending_max` writes on their way the next one is refused with a hint to come back, and accepted after a commit."""
    rig = Rig(Limits(writes_pending_max=2))
    link = rig.link(A)
    for number in (1, 2):
        rig.give(link, register(f"i{number}"))
    (answer,) = rig.say(link, register("i3"))
    assert isinstance(answer, Refused)
    assert (answer.code, answer.retry_after_ms) == ("overloaded", 1000)
    rig.commit()
    assert rig.dispatch.writes_pending == 0
    rig.register(link, "i3")


def test_a_full_disk_refuses_what_grows_and_takes_removals() -> None:
    """While the log keeps its last space, Register and Update are refused; removals and changes of the status are carried out."""
    rig = Rig()
    link = rig.link(A)
    lease_id = rig.register(link)
    rig.register(link, "i2")
    rig.disk_full = True
    assert code_of(rig.say(link, register("i3"))) == "disk_full"
    assert code_of(rig.say(link, Update(ORDERS, "i1", lease_id, {"weight": 2}))) == "disk_full"
    rig.give(link, Update(ORDERS, "i1", lease_id, {"status": 1}))
    rig.give(link, Deregister(ORDERS, "i1", lease_id))
    rig.give(link, Goodbye())
    rig.commit()
    rig.commit()
    assert [type(answer) for answer, _ in rig.said(link)] == [Done, Done, Done]
    assert rig.shard.instance_count == 0


def test_a_batch_that_the_log_did_not_take_is_refused_and_leaves_no_trace() -> None:
    """Every asker is told, the numbers are used again, and the same request succeeds later."""
    rig = Rig()
    link = rig.link(A)
    request_ids = [rig.give(link, register(f"i{number}")) for number in (1, 2)]
    rig.refuse()
    assert [(answer.code, number) for answer, number in rig.said(link) if isinstance(answer, Refused)] == [
        ("disk_full", number) for number in request_ids
    ]
    assert rig.dispatch.writes_pending == 0
    assert rig.register(link) == Lsn(1, 1)


def test_instances_are_limited_per_service_and_session() -> None:
    """The next new instance is refused; replacing one that is there is not growth."""
    for name in ("instances_per_service_max", "instances_per_session_max", "instances_max"):
        rig = Rig(Limits(**{name: 1}))
        link = rig.link(A)
        rig.register(link)
        assert code_of(rig.say(link, register("i2"))) == "overloaded"
        rig.register(link)


@pytest.mark.parametrize(
    "message",
    [
        Register(ORDERS, []),
        Register(ORDERS, ["i1", "h", 0, "tcp", 1.0, "", "", {}, 0, True, 5000]),
        Register(ORDERS, ["i1", "h", 1, "tcp", 1.0, "", "", {}, 3, True, 5000]),
        Register(ORDERS, ["i 1", "h", 1, "tcp", 1.0, "", "", {}, 0, True, 5000]),
        Register(ServiceKey("default", "with blank"), client_fields(Instance(id="i1", host="h", port=1))),
        Lookup(ServiceKey("no/namespace", "orders")),
        Services("no namespace"),
        Update(ORDERS, "i1", Lsn(1, 1), {"weight": -1}),
        Update(ORDERS, "i1", Lsn(1, 1), {"ttl": 5}),
        Update(ORDERS, "i1", Lsn(1, 1), {}),
        Deregister(ORDERS, "", Lsn(1, 1)),
    ],
)
def test_what_is_wrong_with_values_is_answered_and_the_connection_lives_on(message: Message) -> None:
    """One Refused with the request's id and the code `invalid`, no write, and the next request is served."""
    rig = Rig()
    link = rig.link(A)
    rig.register(link)
    assert code_of(rig.say(link, message)) == "invalid"
    assert rig.dispatch.writes == []
    assert link.closing is None
    (answer,) = rig.say(link, AskStatus())
    assert answer == NodeStatus({"node_id": 7})


def test_writes_need_a_session_and_a_request_id() -> None:
    """Without either a write is refused as invalid."""
    rig = Rig()
    assert code_of(rig.say(rig.link(b""), register())) == "invalid"
    link = rig.link(A)
    rig.give(link, register(), 0)
    assert code_of([answer for answer, _ in rig.said(link)]) == "invalid"


def test_changes_under_a_lease_that_is_not_held_are_gone() -> None:
    """Another session, an older lease, or an instance that is not there: `gone`, decided without the log."""
    rig = Rig()
    link, other = rig.link(A), rig.link(B)
    first = rig.register(link)
    second = rig.register(link)
    assert first != second
    assert code_of(rig.say(link, Update(ORDERS, "i1", first, {"weight": 2}))) == "gone"
    assert code_of(rig.say(link, Deregister(ORDERS, "i1", first))) == "gone"
    assert code_of(rig.say(other, Deregister(ORDERS, "i1", second))) == "gone"
    assert code_of(rig.say(link, Deregister(ORDERS, "i9", second))) == "gone"
    assert rig.dispatch.writes == []


def test_the_one_that_lost_an_instance_is_told_once() -> None:
    """A newer registration by another session wins; the former holder gets one Lost with its lease; its resync does not fight back."""
    rig = Rig()
    link, other = rig.link(A), rig.link(B)
    first = rig.register(link)
    second = rig.register(other)
    assert rig.said(link) == [(Lost(ORDERS, "i1", first, "superseded"), 0)]
    assert code_of(rig.say(link, register(prior=first))) == "superseded"
    assert rig.dispatch.writes == []
    rig.register(other, prior=second)
    assert rig.said(link) == []


# --- Goodbye ------------------------------------------------------------------------------------------------------------------


def test_goodbye_removes_what_is_ephemeral_and_keeps_what_is_not() -> None:
    """It is answered once, after the last removal."""
    rig = Rig()
    link = rig.link(A)
    for number in (1, 2):
        rig.register(link, f"i{number}")
    rig.register(link, "i3", ephemeral=False)
    request_id = rig.give(link, Goodbye())
    rig.commit(1)
    assert rig.said(link) == []
    rig.commit()
    assert rig.said(link) == [(Done(Lsn(1, 5)), request_id)]
    assert list(rig.shard.entries(ORDERS)) == ["i3"]


def test_goodbye_waits_for_what_was_asked_before_it() -> None:
    """A registration and a removal still on their way are carried out and answered first; nothing is left, and Goodbye is answered Done."""
    rig = Rig()
    link = rig.link(A)
    lease_id = rig.register(link)
    ids = [rig.give(link, Deregister(ORDERS, "i1", lease_id)), rig.give(link, register("i2")), rig.give(link, Goodbye())]
    while rig.dispatch.writes:
        rig.commit(1)
    assert [(type(answer), number) for answer, number in rig.said(link)] == [(Done, ids[0]), (Registered, ids[1]), (Done, ids[2])]
    assert rig.shard.instance_count == 0
    assert rig.dispatch.writes_pending == link.writes == 0


def test_goodbye_is_done_also_when_the_last_instance_went_in_the_meantime() -> None:
    """Another session takes the instance over before the removal is carried out: it stays, and Goodbye is answered Done."""
    rig = Rig()
    link, other = rig.link(A), rig.link(B)
    rig.register(link)
    rig.give(other, register())
    request_id = rig.give(link, Goodbye())
    rig.commit()
    answers = [found for found in rig.said(link) if not isinstance(found[0], Lost)]
    assert answers == [(Done(LSN_ZERO), request_id)]
    assert rig.shard.instance_count == 1


def test_after_goodbye_nothing_is_written_and_it_is_not_said_twice() -> None:
    """Writes after Goodbye are refused, with or without removals under way; a second Goodbye closes the connection."""
    rig = Rig()
    link = rig.link(A)
    rig.register(link)
    rig.give(link, Goodbye())
    assert code_of(rig.say(link, register("i2"))) == "invalid"
    assert len(rig.dispatch.writes) == 1
    rig.give(link, Goodbye())
    assert code_of([answer for answer, _ in rig.said(link)]) == "protocol"
    assert len(rig.dispatch.writes) == 1
    assert rig.say(rig.link(b""), Goodbye()) == [Done(LSN_ZERO)]


def test_goodbye_of_a_connection_that_lost_its_session_removes_nothing() -> None:
    """The writes before it are committed after a newer connection took the session over: the newer one decides."""
    rig = Rig()
    link = rig.link(A)
    rig.register(link)
    rig.give(link, register("i2"))
    rig.give(link, Goodbye())
    rig.link(A, attempt=2)
    rig.commit()
    rig.commit()
    assert sorted(rig.shard.entries(ORDERS)) == ["i1", "i2"]


# --- reads and subscriptions ----------------------------------------------------------------------------------------------------


def test_subscribing_again_with_an_lsn_gives_only_what_came_after_it() -> None:
    """Known and current: Resumed alone. Known and behind: Resumed and one Delta from there. Unknown: the view."""
    rig = Rig()
    link, reader = rig.link(A), rig.link(b"")
    first = rig.register(link)
    assert rig.say(reader, Subscribe(ORDERS, first)) == [Resumed(ORDERS, first)]
    rig.dispatch.closed(reader)
    second = rig.register(link, "i2")
    reader = rig.link(b"")
    request_id = rig.give(reader, Subscribe(ORDERS, first))
    (resumed, delta) = rig.said(reader)
    assert resumed == (Resumed(ORDERS, first), request_id)
    assert isinstance(delta[0], Delta)
    assert (delta[0].since, delta[0].lsn, delta[1]) == (first, second, 0)
    for unknown in (Lsn(1, 99), Lsn(2, 1), LSN_ZERO):
        (view,) = rig.say(rig.link(b""), Subscribe(ORDERS, unknown))
        assert isinstance(view, View)
        assert view.lsn == second


def test_a_slot_that_begins_anew_is_empty_as_of_its_term() -> None:
    """Nothing was committed in it: whoever knows it from an earlier term gets a list that is later, and not from before everything."""
    rig = Rig()
    rig.ownership.take(alone(term=5).table)
    rig.dispatch.note_boot(0)
    for known in (LSN_ZERO, Lsn(3, 9), Lsn(3, 0)):
        (view,) = rig.say(rig.link(b""), Subscribe(ORDERS, known))
        assert view == View(ORDERS, Lsn(5, 0), True, False, [])
    assert rig.say(rig.link(b""), Subscribe(ORDERS, Lsn(5, 0))) == [Resumed(ORDERS, Lsn(5, 0))]
    rig.term = 5
    first = rig.register(rig.link(A))
    assert first == Lsn(5, 1)
    link = rig.link(b"")
    rig.give(link, Subscribe(ORDERS, Lsn(5, 0)))
    (resumed, _), (delta, _) = rig.said(link)
    assert resumed == Resumed(ORDERS, Lsn(5, 0))
    assert isinstance(delta, Delta)
    assert (delta.since, delta.lsn, len(delta.changed)) == (Lsn(5, 0), first, 1)
    rig.subscriptions.validate()


def test_subscriptions_are_limited_and_unsubscribing_is_not_answered() -> None:
    """The limit is per connection; a subscription that is there may be renewed at the limit."""
    rig = Rig(Limits(subscriptions_per_connection_max=1))
    link = rig.link(b"")
    rig.say(link, Subscribe(ORDERS))
    other = ServiceKey("default", "other")
    assert code_of(rig.say(link, Subscribe(other))) == "overloaded"
    rig.say(link, Subscribe(ORDERS))
    assert rig.say(link, Unsubscribe(ORDERS)) == []
    assert rig.subscriptions.count == 0
    (view,) = rig.say(link, Subscribe(other))
    assert isinstance(view, View)


def test_lists_of_services_are_paged() -> None:
    """All pages but the last say `more`; an empty list is one page."""
    rig = Rig()
    link = rig.link(A)
    assert rig.say(link, Services("")) == [ServiceList(False, [])]
    for number in range(PAGE_ITEMS_MAX + 1):
        rig.give(link, register(service=ServiceKey("default", f"s{number:03}")))
    rig.commit()
    rig.said(link)
    pages = [page for page in rig.say(link, Services("default")) if isinstance(page, ServiceList)]
    assert [(page.more, len(page.services)) for page in pages] == [(True, PAGE_ITEMS_MAX), (False, 1)]
    assert rig.say(link, Services("elsewhere")) == [ServiceList(False, [])]


# --- heartbeats -----------------------------------------------------------------------------------------------------------------


def test_heartbeats_compare_what_both_sides_hold() -> None:
    """Equal count and digest: ok. Either different: resync. A connection without a session: ok."""
    rig = Rig()
    link = rig.link(A)
    lease_id = rig.register(link)
    rig.register(link, "i2", ephemeral=False)
    digest = lease_digest(ORDERS, "i1", lease_id)
    assert rig.say(link, Heartbeat(1, digest)) == [HeartbeatOk(HEARTBEAT_OK, table_version=1)]
    assert rig.say(link, Heartbeat(1, digest ^ 1)) == [HeartbeatOk(HEARTBEAT_RESYNC, table_version=1)]
    assert rig.say(link, Heartbeat(2, digest)) == [HeartbeatOk(HEARTBEAT_RESYNC, table_version=1)]
    assert rig.say(rig.link(b""), Heartbeat(5, 5)) == [HeartbeatOk(HEARTBEAT_OK, table_version=1)]


def test_every_frame_is_a_sign_of_life() -> None:
    """Any message of a session stamps it with the lived time, a refused one as well."""
    for message in (Heartbeat(0, 0), AskStatus(), Lookup(ORDERS), Register(ORDERS, [])):
        rig = Rig()
        link = rig.link(A)
        rig.sessions.now_us = 3_000_000
        rig.give(link, message)
        assert link.session is not None
        assert link.session.stamp_us == link.heard_us == 3_000_000


# --- loading --------------------------------------------------------------------------------------------------------------------


def test_while_loading_heartbeats_and_status_are_answered_and_the_rest_waits() -> None:
    """Parked requests are answered in order when the node is loaded; what comes between the end of loading and their release waits behind
    them; Hello says `resumed`, because nobody can know yet."""
    rig = Rig(loaded=False)
    link = rig.link()
    (hello_ok,) = rig.say(link, Hello(1, "", "test", "", A, 1))
    assert isinstance(hello_ok, HelloOk)
    assert hello_ok.resumed
    assert rig.say(link, Heartbeat(3, 3)) == [HeartbeatOk(HEARTBEAT_LOADING, False, 1)]
    assert rig.say(link, AskStatus()) == [NodeStatus({"node_id": 7})]
    ids = [rig.give(link, Lookup(ORDERS)), rig.give(link, Services(""))]
    assert rig.said(link) == []
    rig.shard.loaded = True
    ids.append(rig.give(link, Lookup(ORDERS)))
    assert rig.said(link) == []
    assert rig.dispatch.release_parked(1000) == [link]
    assert [number for _, number in rig.said(link)] == ids
    (view,) = rig.say(link, Lookup(ORDERS))
    assert isinstance(view, View)


def test_parked_lists_are_not_put_out_faster_than_the_socket_takes_them() -> None:
    """A client asks for a long list a hundred times while the node loads, and takes nothing: a few answers are put out in each step, and
    when its socket is full the rest is refused, so its backlog stays near the bound; what it asked to change is carried out (Q1)."""
    rig = Rig(Limits(unsent_bytes_max=20_000), loaded=False)
    link, quick = rig.link(A), rig.link(B)
    writer = Rig()
    for number in range(50):
        writer.register(writer.link(B, attempt=number + 2), f"i{number}", ephemeral=False)
    for number in writer.shard.slot_numbers():
        rig.shard.load_block(writer.shard.block(number))
    for _ in range(100):
        rig.give(link, Lookup(ORDERS))
    rig.give(link, register("mine"))
    rig.give(quick, Lookup(ORDERS))
    rig.shard.loaded = True
    backlog = 0
    while rig.dispatch.parked:
        rig.dispatch.release_parked(1000)
        link.unsent += b"".join(link.out)
        link.out.clear()
        backlog = max(backlog, len(link.unsent))
    assert 20_000 < backlog < 50_000
    kinds = [type(answer).__name__ for answer, _ in messages_of(link.unsent)]
    assert kinds == ["View"] * kinds.count("View") + ["Refused"] * kinds.count("Refused")
    assert len(kinds) == 100
    assert len(rig.dispatch.writes) == 1
    assert len(rig.said(quick)) == 1


def test_parked_requests_are_limited_and_die_with_their_connection() -> None:
    """One more than the limit is refused with a hint; those of a closed connection are dropped."""
    rig = Rig(Limits(requests_parked_max=2), loaded=False)
    gone, link = rig.link(A), rig.link(B)
    rig.give(gone, register())
    request_id = rig.give(link, Lookup(ORDERS))
    assert code_of(rig.say(link, Lookup(ORDERS))) == "overloaded"
    rig.dispatch.closed(gone)
    rig.shard.loaded = True
    rig.dispatch.release_parked(1000)
    assert [number for _, number in rig.said(link)] == [request_id]
    assert rig.dispatch.writes == []
    assert gone.out == []


# --- malformed frames -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        [99, 1],
        [HelloOk.TYPE, 1],
        [-1, 1],
        [Heartbeat.TYPE, 1],
        [Register.TYPE, 1],
        [Register.TYPE, 1, ["default", "orders"], "text"],
        [Lookup.TYPE, 1, "orders"],
        [Lookup.TYPE, 1, ["default"]],
        [Subscribe.TYPE, 1, ["default", "orders"], [1]],
        [Deregister.TYPE, 1, ["default", "orders"], "i1", [1, -1]],
        [Deregister.TYPE, 1, ["default", "orders"], "i1", [1, True]],
    ],
)
def test_a_malformed_frame_closes_its_connection_with_one_refused(raw: list[Any]) -> None:
    """And everything that comes after it is not looked at."""
    rig = Rig()
    link = rig.link(A)
    rig.dispatch.receive(link, raw)
    rig.give(link, register())
    ((answer, request_id),) = rig.said(link)
    assert isinstance(answer, Refused)
    assert (answer.code, request_id) == ("protocol", 0)
    assert list(rig.dispatch.to_close) == [link]
    assert rig.dispatch.writes == []


def test_writes_know_nobody_when_the_detector_proposes_them() -> None:
    """A write without a link is carried out and answered to nobody."""
    rig = Rig()
    link = rig.link(A)
    rig.register(link)
    rig.sessions.now_us = 4_500_000
    rig.dispatch.propose_expiries(rig.sessions.due(10))
    assert rig.commit() == {ORDERS: None}
    assert rig.said(link) == []
    assert rig.dispatch.writes_pending == rig.dispatch.expiries_pending == 0
    assert rig.say(link, Heartbeat(1, 1)) == [HeartbeatOk(HEARTBEAT_RESYNC, table_version=1)]
