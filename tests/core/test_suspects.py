"""Suspects: who is doubted, from when and until when, and what subscribers are told of it."""

from __future__ import annotations

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from govern.core.history import SUSPECT, UNSUSPECT
from govern.core.limits import Limits
from govern.core.links import Link
from govern.core.sessions import Silent
from govern.core.suspects import CLOSED_US, TOGETHER_MIN, TOGETHER_US
from govern.messages import AskStatus, Delta, Deregister, Evict, Goodbye, Heartbeat, Hint, Lookup, Resumed, Subscribe, Update, View
from govern.model import Lsn, ServiceKey

from .rig import ORDERS, A, B, Rig, register

IDS = [b"%d" % number * 16 for number in range(3)]
TTLS = {"short": 1.0, "long": 60.0}


@attrs.define
class Twin:
    """What is to be doubted of one session, as a scan of everything would find it."""

    link: Link | None = None
    attempt: int = 0
    closed_us: int | None = None  # it has had no connection since then, and was not suppressed
    level_ms: int = 0


class DoubtMachine(RuleBasedStateMachine):
    """Connections that come and go, writes in flight, silences; after each step the suspects are compared with the twins."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.twins = {session_id: Twin() for session_id in IDS}
        self.other = self.rig.link(B)
        for who in range(len(IDS)):
            self.connect(who)

    @rule(who=st.integers(0, 2))
    def connect(self, who: int) -> None:
        twin = self.twins[IDS[who]]
        twin.attempt += 1
        twin.link = self.rig.link(IDS[who], attempt=twin.attempt)
        twin.closed_us, twin.level_ms = None, 0

    @rule(who=st.integers(0, 2))
    def close(self, who: int) -> None:
        twin = self.twins[IDS[who]]
        if twin.link is not None:
            self.rig.dispatch.closed(twin.link)
            twin.link, twin.closed_us = None, self.rig.dispatch.now_us

    @rule(who=st.integers(0, 2))
    def speak(self, who: int) -> None:
        twin = self.twins[IDS[who]]
        if twin.link is not None:
            self.rig.give(twin.link, Heartbeat(0, 0))
            twin.level_ms = 0

    @rule(who=st.integers(0, 2), name=st.sampled_from(sorted(TTLS)))
    def ask_to_register(self, who: int, name: str) -> None:
        """It is committed later, perhaps after the connection has closed."""
        twin = self.twins[IDS[who]]
        if twin.link is not None:
            self.rig.give(twin.link, register(name, ttl=TTLS[name]))
            twin.level_ms = 0

    @rule(who=st.integers(0, 2), name=st.sampled_from(sorted(TTLS)))
    def ask_to_remove(self, who: int, name: str) -> None:
        twin = self.twins[IDS[who]]
        session = self.rig.sessions.get(IDS[who])
        lease = None if session is None else session.lease(ORDERS, name)
        if twin.link is not None and lease is not None:
            self.rig.give(twin.link, Deregister(ORDERS, name, lease.lease_id))
            twin.level_ms = 0

    @rule(name=st.sampled_from(sorted(TTLS)))
    def evict(self, name: str) -> None:
        self.rig.give(self.other, Evict(ORDERS, name))

    @rule(name=st.sampled_from(sorted(TTLS)))
    def take(self, name: str) -> None:
        """A session that is never doubted registers the id."""
        self.rig.give(self.other, register(name, ttl=TTLS[name]))

    @rule()
    def commit(self) -> None:
        self.rig.commit()

    @rule(us=st.sampled_from([1, CLOSED_US // 2, CLOSED_US]))
    def pass_time(self, us: int) -> None:
        self.rig.dispatch.now_us += us
        self.rig.suspects.wake(self.rig.dispatch.now_us)
        for session_id, twin in self.twins.items():
            session = self.rig.sessions.get(session_id)
            if twin.closed_us is not None and self.rig.dispatch.now_us - twin.closed_us >= CLOSED_US:
                twin.closed_us = None
                if session is not None and session.count:
                    twin.level_ms = 1 << 62

    @rule(who=st.integers(0, 2), ttl_ms=st.sampled_from([1_000, 60_000]))
    def stay_silent(self, who: int, ttl_ms: int) -> None:
        session = self.rig.sessions.get(IDS[who])
        if session is not None and session.holds_under(ttl_ms):
            self.rig.dispatch.propose_expiries([Silent(session, ttl_ms, session.stamp_us, final=False)])
            self.twins[IDS[who]].level_ms = max(self.twins[IDS[who]].level_ms, ttl_ms)

    @invariant()
    def as_a_scan_would_find_it(self) -> None:
        expected: dict[str, None] = {}
        for session_id, twin in self.twins.items():
            session = self.rig.sessions.get(session_id)
            leases = [] if session is None else list(session.leases())
            covered = {name: None for _, name, lease in leases if lease.ttl_ms <= twin.level_ms}
            if not covered:
                twin.level_ms = 0  # nothing is left that is doubted: what comes now is new
            expected.update(covered)
        assert sorted(self.rig.suspects.of(ORDERS)) == sorted(expected)
        assert len(self.rig.suspects) == len(expected)
        for name in TTLS:
            assert (self.rig.suspects.seconds(ORDERS, name) is not None) == (name in expected)
        self.rig.validate()


def test_the_suspects_are_those_a_scan_would_find() -> None:
    """Whatever closes, returns, is written, stolen and evicted meanwhile, in any order (U1, U2)."""
    run = settings(max_examples=90, stateful_step_count=40, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(DoubtMachine, settings=run)


# --- single claims ----------------------------------------------------------------------------------------------------------


def doubt(rig: Rig, link: Link) -> None:
    """The connection closes, and 300 ms pass."""
    rig.dispatch.closed(link)
    rig.dispatch.now_us += CLOSED_US
    rig.suspects.wake(rig.dispatch.now_us)


def told(rig: Rig, reader: Link) -> list[Hint]:
    for _ in rig.subscriptions.publish_hints():
        pass
    found = [message for message, _ in rig.said(reader)]
    hints = [message for message in found if isinstance(message, Hint)]
    assert len(hints) == len(found)
    return hints


def test_a_closed_connection_is_a_hint_after_300_ms_exactly_and_a_return_ends_it() -> None:
    """Nothing a microsecond earlier; one hint to each subscriber of the service, one more when the session is attached again."""
    rig = Rig()
    link, reader, stranger = rig.link(A), rig.link(b""), rig.link(b"")
    rig.say(reader, Subscribe(ORDERS))
    rig.say(stranger, Subscribe(ServiceKey("default", "other")))
    rig.register(link)
    rig.said(reader)
    rig.dispatch.closed(link)
    due_us = rig.suspects.next_us
    assert due_us == CLOSED_US
    rig.suspects.wake(CLOSED_US - 1)
    assert told(rig, reader) == []
    rig.suspects.wake(CLOSED_US)
    assert told(rig, reader) == [Hint(ORDERS, ["i1"], True)]
    rig.link(A, attempt=2)
    assert told(rig, reader) == [Hint(ORDERS, ["i1"], False)]
    assert stranger.out == []
    assert [event[2] for event in rig.history.of_instances(ORDERS, "i1")][1:] == [SUSPECT, UNSUSPECT]


def test_a_return_within_300_ms_and_a_goodbye_are_no_reason_for_doubt() -> None:
    """Neither does a connection that was taken over by the next one of its session."""
    rig = Rig()
    first = rig.link(A)
    rig.register(first)
    second = rig.link(A, attempt=2)
    rig.dispatch.closed(first)
    assert rig.suspects.next_us is None
    rig.dispatch.closed(second)
    third = rig.link(A, attempt=3)
    assert rig.suspects.next_us is None
    rig.give(third, Goodbye())
    rig.dispatch.closed(third)
    assert rig.suspects.next_us is None
    rig.suspects.wake(1 << 60)
    assert not rig.suspects.pending


def test_an_operation_on_a_suspect_hints_again_behind_its_delta_and_its_removal_does_not() -> None:
    """The client forgets what it was told of an instance when a delta names it, so the same bytes say it again. A removal says it all."""
    rig = Rig()
    link, reader, rival = rig.link(A), rig.link(b""), rig.link(B)
    rig.say(reader, Subscribe(ORDERS))
    lease_id = rig.register(link)
    rig.give(link, Update(ORDERS, "i1", lease_id, {"zone": "z"}))
    doubt(rig, link)
    rig.said(reader)
    assert told(rig, reader) == [Hint(ORDERS, ["i1"], True)]
    rig.dispatch.now_us += 1_000_000
    rig.commit()
    assert [type(message) for message, _ in rig.said(reader)] == [Delta, Hint]
    rig.dispatch.now_us += 1_000_000
    rig.register(rival, "i2")
    assert [type(message) for message, _ in rig.said(reader)] == [Delta]
    rig.dispatch.now_us += 1_000_000
    rig.give(rival, Evict(ORDERS, "i1"))
    rig.commit()
    assert [type(message) for message, _ in rig.said(reader)] == [Delta]
    assert told(rig, reader) == []
    assert len(rig.suspects) == 0


def test_another_session_that_takes_the_id_is_not_suspect() -> None:
    """The newer registration wins, and nothing of the old doubt sticks to it, not even a hint that was on its way."""
    rig = Rig()
    link, reader, rival = rig.link(A), rig.link(b""), rig.link(B)
    rig.say(reader, Subscribe(ORDERS))
    rig.register(link)
    rig.said(reader)
    doubt(rig, link)
    rig.dispatch.now_us += 1_000_000
    rig.register(rival)
    assert [type(message) for message, _ in rig.said(reader)] == [Delta]
    assert all(not hint.on for hint in told(rig, reader))
    rig.link(A, attempt=2)
    assert told(rig, reader) == []


def test_a_new_subscriber_and_one_that_resumes_are_told_the_suspects_of_now() -> None:
    """Right behind the view, and right behind Resumed even when nothing has changed since."""
    rig = Rig()
    link = rig.link(A)
    rig.register(link)
    doubt(rig, link)
    reader = rig.link(b"")
    first, second = rig.say_all(reader, Subscribe(ORDERS))
    assert isinstance(first, View)
    assert second == Hint(ORDERS, ["i1"], True)
    again = rig.link(b"")
    first, second = rig.say_all(again, Subscribe(ORDERS, Lsn(1, 1)))
    assert isinstance(first, Resumed)
    assert second == Hint(ORDERS, ["i1"], True)


def test_a_subscriber_with_a_full_socket_gets_the_view_instead_of_the_hints_it_missed() -> None:
    """Whatever came and went meanwhile costs it nothing but a mark; the view that it gets later, and the hints behind it, are the truth."""
    rig = Rig()
    link, other, reader = rig.link(A), rig.link(B), rig.link(b"")
    rig.say(reader, Subscribe(ORDERS))
    rig.register(link)
    rig.register(other, "i2")
    rig.dispatch.now_us += 1_000_000
    for _ in rig.subscriptions.push_late(rig.dispatch.now_us):
        pass
    rig.said(reader)
    reader.unsent = b"x"
    doubt(rig, link)
    assert told(rig, reader) == []
    rig.link(A, attempt=2)
    doubt(rig, other)
    assert told(rig, reader) == []
    assert (reader.out, reader.late, reader.astray) == ([], {ORDERS: None}, {ORDERS: None})
    reader.unsent = b""
    rig.dispatch.now_us += 1_000_000
    assert list(rig.subscriptions.push_late(rig.dispatch.now_us)) == [[reader]]
    (view, _), (hint, _) = rig.said(reader)
    assert isinstance(view, View)
    assert hint == Hint(ORDERS, ["i2"], True)
    assert reader.astray == {}


def test_silence_is_measured_against_each_ttl_of_its_own() -> None:
    """Silent for 0.8 of a second: what is registered with a ttl of a second is suspect, what has a minute is not."""
    rig = Rig()
    link = rig.link(A)
    rig.register(link, "short", ttl=1.0)
    rig.register(link, "long", ttl=60.0)
    session = link.session
    assert session is not None
    rig.dispatch.propose_expiries([Silent(session, 1_000, session.stamp_us, final=False)])
    assert rig.suspects.of(ORDERS) == ["short"]
    rig.dispatch.propose_expiries([Silent(session, 60_000, session.stamp_us, final=False)])
    assert rig.suspects.of(ORDERS) == ["short", "long"]
    assert rig.dispatch.writes == [], "nobody is removed for that"


def lose(rig: Rig, links: list[Link], *, within_us: int) -> None:
    for link in links:
        rig.dispatch.closed(link)
        rig.dispatch.now_us += within_us // len(links)
        rig.suspects.wake(rig.dispatch.now_us)


def crowd(rig: Rig, count: int) -> list[Link]:
    links = [rig.link(number.to_bytes(16, "big")) for number in range(count)]
    for number, link in enumerate(links):
        rig.register(link, f"i{number}")
    return links


def test_many_that_lose_their_connection_together_are_not_hinted_at() -> None:
    """Thirty of a hundred in 200 ms: no hint, also not later; a single one ten seconds after that is one (U3)."""
    rig = Rig()
    links = crowd(rig, 100)
    lose(rig, links[:30], within_us=200_000)
    rig.suspects.wake(rig.dispatch.now_us + 10 * CLOSED_US)
    assert len(rig.suspects) == 0
    rig.dispatch.now_us += 10_000_000
    doubt(rig, links[50])
    assert rig.suspects.of(ORDERS) == ["i50"]


def test_a_few_a_fifth_or_one_after_the_other_are_hinted_at() -> None:
    """Nineteen of twenty, twenty of a hundred, thirty of a hundred over two seconds: each is suspect; one client that reconnects again and
    again is one session (U3)."""
    for count, lost, within_us in ((20, TOGETHER_MIN - 1, 0), (100, 20, 0), (100, 30, 2 * TOGETHER_US)):
        rig = Rig()
        lose(rig, crowd(rig, count)[:lost], within_us=within_us)
        rig.suspects.wake(rig.dispatch.now_us + CLOSED_US)
        assert len(rig.suspects) == lost, (count, lost)
    rig = Rig()
    crowd(rig, 5)
    for attempt in range(2, 2 + 2 * TOGETHER_MIN):
        rig.dispatch.closed(rig.link(bytes(16), attempt=attempt))
    rig.suspects.wake(CLOSED_US)
    assert rig.suspects.of(ORDERS) == ["i0"]


def test_a_long_list_of_suspects_is_told_in_pages() -> None:
    """A session with 1,200 instances: three hints of at most 512 ids, which any reader accepts."""
    rig = Rig(Limits(history_ops_max=10_000))
    link, reader = rig.link(A), rig.link(b"")
    for number in range(1_200):
        rig.give(link, register(f"i{number}"))
    rig.commit()
    rig.say(reader, Subscribe(ORDERS))
    doubt(rig, link)
    hints = told(rig, reader)
    assert [len(hint.instance_ids) for hint in hints] == [512, 512, 176]
    assert [each for hint in hints for each in hint.instance_ids] == [f"i{number}" for number in range(1_200)]


def test_any_frame_ends_the_doubt() -> None:
    """A heartbeat, a lookup or a question for the status: the client lives."""
    for message in (Heartbeat(0, 0), Lookup(ORDERS), AskStatus()):
        rig = Rig()
        link = rig.link(A)
        rig.register(link)
        session = link.session
        assert session is not None
        rig.suspects.note_silent(session, 5_000)
        assert len(rig.suspects) == 1
        rig.give(link, message)
        assert len(rig.suspects) == 0
