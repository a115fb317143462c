"""The verbs about the whole cluster, at a cluster of one: shapes, refusals, wrong input; and nodes that cannot start for what they are told
of their peers."""

from __future__ import annotations

import json
import re
import socket

import pytest

from govern.cli.parser import run
from govern.cli.reads import _state_lines

from .harness import Programs, free_port, free_ports

NODES_FIELDS = {"node_id", "clients", "peers", "candidate", "voter", "state", "primaries", "copies", "controller"}
MEMBERS_FIELDS = {"node_id", "disk_id", "voter", "match", "behind", "recent", "controller"}
TABLE_FIELDS = {"first", "last", "primary", "copies", "in_sync", "term"}
VERBS = ("nodes", "table", "members", "members add 2", "members promote 2", "members remove 2", "transfer", "reset 1", "forget 2")


async def test_a_cluster_of_one_for_people_and_for_scripts(programs: Programs) -> None:
    """One node is a cluster too: the same columns and shapes, and one line for what cannot be done with one."""
    node = await programs.node()
    expected = {
        "nodes": 0,
        "nodes --json": 0,
        "members": 0,
        "members --json": 0,
        "table": 0,
        "table --json": 0,
        "status": 0,
        "members add 2": 1,
        "members promote 1": 1,
        "members remove 1": 1,
        "transfer": 1,
        "transfer 1": 1,
        "reset 1": 1,
        "forget 1": 1,
    }
    told = await programs.each([words.split() for words in expected], connect=node.address)
    asked = dict(zip(expected, told, strict=True))
    for words, said in asked.items():
        assert (said.code, len(said.err.splitlines()), said.out == "") == (expected[words], expected[words], expected[words] == 1), said
    assert [line.split() for line in asked["nodes"].out.splitlines()] == [
        ["NODE", "CLIENTS", "PEERS", "CANDIDATE", "STATE", "PRIMARIES", "COPIES"],
        ["1", node.address, "-", "controller", "up", "16384", "16384"],
    ]
    assert re.fullmatch(r"NODE +PART +BEHIND +ANSWERS +DISK\n1 +controller +0 +yes +[0-9a-f]{32}\n", asked["members"].out)
    (member,) = json.loads(asked["members --json"].out)
    assert member.keys() == MEMBERS_FIELDS
    (row,) = json.loads(asked["nodes --json"].out)
    assert row.keys() >= NODES_FIELDS
    (run,) = json.loads(asked["table --json"].out)
    assert run.keys() >= TABLE_FIELDS
    assert (run["first"], run["last"], run["primary"], run["copies"], run["in_sync"]) == (0, 16383, 1, [1], [1])
    assert re.fullmatch(r"SLOTS +COUNT +PRIMARY +COPIES +IN SYNC +TERM\n0-16383 +16384 +1 +1 +1 +\d+\n", asked["table"].out)
    assert re.search(r"^candidates +1 voter$", asked["status"].out, re.MULTILINE)
    assert re.search(r"^links +none$", asked["status"].out, re.MULTILINE)
    texts = {
        "members add 2": "node 2 has not registered: start it with this cluster in its `peers`, then add it",
        "members promote 1": "node 1 is a voter already: there is nothing to promote",
        "members remove 1": "node 1 is the last voter: add and promote another one first",
        "transfer": "no other voter: members are 1",
        "reset 1": "node 1 has lost nothing: none of its copies was on a disk that it no longer has",
        "forget 1": "node 1 is up: stop it first",
    }
    for words, text in texts.items():
        assert asked[words].err == f"govern: {text}\n"


WRONG = {
    "members grow 2": "'grow'",
    "members add": "NODE",
    "members add two": "'two'",
    "members add 0": "node 0 is not usable: give an id from 1 to 65535",
    "members add 70000": "node 70000 is not usable",
    "members add 2 3": "there is no place for '3'",
    "transfer x": "'x'",
    "reset": "NODE",
    "forget -- -1": "node -1 is not usable",
    "nodes --jsn": "did you mean --json?",
    "table --connct x": "did you mean --connect?",
    "member add 2": "did you mean members?",
    "nodes 1": "there is no place for '1'",
    "recover --force-new-clustr --node-id 1 --data-dir x": "did you mean --force-new-cluster?",
    "recover --data-dir x": "--node-id",
    "recover --node-id 1": "--data-dir",
    "recover --node-id 1 --data-dir x": "--force-new-cluster",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input_is_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage ends with 2 and says what is right."""
    try:
        code: object = run(words.split())
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert WRONG[words] in err


@pytest.mark.parametrize(
    "words",
    [
        "lookup a/b?",
        "watch a/b?",
        "explain a/b?",
        "drain a/b? i1",
        "evict orders i?",
        "register a/b? --port 80",
        "register orders --port 80 --ttl 0.1",
    ],
)
def test_what_is_not_valid_is_refused_without_a_registry(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and what would be valid, before anything is dialled."""
    code = run([*words.split(), "--connect", f"127.0.0.1:{free_port()}", "--timeout", "0.3"])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert "is not valid" in err


@pytest.mark.parametrize("words", VERBS)
def test_a_registry_that_is_not_there(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No registry is exit code 3, and one line that names the address."""
    nobody = f"127.0.0.1:{free_port()}"
    code = run([*words.split(), "--connect", nobody, "--timeout", "0.3"])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (3, "", 1), err
    assert nobody in err


async def test_a_cluster_that_is_not_formed_yet_does_not_look_empty(programs: Programs) -> None:
    """One of three has started. Reads say what they wait for, `status` whom, and nothing is called empty."""
    ports = free_ports(3)
    peers = ",".join(f"{node_id}=127.0.0.1:{port}" for node_id, port in enumerate(ports, 1))
    node = await programs.node("--peers", peers)
    expected = {
        "lookup orders": (3, r"slot \d+ of default/orders is not assigned to a node yet; given up after 1 s"),
        "services": (3, r"no slot is assigned to a node yet; given up after 1 s"),
        "nodes": (1, r"there is no controller now; this is what node 1 knows"),
        "members": (1, r"there is no controller now: govern status tells why; try again when there is one"),
        "table": (1, r"16384 slots belong to nobody yet"),
        "status": (1, ""),
    }
    told = await programs.each([[*words.split(), "--timeout", "1"] for words in expected], connect=node.address)
    asked = dict(zip(expected, told, strict=True))
    for words, said in asked.items():
        code, text = expected[words]
        assert said.code == code, said
        assert re.fullmatch(f"govern: {text}\n" if text else "", said.err), said
        assert bool(said.out) == (words == "status"), said
    assert re.search(r"^degraded +the cluster is not formed yet: no link to nodes 2, 3$", asked["status"].out, re.MULTILINE)


async def test_a_node_says_what_is_wrong_with_its_peers(programs: Programs) -> None:
    """A peer port that is in use, and peers that make no sense: one line, exit code 1 or 2, and no ready line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        busy = f"127.0.0.1:{listener.getsockname()[1]}"
        wrong = [
            (f"--data-dir= --listen 127.0.0.1:0 --peer-listen {busy}", 1, f"cannot listen on {busy}: .*--peer-listen"),
            (
                f"--data-dir= --listen 127.0.0.1:0 --peers 1={busy},2=127.0.0.1:9,3=127.0.0.1:8",
                1,
                f"cannot listen on {busy}: .*--peer-listen",
            ),
            ("--peers 1=127.0.0.1", 2, "HOST:PORT"),
            ("--peers 127.0.0.1:7401", 2, "ID=HOST:PORT"),
            ("--peers 1=127.0.0.1:1,1=127.0.0.1:2", 2, "each ID once"),
            ("--peers 1=127.0.0.1:1,2=127.0.0.1:1", 2, "for two nodes"),
            ("--peers 0=127.0.0.1:1", 2, "from 1 to 65535"),
            ("--peers 1=0.0.0.0:1", 2, "under which the others reach it"),
            ("--peers 1=10.0.0.1:7401", 2, "insecure"),
            ("--candidate false", 2, "name them in peers"),
            ("--candidate=false --peers 1=127.0.0.1:1", 2, "take it out there"),
        ]
        told = await programs.each([flags.split() for flags, _, _ in wrong])
        for said, (_, code, text) in zip(told, wrong, strict=True):
            assert (said.code, said.out) == (code, ""), said
            *before, line = said.err.splitlines()
            assert all(re.match(r"\d{4}-\d\d-\d\dT\S+ (info|warning) ", each) for each in before), said  # what it logged on its way
            assert re.search(text, line), line


def test_the_state_of_a_cluster_is_readable() -> None:
    """Candidates are told in words, links as numbers, what is not there as none; long lines are wrapped."""
    reason = "no controller: candidates 2 and 3 cannot be reached, and 2 of 3 must agree on one; until then what is registered stays"
    state = {
        "controller": None,
        "candidates": [
            {"node_id": 1, "voter": True, "reachable": True, "behind": 0},
            {"node_id": 2, "voter": True, "reachable": False, "behind": 17},
            {"node_id": 3, "voter": False, "reachable": True, "behind": 1},
            {"node_id": 4, "voter": False, "reachable": False, "behind": None},
            {"node_id": 5, "voter": False, "reachable": True},  # a node of an older version
        ],
        "links": [4, 5],
        "degraded": [reason],
    }
    lines = _state_lines(state)
    assert lines[:7] == [
        "controller  none",
        "candidates  1 voter",
        "            2 voter, 17 entries behind, cannot be reached",
        "            3 learner, 1 entry behind",
        "            4 learner, cannot be reached",
        "            5 learner",
        "links       4, 5",
    ]
    assert " ".join(line[12:] for line in lines[7:]) == reason
    assert max(map(len, lines)) <= 80
    assert _state_lines({"candidates": [], "links": []}) == ["candidates  none", "links       none"]
