"""The four doors: everything that can differ between two runs of a node comes through one of them.

    network   streams for peers, dialling and administration; a poller for the thousands of client connections
    storage   one data directory; for clients, which have none, `files`: small files anywhere
    random    every id and every jitter
    clock     `boot_us`, which counts suspended time, and `wall`, for people only

Timers are not a door: they are trio's, and trio's clock is virtual in a simulation.

Each door is a small protocol with two twins that stand side by side: the real one (`net/tcp.py`, `storage/files.py`, and the two
classes below) and the simulated one (`net/sim.py`, `storage/sim.py`, `testing/`). One suite of contract tests runs against both.
Nobody else in the house opens a socket or a file, reads a clock or draws a number.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
import trio

from .net.tcp import TcpNetwork
from .storage.files import DirectoryStorage, MachineFiles

# --- network ----------------------------------------------------------------------------------------------------------------


class Connection(Protocol):
    """One accepted client connection, without tasks: all methods return at once and none of them raises for what the other side did."""

    owner: object
    """Room for the one object that belongs to this connection; None at first."""

    @property
    def peer(self) -> str:
        """The address of the other side, `host` only."""

    @property
    def local_host(self) -> str:
        """The address on which the other side reached this node."""

    def recv(self) -> bytes | None:
        """What has arrived, at most 256 KiB; None when there is nothing now; `b""` when the other side closed or the connection broke."""

    def send(self, data: bytes) -> int:
        """How many of the bytes were taken, possibly 0; -1 when the connection is broken (then `recv` gives `b""` as well)."""

    def want_write(self, wanted: bool) -> None:
        """While True, the connection is also ready when it can take more bytes."""

    def want_read(self, wanted: bool) -> None:
        """While False, bytes to read do not make the connection ready; `recv` still works. True at first. At least one of reading and
        writing is wanted at any time."""

    def close(self) -> None:
        """Close now; it is never in `ready` again. Closing twice is allowed."""


class Poller(Protocol):
    """All client connections of one listening address, and one place to wait for them."""

    @property
    def address(self) -> tuple[str, int]:
        """The address that is really bound: the port is not 0."""

    async def wait(self) -> None:
        """Wait until a connection is ready or a new one can be accepted. A checkpoint, also when something is ready at once."""

    def accept(self, limit: int) -> Sequence[Connection]:
        """New connections, at most `limit`; they take part in `ready` from now on. When the process is out of file descriptors:
        none, and the ones that wait stay in the backlog."""

    def ready(self, limit: int) -> Sequence[Connection]:
        """Connections that can be read (or written, where wanted), at most `limit`, fair over many calls. Level-triggered."""

    def stop_listening(self) -> None:
        """Accept no more; the connections stay."""

    def close(self) -> None:
        """Close everything."""


class Network(Protocol):
    """Connections to other processes."""

    async def dial(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        """A new stream; raises `OSError` when there is nobody. Cancelling leaves no connection behind."""

    async def serve(
        self,
        host: str,
        port: int,
        handler: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[tuple[str, int]],
    ) -> None:
        """Listen, and run one task of `handler` per connection; `task_status` gets the address. Raises `OSError` when it cannot bind."""

    async def open_poller(self, host: str, port: int) -> Poller:
        """Listen for client connections; raises `OSError` when it cannot bind."""

    def local_host(self, stream: trio.abc.HalfCloseableStream) -> str:
        """The address of this side of a stream that `dial` returned."""


# --- storage ----------------------------------------------------------------------------------------------------------------


class File(Protocol):
    """An open file of the data directory. Offsets and sizes are bytes."""

    @property
    def size(self) -> int:
        """The size when it was opened or created, or after the last write beyond it."""

    async def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer at the end of the file. Raises `StorageFailed` when the disk does."""

    async def write(self, offset: int, data: bytes) -> None:
        """Write all of it, not yet durable. Raises `NoSpace` or `StorageFailed`."""

    async def write_durable(self, offset: int, data: bytes) -> None:
        """Write all of it and make it durable: one trip to the disk. Raises `NoSpace` or `StorageFailed`; after either nobody can know
        what is on the disk, and it must not be tried again (rule W4)."""

    async def sync(self) -> None:
        """Make everything written durable. Raises `StorageFailed`; never try again after that."""

    async def close(self) -> None:
        """Close it; nothing becomes durable by closing."""


class Storage(Protocol):
    """One flat data directory. A name is lost in a crash until `sync_directory` made it durable, and so is a rename or a removal.

    Cancelling an operation waits for the disk first: an operation is never half known.
    """

    @property
    def name(self) -> str:
        """What people call it: the path."""

    def path(self, name: str) -> str:
        """What people call a file of it."""

    async def lock(self) -> None:
        """Create the directory when it is missing, check that it can be written, and lock it for the life of this process or until
        `unlock`. Raises `DirectoryInUse` or `StorageError`, with one line that says what to do."""

    async def unlock(self) -> None:
        """Give the lock back."""

    async def list(self) -> Sequence[str]:
        """The names of all files, sorted."""

    async def create(self, name: str, size: int) -> File:
        """A new file of `size` zero bytes that are really allocated, durable (not yet its name). Replaces a file of that name. Raises
        `NoSpace` (then no file is left) or `StorageFailed`."""

    async def open(self, name: str) -> File:
        """An existing file, for reading and writing; raises `FileNotFoundError`. Cached pages are dropped first where the system can, so
        that what is read is what the disk has."""

    async def rename(self, old: str, new: str) -> None:
        """Atomic; replaces `new`. Durable after `sync_directory`."""

    async def remove(self, name: str) -> None:
        """Remove the name if it exists. Durable after `sync_directory`."""

    async def sync_directory(self) -> None:
        """Make all creations, renames and removals durable."""


class Files(Protocol):
    """Small files that are read and replaced as a whole, by path. They are not locked: several processes may share one, and the last wins.

    Cancelling does not wait for the disk: the file is then the former or the new one, never a mixture.
    """

    async def read(self, path: str, bytes_max: int) -> bytes | None:
        """The contents; None when there is no such file. Raises `StorageError` when it cannot be read or is larger than `bytes_max`."""

    async def replace(self, path: str, make: Callable[[], bytes]) -> None:
        """Replace or create the file, atomically and durably. `make` builds its contents and may run in another thread. Raises
        `StorageError`; the former file is still there then."""


# --- random and clock -------------------------------------------------------------------------------------------------------


class Random(Protocol):
    """Chance. `random.Random(seed)` is the simulated twin."""

    def random(self) -> float:
        """Uniform in [0, 1)."""

    def uniform(self, a: float, b: float) -> float:
        """Uniform between the two."""

    def randbytes(self, n: int) -> bytes:
        """For ids: 16 of them never meet again."""


class Clock(Protocol):
    """Two clocks that are not trio's."""

    def boot_us(self) -> int:
        """Microseconds since some start, never backwards, counting suspended time."""

    def wall(self) -> float:
        """Seconds since the epoch. For people: it never enters a decision."""


class SystemClock:
    """The clocks of the machine."""

    def __init__(self) -> None:
        self._clock_id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # on macOS CLOCK_MONOTONIC counts sleep
        self._seen_us = 0

    def boot_us(self) -> int:
        self._seen_us = max(self._seen_us, time.clock_gettime_ns(self._clock_id) // 1000)  # some hypervisors step back
        return self._seen_us

    def wall(self) -> float:
        return time.time()


class SimulatedClock:
    """Trio's time plus an offset of this node; the wall clock starts at the first day of 2030 and may be wrong by `wall_offset`."""

    def __init__(self, offset_us: int = 0, wall_offset: float = 0.0) -> None:
        self.offset_us = offset_us
        self.wall_offset = wall_offset

    def boot_us(self) -> int:
        return round(trio.current_time() * 1e6) + self.offset_us

    def wall(self) -> float:
        return 1_893_456_000 + trio.current_time() + self.wall_offset


@attrs.frozen(kw_only=True)
class Environment:
    """The doors of one node or one client. `storage` is None in memory mode and for clients; `files` is for clients that keep a cache."""

    network: Network
    random: Random
    clock: Clock
    storage: Storage | None = None
    files: Files | None = None


def real_environment(data_dir: str | None = None) -> Environment:
    """The doors to this machine, with a data directory or, without one, in memory mode."""
    return Environment(
        network=TcpNetwork(),
        random=random.SystemRandom(),
        clock=SystemClock(),
        storage=None if data_dir is None else DirectoryStorage(data_dir),
        files=MachineFiles(),
    )
