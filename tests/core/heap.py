"""Height one: the cores of a node and of its clients without any trio, joined by a heap of single messages.

    python -m tests.core.heap --runs 100000 --jobs 2
    python -m tests.core.heap --seed N --verbose

Time is a number, and everything that will happen lies in one heap: a message arrives, a clock ticks, a batch becomes durable. A
connection keeps the order of its messages; when it breaks, all that is on the way is lost, and in some runs writes arrive twice. A
write goes through the steps of the store one by one (numbered, in the log, applied and answered), and the node may die between any two;
then everything is gone but the log.

H1  What was acknowledged is in the log of every later life.
H2  The state is the fold of the log, after every restart and at the end.
H3  A view is the committed list at its lsn, and its lsn goes back only with a full view.
H4  Expiry is proposed only for a session of which nothing arrived for nine tenths of its ttl, in time that the node lived.
H5  When the faults are over every client holds what it wants, under one lease, and sees what is there; nothing else is there.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import random
import sys
from collections.abc import Callable

import attrs

from govern.client.claims import Claim
from govern.client.core import ClientCore, Phase
from govern.client.views import Cursor
from govern.core.dispatch import Write
from govern.core.entries import Op, unpack_entry
from govern.core.limits import Limits
from govern.core.links import Link
from govern.core.sessions import silence_us
from govern.core.shard import Outcome
from govern.errors import Unreachable
from govern.messages import FRAME_BYTES_MAX_TO_CLIENT, Deregister, Register, Update, build_message
from govern.model import Instance, Lsn, ServiceKey
from govern.net.frames import FrameReader

from .rig import Rig

SERVICES = (ServiceKey("default", "a"), ServiceKey("default", "b"))
IDS = ("one", "two", "three")
TICK_SECONDS = 0.1
FAULT_SECONDS = 6.0
HEALING_SECONDS = 30.0
HOLD_US = 4_000_000
TTL = 2.0


@attrs.define(eq=False)
class Client:
    """One client: its rules, its connection, what it wants and sees."""

    name: str
    session_id: bytes
    core: ClientCore
    link: Link | None = None
    connection: int = 0
    arrives_at: float = 0.0
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
        self._tick_count = 0
        self._lived_us = 0  # as this run counts it, whatever the sessions think
        self._tell = tell
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._pushed = 0
        self._batch: list[tuple[Write, tuple[int, int, int]]] = []
        self._busy = False
        self._life = 0
        self._stalled_until = 0.0
        self._hold_until_us = 0
        self._limits = Limits(history_ops_max=self.chance.choice((2, 8, 1000)), delta_ops_max=self.chance.choice((1, 100)))
        self.rig = Rig(self._limits)
        self.clients = [self._make_client(number) for number in range(self.chance.randint(1, 4))]
        self._restart()

    def say(self, text: str) -> None:
        """Something happened."""
        if self._tell is not None:
            self._tell(f"{self.now:9.4f}  {text}")

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen later."""
        self._pushed += 1
        heapq.heappush(self._heap, (self.now + seconds, self._pushed, action))

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
            if self.now > FAULT_SECONDS and self._tick_count % 5 == 0 and self._find_unconverged() is None:
                break
        problem = self._find_unconverged()
        assert problem is None, f"H5: {problem}"
        self._compare_with_fold()

    # --- the node ---------------------------------------------------------------------------------------------------------------

    def _restart(self) -> None:
        """A new life: everything is gone but the log."""
        self._life += 1
        self.term += 1
        lived_us = self.rig.sessions.now_us
        self.rig = Rig(self._limits, loaded=False)
        self.rig.sessions.now_us = lived_us
        for slot, term, seq, op in self.log:
            self.rig.shard.apply(slot, term, seq, op)
        self.rig.shard.loaded = True
        self.rig.sessions.grant_grace()
        self._hold_until_us = lived_us + HOLD_US
        self._batch, self._busy = [], False
        self.heard.clear()
        self._compare_with_fold()

    def _crash(self) -> None:
        self.say("! the node dies")
        for client in self.clients:
            self._disconnect(client)
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
            for _ in (*rig.subscriptions.publish_hints(), *rig.subscriptions.push_late(rig.dispatch.now_us)):
                pass
            self._flush()
        for client in self.clients:
            self._tick_client(client)

    def _expire(self) -> None:
        silent = self.rig.sessions.due(100)
        for one in silent:
            heard_us = self.heard.get(one.session.session_id)
            if one.final and one.session.stamp_us == one.stamp_us and heard_us is not None:
                silence = self._lived_us - heard_us
                assert silence >= silence_us(one.ttl_ms), f"H4: {one.session} is given up after {silence / 1e6} s"
        self.rig.dispatch.propose_expiries(silent)

    def _begin_batch(self) -> None:
        """The store takes what waits, and numbers it."""
        if self._busy or not self.rig.dispatch.writes:
            return
        self._busy = True
        writes, self.rig.dispatch.writes[:] = list(self.rig.dispatch.writes), []
        self._batch = [(write, self.rig.shard.number(write.op, self.term)) for write in writes]
        self._when_alive(self.chance.expovariate(50.0), self._log_batch)

    def _log_batch(self) -> None:
        """A prefix of it is on the disk, or all."""
        if self.chance.random() < 0.02:
            count = self.chance.randrange(len(self._batch))
            self.log += [(*number, write.op) for write, number in self._batch[:count]]
            self._crash()
            return
        self.log += [(*number, write.op) for write, number in self._batch]
        if self.chance.random() < 0.02:
            self._crash()
            return
        self._when_alive(0.0, self._apply_batch)

    def _apply_batch(self) -> None:
        """All of it is applied, answered and published."""
        results: list[tuple[Write, Outcome]] = []
        for write, number in self._batch:
            outcome = self.rig.shard.apply(*number, write.op)
            self.say(f"# {number} {type(write.op).__name__} {write.op.instance_id}: {type(outcome.answer).__name__}")
            results.append((write, outcome))
        self._batch, self._busy = [], False
        _, changed = self.rig.dispatch.finish(results)
        for _ in self.rig.subscriptions.publish(changed, self.rig.dispatch.now_us):
            pass
        for service in SERVICES:
            entries = self.rig.shard.entries(service)
            shown = {instance_id: unpack_entry(entry).lsn for instance_id, entry in entries.items()}
            self.views[service, self.rig.shard.service_lsn(service)] = shown
        self._flush()

    def _when_alive(self, seconds: float, action: Callable[[], None]) -> None:
        """Later, if the node still lives; not while it is stalled."""
        life = self._life

        def act() -> None:
            if self._life == life:
                if self.now < self._stalled_until:
                    self._when_alive(self._stalled_until - self.now, action)
                else:
                    action()

        self.after(seconds, act)

    def _flush(self) -> None:
        """Everything that the node has said goes on its way, and what is to be written to the store."""
        for client in self.clients:
            link = client.link
            if link is not None and link.out:
                frames = FrameReader(FRAME_BYTES_MAX_TO_CLIENT).feed(b"".join(link.out))
                link.out.clear()
                for raw in frames:
                    self._send(client, lambda client=client, raw=raw: self._arrive_at_client(client, raw))  # type: ignore[misc]
        self._begin_batch()

    # --- the connection ---------------------------------------------------------------------------------------------------------

    def _send(self, client: Client, action: Callable[[], None]) -> None:
        """One message, behind those that were sent before it, lost when the connection breaks."""
        connection = client.connection
        client.arrives_at = max(client.arrives_at, self.now + self.chance.expovariate(100.0))

        def arrive() -> None:
            if client.connection == connection and client.link is not None:
                action()

        self.after(client.arrives_at - self.now, arrive)

    def _connect(self, client: Client) -> None:
        if client.link is None and client.core.phase is Phase.DOWN:
            client.connection += 1
            client.link = Link(client.name, "node", self.rig.sessions.now_us)
            self.rig.gate.admit(client.link)
            client.core.dialled(self.now)
            self._collect(client)

    def _disconnect(self, client: Client) -> None:
        if client.link is None:
            return
        self.say(f"! the connection of {client.name} breaks")
        self.rig.dispatch.closed(client.link)
        client.link = None
        client.connection += 1
        client.core.disconnected()
        self.after(self.chance.uniform(0.05, 1.0), lambda: self._connect(client))

    def _collect(self, client: Client) -> None:
        """What a client has said goes on its way."""
        frames, _ = client.core.outbox.take()
        for raw in FrameReader(FRAME_BYTES_MAX_TO_CLIENT).feed(b"".join(frames)):
            is_write = isinstance(build_message(raw), Register | Update | Deregister)
            for _ in range(1 + (self.repeats and is_write and self.chance.random() < 0.2)):
                self._send(client, lambda raw=raw: self._arrive_at_node(client, raw))  # type: ignore[misc]

    def _arrive_at_node(self, client: Client, raw: list[object]) -> None:
        if self.now < self._stalled_until:  # in the kernel of a machine whose process stands still
            connection = client.connection
            wait = self._stalled_until - self.now
            self.after(wait, lambda: self._arrive_at_node(client, raw) if client.connection == connection else None)
            return
        assert client.link is not None
        self.rig.dispatch.now_us = round(self.now * 1e6)
        self.heard[client.session_id] = self._lived_us
        self.rig.dispatch.receive(client.link, raw)
        refused = client.link.closing
        self._flush()
        if refused:
            self._disconnect(client)

    def _arrive_at_client(self, client: Client, raw: list[object]) -> None:
        client.core.receive(raw, self.now)
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
                self._disconnect(client)
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
        if what < 0.5:
            self._disconnect(self.chance.choice(self.clients))
        elif what < 0.75:
            self._stalled_until = self.now + self.chance.uniform(0.1, 4.0)
            self.say(f"! the node stalls until {self._stalled_until:.4f}")
        else:
            self._crash()

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
        """H5: the first thing that is not as it should be."""
        if self._busy or self.rig.dispatch.writes or self.now < self._stalled_until:
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


def failure_of(seed: int) -> str | None:
    """Run one seed; what broke, if anything did."""
    try:
        Run(seed).play()
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}; again: python -m tests.core.heap --seed {seed} --verbose"
    return None


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
    with multiprocessing.get_context("spawn").Pool(found.jobs) as pool:
        from tests.core.heap import failure_of as run  # under its own name: a pool cannot find `__main__`

        failed = 0
        for number, failure in enumerate(pool.imap_unordered(run, range(found.runs), chunksize=50), 1):
            if failure is not None:
                failed += 1
                print(failure, flush=True)
            if number % max(1, found.runs // 10) == 0:
                print(f"{number}/{found.runs} runs, {failed} failed", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
