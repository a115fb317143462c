"""What stands in the log and in the snapshots of a candidate: the vote, the entries of the metadata log, and the state behind them.

    STATE      type 1: term of the record is the term, seq the commit; payload: msgpack [node_id, disk_id] of the vote, or nothing
    ENTRY      type 2: slot of the record is the kind, term and seq are those of the entry; payload: its data
    REPEATED   type 4: as ENTRY, for an entry that is in the log already: a start from the snapshot after it begins with it
    INSTALLED  type 3: term and seq are those of a snapshot on which everything behind relies
    snapshot   block 0: term and seq of the snapshot, state: msgpack [voters, learners]; blocks 1: the state in pieces

`Replay` makes of the records, in order, what they mean.

P1  An ENTRY replaces the entry of its index and everything behind it: that is how a cut is recorded. Nothing committed is ever cut. A
    REPEATED cuts nothing, or a repetition of which a crash left only the beginning would cut off what it did not come to.
P2  Indexes have no gaps. A snapshot, an INSTALLED or an entry that does not fit what came before means that something is missing.
P3  A log that begins with nothing, not even an index, begins where its first entry says: that of a candidate which waits to be added.
P4  Whatever the bytes are, they are records or `FormatError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from ..peer_messages import Entry, Member
from .format import FormatError, Record
from .snapshots import Block

STATE: Final = 1
ENTRY: Final = 2
INSTALLED: Final = 3
REPEATED: Final = 4
PIECE_BYTES: Final = 1 << 20


class VoteState(NamedTuple):
    """What a candidate must never forget: its term, its vote in it, and how far the log is known to be committed."""

    term: int
    voted_for: Member | None
    commit: int


class RaftSnapshot(NamedTuple):
    """The state as of (`index`, `term`), and the membership as of there. `state` means something only to the caller."""

    index: int  # type: ignore[assignment]  # the word of the field; nobody searches a snapshot as a tuple
    term: int
    voters: tuple[Member, ...]
    learners: tuple[Member, ...]
    state: bytes


class RaftSaved(NamedTuple):
    """Everything that is durable. The entries begin behind the snapshot, and `hard.commit` lies between its index and the last entry."""

    hard: VoteState
    snapshot: RaftSnapshot
    entries: tuple[Entry, ...]


# --- bytes ------------------------------------------------------------------------------------------------------------------


def state_record(hard: VoteState) -> Record:
    """The vote as a record."""
    return Record(0, hard.term, hard.commit, STATE, b"" if hard.voted_for is None else msgpack.packb(list(hard.voted_for)))


def entry_record(entry: Entry) -> Record:
    """An entry as a record."""
    return Record(entry.kind, entry.term, entry.index, ENTRY, entry.data)


def repeated_record(entry: Entry) -> Record:
    """An entry that the log has already, once more."""
    return entry_record(entry)._replace(type=REPEATED)


def installed_record(snapshot: RaftSnapshot) -> Record:
    """The word that a snapshot has replaced what came before."""
    return Record(0, snapshot.term, snapshot.index, INSTALLED, b"")


def snapshot_blocks(snapshot: RaftSnapshot) -> Iterable[Block]:
    """A snapshot as blocks, none larger than about 1 MiB."""
    members = msgpack.packb([[list(member) for member in members] for members in (snapshot.voters, snapshot.learners)])
    yield Block(0, 0, snapshot.term, snapshot.index, members)
    for offset in range(0, len(snapshot.state), PIECE_BYTES):
        yield Block(1, 0, snapshot.term, snapshot.index, snapshot.state[offset : offset + PIECE_BYTES])


def read_snapshot(blocks: Sequence[Block]) -> RaftSnapshot:
    """The snapshot of those blocks; raises `FormatError`."""
    if not blocks or [block.slot for block in blocks] != [0] + [1] * (len(blocks) - 1):
        raise FormatError("it is no snapshot of a metadata log")
    voters, learners = _unpacked(blocks[0].state, 2)
    return RaftSnapshot(blocks[0].seq, blocks[0].term, _members(voters), _members(learners), b"".join(block.state for block in blocks[1:]))


def _unpacked(data: bytes, count: int) -> list[Any]:
    try:
        fields = msgpack.unpackb(data)
    except (ValueError, RecursionError) as error:
        raise FormatError("a record cannot be unpacked") from error
    if type(fields) is not list or len(fields) != count:
        raise FormatError("a record has the wrong fields")
    return fields


def _members(rows: Any) -> tuple[Member, ...]:
    if type(rows) is not list:
        raise FormatError("members must be a list")
    return tuple(_member(row) for row in rows)


def _member(row: Any) -> Member:
    if type(row) is not list or [type(value) for value in row] != [int, bytes]:
        raise FormatError("a member must be [node id, disk id]")
    return Member(*row)


# --- meaning ----------------------------------------------------------------------------------------------------------------


class Replay:
    """What the records mean, one after the other, behind a snapshot. `hard` is None until the log has said anything; `confirmed` once an
    INSTALLED for this very snapshot was met."""

    def __init__(self, snapshot_index: int, snapshot_term: int) -> None:
        self.index = snapshot_index
        self.term = snapshot_term
        self.hard: VoteState | None = None
        self.entries: list[Entry] = []
        self.confirmed = False

    def __repr__(self) -> str:
        return f"<Replay {self.hard}, entries {self.index + 1}..{self.last_index}>"

    @property
    def is_blank(self) -> bool:
        """Whether nothing ever was in it (P3)."""
        return self.index == self.term == 0 and not self.entries

    @property
    def last_index(self) -> int:
        """The index of the last entry, or of the snapshot."""
        return self.index + len(self.entries)

    def agrees(self, index: int, term: int) -> bool:
        """Whether the entry of that index, or the snapshot, has that term."""
        if index == self.index:
            return term == self.term
        return self.index < index <= self.last_index and self.entries[index - self.index - 1].term == term

    def apply(self, record: Record) -> None:
        """Take the next record; raises `FormatError` when it does not follow from those before (P2)."""
        if record.type == STATE:
            self.hard = VoteState(record.term, _member(_unpacked(record.payload, 2)) if record.payload else None, record.seq)
        elif record.type == ENTRY:
            self.put(Entry(record.seq, record.term, record.slot, record.payload))
        elif record.type == REPEATED:
            if record.seq > self.last_index:
                self.put(Entry(record.seq, record.term, record.slot, record.payload))
            elif not self.agrees(record.seq, record.term):
                raise FormatError(f"entry {record.seq} is missing")
        elif record.type != INSTALLED:
            raise FormatError(f"a record of type {record.type}")
        elif not self.agrees(record.seq, record.term):
            raise FormatError(f"the snapshot at {record.seq} is missing")
        elif record.seq == self.index:
            self.confirmed = True

    def put(self, entry: Entry) -> None:
        """Take an entry in the place of that index and everything behind it (P1, P3)."""
        if self.is_blank and entry.index > 0:
            self.index = entry.index - 1
        if not self.index < entry.index <= self.last_index + 1:
            raise FormatError(f"entry {entry.index} does not follow {self.last_index}")
        del self.entries[entry.index - self.index - 1 :]
        self.entries.append(entry)

    def move_to(self, snapshot: RaftSnapshot) -> None:
        """Stand behind a later snapshot: the entries behind it stay when the log agrees with it, and go otherwise."""
        keep = self.agrees(snapshot.index, snapshot.term)
        self.entries = self.entries[snapshot.index - self.index :] if keep else []
        self.index, self.term = snapshot.index, snapshot.term
