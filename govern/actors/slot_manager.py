"""The slot manager: follows the table, and on the controller decides it.

Everything that concerns the cluster as a whole and this node's place in it meets here: the metadata state, the table that follows from it,
the registration and the lease of this node, and, while this node leads, the decisions of the controller. The rules are in the cores
(`meta`, `controller`, `standing`, `bootstrap`, `ownership`); this shell carries mail between them, the other nodes and the log.

    mail ─▶ one of the cores ─▶ records to the election, messages to other nodes, a newer table to `Ownership` and to the disk

G1  It waits for nobody: what it asks for comes back as mail, and what must be written is written by a task beside it. So whoever puts
    something into its mailbox never waits for long.
G2  A message for this node itself takes the same way as one for another, without a link. So the controller is a node like any other.
G3  A cluster id becomes this node's only when it is durable. The file with the table is written first; then, where a cluster is formed,
    its log; the identity last. So a directory that was made with an id, and has neither that file nor a log, is one from before there
    were clusters, and one with a log and without an id was about to form the cluster that the file names. A directory that was made
    without an id never begins a log for the cluster it has joined: that exists elsewhere, also when the file is lost.
G4  A record that cannot be applied ends the node: its state would not be that of the others any more.
G5  A leader's own lease is measured on trio's clock, which stands still while the machine sleeps, and others are elected meanwhile. So
    after a sleep nobody is lent a lease until that of before has certainly ended (rule N6).
G6  A table comes from the own log or, where this node has no part in the log, from a candidate; it never replaces a newer one (`Ownership`
    sees to it).
G7  A node speaks for itself, and a candidate for those that asked it: a message in the name of another one ends its link, and so does a
    table that is none.
G8  A node that is out (rule P9 of `core.peering`) asks for no lease, and has none from that moment on.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import attrs
import trio

from ..core.bootstrap import Adopt, Bootstrap
from ..core.controller import Controller
from ..core.meta import ApplyFailed, ClusterInit, MetaState, unpack_record
from ..core.ownership import Ownership
from ..core.raft.types import DATA
from ..core.requests import Identity
from ..core.standing import Health, Standing
from ..core.table import EMPTY, NODES_MAX, Table, TableReader, apply
from ..environment import Clock, Random
from ..errors import NoSpace, RemoteProtocolError
from ..messages import Message
from ..peer_messages import (
    AskController,
    ClusterFormed,
    ControllerAnswer,
    Entry,
    Member,
    NodeHeartbeat,
    NodeHeartbeatOk,
    NodeRegister,
    NodeRegistered,
    PeerHello,
    TableAsk,
    TablePart,
)
from .administration import Administration
from .cluster_files import ClusterFiles
from .election import Election
from .mail import (
    Compact,
    Confirmed,
    ElectionMail,
    Entries,
    Form,
    Formed,
    FromPeer,
    Installed,
    Join,
    Led,
    LinksChanged,
    Listening,
    ManagerMail,
    MembersChanged,
    Propose,
    StoreLoaded,
    Unproposed,
    Words,
)
from .neighbours import Links, Myself
from .runtime import Mailbox, MailboxFull

LOOK_SECONDS: Final = 0.1
"""So often the links are looked at, in case the word that they changed found no room."""
COMPACT_ENTRIES: Final = 10_000
COMPACT_BYTES: Final = 16 * 1024 * 1024
"""A snapshot of the metadata is made after so many entries, or so many bytes of them."""
TABLE_ASK_SECONDS: Final = 0.5
"""A table that was asked for and did not come is asked for again after so long."""

RETRY_SECONDS: Final = 1.0
MAILS_PER_TURN: Final = 256
"""So much of the mail is taken before the other tasks of the node have their turn."""
SUSPENDED_US: Final = 50_000
"""The clock that counts suspended time went so much further than trio's between two turns: this machine slept."""
NO_LEASE_US: Final = 1_000_000
"""What a leader believed before a sleep is over after so long: an election timeout, longer than its lease (rule R7)."""
PROPOSE_AGAIN_SECONDS: Final = 0.1
"""Records that found no room in the log are decided anew after so long: at once they would only be refused again."""

_log = logging.getLogger(__name__)


class SlotManager:
    """The actor that owns the table."""

    def __init__(
        self,
        *,
        myself: Myself,
        configured: Mapping[int, str],
        identity: Identity,
        ownership: Ownership,
        election: Election | None,
        files: ClusterFiles,
        links: Links,
        administration: Administration,
        random: Random,
        clock: Clock,
        health: Callable[[], Health],
        clients_address: Callable[[int], str],
        peers_address: Callable[[], str],
        mailbox: Mailbox[ManagerMail],
        election_mailbox: Mailbox[ElectionMail],
    ) -> None:
        self.standing: Standing | None = None
        self.controller: Controller | None = None
        self.meta = MetaState()
        self.acting = trio.Event()
        """Set once this node acts for any slot."""
        self.bootstrap = Bootstrap(myself.member, myself.initial, files.cluster_id)
        self.leader: int | None = None
        """The node that leads, as far as is known here."""
        self._myself = myself
        self._configured = configured
        self._identity = identity
        self._ownership = ownership
        self._election = election
        self._files = files
        self._links = links
        self._administration = administration
        self._random = random
        self._clock = clock
        self._health = health
        self._clients_address = clients_address
        self._peers_address = peers_address
        self._mailbox = mailbox
        self._election_mailbox = election_mailbox
        self._local: deque[Message] = deque()  # G2
        self._linked: dict[int, PeerHello] = {}
        self._clients_port: int | None = None
        self._is_loaded = False
        self._forming: tuple[bytes, tuple[Member, ...]] | None = None
        self._adopting: bytes | None = None
        self._to_write = trio.Event()
        self._kept_version = 0
        self._readers: dict[int, TableReader] = {}  # one for each node that sends pages, as long as it is linked
        self._table_asked_at = -math.inf
        self._entries_since = 0
        self._bytes_since = 0
        self._term = 0  # in which the controller, if there is one, leads
        self._propose_at = -math.inf  # not before
        self._slept_us = math.inf  # how far the clock that counts suspended time was ahead of trio's
        self._lend_us = -math.inf  # nothing before (G5)

    @property
    def cluster_id(self) -> bytes:
        """The cluster this node belongs to; 16 zero bytes while it belongs to none."""
        return self.bootstrap.cluster_id

    # --- running ------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Raises `StorageFailed` when the disk fails, `ApplyFailed` for a record that cannot be applied (G4)."""
        await self._load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_files)
            task_status.started()
            while True:
                mail: ManagerMail | None = None
                with trio.move_on_at(self._due_at()):
                    mail = await self._mailbox.get()
                # Everything that came meanwhile shares one look and one tick; also when a deadline had passed before there was any mail.
                self._turn([*([] if mail is None else [mail]), *self._mailbox.get_all(MAILS_PER_TURN - 1)])

    async def _load(self) -> None:
        """Go on where the directory stands (G3)."""
        kept = await self._files.load()
        has_log = self._election is not None and self._election.core is not None
        if kept is not None and has_log and not self.bootstrap.has_cluster:
            await self._files.adopt(kept[0])
            self.bootstrap.joined(kept[0])
        self._identity.cluster_id = self.cluster_id.hex() if self.bootstrap.has_cluster else ""
        if kept is not None and self.bootstrap.has_cluster:
            self._kept_version = kept[1].version
            self._follow(kept[1])
        self._set_peers()
        if self.bootstrap.has_cluster and self._election is not None and not has_log:
            if kept is not None or not self._files.was_made_with_cluster:
                self._election_mailbox.post(Join())
            else:
                record = ClusterInit(self.cluster_id).pack()
                self._election_mailbox.post(Form(self._myself.boot_no, (self._myself.member,), record))

    def _due_at(self) -> float:
        due_us = math.inf if self.controller is None else self.controller.deadline_us
        if self.standing is not None:
            due_us = min(due_us, self.standing.deadline_us)
        due_at = min(due_us / 1e6, self._administration.due_at)
        is_alone = not self._configured and self._peers_address() == "" and self.standing is not None
        return due_at if is_alone else min(due_at, trio.current_time() + LOOK_SECONDS)

    def _turn(self, mails: Sequence[ManagerMail]) -> None:
        now_us, boot_us = round(trio.current_time() * 1e6), self._clock.boot_us()
        if boot_us - now_us > self._slept_us + SUSPENDED_US:
            self._lend_us = now_us + NO_LEASE_US
        self._slept_us = boot_us - now_us
        for mail in mails:
            self._take(mail, now_us)
        self._look_at_links()
        self._tick(now_us, boot_us)
        while self._local:
            self._receive(self._myself.node_id, self._local.popleft(), now_us)
        if self.controller is not None:
            self._propose(self.controller)

    def _take(self, mail: ManagerMail, now_us: int) -> None:
        match mail:
            case FromPeer(node_id, message):
                self._receive(node_id, message, now_us)
            case Entries(entries):
                self._apply(entries, now_us)
            case Installed(index, state):
                self._install(index, state)
            case Led():
                self._note_leader(mail, now_us)
            case Unproposed(records):
                self._withdraw(records)
            case Formed():
                self._adopt(self.cluster_id if self._forming is None else self._forming[0])
            case StoreLoaded():
                self._is_loaded = True
            case Listening(_, port):
                self._clients_port = port
            case MembersChanged() | Confirmed():
                self._administration.answered(self, mail)
            case Words(words):
                self._administration.take_words(self, words)
            case LinksChanged():
                pass  # the links are looked at in every turn

    def _tick(self, now_us: int, boot_us: int) -> None:
        if self._links.expelled:
            self.standing, self._ownership.lease_until_us = None, 0  # G8
        elif self.standing is None and self.bootstrap.has_cluster and self._is_loaded and self._clients_port is not None:
            self.standing = Standing(
                self._myself.member,
                self._myself.boot_no,
                clients=self._clients_address(self._clients_port),
                peers=self._peers_address(),
                candidate=self._myself.is_candidate,
                volatile=self._myself.is_volatile,
            )
        if self.controller is not None:
            self.controller.tick(now_us)
            self._send_answers()
        if self.standing is not None:
            is_deciding = self.leader != self._myself.node_id or self.controller is not None
            self.standing.candidates(self._whom_to_ask(), self.leader if is_deciding else None, now_us)
            self.standing.tick(now_us, boot_us, self._health())
            for node_id, message in self.standing.take_messages():
                self.deliver(node_id, message)
        self._administration.tick(self)

    def _whom_to_ask(self) -> list[int]:
        """The candidates that can be reached, oneself among them."""
        linked = [node_id for node_id, hello in self._linked.items() if hello.candidate]
        if self._election is not None and self._election.core is not None:
            linked.append(self._myself.node_id)
        return sorted(linked)

    # --- the cluster --------------------------------------------------------------------------------------------------------

    def _look_at_links(self) -> None:
        """Note who is linked, and learn of a cluster, or form one, from what the others say of themselves."""
        now = self._links.peers()
        if now != self._linked:
            for node_id in [node_id for node_id, hello in self._linked.items() if now.get(node_id) != hello]:
                self.bootstrap.link_down(node_id)
                self._readers.pop(node_id, None)
            for node_id, hello in now.items():
                if self._linked.get(node_id) != hello:
                    self.bootstrap.link_up(hello)
            self._linked = dict(now)
        if self.bootstrap.has_cluster or self._adopting is not None or self._forming is not None:
            return
        decision = self.bootstrap.decide()
        if isinstance(decision, Adopt):
            self._adopt(decision.cluster_id)
        elif decision is not None:
            self._forming = (self._random.randbytes(16), decision.voters)
            self._to_write.set()

    def _adopt(self, cluster_id: bytes) -> None:
        """Belong to a cluster, once that is durable."""
        if not self.bootstrap.has_cluster:
            self._adopting = cluster_id
            self._to_write.set()

    async def _write_files(self) -> None:
        """The task that writes: what leads into a cluster, and the table when it is newer than the one kept (G1, G3)."""
        while True:
            await self._to_write.wait()
            self._to_write = trio.Event()
            try:
                has_written = await self._write_what_is_new()
            except NoSpace:
                has_written = False
            if not has_written:
                _log.warning("there is no space on the disk to keep what is new of the cluster: trying again")
                await trio.sleep(RETRY_SECONDS)
                self._to_write.set()

    async def _write_what_is_new(self) -> bool:
        keep = self._files.keep
        if self._adopting is not None:
            if not await keep(self._adopting, self._ownership.table):
                return False
            await self._files.adopt(self._adopting)
            self._note_adopted(self._adopting)
        elif self._forming is not None and not self.bootstrap.has_cluster:
            cluster_id, voters = self._forming
            if not await keep(cluster_id, EMPTY):
                self._forming = None  # everything is open again: others may form a cluster before there is space
                return False
            await self._election_mailbox.put(Form(0, voters, ClusterInit(cluster_id).pack()))
        table = self._ownership.table
        if self.bootstrap.has_cluster and table.version > self._kept_version:
            if not await keep(self.cluster_id, table):
                return False
            self._kept_version = table.version
        return True

    def _note_adopted(self, cluster_id: bytes) -> None:
        self._adopting = None
        self._identity.cluster_id = cluster_id.hex()
        _log.info("this node belongs to cluster %s", cluster_id.hex())
        self.bootstrap.joined(cluster_id)
        if self._forming is None and self._election is not None and self._election.core is None:
            self._election_mailbox.post(Join())
        self._links.recheck()  # what others say of that cluster comes from now on, behind the word that its log begins

    def _set_peers(self) -> None:
        """Links to everybody who is known: the configured candidates, and whoever is in the table. Where the two say different things both
        are tried: the configuration is old when one node was moved, and the table is when all were."""
        addresses = {node.node_id: node.peers for node in self._ownership.table.nodes if node.peers}
        for node_id, address in self._configured.items():
            known = addresses.get(node_id, address)
            addresses[node_id] = address if known == address else f"{known},{address}"
        addresses.pop(self._myself.node_id, None)
        self._links.set_peers(addresses)
        boots = {Member(node.node_id, node.disk_id): node.boot_no for node in self._ownership.table.nodes}
        former = {Member(node_id, disk_id): boot_no for node_id, node in self.meta.nodes.items() for disk_id, boot_no in node.former}
        self._links.set_boots({**former, **boots})

    # --- the log ------------------------------------------------------------------------------------------------------------

    def _apply(self, entries: Sequence[Entry], now_us: int) -> None:
        for entry in entries:
            if entry.kind == DATA:
                record = self.meta.apply(entry.index, entry.data)
                if self.controller is not None:
                    self.controller.applied(record, now_us)
            self._entries_since += 1
            self._bytes_since += len(entry.data)
        last = entries[-1].index
        self._follow(self.meta.table)
        if self._entries_since >= COMPACT_ENTRIES or self._bytes_since >= COMPACT_BYTES:
            try:
                self._election_mailbox.post(Compact(last, self.meta.pack()))
            except MailboxFull:
                return  # the next entries ask again
            self._entries_since = self._bytes_since = 0

    def _install(self, index: int, state: bytes) -> None:
        meta = MetaState.unpack(state)
        if meta.index > index:
            raise ApplyFailed(f"the metadata snapshot as of entry {index} says that it is of {meta.index}")  # G4
        self.meta = meta
        self._follow(meta.table)
        _log.info("took over the metadata as of %d", index)

    def _follow(self, table: Table) -> None:
        """Act by a newer table, keep it, and tell the nodes that have no log of their own (G6)."""
        base = self._ownership.table.version
        if not self._ownership.take(table):
            return
        if self._ownership.acting_count:
            self.acting.set()
        self._to_write.set()
        self._set_peers()
        followers = [node_id for node_id, hello in self._linked.items() if not hello.candidate]
        for page in self._table_pages(base) if followers else ():
            self._links.send_to_all(followers, page)

    def _table_pages(self, known: int) -> Iterator[TablePart]:
        """What leads there from a version that somebody has."""
        return (TablePart(*attrs.astuple(page, recurse=False)) for page in self._ownership.pages(known))

    def _propose(self, controller: Controller) -> None:
        if trio.current_time() < self._propose_at:
            return
        records = controller.take_proposals()
        if not records:
            return
        try:
            self._election_mailbox.post(Propose(self._term, [record.pack() for record in records]))
        except MailboxFull:
            for record in records:
                controller.withdraw(record)

    def _withdraw(self, records: Sequence[bytes]) -> None:
        """The election had no room for them: the controller decides anew, a moment later. A change of the leadership would have been told
        before, so they are those of this controller."""
        self._propose_at = trio.current_time() + PROPOSE_AGAIN_SECONDS
        if self.controller is not None:
            for data in records:
                self.controller.withdraw(unpack_record(data))

    def _note_leader(self, led: Led, now_us: int) -> None:
        self.leader = None if led.leader is None else led.leader.node_id
        if not led.serving:
            self.controller = None
        elif self.controller is None or led.term != self._term:
            self._term = led.term
            self.controller = Controller(self.meta, self._myself.member, now_us, self._myself.initial, previous=led.previous)
        self._administration.leader_changed(self)

    # --- messages -----------------------------------------------------------------------------------------------------------

    def deliver(self, node_id: int, message: Message) -> bool:
        """Send a message to a node, oneself included (G2); False when it is dropped."""
        if node_id == self._myself.node_id:
            self._local.append(message)
            return True
        return self._links.send(node_id, message)

    def _receive(self, node_id: int, message: Message, now_us: int) -> None:
        match message:
            case NodeRegister() | NodeHeartbeat():
                self._ask_controller(node_id, message, now_us)
            case NodeRegistered() | NodeHeartbeatOk():
                self._take_answer(node_id, message, now_us)
            case TableAsk(known):
                for page in self._table_pages(known):
                    self.deliver(node_id, page)
            case TablePart():
                self._take_page(node_id, message)
            case ClusterFormed(cluster_id):
                self.bootstrap.told(cluster_id)
            case AskController(origin):
                if origin == node_id:
                    self._administration.asked(self, message)
                else:
                    self._links.drop(node_id, f"it asks in the name of node {origin}")  # G7
            case ControllerAnswer():
                self._administration.take_answer(message)
            case _:
                _log.debug("a %s of node %d is not for the slot manager", type(message).__name__, node_id)

    def _ask_controller(self, sender: int, message: NodeRegister | NodeHeartbeat, now_us: int) -> None:
        """For the controller: here it is, or it is passed on by the candidate that was asked (rule N6)."""
        if sender != (message.node_id if message.via == self._myself.node_id else message.via):
            self._links.drop(sender, f"it speaks for node {message.node_id} through node {message.via}")  # G7
            return
        if self.controller is None:
            if message.via == self._myself.node_id and self.leader not in (None, self._myself.node_id):
                assert self.leader is not None
                self._links.send(self.leader, message)
            return
        if isinstance(message, NodeRegister):
            self.controller.register(message, now_us)
            self._send_answers()
            return
        assert self._election is not None
        is_of_this_term = self._election.term == self._term  # not that of a later leadership
        proved_us = self._election.proved_us(now_us) if is_of_this_term and now_us >= self._lend_us else None  # G5
        answer = self.controller.heartbeat(message, now_us, proved_us)
        if answer is not None:
            self._send_back(answer)

    def _send_answers(self) -> None:
        assert self.controller is not None
        for answer in self.controller.take_answers():
            self._send_back(answer)

    def _send_back(self, answer: NodeRegistered | NodeHeartbeatOk) -> None:
        """Back through the candidate that was asked."""
        self.deliver(answer.node_id if answer.via == self._myself.node_id else answer.via, answer)

    def _take_answer(self, sender: int, answer: NodeRegistered | NodeHeartbeatOk, now_us: int) -> None:
        if answer.node_id != self._myself.node_id:
            if answer.via == self._myself.node_id:
                self._links.send(answer.node_id, answer)
            else:
                self._links.drop(sender, f"it answers node {answer.node_id}, which did not ask here")  # G7
            return
        standing = self.standing
        if standing is None or answer.via != sender or not self._is_candidate(sender):
            return
        boot_us = self._clock.boot_us()
        if isinstance(answer, NodeRegistered):
            standing.registered(answer, now_us)
        else:
            standing.heartbeat_ok(answer, now_us, boot_us)
            if not self.follows_log:
                self.leader = standing.controller  # nobody else tells it
        self._ownership.lease_until_us = standing.lease_until_us
        if standing.newest_version > self._ownership.table.version:
            self._ask_table(answer.via, now_us)

    @property
    def follows_log(self) -> bool:
        """Whether this node has a part in the log and hears of it. A candidate that nobody has added yet has none; one that was removed may
        not know that, for no leader speaks with it any more."""
        election = self._election
        return election is not None and election.leader is not None and self._myself.member in election.membership.members

    def _ask_table(self, node_id: int, now_us: int) -> None:
        """Whoever does not follow the log asks for the table; who does will hear of it from there."""
        if not self.follows_log and now_us / 1e6 >= self._table_asked_at + TABLE_ASK_SECONDS:
            self._table_asked_at = now_us / 1e6
            self.deliver(node_id, TableAsk(self._ownership.table.version))

    def _is_candidate(self, node_id: int) -> bool:
        hello = self._linked.get(node_id)
        return node_id == self._myself.node_id or (hello is not None and hello.candidate)

    def _take_page(self, node_id: int, page: TablePart) -> None:
        if self.follows_log or not self._is_candidate(node_id):
            _log.debug("node %d sent a table that nobody wants of it", node_id)  # G6
            return
        try:
            change = self._readers.setdefault(node_id, TableReader()).add(page)
        except RemoteProtocolError as error:
            self._links.drop(node_id, f"it sent a table that is none: {error}")
            return
        mine = self._ownership.table
        if change is None or change.version <= mine.version:
            return
        if change.base and change.base != mine.version:
            self.deliver(node_id, TableAsk(mine.version))
            return
        self._table_asked_at = -math.inf
        table = apply(mine, change)
        if self._ownership.goes_back(table):
            _log.warning("node %d sent a table that takes terms back: it is not followed", node_id)
            return
        if len(table.nodes) > NODES_MAX:
            self._links.drop(node_id, f"it sent a table that has {len(table.nodes)} nodes by now")
            return
        self._follow(table)
