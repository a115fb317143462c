"""What the actors of a node say to each other.

client_sessions ── WriteBatch ──▶ shard_store         put: waits when the store is behind
client_sessions ── Listening, Words ──▶ slot_manager  post: Words that find no room are refused
shard_store ── Committed, Loaded ──▶ client_sessions  put: safe, because the reader of that mailbox never waits for anybody
shard_store ── StoreLoaded ──▶ slot_manager           put: safe likewise
failure_detector ── LastRead ──▶ client_sessions      post: a full mailbox drops it, and it is said again a second later
peer_connector ── FromPeer ──▶ election, slot_manager post: what is dropped is repeated, as if the link had lost it
peer_connector ── LinksChanged ──▶ slot_manager       post: the links are looked at every 100 ms all the same
election ── Entries, Installed, Led, … ──▶ slot_manager   put: safe likewise
slot_manager ── Form, Propose, … ──▶ election         post: the mailbox has more room than the slot manager asks for at a time
slot_manager ── WordAnswered ──▶ client_sessions      post
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ..core.requests import Word, Write
from ..core.sessions import Silent
from ..core.shard import Outcome
from ..messages import Message
from ..peer_messages import Entry, Member, RaftMessage

# --- to the shard store -----------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class WriteBatch:
    """Operations for the log, in the order in which they are to take effect."""

    writes: Sequence[Write]


# --- to the client sessions -------------------------------------------------------------------------------------------------


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


@attrs.frozen(eq=False)
class WordAnswered:
    """The answer to an operator's word."""

    word: Word
    answer: Message


SessionsMail = Committed | Loaded | LastRead | WordAnswered


# --- to the election --------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class RaftMail:
    """A message of another candidate."""

    message: RaftMessage


@attrs.frozen(eq=False)
class Written:
    """The batch that the election gave to the disk is durable."""


@attrs.frozen(eq=False)
class Form:
    """Begin the metadata log of a new cluster: these voters, this first record, behind index `base`. Answered by `Formed`."""

    base: int
    voters: tuple[Member, ...]
    record: bytes


@attrs.frozen(eq=False)
class Join:
    """Begin an empty metadata log, to be filled by the leader when this candidate is added."""


@attrs.frozen(eq=False)
class Propose:
    """Records for the log, decided by the controller of this term. When that leadership is over they are lost, and so is who decided them;
    those that find no room in it come back as `Unproposed`."""

    term: int
    records: Sequence[bytes]


@attrs.frozen(eq=False)
class Compact:
    """The state as of an index: what is far behind it in the log is not needed any more."""

    index: int
    state: bytes


@attrs.frozen(eq=False)
class ChangeMembers:
    """An operator's change of the candidates: `verb` is `add`, `promote`, `remove` or `transfer`. Answered by `MembersChanged`."""

    number: int
    verb: str
    member: Member


@attrs.frozen(eq=False)
class Confirm:
    """Is this node still the leader, now? Answered by `Confirmed`, after a round with a majority (ReadIndex)."""

    number: int


ElectionMail = RaftMail | Written | Form | Join | Propose | Compact | ChangeMembers | Confirm


# --- to the slot manager ----------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class FromPeer:
    """A message of another node."""

    node_id: int
    message: Message


@attrs.frozen(eq=False)
class LinksChanged:
    """There is a new link, or one less: look."""


@attrs.frozen(eq=False)
class Formed:
    """The metadata log that `Form` asked for is durable."""


@attrs.frozen(eq=False)
class Entries:
    """Committed entries, in order, each once."""

    entries: Sequence[Entry]


@attrs.frozen(eq=False)
class Installed:
    """The state as of an index, in the place of all entries before."""

    index: int
    state: bytes


@attrs.frozen(eq=False)
class Led:
    """Who leads has changed: `leader` is None while nobody is known. `serving`: this node leads, and its first entry is committed.
    `previous`: another node that led since this one last served, and when it was heard last, in microseconds of trio's clock."""

    term: int
    leader: Member | None
    serving: bool
    previous: tuple[int, int] | None


@attrs.frozen(eq=False)
class Unproposed:
    """These records of a `Propose` certainly did not get into the log, though this node still leads: too much waits, or the leadership is
    being handed over."""

    records: Sequence[bytes]


@attrs.frozen(eq=False)
class MembersChanged:
    """What became of a change: `problem` is empty when it is committed."""

    number: int
    problem: str


@attrs.frozen(eq=False)
class Confirmed:
    """Whether this node led at some moment after it was asked."""

    number: int
    leads: bool


@attrs.frozen(eq=False)
class StoreLoaded:
    """The store has loaded."""


@attrs.frozen(eq=False)
class Listening:
    """Clients can connect, at this address."""

    host: str
    port: int


@attrs.frozen(eq=False)
class Words:
    """Words of operators that came over client connections."""

    words: Sequence[Word]


ManagerMail = (
    FromPeer | LinksChanged | Formed | Entries | Installed | Led | Unproposed | MembersChanged | Confirmed | StoreLoaded | Listening | Words
)
