"""The last known views on disk: what is written and when, what is believed of it, and a program that starts without a registry."""

from __future__ import annotations

import json
import logging
import math
import random
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import govern
from govern.client.cache import SAVE_SECONDS, Damaged, Known, decode, encode
from govern.environment import Environment, SimulatedClock
from govern.errors import Invalid, Unreachable
from govern.messages import Refused, View
from govern.messages import encode as encode_message
from govern.model import LSN_ZERO, Instance, Lsn, ServiceKey, Status
from govern.storage.sim import SimFiles
from govern.testing.world import World, open_world

from .helpers import ORDERS, Pair

PATH = "/var/cache/views.json"
OTHER = ServiceKey("test", "other")


def doors(world: World, files: SimFiles | None, name: str = "client") -> Environment:
    """The doors of a client's machine."""
    return Environment(network=world.network.host(name), random=random.Random(name), clock=SimulatedClock(), files=files)


def instance(name: str = "one", **fields: Any) -> Instance:
    values = {"id": name, "host": "h", "port": 1, "lease_id": Lsn(1, 2), "lsn": Lsn(1, 3), "registered_at": "2030-01-01T00:00:00.000Z"}
    return Instance(**{**values, **fields})


# --- the file -----------------------------------------------------------------------------------------------------------------


def test_lists_come_back_as_they_went() -> None:
    """Every field of every instance, empty lists, several namespaces."""
    lists = {
        ORDERS: (instance("a"), instance("b", metadata={"k": "v"}, status=Status.DRAINING, ephemeral=False, ttl=9.0, weight=0.5, zone="z")),
        OTHER: (),
    }
    assert decode(encode(Known(lists))) == Known(lists)
    assert json.loads(encode(Known(lists)))["views"][0]["instances"][0] == instance("a").to_json()  # readable for people and other programs


@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_cache_are_refused(data: bytes) -> None:
    """Whatever lies there: a reason, and never another error."""
    with pytest.raises(Damaged):
        decode(data)


@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_still_a_list(place: int, byte: int, cut: bool) -> None:
    """One byte changed, or the end missing: it is refused, or what it says is an instance by all rules."""
    good = encode(Known({ORDERS: (instance("a", metadata={"k": "v"}),)}))
    place %= len(good)
    damaged = good[:place] if cut else good[:place] + bytes([byte]) + good[place + 1 :]
    try:
        lists = decode(damaged)
    except Damaged:
        return
    assert decode(encode(lists)) == lists


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "no blanks"),
        ("port", 0),
        ("weight", "1"),
        ("weight", math.nan),
        ("status", "odd"),
        ("lsn", [1]),
        ("lsn", ["1", 2]),
        ("metadata", {"a": 1}),
        ("ttl", 5),
        ("registered_at", None),
        ("ephemeral", 1),
    ],
)
def test_each_field_is_checked(name: str, value: object) -> None:
    """One value that cannot be spoils the file: half of a truth is not shown as the whole."""
    file = json.loads(encode(Known({ORDERS: (instance(),)})))
    file["views"][0]["instances"][0][name] = value
    with pytest.raises(Damaged):
        decode(json.dumps(file).encode())
    del file["views"][0]["instances"][0][name]
    with pytest.raises(Damaged):
        decode(json.dumps(file).encode())


def test_a_file_of_another_version_is_refused() -> None:
    """What a later version writes is not guessed at."""
    with pytest.raises(Damaged, match="version 3"):
        decode(b'{"format": "govern views", "version": 3, "views": []}')


# --- the rules ----------------------------------------------------------------------------------------------------------------


def test_a_cached_view_asks_for_the_whole_list_and_is_stale_until_then() -> None:
    """Its lsn is zero, whatever the file said; the node's list replaces it, and what changed is told."""
    pair = Pair()
    pair.core.views.keep({ORDERS: (instance("old"), instance("one"))})
    cursor = pair.core.views.open(ORDERS)
    assert [each.id for each in cursor.view.sorted_instances()] == ["old", "one"]
    assert (cursor.view.cached, cursor.view.ready, cursor.view.stale, cursor.view.lsn) == (True, False, True, LSN_ZERO)
    cursor.skip()
    pair.connect()
    pair.register("one")
    pair.settle()
    assert (cursor.view.cached, cursor.view.ready, cursor.view.stale) == (False, True, False)
    change = cursor.take()
    assert change is not None
    assert change.removed == ("old",)


def test_an_empty_list_of_a_node_that_is_not_fresh_does_not_empty_the_cached_view() -> None:
    """The protection of full lists holds for those of the cache too."""
    pair = Pair()
    pair.core.views.keep({ORDERS: (instance(),)})
    pair.node.fresh = False
    pair.node.lsns[ORDERS] = Lsn(1, 1)
    cursor = pair.core.views.open(ORDERS)
    pair.connect()
    assert len(cursor.view.instances) == 1
    assert cursor.view.stale
    pair.node.fresh = True
    pair.heartbeat()
    pair.settle()
    assert not cursor.view.instances
    assert not cursor.view.stale


def test_suspicion_is_not_kept_and_lists_outlive_their_views() -> None:
    """The file has the stored status; a service that nobody watches any more keeps its last list."""
    pair = Pair()
    pair.core.views.keep({OTHER: (instance("kept"),)})
    pair.connect()
    claim = pair.register()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.node.hint((ORDERS, "one"), on=True)
    pair.settle()
    assert cursor.view.instances["one"].status is Status.SUSPECT
    expected = {OTHER: ["kept"], ORDERS: ["one"]}
    for _ in range(2):
        known = pair.core.views.last_known()
        assert {service: [each.id for each in lists] for service, lists in known.items()} == expected
        assert known[ORDERS][0].status is Status.UP
        if cursor.view.cursors:
            pair.core.views.close(cursor)
    assert claim.held


def test_without_a_cache_nothing_is_remembered() -> None:
    """A client that keeps no file keeps no lists of services it left."""
    pair = Pair()
    pair.connect()
    cursor = pair.core.views.open(ORDERS)
    pair.settle()
    pair.core.views.close(cursor)
    assert pair.core.views.last_known() == {}


def test_a_list_that_is_held_back_does_not_reach_the_cache() -> None:
    """Only what became the view is remembered."""
    pair = Pair()
    pair.core.views.keep({ORDERS: (instance(),)})
    pair.core.views.open(ORDERS)
    pair.core.dialled(0.0)
    pair.to_node()
    pair.node.out.clear()
    pair.core.views.answered(2, View(ORDERS, Lsn(1, 1), False, False, []), 0.0)
    assert [each.id for each in pair.core.views.last_known()[ORDERS]] == ["one"]


# --- the shell ----------------------------------------------------------------------------------------------------------------


async def fill(world: World, files: SimFiles) -> None:
    """Run a program that watches a service with one instance and leaves."""
    async with govern.connect("node1", environment=doors(world, files), cache=PATH) as registry:
        async with registry.register("orders", port=80), registry.subscribe("orders"):
            await trio.sleep(0.1)


async def test_a_program_starts_without_a_registry(autojump_clock: MockClock) -> None:
    """With what the last run left: entered at once, the view stale; when the registry comes up it becomes fresh, and changes are told."""
    files = SimFiles()
    async with open_world(1) as world:
        await world.start()
        async with govern.connect("node1", environment=doors(world, None, "server")) as server, server.register("orders", port=80):
            async with govern.connect("node1", environment=doors(world, files), cache=PATH) as registry:
                async with registry.subscribe("orders") as view:
                    before = view.instances
                    assert len(before) == 1
        await world.stop()
        started = trio.current_time()
        async with govern.connect("node1", environment=doors(world, files), cache=PATH) as registry:
            assert not registry.connected
            async with registry.subscribe("orders") as view:
                assert trio.current_time() - started < 0.1
                assert (view.instances, view.stale, view.lsn) == (before, True, LSN_ZERO)
                assert view.choose() == before[0]
                await trio.sleep(20)
                await world.start()
                async for change in view:
                    assert change.removed == (before[0].id,)
                    break
                assert not view.stale
                assert registry.connected


async def test_registering_waits_for_the_first_connection_and_its_address(autojump_clock: MockClock) -> None:
    """A program that started from its cache registers without a host: it is entered once the registry is there, with that address."""
    files = SimFiles()
    async with open_world(1) as world:
        await world.start()
        await fill(world, files)
        await world.stop()
        async with govern.connect("node1", environment=doors(world, files), cache=PATH) as registry, trio.open_nursery() as nursery:

            async def start() -> None:
                await trio.sleep(5)
                await world.start()

            nursery.start_soon(start)
            async with registry.register("orders", port=80) as registration:
                assert registration.instance.id == "client:80"
                assert registration.instance.host == "client"


async def test_a_node_that_does_not_answer_costs_a_second(autojump_clock: MockClock) -> None:
    """Connected, but the list does not come: after a second the cache has to do."""
    files = SimFiles()
    async with open_world(1) as world:
        await world.start()
        await fill(world, files)
        async with govern.connect("node1", environment=doors(world, files), cache=PATH) as registry:
            world.network.hold("node1", "client")
            before = trio.current_time()
            async with registry.subscribe("orders") as view:
                assert 0.9 < trio.current_time() - before < 1.1
                assert view.stale


@pytest.mark.parametrize("damage", [None, b"", b"{}", b"\xff\xfe"])
async def test_a_file_that_cannot_be_used_is_as_none(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    """No file, or a damaged one: without a registry connecting fails as ever, with it everything works; damage is told once in the log."""
    files = SimFiles()
    if damage is not None:
        files.contents[PATH] = damage
    async with open_world(1) as world:
        world.network.host("node1")
        with pytest.raises(Unreachable):
            async with govern.connect("node1", environment=doors(world, files), timeout=1, cache=PATH):
                pytest.fail("entered")
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING and record.name == "govern.client.cache"]
        assert len(warnings) == (damage is not None)
        await world.start()
        await fill(world, files)
    assert len(decode(files.contents[PATH]).lists[ORDERS]) <= 1


async def test_a_disk_that_fails_is_a_warning(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """The program goes on; it is told once, and when the disk is well again the file is written."""
    files = SimFiles()
    async with open_world(1) as world:
        await world.start()
        files.fails = True
        async with govern.connect("node1", environment=doors(world, files), cache=PATH) as registry:
            async with registry.subscribe("orders") as view:
                for port in (80, 81, 82):
                    async with registry.register("orders", port=port):
                        await trio.sleep(2)
                assert not view.stale
                assert sum("is not written" in record.message for record in caplog.records) == 1
                files.fails = False
                async with registry.register("orders", port=83):
                    await trio.sleep(2)
                    assert [each.port for each in decode(files.contents[PATH]).lists[ORDERS]] == [83]


async def test_the_file_is_written_once_a_second_at_most_and_on_leaving(autojump_clock: MockClock) -> None:
    """A storm of changes costs a write a second; the last state is in the file when the block has ended; nothing new, nothing written."""
    files = SimFiles()
    async with open_world(1) as world:
        await world.start()
        async with govern.connect("node1", environment=doors(world, None, "server")) as server:
            async with server.register("orders", port=80) as registration:
                async with govern.connect("node1", environment=doors(world, files), cache=PATH) as registry:
                    async with registry.subscribe("orders"):
                        started = trio.current_time()
                        for number in range(100):
                            await registration.update(metadata={"n": str(number)})
                            await trio.sleep(0.05)
                        seconds = trio.current_time() - started
                        assert seconds / SAVE_SECONDS / 2 < files.writes <= seconds / SAVE_SECONDS + 2
                        await trio.sleep(2)
                        quiet = files.writes
                        await trio.sleep(30)
                        assert files.writes == quiet
                        await registration.update(metadata={"n": "last"})
                        await trio.sleep(0.05)
                assert decode(files.contents[PATH]).lists[ORDERS][0].metadata == {"n": "last"}


async def test_a_cache_needs_files(autojump_clock: MockClock) -> None:
    """An environment without that door says so."""
    async with open_world(1) as world:
        with pytest.raises(Invalid, match="files"):
            async with govern.connect("node1", environment=attrs.evolve(doors(world, None), files=None), cache=PATH):
                pytest.fail("entered")


async def test_a_refusal_for_good_is_raised_in_spite_of_a_cache(autojump_clock: MockClock) -> None:
    """A cache bridges an outage, not a mistake."""
    files = SimFiles()
    files.contents[PATH] = encode(Known({ORDERS: (instance(),)}))

    async def refuse(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.receive_some()
        await stream.send_all(encode_message(Refused("denied", "wrong door")))

    async with open_world(1) as world, trio.open_nursery() as nursery:
        await nursery.start(world.network.host("node1").serve, "0.0.0.0", 7400, refuse)
        with pytest.raises(govern.Rejected, match="wrong door"):
            async with govern.connect("node1", environment=doors(world, files), cache=PATH):
                pytest.fail("entered")
        nursery.cancel_scope.cancel()
