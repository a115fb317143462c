"""Who may be expired, and who must be: judged by what reached the machine of the node, not by what the node says.

The wire is tapped. For every session the checker knows when the last complete frame of it reached the node's machine, whether or not the
node's process looked at it then. Silence is measured in time in which the process was not paused, as the checker itself counts it: a node
that trusted another clock would measure more.

T26  Expiry is proposed only for a session that was silent for nine tenths of the ttl; what arrived while the node stood still counts. What
     a reset discards before it was read does not: TCP shows it to nobody.
T28  What an expiry removes is under the lease for which it was proposed (by the shadow's fold).
T30  A session that was silent for its ttl and `SLACK_SECONDS` holds nothing any more, if the node was not disturbed in that time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import attrs
import trio

from govern.core.entries import ExpireOp
from govern.core.sessions import Sessions, Silent, silence_us
from govern.messages import FRAME_BYTES_MAX_TO_CLIENT, Hello, build_message
from govern.net.frames import FrameReader
from govern.testing.scheduler import process
from govern.testing.world import World

from . import Violation
from .shadow import EPHEMERAL_FIELD, TTL_FIELD, Shadow

TOLERANCE_SECONDS = 0.6  # a tick that comes late counts a quarter of a second, and this checker looks each tenth
SLACK_SECONDS = 6.0  # four of hold after loading, one for a repeated proposal, and the commit
CLUSTER_SLACK_SECONDS = 7.0  # more, with several nodes: until there is a controller, a registration and a lease

DISCARDED = -1
"""In the place of the life of the machine that could hear it: what a session said last, or some of it, was never to be read."""


@attrs.define
class Wire:
    """One connection from a client: what arrived of the frame that is not complete, and whose it is."""

    reader: FrameReader
    session: bytes | None = None


class Expiry:
    """Listens to the wire between the clients and the nodes."""

    def __init__(self, world: World, shadow: Shadow, report: Callable[[Violation], None]) -> None:
        self._world = world
        self._shadow = shadow
        self._report = report
        self._wires: dict[int, Wire] = {}
        self._heard: dict[tuple[bytes, str], tuple[int, float, float]] = {}  # session, machine -> its boots, lived and virtual seconds
        self._paused: dict[str, float] = {}  # machine -> seconds for which it was paused, in all
        self._swept_at = 0.0
        self._quiet_since = 0.0
        self._excuses = 0
        world.network.taps.append(self._tap)

    @contextmanager
    def excused(self) -> Generator[None]:
        """While this lasts an expiry may be late: a node, its disk or the network is disturbed."""
        self._excuses += 1
        try:
            yield
        finally:
            self._excuses -= 1
            self._quiet_since = trio.current_time()

    def heard_at(self, session: bytes, machine: str = "node1") -> float | None:
        """When the last complete frame of a session reached a node, in virtual seconds."""
        heard = self._heard.get((session, machine))
        return None if heard is None else heard[2]

    @contextmanager
    def watch(self) -> Generator[None]:
        """Judge every proposal of an expiry, for the length of a run."""
        original = Sessions.expiries

        def expiries(silent: Iterable[Silent], limit: int) -> list[ExpireOp]:
            named = list(silent)
            for one in named:
                if one.final and one.session.stamp_us == one.stamp_us:
                    self._judge(one)
            return original(named, limit)

        setattr(Sessions, "expiries", staticmethod(expiries))  # noqa: B010 - replaced on purpose and put back
        try:
            yield
        finally:
            setattr(Sessions, "expiries", staticmethod(original))  # noqa: B010

    def _tap(self, source: str, target: str, number: int, data: bytes) -> None:
        machine, sender = self._world.machines.get(target), self._world.machines.get(source)
        if machine is None or machine.disk is None or (sender is not None and sender.disk is not None):
            return  # what nodes say to each other is no client's
        wire = self._wires.get(number)
        if wire is None:
            wire = self._wires[number] = Wire(FrameReader(FRAME_BYTES_MAX_TO_CLIENT))
        if not data and wire.session is not None and (wire.session, target) in self._heard:
            self._heard[wire.session, target] = (DISCARDED, *self._heard[wire.session, target][1:])
        for raw in wire.reader.feed(data):
            message = build_message(raw) if wire.session is None else None
            if isinstance(message, Hello):
                wire.session = message.session_id
            if wire.session is not None:
                self._heard[wire.session, target] = (machine.boots, self._lived(target), trio.current_time())

    def _lived(self, machine: str) -> float:
        """Virtual seconds without those in which the process of that machine stood still."""
        return trio.current_time() - self._paused.get(machine, 0.0)

    def _judge(self, silent: Silent) -> None:
        machine = self._world.machines[str(process.get())]
        heard = self._heard.get((silent.session.session_id, machine.name))
        if machine.node is None or heard is None or heard[0] != machine.boots:
            return
        silent_seconds = self._lived(machine.name) - heard[1]
        if silent_seconds < silence_us(silent.ttl_ms) / 1e6 - TOLERANCE_SECONDS:
            self._report(
                Violation(
                    f"26: {machine.name} proposes to expire {silent.session}, which it could hear {silent_seconds:.3f} lived seconds ago;"
                    f" its ttl is {silent.ttl_ms} ms"
                )
            )

    def sweep(self) -> None:
        """T30."""
        now = trio.current_time()
        for machine in self._world.machines.values():
            if machine.paused:
                self._paused[machine.name] = self._paused.get(machine.name, 0.0) + now - self._swept_at
        self._swept_at = now
        if self._excuses:
            return
        nodes = sum(machine.disk is not None for machine in self._world.machines.values())
        slack = SLACK_SECONDS + (CLUSTER_SLACK_SECONDS if nodes > 1 else 0.0)
        for key, held in self._shadow.held.items():
            if not held.client[EPHEMERAL_FIELD]:
                continue
            bound = held.client[TTL_FIELD] / 1000 + slack
            heard_at = self.heard_at(held.session, self._shadow.node_of(key[0]))
            since = max(self._quiet_since, 0.0 if heard_at is None else heard_at)
            if now - since > bound:
                raise Violation(f"30: {key} is held by a session that nobody has heard for {now - since:.1f} s; the bound is {bound:.1f} s")

    def end(self) -> None:
        """Nothing more than `sweep`."""
        self.sweep()
