"""The door for small files: one contract, two twins."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Callable

import pytest
import trio

from govern.environment import Files, real_environment
from govern.errors import StorageError
from govern.storage.files import MachineFiles
from govern.storage.sim import SimFiles


@pytest.fixture(params=["real", "simulated"])
def files(request: pytest.FixtureRequest) -> Files:
    """Both twins."""
    return MachineFiles() if request.param == "real" else SimFiles()


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    """A file that does not exist, in a directory that does."""
    return str(tmp_path / "views.json")


def giving(data: bytes) -> Callable[[], bytes]:
    return lambda: data


async def test_what_was_written_is_read(files: Files, path: str) -> None:
    """A file is created, replaced as a whole, also by something shorter, and read back."""
    assert await files.read(path, 100) is None
    for data in (b"a longer text", b"short", b""):
        await files.replace(path, giving(data))
        assert await files.read(path, 100) == data


async def test_a_file_that_is_too_large_is_refused(files: Files, path: str) -> None:
    """Nothing larger than asked for is ever taken into memory."""
    await files.replace(path, giving(b"12345"))
    assert await files.read(path, 5) == b"12345"
    with pytest.raises(StorageError, match="larger than 4"):
        await files.read(path, 4)


async def test_contents_that_cannot_be_built_leave_the_file(files: Files, path: str) -> None:
    """An error of `make` comes out, and the former file is still there."""
    await files.replace(path, giving(b"former"))

    def fail() -> bytes:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await files.replace(path, fail)
    assert await files.read(path, 100) == b"former"


async def test_a_cancelled_operation_has_no_half_effect(files: Files, path: str) -> None:
    """Cancelled before it began, nothing has happened."""
    await files.replace(path, giving(b"former"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await files.replace(path, giving(b"new"))
    assert scope.cancelled_caught
    assert await files.read(path, 100) == b"former"


async def test_many_writers_never_mix(files: Files, path: str) -> None:
    """Writers of one path at the same time: afterwards it is one of theirs, whole."""
    texts = [bytes([letter]) * 50_000 for letter in b"abcdefgh"]
    async with trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(files.replace, path, giving(text))
    assert await files.read(path, 100_000) in texts


# --- the real one -------------------------------------------------------------------------------------------------------------


async def test_only_the_owner_can_read_it_and_nothing_is_left_beside_it(path: str) -> None:
    """Mode 0600, and no unfinished file stays."""
    files = real_environment().files
    assert files is not None
    await files.replace(path, giving(b"x"))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == ["views.json"]


async def test_what_the_system_refuses_is_one_line(tmp_path: pathlib.Path) -> None:
    """A missing directory, and a directory in the file's place: the error names the path."""
    files = MachineFiles()
    with pytest.raises(StorageError, match=r"cannot write .*/nowhere/x: No such file"):
        await files.replace(str(tmp_path / "nowhere" / "x"), giving(b"x"))
    with pytest.raises(StorageError, match="cannot read"):
        await files.read(str(tmp_path), 100)
    with pytest.raises(StorageError, match="cannot write"):
        await files.replace(str(tmp_path), giving(b"x"))
    assert os.listdir(tmp_path) == []


async def test_an_unfinished_file_of_a_dead_process_does_no_harm(path: str) -> None:
    """Whatever lies beside the file is ignored and, under the same name, written over."""
    files = MachineFiles()
    await files.replace(path + ".1-2.new", giving(b"half"))
    await files.replace(path, giving(b"whole"))
    assert await files.read(path, 100) == b"whole"
