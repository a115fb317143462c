"""Resync: what a client is told of the leases it names, page by page."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from govern.core.links import Link
from govern.messages import PAGE_ITEMS_MAX, Deregister, Evict, Register, Registered, Resync, ResyncOk
from govern.model import LSN_ZERO, Lsn, ServiceKey

from .rig import ORDERS, A, B, Rig, code_of, register

OTHER = ServiceKey("default", "other")


def row(identity: str, lease_id: Lsn, service: ServiceKey = ORDERS) -> list[Any]:
    return [*service, identity, *lease_id]


def key(identity: str, service: ServiceKey = ORDERS) -> list[str]:
    return [*service, identity]


def resync(rig: Rig, link: Link, rows: list[list[Any]], *, more: bool = False) -> ResyncOk:
    (answer,) = rig.say(link, Resync(rows, more))
    assert isinstance(answer, ResyncOk), answer
    return answer


def test_what_both_sides_agree_on_is_in_no_list_and_nothing_is_written() -> None:
    """Ten leases, all held as named: four empty lists and no operation (Y1, Y2)."""
    rig = Rig()
    link = rig.link(A)
    rows = [row(f"i{number}", rig.register(link, f"i{number}")) for number in range(10)]
    assert resync(rig, link, rows) == ResyncOk([], [], [], [])
    assert rig.dispatch.writes == []


def test_each_difference_is_named_for_what_it_is() -> None:
    """Nothing there, held under another lease, held by another session under an older one: register again. Held by another session under a
    newer lease: superseded. Barred: evicted, also when another session has the id now. Held and not named: extra, with its lease."""
    rig = Rig()
    link, rival = rig.link(A), rig.link(B)
    rig.register(link, "renewed")
    rig.register(rival, "older")
    taken = rig.register(link, "taken")
    rig.register(rival, "taken")
    thrown = rig.register(link, "thrown")
    also = rig.register(link, "also")
    forgotten = rig.register(link, "forgotten")
    for identity in ("thrown", "also"):
        rig.give(rival, Evict(ORDERS, identity))
    rig.commit()
    rig.register(rival, "also")
    rig.said(link)
    rows = [row("nowhere", Lsn(1, 99)), row("renewed", Lsn(1, 77)), row("older", Lsn(9, 9)), row("taken", taken), row("thrown", thrown)]
    assert resync(rig, link, [*rows, row("also", also)]) == ResyncOk(
        [key("nowhere"), key("renewed"), key("older")], [key("taken")], [key("thrown"), key("also")], [row("forgotten", forgotten)]
    )


def test_extra_looks_back_over_all_pages_since_the_last_one() -> None:
    """Leases named on earlier pages are not extra, a lease that was granted or ended between two pages is judged as it is then, and a
    second resync starts from nothing (Y3)."""
    rig = Rig()
    link = rig.link(A)
    leases = {f"i{number}": rig.register(link, f"i{number}") for number in range(4)}
    assert resync(rig, link, [row("i0", leases["i0"])], more=True) == ResyncOk([], [], [], [])
    rig.give(link, Deregister(ORDERS, "i3", leases["i3"]))
    rig.commit()
    rig.said(link)
    late = rig.register(link, "late")
    assert resync(rig, link, [row("i1", leases["i1"])]) == ResyncOk([], [], [], [row("i2", leases["i2"]), row("late", late)])
    assert resync(rig, link, []).extra == [row("i0", leases["i0"]), row("i1", leases["i1"]), row("i2", leases["i2"]), row("late", late)]


def test_extra_is_one_page_at_most() -> None:
    """The rest of what a client does not know is named by the next resync, when the first part is gone."""
    rig = Rig()
    link = rig.link(A)
    for number in range(PAGE_ITEMS_MAX + 5):
        rig.give(link, register(f"i{number}"))
    rig.commit()
    rig.said(link)
    first = resync(rig, link, []).extra
    assert len(first) == PAGE_ITEMS_MAX
    for _, _, identity, term, seq in first:
        rig.give(link, Deregister(ORDERS, identity, Lsn(term, seq)))
    rig.commit()
    rig.said(link)
    assert [each[2] for each in resync(rig, link, []).extra] == [f"i{number}" for number in range(PAGE_ITEMS_MAX, PAGE_ITEMS_MAX + 5)]


def test_pages_without_end_cost_no_more_than_the_leases_of_the_session() -> None:
    """Of thousands of leases that are not held, or that came and went, page after page, only those that are held are remembered (Y4)."""
    rig = Rig()
    link = rig.link(A)
    for turn in range(30):
        lease_id = rig.register(link, "comes-and-goes")
        kept = rig.register(link, f"kept{turn % 2}")
        resync(rig, link, [row("comes-and-goes", lease_id), row(f"kept{turn % 2}", kept)], more=True)
        resync(rig, link, [row(f"x{turn}-{number}", Lsn(1, 1)) for number in range(PAGE_ITEMS_MAX)], more=True)
        rig.give(link, Deregister(ORDERS, "comes-and-goes", lease_id))
        rig.commit()
        rig.said(link)
        assert len(link.named) <= 3


def test_a_page_while_the_node_is_loading_waits_for_the_state() -> None:
    """It is parked like any other request, and answered from what was loaded, not from nothing (E6)."""
    rig = Rig(loaded=False)
    link = rig.link(A)
    request_id = rig.give(link, Resync([row("i1", Lsn(1, 1))], False))
    assert rig.said(link) == []
    op_link = Rig()
    lease_id = op_link.register(op_link.link(A))
    assert lease_id == Lsn(1, 1)
    for number in op_link.shard.slot_numbers():
        rig.shard.load_block(op_link.shard.block(number))
    rig.shard.loaded = True
    rig.dispatch.release_parked(10)
    assert rig.said(link) == [(ResyncOk([], [], [], []), request_id)]


@pytest.mark.parametrize(
    "leases",
    [
        [["default", "orders", "i1", 1]],
        [["default", "orders", "i1", 1, 1, 1]],
        [["default", "orders", "i1", 1, -1]],
        [["default", "orders", "i1", True, 1]],
        [["default", "orders", "i1", 1.0, 1]],
        ["default"],
        [row("i1", LSN_ZERO)] * (PAGE_ITEMS_MAX + 1),
        {},
        None,
    ],
)
def test_a_malformed_page_closes_the_connection(leases: Any) -> None:
    """Rows of the wrong shape, or more of them than a page has: `protocol`, and nothing else happens (FR6)."""
    rig = Rig()
    link = rig.link(A)
    rig.dispatch.receive(link, [Resync.TYPE, 5, leases, False])
    assert link in rig.dispatch.to_close
    assert link.named == {}


def test_a_name_that_cannot_be_is_refused_and_the_connection_lives() -> None:
    """Like everywhere: a wrong value is `invalid`; nothing of the page is remembered."""
    rig = Rig()
    link = rig.link(A)
    lease_id = rig.register(link)
    assert code_of(rig.say(link, Resync([row("i1", lease_id), ["default", "orders", "no blank", 1, 1]], True))) == "invalid"
    assert link.closing is None
    assert resync(rig, link, []).extra == [row("i1", lease_id)]


def test_without_a_session_there_is_nothing_to_compare() -> None:
    """Refused as invalid, and the connection lives."""
    rig = Rig()
    assert code_of(rig.say(rig.link(b""), Resync([], False))) == "invalid"


steps = st.lists(st.tuples(st.sampled_from(["register", "steal", "deregister", "evict", "forget"]), st.integers(0, 3)), max_size=12)


@given(steps, st.integers(1, 3))
@settings(max_examples=150)
def test_doing_what_resync_says_makes_both_sides_equal(history: list[tuple[str, int]], page_size: int) -> None:
    """Whatever was lost on either side: after the client has registered the unknown, given up the superseded and evicted, and removed the
    extra, it believes in exactly what the node holds for it, and nothing it was to register again is refused."""
    rig = Rig()
    link, rival = rig.link(A), rig.link(B)
    believed: dict[str, Lsn] = {}
    for kind, number in history:
        identity = f"i{number}"
        if kind == "register":
            for lease_id in registered(rig, link, register(identity)):
                believed[identity] = lease_id
        elif kind == "steal":
            registered(rig, rival, register(identity))
        elif kind == "evict":
            rig.give(rival, Evict(ORDERS, identity))
        elif kind == "deregister" and identity in believed:
            rig.give(link, Deregister(ORDERS, identity, believed[identity]))  # its answer is lost
        elif kind == "forget":
            believed.pop(identity, None)
        rig.commit()
        rig.said(link)
    rows = [row(identity, lease_id) for identity, lease_id in believed.items()]
    pages = [rows[start : start + page_size] for start in range(0, len(rows), page_size)] or [[]]
    for answer in [resync(rig, link, page, more=page is not pages[-1]) for page in pages]:
        for _, _, identity in answer.superseded + answer.evicted:
            del believed[identity]
        for _, _, identity in answer.unknown:
            (believed[identity],) = registered(rig, link, register(identity, prior=believed[identity]))
        for _, _, identity, term, seq in answer.extra:
            rig.give(link, Deregister(ORDERS, identity, Lsn(term, seq)))
            rig.commit()
            rig.said(link)
    session = link.session
    assert session is not None
    assert {identity: lease.lease_id for _, identity, lease in session.leases()} == believed


def registered(rig: Rig, link: Link, message: Register) -> list[Lsn]:
    """The lease that was granted, if one was."""
    rig.give(link, message)
    rig.commit()
    return [answer.lease_id for answer, _ in rig.said(link) if isinstance(answer, Registered)]


IDS = ("i0", "i1", "i2")


class PageMachine(RuleBasedStateMachine):
    """Pages of leases, right and wrong ones, between operations on the same ids; a plain table says what each answer has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.link, self.rival = self.rig.link(A), self.rig.link(B)
        self.held: dict[str, tuple[bytes, Lsn]] = {}
        self.barred: dict[str, None] = {}
        self.named: dict[str, None] = {}

    @rule(identity=st.sampled_from(IDS), mine=st.booleans())
    def register(self, identity: str, mine: bool) -> None:
        for lease_id in registered(self.rig, self.link if mine else self.rival, register(identity)):
            self._lose(identity)
            self.held[identity] = (A if mine else B, lease_id)

    @rule(identity=st.sampled_from(IDS))
    def remove(self, identity: str) -> None:
        if identity in self.held:
            owner, lease_id = self.held[identity]
            self.rig.give(self.link if owner == A else self.rival, Deregister(ORDERS, identity, lease_id))
            self.rig.commit()
            self._lose(identity)

    @rule(identity=st.sampled_from(IDS[:1]))
    def evict(self, identity: str) -> None:
        """Only one id, and only of this session, so that the others stay of interest."""
        if identity in self.held and self.held[identity][0] == A:
            self.rig.give(self.rival, Evict(ORDERS, identity))
            self.rig.commit()
            self.barred[identity] = None
            self._lose(identity)

    def _lose(self, identity: str) -> None:
        self.held.pop(identity, None)

    @rule(
        names=st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from([-1, 0, 1])), max_size=3, unique_by=lambda name: name[0]),
        more=st.booleans(),
    )
    def say_page(self, names: list[tuple[str, int]], more: bool) -> None:
        """Each named under the lease that is there now, or under an older or a newer one."""
        expected: dict[str, list[list[str]]] = {"unknown": [], "superseded": [], "evicted": []}
        rows: list[list[Any]] = []
        for identity, distance in names:
            owner, lease_id = self.held.get(identity, (b"", Lsn(1, 1)))
            said = Lsn(lease_id.term, lease_id.seq + distance)
            rows.append(row(identity, said))
            if owner == A:
                self.named[identity] = None
            if owner != A or distance:
                superseded = owner == B and lease_id > said
                expected["evicted" if identity in self.barred else "superseded" if superseded else "unknown"].append(key(identity))
        self.rig.said(self.link)
        answer = resync(self.rig, self.link, rows, more=more)
        assert {"unknown": answer.unknown, "superseded": answer.superseded, "evicted": answer.evicted} == expected  # Y2
        extra = [] if more else [row(each, lease) for each, (owner, lease) in self.held.items() if owner == A and each not in self.named]
        assert sorted(answer.extra) == sorted(extra)  # Y3
        if not more:
            self.named.clear()

    @invariant()
    def bounded(self) -> None:
        assert self.link.session is not None
        assert len(self.link.named) <= len(IDS)  # Y4: by the leases, not by the pages
        assert not self.rig.dispatch.writes  # Y1
        self.rig.validate()


def test_each_page_is_answered_as_the_table_says() -> None:
    """Whatever is registered, taken, removed and evicted between two pages (Y1 to Y4)."""
    run = settings(max_examples=100, stateful_step_count=25, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(PageMachine, settings=run)
