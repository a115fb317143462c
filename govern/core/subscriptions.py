"""Subscriptions: who wants to know what, and what each has been told.

A push is made from state, not taken from a queue. A subscriber is at one lsn of a service; what it is owed is everything after
that lsn, and nothing else has to be remembered for it, however slow it is. Subscribers at the same lsn, nearly always all of
them, share the same encoded bytes.

P1  `link.subscriptions[service]` is the lsn that the subscriber reaches when it has read all that was put out to it.
P2  A delta put out to a link starts exactly at that lsn; a whole view may replace anything.
P3  A link that cannot take bytes now, or was pushed to within the last 20 ms, is marked late, and gets one merged push later.
P4  Whatever is put out about a service that `ack_wanted` names asks for `Applied`; who is owed nothing gets an empty delta that asks.
P5  A link that has read all that was put out to it knows exactly the suspects of its services, but for changes on their way to it. Each
    push carries hints at the suspects it names, in the same bytes; a link that could not take a hint gets the whole view, once it can.
P6  What is put out to one link in one go is bounded; the rest is late, as if its socket were full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..messages import PAGE_ITEMS_MAX, Hint, encode, view_frames
from ..model import LSN_ZERO, Lsn, ServiceKey
from .limits import Limits
from .links import Link
from .shard import Shard
from .suspects import Suspects

Encoded = dict[Lsn | None, tuple[bytes | None, Lsn]]
"""What is put out about one service, by where a subscriber stands (None: anywhere, it gets the whole view), and where that leads to."""

SLICE_LINKS: int = 200
"""So many subscribers are pushed to before other work gets its turn."""


class Subscriptions:
    """All subscriptions of a node."""

    def __init__(self, shard: Shard, suspects: Suspects, limits: Limits) -> None:
        self.count = 0
        self.late: dict[Link, None] = {}
        self.ack_wanted: dict[ServiceKey, None] = {}  # services about which somebody waits for subscribers (P4, see `core.drains`)
        self._shard = shard
        self._suspects = suspects
        self._bytes_max = limits.unsent_bytes_max
        self._interval_us = round(limits.push_interval_seconds * 1e6)
        self._by_service: dict[ServiceKey, dict[Link, None]] = {}

    def add(self, link: Link, service: ServiceKey, lsn: Lsn) -> None:
        """The link is told every change of the service after `lsn`."""
        if service not in link.subscriptions:
            self.count += 1
        link.subscriptions[service] = lsn
        link.late.pop(service, None)
        link.astray.pop(service, None)
        self._by_service.setdefault(service, {})[link] = None

    def remove(self, link: Link, service: ServiceKey) -> None:
        """The link is told nothing of the service any more."""
        if link.subscriptions.pop(service, None) is None:
            return
        self.count -= 1
        link.late.pop(service, None)
        link.astray.pop(service, None)
        links = self._by_service[service]
        del links[link]
        if not links:
            del self._by_service[service]

    def remove_all(self, link: Link) -> None:
        """The link is gone."""
        for service in list(link.subscriptions):
            self.remove(link, service)
        self.late.pop(link, None)

    def links(self, service: ServiceKey) -> Iterable[Link]:
        """The connections that are told of that service."""
        return self._by_service.get(service, ())

    def subscribers(self, service: ServiceKey) -> int:
        return len(self._by_service.get(service, ()))

    def publish(self, services: Iterable[ServiceKey], now_us: int) -> Iterator[Sequence[Link]]:
        """Put the changes of these services out to their subscribers, slice by slice; each slice of links is to be sent before the next is
        asked for. Between slices anything may happen to state and subscriptions: every push is cut from the state of its moment."""
        ready: dict[Link, None] = {}
        for service in services:
            encoded: Encoded = {}
            for link in list(self._by_service.get(service, ())):
                if not self._push(link, service, encoded, now_us):
                    continue
                ready[link] = None
                if len(ready) >= SLICE_LINKS:
                    yield list(ready)
                    ready, encoded = {}, {}
        if ready:
            yield list(ready)

    def _push(self, link: Link, service: ServiceKey, encoded: Encoded, now_us: int) -> bool:
        since = link.subscriptions.get(service)
        if since is None:
            return False  # it unsubscribed or closed between two slices
        if (
            link.unsent or 0 < now_us - link.pushed_us < self._interval_us or self._is_full(link)
        ):  # P3; changes of one moment go out together
            self._note_late(link, service)
            return False
        return self._put_out(link, service, since, encoded, now_us)

    def _note_late(self, link: Link, service: ServiceKey) -> None:
        link.late[service] = None
        self.late[link] = None

    def _is_full(self, link: Link) -> bool:
        """Whether so much was put out to it already in this go that the rest has to wait until the socket has taken it (P6)."""
        return len(link.out) > 1 and sum(map(len, link.out)) > self._bytes_max

    def _put_out(self, link: Link, service: ServiceKey, since: Lsn, encoded: Encoded, now_us: int) -> bool:
        place = None if service in link.astray else since
        found = encoded.get(place)
        if found is None:
            found = encoded[place] = self._encode(service, place)
        data, lsn = found
        if data is None:
            return False
        link.out.append(data)
        link.astray.pop(service, None)
        link.subscriptions[service] = lsn  # P1
        link.pushed_us = now_us
        return True

    def _encode(self, service: ServiceKey, since: Lsn | None) -> tuple[bytes | None, Lsn]:
        ack = service in self.ack_wanted
        delta = None if since is None else self._shard.delta_since(service, since, ack)
        if since is None or delta is None:
            data = view_frames(self._shard.view_bodies(service), 0, ack)
            return data + self.hints(service), self._shard.service_lsn(service)
        return delta if delta[0] is None else (delta[0] + self.hints(service, since), delta[1])

    # --- hints --------------------------------------------------------------------------------------------------------------

    def hints(self, service: ServiceKey, since: Lsn = LSN_ZERO) -> bytes:
        """The frames that hint at the suspects of a service among what was written after `since`; they follow what names them (P5)."""
        return _hint_frames(service, self._suspects.of(service, since), on=True)

    def publish_hints(self) -> Iterator[Sequence[Link]]:
        """Tell subscribers whose instances became suspect, or are not any more; slice by slice like `publish`."""
        ready: dict[Link, None] = {}
        for service, instance_ids in self._suspects.take_changed():
            data = b""
            for link in list(self._by_service.get(service, ())):
                if service not in link.subscriptions:
                    continue
                if link.unsent or self._is_full(link):
                    self._note_late(link, service)
                    link.astray[service] = None
                    continue
                data = data or self._hint_changes(service, instance_ids)
                link.out.append(data)
                ready[link] = None
                if len(ready) >= SLICE_LINKS:
                    yield list(ready)
                    ready, data = {}, b""  # who is suspect may have changed meanwhile
        if ready:
            yield list(ready)

    def _hint_changes(self, service: ServiceKey, instance_ids: list[str]) -> bytes:
        on, off = self._suspects.split(service, instance_ids)
        return _hint_frames(service, on, on=True) + _hint_frames(service, off, on=False)

    def push_late(self, now_us: int) -> Iterator[Sequence[Link]]:
        """Put out what late links are owed, where they can take it and their 20 ms are over; slice by slice like `publish`."""
        ready: list[Link] = []
        encoded: dict[ServiceKey, Encoded] = {}
        for link in list(self.late):
            if link not in self.late or link.unsent or now_us - link.pushed_us < self._interval_us:
                continue
            del self.late[link]
            services, link.late = link.late, {}
            for service in services:
                if self._is_full(link):
                    self._note_late(link, service)
                else:
                    self._put_out(link, service, link.subscriptions[service], encoded.setdefault(service, {}), now_us)
            if link.out:
                ready.append(link)
            if len(ready) >= SLICE_LINKS:
                yield ready
                ready, encoded = [], {}
        if ready:
            yield ready

    def validate(self) -> None:
        """Assert that both directions of the index agree."""
        pairs = [(service, link) for service, links in self._by_service.items() for link in links]
        assert len(pairs) == self.count
        for service, link in pairs:
            assert service in link.subscriptions
            lsn = link.subscriptions[service]
            assert not lsn.seq or lsn <= self._shard.service_lsn(service), (service, link)  # seq 0 goes with the term in which it was held


def _hint_frames(service: ServiceKey, instance_ids: list[str], *, on: bool) -> bytes:
    pages = [instance_ids[start : start + PAGE_ITEMS_MAX] for start in range(0, len(instance_ids), PAGE_ITEMS_MAX)]
    return b"".join([encode(Hint(service, page, on)) for page in pages])
