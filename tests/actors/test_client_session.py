"""The shell of client connections over sockets that take what the test says."""

from __future__ import annotations

import random
from typing import Any

import trio
from trio.testing import MockClock

from govern.actors.client_session import Channel, ClientSessions
from govern.actors.mail import LastRead, ManagerMail, SessionsMail, WriteBatch
from govern.actors.runtime import Mailbox
from govern.core.limits import Limits
from govern.core.sessions import Silent
from govern.environment import SimulatedClock
from govern.messages import Hello, HelloOk, Lookup, Message, Refused, Register, View, encode
from govern.net.sim import SimNetwork
from tests.core.rig import ORDERS, A, B, Rig, messages_of, register

LOOKUPS = 300


class Socket:
    """A connection that has received `incoming` and takes at most `room` bytes."""

    def __init__(self, incoming: bytes) -> None:
        self.owner: Any = None
        self.peer = "10.0.0.1"
        self.local_host = "10.0.0.9"
        self.incoming = incoming
        self.sent = b""
        self.room = 0
        self.reading = True
        self.closed = False

    def recv(self) -> bytes | None:
        data, self.incoming = self.incoming, b""
        return data or None

    def send(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def want_write(self, wanted: bool) -> None:
        pass

    def want_read(self, wanted: bool) -> None:
        self.reading = wanted

    def close(self) -> None:
        self.closed = True


def open_sessions(rig: Rig, socket: Socket) -> tuple[ClientSessions, Channel]:
    """The shell around the cores of the rig, with one connection."""
    sessions = ClientSessions(
        network=SimNetwork(1).host("node1"),
        clock=SimulatedClock(),
        dispatch=rig.dispatch,
        sessions=rig.sessions,
        suspects=rig.suspects,
        subscriptions=rig.subscriptions,
        gate=rig.gate,
        limits=rig.limits,
        mailbox=Mailbox[SessionsMail]("sessions", capacity=10),
        store_mailbox=Mailbox[WriteBatch]("store", capacity=10),
        manager_mailbox=Mailbox[ManagerMail]("manager", capacity=10),
        host="node1",
        port=1,
    )
    sessions._open(socket)
    assert isinstance(socket.owner, Channel)
    return sessions, socket.owner


def frames(*messages: Message) -> bytes:
    return b"".join(encode(message, number) for number, message in enumerate(messages, 1))


def a_stuffed_connection(after: bytes = b"") -> tuple[ClientSessions, Channel, Socket]:
    """Hello and many lookups were read; the socket takes nothing, so most of the lookups wait."""
    rig = Rig(Limits(unsent_bytes_max=1_000))
    writer = rig.link(A)
    for number in range(20):
        rig.register(writer, f"i{number}")
    socket = Socket(frames(Hello(1, "", "x", "", b"", 1), *[Lookup(ORDERS)] * LOOKUPS) + after)
    sessions, channel = open_sessions(rig, socket)
    sessions._serve(channel)
    assert channel.waiting
    assert not socket.reading
    return sessions, channel, socket


def test_requests_that_waited_for_a_full_socket_are_served_by_whoever_empties_it() -> None:
    """An answer or a push that finds the socket empty again also handles what was read before: nobody else would, because there is nothing
    left to read."""
    sessions, channel, socket = a_stuffed_connection()
    socket.room = 1 << 30
    sessions._send_all([channel.link])
    assert not channel.waiting
    assert socket.reading
    answers = [message for message, _ in messages_of(socket.sent)]
    assert [type(answer) for answer in answers] == [HelloOk, *[View] * LOOKUPS]


def test_what_cannot_be_read_after_good_requests_closes_the_connection_once_they_are_answered() -> None:
    """The frames before a bad one are answered, however long the socket was full, then the reason is told and the connection is closed."""
    sessions, channel, socket = a_stuffed_connection(after=b"\x00\x00\x00\x01\xc1")
    socket.room = 1 << 30
    sessions._serve(channel)
    sessions._close_refused()
    assert socket.closed
    answers = [message for message, _ in messages_of(socket.sent)]
    assert [type(answer) for answer in answers] == [HelloOk, *[View] * LOOKUPS, Refused]


def test_any_cut_of_the_answers_arrives_whole() -> None:
    """A socket that takes a few bytes at a time gets every byte, once and in order, and the node reads again when it has them."""
    sessions, channel, socket = a_stuffed_connection()
    draw = random.Random(1)
    while channel.waiting or channel.link.unsent:
        socket.room = draw.randrange(1, 5_000)
        sessions._serve(channel)
        assert len(channel.link.unsent) < 300_000
    assert len(messages_of(socket.sent)) == LOOKUPS + 1
    assert socket.reading


def test_writes_of_a_turn_are_handed_over_in_one_batch() -> None:
    """Fifty registrations in one read are one message to the store."""
    rig = Rig()
    registrations: list[Register] = [register(f"i{number}") for number in range(50)]
    socket = Socket(frames(Hello(1, "", "x", "", A, 1), *registrations))
    sessions, channel = open_sessions(rig, socket)
    socket.room = 1 << 30
    sessions._serve(channel)
    sessions._end_turn()
    batches = sessions._store_mailbox.get_all(10)
    assert [[write.op.instance_id for write in batch.writes] for batch in batches] == [[f"i{number}" for number in range(50)]]


async def test_a_node_that_stops_and_hears_nobody_any_more_removes_nobody(autojump_clock: MockClock) -> None:
    """The writes under way are finished, for which mail is still read; the poller has ended, so silence says nothing: what has arrived on a
    new connection would never be read."""
    rig = Rig()
    silent, writer = rig.link(A), rig.link(B)
    rig.register(silent, "i1")
    rig.give(writer, register("i2"))
    sessions, _ = open_sessions(rig, Socket(b""))
    session = rig.sessions.get(A)
    assert session is not None
    rig.sessions.now_us += 60_000_000
    sessions._mailbox.post(LastRead([Silent(session, 5_000, session.stamp_us)]))
    with trio.move_on_after(1):
        await sessions._finish_writes()
    batches = sessions._store_mailbox.get_all(10)
    assert [write.op.instance_id for batch in batches for write in batch.writes] == ["i2"]
