"""Drains: barriers against a model of clients that come, go, read, resume and die in any order."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from govern.core.drains import AWAY_MAX, NOT_BACK, RETURN_US, UNKNOWN_US, Drains
from govern.core.links import Link
from govern.core.sessions import Lease
from govern.messages import (
    Applied,
    Delta,
    Done,
    Drain,
    Drained,
    Goodbye,
    Hello,
    HelloOk,
    Hint,
    Message,
    Resumed,
    Subscribe,
    Unsubscribe,
    Update,
    View,
)
from govern.model import LSN_ZERO, Lsn, ServiceKey

from .rig import ORDERS, A, B, Rig, code_of

SERVICES = [ServiceKey("default", "a{t}"), ServiceKey("default", "b{t}")]  # of one slot
CLIENTS = 5  # the last one has no session
TIMEOUTS_MS = [60_000, 10_000, 60_000, 500, 0]
STEPS_US = [30_000, 1_000_000, 3_000_000, 6_000_000]
ASKS = ["all", "all", "none", "before the end of the former"]


@attrs.define(eq=False)
class Client:
    """A subscriber that applies what it reads, says so when it is asked to, and knows what it wants."""

    number: int
    link: Link | None = None
    attempt: int = 0
    connected_us: int = 0
    lsns: dict[ServiceKey, Lsn] = attrs.field(factory=dict)
    asked: dict[ServiceKey, None] = attrs.field(factory=dict)  # subscribed to over this connection
    counts: dict[ServiceKey, None] = attrs.field(factory=dict)  # what a drain has to wait for it

    @property
    def session_id(self) -> bytes:
        return bytes([self.number + 1]) * 16 if self.number < CLIENTS - 1 else b""

    @property
    def name(self) -> str:
        return f"c{self.number} (10.0.0.1)"


@attrs.define(eq=False)
class Waiting:
    """One drain as the model sees it."""

    request_id: int
    service: ServiceKey
    lsn: Lsn
    deadline_us: int
    pending: dict[Client, None]
    applied: int = 0
    answer: Drained | None = None


class DrainMachine(RuleBasedStateMachine):
    """Whatever the clients do: a drain is answered once, as soon as nobody is left and no moment earlier, or when its time is over."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.rig.dispatch.now_us = 1_000_000
        self.writer = self.rig.link(A)
        for service in SERVICES:
            for identity in ("i0", "i1"):
                self.rig.register(self.writer, identity, service)
        self.operator = self.rig.link(b"")
        self.clients = [Client(number) for number in range(CLIENTS)]
        self.drains: list[Waiting] = []
        for client in self.clients:
            self.connect(client.number, "none")
            for service in SERVICES[: 1 + client.number % 2]:
                self._subscribe(client, service)
            self._read(client)
        self.rig.sessions.grant(self.clients[0].session_id, ORDERS, "mine", Lease(Lsn(1, 1), 3_600_000))  # one that is not soon forgotten

    # --- the model ----------------------------------------------------------------------------------------------------------

    def _applied(self, client: Client, service: ServiceKey, lsn: Lsn) -> None:
        for drain in self.drains:
            if drain.service == service and lsn >= drain.lsn and client in drain.pending:
                del drain.pending[client]
                drain.applied += 1

    def _gone(self, client: Client, service: ServiceKey) -> None:
        if client.counts.pop(service, ...) is None:
            self._applied(client, service, Lsn(1 << 60, 0))

    def _forget(self) -> None:
        """What the node finds out by looking: sessions that ended, and clients that are back and do not ask."""
        for client in self.clients:
            for service in list(client.counts):
                ended = client.session_id and self.rig.sessions.get(client.session_id) is None
                back = client.link is not None and self.rig.sessions.now_us - client.connected_us > RETURN_US
                if service not in client.asked and (ended or back):
                    self._gone(client, service)

    def _settle(self) -> None:
        """Compare the answers that have arrived with those that must have."""
        for message, request_id in self.rig.said(self.operator):
            assert isinstance(message, Drained), message
            (drain,) = [drain for drain in self.drains if drain.request_id == request_id]
            assert drain.answer is None, "answered twice"
            drain.answer = message
        for drain in list(self.drains):
            over = not drain.pending or self.rig.dispatch.now_us >= drain.deadline_us
            if drain.answer is None:
                assert not over, ("not answered", drain)
                continue
            assert over, ("answered too early", drain)
            self.drains.remove(drain)
            assert drain.answer.lsn == drain.lsn
            assert drain.answer.applied == drain.applied
            assert drain.answer.missing_count == len(drain.pending)
            assert sorted(drain.answer.missing) == sorted(client.name for client in drain.pending)

    # --- clients ------------------------------------------------------------------------------------------------------------

    services_rule = st.integers(0, len(SERVICES) - 1)

    @rule(
        acts=st.lists(
            st.tuples(st.sampled_from("cccllrrrssug"), st.integers(0, CLIENTS - 1), services_rule, st.sampled_from(ASKS)),
            min_size=1,
            max_size=6,
        )
    )
    def act(self, acts: list[tuple[str, int, int, str]]) -> None:
        for one in acts:
            self._act(*one)

    def _act(self, doing: str, number: int, service_no: int, asks: str) -> None:
        if doing == "c":
            self.connect(number, asks)
        elif doing == "l":
            self.lose(number)
        elif doing == "g":
            self.leave(number)
        elif doing == "s":
            self.subscribe(number, service_no)
        elif doing == "u":
            self.unsubscribe(number, service_no)
        else:
            self.read(number)

    def connect(self, number: int, asks: str) -> None:
        """A new connection; perhaps the former one is closed only after this one has subscribed."""
        client = self.clients[number]
        former = client.link
        if former is not None and not client.session_id:
            return
        client.attempt += 1
        link = client.link = Link("10.0.0.1", "10.0.0.9", self.rig.sessions.now_us)
        self.rig.gate.admit(link)
        assert isinstance(self.rig.say(link, Hello(1, "", f"c{number}", "", client.session_id, client.attempt))[0], HelloOk)
        client.connected_us = self.rig.sessions.now_us
        wanted, client.asked = list(client.lsns), {}
        if former is not None and asks != "before the end of the former":
            self.rig.dispatch.closed(former)
        for service in wanted if asks != "none" else []:
            self._subscribe(client, service)
        if former is not None and asks == "before the end of the former":
            self.rig.dispatch.closed(former)
        self._settle()

    def lose(self, number: int) -> None:
        """The connection breaks; what it did not read is lost."""
        client = self.clients[number]
        if client.link is not None:
            link, client.link, client.asked = client.link, None, {}
            self.rig.dispatch.closed(link)
            if not client.session_id:
                for service in SERVICES:
                    self._gone(client, service)
            self._settle()

    def leave(self, number: int) -> None:
        """Goodbye, and the end of the connection."""
        client = self.clients[number]
        if client.link is not None and client.number:
            link, client.link, client.asked, client.lsns = client.link, None, {}, {}
            self.rig.give(link, Goodbye())
            for service in SERVICES:
                self._gone(client, service)
            self._settle()
            self.rig.dispatch.closed(link)
            self._settle()

    def subscribe(self, number: int, service_no: int) -> None:
        client = self.clients[number]
        if client.link is not None and SERVICES[service_no] not in client.asked:
            self._subscribe(client, SERVICES[service_no])
            self._settle()

    def _subscribe(self, client: Client, service: ServiceKey) -> None:
        assert client.link is not None
        known = client.lsns.get(service, LSN_ZERO)
        self.rig.give(client.link, Subscribe(service, known))
        client.asked[service] = client.counts[service] = None
        if known != LSN_ZERO:
            self._applied(client, service, known)

    def unsubscribe(self, number: int, service_no: int) -> None:
        client, service = self.clients[number], SERVICES[service_no]
        if client.link is not None:
            client.asked.pop(service, None)
            client.lsns.pop(service, None)
            self.rig.give(client.link, Unsubscribe(service))
            self._gone(client, service)
            self._settle()

    def read(self, number: int) -> None:
        client = self.clients[number]
        if client.link is not None:
            self._read(client)
            self._settle()

    def _read(self, client: Client) -> None:
        assert client.link is not None
        for message, _ in self.rig.said(client.link):
            if isinstance(message, View | Delta) and message.service in client.asked:
                service = message.service
                assert isinstance(message, View) or message.since == client.lsns[service], "a gap"
                assert message.lsn > client.lsns.get(service, LSN_ZERO) or message.ack or isinstance(message, View)
                client.lsns[service] = message.lsn
                if message.ack:
                    self.rig.give(client.link, Applied(service, message.lsn))
                    self._applied(client, service, message.lsn)
            else:
                assert isinstance(message, Resumed | Hint | View | Delta), message

    # --- the rest of the world ----------------------------------------------------------------------------------------------

    @rule(service_no=services_rule, status=st.sampled_from([0, 0, 1]))
    def change(self, service_no: int, status: int) -> None:
        """The owner of an instance takes it back into traffic, or out of it without a drain."""
        lease = self.writer.session.lease(SERVICES[service_no], "i0") if self.writer.session is not None else None
        assert lease is not None
        self.rig.give(self.writer, Update(SERVICES[service_no], "i0", lease.lease_id, {"status": status}))
        self.rig.commit()
        self.writer.out.clear()
        self._settle()

    @rule(service_no=services_rule, identity=st.sampled_from(["i0", "i1"]), timeout_ms=st.sampled_from(TIMEOUTS_MS))
    def drain(self, service_no: int, identity: str, timeout_ms: int) -> None:
        service = SERVICES[service_no]
        self._forget_those_that_a_drain_looks_at(service)
        deadline_us = self.rig.dispatch.now_us + timeout_ms * 1000
        request_id = self.rig.give(self.operator, Drain(service, identity, LSN_ZERO, timeout_ms))
        (write,) = self.rig.dispatch.writes
        outcome = self.rig.shard.apply(*self.rig.shard.number(write.op, 1), write.op)
        self.rig.dispatch.writes.clear()
        assert isinstance(outcome.answer, Done)
        pending = {client: None for client in self.clients if service in client.counts}
        self.drains.append(Waiting(request_id, service, outcome.answer.lsn, deadline_us, pending))
        _, changed = self.rig.dispatch.finish([(write, outcome)])
        for _ in self.rig.subscriptions.publish(changed, self.rig.dispatch.now_us):
            pass
        self._settle()

    def _forget_those_that_a_drain_looks_at(self, service: ServiceKey) -> None:
        self.rig.dispatch.drains.check(self.rig.dispatch.now_us)
        self._forget()
        self._settle()

    @rule(step_us=st.sampled_from(STEPS_US))
    def time(self, step_us: int) -> None:
        self.rig.dispatch.now_us += step_us
        self.rig.sessions.now_us += step_us
        self.rig.sessions.due(100)
        for _ in self.rig.subscriptions.push_late(self.rig.dispatch.now_us):
            pass
        self.rig.dispatch.drains.check(self.rig.dispatch.now_us)
        self._forget()
        self._settle()

    @rule()
    def all_read(self) -> None:
        """Everybody who is connected reads to the end: no drain waits for anybody of them any more."""
        self.time(30_000)
        for client in self.clients:
            if client.link is not None:
                self._read(client)
        self._settle()
        for drain in self.drains:
            for client in drain.pending:
                assert drain.service not in client.asked, ("it was not asked", drain, client)

    @invariant()
    def sound(self) -> None:
        self.rig.validate()
        assert self.rig.dispatch.drains.open_count == len(self.drains)


def test_barriers_agree_with_the_model() -> None:
    """Subscribers come, go, read, resume, leave and are forgotten in any order, drains overlap: each is answered exactly once, never early,
    as soon as nobody is left, or at its time with exactly those named who have not applied it."""
    run = settings(max_examples=70, stateful_step_count=30, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(DrainMachine, settings=run)


# --- single claims ----------------------------------------------------------------------------------------------------------


def subscriber(rig: Rig, session_id: bytes, attempt: int = 1, known: Lsn = LSN_ZERO) -> Link:
    """A client that is subscribed and has read everything."""
    link = rig.link(session_id, attempt)
    rig.give(link, Subscribe(ORDERS, known))
    rig.said(link)
    return link


def drain(rig: Rig, link: Link, timeout_ms: int = 10_000, lease_id: Lsn = LSN_ZERO) -> list[Message]:
    """Drain `i1` and commit; what is answered at once."""
    rig.give(link, Drain(ORDERS, "i1", lease_id, timeout_ms))
    rig.commit()
    return [message for message, number in rig.said(link) if number]


def passes(rig: Rig, seconds: float) -> None:
    rig.dispatch.now_us += round(seconds * 1e6)
    rig.dispatch.drains.check(rig.dispatch.now_us)


def test_a_drain_without_subscribers_is_answered_with_its_commit() -> None:
    """By anybody who may say it: with the lease, without one, and again; the status is `draining` and the lsn that of the change."""
    rig = Rig()
    lease_id = rig.register(rig.link(A))
    for given in (LSN_ZERO, lease_id, LSN_ZERO):
        assert drain(rig, rig.link(b""), lease_id=given) == [Drained(Lsn(1, 2), 0, 0, [])]


def test_a_drain_is_refused_under_another_lease_and_for_what_is_not_there() -> None:
    """Both with `gone`, and the instance stays as it is; a request without an id cannot be answered by its id."""
    rig = Rig()
    rig.register(rig.link(A))
    assert code_of(drain(rig, rig.link(b""), lease_id=Lsn(1, 99))) == "gone"
    assert rig.shard.service_lsn(ORDERS) == Lsn(1, 1)
    link = rig.link(b"")
    assert code_of(rig.say(link, Drain(ORDERS, "i2", LSN_ZERO, 1))) == "gone"
    rig.give(link, Drain(ORDERS, "i1", LSN_ZERO, 1), 0)
    assert code_of([message for message, _ in rig.said(link)]) == "invalid"


def test_a_subscriber_that_knew_before_the_drain_was_asked_for_counts_when_it_comes_back() -> None:
    """The status was set by an update, which asks nobody. The connection breaks before the question is read; the lsn with which the client
    resumes is an answer as well."""
    rig = Rig()
    writer = rig.link(A)
    lease_id = rig.register(writer)
    reader = subscriber(rig, B)
    rig.give(writer, Update(ORDERS, "i1", lease_id, {"status": 1}))
    rig.commit()
    operator = rig.link(b"")
    assert drain(rig, operator) == []
    asked = [message for message, _ in rig.said(reader) if isinstance(message, Delta) and message.ack]
    assert [(message.since, message.lsn, message.changed) for message in asked] == [(Lsn(1, 2), Lsn(1, 2), [])]
    rig.dispatch.closed(reader)
    assert rig.said(operator) == []
    subscriber(rig, B, 2, Lsn(1, 2))
    assert [message for message, _ in rig.said(operator)] == [Drained(Lsn(1, 2), 1, 0, [])]


def test_who_leaves_for_good_is_not_waited_for() -> None:
    """Unsubscribe, Goodbye, and the end of a connection without a session: each of them is as good as having applied it."""
    rig = Rig()
    rig.register(rig.link(A))
    operator = rig.link(b"")
    for how in ("unsubscribe", "goodbye", "close"):
        for session_id in (b"",) if how == "close" else (b"", B):
            reader = subscriber(rig, session_id, rig.request_id)
            assert drain(rig, operator) == []
            if how == "close":
                rig.dispatch.closed(reader)
            else:
                rig.give(reader, Unsubscribe(ORDERS) if how == "unsubscribe" else Goodbye())
            assert [message for message, _ in rig.said(operator)] == [Drained(Lsn(1, 2), 1, 0, [])]
            if how != "close":
                rig.dispatch.closed(reader)


def test_after_a_start_a_drain_waits_for_those_who_may_come_back() -> None:
    """A node that has had another life cannot know who had subscribed. For four seconds everyone who comes back with an old list is waited
    for, and so is whoever has not come yet."""
    rig = Rig()
    writer = rig.link(A)
    rig.register(writer)
    rig.register(writer, "i2")
    rig.dispatch.now_us = 5_000_000
    rig.dispatch.note_loaded()
    operator = rig.link(b"")
    assert drain(rig, operator) == []
    reader = rig.link(B)
    rig.give(reader, Subscribe(ORDERS, Lsn(1, 1)))
    assert any(isinstance(message, Delta) and message.ack for message, _ in rig.said(reader))
    new = rig.link(b"n" * 16)
    rig.give(new, Subscribe(ORDERS))
    passes(rig, UNKNOWN_US / 1e6)
    assert rig.said(operator) == [], "one that came back with an old list has not applied it"
    rig.give(reader, Applied(ORDERS, Lsn(1, 3)))
    assert [message for message, _ in rig.said(operator)] == [Drained(Lsn(1, 3), 1, 0, [])], "one that is new was never waited for"


def test_a_short_drain_after_a_start_says_that_some_may_be_missing() -> None:
    """It does not claim that everybody knows while nobody can know who everybody is."""
    rig = Rig()
    rig.register(rig.link(A))
    rig.dispatch.note_loaded()
    operator = rig.link(b"")
    assert drain(rig, operator, timeout_ms=1_000) == []
    passes(rig, 1)
    assert [message for message, _ in rig.said(operator)] == [Drained(Lsn(1, 2), 0, 1, [NOT_BACK])]


def test_a_node_without_a_past_does_not_wait_for_it() -> None:
    """The first start of all: nobody can come back."""
    rig = Rig()
    rig.dispatch.note_loaded()
    rig.register(rig.link(A))
    assert drain(rig, rig.link(b"")) == [Drained(Lsn(1, 2), 0, 0, [])]


def test_many_that_are_missing_are_counted_and_a_hundred_of_them_named() -> None:
    """The answer stays small."""
    rig = Rig()
    rig.register(rig.link(A))
    for _ in range(150):
        subscriber(rig, b"")
    (answer,) = drain(rig, rig.link(b""), timeout_ms=0)
    assert isinstance(answer, Drained)
    assert (answer.applied, answer.missing_count) == (0, 150)
    assert answer.missing == ["test (10.0.0.1)"] * 100


def test_nothing_is_kept_for_an_asker_that_is_gone() -> None:
    """Its connection breaks: the drain stands, nobody is answered, and subscribers are not asked any more."""
    rig = Rig()
    writer = rig.link(A)
    lease_id = rig.register(writer)
    reader = subscriber(rig, B)
    operator = rig.link(b"")
    drain(rig, operator)
    rig.said(reader)
    rig.dispatch.closed(operator)
    assert rig.dispatch.drains.open_count == 0
    rig.dispatch.now_us += 100_000
    rig.give(writer, Update(ORDERS, "i1", lease_id, {"weight": 0.5}))
    rig.commit()
    assert [message.ack for message, _ in rig.said(reader) if isinstance(message, Delta)] == [False]


def test_who_drains_and_says_goodbye_is_answered_both() -> None:
    """The drain does not hold the Goodbye up, for the removal is what the subscribers wait for then."""
    rig = Rig()
    owner = rig.link(A)
    lease_id = rig.register(owner)
    subscriber(rig, B)
    drained = rig.give(owner, Drain(ORDERS, "i1", lease_id, 1_000))
    goodbye = rig.give(owner, Goodbye())
    rig.commit()
    rig.commit()
    passes(rig, 1)
    answers = {number: message for message, number in rig.said(owner)}
    assert isinstance(answers[goodbye], Done)
    assert answers[drained] == Drained(Lsn(1, 2), 0, 1, ["test (10.0.0.1)"])


def test_too_many_waits_are_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of all open drains are counted; what would go beyond is refused with `overloaded`, and the instance stays up."""
    monkeypatch.setattr("govern.core.drains.PLACES_MAX", 3)
    rig = Rig()
    writer = rig.link(A)
    for identity in ("i1", "i2", "i3"):
        rig.register(writer, identity)
    readers = [subscriber(rig, b"") for _ in range(2)]
    operator = rig.link(b"")
    rig.give(operator, Drain(ORDERS, "i1"))
    rig.commit()
    answers = rig.say(operator, Drain(ORDERS, "i2"))
    assert code_of(answers) == "overloaded"
    assert rig.shard.service_lsn(ORDERS) == Lsn(1, 4)
    for reader in readers:
        rig.dispatch.closed(reader)
    assert [type(message) for message, _ in rig.said(operator)] == [Drained]
    rig.give(operator, Drain(ORDERS, "i2"))
    rig.commit()
    assert [type(message) for message, _ in rig.said(operator)] == [Drained]


def test_what_is_remembered_of_broken_connections_is_bounded_and_ends_with_the_session() -> None:
    """A session that subscribes to ever other services over ever new connections costs a bounded memory; when it ends, none."""
    rig = Rig()
    for attempt in range(1, 4):
        link = rig.link(A, attempt)
        for number in range(AWAY_MAX // 2):
            rig.give(link, Subscribe(ServiceKey("default", f"s{attempt}-{number}")))
        rig.dispatch.closed(link)
        rig.validate()
    drains: Drains = rig.dispatch.drains
    assert sum(map(len, drains._away.values())) == AWAY_MAX
    rig.sessions.now_us += 10_000_000
    rig.sessions.due(10)
    drains.check(0)
    assert not drains._away
    assert not drains._away_by_service
