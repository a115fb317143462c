"""The storage door: one contract, two twins. Whatever a test of the simulated disk proves, the real one must be able to keep."""

from __future__ import annotations

import os
import pathlib
import random
import stat
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from govern.errors import DirectoryInUse, NoSpace, StorageError, StorageFailed
from govern.storage.files import DirectoryStorage
from govern.storage.prefix import PrefixedStorage
from govern.storage.sim import SimStorage

if TYPE_CHECKING:
    from govern.environment import Storage


class RealTwin:
    """A directory of this machine."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path / "data"
        self.storage: Storage = DirectoryStorage(str(self.path))

    def second_door(self) -> Storage:
        return DirectoryStorage(str(self.path))


class SimulatedTwin:
    """A simulated directory."""

    def __init__(self) -> None:
        self._storage = SimStorage(random.Random(1))
        self.storage: Storage = self._storage

    def second_door(self) -> Storage:
        return self._storage.second_door()


@pytest.fixture(params=["real", "simulated"])
def twin(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> RealTwin | SimulatedTwin:
    return RealTwin(tmp_path) if request.param == "real" else SimulatedTwin()


async def test_a_file_is_called_by_the_path_of_the_directory_and_its_name(twin: RealTwin | SimulatedTwin) -> None:
    """`path` is for people: it needs no lock, and the file need not exist."""
    assert twin.storage.path("a") == f"{twin.storage.name}/a"


async def test_a_view_with_a_prefix_is_a_directory_of_its_own(twin: RealTwin | SimulatedTwin) -> None:
    """Under the prefix a file is created, opened, renamed, listed and removed without its prefix; nothing else is seen or touched."""
    view = PrefixedStorage(twin.storage, "raft-")
    await twin.storage.lock()
    await (await twin.storage.create("a", 1)).close()
    file = await view.create("a", 3)
    await file.write_durable(0, b"abc")
    await file.close()
    await view.sync_directory()
    assert await view.list() == ["a"]
    assert await twin.storage.list() == ["a", "raft-a"]
    assert view.path("a") == f"{twin.storage.name}/raft-a"
    assert view.name == twin.storage.name
    await view.rename("a", "b")
    file = await view.open("b")
    assert await file.read(0, 9) == b"abc"
    await file.close()
    with pytest.raises(FileNotFoundError):
        await view.open("a")
    await view.remove("b")
    assert await twin.storage.list() == ["a"]
    for call in (view.lock, view.unlock):
        with pytest.raises(AssertionError, match="whoever opened the directory"):
            await call()
    await twin.storage.unlock()


async def test_a_created_file_is_zeros_of_the_size_asked(twin: RealTwin | SimulatedTwin) -> None:
    """`create` gives really that many zero bytes, and `read` stops at the end of the file."""
    await twin.storage.lock()
    file = await twin.storage.create("a", 3_000_000)
    assert file.size == 3_000_000
    assert await file.read(2_999_990, 100) == bytes(10)
    assert await file.read(3_000_000, 10) == b""
    await file.close()
    await twin.storage.unlock()


async def test_what_was_written_is_read_and_the_size_grows(twin: RealTwin | SimulatedTwin) -> None:
    """Writes overlay what was there; a write beyond the end grows the file and leaves zeros between; another opener sees the same."""
    await twin.storage.lock()
    file = await twin.storage.create("a", 10)
    await file.write(2, b"xyz")
    await file.write_durable(15, b"end")
    assert file.size == 18
    await file.sync()
    assert await file.read(0, 100) == b"\0\0xyz" + bytes(10) + b"end"
    await file.close()
    again = await twin.storage.open("a")
    assert again.size == 18
    assert await again.read(1, 4) == b"\0xyz"
    await again.close()
    await again.close()  # closing twice is allowed
    await twin.storage.unlock()


async def test_names(twin: RealTwin | SimulatedTwin) -> None:
    """Names are listed sorted and without the lock; rename replaces; removing what is not there is no error; opening it is."""
    await twin.storage.lock()
    for name, text in (("c", b"see"), ("a", b"ay"), ("b", b"bee")):
        file = await twin.storage.create(name, 0)
        await file.write(0, text)
        await file.close()
    assert await twin.storage.list() == ["a", "b", "c"]
    await twin.storage.rename("a", "b")
    await twin.storage.remove("c")
    await twin.storage.remove("c")
    await twin.storage.sync_directory()
    assert await twin.storage.list() == ["b"]
    file = await twin.storage.open("b")
    assert await file.read(0, 9) == b"ay"
    await file.close()
    with pytest.raises(FileNotFoundError):
        await twin.storage.open("a")
    with pytest.raises(StorageFailed):
        await twin.storage.rename("a", "z")
    await twin.storage.unlock()


async def test_create_replaces_and_an_open_file_keeps_its_own(twin: RealTwin | SimulatedTwin) -> None:
    """A new file of an old name does not touch what an earlier opener reads."""
    await twin.storage.lock()
    old = await twin.storage.create("a", 0)
    await old.write(0, b"old")
    new = await twin.storage.create("a", 2)
    assert await new.read(0, 9) == b"\0\0"
    assert await old.read(0, 9) == b"old"
    await old.close()
    await new.close()
    await twin.storage.unlock()


async def test_the_lock_keeps_others_out_until_it_is_given_back(twin: RealTwin | SimulatedTwin) -> None:
    """A second node of the same process is refused with one line that names the directory; after `unlock` it gets in."""
    other = twin.second_door()
    await twin.storage.lock()
    with pytest.raises(DirectoryInUse) as caught:
        await other.lock()
    assert twin.storage.name in str(caught.value)
    assert "\n" not in str(caught.value)
    await twin.storage.unlock()
    await other.lock()
    with pytest.raises(DirectoryInUse):
        await twin.storage.lock()
    await other.unlock()
    await twin.storage.lock()
    await twin.storage.unlock()


async def test_every_operation_is_a_checkpoint(twin: RealTwin | SimulatedTwin) -> None:
    """Nothing here can keep the loop for itself, on either twin."""
    storage = twin.storage
    with trio.testing.assert_checkpoints():
        await storage.lock()
    with trio.testing.assert_checkpoints():
        file = await storage.create("a", 1)
    with trio.testing.assert_checkpoints():
        await file.write(0, b"x")
    with trio.testing.assert_checkpoints():
        await file.read(0, 1)
    with trio.testing.assert_checkpoints():
        await file.write_durable(0, b"y")
    with trio.testing.assert_checkpoints():
        await file.sync()
    with trio.testing.assert_checkpoints():
        await file.close()
    with trio.testing.assert_checkpoints():
        await (await storage.open("a")).close()
    with trio.testing.assert_checkpoints():
        await storage.list()
    with trio.testing.assert_checkpoints():
        await storage.rename("a", "b")
    with trio.testing.assert_checkpoints():
        await storage.remove("b")
    with trio.testing.assert_checkpoints():
        await storage.sync_directory()
    with trio.testing.assert_checkpoints():
        await storage.unlock()


async def test_cancelled_before_it_began_an_operation_did_nothing(twin: RealTwin | SimulatedTwin) -> None:
    """Under a cancelled scope no operation has an effect, except that closing and unlocking still do."""
    await twin.storage.lock()
    file = await twin.storage.create("a", 3)
    with trio.CancelScope() as scope:
        scope.cancel()
        await file.write_durable(0, b"abc")
    assert scope.cancelled_caught
    assert await file.read(0, 3) == bytes(3)
    with trio.CancelScope() as scope:
        scope.cancel()
        await twin.storage.remove("a")
    assert await twin.storage.list() == ["a"]
    with trio.CancelScope() as scope:
        scope.cancel()
        await file.close()
    with trio.CancelScope() as scope:
        scope.cancel()
        await twin.storage.unlock()
    other = twin.second_door()
    await other.lock()
    await other.unlock()


# --- the real one alone -------------------------------------------------------------------------------------------------------


async def test_modes(tmp_path: pathlib.Path) -> None:
    """A new directory is 0700 and every file in it 0600, whatever the umask would allow; an existing directory keeps its mode."""
    storage = DirectoryStorage(str(tmp_path / "deep" / "data"))
    await storage.lock()
    await (await storage.create("a", 1)).close()
    assert stat.S_IMODE((tmp_path / "deep" / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "deep" / "data" / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "deep" / "data" / "lock").stat().st_mode) == 0o600
    await storage.unlock()
    (tmp_path / "mine").mkdir(mode=0o750)
    storage = DirectoryStorage(str(tmp_path / "mine"))
    await storage.lock()
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o750
    await storage.unlock()


async def test_who_holds_the_lock(tmp_path: pathlib.Path) -> None:
    """The refusal tells another node of this process from another process, and names that process."""
    first, second = DirectoryStorage(str(tmp_path)), DirectoryStorage(str(tmp_path))
    await first.lock()
    with pytest.raises(DirectoryInUse, match="another node of this process"):
        await second.lock()
    (tmp_path / "lock").write_text("4711\n")
    with pytest.raises(DirectoryInUse, match="process 4711"):
        await second.lock()
    (tmp_path / "lock").write_text("")
    with pytest.raises(DirectoryInUse, match="another process"):
        await second.lock()
    await first.unlock()


async def test_unusable_directories_are_refused_with_one_line(tmp_path: pathlib.Path) -> None:
    """A file in the way, a path below a file, a directory in which nothing can be made, a lock that is a link: one line each."""
    (tmp_path / "file").write_text("")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "lock").symlink_to(tmp_path / "file")
    for path, what in (
        (str(tmp_path / "file"), "is not a directory"),
        (str(tmp_path / "file" / "data"), "is not a directory"),
        ("/proc/govern-data", "name another data_dir"),
        (str(tmp_path / "linked"), "symbolic link"),
    ):
        storage = DirectoryStorage(path)
        with pytest.raises(StorageError, match=what) as caught:
            await storage.lock()
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
async def test_a_directory_without_permission_is_refused(tmp_path: pathlib.Path) -> None:
    """Also when the lock file is there already and only new files are impossible."""
    storage = DirectoryStorage(str(tmp_path))
    await storage.lock()
    await storage.unlock()
    os.chmod(tmp_path, 0o500)
    with pytest.raises(StorageError, match="no permission"):
        await storage.lock()
    os.chmod(tmp_path, 0o700)


async def test_links_are_not_followed_and_other_things_are_no_files(tmp_path: pathlib.Path) -> None:
    """A name in the directory that is a link or a directory is a failure, not a way out of the directory."""
    outside = tmp_path / "outside"
    outside.write_text("secret")
    data = tmp_path / "data"
    storage = DirectoryStorage(str(data))
    await storage.lock()
    (data / "link").symlink_to(outside)
    (data / "folder").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(StorageFailed):
            await storage.open(name)
    file = await storage.create("link", 1)  # replaces the link, not what it points to
    await file.close()
    assert outside.read_text() == "secret"
    await storage.unlock()


async def test_a_full_file_system_leaves_no_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`create` on a full disk raises `NoSpace` and takes its file away; an error of the disk is `StorageFailed`."""
    storage = DirectoryStorage(str(tmp_path))
    await storage.lock()
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset >= 1 << 20:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:1000], offset)  # short writes are continued

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpace, match="free some space"):
        await storage.create("a", 2 << 20)
    assert await storage.list() == []
    await (await storage.create("b", 5000)).close()

    def broken(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    file = await storage.open("b")
    assert file.size == 5000
    with pytest.raises(StorageFailed, match="Input/output error"):
        await file.write(0, b"x")
    await file.close()
    await storage.unlock()


async def test_several_list_at_once_and_each_sees_everything(twin: RealTwin | SimulatedTwin) -> None:
    """Two logs begin to load at the same moment. Whoever shared a place in the directory with somebody else would miss files, and take a
    log that is there for one that was never begun."""
    await twin.storage.lock()
    names = [f"file-{number:03}" for number in range(100)]
    for name in names:
        await (await twin.storage.create(name, 0)).close()
    seen: list[list[str]] = []

    async def look() -> None:
        for _ in range(50):
            seen.append(list(await twin.storage.list()))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(look)
    assert [each for each in seen if each != names] == []
