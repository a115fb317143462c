"""What a node keeps of its cluster beside the logs: the id, and the last table it had."""

from __future__ import annotations

from typing import Protocol

import msgpack

from ..core.table import Table, node_rows, read_nodes, read_runs, run_rows
from ..errors import Corrupt, NoSpace, RemoteProtocolError
from ..storage.directory import DataDirectory
from ..storage.table_file import TableFile, read_table, write_table


class ClusterFiles(Protocol):
    """What a node keeps of the cluster, beside the log: its id and the last table."""

    @property
    def cluster_id(self) -> bytes:
        """The cluster this directory belongs to; 16 zero bytes while it belongs to none."""

    @property
    def was_made_with_cluster(self) -> bool:
        """Whether it belonged to that cluster from the first moment on: the cluster of one that this node was."""

    async def load(self) -> tuple[bytes, Table] | None:
        """The cluster and the table that were kept last; None when none ever was. Raises `Corrupt`."""

    async def keep(self, cluster_id: bytes, table: Table) -> bool:
        """Keep this table, durably; False when there is no space."""

    async def adopt(self, cluster_id: bytes) -> None:
        """Belong to this cluster from now on, durably. Raises `NoSpace`."""


class DiskClusterFiles:
    """In the data directory."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory

    @property
    def cluster_id(self) -> bytes:
        """The cluster this directory belongs to; 16 zero bytes while it belongs to none."""
        return self._directory.identity.cluster_id

    @property
    def was_made_with_cluster(self) -> bool:
        """Whether it belonged to that cluster from the first moment on."""
        return not self._directory.identity.made_without_cluster

    async def load(self) -> tuple[bytes, Table] | None:
        """The cluster and the table that were kept last; None when none ever was. Raises `Corrupt` or `FormatTooNew`."""
        kept = await read_table(self._directory.storage)
        if kept is None:
            return None
        try:
            version, nodes, runs = msgpack.unpackb(kept.table)
            return kept.cluster_id, Table(version, read_nodes(nodes), read_runs(runs))
        except (ValueError, TypeError, RemoteProtocolError) as error:
            raise Corrupt(f"the table in {self._directory.name} cannot be read ({error}): remove that file and start again") from error

    async def keep(self, cluster_id: bytes, table: Table) -> bool:
        """Keep this table, durably; False when there is no space, and the former one is kept. Raises `StorageFailed`."""
        data = msgpack.packb([table.version, node_rows(table.nodes), run_rows(table.runs)])
        try:
            await write_table(self._directory.storage, TableFile(cluster_id, True, data))
        except NoSpace:
            return False
        return True

    async def adopt(self, cluster_id: bytes) -> None:
        """Belong to this cluster from now on, durably. Raises `NoSpace` or `StorageFailed`."""
        await self._directory.adopt_cluster(cluster_id)


class MemoryClusterFiles:
    """In memory mode: nothing is kept, and an id is drawn for a node that is alone."""

    def __init__(self, cluster_id: bytes) -> None:
        self.cluster_id = cluster_id
        self.was_made_with_cluster = any(cluster_id)

    async def load(self) -> tuple[bytes, Table] | None:
        """Nothing was kept."""
        return None

    async def keep(self, cluster_id: bytes, table: Table) -> bool:
        """It is in memory already."""
        return True

    async def adopt(self, cluster_id: bytes) -> None:
        """Belong to this cluster until the process ends."""
        self.cluster_id = cluster_id
