"""The sizes of a run that nobody can configure: how much a mailbox holds, when the metadata log is cut, how long an election takes.

They are constants of the code, each where it is used; a run puts its own values in their place while it lasts. Large ones hide what happens
at a bound: with those of the code no run of a minute would ever cut its metadata log, and no mailbox would be full.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import attrs

from govern.actors import client_session, election, node, shard_store, slot_manager
from govern.core import controller
from govern.core.raft import core, leading
from govern.core.raft.types import Timing
from govern.peer_messages import ENTRIES_BYTES_MAX, SNAPSHOT_CHUNK_BYTES
from govern.storage import raft_log


@attrs.frozen(kw_only=True)
class Sizes:
    """Those of the code, unless drawn."""

    mailbox_capacity: int | None = None
    """Of each actor; None: as in the code."""
    writes_per_batch: int = client_session.WRITES_PER_BATCH
    batches_max: int = shard_store.BATCHES_MAX
    mails_per_turn: int = slot_manager.MAILS_PER_TURN
    entries_per_mail: int = election.ENTRIES_PER_MAIL
    append_bytes: int = ENTRIES_BYTES_MAX
    snapshot_chunk_bytes: int = SNAPSHOT_CHUNK_BYTES
    compact_entries: int = slot_manager.COMPACT_ENTRIES
    compact_bytes: int = slot_manager.COMPACT_BYTES
    keep_behind: int = core.KEEP_BEHIND
    uncommitted_max: int = core.UNCOMMITTED_MAX
    raft_segment_bytes: int = raft_log.RAFT_SEGMENT_BYTES
    election_ms: int = controller.ELECTION_US // 1000
    """A leader speaks five times as often; how long a leader of before counts after a sleep goes with it."""

    def __str__(self) -> str:
        drawn = [f"{name} {value}" for name, value in attrs.asdict(self).items() if value != getattr(USUAL, name)]
        return ", ".join(drawn) or "as in the code"

    @classmethod
    def draw(cls, chance: random.Random) -> Sizes:
        """A third of the runs has the sizes of the code."""
        if chance.randrange(3) == 0:
            return USUAL
        return cls(
            mailbox_capacity=chance.choice((None, 16, 64)),
            writes_per_batch=chance.choice((1, 4, 256)),
            batches_max=chance.choice((1, 4)),
            mails_per_turn=chance.choice((1, 8, 256)),
            entries_per_mail=chance.choice((1, 3, 256)),
            append_bytes=chance.choice((70, 1024, 256 * 1024)),
            snapshot_chunk_bytes=chance.choice((100, 1000, 256 * 1024)),
            compact_entries=chance.choice((3, 10, 10_000)),
            compact_bytes=chance.choice((500, 16 * 1024 * 1024)),
            keep_behind=chance.choice((0, 2, 5_000)),
            uncommitted_max=chance.choice((4, 256)),
            raft_segment_bytes=chance.choice((16 * 1024, 1024 * 1024)),
            election_ms=chance.choice((500, 1000, 1000, 2000)),
        )

    @contextmanager
    def in_force(self) -> Generator[None]:
        """For everything that is started and done in this block."""
        election_us = self.election_ms * 1000
        values: dict[ModuleType, dict[str, Any]] = {
            client_session: {"WRITES_PER_BATCH": self.writes_per_batch},
            shard_store: {"BATCHES_MAX": self.batches_max},
            slot_manager: {
                "MAILS_PER_TURN": self.mails_per_turn,
                "COMPACT_ENTRIES": self.compact_entries,
                "COMPACT_BYTES": self.compact_bytes,
                "NO_LEASE_US": election_us,
            },
            election: {"ENTRIES_PER_MAIL": self.entries_per_mail},
            leading: {"ENTRIES_BYTES_MAX": self.append_bytes, "SNAPSHOT_CHUNK_BYTES": self.snapshot_chunk_bytes},
            core: {"KEEP_BEHIND": self.keep_behind, "UNCOMMITTED_MAX": self.uncommitted_max},
            controller: {"ELECTION_US": election_us},
            node: {"Timing": partial(Timing, election_us=election_us, heartbeat_us=election_us // 5)},
        }
        if self.mailbox_capacity is not None:
            values[node] |= dict.fromkeys(MAILBOXES, self.mailbox_capacity)
        segment = {"segment_bytes": self.raft_segment_bytes}
        with ExitStack() as stack:
            for module, constants in values.items():
                stack.enter_context(patch.multiple(module, **constants))
            stack.enter_context(patch.dict(_keywords_of_open(), segment))
            yield


MAILBOXES = (
    *("STORE_MAILBOX_CAPACITY", "SESSIONS_MAILBOX_CAPACITY"),
    *("ELECTION_MAILBOX_CAPACITY", "MANAGER_MAILBOX_CAPACITY"),
)
USUAL = Sizes()


def _keywords_of_open() -> dict[str, Any]:
    """The defaults of `RaftLog.open`, where its size of a segment is."""
    return raft_log.RaftLog.open.__func__.__kwdefaults__  # type: ignore[attr-defined,no-any-return]
