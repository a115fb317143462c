"""Links: what this node knows of one client connection, and when such a connection must go.

A link is plain state. Bytes come in as frames that the shell has cut out, bytes go out through `out`, which the shell sends and
empties; what the socket did not take waits in `unsent`, and a link with too much of it is not read any more.

K1  A link that has not said Hello within the limit is closed; when too many have not, the oldest of them is.
K2  A link whose frame stays incomplete, or whose socket takes nothing, or that says nothing, is closed after its limit.
K3  All these times are lived time: a node that was stalled does not blame its clients for it.
"""

from __future__ import annotations

from typing import Final

from ..model import Lsn, ServiceKey
from .limits import Limits
from .sessions import Session

SATURATED_US: Final = 500_000
SATURATED_US_MAX: Final = 10_000_000


class Link:
    """One client connection."""

    __slots__ = (
        "astray",
        "closing",
        "goodbye",
        "greeted",
        "heard_us",
        "late",
        "leaving",
        "local_host",
        "named",
        "opened_us",
        "out",
        "partial_since_us",
        "peer",
        "pushed_us",
        "session",
        "stalled_since_us",
        "subscriptions",
        "unsent",
        "who",
        "writes",
    )

    def __init__(self, peer: str, local_host: str, now_us: int) -> None:
        self.peer = peer
        self.local_host = local_host
        self.opened_us = now_us
        self.heard_us = now_us
        self.greeted = False
        self.who = ""
        self.session: Session | None = None
        self.out: list[bytes] = []
        self.unsent = b""
        self.partial_since_us: int | None = None  # an incomplete frame is waiting since then
        self.stalled_since_us: int | None = None  # the socket took nothing since then
        self.subscriptions: dict[ServiceKey, Lsn] = {}
        self.late: dict[ServiceKey, None] = {}  # changed, and not yet told
        self.astray: dict[ServiceKey, None] = {}  # late, and hints were left out: only a whole view sets it right
        self.pushed_us = -(1 << 62)
        self.named: dict[tuple[ServiceKey, str], None] = {}  # leases that the pages of a resync under way have named
        self.writes = 0  # operations asked for by this link and not yet answered
        self.leaving = False  # said Goodbye
        self.goodbye: int | None = None  # the request id of a Goodbye that waits for the writes before it
        self.closing: str | None = None  # why it is to be closed once `out` is sent

    def __repr__(self) -> str:
        return f"<Link {self.peer} {self.who or 'stranger'} {self.session} subscriptions={len(self.subscriptions)}>"


class Gate:
    """Counts strangers: connections that have not said Hello (K1)."""

    def __init__(self, limits: Limits) -> None:
        self._saturated_since_us: int | None = None
        self._saturated_until_us = 0
        self._limits = limits
        self._strangers: dict[Link, None] = {}  # oldest first
        self._by_host: dict[str, dict[Link, None]] = {}

    def __len__(self) -> int:
        return len(self._strangers)

    def admit(self, link: Link) -> Link | None:
        """Count a new connection in. Returns the stranger that has to go for it: the oldest of that host or of all, or None.

        The one that goes is counted out at once, so that of many admitted in one turn each names another one.
        """
        self._strangers[link] = None
        of_host = self._by_host.setdefault(link.peer, {})
        of_host[link] = None
        if len(of_host) > self._limits.handshakes_per_host_max:
            victim = next(iter(of_host))
        elif len(self._strangers) > self._limits.handshakes_max:
            victim = next(iter(self._strangers))
        else:
            return None
        self.forget(victim)
        return victim

    def note_full_accept(self, now_us: int) -> None:
        """A turn took as many connections as it may: others probably wait, healthy clients among them (rule E3)."""
        if now_us >= self._saturated_until_us:
            self._saturated_since_us = now_us
        self._saturated_until_us = now_us + SATURATED_US

    def is_saturated(self, now_us: int) -> bool:
        """Whether clients wait to be accepted. A flood of connections makes it true for a bounded time only: the dead must go at last."""
        if self._saturated_since_us is None or now_us >= self._saturated_until_us:
            return False
        return now_us - self._saturated_since_us < SATURATED_US_MAX

    def forget(self, link: Link) -> None:
        """The connection said Hello, or it is gone."""
        if link in self._strangers:
            del self._strangers[link]
            of_host = self._by_host[link.peer]
            del of_host[link]
            if not of_host:
                del self._by_host[link.peer]

    def validate(self) -> None:
        """Assert the limits of K1, and that both indexes name the same strangers in the same order."""
        assert len(self._strangers) <= self._limits.handshakes_max
        for host, of_host in self._by_host.items():
            assert 0 < len(of_host) <= self._limits.handshakes_per_host_max, host
            assert list(of_host) == [link for link in self._strangers if link.peer == host], host
        assert sum(map(len, self._by_host.values())) == len(self._strangers)
        assert not any(link.greeted for link in self._strangers)


def overdue(link: Link, now_us: int, limits: Limits) -> str | None:
    """Why this link has to be closed now, or None (K1, K2, K3)."""
    if not link.greeted and now_us - link.opened_us > limits.handshake_seconds_max * 1e6:
        return "no Hello in time"
    unread = len(link.unsent) > limits.unsent_bytes_max  # then this node does not listen, and silence or half a frame say nothing
    if not unread and link.partial_since_us is not None and now_us - link.partial_since_us > limits.partial_frame_seconds_max * 1e6:
        return "a frame was not finished in time"
    if link.stalled_since_us is not None and now_us - link.stalled_since_us > limits.send_stall_seconds_max * 1e6:
        return "nothing was read from this connection for too long"
    if not unread and now_us - link.heard_us > limits.idle_seconds_max * 1e6:
        return "no heartbeat in time"
    return None
