"""The cores of one node without any actor, for tests that speak to it message by message."""

from __future__ import annotations

from typing import Any

from govern.core.dispatch import Dispatch
from govern.core.entries import Op
from govern.core.history import History
from govern.core.limits import Limits
from govern.core.links import Gate, Link
from govern.core.ownership import Ownership
from govern.core.requests import Identity
from govern.core.sessions import Sessions
from govern.core.shard import Outcome, Shard
from govern.core.slots import SLOT_COUNT
from govern.core.subscriptions import Subscriptions
from govern.core.suspects import Suspects
from govern.core.table import UP, SlotRun, Table, TableNode
from govern.messages import (
    FRAME_BYTES_MAX_TO_CLIENT,
    Hello,
    HelloOk,
    Message,
    Refused,
    Register,
    Registered,
    build_message,
    encode,
    unpack_frame,
)
from govern.model import LSN_ZERO, Instance, Lsn, ServiceKey, client_fields
from govern.net.frames import FrameReader
from govern.peer_messages import Member

ORDERS = ServiceKey("default", "orders")
A, B = b"a" * 16, b"b" * 16


def alone(node_id: int = 7, term: int = 1) -> Ownership:
    """A node that acts for all slots, with a lease that never ends."""
    me = Member(node_id, b"d" * 16)
    ownership = Ownership(me, 1)
    node = TableNode(node_id, "h:1", "", True, UP, me.disk_id, 1, term - 1)
    ownership.take(Table(max(term, 1), (node,), (SlotRun(0, SLOT_COUNT - 1, node_id, term, ((node_id, 1),), (node_id,)),)))
    ownership.lease_until_us = 1 << 62
    return ownership


def messages_of(data: bytes) -> list[tuple[Message, int]]:
    """All messages of some frames, with their request ids."""
    reader = FrameReader(FRAME_BYTES_MAX_TO_CLIENT)
    frames = reader.feed(data)
    assert reader.error is None
    assert not reader.pending_bytes
    return [(build_message(raw), raw[1]) for raw in frames]


class Rig:
    """The cores of a node, and a store in memory: what is written waits in `dispatch.writes` until `commit` or `refuse`."""

    def __init__(self, limits: Limits | None = None, *, loaded: bool = True) -> None:
        self.limits = limits or Limits()
        self.sessions = Sessions()
        self.shard = Shard(self.sessions, self.limits)
        self.shard.loaded = loaded
        self.history = History()
        self.suspects = Suspects(self.shard, self.sessions, self.history)
        self.subscriptions = Subscriptions(self.shard, self.suspects, self.limits)
        self.gate = Gate(self.limits)
        self.disk_full = False
        self.ownership = alone()
        self.dispatch = Dispatch(
            identity=Identity(node_id=7, cluster_id="c1", version="0"),
            shard=self.shard,
            sessions=self.sessions,
            suspects=self.suspects,
            subscriptions=self.subscriptions,
            history=self.history,
            gate=self.gate,
            limits=self.limits,
            ownership=self.ownership,
            status=lambda: {"node_id": 7},
            disk_full=lambda: self.disk_full,
        )
        self.request_id = 0
        self.term = 1
        self.log: list[tuple[int, int, int, Op]] = []
        """What `commit` has made durable: slot, term, seq and the operation."""

    def link(self, session_id: bytes | None = None, attempt: int = 1) -> Link:
        """A new connection; with a session id it has said Hello already."""
        link = Link("10.0.0.1", "10.0.0.9", self.sessions.now_us)
        self.gate.admit(link)
        if session_id is not None:
            (answer,) = self.say(link, Hello(1, "", "test", "", session_id, attempt))
            assert isinstance(answer, HelloOk), answer
        return link

    def give(self, link: Link, message: Message, request_id: int | None = None) -> int:
        """Let the node receive a message; returns its request id."""
        if request_id is None:
            self.request_id += 1
            request_id = self.request_id
        self.dispatch.receive(link, unpack_frame(encode(message, request_id)[4:]))
        return request_id

    def said(self, link: Link) -> list[tuple[Message, int]]:
        """What the node put out to a link since the last look."""
        data = b"".join(link.out)
        link.out.clear()
        return messages_of(data)

    def say(self, link: Link, message: Message) -> list[Message]:
        """Say something and get what it is answered at once, all with the id of the request."""
        request_id = self.give(link, message)
        answers = self.said(link)
        assert all(number == request_id for _, number in answers)
        return [answer for answer, _ in answers]

    def say_all(self, link: Link, message: Message) -> list[Message]:
        """Say something and get everything that is put out on it, pushes included."""
        self.give(link, message)
        return [answer for answer, _ in self.said(link)]

    def commit(self, count: int | None = None) -> dict[ServiceKey, None]:
        """The store commits the oldest writes; the sessions are told, and the subscribers."""
        writes = self.dispatch.writes[:count]
        del self.dispatch.writes[:count]
        numbered = [(write, self.shard.number(write.op, self.term)) for write in writes]
        self.log.extend((*number, write.op) for write, number in numbered)
        results = [(write, self.shard.apply(*number, write.op)) for write, number in numbered]
        _, changed = self.dispatch.finish(results)
        for _ in self.subscriptions.publish(changed, self.dispatch.now_us):
            pass
        self.validate()
        return changed

    def refuse(self) -> None:
        """The log takes nothing."""
        writes, self.dispatch.writes[:] = list(self.dispatch.writes), []
        slots = [self.shard.number(write.op, self.term)[0] for write in writes]
        self.shard.unnumber(dict.fromkeys(slots))
        self.dispatch.finish([(write, Outcome(Refused("disk_full", "full", 1000))) for write in writes])
        self.validate()

    def register(self, link: Link, identity: str = "i1", service: ServiceKey = ORDERS, **fields: Any) -> Lsn:
        """Register and commit; returns the lease."""
        self.give(link, register(identity, service, **fields))
        self.commit()
        (answer, _) = next(found for found in self.said(link) if isinstance(found[0], Registered))
        assert isinstance(answer, Registered)
        return answer.lease_id

    def validate(self) -> None:
        self.shard.validate()
        self.sessions.validate()
        self.suspects.validate()
        self.subscriptions.validate()
        self.dispatch.drains.validate()
        assert self.dispatch.writes_pending >= len(self.dispatch._registering)
        assert self.dispatch.writes_pending >= sum(write.link is not None for write in self.dispatch.writes)


def register(identity: str = "i1", service: ServiceKey = ORDERS, prior: Lsn = LSN_ZERO, timeout_ms: int = 0, **fields: Any) -> Register:
    return Register(service, client_fields(Instance(id=identity, host="h", port=1, **fields)), prior, timeout_ms)


def code_of(answers: list[Message]) -> str:
    (answer,) = answers
    assert isinstance(answer, Refused), answer
    return answer.code
