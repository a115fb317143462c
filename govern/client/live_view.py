"""A live view in the hands of its owner."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator

import trio

from ..model import Change, Instance, Lsn, ServiceKey
from .links import Links
from .views import Cursor


class LiveView:
    """The instances of one service, always current; while disconnected the last that was known, and `stale`.

    An instance that is up and whose program the node has not heard from just now shows as `suspect`; this comes as a change with an
    unchanged lsn.

    `async for change in view` gives what changed after the block was entered, or after the last change that was given. Changes that
    pile up behind a slow consumer are merged into one. The loop ends when the block is left. One loop at a time.
    """

    def __init__(self, links: Links, cursor: Cursor) -> None:
        self.closed = False
        self._links = links
        self._cursor = cursor
        self._iterator: weakref.ref[_Changes] | None = None

    def __repr__(self) -> str:
        return f"<LiveView {self._cursor.view}>"

    @property
    def service(self) -> ServiceKey:
        """The service that it is of."""
        return self._cursor.view.service

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Every instance, whatever its status, in the order of the ids."""
        return self._cursor.view.sorted_instances()

    def choose(self) -> Instance | None:
        """One instance to send a request to; None when there is none.

        Drawn by weight among those that are up; when there is none of these, among the suspect ones, then among all. An instance
        with weight 0 is not drawn while there is another in its place. Costs little: call it for every request.
        """
        return self._cursor.view.choice().pick(self._links.random)

    @property
    def lsn(self) -> Lsn:
        """Everything up to this lsn is in it; zero while the view comes from the cache."""
        return self._cursor.view.lsn

    @property
    def stale(self) -> bool:
        """Whether changes may be missing: the client is disconnected, the view comes from the cache, the node says that it is not up to
        date itself, or what it says lacks what it had before, as after a `reset`: then the list in hand is kept for four seconds, in which
        those who live come back."""
        return self._cursor.view.stale

    def __aiter__(self) -> AsyncIterator[Change]:
        if self._iterator is not None and self._iterator() is not None:
            raise RuntimeError(f"the view of {self.service} is iterated already: subscribe once more for a second consumer")
        changes = _Changes(self)
        self._iterator = weakref.ref(changes)
        return changes

    async def next_change(self) -> Change | None:
        """Wait for the next change; None when the block was left. Cancelling loses nothing."""
        await trio.lowlevel.checkpoint()
        while not self.closed and not self._links.cores.closed:
            change = self._cursor.take()
            if change is not None:
                return change
            await self._links.wait(self._cursor)
        return None


class _Changes:
    """One loop over a view."""

    def __init__(self, view: LiveView) -> None:
        self._view = view

    def __aiter__(self) -> _Changes:
        return self

    async def __anext__(self) -> Change:
        change = await self._view.next_change()
        if change is None:
            raise StopAsyncIteration
        return change
