"""The examples do what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from .harness import REPOSITORY, Program, Programs

EXAMPLES = REPOSITORY / "examples"
PARTS = ("greeter.py", "caller.py")  # run by the quickstart


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


def test_every_example_is_run() -> None:
    """No example is left out of these tests."""
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted((*PARTS, "quickstart.py", "embedded.py"))
