"""The examples do what they say."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from pathlib import Path

import trio

from .harness import REPOSITORY, Program, Programs, free_ports, wait_until

EXAMPLES = REPOSITORY / "examples"
STORIES = ("quickstart.py", "embedded.py", "rolling_restart.py", "crash_test.py")
PARTS = ("greeter.py", "caller.py", "polite_greeter.py")  # run by the stories


async def test_the_quickstart_tells_its_whole_story_in_time(programs: Programs, tmp_path: Path) -> None:
    """The quickstart ends by itself in less than 15 s with exit code 0, after its caller was told of the killed greeter."""
    started_at = trio.current_time()
    quickstart = Program("quickstart", [sys.executable, str(EXAMPLES / "quickstart.py")], tmp_path, programs.environment())
    try:
        assert await quickstart.wait_exit() == 0, quickstart.err
    finally:
        quickstart.process.terminate()
    assert trio.current_time() - started_at < 15
    assert quickstart.err == ""
    assert "is killed with SIGKILL" in quickstart.out
    assert " is gone." in quickstart.out
    assert quickstart.out.endswith("Everything happened as it should.\n")
    assert max(map(len, quickstart.out.splitlines())) <= 80


async def test_a_registry_inside_a_program(programs: Programs, tmp_path: Path) -> None:
    """The embedded example registers, updates and removes, and is told of each."""
    embedded = Program("embedded", [sys.executable, str(EXAMPLES / "embedded.py")], tmp_path, programs.environment())
    try:
        assert await embedded.wait_exit() == 0, embedded.err
    finally:
        embedded.process.kill()
    assert [line.partition(":")[0] for line in embedded.out.splitlines()] == ["added", "updated", "removed"]


async def test_a_rolling_restart_fails_no_call(programs: Programs, tmp_path: Path) -> None:
    """The rolling restart ends by itself in less than 20 s: all three servers were replaced, each drain had its caller's
    acknowledgement, and of all calls none failed."""
    started_at = trio.current_time()
    restart = Program("restart", [sys.executable, str(EXAMPLES / "rolling_restart.py")], tmp_path, programs.environment())
    try:
        assert await restart.wait_exit() == 0, restart.err
    finally:
        restart.process.terminate()
    assert trio.current_time() - started_at < 20
    assert restart.err == ""
    assert restart.out.count(": drained (1 told, 0 missing)") == 3
    assert restart.out.count("its successor at") == 3
    calls = re.fullmatch(r"All three were replaced: (\d+) calls were answered, 0 failed\.", restart.out.splitlines()[-1])
    assert calls is not None, restart.out
    assert int(calls[1]) >= 100


async def test_a_service_tested_against_a_crash_of_the_registry(programs: Programs, tmp_path: Path) -> None:
    """The crash test passes as a program: the service went on for the minute in which the registry was down."""
    crash = Program("crash", [sys.executable, str(EXAMPLES / "crash_test.py")], tmp_path, programs.environment())
    try:
        assert await crash.wait_exit() == 0, crash.err
    finally:
        crash.process.kill()
    assert "refused none" in crash.out


def copy_cluster3(directory: Path) -> tuple[Path, list[int]]:
    """A copy of the cluster's example in which each of its readable fixed ports is a free one: its program, and the ports, those for
    clients first. So it can run beside another checkout's, and beside one that somebody looks at."""
    copy = directory / "cluster3"
    shutil.copytree(EXAMPLES / "cluster3", copy, ignore=lambda _, names: [name for name in names if not name.endswith((".toml", ".py"))])
    written = ("7411", "7412", "7413", "7421", "7422", "7423")
    ports = free_ports(len(written))
    for path in copy.iterdir():
        text = path.read_text()
        if path.name == "start.py":
            assert text.count('f"127.0.0.1:741{number}"') == 1
            text = text.replace('f"127.0.0.1:741{number}"', 'f"127.0.0.1:{PORTS[number]}"')
            text = text.replace("HERE = ", f"PORTS = {dict(zip((1, 2, 3), ports, strict=False))}\nHERE = ", 1)
        for before, port in zip(written, ports, strict=True):
            text = text.replace(f"127.0.0.1:{before}", f"127.0.0.1:{port}")
        assert "127.0.0.1:74" not in text, path
        path.write_text(text)
    return copy / "start.py", ports


async def test_a_cluster_from_three_files_survives_its_controller(programs: Programs, tmp_path: Path) -> None:
    """The story of the three nodes ends by itself: all started, the controller was killed, and a service on another node was changed while
    there was a new one. Without a story they stay until a signal ends all of them. Where a port is in use nothing is left running."""
    start, ports = copy_cluster3(tmp_path)
    cluster = Program("cluster3", [sys.executable, str(start), "--story"], tmp_path, programs.environment())
    try:
        assert await cluster.wait_exit(120) == 0, cluster.err
    finally:
        cluster.process.terminate()
    lines = cluster.out.splitlines()
    ready = [f"govern node {number} ready: clients 127.0.0.1:{port}, " for number, port in zip((1, 2, 3), ports, strict=False)]
    assert [line.startswith(text) for line, text in zip(lines, ready, strict=False)] == [True] * 3, lines
    assert re.search(r"^All 16384 slots are assigned, [0-9.]+ s after", cluster.out, re.MULTILINE)
    assert re.search(r"^Now node (\d) is killed with SIGKILL\.\nNode (?!\1)\d is the controller now\.$", cluster.out, re.MULTILINE)
    assert lines[-1] == "Everything happened as it should."
    cluster = Program("cluster3", [sys.executable, str(start)], tmp_path, programs.environment())
    try:
        await wait_until(lambda: "Ctrl-C stops it.\n" in cluster.out, "a cluster that stays", 120)
        cluster.process.terminate()
        assert await cluster.wait_exit(30) == 0, cluster.err
    finally:
        cluster.process.kill()
    with socket.create_server(("127.0.0.1", ports[0])):
        cluster = Program("cluster3", [sys.executable, str(start)], tmp_path, programs.environment())
        try:
            assert await cluster.wait_exit(30) == 1, cluster.out
        finally:
            cluster.process.kill()
    *_, said, last = cluster.err.splitlines()
    assert re.search(rf"cannot listen on 127\.0\.0\.1:{ports[0]}: something listens there already", said), cluster.err
    assert last == "node 1 did not start: what it says stands above"
    for port in ports:  # no node was left behind
        socket.create_server(("127.0.0.1", port)).close()


def test_every_example_is_run() -> None:
    """No example is left out of these tests and of ./check."""
    tests = [path.name for path in EXAMPLES.glob("test_*.py")]
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted((*PARTS, *STORIES, *tests))
    assert all(f"examples/{name}" in (REPOSITORY / "check").read_text() for name in tests)
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__") == ["cluster3"]
    assert "examples/cluster3/start.py --story" in (REPOSITORY / "check").read_text()
    (names,) = re.findall(r"for example in ([a-z_ ]+); do", (REPOSITORY / "check").read_text())
    assert sorted(f"{name}.py" for name in names.split()) == sorted(STORIES)
