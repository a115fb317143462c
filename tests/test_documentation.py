"""The examples of the pages run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

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
