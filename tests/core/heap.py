"""Height one: the cores of a node and of its clients without any trio, joined by a heap of single messages.

    python -m tests.core.heap --runs 100000 --jobs 2
    python -m tests.core.heap --seed N --verbose

Time is a number, and everything that will happen lies in one heap: a message arrives, a clock ticks, a batch becomes durable, a mail
between two cores is read. The runner moves one of them at a time.

Order and loss   A connection keeps the order of its messages in each direction, as TCP does, so inside of one nothing is lost, doubled by
                 the network or overtaken. Different connections have speeds of their own and overtake each other, also two of one client.
                 What breaks loses an end of what is on the way: a prefix of it still arrives, then each side notices, together or one
                 long after the other; meanwhile the client may have come back on its next connection. In some runs clients send
                 writes twice. A socket may take nothing for a while.
The store        A write goes through its steps one by one: the mail to the store, numbered, in the log, applied, the mail with the
                 outcomes. Mail is read in its order, late. The one mail that may be lost is the one that asks for a last read of silent
                 sessions: its sender does not wait for a mailbox that is full, and asks again after a second.
Crashes          The node may die between any two steps: it is killed so many steps after a random moment. Then everything is gone but
                 the log, and perhaps a prefix of the batch that was being written. It may stand still as well: then nothing moves in it,
                 and what arrives waits in the kernel.

H1  What was acknowledged is in the log of every later life.
H2  The state is the fold of the log, after every restart and at the end.
H3  A view is the committed list at its lsn, and its lsn goes back only with a full view.
H4  Expiry is proposed only for a session of which nothing arrived for nine tenths of its ttl, in time that the node lived.
H5  No request changes an instance twice for as long as that is there and its session is remembered (SE11).
H6  When the faults are over every client holds what it wants, under one lease, and sees what is there; nothing else is there.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
from collections.abc import Callable

import attrs

from govern.client.claims import Claim
from govern.client.core import ClientCore, HelloRefused, Phase
from govern.client.views import Cursor
from govern.core.entries import Op, RegisterOp, UpdateOp, unpack_entry
from govern.core.limits import Limits
from govern.core.links import Link, overdue
from govern.core.requests import Write
from govern.core.sessions import Silent, silence_us
from govern.core.shard import Outcome
from govern.errors import RemoteProtocolError, Unreachable
from govern.messages import FRAME_BYTES_MAX_TO_CLIENT, Deregister, Register, Update, build_message
from govern.model import Instance, Lsn, ServiceKey
from govern.net.frames import FrameReader

from .many import run_many
from .rig import Rig

SERVICES = (ServiceKey("default", "a"), ServiceKey("default", "b"))
IDS = ("one", "two", "three")
TICK_SECONDS = 0.1
FAULT_SECONDS = 6.0
HEALING_SECONDS = 30.0
TTL = 2.0


@attrs.define(eq=False)
class Connection:
    """One connection, as both sides see it."""

    client: Client
    link: Link
    seconds: float
    """What a message takes on the average."""
    open_at_client: bool = True
    open_at_node: bool = True
    up_at: float = 0.0
    """When the last message to the node arrives; the next one comes after it."""
    down_at: float = 0.0
    cut_at: float = math.inf
    """What arrives later than this is lost."""
    choked_until: float = 0.0


@attrs.define(eq=False)
class Client:
    """One client: its rules, its connection, what it wants and sees."""

    name: str
    session_id: bytes
    core: ClientCore
    connection: Connection | None = None
    claims: list[Claim] = attrs.field(factory=list)
    cursors: list[Cursor] = attrs.field(factory=list)
    seen: dict[ServiceKey, Lsn] = attrs.field(factory=dict)
    values: int = 0


class Run:
    """One run of a seed."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.log: list[tuple[int, int, int, Op]] = []
        self.views: dict[tuple[ServiceKey, Lsn], dict[str, Lsn]] = {}
        self.term = 0
        self.heard: dict[bytes, int] = {}
        self.steps = 0
        self.repeats = self.chance.random() < 0.3
        """Whether some writes arrive twice in this run."""
        self.counts = {"half open": 0, "overtaken": 0, "mail lost": 0, "choked": 0, "expired": 0}
        self._slow = self.chance.random() < 0.3
        """Whether messages and mail may take long in this run."""
        self._tick_count = 0
        self._lived_us = 0  # as this run counts it, whatever the sessions think
        self._tell = tell
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._pushed = 0
        self._batch: list[tuple[Write, tuple[int, int, int]]] = []
        self._busy = False
        self._changed_by: dict[tuple[ServiceKey, str], dict[tuple[bytes, int], None]] = {}
        self._mail_at = 0.0
        self._mails = 0
        self._life = 0
        self._dies_at_step = 0
        self._stalled_until = 0.0
        self._hold_us = self.chance.choice((0, 500_000, 4_000_000))
        self._hold_until_us = 0
        self._limits = Limits(
            history_ops_max=self.chance.choice((2, 8, 1000)),
            delta_ops_max=self.chance.choice((1, 100)),
            writes_pending_max=self.chance.choice((1, 10_000, 10_000)),
        )
        self.rig = Rig(self._limits)
        self.connections: dict[Link, Connection] = {}
        """Those that the node has."""
        self.clients = [self._make_client(number) for number in range(self.chance.randint(1, 4))]
        self._restart()

    def say(self, text: str) -> None:
        """Something happened."""
        if self._tell is not None:
            self._tell(f"{self.now:9.4f}  {text}")

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Let something happen then."""
        self._pushed += 1
        heapq.heappush(self._heap, (moment, self._pushed, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen later."""
        self.at(self.now + seconds, action)

    def play(self) -> None:
        """Faults, healing, judgement."""
        for client in self.clients:
            self._connect(client)
            self.after(self.chance.random(), lambda client=client: self._act(client))  # type: ignore[misc]
        self.after(self.chance.expovariate(1.0), self._break_something)
        self._tick()
        while self._heap and self._heap[0][0] < FAULT_SECONDS + HEALING_SECONDS:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            self.steps += 1
            if self.steps == self._dies_at_step:
                self._crash()
            if self.now > FAULT_SECONDS and self._tick_count % 5 == 0 and self._find_unconverged() is None:
                break
        problem = self._find_unconverged()
        assert problem is None, f"H6: {problem}"
        self._compare_with_fold()

    # --- the node ---------------------------------------------------------------------------------------------------------------

    def _restart(self) -> None:
        """A new life: everything is gone but the log."""
        self._life += 1
        self.term += 1
        lived_us = self.rig.sessions.now_us
        self.rig = Rig(self._limits, loaded=False)
        self.rig.sessions.now_us = lived_us
        self._changed_by.clear()
        for slot, term, seq, op in self.log:
            self._note_changed(op, self.rig.shard.apply(slot, term, seq, op))
        self.rig.shard.loaded = True
        self.rig.sessions.grant_grace()
        self._hold_until_us = lived_us + self._hold_us
        self._batch, self._busy, self._mails, self._mail_at = [], False, 0, 0.0
        self.heard.clear()
        self._compare_with_fold()

    def _crash(self) -> None:
        self.say("! the node dies")
        for connection in list(self.connections.values()):
            self._close_at_node(connection)
        self._restart()

    def _tick(self) -> None:
        """The lived clock, silence, timers."""
        self._tick_count += 1
        self.after(TICK_SECONDS, self._tick)
        if self.now >= self._stalled_until:
            rig = self.rig
            rig.sessions.now_us += round(TICK_SECONDS * 1e6)
            self._lived_us += round(TICK_SECONDS * 1e6)
            rig.dispatch.now_us = round(self.now * 1e6)
            if rig.sessions.now_us >= self._hold_until_us:
                self._expire()
            if rig.suspects.next_us is not None and rig.suspects.next_us <= rig.dispatch.now_us:
                rig.suspects.wake(rig.dispatch.now_us)
            rig.dispatch.drains.check(rig.dispatch.now_us)
            for connection in self.connections.values():
                if connection.choked_until <= self.now:
                    connection.link.unsent = b""
                reason = overdue(connection.link, rig.sessions.now_us, self._limits)
                if reason is not None:
                    rig.dispatch.refuse_link(connection.link, "timeout", reason)
            for _ in (*rig.subscriptions.publish_hints(), *rig.subscriptions.push_late(rig.dispatch.now_us)):
                pass
            self._flush()
        for client in self.clients:
            self._tick_client(client)

    def _expire(self) -> None:
        """The failure detector asks for a last read of the silent, by a mail that may be lost."""
        silent = self.rig.sessions.due(100)
        for changed_by in self._changed_by.values():
            for session_id, request_id in list(changed_by):
                if self.rig.sessions.get(session_id) is None:
                    del changed_by[session_id, request_id]
        if not silent:
            return
        if self.chance.random() < 0.1:
            self.counts["mail lost"] += 1
            return
        self._mail(lambda: self._read_last(silent))

    def _read_last(self, silent: list[Silent]) -> None:
        before = len(self.rig.dispatch.writes)
        self.rig.dispatch.propose_expiries(silent)
        for write in self.rig.dispatch.writes[before:]:
            held = unpack_entry(self.rig.shard.entries(write.op.service)[write.op.instance_id])
            heard_us = self.heard.get(held.session_id)
            if heard_us is not None:
                silence = self._lived_us - heard_us
                assert silence >= silence_us(held.ttl_ms), f"H4: {write.op} is proposed after {silence / 1e6} s"
                self.counts["expired"] += 1
        self._flush()

    def _begin_batch(self) -> None:
        """The store takes what waits, and numbers it."""
        if self._busy or not self.rig.dispatch.writes:
            return
        self._busy = True
        self._when_alive(self.now + self.chance.expovariate(200.0), self._number_batch)

    def _number_batch(self) -> None:
        """By now there may be more of it."""
        writes, self.rig.dispatch.writes[:] = list(self.rig.dispatch.writes), []
        self._batch = [(write, self.rig.shard.number(write.op, self.term)) for write in writes]
        self._when_alive(self.now + self.chance.expovariate(50.0), self._log_batch)

    def _log_batch(self) -> None:
        """A prefix of it is on the disk, or all."""
        if self.chance.random() < 0.02:
            count = self.chance.randrange(len(self._batch))
            self.log += [(*number, write.op) for write, number in self._batch[:count]]
            self._crash()
            return
        self.log += [(*number, write.op) for write, number in self._batch]
        self._when_alive(self.now, self._apply_batch)

    def _apply_batch(self) -> None:
        """All of it is applied, and the sessions are told by a mail; the next batch begins meanwhile."""
        results: list[tuple[Write, Outcome]] = []
        for write, number in self._batch:
            outcome = self.rig.shard.apply(*number, write.op)
            self.say(f"# {number} {type(write.op).__name__} {write.op.instance_id}: {type(outcome.answer).__name__}")
            self._note_changed(write.op, outcome)
            results.append((write, outcome))
        self._batch, self._busy = [], False
        for service in SERVICES:
            entries = self.rig.shard.entries(service)
            shown = {instance_id: unpack_entry(entry).lsn for instance_id, entry in entries.items()}
            self.views[service, self.rig.shard.service_lsn(service)] = shown
        self._mail(lambda: self._finish_batch(results))
        self._begin_batch()

    def _note_changed(self, op: Op, outcome: Outcome) -> None:
        """H5."""
        if outcome.changed is None:
            return
        key = (op.service, op.instance_id)
        if isinstance(op, RegisterOp | UpdateOp):
            changed_by = self._changed_by.setdefault(key, {})
            assert (op.session_id, op.request_id) not in changed_by, f"H5: {op} was carried out before"
            changed_by[op.session_id, op.request_id] = None
        else:
            self._changed_by.pop(key, None)

    def _finish_batch(self, results: list[tuple[Write, Outcome]]) -> None:
        """All of it is answered and published."""
        _, changed = self.rig.dispatch.finish(results)
        for _ in self.rig.subscriptions.publish(changed, self.rig.dispatch.now_us):
            pass
        self._flush()

    def _mail(self, read: Callable[[], None]) -> None:
        """A mail to the sessions of the node: read in its order, and late."""
        self._mails += 1
        self._mail_at = max(self._mail_at, self.now + self.chance.expovariate(5.0 if self._slow else 200.0))

        def take() -> None:
            self._mails -= 1
            self.rig.dispatch.now_us = round(self.now * 1e6)
            read()

        self._when_alive(self._mail_at, take)

    def _when_alive(self, moment: float, action: Callable[[], None]) -> None:
        """Then, if the node still lives; not while it is stalled."""
        life = self._life

        def act() -> None:
            if self._life == life:
                if self.now < self._stalled_until:
                    self._when_alive(self._stalled_until, action)
                else:
                    action()

        self.at(moment, act)

    def _flush(self) -> None:
        """What the node has said goes on its way, what is to be closed is closed, and what is to be written goes to the store."""
        for connection in self.connections.values():
            self._send_out(connection)
        for link in list(self.rig.dispatch.to_close):
            del self.rig.dispatch.to_close[link]
            if link in self.connections:
                self._close_at_node(self.connections[link])
        self.rig.dispatch.drains.answered.clear()
        self._begin_batch()

    def _send_out(self, connection: Connection) -> None:
        link = connection.link
        if not link.out or (link.unsent and link.closing is None):
            return
        frames = FrameReader(FRAME_BYTES_MAX_TO_CLIENT).feed(b"".join(link.out))
        link.out.clear()
        for raw in frames:
            connection.down_at = max(connection.down_at, self.now + self.chance.expovariate(1 / connection.seconds))
            self.at(connection.down_at, lambda raw=raw: self._arrive_at_client(connection, raw))  # type: ignore[misc]

    # --- the connection ---------------------------------------------------------------------------------------------------------

    def _connect(self, client: Client) -> None:
        if client.connection is None and client.core.phase is Phase.DOWN:
            slow = self._slow and self.now < FAULT_SECONDS and self.chance.random() < 0.5
            link = Link(client.name, "node", self.rig.sessions.now_us)
            client.connection = self.connections[link] = Connection(client, link, 0.2 if slow else 0.01)
            self.rig.gate.admit(link)
            client.core.dialled(self.now)
            self._collect(client)

    def _break(self, connection: Connection) -> None:
        """The network gives it up: a prefix of what is on the way still arrives. One side may notice long after the other."""
        self.say(f"! the connection of {connection.client.name} breaks")
        connection.cut_at = min(connection.cut_at, self.now + self.chance.choice((0.0, 1.0, 3.0)) * connection.seconds)
        soon, late = connection.cut_at, connection.cut_at + self.chance.choice((0.0, 0.0, self.chance.uniform(0.1, 3.0)))
        self.counts["half open"] += late > soon
        first = self.chance.random() < 0.5
        self.at(soon if first else late, lambda: self._close_at_client(connection))
        self._when_alive(late if first else soon, lambda: self._close_at_node(connection))

    def _close_at_node(self, connection: Connection) -> None:
        """The node is done with it; the client finds out behind everything that was sent to it."""
        if connection.open_at_node:
            self._send_out(connection)
            connection.open_at_node = False
            del self.connections[connection.link]
            self.rig.dispatch.closed(connection.link)
            self.at(max(self.now, connection.down_at), lambda: self._close_at_client(connection))
            self._flush()

    def _close_at_client(self, connection: Connection) -> None:
        """The client is done with it, and comes back on another one; the node finds out behind everything that was sent to it."""
        if not connection.open_at_client:
            return
        connection.open_at_client = False
        client = connection.client
        client.connection = None
        client.core.disconnected()
        away = self.chance.uniform(0.05, 1.0) if self.chance.random() < 0.8 else self.chance.uniform(1.5, 4.0)
        self.after(away, lambda: self._connect(client))
        if connection.cut_at == math.inf:
            self._when_alive(max(self.now, connection.up_at), lambda: self._close_at_node(connection))

    def _collect(self, client: Client) -> None:
        """What a client has said goes on its way."""
        frames, _ = client.core.outbox.take()
        connection = client.connection
        if connection is None:
            return
        for raw in FrameReader(FRAME_BYTES_MAX_TO_CLIENT).feed(b"".join(frames)):
            is_write = isinstance(build_message(raw), Register | Update | Deregister)
            for _ in range(1 + (self.repeats and is_write and self.chance.random() < 0.2)):
                connection.up_at = max(connection.up_at, self.now + self.chance.expovariate(1 / connection.seconds))
                moment = connection.up_at
                self.at(moment, lambda raw=raw, moment=moment: self._arrive_at_node(connection, raw, moment))  # type: ignore[misc]

    def _arrive_at_node(self, connection: Connection, raw: list[object], moment: float) -> None:
        """Lost behind the cut; in the kernel while the process stands still."""
        if not connection.open_at_node or moment > connection.cut_at:
            return
        if self.now < self._stalled_until:
            self.at(self._stalled_until, lambda: self._arrive_at_node(connection, raw, moment))
            return
        link = connection.link
        self.rig.dispatch.now_us = round(self.now * 1e6)
        was_open = link.closing is None
        self.rig.dispatch.receive(link, raw)
        if was_open and link.closing is None:  # a Hello that a later one has overtaken is refused, and proves nothing
            self.heard[connection.client.session_id] = self._lived_us
            self.counts["overtaken"] += connection.client.connection is not connection
        self._flush()

    def _arrive_at_client(self, connection: Connection, raw: list[object]) -> None:
        if not connection.open_at_client or self.now > connection.cut_at:
            return
        client = connection.client
        try:
            client.core.receive(raw, self.now)
        except (RemoteProtocolError, HelloRefused) as error:
            assert connection.link.closing is not None, error  # nothing else that a node says is a reason to leave it
            self._close_at_client(connection)
            return
        self._look(client)
        self._collect(client)

    # --- the clients ------------------------------------------------------------------------------------------------------------

    def _make_client(self, number: int) -> Client:
        session_id = bytes([number + 1]) * 16
        return Client(f"c{number}", session_id, ClientCore(session_id))

    def _tick_client(self, client: Client) -> None:
        if client.core.deadline <= self.now:
            try:
                client.core.tick(self.now)
            except Unreachable:
                assert client.connection is not None
                self._close_at_client(client.connection)
            self._collect(client)

    def _act(self, client: Client) -> None:
        """Register, change, leave, watch."""
        if self.now > FAULT_SECONDS:
            return
        self.after(self.chance.expovariate(2.0), lambda: self._act(client))
        living = [claim for claim in client.claims if claim.wanted is not None and not claim.over]
        registrations = client.core.registrations
        what = self.chance.random()
        service = self.chance.choice(SERVICES)
        if what < 0.4:
            instance_id = self.chance.choice(IDS)
            if all(claim.key != (service, instance_id) for claim in client.claims if not claim.over):
                client.claims.append(registrations.register(service, Instance(id=instance_id, host=client.name, port=1, ttl=TTL)))
        elif what < 0.6 and living:
            client.values += 1
            registrations.update(self.chance.choice(living), {"version": f"{client.name}/{client.values}"})
        elif what < 0.75 and living:
            registrations.leave(self.chance.choice(living))
        elif len(client.cursors) < 2:
            client.cursors.append(client.core.views.open(service))
        if client.core.connected:
            registrations.pump()
        self._collect(client)

    def _look(self, client: Client) -> None:
        """H3."""
        for cursor in client.cursors:
            view = cursor.view
            change = cursor.take()
            if change is None or not view.ready:
                continue
            known = self.views.get((view.service, view.lsn))
            shown = {instance.id: instance.lsn for instance in view.sorted_instances()}
            assert known is None or shown == known, f"H3: {client.name} sees {shown} at {view.lsn}, committed was {known}"
            before = client.seen.get(view.service)
            assert before is None or view.lsn >= before or change.full, f"H3: {view} went back from {before}"
            client.seen[view.service] = view.lsn

    # --- faults and judgement ---------------------------------------------------------------------------------------------------

    def _break_something(self) -> None:
        if self.now > FAULT_SECONDS:
            return
        self.after(self.chance.expovariate(1.0), self._break_something)
        what = self.chance.random()
        connection = self.chance.choice(self.clients).connection
        if what < 0.45:
            if connection is not None:
                self._break(connection)
        elif what < 0.55:
            if connection is not None and connection.open_at_node:
                self.counts["choked"] += 1
                connection.link.unsent, connection.choked_until = b"x", self.now + self.chance.uniform(0.1, 4.0)
        elif what < 0.75:
            self._stalled_until = self.now + self.chance.uniform(0.1, 4.0)
            self.say(f"! the node stalls until {self._stalled_until:.4f}")
        else:
            self._dies_at_step = self.steps + self.chance.randint(1, 30)

    def _compare_with_fold(self) -> None:
        """H1, H2: a shard that reads the log from its beginning has the state of the one that wrote it."""
        fold = Rig(self._limits, loaded=False)
        for slot, term, seq, op in self.log:
            fold.shard.apply(slot, term, seq, op)
        for service in SERVICES:
            assert self.rig.shard.entries(service) == fold.shard.entries(service), f"H2: {service} is not the fold of the log"
        for client in self.clients:
            for claim in client.claims:
                applied = max((seq for slot, _, seq, op in self.log if op.service == claim.service), default=0)
                assert claim.lease.seq <= applied, f"H1: {claim} was acknowledged and is not in the log"
        self.rig.validate()

    def _find_unconverged(self) -> str | None:
        """H6: the first thing that is not as it should be."""
        if self._busy or self._mails or self.rig.dispatch.writes or self.now < self._stalled_until:
            return "the store has not finished"
        there = {(key, instance_id): unpack_entry(entry) for key in SERVICES for instance_id, entry in self.rig.shard.entries(key).items()}
        for client in self.clients:
            if not client.core.connected or not client.core.registrations.settled:
                return f"{client.name} is not at rest"
            for claim in client.claims:
                if claim.wanted is not None and not claim.over:
                    found = there.pop(claim.key, None)
                    if found is None or (found.session_id, found.lease_id) != (client.session_id, claim.lease):
                        return f"{client.name} wants {claim}, there is {found}"
            for cursor in client.cursors:
                view, lsn = cursor.view, self.rig.shard.service_lsn(cursor.view.service)
                # What changes nothing moves the lsn of an empty service, and is not told to anybody.
                is_empty = not view.instances and not self.rig.shard.entries(view.service)
                if view.stale or (view.lsn != lsn and not is_empty):
                    return f"{client.name} sees {view}, the node is at {lsn}"
        return f"{there} is still there" if there else None


COUNTED = ("steps", "committed", "lives", "half open", "overtaken", "mail lost", "choked", "expired")


def failure_of(seed: int) -> str | None:
    """Run one seed; what broke, if anything did."""
    return summary_of(seed)[0]


def summary_of(seed: int) -> tuple[str | None, tuple[float, ...]]:
    """Run one seed; what broke, and what happened in it."""
    run = Run(seed)
    try:
        run.play()
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}; again: python -m tests.core.heap --seed {seed} --verbose", ()
    return None, (run.steps, len(run.log), run.term, *(run.counts[name] for name in COUNTED[3:]))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.core.heap", description="The cores alone, message by message.")
    parser.add_argument("--runs", type=int, default=1000, help="so many seeds (1000)")
    parser.add_argument("--jobs", type=int, default=1, help="in so many processes (1)")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--verbose", action="store_true", help="with --seed: print what happens")
    found = parser.parse_args()
    if found.seed is not None:
        Run(found.seed, print if found.verbose else None).play()
        return 0
    from tests.core.heap import summary_of as one  # under its own name: a pool cannot find `__main__`

    return 1 if run_many(one, COUNTED, range(found.runs), found.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
