"""Naming leases after a heartbeat that did not agree: what differs is repaired, and nothing else is touched."""

from __future__ import annotations

import itertools
from typing import Any

import msgpack
import pytest

from govern.client.resync import FRUITLESS_SECONDS
from govern.errors import Evicted, RemoteProtocolError
from govern.messages import FRAME_BYTES_MAX_TO_NODE, Deregister, HeartbeatOk, Lost, Register, Resync, ResyncOk
from govern.model import Instance, Lsn, ServiceKey, client_fields

from .helpers import ORDERS, Pair

OURS = b"s" * 16


def resyncs(said: list[Any]) -> list[Resync]:
    return [message for message in said if isinstance(message, Resync)]


def ask_for_resync(pair: Pair) -> None:
    """Let the node disagree with the next heartbeat, whatever it holds."""
    pair.heartbeat()
    frames, _ = pair.core.outbox.take()
    pair.give(HeartbeatOk(1), msgpack.unpackb(frames[-1][4:])[1])


def test_agreement_costs_nothing() -> None:
    """While both sides hold the same, no lease is ever named."""
    pair = Pair()
    pair.connect()
    pair.register()
    pair.settle()
    for _ in range(5):
        pair.heartbeat()
        assert not resyncs(pair.settle())


def test_superseded_and_evicted_leases_are_lost_and_the_others_stay() -> None:
    """What another session took, or an operator removed, while nobody could tell is lost with its reason; no write is sent for it."""
    pair = Pair()
    pair.connect()
    taken, evicted, stays = (pair.register(name) for name in ("taken", "evicted", "stays"))
    pair.settle()
    lease = stays.lease
    pair.drop()
    pair.node.put((ORDERS, "taken"), b"r" * 16, 1, client_fields(taken.shown))
    pair.node.evict((ORDERS, "evicted"))
    said = pair.connect()
    assert (taken.lost, evicted.lost, stays.lost) == ("superseded", "evicted", None)
    assert stays.lease == lease
    assert not [message for message in said if isinstance(message, Register | Deregister)]
    assert len(resyncs(said)) == 1
    with pytest.raises(Evicted):
        raise pair.update(evicted, weight=2.0).error


def test_what_nobody_here_wants_is_removed() -> None:
    """A lease that the node holds for this session and no claim knows is deregistered."""
    pair = Pair()
    pair.connect()
    pair.register("wanted")
    pair.settle()
    pair.node.put((ORDERS, "stray"), OURS, 0, client_fields(Instance(id="stray", host="h", port=1)))
    pair.heartbeat()
    said = pair.settle()
    assert [message.instance_id for message in said if isinstance(message, Deregister)] == ["stray"]
    assert list(pair.node.state(ORDERS)) == ["wanted"]
    pair.core.validate()
    pair.heartbeat()
    assert not resyncs(pair.settle())


def test_a_stray_is_not_removed_while_a_claim_for_its_id_is_on_its_way() -> None:
    """A registration that was sent after the pages looks like a stray to the node; it is wanted and stays."""
    pair = Pair()
    pair.connect()
    pair.register("one")
    pair.settle()
    ask_for_resync(pair)
    frames, _ = pair.core.outbox.take()
    request_id = msgpack.unpackb(frames[0][4:])[1]
    late = pair.register("late")
    pair.sent()
    pair.give(ResyncOk([], [], [], [[*ORDERS, "late", 1, 9]]), request_id)
    assert not pair.sent()
    assert late.wanted is not None
    pair.core.validate()


def test_a_stray_that_is_claimed_anew_goes_first() -> None:
    """While a stray is being removed its id can be claimed; the removal goes first, then the registration."""
    pair = Pair()
    pair.connect()
    pair.node.put((ORDERS, "x"), OURS, 0, client_fields(Instance(id="x", host="h", port=1)))
    pair.heartbeat()
    pair.to_node()
    pair.to_client()
    pair.to_node()
    pair.to_client()
    claim = pair.register("x", port=2)
    pair.settle()
    assert claim.held
    assert pair.node.instances[ORDERS, "x"].fields[2] == 2


def test_many_leases_are_named_page_by_page() -> None:
    """At most 512 a page, one page on its way at a time, the last of them without `more`; and every difference is found."""
    pair = Pair()
    pair.connect()
    for number in range(1100):
        pair.register(str(number))
    pair.settle()
    for number in (3, 600, 1099):
        pair.node.remove((ORDERS, str(number)))
    pair.heartbeat()
    seen: list[Resync] = []
    registers: list[str] = []
    while pair.core.outbox.frames or pair.node.out:
        said = pair.to_node()
        assert len(resyncs(said)) <= 1
        seen += resyncs(said)
        registers += [message.instance[0] for message in said if isinstance(message, Register)]
        pair.to_client()
    assert [(len(page.leases), page.more) for page in seen] == [(512, True), (512, True), (76, False)]
    assert registers == ["3", "600", "1099"]
    assert pair.core.registrations.count == 1100


def test_what_was_left_meanwhile_is_not_named_any_more() -> None:
    """Between two pages a registration may end; the next page names only what is held when it is put together."""
    pair = Pair()
    pair.connect()
    claims = [pair.register(str(number)) for number in range(600)]
    pair.settle()
    ask_for_resync(pair)
    first = msgpack.unpackb(pair.core.outbox.take()[0][0][4:])
    pair.core.registrations.lost(Lost(ORDERS, "599", claims[599].lease, "superseded"))
    pair.give(ResyncOk([], [], [], []), first[1])
    (second,) = resyncs(pair.sent())
    assert [row[2] for row in second.leases] == [str(number) for number in range(512, 599)]


def test_pages_of_long_names_fit_into_frames() -> None:
    """However long the names are, no page is larger than the node accepts."""
    pair = Pair()
    pair.connect()
    for number in range(600):
        instance = Instance(id=f"{number:0>255}", host="h", port=1)
        pair.core.registrations.register(ServiceKey("n" * 64, "s" * 255), instance)
    pair.core.registrations.pump()
    pair.settle()
    ask_for_resync(pair)
    while pair.core.outbox.frames:
        assert all(len(frame) <= FRAME_BYTES_MAX_TO_NODE for frame in pair.core.outbox.frames)
        pair.settle()
    assert pair.node.resyncs == 2
    assert pair.core.registrations.count == 600


def test_an_answer_about_a_lease_that_went_meanwhile_means_nothing() -> None:
    """Only the very lease that was named is given up, and only what the page has named."""
    pair = Pair()
    pair.connect()
    one, two = pair.register("one"), pair.register("two")
    pair.settle()
    ask_for_resync(pair)
    frames, _ = pair.core.outbox.take()
    request_id = msgpack.unpackb(frames[0][4:])[1]
    one.lease = Lsn(1, 77)  # as if it had been registered anew in between
    pair.give(ResyncOk([], [[*ORDERS, "one"], ["default", "other", "two"]], [], []), request_id)
    assert (one.lost, two.lost) == (None, None)


def test_a_resync_without_a_difference_is_not_repeated_at_once() -> None:
    """When naming everything found nothing, the next one waits."""
    pair = Pair()
    pair.connect()
    pair.register()
    pair.settle()
    times = []
    for _ in range(25):
        ask_for_resync(pair)
        said = pair.settle()
        if resyncs(said):
            times.append(pair.now)
    assert len(times) == 3
    assert all(later - earlier >= FRUITLESS_SECONDS for earlier, later in itertools.pairwise(times))


def test_a_connection_that_breaks_ends_the_resync() -> None:
    """Half a comparison is forgotten; the next connection begins with a heartbeat and, if need be, from the first page."""
    pair = Pair()
    pair.connect()
    for number in range(600):
        pair.register(str(number))
    pair.settle()
    pair.node.remove((ORDERS, "5"))
    pair.heartbeat()
    pair.to_node()
    pair.to_client()
    pair.drop()
    assert not pair.core.resync.running
    said = pair.connect()
    assert [page.more for page in resyncs(said)] == [True, False]
    assert pair.core.registrations.count == 600


@pytest.mark.parametrize("rows", [[5], [["default", "orders"]], [["default", "orders", 5]], [["no blanks", "orders", "x"]]])
def test_names_that_cannot_be_cost_the_connection(rows: list[Any]) -> None:
    """A node that names nonsense is left."""
    pair = Pair()
    pair.connect()
    pair.register()
    pair.settle()
    ask_for_resync(pair)
    frames, _ = pair.core.outbox.take()
    with pytest.raises(RemoteProtocolError):
        pair.give(ResyncOk(rows, [], [], []), msgpack.unpackb(frames[0][4:])[1])


def test_an_evicted_registration_is_told_and_never_tried_again() -> None:
    """The push alone is enough; later the id is refused with its own error, and waiting updates end."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.node.evict((ORDERS, "one"))
    pair.to_client()
    assert claim.lost == "evicted"
    again = pair.register()
    pair.settle()
    assert isinstance(again.refusal, Evicted)
    pair.drop()
    assert not [message for message in pair.connect() if isinstance(message, Register)]


def test_an_eviction_that_was_not_heard_is_found_by_a_new_session_on_the_node() -> None:
    """The node forgot the session but not the bar: the registration that follows is refused, and the claim is lost."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.drop()
    pair.node.evict((ORDERS, "one"))
    pair.node.forget_sessions()
    pair.connect()
    assert claim.lost == "evicted"


def test_disowned_claims_of_another_cluster_are_forgotten() -> None:
    """A stray belongs to the cluster that named it; nothing is removed elsewhere because of it."""
    pair = Pair()
    pair.connect()
    pair.core.registrations.disown(ORDERS, "stray", Lsn(1, 1))
    pair.sent()
    pair.drop()
    pair.node.wipe()
    said = pair.connect()
    assert not [message for message in said if isinstance(message, Deregister)]
    assert len(pair.core.registrations) == 0
