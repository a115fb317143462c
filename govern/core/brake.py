"""The mass brake: when most sessions fall silent together, the cause is more likely on the way to them than in them (rule E7).

A cut cable or a stalled switch looks to a node as if all its clients had died at once. Removing them would empty every view and take
down what still works. So expiries are held for a while, in plain sight, and then let go slowly. What really died goes in the end.

B1  Fewer than 50 dying sessions, or not more than half of all that hold instances, never engage it.
B2  A session that stays silent is held for at most ten seconds and the release of those before it, which takes five: each second a fifth
    of the longest queue there was.
B3  Nobody is held twice for one silence.
B4  A session that is heard again is forgotten here; only those still silent are let go, oldest first.

Times are lived time. Nothing is removed here: what `judge` lets pass is read once more and proposed, as without a brake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .sessions import Session, Silent

SESSIONS_MIN: Final = 50
WINDOW_US: Final = 5_000_000
HOLD_US: Final = 10_000_000
RELEASE_SECONDS: Final = 5
STEP_US_MAX: Final = 250_000


class Brake:
    """Holds the expiries of a node while it is engaged; `reason` says so."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.engaged_us: int | None = None  # since when
        self.releasing = False
        self._enabled = enabled
        self._held: dict[Session, Silent] = {}  # oldest first
        self._released: dict[Session, int] = {}  # let go, with the stamp they had (B3)
        self._passed: dict[Session, int] = {}  # let pass while not engaged, and when: the first ones of many
        self._dying = 0
        self._holders = 0
        self._rate = 0  # sessions a second
        self._credit_us = 0
        self._judged_us = 0

    @property
    def held(self) -> int:
        return len(self._held)

    def judge(self, named: Sequence[Silent], dying: Sequence[Session], holders: int, now_us: int) -> list[Silent]:
        """What may go on to its last read now. `named` are the silent of this moment, `dying` all that were silent for too long and end
        within the window, `holders` the number of sessions with instances. Those that are held pass as not final."""
        if not self._enabled:
            return list(named)
        passed_us, self._judged_us = min(now_us - self._judged_us, STEP_US_MAX), now_us
        self._forget(now_us)
        gone = sum(not session.count for session in self._passed)
        new = sum(self._released.get(session) != session.stamp_us for session in dying)
        self._dying, self._holders = new + gone, holders + gone
        many = self._dying >= SESSIONS_MIN and 2 * self._dying > self._holders  # B1
        if self.engaged_us is None:
            dead = [silent.session for silent in named if silent.final and not self._was_released(silent)]
            if not many or not dead:
                self._note_passed(dead, now_us)
                return list(named)
            self.engaged_us = now_us
        passing = [self._hold(silent) for silent in named]
        if not self.releasing and (not many or now_us - self.engaged_us >= HOLD_US):
            self.releasing = True
            self._held = {session: silent for session, silent in self._held.items() if session.stamp_us == silent.stamp_us}
        if self.releasing:
            passing.extend(self._release(passed_us))
        return passing

    def _note_passed(self, dead: Sequence[Session], now_us: int) -> None:
        for session in dead:
            self._passed.pop(session, None)
            self._passed[session] = now_us

    def _was_released(self, silent: Silent) -> bool:
        """Whether it was held once for this silence, and its removal only waits for the disk (B3)."""
        return self._released.get(silent.session) == silent.stamp_us

    def _forget(self, now_us: int) -> None:
        while self._passed:
            session, at_us = next(iter(self._passed.items()))
            if now_us - at_us < WINDOW_US:
                break
            del self._passed[session]
        if self._released and self.engaged_us is None:
            self._released = {
                session: stamp_us for session, stamp_us in self._released.items() if session.count and session.stamp_us == stamp_us
            }

    def _hold(self, silent: Silent) -> Silent:
        """Keep a dead one back, as suspect only; unless it was let go before (B3)."""
        session = silent.session
        if not silent.final or self._was_released(silent):
            return silent
        before = self._held.get(session)
        if before is not None and before.stamp_us != silent.stamp_us:
            del self._held[session]  # it was heard in between: to the end of the queue
        if before is None or before.stamp_us != silent.stamp_us or before.ttl_ms < silent.ttl_ms:
            self._held[session] = silent
        return silent._replace(final=False)

    def _release(self, passed_us: int) -> list[Silent]:
        """The next fifth of a second's share, and the end of it all when nobody is held any more."""
        self._rate = max(self._rate, -(-len(self._held) // RELEASE_SECONDS))  # B2: who joins late waits no longer than the others
        self._credit_us += self._rate * passed_us
        released: list[Silent] = []
        while self._held and self._credit_us >= 1_000_000:
            session = next(iter(self._held))
            silent = self._held.pop(session)
            if session.stamp_us == silent.stamp_us:  # B4
                self._credit_us -= 1_000_000
                self._released[session] = silent.stamp_us
                released.append(silent)
        if not self._held:
            self.engaged_us, self.releasing, self._rate, self._credit_us = None, False, 0, 0
            self._passed = {}
        return released

    @property
    def reason(self) -> str | None:
        """What to tell people while it is engaged."""
        if self.engaged_us is None:
            return None
        what = f"{self._dying} of {self._holders} sessions fell silent together"
        if self.releasing:
            return f"{what}: {len(self._held)} are still held, {self._rate} expire each second"
        left = (HOLD_US - (self._judged_us - self.engaged_us)) / 1e6
        return f"{what}: {len(self._held)} are held for {left:.0f} s at most, then a fifth of them expires each second"

    def validate(self) -> None:
        """Assert that it holds somebody only while it is engaged, and that what it remembers of time is in order."""
        if self.engaged_us is None:
            assert not self._held, self
            assert not self.releasing
            assert self._rate == self._credit_us == 0
        else:
            assert self.engaged_us <= self._judged_us
            assert bool(self._rate) <= self.releasing  # a rate is of a release
        assert all(silent.final and silent.session is session for session, silent in self._held.items())
        assert list(self._passed.values()) == sorted(self._passed.values())

    def __repr__(self) -> str:
        return f"<Brake {self.reason or 'open'}>"
