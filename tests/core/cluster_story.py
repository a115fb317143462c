"""Handlers for transcripts about a cluster: what its nodes say to each other is handed over at once, in one place.

`ClusterStory` has the metadata of each candidate, the controller, and the standing, the ownership and the table of each life of a node. The
replicated log is a list, and who leads it is said by the story; what the controller wants is committed at once while it has a majority.

    nodes 1 2 3 4 [candidates=(1,2,3)]   begin anew: a formed cluster of which nobody has started yet; every node is a candidate unless said
    start 2 · kill 2                     a process on the directory of a node; its end, without a word
    disk 2 new · disk 2 back             the directory of a stopped node is empty now; is an older state of itself (two starts back)
    lead 2                               node 2 leads the log now; what was there decides no more
    cut 2 [3] · heal                     node 2 reaches nobody, or not 3; every link works again
    pass seconds=S                       time, in steps of 50 ms
    reset 2 · forget 2                   an operator's words to the controller
    show table|nodes|degraded

`1.50  # 4: …` is a committed record, with its index and the time; `1.50  2 …` is what node 2 does, or how it stands when that changes.
Heartbeats and their answers are not shown.

`BootstrapStory` is how a cluster begins: who forms it, who joins, who is refused on the first word.

    node 1 [initial=(1,2,3)] [cluster=red]    a process on an empty directory, or on one of that cluster
    link 1 2 · unlink 1 2                     both say Hello; the link is gone

`PeeringStory` is nodes 1 and 2, who know each other's address, and what is on its way between them on each connection p, q, ….

    pass seconds=S         time; who is due dials
    arrive 2 p [times=N]   the next word on a connection reaches node 2
    restart 2 · show       a new life, whose connections of before end; what is on its way
"""

from __future__ import annotations

import itertools
import math

import attrs

from govern.core.bootstrap import Adopt, Bootstrap, Form
from govern.core.controller import Controller, DecisionRefused
from govern.core.meta import NO_CLUSTER, ClusterInit, MetaState, NodeFenced, NodeForgotten, NodeJoined, Record, SlotBatch
from govern.core.ownership import Ownership, runs_of
from govern.core.peering import Peering, PeerLink, judge
from govern.core.standing import Health, Standing
from govern.core.table import EMPTY, Table, TableReader, apply
from govern.messages import Message
from govern.peer_messages import Member, NodeHeartbeat, NodeHeartbeatOk, NodeRegister, NodeRegistered, PeerHello, PeerRefused

from .test_peering import End, Node

Args = dict[str, list[str]]
STEP_US = 50_000


def numbers(args: Args) -> list[int]:
    """The bare words of a command, as numbers."""
    return [int(word) for word in args if word.isdigit()]


# --- a cluster --------------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Home:
    """The directory of a node: which disk, how many starts, and the table that is kept there."""

    disk: int = 1
    boot_no: int = 0
    table: Table = EMPTY


@attrs.define(eq=False)
class Life:
    """One process. `meta` for candidates."""

    node_id: int
    standing: Standing
    ownership: Ownership
    meta: MetaState | None
    reader: TableReader = attrs.field(factory=TableReader)
    asks: int | None = None
    seen: str = "not registered, acts for nothing"


class ClusterStory:
    """Controllers and nodes of a cluster."""

    def __init__(self) -> None:
        self._now_us = 0
        self._lines: list[str] = []
        self._homes: dict[int, Home] = {}
        self._candidates: list[int] = []
        self._lives: dict[int, Life] = {}
        self._cuts: list[tuple[int, int]] = []
        self._log: list[Record] = [ClusterInit(b"c" * 16)]
        self._leader: int | None = None
        self._before: int | None = None  # who led before
        self._heard: dict[int, int] = {}  # when each candidate heard a leader last
        self._controller: Controller | None = None

    def __call__(self, command: str, args: Args, body: str) -> str:
        self._lines = []
        getattr(self, f"_{command}")(args)
        self._settle()
        for life in self._lives.values():
            life.ownership.validate()
            if life.meta is not None:
                life.meta.validate()
        for one, other in itertools.combinations(self._lives.values(), 2):
            if one.ownership.is_fresh(self._now_us) and other.ownership.is_fresh(self._now_us):
                assert not any(map(min, one.ownership.terms, other.ownership.terms)), "two nodes are fresh for one slot"
        return "\n".join(self._lines)

    def _say(self, text: str) -> None:
        self._lines.append(f"{self._now_us / 1e6:5.2f}  {text}")

    # --- commands -------------------------------------------------------------------------------------------------------------

    def _nodes(self, args: Args) -> None:
        ids = numbers(args)
        self.__init__()  # type: ignore[misc]
        self._homes = {node_id: Home() for node_id in ids}
        self._candidates = [int(each) for each in args.get("candidates", map(str, ids))]

    def _start(self, args: Args) -> None:
        for node_id in numbers(args):
            home = self._homes[node_id]
            home.boot_no += 1
            me, is_candidate = Member(node_id, bytes([node_id, home.disk]) * 8), node_id in self._candidates
            standing = Standing(me, home.boot_no, clients=f"c{node_id}", peers=f"p{node_id}", candidate=is_candidate, volatile=False)
            life = Life(node_id, standing, Ownership(me, home.boot_no), MetaState() if is_candidate else None)
            life.ownership.take(home.table)
            self._lives[node_id] = life
            self._say(f"{node_id} starts: boot {home.boot_no} of disk {home.disk}")

    def _kill(self, args: Args) -> None:
        (node_id,) = numbers(args)
        del self._lives[node_id]
        if node_id == self._leader:
            self._depose()

    def _disk(self, args: Args) -> None:
        (node_id,) = numbers(args)
        assert node_id not in self._lives, "a disk is not changed under a process"
        home = self._homes[node_id]
        self._homes[node_id] = Home(home.disk + 1) if "new" in args else Home(home.disk, home.boot_no - 2)

    def _lead(self, args: Args) -> None:
        (node_id,) = numbers(args)
        if self._leader is not None:
            self._depose()
        meta = self._lives[node_id].meta
        assert meta is not None, "only a candidate leads"
        heard_us = self._heard.get(node_id, self._now_us)
        self._leader = node_id
        self._say(f"{node_id} leads")
        self._catch_up()
        before = None if self._before is None or self._before == node_id else (self._before, heard_us)
        me = self._lives[node_id].standing.me
        self._controller = Controller(meta, me, self._now_us, self._candidates, previous=before)

    def _depose(self) -> None:
        assert self._leader is not None
        self._before, self._leader, self._controller = self._leader, None, None

    def _cut(self, args: Args) -> None:
        one, *others = numbers(args)
        self._cuts += [(one, other) for other in others or self._homes if other != one]

    def _heal(self, args: Args) -> None:
        self._cuts.clear()

    def _pass(self, args: Args) -> None:
        end_us = self._now_us + round(float(args["seconds"][0]) * 1e6)
        while self._now_us < end_us:
            self._now_us = min(end_us, self._now_us + STEP_US)
            for life in self._lives.values():
                self._tick(life)
            if self._controller is not None:
                self._controller.tick(self._now_us)
            self._settle()

    def _reset(self, args: Args) -> None:
        (node_id,) = numbers(args)
        assert self._controller is not None
        try:
            self._say(f"{self._controller.reset(node_id, None)} slots of node {node_id} are to begin again")
        except DecisionRefused as refused:
            self._say(f"refused: {refused}")

    def _forget(self, args: Args) -> None:
        (node_id,) = numbers(args)
        assert self._controller is not None
        try:
            self._controller.forget(node_id, self._candidates, None)
        except DecisionRefused as refused:
            self._say(f"refused: {refused}")

    def _show(self, args: Args) -> None:
        assert self._controller is not None, "somebody has to lead"
        meta = self._controller.meta
        if "table" in args:
            self._lines += [
                f"{run.first}-{run.last}: node {run.primary}, term {run.term}, copy {run.copies[0][1]}" for run in meta.table.runs
            ]
        elif "nodes" in args:
            for row in meta.table.nodes:
                life = f"boot {row.boot_no} of disk {row.disk_id[1]}, registered at {row.registered_at}"
                self._lines.append(f"node {row.node_id} is {row.state}: {life}, {meta.table.primaries(row.node_id)} slots")
        else:
            self._lines += self._controller.degraded() or ["nothing"]

    # --- what happens by itself -----------------------------------------------------------------------------------------------

    def _reaches(self, one: int, other: int) -> bool:
        is_cut = (one, other) in self._cuts or (other, one) in self._cuts
        return one in self._lives and other in self._lives and not is_cut

    @property
    def _has_majority(self) -> bool:
        """Whether the leader can commit anything, and has a lease."""
        leader = self._leader
        return leader is not None and 2 * sum(self._reaches(leader, other) for other in self._candidates) > len(self._candidates)

    def _tick(self, life: Life) -> None:
        """A node asks for its part, or shows that it works; what it says reaches the controller through the candidate that it asks."""
        now_us, leader = self._now_us, self._leader
        reached = [other for other in self._candidates if self._reaches(life.node_id, other)]
        knows = leader if leader is not None and life.meta is not None and self._reaches(life.node_id, leader) else None
        life.standing.candidates(reached, knows, now_us)
        life.standing.tick(now_us, now_us, Health(table_version=life.ownership.table.version))
        for to, message in life.standing.take_messages():
            if self._controller is None or leader is None or not self._reaches(to, leader):
                continue
            if isinstance(message, NodeRegister):
                self._note_asking(life, to)
                self._controller.register(message, now_us)
            else:
                self._beat(message)

    def _note_asking(self, life: Life, to: int) -> None:
        if life.asks != to:
            life.asks = to
            by = "" if to in (life.node_id, self._leader) else f", by way of {to}"
            self._say(f"{life.node_id} asks {self._leader} for its part{by}")

    def _beat(self, message: NodeHeartbeat) -> None:
        assert self._controller is not None
        answer = self._controller.heartbeat(message, self._now_us, self._has_majority)
        if answer is not None:
            self._return(answer)

    def _return(self, answer: NodeRegistered | NodeHeartbeatOk) -> None:
        assert self._leader is not None
        if not (self._reaches(self._leader, answer.via) and self._reaches(answer.via, answer.node_id)):
            return
        life = self._lives[answer.node_id]
        if isinstance(answer, NodeRegistered):
            life.standing.registered(answer, self._now_us)
        else:
            life.standing.heartbeat_ok(answer, self._now_us, self._now_us)
        life.ownership.lease_until_us = life.standing.lease_until_us

    def _settle(self) -> None:
        """What the controller wants is committed, everybody follows, and whose standing changed says so."""
        controller = self._controller
        while controller is not None and self._has_majority and (records := controller.take_proposals()):
            for record in records:
                self._log.append(record)
                self._say(f"# {len(self._log)}: {self._words(record)}")
                controller.meta.apply(len(self._log), record.pack())
                controller.applied(record, self._now_us)
        self._catch_up()
        if controller is not None:
            for answer in controller.take_answers():
                self._return(answer)
            for decided in controller.take_decided():
                self._say(f"the decision is carried out{decided.refused and ' no more: '}{decided.refused}")
        for life in self._lives.values():
            state = self._state(life)
            if state != life.seen:
                life.seen = state
                self._say(f"{life.node_id} is {state}")

    def _catch_up(self) -> None:
        """Candidates that the leader reaches have its log; others follow its table."""
        leader = self._leader
        for life in self._lives.values():
            if leader is None or not self._reaches(leader, life.node_id):
                continue
            if life.meta is None:
                self._send_table(self._lives[leader].ownership, life)
                continue
            self._heard[life.node_id] = self._now_us
            for index in range(life.meta.index + 1, len(self._log) + 1):
                life.meta.apply(index, self._log[index - 1].pack())
            life.ownership.take(life.meta.table)
        for life in self._lives.values():
            self._homes[life.node_id].table = life.ownership.table

    def _send_table(self, source: Ownership, reader: Life) -> None:
        for page in source.pages(reader.ownership.table.version):
            change = reader.reader.add(page)
            if change is not None and change.version > reader.ownership.table.version:
                reader.ownership.take(apply(reader.ownership.table, change))

    # --- words ------------------------------------------------------------------------------------------------------------------

    def _words(self, record: Record) -> str:
        if isinstance(record, NodeJoined):
            return f"node {record.node_id} is registered, boot {record.boot_no} of disk {record.disk_id[1]}"
        if isinstance(record, NodeFenced):
            return f"node {record.node_id} is given up: {record.reason}"
        if isinstance(record, NodeForgotten):
            return f"node {record.node_id} is forgotten"
        assert isinstance(record, SlotBatch)
        how = {True: "a new copy", False: "the copy that it has"}
        return f"{record.cause}: " + ", ".join(f"{it.first}-{it.last} to node {it.node_id} with {how[it.new_copy]}" for it in record.items)

    def _state(self, life: Life) -> str:
        standing, ownership = life.standing, life.ownership
        terms = dict.fromkeys(run.term for run in runs_of(ownership.table, ownership.me, ownership.boot_no))
        acts = f"acts for {ownership.acting_count} slots in term {', '.join(map(str, terms))}" if terms else "acts for nothing"
        if standing.is_registered:
            return f"registered, {acts}, {'fresh' if ownership.is_fresh(self._now_us) else 'not fresh'}"
        return f"refused, {acts}: {standing.refusal}" if standing.refusal else f"not registered, {acts}"


# --- how a cluster begins ---------------------------------------------------------------------------------------------------


class BootstrapStory:
    """Nodes that belong to no cluster yet, or to one."""

    def __init__(self) -> None:
        self._cores: dict[int, Bootstrap] = {}
        self._names: dict[bytes, str] = {}
        self._links: list[tuple[int, int]] = []
        self._told: dict[int, str] = {}
        self._lines: list[str] = []

    def __call__(self, command: str, args: Args, body: str) -> str:
        self._lines = []
        getattr(self, f"_{command}")(args)
        while any(self._decide(core) for core in self._cores.values()):
            pass
        for node_id, core in self._cores.items():
            text = f"belongs to {self._names[core.cluster_id]}" if core.has_cluster else f"waits: {core.waiting}"
            if self._told.get(node_id) != text:
                self._told[node_id] = text
                self._lines.append(f"{node_id} {text}")
        return "\n".join(self._lines)

    def _node(self, args: Args) -> None:
        (node_id,) = numbers(args)
        cluster_id = args["cluster"][0].encode().ljust(16) if "cluster" in args else NO_CLUSTER
        self._names[cluster_id] = cluster_id.decode().strip()
        self._cores[node_id] = Bootstrap(self._member(node_id), [int(each) for each in args.get("initial", [])], cluster_id)

    @staticmethod
    def _member(node_id: int) -> Member:
        return Member(node_id, bytes([node_id]) * 16)

    def _hello(self, node_id: int) -> PeerHello:
        core = self._cores[node_id]
        return PeerHello(1, core.cluster_id, node_id, core.me.disk_id, 1, True, f"p{node_id}", f"c{node_id}", core.initial)

    def _link(self, args: Args) -> None:
        """Both say Hello; one that refuses the other says why, and there is no link."""
        one, other = numbers(args)
        hellos = {node_id: self._hello(node_id) for node_id in (one, other)}
        refused = judge(hellos[one], hellos[other], other)
        if refused is not None:
            for cluster_id, name in self._names.items():
                refused = attrs.evolve(refused, text=refused.text.replace(cluster_id.hex(), name))
            self._lines.append(f"{one} refuses {other}, {refused.code}: {refused.text}")
            return
        self._links.append((one, other))
        self._cores[one].link_up(hellos[other])
        self._cores[other].link_up(hellos[one])

    def _unlink(self, args: Args) -> None:
        one, other = numbers(args)
        self._links.remove((one, other))
        self._cores[one].link_down(other)
        self._cores[other].link_down(one)

    def _decide(self, core: Bootstrap) -> bool:
        decision = core.decide()
        if isinstance(decision, Form):
            cluster_id = b"the new cluster".ljust(16)
            assert cluster_id not in self._names, "there is one new cluster in a story"
            self._names[cluster_id] = "the new cluster"
            voters = ", ".join(str(voter.node_id) for voter in decision.voters)
            self._lines.append(f"{core.me.node_id} forms the new cluster, in which {voters} vote")
        elif isinstance(decision, Adopt):
            cluster_id = decision.cluster_id
        else:
            return False
        core.joined(cluster_id)
        for link in self._links:
            if core.me.node_id in link:
                self._cores[sum(link) - core.me.node_id].told(cluster_id)
        return True


# --- links ------------------------------------------------------------------------------------------------------------------


class PeeringStory:
    """Two nodes and the connections between them."""

    def __init__(self) -> None:
        self._now = 0.0
        self._nodes = {1: Node(Peering, 1), 2: Node(Peering, 2)}
        self._ends: dict[str, dict[int, End]] = {}
        self._seen = {1: "", 2: ""}
        self._lines: list[str] = []
        for node_id in self._nodes:
            self._know(node_id)

    def __call__(self, command: str, args: Args, body: str) -> str:
        self._lines = []
        getattr(self, f"_{command}")(args)
        for node_id, node in self._nodes.items():
            node.check()
            state = f"has the link {self._name(node.up)}" if node.up is not None else "has no link"
            if state != self._seen[node_id] and (node.up is not None or self._seen[node_id]):
                self._lines.append(f"{node_id} {state}")
                self._seen[node_id] = state
        return "\n".join(self._lines)

    def _know(self, node_id: int) -> None:
        node = self._nodes[node_id]
        node.peering.set_peers(node.me, {3 - node_id: f"node{3 - node_id}:7401"}, self._now)

    def _name(self, end: End) -> str:
        return next(name for name, ends in self._ends.items() if end in ends.values())

    def _pass(self, args: Args) -> None:
        end = self._now + float(args["seconds"][0])
        while True:
            due = min(node.peering.next_due(node.me) for node in self._nodes.values())
            if due > end or due == math.inf:
                break
            self._now = max(self._now, due)
            for node_id, node in self._nodes.items():
                for link in node.peering.take_due(node.me, self._now):
                    self._dial(node_id, link)
        self._now = end

    def _dial(self, node_id: int, link: PeerLink) -> None:
        name = "pqrstuvw"[len(self._ends)]
        ends = {each: End(link if each == node_id else PeerLink(None, "")) for each in self._nodes}
        ends[1].other, ends[2].other = ends[2], ends[1]
        self._ends[name] = ends
        self._lines.append(f"{node_id} dials {3 - node_id}: {name}, at {self._now:.2f} s")
        for each, node in self._nodes.items():
            node.open(ends[each])

    def _arrive(self, args: Args) -> None:
        node_id, name = list(args)[:2]
        end = self._ends[name][int(node_id)]
        for _ in range(int(args.get("times", ["1"])[0])):
            self._lines.append(f"{name}: {_said(end.coming[0])} reaches {node_id}")
            self._nodes[int(node_id)].hear(end, self._now)

    def _restart(self, args: Args) -> None:
        (node_id,) = numbers(args)
        for ends in self._ends.values():
            ends[node_id].coming.clear()
            ends[node_id].say(None)
        self._nodes[node_id].start()
        self._know(node_id)

    def _show(self, args: Args) -> None:
        for name, ends in self._ends.items():
            for node_id, end in ends.items():
                if end.coming and end.link in self._nodes[node_id].ends:
                    self._lines.append(f"{name}: to {node_id}: {', then '.join(map(_said, end.coming))}")


def _said(message: Message | None) -> str:
    if message is None:
        return "the end"
    if isinstance(message, PeerRefused):
        return f"Refused ({message.code}: {message.text})"
    return f"Hello of boot {message.boot_no}" if isinstance(message, PeerHello) else type(message).__name__
