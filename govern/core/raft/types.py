"""What consensus keeps, and what it hands to its owner: the words of the Raft rules that others need too.

A candidate's durable state is a `HardState`, a `Snapshot` (there is always one: the log begins behind it) and the entries behind it. All
changes of it leave the rules as `Write`s, one after the other, each of which is to be durable as a whole before the next is taken.

The membership is part of the log: an entry of kind `VOTERS` carries a packed `Membership`, a snapshot the one as of its index.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import attrs
import msgpack

from ...errors import GovernError
from ...model import NODE_ID_MAX
from ...peer_messages import DISK_ID_BYTES, MEMBERS_MAX, Entry, Member

NOOP: Final = 0
"""The first entry of every leader (rule R4); it says nothing."""
DATA: Final = 1
"""What the owner of the replicated state proposed."""
VOTERS: Final = 2
"""A packed `Membership`, in force from the moment it is in the log (rule R11)."""


class Chance(Protocol):
    """Where the rules take their chance from; `random.Random` is one."""

    def uniform(self, a: float, b: float) -> float:
        """A number between `a` and `b`."""


@attrs.frozen
class Membership:
    """Who takes part: voters decide, learners only receive. Both are in the order of their ids and have no member in common."""

    voters: tuple[Member, ...] = ()
    learners: tuple[Member, ...] = ()

    def __attrs_post_init__(self) -> None:
        members = self.members
        assert list(self.voters) == sorted(self.voters), "voters are in order"
        assert list(self.learners) == sorted(self.learners), "learners are in order"
        assert len({*members}) == len(members), "a member is either voter or learner, once"

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them, voters first."""
        return self.voters + self.learners

    def pack(self) -> bytes:
        """The bytes of an entry of kind `VOTERS`."""
        packed: bytes = msgpack.packb([self.voters, self.learners])
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Membership:
        """The inverse of `pack`; raises `ValueError` for bytes that `pack` never made."""
        try:
            raw = msgpack.unpackb(data, max_array_len=MEMBERS_MAX, max_ext_len=0, max_map_len=0)
            voters, learners = (tuple(Member(node_id, disk_id) for node_id, disk_id in members) for members in raw)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(f"not a membership: {type(error).__name__}") from error
        return cls.of(voters, learners)

    @classmethod
    def of(cls, voters: tuple[Member, ...], learners: tuple[Member, ...]) -> Membership:
        """A membership of members in any order, from anywhere; raises `ValueError` when it cannot be one."""
        members = voters + learners
        if any(type(node_id) is not int or type(disk_id) is not bytes for node_id, disk_id in members):
            raise ValueError("a member is a number and bytes")
        if any(not 1 <= node_id <= NODE_ID_MAX or len(disk_id) != DISK_ID_BYTES for node_id, disk_id in members):
            raise ValueError("a member has no node id, or no disk id")
        if len({*members}) != len(members) or len(members) > MEMBERS_MAX:
            raise ValueError("a member is there twice, or there are too many")
        return cls(tuple(sorted(voters)), tuple(sorted(learners)))


@attrs.frozen
class HardState:
    """What must never be forgotten: the term, the vote given in it, and how far the log is known to be committed. One durable record:
    a term without its vote, or a vote without its term, would let a candidate vote twice."""

    term: int = 0
    voted_for: Member | None = None
    commit: int = 0


@attrs.frozen
class SnapshotMeta:
    """Up to which entry a snapshot reaches, and the membership as of there."""

    index: int
    term: int
    membership: Membership


@attrs.frozen
class Snapshot:
    """The replicated state as of an entry, as its owner packed it. The empty start is one too, with term 0 and nobody in it."""

    meta: SnapshotMeta
    state: bytes = attrs.field(repr=False)


@attrs.frozen
class Write:
    """One batch for the disk, durable as a whole or not at all.

    With `entries` the log is first cut back to the index before the first of them. A `snapshot` replaces the log up to its index; where
    the log agrees behind it (has the snapshot's term at its index) the rest of the log stays, otherwise nothing of it does.
    """

    hard: HardState | None
    entries: tuple[Entry, ...]
    snapshot: Snapshot | None


@attrs.frozen
class Timing:
    """The base of all timeouts, and how often a leader speaks, in microseconds."""

    election_us: int = 1_000_000
    heartbeat_us: int = 200_000


class MemberProgress(NamedTuple):
    """What a leader knows of one member: how far its log certainly agrees and is durable, and whether it was heard lately."""

    member: Member
    voter: bool
    match: int
    recent: bool


class NotLeader(GovernError):
    """Only the leader can do this; `leader` is the member that leads, as far as is known."""

    def __init__(self, leader: Member | None) -> None:
        super().__init__("there is no leader now" if leader is None else f"node {leader.node_id} leads")
        self.leader = leader


class ChangeRefused(GovernError):
    """A change of the membership is refused; the message says why and what to do."""
