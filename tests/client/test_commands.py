"""Drain and evict as the client's rules carry them through: what is repeated, what is not, and what the one who asked is told."""

from __future__ import annotations

import pytest

from govern.client.commands import Command
from govern.errors import Evicted, Gone, GovernError, Indeterminate, Overloaded, Stopped, Superseded
from govern.messages import Done, Drain, Drained, Evict, Message, Refused, Register, Update
from govern.model import LSN_ZERO, Instance, Lsn, Status, client_fields

from .helpers import ORDERS, Pair

RIVAL = b"r" * 16


def drain(pair: Pair, claim: object = None, seconds: float = 10.0, instance_id: str = "one") -> Command:
    command = pair.core.commands.drain(ORDERS, instance_id, pair.now + seconds, claim)  # type: ignore[arg-type]
    if pair.core.connected:
        pair.core.commands.pump(pair.now)
    return command


def evict(pair: Pair, instance_id: str = "one") -> Command:
    command = pair.core.commands.evict(ORDERS, instance_id)
    if pair.core.connected:
        pair.core.commands.pump(pair.now)
    return command


def drains(said: list[Message]) -> list[Drain]:
    return [message for message in said if isinstance(message, Drain)]


def rival(pair: Pair) -> None:
    pair.node.put((ORDERS, "one"), RIVAL, 1, client_fields(Instance(id="one", host="h", port=1)))


def test_a_drain_ends_when_the_subscriber_has_applied_it() -> None:
    """The owner drains under its lease; this client subscribes too, applies the delta and says so, and that ends the drain."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    command = drain(pair, claim)
    (sent,) = drains(pair.to_node())
    assert (sent.lease_id, sent.timeout_ms) == (claim.lease, 10_000)
    assert not command.done
    pair.settle()
    assert command.error is None
    assert command.answer.applied == 1
    assert claim.shown.status is Status.DRAINING
    assert cursor.view.instances["one"].status is Status.DRAINING
    assert claim.shown.lsn == command.answer.lsn > claim.lease


def test_draining_twice_asks_again() -> None:
    """An instance that is draining already is waited for like the first time."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.core.views.open(ORDERS)
    pair.settle()
    first, second = drain(pair, claim), drain(pair)
    pair.settle()
    assert (first.answer.applied, second.answer.applied) == (1, 1)
    assert claim.wanted is not None
    assert claim.wanted.status is Status.DRAINING


def test_a_drain_is_repeated_with_the_time_that_is_left() -> None:
    """A broken connection begins the waiting anew, but not the time."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    command = drain(pair, claim)
    pair.to_node()
    pair.drop()
    assert not command.done
    pair.now += 4.0
    (again,) = drains(pair.connect())
    assert again.timeout_ms == 6_000
    assert command.answer.missing_count == 0


def test_a_drained_instance_that_has_to_be_registered_anew_stays_draining() -> None:
    """From the wish on, every registration of it says so: it never looks alive again."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    drain(pair, claim)
    pair.sent()  # lost
    pair.node.forget_sessions()
    pair.drop()
    said = pair.connect()
    assert [message.instance[8] for message in said if isinstance(message, Register)] == [1]
    assert [message.lease_id for message in drains(said)] == [claim.lease]
    assert claim.shown.status is Status.DRAINING


def test_a_drain_waits_for_the_lease() -> None:
    """While the registration is on its way there is nothing to be drained under; then it follows at once."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    command = drain(pair, claim)
    assert [type(message) for message in pair.settle()] == [Register, Drain]
    assert command.error is None
    assert command.done


def test_a_drain_does_not_stand_in_the_way_of_writes() -> None:
    """While subscribers are waited for, the owner updates and leaves as ever."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    command = drain(pair, claim)
    drained = pair.sent()
    update = pair.update(claim, weight=2.0)
    assert [type(message) for message in pair.settle()] == [Update]
    assert (len(drained), update.error, command.done) == (1, None, False)
    pair.leave(claim)
    pair.settle()
    assert claim.removed
    assert not pair.node.instances


def test_gone_means_that_the_lease_went_and_not_the_wish() -> None:
    """The owner's drain is refused because the node lost the lease: it is claimed again and drained under the new one."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    former = claim.lease
    pair.node.remove((ORDERS, "one"))
    command = drain(pair, claim)
    assert [type(message) for message in pair.settle()] == [Drain, Register, Drain]
    assert command.error is None
    assert claim.lease > former


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (Refused("overloaded", "busy", 100), Overloaded),
        (Refused("unknown", "who knows"), Indeterminate),
        (Refused("odd", "new"), Indeterminate),
    ],
)
def test_a_refused_drain_tells_why_and_leaves_the_wish_as_it_was(refused: Refused, error: type[GovernError]) -> None:
    """The one who asked gets the class of the refusal, and a later registration does not say draining."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    pair.node.refusals = [refused]
    command = drain(pair, claim)
    pair.settle()
    assert type(command.error) is error
    assert claim.wanted is not None
    assert claim.wanted.status is Status.UP


def test_a_drain_of_what_is_not_held_any_more_says_so() -> None:
    """Lost, deregistered, and never there: each has its error, and nothing is sent for the first two."""
    pair = Pair()
    pair.connect()
    taken, left = pair.register("one"), pair.register("two")
    pair.settle()
    rival(pair)
    pair.leave(left)
    pair.settle()
    commands = [drain(pair, taken), drain(pair, left, instance_id="two"), drain(pair, instance_id="nobody")]
    assert len(drains(pair.settle())) == 1
    assert [type(command.error) for command in commands] == [Superseded, Gone, Gone]


def test_the_later_of_a_drain_and_a_change_of_status_counts() -> None:
    """The owner changes its mind while subscribers are waited for: what the node carried out last is what is wanted and shown."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.core.views.open(ORDERS)
    pair.settle()
    command = drain(pair, claim)
    pair.to_node()
    update = pair.update(claim, status=Status.UP)
    pair.settle()
    assert (command.error, update.error) == (None, None)
    assert claim.wanted is not None
    assert (claim.wanted.status, claim.shown.status, pair.node.instances[ORDERS, "one"].fields[8]) == (Status.UP, Status.UP, 0)

    update, command = pair.update(claim, status=Status.DOWN), drain(pair, claim)
    pair.settle()
    assert (claim.wanted.status, claim.shown.status, pair.node.instances[ORDERS, "one"].fields[8]) == (Status.DRAINING, Status.DRAINING, 1)


def test_a_refused_drain_does_not_undo_a_change_of_status() -> None:
    """What was acknowledged after the drain was asked for stays when the drain is refused."""
    pair = Pair()
    pair.connect()
    claim = pair.register(status=Status.DOWN)
    pair.settle()
    update, command = pair.update(claim, status=Status.UP), drain(pair, claim)
    frames, _ = pair.core.outbox.take()
    for request in (update, command):
        answer = Done(Lsn(1, 9)) if request is update else Refused("overloaded", "busy", 100)
        pair.give(answer, request.request_id)
    assert len(frames) == 2
    assert isinstance(command.error, Overloaded)
    assert claim.wanted is not None
    assert claim.wanted.status is Status.UP


def test_a_drain_of_what_was_lost_fails_at_once_without_a_connection() -> None:
    """Nothing has to be asked to know that."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    rival(pair)
    pair.settle()
    pair.drop()
    command = drain(pair, claim)
    assert isinstance(command.error, Superseded)
    assert len(pair.core.commands) == 0


def test_an_operator_drains_whoever_holds_it() -> None:
    """Without a claim the lease is zero; who is missing comes back by name."""
    pair = Pair()
    pair.connect()
    rival(pair)
    command = drain(pair)
    frames, _ = pair.core.outbox.take()
    assert len(frames) == 1
    pair.give(Drained((LSN_ZERO), 2, 101, ["a (10.0.0.1)", "b (10.0.0.2)"]), command.request_id)
    assert (command.answer.applied, command.answer.missing_count, len(command.answer.missing)) == (2, 101, 2)


def test_an_eviction_is_done_once_or_in_doubt() -> None:
    """Answered: done. Lost with its connection: nobody knows, the one who asked is told, and it is never sent again."""
    pair = Pair()
    pair.connect()
    rival(pair)
    command = evict(pair)
    pair.settle()
    assert command.error is None
    assert not pair.node.instances

    rival(pair)
    command = evict(pair)
    pair.to_node()
    pair.drop()
    assert isinstance(command.error, Indeterminate)
    rival(pair)
    assert not [message for message in pair.connect() if isinstance(message, Evict)]
    assert pair.node.instances


def test_an_eviction_that_was_not_sent_waits_for_the_connection() -> None:
    """Asked while there is none, or refused by a node that stops: certainly not done, so it is asked with the next one."""
    pair = Pair()
    rival(pair)
    command = evict(pair)
    pair.connect()
    assert command.done
    rival(pair)
    pair.node.refusals = [Refused("stopping", "I stop")]
    command = evict(pair)
    pair.settle()
    assert not command.done or command.error is None
    pair.drop()
    pair.connect()
    assert command.done
    assert command.error is None
    assert not pair.node.instances


def test_an_eviction_of_nobody_is_gone() -> None:
    """There is nothing to evict, and that is certain."""
    pair = Pair()
    pair.connect()
    command = evict(pair)
    pair.settle()
    assert isinstance(command.error, Gone)


def test_who_forgets_a_command_is_not_bothered_by_its_answer() -> None:
    """A late answer does no harm."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    for command in (drain(pair, claim), evict(pair)):
        pair.core.commands.forget(command)
    pair.settle()
    assert len(pair.core.commands) == 0
    assert claim.lost == "evicted"
    with pytest.raises(Evicted):
        raise pair.core.registrations.no_longer(claim)


def test_commands_are_bounded_and_end_with_the_client() -> None:
    """Beyond the limit they are refused on this side; at the end whoever waits gets `Stopped`."""
    pair = Pair()
    commands = [evict(pair) for _ in range(1024)]
    with pytest.raises(Overloaded):
        evict(pair)
    assert pair.core.has_work
    pair.core.close()
    assert {type(command.error) for command in commands} == {Stopped}


def test_a_refused_repetition_of_an_update_is_in_doubt() -> None:
    """The first try may have arrived: a refusal of the second one does not promise that nothing happened."""
    pair = Pair()
    pair.connect()
    claim = pair.register()
    pair.settle()
    for arrived in (True, False):
        request = pair.update(claim, weight=2.0)
        if arrived:
            pair.to_node()
        pair.drop()
        pair.node.refusals = [Refused("overloaded", "busy", 100)]
        pair.connect()
        assert type(request.error) is Indeterminate
    pair.node.refusals = [Refused("overloaded", "busy", 100)]
    request = pair.update(claim, weight=3.0)
    pair.settle()
    assert type(request.error) is Overloaded


def test_a_repeated_drain_is_not_denied() -> None:
    """The drain was carried out and its answer lost; then the instance went. What is said of the repetition is no word on the drain."""
    pair = Pair()
    pair.connect()
    pair.register()
    pair.settle()
    command = drain(pair)
    pair.to_node()
    pair.drop()
    pair.node.remove((ORDERS, "one"))
    pair.connect()
    pair.settle()
    assert isinstance(command.error, Indeterminate)
    assert "may have been set to draining before" in str(command.error)
