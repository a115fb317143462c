"""The slot manager alone: which log it begins, and what it does when the election has no room."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import attrs
import pytest
import trio
from trio.testing import MockClock

from govern.actors.administration import WORD_SECONDS, Administration
from govern.actors.cluster_files import MemoryClusterFiles
from govern.actors.election import Election
from govern.actors.mail import ElectionMail, Entries, Form, Installed, Join, Led, ManagerMail, Propose, SessionsMail, Unproposed
from govern.actors.metadata_log import MetadataLog
from govern.actors.neighbours import Myself
from govern.actors.runtime import Mailbox
from govern.actors.slot_manager import SlotManager
from govern.core.controller import Controller
from govern.core.links import Link
from govern.core.meta import NO_CLUSTER, ApplyFailed, ClusterInit, MetaState, NodeJoined, unpack_record
from govern.core.ownership import Ownership
from govern.core.raft.types import DATA, Membership, Timing
from govern.core.requests import Identity, Word
from govern.core.standing import Health
from govern.core.table import UP, Table, TableNode
from govern.environment import SimulatedClock
from govern.errors import NoController
from govern.messages import Administer, Message
from govern.peer_messages import AskController, ControllerAnswer, Entry, Member, NodeHeartbeat, NodeRegister, PeerHello, TablePart
from govern.storage.raft_log import MemoryRaftLog

ME = Member(1, b"d" * 16)
CLUSTER = b"c" * 16


class Files(MemoryClusterFiles):
    """A directory without the file `table`."""

    def __init__(self, cluster_id: bytes = CLUSTER, was_made_with_cluster: bool = True) -> None:
        super().__init__(cluster_id)
        self.was_made_with_cluster = was_made_with_cluster


class NoLinks:
    """Nobody else is there."""

    def send(self, node_id: int, message: Message) -> bool:
        return False

    def peers(self) -> Mapping[int, PeerHello]:
        return {}

    def refusals(self) -> Mapping[int, str]:
        return {}

    def set_peers(self, addresses: Mapping[int, str]) -> None:
        pass

    def set_boots(self, boots: Mapping[Member, int]) -> None:
        pass

    @property
    def expelled(self) -> str:
        return ""

    def recheck(self) -> None:
        pass

    def drop(self, node_id: int, reason: str) -> None:
        pass

    def send_to_all(self, node_ids: Iterable[int], message: Message) -> None:
        pass


class Recorded(NoLinks):
    """Three candidates and two nodes that are none."""

    def __init__(self) -> None:
        self.told: list[tuple[list[int], Message]] = []

    def peers(self) -> Mapping[int, PeerHello]:
        return {
            node_id: PeerHello(1, CLUSTER, node_id, bytes([node_id]) * 16, 1, node_id < 4, "", "", (1, 2, 3)) for node_id in (2, 3, 4, 5)
        }

    def send_to_all(self, node_ids: Iterable[int], message: Message) -> None:
        self.told.append((list(node_ids), message))


@attrs.define
class Rig:
    """A slot manager, and the mailbox of an election that does nothing."""

    manager: SlotManager
    mailbox: Mailbox[ManagerMail]
    wanted: Mailbox[ElectionMail]
    clock: SimulatedClock

    async def wants(self) -> list[ElectionMail]:
        await trio.sleep(0.01)
        return self.wanted.get_all(100)


def make_rig(files: Files, links: NoLinks | None = None, initial: tuple[int, ...] = ()) -> Rig:
    mailbox, wanted = Mailbox[ManagerMail]("slot_manager", capacity=64), Mailbox[ElectionMail]("election", capacity=64)
    chance, ownership, clock = random.Random(1), Ownership(ME, 3), SimulatedClock()
    election = Election(
        me=ME,
        log=MetadataLog(MemoryRaftLog()),
        random=chance,
        timing=Timing(),
        mailbox=wanted,
        manager_mailbox=mailbox,
        send=NoLinks().send,
    )
    administration = Administration(
        node_id=1,
        ownership=ownership,
        election=election,
        election_mailbox=wanted,
        sessions_mailbox=Mailbox[SessionsMail]("client_sessions", capacity=1),
        random=chance,
    )
    manager = SlotManager(
        myself=Myself(member=ME, boot_no=3, initial=initial, is_candidate=True, is_volatile=False),
        configured={},
        identity=Identity(node_id=1, cluster_id="", version=""),
        ownership=ownership,
        election=election,
        files=files,
        links=links or NoLinks(),
        administration=administration,
        random=chance,
        clock=clock,
        health=Health,
        clients_address=str,
        peers_address=str,
        mailbox=mailbox,
        election_mailbox=wanted,
    )
    return Rig(manager, mailbox, wanted, clock)


@pytest.mark.parametrize("made_with_cluster", [False, True])
async def test_a_directory_that_joined_never_begins_the_log_of_its_cluster(autojump_clock: MockClock, made_with_cluster: bool) -> None:
    """The file `table` is gone, as the line about a damaged one advises, and there is no log: the node was no candidate until now. Only
    a directory that was a cluster of its own from its first moment may begin one: else there would be two controllers."""
    rig = make_rig(Files(was_made_with_cluster=made_with_cluster))
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: rig.manager.run(task_status=task_status))
        assert [type(mail) for mail in await rig.wants()] == [Form if made_with_cluster else Join]
        nursery.cancel_scope.cancel()


class FullFiles(Files):
    """A directory on a disk without space."""

    space = False

    async def keep(self, cluster_id: bytes, table: Table) -> bool:
        return self.space


class OneLink(NoLinks):
    """Node 2 is there, with the same initial candidates."""

    cluster_id = NO_CLUSTER

    def peers(self) -> Mapping[int, PeerHello]:
        return {2: PeerHello(1, self.cluster_id, 2, b"2" * 16, 1, True, "", "", (1, 2))}


async def test_a_cluster_that_could_not_be_formed_for_want_of_space_is_not_formed_when_there_is_another(autojump_clock: MockClock) -> None:
    """Nothing was durable, so nothing was decided; it would be a cluster of which nobody else is a part."""
    links, files = OneLink(), FullFiles(cluster_id=NO_CLUSTER)
    rig = make_rig(files, links, initial=(1, 2))
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: rig.manager.run(task_status=task_status))
        await trio.sleep(5)
        assert rig.manager._forming is not None
        links.cluster_id = CLUSTER
        await trio.sleep(5)
        files.space = True
        await trio.sleep(5)
        assert rig.manager.cluster_id == CLUSTER
        assert [type(mail) for mail in await rig.wants()] == [Join]
        nursery.cancel_scope.cancel()


async def test_a_cluster_is_formed_as_soon_as_there_is_space(autojump_clock: MockClock) -> None:
    """The same, and nobody else was faster."""
    files = FullFiles(cluster_id=NO_CLUSTER)
    rig = make_rig(files, OneLink(), initial=(1, 2))
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: rig.manager.run(task_status=task_status))
        await trio.sleep(5)
        files.space = True
        await trio.sleep(2.5)
        assert [type(mail) for mail in await rig.wants()] == [Form]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("leader", "text"),
    [
        (None, "there is no controller now: govern status tells why; try again when there is one"),
        (1, "there is no controller now: govern status tells why; try again when there is one"),
        (3, "node 1 has no link to the controller, node 3: ask another node"),
    ],
)
async def test_a_word_that_does_not_reach_the_controller_says_why(
    leader: int | None, text: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """That there is none, and that there is one which this node cannot reach, are two things."""
    rig = make_rig(Files())
    rig.manager.leader = leader
    said: list[ControllerAnswer] = []
    monkeypatch.setattr(Administration, "take_answer", lambda self, answer: said.append(answer))
    rig.manager._administration.take_words(rig.manager, [Word(Link("c", "n", 0), 1, Administer("nodes", 0, {}))])
    assert [(answer.code, answer.text) for answer in said] == [(NoController.reason, text)]


def test_of_two_members_with_one_id_each_verb_means_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner lost its disk before it was promoted, and was added again: the one whose disk is here is promoted, the other removed."""
    rig = make_rig(Files())
    gone, here = Member(4, b"1" * 16), Member(4, b"2" * 16)
    monkeypatch.setattr(Election, "membership", Membership((ME,), (gone, here)))
    row = TableNode(node_id=4, disk_id=here.disk_id, boot_no=1, clients="c", peers="p", candidate=True, state=UP, registered_at=9)
    rig.manager._ownership.table = Table(9, (row,), ())
    member = rig.manager._administration._member
    assert [member(verb, 4) for verb in ("add", "promote", "transfer", "remove")] == [here, here, here, gone]


async def test_what_found_no_room_in_the_log_is_proposed_again(autojump_clock: MockClock) -> None:
    """Not at once, or the two would ask and refuse each other as fast as they can; and not never."""
    rig = make_rig(Files(cluster_id=NO_CLUSTER))
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: rig.manager.run(task_status=task_status))
        rig.mailbox.post(Led(7, ME, True, None))
        await rig.wants()
        rig.manager.deliver(1, NodeRegister(1, ME.disk_id, 3, 1, "c", "p", True, False))
        rig.mailbox.post(Led(7, ME, True, None))
        (mail,) = await rig.wants()
        assert isinstance(mail, Propose)
        assert mail.term == 7
        assert [type(unpack_record(record)) for record in mail.records] == [NodeJoined]
        await trio.sleep(1)
        assert await rig.wants() == []
        rig.mailbox.post(Unproposed(mail.records))
        assert await rig.wants() == []
        await trio.sleep(0.5)
        (again,) = await rig.wants()
        assert isinstance(again, Propose)
        assert again.records == mail.records
        nursery.cancel_scope.cancel()


async def test_after_a_sleep_of_the_machine_no_lease_is_lent_until_that_of_the_leader_has_ended(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trio's clock stood still: by it this leader still has its lease, though another may have given this node up."""
    rig = make_rig(Files())
    monkeypatch.setattr(Election, "term", 7)
    monkeypatch.setattr(Election, "proved_us", lambda self, now_us: now_us)
    lent: list[bool] = []
    monkeypatch.setattr(Controller, "heartbeat", lambda self, message, now_us, proved_us: lent.append(proved_us is not None))
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: rig.manager.run(task_status=task_status))
        rig.mailbox.post(Led(7, ME, True, None))
        for sleep_us in (0, 0, 10_000_000, 0):
            rig.clock.offset_us += sleep_us
            rig.manager.deliver(1, NodeHeartbeat(1, ME.disk_id, 3, 1, 1, 1, 0, 0, 0, 0))
            await trio.sleep(0.5)
        assert lent == [True, True, False, False]
        await trio.sleep(0.5)
        rig.manager.deliver(1, NodeHeartbeat(1, ME.disk_id, 3, 1, 2, 1, 0, 0, 0, 0))
        await trio.sleep(0.5)
        assert lent[4:] == [True]
        nursery.cancel_scope.cancel()


async def test_a_newer_table_is_made_into_pages_once_for_all_that_follow(autojump_clock: MockClock) -> None:
    """The nodes without a log of their own share the version before, and so what has changed since."""
    links = Recorded()
    rig = make_rig(Files(), links)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: rig.manager.run(task_status=task_status))
        await trio.sleep(0.5)
        for index in (2, 3):
            joined = NodeJoined(index, bytes([index]) * 16, 1, "c:1", "p:1", True, False)
            rig.mailbox.post(Entries([Entry(index, 1, DATA, joined.pack())]))
            await trio.sleep(0.5)
        assert [node_ids for node_ids, _ in links.told] == [[4, 5], [4, 5]]
        parts = [message for _, message in links.told]
        assert [(part.base, part.version) for part in parts if isinstance(part, TablePart)] == [(0, 2), (2, 3)]
        nursery.cancel_scope.cancel()


async def test_a_word_that_was_not_decided_in_time_is_given_up(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """O3: the controller does not keep it."""
    rig = make_rig(Files())
    abandoned: list[object] = []
    monkeypatch.setattr(Controller, "reset", lambda self, node_id, token: 1)
    monkeypatch.setattr(Controller, "abandon", lambda self, token: abandoned.append(token))
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: rig.manager.run(task_status=task_status))
        rig.mailbox.post(Led(7, ME, True, None))
        await rig.wants()
        rig.manager.deliver(1, AskController(1, 5, "reset", 1, {}))
        await trio.sleep(WORD_SECONDS - 0.5)
        assert abandoned == []
        await trio.sleep(1)
        assert len(abandoned) == 1
        nursery.cancel_scope.cancel()


async def test_a_snapshot_that_is_of_a_later_entry_than_it_says_ends_the_node(autojump_clock: MockClock) -> None:
    """G4: what follows in the log would be older than the state."""
    rig = make_rig(Files())
    state = MetaState()
    state.apply(9, ClusterInit(CLUSTER).pack())
    rig.mailbox.post(Installed(8, state.pack()))
    with pytest.raises(ExceptionGroup) as group:
        await rig.manager.run(task_status=trio.TASK_STATUS_IGNORED)
    assert group.group_contains(ApplyFailed, match="as of entry 8 says that it is of 9")
