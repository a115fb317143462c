"""The real storage door: one directory of the file system. The only module of govern with threads.

Every operation that can wait for the disk runs in a thread and is never abandoned: cancelled before it began it did nothing, cancelled
later it is waited for. The threads are this directory's own few, so that other work in threads cannot keep a sync waiting.

The directory is made with mode 0700 and files with 0600; an existing directory keeps its mode. Files are opened relative to the open
directory, never through a symbolic link, and never inherited by a child. The lock is `flock` on the file `lock`, held by an open file
description of its own: it keeps out other processes and other nodes of this process alike, and the kernel drops it with the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, TypeVar

import trio

from ..errors import DirectoryInUse, NoSpace, StorageError, StorageFailed

T = TypeVar("T")

LOCK_NAME: Final = "lock"
PROBE_NAME: Final = "lock.probe"
THREADS_MAX: Final = 4
_ZEROS: Final = bytes(1 << 20)
_OUT_OF_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


def _sync_data(descriptor: int) -> None:
    """Make the bytes of a file durable, and its size, but not its times."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone leaves the bytes in the cache of the drive there
    else:
        os.fdatasync(descriptor)


def _sync_all(descriptor: int) -> None:
    """Make a file or a directory durable with everything that belongs to it."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _write_all(descriptor: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


class DirectoryFile:
    """An open file of a `DirectoryStorage`."""

    def __init__(self, storage: DirectoryStorage, name: str, descriptor: int, size: int) -> None:
        self._storage = storage
        self._name = name
        self._descriptor = descriptor
        self._size = size

    def __repr__(self) -> str:
        return f"<DirectoryFile {self._storage.name}/{self._name}, {self._size} bytes>"

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, size: int) -> bytes:
        return await self._storage.in_thread(f"reading {self._name}", lambda: os.pread(self._descriptor, size, offset))

    async def write(self, offset: int, data: bytes) -> None:
        await self._storage.in_thread(f"writing {self._name}", lambda: _write_all(self._descriptor, offset, data))
        self._size = max(self._size, offset + len(data))

    async def write_durable(self, offset: int, data: bytes) -> None:
        def write_and_sync() -> None:
            _write_all(self._descriptor, offset, data)
            _sync_data(self._descriptor)

        await self._storage.in_thread(f"writing {self._name}", write_and_sync)
        self._size = max(self._size, offset + len(data))

    async def sync(self) -> None:
        await self._storage.in_thread(f"syncing {self._name}", lambda: _sync_data(self._descriptor))

    async def close(self) -> None:
        """Closes even when it is cancelled, and at once: a local file with nothing to flush closes without waiting."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        await trio.lowlevel.checkpoint()


class DirectoryStorage:
    """The directory at `path`; nothing is touched before `lock`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self._directory = -1
        self._lock = -1

    def __repr__(self) -> str:
        return f"<DirectoryStorage {self._path}{', locked' if self._lock >= 0 else ''}>"

    @property
    def name(self) -> str:
        return self._path

    def path(self, name: str) -> str:
        return f"{self._path}/{name}"

    async def in_thread(self, what: str, work: Callable[[], T]) -> T:
        """Run blocking work in a thread, wait for it whatever happens, and give errors of the system the names of the house."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            if error.errno in _OUT_OF_SPACE:
                raise NoSpace(f"{self._path} is full ({what}): free some space") from error
            raise StorageFailed(f"{what} in {self._path} failed: {error.strerror or error}: check the disk") from error

    # --- the lock -----------------------------------------------------------------------------------------------------------

    async def lock(self) -> None:
        assert self._lock < 0, "locked already"
        await trio.to_thread.run_sync(self._lock_in_thread, limiter=self._limiter)

    def _lock_in_thread(self) -> None:
        try:
            _make_directories(os.path.abspath(self._path))
            self._directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._lock = self._open(LOCK_NAME, os.O_RDWR | os.O_CREAT)
            self._flock()
            # The lock file may be older than the loss of our permission to write here, so a file is really made.
            os.close(self._open(PROBE_NAME, os.O_WRONLY | os.O_CREAT))
            os.unlink(PROBE_NAME, dir_fd=self._directory)
            os.ftruncate(self._lock, 0)
            _write_all(self._lock, 0, f"{os.getpid()}\n".encode())
        except OSError as error:
            self._unlock_now()
            self._refuse(error)
        except StorageError:
            self._unlock_now()
            raise

    def _flock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(self._lock, 32, 0).strip()
            holder = int(text) if text.isdigit() else None
            who = "another process" if holder is None else f"process {holder}"
            if holder == os.getpid():
                who = "another node of this process"
            raise DirectoryInUse(
                f"the data directory {self._path} is in use by {who}: stop that one, or give this one another data_dir"
            ) from None
        except OSError as error:
            raise StorageError(
                f"the file system of {self._path} cannot lock files ({error.strerror}): put data_dir on a local disk"
            ) from error

    def _refuse(self, error: OSError) -> NoReturn:
        """One line for each way in which a directory can be unusable."""
        if error.errno in _OUT_OF_SPACE:
            raise NoSpace(f"no space is left in the data directory {self._path}: free some, then start again") from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            reason = "it, or what it lies in, is not a directory: name another data_dir"
        elif error.errno == errno.EROFS:
            reason = "its file system is mounted read-only: mount it for writing, or name another data_dir"
        elif isinstance(error, PermissionError):
            reason = f"this user (uid {os.geteuid()}) has no permission: change the owner of the directory, or name another data_dir"
        elif error.errno == errno.ELOOP:
            reason = "a file in it is a symbolic link: remove the link, or name another data_dir"
        else:
            reason = f"{error.strerror or error}: name another data_dir"
        raise StorageError(f"cannot use the data directory {self._path}: {reason}") from error

    def _unlock_now(self) -> None:
        for descriptor in (self._lock, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._directory = -1

    async def unlock(self) -> None:
        """Unlocks even when it is cancelled."""
        self._unlock_now()
        await trio.lowlevel.checkpoint()

    # --- names --------------------------------------------------------------------------------------------------------------

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._directory)

    async def list(self) -> Sequence[str]:
        """The names of everything in the directory but the door's own lock."""

        def list_() -> list[str]:
            # A descriptor of its own: those that are duplicated share one place in the directory, and two threads would miss names.
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
            try:
                return os.listdir(descriptor)
            finally:
                os.close(descriptor)

        names = await self.in_thread("listing files", list_)
        return sorted(name for name in names if name not in (LOCK_NAME, PROBE_NAME))

    async def create(self, name: str, size: int) -> DirectoryFile:
        def create() -> int:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
            descriptor = self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                for offset in range(0, size, len(_ZEROS)):
                    # Real zeros: a hole, or space that is only reserved, would make a later sync write metadata as well. Synced piece by
                    # piece, so that the syncs of others never wait behind the whole of it.
                    _write_all(descriptor, offset, _ZEROS[: size - offset])
                    _sync_data(descriptor)
                _sync_all(descriptor)
            except OSError as error:
                os.close(descriptor)
                if error.errno in _OUT_OF_SPACE:
                    os.unlink(name, dir_fd=self._directory)
                raise
            return descriptor

        return DirectoryFile(self, name, await self.in_thread(f"creating {name}", create), size)

    async def open(self, name: str) -> DirectoryFile:
        def open_() -> tuple[int, int]:
            try:
                descriptor = self._open(name, os.O_RDWR)
            except FileNotFoundError:
                return -1, 0
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "not a regular file")
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # read what the disk has, not what the cache remembers
            return descriptor, status.st_size

        descriptor, size = await self.in_thread(f"opening {name}", open_)
        if descriptor < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(name))
        return DirectoryFile(self, name, descriptor, size)

    async def rename(self, old: str, new: str) -> None:
        await self.in_thread(f"renaming {old}", lambda: os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory))

    async def remove(self, name: str) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)

        await self.in_thread(f"removing {name}", remove)

    async def sync_directory(self) -> None:
        await self.in_thread("syncing the directory", lambda: _sync_all(self._directory))


class MachineFiles:
    """The real door for small files: each is written beside its place and then renamed into it. A symbolic link at the path is replaced."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(THREADS_MAX)

    def __repr__(self) -> str:
        return "<MachineFiles>"

    async def _in_thread(self, what: str, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        except OSError as error:
            kind = NoSpace if error.errno in _OUT_OF_SPACE else StorageError
            raise kind(f"cannot {what}: {error.strerror or error}") from error

    async def read(self, path: str, bytes_max: int) -> bytes | None:
        def read() -> bytes | None:
            try:
                with open(path, "rb") as file:
                    return file.read(bytes_max + 1)
            except FileNotFoundError:
                return None

        data = await self._in_thread(f"read {path}", read)
        if data is not None and len(data) > bytes_max:
            raise StorageError(f"cannot read {path}: it is larger than {bytes_max} bytes")
        return data

    async def replace(self, path: str, make: Callable[[], bytes]) -> None:
        def replace() -> None:
            data = make()
            # Unique among all that write now, so nobody renames half a file of somebody else; and used again after a crash.
            new = f"{path}.{os.getpid()}-{threading.get_ident()}.new"
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, 0, data)
                _sync_data(descriptor)
            except OSError:
                os.unlink(new)
                raise
            finally:
                os.close(descriptor)
            os.rename(new, path)
            directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _sync_all(directory)
            finally:
                os.close(directory)

        await self._in_thread(f"write {path}", replace)


def _make_directories(path: str) -> None:
    """Make a directory and what it lies in, each durable in its parent, unless they exist."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        _make_directories(parent)
    os.mkdir(path, 0o700)
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync_all(descriptor)
    finally:
        os.close(descriptor)
