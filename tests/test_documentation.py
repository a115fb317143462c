"""The examples of the pages run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```python\n(import govern\.testing\n.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/testing.md"])
async def test_the_example_of_the_testing_tools_runs(page: str, autojump_clock: MockClock) -> None:
    """It is there, and passes when it is pasted into a file."""
    (source,) = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec(compile(source, page, "exec"), names)
    await names["test_the_list_outlives_the_registry"](autojump_clock)
