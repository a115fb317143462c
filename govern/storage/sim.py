"""The simulated storage door: a disk that forgets, tears, fills up, rots and fails, all from one seed.

Model. A file is what programs see now, what the platter has, and the ordered list of writes between the two. The directory likewise:
names now, names on the platter, and the ordered changes in between. `sync` moves a file's writes to the platter, `sync_directory`
the changes of names.

`crash` is a loss of power. Of every sector of 512 bytes a random one of its unsynced versions survives, or none; of the unsynced
changes of names a random subset does. That is harsher than most disks; a program that survives it needs no luck.

M1  A crash fences first: the door and its files that lived before raise `Crashed` for ever, so the `finally` blocks of tasks that are
    cancelled afterwards cannot write. Whoever comes next uses the new door that `crash` returns.
M2  A failed sync loses: a random subset of the writes reaches the platter, the others never will, and later syncs succeed, as the
    kernels of this world do. Reading gives the lost bytes until the file is opened again, which drops the cache.
M3  Cancelling waits for the disk, as it does behind the real door: before an operation nothing has happened, after it everything.
M4  Each step that can be torn apart is an operation of its own for `before`, `fails` and the counter: writing and syncing of
    `write_durable`, and the naming and the allocation of `create`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs
import trio

from ..errors import DirectoryInUse, NoSpace, StorageError, StorageFailed

if TYPE_CHECKING:
    import random

SECTOR: Final = 512
_HANG_LOOK_SECONDS: Final = 60.0


class Crashed(StorageFailed):
    """The machine or the process to which this door belonged is gone; what is still running there is a ghost."""


class Operation(NamedTuple):
    """One I/O operation: its number from 1, its kind (`write`, `sync`, `rename`, …) and the name of the file."""

    number: int
    kind: str
    name: str


@attrs.define(eq=False)
class _Contents:
    """One file without a name: `now` as programs see it, `platter` as a crash leaves it, `unsynced` the writes between them."""

    now: bytearray = attrs.field(factory=bytearray)
    platter: bytearray = attrs.field(factory=bytearray)
    unsynced: list[tuple[int, bytes]] = attrs.field(factory=list)
    settled: int = 0
    """How many writes have left `unsynced`; syncs may overlap, and each covers what was written before it began."""

    def write(self, offset: int, data: bytes) -> None:
        _put(self.now, offset, data)
        self.unsynced.append((offset, data))

    def sync(self, end: int) -> None:
        """Make durable what was written before `end`, a former `settled + len(unsynced)`."""
        count = max(0, end - self.settled)
        for offset, data in self.unsynced[:count]:
            _put(self.platter, offset, data)
        del self.unsynced[:count]
        self.settled += count

    def drop_cache(self) -> None:
        """What a failed sync has lost is not seen any more; what still waits for a sync is."""
        self.now = bytearray(self.platter)
        for offset, data in self.unsynced:
            _put(self.now, offset, data)

    def tear(self, chance: random.Random) -> None:
        """Let a random subset of the unsynced sectors reach the platter, each in a random one of its versions; forget the rest."""
        versions: dict[int, list[tuple[int, bytes]]] = {}
        for offset, data in self.unsynced:
            start = offset
            while start < offset + len(data):
                end = min((start // SECTOR + 1) * SECTOR, offset + len(data))
                versions.setdefault(start // SECTOR, []).append((start, data[start - offset : end - offset]))
                start = end
        kept = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))  # also the two plain cases, and not only even odds
        for pieces in versions.values():
            if chance.random() < kept:
                for start, piece in pieces[: chance.randint(1, len(pieces))]:
                    _put(self.platter, start, piece)
        self.settled += len(self.unsynced)
        self.unsynced.clear()


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


@attrs.frozen
class _Renaming:
    """A change of names: `old` goes, `new` comes with `contents`; either may be absent."""

    old: str | None
    new: str | None
    contents: _Contents | None

    def apply(self, names: dict[str, _Contents]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
        if self.new is not None:
            assert self.contents is not None
            names[self.new] = self.contents


@attrs.define(eq=False)
class _Disk:
    """What outlives the doors: the platter, the cache of the machine, and the faults."""

    chance: random.Random
    name: str
    names: dict[str, _Contents] = attrs.field(factory=dict)
    platter_names: dict[str, _Contents] = attrs.field(factory=dict)
    unsynced: list[_Renaming] = attrs.field(factory=list)
    settled: int = 0
    holder: SimStorage | None = None
    operations: int = 0
    capacity_bytes: int | None = None
    latency_seconds: tuple[float, float] = (0.0, 0.0)
    lose_syncs: bool = False
    hung: trio.Event | None = None
    before: Callable[[Operation], None] | None = None
    fails: Callable[[Operation], bool] | None = None

    def rename(self, old: str | None, new: str | None, contents: _Contents | None) -> None:
        change = _Renaming(old, new, contents)
        change.apply(self.names)
        self.unsynced.append(change)

    def sync_names(self, end: int) -> None:
        count = max(0, end - self.settled)
        for change in self.unsynced[:count]:
            change.apply(self.platter_names)
        del self.unsynced[:count]
        self.settled += count

    def used_bytes(self) -> int:
        return sum(len(contents.now) for contents in self.names.values())

    def lose_power(self) -> None:
        everything = {id(contents): contents for contents in (*self.platter_names.values(), *self.names.values())}
        for change in self.unsynced:
            if change.contents is not None:
                everything.setdefault(id(change.contents), change.contents)
        for contents in everything.values():
            contents.tear(self.chance)
            contents.now = bytearray(contents.platter)
        kept = self.chance.choice((0.0, 0.5, 1.0))
        for change in self.unsynced:
            if self.chance.random() < kept:
                change.apply(self.platter_names)
        self.settled += len(self.unsynced)
        self.unsynced.clear()
        self.names = dict(self.platter_names)


class SimFile:
    """An open file of a `SimStorage`."""

    def __init__(self, storage: SimStorage, name: str, contents: _Contents) -> None:
        self._storage = storage
        self._name = name
        self._contents = contents
        self._size = len(contents.now)
        self._closed = False

    def __repr__(self) -> str:
        return f"<SimFile {self._storage.name}/{self._name}, {self._size} bytes>"

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, size: int) -> bytes:
        await self._operate("read")
        return bytes(self._contents.now[offset : offset + size])

    async def write(self, offset: int, data: bytes) -> None:
        await self._operate("write")
        self._write(offset, data)

    async def write_durable(self, offset: int, data: bytes) -> None:
        await self._operate("write")
        self._write(offset, data)
        await self._sync(cancellable=False)

    async def sync(self) -> None:
        await self._sync(cancellable=True)

    async def close(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()

    async def _operate(self, kind: str, *, cancellable: bool = True) -> None:
        assert not self._closed, f"{self._name} is closed"
        await self._storage.operate(kind, self._name, cancellable=cancellable)

    def _write(self, offset: int, data: bytes) -> None:
        self._storage.need(offset + len(data) - len(self._contents.now))
        self._contents.write(offset, bytes(data))
        self._size = max(self._size, offset + len(data))

    async def _sync(self, *, cancellable: bool) -> None:
        end = self._contents.settled + len(self._contents.unsynced)  # what is written while the disk works is for the next sync
        try:
            await self._operate("sync", cancellable=cancellable)
        except Crashed:
            raise
        except StorageFailed:
            self._contents.tear(self._storage.chance)  # M2
            raise
        if not self._storage.lose_syncs:
            self._contents.sync(end)


class SimStorage:
    """A simulated data directory. Faults are attributes that may be set at any time; every draw comes from `random`."""

    def __init__(self, random: random.Random, *, name: str = "sim", _disk: _Disk | None = None) -> None:
        self._disk = _disk or _Disk(random, name)
        self._dead: str | None = None

    def __repr__(self) -> str:
        return f"<SimStorage {self.name}, {self.operations} operations{f', {self._dead}' if self._dead else ''}>"

    # --- faults and the world -----------------------------------------------------------------------------------------------

    @property
    def chance(self) -> random.Random:
        return self._disk.chance

    @property
    def operations(self) -> int:
        """How many I/O operations there were on this disk, through all its doors."""
        return self._disk.operations

    @property
    def capacity_bytes(self) -> int | None:
        """How much all files together may hold; None is without end."""
        return self._disk.capacity_bytes

    @capacity_bytes.setter
    def capacity_bytes(self, value: int | None) -> None:
        self._disk.capacity_bytes = value

    @property
    def used_bytes(self) -> int:
        """How much all files together hold."""
        return self._disk.used_bytes()

    @property
    def latency_seconds(self) -> tuple[float, float]:
        """Each operation takes a time between these two, of trio's clock."""
        return self._disk.latency_seconds

    @latency_seconds.setter
    def latency_seconds(self, value: tuple[float, float]) -> None:
        self._disk.latency_seconds = value

    @property
    def before(self) -> Callable[[Operation], None] | None:
        """Called before every operation takes effect; it may crash the disk, or raise what the operation shall raise."""
        return self._disk.before

    @before.setter
    def before(self, value: Callable[[Operation], None] | None) -> None:
        self._disk.before = value

    @property
    def fails(self) -> Callable[[Operation], bool] | None:
        """Says of each operation whether it fails with an I/O error; a failing write may have reached the disk in part."""
        return self._disk.fails

    @fails.setter
    def fails(self, value: Callable[[Operation], bool] | None) -> None:
        self._disk.fails = value

    @property
    def lose_syncs(self) -> bool:
        """While True the disk lies: a sync returns and nothing has become durable. Nothing acknowledged meanwhile is safe from a loss of
        power; what must hold still is that a node starts with something that it once had."""
        return self._disk.lose_syncs

    @lose_syncs.setter
    def lose_syncs(self, value: bool) -> None:
        self._disk.lose_syncs = value

    def hang(self) -> None:
        """Let every operation wait until `unhang`, or until its door dies."""
        if self._disk.hung is None:
            self._disk.hung = trio.Event()

    def unhang(self) -> None:
        """Let the operations that wait go on."""
        if self._disk.hung is not None:
            self._disk.hung.set()
            self._disk.hung = None

    def image(self) -> Mapping[str, bytes]:
        """What the platter has now, for `restore`."""
        return {name: bytes(contents.platter) for name, contents in sorted(self._disk.platter_names.items())}

    def restore(self, image: Mapping[str, bytes]) -> None:
        """Put the disk of a machine that does not run back to an earlier image; an empty one wipes it."""
        assert self._disk.holder is None, "the directory is in use"
        names = {name: _Contents(bytearray(data), bytearray(data)) for name, data in image.items()}
        self._disk.names, self._disk.platter_names = names, dict(names)
        self._disk.settled += len(self._disk.unsynced)
        self._disk.unsynced.clear()

    def contents(self, name: str) -> bytes:
        """What a file holds now."""
        return bytes(self._disk.names[name].now)

    def names(self) -> list[str]:
        """The names of all files now."""
        return sorted(self._disk.names)

    def flip(self, name: str, offset: int, mask: int = 1) -> None:
        """Let bits rot in the file of that name."""
        contents = self._disk.names[name]
        contents.now[offset] ^= mask
        contents.platter[offset] ^= mask

    def crash(self) -> SimStorage:
        """Lose power: what is not durable survives in random parts. Fences this door (M1); returns the door after the restart."""
        self._die("power was lost")
        self._disk.lose_power()
        return SimStorage(self._disk.chance, _disk=self._disk)

    def kill(self) -> SimStorage:
        """Kill the process: everything it wrote stays, as the machine lives. Fences this door; returns a new one."""
        self._die("the process was killed")
        return SimStorage(self._disk.chance, _disk=self._disk)

    def second_door(self) -> SimStorage:
        """Another process, or another node of this one, with the same directory."""
        return SimStorage(self._disk.chance, _disk=self._disk)

    def _die(self, reason: str) -> None:
        self._dead = reason
        if self._disk.hung is not None:  # who waits in this door must learn it; who comes through another one waits on
            self._disk.hung.set()
            self._disk.hung = trio.Event()
        if self._disk.holder is self:
            self._disk.holder = None

    # --- the inside of every operation ----------------------------------------------------------------------------------------

    async def operate(self, kind: str, name: str, *, cancellable: bool = True) -> None:
        """Everything an operation meets before it takes effect: a checkpoint, its latency, the fence, the hooks. M3, M4."""
        self._check_alive()
        if cancellable:
            await trio.lowlevel.checkpoint()
        low, high = self._disk.latency_seconds
        if high > 0:
            with trio.move_on_after(self._disk.chance.uniform(low, high)) as scope:
                scope.shield = True
                await trio.sleep_forever()
        while self._disk.hung is not None and self._dead is None:
            with trio.move_on_after(_HANG_LOOK_SECONDS) as scope:  # until `unhang` or the death of the door, both of which set the event
                scope.shield = True
                await self._disk.hung.wait()
        self._check_alive()
        self._disk.operations += 1
        operation = Operation(self._disk.operations, kind, name)
        if self._disk.before is not None:
            self._disk.before(operation)
            self._check_alive()  # the hook may have crashed the disk
        if self._disk.fails is not None and self._disk.fails(operation):
            raise StorageFailed(f"{kind} of {name} in {self.name} failed: Input/output error")

    def need(self, more_bytes: int) -> None:
        """Raise `NoSpace` unless so many bytes more fit on the disk."""
        capacity = self._disk.capacity_bytes
        if capacity is not None and more_bytes > 0 and self._disk.used_bytes() + more_bytes > capacity:
            raise NoSpace(f"{self.name} is full: free some space")

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise Crashed(f"{self.name}: {self._dead}")

    # --- the door -----------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._disk.name

    def path(self, name: str) -> str:
        return f"{self.name}/{name}"

    async def lock(self) -> None:
        await self.operate("lock", "lock")
        holder = self._disk.holder
        assert holder is not self, "locked already"
        if holder is not None:
            raise DirectoryInUse(f"the data directory {self.name} is in use: stop the other one, or give this one another data_dir")
        self._disk.holder = self

    async def unlock(self) -> None:
        if self._disk.holder is self:
            self._disk.holder = None
        await trio.lowlevel.checkpoint()

    async def list(self) -> Sequence[str]:
        await self.operate("list", "")
        return self.names()

    async def create(self, name: str, size: int) -> SimFile:
        await self.operate("create", name)
        contents = _Contents()
        self._disk.rename(None, name, contents)
        try:
            self.need(size)
        except StorageError:
            self._disk.rename(name, None, None)
            raise
        contents.write(0, bytes(size))
        try:
            await self.operate("allocate", name, cancellable=False)
        except Crashed:
            raise
        except StorageFailed:
            contents.tear(self.chance)
            raise
        if not self._disk.lose_syncs:
            contents.sync(contents.settled + len(contents.unsynced))
        return SimFile(self, name, contents)

    async def open(self, name: str) -> SimFile:
        await self.operate("open", name)
        if name not in self._disk.names:
            raise FileNotFoundError(name)
        self._disk.names[name].drop_cache()
        return SimFile(self, name, self._disk.names[name])

    async def rename(self, old: str, new: str) -> None:
        await self.operate("rename", old)
        if old not in self._disk.names:
            raise StorageFailed(f"renaming {old} in {self.name} failed: No such file or directory")
        self._disk.rename(old, new, self._disk.names[old])

    async def remove(self, name: str) -> None:
        await self.operate("remove", name)
        if name in self._disk.names:
            self._disk.rename(name, None, None)

    async def sync_directory(self) -> None:
        end = self._disk.settled + len(self._disk.unsynced)  # what is renamed while the disk works is for the next sync
        await self.operate("sync directory", "")
        if not self._disk.lose_syncs:
            self._disk.sync_names(end)


class SimFiles:
    """The simulated twin of `MachineFiles`: the small files of one machine, which outlive its programs."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.fails = False
        """While True, every operation raises `StorageError`."""
        self.writes = 0

    def __repr__(self) -> str:
        return f"<SimFiles {sorted(self.contents)}>"

    async def read(self, path: str, bytes_max: int) -> bytes | None:
        await trio.lowlevel.checkpoint()
        self._check("read", path)
        data = self.contents.get(path)
        if data is not None and len(data) > bytes_max:
            raise StorageError(f"cannot read {path}: it is larger than {bytes_max} bytes")
        return data

    async def replace(self, path: str, make: Callable[[], bytes]) -> None:
        await trio.lowlevel.checkpoint()
        self._check("write", path)
        self.contents[path] = make()
        self.writes += 1

    def _check(self, verb: str, path: str) -> None:
        if self.fails:
            raise StorageError(f"cannot {verb} {path}: the simulated disk fails")
