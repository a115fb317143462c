"""The standing of one node in its cluster: its registration, its heartbeats and its lease.

A node asks the controller for its part, through any candidate, and then shows twice a second that it works. Each answer
lends it four seconds of certainty that nobody else has its slots. Without answers it goes on with what it holds, but cannot call it fresh.
What it holds follows from the table alone: `ownership`.

N6  The lease runs from the moment at which the answered heartbeat was sent, on the clock that counts suspended time. A candidate that does
    not answer for a second is left for another one; who is known to lead from now on is asked at once.
N8  Who is told that the controller does not know this life, or gave it up, has no lease and registers again.
P1  No heartbeat leaves while the disk hangs: a node whose log stands still does not claim to work. While the loop hangs there is
    none because nobody calls `tick`.

Times in microseconds: `now_us` for intervals, `boot_us` for leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from ..peer_messages import HEARTBEAT_LEASED, Member, NodeHeartbeat, NodeHeartbeatOk, NodeRegister, NodeRegistered

HEARTBEAT_US: Final = 500_000
REGISTER_US: Final = 250_000
"""Until a registration is sent again. It may have met a candidate that knew of no controller yet."""
REFUSED_US: Final = 1_000_000
"""The same, after a refusal: what it says is for people, and may end with time."""
ANSWER_US: Final = 1_000_000
"""A candidate that leaves us without an answer for so long is left for another one (N6)."""
AVOID_US: Final = 5_000_000
"""For so long it is not tried first again."""
LEASE_MS: Final = 4_000
UNSYNCED_MS_MAX: Final = 3_000
"""A log that waits for its disk for longer hangs (P1)."""
SENT_MAX: Final = 16
"""Heartbeats whose sending is remembered; an answer to an older one could not lend anything any more."""


@attrs.frozen(kw_only=True)
class Health:
    """What a heartbeat says of its node."""

    table_version: int = 0
    loop_lag_ms: int = 0
    unsynced_ms: int = 0
    sessions: int = 0
    instances: int = 0


class Standing:
    """One life of a node, as it stands with the controller."""

    def __init__(self, me: Member, boot_no: int, *, clients: str, peers: str, candidate: bool, volatile: bool) -> None:
        self.me = me
        self.boot_no = boot_no
        self.is_registered = False
        """Whether the controller, as far as we know, counts this life as a part of the cluster."""
        self.refusal: str | None = None
        """Why the last registration was refused, for people; it is repeated all the same."""
        self.newest_version = 0
        """The newest table version that an answer spoke of."""
        self.controller: int | None = None
        """Who answered as the controller last."""
        self._register = NodeRegister(me.node_id, me.disk_id, boot_no, 0, clients, peers, candidate, volatile)
        self._order: tuple[int, ...] = ()
        self._leader: int | None = None
        self._target: int | None = None
        self._avoided: dict[int, int] = {}  # candidate → until when
        self._asked_us: int | None = None  # since when the target owes an answer
        self._send_us = 0
        self._number = 0
        self._sent: dict[int, int] = {}  # number → boot time of sending
        self._lease_until_us = 0
        self._boot_us = 0  # the latest ever seen: the clock never goes back
        self._messages: list[tuple[int, NodeRegister | NodeHeartbeat]] = []

    def __repr__(self) -> str:
        state = "registered" if self.is_registered else f"refused: {self.refusal}" if self.refusal else "unregistered"
        return f"<Standing node {self.me.node_id} boot {self.boot_no} {state} asks={self._target}>"

    @property
    def deadline_us(self) -> int:
        """When `tick` has something to do next."""
        return self._send_us if self._asked_us is None else min(self._send_us, self._asked_us + ANSWER_US)

    def candidates(self, linked: Sequence[int], leader: int | None, now_us: int) -> None:
        """Whom it may ask now: the candidates that can be reached, oneself among them for a candidate, and who leads, if known. Called
        whenever one of that changes."""
        came = self._target not in linked
        if leader is not None and leader != self._leader:
            self._avoided.pop(leader, None)  # what it did not answer before it led says nothing of now (N6)
            self._asked_us = None if leader == self._target else self._asked_us
            came = True
        self._order, self._leader = tuple(linked), leader
        self._avoided = {node_id: until_us for node_id, until_us in self._avoided.items() if node_id in linked}
        before = self._target
        self._choose(now_us)
        if self._target != before or came:
            self._send_us = min(self._send_us, now_us)

    def tick(self, now_us: int, boot_us: int, health: Health) -> None:
        """Send what is due. A heartbeat counts as sent at `boot_us`."""
        self._see(boot_us)
        if self._asked_us is not None and now_us - self._asked_us >= ANSWER_US and self._target is not None:
            self._avoided[self._target] = now_us + AVOID_US
            self._asked_us = None  # whoever is asked next, be it the same again for want of another, has its own time to answer
            self._choose(now_us)
        if now_us < self._send_us:
            return
        self._send_us = now_us + (HEARTBEAT_US if self.is_registered else REFUSED_US if self.refusal else REGISTER_US)
        if self._target is None or (self.is_registered and health.unsynced_ms > UNSYNCED_MS_MAX):
            return  # P1
        if self._asked_us is None:
            self._asked_us = now_us
        if self.is_registered:
            self._send_heartbeat(self._target, health)
        else:
            self._messages.append((self._target, attrs.evolve(self._register, via=self._target)))

    def take_messages(self) -> list[tuple[int, NodeRegister | NodeHeartbeat]]:
        """What is to be sent, and to which candidate; it may be oneself."""
        taken, self._messages = self._messages, []
        return taken

    def registered(self, answer: NodeRegistered, now_us: int) -> None:
        """The answer to a registration; one for another life is ignored."""
        if not self._is_mine(answer):
            return
        self._asked_us = None
        if not answer.index:
            if not self.is_registered:
                self.refusal = answer.text
            return
        self.refusal = None
        self.newest_version = max(self.newest_version, answer.index)
        if not self.is_registered:
            self.is_registered = True
            self._sent.clear()
            self._send_us = now_us

    def heartbeat_ok(self, answer: NodeHeartbeatOk, now_us: int, boot_us: int) -> None:
        """The answer to a heartbeat; one for another life, or for a heartbeat that is not waited for, is ignored."""
        self._see(boot_us)
        if not self._is_mine(answer) or answer.number not in self._sent:
            return
        sent_us = self._sent[answer.number]
        self._sent = {number: at_us for number, at_us in self._sent.items() if number > answer.number}
        self._asked_us = None
        self.controller = answer.controller
        self.newest_version = max(self.newest_version, answer.table_version)
        if answer.code == HEARTBEAT_LEASED:
            self._lease_until_us = max(self._lease_until_us, sent_us + 1000 * min(answer.lease_ms, LEASE_MS))  # N6
            return
        self.is_registered, self._lease_until_us = False, 0  # N8
        self._sent.clear()
        self._send_us = now_us

    @property
    def lease_until_us(self) -> int:
        """Until when the lease holds, on the clock that counts suspended time; 0 without one."""
        return self._lease_until_us if self.is_registered else 0

    def _is_mine(self, answer: NodeRegistered | NodeHeartbeatOk) -> bool:
        return (answer.node_id, answer.disk_id, answer.boot_no) == (*self.me, self.boot_no)

    def _see(self, boot_us: int) -> None:
        self._boot_us = max(self._boot_us, boot_us)

    def _send_heartbeat(self, target: int, health: Health) -> None:
        self._number += 1
        self._sent[self._number] = self._boot_us
        if len(self._sent) > SENT_MAX:
            del self._sent[next(iter(self._sent))]
        me = self.me
        self._messages.append((target, NodeHeartbeat(me.node_id, me.disk_id, self.boot_no, target, self._number, *attrs.astuple(health))))

    def _choose(self, now_us: int) -> None:
        """The controller if it can be reached, else who is asked now, else the next in turn; who did not answer comes last."""
        leader = self._leader if self._leader is not None else self.controller
        start = self._order.index(self._target) if self._target in self._order else 0
        turn = self._order[start:] + self._order[:start]

        def rank(node_id: int) -> tuple[int, bool]:
            until_us = self._avoided.get(node_id, 0)
            return (until_us if until_us > now_us else 0, node_id != leader)

        best = min(turn, key=rank, default=None)
        if best != self._target:
            self._target, self._asked_us = best, None
