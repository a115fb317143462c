"""Subscriptions: readers that apply exactly what is put out to them, under random commits, blocked sockets and resumptions."""

from __future__ import annotations

from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from govern.core.entries import public_form
from govern.core.limits import Limits
from govern.core.links import Link
from govern.core.subscriptions import SLICE_LINKS
from govern.messages import Delta, Deregister, Hint, Lookup, Resumed, Subscribe, Unsubscribe, Update, View
from govern.model import LSN_ZERO, Lsn, ServiceKey

from .rig import A, B, Rig, messages_of, register

SERVICES = [ServiceKey("default", "a{t}"), ServiceKey("default", "b{t}"), ServiceKey("default", "c")]
INTERVAL_US = 20_000
READERS = 4


@attrs.define(eq=False)
class Reader:
    """A client that believes what it reads and checks that each piece fits."""

    link: Link
    views: dict[ServiceKey, tuple[Lsn, dict[str, bytes]]] = attrs.field(factory=dict)
    wanted: dict[ServiceKey, None] = attrs.field(factory=dict)
    suspects: dict[ServiceKey, dict[str, None]] = attrs.field(factory=dict)
    wire: list[bytes] = attrs.field(factory=list)  # sent, not yet read
    blocked: bool = False

    def send(self) -> None:
        """What the shell does: give the socket what the link is owed, keep what it does not take."""
        if self.blocked:
            self.link.unsent = b"".join([self.link.unsent, *self.link.out])
        else:
            self.wire.append(b"".join([self.link.unsent, *self.link.out]))
            self.link.unsent = b""
        self.link.out.clear()

    def read(self, committed: dict[tuple[ServiceKey, Lsn], dict[str, bytes]]) -> None:
        data, self.wire = b"".join(self.wire), []
        for message, _ in messages_of(data):
            assert isinstance(message, View | Delta | Hint | Resumed), message
            overlay = self.suspects.setdefault(message.service, {})
            if isinstance(message, Hint):
                for identity in message.instance_ids:
                    overlay.pop(identity, None)
                    if message.on and identity in self.views[message.service][1]:
                        overlay[identity] = None
            elif isinstance(message, View):
                assert not message.more
                overlay.clear()
                self._take(message.service, message.lsn, {public[1][0]: public for public in message.instances}, committed)
            elif isinstance(message, Delta):
                since, view = self.views[message.service]
                assert message.since == since, "a gap"
                assert message.lsn > since, "not new"
                for identity in [*message.removed, *[public[1][0] for public in message.changed]]:
                    overlay.pop(identity, None)
                view = {identity: public for identity, public in view.items() if identity not in message.removed}
                view.update({public[1][0]: public for public in message.changed})
                self._take(message.service, message.lsn, view, committed)
            else:
                overlay.clear()
                assert self.views[message.service][0] == message.lsn

    def _take(self, service: ServiceKey, lsn: Lsn, view: dict[str, Any], committed: dict[tuple[ServiceKey, Lsn], dict[str, bytes]]) -> None:
        if service in self.views:
            assert lsn >= self.views[service][0], "it went back"
        assert view == committed[service, lsn], "not a committed state"
        self.views[service] = (lsn, view)


class PushMachine(RuleBasedStateMachine):
    """Commits and readers in any order; what is late is pushed when its time comes."""

    history_ops_max = 8

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(Limits(history_ops_max=self.history_ops_max, delta_ops_max=4))
        self.rig.dispatch.now_us = 1_000_000
        self.writers = [self.rig.link(A), self.rig.link(B)]
        self.readers = [Reader(self.rig.link(b"")) for _ in range(READERS)]
        self.committed: dict[tuple[ServiceKey, Lsn], dict[str, Any]] = {}
        self._note()

    def _note(self) -> None:
        for service in SERVICES:
            data = b"".join(public_form(entry) for entry in self.rig.shard.entries(service).values())
            lsn = self.rig.shard.service_lsn(service)
            rows = {public[1][0]: public for public in unpack_all(data)}
            assert self.committed.setdefault((service, lsn), rows) == rows, "one lsn, two states"

    @rule(changes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=4))
    def change(self, changes: list[tuple[int, int, int, int]]) -> None:
        """One batch of registrations, updates and removals, then the publication of what changed, slice by slice."""
        for service_no, instance_no, writer_no, kind in changes:
            service, identity = SERVICES[service_no], f"i{instance_no}"
            link = self.writers[writer_no]
            session = link.session
            assert session is not None
            lease = session.lease(service, identity)
            if kind == 1 and lease is not None:
                self.rig.give(link, Deregister(service, identity, lease.lease_id))
            elif kind == 2 and lease is not None:
                self.rig.give(link, Update(service, identity, lease.lease_id, {"zone": f"z{self.rig.request_id}"}))
            else:
                self.rig.give(link, register(identity, service, ttl=5.0 if instance_no else 1.0))
        changed: dict[ServiceKey, None] = {}
        dispatch, shard = self.rig.dispatch, self.rig.shard
        for write in dispatch.writes:
            outcome = shard.apply(*shard.number(write.op, 1), write.op)
            _, one = dispatch.finish([(write, outcome)])
            changed.update(one)
            self._note()
        dispatch.writes.clear()
        for writer in self.writers:
            writer.out.clear()
        for ready in self.rig.subscriptions.publish(changed, dispatch.now_us):
            self._send(ready)

    def _send(self, links: Any) -> None:
        for reader in self.readers:
            if reader.link in links:
                reader.send()

    @rule(who=st.integers(0, READERS - 1), service_no=st.integers(0, 2), resume=st.booleans())
    def subscribe(self, who: int, service_no: int, resume: bool) -> None:
        """From the view in hand, or from nothing."""
        reader, service = self.readers[who], SERVICES[service_no]
        if reader.blocked:
            return
        reader.send()
        reader.read(self.committed)
        known = reader.views[service][0] if resume and service in reader.views else LSN_ZERO
        self.rig.give(reader.link, Subscribe(service, known))
        reader.wanted[service] = None
        reader.send()

    @rule(who=st.integers(0, READERS - 1), service_no=st.integers(0, 2))
    def unsubscribe(self, who: int, service_no: int) -> None:
        reader, service = self.readers[who], SERVICES[service_no]
        self.rig.give(reader.link, Unsubscribe(service))
        reader.wanted.pop(service, None)

    @rule(writer_no=st.integers(0, 1), ttl_ms=st.sampled_from([1_000, 5_000, None]))
    def doubt(self, writer_no: int, ttl_ms: int | None) -> None:
        """A writer is silent for a while, or is heard again."""
        session = self.writers[writer_no].session
        assert session is not None
        if ttl_ms is None:
            self.rig.suspects.note_heard(session)
        else:
            self.rig.suspects.note_silent(session, ttl_ms)

    @rule()
    def hint(self) -> None:
        for ready in self.rig.subscriptions.publish_hints():
            self._send(ready)

    @rule(who=st.integers(0, READERS - 1))
    def block(self, who: int) -> None:
        """The socket takes nothing; something is waiting for it already."""
        reader = self.readers[who]
        if not reader.blocked and reader.wanted:
            reader.blocked = True
            self.rig.give(reader.link, Lookup(next(iter(reader.wanted))))
            reader.send()

    @rule(who=st.integers(0, READERS - 1))
    def unblock(self, who: int) -> None:
        self.readers[who].blocked = False
        self.readers[who].send()

    @rule(who=st.integers(0, READERS - 1))
    def break_and_resume(self, who: int) -> None:
        """The connection is lost with all that was on its way; a new one asks for every service from the view in hand."""
        reader = self.readers[who]
        self.rig.dispatch.closed(reader.link)
        reader.link, reader.wire, reader.blocked = self.rig.link(b""), [], False
        for service in reader.wanted:
            self.rig.give(reader.link, Subscribe(service, reader.views[service][0] if service in reader.views else LSN_ZERO))
        reader.send()

    @rule(us=st.sampled_from([1, 5_000, INTERVAL_US]))
    def pass_time(self, us: int) -> None:
        self.rig.dispatch.now_us += us
        for ready in self.rig.subscriptions.push_late(self.rig.dispatch.now_us):
            self._send(ready)

    @invariant()
    def sound(self) -> None:
        self.rig.subscriptions.validate()
        self.rig.suspects.validate()
        for reader in self.readers:
            reader.read(self.committed)
            assert reader.link.out == []
            assert list(reader.link.late) == [service for service in reader.link.late if service in reader.wanted], (
                "bounded by its services"
            )
            assert not reader.link.late or reader.link in self.rig.subscriptions.late
        assert self.rig.subscriptions.count == sum(len(reader.wanted) for reader in self.readers)

    def teardown(self) -> None:
        """When everybody reads again, everybody is at the committed state."""
        for who in range(READERS):
            self.unblock(who)
        self.hint()
        self.pass_time(INTERVAL_US)
        assert self.rig.subscriptions.late == {}
        for reader in self.readers:
            reader.read(self.committed)
            for service in reader.wanted:
                now = self.committed[service, self.rig.shard.service_lsn(service)]
                assert reader.views[service][1] == now, "not at the newest state"
                assert sorted(reader.suspects[service]) == sorted(self.rig.suspects.of(service)), "not the suspects of now"


def unpack_all(data: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    return list(unpacker)


@pytest.mark.parametrize("history_ops_max", [2, 8, 1000])
def test_readers_end_at_the_committed_state(history_ops_max: int) -> None:
    """Whatever is committed, blocked, broken, resumed and left: what a reader has is a committed state at every moment, never an older one
    than before, each delta starts where the reader is, and in the end it has the newest state and knows exactly the suspects (P5)."""
    machine = type("Machine", (PushMachine,), {"history_ops_max": history_ops_max})
    run = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(machine, settings=run)


# --- single claims ----------------------------------------------------------------------------------------------------------


def test_a_change_is_encoded_once_for_all_at_the_same_lsn() -> None:
    """Every subscriber gets the very same bytes object, and links are handed out in slices of 200."""
    rig = Rig()
    writer = rig.link(A)
    readers = [rig.link(b"") for _ in range(2 * SLICE_LINKS + 50)]
    for reader in readers:
        rig.say(reader, Subscribe(SERVICES[0]))
    rig.give(writer, register("i1", SERVICES[0]))
    (write,) = rig.dispatch.writes
    rig.shard.apply(*rig.shard.number(write.op, 1), write.op)
    slices = list(rig.subscriptions.publish([SERVICES[0]], 0))
    assert [len(ready) for ready in slices] == [SLICE_LINKS, SLICE_LINKS, 50]
    assert [link for ready in slices for link in ready] == readers
    frames = {id(frame) for reader in readers[:SLICE_LINKS] for frame in reader.out}
    assert len(frames) == 1
    assert len({bytes(frame) for reader in readers for frame in reader.out}) == 1


def test_between_two_slices_anything_may_happen() -> None:
    """A subscriber of the second slice that unsubscribed, and a commit in between: each gets exactly what is right at its moment."""
    rig = Rig()
    writer = rig.link(A)
    readers = [rig.link(b"") for _ in range(SLICE_LINKS + 2)]
    for reader in readers:
        rig.say(reader, Subscribe(SERVICES[0]))
    rig.give(writer, register("i1", SERVICES[0]))
    rig.give(writer, register("i2", SERVICES[0]))
    first, second = rig.dispatch.writes
    rig.shard.apply(*rig.shard.number(first.op, 1), first.op)
    slices = rig.subscriptions.publish([SERVICES[0]], 0)
    assert len(next(slices)) == SLICE_LINKS
    rig.dispatch.closed(readers[-2])
    rig.shard.apply(*rig.shard.number(second.op, 1), second.op)
    assert list(slices) == [[readers[-1]]]
    assert readers[-2].out == []
    ((delta, _),) = rig.said(readers[-1])
    assert isinstance(delta, Delta)
    assert (delta.since, delta.lsn, len(delta.changed)) == (LSN_ZERO, Lsn(1, 2), 2)


def test_a_link_that_takes_nothing_owes_its_lsn_and_nothing_else() -> None:
    """A thousand changes behind a full socket put nothing out; one push afterwards brings the newest state."""
    rig = Rig(Limits(history_ops_max=100))
    writer, reader = rig.link(A), rig.link(b"")
    rig.say(reader, Subscribe(SERVICES[0]))
    reader.unsent = b"x"
    for number in range(1_000):
        rig.give(writer, register(f"i{number % 3}", SERVICES[0]))
        rig.commit()
        writer.out.clear()
    assert reader.out == []
    assert reader.late == {SERVICES[0]: None}
    reader.unsent = b""
    assert list(rig.subscriptions.push_late(INTERVAL_US)) == [[reader]]
    ((view, _),) = rig.said(reader)
    assert isinstance(view, View)
    assert (view.lsn, len(view.instances)) == (Lsn(1, 1_000), 3)


def test_pushes_within_20_ms_are_merged_and_those_of_one_moment_are_not() -> None:
    """The first change goes out at once, the ones in the next 20 ms together at its end, as one delta."""
    rig = Rig()
    writer, reader = rig.link(A), rig.link(b"")
    rig.say(reader, Subscribe(SERVICES[0]))
    rig.dispatch.now_us = 1_000_000
    for number, after_us in enumerate([0, 1_000, 19_999]):
        rig.dispatch.now_us = 1_000_000 + after_us
        rig.give(writer, register(f"i{number}", SERVICES[0]))
        rig.commit()
    assert len(rig.said(reader)) == 1
    assert list(rig.subscriptions.push_late(1_019_999)) == []
    assert list(rig.subscriptions.push_late(1_020_000)) == [[reader]]
    ((delta, _),) = rig.said(reader)
    assert isinstance(delta, Delta)
    assert (delta.since, delta.lsn) == (Lsn(1, 1), Lsn(1, 3))


def test_merged_pushes_go_out_in_slices_too() -> None:
    """When very many links are late, other work gets its turn after each 200 of them; one that is closed in between is passed over, and one
    that is told of a commit in between gets it with the rest."""
    rig = Rig()
    writer = rig.link(A)
    readers = [rig.link(b"") for _ in range(2 * SLICE_LINKS + 2)]
    for reader in readers:
        rig.say(reader, Subscribe(SERVICES[0]))
        reader.pushed_us = 0
    rig.dispatch.now_us = 1
    rig.give(writer, register("i1", SERVICES[0]))
    rig.commit()
    assert len(rig.subscriptions.late) == len(readers)
    slices = rig.subscriptions.push_late(INTERVAL_US)
    assert list(next(slices)) == readers[:SLICE_LINKS]
    rig.dispatch.closed(readers[-2])
    rig.give(writer, register("i2", SERVICES[0]))
    rig.commit()
    assert [len(ready) for ready in slices] == [SLICE_LINKS, 1]
    assert readers[-2].out == []
    ((delta, _),) = rig.said(readers[-1])
    assert isinstance(delta, Delta)
    assert (delta.since, delta.lsn) == (LSN_ZERO, Lsn(1, 2))
