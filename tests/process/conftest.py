"""The fixture `programs`: child processes that never outlive their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Programs, raise_files_max


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where children keep what they compile, for each other."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def programs(tmp_path: Path, compiled: Path) -> Iterator[Programs]:
    raise_files_max()
    with Programs(tmp_path, compiled) as programs:
        yield programs
