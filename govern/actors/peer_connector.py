"""The peer connector: one link to each other node, dialled, accepted, kept alive and replaced; messages by node id in and out.

It decides nothing: whom to dial, which of two links stays, who is refused and who is silent are rules of `core.peering`. Here are the
streams: one task per link that reads, beside it one that writes and one that measures the silence.

Others call in without waiting (`send`, `set_peers`, `recheck`), and are called without waiting: `deliver`, `on_up` and `on_down` put
something into a mailbox, or drop it, and return.

C1  For each node: `on_up`, then messages, then `on_down`, then perhaps `on_up` again. Nothing is delivered and nothing is taken outside.
C2  What was taken by `send` leaves in the order of taking, all that waits in one go; it may be lost with the link, never out of the middle.
C3  A link whose socket takes nothing keeps a bounded number of messages and bytes; what does not fit is refused and counted.
C4  Whatever a stream brings ends at most that stream: what the door of messages refuses here, what its reader finds out with `drop`.
C5  Before both sides belong to one cluster nothing is delivered (rule P7 of `core.peering`); the last call for votes is kept, for the first
    campaign of a new cluster comes a moment before the word that it exists.
C6  The end of `run`, in whatever way, is the end of all links; the other sides see it at once.

Nothing here knows sockets: a stream may as well be wrapped in TLS.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import attrs
import trio

from ..core.peering import (
    PING_SECONDS,
    TICK_SECONDS,
    Complaints,
    Peering,
    PeerLink,
    Phase,
    Silence,
    is_known,
    is_of_one_cluster,
    judge_cluster,
)
from ..environment import Network, Random
from ..errors import Invalid, RemoteProtocolError
from ..messages import Message
from ..model import split_address
from ..net.frames import FrameReader
from ..peer_messages import (
    FRAME_BYTES_MAX_PEER,
    LIFE_REFUSALS,
    ClusterFormed,
    Member,
    PeerHello,
    PeerRefused,
    Ping,
    PreVote,
    Vote,
    build_peer_message,
    encode_peer,
    unpack_peer_frame,
)
from .supervisor import unwrap

CONNECT_SECONDS_MAX: Final = 2.0
"""A dial that is not answered in that time is begun afresh: the kernel's own repetitions become rare, ours stay close."""
HANDSHAKE_SECONDS_MAX: Final = 5.0
STRANGERS_MAX: Final = 64
"""Accepted connections that are not up yet; with one more the oldest has to go. So many nodes may start at once."""
HELLO_BYTES_MAX: Final = 64 * 1024
"""Of somebody who has not said Hello no more than that is kept."""
QUEUE_MESSAGES_MAX: Final = 4096
QUEUE_BYTES_MAX: Final = 16 * 1024 * 1024
"""What waits for one socket. It has to hold the largest frame beside what is said every second; more would only be older."""
FAREWELL_SECONDS_MAX: Final = 1.0
PEERS_NOTE: Final = "the address for links of other nodes cannot be listened on"
_RECEIVE_BYTES: Final = 64 * 1024
_PING: Final = encode_peer(Ping())
_PASSING: Final = ("duplicate", "overloaded")
"""Refusals that belong to the course of things."""

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class PeerStatistics:
    """How the links fare: how many are up and in their handshake now; so far, how many came up, and how many messages came, were taken
    by `send`, and were dropped by it."""

    linked: int
    handshaking: int
    links_made: int
    received: int
    sent: int
    dropped: int


@attrs.define(eq=False)
class _Channel:
    """A link and its stream."""

    link: PeerLink
    stream: trio.abc.HalfCloseableStream
    scope: trio.CancelScope
    silence: Silence = attrs.field(factory=Silence)
    reader: FrameReader = attrs.field(factory=lambda: FrameReader(FRAME_BYTES_MAX_PEER, unpack_peer_frame))
    waiting: list[bytes] = attrs.field(factory=list)
    unsent_messages: int = 0  # what waits, and what the socket has not yet taken (C3)
    unsent_bytes: int = 0
    said: bytes = b""  # the cluster of this node that the other side was told of
    is_shared: bool = False  # both belong to one cluster (C5)
    early: PreVote | Vote | None = None
    wake: trio.Event = attrs.field(factory=trio.Event)
    closing: bool = False  # to be closed once everything is sent
    closed: bool = False

    def put(self, data: bytes) -> None:
        """Let the writer send it."""
        self.waiting.append(data)
        self.unsent_messages += 1
        self.unsent_bytes += len(data)
        self.wake.set()


class PeerConnector:
    """The actor that owns all links to other nodes.

    `hello` says what this node is now. `host` and `port` are where others dial it; with `host` None nobody can, and no port is opened.
    `deliver(node_id, message)`, `on_up(node_id, hello)` and `on_down(node_id)` return at once and must not raise; of this actor they may
    call `send` and `peers`.
    """

    def __init__(
        self,
        *,
        network: Network,
        random: Random,
        hello: Callable[[], PeerHello],
        host: str | None,
        port: int,
        deliver: Callable[[int, Message], None],
        on_up: Callable[[int, PeerHello], None],
        on_down: Callable[[int], None],
    ) -> None:
        self.address: tuple[str, int] | None = None if host is None else (host, port)
        """Where it listens; with the real port once it is started. A restart takes the same port again, for others know it by now."""
        self._network = network
        self._hello = hello
        self._deliver = deliver
        self._on_up = on_up
        self._on_down = on_down
        self._peering = Peering(random)
        self._complaints = Complaints()
        self._channels: dict[PeerLink, _Channel] = {}
        self._up: dict[int, _Channel] = {}
        self._strangers: dict[_Channel, None] = {}  # oldest first
        self._refusals: dict[int, str] = {}
        self._is_out = False  # `expelled` was heeded
        self._changed = trio.Event()  # somebody may be due to be dialled
        self._links_made = self._received = self._sent = self._dropped = 0

    def __repr__(self) -> str:
        return f"<PeerConnector up={sorted(self._up)} handshaking={len(self._channels) - len(self._up)} dropped={self._dropped}>"

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep links until cancelled. Raises `OSError` before it has started when the port cannot be bound."""
        try:
            async with trio.open_nursery() as nursery:
                if self.address is not None:
                    self.address = await nursery.start(self._serve, *self.address)
                nursery.start_soon(self._dial_due, nursery)
                task_status.started()
        except BaseExceptionGroup as group:
            error = unwrap(group)
        else:
            raise AssertionError("the tasks of the peer connector run for ever")
        raise error

    # --- for others, at any time --------------------------------------------------------------------------------------------

    def send(self, node_id: int, message: Message) -> bool:
        """Send a message to a node. False when it was dropped: the node has no link, or its queue is full. True promises nothing, for the
        link may break. Raises `LocalProtocolError` for a message that is larger than any frame."""
        return self._send(node_id, encode_peer(message))

    def send_to_all(self, node_ids: Iterable[int], message: Message) -> None:
        """Send one message to several nodes, as `send` does to each; it is encoded once."""
        data = encode_peer(message)
        for node_id in node_ids:
            self._send(node_id, data)

    def _send(self, node_id: int, data: bytes) -> bool:
        channel = self._up.get(node_id)
        if (
            channel is None or channel.unsent_messages >= QUEUE_MESSAGES_MAX or channel.unsent_bytes + len(data) > QUEUE_BYTES_MAX  # C3
        ):
            self._dropped += 1
            return False
        self._sent += 1
        channel.put(data)
        return True

    def set_peers(self, addresses: Mapping[int, str]) -> None:
        """Keep links to these nodes; this node itself is left out, and one with an empty address is not dialled. Several addresses of one
        node, separated by commas, are tried in turn. A link to a node that is not among them stays for as long as that node keeps it."""
        self._peering.set_peers(self._hello().node_id, addresses, trio.current_time())
        self._changed.set()

    def recheck(self) -> None:
        """This node has found its cluster: say so on all links, and end those to nodes of another one."""
        for channel in list(self._up.values()):
            self._look_at_cluster(channel)

    def drop(self, node_id: int, reason: str) -> None:
        """End the link to a node because of what it said; nothing if it has none. It may come again."""
        channel = self._up.get(node_id)
        if channel is not None:
            self._close(channel, f"it broke the protocol: {reason}")

    def set_boots(self, boots: Mapping[Member, int]) -> None:
        """The highest boot number that is known of each disk. A life with a lower one is refused, and the link that it has ends."""
        self._peering.set_boots(boots)
        self._end_outlived()

    @property
    def expelled(self) -> str:
        """Why this node has no part in its cluster any more and keeps no links, for people; empty as long as it has one."""
        return self._peering.expelled

    def peers(self) -> Mapping[int, PeerHello]:
        """The nodes that are linked now, and what each said of itself when the link was made."""
        return self._peering.linked()

    def refusals(self) -> Mapping[int, str]:
        """The nodes that answer where they are dialled and with which there can be no link as things are, and why, for people."""
        return self._refusals

    def statistics(self) -> PeerStatistics:
        """A snapshot of the counters."""
        return PeerStatistics(
            linked=len(self._up),
            handshaking=len(self._channels) - len(self._up),
            links_made=self._links_made,
            received=self._received,
            sent=self._sent,
            dropped=self._dropped,
        )

    def validate(self) -> None:
        """Assert the invariants."""
        self._peering.validate()
        assert list(self._up) == [node_id for node_id in self._up if self._up[node_id].link.node_id == node_id]
        assert sorted(self._up) == sorted(self._peering.linked())  # C1
        assert len(self._strangers) <= STRANGERS_MAX
        for channel in self._channels.values():
            assert channel.unsent_messages <= QUEUE_MESSAGES_MAX + 1  # a Ping or a refusal is put without asking
            assert channel.unsent_bytes <= QUEUE_BYTES_MAX + HELLO_BYTES_MAX

    # --- streams ------------------------------------------------------------------------------------------------------------

    async def _serve(self, host: str, port: int, *, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
        try:
            await self._network.serve(host, port, self._accept, task_status=task_status)
        except OSError as error:
            error.add_note(PEERS_NOTE)
            raise

    async def _accept(self, stream: trio.abc.HalfCloseableStream) -> None:
        if self.expelled:
            await trio.aclose_forcefully(stream)
            return
        channel = self._open(PeerLink(None, ""), stream)
        self._strangers[channel] = None
        if len(self._strangers) > STRANGERS_MAX:
            self._close(next(iter(self._strangers)), "too many connections had not finished their handshake; this was the oldest")
        await self._talk(channel)

    async def _dial_due(self, nursery: trio.Nursery) -> None:
        while True:
            self._changed = trio.Event()
            me = self._hello().node_id
            for link in self._peering.take_due(me, trio.current_time()):
                nursery.start_soon(self._dial, link)
            with trio.move_on_at(self._peering.next_due(me)):
                await self._changed.wait()

    async def _dial(self, link: PeerLink) -> None:
        try:
            stream = await self._connect(link)
            if stream is not None:
                await self._talk(self._open(link, stream))
        finally:
            self._end(link)

    async def _connect(self, link: PeerLink) -> trio.abc.HalfCloseableStream | None:
        try:
            with trio.fail_after(CONNECT_SECONDS_MAX):
                return await self._network.dial(*split_address(link.address))
        except trio.TooSlowError:
            self._complain(link, f"no connection within {CONNECT_SECONDS_MAX:g} s")
        except OSError as error:
            self._complain(link, (error.strerror or str(error)).lower())
        except Invalid as error:
            self._complain(link, str(error))
        self._refusals.pop(link.node_id or 0, None)  # whoever it was is not there any more
        return None

    def _open(self, link: PeerLink, stream: trio.abc.HalfCloseableStream) -> _Channel:
        now = trio.current_time()
        channel = _Channel(link, stream, trio.CancelScope(deadline=now + HANDSHAKE_SECONDS_MAX))
        self._channels[link] = channel
        if not link.dialled:
            self._say_hello(channel)
        return channel

    def _say_hello(self, channel: _Channel) -> None:
        mine = self._hello()
        channel.said = mine.cluster_id
        channel.put(encode_peer(mine))

    async def _talk(self, channel: _Channel) -> None:
        """Everything on one stream, from the first Hello until it is closed."""
        try:
            with channel.scope:
                async with trio.open_nursery() as nursery:
                    for work in (self._read, self._write, self._watch):
                        nursery.start_soon(self._until_failure, work, channel)
            if not channel.closed:
                self._close(channel, "" if channel.closing else "its handshake was not finished in time")
        finally:
            self._end(channel.link)
            await trio.aclose_forcefully(channel.stream)

    async def _until_failure(self, work: Callable[[_Channel], Awaitable[None]], channel: _Channel) -> None:
        try:
            await work(channel)
        except RemoteProtocolError as error:  # C4
            self._close(channel, f"it broke the protocol: {error}")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._close(channel, "the connection broke")

    async def _read(self, channel: _Channel) -> None:
        link = channel.link
        while True:
            data = await channel.stream.receive_some(_RECEIVE_BYTES)
            if not data:
                self._close(channel, "the other side closed it")
                return
            channel.silence.heard()
            for raw in channel.reader.feed(bytes(data)):
                message = build_peer_message(raw)
                if link.phase is Phase.UP:
                    self._take(channel, message)
                else:
                    self._greet(channel, message)
                if channel.closing or channel.closed:
                    return
            if channel.reader.error is not None:
                raise channel.reader.error
            if link.phase is Phase.GREETING and channel.reader.pending_bytes > HELLO_BYTES_MAX:
                raise RemoteProtocolError(f"a Hello of more than {HELLO_BYTES_MAX} bytes")

    async def _write(self, channel: _Channel) -> None:
        while True:
            if not channel.waiting:
                if channel.closing:
                    self._close(channel, "")
                    return
                channel.wake = trio.Event()
                with trio.move_on_after(PING_SECONDS if channel.link.phase is Phase.UP else math.inf) as quiet:
                    await channel.wake.wait()
                if quiet.cancelled_caught:
                    channel.put(_PING)
            batch, channel.waiting = channel.waiting, []
            data = b"".join(batch)  # C2
            await channel.stream.send_all(data)
            channel.unsent_messages -= len(batch)
            channel.unsent_bytes -= len(data)

    async def _watch(self, channel: _Channel) -> None:
        while True:
            await trio.sleep(TICK_SECONDS)
            if channel.link.phase is Phase.UP and channel.silence.tick():
                self._close(channel, "the other side is silent")

    # --- messages -----------------------------------------------------------------------------------------------------------

    def _greet(self, channel: _Channel, message: Message) -> None:
        link = channel.link
        mine = self._hello()
        step = self._peering.greet(link, message, mine, trio.current_time())
        if link.dialled and isinstance(message, PeerHello) and step.refusal is None and not step.failure:
            self._say_hello(channel)
        refusal = message if isinstance(message, PeerRefused) else step.refusal
        if link.dialled and refusal is not None and refusal.code not in _PASSING:
            assert link.node_id is not None, "who dials knows whom"
            self._refusals[link.node_id] = refusal.text
        if isinstance(message, PeerHello) and step.refusal is not None and step.refusal.code in LIFE_REFUSALS:
            self._refusals[message.node_id] = step.refusal.text
            self._end_outlived()
        if step.refusal is not None:
            self._refuse(channel, step.refusal)
        elif step.failure:
            self._close(channel, step.failure)
            self._leave_if_expelled()
        elif step.up:
            self._bring_up(channel, step.replaced)
            if not isinstance(message, PeerHello):
                self._take(channel, message)

    def _refuse(self, channel: _Channel, refusal: PeerRefused) -> None:
        """Say why, and close the link; nothing that comes meanwhile is read."""
        if refusal.code != "duplicate":
            self._complain(channel.link, f"refused ({refusal.code}): {refusal.text}", logging.WARNING)
        channel.closing = True
        channel.scope.deadline = trio.current_time() + FAREWELL_SECONDS_MAX
        channel.put(encode_peer(refusal))

    def _bring_up(self, channel: _Channel, replaced: PeerLink | None) -> None:
        node_id, hello = channel.link.node_id, channel.link.hello
        assert node_id is not None, "only who said Hello comes up"
        assert hello is not None, "only who said Hello comes up"
        if replaced is not None:
            del self._up[node_id]
            self._on_down(node_id)
            self._close(self._channels[replaced], "a newer link replaces it")
        self._strangers.pop(channel, None)
        self._refusals.pop(node_id, None)
        channel.scope.deadline = math.inf
        channel.silence.heard()
        self._up[node_id] = channel
        self._links_made += 1
        channel.put(_PING)  # tells the smaller id that this is the link
        if self._complaints.is_new(f"node {node_id}", "up", trio.current_time()):
            _log.info("linked to node %d (%s)", node_id, hello.peers or "it cannot be dialled")
        self._on_up(node_id, hello)
        self._look_at_cluster(channel)

    def _look_at_cluster(self, channel: _Channel) -> None:
        """What the two sides of a link that is up know of their clusters (C5): with one the link is good, with two it ends."""
        mine, other = self._hello(), channel.link.hello
        assert other is not None, "a link that is up was greeted"
        if is_known(mine.cluster_id) and channel.said != mine.cluster_id:
            channel.said = mine.cluster_id
            channel.put(encode_peer(ClusterFormed(mine.cluster_id)))
        refusal = judge_cluster(mine, other)
        if refusal is not None:
            if channel.link.dialled:
                self._refusals[other.node_id] = refusal.text
            self._refuse(channel, refusal)
        elif is_of_one_cluster(mine, other) and not channel.is_shared:
            channel.is_shared = True
            if channel.early is not None:
                self._hand_on(other.node_id, channel.early)

    def _take(self, channel: _Channel, message: Message) -> None:
        """A message on a link that is up."""
        if isinstance(message, PeerHello):
            raise RemoteProtocolError("a second Hello")
        if isinstance(message, PeerRefused):
            self._peering.refused(channel.link, message)
            self._close(channel, f"the other side refused it ({message.code}): {message.text}")
            self._leave_if_expelled()
        elif isinstance(message, ClusterFormed) and not channel.closed:
            assert channel.link.node_id is not None, "a link that is up belongs to a node"
            problem = self._peering.told(channel.link, message.cluster_id)
            if problem is not None:
                raise RemoteProtocolError(problem)
            self._hand_on(channel.link.node_id, message)
            self._look_at_cluster(channel)
        elif not isinstance(message, Ping) and not channel.closed:
            assert channel.link.node_id is not None, "a link that is up belongs to a node"
            if channel.is_shared and not channel.closing:
                self._hand_on(channel.link.node_id, message)
            elif isinstance(message, PreVote | Vote):
                channel.early = message

    def _hand_on(self, node_id: int, message: Message) -> None:
        self._received += 1
        self._deliver(node_id, message)

    # --- the end of a link --------------------------------------------------------------------------------------------------

    def _end_outlived(self) -> None:
        for link in self._peering.outlived():
            self._close(
                self._channels[link], "its data directory was rolled back or copied: there was a later or another life of that node"
            )

    def _leave_if_expelled(self) -> None:
        """Another node has said that this one is not what it was: end all links, also those that are being made."""
        if self.expelled and not self._is_out:
            self._is_out = True
            _log.error("this node has no part in its cluster any more, and keeps no links: %s", self.expelled)
            for channel in list(self._channels.values()):
                self._close(channel, "")

    def _close(self, channel: _Channel, reason: str) -> None:
        """Give a link up, now; its task closes the stream. The first reason counts."""
        if channel.closed:
            return
        channel.closed = True
        if reason:
            self._complain(channel.link, reason, logging.WARNING if channel.link.phase is Phase.UP else logging.INFO)
        self._end(channel.link)
        channel.scope.cancel()

    def _end(self, link: PeerLink) -> None:
        """Nothing goes over this link any more. Once for each that was up: `on_down`, unless it was replaced."""
        channel = self._channels.pop(link, None)
        if channel is not None:
            channel.closed = True
            self._strangers.pop(channel, None)
        if self._peering.end(link, trio.current_time()):
            assert link.node_id is not None, "a link that was up belongs to a node"
            del self._up[link.node_id]
            self._on_down(link.node_id)
        self._changed.set()

    def _complain(self, link: PeerLink, reason: str, level: int = logging.INFO) -> None:
        """One line, and no more of the same node and cause within a minute; the cause is what the reason has before its first colon."""
        who = f"node {link.node_id}" if link.node_id is not None else "somebody"
        if self._complaints.is_new(who, reason.partition(":")[0], trio.current_time()):
            where = f" at {link.address}" if link.address else ""
            _log.log(level, "no link to %s%s: %s", who, where, reason)
