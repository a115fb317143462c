"""Who may be expired, and who must be: judged by what reached the machine of the node, not by what the node says.

The wire is tapped. For every session the checker knows the lived time of the node at which the last complete frame of it reached the
node's machine, whether or not the node's process looked at it then. Lived time is the node's own (it stands nearly still while the node
is stalled), which is the measure that the promise is made in.

T26  Expiry is proposed only for a session that was silent for nine tenths of the ttl; what arrived while the node stood still counts.
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

SLACK_SECONDS = 6.0  # four of hold after loading, one for a repeated proposal, and the commit


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
        self._heard: dict[bytes, tuple[str, int, int, float]] = {}  # session -> machine, its boots, lived time there, virtual time
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

    def heard_at(self, session: bytes) -> float | None:
        """When the last complete frame of a session reached a node, in virtual seconds."""
        heard = self._heard.get(session)
        return None if heard is None else heard[3]

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
        machine = self._world.machines.get(target)
        if machine is None or machine.disk is None:
            return
        wire = self._wires.get(number)
        if wire is None:
            wire = self._wires[number] = Wire(FrameReader(FRAME_BYTES_MAX_TO_CLIENT))
        for raw in wire.reader.feed(data):
            message = build_message(raw) if wire.session is None else None
            if isinstance(message, Hello):
                wire.session = message.session_id
            if wire.session is not None:
                lived_us = 0 if machine.node is None else machine.node._sessions.now_us
                self._heard[wire.session] = (target, machine.boots, lived_us, trio.current_time())

    def _judge(self, silent: Silent) -> None:
        machine = self._world.machines[str(process.get())]
        heard = self._heard.get(silent.session.session_id)
        if machine.node is None or heard is None or heard[:2] != (machine.name, machine.boots):
            return
        lived_us = machine.node._sessions.now_us - heard[2]
        if lived_us < silence_us(silent.ttl_ms):
            self._report(
                Violation(
                    f"26: {machine.name} proposes to expire {silent.session}, which it could hear {lived_us / 1e6:.3f} lived seconds ago;"
                    f" its ttl is {silent.ttl_ms} ms"
                )
            )

    def step(self) -> None:
        """Nothing: proposals are judged when they are made."""

    def sweep(self) -> None:
        """T30."""
        now = trio.current_time()
        if self._excuses:
            return
        for key, held in self._shadow.held.items():
            if not held.client[EPHEMERAL_FIELD]:
                continue
            bound = held.client[TTL_FIELD] / 1000 + SLACK_SECONDS
            heard_at = self.heard_at(held.session)
            since = max(self._quiet_since, 0.0 if heard_at is None else heard_at)
            if now - since > bound:
                raise Violation(f"30: {key} is held by a session that nobody has heard for {now - since:.1f} s; the bound is {bound:.1f} s")

    def end(self) -> None:
        """Nothing more than `sweep`."""
        self.sweep()
