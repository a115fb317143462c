"""The node: the only file that knows every actor.

`open_node` opens the data directory, starts the tree from left to right, and waits until the state of before is loaded:

    node
    ├─ shard_store        the log, the state, commits
    ├─ failure_detector   the lived clock, silent sessions
    └─ client_sessions    all client connections

It stops in reverse: connections finish their writes while the store still lives, the store ends, the directory is closed.
None of the three is ever restarted: their state must not be guessed at, and the next start rebuilds it from storage.
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
from ..core.dispatch import Dispatch, Identity
from ..core.history import History
from ..core.links import Gate
from ..core.sessions import Sessions
from ..core.shard import Shard
from ..core.subscriptions import Subscriptions
from ..core.suspects import Suspects
from ..environment import Environment, real_environment
from ..errors import ConfigError, NodeFailed, StorageFailed
from ..model import join_address
from ..storage.directory import DataDirectory, open_directory
from .client_session import STOP_SECONDS, ClientSessions
from .failure_detector import FailureDetector
from .mail import SessionsMail, WriteBatch
from .runtime import Mailbox
from .shard_store import ShardStore
from .supervisor import Child, Restart, Supervisor, unwrap

STORE_MAILBOX_CAPACITY: Final = 256  # write batches; a full one makes client sessions keep their writes, up to `writes_pending_max`
SESSIONS_MAILBOX_CAPACITY: Final = 256
UNSYNCED_DEGRADED_SECONDS: Final = 3.0
LAG_DEGRADED_MS: Final = 500.0
FSYNC_DEGRADED_MS: Final = 500.0

_log = logging.getLogger(__name__)


class Node:
    """A running node. `address` is where clients reach it, `environment` are its doors: a client in the same process dials through them."""

    def __init__(self, config: Config, environment: Environment, directory: DataDirectory | None) -> None:
        self.config = config
        self.environment = environment
        self._directory = directory
        limits = config.limits
        self._sessions = Sessions()
        self._shard = Shard(self._sessions, limits)
        history = History()
        self._suspects = Suspects(self._shard, self._sessions, history)
        self._subscriptions = Subscriptions(self._shard, self._suspects, limits)
        gate = Gate(limits)
        cluster_id = environment.random.randbytes(16) if directory is None else directory.identity.cluster_id
        self.cluster_id = cluster_id.hex()
        self._dispatch = Dispatch(
            identity=Identity(node_id=config.node_id, cluster_id=self.cluster_id, version=VERSION),
            shard=self._shard,
            sessions=self._sessions,
            suspects=self._suspects,
            subscriptions=self._subscriptions,
            history=history,
            gate=gate,
            limits=limits,
            status=self.status,
            disk_full=lambda: directory is not None and self._store.loaded.is_set() and directory.log.full,
        )
        store_mailbox = Mailbox[WriteBatch]("shard_store", capacity=STORE_MAILBOX_CAPACITY)
        sessions_mailbox = Mailbox[SessionsMail]("client_sessions", capacity=SESSIONS_MAILBOX_CAPACITY)
        self._store = ShardStore(
            shard=self._shard,
            sessions=self._sessions,
            directory=directory,
            mailbox=store_mailbox,
            sessions_mailbox=sessions_mailbox,
            snapshot_bytes=config.snapshot_bytes,
        )
        self._brake = Brake(enabled=config.brake)
        self._detector = FailureDetector(
            shard=self._shard, sessions=self._sessions, gate=gate, brake=self._brake, sessions_mailbox=sessions_mailbox
        )
        host, port = config.address
        self._clients = ClientSessions(
            network=environment.network,
            clock=environment.clock,
            dispatch=self._dispatch,
            sessions=self._sessions,
            suspects=self._suspects,
            subscriptions=self._subscriptions,
            gate=gate,
            limits=limits,
            mailbox=sessions_mailbox,
            store_mailbox=store_mailbox,
            host=host,
            port=port,
        )
        self._tree = [
            Child(name="shard_store", run=self._store.run, restart=Restart.VITAL, grace_seconds=5.0, mailboxes=[store_mailbox]),
            Child(name="failure_detector", run=self._detector.run, restart=Restart.VITAL, grace_seconds=1.0),
            Child(
                name="client_sessions",
                run=self._clients.run,
                restart=Restart.VITAL,
                grace_seconds=STOP_SECONDS + 1.0,
                mailboxes=[sessions_mailbox],
            ),
        ]

    @property
    def address(self) -> tuple[str, int]:
        """Where clients reach this node: the host and port that are really bound."""
        return self._clients.address

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await Supervisor(f"node {self.config.node_id}", self._tree, random=self.environment.random).run(task_status=task_status)

    def status(self) -> dict[str, Any]:
        """The state of the node in the documented shape of `status --json`."""
        log = None if self._directory is None or not self._store.loaded.is_set() else self._directory.log
        fsync_ms = 0.0 if log is None else log.fsync_ms
        lag_ms = self._detector.loop_lag_ms
        degraded = []
        if not self._store.loaded.is_set():
            degraded.append("loading")
        if log is not None and log.full:
            degraded.append("disk full: registrations are refused until there is space")
        if log is not None and log.unsynced_seconds > UNSYNCED_DEGRADED_SECONDS:
            degraded.append(f"the disk has not answered for {log.unsynced_seconds:.0f} s: writes wait for it")
        if lag_ms > LAG_DEGRADED_MS:
            degraded.append(f"the event loop was {lag_ms:.0f} ms late: something blocks it")
        if fsync_ms > FSYNC_DEGRADED_MS:
            degraded.append(f"the last fsync took {fsync_ms:.0f} ms: the disk is slow")
        return {
            "node_id": self.config.node_id,
            "cluster_id": self.cluster_id,
            "version": VERSION,
            "role": "single",
            "controller": self.config.node_id,
            "term": self._store.term,
            "table_version": 0,
            "fresh": self._store.loaded.is_set(),
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
            "degraded": degraded,
        }

    def validate(self) -> None:
        """Assert the invariants of all cores; for tests and simulations, it walks everything."""
        self._sessions.validate()
        self._shard.validate()
        self._suspects.validate()
        self._subscriptions.validate()
        self._dispatch.drains.validate()

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
            opening = open_directory(environment.storage, environment.random, segment_bytes=config.segment_bytes)
            directory = await stack.enter_async_context(opening)
        node = Node(config, environment, directory)
        body_error: BaseException | None = None
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(node._run)
                await node._store.loaded.wait()
                try:
                    yield node
                except BaseException as error:  # re-raised below, unwrapped, once the node is down
                    body_error = error
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            failure = unwrap(group)
        if isinstance(failure, StorageFailed):
            raise NodeFailed(f"the node stopped at once, because its disk failed: {failure}") from failure
        if failure is not None:
            raise failure
        if body_error is not None:
            raise body_error
