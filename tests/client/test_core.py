"""The client's rules one by one, against a model node that does exactly what the test says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.client import views
from govern.client.core import SILENCE_SECONDS_MAX, ClientCore, HelloRefused, Phase
from govern.client.views import Cursor, ServiceView, Views
from govern.errors import (
    DiskFull,
    Gone,
    GovernError,
    Indeterminate,
    Invalid,
    Overloaded,
    Rejected,
    RemoteProtocolError,
    Stopped,
    Superseded,
    Unreachable,
)
from govern.messages import (
    TO_CLIENT,
    Delta,
    Deregister,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Lookup,
    Lost,
    Refused,
    Register,
    Registered,
    Resumed,
    Subscribe,
    Unsubscribe,
    Update,
    View,
)
from govern.model import LSN_ZERO, Instance, Lsn, client_fields

from .helpers import ORDERS, Pair, unpack
from .model_node import Held


def public(instance_id: str, seq: int, **fields: Any) -> list[Any]:
    values: dict[str, Any] = {"id": instance_id, "host": "h", "port": 1, **fields}
    return Held(b"", 0, Lsn(1, seq), Lsn(1, seq), client_fields(Instance(**values))).public()


# --- the connection -----------------------------------------------------------------------------------------------------------


def test_every_connection_has_a_higher_attempt_and_begins_with_a_heartbeat() -> None:
    """Hello carries a growing attempt, and the first thing after it is a heartbeat."""
    pair = Pair()
    first, second = pair.connect()[:2]
    assert isinstance(first, Hello)
    assert isinstance(second, Heartbeat)
    pair.drop()
    again = pair.connect()[0]
    assert isinstance(again, Hello)
    assert (first.attempt, again.attempt) == (1, 2)
    assert first.session_id == again.session_id


@pytest.mark.parametrize(
    ("code", "retry_after_ms", "lasting"), [("cluster", 0, True), ("overloaded", 1000, False), ("superseded", 0, False)]
)
def test_a_refused_hello_says_whether_it_is_for_good(code: str, retry_after_ms: int, lasting: bool) -> None:
    """A refusal of the connection is for good exactly when the node names no time to come back, and it is not our own older connection."""
    pair = Pair()
    pair.core.dialled(0.0)
    with pytest.raises(HelloRefused) as caught:
        pair.give(Refused(code, "not you", retry_after_ms))
    assert caught.value.lasting is lasting
    assert "not you" in str(caught.value.error)


@pytest.mark.parametrize(("protocol", "fits"), [(0, False), (1, True), (2, True), (3, False)])
def test_a_node_of_the_next_version_fits_and_no_other(protocol: int, fits: bool) -> None:
    """Neighbouring protocol versions talk to each other; others are refused with both numbers."""
    pair = Pair()
    pair.core.dialled(0.0)
    hello = HelloOk(protocol, "c", 1, "0", 1000)
    if fits:
        pair.give(hello)
        assert pair.core.connected
    else:
        with pytest.raises(HelloRefused, match=f"protocol {protocol}"):
            pair.give(hello)


def test_a_node_that_does_not_answer_hello_is_given_up() -> None:
    """Hello has five seconds."""
    pair = Pair()
    pair.core.dialled(10.0)
    assert pair.core.deadline == 15.0
    pair.core.tick(14.9)
    with pytest.raises(Unreachable):
        pair.core.tick(15.0)


def test_a_silent_node_is_given_up_after_a_second_look() -> None:
    """Three seconds without an answer make the node doubtful; a frame that arrives then saves it, silence for another moment does not."""
    pair = Pair()
    pair.connect()
    while pair.now < 1.0 + SILENCE_SECONDS_MAX:
        pair.now = pair.core.deadline
        pair.core.tick(pair.now)  # heartbeats, none of which arrives
    assert pair.core.deadline == pair.now + 0.25
    pair.to_node()
    pair.to_client()
    pair.now += 0.25
    pair.core.tick(pair.now)
    pair.sent()
    given_up = False
    while not given_up and pair.now < 10:
        pair.now = pair.core.deadline
        try:
            pair.core.tick(pair.now)
        except Unreachable:
            given_up = True
    assert given_up


def test_the_heartbeat_follows_the_smallest_ttl() -> None:
    """Four heartbeats fit into the smallest ttl, and one a second is enough otherwise; a persistent instance does not count."""
    pair = Pair()
    pair.connect()
    assert pair.core.interval_seconds == 1.0
    pair.register("persistent", ttl=1.0, ephemeral=False)
    assert pair.core.interval_seconds == 1.0
    claim = pair.register(ttl=2.0)
    assert pair.core.interval_seconds == 0.5
    pair.settle()
    pair.leave(claim)
    pair.settle()
    assert pair.core.interval_seconds == 1.0


# --- registering --------------------------------------------------------------------------------------------------------------


def test_an_unanswered_registration_is_repeated_under_its_id() -> None:
    """Whether the request or its answer was lost with the connection: it is sent again under the same id, and its effect happens once."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.to_node()
    lease_id = pair.node.instances[ORDERS, "one"].lease_id
    pair.drop()
    pair.connect()
    assert claim.acknowledged
    assert claim.lease == lease_id
    assert pair.node.seq == 1


def test_leases_that_the_node_cannot_hold_any_more_are_registered_again_with_the_old_lease_as_prior() -> None:
    """HelloOk that does not know the session leads to one Register for each ephemeral claim, with `prior`; persistent ones stay."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.register("keeps", ephemeral=False)
    pair.settle()
    former = claim.lease
    pair.node.forget_sessions()
    pair.drop()
    registers = [message for message in pair.connect() if isinstance(message, Register)]
    assert [(message.instance[0], message.prior) for message in registers] == [("one", former)]
    assert claim.lease > former
    assert claim.shown.lease_id == claim.lease


def test_a_mismatch_registers_what_is_missing_and_nothing_else() -> None:
    """`resync` with nothing moving: the leases are named, and the one that is unknown is registered again with `prior`."""
    pair = Pair()
    pair.connect()
    one, two = pair.register("one"), pair.register("two")
    pair.settle()
    leases = one.lease, two.lease
    pair.node.remove((ORDERS, "one"))
    pair.heartbeat()
    said = pair.settle()
    assert [(message.instance[0], message.prior) for message in said if isinstance(message, Register)] == [("one", leases[0])]
    assert one.lease > leases[0]
    assert two.lease == leases[1]


def test_a_mismatch_is_ignored_while_a_write_was_under_way_or_answered_in_between() -> None:
    """A `resync` about another moment than the client's own says nothing."""
    pair = Pair()
    pair.connect()
    pair.register("one")
    pair.settle()
    resync = HeartbeatOk(1)

    pair.register("two")  # in flight when the heartbeat leaves
    pair.heartbeat()
    frames, _ = pair.core.outbox.take()
    heartbeat_id = msgpack.unpackb(frames[-1][4:])[1]
    pair.give(resync, heartbeat_id)
    assert not pair.sent()
    pair.give(Registered(Lsn(1, 9), Lsn(1, 9)), msgpack.unpackb(frames[0][4:])[1])

    pair.heartbeat()
    frames, _ = pair.core.outbox.take()
    pair.register("three")  # sent after the heartbeat
    pair.sent()
    pair.give(resync, msgpack.unpackb(frames[0][4:])[1])
    assert not pair.sent()


def test_superseded_is_final() -> None:
    """A registration that another client took is lost, with the reason, and is never sent again; its id is free for a new one."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    update = pair.update(claim, weight=2.0)
    pair.sent()
    pair.node.put((ORDERS, "one"), b"r" * 16, 1, client_fields(claim.shown))
    pair.to_client()
    assert claim.lost == "superseded"
    pair.drop()
    assert isinstance(update.error, Indeterminate)  # it had been sent, and nobody knows whether it arrived before the other client
    said = pair.connect()
    assert not [message for message in said if isinstance(message, Register | Update)]
    with pytest.raises(Superseded):
        raise pair.update(claim, weight=3.0).error
    assert not pair.core.registrations.count
    assert pair.register() is not claim


def test_superseded_is_found_out_on_the_next_connection() -> None:
    """A rival that came while we were away is not fought: `prior` tells the node that ours is the older one."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.drop()
    pair.node.put((ORDERS, "one"), b"r" * 16, 1, client_fields(claim.shown))
    said = pair.connect()
    assert not [message for message in said if isinstance(message, Register)]
    assert claim.lost == "superseded"
    assert pair.node.instances[ORDERS, "one"].session_id == b"r" * 16


def test_expiry_is_not_a_loss() -> None:
    """An instance that expired while its client was stalled comes back by itself: nobody else holds it."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    former = claim.lease
    pair.node.remove((ORDERS, "one"))
    pair.give(Lost(ORDERS, "one", former, "expired"))
    pair.settle()
    assert claim.lost is None
    assert claim.held
    assert claim.lease > former


def test_a_late_loss_of_an_older_lease_means_nothing() -> None:
    """Only the loss of the very lease that is held counts."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.give(Lost(ORDERS, "one", Lsn(0, 7), "superseded"))
    assert claim.held
    assert claim.lost is None


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (Refused("disk_full", "no space", 1000), DiskFull),
        (Refused("invalid", "bad"), Invalid),
        (Refused("superseded", "taken"), Superseded),
        (Refused("overloaded", "the limit"), Overloaded),
        (Refused("denied", "not you"), Rejected),
    ],
)
def test_a_registration_that_is_refused_for_good_fails_at_once(refused: Refused, error: type[GovernError]) -> None:
    """Refusals that waiting does not cure end the first registration, and nothing of it is left."""
    pair = Pair()
    pair.connect()
    pair.node.refusals = [refused]
    claim = pair.register()
    pair.settle()
    assert type(claim.refusal) is error
    assert len(pair.core.registrations) == 0


def test_a_busy_node_is_asked_again_after_its_pause() -> None:
    """`overloaded` with a pause, and `unknown`, delay a registration; `unknown` is repeated under the same id."""
    pair = Pair()
    pair.connect()
    pair.node.refusals = [Refused("overloaded", "busy", 400), Refused("unknown", "who knows", 100)]
    claim = pair.register()
    pair.settle()
    spread = pair.core.outbox.spread
    assert 1 <= spread < 1.5
    assert pair.core.deadline == 0.4 * spread
    pair.now = pair.core.deadline
    pair.core.tick(pair.now)
    pair.settle()
    pair.now = pair.core.deadline
    pair.core.tick(pair.now)
    pair.settle()
    assert pair.now == pytest.approx(0.5 * spread)
    assert claim.acknowledged


def register_ids(pair: Pair) -> list[int]:
    """The request ids of the registrations that the client puts out; the node does not get them."""
    frames, _ = pair.core.outbox.take()
    return [raw[1] for raw in unpack(b"".join(frames)) if raw[0] == Register.TYPE]


@pytest.mark.parametrize("broken", [True, False])
def test_a_repeated_registration_that_is_refused_keeps_its_id(broken: bool) -> None:
    """The refusal speaks of the repetition alone: what was sent over the connection that broke may wait for the disk of the node still.
    Under a new id it would be another registration, which takes the id back from whoever has registered it in between (R8)."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    if broken:
        first = register_ids(pair)
        pair.drop()
    else:
        first = [pair.core.outbox.draw_id() - 1]
    pair.node.refusals = [Refused("overloaded", "busy", 400)]
    said = pair.connect() if broken else pair.settle()
    assert Register in [type(message) for message in said]
    pair.now = pair.core.registrations.deadline
    pair.core.tick(pair.now)
    (again,) = register_ids(pair)
    assert (again == first[0]) == broken
    pair.give(Registered(Lsn(1, 1), Lsn(1, 1)), again)
    assert claim.held


def test_clients_that_were_refused_together_come_back_apart() -> None:
    """The pause that a node names is stretched by each session's own share, so a crowd does not come back as a crowd."""
    spreads = {ClientCore(bytes([first]) * 16).outbox.spread for first in range(256)}
    assert len(spreads) == 256
    assert min(spreads) == 1.0
    assert max(spreads) < 1.5


def test_a_full_disk_does_not_end_a_registration_that_was_acknowledged() -> None:
    """When everything must be registered again beside a full disk, the client waits for space."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.node.forget_sessions()
    pair.drop()
    pair.node.refusals = [Refused("disk_full", "no space", 1000)]
    pair.connect()
    assert not claim.over
    pair.now += 1.5
    pair.core.tick(pair.now)
    pair.settle()
    assert claim.held


def test_one_id_once() -> None:
    """A second registration of an id that this client holds is refused before anything is sent."""
    pair = Pair()
    pair.connect()
    pair.register()
    pair.settle()
    with pytest.raises(Invalid, match="already"):
        pair.register()
    assert not pair.sent()


def test_an_id_that_is_being_left_can_be_registered_again() -> None:
    """The removal goes first, then the new registration, whatever the connection does meanwhile."""
    pair = Pair()
    pair.connect()
    former = pair.register()
    pair.settle()
    pair.drop()
    pair.leave(former)
    claim = pair.register(port=2)
    assert not claim.over
    pair.connect()
    assert former.removed
    assert claim.held
    assert pair.node.instances[ORDERS, "one"].fields[2] == 2


def test_leaving_before_the_acknowledgement_leaves_nothing() -> None:
    """A registration that is given up while its request is on the way is removed as soon as its lease is known."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.leave(claim)
    said = pair.settle()
    assert [type(message) for message in said if not isinstance(message, Heartbeat)] == [Register, Deregister]
    assert claim.removed
    assert not pair.node.instances


def test_an_update_waits_for_a_lease_that_has_to_be_made_anew() -> None:
    """`gone` for an update means that the lease went, not the wish: the instance is registered again and then changed."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.node.remove((ORDERS, "one"))
    request = pair.update(claim, weight=2.0)
    said = pair.settle()
    assert [type(message) for message in said] == [Update, Register, Update]
    assert request.done
    assert request.error is None
    assert claim.shown.weight == 2.0
    assert pair.node.instances[ORDERS, "one"].fields[4] == 2.0


def test_an_update_is_repeated_over_a_broken_connection_and_happens_once() -> None:
    """The answer to an update was lost: it is repeated under its id, and the instance changes once."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    request = pair.update(claim, weight=2.0)
    pair.to_node()
    pair.drop()
    assert not request.done
    pair.connect()
    assert request.done
    assert pair.node.seq == 2


@pytest.mark.parametrize(("code", "error"), [("overloaded", Overloaded), ("unknown", Indeterminate), ("new_code", Indeterminate)])
def test_what_a_refused_update_means(code: str, error: type[GovernError]) -> None:
    """Only codes that are known to be certain become `Rejected`."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.node.refusals = [Refused(code, "no")]
    request = pair.update(claim, weight=2.0)
    pair.settle()
    assert type(request.error) is error
    assert claim.shown.weight == 1.0


def test_another_cluster_is_told_everything_from_the_start() -> None:
    """Leases and lsns of one cluster mean nothing in another: no `prior`, no `known`, and persistent instances are registered too."""
    pair = Pair()
    pair.connect()
    pair.register("one")
    pair.register("two", ephemeral=False)
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    assert len(cursor.view.instances) == 2
    pair.drop()
    pair.node.wipe()
    said = pair.connect()
    assert [message.prior for message in said if isinstance(message, Register)] == [LSN_ZERO, LSN_ZERO]
    assert [message.known for message in said if isinstance(message, Subscribe)] == [LSN_ZERO]
    assert sorted(pair.node.state(ORDERS)) == sorted(cursor.view.instances) == ["one", "two"]


def test_writes_wait_for_a_window() -> None:
    """However many registrations there are, a bounded number of them is on the way; all of them arrive."""
    pair = Pair()
    pair.connect()
    for number in range(1000):
        pair.register(str(number))
    first = pair.to_node()
    assert len(first) == 256
    pair.to_client()
    pair.settle()
    assert pair.core.registrations.count == 1000


# --- views --------------------------------------------------------------------------------------------------------------------


def test_a_view_is_complete_with_its_last_page() -> None:
    """Nothing of a list is shown before all of it is there."""
    pair = Pair()
    for number in range(5):
        pair.node.put((ORDERS, str(number)), b"r" * 16, 1, client_fields(Instance(id=str(number), host="h", port=1)))
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.to_node()
    out, pair.node.out = pair.node.out, []
    assert len(out) == 3
    for data in out:
        assert not cursor.view.ready
        pair.core.receive(msgpack.unpackb(data[4:]), 0.0)
    assert [instance.id for instance in cursor.view.sorted_instances()] == ["0", "1", "2", "3", "4"]


def test_a_delta_that_does_not_fit_is_answered_by_subscribing_again() -> None:
    """A gap is never bridged: the client subscribes again with what it has, and after a second gap from nothing."""
    pair = Pair()
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.give(Delta(ORDERS, Lsn(1, 5), Lsn(1, 6), [public("x", 6)], []))
    assert not cursor.view.instances
    frames, _ = pair.core.outbox.take()
    _, request_id, _, known = msgpack.unpackb(frames[0][4:])
    assert known == [0, 0]
    pair.give(View(ORDERS, Lsn(1, 6), True, False, [public("x", 6)]), request_id)
    assert not cursor.view.stale
    for expected in ([1, 6], [0, 0]):
        pair.give(Delta(ORDERS, Lsn(1, 7), Lsn(1, 8), [], ["x"]))
        frames, _ = pair.core.outbox.take()
        _, request_id, _, known = msgpack.unpackb(frames[0][4:])
        assert known == expected
        pair.give(Resumed(ORDERS, Lsn(1, 6)), request_id)
    assert cursor.view.lsn == Lsn(1, 6)  # resumed from nothing means empty as of nothing: that is older, and not shown
    assert cursor.view.stale


def test_a_full_list_is_not_lost_to_an_empty_one_that_is_not_fresh() -> None:
    """An empty list of a node that is not fresh is held back; once the node is fresh it is asked again, and then believed."""
    pair = Pair()
    pair.connect()
    pair.register()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.give(View(ORDERS, Lsn(1, 9), False, False, []))
    assert len(cursor.view.instances) == 1
    assert cursor.view.stale
    pair.heartbeat()
    frames, _ = pair.core.outbox.take()
    pair.give(HeartbeatOk(0, True), msgpack.unpackb(frames[0][4:])[1])
    frames, _ = pair.core.outbox.take()
    pair.give(View(ORDERS, Lsn(1, 9), True, False, []), msgpack.unpackb(frames[0][4:])[1])
    assert not cursor.view.instances
    assert not cursor.view.stale


def test_a_view_never_goes_back() -> None:
    """A whole list that is older than what is in hand is not shown."""
    pair = Pair()
    pair.connect()
    pair.register()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    assert cursor.view.lsn == Lsn(1, 1)
    pair.give(View(ORDERS, Lsn(0, 5), True, False, [public("old", 5)]))
    assert list(cursor.view.instances) == ["one"]
    assert cursor.view.stale


def ids_sent(pair: Pair) -> list[int]:
    """Take what the client has put out; the request ids of it."""
    return [raw[1] for raw in unpack(b"".join(pair.core.outbox.take()[0]))]


def beat(pair: Pair, view: View | None, *, fresh: bool = True) -> None:
    """One second later a heartbeat is answered, and then the subscription that is asked for with it, if one is."""
    pair.now += 1.0
    pair.core.tick(pair.now)
    (beat_id,) = ids_sent(pair)
    pair.give(HeartbeatOk(0, fresh), beat_id)
    asked = ids_sent(pair)
    assert len(asked) == (view is not None)
    if view is not None:
        pair.give(view, asked[0])


def two_in_hand() -> tuple[Pair, Cursor]:
    """A view of two instances, one of which was just there: its lsn is of term 3 and seq 9."""
    pair = Pair()
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.give(View(ORDERS, Lsn(3, 9), True, False, [public("a", 8), public("b", 9)]))
    assert not cursor.view.stale
    return pair, cursor


@pytest.mark.parametrize("lsn", [Lsn(0, 0), Lsn(5, 0), Lsn(3, 7)], ids=["nothing", "given up", "salvaged"])
def test_a_slot_that_lost_what_it_had_is_believed_in_the_end(lsn: Lsn) -> None:
    """A committed list of a fresh node that is empty is shown, once those who live have had the time to come back."""
    pair, cursor = two_in_hand()
    empty = View(ORDERS, lsn, True, False, [])
    pair.give(empty)
    for _ in range(5):
        assert list(cursor.view.instances) == ["a", "b"]
        assert cursor.view.stale
        beat(pair, empty)
    assert not cursor.view.instances
    assert not cursor.view.stale
    assert cursor.view.lsn == lsn
    pair.core.validate()
    beat(pair, None)


def test_those_who_come_back_to_a_slot_that_lost_them_are_waited_for() -> None:
    """A list of the new reign that lacks somebody is held back as well; a whole one is taken at once, and deltas do not ask for more."""
    pair, cursor = two_in_hand()
    pair.give(View(ORDERS, Lsn(5, 0), True, False, []))
    for seq, instance_id in enumerate("xyz", 1):
        pair.give(Delta(ORDERS, Lsn(5, seq - 1), Lsn(5, seq), [public(instance_id, seq)], []))
        assert not pair.sent(), "the next heartbeat asks soon enough"
    beat(pair, View(ORDERS, Lsn(5, 4), True, False, [public("b", 4)]))
    assert list(cursor.view.instances) == ["a", "b"]
    beat(pair, View(ORDERS, Lsn(5, 5), True, False, [public("b", 4), public("a", 5)]))
    assert cursor.view.lsn == Lsn(5, 5)
    assert not cursor.view.stale
    pair.give(Delta(ORDERS, Lsn(5, 5), Lsn(5, 6), [], ["a"]))
    assert list(cursor.view.instances) == ["b"], "what is removed by an operation goes at once"


def test_a_node_that_is_not_fresh_is_not_believed_whatever_it_repeats() -> None:
    """The time counts from the first moment in which the node is fresh, and anew over another connection or in a new reign."""
    pair, cursor = two_in_hand()
    pair.give(View(ORDERS, Lsn(5, 0), False, False, []))
    for _ in range(9):
        beat(pair, None, fresh=False)
    empty = View(ORDERS, Lsn(5, 0), True, False, [])
    for _ in range(4):
        beat(pair, empty)
    pair.drop()
    pair.connect()
    pair.give(empty)
    for _ in range(3):
        beat(pair, empty)
    assert list(cursor.view.instances) == ["a", "b"]
    pair.core.views.table_version = 9
    pair.core.views.renew(ORDERS, 9)
    (request_id,) = ids_sent(pair)
    pair.give(View(ORDERS, Lsn(9, 0), True, False, []), request_id)
    beat(pair, View(ORDERS, Lsn(9, 0), True, False, []))
    assert list(cursor.view.instances) == ["a", "b"]
    for _ in range(4):
        beat(pair, View(ORDERS, Lsn(9, 0), True, False, []))
    assert not cursor.view.instances


def believe_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(views, "DOUBT_SECONDS", 0.0)


def never_believe(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(views, "DOUBT_SECONDS", math.inf)


def let_an_older_list_pass(patch: pytest.MonkeyPatch) -> None:
    replace = Views._replace

    def mutant(self: Views, view: ServiceView, message: View) -> None:
        view.lsn = min(view.lsn, message.lsn)
        replace(self, view, message)

    patch.setattr(Views, "_replace", mutant)


def believe_a_later_term(patch: pytest.MonkeyPatch) -> None:
    replace = Views._replace

    def mutant(self: Views, view: ServiceView, message: View) -> None:
        if message.lsn.term > view.lsn.term:
            view.lsn = LSN_ZERO
        replace(self, view, message)

    patch.setattr(Views, "_replace", mutant)


def count_while_it_is_not_fresh(patch: pytest.MonkeyPatch) -> None:
    node_fresh = Views.node_fresh

    def mutant(self: Views, fresh: bool, now: float) -> None:
        for view in self._held_back:
            view.doubt_until = min(view.doubt_until, now + views.DOUBT_SECONDS)
        node_fresh(self, fresh, now)

    patch.setattr(Views, "node_fresh", mutant)


def go_on_counting_elsewhere(patch: pytest.MonkeyPatch) -> None:
    leave_node = ServiceView.leave_node

    def mutant(self: ServiceView) -> None:
        doubt_until = self.doubt_until
        leave_node(self)
        self.doubt_until = doubt_until

    patch.setattr(ServiceView, "leave_node", mutant)


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (believe_at_once, lambda: test_a_slot_that_lost_what_it_had_is_believed_in_the_end(Lsn(5, 0))),
        (never_believe, lambda: test_a_slot_that_lost_what_it_had_is_believed_in_the_end(Lsn(5, 0))),
        (let_an_older_list_pass, test_a_view_never_goes_back),
        (believe_a_later_term, test_those_who_come_back_to_a_slot_that_lost_them_are_waited_for),
        (count_while_it_is_not_fresh, test_a_node_that_is_not_fresh_is_not_believed_whatever_it_repeats),
        (go_on_counting_elsewhere, test_a_node_that_is_not_fresh_is_not_believed_whatever_it_repeats),
    ],
)
def test_a_client_that_forgets_too_soon_or_never_is_found(
    mutant: Callable[[pytest.MonkeyPatch], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """V13, broken in one place each."""
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_pushes_for_services_that_are_not_subscribed_are_ignored() -> None:
    """What was on its way when the subscription ended does no harm."""
    pair = Pair()
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.core.views.close(cursor)
    assert [type(message) for message in pair.sent()] == [Unsubscribe]
    pair.give(Delta(ORDERS, Lsn(1, 5), Lsn(1, 6), [public("x", 6)], []))
    pair.give(View(ORDERS, Lsn(1, 6), True, False, []))
    assert not pair.sent()


def test_consumers_of_one_service_share_a_subscription() -> None:
    """One Subscribe for many consumers, one Unsubscribe with the last."""
    pair = Pair()
    pair.connect()
    cursors = [pair.core.views.open(ORDERS) for _ in range(3)]
    assert [type(message) for message in pair.settle()] == [Subscribe]
    for cursor in cursors:
        assert not pair.sent()
        pair.core.views.close(cursor)
    assert [type(message) for message in pair.sent()] == [Unsubscribe]


def test_a_slow_consumer_gets_one_change() -> None:
    """Changes that pile up become one: from what was seen last to what is now. What came and went is not in it."""
    pair = Pair()
    pair.connect()
    stays, goes = pair.register("stays"), pair.register("goes")
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    cursor.skip()
    flash = pair.register("flash")
    pair.register("new")
    pair.update(stays, weight=2.0)
    pair.update(stays, weight=3.0)
    pair.leave(goes)
    pair.settle()
    pair.leave(flash)
    pair.settle()
    change = cursor.take()
    assert change is not None
    assert [instance.id for instance in change.added] == ["new"]
    assert [(instance.id, instance.weight) for instance in change.updated] == [("stays", 3.0)]
    assert change.removed == ("goes",)
    assert cursor.take() is None


def test_a_refused_subscription_fails_only_before_it_is_live() -> None:
    """The first refusal for good ends it; one that lives already is asked for again."""
    pair = Pair()
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    frames, _ = pair.core.outbox.take()
    pair.give(Refused("overloaded", "the limit"), msgpack.unpackb(frames[0][4:])[1])
    assert isinstance(cursor.view.refusal, Overloaded)
    pair.core.views.close(cursor)
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.drop()
    pair.core.dialled(0.0)
    pair.to_node()
    pair.to_client()
    frames, _ = pair.core.outbox.take()
    pair.give(Refused("overloaded", "busy", 300), msgpack.unpackb(frames[-1][4:])[1])
    assert cursor.view.refusal is None
    pair.now = pair.core.deadline
    pair.core.tick(pair.now)
    pair.settle()
    assert not cursor.view.stale


# --- reads and the end --------------------------------------------------------------------------------------------------------


def test_a_read_is_asked_again_on_the_next_connection() -> None:
    """Half an answer is thrown away with its connection."""
    pair = Pair()
    for number in range(3):
        pair.node.put((ORDERS, str(number)), b"r" * 16, 1, client_fields(Instance(id=str(number), host="h", port=1)))
    pair.connect()
    request = pair.core.ask(Lookup(ORDERS))
    pair.to_node()
    pair.core.receive(msgpack.unpackb(pair.node.out[0][4:]), 0.0)
    pair.drop()
    pair.connect()
    assert [instance.id for instance in request.answer] == ["0", "1", "2"]


def test_reads_are_bounded() -> None:
    """Beyond the limit a read is refused on this side."""
    pair = Pair()
    for _ in range(1024):
        pair.core.ask(Lookup(ORDERS))
    with pytest.raises(Overloaded):
        pair.core.ask(Lookup(ORDERS))


def test_whoever_waits_at_the_end_is_told() -> None:
    """Leaving ends reads and updates with `Stopped`."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    update, read = pair.update(claim, weight=2.0), pair.core.ask(Lookup(ORDERS))
    pair.core.close()
    assert isinstance(update.error, Stopped)
    assert isinstance(read.error, Stopped)
    assert pair.core.phase is Phase.CLOSED


def test_an_update_after_the_removal_is_gone() -> None:
    """A registration that was left cannot be changed."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.leave(claim)
    assert isinstance(pair.update(claim, weight=2.0).error, Gone)
    pair.settle()
    assert isinstance(pair.update(claim, weight=2.0).error, Gone)


# --- a bad node ---------------------------------------------------------------------------------------------------------------

junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
plausible = st.sampled_from(
    [["default", "orders"], [0, 0], [1, 1], [1, 2], True, False, [], {}, "one", "expired", [public("one", 2)], [[[1, 2, 3, 4, 5], []]], 1]
)


@given(
    kind=st.sampled_from(sorted(TO_CLIENT)),
    request_id=st.integers(0, 8),
    fields=st.lists(plausible | junk, max_size=6),
    greeted=st.booleans(),
)
def test_any_message_leads_to_a_state_or_to_a_protocol_error(kind: int, request_id: int, fields: list[Any], greeted: bool) -> None:
    """Whatever a node says, with or without sense: it is taken, or it costs the connection. Nothing else is ever raised."""
    pair = Pair()
    if greeted:
        pair.connect()
        claim = pair.register()
        pair.settle()
        pair.core.views.open(ORDERS)
        pair.core.ask(Lookup(ORDERS))
        pair.update(claim, weight=2.0)
    else:
        pair.core.dialled(0.0)
    try:
        pair.core.receive([kind, request_id, *fields], 0.0)
    except (RemoteProtocolError, HelloRefused):
        pair.drop()
    pair.core.validate()


def test_a_bad_instance_costs_the_connection() -> None:
    """Every field of an instance is checked before it is shown to anybody."""
    good = public("one", 2)
    wrong: list[tuple[int, Any]] = [(0, 5), (1, None), (2, "x"), (4, "heavy"), (7, {"a": 1}), (7, []), (8, 99), (9, 1), (10, "t")]
    for place, bad in wrong:
        pair = Pair()
        pair.connect()
        pair.core.views.open(ORDERS)
        pair.settle()
        fields = list(good[1])
        fields[place] = bad
        with pytest.raises(RemoteProtocolError):
            pair.give(Delta(ORDERS, LSN_ZERO, Lsn(1, 2), [[good[0], fields]], []))


def test_a_session_without_wishes_has_no_work() -> None:
    """The link may take its time when nobody depends on it."""
    core = ClientCore(b"s" * 16)
    assert not core.has_work
    core.views.open(ORDERS)
    assert core.has_work
