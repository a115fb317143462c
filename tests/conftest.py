"""What all tests share: the `--rewrite` option, and hypothesis without luck.

`pytest --rewrite` writes the kept data below `tests/data/` afresh instead of comparing with it: golden bytes, and the outputs in
transcripts (`datadriven.py`). Use it when a format or a rule was changed on purpose, and read the difference before committing it:
golden bytes that change break every older version on the wire or on the disk.

Hypothesis draws the same examples in every run, and measures no time: a test that fails once fails always.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("govern", deadline=None, derandomize=True)
settings.load_profile("govern")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the golden data of tests/data afresh instead of comparing with it")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """True when golden data is to be written, not compared."""
    return bool(request.config.getoption("--rewrite"))


@pytest.hookimpl(optionalhook=True)  # a run without pytest-xdist has nobody who asks
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: two more than there are processors, because the tests of real processes mostly wait."""
    return (os.cpu_count() or 1) + 2
