"""Which links a node keeps: whom it dials and when, which of two links stays, who is let in, who is silent; and mutants of it.

The machine at the end plays two nodes and everything that lies between them: any number of links on their way at once, whatever one
side says reaching the other at any later moment, links that break, nodes that start again. It is run with mutants too.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import ClassVar, Final

import attrs
import pytest
from hypothesis import Phase as Stage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from govern.core import peering
from govern.core.peering import Complaints, Peering, PeerLink, Phase, Silence, Step, is_of_one_cluster, judge, judge_cluster
from govern.messages import Message
from govern.peer_messages import PEER_PROTOCOL_VERSION, ClusterFormed, Member, PeerHello, PeerRefused, Ping

BLUE: Final = b"the blue cluster"
RED: Final = b"the red cluster!"
PATIENCE: Final = peering.PATIENCE_SECONDS
ROLLED_BACK: Final = (
    "node 2 says that this is its start number 5, but number 6 was here before: its data directory was rolled back; start it with an empty "
    "one, then: govern members remove 2 and add 2 for a candidate, govern reset 2 for what was in its slots"
)


def hello_of(node_id: int, *, boot_no: int = 1, disk: int | None = None, cluster_id: bytes = b"", protocol: int = 1) -> PeerHello:
    disk_id = (node_id if disk is None else disk).to_bytes(16)
    return PeerHello(protocol, cluster_id, node_id, disk_id, boot_no, True, f"node{node_id}:7401", f"node{node_id}:7400", (1, 2, 3))


class Recorder:
    """Chance that keeps what it was asked for, and always draws the largest."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.asked.append((a, b))
        return b


@attrs.define
class One:
    """One node alone, with the time in hand."""

    me: int
    now: float = 0.0
    chance: Recorder = attrs.field(factory=Recorder)
    hello: PeerHello = attrs.field(init=False)
    peering: Peering = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.hello = hello_of(self.me)
        self.peering = Peering(self.chance)

    def know(self, *node_ids: int) -> None:
        self.peering.set_peers(self.me, {node_id: f"node{node_id}:7401" for node_id in node_ids}, self.now)

    def dial(self) -> list[PeerLink]:
        due = self.peering.take_due(self.me, self.now)
        self.peering.validate()
        return due

    def hear(self, link: PeerLink, message: Message) -> Step:
        step = self.peering.greet(link, message, self.hello, self.now)
        self.peering.validate()
        return step

    def end(self, link: PeerLink) -> bool:
        was_up = self.peering.end(link, self.now)
        self.peering.validate()
        return was_up

    def link_up(self, hello: PeerHello, link: PeerLink | None = None) -> PeerLink:
        """A link that is up, accepted unless one is given."""
        link = PeerLink(None, "") if link is None else link
        step = self.hear(link, hello)
        if self.me < hello.node_id:
            assert (step, link.phase) == (Step(), Phase.OFFERED)
            step = self.hear(link, Ping())
        assert step.up
        return link


# --- whom to dial -----------------------------------------------------------------------------------------------------------


def test_the_larger_id_dials_at_once_and_the_smaller_when_it_was_alone_for_a_while() -> None:
    """Node 2 of 1, 2, 3 dials 1 at once and 3 after two seconds; it never dials itself, nor anybody twice at once."""
    node = One(2)
    node.know(1, 2, 3)
    assert node.peering.next_due(2) == 0
    assert [(link.node_id, link.address, link.dialled) for link in node.dial()] == [(1, "node1:7401", True)]
    assert (node.dial(), node.peering.next_due(2)) == ([], PATIENCE)
    node.now = PATIENCE
    assert [link.node_id for link in node.dial()] == [3]
    assert node.peering.next_due(2) == math.inf


def test_the_smaller_id_leaves_the_dialling_to_the_larger_again_after_a_link() -> None:
    """When a link is lost, the smaller id waits two seconds from then on; while there is a link, nobody dials."""
    node = One(1)
    node.know(2)
    link = node.link_up(hello_of(2))
    node.now = 100.0
    assert (node.dial(), node.peering.next_due(1)) == ([], math.inf)
    assert node.end(link)
    assert (node.dial(), node.peering.next_due(1)) == ([], 100 + PATIENCE)
    node.now = 100 + PATIENCE
    assert len(node.dial()) == 1


def test_pauses_double_up_to_a_second_and_start_small_after_a_good_link() -> None:
    """Each failure in a row doubles the bound of the pause, up to its maximum; after a link of two seconds it is the smallest again, and
    after a shorter one it is not."""
    node = One(2)
    node.know(1)
    for _ in range(6):
        (link,) = node.dial()
        assert not node.end(link)
        assert node.dial() == []
        node.now = node.peering.next_due(2)
    assert node.chance.asked == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.8), (0, 1.0), (0, 1.0)]
    for seconds, bound in ((0.5, 1.0), (peering.STEADY_SECONDS, 0.1)):
        (link,) = node.dial()
        node.link_up(hello_of(1), link)
        node.now += seconds
        assert node.end(link)
        assert node.chance.asked[-1][1] == bound
        node.now = node.peering.next_due(2)


def test_the_list_of_nodes_may_change() -> None:
    """A node with a new address is dialled there at once, one that is gone or has no address is not; its link stays."""
    node = One(5)
    node.know(1, 2)
    one, two = node.dial()
    node.end(two)
    node.peering.set_peers(5, {1: "node1:7401", 2: "elsewhere:7401", 3: "", 5: "node5:7401"}, node.now)
    (again,) = node.dial()
    assert (again.node_id, again.address) == (2, "elsewhere:7401")
    node.link_up(hello_of(1), one)
    node.know()
    assert list(node.peering.linked()) == [1]
    node.end(again)
    node.end(one)
    assert (node.dial(), node.peering.next_due(5), repr(node.peering)) == ([], math.inf, "<Peering up=[] known=[]>")


def test_several_addresses_of_one_node_are_tried_in_turn() -> None:
    """The table and the configuration may say different things, and either may be the old one."""
    peering = Peering(random.Random(1))
    peering.set_peers(5, {1: "old:7401,new:7401"}, 0.0)
    now, tried = 0.0, []
    for _ in range(4):
        (link,) = peering.take_due(5, now)
        tried.append(link.address)
        peering.end(link, now)
        now = peering.next_due(5)
    assert tried == ["old:7401", "new:7401", "old:7401", "new:7401"]
    peering.validate()


def test_ending_twice_is_ending_once() -> None:
    """The second end of a link changes nothing, also when there is a newer one."""
    node = One(2)
    node.know(1)
    (link,) = node.dial()
    node.link_up(hello_of(1), link)
    assert node.end(link)
    newer = node.link_up(hello_of(1))
    assert (node.end(link), node.peering.linked(), newer.phase) == (False, {1: hello_of(1)}, Phase.UP)


# --- the handshake ----------------------------------------------------------------------------------------------------------


def test_the_larger_id_chooses_with_the_hello_the_smaller_one_waits_for_its_word() -> None:
    """For the larger id the link is up with the Hello of the other; for the smaller one with what comes behind that."""
    larger, smaller = One(2), One(1)
    assert larger.hear(PeerLink(None, ""), smaller.hello) == Step(up=True)
    for word in (Ping(), ClusterFormed(BLUE)):
        link = PeerLink(None, "")
        assert smaller.hear(link, larger.hello) == Step()
        assert (link.phase, smaller.peering.linked()) == (Phase.OFFERED, {})
        assert smaller.hear(link, word).up
        smaller.end(link)


def test_the_larger_id_keeps_its_link_and_refuses_a_second_one() -> None:
    """A second Hello of the same life is refused, whoever dialled the link; the first link stays up."""
    node = One(2)
    node.know(1)
    (dialled,) = node.dial()
    accepted = node.link_up(hello_of(1))
    step = node.hear(dialled, hello_of(1))
    assert step.refusal is not None
    assert (step.refusal.code, step.up, accepted.phase) == ("duplicate", False, Phase.UP)
    assert not node.end(dialled)
    assert (node.dial(), list(node.peering.linked())) == ([], [1])


def test_the_smaller_id_follows_the_choice_of_the_larger() -> None:
    """What the larger one chose last replaces what was up before."""
    node = One(1)
    first = node.link_up(hello_of(2))
    second = PeerLink(None, "")
    assert node.hear(second, hello_of(2)) == Step()
    assert node.hear(second, Ping()) == Step(up=True, replaced=first)
    assert (first.phase, second.phase, node.end(first)) == (Phase.OVER, Phase.UP, False)


@pytest.mark.parametrize("me", [1, 3])
def test_a_later_life_replaces_an_earlier_one_and_never_the_other_way_round(me: int) -> None:
    """A later boot and another disk take the place of the link at once; an earlier boot of the same disk is refused."""
    node = One(me)
    old = node.link_up(hello_of(2, boot_no=5))
    new = node.link_up(hello_of(2, boot_no=6))
    assert (old.phase, node.peering.linked()) == (Phase.OVER, {2: hello_of(2, boot_no=6)})
    step = node.hear(PeerLink(None, ""), hello_of(2, boot_no=5))
    assert step.refusal is not None
    assert (step.refusal.code, step.refusal.text) == ("rolled_back", ROLLED_BACK)
    assert new.phase is Phase.UP
    node.link_up(hello_of(2, boot_no=1, disk=77))
    assert (new.phase, node.peering.linked()) == (Phase.OVER, {2: hello_of(2, boot_no=1, disk=77)})


def test_the_choice_of_an_earlier_life_that_comes_late_is_not_followed() -> None:
    """Two links are offered to the smaller id, one by an earlier boot: whichever choice comes last, the later boot stays."""
    node = One(1)
    old, new = PeerLink(None, ""), PeerLink(None, "")
    node.hear(old, hello_of(2, boot_no=5))
    node.hear(new, hello_of(2, boot_no=6))
    assert node.hear(new, Ping()).up
    assert "another life" in node.hear(old, Ping()).failure


def test_a_boot_number_below_the_one_of_the_metadata_is_refused() -> None:
    """Also where no link ever was; a link that is up ends, and the highest number counts, wherever it was learned."""
    node = One(3)
    link = node.link_up(hello_of(2, boot_no=5))
    assert node.peering.outlived() == []
    node.peering.set_boots({Member(2, hello_of(2).disk_id): 5, Member(1, hello_of(1).disk_id): 7})
    assert node.peering.outlived() == []
    node.peering.set_boots({Member(2, hello_of(2).disk_id): 6, Member(1, hello_of(1).disk_id): 7})
    assert node.peering.outlived() == [link]
    step = node.hear(PeerLink(None, ""), hello_of(1, boot_no=6))
    assert step.refusal is not None
    assert step.refusal.code == "rolled_back"
    assert node.hear(PeerLink(None, ""), hello_of(1, boot_no=7)).up
    assert node.hear(PeerLink(None, ""), hello_of(1, boot_no=1, disk=99)).up, "another disk is another story"


def test_the_number_that_a_former_link_told_is_remembered() -> None:
    """As long as the node is known; a stranger's is forgotten with its link."""
    for is_known in (True, False):
        node = One(3)
        if is_known:
            node.know(2)
        node.end(node.link_up(hello_of(2, boot_no=5)))
        step = node.hear(PeerLink(None, ""), hello_of(2, boot_no=4))
        assert (step.refusal is not None) == is_known


@pytest.mark.parametrize("me", [1, 3])
def test_two_lives_with_one_number_are_both_refused(me: int) -> None:
    """And the next start of either is let in again. A second link of the same life is not a second life."""
    node = One(me)
    node.know(2)
    first = node.link_up(attrs.evolve(hello_of(2, boot_no=5), life=b"one life".ljust(16)))
    assert node.peering.outlived() == []
    step = node.hear(PeerLink(None, ""), attrs.evolve(hello_of(2, boot_no=5), life=b"another".ljust(16)))
    assert step.refusal is not None
    assert step.refusal.code == "cloned"
    assert node.peering.outlived() == [first]
    node.end(first)
    again = node.hear(PeerLink(None, ""), attrs.evolve(hello_of(2, boot_no=5), life=b"one life".ljust(16)))
    assert again.refusal is not None
    assert again.refusal.code == "cloned"
    node.link_up(attrs.evolve(hello_of(2, boot_no=6), life=b"the next".ljust(16)))
    assert node.peering.outlived() == []


@pytest.mark.parametrize("code", ["rolled_back", "cloned"])
def test_who_is_refused_for_its_life_where_it_dialled_is_out(code: str) -> None:
    """In the handshake or behind it: nobody is dialled any more, and every link ends."""
    for is_up in (False, True):
        node = One(3)
        node.know(1, 2)
        up = node.link_up(hello_of(2))
        (link,) = node.dial()
        refusal = PeerRefused(code, "there was a later one")
        if is_up:
            node.link_up(hello_of(1), link)
            node.peering.refused(link, refusal)
        else:
            assert node.hear(link, refusal).failure
        assert node.peering.expelled == "there was a later one"
        assert node.peering.outlived() == ([link, up] if is_up else [up])
        for each in (up, link):
            node.end(each)
        assert (node.dial(), node.peering.next_due(3)) == ([], math.inf)


def test_a_stranger_is_not_believed_that_this_node_was_rolled_back() -> None:
    """It could be anybody. The nodes that are known are asked at once, also by the smaller id; another refusal says nothing of a life."""
    node = One(1)
    node.know(2, 3)
    assert node.hear(PeerLink(None, ""), PeerRefused("overloaded", "no room")).failure
    assert node.dial() == []
    assert node.hear(PeerLink(None, ""), PeerRefused("rolled_back", "there was a later one")).failure
    assert node.peering.expelled == ""
    assert [link.node_id for link in node.dial()] == [2, 3]


@pytest.mark.parametrize(
    ("first", "second"),
    [(Ping(), None), (ClusterFormed(BLUE), None), (PeerRefused("cluster", "not ours"), None), (hello_of(2), hello_of(2))],
)
def test_words_at_the_wrong_time_end_the_link(first: Message, second: Message | None) -> None:
    """A first word that is no Hello, a second Hello and a refusal bring no link up."""
    node, link = One(1), PeerLink(None, "")
    step = node.hear(link, first)
    if second is not None:
        step = node.hear(link, second)
    assert step.failure
    assert not step.up


@pytest.mark.parametrize(
    ("other", "expected", "code"),
    [
        (hello_of(1), None, None),
        (hello_of(1), 1, None),
        (hello_of(1, cluster_id=BLUE), None, None),
        (hello_of(1, cluster_id=bytes(16)), None, None),
        (hello_of(1, protocol=PEER_PROTOCOL_VERSION + 1), None, None),
        (hello_of(1, cluster_id=RED), None, "cluster"),
        (hello_of(1, protocol=0), None, "protocol"),
        (hello_of(2), None, "identity"),
        (hello_of(2, disk=9), None, "identity"),
        (hello_of(1), 3, "identity"),
        (hello_of(0), None, "identity"),
        (hello_of(65_536), None, "identity"),
    ],
)
def test_who_is_let_in(other: PeerHello, expected: int | None, code: str | None) -> None:
    """Node 2 of the blue cluster lets in who is of it or of none, who is the one that it dialled, and whose protocol it speaks."""
    refusal = judge(hello_of(2, cluster_id=BLUE), other, expected)
    assert (None if refusal is None else refusal.code) == code
    assert judge(hello_of(2), hello_of(1, cluster_id=RED), None) is None


def test_who_has_found_its_cluster_is_of_it_for_good() -> None:
    """P7: whoever belonged to none may say once to which it belongs by now; that it is another one is no word of ours."""
    node, mine = One(3), hello_of(3, cluster_id=BLUE)
    for node_id in (1, 2):
        link = node.link_up(hello_of(node_id))
        assert link.hello is not None
        assert not is_of_one_cluster(node.hello, link.hello), "of none are not of one"
        assert not is_of_one_cluster(mine, link.hello)
        assert judge_cluster(mine, link.hello) is None
        cluster_id = (RED, BLUE)[node_id - 1]
        assert node.peering.told(link, cluster_id) is None
        assert node.peering.told(link, cluster_id) is None
        assert node.peering.linked()[node_id].cluster_id == cluster_id
        assert is_of_one_cluster(mine, link.hello) == (node_id == 2)
        refusal = judge_cluster(mine, link.hello)
        assert (refusal is None) == (node_id == 2)
        assert "it belonged to cluster" in str(node.peering.told(link, b"a yellow cluster"))
        assert node.peering.linked()[node_id].cluster_id == cluster_id


def test_strangers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many nodes that are in no table may have links, and those that are known come in all the same."""
    monkeypatch.setattr(peering, "STRANGERS_MAX", 2)
    node = One(9)
    node.know(1)
    for node_id in (2, 3, 1):
        node.link_up(hello_of(node_id))
    step = node.hear(PeerLink(None, ""), hello_of(4))
    assert step.refusal is not None
    assert step.refusal.code == "overloaded"


# --- silence and complaints -------------------------------------------------------------------------------------------------


@given(st.integers(0, 50))
def test_silence_is_so_many_ticks_without_a_word(before: int) -> None:
    """Ticks that follow a sign of life closely never add up; ten without one are silence."""
    silence = Silence()
    for _ in range(before):
        assert not silence.tick()
        silence.heard()
    told = [silence.tick() for _ in range(peering.SILENT_TICKS_MAX)]
    assert told == [False] * (peering.SILENT_TICKS_MAX - 1) + [True]
    assert peering.PING_SECONDS * 3 < peering.SILENT_TICKS_MAX * peering.TICK_SECONDS <= 2


def test_a_cause_is_told_once_a_minute_and_inventing_causes_does_not_help() -> None:
    """The same of the same node within a minute is not told again; nor is more than so much of anything."""
    complaints = Complaints()
    assert [complaints.is_new("node 1", "silent", now) for now in (0, 1, 59, 60, 61)] == [True, False, False, True, False]
    assert complaints.is_new("node 2", "silent", 61)
    told = sum(complaints.is_new("somebody", f"cause {number}", 62) for number in range(10_000))
    assert told == peering.COMPLAINTS_MAX - 2
    assert complaints.is_new("somebody", "cause 9999", 123)


# --- two nodes and what lies between ----------------------------------------------------------------------------------------


class End:
    """One node's side of one connection: what is on its way to it, and its link."""

    def __init__(self, link: PeerLink) -> None:
        self.link = link
        self.coming: deque[Message | None] = deque()  # None: the end of the stream
        self.other: End

    def say(self, message: Message | None) -> None:
        if not (self.other.coming and self.other.coming[-1] is None):
            self.other.coming.append(message)


class Node:
    """A shell around the rules, as thin as can be; `events` are its ups and downs."""

    def __init__(self, kind: type[Peering], me: int) -> None:
        self.kind = kind
        self.me = me
        self.boot_no = 0
        self.events: list[str] = []
        self.start()

    def start(self) -> None:
        self.boot_no += 1
        self.hello = hello_of(self.me, boot_no=self.boot_no)
        self.peering = self.kind(random.Random(f"{self.me} {self.boot_no}"))
        self.ends: dict[PeerLink, End] = {}
        self.up: End | None = None
        self.events.append("start")

    def open(self, end: End) -> None:
        self.ends[end.link] = end
        if not end.link.dialled:
            end.say(self.hello)

    def hear(self, end: End, now: float) -> None:
        message = end.coming.popleft()
        if end.link not in self.ends:
            return
        if message is None:
            self.close(end, now)
        elif end.link.phase is Phase.UP:
            if isinstance(message, PeerRefused):
                self.close(end, now)
        else:
            self.greet(end, message, now)

    def greet(self, end: End, message: Message, now: float) -> None:
        step = self.peering.greet(end.link, message, self.hello, now)
        if end.link.dialled and isinstance(message, PeerHello) and step.refusal is None and not step.failure:
            end.say(self.hello)
        if step.refusal is not None:
            end.say(step.refusal)
            self.close(end, now)
        elif step.failure:
            self.close(end, now)
        elif step.up:
            if step.replaced is not None:
                self.events.append("down")
                self.up = None
                self.close(self.ends[step.replaced], now)
            assert self.up is None, f"node {self.me} has two links to the other one"
            self.events.append("up")
            self.up = end
            end.say(Ping())

    def close(self, end: End, now: float) -> None:
        del self.ends[end.link]
        end.say(None)
        if self.peering.end(end.link, now):
            self.events.append("down")
            self.up = None

    def check(self) -> None:
        self.peering.validate()
        linked = self.up is not None
        assert linked == bool(self.peering.linked())
        lives = " ".join(self.events).split("start")[1:]
        for life in lives:
            told = life.split()
            assert told == ["up", "down"] * (len(told) // 2) + ["up"] * (len(told) % 2), f"node {self.me} told {told}"
        assert linked == (self.events[-1] == "up"), f"node {self.me} told {self.events[-1]} last"


class TwoNodes(RuleBasedStateMachine):
    """Nodes 1 and 2, who know each other's address."""

    peering_type: ClassVar[type[Peering]] = Peering

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.nodes = (Node(self.peering_type, 1), Node(self.peering_type, 2))
        self.disturbed = False
        self.pairs: list[tuple[End, End]] = []  # the end of node 1, the end of node 2
        for node in self.nodes:
            self.know(node)

    def know(self, node: Node) -> None:
        other = 3 - node.me
        node.peering.set_peers(node.me, {other: f"node{other}:7401"}, self.now)

    def coming(self) -> list[tuple[Node, End]]:
        return [(self.nodes[side], pair[side]) for pair in self.pairs for side in (0, 1) if pair[side].coming]

    def dial_all_due(self) -> None:
        for side, node in enumerate(self.nodes):
            for link in node.peering.take_due(node.me, self.now):
                ends = [End(PeerLink(None, "")), End(PeerLink(None, ""))]
                ends[side].link = link
                ends[0].other, ends[1].other = ends[1], ends[0]
                self.pairs.append((ends[0], ends[1]))
                for each, end in zip(self.nodes, ends, strict=True):
                    each.open(end)

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 2.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.dial_all_due()

    @precondition(lambda self: self.coming())
    @rule(data=st.data())
    def something_arrives(self, data: st.DataObject) -> None:
        node, end = data.draw(st.sampled_from(self.coming()))
        node.hear(end, self.now)

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), lost=st.booleans())
    def a_connection_breaks(self, data: st.DataObject, lost: bool) -> None:
        self.disturbed = True
        for end in data.draw(st.sampled_from(self.pairs)):
            if lost:
                end.coming.clear()
            end.other.say(None)

    @rule(side=st.sampled_from([0, 1, None, None, None, None]))
    def a_node_starts_again(self, side: int | None) -> None:
        if side is None:  # rarely, or nothing in a run would be older than a few steps
            return
        self.disturbed = True
        for pair in self.pairs:
            pair[side].coming.clear()
            pair[side].say(None)
        self.nodes[side].start()
        self.know(self.nodes[side])

    @invariant()
    def each_node_has_one_link_at_most(self) -> None:
        for node in self.nodes:
            node.check()

    @invariant()
    def nothing_goes_down_without_cause(self) -> None:
        assert self.disturbed or all("down" not in node.events for node in self.nodes), "a link was given up for another one"

    def teardown(self) -> None:
        for _ in range(20):
            while self.coming():
                for node, end in self.coming():
                    node.hear(end, self.now)
                    node.check()
            if all(node.up is not None for node in self.nodes):
                break
            self.now += 1.0
            self.dial_all_due()
        one, two = (node.up for node in self.nodes)
        assert one is not None, "node 1 has no link in the end"
        assert two is not None, "node 2 has no link in the end"
        assert one.other is two, "the nodes keep different links"
        assert [len(node.ends) for node in self.nodes] == [1, 1], "a second link is open"


TwoNodes.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_two_nodes_end_with_one_link_that_both_know = TwoNodes.TestCase


def cross_in_every_order(peering_type: type[Peering]) -> int:
    """Both nodes dial in the same moment, and then everything that is said arrives, in each possible order; how many there are."""

    class Crossing(TwoNodes):
        pass

    Crossing.peering_type = peering_type
    orders = 0
    choices: list[list[int]] = []  # which arrived, of how many that could: the next order is the next number in that base
    while True:
        world = Crossing()
        world.now = PATIENCE
        world.dial_all_due()
        assert len(world.pairs) == 2
        step = 0
        while coming := world.coming():
            if step == len(choices):
                choices.append([0, len(coming)])
            node, end = coming[choices[step][0]]
            node.hear(end, world.now)
            world.each_node_has_one_link_at_most()
            world.nothing_goes_down_without_cause()
            step += 1
        assert all(node.up is not None for node in world.nodes), "a node has no link although nothing broke"
        world.teardown()
        orders += 1
        while choices and choices[-1][0] + 1 == choices[-1][1]:
            choices.pop()
        if not choices:
            return orders
        choices[-1][0] += 1


def test_two_links_that_cross_in_every_order() -> None:
    """Whatever arrives first, both nodes keep one link, the same, and never give it up for the other."""
    assert cross_in_every_order(Peering) > 100


# --- mutants ----------------------------------------------------------------------------------------------------------------


class KeepsBoth(Peering):
    """A second link comes up beside the first."""

    def _judge_life(self, mine: PeerHello, other: PeerHello) -> PeerRefused | None:
        return None

    def _bring_up(self, link: PeerLink, now: float) -> Step:
        return attrs.evolve(super()._bring_up(link, now), replaced=None)


class NobodyChooses(Peering):
    """Each side takes what comes first."""

    @staticmethod
    def chooses(mine: PeerHello, other: PeerHello) -> bool:
        return True


class NewestWins(Peering):
    """The larger id takes the newest link instead of keeping the one that it has."""

    def _judge_life(self, mine: PeerHello, other: PeerHello) -> PeerRefused | None:
        return None


class MissesDown(Peering):
    """The end of a link is not told."""

    def end(self, link: PeerLink, now: float) -> bool:
        super().end(link, now)
        return False


class ForgetsToDial(Peering):
    """A link that was up and is lost is not dialled again."""

    def end(self, link: PeerLink, now: float) -> bool:
        was_up = super().end(link, now)
        if was_up and link.node_id in self._peers:
            self._peers[link.node_id].retry_at = math.inf
        return was_up


@pytest.mark.parametrize("mutant", [KeepsBoth, NobodyChooses, NewestWins])
def test_mutants_of_the_choice_are_found(mutant: type[Peering]) -> None:
    """Each way to break the choice fails in some order of two links that cross."""
    with pytest.raises(AssertionError):
        cross_in_every_order(mutant)


@pytest.mark.parametrize("mutant", [KeepsBoth, MissesDown, ForgetsToDial])
def test_mutants_are_found_by_the_machine(mutant: type[Peering]) -> None:
    """Two links, a loss that is not told and a link that does not come back fail the machine."""

    class Broken(TwoNodes):
        peering_type = mutant

    unshrunk = settings(max_examples=200, stateful_step_count=40, report_multiple_bugs=False, phases=[Stage.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Broken, settings=unshrunk)
