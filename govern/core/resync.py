"""Resync: which of the leases that a client believes in are really held, and which are held that it does not know.

The digests of a heartbeat say only *that* the two sides differ. The client then names its leases, page by page, and each page is
answered with what it has to do: register again, give up, or remove what it no longer wants. What both sides agree on costs nothing
more, and nothing is written to the log for finding out.

Y1  Every lease of a page is judged against the committed state of that moment; no answer changes anything.
Y2  A lease that the session holds exactly as named is in no list. Any other is in exactly one of `unknown`, `superseded` and `evicted`.
Y3  `extra`, with the last page, holds only leases of the session that no page since the last `extra` has named.
Y4  What is remembered between two pages is bounded by the leases of the session.
"""

from __future__ import annotations

from typing import Any

from ..messages import PAGE_ITEMS_MAX, Resync, ResyncOk
from ..model import Lsn, ServiceKey
from .entries import unpack_entry
from .links import Link
from .sessions import Session
from .shard import Shard


def answer_resync(shard: Shard, link: Link, session: Session, page: Resync) -> ResyncOk:
    """Judge one page."""
    if len(link.named) > session.count:
        link.named = {key: None for key in link.named if session.lease(*key) is not None}  # Y4: some have ended since they were named
    unknown: list[list[str]] = []
    superseded: list[list[str]] = []
    evicted: list[list[str]] = []
    lists = {"unknown": unknown, "superseded": superseded, "evicted": evicted}
    for namespace, name, instance_id, term, seq in page.leases:
        service, lease_id = ServiceKey(namespace, name), Lsn(term, seq)
        held = session.lease(service, instance_id)
        if held is not None:
            link.named[service, instance_id] = None
            if held.lease_id == lease_id:
                continue
        lists[_judge(shard, session, service, instance_id, lease_id)].append([namespace, name, instance_id])
    extra: list[list[Any]] = []
    if not page.more:
        extra = _extra(session, link.named)
        link.named = {}
    return ResyncOk(unknown, superseded, evicted, extra)


def _judge(shard: Shard, session: Session, service: ServiceKey, instance_id: str, lease_id: Lsn) -> str:
    """What became of a lease that the session does not hold: as a registration with it as `prior` would be judged (rule SE7)."""
    if shard.is_barred(service, instance_id, session.session_id):
        return "evicted"
    entry = shard.entries(service).get(instance_id)
    held = None if entry is None else unpack_entry(entry)
    if held is not None and held.session_id != session.session_id and held.lease_id > lease_id:
        return "superseded"
    return "unknown"


def _extra(session: Session, named: dict[tuple[ServiceKey, str], None]) -> list[list[Any]]:
    extra: list[list[Any]] = []
    for service, instance_id, lease in session.leases():
        if (service, instance_id) not in named:
            extra.append([service.namespace, service.name, instance_id, *lease.lease_id])
            if len(extra) == PAGE_ITEMS_MAX:
                break
    return extra
