"""Damage to the disk of one candidate that can be made at any time, because others know better: where its metadata log is proven, what of
an older image is its part among the candidates, and whether everybody else would notice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from govern.actors.node import Node
from govern.storage.directory import IDENTITY_NAME
from govern.storage.format import SEGMENT_HEADER_BYTES, batch_seed, decode_identity, read_batch, segment_name, segment_number
from govern.storage.prefix import RAFT_PREFIX
from govern.storage.sim import SimStorage
from govern.storage.table_file import TABLE_NAME


def proven_places(disk: SimStorage) -> list[tuple[str, int, int]]:
    """Where the batches of the metadata log lie that are followed by another one: file, first byte, end. Damage of the last one would look
    as if a crash had torn it, and what it says may have been confirmed: nobody promises anything of that."""
    identity = decode_identity(disk.contents(IDENTITY_NAME))
    places: list[tuple[str, int, int]] = []
    for name in [name for name in disk.names() if segment_number(name.removeprefix(RAFT_PREFIX)) is not None]:
        number = segment_number(name.removeprefix(RAFT_PREFIX))
        if number is None or name != RAFT_PREFIX + segment_name(number):
            continue
        data, at = disk.contents(name), SEGMENT_HEADER_BYTES
        while (batch := read_batch(data, at, batch_seed(identity, number))) is not None:
            places.append((name, at, at + 32 + len(batch.payload)))
            at = batch.end
    return places[:-1]


def with_the_past_of(image: Mapping[str, bytes], now: Mapping[str, bytes]) -> dict[str, bytes]:
    """The disk as it is now, but with the boot number, the table and the metadata log of an older image. What it has of its slots is the
    present one: of that there is no second copy, so nothing would be promised."""
    kept = {name: data for name, data in now.items() if not _is_of_the_cluster(name)}
    return kept | {name: data for name, data in image.items() if _is_of_the_cluster(name)}


def _is_of_the_cluster(name: str) -> bool:
    return name.startswith((RAFT_PREFIX, IDENTITY_NAME, TABLE_NAME))


def all_know_better(nodes: Sequence[Node | None], node: Node, image: Mapping[str, bytes]) -> bool:
    """Whether each of these nodes runs and has on its disk that `node` has started more often than a start on the image says."""
    next_boot = decode_identity(image[IDENTITY_NAME]).boot_no + 1
    return all(other is not None and _boot_known_to(other, node) > next_boot for other in nodes)


def _boot_known_to(other: Node, node: Node) -> int:
    table = other._ownership.table
    row = table.node(node.config.node_id)
    is_durable = other._manager._kept_version == table.version
    return row.boot_no if is_durable and row is not None and row.disk_id == node._me.disk_id else 0
