"""Disks that rot, that are put back to an earlier image, and that lie about a sync: what a registry of one node does then.

It has no second copy, so nothing brings back what is gone. What holds all the same, and is shown here with whole nodes and clients:

* nothing rots silently: a node starts with exactly what is proven, or it does not start and says in one line what to do;
* `--salvage` keeps every record before the damage;
* of two snapshots the older one serves with the log behind it;
* programs that run come back to the registry by themselves, and callers end with the list that the node has. No caller is shown an empty
  list at any time: what it knows stays until somebody knows better.

What is lost in silence, and why: the last batch of the log may be torn by a crash, so damage to it looks the same; what was acknowledged in
it is gone. After a rollback, an update that came later than the image is gone, because programs compare leases and not values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import attrs
import pytest
import trio

import govern
from govern.client.live_view import LiveView
from govern.client.registration import Registration
from govern.core.entries import unpack_entry, unpack_op
from govern.core.limits import Limits
from govern.core.sessions import Sessions
from govern.core.shard import Shard
from govern.environment import Environment
from govern.errors import StorageError
from govern.model import ServiceKey
from govern.storage.directory import IDENTITY_NAME
from govern.storage.format import (
    SEGMENT_HEADER_BYTES,
    Batch,
    batch_seed,
    decode_identity,
    decode_records,
    read_batch,
    segment_name,
    segment_number,
)
from govern.storage.salvage import SalvageReport, salvage
from govern.storage.sim import SimStorage
from govern.storage.snapshots import snapshot_number
from govern.testing import simulate
from govern.testing.world import PORT, World, open_world

from ..deep import seeds

SEEDS = seeds(8, 20)
ORDERS = ServiceKey("default", "orders")
PROVIDERS = ("p0", "p1")
SEGMENT_BYTES = 64 * 1024
ALL_IN_THE_LOG = 16 << 20
PADDING_BYTES = 3_500
WORK_SECONDS = 0.8
HEALING_SECONDS_MAX = 20.0
LOOK_SECONDS = 0.05


# --- the story ----------------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Story:
    """Programs that register and change one instance each, and a caller that watches."""

    world: World
    snapshot_bytes: int
    registrations: dict[str, Registration] = attrs.field(factory=dict)
    view: LiveView | None = None
    shown: list[int] = attrs.field(factory=list)
    """How many instances the caller saw, each time it saw something new, from the first full list on."""
    working: bool = True

    @property
    def disk(self) -> SimStorage:
        disk = self.world.machines["node1"].disk
        assert disk is not None
        return disk

    async def begin(self) -> None:
        await self.start()
        self.world.machines["node1"].may_fail = True
        for name in PROVIDERS:
            await self.world.run_client(name, lambda environment, name=name: self._provide(name, environment))  # type: ignore[misc]
        while len(self.registrations) < len(PROVIDERS):
            await trio.sleep(0.01)
        await self.world.run_client("caller", self._watch)

    async def start(self) -> govern.Node:
        return await self.world.start(segment_bytes=SEGMENT_BYTES, snapshot_bytes=self.snapshot_bytes)

    async def start_alone(self) -> dict[str, str]:
        """Start while nobody can reach the node; returns what it has."""
        self.world.network.isolate("node1")
        node = await self.start()
        state = values_of(node._shard)
        self.world.network.heal()
        return state

    async def _provide(self, name: str, environment: Environment) -> None:
        chance = random.Random(f"{self.world.seed}/{name}/work")
        async with govern.connect(f"node1:{PORT}", timeout=60, environment=environment) as registry:
            async with registry.register("orders", id=name, host=name, port=80, metadata={"v": "0"}) as registration:
                self.registrations[name] = registration
                for number in range(1, 1_000_000):
                    await trio.sleep(chance.uniform(0.02, 0.1))
                    while not self.working:
                        await trio.sleep(LOOK_SECONDS)
                    await registration.update(metadata={"v": str(number), "padding": "x" * chance.choice((0, PADDING_BYTES))})

    async def _watch(self, environment: Environment) -> None:
        async with govern.connect(f"node1:{PORT}", timeout=60, environment=environment) as registry:
            async with registry.subscribe("orders") as self.view:
                self.shown.append(len(self.view.instances))
                async for _ in self.view:
                    self.shown.append(len(self.view.instances))

    async def converge(self) -> None:
        """Wait until every program has its registration again, and the caller sees what is there."""
        with trio.move_on_after(HEALING_SECONDS_MAX):
            while (problem := self._find_unconverged()) is not None:
                await trio.sleep(LOOK_SECONDS)
        assert problem is None, problem
        assert min(self.shown) > 0, "the caller was shown an empty list"

    def _find_unconverged(self) -> str | None:
        node = self.world.machines["node1"].node
        assert node is not None
        held = {name: unpack_entry(entry) for name, entry in node._shard.entries(ORDERS).items()}
        if sorted(held) != sorted(PROVIDERS):
            return f"the node has {sorted(held)}"
        for name, registration in self.registrations.items():
            if registration.lost is not None or registration.lease_id != held[name].lease_id:
                return f"{name} believes in {registration.lease_id} (lost: {registration.lost}), the node has {held[name].lease_id}"
        assert self.view is not None
        shown = {instance.id: instance.lsn for instance in self.view.instances}
        if self.view.stale or shown != {name: parts.lsn for name, parts in held.items()}:
            return f"the caller sees {shown}, the node has {held}"
        return None


def run(seed: int, play: Callable[[Story], object], snapshot_bytes: int = ALL_IN_THE_LOG) -> None:
    """One story; at its end every program is registered and every list right."""

    async def story(seed: int) -> None:
        async with open_world(seed) as world:
            told = Story(world, snapshot_bytes)
            await told.begin()
            await trio.sleep(WORK_SECONDS)
            await play(told)  # type: ignore[misc]
            await told.converge()

    simulate(seed, story, horizon=300)


# --- what is on the disk ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Place:
    """One batch of the log: where it lies, and which of its bytes count."""

    name: str
    start: int
    end: int
    batch: Batch


def batches_of(disk: SimStorage) -> list[Place]:
    """Every batch of the log, in order."""
    identity = decode_identity(disk.contents(IDENTITY_NAME))
    places: list[Place] = []
    for number in sorted(number for name in disk.names() if (number := segment_number(name)) is not None):
        data, at = disk.contents(segment_name(number)), SEGMENT_HEADER_BYTES
        while (batch := read_batch(data, at, batch_seed(identity, number))) is not None:
            overhead = batch.end - at - len(batch.payload)
            assert overhead >= 0
            places.append(Place(segment_name(number), at, at + 32 + len(batch.payload), batch))
            at = batch.end
    return places


def values_of(shard: Shard) -> dict[str, str]:
    """The value of each instance."""
    entries = {name: unpack_entry(entry) for name, entry in shard.entries(ORDERS).items()}
    return {name: dict(parts.client[7])["v"] for name, parts in entries.items()}


def fold(places: Sequence[Place]) -> dict[str, str]:
    """What these batches come to."""
    shard = Shard(Sessions(), Limits())
    for place in places:
        for record in decode_records(place.batch.payload, place.batch.record_count):
            shard.apply(record.slot, record.term, record.seq, unpack_op(record.type, record.payload))
    return values_of(shard)


def flip(disk: SimStorage, place: Place, chance: random.Random) -> None:
    disk.flip(place.name, chance.randrange(place.start, place.end), 1 << chance.randrange(8))


async def refused(story: Story) -> str:
    """The node does not start; the one line that it says."""
    with pytest.raises(StorageError) as caught:
        await story.start()
    line = str(caught.value)
    assert "\n" not in line
    assert "--salvage" in line, line
    return line


async def salvaged(story: Story) -> SalvageReport:
    return await salvage(story.disk, segment_bytes=SEGMENT_BYTES)


# --- bits that flip -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flip_in_the_middle_of_the_log(seed: int) -> None:
    """The node does not start and says where and what to do; salvage keeps every record before the damaged batch and nothing behind it, the
    programs come back, and their list is whole."""

    async def play(story: Story) -> None:
        await story.world.kill()
        places = batches_of(story.disk)
        assert len(places) > 10
        number = story.world.random.randrange(len(places) - 1)
        flip(story.disk, places[number], story.world.random)
        line = await refused(story)
        assert "log-" in line
        report = await salvaged(story)
        assert report.damage
        assert report.records_kept == sum(place.batch.record_count for place in places[:number])
        assert report.set_aside
        assert await story.start_alone() == fold(places[:number])

    run(seed, play)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flip_in_the_last_batch(seed: int) -> None:
    """It looks as if a crash had torn it: the node starts with everything before it."""

    async def play(story: Story) -> None:
        await story.world.kill()
        places = batches_of(story.disk)
        flip(story.disk, places[-1], story.world.random)
        assert await story.start_alone() == fold(places[:-1])

    run(seed, play)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flip_in_a_snapshot(seed: int) -> None:
    """In either of the two that are kept: the other one serves, with the log behind it, and nothing at all is lost."""

    async def play(story: Story) -> None:
        while len(snapshots_of(story.disk)) < 2:
            await trio.sleep(LOOK_SECONDS)
        story.working = False
        await trio.sleep(1.0)
        node = story.world.machines["node1"].node
        assert node is not None
        before = values_of(node._shard)
        await story.world.kill()
        name = story.world.random.choice(snapshots_of(story.disk))
        story.disk.flip(name, story.world.random.randrange(len(story.disk.contents(name))), 1 << story.world.random.randrange(8))
        assert await story.start_alone() == before
        story.working = True

    run(seed, play, snapshot_bytes=64 * 1024)


def snapshots_of(disk: SimStorage) -> list[str]:
    return [name for name in disk.names() if snapshot_number(name) is not None]


# --- the past -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_is_put_back(seed: int) -> None:
    """A virtual machine is restored from yesterday's image: who registered since does so again, and callers keep their lists meanwhile. The
    image may be older than some of the programs."""

    async def play(story: Story) -> None:
        await story.world.kill()
        image = older_image(story, story.world.random.choice(("empty", "first", "any")))
        story.world.roll_back(image)
        await trio.sleep(story.world.random.uniform(0.0, 3.0))
        await story.start()

    run(seed, play)


def older_image(story: Story, kind: str) -> Mapping[str, bytes]:
    """The disk as it was when the log had fewer batches: everything behind one of them is zeros."""
    if kind == "empty":
        return {}
    places = batches_of(story.disk)
    last = places[0 if kind == "first" else story.world.random.randrange(len(places))]
    image: dict[str, bytes] = {}
    for name in story.disk.names():
        data = story.disk.contents(name)
        number = segment_number(name)
        if number is not None and name >= last.name:
            keep = last.batch.end if name == last.name else SEGMENT_HEADER_BYTES
            data = data[:keep].ljust(len(data), b"\0")
        image[name] = data
    return image


# --- lies ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_lies_about_a_sync(seed: int) -> None:
    """For a while nothing becomes durable although the disk says so; then the power goes. The node starts with a beginning of its log, or
    refuses in one line and does so after a salvage. Everybody comes back."""

    async def play(story: Story) -> None:
        known = len(batches_of(story.disk))
        story.disk.lose_syncs = True
        await trio.sleep(story.world.random.uniform(0.1, 0.8))
        places = batches_of(story.disk)
        await story.world.crash()
        story.disk.lose_syncs = False
        histories = [fold(places[:count]) for count in range(known, len(places) + 1)]
        try:
            state = await story.start_alone()
        except StorageError as error:
            story.world.network.heal()
            assert "\n" not in str(error)
            await salvaged(story)
            state = await story.start_alone()
        assert state in histories, "this was never the state"

    run(seed, play)
