"""Whatever comes to the port of nodes from somebody who speaks the protocol and says hello properly costs at most that link."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import attrs
import msgpack
import pytest
import trio
from trio.testing import MockClock

import govern.testing
from govern.actors.node import Node
from govern.core.raft.core import TERM_LEAP_MAX
from govern.core.table import COPIES_MAX, NODES_MAX, UP
from govern.model import NODE_ID_MAX
from govern.peer_messages import (
    BYTES_MAX,
    FRAME_BYTES_MAX_PEER,
    HEARTBEAT_LEASED,
    NUMBER_MAX,
    PEER_MESSAGES,
    PEER_PROTOCOL_VERSION,
    Append,
    AppendAnswer,
    AskController,
    ClusterFormed,
    ControllerAnswer,
    Entry,
    InstallSnapshot,
    Member,
    NodeHeartbeat,
    NodeHeartbeatOk,
    NodeRegister,
    NodeRegistered,
    PeerHello,
    PeerRefused,
    Ping,
    PreVote,
    PreVoteAnswer,
    SnapshotAnswer,
    TableAsk,
    TablePart,
    TimeoutNow,
    Vote,
    VoteAnswer,
    encode_peer,
    unpack_peer_frame,
)
from govern.testing.world import PEER_PORT
from govern.wire import Message, frame

from ..actors.peers import Stranger

HOSTILE: Final = 60
DISK: Final = b"a hostile disk.."
LEADERS_WORDS: Final = (Append, InstallSnapshot)
"""Whoever leads in a term that can be is believed; so these come in terms that are over, or that cannot be."""

NUMBERS: Final = (0, 1, 2, NODE_ID_MAX, NODE_ID_MAX + 1, 1 << 32, TERM_LEAP_MAX - 1, NUMBER_MAX - 1, NUMBER_MAX, 1 << 63, (1 << 64) - 1)
BYTES: Final = (b"", bytes(16), b"x" * 16, b"x" * 17, b"x" * BYTES_MAX, b"x" * (BYTES_MAX + 1))
TEXTS: Final = ("", "x", "x" * 1024, "x" * 65_536, "nowhere:7", f"{'h' * 255}:65535", "\0\x1b[2J")
ROW: Final = [1, "a:1", "a:2", True, UP, bytes(16), 1, 1]
RUN: Final = [0, 16_383, 1, 5, [[1, 5]], [1]]
ROWS: Final[tuple[list[Any], ...]] = (
    [ROW, ROW],
    [[NODE_ID_MAX + 1, *ROW[1:]]],
    [[1, "a" * 65_000, *ROW[2:]]],
    [[*ROW[:5], b"", 1, 1]],
    [[*ROW[:6], 1 << 63, 1]],
    [[node_id, *ROW[1:]] for node_id in range(1, NODES_MAX + 2)],
    [RUN, RUN],
    [[0, 16_384, *RUN[2:]]],
    [[*RUN[:3], 1 << 62, *RUN[4:]]],
    [[*RUN[:4], [[1, 5]] * (COPIES_MAX + 1), [1]]],
    [[*RUN[:4], [[1, 5]], [2]]],
    [7],
    [[]],
)
TREES: Final = ({"a": [[[[[[[[[1]]]]]]]]]}, {"a": "x" * 65_000}, {str(number): number for number in range(1025)}, {"a": None})


def examples(me: Member, to: Member, target: Node, term: int) -> list[Message]:
    """One of each kind, as somebody would say it who is what it says."""
    life, controller = (me.node_id, me.disk_id, 1), to.node_id
    entry = Entry(target._manager.meta.index + 1, term, 1, b"x")
    return [
        PeerHello(PEER_PROTOCOL_VERSION, b"c" * 16, *life, True, "stranger:1", "stranger:2", (1, 2, 3)),
        PeerRefused("identity", "you are nobody"),
        Ping(),
        ClusterFormed(target._manager.cluster_id),
        PreVote(to, me, term + 1, 1 << 40, term),
        PreVoteAnswer(to, me, term, True),
        Vote(to, me, term + 1, 1 << 40, term, True),
        VoteAnswer(to, me, term, True),
        Append(to, me, 1, 1, 1, 1, 1, (entry,)),
        AppendAnswer(to, me, term, True, 3, term, 1),
        InstallSnapshot(to, me, 1, 9, 1, (me,), (), 0, True, 1, b"no state"),
        SnapshotAnswer(to, me, term, 1, 1, 1),
        TimeoutNow(to, me, term),
        NodeRegister(*life, controller, "stranger:2", "stranger:1", False, False),
        NodeRegistered(to.node_id, to.disk_id, 1, me.node_id, 9, ""),
        NodeHeartbeat(*life, controller, 1, 1, 0, 0, 0, 0),
        NodeHeartbeatOk(to.node_id, to.disk_id, 1, me.node_id, 1, HEARTBEAT_LEASED, 4000, 9, me.node_id),
        TableAsk(0),
        TablePart(False, 0, 9, [ROW], [], [RUN]),
        AskController(me.node_id, 1, "nonsense", 1, {}),
        ControllerAnswer(to.node_id, 1, "", "", {}),
    ]


def extremes(value: Any) -> Iterator[Any]:
    """What else could stand in the place of a decoded value: the ends of its type, what is just beyond them, and other types."""
    if type(value) is bool:
        yield from (not value, 1)
    elif type(value) is int:
        yield from (*NUMBERS, -1, "1", None)
    elif type(value) is bytes:
        yield from (*BYTES, "x", None)
    elif type(value) is str:
        yield from (*TEXTS, b"x", None)
    elif type(value) is dict:
        yield from (*TREES, [])
    elif type(value) is list:
        yield from ([], None, [None], [[]], *ROWS)
        for place, inner in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in extremes(inner) if type(inner) is not list or other)


def hostile_frames(example: Message) -> Iterator[bytes]:
    """The message itself, and with each of its fields at each extreme."""
    fields = unpack_peer_frame(encode_peer(example)[4:])
    yield frame(msgpack.packb(fields))
    for place in range(2, len(fields)):
        for value in extremes(fields[place]):
            is_term = place == 4 and isinstance(example, LEADERS_WORDS)
            if is_term and type(value) is int and 1 < value <= TERM_LEAP_MAX:
                continue
            payload = msgpack.packb([*fields[:place], value, *fields[place + 1 :]])
            if len(payload) <= FRAME_BYTES_MAX_PEER:
                yield frame(payload)


class Attacker:
    """Somebody with a link to one node, which is made again whenever the node ends it."""

    def __init__(self, cluster: govern.testing.Cluster, name: str, *, candidate: bool) -> None:
        self._network = cluster.environment("stranger").network
        self._name = name
        self._node = node_of(cluster, name)
        self._boot_no = 0
        self._candidate = candidate
        self._stranger: Stranger | None = None
        self.links = 0

    async def send(self, data: bytes, seconds: float = 0.005) -> None:
        """Send it over a link that is up, and wait until it was read."""
        if self._stranger is None:
            await self._link()
        assert self._stranger is not None
        with trio.move_on_after(seconds) as scope:
            try:
                await self._stranger.stream.send_all(data)
                while await self._stranger.hear() is not None:
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        if not scope.cancelled_caught:
            await trio.aclose_forcefully(self._stranger.stream)
            self._stranger = None

    async def _link(self) -> None:
        self._boot_no += 1
        self.links += 1
        self._stranger = Stranger(await self._network.dial(self._name, PEER_PORT))
        hello = self._node._hello()
        mine = attrs.evolve(hello, node_id=HOSTILE, disk_id=DISK, boot_no=self._boot_no, candidate=self._candidate, peers="", clients="s:1")
        await self._stranger.say(mine)
        assert isinstance(await self._stranger.hear(), PeerHello)
        await self._stranger.say(Ping())  # the larger id has chosen


def node_of(cluster: govern.testing.Cluster, name: str) -> Node:
    node = cluster._node(name)
    assert node is not None, f"{name} does not run any more"
    return node


def check(cluster: govern.testing.Cluster) -> None:
    for name in cluster.nodes:
        node_of(cluster, name).validate()


def slots_of(cluster: govern.testing.Cluster) -> object:
    """What must not change: who answers for what in which term, and the nodes that were there before."""
    found = []
    for name in cluster.nodes:
        table = node_of(cluster, name)._ownership.table
        rows = [(row.node_id, row.disk_id, row.boot_no, row.clients, row.registered_at) for row in table.nodes if row.node_id != HOSTILE]
        found.append((table.runs, rows))
    return found


KINDS = list(PEER_MESSAGES.values())
GROUPS = 4
"""So many clusters share the kinds: to form one costs as much as to attack it."""


@pytest.mark.parametrize("is_shared", [True, pytest.param(False, marks=pytest.mark.deep)], ids=["shared", "each"])
@pytest.mark.parametrize("kinds", [KINDS[number::GROUPS] for number in range(GROUPS)], ids=lambda kinds: kinds[0].__name__)
async def test_no_message_of_a_peer_costs_more_than_its_link(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, kinds: Sequence[type[Message]], is_shared: bool
) -> None:
    """Each field at each extreme, to the controller, to another candidate, and to a node that is none, each to each or each to one of them;
    then all agree again, nobody has lost a slot or a term, and the registration that was there before is there."""
    with caplog.at_level(logging.WARNING):
        async with govern.testing.cluster(nodes=4, seed=3) as cluster, cluster.registry.register("orders", port=80, id="o1"):
            before = slots_of(cluster)
            follower = next(name for name in cluster.candidates if name != cluster.controller)
            assert cluster.controller is not None
            targets = (cluster.controller, follower, cluster.nodes[-1])
            for turn, name in enumerate(targets):
                node, attacker = node_of(cluster, name), Attacker(cluster, name, candidate=False)
                term = 0 if node._election is None else node._election.term
                for example in examples(Member(HOSTILE, DISK), node._me, node, term):
                    if type(example) in kinds:
                        frames = hostile_frames(example)
                        for data in islice(frames, turn, None, len(targets)) if is_shared else frames:
                            await attacker.send(data)
                        check(cluster)
            await trio.sleep(3)
            await cluster.converged()
            check(cluster)
            assert slots_of(cluster) == before
            assert [each.id for each in await cluster.registry.lookup("orders")] == ["o1"]
    assert [record.getMessage() for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []


async def test_a_table_that_is_none_is_not_followed_from_a_candidate_either(autojump_clock: MockClock) -> None:
    """A node without a part in the log believes candidates, but not everything: each row out of bounds ends the link."""
    async with govern.testing.cluster(nodes=4, seed=3) as cluster:
        name = cluster.nodes[-1]
        node, attacker = node_of(cluster, name), Attacker(cluster, name, candidate=True)
        table = node._ownership.table
        for rows in ROWS:
            for part in (TablePart(False, 0, table.version + 9, rows, [], []), TablePart(True, 0, table.version + 9, [], [], rows)):
                await attacker.send(encode_peer(Ping()))
                links = attacker.links
                await attacker.send(encode_peer(part), 0.2)
                await attacker.send(encode_peer(Ping()))
                assert attacker.links == links + 1, rows
                assert node._ownership.table == table
        await attacker.send(
            encode_peer(TablePart(False, table.version, table.version + 1, [ROW], [NODE_ID_MAX] * (NODES_MAX + 1), [])), 0.2
        )
        assert node._ownership.table == table
        await cluster.converged()


async def test_nobody_speaks_in_the_name_of_another_node(autojump_clock: MockClock) -> None:
    """A later boot of a node that is there, told by somebody else, would shut it out for ever; the same for what operators ask."""
    async with govern.testing.cluster(nodes=3, seed=3) as cluster:
        name = cluster.controller
        assert name is not None
        node, attacker = node_of(cluster, name), Attacker(cluster, name, candidate=True)
        before = slots_of(cluster)
        victim = next(row for row in node._ownership.table.nodes if row.node_id != node._me.node_id)
        life = (victim.node_id, victim.disk_id, victim.boot_no + 9)
        for message in (
            NodeRegister(*life, node._me.node_id, "s:1", "s:2", True, False),
            NodeRegister(*life, victim.node_id, "s:1", "s:2", True, False),
            NodeHeartbeat(*life, node._me.node_id, 1, 1, 0, 0, 0, 0),
            NodeRegistered(victim.node_id, victim.disk_id, 1, victim.node_id, 9, ""),
            AskController(victim.node_id, 1, "members.remove", victim.node_id, {}),
        ):
            await attacker.send(encode_peer(Ping()))
            links = attacker.links
            await attacker.send(encode_peer(message), 0.2)
            await attacker.send(encode_peer(Ping()))
            assert attacker.links == links + 1, message
        await trio.sleep(6)
        await cluster.converged()
        assert slots_of(cluster) == before
