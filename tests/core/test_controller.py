"""The controller's decisions, one story each; what they add up to under faults is for the heap."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from govern.core import controller as controller_module
from govern.core.controller import (
    DECISIONS_MAX,
    ELECTION_US,
    FIRST_WAIT_US,
    HANGS_MS,
    QUIET_US,
    SILENCE_US,
    SPEAK_US,
    STEP_US,
    Controller,
    Decided,
    DecisionRefused,
)
from govern.core.meta import ClusterInit, LogProved, MetaState, NodeFenced, NodeForgotten, NodeJoined, Record, SlotBatch, SlotItem
from govern.core.slots import SLOT_COUNT
from govern.core.table import DOWN, UP
from govern.peer_messages import HEARTBEAT_LEASED, HEARTBEAT_UNKNOWN, Member, NodeHeartbeat, NodeHeartbeatOk, NodeRegister, NodeRegistered

START = 1_000 * 1_000_000
S = 1_000_000


def disk(node_id: int, number: int = 1) -> bytes:
    return bytes([node_id % 256, number]) * 8


class Leadership:
    """A controller with a log that commits when it is told to."""

    def __init__(self, configured: tuple[int, ...] = (1, 2, 3), meta: MetaState | None = None, **options: Any) -> None:
        if meta is None:
            meta = MetaState()
            meta.apply(1, ClusterInit(b"c" * 16).pack())
        self.meta = meta
        self.now = START
        self.number = 0
        self.controller = Controller(meta, Member(1, disk(1)), self.now, configured, **options)
        self.log: list[Record] = []

    def commit(self) -> list[Record]:
        """Everything that the controller wants becomes true, until it wants nothing more; what only proves the log is left out (N10)."""
        done: list[Record] = []
        while records := self.controller.take_proposals():
            assert self.controller.take_proposals() == [], "C1: nothing is proposed twice"
            for record in records:
                self.meta.apply(self.meta.index + 1, record.pack())
                self.meta.validate()
                self.controller.applied(record, self.now)
                done += [] if isinstance(record, LogProved) else [record]
        self.log.extend(done)
        return done

    def propose(self) -> list[Record]:
        """What the controller wants, once it has seen that the log works."""
        records = self.controller.take_proposals()
        if LogProved() in records:
            records.remove(LogProved())
            self.apply(LogProved())
            records += self.controller.take_proposals()
        return records

    def apply(self, record: Record) -> None:
        """One record becomes true."""
        self.meta.apply(self.meta.index + 1, record.pack())
        self.controller.applied(record, self.now)

    def wait(self, us: int) -> list[Record]:
        """Time passes, with ticks when they are due; what is wanted is committed."""
        end, done = self.now + us, []
        while self.now < end:
            self.now = min(end, self.controller.deadline_us)
            self.controller.tick(self.now)
            done.extend(self.commit())
        return done

    def register(self, node_id: int, boot_no: int = 1, number: int = 1, **changes: Any) -> None:
        message = NodeRegister(node_id, disk(node_id, number), boot_no, 2, f"c{node_id}", f"p{node_id}", True, False)
        self.controller.register(attrs.evolve(message, **changes), self.now)

    def beat(self, node_id: int, boot_no: int = 1, number: int = 1, proved: int | None = 0, unsynced_ms: int = 0) -> NodeHeartbeatOk | None:
        """A heartbeat; the leader's newest round began `proved` ago, or nothing proves that it leads."""
        self.number += 1
        message = NodeHeartbeat(node_id, disk(node_id, number), boot_no, 2, self.number, 0, 0, unsynced_ms, 0, 0)
        return self.controller.heartbeat(message, self.now, None if proved is None else self.now - proved)

    def beat_all(self, us: int, *node_ids: int) -> list[Record]:
        """Time passes while these nodes are heard."""
        done = []
        for _ in range(us // 500_000):
            done.extend(self.wait(500_000))
            for node_id in node_ids:
                self.beat(node_id, self.meta.nodes[node_id].row.boot_no)
        return done


def assigned(**options: Any) -> Leadership:
    """Three nodes that have a third of the slots each."""
    lead = Leadership(**options)
    for node_id in (1, 2, 3):
        lead.register(node_id)
    lead.commit()
    lead.wait(QUIET_US)
    lead.controller.take_answers()
    assert [lead.meta.table.primaries(node_id) for node_id in (1, 2, 3)] == [5461, 5461, 5462]
    return lead


def test_nodes_join_and_share_the_slots() -> None:
    """C2: answers come when the records are applied. The first assignment waits until all that are expected have come and nobody has come
    for a while; nodes are in the order of their ids."""
    lead = Leadership()
    for node_id in (3, 1):
        lead.register(node_id)
    assert lead.controller.take_answers() == []
    assert [type(record) for record in lead.commit()] == [NodeJoined, NodeJoined]
    answers = lead.controller.take_answers()
    assert answers == [NodeRegistered(node_id, disk(node_id), 1, 2, lead.meta.version, "") for node_id in (3, 1)]
    assert lead.wait(SILENCE_US // 2) == []
    lead.register(2)
    lead.commit()
    assert lead.wait(QUIET_US - 1) == []
    assert lead.controller.deadline_us == lead.now + 1
    (batch,) = lead.wait(1)
    assert batch == SlotBatch(
        "first assignment", (SlotItem(0, 5460, 1, True), SlotItem(5461, 10921, 2, True), SlotItem(10922, 16383, 3, True))
    )
    assert lead.controller.degraded() == []
    assert [row["primaries"] for row in lead.controller.rows()] == [5461, 5461, 5462]
    lead.register(4)
    assert [type(record) for record in lead.wait(QUIET_US)] == [NodeJoined], "later nodes are listed, without slots"
    assert repr(lead.controller) == "<Controller 1 waiting=2 on_its_way=0 alarms=0>"


def test_a_cluster_of_one_does_not_wait() -> None:
    """Nobody else is expected."""
    lead = Leadership(configured=())
    lead.register(1)
    assert [type(record) for record in lead.commit()] == [NodeJoined, SlotBatch]
    (answer,) = lead.controller.take_answers()
    assert answer.index == lead.meta.version


def test_the_first_assignment_waits_for_nobody_for_ever() -> None:
    """Five seconds, for those that were heard since."""
    lead = Leadership()
    assert lead.wait(FIRST_WAIT_US) == []
    lead.register(2)
    assert [type(record) for record in lead.commit()] == [NodeJoined, SlotBatch]
    assert lead.meta.table.primaries(2) == SLOT_COUNT


def test_a_new_controller_assigns_only_to_whom_it_heard() -> None:
    """What the one before decided and lost is decided again."""
    before = Leadership()
    for node_id in (1, 2, 3):
        before.register(node_id)
    before.commit()
    lead = Leadership(meta=before.meta)
    assert lead.wait(FIRST_WAIT_US - 1) == []
    assert lead.beat(2) is not None
    assert [record for record in lead.wait(1) if isinstance(record, SlotBatch)] == [
        SlotBatch("first assignment", (SlotItem(0, SLOT_COUNT - 1, 2, True),))
    ]


def test_a_restart_grants_again() -> None:
    """N2: a new boot number proves that the old process is gone. The answer waits for the grants, and the old life gets nothing more."""
    lead = assigned()
    lead.register(2, boot_no=2)
    (joined,) = lead.controller.take_proposals()
    assert lead.beat(2, 1) is None, "its record is on its way"
    lead.meta.apply(10, joined.pack())
    lead.controller.applied(joined, lead.now)
    assert lead.controller.take_answers() == []
    assert lead.commit() == [SlotBatch("restart", (SlotItem(5461, 10921, 2, False),))]
    (answer,) = lead.controller.take_answers()
    assert (answer.node_id, answer.boot_no, answer.index) == (2, 2, lead.meta.version)
    answer_to_old = lead.beat(2, 1)
    assert answer_to_old is not None
    assert answer_to_old.code == HEARTBEAT_UNKNOWN
    lead.register(2, boot_no=1)
    (refused,) = lead.controller.take_answers()
    assert refused.index == 0
    assert refused.text == (
        "node 2 says that this is its start number 1, but number 2 was here before: its data directory was rolled back; "
        "start it with an empty one, then give up what was in its slots: govern reset 2"
    )


def test_several_restarts_are_one_batch() -> None:
    """C1: the grants of all that wait travel together, and alone."""
    lead = assigned()
    lead.register(1, boot_no=2)
    lead.register(3, boot_no=2)
    first = lead.controller.take_proposals()
    assert [type(record) for record in first] == [NodeJoined, NodeJoined]
    lead.register(2, boot_no=2)
    assert [record for record in lead.controller.take_proposals() if isinstance(record, SlotBatch)] == []
    for index, record in enumerate(first, 10):
        lead.meta.apply(index, record.pack())
        lead.controller.applied(record, lead.now)
    assert lead.controller.take_proposals() == [], "the join of node 2 is on its way"
    done = lead.controller._on_its_way[0]
    lead.meta.apply(12, done.pack())
    lead.controller.applied(done, lead.now)
    (batch,) = lead.commit()
    assert batch == SlotBatch("restart", (SlotItem(0, 5460, 1, False), SlotItem(5461, 10921, 2, False), SlotItem(10922, 16383, 3, False)))


def test_a_heartbeat_is_answered_with_what_is_certain() -> None:
    """N6: a lease for the registered life from a leader with a lease; that it is unknown for others; nothing without a lease."""
    lead = assigned()
    answer = lead.beat(1)
    assert answer == NodeHeartbeatOk(1, disk(1), 1, 2, 1, HEARTBEAT_LEASED, 4_000, lead.meta.version, 1)
    for strange in (lead.beat(9), lead.beat(1, 2), lead.beat(1, 1, 2)):
        assert strange is not None
        assert (strange.code, strange.lease_ms) == (HEARTBEAT_UNKNOWN, 0)
    assert lead.beat(1, proved=None) is None
    assert lead.beat(9, proved=None) is None


def test_what_a_leader_lends_to_its_own_node_runs_from_its_newest_round() -> None:
    """N6: its node is judged by the leader's own silence (N7). A part of a millisecond is never lent."""
    lead = assigned()
    for proved, own in ((0, 4_000), (1, 3_999), (200_000, 3_800), (799_999, 3_200)):
        answers = lead.beat(1, proved=proved), lead.beat(2, proved=proved)
        assert [answer is not None and answer.lease_ms for answer in answers] == [own, 4_000]


def test_silence() -> None:
    """N7: five seconds after the last receipt the node is given up, keeps its slots, and is told to register; then all is as before."""
    lead = assigned()
    assert lead.beat_all(4_500_000, 1, 3) == []
    assert lead.wait(SILENCE_US - QUIET_US - 4_500_000 - 1) == []
    (fence,) = lead.wait(1)
    assert fence == NodeFenced(2, disk(2), 1, "nothing was heard from it for 5 s")
    assert lead.meta.nodes[2].row.state == DOWN
    assert lead.meta.table.primaries(2) == 5461
    assert lead.controller.degraded() == ["node 2 is down: nothing was heard from it for 5 s; 5461 slots are unavailable"]
    answer = lead.beat(2)
    assert answer is not None
    assert answer.code == HEARTBEAT_UNKNOWN
    runs = lead.meta.table.runs
    lead.register(2)
    assert [type(record) for record in lead.commit()] == [NodeJoined]
    assert lead.meta.table.runs == runs, "the same life keeps its terms"
    assert [answer.node_id for answer in lead.controller.take_answers()] == [2]
    assert lead.beat_all(4_500_000, 1, 3) == [], "its silence counts from its return"


def test_a_node_that_comes_back_is_neither_given_up_nor_forgotten_in_the_same_breath() -> None:
    """Its old life was silent for long enough when its new one, or its old one again, registers."""
    lead = assigned()
    lead.register(4)
    lead.commit()
    lead.beat_all(4_500_000, 1, 3)
    lead.now += 500_000
    lead.register(2, boot_no=2)
    records = lead.propose()
    assert [(type(record), record.node_id) for record in records if isinstance(record, (NodeJoined, NodeFenced))] == [
        (NodeJoined, 2),
        (NodeFenced, 4),
    ]
    for record in records:
        lead.meta.apply(lead.meta.index + 1, record.pack())
        lead.controller.applied(record, lead.now)
    lead.commit()
    lead.beat_all(6 * S, 1, 2, 3)
    assert lead.meta.nodes[4].row.state == DOWN
    lead.controller.forget(4, (), None)
    lead.register(4)
    assert [type(record) for record in lead.controller.take_proposals()] == [NodeJoined]


def test_who_is_being_given_up_gets_no_lease_any_more() -> None:
    """From the moment at which the record is on its way."""
    lead = assigned()
    lead.beat_all(4_500_000, 1, 3)
    lead.now += 500_000
    lead.controller.tick(lead.now)
    (fence,) = lead.propose()
    assert isinstance(fence, NodeFenced)
    assert lead.beat(2) is None
    assert lead.controller.take_proposals() == []


def test_silence_counts_from_the_start_of_the_controller() -> None:
    """Or, for the node of the leader before, from what that one sent last; but not from earlier than one election timeout before the
    start, for it may have led, and lent, until then although we did not hear it (N7)."""
    meta = assigned().meta
    cases = {None: SILENCE_US, 300_000: SILENCE_US - 300_000, 10 * S: SILENCE_US - ELECTION_US, -S: SILENCE_US}
    for ago, expected in cases.items():
        previous = None if ago is None else (3, START - ago)
        lead = Leadership(meta=MetaState.unpack(meta.pack()), previous=previous)
        while not lead.log:
            lead.beat(1)
            lead.beat(2)
            lead.wait(1_000)
        assert lead.log == [NodeFenced(3, disk(3), 1, "nothing was heard from it for 5 s")]
        assert lead.now - START == expected, ago
    Leadership(meta=meta, previous=(99, START))


def test_nobody_is_given_up_while_the_log_hangs() -> None:
    """N10: first the log has to take a record, and it is asked once. When that took long, whoever works may speak before; then the rest
    goes, with nothing more to prove."""
    lead = assigned()
    lead.beat_all(4_500_000, 1, 2)
    lead.now += 500_000
    lead.controller.tick(lead.now)
    assert lead.controller.take_proposals() == [LogProved()]
    for _ in range(40):
        lead.now += 500_000
        lead.beat(1)
        assert lead.controller.take_proposals() == []
    degraded = "a record waits for the disks of the candidates for 20 s: nobody is given up until they have it"
    assert lead.controller.degraded() == [degraded]
    lead.apply(LogProved())
    assert lead.controller.degraded() == []
    assert lead.controller.take_proposals() == []
    assert lead.wait(SPEAK_US // 2) == []
    assert lead.beat(2) is not None
    assert lead.wait(SPEAK_US - SPEAK_US // 2 - 1) == []
    assert [fence.node_id for fence in lead.wait(1) if isinstance(fence, NodeFenced)] == [3]
    assert lead.controller.take_proposals() == []
    lead.apply(LogProved())  # a leader that is deposed, and has not heard of it, sees proofs of the next one


def test_a_proof_counts_for_a_moment() -> None:
    """The next node that falls silent needs another one, and one that was not taken is asked for again."""
    lead = assigned()
    lead.beat_all(4_500_000, 1, 2)
    lead.now += 500_000
    lead.controller.tick(lead.now)
    (proof,) = lead.controller.take_proposals()
    lead.controller.withdraw(proof)
    (fence,) = lead.propose()
    assert isinstance(fence, NodeFenced)
    lead.apply(fence)
    lead.beat(2)
    lead.beat_all(4_500_000, 1)
    assert lead.controller.take_proposals() == []
    lead.now += 500_000
    lead.controller.tick(lead.now)
    assert lead.controller.take_proposals() == [LogProved()]


def test_hanging_logs_are_no_reason_when_they_hang_everywhere() -> None:
    """N10: who said as its last word that its log hangs is given up when another node is known to be better; the dead are anyhow."""
    hangs = 2_700
    lead = assigned()
    for node_id in (1, 2):
        lead.beat(node_id, unsynced_ms=hangs)
    assert [fence.node_id for fence in lead.wait(SILENCE_US + SPEAK_US) if isinstance(fence, NodeFenced)] == [3], "it died"
    assert lead.wait(60 * S) == []
    lead.register(3, boot_no=2)
    assert [type(record) for record in lead.commit()] == [NodeJoined, SlotBatch], "now there is a better one"
    assert lead.beat_all(S, 3) == []
    lead.beat(2)
    assert [fence.node_id for fence in lead.beat_all(S, 3) if isinstance(fence, NodeFenced)] == [1]
    lead = assigned()
    lead.beat(1, unsynced_ms=hangs)
    assert [fence.node_id for fence in lead.beat_all(6 * S, 2, 3) if isinstance(fence, NodeFenced)] == [1]
    for unsynced_ms in (HANGS_MS, HANGS_MS - 1):
        lead = Leadership(configured=())
        lead.register(1)
        lead.commit()
        lead.beat(1, unsynced_ms=unsynced_ms)
        assert bool(lead.wait(60 * S)) == (unsynced_ms < HANGS_MS), "a node that is alone is not given up for its disk"


def test_a_controller_that_was_stopped_blames_nobody() -> None:
    """The heartbeats of that time are waiting to be read: a pause counts as half a second."""
    lead = assigned()
    lead.now += 60 * S
    lead.controller.tick(lead.now)
    assert lead.commit() == []
    lead.controller.tick(lead.now - S)
    assert lead.wait(SILENCE_US - 2 * STEP_US - QUIET_US - 1) == []


def test_a_registration_is_a_sign_of_life_too() -> None:
    """Of the life that is registered already."""
    lead = assigned()
    for _ in range(20):
        for node_id in (1, 2, 3):
            lead.register(node_id)
        assert lead.wait(500_000) == []
    assert len(lead.controller.take_answers()) == 3


def test_most_nodes_silent_together_is_an_alarm() -> None:
    """N9: they are given up all the same; the alarm ends when most are back."""
    lead = assigned()
    lead.beat_all(6 * S, 1)
    assert [lead.meta.nodes[node_id].row.state for node_id in (1, 2, 3)] == [UP, DOWN, DOWN]
    assert lead.controller.alarms == ["2 of 3 nodes fell silent together: look for what they share, such as the network or the power"]
    assert lead.controller.degraded()[0] == lead.controller.alarms[0]
    lead.register(2)
    lead.commit()
    assert lead.controller.alarms == []
    apart = assigned()
    apart.beat_all(6 * S, 1, 2)
    apart.beat_all(6 * S, 1)
    assert [node.row.state for node in apart.meta.nodes.values()] == [UP, DOWN, DOWN]
    assert apart.controller.alarms == []


def test_an_alarm_ends_when_those_who_are_gone_are_forgotten() -> None:
    """N9: a cluster that was made smaller is well, and says so. That its nodes were given up one after the other does not end it."""
    lead = Leadership(configured=())
    lead.register(1)
    lead.commit()
    for node_id in (2, 3):
        lead.register(node_id)
    lead.commit()
    lead.beat_all(6 * S, 1)
    assert lead.controller.alarms == ["2 of 3 nodes fell silent together: look for what they share, such as the network or the power"]
    lead.controller.forget(2, (1,), None)
    lead.commit()
    assert lead.controller.alarms
    lead.controller.forget(3, (1,), None)
    lead.commit()
    assert lead.controller.degraded() == []


def test_another_disk_is_taken_in_when_the_one_before_was_given_up() -> None:
    """N2, N3: only silence proves that the old process is gone. Its slots stay, unavailable, until the operator gives them up."""
    lead = assigned()
    lead.register(2, number=2)
    (refused,) = lead.controller.take_answers()
    assert "node id 2 is in use by a process with another data directory" in refused.text
    lead.beat_all(6 * S, 1, 3)
    lead.register(2, number=2)
    assert [type(record) for record in lead.commit()] == [NodeJoined]
    (answer,) = lead.controller.take_answers()
    assert answer.index == lead.meta.version
    assert "5461 slots had their only copy on a disk that node 2 no longer has" in lead.controller.degraded()[0]
    assert lead.controller.reset(2, "mine") == 5461
    assert lead.commit() == [SlotBatch("reset", (SlotItem(5461, 10921, 2, True),))]
    assert lead.controller.take_decided() == [Decided("mine")]
    assert lead.controller.degraded() == []


def test_a_node_in_memory_gets_new_copies_at_once() -> None:
    """Its slots were empty with its process; no operator needs to say so."""
    lead = Leadership(configured=(1, 2))
    lead.register(1)
    lead.register(2, volatile=True)
    lead.commit()
    lead.wait(QUIET_US)
    lead.controller.take_answers()
    lead.beat_all(6 * S, 1)
    lead.register(2, number=2, volatile=True)
    done = lead.commit()
    assert [type(record) for record in done] == [NodeJoined, SlotBatch]
    assert done[1] == SlotBatch("restart", (SlotItem(8192, 16383, 2, True),))
    assert len(lead.controller.take_answers()) == 1


def test_resets_that_are_refused() -> None:
    """Of an unknown node, of one that has lost nothing, of one that is down; and it waits when the node goes down in between."""
    lead = assigned()
    for node_id, text in ((9, "there is no node 9"), (1, "node 1 has lost nothing")):
        with pytest.raises(DecisionRefused, match=text):
            lead.controller.reset(node_id, None)
    lead.beat_all(6 * S, 1, 3)
    lead.register(2, number=2)
    lead.commit()
    lead.controller.take_answers()
    lead.meta.apply(50, NodeFenced(2, disk(2, 2), 1, "silent").pack())
    with pytest.raises(DecisionRefused, match="node 2 is down: start it first"):
        lead.controller.reset(2, None)
    lead.meta.apply(51, NodeJoined(2, disk(2, 2), 1, "moved", "p2", True, False).pack())
    lead.controller.reset(2, "first")
    lead.meta.apply(52, NodeFenced(2, disk(2, 2), 1, "silent").pack())
    assert lead.commit() == []
    lead.register(2, boot_no=2)
    assert [type(record) for record in lead.commit()] == [NodeJoined, SlotBatch], "the old disk is back: nothing is lost"
    assert lead.controller.take_decided() == [Decided("first")]


def test_a_decision_for_which_nobody_waits_any_more_is_not_taken() -> None:
    """The node went down before its reset was in the log, and the operator was told that nobody knows. Days later it comes back: then it
    is not the moment to give its slots up. Another operator's word for the same node still counts."""
    lead = assigned()
    lead.beat_all(6 * S, 1, 3)
    lead.register(2, number=2)
    lead.commit()
    for token in ("first", "second"):
        lead.controller.reset(2, token)
    lead.meta.apply(50, NodeFenced(2, disk(2, 2), 1, "silent").pack())
    lead.controller.abandon("first")
    lead.controller.abandon("nobody's")
    assert [lead.controller._resets, lead.controller._forgets] == [{2: ["second"]}, {}]
    lead.controller.abandon("second")
    assert [lead.controller._resets, lead.controller._forgets] == [{}, {}]
    lead.meta.apply(51, NodeJoined(2, disk(2, 2), 1, "moved", "p2", True, False).pack())
    assert not any(isinstance(record, SlotBatch) for record in lead.commit())
    assert lead.controller.take_decided() == []
    for number in range(DECISIONS_MAX + 10):
        lead.controller.reset(2, number)
        lead.controller.abandon(number)


def test_forgetting() -> None:
    """Only a node that is down, holds nothing and is no member; a return in between makes it impossible."""
    lead = assigned()
    lead.register(4)
    lead.commit()
    for node_id, text in ((9, "there is no node 9"), (4, "node 4 is up: stop it first")):
        with pytest.raises(DecisionRefused, match=text):
            lead.controller.forget(node_id, (), None)
    lead.beat_all(6 * S, 1, 3)
    assert [lead.meta.nodes[node_id].row.state for node_id in (2, 4)] == [DOWN, DOWN]
    with pytest.raises(DecisionRefused, match="node 2 has copies of 5461 slots"):
        lead.controller.forget(2, (), None)
    with pytest.raises(DecisionRefused, match="govern members remove 4 first"):
        lead.controller.forget(4, (1, 4), None)
    lead.controller.forget(4, (1,), "a")
    lead.controller.forget(4, (1,), "b")
    assert lead.commit() == [NodeForgotten(4)]
    assert lead.controller.take_decided() == [Decided("a"), Decided("b")]
    assert 4 not in lead.meta.nodes
    lead.wait(SILENCE_US)
    lead.register(4)
    lead.commit()
    assert lead.meta.nodes[4].row.registered_at == lead.meta.version


def test_a_node_that_returns_is_not_forgotten() -> None:
    lead = assigned()
    lead.register(4)
    lead.commit()
    lead.beat_all(6 * S, 1, 2, 3)
    lead.register(4)
    (joined,) = lead.controller.take_proposals()
    lead.controller.forget(4, (), "late")
    assert lead.controller.take_proposals() == []
    lead.meta.apply(99, joined.pack())
    lead.controller.applied(joined, lead.now)
    assert lead.controller.take_decided() == [Decided("late", "node 4 is up: stop it first")]
    assert lead.commit() == []


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many nodes, waiting registrations and decisions, and no more."""
    monkeypatch.setattr(controller_module, "NODES_MAX", 3)
    lead = assigned()
    lead.register(4)
    (refused,) = lead.controller.take_answers()
    assert refused.text == "this cluster already has 3 nodes, and takes no more"
    for node_id in (0, 65_536):
        lead.register(node_id)
    lead.register(1, disk_id=b"")
    assert [answer.index for answer in lead.controller.take_answers()] == [0, 0, 0]
    for _ in range(DECISIONS_MAX):
        lead.controller._note(lead.controller._forgets, 7, None)
    with pytest.raises(DecisionRefused, match="100 decisions wait already"):
        lead.controller._note(lead.controller._forgets, 7, None)
    crowd = Leadership()
    for node_id in range(1, 9):
        crowd.register(node_id)
    assert len(crowd.controller.take_proposals()) == 3


def test_a_record_that_could_not_be_proposed_is_wanted_again() -> None:
    lead = Leadership()
    lead.register(1)
    (record,) = lead.controller.take_proposals()
    lead.controller.withdraw(record)
    assert lead.controller.take_proposals() == [record]


def test_a_registration_that_would_be_refused_by_now_is_forgotten() -> None:
    """It waited while a higher boot number of the same disk came in with the log."""
    lead = assigned()
    lead.register(2, boot_no=2)
    lead.meta.apply(50, NodeJoined(2, disk(2), 3, "c2", "p2", True, False).pack())
    assert [record for record in lead.commit() if isinstance(record, NodeJoined)] == []
    assert lead.controller.take_answers() == []
