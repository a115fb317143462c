"""The examples of the pages run as they stand, and the shapes that they promise are those that come."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

import govern

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```python\n((?:import trio\n\n)?import govern\.testing\n.*?)```", re.DOTALL)
TESTS = {
    "README.md": ["test_the_list_outlives_the_registry"],
    "docs/testing.md": ["test_the_list_outlives_the_registry", "test_nobody_notices_a_new_controller"],
}


@pytest.mark.parametrize(("page", "number"), [(page, number) for page, tests in TESTS.items() for number in range(len(tests))])
async def test_the_example_of_the_testing_tools_runs(page: str, number: int, autojump_clock: MockClock) -> None:
    """It is there, and passes when it is pasted into a file."""
    sources = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert len(sources) == len(TESTS[page])
    names: dict[str, Any] = {}
    exec(compile(sources[number], page, "exec"), names)
    await names[TESTS[page][number]](autojump_clock)


def promised() -> dict[str, list[str]]:
    """The words that the page names for each verb, in its table of JSON shapes; a row without a verb goes on with the one above."""
    found: dict[str, list[str]] = {}
    verb = ""
    for row in re.findall(r"^\|(.*)\|(.*)\|$", (ROOT / "docs/operations.md").read_text(encoding="utf-8"), re.MULTILINE):
        (verb,) = re.findall(r"^ `(\w+)` $", row[0]) or [verb]
        found.setdefault(verb, []).extend(re.findall(r"`(\w+)`", row[1]))
    return found


async def test_every_field_that_scripts_get_is_promised() -> None:
    """The page and the code name the same: what a client reads, a script gets."""
    words = promised()
    async with govern.open_node() as node, govern.connect(node) as registry, registry.register("orders", port=80):
        status = await registry.status()
        (instance,) = await registry.lookup("orders")
        (service,) = await registry.services()
        answer = await registry.administer("nodes")
    assert status.keys() <= set(words["status"])
    assert instance.to_json().keys() <= set(words["lookup"])
    assert service.to_json().keys() <= set(words["services"])
    assert answer["nodes"][0].keys() <= set(words["nodes"])
    assert answer["members"][0].keys() <= set(words["members"])
    assert status["candidates"][0].keys() <= set(words["status"])
