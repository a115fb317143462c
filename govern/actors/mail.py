"""What the actors of a node say to each other.

client_sessions ── WriteBatch ──▶ shard_store         put: waits when the store is behind
shard_store ── Committed, Loaded ──▶ client_sessions  put: safe, because the reader of that mailbox never waits for anybody
failure_detector ── LastRead ──▶ client_sessions      post: a full mailbox drops it, and it is said again a second later
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ..core.dispatch import Write
from ..core.sessions import Silent
from ..core.shard import Outcome


@attrs.frozen(eq=False)
class WriteBatch:
    """Operations for the log, in the order in which they are to take effect."""

    writes: Sequence[Write]


@attrs.frozen(eq=False)
class Committed:
    """What became of operations: durable and applied, or certainly refused."""

    results: list[tuple[Write, Outcome]]


@attrs.frozen(eq=False)
class Loaded:
    """The state of before the last stop is back; requests that waited can be served."""


@attrs.frozen(eq=False)
class LastRead:
    """Read the connections of these silent sessions once more, and propose the expiry of those that are still silent (rule E2)."""

    silent: Sequence[Silent]


SessionsMail = Committed | Loaded | LastRead
