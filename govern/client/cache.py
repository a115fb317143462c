"""The last known views on disk, so that a program can start while no node can be reached.

One file with all views as JSON: the instances in the shape of `lookup --json`, for programs and people alike. It is a memory and not a
truth: what is read from it is shown as stale until a node has answered, and nothing is ever decided by it.

K1  The file is replaced as a whole: a reader finds the former or the new one.
K2  A file that cannot be read, in whole or in part, is not used at all. Neither this nor a disk that fails is an error of the program: each
    is told once in the log.
K3  The file is written when a view has changed, at most once a second, and once more on leaving.
K4  Suspicion is not kept: it was of a moment that is long gone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from ..environment import Environment
from ..errors import Invalid, StorageError
from ..model import Instance, Lsn, ServiceKey, Status, check_instance, check_name, check_namespace
from .views import Views

if TYPE_CHECKING:
    from .link import Link

FORMAT: Final = "govern views"
VERSION: Final = 1
CACHE_BYTES_MAX: Final = 256 * 1024 * 1024
"""A larger file is not read: it is a fault."""
SAVE_SECONDS: Final = 1.0

Lists = Mapping[ServiceKey, tuple[Instance, ...]]

_log = logging.getLogger(__name__)
_FIELDS: Final = {field.name: field for field in attrs.fields(Instance)}
_TYPES: Final = {"weight": float, "ttl": float, "registered_at": str}  # those that `check_instance` is generous about


class Damaged(ValueError):
    """The file is not one that `encode` has made."""


def encode(lists: Lists) -> bytes:
    """The file for these lists."""
    views = [
        {"namespace": service.namespace, "name": service.name, "instances": [instance.to_json() for instance in instances]}
        for service, instances in sorted(lists.items())
    ]
    return json.dumps({"format": FORMAT, "version": VERSION, "views": views}).encode()


def decode(data: bytes) -> dict[ServiceKey, tuple[Instance, ...]]:
    """The lists of a file; raises `Damaged` with the reason when any part of it is not as `encode` makes it (K2)."""
    try:
        file = json.loads(data)
        if (file["format"], file["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {file['format']!r}, version {file['version']!r}")
        lists = {}
        for view in file["views"]:
            service = ServiceKey(check_namespace(view["namespace"]), check_name(view["name"]))
            lists[service] = tuple(map(_read_instance, view["instances"]))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return lists


def _read_instance(fields: dict[str, Any]) -> Instance:
    values = {name: fields[name] for name in _FIELDS}
    values["status"] = Status(values["status"])
    values["lease_id"], values["lsn"] = (_read_lsn(values[name]) for name in ("lease_id", "lsn"))
    for name, kind in _TYPES.items():
        if type(values[name]) is not kind:
            raise ValueError(f"{name} {values[name]!r}")
    return check_instance(Instance(**values))


def _read_lsn(value: Any) -> Lsn:
    term, seq = value
    if type(term) is not int or type(seq) is not int:
        raise ValueError(f"lsn {value!r}")
    return Lsn(term, seq)


class Cache:
    """The file of one client."""

    def __init__(self, environment: Environment, path: str) -> None:
        if environment.files is None:
            raise Invalid("a cache needs an environment with files")
        self._files = environment.files
        self._path = path
        self._saved: Lists = {}
        self._is_failing = False
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<Cache {self._path}>"

    async def load(self, views: Views) -> Lists | None:
        """Let the views begin with what the file knows, and give it back; None when there is none that can be used (K2)."""
        lists = await self._read()
        self._saved = lists or {}
        views.keep(self._saved)
        return lists

    async def _read(self) -> Lists | None:
        try:
            data = await self._files.read(self._path, CACHE_BYTES_MAX)
            return None if data is None else decode(data)
        except (StorageError, Damaged) as error:
            _log.warning("the cache %s is not used: %s", self._path, error)
            return None

    async def run(self, link: Link) -> None:
        """Write the file whenever a view has changed, for ever (K3)."""
        views = link.core.views
        while True:
            await self.save(views)
            await trio.sleep(SAVE_SECONDS)
            if views.last_known() == self._saved or self._is_failing:
                await link.wait(views)

    async def save(self, views: Views) -> None:
        """Write the file if anything has changed. Raises nothing; cancelled, the file is the former or the new one."""
        async with self._lock:
            lists = views.last_known()
            if lists == self._saved:
                return
            try:
                await self._files.replace(self._path, lambda: encode(lists))
            except StorageError as error:
                if not self._is_failing:
                    _log.warning("the cache is not written: %s", error)
                self._is_failing = True
            else:
                self._saved, self._is_failing = lists, False
