"""The slot manager: follows the table, and on the controller decides it.

Everything that concerns the cluster as a whole and this node's place in it meets here: the metadata state, the table that follows from it,
the registration and the lease of this node, and, while this node leads, the decisions of the controller. The rules are in the cores
(`meta`, `controller`, `standing`, `bootstrap`, `ownership`); this shell carries mail between them, the other nodes and the log.

    mail ─▶ one of the cores ─▶ records to the election, messages to other nodes, a newer table to `Ownership` and to the disk

G1  It waits for nobody: what it asks for comes back as mail, and what must be written is written by a task beside it. So whoever puts
    something into its mailbox never waits for long.
G2  A message for this node itself takes the same way as one for another, without a link. So the controller is a node like any other.
G3  A cluster id becomes this node's only when it is durable; the file with the table is written before the identity, so a directory with an
    id and without that file is one from before there were clusters, and nothing else.
G4  A record that cannot be applied ends the node: its state would not be that of the others any more.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs
import trio

from ..core.bootstrap import Bootstrap
from ..core.controller import Controller
from ..core.dispatch import Identity
from ..core.meta import ClusterInit, MetaState
from ..core.ownership import Ownership
from ..core.raft.types import DATA
from ..core.slots import SLOT_COUNT
from ..core.standing import Health, Standing
from ..core.table import EMPTY, Table, TableReader, apply
from ..environment import Clock, Random
from ..errors import RemoteProtocolError, Stopped
from ..messages import Message, TableRows
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
    SessionsMail,
    StoreLoaded,
    Words,
)
from .runtime import Mailbox, MailboxFull

LOOK_SECONDS: Final = 0.1
"""So often the links are looked at, in case the word that they changed found no room."""
COMPACT_ENTRIES: Final = 10_000
COMPACT_BYTES: Final = 16 * 1024 * 1024
"""A snapshot of the metadata is made after so many entries, or so many bytes of them."""

_log = logging.getLogger(__name__)


class ClusterFiles(Protocol):
    """What a node keeps of the cluster, beside the log: its id and the last table."""

    @property
    def cluster_id(self) -> bytes:
        """The cluster this directory belongs to; empty while it belongs to none."""

    async def load(self) -> tuple[bytes, Table] | None:
        """The cluster and the table that were kept last; None when none ever was."""

    async def keep(self, cluster_id: bytes, table: Table) -> None:
        """Keep this table."""

    async def adopt(self, cluster_id: bytes) -> None:
        """Belong to this cluster from now on, durably."""


@attrs.frozen(kw_only=True)
class Myself:
    """Which node this is, in which life, and what it is meant to be."""

    member: Member
    boot_no: int
    initial: tuple[int, ...]  # the initial candidates of the configuration; empty: alone
    is_candidate: bool
    is_volatile: bool

    @property
    def node_id(self) -> int:
        return self.member.node_id


class Links(Protocol):
    """The peer connector, as far as it is needed here."""

    def send(self, node_id: int, message: Message) -> bool:
        """Send over the link to a node; False when it is dropped."""

    def peers(self) -> Mapping[int, PeerHello]:
        """Who is linked now."""

    def set_peers(self, addresses: Mapping[int, str]) -> None:
        """To whom links are to be kept."""

    def recheck(self) -> None:
        """Drop the links to nodes of other clusters."""


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
        random: Random,
        clock: Clock,
        health: Callable[[], Health],
        clients_address: Callable[[int], str],
        peers_address: Callable[[], str],
        mailbox: Mailbox[ManagerMail],
        election_mailbox: Mailbox[ElectionMail] | None,
        sessions_mailbox: Mailbox[SessionsMail],
    ) -> None:
        self.cluster_id = b""
        self.standing: Standing | None = None
        self.controller: Controller | None = None
        self.meta = MetaState()
        self.assigned = trio.Event()  # set once this node acts for something
        self._myself = myself
        self._configured = configured
        self._identity = identity
        self._ownership = ownership
        self._election = election
        self._files = files
        self._links = links
        self._random = random
        self._clock = clock
        self._health = health
        self._clients_address = clients_address
        self._peers_address = peers_address
        self._mailbox = mailbox
        self._election_mailbox = election_mailbox
        self._bootstrap = Bootstrap(myself.member, myself.initial) if myself.initial and myself.is_candidate else None
        self._administration = Administration(
            myself=myself,
            ownership=ownership,
            election=election,
            election_mailbox=election_mailbox,
            sessions_mailbox=sessions_mailbox,
            deliver=self._deliver,
            manager=self,
        )
        self._local: deque[Message] = deque()
        self._listening: Listening | None = None
        self._loaded: StoreLoaded | None = None
        self._leader: int | None = None  # as the heartbeats of a node that is no candidate tell it
        self._forming = b""  # the id of the cluster that this node is about to form
        self._adopting = b""  # the id that is being written
        self._to_keep = trio.Event()
        self._kept_version = -1
        self._pages = TableReader()
        self._entries_since = 0
        self._bytes_since = 0

    # --- running ------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Raises `StorageFailed` when the disk fails, and whatever a record that cannot be applied raises (G4)."""
        await self._load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            task_status.started()
            self._begin_alone()
            while True:
                mail: ManagerMail | None = None
                with trio.move_on_at(self._due_at()):
                    mail = await self._mailbox.get()
                self._take(mail)

    async def _load(self) -> None:
        """What the directory knows of the cluster. A log that was begun before the id was written tells that the id is to be that one (G3)."""
        kept = await self._files.load()
        self.cluster_id = self._files.cluster_id
        self._has_file = kept is not None
        if kept is not None and not self.cluster_id and self._election is not None and self._election.core is not None:
            await self._files.adopt(kept[0])
            self.cluster_id = self._files.cluster_id
        if kept is not None and self.cluster_id:
            self._ownership.take(kept[1])
            self._kept_version = kept[1].version
        self._identity.cluster_id = self.cluster_id.hex()
        self._set_peers()

    def _begin_alone(self) -> None:
        """A directory with an id and nothing of a cluster is a cluster of one (G3); one that has joined continues its empty log."""
        election = self._election
        if not self.cluster_id or election is None or election.core is not None:
            return
        if self._has_file:
            self._ask_election(Join())
        else:
            record = ClusterInit(self.cluster_id, SLOT_COUNT, "crc16").pack()
            self._ask_election(Form(self._myself.boot_no, (self._myself.member,), record))

    def _due_at(self) -> float:
        due_us = min(
            math.inf if self.controller is None else self.controller.deadline_us,
            math.inf if self.standing is None else self.standing.deadline_us,
            self._administration.deadline_us,
        )
        look_at = math.inf if not self._configured and self.standing is not None else trio.current_time() + LOOK_SECONDS
        return min(due_us / 1e6, look_at)

    def _take(self, mail: ManagerMail | None) -> None:
        now_us = round(trio.current_time() * 1e6)
        if mail is not None:
            self._dispatch(mail, now_us)
        self._look_at_links()
        self._tick(now_us)
        self._deliver_local(now_us)
        self._propose()
        self._administration.settle(now_us)

    def _dispatch(self, mail: ManagerMail, now_us: int) -> None:
        match mail:
            case FromPeer(node_id, message):
                self._receive(node_id, message, now_us)
            case Entries(entries):
                self._apply(entries, now_us)
            case Installed(index, state):
                self.meta = MetaState.unpack(state) if state else MetaState()
                self._follow(self.meta.table)
                _log.info("took over the metadata as of %d from the controller", index)
            case Led():
                self._note_leader(mail, now_us)
            case Formed():
                self._adopt(self._forming or self.cluster_id)
            case StoreLoaded():
                self._loaded = mail
            case Listening():
                self._listening = mail
            case MembersChanged() | Confirmed():
                self._administration.answered(mail, now_us)
            case Words(words):
                self._administration.ask(words, now_us)
            case LinksChanged():
                pass  # the links are looked at after every mail

    def _tick(self, now_us: int) -> None:
        if self.standing is None and self.cluster_id and self._loaded is not None and self._listening is not None:
            self.standing = Standing(
                self._myself.member,
                boot_no=self._myself.boot_no,
                clients=self._clients_address(self._listening.port),
                peers=self._peers_address(),
                candidate=self._myself.is_candidate,
                volatile=self._myself.is_volatile,
                tail_truncated=self._loaded.tail_truncated,
                now_us=now_us,
            )
        if self.controller is not None:
            self.controller.tick(now_us)
            self._deliver_all(self.controller.take_answers())
        standing = self.standing
        if standing is not None:
            standing.candidates(*self._whom_to_ask())
            standing.tick(now_us, self._clock.boot_us(), self._ownership.table.version, self._health())
            for node_id, message in standing.take_messages():
                self._deliver(node_id, message)

    # --- the cluster --------------------------------------------------------------------------------------------------------

    def _look_at_links(self) -> None:
        """Learn of a cluster, or form one, from what the others say of themselves."""
        if self.cluster_id or self._adopting or self._forming:
            return
        hellos = self._links.peers()
        for hello in hellos.values():
            if hello.cluster_id:
                self._adopt(hello.cluster_id)
                return
        if self._bootstrap is not None:
            members = self._bootstrap.decide(hellos)
            if members is not None:
                self._forming = self._random.randbytes(16)
                self._to_keep.set()

    def _adopt(self, cluster_id: bytes) -> None:
        """Belong to a cluster, once that is durable."""
        if not self.cluster_id:
            self._adopting = cluster_id
            self._to_keep.set()

    def _adopted(self, cluster_id: bytes) -> None:
        self.cluster_id, self._adopting = cluster_id, b""
        self._identity.cluster_id = cluster_id.hex()
        _log.info("this node belongs to cluster %s", cluster_id.hex())
        self._links.recheck()
        if self._forming:
            self._forming = b""
            for node_id in list(self._links.peers()):
                self._links.send(node_id, ClusterFormed(cluster_id))
        elif self._election is not None and self._election.core is None:
            self._ask_election(Join())

    async def _keep(self) -> None:
        """The task that writes: the table when it is newer than the one kept, and the id of a cluster (G1, G3)."""
        while True:
            await self._to_keep.wait()
            self._to_keep = trio.Event()
            forming, adopting = self._forming, self._adopting
            if adopting:
                await self._files.keep(adopting, self._ownership.table)
                await self._files.adopt(adopting)
                self._adopted(adopting)
            elif forming and not self.cluster_id:
                await self._files.keep(forming, EMPTY)
                assert self._bootstrap is not None
                record = ClusterInit(forming, SLOT_COUNT, "crc16").pack()
                self._ask_election(Form(0, self._bootstrap.members(self._links.peers()), record))
            table = self._ownership.table
            if self.cluster_id and table.version > self._kept_version:
                await self._files.keep(self.cluster_id, table)
                self._kept_version = table.version

    def _ask_election(self, mail: ElectionMail) -> None:
        if self._election_mailbox is not None:
            self._election_mailbox.post(mail)
