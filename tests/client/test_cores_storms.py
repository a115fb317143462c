"""One client and three nodes through storms: tables that change while nodes lag behind, nodes that come and go, links that break anywhere.

Whatever happens, every wish is at exactly one node, nobody is asked for the table more than once a second, and no slot is sent on more
often than the rules allow. When it ends everything that is wanted is held where the table says, and every view is the truth. That the storm
sees what it should see is shown by breaking the rules on purpose, at the end of this page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from govern.client.claims import Claim
from govern.client.core import ClientCore, Wishes
from govern.client.core import Phase as Stage
from govern.client.cores import Cores
from govern.client.outbox import Numbers, Request
from govern.client.registrations import Registrations
from govern.client.routing import HOPS_MAX, HOPS_SECONDS, REFRESH_SECONDS, Routing
from govern.client.views import ServiceView, Views
from govern.core.slots import slot_of
from govern.core.table import TableChange, apply
from govern.errors import Invalid
from govern.messages import Lookup, Moved, Refused
from govern.model import LSN_ZERO, Instance, Lsn, ServiceKey, client_fields

from . import test_cores, test_routing
from .fleet import OURS, Fleet
from .test_core_storms import Watcher

SERVICES = [ServiceKey("default", name) for name in ("a", "b", "c")]
IDS = ["one", "two"]
NODES = [1, 2, 3]
services = st.sampled_from(SERVICES)
ids = st.sampled_from(IDS)
nodes = st.sampled_from(NODES)
owners = st.sampled_from([*NODES, *NODES, None])


class FleetStorm(RuleBasedStateMachine):
    """Everything that can happen to a client of three nodes, in any order."""

    cores: type[Cores] = Cores

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(cores=self.cores)
        self.claims: list[Claim] = []
        self.watchers: list[Watcher] = []
        self.requests: list[Request] = []
        self.operated: dict[tuple[ServiceKey, str], None] = {}
        self.first_meaning: dict[int, Any] = {}  # request id -> what it was used for
        self.table_asked_at: list[float] = []
        self.version = 0
        self.owners: dict[int, int | None] = {}
        self.hops: dict[int, list[float]] = {}

    # --- the client's wishes ------------------------------------------------------------------------------------------------

    @initialize(table=st.booleans())
    def begin(self, table: bool) -> None:
        if table:
            self.fleet.assign(dict(zip(SERVICES, NODES, strict=True)))
        self.fleet.dial_all()

    @rule(service=services, instance_id=ids, ephemeral=st.sampled_from([True, True, False]))
    def register(self, service: ServiceKey, instance_id: str, ephemeral: bool) -> None:
        if any(claim.key == (service, instance_id) and claim.wanted and not claim.over for claim in self.claims):
            with pytest.raises(Invalid):
                self.fleet.register(service, instance_id)
            return
        self.claims.append(self.fleet.register(service, instance_id, port=1 + len(self.claims), ephemeral=ephemeral))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), weight=st.sampled_from([0.5, 2.0]))
    def update(self, data: st.DataObject, weight: float) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        if claim.acknowledged:
            self.requests.append(self.fleet.update(claim, weight=weight))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.fleet.leave(data.draw(st.sampled_from(self.claims)))

    @rule(service=services)
    def subscribe(self, service: ServiceKey) -> None:
        cursor = self.fleet.home(service).views.open(service)
        cursor.skip()
        self.watchers.append(Watcher(cursor, dict(cursor.view.instances)))
        self.fleet.collect()

    @precondition(lambda self: self.watchers)
    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        watcher = data.draw(st.sampled_from(self.watchers))
        self.watchers.remove(watcher)
        self.fleet.home(watcher.cursor.view.service).views.close(watcher.cursor)
        self.fleet.collect()

    @rule(service=services)
    def lookup(self, service: ServiceKey) -> None:
        self.requests.append(self.fleet.cores.ask(Lookup(service), self.fleet.now))
        self.fleet.collect()

    @rule(service=services, instance_id=ids, evict=st.booleans())
    def operate(self, service: ServiceKey, instance_id: str, evict: bool) -> None:
        core = self.fleet.home(service)
        commands = core.commands
        request = commands.evict(service, instance_id) if evict else commands.drain(service, instance_id, self.fleet.now + 5)
        self.requests.append(request)
        if not evict:
            self.operated[service, instance_id] = None
        if core.connected:
            commands.pump(self.fleet.now)
        self.fleet.collect()

    # --- the network and time -----------------------------------------------------------------------------------------------

    def core(self, number: int) -> ClientCore:
        living = self.fleet.cores.all()
        return living[number % len(living)]

    @rule(number=st.integers(0, 3))
    def dial(self, number: int) -> None:
        core = self.core(number)
        if core.phase is Stage.DOWN and core in self.fleet.cores.living() and core not in self.fleet.pipes:
            self.fleet.dial(core)

    @rule(number=st.integers(0, 3), count=st.integers(1, 6))
    def reach_node(self, number: int, count: int) -> None:
        self.fleet.reach_node(self.core(number), count)

    @rule(number=st.integers(0, 3), count=st.integers(1, 6))
    def reach_client(self, number: int, count: int) -> None:
        self.fleet.reach_client(self.core(number), count)

    @rule()
    def everything_arrives(self) -> None:
        self.fleet.dial_all()
        self.fleet.exchange()

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, 4.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.fleet.now += seconds
        self.fleet.tick()

    @rule(node_id=nodes)
    def break_links(self, node_id: int) -> None:
        self.fleet.break_links(node_id)

    @rule(node_id=nodes)
    def cut(self, node_id: int) -> None:
        self.fleet.cut[node_id] = None
        self.fleet.break_links(node_id)

    @rule()
    def mend(self) -> None:
        self.fleet.cut.clear()

    # --- the cluster --------------------------------------------------------------------------------------------------------

    @rule(places=st.tuples(owners, owners, owners), default=nodes)
    def assign(self, places: tuple[int | None, ...], default: int) -> None:
        self.fleet.make_table(dict(zip(SERVICES, places, strict=True)), default)

    @rule(node_id=nodes)
    def learn(self, node_id: int) -> None:
        self.fleet.learn(node_id)

    @rule(node_id=nodes)
    def stop(self, node_id: int) -> None:
        self.fleet.stop(node_id)

    @rule(node_id=nodes)
    def start(self, node_id: int) -> None:
        if not self.fleet.nodes[node_id].running:
            self.fleet.start(node_id)

    @rule(node_id=nodes)
    def expire(self, node_id: int) -> None:
        """The client was silent for too long at a node: what it held there is gone."""
        node = self.fleet.nodes[node_id]
        self.fleet.break_links(node_id)
        node.known_sessions.clear()
        for key, held in list(node.instances.items()):
            if held.fields[9] and node.is_mine(key[0]):
                node.remove(key)
        self.fleet.collect_nodes()

    @rule(node_id=nodes, fresh=st.booleans())
    def set_fresh(self, node_id: int, fresh: bool) -> None:
        self.fleet.nodes[node_id].fresh = fresh

    @rule(node_id=nodes, code=st.sampled_from(["overloaded", "stopping", "unassigned", "unknown"]), pause=st.sampled_from([0, 300]))
    def refuse_next_write(self, node_id: int, code: str, pause: int) -> None:
        self.fleet.nodes[node_id].refusals.append(Refused(code, "not now", pause))

    # --- what always holds --------------------------------------------------------------------------------------------------

    @invariant()
    def every_wish_is_at_one_node(self) -> None:
        self.fleet.collect()
        cores = self.fleet.cores
        cores.validate()
        living = cores.living()
        for claim in self.claims:
            places = [core for core in living if claim in chain(core, claim)]
            assert len(places) == (0 if claim.over else 1), (claim, places)
        for watcher in self.watchers:
            view = watcher.cursor.view
            if view.refusal is None:
                assert [core.views._views.get(view.service) is view for core in living].count(True) == 1, view
        for request in self.requests:
            if isinstance(request.message, Lookup):
                assert [request in core.reads._pending.values() for core in living].count(True) == (not request.done), request

    @invariant()
    def the_table_only_grows_and_is_asked_for_once_a_second(self) -> None:
        version = self.fleet.cores.routing.version
        assert version >= self.version
        self.version = version
        asked_at = self.fleet.cores.routing._asked_at
        if asked_at > 0 and asked_at not in self.table_asked_at:
            assert not self.table_asked_at or asked_at - self.table_asked_at[-1] >= REFRESH_SECONDS - 1e-9
            self.table_asked_at.append(asked_at)

    @invariant()
    def hops_are_bounded(self) -> None:
        now, routing = self.fleet.now, self.fleet.cores.routing
        for service in SERVICES:
            slot = slot_of(service)
            times = self.hops.setdefault(slot, [])
            if slot in routing._hints and routing.owner(slot) != self.owners.get(slot):
                times.append(now)
            self.owners[slot] = routing.owner(slot)
            assert len([at for at in times if at > now - HOPS_SECONDS]) <= 2 * HOPS_MAX

    @invariant()
    def an_id_is_used_for_one_thing(self) -> None:
        for core in self.fleet.cores.living():
            for request_id, claim in core.registrations._in_flight.items():
                assert claim.sent is not None
                assert self.first_meaning.setdefault(request_id, claim.sent) is claim.sent
            for request_id, request in (*core.commands._pending.items(), *core.reads._pending.items()):
                assert self.first_meaning.setdefault(request_id, request) is request

    @invariant()
    def views_are_states_that_were(self) -> None:
        for watcher in self.watchers:
            view = watcher.cursor.view
            if not view.ready or view.lsn == LSN_ZERO:
                continue
            assert (1, view.lsn) >= watcher.lsn, "a view never goes back"
            watcher.lsn = (1, view.lsn)
            shown = {each.id: [[*each.lease_id, *each.lsn, 0], client_fields(each)] for each in view.without_suspicion()}
            assert shown == self.fleet.store.history[1, view.service, view.lsn]

    # --- calm ---------------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        fleet = self.fleet
        fleet.cut.clear()
        for node in fleet.nodes.values():
            node.refusals.clear()
            node.fresh = True
            if not node.running:
                fleet.start(node.node_id)
        table = fleet.store.table
        placed = {service: getattr(table.owner(slot_of(service)), "node_id", None) or 2 for service in SERVICES}
        fleet.assign(placed)
        for _ in range(2):
            fleet.run(12)
            self.every_wish_is_at_one_node()
            self.show_what_was_missed()
        fleet.run(3)
        self.views_are_states_that_were()
        self.check_calm()

    def show_what_was_missed(self) -> None:
        """What a subscriber has missed shows with the next change: let there be one in every service."""
        for service in SERVICES:
            owner = self.fleet.store.table.owner(slot_of(service))
            assert owner is not None
            node, key = self.fleet.nodes[owner.node_id], (service, "passing")
            node.put(key, b"r" * 16, 1_000_000, client_fields(Instance(id="passing", host="passing", port=9)))
            node.remove(key)
        self.fleet.collect_nodes()

    def check_calm(self) -> None:
        fleet = self.fleet
        assert fleet.cores.connected
        assert all(request.done for request in self.requests), [request for request in self.requests if not request.done]
        ours = {key: held for key, held in fleet.store.instances.items() if held.session_id == OURS}
        wanted = {claim.key: claim for claim in self.claims if claim.wanted is not None and not claim.over}
        assert ours.keys() == wanted.keys()
        for key, claim in wanted.items():
            assert claim.wanted is not None
            assert (claim.held, claim.lease) == (True, ours[key].lease_id)
            fields = client_fields(claim.wanted)
            if key in self.operated:  # whoever else drains an instance does not tell its owner
                fields[8] = ours[key].fields[8]
            assert fields == ours[key].fields
        for watcher in self.watchers:
            view = watcher.cursor.view
            assert not view.stale, view
            assert view.lsn == fleet.nodes[1].lsn_of(view.service)
            assert view.instances.keys() == fleet.nodes[1].state(view.service).keys()
            watcher.consume()
            assert watcher.copy == view.instances


def chain(core: ClientCore, claim: Claim) -> list[Claim]:
    """The claims of one id at a core: the one that acts, and those that wait for it."""
    found: list[Claim] = []
    at = core.registrations._claims.get(claim.key)
    while at is not None:
        if not at.over:  # one that waits and is not wanted any more is left where it is
            found.append(at)
        at = at.after
    return found


TestFleetStorm = FleetStorm.TestCase
TestFleetStorm.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


@pytest.mark.deep
class TestLongFleetStorms(FleetStorm.TestCase):  # type: ignore[misc, valid-type]
    """The same, longer and wilder."""

    settings = settings(max_examples=3000, stateful_step_count=100, deadline=None)


# --- the rules broken on purpose ------------------------------------------------------------------------------------------------

Mutant = Callable[[pytest.MonkeyPatch], None]


def older_table_accepted(patch: pytest.MonkeyPatch) -> None:
    """T1: whatever a node sends is the table."""

    def take(self: Routing, change: TableChange) -> bool:
        if not change.version or (change.base and change.base != self.table.version):
            return False
        self.table, self._is_guess = apply(self.table, change), False
        self._hints, self._told = {}, {}
        return True

    patch.setattr(Routing, "take", take)


def moved_followed_without_bound(patch: pytest.MonkeyPatch) -> None:
    """T4: a slot goes wherever it is sent, as often as it is sent."""
    patch.setattr("govern.client.routing.HOPS_MAX", 10**9)
    patch.setattr("govern.client.core.MOVED_MS", 0)


def older_hint_followed(patch: pytest.MonkeyPatch) -> None:
    """T2: a node that is behind sends a slot back."""
    real = Routing.moved

    def moved(self: Routing, asked: int, message: Moved, now: float) -> None:
        real(self, asked, attrs.evolve(message, table_version=max(message.table_version, self.version)), now)

    patch.setattr(Routing, "moved", moved)


def view_moved_without_its_list(patch: pytest.MonkeyPatch) -> None:
    """V11: the other node begins with an empty view."""
    real = Views.take_out

    def take_out(self: Views, service: ServiceKey) -> ServiceView | None:
        view = real(self, service)
        if view is not None:
            view.instances, view.ordered = {}, None
        return view

    patch.setattr(Views, "take_out", take_out)


def view_moved_without_its_lsn(patch: pytest.MonkeyPatch) -> None:
    """V11: the other node is asked from nothing."""
    real = Views.put_in

    def put_in(self: Views, view: ServiceView) -> None:
        view.lsn = LSN_ZERO
        real(self, view)

    patch.setattr(Views, "put_in", put_in)


def claim_kept_at_two_nodes(patch: pytest.MonkeyPatch) -> None:
    """G1: what goes to another node stays where it was."""

    def take_out(self: Registrations, service: ServiceKey) -> list[Claim]:
        return list(self._services.get(service, ()))

    patch.setattr(Registrations, "take_out", take_out)


def read_forgotten_on_the_way(patch: pytest.MonkeyPatch) -> None:
    """G1: a question is taken out and put in nowhere."""
    real = ClientCore.put_in

    def put_in(self: ClientCore, wishes: Wishes, now: float) -> None:
        real(self, attrs.evolve(wishes, questions=[]), now)

    patch.setattr(ClientCore, "put_in", put_in)


def numbers_of_each_node(patch: pytest.MonkeyPatch) -> None:
    """G2: every node has a counter of its own."""
    real = Cores._make_core

    def make_core(self: Cores, node_id: int | None) -> ClientCore:
        self._shared = attrs.evolve(self._shared, numbers=Numbers())
        return real(self, node_id)

    patch.setattr(Cores, "_make_core", make_core)


def stray_of_a_claim_elsewhere_removed(patch: pytest.MonkeyPatch) -> None:
    """R10: what the new node of a slot holds is removed there, because the claim is still at the former one."""

    class Nobody(dict[Any, Any]):
        def __contains__(self, key: object) -> bool:
            return False

    real = Registrations.disown

    def disown(self: Registrations, service: ServiceKey, instance_id: str, lease: Lsn) -> None:
        claimed, self._claimed = self._claimed, Nobody()
        try:
            real(self, service, instance_id, lease)
        finally:
            self._claimed = claimed

    patch.setattr(Registrations, "disown", disown)


def views_of_a_former_reign_kept(patch: pytest.MonkeyPatch) -> None:
    """G7: a subscription that ended with a reign is believed to go on."""
    patch.setattr(Views, "renew", lambda self, service, term: None)


def table_never_asked_again(patch: pytest.MonkeyPatch) -> None:
    """T5: the first table is the last."""
    real = Routing.announced

    def announced(self: Routing, version: int) -> None:
        if not self.version:
            real(self, version)

    patch.setattr(Routing, "announced", announced)


FOUND_BY_STORMS: list[Mutant] = [
    claim_kept_at_two_nodes,
    read_forgotten_on_the_way,
    numbers_of_each_node,
]
FOUND_BY_A_STORY: list[tuple[Mutant, Callable[[], None]]] = [
    (older_table_accepted, test_routing.test_an_older_table_never_replaces_a_newer_one),
    (moved_followed_without_bound, test_cores.test_two_nodes_that_send_to_each_other_are_not_a_storm),
    (older_hint_followed, test_cores.test_an_old_node_does_not_send_back),
    (view_moved_without_its_list, test_cores.test_a_view_keeps_its_list_on_the_way),
    (view_moved_without_its_lsn, test_cores.test_everything_of_a_service_goes_along),
    (views_of_a_former_reign_kept, test_cores.test_a_new_reign_of_the_same_node_is_subscribed_to_again),
    (table_never_asked_again, test_cores.test_a_client_needs_no_candidate_that_it_does_not_use),
    (stray_of_a_claim_elsewhere_removed, test_cores.test_a_write_in_doubt_is_recognised_at_the_other_node),
]


@pytest.mark.parametrize("mutant", FOUND_BY_STORMS, ids=lambda mutant: mutant.__name__)
def test_the_storm_finds_what_is_broken_on_purpose(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these is found within a few hundred runs, most within a few."""
    mutant(monkeypatch)
    few = settings(
        max_examples=400,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(FleetStorm, settings=few)


@pytest.mark.parametrize(("mutant", "story"), FOUND_BY_A_STORY, ids=lambda part: part.__name__)
def test_a_story_finds_what_is_broken_on_purpose(mutant: Mutant, story: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a storm meets rarely has a test of its own, and that test sees it."""
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        story()
