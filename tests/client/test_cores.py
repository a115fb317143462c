"""The cores of one client and several model nodes: who is asked what, where wishes go, and what becomes of them on the way."""

from __future__ import annotations

import attrs
import pytest

from govern.client.claims import Claim
from govern.client.core import Phase
from govern.client.cores import IDLE_SECONDS, Cores
from govern.core.slots import slot_of
from govern.core.table import node_rows
from govern.errors import Indeterminate
from govern.messages import (
    Administer,
    AskStatus,
    Drain,
    Evict,
    Explain,
    Goodbye,
    Hello,
    Lookup,
    Register,
    Services,
    Subscribe,
    TableRows,
    Unsubscribe,
    Update,
)
from govern.model import Lsn, ServiceKey, Status

from .fleet import OURS, Fleet, FleetNode

A, B, C = (ServiceKey("default", name) for name in ("a", "b", "c"))


def entered(owners: dict[ServiceKey, int | None] | None = None, *, through: int = 1) -> Fleet:
    """A fleet whose client is connected and has the table: a at node 1, b at node 2, c at node 3."""
    fleet = Fleet()
    fleet.assign({A: 1, B: 2, C: 3} if owners is None else owners)
    fleet.turns[fleet.cores.entry] = through - 1
    fleet.run(0.1)
    assert fleet.cores.entry.node_id == through
    assert fleet.cores.routing.version == fleet.store.table.version
    fleet.said.clear()
    return fleet


def held(claim: Claim) -> bool:
    """Whether it is held by now."""
    return claim.held


def connected_ids(fleet: Fleet) -> list[int]:
    return sorted(core.node_id or 0 for core in fleet.cores.living() if core.connected)


# --- entering ---------------------------------------------------------------------------------------------------------------


def test_a_client_enters_through_any_node_and_asks_it_for_the_table_once() -> None:
    """One connection, one request for the table, and no other node is bothered before it is needed."""
    fleet = Fleet()
    fleet.assign({A: 1, B: 2, C: 3})
    fleet.run(5)
    assert [node.table_asks for node in fleet.nodes.values()] == [1, 0, 0]
    assert connected_ids(fleet) == [1]


def test_a_node_without_a_table_gets_everything() -> None:
    """As a single node does: it is not asked for a table, and nothing goes elsewhere."""
    fleet = Fleet()
    claims = [fleet.register(service) for service in (A, B, C)]
    fleet.run(3)
    assert all(claim.held for claim in claims)
    assert fleet.nodes[1].table_asks == 0
    assert connected_ids(fleet) == [1]


def test_wishes_go_straight_to_the_node_that_answers() -> None:
    """With the table in hand nobody is asked who would only send elsewhere."""
    fleet = entered()
    claims = [fleet.register(service) for service in (A, B, C)]
    for service in (A, B, C):
        fleet.home(service).views.open(service)
    fleet.run(1)
    assert all(claim.held for claim in claims)
    assert fleet.spoken(Register) == [1, 2, 3]
    assert fleet.spoken(Subscribe) == [1, 2, 3]
    assert [node.moved_said for node in fleet.nodes.values()] == [0, 0, 0]
    assert len({message.session_id for _, message in fleet.said if isinstance(message, Hello)} | {OURS}) == 1
    assert len(fleet.store.applied) == 3  # one counter for all nodes


def test_wishes_that_are_older_than_the_table_follow_moved() -> None:
    """What is wanted at once goes to the entry; each wish arrives, by the hint or by the table, whichever comes first."""
    fleet = Fleet()
    fleet.assign({A: 1, B: 2, C: 3})
    claims = [fleet.register(service) for service in (A, B, C)]
    cursor = fleet.home(C).views.open(C)
    read = fleet.cores.ask(Lookup(B), fleet.now)
    explanation = fleet.cores.ask(Explain(C, ""), fleet.now)
    fleet.run(0.5)
    assert all(claim.held for claim in claims)
    assert not cursor.view.stale
    assert read.done
    assert explanation.done
    assert len(fleet.store.applied) == 3


def test_status_and_the_word_of_an_operator_go_to_the_entry() -> None:
    """They are about no service."""
    fleet = entered(through=2)
    questions = [fleet.cores.ask(AskStatus(), fleet.now), fleet.cores.ask(Administer("nodes", 0, {}), fleet.now)]
    fleet.run(0.1)
    assert all(question.done for question in questions)
    assert (fleet.spoken(AskStatus), fleet.spoken(Administer)) == ([2], [2])


# --- moved and unassigned -----------------------------------------------------------------------------------------------------


def test_everything_of_a_service_goes_along() -> None:
    """Claim, view, read, drain and eviction meet Moved, and are carried out by the other node, each once."""
    fleet = entered({A: 1})
    claim = fleet.register(A)
    other = fleet.register(A, "two")
    cursor = fleet.home(A).views.open(A)
    fleet.run(0.3)
    view, lsn = cursor.view, cursor.view.lsn
    assert lsn > Lsn(0, 0)
    fleet.make_table({A: 2})
    fleet.learn(1)
    fleet.learn(2)
    fleet.said.clear()
    update = fleet.update(claim, weight=3.0)
    read = fleet.cores.ask(Lookup(A), fleet.now)
    commands = fleet.home(A).commands
    drain = commands.drain(A, "one", fleet.now + 5, claim)
    evict = commands.evict(A, "two")
    commands.pump(fleet.now)
    fleet.collect()
    assert fleet.spoken(Update) == [1]
    fleet.run(0.1)
    assert fleet.home(A).node_id == 2
    fleet.run(1)
    assert [update.done, read.done, drain.done, evict.done] == [True] * 4
    assert [request.error for request in (update, read, drain, evict)] == [None] * 4
    assert held(claim)
    assert other.lost == "evicted"
    assert cursor.view is view
    assert not view.stale
    assert fleet.spoken(Evict) == [1, 2]
    assert fleet.spoken(Drain) == [1, 2]
    (subscribe,) = [message for _, message in fleet.said if isinstance(message, Subscribe)]
    assert subscribe.known == lsn
    stored = fleet.store.instances[A, "one"]
    assert (stored.fields[4], stored.fields[8]) == (3.0, 1)


def test_a_view_keeps_its_list_on_the_way() -> None:
    """Between two nodes it shows what it showed, and is stale."""
    fleet = entered({A: 1})
    fleet.register(A)
    cursor = fleet.home(A).views.open(A)
    fleet.run(0.3)
    cursor.skip()
    fleet.cut[2] = None
    fleet.assign({A: 2})
    fleet.run(3)
    assert fleet.home(A).node_id == 2
    assert cursor.view.stale
    assert [instance.id for instance in cursor.view.sorted_instances()] == ["one"]
    assert cursor.take() is None
    assert fleet.spoken(Unsubscribe) == [1]
    fleet.cut.clear()
    fleet.run(2)
    assert not cursor.view.stale


def test_a_write_in_doubt_is_recognised_at_the_other_node() -> None:
    """Its answer was lost with the node; the other node gets it under the same id, and nothing happens twice."""
    fleet = entered({A: 1})
    claim = fleet.register(A)
    fleet.run(0.3)
    update = fleet.update(claim, weight=2.0)
    core = fleet.home(A)
    fleet.reach_node(core)  # carried out, and then the node is gone with the answer
    seq = fleet.store.seq
    fleet.stop(1)
    fleet.make_table({A: 2})
    fleet.learn(2, 3)
    fleet.run(4)
    assert update.done
    assert update.error is None
    assert held(claim)
    assert fleet.spoken(Update) == [1, 2]
    assert max(fleet.store.applied.values()) == 1
    assert fleet.store.instances[A, "one"].fields[4] == 2.0
    assert fleet.store.seq - seq <= 1  # the registration at the new node, if it was one


def test_two_nodes_that_send_to_each_other_are_not_a_storm() -> None:
    """Node 1 believes node 2 and node 2 believes node 1, with one version: a few messages a second, and nothing is lost when it ends."""
    fleet = entered({A: 1})
    fleet.nodes[1].table = fleet.make_table({A: 2})
    fleet.nodes[2].table = attrs.evolve(fleet.make_table({A: 1}), version=2)
    claim = fleet.register(A)
    cursor = fleet.home(A).views.open(A)
    read = fleet.cores.ask(Lookup(A), fleet.now)
    fleet.run(10)
    said = fleet.nodes[1].moved_said + fleet.nodes[2].moved_said
    assert 10 < said <= 3 * 10 * 11
    assert not held(claim)
    fleet.make_table({A: 3})
    fleet.learn()
    fleet.run(3)
    assert held(claim)
    assert not cursor.view.stale
    assert read.done


def test_an_old_node_does_not_send_back() -> None:
    """It does not know yet that the slot is its own: it is asked again until it does, and the former owner is left alone."""
    fleet = entered({A: 1})
    fleet.make_table({A: 2})
    fleet.learn(1)
    fleet.run(2.5)  # the client has the new table; node 2 has not
    claim = fleet.register(A)
    fleet.said.clear()
    fleet.run(1)
    assert not held(claim)
    assert set(fleet.spoken(Register)) == {2}
    assert len(fleet.spoken(Register)) <= 7
    fleet.learn(2)
    fleet.run(1)
    assert held(claim)


def test_what_belongs_to_nobody_waits() -> None:
    """Claims, views, reads, updates, drains and evictions are refused with `unassigned`, and carried out once somebody answers."""
    fleet = entered({A: None, B: 2})
    claim = fleet.register(A)
    fleet.register(A, "two")
    cursor = fleet.home(A).views.open(A)
    read = fleet.cores.ask(Lookup(A), fleet.now)
    fleet.run(3)
    assert (held(claim), claim.refusal, cursor.view.ready, cursor.view.refusal, read.done) == (False, None, False, None, False)
    fleet.assign({A: 3, B: 2})
    fleet.run(3)
    assert held(claim)
    assert not cursor.view.stale
    assert read.done
    fleet.make_table({A: 2, B: 2})  # node 3 does not answer any more, and knows nothing of it
    requests = [fleet.update(claim, weight=2.0), fleet.home(A).commands.drain(A, "one", fleet.now + 9)]
    evict = fleet.home(A).commands.evict(A, "two")
    fleet.home(A).commands.pump(fleet.now)
    fleet.run(2)
    assert not any(request.done for request in (*requests, evict))
    fleet.learn()
    fleet.run(2)
    assert all(request.done for request in (*requests, evict))
    assert [request.error for request in (*requests, evict)] == [None] * 3


def test_a_new_reign_of_the_same_node_is_subscribed_to_again() -> None:
    """The slot was granted anew: subscriptions ended with the former reign, and the view asks again from the lsn in hand."""
    fleet = entered({A: 1})
    claim = fleet.register(A)
    cursors = [fleet.home(service).views.open(service) for service in (A, B)]
    fleet.run(0.5)
    lsn = cursors[0].view.lsn
    fleet.said.clear()
    fleet.assign({A: 1})
    fleet.update(claim, weight=2.0)
    fleet.run(2)
    assert [message for _, message in fleet.said if isinstance(message, Subscribe)] == [Subscribe(A, lsn)]
    assert [cursor.view.stale for cursor in cursors] == [False, False]
    assert cursors[0].view.instances["one"].weight == 2.0


# --- nodes come and go --------------------------------------------------------------------------------------------------------


def test_a_client_needs_no_candidate_that_it_does_not_use() -> None:
    """The node through which it entered and everybody else are gone: what it does at the last one goes on, news of the table too."""
    fleet = entered({A: 3})
    claim = fleet.register(A)
    fleet.run(1)
    for node_id in (1, 2):
        fleet.stop(node_id)
    fleet.run(5)
    assert held(claim)
    assert fleet.cores.entry.node_id == 3
    assert fleet.cores.connected
    fleet.assign({A: 3, B: 3})
    fleet.run(2.5)
    assert fleet.cores.routing.version == 2


def test_a_node_that_is_down_holds_up_only_what_is_its_own() -> None:
    """The others go on; `connected` says that one is missing; and it comes back by itself."""
    fleet = entered()
    claims = {service: fleet.register(service) for service in (A, B, C)}
    fleet.run(1)
    fleet.stop(2)
    fleet.run(5)
    assert claims[A].held
    assert claims[C].held
    assert [fleet.cores.connected] == [False]
    read = fleet.cores.ask(Lookup(B), fleet.now)
    fleet.run(1)
    assert [read.done] == [False]
    fleet.start(2)
    fleet.run(1)
    assert [read.done, claims[B].held, fleet.cores.connected] == [True] * 3


def test_when_everybody_was_gone_any_address_is_an_entry() -> None:
    """All nodes are down; one comes back, which the client has never been connected to and was never told of by the user."""
    fleet = entered({A: 1, C: 3})
    claim, other = fleet.register(A), fleet.register(C)
    fleet.run(1)
    for node_id in (1, 2, 3):
        fleet.stop(node_id)
    fleet.run(5)
    assert connected_ids(fleet) == []
    fleet.nodes[3].table = fleet.make_table({A: 3, C: 3})
    fleet.start(3)
    fleet.run(5)
    assert fleet.cores.entry.node_id == 3
    assert held(claim)
    assert other.held


def test_the_entry_that_finds_another_node_becomes_its_core() -> None:
    """What belonged to its former node stays with that node, and is not told to anybody else."""
    fleet = entered({A: 1, B: 2})
    claim = fleet.register(A)
    fleet.run(1)
    core = fleet.cores.entry
    fleet.stop(1)
    fleet.said.clear()
    fleet.run(3)
    assert core.node_id == 2
    assert fleet.cores.entry is core
    assert fleet.home(A) is not core
    assert 2 not in fleet.spoken(Register)
    assert fleet.home(A).phase is Phase.DOWN
    fleet.start(1)
    fleet.run(1)
    assert held(claim)


def test_a_node_on_another_port_is_found_through_the_table() -> None:
    """Its address is dialled in vain, so the table is fetched, which knows better; at most once a second."""
    fleet = entered({A: 3})
    claim = fleet.register(A)
    fleet.run(35)  # the entry is node 3 by now, and the only one
    fleet.register(B, "b")
    fleet.run(1)
    fleet.stop(3)
    fleet.nodes[3].port = 7999
    fleet.run(5)
    fleet.make_table({A: 3})
    fleet.start(3)
    fleet.learn()
    asked = sum(node.table_asks for node in fleet.nodes.values())
    fleet.run(3)
    assert held(claim)
    assert fleet.home(A).node_id == 3
    assert sum(node.table_asks for node in fleet.nodes.values()) - asked <= 4


def test_who_answers_at_the_address_of_another_is_not_spoken_to() -> None:
    """Two nodes have changed places: nothing of one is told to the other, and the table is fetched."""
    fleet = entered({A: 1, B: 2, C: 3})
    impostor = fleet.nodes[3]
    impostor.host, fleet.nodes[2].host = "node2", "node3"
    claim = fleet.register(B)
    before = fleet.nodes[1].table_asks
    for _ in range(20):
        fleet.dial_all()
        for core in list(fleet.pipes):
            fleet.reach_node(core)
            pipe = fleet.pipes[core]
            assert pipe.node is not impostor or not any(raw[0] == Register.TYPE for raw in pipe.to_node)
            fleet.reach_client(core)
        fleet.now += 0.2
    assert not held(claim)
    assert fleet.nodes[1].table_asks > before


def test_another_cluster_is_believed_only_when_nobody_else_is_there() -> None:
    """A stranger at the address of a node is not spoken to while the own cluster is; when that is gone, everything starts anew there."""
    fleet = entered({A: 1, B: 2})
    claims = [fleet.register(A), fleet.register(B)]
    cursor = fleet.home(B).views.open(B)
    fleet.run(1)
    fleet.stop(2)
    stranger = Fleet(2)
    stranger.store.cluster = 2
    stranger.assign({A: 2, B: 2})
    fleet.nodes[2] = stranger.nodes[2]
    fleet.run(5)
    assert fleet.cores.cluster_id == "cluster1"
    assert claims[0].held
    assert not stranger.store.instances
    fleet.stop(1)
    fleet.run(6)
    assert fleet.cores.cluster_id == "cluster2"
    assert all(claim.held for claim in claims)
    assert len(stranger.store.instances) == 2
    assert [core.node_id for core in fleet.cores.living()] == [2]
    assert not cursor.view.stale
    assert cursor.view.lsn == stranger.store.lsns[B]


def test_a_node_that_belongs_to_no_cluster_is_no_other_cluster() -> None:
    """A node that comes back with an empty disk is not believed, not even when nobody else is there: nothing starts anew, and what is shown
    goes on from where it was when the cluster is there again."""
    fleet = entered({A: 1, B: 2})
    claim = fleet.register(A)
    cursor = fleet.home(A).views.open(A)
    fleet.run(1)
    shown = cursor.view.lsn
    former = fleet.nodes[1]
    for node_id in (1, 2, 3):
        fleet.stop(node_id)
    blank = Fleet(1)
    blank.store.cluster = 0
    fleet.nodes[1] = blank.nodes[1]
    fleet.run(5)
    assert fleet.cores.cluster_id == "cluster1"
    assert not fleet.cores.any_connected
    assert cursor.view.lsn == shown
    assert not blank.store.instances
    fleet.stop(1)
    fleet.nodes[1] = former
    fleet.start(1)
    fleet.run(6)
    assert claim.held
    assert not cursor.view.stale
    assert cursor.view.lsn >= shown


# --- idle links, services -----------------------------------------------------------------------------------------------------


def test_a_connection_that_nobody_needs_says_goodbye_after_half_a_minute() -> None:
    """A read opens it, and it stays as long as anything is wanted there; the last one stays for ever."""
    fleet = entered()
    read = fleet.cores.ask(Lookup(B), fleet.now)
    claim = fleet.register(C)
    fleet.run(IDLE_SECONDS - 1)
    assert read.done
    assert connected_ids(fleet) == [1, 2, 3]
    fleet.run(3)
    assert connected_ids(fleet) == [3]  # it is needed, so news of the table comes from there
    assert sorted(fleet.spoken(Goodbye)) == [1, 2]
    assert held(claim)
    fleet.leave(claim)
    fleet.run(2 * IDLE_SECONDS)
    assert connected_ids(fleet) == [3]
    again = fleet.cores.ask(Lookup(B), fleet.now)
    fleet.run(0.3)
    assert again.done


def test_a_wish_for_a_node_that_is_just_being_left_gets_a_new_connection() -> None:
    """After Goodbye nothing can be written over the old one."""
    fleet = entered()
    fleet.cores.ask(Lookup(B), fleet.now)
    fleet.run(IDLE_SECONDS - 0.1)
    while not fleet.spoken(Goodbye):
        fleet.now += 0.1
        fleet.tick()
    claim = fleet.register(B)
    fleet.run(2)
    assert held(claim)
    assert len([1 for node_id, message in fleet.said if node_id == 2 and isinstance(message, Hello)]) == 2


def test_a_question_for_one_node_goes_to_no_other() -> None:
    """Each owner is asked by name; one that is gone leaves the question open, whatever else happens."""
    fleet = entered()
    questions = [fleet.cores.ask(Services(""), fleet.now, node_id=node_id) for node_id in fleet.cores.routing.owners()]
    fleet.stop(3)
    fleet.run(2)
    assert [question.done for question in questions] == [True, True, False]
    assert fleet.spoken(Services)[:2] == [1, 2]
    lost = fleet.cores.where(questions[2])
    assert lost is not None
    assert lost.node_id == 3


def test_what_changes_something_is_not_sent_twice() -> None:
    """An operator's word that was on its way when the connection broke: nobody knows. One that was not sent yet goes to the next node."""
    fleet = entered()
    sent = fleet.cores.ask(Administer("forget", 3, {}), fleet.now, once=True)
    read = fleet.cores.ask(Administer("nodes", 0, {}), fleet.now)
    fleet.collect()
    fleet.stop(1)
    assert isinstance(sent.error, Indeterminate)
    later = fleet.cores.ask(Administer("forget", 3, {}), fleet.now, once=True)
    fleet.run(2)
    assert read.done
    assert later.done
    assert later.error is None
    assert fleet.spoken(Administer) == [1, 1, 2, 2]


# --- the end ------------------------------------------------------------------------------------------------------------------


def test_leaving_says_goodbye_to_every_node() -> None:
    """At the same time; afterwards no node has anything of the client."""
    fleet = entered()
    for service in (A, B, C):
        fleet.register(service)
    fleet.run(1)
    goodbyes = fleet.cores.goodbye()
    fleet.exchange()
    assert all(request.done for _, request in goodbyes)
    assert sorted(fleet.spoken(Goodbye)) == [1, 2, 3]
    assert not fleet.store.instances
    fleet.cores.close()
    fleet.cores.settle(fleet.now)
    assert fleet.cores.take_ended() != []


class BrokenNode(FleetNode):
    """Its tables have nodes in disorder."""

    def send_table(self, known: int, request_id: int) -> None:
        self.table_asks += 1
        self.send(TableRows(False, 0, 1, node_rows(reversed(self.table.nodes)), [], []), request_id)


def test_a_table_that_is_none_costs_the_connection() -> None:
    """And is asked for again, not faster than once a second."""
    fleet = Fleet(1)
    fleet.nodes[1].__class__ = BrokenNode
    fleet.assign({A: 1})
    fleet.nodes[1].table = attrs.evolve(fleet.store.table, nodes=(*fleet.store.table.nodes, *Fleet(2).make_table({}).nodes[1:]))
    claim = fleet.register(A)
    fleet.run(5)
    assert 4 <= fleet.nodes[1].table_asks <= 6
    assert fleet.cores.routing.version == 0
    assert held(claim)


def test_a_guess_leads_to_a_node_that_nobody_named() -> None:
    """From a cache: every address that the user gave is dead, and the node that is needed lives."""
    former = entered()
    fleet = Fleet()
    fleet.assign({A: 1, B: 2, C: 3})
    fleet.cores.begin_with({}, "cluster1", former.cores.routing.table)
    fleet.stop(1)
    fleet.stop(2)
    claim = fleet.register(C)
    fleet.run(2)
    assert held(claim)
    assert fleet.cores.entry.node_id == 3
    assert fleet.cores.routing.version == 1


@pytest.mark.parametrize("status", [Status.UP, Status.DRAINING])
def test_a_stray_and_a_claim_of_one_name_do_not_meet(status: Status) -> None:
    """A node names a lease of this session that nobody wants there, while the service is asked for elsewhere: both are settled."""
    fleet = entered({A: 1, B: 2})
    fleet.register(B, "b")
    fleet.run(1)
    claim = fleet.register(A, status=status)
    fleet.run(1)
    core = fleet.home(B)
    core.registrations.disown(A, "one", Lsn(9, 9))
    fleet.assign({A: 2, B: 2})
    fleet.run(3)
    assert held(claim)
    assert fleet.home(A) is core
    assert fleet.store.instances[A, "one"].lease_id == claim.lease


def test_slots_and_services_are_what_the_tests_believe() -> None:
    """The three services are in three slots, and a Cores that nobody needs has one core."""
    assert len({slot_of(service) for service in (A, B, C)}) == 3
    cores = Cores(OURS, [("a", 1)])
    assert cores.living() == [cores.entry]
    assert cores.addresses(cores.entry) == [("a", 1)]
