"""The node: the only file that knows every actor.

`open_node` opens the data directory, starts the tree from left to right, and waits until the state of before is loaded:

    node
    ├─ shard_store        the log, the state, commits
    ├─ failure_detector   the lived clock, silent sessions
    ├─ election           the metadata log (candidates only)
    ├─ slot_manager       the table, and on the controller what it says
    ├─ peer_connector     the links to other nodes
    └─ client_sessions    all client connections

It stops in reverse: connections finish their writes while the store still lives, the store ends, the directory is closed.
Only the peer connector is ever restarted: the state of the others must not be guessed at, and the next start rebuilds it from storage.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import trio

from .._version import VERSION
from ..config import Config, build_config
from ..core.brake import Brake
from ..core.dispatch import Dispatch
from ..core.history import History
from ..core.links import Gate
from ..core.meta import ApplyFailed
from ..core.ownership import Ownership
from ..core.raft.types import Timing
from ..core.requests import Identity
from ..core.sessions import Sessions
from ..core.shard import Shard
from ..core.standing import Health
from ..core.subscriptions import Subscriptions
from ..core.suspects import Suspects
from ..environment import Environment, real_environment
from ..errors import ConfigError, NodeFailed, Stopped, StorageFailed
from ..messages import Message
from ..model import join_address
from ..peer_messages import PEER_PROTOCOL_VERSION, Member, PeerHello, RaftMessage
from ..storage.directory import DataDirectory, open_directory
from ..storage.format import NO_CLUSTER
from ..storage.raft_log import MemoryRaftLog, RaftLog
from .administration import Administration
from .client_session import STOP_SECONDS, ClientSessions
from .cluster_files import DiskClusterFiles, MemoryClusterFiles
from .cluster_status import ClusterStatus
from .election import Election
from .failure_detector import FailureDetector
from .mail import ElectionMail, FromPeer, LinksChanged, ManagerMail, RaftMail, SessionsMail, WriteBatch
from .metadata_log import MetadataLog
from .neighbours import Myself
from .peer_connector import PeerConnector
from .runtime import Mailbox, MailboxFull
from .shard_store import ShardStore
from .slot_manager import SlotManager
from .supervisor import Child, Restart, Supervisor, unwrap

STORE_MAILBOX_CAPACITY: Final = 256  # write batches; a full one makes client sessions keep their writes, up to `writes_pending_max`
SESSIONS_MAILBOX_CAPACITY: Final = 256
ELECTION_MAILBOX_CAPACITY: Final = 4096  # messages of candidates; what finds no room is sent again, as if the network had lost it
MANAGER_MAILBOX_CAPACITY: Final = 4096  # heartbeats of nodes, mostly; likewise
UNSYNCED_DEGRADED_SECONDS: Final = 3.0
LAG_DEGRADED_MS: Final = 500.0
FSYNC_DEGRADED_MS: Final = 500.0
FSYNC_RECENT_SECONDS: Final = 10.0  # what a disk did before that says nothing of it now: a node without writes would complain for ever

_log = logging.getLogger(__name__)


class Node:
    """A running node. `address` is where clients reach it, `environment` are its doors: a client in the same process dials through them."""

    def __init__(self, config: Config, environment: Environment, directory: DataDirectory | None) -> None:
        self.config = config
        self.environment = environment
        self._directory = directory
        self._boot_no = 1 if directory is None else directory.identity.boot_no
        disk_id = environment.random.randbytes(16) if directory is None else directory.identity.disk_id
        self._me = Member(config.node_id, disk_id)
        self._life = environment.random.randbytes(16)
        self._store_mailbox = Mailbox[WriteBatch]("shard_store", capacity=STORE_MAILBOX_CAPACITY)
        self._sessions_mailbox = Mailbox[SessionsMail]("client_sessions", capacity=SESSIONS_MAILBOX_CAPACITY)
        self._election_mailbox = Mailbox[ElectionMail]("election", capacity=ELECTION_MAILBOX_CAPACITY)
        self._manager_mailbox = Mailbox[ManagerMail]("slot_manager", capacity=MANAGER_MAILBOX_CAPACITY)
        self._make_cores()
        self._make_store_and_detector()
        self._make_connections()
        self._election = self._make_election()
        self._manager = self._make_manager()
        self._cluster_status = ClusterStatus(
            node_id=config.node_id, ownership=self._ownership, manager=self._manager, election=self._election, links=self._peers
        )
        self._tree = self._make_tree()

    # --- building -----------------------------------------------------------------------------------------------------------

    def _make_cores(self) -> None:
        limits, directory = self.config.limits, self._directory
        self._ownership = Ownership(self._me, self._boot_no)
        self._sessions = Sessions()
        self._shard = Shard(self._sessions, limits)
        history = History()
        self._suspects = Suspects(self._shard, self._sessions, history)
        self._subscriptions = Subscriptions(self._shard, self._suspects, limits)
        self._gate = Gate(limits)
        self._brake = Brake(enabled=self.config.brake)
        self._identity = Identity(node_id=self.config.node_id, cluster_id="", version=VERSION)
        self._dispatch = Dispatch(
            identity=self._identity,
            shard=self._shard,
            sessions=self._sessions,
            suspects=self._suspects,
            subscriptions=self._subscriptions,
            history=history,
            gate=self._gate,
            limits=limits,
            ownership=self._ownership,
            status=self.status,
            disk_full=lambda: directory is not None and self._store.loaded.is_set() and directory.log.full,
        )

    def _make_store_and_detector(self) -> None:
        self._store = ShardStore(
            shard=self._shard,
            sessions=self._sessions,
            ownership=self._ownership,
            clock=self.environment.clock,
            directory=self._directory,
            mailbox=self._store_mailbox,
            sessions_mailbox=self._sessions_mailbox,
            manager_mailbox=self._manager_mailbox,
            snapshot_bytes=self.config.snapshot_bytes,
        )
        self._detector = FailureDetector(
            shard=self._shard,
            sessions=self._sessions,
            ownership=self._ownership,
            clock=self.environment.clock,
            gate=self._gate,
            brake=self._brake,
            sessions_mailbox=self._sessions_mailbox,
        )

    def _make_connections(self) -> None:
        """Those of clients, and those to other nodes."""
        host, port = self.config.address
        self._clients = ClientSessions(
            network=self.environment.network,
            clock=self.environment.clock,
            dispatch=self._dispatch,
            sessions=self._sessions,
            suspects=self._suspects,
            subscriptions=self._subscriptions,
            gate=self._gate,
            limits=self.config.limits,
            mailbox=self._sessions_mailbox,
            store_mailbox=self._store_mailbox,
            manager_mailbox=self._manager_mailbox,
            host=host,
            port=port,
        )
        peer_host, peer_port = (None, 0) if self.config.peer_address is None else self.config.peer_address
        self._peers = PeerConnector(
            network=self.environment.network,
            random=self.environment.random,
            hello=self._hello,
            host=peer_host,
            port=peer_port,
            deliver=self._deliver,
            on_up=lambda node_id, hello: self._note_links(),
            on_down=lambda node_id: self._note_links(),
        )

    def _make_election(self) -> Election | None:
        if not self.config.candidate:
            return None
        directory = self._directory
        self._metadata_log = MetadataLog(MemoryRaftLog() if directory is None else RaftLog.open(directory.storage, directory.identity))
        return Election(
            me=self._me,
            log=self._metadata_log,
            random=self.environment.random,
            timing=Timing(),
            mailbox=self._election_mailbox,
            manager_mailbox=self._manager_mailbox,
            send=self._peers.send,
        )

    def _make_manager(self) -> SlotManager:
        config, directory, random = self.config, self._directory, self.environment.random
        alone = random.randbytes(16) if directory is None and not config.peers else NO_CLUSTER
        return SlotManager(
            myself=Myself(
                member=self._me,
                boot_no=self._boot_no,
                initial=tuple(sorted(config.peers)),
                is_candidate=config.candidate,
                is_volatile=directory is None,
            ),
            configured=config.peers,
            identity=self._identity,
            ownership=self._ownership,
            election=self._election,
            files=MemoryClusterFiles(alone) if directory is None else DiskClusterFiles(directory),
            links=self._peers,
            administration=Administration(
                node_id=config.node_id,
                ownership=self._ownership,
                election=self._election,
                election_mailbox=self._election_mailbox,
                sessions_mailbox=self._sessions_mailbox,
                random=random,
            ),
            random=random,
            clock=self.environment.clock,
            health=self._health,
            clients_address=config.clients_address,
            peers_address=self._peers_address,
            mailbox=self._manager_mailbox,
            election_mailbox=self._election_mailbox,
        )

    def _make_tree(self) -> list[Child]:
        vital = Restart.VITAL
        store = Child(name="shard_store", run=self._store.run, restart=vital, grace_seconds=5.0, mailboxes=[self._store_mailbox])
        detector = Child(name="failure_detector", run=self._detector.run, restart=vital, grace_seconds=1.0)
        elections = []
        if self._election is not None:
            mailboxes = [self._election_mailbox]
            elections = [Child(name="election", run=self._election.run, restart=vital, grace_seconds=1.0, mailboxes=mailboxes)]
        manager = Child(name="slot_manager", run=self._manager.run, restart=vital, grace_seconds=1.0, mailboxes=[self._manager_mailbox])
        peers = Child(name="peer_connector", run=self._peers.run, restart=Restart.PERMANENT, grace_seconds=1.0)
        sessions = Child(
            name="client_sessions",
            run=self._clients.run,
            restart=vital,
            grace_seconds=STOP_SECONDS + 1.0,
            mailboxes=[self._sessions_mailbox],
        )
        return [store, detector, *elections, manager, peers, sessions]

    # --- between the actors -------------------------------------------------------------------------------------------------

    def _deliver(self, node_id: int, message: Message) -> None:
        """A message of another node, to the actor that it concerns; without room it is lost, and its sender repeats it."""
        try:
            if isinstance(message, RaftMessage):
                if self._election is not None and message.sender.node_id == node_id:
                    self._election_mailbox.post(RaftMail(message))
            else:
                self._manager_mailbox.post(FromPeer(node_id, message))
        except (MailboxFull, Stopped) as error:
            _log.debug("a %s of node %d is dropped: %s", type(message).__name__, node_id, error)

    def _note_links(self) -> None:
        try:
            self._manager_mailbox.post(LinksChanged())
        except (MailboxFull, Stopped) as error:
            _log.debug("the slot manager will see by itself who is linked: %s", error)

    def _hello(self) -> PeerHello:
        """What this node says of itself on a link."""
        config = self.config
        return PeerHello(
            PEER_PROTOCOL_VERSION,
            self._manager.cluster_id,
            self._me.node_id,
            self._me.disk_id,
            self._boot_no,
            config.candidate,
            self._peers_address(),
            config.clients_address(self.address[1]),
            tuple(sorted(config.peers)),
            self._life,
        )

    def _peers_address(self) -> str:
        """Where other nodes reach this one; empty when they cannot."""
        return "" if self._peers.address is None else self.config.peers_address(self._peers.address[1])

    def _health(self) -> Health:
        """What the heartbeats of this node say."""
        log = None if self._directory is None or not self._store.loaded.is_set() else self._directory.log
        return Health(
            table_version=self._ownership.table.version,
            loop_lag_ms=round(self._detector.loop_lag_ms),
            unsynced_ms=0 if log is None else round(log.unsynced_seconds * 1000),
            sessions=len(self._sessions),
            instances=self._shard.instance_count,
        )

    # --- what others see ----------------------------------------------------------------------------------------------------

    @property
    def cluster_id(self) -> str:
        """The cluster this node belongs to, hexadecimal; empty while it belongs to none."""
        return self._identity.cluster_id

    @property
    def address(self) -> tuple[str, int]:
        """Where clients reach this node: the host and port that are really bound."""
        return self._clients.address

    @property
    def peers_address(self) -> tuple[str, int] | None:
        """Where other nodes reach this node: the host and port that are really bound; None when it takes no links."""
        return self._peers.address

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await Supervisor(f"node {self.config.node_id}", self._tree, random=self.environment.random).run(task_status=task_status)

    async def _wait_ready(self) -> None:
        """Until everything is loaded; a node that is alone also acts for all slots then. One that is not does not wait for the others."""
        await self._store.loaded.wait()
        if self.config.peer_address is None and self.config.candidate:
            await self._manager.acting.wait()

    async def _close(self) -> None:
        if self._election is not None:
            await self._metadata_log.close()

    def status(self) -> dict[str, Any]:
        """The state of the node in the shape of `status --json` (docs/operations.md)."""
        log = None if self._directory is None or not self._store.loaded.is_set() else self._directory.log
        fsync_ms = 0.0 if log is None else log.fsync_ms
        lag_ms = self._detector.loop_lag_ms
        is_fresh = self._store.loaded.is_set() and self._ownership.is_fresh(self.environment.clock.boot_us())
        degraded = []
        if not self._store.loaded.is_set():
            degraded.append("loading")
        if log is not None and log.full:
            degraded.append("disk full: registrations are refused until there is space")
        if log is not None and log.unsynced_seconds > UNSYNCED_DEGRADED_SECONDS:
            degraded.append(f"the disk has not answered for {log.unsynced_seconds:.0f} s: writes wait for it")
        if lag_ms > LAG_DEGRADED_MS:
            degraded.append(f"the event loop was {lag_ms:.0f} ms late: something blocks it")
        if log is not None and fsync_ms > FSYNC_DEGRADED_MS and trio.current_time() - log.synced_at < FSYNC_RECENT_SECONDS:
            degraded.append(f"the last fsync took {fsync_ms:.0f} ms: the disk is slow")
        if self._store.loaded.is_set():
            degraded += self._cluster_status.degraded(is_fresh)
        return {
            "node_id": self.config.node_id,
            "cluster_id": self.cluster_id,
            "version": VERSION,
            **self._cluster_status.fields(is_fresh),
            "fresh": is_fresh,
            "mode": "memory" if self._directory is None else "disk",
            "clients": join_address(*self.address),
            "data": "memory" if self._directory is None else self._directory.name,
            "connections": self._clients.connections,
            "sessions": len(self._sessions),
            "instances": self._shard.instance_count,
            "services": self._shard.service_count,
            "subscriptions": self._subscriptions.count,
            "suspects": len(self._suspects),
            "operations": self._shard.applied_count,
            "drains": self._dispatch.drains.open_count,
            "loop_lag_ms": round(lag_ms, 3),
            "fsync_ms": round(fsync_ms, 3),
            "brakes": [] if self._brake.reason is None else [self._brake.reason],
            "notices": self._cluster_status.notices(),
            "degraded": degraded,
        }

    def validate(self) -> None:
        """Assert the invariants of all cores; for tests and simulations, it walks everything."""
        self._sessions.validate()
        self._shard.validate()
        self._suspects.validate()
        self._subscriptions.validate()
        self._dispatch.drains.validate()
        self._ownership.validate()
        self._manager.meta.validate()
        if self._election is not None and self._election.core is not None:
            self._election.core.validate()

    def __repr__(self) -> str:
        return f"<Node {self.config.node_id} clients={join_address(*self.address)} instances={self._shard.instance_count}>"


@asynccontextmanager
async def open_node(config: Config | None = None, *, environment: Environment | None = None, **keys: object) -> AsyncIterator[Node]:
    """A node inside this process; without any key: in memory, on loopback, on any free port.

    `keys` are the configuration keys of `govern.config.Config`. The block is entered when everything the data directory holds is
    loaded and clients can connect. Leaving it, or cancelling it, stops the node cleanly: writes under way are finished, at most a second
    long. Several nodes in one process are fine.

    Raises `ConfigError` for a wrong key or value, `StorageError` when the data directory cannot be used, `OSError` when the address
    cannot be bound, each before the block is entered. When the disk fails later the block is cancelled and `NodeFailed` is raised:
    nothing was acknowledged that is not on the disk.
    """
    if not __debug__:
        raise ConfigError("govern keeps its assertions on: start Python without -O and without PYTHONOPTIMIZE")
    if config is None:
        config = build_config(("open_node", keys))
    elif keys:
        raise ConfigError("open_node: give either a Config or keys, not both")
    if environment is None:
        environment = real_environment(config.data_dir or None)
    async with AsyncExitStack() as stack:
        directory = None
        if environment.storage is not None:
            opening = open_directory(
                environment.storage, environment.random, segment_bytes=config.segment_bytes, without_cluster=bool(config.peers)
            )
            directory = await stack.enter_async_context(opening)
        node = Node(config, environment, directory)
        stack.push_async_callback(node._close)
        body_error: BaseException | None = None
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(node._run)
                await node._wait_ready()
                try:
                    yield node
                except BaseException as error:  # re-raised below, unwrapped, once the node is down
                    body_error = error
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            failure = unwrap(group)
        if isinstance(failure, ApplyFailed):
            raise NodeFailed(f"the node stopped, because it cannot follow the cluster's metadata: {failure}") from failure
        if isinstance(failure, StorageFailed):
            raise NodeFailed(f"the node stopped at once, because its disk failed: {failure}") from failure
        if failure is not None:
            raise failure
        if body_error is not None:
            raise body_error
