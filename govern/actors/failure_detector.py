"""The failure detector: turns the lived clock, and names the sessions that have been silent for too long.

It removes nothing. A silent session is read once more, then its expiry is proposed to the store, and the log decides (E4).

E1  The lived clock moves here and nowhere else, every 100 ms, by at most 250 ms.
E3  Nobody is named while the node is loading or without a valid lease, in the first four seconds after either (clients may still be in
    their reconnect backoff), in the two seconds after a stall of the node, or while connections wait to be accepted (ten seconds at most).
E5  When the node has loaded, every session starts with full grace.
E7  When most sessions fall silent together, the brake (`core.brake`) decides who of the silent goes on to the last read, and when.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from ..core.brake import WINDOW_US, Brake
from ..core.links import Gate
from ..core.lived import TICK_US, LivedClock
from ..core.ownership import Ownership
from ..core.sessions import Sessions, Silent
from ..core.shard import Shard
from ..environment import Clock
from .mail import LastRead, SessionsMail
from .runtime import Mailbox, MailboxFull

READY_HOLD_US: Final = 4_000_000
STALL_HOLD_US: Final = 2_000_000
NAMED_PER_TICK_MAX: Final = 2048
LAG_DECAY: Final = 0.9  # per tick: a tenth is left after two seconds

_log = logging.getLogger(__name__)


class FailureDetector:
    """The actor that owns the deadlines of sessions."""

    def __init__(
        self,
        *,
        shard: Shard,
        sessions: Sessions,
        ownership: Ownership,
        clock: Clock,
        gate: Gate,
        brake: Brake,
        sessions_mailbox: Mailbox[SessionsMail],
    ) -> None:
        self.loop_lag_ms = 0.0  # how late ticks come: the worst of late, fading within a few seconds
        self.lived: LivedClock | None = None
        self._shard = shard
        self._sessions = sessions
        self._ownership = ownership
        self._clock = clock
        self._gate = gate
        self._brake = brake
        self._sessions_mailbox = sessions_mailbox
        self._hold_until_us = 0
        self._ready = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Tick until cancelled."""
        due_us = round(trio.current_time() * 1e6)
        self.lived = LivedClock(due_us)
        task_status.started()
        while True:
            due_us += TICK_US
            await trio.sleep_until(due_us / 1e6)
            now_us = round(trio.current_time() * 1e6)
            self.loop_lag_ms = max((now_us - due_us) / 1000, self.loop_lag_ms * LAG_DECAY)
            self._tick(self.lived, now_us)
            due_us = max(due_us, now_us - TICK_US)  # after a stall, no burst of ticks that would add nothing

    def _tick(self, lived: LivedClock, now_us: int) -> None:
        stalled = lived.tick(now_us)
        sessions = self._sessions
        sessions.now_us = lived.now_us
        if stalled:
            _log.warning("this node was stalled for more than a second: nothing expires for the next two")
            self._hold_until_us = max(self._hold_until_us, lived.now_us + STALL_HOLD_US)
        if not self._shard.loaded:
            return
        if not self._ready:
            self._ready = True
            sessions.grant_grace()  # E5
            self._hold_until_us = lived.now_us + READY_HOLD_US
        if not self._ownership.is_fresh(self._clock.boot_us()):
            self._hold_until_us = max(self._hold_until_us, lived.now_us + READY_HOLD_US)
        if lived.now_us < self._hold_until_us or self._gate.is_saturated(lived.now_us):  # E3
            return
        silent = self._judge(sessions.due(NAMED_PER_TICK_MAX))
        if silent:
            try:
                self._sessions_mailbox.post(LastRead(silent))
            except MailboxFull:
                _log.warning("the sessions are too busy for a last read: %d silent sessions wait another second", len(silent))

    def _judge(self, named: list[Silent]) -> list[Silent]:
        """Let the brake hold back whom it will (E7), and say when it is put on and taken off."""
        brake, sessions = self._brake, self._sessions
        if brake.engaged_us is None and not any(silent.final for silent in named):
            return named
        before = (brake.engaged_us, brake.releasing)
        passing = brake.judge(named, sessions.dying(WINDOW_US), sessions.holders, sessions.now_us)
        if (brake.engaged_us, brake.releasing) != before:
            _log.warning("the brake on expiries: %s", brake.reason or "nobody is held any more")
        return passing
