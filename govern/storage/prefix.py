"""Two logs in one flat directory: the files of the second one carry a prefix, and this view of the storage door hides it.

`log.py` and `snapshots.py` work on the view as they do on the directory. Names with the prefix are no segments and no snapshots of the
first log, and the view shows no name without it, so neither log ever meets a file of the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from ..environment import File, Storage

RAFT_PREFIX: Final = "raft-"


@attrs.frozen
class PrefixedStorage:
    """The files of a locked directory whose names begin with `prefix`, under the rest of their names."""

    storage: Storage
    prefix: str

    @property
    def name(self) -> str:
        return self.storage.name

    def path(self, name: str) -> str:
        return self.storage.path(self.prefix + name)

    async def lock(self) -> None:
        raise AssertionError("whoever opened the directory has locked it")

    async def unlock(self) -> None:
        raise AssertionError("whoever opened the directory unlocks it")

    async def list(self) -> Sequence[str]:
        return [name.removeprefix(self.prefix) for name in await self.storage.list() if name.startswith(self.prefix)]

    async def create(self, name: str, size: int) -> File:
        return await self.storage.create(self.prefix + name, size)

    async def open(self, name: str) -> File:
        return await self.storage.open(self.prefix + name)

    async def rename(self, old: str, new: str) -> None:
        await self.storage.rename(self.prefix + old, self.prefix + new)

    async def remove(self, name: str) -> None:
        await self.storage.remove(self.prefix + name)

    async def sync_directory(self) -> None:
        await self.storage.sync_directory()
