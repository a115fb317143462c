"""What a leader knows of one other member's log, and what is on the way to it.

    PROBE      where the logs part is not known: one Append at a time, until one is accepted
    REPLICATE  all agree up to `next`: Appends are sent ahead of their answers, at most `WINDOW` of them
    SNAPSHOT   what it lacks is compacted: the snapshot goes over piece by piece, one at a time

G1  `match` never goes down within a leadership: what an acceptance names is durable there, under this leader's term.
G2  `match < next`.
G3  A refusal that is older than what is known meanwhile changes nothing: it says that less agrees than `match`, or, while probing, no less
    than what is being tried.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

import attrs

from ...peer_messages import Member
from .types import Snapshot

WINDOW: Final = 16
"""Appends on the way to one member; at `ENTRIES_BYTES_MAX` each they fit into a quarter of a link's queue."""


class Phase(enum.Enum):
    """How a member is spoken to."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@attrs.define(eq=False)
class Sending:
    """A snapshot on its way to a member."""

    snapshot: Snapshot
    offset: int = 0
    """How much has arrived."""
    in_flight: int | None = None
    """Where the piece ends that is on the way."""
    sent_us: int = 0
    restart_at: int | None = None
    """Where the member really is, if that is not at `offset`."""


@attrs.define(eq=False)
class Progress:
    """One member, in one leadership."""

    member: Member
    next: int
    match: int = 0
    phase: Phase = Phase.PROBE
    round: int = 0
    """The newest round that it answered."""
    heard_us: int | None = None
    due: bool = True
    """Whether something is to be sent even when there is nothing to say: a new round has begun."""
    commit_sent: int = 0
    in_flight: deque[int] = attrs.field(factory=deque)
    """The last index of each Append on the way that has entries."""
    sending: Sending | None = None

    @property
    def may_send(self) -> bool:
        """Whether an Append with entries may go."""
        return len(self.in_flight) < (WINDOW if self.phase is Phase.REPLICATE else 1)

    def accepted(self, index: int) -> None:
        """It agrees, and is durable, up to `index`."""
        self.match = max(self.match, index)  # G1
        while self.in_flight and self.in_flight[0] <= self.match:
            self.in_flight.popleft()
        self.next = max(self.next, self.match + 1)  # G2
        if self.sending is not None:
            if self.match < self.sending.snapshot.meta.index:
                return
            self.next = self.match + 1
        elif self.phase is Phase.PROBE and self.in_flight:
            self.next = self.in_flight[-1] + 1  # what was tried will be accepted too, when it is durable there
        self.phase, self.sending = Phase.REPLICATE, None

    def refused(self, index: int, hint: int) -> None:
        """It does not agree where it was tried, nor behind `index`; and the leader knows that it does not behind `hint`."""
        hint = max(hint, self.match)
        if index < self.match or self.phase is Phase.SNAPSHOT or (self.phase is Phase.PROBE and hint + 1 >= self.next):
            return  # G3
        self.next = hint + 1
        self.phase = Phase.PROBE
        self.in_flight.clear()

    def recent(self, now_us: int, election_us: int) -> bool:
        """Whether it answered within the election timeout."""
        return self.heard_us is not None and now_us - self.heard_us < election_us
