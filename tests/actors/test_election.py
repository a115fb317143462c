"""The shell around the Raft rules, alone with a log in memory: what it says to the slot manager."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from govern.actors.election import Election
from govern.actors.mail import Compact, ElectionMail, Entries, Form, Join, Led, ManagerMail, Propose, RaftMail, Unproposed
from govern.actors.metadata_log import MetadataLog
from govern.actors.runtime import Mailbox
from govern.core.meta import ClusterInit, NodeForgotten
from govern.core.raft.core import UNCOMMITTED_MAX
from govern.core.raft.membership import advice
from govern.core.raft.types import DATA, VOTERS, Membership, Timing
from govern.peer_messages import Append, AppendAnswer, Entry, Member, PreVoteAnswer, TimeoutNow, VoteAnswer
from govern.storage.raft_log import MemoryRaftLog

ME = Member(1, b"d" * 16)
RECORD = NodeForgotten(7).pack()


@attrs.define
class Alone:
    """The only voter, as its slot manager sees it."""

    election: Election
    mailbox: Mailbox[ElectionMail]
    told: Mailbox[ManagerMail]

    async def heard(self) -> list[ManagerMail]:
        """Everything it has said until nothing happens any more."""
        await trio.sleep(0.1)
        return self.told.get_all(1000)


def make_election(*, is_reached: bool) -> tuple[Election, Mailbox[ElectionMail], Mailbox[ManagerMail]]:
    """The election of `ME`, what it is told by, and what it tells; the links to all others take what they get, or nothing."""
    mailbox, told = Mailbox[ElectionMail]("election", capacity=64), Mailbox[ManagerMail]("slot_manager", capacity=64)
    election = Election(
        me=ME,
        log=MetadataLog(MemoryRaftLog()),
        random=random.Random(1),
        timing=Timing(),
        mailbox=mailbox,
        manager_mailbox=told,
        send=lambda node_id, message: is_reached,
    )
    return election, mailbox, told


@asynccontextmanager
async def open_election(*voters: Member) -> AsyncIterator[Alone]:
    """A voter that has just formed the cluster."""
    election, mailbox, told = make_election(is_reached=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: election.run(task_status=task_status))
        mailbox.post(Form(0, voters, ClusterInit(b"c" * 16).pack()))
        yield Alone(election, mailbox, told)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_alone() -> AsyncIterator[Alone]:
    """A voter that has just become the leader, in term 2."""
    async with open_election(ME) as alone:
        assert [mail.term for mail in await alone.heard() if isinstance(mail, Led) and mail.serving] == [2]
        yield alone


@pytest.mark.parametrize("count", range(1, 9))
async def test_a_cluster_that_is_formed_with_too_many_voters_says_so(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """Once, in the log; a bootstrap from 2, 4 or 6 peers would not be noticed otherwise."""
    async with open_election(*(Member(node_id, bytes([node_id]) * 16) for node_id in range(1, count + 1))) as one:
        await one.heard()
        await one.heard()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == list(filter(None, [advice(count)]))


def data_of(heard: list[ManagerMail]) -> list[bytes]:
    return [entry.data for mail in heard if isinstance(mail, Entries) for entry in mail.entries if entry.kind == DATA]


async def test_a_leader_knows_how_far_the_others_are_behind(autojump_clock: MockClock) -> None:
    """The one that it has heard lacks what came since; of the other nothing is known. Who does not lead knows of nobody."""
    two, three = (Member(node_id, bytes([node_id]) * 16) for node_id in (2, 3))
    async with open_election(ME, two, three) as one:
        await one.heard()
        assert one.election.entries_behind() == {}
        core = one.election.core
        assert core is not None
        one.mailbox.post(RaftMail(PreVoteAnswer(ME, two, core.term + 1, True)))
        await one.heard()
        one.mailbox.post(RaftMail(VoteAnswer(ME, two, core.term, True)))
        await one.heard()
        one.mailbox.post(RaftMail(AppendAnswer(ME, two, core.term, True, core.last_index, 0, 1)))
        one.mailbox.post(Propose(core.term, [RECORD, RECORD]))
        await one.heard()
        assert one.election.entries_behind() == {ME: 0, two: 2}


async def test_records_that_find_no_room_come_back(autojump_clock: MockClock) -> None:
    """The controller counts a record as on its way until it is applied: one that was lost without a word would stop it for ever."""
    async with open_alone() as alone:
        records = [NodeForgotten(node_id).pack() for node_id in range(UNCOMMITTED_MAX + 3)]
        alone.mailbox.post(Propose(2, records))
        heard = await alone.heard()
        assert [list(mail.records) for mail in heard if isinstance(mail, Unproposed)] == [records[UNCOMMITTED_MAX:]]
        assert data_of(heard) == records[:UNCOMMITTED_MAX]


async def test_records_of_a_leadership_that_is_over_are_dropped(autojump_clock: MockClock) -> None:
    """Who decided them is gone, and what they were about may have changed: they are neither taken nor given back."""
    async with open_alone() as alone:
        alone.mailbox.post(Propose(1, [RECORD]))
        heard = await alone.heard()
        assert data_of(heard) == []
        assert [mail for mail in heard if isinstance(mail, Unproposed)] == []


async def test_a_snapshot_that_is_older_than_the_present_one_is_left_out(autojump_clock: MockClock) -> None:
    """One of the leader may have come in while the mail waited."""
    async with open_alone() as alone:
        alone.mailbox.post(Propose(2, [RECORD] * 4))
        await alone.heard()
        alone.mailbox.post(Compact(5, b"five"))
        await alone.heard()
        alone.mailbox.post(Compact(4, b"four"))
        alone.mailbox.post(Propose(2, [RECORD]))
        assert data_of(await alone.heard()) == [RECORD]
        assert alone.election.core is not None
        assert alone.election.core.log.snapshot.state == b"five"


async def test_whom_a_leader_takes_for_the_one_before(autojump_clock: MockClock) -> None:
    """Another node, until it has served itself: from then on that one had its leases from here. The offer to lead is a word of it too."""
    other = Member(2, b"e" * 16)
    election, mailbox, told = make_election(is_reached=True)

    async def led() -> tuple[Any, ...]:
        await trio.sleep(0.01)
        return [attrs.astuple(mail, recurse=False) for mail in told.get_all(1000) if isinstance(mail, Led)][-1]

    async def elect(index: int) -> tuple[Any, ...]:
        assert election.core is not None
        mailbox.post(RaftMail(VoteAnswer(ME, other, election.core.term, True)))
        await trio.sleep(0.01)
        mailbox.post(RaftMail(AppendAnswer(ME, other, election.core.term, True, index, 0, 1)))
        return await led()

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: election.run(task_status=task_status))
        mailbox.post(Join())
        voters = Entry(1, 1, VOTERS, Membership.of((ME, other), ()).pack())
        mailbox.post(RaftMail(Append(ME, other, 1, 0, 0, 1, 1, (voters,))))
        assert await led() == (1, other, False, (2, 0))
        await trio.sleep(0.3)
        mailbox.post(RaftMail(TimeoutNow(ME, other, 1)))
        await trio.sleep(0.01)
        assert await elect(2) == (2, ME, True, (2, 310_000))
        with trio.fail_after(10):
            while election.core is not None and election.core.term == 2:
                mailbox.post(RaftMail(PreVoteAnswer(ME, other, 3, True)))
                await trio.sleep(0.05)
        assert await elect(3) == (3, ME, True, None)
        nursery.cancel_scope.cancel()
