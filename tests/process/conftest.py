"""The fixture `programs`: child processes that never outlive their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Programs, raise_files_max


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    raise_files_max()
    with Programs(tmp_path) as programs:
        yield programs
