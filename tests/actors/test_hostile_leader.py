"""A leader that is out of its mind: whatever it says of terms, indexes, entries and pieces, this candidate's rules and its disk hold."""

from __future__ import annotations

import random
from typing import Final

import trio

from govern.actors.election import Election
from govern.actors.mail import ElectionMail, Join, ManagerMail, RaftMail
from govern.actors.metadata_log import MetadataLog
from govern.actors.runtime import Mailbox
from govern.core.raft.core import TERM_LEAP_MAX
from govern.core.raft.types import DATA, NOOP, VOTERS, Membership, Timing
from govern.errors import RemoteProtocolError
from govern.peer_messages import (
    BYTES_MAX,
    MEMBERS_MAX,
    NUMBER_MAX,
    Append,
    AppendAnswer,
    Entry,
    InstallSnapshot,
    Member,
    RaftMessage,
    SnapshotAnswer,
    TimeoutNow,
    Vote,
    build_peer_message,
    encode_peer,
    unpack_peer_frame,
)
from govern.storage.raft_log import RaftLog
from govern.storage.sim import SimStorage
from govern.testing import simulate

from ..storage.raft_model import OURS

ME: Final = Member(1, b"1" * 16)
LEADERS: Final = (Member(2, b"2" * 16), Member(3, b"3" * 16))
MANY: Final = tuple(Member(number, bytes([number]) * 16) for number in range(1, MEMBERS_MAX + 1))


class Madman:
    """Draws messages: mostly such as continue what is there, with one or two values at an extreme."""

    def __init__(self, chance: random.Random, election: Election) -> None:
        self._chance = chance
        self._election = election

    def _number(self, usual: int) -> int:
        odd = (0, 1, usual - 1, usual + 1, usual + 1000, TERM_LEAP_MAX, NUMBER_MAX - 2, NUMBER_MAX - 1)
        return max(0, usual if self._chance.random() < 0.8 else self._chance.choice(odd))

    def _entries(self, first: int, term: int) -> tuple[Entry, ...]:
        entries = []
        for place in range(self._chance.choice((0, 1, 1, 2, 5, 20))):
            kind = self._chance.choice((NOOP, DATA, DATA, VOTERS, 3))
            size = self._chance.choice((0, 10, 10, BYTES_MAX))
            members = self._chance.choice((Membership((ME,)), Membership(tuple(sorted((ME, *LEADERS)))), Membership(MANY)))
            data = members.pack() if kind == VOTERS and self._chance.random() < 0.9 else bytes(size)
            entries.append(Entry(self._number(first + place), self._number(term), kind, data))
        return tuple(entries)

    def message(self) -> RaftMessage:
        """The next one."""
        core, chance = self._election.core, self._chance
        assert core is not None
        leader = chance.choice(LEADERS) if core.leader not in LEADERS or chance.random() < 0.1 else core.leader
        term = self._number(max(1, core.term) + (chance.random() < 0.05))
        at = self._number(chance.choice((core.last_index, core.commit, core.log.base_index)))
        known = core.log.term_of(at)
        at_term = self._number(0 if known is None else known)
        round_ = self._number(7)
        kind = chance.random()
        if kind < 0.6:
            return Append(ME, leader, term, at, at_term, self._number(at), round_, self._entries(at + 1, term))
        if kind < 0.85:
            meta = (self._number(core.last_index + chance.choice((0, 3))), self._number(term))
            voters = chance.choice(((ME,), (ME, *LEADERS), MANY, (ME, ME), ()))
            offset = self._number(chance.choice((0, 0, 4, BYTES_MAX)))
            data = bytes(chance.choice((0, 4, 4, BYTES_MAX)))
            return InstallSnapshot(ME, leader, term, *meta, voters, (), offset, chance.random() < 0.5, round_, data)
        if kind < 0.9:
            return Vote(ME, leader, term, self._number(at), at_term, chance.random() < 0.5)
        if kind < 0.95:
            return AppendAnswer(ME, leader, term, chance.random() < 0.5, self._number(at), at_term, round_)
        return TimeoutNow(ME, leader, term) if chance.random() < 0.5 else SnapshotAnswer(ME, leader, term, at, self._number(4), round_)


async def follow_a_madman(seed: int) -> int:
    """Some hundred words of it, in three lives on one disk. Returns how much of that got into the log."""
    chance = random.Random(seed)
    storage = SimStorage(random.Random(seed))
    for _ in range(3):
        mailbox, told = Mailbox[ElectionMail]("election", capacity=64), Mailbox[ManagerMail]("slot_manager", capacity=10_000)
        sent: list[RaftMessage] = []
        metadata_log = MetadataLog(RaftLog.open(storage, OURS))
        election = Election(
            me=ME,
            log=metadata_log,
            random=chance,
            timing=Timing(),
            mailbox=mailbox,
            manager_mailbox=told,
            send=lambda node_id, message, sent=sent: sent.append(message) is None,  # type: ignore[misc]
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status, election=election: election.run(task_status=task_status))
            mailbox.post(Join())
            await trio.sleep(0.01)
            madman, commit = Madman(chance, election), 0
            for _ in range(100):
                try:
                    message = build_peer_message(unpack_peer_frame(encode_peer(madman.message())[4:]))
                except RemoteProtocolError:
                    continue  # it would have cost the link
                assert isinstance(message, RaftMessage)
                await mailbox.put(RaftMail(message))
                await trio.sleep(chance.choice((0, 0.01, 0.3)))
                assert election.core is not None
                election.core.validate()
                assert election.core.commit >= commit, "what is committed stays"
                commit = 0 if election.core.log.is_blank else election.core.commit
                for answer in sent:
                    assert build_peer_message(unpack_peer_frame(encode_peer(answer)[4:])) == answer
                sent.clear()
                told.get_all(10_000)
            nursery.cancel_scope.cancel()
        await metadata_log.close()
    return commit


def test_no_leader_is_too_strange_for_the_rules_and_the_disk() -> None:
    """Nothing is raised, neither by the rules nor by the log; each life finds on the disk what it can go on with; and some of it was
    believed, or the test would show nothing."""
    reached = [simulate(seed, follow_a_madman, horizon=100_000).result for seed in range(12)]
    assert sum(commit > 0 for commit in reached) > len(reached) // 2
