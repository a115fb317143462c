"""Services that something must not concern, and everything that a program sees of them meanwhile.

On each node one service is *calm*: it has one living instance, and nothing about it may change. Another one is *busy*: an instance comes
and goes all the time, and each coming and going has to be pushed, once and in order, to somebody else who watches it.

No view tells when it becomes stale. But what a client knows changes only inside a step of some task, and whoever could notice runs in a
later one: `Eyes` look after each step of each task of this event loop, so there is nothing that a program could have seen and they did not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final

import attrs
import trio

from govern.client import LiveView, Registry, connect
from govern.core.table import Table
from govern.model import Change, Instance, Status

from .cluster import Cluster, Watch, names_on
from .harness import PATIENCE_SECONDS, wait_until

CALM_PORT: Final = 1
BUSY_PORT: Final = 2
PAUSE_SECONDS: Final = 0.15
"""Short enough for a few changes in the second that an election takes at least."""
ELECTION_SECONDS_MAX: Final = 2.5
"""What is promised from the death of a controller to the next one."""
ELECTION_SECONDS_MIN: Final = 0.8
"""Nobody is elected sooner after the death of a controller: it was heard within 0.2 s before, and who heard one gives no vote for 1 s."""
LEASE_SECONDS: Final = 4.0
LEASE_LEFT_SECONDS: Final = 3.0
"""What is left of a node's lease when its controller dies, at least. It runs for 4 s from the sending of the last heartbeat that was
answered, and one is sent each half second: so it was half a second old, and another half is for an answer that came too late."""
STILL_SECONDS_MAX: Final = 0.4
"""For so long together the processes may have stood still, and there is still no reason for an election. A leader is heard each 0.2 s, and
given up after 1 s: what is left is 0.8 s, of which the half is for what cannot be measured from outside."""


@attrs.frozen
class Sight:
    """What a view showed from a moment on."""

    at: float
    service: str
    stale: bool
    instances: tuple[Instance, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{each.id} {each.status}" for each in self.instances) or "nothing"
        return f"{self.at:.3f} {self.service}: {shown}{', stale' if self.stale else ''}"


class Eyes(trio.abc.Instrument):
    """They see every change of some views, however short."""

    def __init__(self) -> None:
        self.sights: list[Sight] = []
        """In the order of time; of each view first what it showed in the beginning."""
        self._views: list[tuple[LiveView, Sight]] = []

    @contextmanager
    def on(self, views: Sequence[LiveView]) -> Iterator[None]:
        """They look at these for as long as the block lasts."""
        self._views = [(view, _look(view)) for view in views]
        self.sights += [sight for _, sight in self._views]
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)  # raises if trio took it away, as it does with one that failed

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Something may have changed."""
        for number, (view, last) in enumerate(self._views):
            if view.stale != last.stale or view.instances is not last.instances:
                sight = _look(view)
                self._views[number] = (view, sight)
                if (sight.stale, sight.instances) != (last.stale, last.instances):
                    self.sights.append(sight)

    def lists(self, service: str) -> list[tuple[Instance, ...]]:
        """All lists that a view showed, one after the other."""
        found: list[tuple[Instance, ...]] = []
        for sight in self.sights:
            if sight.service == service and found[-1:] != [sight.instances]:
                found.append(sight.instances)
        return found

    def stale_moments(self) -> list[Sight]:
        """Each moment in which a view was seen stale that was not before."""
        shown: dict[str, bool] = {}
        found = []
        for sight in self.sights:
            if sight.stale and not shown.get(sight.service):
                found.append(sight)
            shown[sight.service] = sight.stale
        return found


def _look(view: LiveView) -> Sight:
    return Sight(trio.current_time(), view.service.name, view.stale, view.instances)


class Undisturbed:
    """One calm and one busy service on each of some nodes."""

    def __init__(self, cluster: Cluster, table: Table, *, pause: float = PAUSE_SECONDS) -> None:
        """`pause` is the time between a going and the next coming."""
        self._cluster = cluster
        self._table = table
        self._pause = pause
        self._eyes = Eyes()
        self._calm: list[str] = []
        self._busy: list[str] = []
        self._rounds: dict[int, int] = {}  # of each node: how often an instance came and went
        self._changes: dict[int, list[tuple[float, float]]] = {}  # of each node: when one was asked for, and when it was pushed

    @asynccontextmanager
    async def watched(self, *node_ids: int) -> AsyncIterator[None]:
        """All is well on these nodes now, and has to stay so."""
        async with AsyncExitStack() as stack:
            owner, other = [await stack.enter_async_context(connect(self._cluster.where(*node_ids))) for _ in range(2)]
            calm: list[LiveView] = []
            busy: dict[int, LiveView] = {}
            for node_id in node_ids:
                name = names_on(self._table, node_id, 1, "calm")[0]
                await stack.enter_async_context(owner.register(name, port=CALM_PORT, ttl=2.0))
                calm.append(await stack.enter_async_context(other.subscribe(name)))
                busy[node_id] = await stack.enter_async_context(other.subscribe(names_on(self._table, node_id, 1, "busy")[0]))
            self._calm, self._busy = [view.service.name for view in calm], [view.service.name for view in busy.values()]
            self._rounds = dict.fromkeys(node_ids, 0)
            self._changes = {node_id: [] for node_id in node_ids}
            stack.enter_context(self._eyes.on([*calm, *busy.values()]))
            nursery = await stack.enter_async_context(trio.open_nursery())
            for view in calm:
                nursery.start_soon(self._expect_nothing, view)
            for node_id, view in busy.items():
                nursery.start_soon(self._come_and_go, node_id, owner, view)
            yield
            nursery.cancel_scope.cancel()
        self._check_lists()

    async def wait_rounds(self) -> None:
        """Wait until on each node an instance came, went, and once more did both."""
        enough = {node_id: rounds + 2 for node_id, rounds in self._rounds.items()}
        await wait_until(
            lambda: all(self._rounds[node_id] >= rounds for node_id, rounds in enough.items()), "registrations and pushes that go on"
        )

    async def wait_settled(self, watch: Watch, began: float, took: float) -> float:
        """There was no controller from `began` on for `took` seconds: wait until all is as before; the moment. When the election was
        so slow that the leases from before may end first, it is the new ones that count."""
        if took > ELECTION_SECONDS_MAX:
            await trio.sleep_until(began + LEASE_SECONDS)
        await wait_until(lambda: all(watch.says(node_id, "fresh") is True for node_id in self._rounds), "leases of the next controller")
        await self.wait_rounds()  # what these push comes to the client behind all that the node said of itself before
        return trio.current_time()

    async def _expect_nothing(self, view: LiveView) -> None:
        async for change in view:
            raise AssertionError(f"{view.service} changed: {change}")

    async def _come_and_go(self, node_id: int, owner: Registry, view: LiveView) -> None:
        lsn = view.lsn
        changes = self._changes[node_id]
        while True:
            began = trio.current_time()
            async with owner.register(view.service.name, port=BUSY_PORT) as registration:
                added = await self._next_push(view)
                changes.append((began, trio.current_time()))
                assert [(each.id, each.lease_id) for each in added.added] == [(registration.instance.id, registration.lease_id)], added
                assert (added.updated, added.removed) == ((), ()), added
                assert [each.port for each in await owner.lookup(view.service.name)] == [BUSY_PORT]
                began = trio.current_time()
            removed = await self._next_push(view)
            changes.append((began, trio.current_time()))
            assert removed.removed == (registration.instance.id,), removed
            assert (removed.added, removed.updated) == ((), ()), removed
            assert lsn < added.lsn < removed.lsn, (lsn, added, removed)
            lsn = removed.lsn
            self._rounds[node_id] += 1
            await trio.sleep(self._pause)

    async def _next_push(self, view: LiveView) -> Change:
        """What is pushed next. Whatever is pushed twice, or again, is the next one to somebody who waits for something else."""
        with trio.move_on_after(PATIENCE_SECONDS):
            change = await view.next_change()
            assert change is not None
            return change
        raise AssertionError(f"nothing was pushed of {view.service} within {PATIENCE_SECONDS:g} s, stale: {view.stale}")

    def slowest(self) -> float:
        """The longest time from a wish to its push, in seconds."""
        return max(pushed - asked for changes in self._changes.values() for asked, pushed in changes)

    # --- what was seen ----------------------------------------------------------------------------------------------------------------

    def _check_lists(self) -> None:
        """A calm view showed one list and no other, and a busy one its instance and none in turn."""
        for name in self._calm:
            assert self._ports(name) == [[CALM_PORT]], name
        for name in self._busy:
            ports = self._ports(name)
            assert ports == [[BUSY_PORT] * (turn % 2) for turn in range(len(ports))], (name, ports)
        assert all(each.status is Status.UP for sight in self._eyes.sights for each in sight.instances)

    def _ports(self, name: str) -> list[list[int]]:
        return [[each.port for each in shown] for shown in self._eyes.lists(name)]

    def check_never_stale(self) -> None:
        """No view was stale for a moment."""
        moments = self._eyes.stale_moments()
        assert not moments, [str(sight) for sight in moments]

    def check_without_controller(self, watch: Watch, began: float, took: float, settled: float) -> None:
        """There was no controller from `began` on, the next one after `took` seconds, and by `settled` all was as before (`wait_settled`).

        Views were not stale. There is one excuse: when the machine was so slow that the election took longer than is promised, the leases
        of the nodes may have ended before somebody was there to lend new ones. But no lease ends so soon after the death of who lent it,
        and none is missing when all is settled: what is seen stale earlier or later has no excuse.

        Changes were asked for and pushed on each node before anybody could be elected. By this whatever waits for a controller is found
        out, unless all stood still.
        """
        moments = [
            f"{sight} after {sight.at - began:.3f} s"
            for sight in self._eyes.stale_moments()
            if took <= ELECTION_SECONDS_MAX or not began + LEASE_LEFT_SECONDS <= sight.at <= settled
        ]
        assert not moments, (moments, f"the next controller after {took:.3f} s, all as before after {settled - began:.3f} s")
        until = began + ELECTION_SECONDS_MIN
        within = {node_id: sum(began <= asked and pushed <= until for asked, pushed in each) for node_id, each in self._changes.items()}
        still = watch.stood_still(began, *within)
        print(
            f"without a controller for {took:.2f} s, at first {within} changes by node, the slowest of all took {self.slowest():.3f} s; "
            f"all stood still for {still:.2f} s"
        )
        assert all(within.values()) or still >= STILL_SECONDS_MAX, within
