"""The client's rules against a model node, through storms of broken connections, lost answers, restarts and rivals.

Whatever happens while the storm lasts, the invariants hold at every step; and once it ends, everything that is wanted is held, everything
that is not wanted is gone, and every view is the truth.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from govern.client.claims import Claim
from govern.client.core import ClientCore, Phase
from govern.client.outbox import Request
from govern.client.views import Cursor
from govern.errors import Invalid, Unreachable
from govern.messages import FRAME_BYTES_MAX_TO_CLIENT, Refused, Register, build_message
from govern.model import Change, Instance, Lsn, ServiceKey, Status, client_fields
from govern.net.frames import FrameReader

from .model_node import ModelNode

OURS = b"o" * 16
RIVAL = b"r" * 16
SERVICES = [ServiceKey("default", "a"), ServiceKey("default", "b")]
IDS = ["one", "two", "three"]
services = st.sampled_from(SERVICES)
ids = st.sampled_from(IDS)


@attrs.define(eq=False)
class Watcher:
    """A consumer of a view that repeats every change on a copy of its own."""

    cursor: Cursor
    copy: dict[str, Instance] = attrs.field(factory=dict)
    lsn: tuple[int, Lsn] = (0, Lsn(0, 0))

    def consume(self) -> None:
        change = self.cursor.take()
        if change is None:
            return
        assert isinstance(change, Change)
        for instance in change.added:
            assert instance.id not in self.copy
        for instance in change.updated:
            assert self.copy[instance.id] != instance
        for instance_id in change.removed:
            del self.copy[instance_id]
        self.copy |= {instance.id: instance for instance in (*change.added, *change.updated)}
        assert self.copy == self.cursor.view.instances


class Storm(RuleBasedStateMachine):
    """One client, one node, and a pipe each way."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.core = ClientCore(OURS)
        self.node = ModelNode()
        self.to_node: list[list[Any]] = []
        self.to_client: list[list[Any]] = []
        self.claims: list[Claim] = []
        self.kept: dict[tuple[ServiceKey, str], Claim] = {}
        self.watchers: list[Watcher] = []
        self.requests: list[Request] = []
        self.clusters = {"": 0}
        self.operated: dict[tuple[ServiceKey, str], None] = {}  # drained by somebody who does not own them

    # --- the pipe -----------------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        frames, _ = self.core.outbox.take()
        for raw in FrameReader(FRAME_BYTES_MAX_TO_CLIENT).feed(b"".join(frames)):
            message = build_message(raw)
            if isinstance(message, Register):  # nobody fights for what was lost
                key = (message.service, message.instance[0])
                assert any(claim.key == key and not claim.over for claim in self.claims), message
            self.to_node.append(raw)

    def collect_node(self) -> None:
        self.to_client += FrameReader(FRAME_BYTES_MAX_TO_CLIENT).feed(b"".join(self.node.out))
        self.node.out.clear()

    def drop(self) -> None:
        self.node.disconnect()
        self.to_node.clear()
        self.to_client.clear()
        if self.core.phase is not Phase.DOWN:
            self.core.disconnected()
        self.collect()

    # --- the client's wishes ------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.connect()

    @rule(service=services, instance_id=ids, ephemeral=st.booleans(), ttl=st.sampled_from([1.0, 5.0]))
    def register(self, service: ServiceKey, instance_id: str, ephemeral: bool, ttl: float) -> None:
        instance = Instance(id=instance_id, host="h", port=1 + len(self.claims), ephemeral=ephemeral, ttl=ttl)
        living = [claim for claim in self.claims if claim.key == (service, instance_id) and claim.wanted and not claim.over]
        try:
            claim = self.core.registrations.register(service, instance)
        except Invalid:
            assert living
            return
        assert not living
        self.claims.append(claim)
        self.kept.pop(claim.key, None)
        self.core.registrations.pump()
        self.collect()

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), changes=st.sampled_from([{"weight": 0.5}, {"weight": 2.0}, {"status": Status.UP}, {"status": Status.DOWN}]))
    def update(self, data: st.DataObject, changes: dict[str, Any]) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        if claim.acknowledged:
            self.requests.append(self.core.registrations.update(claim, changes))
            self.core.registrations.pump()
            self.collect()

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        if not claim.ephemeral and claim.acknowledged and claim.wanted is not None and not claim.over:
            self.core.registrations.keep(claim)
            self.kept[claim.key] = claim
        else:
            self.core.registrations.leave(claim)
        self.core.registrations.pump()
        self.collect()

    @rule(service=services)
    def subscribe(self, service: ServiceKey) -> None:
        cursor = self.core.views.open(service)
        cursor.skip()
        self.watchers.append(Watcher(cursor, dict(cursor.view.instances)))
        self.collect()

    @precondition(lambda self: self.watchers)
    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        watcher = data.draw(st.sampled_from(self.watchers))
        self.watchers.remove(watcher)
        self.core.views.close(watcher.cursor)
        self.collect()

    @rule(service=services)
    def lookup(self, service: ServiceKey) -> None:
        self.requests.append(self.core.ask(build_message([11, 1, list(service)])))  # type: ignore[arg-type]
        self.collect()

    @precondition(lambda self: self.watchers)
    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.watchers)).consume()

    # --- the network and time -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.core.phase is Phase.DOWN)
    @rule()
    def connect(self) -> None:
        self.core.dialled(self.now)
        self.collect()

    @rule(count=st.integers(1, 6))
    def reach_node(self, count: int) -> None:
        for _ in range(min(count, len(self.to_node))):
            self.node.receive(self.to_node.pop(0))
        self.collect_node()

    @rule(count=st.integers(1, 6))
    def reach_client(self, count: int) -> None:
        for _ in range(min(count, len(self.to_client))):
            self.core.receive(self.to_client.pop(0), self.now)
            if self.core.cluster_id:
                self.clusters.setdefault(self.core.cluster_id, self.node.cluster)
        self.collect()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.core.deadline <= self.now:
            try:
                self.core.tick(self.now)
            except Unreachable:
                self.drop()
        self.collect()

    @rule()
    def break_connection(self) -> None:
        self.drop()

    # --- the node's misfortunes ---------------------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        self.node.restart()
        self.drop()

    @rule()
    def expire_everything(self) -> None:
        self.node.forget_sessions()
        self.drop()

    @rule()
    def wipe(self) -> None:
        self.node.wipe()
        self.kept.clear()
        self.drop()

    @rule(service=services, instance_id=ids)
    def expire_quietly(self, service: ServiceKey, instance_id: str) -> None:
        held = self.node.instances.get((service, instance_id))
        if held is not None and held.fields[9]:
            self.node.remove((service, instance_id))
            self.collect_node()

    @rule(service=services, instance_id=ids)
    def rival_registers(self, service: ServiceKey, instance_id: str) -> None:
        instance = Instance(id=instance_id, host="rival", port=1)
        self.node.put((service, instance_id), RIVAL, self.node.seq + 1, client_fields(instance))
        self.kept.pop((service, instance_id), None)
        self.collect_node()

    @rule(service=services, instance_id=ids)
    def rival_leaves(self, service: ServiceKey, instance_id: str) -> None:
        held = self.node.instances.get((service, instance_id))
        if held is not None and held.session_id == RIVAL:
            self.node.remove((service, instance_id))
            self.collect_node()

    @rule(code=st.sampled_from(["overloaded", "stopping", "unknown", "disk_full"]), pause=st.sampled_from([0, 200, 1500]))
    def refuse_next_write(self, code: str, pause: int) -> None:
        self.node.refusals.append(Refused(code, "not now", pause))

    @rule()
    def lose_a_push(self) -> None:
        for service in self.node.subscriptions:
            self.node.subscriptions[service] = Lsn(self.node.term, self.node.seq + 1)
            self.node.seq += 1
            self.node.lsns[service] = self.node.subscriptions[service]
            self.node.history[self.node.cluster, service, self.node.lsns[service]] = self.node.state(service)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), seconds=st.sampled_from([0.5, 5.0]))
    def drain(self, data: st.DataObject, seconds: float) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        if claim.acknowledged:
            self.requests.append(self.core.commands.drain(claim.service, claim.instance_id, self.now + seconds, claim))
            if self.core.connected:
                self.core.commands.pump(self.now)
            self.collect()

    @rule(service=services, instance_id=ids, evict=st.booleans())
    def operate(self, service: ServiceKey, instance_id: str, evict: bool) -> None:
        commands = self.core.commands
        request = commands.evict(service, instance_id) if evict else commands.drain(service, instance_id, self.now + 5)
        self.requests.append(request)
        if not evict:
            self.operated[service, instance_id] = None
        if self.core.connected:
            commands.pump(self.now)
        self.collect()

    @rule(service=services, instance_id=ids)
    def evict_from_elsewhere(self, service: ServiceKey, instance_id: str) -> None:
        self.node.evict((service, instance_id))
        self.collect_node()

    @rule(service=services, instance_id=ids, on=st.booleans())
    def hint(self, service: ServiceKey, instance_id: str, on: bool) -> None:
        if (service, instance_id) in self.node.instances:
            self.node.hint((service, instance_id), on=on)
            self.collect_node()

    @rule(service=services, instance_id=ids)
    def a_stray_appears(self, service: ServiceKey, instance_id: str) -> None:
        """The node holds something for this session that it knows nothing of, as after an answer that was given up."""
        key = (service, instance_id)
        claimed = any(claim.key == key and not claim.over for claim in self.claims)
        if OURS in self.node.known_sessions and key not in self.node.instances and not claimed:
            self.node.put(key, OURS, 0, client_fields(Instance(id=instance_id, host="stray", port=1)))
            self.collect_node()

    @rule(whole=st.booleans())
    def push_otherwise(self, whole: bool) -> None:
        self.node.whole_pushes = whole

    # --- what always holds --------------------------------------------------------------------------------------------------

    @invariant()
    def rules_hold(self) -> None:
        self.core.validate()

    @invariant()
    def views_are_states_that_were(self) -> None:
        for watcher in self.watchers:
            view = watcher.cursor.view
            if not view.ready or view.lsn == Lsn(0, 0):
                continue
            cluster = self.clusters[self.core.cluster_id]
            assert (cluster, view.lsn) >= watcher.lsn, "a view never goes back"
            watcher.lsn = (cluster, view.lsn)
            state = self.node.history[cluster, view.service, view.lsn]
            stored = view.without_suspicion()
            shown = {instance.id: [[*instance.lease_id, *instance.lsn, 0], client_fields(instance)] for instance in stored}
            assert shown == state

    @invariant()
    def every_write_happened_once_at_most(self) -> None:
        for instance_id, count in self.node.applied.items():
            allowed = 1 + self.node.term  # only an instance that was removed meanwhile may be put back by a repetition
            assert count <= allowed or not self.node.instances, instance_id

    # --- calm ---------------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        self.node.refusals.clear()
        for turn in range(40):
            if turn == 20:
                self.show_what_was_lost()
            if self.core.phase is Phase.DOWN:
                self.connect()
            while self.to_node or self.to_client:
                self.reach_node(6)
                self.reach_client(6)
            self.rules_hold()
            self.views_are_states_that_were()
            self.wait(0.5)
        while self.to_node or self.to_client:
            self.reach_node(6)
            self.reach_client(6)
        self.check_calm()

    def show_what_was_lost(self) -> None:
        """A push that was lost shows with the next one: let there be a next one in every service."""
        for service in list(self.node.subscriptions):
            key = (service, "passing")
            fields = client_fields(Instance(id="passing", host="passing", port=9))
            self.node.put(key, RIVAL, 1_000_000, fields)
            self.collect_node()
            self.node.remove(key)
            self.collect_node()

    def check_calm(self) -> None:
        core, node = self.core, self.node
        assert all(request.done for request in self.requests), [request for request in self.requests if not request.done]
        assert (core.registrations.count, core.registrations.digest) == node.holds()
        ours = {key: held for key, held in node.instances.items() if held.session_id == OURS}
        wanted = {claim.key: claim for claim in self.claims if claim.wanted is not None and not claim.over}
        assert ours.keys() == wanted.keys() | self.kept.keys() & ours.keys()
        for key, claim in wanted.items():
            assert claim.wanted is not None
            assert (claim.held, claim.lease) == (True, ours[key].lease_id)
            wanted_fields = client_fields(claim.wanted)
            if key in self.operated:  # whoever else drains an instance does not tell its owner
                wanted_fields[8] = ours[key].fields[8]
            assert wanted_fields == ours[key].fields
        for watcher in self.watchers:
            view = watcher.cursor.view
            assert not view.stale
            assert view.lsn == node.lsn_of(view.service)
            assert view.instances.keys() == node.state(view.service).keys()
            up = {of for of, held in node.instances.items() if held.fields[8] == 0}
            assert {(view.service, suspect) for suspect in view.suspects} == {
                of for of in node.suspects if of[0] == view.service and of in up
            }
            watcher.consume()
            assert watcher.copy == view.instances


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=80, stateful_step_count=50, deadline=None, derandomize=True)


@pytest.mark.deep
class TestLongStorms(Storm.TestCase):  # type: ignore[misc, valid-type]
    """The same, longer and wilder."""

    settings = settings(max_examples=3000, stateful_step_count=100, deadline=None)
