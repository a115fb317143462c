"""How a cluster begins: random walks of a few nodes with crashes at any point, broken links and wiped directories, and mutants."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from govern.core.bootstrap import Adopt, Bootstrap, Form
from govern.core.meta import NO_CLUSTER
from govern.peer_messages import Member, PeerHello

from .test_mutants import machine

WALKS = 1_500
STEPS = 60
CLUSTER = b"x" * 16


def hello(node_id: int, cluster_id: bytes = NO_CLUSTER, initial: tuple[int, ...] = (1, 2, 3), **changes: Any) -> PeerHello:
    message = PeerHello(1, cluster_id, node_id, bytes([node_id]) * 16, 1, True, "p", "c", initial)
    return attrs.evolve(message, **changes)


def make(node_id: int = 1, initial: tuple[int, ...] = (1, 2, 3), cluster_id: bytes = NO_CLUSTER) -> Bootstrap:
    return Bootstrap(Member(node_id, bytes([node_id]) * 16), initial, cluster_id)


# --- one decision each ------------------------------------------------------------------------------------------------------


def test_the_smallest_forms_when_it_has_seen_all() -> None:
    """B1, B2: with a link to each, and each says that it belongs to none; then it waits for nothing any more."""
    node = make(initial=(3, 1, 2))
    assert node.waiting == "the cluster is not formed yet: no link to nodes 2, 3"
    node.link_up(hello(2, initial=(2, 3, 1)))
    assert node.waiting == "the cluster is not formed yet: no link to node 3"
    assert node.decide() is None
    node.link_up(hello(3))
    node.link_down(2)
    assert node.decide() is None
    node.link_up(hello(2))
    node.link_up(hello(9, initial=()))
    assert node.decide() == Form(tuple(Member(node_id, bytes([node_id]) * 16) for node_id in (1, 2, 3)))
    node.joined(CLUSTER)
    assert node.decide() is None
    assert (str(node.waiting), node.has_cluster) == ("None", True)
    assert repr(node) == f"<Bootstrap node 1 {CLUSTER.hex()}>"


def test_one_initial_candidate_forms_alone() -> None:
    """The list has nobody else."""
    assert make(initial=(1,)).decide() == Form((Member(1, b"\1" * 16),))


def test_others_wait() -> None:
    """Who is not the smallest, who is not in the list, whose peers have another list, and who names a peer that is no candidate."""
    second = make(2)
    second.link_up(hello(1))
    second.link_up(hello(3))
    assert second.decide() is None
    assert second.waiting == "node 1 is about to form the cluster"
    assert make(7).waiting == "node 7 is not an initial candidate and waits for a cluster to join"
    assert make(7).decide() is None
    first = make()
    first.link_up(hello(3))
    first.link_up(hello(2, initial=(1, 2)))
    assert first.decide() is None
    assert first.waiting == "the cluster is not formed yet: node 2 has the peers [1, 2], this node [1, 2, 3]"
    for odd in (hello(2, candidate=False), hello(2, disk_id=b"")):
        first.link_up(odd)
        assert first.decide() is None
        assert first.waiting == "the cluster is not formed yet: node 2 is in `peers` but does not run as a candidate"


def test_who_hears_of_a_cluster_adopts_the_first() -> None:
    """B3, B4: from a hello of anybody or from the word of who formed it; later words change nothing."""
    node = make(2)
    node.told(NO_CLUSTER)
    node.told(b"")
    assert node.decide() is None
    node.link_up(hello(9, CLUSTER))
    node.told(b"y" * 16)
    assert node.decide() == Adopt(CLUSTER)
    node.joined(CLUSTER)
    node.told(b"y" * 16)
    assert node.decide() is None
    assert make(1, cluster_id=CLUSTER).decide() is None
    with pytest.raises(AssertionError):
        node.joined(b"y" * 16)


def test_who_adopts_tells_those_to_whom_it_said_that_it_belongs_to_none() -> None:
    """B3, where it matters: node 1 formed a cluster and told 3 only. It is wiped, starts again, and hears from 2 that it belongs to none.
    Now 2 hears of the cluster from 3, and 3 is wiped too. Only 2 knows; if it kept that to itself 1 would form another cluster."""
    one, two = make(1), make(2)
    one.link_up(hello(2))
    two.link_up(hello(1))
    two.link_up(hello(3, CLUSTER))
    assert two.decide() == Adopt(CLUSTER)
    two.joined(CLUSTER)
    one.told(CLUSTER)
    one.link_up(hello(3))
    assert one.decide() == Adopt(CLUSTER)


# --- random walks -----------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Node:
    """A directory, and the process on it, if any."""

    node_id: int
    initial: tuple[int, ...]
    disk_id: bytes
    cluster_id: bytes = NO_CLUSTER
    core: Bootstrap | None = None
    wiped: bool = False


class Walk:
    """A few nodes; links that keep the order of what is sent over them; one cluster at most (asserted whenever one is formed)."""

    def __init__(self, seed: int, *, same_list: bool = True) -> None:
        self.chance = random.Random(seed)
        self.formed: list[tuple[bytes, tuple[Member, ...]]] = []
        self._disks = 0
        self._risk = 0.1
        ids = tuple(range(1, self.chance.randint(2, 3) + 1))
        self.nodes = {node_id: Node(node_id, ids, self._new_disk()) for node_id in ids}
        if not same_list:
            odd = self.chance.choice(ids)
            self.nodes[odd].initial = tuple(sorted({odd, *self.chance.sample(ids, len(ids) - 1)}))
        self.links: dict[tuple[int, int], dict[int, deque[PeerHello | bytes]]] = {}

    def _new_disk(self) -> bytes:
        self._disks += 1
        return self._disks.to_bytes(16, "big")

    def play(self) -> None:
        """Faults in any order, then all is well."""
        acts = [self._start, self._start, self._link, self._link, self._link, *[self._arrive] * 8, self._break, self._crash, self._wipe]
        for _ in range(STEPS):
            self.chance.choice(acts)()
            self._check()
        self.finish()

    def finish(self) -> None:
        """All start, are linked and agree."""
        self._risk = 0.0
        for node in self.nodes.values():
            self._begin(node)
        for first in self.nodes:
            for second in self.nodes:
                if first < second and (first, second) not in self.links:
                    self._connect(first, second)
        self._flush()
        self._check()
        if all(node.initial == tuple(self.nodes) for node in self.nodes.values()):
            assert len({node.cluster_id for node in self.nodes.values()} - {NO_CLUSTER}) == 1

    def _check(self) -> None:
        ids = {node.cluster_id for node in self.nodes.values()} - {NO_CLUSTER}
        if all(node.initial == tuple(self.nodes) for node in self.nodes.values()):
            assert len(ids) <= 1, f"two clusters from one list: {ids}"

    def _some(self) -> Node:
        return self.chance.choice(list(self.nodes.values()))

    def _start(self) -> None:
        self._begin(self._some())

    def _begin(self, node: Node) -> None:
        if node.core is None:
            if node.wiped:
                self._flush()  # wiping and starting takes longer than what was sent before is under way
                node.wiped = False
            node.core = Bootstrap(Member(node.node_id, node.disk_id), node.initial, node.cluster_id)
            self._decide(node)

    def _link(self) -> None:
        first, second = sorted(self.chance.sample(list(self.nodes), 2))
        if (first, second) not in self.links and self.nodes[first].core and self.nodes[second].core:
            self._connect(first, second)

    def _connect(self, first: int, second: int) -> None:
        """Both send their hello at once; one may be read long before the other."""
        self.links[first, second] = {
            first: deque([self._hello(self.nodes[second])]),
            second: deque([self._hello(self.nodes[first])]),
        }

    def _hello(self, node: Node) -> PeerHello:
        return PeerHello(1, node.cluster_id, node.node_id, node.disk_id, 1, True, "p", "c", node.initial)

    def _arrive(self) -> None:
        """The next message of some link is read by one side."""
        waiting = [(link, reader) for link, queues in self.links.items() for reader, queue in queues.items() if queue]
        if waiting:
            self._read(*self.chance.choice(waiting))

    def _read(self, link: tuple[int, int], reader: int) -> None:
        node, message = self.nodes[reader], self.links[link][reader].popleft()
        assert node.core is not None
        if isinstance(message, PeerHello):
            node.core.link_up(message)
        else:
            node.core.told(message)
        self._decide(node)

    def _flush(self) -> None:
        while any(queue for queues in self.links.values() for queue in queues.values()):
            self._arrive()

    def _decide(self, node: Node) -> None:
        """What the core wants, with a crash before it is durable, or before anybody is told, now and then."""
        assert node.core is not None
        decision = node.core.decide()
        if decision is None:
            return
        if self._dies():
            self._stop(node)
            return
        if isinstance(decision, Form):
            cluster_id = (len(self.formed) + 1).to_bytes(16, "big")
            self.formed.append((cluster_id, decision.voters))
            disks = {other.node_id: other.disk_id for other in self.nodes.values()}
            assert all(other.initial == node.initial for other in self.nodes.values() if other.node_id in node.initial)
            assert decision.voters == tuple(Member(node_id, disks[node_id]) for node_id in node.initial), "a voter that is not there"
        else:
            cluster_id = decision.cluster_id
        node.cluster_id = cluster_id
        if self._dies():
            self._stop(node)
            return
        node.core.joined(cluster_id)
        for link, queues in self.links.items():
            if node.node_id in link:
                queues[sum(link) - node.node_id].append(cluster_id)

    def _dies(self) -> bool:
        return self.chance.random() < self._risk

    def _break(self) -> None:
        if self.links:
            self._cut(self.chance.choice(list(self.links)))

    def _cut(self, link: tuple[int, int]) -> None:
        del self.links[link]
        for reader, other in (link, link[::-1]):
            core = self.nodes[reader].core
            if core is not None:
                core.link_down(other)

    def _crash(self) -> None:
        self._stop(self._some())

    def _stop(self, node: Node) -> None:
        node.core = None
        for link in [link for link in self.links if node.node_id in link]:
            self._cut(link)

    def _wipe(self) -> None:
        node = self._some()
        if node.core is None and self.chance.random() < 0.5:
            self._empty(node)

    def _empty(self, node: Node) -> None:
        node.disk_id, node.cluster_id, node.wiped = self._new_disk(), NO_CLUSTER, True


def failure_of(seed: int, same_list: bool = True) -> str | None:
    try:
        Walk(seed, same_list=same_list).play()
    except AssertionError as error:
        return f"walk {seed}: {error}"
    return None


def test_there_is_one_cluster() -> None:
    """While any disk that joined is there, no second one is formed from the same list; at the end all belong to one."""
    again = 0
    for seed in range(WALKS):
        walk = Walk(seed)
        walk.play()
        again += len(walk.formed) > 1
    assert again > 10, "sometimes all were wiped, and a new cluster is right"


def test_lists_that_differ_form_nothing_together() -> None:
    """A cluster's voters are all that its list names, and all of these have that list."""
    assert [failure for failure in (failure_of(seed, same_list=False) for seed in range(WALKS // 3)) if failure is not None] == []


# --- the same by a machine ----------------------------------------------------------------------------------------------------


class ToldWalk(Walk):
    """A walk that goes where it is told: three nodes, with one list unless it is told otherwise."""

    def __init__(self) -> None:
        super().__init__(1)
        self.deaths = 0
        """In so many decisions from now a process dies; 0: in none."""
        for node in (Node(node_id, (1, 2, 3), self._new_disk()) for node_id in (1, 2, 3)):
            self.nodes[node.node_id] = node

    def _dies(self) -> bool:
        self.deaths = max(0, self.deaths - 1)
        return self.deaths == 1


NODES = st.sampled_from((1, 2, 3))
PAIRS = st.sampled_from(((1, 2), (1, 3), (2, 3)))


class BootstrapMachine(RuleBasedStateMachine):
    """Three nodes: processes start and die, before or after a decision is durable, directories are emptied, links come and break, and what
    is said on them is read by either side whenever it likes. There is one cluster of one list, always; in the end all belong to one."""

    def __init__(self) -> None:
        super().__init__()
        self.walk = ToldWalk()
        for node_id in self.walk.nodes:
            self.a_process_starts(node_id)

    @rule(node_id=NODES)
    def a_process_starts(self, node_id: int) -> None:
        self.walk._begin(self.walk.nodes[node_id])

    @rule(node_id=NODES, empties=st.sampled_from((False, False, True)))
    def a_process_dies(self, node_id: int, empties: bool) -> None:
        """And its directory may be emptied."""
        self.walk._stop(self.walk.nodes[node_id])
        if empties:
            self.walk._empty(self.walk.nodes[node_id])

    @rule(decisions=st.integers(1, 4))
    def a_process_will_die_deciding(self, decisions: int) -> None:
        self.walk.deaths = decisions + 1

    @rule(pair=PAIRS, read=st.integers(0, 2))
    def a_link_comes(self, pair: tuple[int, int], read: int) -> None:
        """Both say Hello, and both, one or neither reads it at once."""
        if pair not in self.walk.links and all(self.walk.nodes[node_id].core for node_id in pair):
            self.walk._connect(*pair)
            for reader in pair[:read]:
                self.something_is_read(pair, reader == pair[0])

    @rule(pair=PAIRS)
    def a_link_breaks(self, pair: tuple[int, int]) -> None:
        if pair in self.walk.links:
            self.walk._cut(pair)

    @rule(pair=PAIRS, first=st.booleans())
    def something_is_read(self, pair: tuple[int, int], first: bool) -> None:
        reader = pair[0] if first else pair[1]
        if self.walk.links.get(pair, {}).get(reader):
            self.walk._read(pair, reader)

    @rule()
    def all_is_quiet_for_a_while(self) -> None:
        """Who runs is linked, and everything that is said is read."""
        for pair in ((1, 2), (1, 3), (2, 3)):
            self.a_link_comes(pair, 0)
        self.walk._flush()

    @rule(node_id=NODES, initial=st.sampled_from(((1, 2, 3), (1, 2, 3), (1, 2), (2, 3))))
    def somebody_edits_the_list(self, node_id: int, initial: tuple[int, ...]) -> None:
        """Of a process that does not run, and never a list without itself."""
        node = self.walk.nodes[node_id]
        if node.core is None and not self.walk.formed and node_id in initial:
            node.initial = initial

    @invariant()
    def there_is_one_cluster(self) -> None:
        self.walk._check()

    def teardown(self) -> None:
        self.walk.deaths = 0
        self.walk.finish()


BootstrapMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_one_cluster_from_one_list = BootstrapMachine.TestCase


# --- mutants ----------------------------------------------------------------------------------------------------------------


def links_forgotten_never(patch: pytest.MonkeyPatch) -> None:
    """What was said on a link that is gone still counts."""
    patch.setattr(Bootstrap, "link_down", lambda self, node_id: None)


def formed_without_all(patch: pytest.MonkeyPatch) -> None:
    """A majority of the list is enough."""
    decide = Bootstrap.decide

    def mutant(self: Bootstrap) -> Form | Adopt | None:
        found = decide(self)
        if (
            found is None
            and not self.has_cluster
            and self.me.node_id == self.initial[0]
            and 2 * (len(self._linked) + 1) > len(self.initial)
        ):
            members = [Member(node_id, self._linked[node_id].disk_id) for node_id in self._linked]
            return Form((self.me, *members))
        return found

    patch.setattr(Bootstrap, "decide", mutant)


def everybody_forms(patch: pytest.MonkeyPatch) -> None:
    """Not only the smallest of the list."""
    text: Callable[[Bootstrap], str | None] = vars(Bootstrap)["waiting"].fget
    patch.setattr(
        Bootstrap, "waiting", property(lambda self: None if (text(self) or "").endswith("about to form the cluster") else text(self))
    )


def lists_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Whatever list the others have."""
    link_up = Bootstrap.link_up
    patch.setattr(Bootstrap, "link_up", lambda self, hello: link_up(self, attrs.evolve(hello, initial=self.initial)))


def another_cluster_adopted(patch: pytest.MonkeyPatch) -> None:
    """Forming goes on although a hello told of a cluster."""
    patch.setattr(Bootstrap, "told", lambda self, cluster_id: None if self.me.node_id == 1 else _told(self, cluster_id))


_told = Bootstrap.told

MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], int, int]] = [
    (links_forgotten_never, 600, 400),
    (formed_without_all, 20, 100),
    (everybody_forms, 20, 100),
    (lists_not_compared, 20, 200),
    (another_cluster_adopted, 20, 200),
]
"""With the walks and the examples of the machine that each may need."""


@pytest.mark.parametrize(
    ("mutant", "walks", "examples"),
    [pytest.param(*each, marks=[pytest.mark.deep] if each[2] > 200 else []) for each in MUTANTS],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_mutant_is_found(mutant: Callable[[pytest.MonkeyPatch], None], walks: int, examples: int) -> None:
    """Within so many walks, with equal lists or not, the number is printed; and by the machine."""
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        found = next((seed for seed in range(walks) if failure_of(seed) or failure_of(seed, same_list=False)), None)
    assert found is not None, f"nothing found {mutant.__name__} in {walks} walks"
    print(f"{mutant.__name__}: found by walk {found + 1} of {walks}")
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises(AssertionError):
            machine(BootstrapMachine)(examples)
