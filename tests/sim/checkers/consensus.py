"""The metadata log of a cluster: what each candidate has on its disk, whom it voted for, who led, and what was committed.

Nothing is taken from a candidate's word: a vote or an entry counts when its write has returned, and again when the next life reads it.
What was committed is the one list that all candidates hand out; the majority behind each entry is counted on the disks.

T1  A term has one leader, and a majority of durable votes stands behind it.
T2  Where two logs have the same term at the same index, they have the same entry there and the same term before it.
T3  Whoever comes to lead has the last entry that anybody knows to be committed (and with T2 everything before).
T4  No disk ever had votes for two members in one term; no restart finds an older term, another vote or an older log than was durable.
T5  The commit index of a life does not go back, and what is committed is on the disks of a majority.
T6  At most one change of the voters is not committed; two consecutive committed memberships differ by one voter at most.
T7  No vote, and no word of having an entry, leaves a candidate before it is on its disk; nor does a term.
T8  The metadata states of any two candidates after the same record are the same bytes; a snapshot has every record up to its index.
T9  A disk that was wiped neither votes nor counts any more under its old name; nor does one that was put back to an earlier image, if a
    node that runs knew better.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import attrs

from govern.actors.metadata_log import MetadataLog
from govern.actors.peer_connector import PeerConnector
from govern.actors.slot_manager import SlotManager
from govern.core.meta import MetaState, Record, unpack_record
from govern.core.raft.core import RaftCore, Role
from govern.core.raft.types import DATA, VOTERS, HardState, Membership, Snapshot, Write
from govern.messages import Message
from govern.peer_messages import AppendAnswer, Entry, Member, PreVote, PreVoteAnswer, RaftMessage, Vote, VoteAnswer
from govern.testing.scheduler import process
from govern.testing.world import World, node_name

from . import Violation
from .patching import patched


def machines_of(membership: Membership) -> list[str]:
    """The machines of the voters; of two disks of one machine only one is there."""
    return list(dict.fromkeys(node_name(voter.node_id) for voter in membership.voters))


@attrs.define(eq=False)
class CandidateDisk:
    """What one machine has durably of its part of the log."""

    member: Member | None = None
    term: int = 0
    votes: dict[int, Member] = attrs.field(factory=dict)
    terms: dict[int, int] = attrs.field(factory=dict)  # index -> term
    base: int = 0

    def has(self, index: int, term: int) -> bool:
        return index <= self.base or self.terms.get(index) == term

    @property
    def last(self) -> tuple[int, int]:
        """Term and index of the last entry; a log with nothing but a snapshot is not compared."""
        index = max(self.terms, default=0)
        return self.terms.get(index, 0), index

    def write(self, entries: Sequence[Entry], snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            agrees = self.terms.get(snapshot.meta.index) == snapshot.meta.term
            self.terms = {index: term for index, term in self.terms.items() if agrees and index > snapshot.meta.index}
            self.base = max(self.base, snapshot.meta.index)
        if entries:
            self.terms = {index: term for index, term in self.terms.items() if index < entries[0].index}
            self.terms.update({entry.index: entry.term for entry in entries})


class Consensus:
    """Stands behind every candidate of a run. `report` is told of each violation."""

    def __init__(self, world: World, report: Callable[[Violation], None]) -> None:
        self.leaders: dict[int, Member] = {}
        """Who led, by term."""
        self.leading: dict[str, int] = {}
        """In which term each machine led last."""
        self.committed: dict[int, Entry] = {}
        self.judged = 0
        """So many messages of candidates."""
        self.listeners: list[Callable[[int, Record], None]] = []
        """Told of each record in the moment in which it is first known to be committed."""
        self._world = world
        self._report = report
        self._disks: dict[str, CandidateDisk] = {}
        self._entries: dict[tuple[int, int], tuple[Entry, int | None]] = {}  # (index, term) -> the entry, the term before it
        self._wiped: dict[Member, None] = {}
        self._put_back: dict[Member, None] = {}
        self._commits: dict[tuple[str, int], int] = {}  # life of a machine -> commit index
        self._states: dict[int, bytes] = {}
        self._memberships: dict[int, Membership] = {}

    def __repr__(self) -> str:
        return f"<Consensus {len(self.committed)} entries, {len(self.leaders)} leaders>"

    def wiped(self, machine: str) -> None:
        """The disk of this machine is empty from now on: what it was is gone for good."""
        disk = self._disks.pop(machine, None)
        if disk is not None and disk.member is not None:
            self._wiped[disk.member] = None

    @property
    def membership(self) -> Membership | None:
        """The newest that is committed; None before there is one."""
        return self._memberships.get(max(self._memberships, default=0))

    def possible_memberships(self) -> list[Membership]:
        """That one, and all that may still become it: they were given to some disk behind everything that is committed."""
        last = max(self.committed, default=0)
        entries = [entry for (index, _), (entry, _) in self._entries.items() if index > last and entry.kind == VOTERS]
        known = [] if self.membership is None else [self.membership]
        return known + [Membership.unpack(entry.data) for entry in entries]

    def put_back(self, machine: str, member: Member) -> None:
        """The disk of this machine is an earlier image of itself from now on. It bears the name of the voter that it was, and is not it."""
        self._disks.pop(machine, None)
        self._put_back[member] = None

    def is_put_back(self, member: Member) -> bool:
        """Whether that is, or was until it was replaced, a disk of the past."""
        return member in self._put_back

    def watch(self) -> AbstractContextManager[None]:
        """Look at every candidate for the length of a run."""
        return _watch(self)

    # --- the disks ------------------------------------------------------------------------------------------------------------

    def disk(self, machine: str) -> CandidateDisk:
        return self._disks.setdefault(machine, CandidateDisk())

    def wrote(self, machine: str, hard: HardState | None, entries: Sequence[Entry], snapshot: Snapshot | None) -> None:
        """A write of this machine has returned."""
        disk = self.disk(machine)
        if hard is not None:
            disk.term = max(disk.term, hard.term)
            if hard.voted_for is not None and disk.votes.setdefault(hard.term, hard.voted_for) != hard.voted_for:
                self._report(Violation(f"4: {machine} votes for {hard.voted_for} in term {hard.term}, after {disk.votes[hard.term]}"))
        disk.write(entries, snapshot)

    def loaded(self, machine: str, hard: HardState, snapshot: Snapshot, entries: Sequence[Entry]) -> None:
        """The next life of this machine begins with this."""
        disk = self.disk(machine)
        known = disk.votes.get(hard.term)
        if hard.term < disk.term:
            self._report(Violation(f"4: {machine} starts in term {hard.term}, and term {disk.term} was durable"))
        if known is not None and hard.voted_for != known:
            self._report(
                Violation(f"4: {machine} starts with a vote for {hard.voted_for} in term {hard.term}; the one for {known} is gone")
            )
        before, member, votes = disk.last, disk.member, disk.votes
        disk = self._disks[machine] = CandidateDisk(member, hard.term, votes)
        disk.write((), snapshot)
        disk.write(entries, None)
        if entries and disk.last < before:
            self._report(Violation(f"4: {machine} starts with a log that ends with {disk.last}, and {before} was durable"))
        if hard.voted_for is not None:
            disk.votes[hard.term] = hard.voted_for

    # --- the rules ------------------------------------------------------------------------------------------------------------

    def writes(self, machine: str, core: RaftCore, write: Write | None) -> None:
        """A candidate gives this to its disk: T2, T6, T9."""
        disk = self.disk(machine)
        disk.member = core.me
        if core.me in self._wiped:
            self._report(Violation(f"9: {machine} takes part as {core.me}, whose disk was wiped"))
        if core.me in self._put_back and write is not None:
            self._report(Violation(f"9: {machine} takes part as {core.me}, whose disk was put back: it writes {write}"))
        for entry in () if write is None else write.entries:
            before = core.log.term_of(entry.index - 1)
            known = self._entries.setdefault((entry.index, entry.term), (entry, before))
            if known[0] != entry or (known[1] != before and None not in (known[1], before)):
                self._report(Violation(f"2: {machine} has {entry} after term {before}; elsewhere it is {known[0]} after {known[1]}"))
        if core.role is Role.LEADER:
            decided = max(self.committed, default=0)
            open_changes = [index for index, _ in core.log._memberships if index > max(decided, core.commit)]
            if len(open_changes) > 1:
                self._report(Violation(f"6: {machine} leads with {len(open_changes)} changes of the voters that are not committed"))

    def sends(self, machine: str, message: RaftMessage) -> None:
        """A message of a candidate leaves its machine: T7."""
        self.judged += 1
        disk = self.disk(machine)
        if isinstance(message, PreVote) or (isinstance(message, PreVoteAnswer) and message.granted):
            return  # a trial is of a term that nobody is in
        if message.term > disk.term:
            self._report(Violation(f"7: {machine} sends {message}, and only term {disk.term} is durable"))
        vote = disk.votes.get(message.term)
        if isinstance(message, Vote) and message.term == disk.term and vote != message.sender:
            self._report(Violation(f"7: {machine} asks for votes by {message}, and its own, {vote}, is all that is durable"))
        elif isinstance(message, VoteAnswer) and message.granted and message.term == disk.term and vote != message.to:
            self._report(Violation(f"7: {machine} grants a vote by {message}, and {vote} is what is durable"))
        elif isinstance(message, AppendAnswer) and message.ok and message.index:
            term = self._term_of(machine, message.index)
            if term is None or not disk.has(message.index, term):
                self._report(Violation(f"7: {machine} confirms entry {message.index} of term {term} by {message}; it is not durable"))

    def _term_of(self, machine: str, index: int) -> int | None:
        """Of an entry in the log of a candidate as it believes to have it; of one that it has cut, what was committed."""
        node = self._world.machines[machine].node
        core = None if node is None or node._election is None else node._election.core
        term = None if core is None else core.log.term_of(index)
        return self.committed[index].term if term is None and index in self.committed else term

    def leads(self, machine: str, core: RaftCore) -> None:
        """A candidate has become the leader: T1, T3, T4, T9."""
        self.leading[machine] = core.term
        known = self.leaders.setdefault(core.term, core.me)
        if known != core.me:
            self._report(Violation(f"1: term {core.term} has two leaders, {known} and {core.me}"))
        for voter in [voter for voter, granted in core._votes.items() if granted]:
            if voter in self._wiped or voter in self._put_back:
                self._report(Violation(f"9: {core.me} leads term {core.term} with the vote of {voter}, whose disk is not the one it was"))
                continue
            disk = self.disk(node_name(voter.node_id))
            vote = disk.votes.get(core.term)
            if vote is None and disk.term > core.term:
                continue  # it stands in a later term by now, and that is durable: it will never vote in this one again
            if vote != core.me:
                self._report(Violation(f"4: {core.me} leads term {core.term} with a vote of {voter} that is on no disk"))
        last = max(self.committed, default=0)
        if last and core.log.term_of(last) != self.committed[last].term and last > core.log.base_index:
            self._report(Violation(f"3: {core.me} leads term {core.term} without entry {last}, which was committed: {core}"))

    def hands_out(self, machine: str, core: RaftCore, entries: Sequence[Entry]) -> None:
        """A candidate hands out what is committed: T2, T5, T6, T9."""
        life = (machine, self._world.machines[machine].boots)
        if core.commit < self._commits.get(life, 0):
            self._report(Violation(f"5: the commit index of {machine} goes back from {self._commits[life]} to {core.commit}"))
        self._commits[life] = core.commit
        for entry in entries:
            known = self.committed.get(entry.index)
            if known is None:
                self._commit(machine, core, entry)
            elif known != entry:
                self._report(Violation(f"2: {machine} takes {entry} for committed, where {known} was"))

    def _commit(self, machine: str, core: RaftCore, entry: Entry) -> None:
        self.committed[entry.index] = entry
        memberships = (core.log.membership_at(entry.index), core.membership)
        if not any(self._has_majority(membership, entry) for membership in memberships):
            where = [node_name(voter.node_id) for voter in core.membership.voters if self._counts(voter, entry)]
            text = f"5: {machine} takes {entry} for committed, and it is only on the disks of {where} of {core.membership.voters}"
            self._report(Violation(text))
        if entry.kind == VOTERS:
            self._judge_membership(entry.index, Membership.unpack(entry.data))
        elif entry.kind == DATA:
            record = unpack_record(entry.data)
            for listener in self.listeners:
                listener(entry.index, record)

    def _judge_membership(self, index: int, membership: Membership) -> None:
        before = self.membership
        self._memberships[index] = membership
        if before is not None:
            added = [voter for voter in membership.voters if voter not in before.voters]
            removed = [voter for voter in before.voters if voter not in membership.voters]
            if len(added) + len(removed) > 1:
                self._report(Violation(f"6: entry {index} changes more than one voter: {before.voters} becomes {membership.voters}"))

    def _counts(self, voter: Member, entry: Entry) -> bool:
        disk = self.disk(node_name(voter.node_id))
        return (
            voter not in self._wiped and voter not in self._put_back and disk.member in (voter, None) and disk.has(entry.index, entry.term)
        )  # T9

    def _has_majority(self, membership: Membership, entry: Entry) -> bool:
        count = sum(self._counts(voter, entry) for voter in membership.voters)
        return 2 * count > len(membership.voters)

    def applied(self, machine: str, state: MetaState) -> None:
        """A metadata state stands after a record: T8."""
        packed = state.pack()
        if self._states.setdefault(state.index, packed) != packed:
            self._report(Violation(f"8: the metadata of {machine} after record {state.index} is not that of others: {state}"))

    def took_over(self, machine: str, index: int, state: MetaState) -> None:
        """A candidate goes on from a snapshot as of this entry: T8."""
        lacks = [entry.index for entry in self.committed.values() if state.index < entry.index <= index and entry.kind == DATA]
        if lacks:
            self._report(Violation(f"8: {machine} takes over the metadata as of {index} without record {lacks[0]}"))

    # --- a checker like others --------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """That there was something to be judged."""
        if not self.committed or not self.leaders:
            raise Violation("1: no leader and no committed entry was seen")


@contextmanager
def _watch(checker: Consensus) -> Generator[None]:
    load, begin, write = MetadataLog.load, MetadataLog.begin, MetadataLog.write
    begin_write, become_leader, take_committed = RaftCore.begin_write, RaftCore._become_leader, RaftCore.take_committed
    apply, unpack, send, install = MetaState.apply, MetaState.unpack, PeerConnector.send, SlotManager._install

    def here() -> str:
        return str(process.get())

    async def load_and_note(log: MetadataLog) -> Any:
        known = await load(log)
        if known is not None:
            checker.loaded(here(), *known)
        return known

    async def begin_and_note(log: MetadataLog, hard: HardState, snapshot: Snapshot, entries: Sequence[Entry]) -> None:
        await begin(log, hard, snapshot, entries)
        checker.wrote(here(), hard, entries, snapshot)

    async def write_and_note(log: MetadataLog, batch: Write) -> None:
        await write(log, batch)
        checker.wrote(here(), batch.hard, batch.entries, batch.snapshot)

    def begin_write_and_judge(core: RaftCore) -> Write | None:
        batch = begin_write(core)
        checker.writes(here(), core, batch)
        return batch

    def become_leader_and_judge(core: RaftCore, now_us: int) -> None:
        become_leader(core, now_us)
        checker.leads(here(), core)

    def take_committed_and_judge(core: RaftCore, limit: int) -> list[Entry]:
        entries = take_committed(core, limit)
        checker.hands_out(here(), core, entries)
        return entries

    def apply_and_judge(state: MetaState, index: int, data: bytes) -> Record:
        record = apply(state, index, data)
        checker.applied(here(), state)
        return record

    def unpack_and_judge(kind: type[MetaState], data: bytes) -> MetaState:
        state = unpack(data)
        if state.index:
            checker.applied(here(), state)
        return state

    def install_and_judge(manager: SlotManager, index: int, state: bytes) -> None:
        install(manager, index, state)
        checker.took_over(here(), index, manager.meta)

    def send_and_judge(connector: PeerConnector, node_id: int, message: Message) -> bool:
        if isinstance(message, RaftMessage):
            checker.sends(here(), message)
        return send(connector, node_id, message)

    with patched(
        (PeerConnector, "send", send_and_judge),
        (MetadataLog, "load", load_and_note),
        (MetadataLog, "begin", begin_and_note),
        (MetadataLog, "write", write_and_note),
        (RaftCore, "begin_write", begin_write_and_judge),
        (RaftCore, "_become_leader", become_leader_and_judge),
        (RaftCore, "take_committed", take_committed_and_judge),
        (SlotManager, "_install", install_and_judge),
        (MetaState, "apply", apply_and_judge),
        (MetaState, "unpack", classmethod(unpack_and_judge)),
    ):
        yield
