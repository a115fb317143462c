"""The controller's decisions: which nodes belong to the cluster, which of them work, and who answers for which slot.

A `Controller` lives on the leader of the metadata log from the moment at which its no-op is committed until it leads no longer; the next
leader makes its own. It keeps nothing that matters: whatever was decided but lost is derived again from the metadata and from what
the nodes repeat. It proposes records; only a record that comes back applied is true.

C1  A record is on its way once. Grants of slots travel alone: they are decided when nothing else is on its way, and nothing else is
    proposed until they are applied. So they are never about a state that has changed meanwhile.
C2  A registration is answered when its record is applied, and its grants too.
N2  A higher boot number on the same disk proves that the process before it is gone: the node is registered at once, and its slots are
    granted again with new terms. Another disk proves nothing: that life is taken in when the one before has been given up.
N3  A lower boot number than known is refused: the disk was rolled back. Copies on a disk that the node no longer has are lost; nobody gets
    their slots until an operator says so, unless that disk was memory.
N6  A lease is lent to a registered life that is up, by a leader with a lease of its own. To the leader's own node it is lent from the
    beginning of the newest round that a majority has answered, to others from their heartbeats.
N7  A node is given up when nothing was heard from it for five seconds, counted from the start of this controller at the earliest. For the
    node of the leader before, it is counted from what that one sent last, and one election timeout before the start at the earliest.
    The lease of a node is always over before the node is given up, also when each clock is wrong by a tenth. Let s be when the last
    round began that a majority answered. A lease lasts 4/0.9 = 4.44 s at most, a silence 5/1.1 = 4.54 s at least, and nobody is elected
    before s + 1/1.1 = s + 0.91. The leader before lent others nothing after s + 0.8/0.9 = s + 0.89, so their leases are over at
    s + 5.33, and are given up at s + 0.91 + 4.54 = s + 5.45 at the earliest. It lent its own node nothing beyond s + 4.44. That one is
    given up 4.54 s after what was heard from it, which is after s + 4.54 if that came with this round or later; and if it came
    before, (5 - 1)/1.1 = 3.64 s after the election, which is at s + 0.91 + 3.64 = s + 4.54 again. A credit of more than 1.1 s would be
    too much. When the leadership was handed over nobody waited for an election timeout, but the offer was heard, after s.
N9  When more than half of all nodes fall silent within five seconds they are given up all the same, and there is an alarm.
N10 Nobody is given up because the disks hang everywhere. A record that waits for the disks cannot be taken back, and by the time they work
    again its reason may have gone: so before anybody is given up, a record that says nothing goes through the log. When it took longer
    than a second the log hung, and perhaps the nodes with it: then they have the time of three heartbeats to speak, from the moment at
    which it was there. And a node whose last word was that its log hangs is not given up before another one has been known to be better
    for so long: when the disks of all come back together, one of them speaks first.

Time counts as lived: a leader that was stopped for a while has to hear its nodes' silence anew. `now_us` never goes back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import attrs

from ..errors import GovernError
from ..model import NODE_ID_MAX
from ..peer_messages import (
    HEARTBEAT_LEASED,
    HEARTBEAT_UNKNOWN,
    Member,
    NodeHeartbeat,
    NodeHeartbeatOk,
    NodeRegister,
    NodeRegistered,
)
from .meta import LogProved, MetaState, NodeFenced, NodeForgotten, NodeJoined, Record, SlotBatch, SlotItem
from .placement import free_ranges, join_items, spread
from .slots import SLOT_COUNT
from .standing import LEASE_MS
from .table import DOWN, UP, SlotRun, TableNode

SILENCE_US: Final = 5_000_000
ELECTION_US: Final = 1_000_000
"""Nobody is elected within this time of the last sign of life of the leader before (rule R1): what N7 credits at most."""
HUNG_US: Final = 1_000_000
"""A log that needs more than this for a record hangs (N10)."""
SPEAK_US: Final = 1_500_000
"""Who works is heard within this time: three heartbeats."""
PROOF_US: Final = 2_000_000
"""A proof that the log works counts for so long: for `SPEAK_US` and a tick."""
HANGS_MS: Final = 2_000
"""A node of which this was the last word fell silent because its log hangs: it goes on to speak until that hangs for three seconds."""
QUIET_US: Final = 300_000
"""The first assignment waits until no node has joined for so long."""
FIRST_WAIT_US: Final = 5_000_000
"""The first assignment waits no longer than this for nodes that do not come."""
STEP_US: Final = 250_000
"""`tick` wants to be called so often; a longer pause counts as twice this, for we may have been stopped."""
NODES_MAX: Final = 1_000
"""Nodes of one cluster, and registrations that wait."""
DECISIONS_MAX: Final = 100
"""Operators' decisions that wait for their records."""


class DecisionRefused(GovernError):
    """An operator asked for something that would do harm or nothing; the text says why and what to do."""


@attrs.frozen
class Decided:
    """What became of an operator's decision: `refused` is empty when it is done."""

    token: object
    refused: str = ""


class Controller:
    """Decides, on the leader. `configured` are the nodes that the first assignment waits for: none for a node that is alone. `previous` is
    the leader before, if that was another node, and when something was last heard from it (`now_us` of the last Append)."""

    def __init__(
        self, meta: MetaState, me: Member, now_us: int, configured: Sequence[int], *, previous: tuple[int, int] | None = None
    ) -> None:
        self.meta = meta
        self.me = me
        self.alarms: list[str] = []
        """What an operator should look at, one line each (N9)."""
        self._configured = tuple(configured)
        self._now_us = now_us
        self._lived_us = 0
        self._heard: dict[int, int] = dict.fromkeys(meta.nodes, 0)  # node → lived time of the last receipt
        if previous is not None and previous[0] in meta.nodes:
            self._heard[previous[0]] = max(min(previous[1] - now_us, 0), -ELECTION_US)  # N7
        self._here: dict[int, None] = {}  # nodes that this controller itself heard
        self._joined_us = 0  # lived time of the last NodeJoined
        self._waiting: dict[int, NodeRegister] = {}
        self._on_its_way: list[Record] = []
        self._answers: list[NodeRegistered] = []
        self._given_up: dict[int, int] = {}  # node → lived time
        self._hangs: dict[int, bool] = {}  # whether a node's last heartbeat said that its log hangs
        self._proof_asked_us: int | None = None  # lived times of N10
        self._proof_until_us = self._patient_until_us = 0
        self._no_better_us = -SPEAK_US  # when nobody was known to be better than those whose logs hang
        self._resets: dict[int, list[object]] = {}
        self._forgets: dict[int, list[object]] = {}
        self._decided: list[Decided] = []
        self._looked_at = -1  # the table version of the next two
        self._due: list[SlotItem] = []
        self._unassigned = False

    def __repr__(self) -> str:
        return f"<Controller {self.me.node_id} waiting={len(self._waiting)} on_its_way={len(self._on_its_way)} alarms={len(self.alarms)}>"

    # --- what comes in -----------------------------------------------------------------------------------------------------------

    def register(self, message: NodeRegister, now_us: int) -> None:
        """A life of a node wants its part. The answer comes with `take_answers`, now or later; or never, and the node repeats."""
        self._live(now_us)
        refusal = self._refusal(message)
        if refusal is not None:
            self._answers.append(_answer(message, 0, refusal))
            return
        node = self.meta.nodes.get(message.node_id)
        if node is not None and node.is_life(message.disk_id, message.boot_no):
            self._hear(message.node_id)
        if len(self._waiting) < NODES_MAX or message.node_id in self._waiting:
            self._waiting[message.node_id] = message

    def heartbeat(self, message: NodeHeartbeat, now_us: int, proved_us: int | None) -> NodeHeartbeatOk | None:
        """The answer to a heartbeat: a lease, or that this life is not known (any more); None when there is nothing that could be said for
        certain. `proved_us` is when the newest round began that a majority has answered, None when this leader's own lease is over (N6)."""
        self._live(now_us)
        node = self.meta.nodes.get(message.node_id)
        known = node is not None and node.row.state == UP and node.is_life(message.disk_id, message.boot_no)
        if known:
            self._hear(message.node_id)
            self._hangs[message.node_id] = message.unsynced_ms >= HANGS_MS
        if proved_us is None or self._is_changing(message.node_id):
            return None
        code, lease_ms = (HEARTBEAT_LEASED, self._lease_ms(message.node_id, proved_us)) if known else (HEARTBEAT_UNKNOWN, 0)
        life = message.node_id, message.disk_id, message.boot_no
        return NodeHeartbeatOk(*life, message.via, message.number, code, lease_ms, self.meta.version, self.me.node_id)

    def tick(self, now_us: int) -> None:
        """Time has passed."""
        self._live(now_us)

    def applied(self, record: Record, now_us: int) -> None:
        """`record` has been applied to the metadata. Called for each, right after `meta.apply`."""
        self._live(now_us)
        if record in self._on_its_way:
            self._on_its_way.remove(record)
        if isinstance(record, NodeJoined):
            self._hear(record.node_id)
            self._joined_us = self._lived_us
        elif isinstance(record, LogProved):
            self._note_proof()
        elif isinstance(record, NodeForgotten) and record.node_id not in self.meta.nodes:
            self._heard.pop(record.node_id, None)
            self._here.pop(record.node_id, None)
            self._hangs.pop(record.node_id, None)
        has_other_nodes = isinstance(record, NodeJoined | NodeForgotten)
        if self.alarms and has_other_nodes and 2 * sum(row.state == UP for row in self.meta.table.nodes) > len(self.meta.nodes):
            self.alarms.clear()  # most of those that are left are there: some came back, or others were forgotten
        self._settle_decisions()

    def withdraw(self, record: Record) -> None:
        """A record that `take_proposals` gave could not be proposed just now: it is derived again, if it is still right."""
        self._on_its_way.remove(record)
        if isinstance(record, LogProved):
            self._proof_asked_us = None

    # --- operators ---------------------------------------------------------------------------------------------------------------

    def reset(self, node_id: int, token: object) -> int:
        """Give the slots of a node whose only copies are lost new, empty copies on that node. Returns how many; `take_decided` says when it
        is done. Raises `DecisionRefused`."""
        node = self.meta.nodes.get(node_id)
        if node is None:
            raise DecisionRefused(f"there is no node {node_id}")
        slots = sum(run.last - run.first + 1 for run in self._lost(node_id))
        if not slots:
            raise DecisionRefused(f"node {node_id} has lost nothing: none of its copies was on a disk that it no longer has")
        if node.row.state == DOWN:
            raise DecisionRefused(f"node {node_id} is down: start it first, then its slots can begin again there")
        self._note(self._resets, node_id, token)
        return slots

    def forget(self, node_id: int, members: Collection[int], token: object) -> None:
        """Take a node that is gone for good from the list. `members` are the node ids of the voters and learners. Raises
        `DecisionRefused`."""
        refusal = self._not_forgettable(node_id)
        if refusal is None and node_id in members:
            refusal = f"node {node_id} is a member of the controllers' log: govern members remove {node_id} first"
        if refusal is not None:
            raise DecisionRefused(refusal)
        self._note(self._forgets, node_id, token)

    def abandon(self, token: object) -> None:
        """Nobody waits for this decision any more, so it is not taken at some later time, when nobody expects it. What is on its way into
        the log may still happen. Nothing for a token that is not known."""
        for decisions in (self._resets, self._forgets):
            for node_id, tokens in list(decisions.items()):
                decisions[node_id] = [each for each in tokens if each != token]
                if not decisions[node_id]:
                    del decisions[node_id]

    def take_decided(self) -> list[Decided]:
        """Operators' decisions that are done, or have become impossible. Those of a controller that lost its leadership are never named."""
        taken, self._decided = self._decided, []
        return taken

    # --- what goes out -----------------------------------------------------------------------------------------------------------

    def take_proposals(self) -> list[Record]:
        """The records to be proposed now, in this order."""
        if any(isinstance(record, SlotBatch) for record in self._on_its_way):
            return []  # C1
        batch = self._grants()
        if batch is not None:
            if self._on_its_way:
                return []  # C1
            self._on_its_way.append(batch)
            return [batch]
        before = len(self._on_its_way)
        for decide in (self._joins, self._fences, self._forgettings):
            self._on_its_way.extend(decide())  # each sees what the one before has decided
        return self._on_its_way[before:]

    def take_answers(self) -> list[NodeRegistered]:
        """The answers to registrations, each for the candidate `via`."""
        for node_id in [node_id for node_id, message in self._waiting.items() if self._is_settled(message)]:
            self._answers.append(_answer(self._waiting.pop(node_id), self.meta.version, ""))
        taken, self._answers = self._answers, []
        return taken

    @property
    def deadline_us(self) -> int:
        """When `tick` is to be called next, at the latest."""
        waits = [STEP_US]
        waits += [self._heard[row.node_id] + SILENCE_US - self._lived_us for row in self.meta.table.nodes if row.state == UP]
        if self._is_unassigned():
            waits += [FIRST_WAIT_US - self._lived_us, self._joined_us + QUIET_US - self._lived_us]
        waits += [self._patient_until_us - self._lived_us, self._no_better_us + SPEAK_US - self._lived_us]
        return self._now_us + min(wait for wait in waits if wait > 0)

    def rows(self) -> list[dict[str, Any]]:
        """The nodes, for people and tools (`MetaState.rows`)."""
        return self.meta.rows()

    def degraded(self) -> list[str]:
        """What does not work, one line each, for people."""
        waits_us = 0 if self._proof_asked_us is None else self._lived_us - self._proof_asked_us
        waits = f"a record waits for the disks of the candidates for {waits_us // 1_000_000} s: nobody is given up until they have it"
        return [*self.alarms, *([waits] if waits_us > HUNG_US else []), *self.meta.degraded()]

    # --- nodes -------------------------------------------------------------------------------------------------------------------

    def _live(self, now_us: int) -> None:
        self._lived_us += max(0, min(now_us - self._now_us, 2 * STEP_US))
        self._now_us = max(self._now_us, now_us)

    def _hear(self, node_id: int) -> None:
        self._heard[node_id] = self._lived_us
        self._here[node_id] = None

    def _lease_ms(self, node_id: int, proved_us: int) -> int:
        """How long a lease is lent to a node that is heard now (N6)."""
        spent_us = self._now_us - proved_us if node_id == self.me.node_id else 0
        return max(0, LEASE_MS - -(-spent_us // 1000))

    def _refusal(self, message: NodeRegister) -> str | None:
        node_id = message.node_id
        if not 0 < node_id <= NODE_ID_MAX or len(message.disk_id) != 16:
            return f"node id {node_id} is not between 1 and {NODE_ID_MAX}, or its disk has no id"
        node = self.meta.nodes.get(node_id)
        if node is None:
            return f"this cluster already has {NODES_MAX} nodes, and takes no more" if len(self.meta.nodes) >= NODES_MAX else None
        known = node.boot_of(message.disk_id)
        if message.boot_no < known:
            return (  # N3
                f"node {node_id} says that this is its start number {message.boot_no}, but number {known} was here before: its data "
                f"directory was rolled back; start it with an empty one, then give up what was in its slots: govern reset {node_id}"
            )
        if message.disk_id != node.row.disk_id and node.row.state == UP:
            return (  # N2
                f"node id {node_id} is in use by a process with another data directory: if that one still runs give this node an id of its "
                f"own, else wait {SILENCE_US // 1_000_000} s"
            )
        return None

    def _is_changing(self, node_id: int) -> bool:
        """Whether a record about this node itself is on its way."""
        return any(isinstance(record, (NodeJoined, NodeFenced, NodeForgotten)) and record.node_id == node_id for record in self._on_its_way)

    def _joins(self) -> list[Record]:
        """Registrations to be recorded. One that would be refused by now is forgotten: who still wants it repeats it, and is told."""
        self._waiting = {node_id: message for node_id, message in self._waiting.items() if self._refusal(message) is None}
        return [
            _joining(message)
            for node_id, message in sorted(self._waiting.items())
            if not self._is_known(message) and not self._is_changing(node_id)
        ]

    def _is_known(self, message: NodeRegister) -> bool:
        """Whether applying the registration would change nothing."""
        node = self.meta.nodes.get(message.node_id)
        if node is None or node.row.state == DOWN:
            return False
        row = node.row
        known = NodeJoined(row.node_id, row.disk_id, row.boot_no, row.clients, row.peers, row.candidate, node.volatile)
        return known == _joining(message)

    def _is_settled(self, message: NodeRegister) -> bool:
        """C2"""
        return (
            self._is_known(message)
            and not self._is_changing(message.node_id)
            and all(item.node_id != message.node_id for item in self._due_items())
        )

    def _fences(self) -> list[Record]:
        """Lives that were silent for too long, when the log works. A registration of theirs that still waits is forgotten: if it lives it
        repeats it."""
        silent = self._silent()
        if silent and not self._is_log_proved:
            return self._proofs()
        fences: list[Record] = []
        for row in silent:
            self._waiting.pop(row.node_id, None)
            self._given_up[row.node_id] = self._lived_us
            reason = f"nothing was heard from it for {SILENCE_US // 1_000_000} s"
            fences.append(NodeFenced(row.node_id, row.disk_id, row.boot_no, reason))
        self._given_up = {node_id: at_us for node_id, at_us in self._given_up.items() if self._lived_us - at_us < SILENCE_US}
        if fences and 2 * len(self._given_up) > len(self.meta.nodes):  # N9
            self.alarms = [
                f"{len(self._given_up)} of {len(self.meta.nodes)} nodes fell silent together: look for what they share, such as the "
                f"network or the power"
            ]
        return fences

    def _silent(self) -> list[TableNode]:
        """Lives that may be given up if the log works (N7, N10)."""
        up = {row.node_id: self._lived_us - self._heard[row.node_id] for row in self.meta.table.nodes if row.state == UP}
        hanging = [node_id for node_id in up if self._hangs.get(node_id, False)]
        if not any(silent_us < SPEAK_US and node_id not in hanging for node_id, silent_us in up.items()):
            self._no_better_us = self._lived_us
        excused = hanging if self._lived_us - self._no_better_us < SPEAK_US else []
        silent = [node_id for node_id, silent_us in up.items() if silent_us >= SILENCE_US and node_id not in excused]
        return [self.meta.nodes[node_id].row for node_id in silent if not self._is_changing(node_id)]

    @property
    def _is_log_proved(self) -> bool:
        return self._patient_until_us <= self._lived_us < self._proof_until_us

    def _proofs(self) -> list[Record]:
        """What is to go through the log before anybody is given up (N10)."""
        if self._proof_asked_us is not None or self._lived_us < self._patient_until_us:
            return []
        self._proof_asked_us = self._lived_us
        return [LogProved()]

    def _note_proof(self) -> None:
        """The log works. If it did not until now, whoever was silent meanwhile may have waited for it, or for a disk like its own."""
        if self._proof_asked_us is None:
            return  # that of a later leader: this one will hear in a moment that it leads no longer
        if self._lived_us - self._proof_asked_us > HUNG_US:
            self._patient_until_us = self._lived_us + SPEAK_US
        self._proof_asked_us, self._proof_until_us = None, self._lived_us + PROOF_US

    # --- slots -------------------------------------------------------------------------------------------------------------------

    def _grants(self) -> SlotBatch | None:
        items = self._due_items()
        if items:
            return SlotBatch("restart", tuple(items))
        items = self._first_items()
        if items:
            return SlotBatch("first assignment", tuple(items))
        up = [node_id for node_id in self._resets if self.meta.nodes[node_id].row.state == UP]
        items = join_items(_item(run, True) for node_id in up for run in self._lost(node_id))
        return SlotBatch("reset", tuple(items)) if items else None

    def _due_items(self) -> list[SlotItem]:
        """Grants that restarted nodes wait for: their slots again, and new copies for those that were in memory (N2, N3)."""
        self._look()
        return self._due

    def _is_unassigned(self) -> bool:
        self._look()
        return self._unassigned

    def _look(self) -> None:
        """Go through all runs, once for each version of the table."""
        if self._looked_at != self.meta.version:
            self._looked_at = self.meta.version
            self._unassigned = self.meta.table.assigned_count < SLOT_COUNT
            self._due = join_items(_item(run, not self.meta.is_intact(run)) for run in self.meta.table.runs if self._is_due(run))

    def _is_due(self, run: SlotRun) -> bool:
        row = self.meta.nodes[run.primary].row
        return row.state == UP and run.term < row.registered_at and (self.meta.is_intact(run) or self.meta.home(run).volatile)

    def _lost(self, node_id: int) -> list[SlotRun]:
        return [run for run in self.meta.lost_runs() if run.primary == node_id]

    def _first_items(self) -> list[SlotItem]:
        """The first assignment: ranges as even as can be, in the order of node ids, when all that are expected have come."""
        if not self._is_unassigned():
            return []
        ready = [row.node_id for row in self.meta.table.nodes if row.state == UP and row.node_id in self._here]
        complete = all(node_id in ready for node_id in self._configured)
        quiet = not self._configured or self._lived_us - self._joined_us >= QUIET_US
        if not ready or not (self._lived_us >= FIRST_WAIT_US or (complete and quiet)):
            return []
        return spread(free_ranges(self.meta.table.runs), ready)

    # --- decisions ---------------------------------------------------------------------------------------------------------------

    def _note(self, decisions: dict[int, list[object]], node_id: int, token: object) -> None:
        if sum(map(len, self._resets.values())) + sum(map(len, self._forgets.values())) >= DECISIONS_MAX:
            raise DecisionRefused(f"{DECISIONS_MAX} decisions wait already: try again later")
        decisions.setdefault(node_id, []).append(token)

    def _not_forgettable(self, node_id: int) -> str | None:
        node = self.meta.nodes.get(node_id)
        if node is None:
            return f"there is no node {node_id}"
        if node.row.state == UP:
            return f"node {node_id} is up: stop it first"
        if self.meta.table.copies(node_id):
            return f"node {node_id} has copies of {self.meta.table.copies(node_id)} slots: start it again"
        return None

    def _forgettings(self) -> list[Record]:
        return [NodeForgotten(node_id) for node_id in self._forgets if not self._is_changing(node_id)]

    def _settle_decisions(self) -> None:
        for node_id in [node_id for node_id in self._resets if not self._lost(node_id)]:
            self._decided.extend(Decided(token) for token in self._resets.pop(node_id))
        for node_id in list(self._forgets):
            refused = "" if node_id not in self.meta.nodes else self._not_forgettable(node_id)
            if refused is not None:
                self._decided.extend(Decided(token, refused) for token in self._forgets.pop(node_id))


def _answer(message: NodeRegister, index: int, text: str) -> NodeRegistered:
    return NodeRegistered(message.node_id, message.disk_id, message.boot_no, message.via, index, text)


def _joining(message: NodeRegister) -> NodeJoined:
    return NodeJoined(
        message.node_id, message.disk_id, message.boot_no, message.clients, message.peers, message.candidate, message.volatile
    )


def _item(run: SlotRun, is_new: bool) -> SlotItem:
    return SlotItem(run.first, run.last, run.primary, is_new)
