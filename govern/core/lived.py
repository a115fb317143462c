"""The lived clock: time as this node really lived it (rule E1).

A process that was stopped, swapped out or starved wakes up with its clients' heartbeats unread in the kernel. If it measured their
silence with a real clock it would expire all of them. The lived clock advances only by ticks, every 100 ms, and by at most
250 ms per tick, so a stall of any length costs a client a quarter of a second.

L1  Nobody but `tick` moves it, and it never goes back.
L2  One tick adds at most `STEP_US_MAX`.
"""

from __future__ import annotations

from typing import Final

TICK_US: Final = 100_000
STEP_US_MAX: Final = 250_000
STALL_US: Final = 1_000_000


class LivedClock:
    """Integer microseconds since the node started, as lived."""

    def __init__(self, monotonic_us: int) -> None:
        self.now_us = 0
        self.stalls = 0
        self._ticked_at_us = monotonic_us

    def tick(self, monotonic_us: int) -> bool:
        """Advance; True when the tick came more than a second late, which means that this node itself was stalled."""
        passed_us = max(0, monotonic_us - self._ticked_at_us)
        self._ticked_at_us = max(self._ticked_at_us, monotonic_us)
        self.now_us += min(passed_us, STEP_US_MAX)
        stalled = passed_us > STALL_US
        self.stalls += stalled
        return stalled
