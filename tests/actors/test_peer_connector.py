"""The links between nodes, in a simulated network: they form, they are one per pair, they end in every way and come back."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio

from govern.actors import peer_connector
from govern.actors.peer_connector import HANDSHAKE_SECONDS_MAX, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, STRANGERS_MAX, PeerConnector
from govern.actors.supervisor import Child, Restart, Supervisor
from govern.core import peering
from govern.core.peering import Peering, PeerLink, Silence
from govern.errors import LocalProtocolError
from govern.messages import Message
from govern.net.sim import SimNetwork
from govern.net.tcp import TcpNetwork
from govern.peer_messages import (
    Append,
    ClusterFormed,
    Entry,
    InstallSnapshot,
    Member,
    PeerHello,
    PeerRefused,
    Ping,
    PreVote,
    TableAsk,
    encode_peer,
)
from govern.testing import simulate
from govern.testing.scheduler import installed

from .peers import BLUE, PORT, RED, Stranger, Teller, Town, everybody, hello_of, name_of, open_town

SILENCE_SECONDS = peering.SILENT_TICKS_MAX * peering.TICK_SECONDS
NOTICE_SECONDS = 0.01
"""A reset or an end is noticed in that time: a few delays of the network."""
RELINK_SECONDS = 4.0
"""After a heal: a dial that was under way ends, then a pause, then a dial that works."""

Scenario = Callable[[Town], Awaitable[None]]


def run(scenario: Scenario, seeds: int = 5) -> None:
    async def in_town(seed: int) -> None:
        async with open_town(seed) as town:
            await scenario(town)
            for node in town.nodes.values():
                node.check()

    for seed in range(seeds):
        simulate(seed, in_town, horizon=10_000)


# --- forming ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_all_pairs_form_and_each_has_one_link(count: int) -> None:
    """Nodes that start at any moments in any order are all linked a second after the last one, with one connection per pair."""

    async def scenario(town: Town) -> None:
        chance = random.Random(f"{town.seed}/order")
        node_ids = chance.sample(range(1, 10), count)
        for node_id in node_ids:
            await trio.sleep(chance.uniform(0, 2))
            await town.start(node_id)
        assert await town.wait_linked() < 1.1
        await trio.sleep(5)
        town.check_one_link_each()
        for node in town.nodes.values():
            assert [told for told in node.journal if told.what != "up"] == []
            assert node.connector.peers() == {other: hello_of(other) for other in node_ids if other != node.hello.node_id}
            assert node.connector.statistics().linked == node.connector.statistics().links_made == count - 1
            assert node.connector.statistics().handshaking == 0

    run(scenario, seeds=3)


def test_the_smaller_id_dials_when_the_larger_one_does_not_know_it() -> None:
    """A node that the larger one has never heard of comes in after two seconds, and stays."""

    async def scenario(town: Town) -> None:
        await town.start(9, {})
        await town.start(1, {9: f"node9:{PORT}"}, dials_only=True)
        assert 1.9 < await town.wait_linked() < 2.1
        await trio.sleep(10)
        town.check_one_link_each()
        assert town.nodes[1].connector.address is None

    run(scenario)


def test_both_dial_at_once_and_one_link_stays() -> None:
    """Links that are dialled from both sides in the same moment lead to one, without either side being told of a loss."""

    async def scenario(town: Town) -> None:
        town.network.partition("node1", "node2")
        await town.form_apart(1, 2)
        await trio.sleep(3.9)
        town.network.heal()
        await town.wait_linked()
        await trio.sleep(10)
        town.check_one_link_each()
        assert [told.what for node in town.nodes.values() for told in node.journal] == ["up", "up"]

    run(scenario, seeds=20)


def test_messages_go_both_ways_in_order_and_only_while_there_is_a_link() -> None:
    """Before the link and after it `send` takes nothing; in between everything arrives, once and in order, also what is sent from inside
    of `on_up`."""

    async def scenario(town: Town) -> None:
        early = await town.start(1)
        assert not early.connector.send(2, TableAsk(0))
        assert not early.connector.send(1, TableAsk(0))
        late = await town.start(2)
        await town.wait_linked()
        for number in range(1, 1001):
            assert early.connector.send(2, TableAsk(number))
            assert late.connector.send(1, TableAsk(number))
            if number % 100 == 0:
                await trio.sleep(0.001)
        sent_at = trio.current_time()
        await trio.sleep(1)
        assert early.got(2) == late.got(1) == list(range(1, 1001))
        assert late.told("got")[-1].at - sent_at < NOTICE_SECONDS
        await town.kill(2)
        await trio.sleep(1)
        assert not early.connector.send(2, TableAsk(0))
        statistics = early.connector.statistics()
        assert (statistics.sent, statistics.received, statistics.dropped, statistics.linked) == (1000, 1000, 3, 0)

    run(scenario)


def test_a_message_may_be_sent_from_inside_of_on_up_and_is_the_first_that_comes() -> None:
    """What is sent when the link is told follows the handshake at once, from either side."""

    async def scenario(town: Town) -> None:
        for node_id in (1, 2):
            node = await town.start(node_id)
            node.greeting = TableAsk(node_id)
        await town.wait_linked()
        await trio.sleep(1)
        assert (town.nodes[1].got(2), town.nodes[2].got(1)) == ([2], [1])

    run(scenario)


# --- the ends of links ------------------------------------------------------------------------------------------------------


def test_a_killed_process_is_noticed_at_once_and_its_next_life_is_linked() -> None:
    """A reset is a matter of milliseconds; the node is back within its pauses, with its new boot number."""

    async def scenario(town: Town) -> None:
        one, two, _ = await town.form(1, 2, 3)
        killed_at = trio.current_time()
        await town.kill(3)
        await trio.sleep(1)
        for node in (one, two):
            (down,) = node.told("down", 3)
            assert down.at - killed_at < NOTICE_SECONDS
        await town.start(3, boot_no=2)
        assert await town.wait_linked() < 1.1
        assert one.connector.peers()[3] == two.connector.peers()[3] == hello_of(3, boot_no=2)

    run(scenario)


def test_a_life_that_is_not_the_last_one_has_no_links() -> None:
    """Node 2 starts with a number that was there before: every other node refuses it and says why, and it gives up, whoever dials it."""

    async def scenario(town: Town) -> None:
        one, _, three = await town.form(1, 2, 3)
        await town.kill(2)
        await town.start(2, boot_no=5)
        await town.wait_linked()
        await town.kill(2)
        old = await town.start(2, boot_no=4)
        began = trio.current_time()
        await trio.sleep(1)
        assert "number 4, but number 5 was here before" in old.connector.expelled
        assert one.connector.refusals()[2] == old.connector.expelled
        await trio.sleep(10)
        assert (old.up, one.up, three.up) == ([], [3], [1])
        assert all(told.at < began + 1 for told in old.journal), "a link was made later"
        await town.kill(2)
        await town.start(2, boot_no=6)
        await town.wait_linked()
        assert 2 not in one.connector.refusals()

    run(scenario)


def test_a_link_ends_when_a_later_life_becomes_known() -> None:
    """The metadata may know of it before any link does."""

    async def scenario(town: Town) -> None:
        one, two, three = await town.form(1, 2, 3)
        one.connector.set_boots({Member(2, two.hello.disk_id): 2, Member(3, three.hello.disk_id): 1})
        assert one.up == [3]
        await trio.sleep(3)
        assert "number 1, but number 2 was here before" in two.connector.expelled
        assert (one.up, two.up, three.up) == ([3], [], [1])

    run(scenario)


def test_an_orderly_stop_ends_all_links_and_the_connector_may_run_again() -> None:
    """Cancelling tells both sides of each link once; a second run takes the same port and is linked again."""

    async def scenario(town: Town) -> None:
        one, two, three = await town.form(1, 2, 3)
        stopped_at = trio.current_time()
        two.scope.cancel()
        await two.gone.wait()
        assert (two.up, [told.node_id for told in two.told("down")].sort()) == ([], None)
        assert trio.current_time() == stopped_at
        assert not two.connector.send(1, TableAsk(0))
        await trio.sleep(NOTICE_SECONDS)
        assert (one.up, three.up) == ([3], [1])
        two.scope, two.gone = trio.CancelScope(), trio.Event()
        assert two.connector.address == ("0.0.0.0", PORT)
        async with trio.open_nursery() as nursery:
            await nursery.start(two.run)
            assert await town.wait_linked() < 2.1
            town.check_one_link_each()
            nursery.cancel_scope.cancel()

    run(scenario)


def test_a_partition_is_found_by_silence_and_its_end_brings_the_links_back() -> None:
    """Both sides find it within two seconds; links inside of a part stay; after the heal everything is linked again, once per pair."""

    async def scenario(town: Town) -> None:
        nodes = await town.form(1, 2, 3, 4)
        parted_at = trio.current_time()
        town.network.partition(["node1", "node4"], ["node2", "node3"])
        await trio.sleep(20)
        for node, friend in zip(nodes, (4, 3, 2, 1), strict=True):
            assert node.up == [friend]
            assert [SILENCE_SECONDS - 0.8 < down.at - parted_at < SILENCE_SECONDS + NOTICE_SECONDS for down in node.told("down")] == [
                True
            ] * 2
        town.network.heal()
        assert await town.wait_linked() < RELINK_SECONDS
        await trio.sleep(10)
        town.check_one_link_each()

    run(scenario)


@pytest.mark.parametrize(("deaf", "heard"), [(1, 2), (2, 1)])
def test_a_way_that_is_blocked_in_one_direction_is_found_too(deaf: int, heard: int) -> None:
    """The side that hears nothing gives the link up within two seconds, and the other one learns it or finds it itself."""

    async def scenario(town: Town) -> None:
        await town.form(1, 2)
        cut_at = trio.current_time()
        town.network.partition_oneway(name_of(heard), name_of(deaf))
        await trio.sleep(5)
        for node in town.nodes.values():
            assert node.up == []
            assert node.told("down")[0].at - cut_at < SILENCE_SECONDS + NOTICE_SECONDS
        await trio.sleep(20)
        town.network.heal()
        assert await town.wait_linked() < RELINK_SECONDS
        await trio.sleep(10)
        town.check_one_link_each()

    run(scenario)


def test_a_machine_that_loses_its_power_is_found_by_silence_and_its_next_life_replaces_it() -> None:
    """Half-open connections end within two seconds; a life that begins before that takes the place of the old one at once."""

    async def scenario(town: Town) -> None:
        one, _, three = await town.form(1, 2, 3)
        crashed_at = trio.current_time()
        await town.kill(2, silent=True)
        await trio.sleep(10)
        for node in (one, three):
            (down,) = node.told("down", 2)
            assert down.at - crashed_at < SILENCE_SECONDS + NOTICE_SECONDS
        await town.start(2, boot_no=2)
        assert await town.wait_linked() < RELINK_SECONDS
        await town.kill(2, silent=True)
        again_at = trio.current_time()
        await town.start(2, boot_no=3)
        assert await town.wait_linked() < 1.6  # a Ping that meets a reset, and a pause: the link before was none of the good ones
        assert one.connector.peers()[2].boot_no == three.connector.peers()[2].boot_no == 3
        assert one.told("up", 2)[-1].at - again_at < NOTICE_SECONDS
        await trio.sleep(10)
        town.check_one_link_each()

    run(scenario)


def test_links_that_are_cut_again_and_again_come_back_each_time() -> None:
    """However often connections are reset, each pair ends with one link, and dials are bounded by the pauses."""

    async def scenario(town: Town) -> None:
        await town.form(1, 2, 3)
        for _ in range(50):
            await trio.sleep(0.3)
            town.network.cut("node2")
        assert await town.wait_linked() < 1.1
        await trio.sleep(10)
        town.check_one_link_each()
        assert 20 < len(town.nodes[2].told("down")) <= 100
        assert town.nodes[1].told("down", 3) == []

    run(scenario, seeds=3)


def test_a_process_that_stands_still_is_given_up_and_does_not_give_up_others() -> None:
    """Stopped for a second it keeps its links; stopped for three it loses them, and has them back soon after it goes on."""

    async def scenario(town: Town) -> None:
        await town.form(1, 2, 3)
        installed().freeze("node2")
        await trio.sleep(1.0)
        installed().thaw("node2")
        await trio.sleep(5)
        assert [node.told("down") for node in town.nodes.values()] == [[], [], []]
        installed().freeze("node2")
        await trio.sleep(3.0)
        assert (town.nodes[1].up, town.nodes[3].up) == ([3], [1])
        installed().thaw("node2")
        assert await town.wait_linked() < RELINK_SECONDS
        await trio.sleep(5)
        town.check_one_link_each()

    run(scenario)


def test_a_storm_of_faults_ends_in_one_link_per_pair() -> None:
    """Five nodes, thirty random faults of every kind, a heal: everybody is linked again, and was told everything once."""

    async def scenario(town: Town) -> None:
        chance = random.Random(f"{town.seed}/storm")
        boots = dict.fromkeys(range(1, 6), 1)
        knows = {node_id: everybody()[node_id] for node_id in boots}
        for node_id in boots:
            await town.start(node_id, knows)
        for _ in range(30):
            await trio.sleep(chance.choice([0.0, 0.01, 0.3, 2.5]))
            one, other = (name_of(node_id) for node_id in chance.sample(list(boots), 2))
            match chance.randrange(8):
                case 0:
                    town.network.partition(one, other)
                case 1:
                    town.network.partition_oneway(one, other)
                case 2:
                    town.network.slow(one, other, chance.uniform(0, 3))
                case 3:
                    town.network.cut(one, other)
                case 4:
                    town.network.isolate(one)
                case 5:
                    town.network.heal()
                case _:
                    node_id = chance.choice(list(boots))
                    boots[node_id] += 1
                    await town.kill(node_id, silent=chance.random() < 0.5)
                    await trio.sleep(chance.choice([0.0, 0.5, 3.0]))
                    await town.start(node_id, knows, boot_no=boots[node_id])
        town.network.heal()
        await town.wait_linked(10)
        await trio.sleep(10)
        assert town.linked
        town.check_one_link_each()

    run(scenario, seeds=3)


# --- who is not let in ------------------------------------------------------------------------------------------------------


async def refuse_a_foreigner(town: Town) -> None:
    await town.form(1, 3, cluster_id=BLUE)
    await town.start(2, cluster_id=RED)
    await town.start(4, cluster_id=bytes(16))
    await trio.sleep(10)
    assert (town.nodes[1].up, town.nodes[2].up, town.nodes[3].up) == ([3, 4], [4], [1, 4])


def test_a_node_of_another_cluster_is_refused_and_the_log_says_it_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """It is never linked, from neither side, whoever dials; a node without a cluster is let in by both."""
    with caplog.at_level(logging.INFO, logger="govern.actors.peer_connector"):
        run(refuse_a_foreigner, seeds=1)
    warned = [record.getMessage() for record in caplog.records if "refused (cluster)" in record.getMessage()]
    assert 2 <= len(warned) <= 8
    assert any(RED.hex() in line and BLUE.hex() in line for line in warned)


def test_a_link_to_another_cluster_ends_when_this_node_finds_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Nodes without a cluster find different ones: they have no link any more, and get none; nothing that one of them said meanwhile was
    heard by the other. One line of each side says which clusters these are and what to do."""
    with caplog.at_level(logging.INFO, logger="govern.actors.peer_connector"):
        run(find_two_clusters, seeds=2)
    lines = [record.getMessage() for record in caplog.records if "belongs to cluster" in record.getMessage()]
    assert all(RED.hex() in line and BLUE.hex() in line and "check `peers`; whichever is in the wrong one needs" in line for line in lines)
    assert 2 * 6 <= len(lines) <= 2 * 16  # three pairs, either side, which dials and is dialled


async def find_two_clusters(town: Town) -> None:
    nodes = await town.form(1, 2, 3, cluster_id=b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk, nodes)
        await find_clusters(town, *nodes)
        nursery.cancel_scope.cancel()


async def talk(nodes: list[Teller]) -> None:
    """Everybody says something to everybody, all the time."""
    while True:
        await trio.sleep(0.05)
        for node in nodes:
            for node_id in node.connector.peers():
                node.connector.send(node_id, TableAsk(1))


async def find_clusters(town: Town, one: Teller, two: Teller, three: Teller) -> None:
    await trio.sleep(1)
    for node in (one, two, three):
        assert not any(isinstance(told.detail, TableAsk) for told in node.told("got"))  # C5
        node.hello = attrs.evolve(node.hello, cluster_id=RED if node is two else BLUE)
        node.connector.recheck()
        await trio.sleep(1)
    assert (one.up, two.up, three.up) == ([3], [], [1])
    four = await town.start(4, cluster_id=b"")
    await trio.sleep(5)
    assert four.up == [1, 2, 3]
    four.hello = hello_of(4, cluster_id=BLUE)
    four.connector.recheck()
    await trio.sleep(0.1)
    assert four.up == [1, 3]
    await trio.sleep(5)
    assert (four.up, two.up) == ([1, 3], [])
    assert {told.node_id for told in one.told("got") if isinstance(told.detail, TableAsk)} == {3}
    assert [told for told in two.told("got") if isinstance(told.detail, TableAsk)] == []


def test_what_a_new_cluster_says_first_is_kept() -> None:
    """Node 3 calls for votes a moment before it says that its cluster exists; node 1 hears of that cluster, and then of the vote. What
    else was said before is not heard."""

    async def scenario(town: Town) -> None:
        one, three = await town.form(1, 3, cluster_id=b"")
        me, other = (Member(node.hello.node_id, node.hello.disk_id) for node in (three, one))
        three.hello = attrs.evolve(three.hello, cluster_id=BLUE)
        for message in (TableAsk(7), PreVote(other, me, 2, 1, 1), PreVote(other, me, 3, 1, 1)):
            assert three.connector.send(1, message)
        three.connector.recheck()
        await trio.sleep(1)
        assert [told.detail for told in one.told("got")] == [ClusterFormed(BLUE)]
        one.hello = attrs.evolve(one.hello, cluster_id=BLUE)
        one.connector.recheck()
        assert [told.detail for told in one.told("got")[1:]] == [PreVote(other, me, 3, 1, 1)]
        assert three.connector.send(1, TableAsk(8))
        await trio.sleep(1)
        assert one.got(3) == [8]
        assert [told.detail for told in three.told("got")] == [ClusterFormed(BLUE)]

    run(scenario, seeds=1)


def test_who_finds_its_cluster_during_the_handshake_says_so() -> None:
    """Its Hello is on the way and names none: the other side would never listen."""

    async def scenario(town: Town) -> None:
        one = await town.start(1, {})
        three = await town.start(3, {1: f"node1:{PORT}"}, cluster_id=b"")
        with trio.fail_after(1):
            while not one.connector.statistics().handshaking:
                await trio.sleep(0.0002)
        three.hello = attrs.evolve(three.hello, cluster_id=BLUE)
        three.connector.recheck()
        await town.wait_linked()
        assert three.connector.send(1, TableAsk(8))
        await trio.sleep(1)
        assert one.got(3) == [8]

    run(scenario, seeds=3)


async def drop_a_talker(town: Town) -> None:
    one, two = await town.form(1, 2)
    one.connector.drop(2, "it said nonsense")
    one.connector.drop(9, "nobody")
    assert one.up == []
    await trio.sleep(1)
    assert (one.up, two.up) == ([2], [1])


def test_a_link_can_be_dropped_for_what_it_brought(caplog: pytest.LogCaptureFixture) -> None:
    """C4: with one line, and it is made again."""
    with caplog.at_level(logging.INFO, logger="govern.actors.peer_connector"):
        run(drop_a_talker, seeds=1)
    assert any(record.getMessage().endswith(": it broke the protocol: it said nonsense") for record in caplog.records)


def test_addresses_that_are_mixed_up_lead_nowhere_and_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    """An address under which another node answers, one's own, one that nobody has, one that is none: no link, a line for each."""

    async def scenario(town: Town) -> None:
        await town.start(2, {})
        await town.start(9, {3: f"node2:{PORT}", 4: f"node9:{PORT}", 5: f"nowhere:{PORT}", 6: "no address", 7: f"node7:{PORT}", 8: ""})
        await trio.sleep(30)
        assert (town.nodes[9].up, town.nodes[2].up) == ([], [])
        town.nodes[9].connector.set_peers({2: f"node2:{PORT}"})
        assert await town.wait_linked() < 0.1

    with caplog.at_level(logging.INFO, logger="govern.actors.peer_connector"):
        run(scenario, seeds=1)
    lines = [record.getMessage() for record in caplog.records]
    for words in (
        "node 3 was dialled, node 2 answered",
        "both sides are node 9",
        "no host is called nowhere",
        "no address",
        "nobody listens",
    ):
        assert [words in line for line in lines].count(True) >= 1, words
    assert len(lines) < 20


def test_two_nodes_of_one_id_take_turns_and_nobody_else_suffers() -> None:
    """Somebody set up node 2 twice, on two disks: the link changes hands no faster than the pauses allow, other links stay."""

    async def scenario(town: Town) -> None:
        one, _, three = await town.form(1, 2, 3)
        twin = Teller(town.network.host("node8"), hello_of(2, disk=99), seed="twin")
        twin.connector.set_peers(everybody())
        async with trio.open_nursery() as nursery:
            await nursery.start(twin.run)
            await trio.sleep(20)
            nursery.cancel_scope.cancel()
        assert (one.told("down", 3), three.told("down", 1)) == ([], [])
        assert len(one.told("up", 2)) < 100
        await trio.sleep(5)
        assert town.linked

    run(scenario, seeds=2)


# --- strangers --------------------------------------------------------------------------------------------------------------


def test_random_bytes_on_the_port_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    """Noise, noise in a frame, noise behind a good Hello, words of clients: each ends its own connection and nothing else."""

    async def scenario(town: Town) -> None:
        one, two = await town.form(1, 2)
        chance = random.Random(f"{town.seed}/noise")
        for number in range(200):
            noise = chance.randbytes(chance.randrange(1, 300))
            framed = len(noise).to_bytes(4) + noise
            data = (noise, framed, encode_peer(hello_of(7)) + framed, encode_peer(Ping()), encode_peer(hello_of(1)))[number % 5]
            stream = await town.network.host("node9").dial("node2", PORT)
            await stream.send_all(data)
            if number % 3:
                await stream.aclose()
        await trio.sleep(HANDSHAKE_SECONDS_MAX + SILENCE_SECONDS + 1)
        assert (one.told("down"), two.told("down", 1)) == ([], [])
        assert (one.up, two.up, two.connector.statistics().handshaking) == ([2], [1], 0)
        town.check_one_link_each()

    with caplog.at_level(logging.INFO, logger="govern.actors.peer_connector"):
        run(scenario, seeds=3)
    assert len(caplog.records) < 3 * 20


def test_strangers_are_few_and_have_to_hurry() -> None:
    """A hundred connections that say nothing: the oldest go when there are more than 64, the rest after five seconds; a node still comes
    in meanwhile."""

    async def scenario(town: Town) -> None:
        node = await town.start(2)
        streams = [await town.network.host("node9").dial("node2", PORT) for _ in range(100)]
        await trio.sleep(0.1)
        assert node.connector.statistics().handshaking == STRANGERS_MAX
        await town.start(1)
        await town.wait_linked(3)
        assert isinstance(await Stranger(streams[-1]).hear(), PeerHello)
        await trio.sleep(HANDSHAKE_SECONDS_MAX)
        assert node.connector.statistics().handshaking == 0
        node.connector.validate()
        for stream in streams:
            stranger = Stranger(stream)
            while await stranger.hear() is not None:
                pass

    run(scenario, seeds=2)


def test_an_endless_hello_is_cut_short() -> None:
    """A stranger that announces a frame of megabytes is closed long before it has sent them."""

    async def scenario(town: Town) -> None:
        await town.start(2)
        stream = await town.network.host("node9").dial("node2", PORT)
        sent = 0
        try:
            await stream.send_all((8_000_000).to_bytes(4))
            while sent < 8_000_000:
                await stream.send_all(bytes(16_384))
                sent += 16_384
        except trio.BrokenResourceError:
            assert sent < 400_000
        assert sent < 8_000_000

    run(scenario, seeds=2)


def test_a_refusal_reaches_the_one_who_is_refused() -> None:
    """Who is not let in is told why before the connection ends, and a second Hello ends a link that was up."""

    async def scenario(town: Town) -> None:
        node = await town.start(2, {}, cluster_id=BLUE)
        stranger = Stranger(await town.network.host("node9").dial("node2", PORT))
        assert await stranger.hear() == hello_of(2, cluster_id=BLUE)
        await stranger.say(hello_of(1, cluster_id=RED))
        refused = await stranger.hear()
        assert isinstance(refused, PeerRefused)
        assert (refused.code, await stranger.hear()) == ("cluster", None)
        for last in (hello_of(1), PeerRefused("cluster", "no")):
            stranger = Stranger(await town.network.host("node9").dial("node2", PORT))
            await stranger.say(hello_of(1))
            assert [await stranger.hear(), await stranger.hear()] == [hello_of(2, cluster_id=BLUE), Ping()]
            assert node.up == [1]
            await stranger.say(TableAsk(5), last, TableAsk(6))
            while await stranger.hear() is not None:
                pass
            assert (node.up, node.got(1)[-1]) == ([], 5)

    run(scenario)


# --- queues -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 200_000])
def test_a_slow_reader_is_bounded_and_others_do_not_notice(size: int) -> None:
    """A node that reads nothing and says Ping: what waits for it is bounded in messages and in bytes, the rest is refused and counted; the
    link to the other node works as before."""

    async def scenario(town: Town) -> None:
        one, two = await town.form(1, 2)
        slow = Stranger(await town.network.host("node9").dial("node2", PORT))
        await slow.say(hello_of(3))
        await trio.sleep(0.1)
        assert isinstance(await slow.hear(), PeerHello)
        await slow.say(Ping())
        message = Append(Member(3, bytes(16)), Member(2, bytes(16)), 1, 1, 1, 1, 1, (Entry(1, 1, 1, bytes(size)),))
        taken = 0
        for number in range(10):
            while two.connector.send(3, message):
                taken += 1
            two.connector.validate()
            assert two.connector.send(1, TableAsk(number))
            await slow.say(Ping())
            await trio.sleep(0.4)
        assert two.up == [1, 3]
        assert one.got(2) == list(range(10))
        assert two.connector.statistics().dropped == 10
        assert QUEUE_BYTES_MAX * 0.9 < taken * size < QUEUE_BYTES_MAX * 1.1 if size else taken < QUEUE_MESSAGES_MAX * 1.5

    run(scenario, seeds=1)


def test_pieces_of_a_snapshot_do_not_keep_heartbeats_waiting() -> None:
    """Over a way of two megabytes a second, on which one piece of 256 KiB after the other travels, no small message is late by more than
    two pieces, and the link is never taken for dead."""

    async def scenario(town: Town) -> None:
        one, two = await town.form(1, 2)
        town.network.clog("node1", "node2", 2_000_000)
        member = Member(1, bytes(16))
        piece = InstallSnapshot(member, member, 1, 1, 1, (), (), 0, False, 1, bytes(256 * 1024))
        pieces = 0
        sent_at: list[float] = []
        while trio.current_time() < 20:
            arrived = sum(isinstance(told.detail, InstallSnapshot) for told in one.told("got", 2))
            if arrived == pieces:
                assert two.connector.send(1, piece)
                pieces += 1
            assert two.connector.send(1, TableAsk(len(sent_at)))
            sent_at.append(trio.current_time())
            await trio.sleep(0.05)
        await trio.sleep(2)
        assert pieces > 50
        arrivals = [told.at for told in one.told("got", 2) if isinstance(told.detail, TableAsk)]
        assert len(arrivals) == len(sent_at)
        assert max(arrived - sent for arrived, sent in zip(arrivals, sent_at, strict=True)) < 0.3
        assert (one.told("down"), two.told("down")) == ([], [])

    run(scenario, seeds=1)


def test_what_goes_to_several_nodes_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it arrives at those that are there."""
    encoded: list[object] = []

    def count(message: Message) -> bytes:
        encoded.append(message)
        return encode_peer(message)

    async def scenario(town: Town) -> None:
        one, two, three = await town.form(1, 2, 3)
        monkeypatch.setattr(peer_connector, "encode_peer", count)
        one.connector.send_to_all([2, 3, 9], TableAsk(7))
        monkeypatch.undo()
        await trio.sleep(1)
        assert (two.got(1), three.got(1)) == ([7], [7])
        assert one.connector.statistics().dropped == 1

    run(scenario, seeds=1)
    assert encoded == [TableAsk(7)]


def test_a_message_larger_than_a_frame_is_our_own_mistake() -> None:
    """It raises where it is sent, and the link goes on."""

    async def scenario(town: Town) -> None:
        one, two = await town.form(1, 2)
        entries = tuple(Entry(index, 1, 1, bytes(1024 * 1024)) for index in range(9))
        with pytest.raises(LocalProtocolError):
            one.connector.send(2, Append(Member(2, bytes(16)), Member(1, bytes(16)), 1, 1, 1, 1, 1, entries))
        assert one.connector.send(2, TableAsk(1))
        await trio.sleep(1)
        assert two.got(1) == [1]

    run(scenario, seeds=1)


# --- starting and crashing --------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_keeps_the_node_from_starting() -> None:
    """`OSError` leaves `run` as it is, before it has started, and a supervisor hands it on."""

    async def scenario(town: Town) -> None:
        await town.start(1)
        second = Teller(town.network.host("node1"), hello_of(1))
        with pytest.raises(OSError, match="taken"):
            await second.connector.run(task_status=trio.TASK_STATUS_IGNORED)
        child = Child(name="peer_connector", run=second.connector.run, restart=Restart.PERMANENT, grace_seconds=1)
        with pytest.raises(OSError, match="taken"):
            await Supervisor("node", [child], random=random.Random(0)).run()

    run(scenario, seeds=1)


def test_a_callback_that_fails_ends_the_connector_and_all_links_are_told_down() -> None:
    """An error of ours in a callback comes out of `run` as it was raised; it is not taken for a fault of the link."""

    async def scenario(town: Town) -> None:
        one, two = await town.form(1, 2)

        def fail(node_id: int, message: object) -> None:
            raise OSError("a mistake")

        two.connector._deliver = fail
        two.scope.cancel()
        await two.gone.wait()

        async def speak() -> None:
            await town.wait_linked()
            assert one.connector.send(2, TableAsk(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            with pytest.raises(OSError, match="a mistake"):
                await two.connector.run(task_status=trio.TASK_STATUS_IGNORED)
        assert two.up == []
        assert [told.what for told in two.journal] == ["up", "down"] * 2

    run(scenario, seeds=1)


# --- mutants ----------------------------------------------------------------------------------------------------------------


def forget_cluster(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(peering, "_is_foreign", lambda mine, other: False)


def never_silent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Silence, "tick", lambda self: False)


def miss_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PeerConnector, "_end", lambda self, link: self._peering.end(link, trio.current_time()))


def never_ping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(peer_connector, "PING_SECONDS", 1000.0)


def never_choose(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Peering, "chooses", staticmethod(lambda mine, other: False))


def keep_both(patch: pytest.MonkeyPatch) -> None:
    original = Peering._bring_up

    def bring_up(self: Peering, link: PeerLink, now: float) -> peering.Step:
        original(self, link, now)
        return peering.Step(up=True)

    patch.setattr(Peering, "_bring_up", bring_up)
    patch.setattr(Peering, "_judge_life", lambda self, mine, other: None)


async def lose_and_find(town: Town) -> None:
    one, _ = await town.form(1, 2)
    await trio.sleep(10)
    assert one.told("down") == []
    town.network.partition("node1", "node2")
    await trio.sleep(3)
    assert one.up == []
    town.network.heal()
    await town.wait_linked(10)
    await town.kill(2, silent=True)
    await town.start(2, boot_no=2)
    await trio.sleep(1)
    town.check_one_link_each()


@pytest.mark.parametrize(
    ("mutate", "scenario"),
    [
        (forget_cluster, refuse_a_foreigner),
        (never_silent, lose_and_find),
        (miss_down, lose_and_find),
        (never_ping, lose_and_find),
        (never_choose, lose_and_find),
        (keep_both, lose_and_find),
    ],
)
def test_mutants_are_found(mutate: Callable[[pytest.MonkeyPatch], None], scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scenario passes with the rules as they are, and fails with one of them broken."""
    run(scenario, seeds=2)
    mutate(monkeypatch)
    with pytest.raises((AssertionError, KeyError, trio.TooSlowError)):
        run(scenario, seeds=2)


# --- the real network -------------------------------------------------------------------------------------------------------


async def test_links_over_real_sockets() -> None:
    """On the loopback, with ports that the kernel chose: two nodes are linked, large and small messages go both ways, noise does no harm,
    the end of one is noticed, and its next life is linked. It waits on conditions; the timeout bounds a failure only."""

    async def wait_until(condition: Callable[[], bool]) -> None:
        while not condition():
            await trio.lowlevel.checkpoint()

    def large(number: int) -> Append:
        member = Member(1, bytes(16))
        return Append(member, member, 1, 1, 1, number, 1, (Entry(1, 1, 1, bytes(256 * 1024)),) * 16)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            one = Teller(TcpNetwork(), hello_of(1), "127.0.0.1", 0)
            two = Teller(TcpNetwork(), hello_of(2), "127.0.0.1", 0)
            for node in (one, two):
                await nursery.start(node.run)
            assert one.connector.address is not None
            host, port = one.connector.address
            noisy = await TcpNetwork().dial(host, port)
            await noisy.send_all(b"\x00\x00\x00\x05noise")
            two.connector.set_peers({1: f"{host}:{port}", 2: "127.0.0.1:1"})
            await wait_until(lambda: one.up == [2] and two.up == [1])
            for number in range(3):
                assert one.connector.send(2, large(number))
                assert one.connector.send(2, TableAsk(number))
                assert two.connector.send(1, ClusterFormed(BLUE))
            await wait_until(lambda: len(two.told("got")) == 6 and len(one.told("got")) == 3)
            assert [told.detail for told in two.told("got")] == [message for n in range(3) for message in (large(n), TableAsk(n))]
            two.scope.cancel()
            await two.gone.wait()
            await wait_until(lambda: one.up == [])
            again = Teller(TcpNetwork(), hello_of(2, boot_no=2), None)
            again.connector.set_peers({1: f"{host}:{port}"})
            await nursery.start(again.run)
            await wait_until(lambda: one.up == [2])
            assert one.connector.peers()[2].boot_no == 2
            await noisy.aclose()
            nursery.cancel_scope.cancel()


def test_the_simulated_network_keeps_nothing_of_a_link_that_is_over() -> None:
    """The rig itself: after everything has stopped, no end of a connection is left on any machine."""

    async def scenario(town: Town) -> None:
        network: SimNetwork = town.network
        nodes = await town.form(1, 2, 3)
        for node in nodes:
            node.scope.cancel()
            await node.gone.wait()
        await trio.sleep(1)
        assert [len(network.host(name_of(node_id)).ends) for node_id in (1, 2, 3)] == [0, 0, 0]

    run(scenario)
