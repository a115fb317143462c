"""Resync: the client names the leases that it believes in, and the node says where it knows better.

A heartbeat tells only that the two sides differ. Then the leases are named page by page, one page on its way at a time, and what
differs is repaired through the claims: nothing that both sides agree on is written again.

RS1  A page names leases that are held when it is put together; an answer about a lease counts only while that very lease is held.
RS2  A page is never larger than the node accepts, however long the names are.
RS3  What the node holds for this session and nobody here wants is removed, unless a claim for that id is on its way.
RS4  A resync that finds no difference is not begun again for a while: it would not find one then either, and each costs a message
     for 512 leases.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final

from .. import checks
from ..errors import Evicted, Invalid, RemoteProtocolError, Superseded
from ..messages import FRAME_BYTES_MAX_TO_NODE, PAGE_ITEMS_MAX, Refused, Resync, ResyncOk
from ..model import Lsn, ServiceKey
from .claims import Claim
from .outbox import Outbox
from .registrations import EXPIRED, Registrations

PAGE_BYTES_MAX: Final = FRAME_BYTES_MAX_TO_NODE - 4096
LEASE_BYTES: Final = 40
"""What a lease takes on the wire beside its names, at most."""
FRUITLESS_SECONDS: Final = 10.0
"""So long nothing is compared again after a comparison that found no difference (RS4)."""


class Resyncer:
    """The comparison that is under way, if there is one."""

    def __init__(self, outbox: Outbox, registrations: Registrations) -> None:
        self._outbox = outbox
        self._registrations = registrations
        self._rest: deque[Claim] = deque()  # claims that are still to be named
        self._named: dict[tuple[ServiceKey, str], Lsn] = {}  # by the page on its way
        self._request_id = 0  # of the page on its way, or 0
        self._found = False
        self._not_before = -math.inf

    def __repr__(self) -> str:
        return f"<Resyncer {'running' if self.running else 'idle'} rest={len(self._rest)}>"

    @property
    def running(self) -> bool:
        return self._request_id != 0

    def begin(self, now: float) -> None:
        """The two sides differ: find out where, unless that is being done already."""
        if self.running or now < self._not_before:
            return
        self._rest = deque(self._registrations.held())
        self._found = False
        self._send_page()

    def disconnected(self) -> None:
        """The connection is gone: the next heartbeat will tell whether there is still a difference."""
        self._request_id = 0
        self._rest.clear()
        self._named.clear()

    def _send_page(self) -> None:
        rows: list[list[Any]] = []
        size = 0
        self._named = {}
        while self._rest and len(rows) < PAGE_ITEMS_MAX:
            claim = self._rest[0]
            size += LEASE_BYTES + len(claim.service.namespace) + len(claim.service.name) + len(claim.instance_id)
            if size > PAGE_BYTES_MAX:
                break  # RS2
            self._rest.popleft()
            if claim.held:  # RS1
                rows.append([*claim.service, claim.instance_id, *claim.lease])
                self._named[claim.key] = claim.lease
        self._request_id = self._outbox.draw_id()
        self._outbox.send(Resync(rows, bool(self._rest)), self._request_id)

    def answered(self, request_id: int, message: ResyncOk | Refused, now: float) -> bool:
        """Take the answer to a page; False when it is not for ours. Raises `RemoteProtocolError` for names that cannot be."""
        if request_id != self._request_id:
            return False
        if isinstance(message, Refused):
            self.disconnected()
            return True
        self._request_id = 0
        for reason, rows in (
            (EXPIRED, message.unknown),
            (Superseded.reason, message.superseded),
            (Evicted.reason, message.evicted),
        ):
            for row in rows:
                self._found = True
                service, instance_id = _read_key(row)
                lease = self._named.get((service, instance_id))
                if lease is not None:
                    self._registrations.end_lease(service, instance_id, lease, reason)
        for row in message.extra:
            self._found = True
            self._registrations.disown(*_read_key(row), _read_lease(row))  # RS3
        if self._rest:
            self._send_page()
        elif not self._found:
            self._not_before = now + FRUITLESS_SECONDS  # RS4
        return True


def _read_key(row: Any) -> tuple[ServiceKey, str]:
    """`[namespace, service, instance id, …]`."""
    if type(row) is not list or len(row) < 3:
        raise RemoteProtocolError("a resync must name [namespace, service, instance id]")
    try:
        return checks.service(row[:2]), checks.instance_id(row[2])
    except Invalid as error:
        raise RemoteProtocolError(f"a resync names something that cannot be: {error}") from error


def _read_lease(row: list[Any]) -> Lsn:
    return checks.lsn(row[3:5])
