"""How a cluster comes into being, once: the classic split brain is that two come into being.

The nodes of a new cluster start with the same list of initial candidates and with empty directories. The one with the smallest id forms
the cluster, when it has seen that none of them belongs to one. Everybody else only ever joins.

B1  Only the smallest id of the list forms a cluster, only with an empty directory, and only while it has links to all others of the
    list, each of which said on that link that it belongs to no cluster and has the same list.
B2  The new cluster is durable before anybody is told of it.
B3  Who belongs to no cluster takes the first one that it hears of, and then tells everybody to whom it has a link (`peering`, P7).
B4  Who belongs to a cluster never takes another one.

So while any disk that joined is there, its word stands against a second cluster from the same list. When all are wiped nobody
remembers, and a new cluster is right. Assumed: wiping a directory and starting on it takes longer than what was sent before is under way.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ..peer_messages import DISK_ID_BYTES, Member, PeerHello
from .meta import NO_CLUSTER


@attrs.frozen
class Form:
    """Draw a cluster id, make the first log with these voters durable, then report `joined`."""

    voters: tuple[Member, ...]


@attrs.frozen
class Adopt:
    """Make this cluster id durable, then report `joined`."""

    cluster_id: bytes


class Bootstrap:
    """One node's way into a cluster."""

    def __init__(self, me: Member, initial: Sequence[int], cluster_id: bytes = NO_CLUSTER) -> None:
        self.me = me
        self.initial = tuple(sorted(initial))
        self.cluster_id = cluster_id
        """The cluster that this node belongs to, durably; 16 zero bytes for none."""
        self._heard = NO_CLUSTER
        self._linked: dict[int, PeerHello] = {}

    def __repr__(self) -> str:
        return f"<Bootstrap node {self.me.node_id} {self.waiting or self.cluster_id.hex()}>"

    @property
    def has_cluster(self) -> bool:
        return self.cluster_id != NO_CLUSTER

    def link_up(self, hello: PeerHello) -> None:
        """There is a new link, and this is what the other side said on it."""
        self._linked[hello.node_id] = hello
        self.told(hello.cluster_id)

    def link_down(self, node_id: int) -> None:
        """The link is gone: what was said on it counts no longer (B1)."""
        self._linked.pop(node_id, None)

    def told(self, cluster_id: bytes) -> None:
        """Somebody says that this cluster exists (`ClusterFormed`, or a hello)."""
        if self._heard == NO_CLUSTER and any(cluster_id):
            self._heard = cluster_id

    def decide(self) -> Form | Adopt | None:
        """What to do now; nothing while there is reason to wait, and nothing once it has a cluster (B4)."""
        if self.has_cluster:
            return None
        if self._heard != NO_CLUSTER:
            return Adopt(self._heard)  # B3
        if self.waiting is not None:
            return None
        disks = {node_id: self._linked[node_id].disk_id for node_id in self.initial if node_id != self.me.node_id}
        return Form(tuple(Member(node_id, disks.get(node_id, self.me.disk_id)) for node_id in self.initial))

    def joined(self, cluster_id: bytes) -> None:
        """The cluster is durable here (B2), and everybody may be told."""
        assert not self.has_cluster or self.cluster_id == cluster_id, (self, cluster_id)
        self.cluster_id = cluster_id

    @property
    def waiting(self) -> str | None:
        """For what it waits, for people; None when it has a cluster, or nothing stands against forming one."""
        if self.has_cluster:
            return None
        if self.me.node_id not in self.initial:
            return f"node {self.me.node_id} is not an initial candidate and waits for a cluster to join"
        for node_id in self.initial:
            hello = self._linked.get(node_id)
            if node_id == self.me.node_id:
                continue
            if hello is None:
                missing = [other for other in self.initial if other != self.me.node_id and other not in self._linked]
                return f"the cluster is not formed yet: no link to node{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
            if tuple(sorted(hello.initial)) != self.initial:
                return f"the cluster is not formed yet: node {node_id} has the peers {list(hello.initial)}, this node {list(self.initial)}"
            if not hello.candidate or len(hello.disk_id) != DISK_ID_BYTES:
                return f"the cluster is not formed yet: node {node_id} is in `peers` but does not run as a candidate"
        if self.me.node_id != self.initial[0]:
            return f"node {self.initial[0]} is about to form the cluster"
        return None
