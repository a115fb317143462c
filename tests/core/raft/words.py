"""Messages, writes and logs of candidates in words, for people who read transcripts."""

from __future__ import annotations

from collections.abc import Iterable

from govern.core.raft.types import NOOP, VOTERS, Membership, Write
from govern.peer_messages import (
    Append,
    AppendAnswer,
    Entry,
    InstallSnapshot,
    Member,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    SnapshotAnswer,
    TimeoutNow,
    Vote,
    VoteAnswer,
)


def describe_member(member: Member | None) -> str:
    """A node, with the number of its disk when it is not the first."""
    if member is None:
        return "nobody"
    disk = member.disk_id.strip(b"\0").decode("ascii", "replace")
    return str(member.node_id) if disk in ("", "1") else f"{member.node_id}({disk})"


def describe_membership(membership: Membership) -> str:
    """Voters, and learners behind a plus."""
    voters = " ".join(map(describe_member, membership.voters))
    learners = " ".join(map(describe_member, membership.learners))
    return voters + (f" + {learners}" if learners else "")


def describe_entry(entry: Entry) -> str:
    """`index/term content`."""
    if entry.kind == NOOP:
        content = "no-op"
    elif entry.kind == VOTERS:
        content = f"voters {describe_membership(Membership.unpack(entry.data))}"
    else:
        content = entry.data.decode("ascii", "replace")
    return f"{entry.index}/{entry.term} {content}"


def describe_entries(entries: Iterable[Entry]) -> str:
    """Several."""
    return ", ".join(map(describe_entry, entries))


def describe(message: RaftMessage) -> str:
    """A message in one line, without from and to."""
    term = message.term
    match message:
        case PreVote():
            return f"would you vote for me in term {term}? my log ends at {message.last_index}/{message.last_term}"
        case Vote():
            why = ", the leader wants it" if message.transfer else ""
            return f"vote for me in term {term}, my log ends at {message.last_index}/{message.last_term}{why}"
        case PreVoteAnswer():
            return f"I would, in term {term}" if message.granted else f"I would not, in term {term}"
        case VoteAnswer():
            return f"you have my vote in term {term}" if message.granted else f"no vote, in term {term}"
        case Append():
            what = f"append {describe_entries(message.entries)}" if message.entries else "heartbeat"
            return f"term {term}: {what}, behind {message.prev_index}/{message.prev_term}, commit {message.commit}, round {message.round}"
        case AppendAnswer(ok=True):
            return f"term {term}: have it up to {message.index}, round {message.round}"
        case AppendAnswer():
            return f"term {term}: no, perhaps at {message.index}/{message.index_term}, round {message.round}"
        case InstallSnapshot():
            last = ", the last piece" if message.last else ""
            return f"term {term}: snapshot {message.index}/{message.index_term} from byte {message.offset}{last}, round {message.round}"
        case SnapshotAnswer():
            return f"term {term}: have {message.offset} bytes of snapshot {message.index}, round {message.round}"
        case TimeoutNow():
            return f"term {term}: stand for election now"
        case _:
            return repr(message)


def describe_write(write: Write) -> str:
    """A write in one line."""
    parts = []
    if write.hard is not None:
        parts.append(f"term {write.hard.term}, vote {describe_member(write.hard.voted_for)}, commit {write.hard.commit}")
    if write.snapshot is not None:
        parts.append(f"snapshot {write.snapshot.meta.index}/{write.snapshot.meta.term}")
    if write.entries:
        parts.append(describe_entries(write.entries))
    return "; ".join(parts)
