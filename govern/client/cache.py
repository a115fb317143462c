"""The last known views and the table on disk, so that a program can start while the nodes that it knows cannot be reached.

One file as JSON, with all views, the instances in the shape of `lookup --json`, for programs and people alike; and with the table, so that
a node is found whose address was never given to this program. It is a memory and not a truth: what is read from it is shown as stale until
a node has answered, the table is a guess until a node has given one, and nothing else is ever decided by it.

K1  The file is replaced as a whole: a reader finds the former or the new one.
K2  A file that cannot be read, in whole or in part, is not used at all. Neither this nor a disk that fails is an error of the program: each
    is told once in the log.
K3  The file is written when a view or the table has changed, at most once a second, and once more on leaving.
K4  Suspicion is not kept: it was of a moment that is long gone.
K5  A file of the first version has no table, and is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from ..core.table import Table, node_rows, read_nodes, read_runs, run_rows
from ..environment import Environment
from ..errors import Invalid, RemoteProtocolError, StorageError
from ..model import Instance, Lsn, ServiceKey, Status, check_instance, check_name, check_namespace
from .cores import Cores

if TYPE_CHECKING:
    from .links import Links

FORMAT: Final = "govern views"
VERSION: Final = 2
_VERSION_WITHOUT_TABLE: Final = 1
CACHE_BYTES_MAX: Final = 256 * 1024 * 1024
"""A larger file is not read: it is a fault."""
SAVE_SECONDS: Final = 1.0

Lists = Mapping[ServiceKey, tuple[Instance, ...]]

_log = logging.getLogger(__name__)
_FIELDS: Final = {field.name: field for field in attrs.fields(Instance)}
_TYPES: Final = {"weight": float, "ttl": float, "registered_at": str}  # those that `check_instance` is generous about


_DISK_ID: Final = 5  # the place of the one value of a node's row that JSON does not know


class Damaged(ValueError):
    """The file is not one that `encode` has made."""


@attrs.frozen
class Known:
    """What a file has: the last lists, and the table of a cluster if there was one."""

    lists: Lists
    cluster_id: str = ""
    table: Table | None = None


def encode(known: Known) -> bytes:
    """The file for this."""
    views = [
        {"namespace": service.namespace, "name": service.name, "instances": [instance.to_json() for instance in instances]}
        for service, instances in sorted(known.lists.items())
    ]
    table = None if known.table is None else {"cluster_id": known.cluster_id, **_write_table(known.table)}
    return json.dumps({"format": FORMAT, "version": VERSION, "views": views, "table": table}).encode()


def decode(data: bytes) -> Known:
    """What a file has; raises `Damaged` with the reason when any part of it is not as `encode` makes it (K2)."""
    try:
        file = json.loads(data)
        if file["format"] != FORMAT or file["version"] not in (VERSION, _VERSION_WITHOUT_TABLE):
            raise ValueError(f"format {file['format']!r}, version {file['version']!r}")
        lists = {}
        for view in file["views"]:
            service = ServiceKey(check_namespace(view["namespace"]), check_name(view["name"]))
            lists[service] = tuple(map(_read_instance, view["instances"]))
        table = file["table"] if file["version"] != _VERSION_WITHOUT_TABLE else None
        if table is None:
            return Known(lists)
        if type(table["cluster_id"]) is not str:
            raise ValueError(f"cluster {table['cluster_id']!r}")
        return Known(lists, table["cluster_id"], _read_table(table))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, RemoteProtocolError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def _write_table(table: Table) -> dict[str, Any]:
    nodes = node_rows(table.nodes)
    for row in nodes:
        row[_DISK_ID] = row[_DISK_ID].hex()
    return {"version": table.version, "nodes": nodes, "runs": run_rows(table.runs)}


def _read_table(fields: dict[str, Any]) -> Table:
    version = fields["version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"version {version!r} of a table")
    nodes = [[*row[:_DISK_ID], bytes.fromhex(row[_DISK_ID]), *row[_DISK_ID + 1 :]] for row in fields["nodes"]]
    return Table(version, read_nodes(nodes), read_runs(fields["runs"]))


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
        self._saved = Known({})
        self._is_failing = False
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<Cache {self._path}>"

    async def load(self, cores: Cores) -> Known | None:
        """Let the client begin with what the file knows, and give it back; None when there is none that can be used (K2)."""
        known = await self._read()
        self._saved = known or Known({})
        cores.begin_with(self._saved.lists, self._saved.cluster_id, self._saved.table)
        return known

    async def _read(self) -> Known | None:
        try:
            data = await self._files.read(self._path, CACHE_BYTES_MAX)
            return None if data is None else decode(data)
        except (StorageError, Damaged) as error:
            _log.warning("the cache %s is not used: %s", self._path, error)
            return None

    async def run(self, links: Links) -> None:
        """Write the file whenever a view or the table has changed, for ever (K3)."""
        cores = links.cores
        while True:
            await self.save(cores)
            await trio.sleep(SAVE_SECONDS)
            if _known(cores) == self._saved or self._is_failing:
                await links.wait(cores.memory)

    async def save(self, cores: Cores) -> None:
        """Write the file if anything has changed. Raises nothing; cancelled, the file is the former or the new one."""
        async with self._lock:
            known = _known(cores)
            if known == self._saved:
                return
            try:
                await self._files.replace(self._path, lambda: encode(known))
            except StorageError as error:
                if not self._is_failing:
                    _log.warning("the cache is not written: %s", error)
                self._is_failing = True
            else:
                self._saved, self._is_failing = known, False


def _known(cores: Cores) -> Known:
    """What is to be in the file."""
    routing = cores.routing
    table = routing.table if routing.table.version else None
    return Known(cores.last_known(), routing.cluster_id if table is not None else "", table)
