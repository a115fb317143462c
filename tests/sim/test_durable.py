"""The checker of what leaves a node: it hears every frame, lets those pass that a node sends, and finds one that is too early."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import govern
from govern.core.slots import slot_of
from govern.environment import Environment
from govern.messages import Delta, Done, Drain, Drained, Goodbye, Message, Register, Registered, Resumed, ResyncOk, Update, View, encode
from govern.model import Lsn, ServiceKey
from govern.storage.sim import SimFile
from govern.testing import simulate
from govern.testing.world import PORT, open_world

from .checkers import Violation
from .checkers.durable import Durable


async def a_client_does_everything(seed: int) -> tuple[int, list[str]]:
    """Register, watch, update, drain, leave and come back over a restart.
    Returns the number of frames that were judged, and what was found."""
    violations: list[Violation] = []
    async with open_world(seed) as world:
        durable = Durable(world, violations.append)
        with durable.watch():
            await world.start()

            async def program(environment: Environment) -> None:
                async with govern.connect(f"node1:{PORT}", environment=environment, timeout=60) as registry:
                    async with registry.subscribe("orders"), registry.register("orders", port=1) as registration:
                        await registration.update(weight=2.0)
                        await registration.drain(timeout=2.0)
                        await world.kill()
                        await world.start()
                        await registration.update(weight=3.0)
                        await registry.lookup("orders")

            await world.run_client("c1", program)
            await trio.sleep(15.0)
            durable.end()
    return durable.judged, [str(violation) for violation in violations]


def test_what_is_durable_may_leave() -> None:
    """All kinds of answers and pushes, before and after a restart."""
    judged, violations = simulate(1, a_client_does_everything, horizon=100).result
    assert violations == []
    assert judged > 10


class Connection:
    """Stands for an accepted connection of that machine."""

    local_host = "node1"


ORDERS, PAYMENTS = ServiceKey("default", "orders"), ServiceKey("default", "payments")
QUESTIONS = (Register(ORDERS, []), Update(PAYMENTS, "i1", Lsn(1, 1), {}), Drain(ORDERS, "i1"), Goodbye())
"""With request ids from 1. What is durable: orders at 1/5, payments at 2/3."""


def resync_ok(seq: int) -> ResyncOk:
    return ResyncOk([], [], [], [["default", "orders", "i1", 1, seq]])


@pytest.mark.parametrize(
    ("message", "request_id", "early"),
    [
        (Registered(Lsn(1, 1), Lsn(1, 5)), 1, False),
        (Registered(Lsn(1, 1), Lsn(1, 6)), 1, True),
        (Registered(Lsn(1, 1), Lsn(2, 1)), 1, True),  # in the other slot that lsn is durable, and nobody asked about that
        (Done(Lsn(2, 3)), 2, False),
        (Done(Lsn(2, 4)), 2, True),
        (Drained(Lsn(1, 5), 0, 0, []), 3, False),
        (Drained(Lsn(1, 6), 0, 0, []), 3, True),
        (Done(Lsn(2, 3)), 4, False),  # of a Goodbye: the lsn is in some slot
        (Done(Lsn(2, 4)), 4, True),
        (View(ORDERS, Lsn(1, 5), True, False, []), 9, False),
        (View(ORDERS, Lsn(1, 6), True, False, []), 9, True),
        (View(ServiceKey("default", "unknown"), Lsn(1, 1), True, False, []), 9, True),
        (Delta(ORDERS, Lsn(1, 4), Lsn(1, 5), [], []), 0, False),
        (Delta(ORDERS, Lsn(1, 5), Lsn(1, 6), [], []), 0, True),
        (resync_ok(5), 9, False),
        (resync_ok(6), 9, True),
        (Resumed(ORDERS, Lsn(7, 7)), 9, False),  # what the client said itself
    ],
)
def test_each_kind_of_message_is_judged(message: Message, request_id: int, early: bool) -> None:
    """One byte at a time, as a slow socket takes it: judged when the last one has left."""

    async def story(seed: int) -> None:
        async with open_world(seed) as world:
            violations: list[Violation] = []
            world.machine("node1")
            durable = Durable(world, violations.append)
            durable._slots["node1"] = {slot_of(ORDERS): Lsn(1, 5), slot_of(PAYMENTS): Lsn(2, 3)}
            connection: Any = Connection()
            for number, question in enumerate(QUESTIONS, 1):
                durable._note(connection, encode(question, number))
            data = encode(message, request_id)
            for place in range(len(data)):
                assert not violations
                durable._judge(connection, data[place : place + 1])
            assert durable.judged == 1
            assert [str(violation)[:2] for violation in violations] == ["7:"] * early

    simulate(1, story)


def test_what_the_disk_keeps_in_its_cache_is_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says that it is done, and the platter knows nothing of it."""
    monkeypatch.setattr(SimFile, "write_durable", SimFile.write)
    _, violations = simulate(1, a_client_does_everything, horizon=100).result
    assert violations[0].startswith(f"7: node1 sends [{Registered.TYPE}, ")


def test_that_nothing_was_seen_is_found_too() -> None:
    """A checker that was never put on the sockets must not pass for one that found nothing."""

    async def nothing(seed: int) -> None:
        async with open_world(seed) as world:
            with pytest.raises(Violation, match=r"^7: no frame"):
                Durable(world, lambda violation: None).end()

    simulate(1, nothing)
