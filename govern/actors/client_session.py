"""Client sessions: all client connections of a node, served by one task over one poller.

Thousands of connections that each say ten bytes a second are not worth a task each. One task waits for all of them, reads every one
that is ready without blocking, lets `core.dispatch` decide, hands the writes of the turn to the store as one batch, and sends
what each connection is owed with one call. A second task does the same with what the store reports: answers and pushes.

Neither task decides anything: rules about requests are in `core.dispatch`, about pushes in `core.subscriptions`, about the
patience with connections in `core.links`.

C1  Between two checkpoints every link's `out` is empty or its socket is full.
C2  A turn handles a bounded number of connections and bytes, so timers are never starved.
C3  A connection that does not take its answers is not read any more until it does.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs
import trio

from ..core.dispatch import Dispatch
from ..core.limits import Limits
from ..core.links import Gate, Link, overdue
from ..core.requests import Write
from ..core.sessions import Sessions, Silent
from ..core.subscriptions import Subscriptions
from ..core.suspects import Suspects
from ..environment import Clock, Connection, Network, Poller
from ..errors import Overloaded, Stopped
from ..messages import FRAME_BYTES_MAX_TO_NODE, Refused, encode
from ..net.frames import FrameReader
from .mail import Committed, LastRead, Listening, Loaded, ManagerMail, SessionsMail, WordAnswered, Words, WriteBatch
from .runtime import Mailbox, MailboxFull

ACCEPT_MAX: Final = 128  # per turn
READY_MAX: Final = 512  # connections per turn
TURN_BYTES_MAX: Final = 1024 * 1024
FRAMES_BETWEEN_SENDS: Final = 64
LARGE_ANSWER_BYTES: Final = 16 * 1024
WAITING_FRAMES_MAX: Final = 16_384  # more than one read can bring
PARKED_PER_STEP: Final = 256
WRITES_PER_BATCH: Final = 256
SWEEP_SECONDS: Final = 1.0
STOP_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


@attrs.define(eq=False, slots=True)
class Channel:
    """A link and its socket."""

    link: Link
    connection: Connection
    reader: FrameReader
    waiting: deque[list[Any]] = attrs.field(factory=deque)  # frames read but not yet handled, because the socket is full (C3)
    writable_wanted: bool = False


class ClientSessions:
    """The actor that owns all client connections."""

    def __init__(
        self,
        *,
        network: Network,
        clock: Clock,
        dispatch: Dispatch,
        sessions: Sessions,
        suspects: Suspects,
        subscriptions: Subscriptions,
        gate: Gate,
        limits: Limits,
        mailbox: Mailbox[SessionsMail],
        store_mailbox: Mailbox[WriteBatch],
        manager_mailbox: Mailbox[ManagerMail],
        host: str,
        port: int,
    ) -> None:
        self.address: tuple[str, int] = (host, port)
        self._network = network
        self._clock = clock
        self._dispatch = dispatch
        self._sessions = sessions
        self._suspects = suspects
        self._subscriptions = subscriptions
        self._gate = gate
        self._limits = limits
        self._mailbox = mailbox
        self._store_mailbox = store_mailbox
        self._manager_mailbox = manager_mailbox
        self._channels: dict[Link, Channel] = {}
        self._late = trio.Event()
        self._drain_opened = trio.Event()
        self._doubted = trio.Event()
        self._doubts_due_us: int | None = None
        self._to_carry = trio.Event()
        self._carrying = False

    @property
    def connections(self) -> int:
        return len(self._channels)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled; then finish the writes under way, at most a second long, tell every client, and close."""
        poller = await self._network.open_poller(*self.address)
        self.address = poller.address
        await self._manager_mailbox.put(Listening(*poller.address))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._poll, poller)
                nursery.start_soon(self._read_mail)
                nursery.start_soon(self._carry_writes)
                nursery.start_soon(self._push_late)
                nursery.start_soon(self._watch_drains)
                nursery.start_soon(self._tell_suspects)
                nursery.start_soon(self._sweep)
                task_status.started()
        finally:
            poller.stop_listening()
            with trio.move_on_after(STOP_SECONDS, shield=True):
                await self._finish_writes()
            self._say_farewell()
            poller.close()

    # --- the poller ---------------------------------------------------------------------------------------------------------

    async def _poll(self, poller: Poller) -> None:
        while True:
            await poller.wait()
            self._begin_turn()
            accepted = poller.accept(ACCEPT_MAX)
            if len(accepted) == ACCEPT_MAX:
                self._gate.note_full_accept(self._sessions.now_us)
            for connection in accepted:
                self._open(connection)
            budget = TURN_BYTES_MAX
            for connection in poller.ready(READY_MAX):
                channel = connection.owner
                if isinstance(channel, Channel):
                    self._dispatch.note_boot(self._clock.boot_us())
                    budget -= self._serve(channel)
                if budget <= 0:  # C2; the rest is still ready in the next turn
                    break
            self._end_turn()

    def _begin_turn(self) -> None:
        clock = self._clock
        self._dispatch.begin_turn(round(trio.current_time() * 1e6), clock.boot_us(), round(clock.wall() * 1000))

    def _open(self, connection: Connection) -> None:
        if len(self._channels) >= self._limits.connections_max:
            text = f"this node has {len(self._channels)} connections, its limit (connections_max)"
            connection.send(encode(Refused("overloaded", text, 1000)))
            connection.close()
            return
        link = Link(connection.peer, connection.local_host, self._sessions.now_us)
        channel = Channel(link, connection, FrameReader(FRAME_BYTES_MAX_TO_NODE))
        connection.owner = channel
        self._channels[link] = channel
        victim = self._gate.admit(link)
        if victim is not None:
            self._serve(self._channels[victim])  # its Hello may have arrived just now
            if not victim.greeted:
                self._dispatch.refuse_link(victim, "overloaded", "too many connections have not said Hello; this was the oldest")

    def _serve(self, channel: Channel, *, last_read: bool = False) -> int:
        """Send what is owed, then read and handle what has arrived. Returns the bytes read.

        The last read before a session is declared dead reads also from a connection that does not take its answers: what has
        arrived proves that its client lives, even when it cannot be handled yet.
        """
        link = channel.link
        if link.unsent or channel.waiting:
            self._send(channel)
            self._handle_waiting(channel)
            if self._is_stuffed(link) and not last_read:
                return 0
        data = channel.connection.recv()
        if data is None:
            return 0
        if not data:
            self._drop(channel)
            return 0
        frames = channel.reader.feed(data)
        channel.waiting.extend(frames)
        if last_read and frames and link.session is not None:
            link.session.stamp_us = self._sessions.now_us
        if len(channel.waiting) > WAITING_FRAMES_MAX:
            self._dispatch.refuse_link(link, "overloaded", "this connection asks on and on and reads no answers")
            return len(data)
        self._note_partial(channel)
        self._handle_waiting(channel)
        return len(data)

    def _note_partial(self, channel: Channel) -> None:
        link = channel.link
        if not channel.reader.pending_bytes:
            link.partial_since_us = None
        elif channel.waiting or link.partial_since_us is None:
            link.partial_since_us = self._sessions.now_us

    def _handle_waiting(self, channel: Channel) -> None:
        link, waiting = channel.link, channel.waiting
        while waiting and not self._is_stuffed(link):
            for _ in range(min(FRAMES_BETWEEN_SENDS, len(waiting))):
                self._dispatch.receive(link, waiting.popleft())
                if link.out and len(link.out[-1]) > LARGE_ANSWER_BYTES:  # a long list is sent before the next one is looked up
                    break
            self._send(channel)
        if channel.reader.error is not None and not waiting:
            self._dispatch.refuse_link(link, "protocol", str(channel.reader.error))

    def _is_stuffed(self, link: Link) -> bool:
        return len(link.unsent) > self._limits.unsent_bytes_max

    def _send(self, channel: Channel) -> None:
        """Give the socket everything the link is owed; what it does not take waits in `unsent` (C1)."""
        link = channel.link
        if not link.out and not link.unsent:
            return
        data = b"".join((link.unsent, *link.out)) if link.unsent or len(link.out) > 1 else link.out[0]
        link.out.clear()
        sent = channel.connection.send(data)
        if sent < 0:
            link.unsent = b""
            self._drop(channel)
            return
        full = sent < len(data)
        link.unsent = data[sent:] if full else b""
        if not full:
            link.stalled_since_us = None
            if link.late:
                self._late.set()
        elif sent or link.stalled_since_us is None:
            link.stalled_since_us = self._sessions.now_us
        if full or channel.writable_wanted:
            channel.writable_wanted = full
            if full:
                channel.connection.want_write(True)
            channel.connection.want_read(not self._is_stuffed(link))
            if not full:
                channel.connection.want_write(False)

    def _drop(self, channel: Channel) -> None:
        """Close a connection and forget it; its session lives on."""
        if self._channels.pop(channel.link, None) is not None:
            self._dispatch.closed(channel.link)
            channel.waiting.clear()
            channel.connection.close()

    def _close_refused(self) -> None:
        answered = self._dispatch.drains.answered
        while self._dispatch.to_close or answered:
            self._send_answered()
            for link in list(self._dispatch.to_close):
                del self._dispatch.to_close[link]
                channel = self._channels.get(link)
                if channel is not None:
                    _log.debug("closing the connection of %s (%s): %s", link.who or "a stranger", link.peer, link.closing)
                    self._send(channel)
                    self._drop(channel)

    def _end_turn(self) -> None:
        self._close_refused()
        if self._suspects.pending or self._suspects.next_us != self._doubts_due_us:
            self._doubted.set()
        if self._dispatch.words:
            self._pass_words()
        writes = self._dispatch.writes
        if not writes or self._carrying:
            return
        try:
            while writes:
                self._store_mailbox.post(WriteBatch(writes[:WRITES_PER_BATCH]))
                del writes[:WRITES_PER_BATCH]
        except MailboxFull:
            self._to_carry.set()

    def _pass_words(self) -> None:
        """Words of operators go to the slot manager, which never keeps anybody waiting; when it has no room they are refused."""
        words, self._dispatch.words = self._dispatch.words, []
        try:
            self._manager_mailbox.post(Words(words))
        except (MailboxFull, Stopped) as error:
            for word in words:
                self._dispatch.administered(word, Refused(Overloaded.reason, str(error), 1000))
                self._send_to(word.link)

    async def _carry_writes(self) -> None:
        """Hand writes over when the store is behind. A task of its own, so that nobody who reads mail ever waits for the store."""
        while True:
            await self._to_carry.wait()
            self._to_carry = trio.Event()
            self._carrying = True
            await self._hand_over_writes()
            self._carrying = False

    async def _hand_over_writes(self) -> None:
        writes = self._dispatch.writes
        while writes:
            batch = writes[:WRITES_PER_BATCH]
            await self._store_mailbox.put(WriteBatch(batch))  # cancelled: they were not put, and are still the first in line
            del writes[: len(batch)]

    # --- the mail -----------------------------------------------------------------------------------------------------------

    async def _read_mail(self) -> None:
        while True:
            await self._take_mail(await self._mailbox.get())

    async def _take_mail(self, message: SessionsMail) -> None:
        self._begin_turn()
        match message:
            case Committed(results):
                await self._publish(results)
            case Loaded():
                self._dispatch.note_loaded()
                while self._dispatch.parked:
                    self._send_all(self._dispatch.release_parked(PARKED_PER_STEP))
                    await trio.lowlevel.checkpoint()
            case LastRead(silent):
                self._read_last(silent)
            case WordAnswered(word, answer):
                self._dispatch.administered(word, answer)
                self._send_to(word.link)
        self._end_turn()

    async def _publish(self, results: list[tuple[Write, Any]]) -> None:
        links, changed = self._dispatch.finish(results)
        for ready in self._subscriptions.publish(changed, self._dispatch.now_us):
            links.update(dict.fromkeys(ready))
            self._send_all(links)
            links = {}
            await trio.lowlevel.checkpoint()
        self._send_all(links)
        if self._subscriptions.late:
            self._late.set()
        if self._dispatch.drains.open_count:
            self._drain_opened.set()

    def _send_all(self, links: Iterable[Link]) -> None:
        for link in links:
            self._send_to(link)
        self._send_answered()

    def _send_to(self, link: Link) -> None:
        channel = self._channels.get(link)
        if channel is not None:
            self._send(channel)
            if channel.waiting:  # this may have emptied the socket, and then nothing else would call for the frames that wait
                self._handle_waiting(channel)

    def _send_answered(self) -> None:
        """A message or the end of one connection may have answered the drain of another one."""
        answered = self._dispatch.drains.answered
        while answered:
            self._send_to(answered.popitem()[0])

    def _read_last(self, silent: Sequence[Silent]) -> None:
        for session, *_ in silent:
            link = session.connection
            channel = self._channels.get(link) if isinstance(link, Link) else None
            if channel is not None:
                self._serve(channel, last_read=True)
        self._dispatch.propose_expiries(silent)

    # --- timers -------------------------------------------------------------------------------------------------------------

    async def _push_late(self) -> None:
        """Merged pushes: to those whose 20 ms were not over, and to those whose socket was full."""
        while True:
            await self._late.wait()
            await trio.sleep(self._limits.push_interval_seconds)
            self._begin_turn()
            self._late = trio.Event()
            for ready in self._subscriptions.push_late(self._dispatch.now_us):
                self._send_all(ready)
                await trio.lowlevel.checkpoint()
            self._end_turn()
            if any(not link.unsent for link in self._subscriptions.late):
                self._late.set()

    async def _watch_drains(self) -> None:
        """Answer drains whose time is over, and find out who of their subscribers is gone for good."""
        drains = self._dispatch.drains
        while True:
            due_us = drains.next_check_us(round(trio.current_time() * 1e6))
            with trio.move_on_at(math.inf if due_us is None else due_us / 1e6):
                await self._drain_opened.wait()
            self._drain_opened = trio.Event()
            self._begin_turn()
            if due_us is not None and due_us <= self._dispatch.now_us:
                drains.check(self._dispatch.now_us)
                self._end_turn()

    async def _tell_suspects(self) -> None:
        """Suspect those whose connection has been gone for 300 ms, exactly then, and tell subscribers what has changed."""
        suspects = self._suspects
        while True:
            self._doubts_due_us = due_us = suspects.next_us
            with trio.move_on_at(math.inf if due_us is None else due_us / 1e6):
                await self._doubted.wait()
            self._doubted = trio.Event()
            self._begin_turn()
            suspects.wake(self._dispatch.now_us)
            for ready in self._subscriptions.publish_hints():
                self._send_all(ready)
                await trio.lowlevel.checkpoint()
            if self._subscriptions.late:
                self._late.set()
            self._doubts_due_us = suspects.next_us
            self._end_turn()

    async def _sweep(self) -> None:
        """Close connections that have used up the patience of the node, and forget who does not come back."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self._begin_turn()
            self._dispatch.drains.check(self._dispatch.now_us)
            now_us = self._sessions.now_us
            for link in list(self._channels):
                reason = overdue(link, now_us, self._limits)
                if reason is not None:
                    self._dispatch.refuse_link(link, "timeout", reason)
            self._end_turn()

    # --- the end ------------------------------------------------------------------------------------------------------------

    async def _finish_writes(self) -> None:
        try:
            await self._hand_over_writes()
            while self._dispatch.writes_pending:
                message = await self._mailbox.get()
                if not isinstance(message, LastRead):  # who is not read any more is not silent (rule E1)
                    await self._take_mail(message)
                await self._hand_over_writes()  # what the mail led to: the removals of a Goodbye, requests that were parked
        except Stopped:
            _log.warning("%d writes were not answered before the node stopped", self._dispatch.writes_pending)

    def _say_farewell(self) -> None:
        for link in list(self._channels):
            self._dispatch.refuse_link(link, "stopping", "this node is stopping")
        self._close_refused()
