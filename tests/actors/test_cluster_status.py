"""What a node says of the cluster: without a part in the metadata log from the table alone; with one, of its members."""

from __future__ import annotations

from typing import Any, NamedTuple

from govern.actors.cluster_status import ClusterStatus, _in_words, _seen_in
from govern.core.meta import MetaState
from govern.core.ownership import Ownership
from govern.core.raft.types import Membership
from govern.core.table import DOWN, EMPTY, UP, SlotRun, Table, TableNode
from govern.peer_messages import Member, PeerHello


def node(node_id: int, state: str, registered_at: int) -> TableNode:
    return TableNode(
        node_id=node_id, disk_id=b"d" * 16, boot_no=1, clients="c:1", peers="p:1", candidate=True, state=state, registered_at=registered_at
    )


def test_the_table_tells_who_is_down_and_whose_slots_did_not_come_back() -> None:
    """A grant from before a node's registration is one of a former life; slots of nobody are counted."""
    runs = (
        SlotRun(first=0, last=99, primary=1, copies=((1, 1),), in_sync=(1,), term=9),
        SlotRun(first=100, last=149, primary=2, copies=((2, 1),), in_sync=(2,), term=9),
        SlotRun(first=150, last=159, primary=3, copies=((3, 1),), in_sync=(3,), term=9),
    )
    nodes = (node(1, UP, 5), node(2, UP, 12), node(3, DOWN, 6), node(4, DOWN, 7))
    assert _seen_in(Table(13, nodes, runs)) == [
        "50 slots of node 2 have not come back with it: if that lasts, they were on a disk that it no longer has, and govern reset 2 gives "
        "them up",
        "node 3 is down; 10 slots are unavailable",
        "node 4 is down; it holds no slots",
        "16224 slots are not assigned to any node yet",
    ]
    assert _seen_in(EMPTY) == []


def test_several_are_named_in_words() -> None:
    """`1`, `1 and 2`, `1, 2 and 3`."""
    assert [_in_words(list("123"[:count])) for count in (1, 2, 3)] == ["1", "1 and 2", "1, 2 and 3"]


class Asked(NamedTuple):
    """An election, as far as a status asks it."""

    membership: Membership
    behind: dict[Member, int]
    term: int = 3
    leads: bool = True

    def entries_behind(self) -> dict[Member, int]:
        return self.behind


class Unlinked:
    """No links, and none refused."""

    def peers(self) -> dict[int, Any]:
        return {}


def members(*node_ids: int) -> tuple[Member, ...]:
    return tuple(Member(node_id, bytes([node_id]) * 16) for node_id in node_ids)


def status_of(election: Asked | None) -> ClusterStatus:
    options: dict[str, Any] = {"manager": None, "election": election, "links": Unlinked()}
    return ClusterStatus(node_id=1, ownership=Ownership(members(1)[0], 1), **options)


class Linked:
    """Links to candidate 2, and to node 5, which is none."""

    def peers(self) -> dict[int, Any]:
        return {node_id: PeerHello(1, b"c" * 16, node_id, bytes([node_id]) * 16, 1, node_id == 2, "", "", ()) for node_id in (2, 5)}

    def refusals(self) -> dict[int, str]:
        return {}

    expelled = ""


class Bootstrapped:
    """It belongs to a cluster."""

    waiting = None
    has_cluster = True


class Registered:
    """The controller knows this life."""

    is_registered = True


class Led(NamedTuple):
    """A slot manager that knew a controller once, or never."""

    leader: int | None
    follows_log: bool = False
    controller: None = None
    meta: MetaState = MetaState()
    bootstrap: Bootstrapped = Bootstrapped()
    standing: Registered = Registered()


def test_a_node_without_a_part_in_the_log_tells_what_it_can_know() -> None:
    """Whom it reaches, and who led last; not that a controller does not answer which may not be one any more."""
    ownership = Ownership(members(1)[0], 1)
    texts = []
    for links in (Unlinked(), Linked()):
        options: dict[str, Any] = {"manager": Led(None), "election": None, "links": links}
        texts.append(ClusterStatus(node_id=1, ownership=ownership, **options)._about_the_cluster(False))
    assert texts[0][0].startswith("no controller is known, and no candidate can be reached: ")
    assert texts[1][0].startswith("no controller: candidate 2 can be reached and knows of none; until then ")
    for follows, text, named in (
        (False, "no lease: no controller has answered since it ended, the last one was node 3; nothing expires", None),
        (True, "no lease: the controller, node 3, does not answer; nothing expires", 3),
    ):
        options = {"manager": Led(3, follows), "election": None, "links": Linked()}
        status = ClusterStatus(node_id=1, ownership=ownership, **options)
        assert status.degraded(False)[0].startswith(text)
        assert status.fields(False)["controller"] == named
        assert status.fields(True)["controller"] == 3


def test_without_a_controller_a_node_says_what_it_can_do() -> None:
    """What is registered can be changed at a node that the table knows in its present life; one that has restarted since only reads."""
    row = node(1, UP, 5)
    ownership, restarted = Ownership(Member(1, row.disk_id), row.boot_no), Ownership(Member(1, row.disk_id), row.boot_no + 1)
    texts = []
    for each in (ownership, restarted):
        each.take(Table(5, (row,), ()))
        options: dict[str, Any] = {"manager": Led(None), "election": None, "links": Unlinked()}
        texts.append(ClusterStatus(node_id=1, ownership=each, **options)._no_controller())
    assert texts[0].endswith(": what is registered stays, can be read and changed, and does not expire")
    assert texts[1].endswith(": what this node had before it started stays, can be read but not changed, and does not expire")


def test_a_bad_number_of_voters_is_a_notice() -> None:
    """Of what is in force, not of what is configured; a node that has no part in the log says nothing of it."""
    assert [status_of(Asked(Membership(members(*range(1, 1 + count))), {})).notices() for count in (1, 2, 3)] == [
        [],
        ["2 voters survive no more losses than 1: use 1 or 3"],
        [],
    ]
    assert status_of(None).notices() == []


def test_the_controller_says_how_far_candidates_are_behind() -> None:
    """Of those that it has heard."""
    one, two, three = members(1, 2, 3)
    status = status_of(Asked(Membership((one, two), (three,)), {one: 0, three: 17}))
    assert status._candidates() == [
        {"node_id": 1, "voter": True, "reachable": True, "behind": 0},
        {"node_id": 2, "voter": True, "reachable": False, "behind": None},
        {"node_id": 3, "voter": False, "reachable": False, "behind": 17},
    ]
