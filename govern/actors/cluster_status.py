"""What a node says of its cluster in `status`: who decides, who could, and what does not work, one line each."""

from __future__ import annotations

from typing import Any

from ..core.ownership import Ownership
from ..core.raft.membership import advice
from ..core.raft.types import Membership
from ..core.table import UP, Table
from .election import Election
from .neighbours import Links
from .slot_manager import SlotManager


class ClusterStatus:
    """A look at the actors that belong to the cluster; it keeps nothing."""

    def __init__(self, *, node_id: int, ownership: Ownership, manager: SlotManager, election: Election | None, links: Links) -> None:
        self._node_id = node_id
        self._ownership = ownership
        self._manager = manager
        self._election = election
        self._links = links

    @property
    def _membership(self) -> Membership:
        return Membership() if self._election is None else self._election.membership

    def fields(self, is_fresh: bool) -> dict[str, Any]:
        """The part of `status --json` that is about the cluster."""
        return {
            "role": self._role(),
            "controller": self._manager.leader if is_fresh or self._manager.follows_log else None,  # else it is who was it once
            "term": 0 if self._election is None else self._election.term,
            "table_version": self._ownership.table.version,
            "slots": self._ownership.acting_count,
            "candidates": self._candidates(),
            "links": sorted(self._links.peers()),
        }

    def _role(self) -> str:
        if self._links.expelled:
            return "node"
        if self._manager.controller is not None and self._election is not None and self._election.leads:
            return "controller"  # both: the slot manager hears a moment later that it is over, and `term` is the election's
        is_voter = any(member.node_id == self._node_id for member in self._membership.voters)
        return "candidate" if is_voter else "node"

    def _candidates(self) -> list[dict[str, Any]]:
        """The members of the metadata log as far as this node knows them; `reachable` from here. `behind` is how many entries each lacks,
        which only the controller knows, and of those that it has heard."""
        linked = self._links.peers()
        membership = self._membership
        behind = {} if self._election is None else self._election.entries_behind()
        return [
            {
                "node_id": member.node_id,
                "voter": member in membership.voters,
                "reachable": member.node_id == self._node_id
                or (member.node_id in linked and linked[member.node_id].disk_id == member.disk_id),
                "behind": behind.get(member),
            }
            for member in membership.members
        ]

    def degraded(self, is_fresh: bool) -> list[str]:
        """What does not work."""
        if self._links.expelled:
            return [f"this node has no part in its cluster any more, and keeps no links: {self._links.expelled}"]
        return self._about_the_cluster(is_fresh) + [
            f"no link to node {node_id}: {text}" for node_id, text in sorted(self._links.refusals().items())
        ]

    def notices(self) -> list[str]:
        """What works, and would be better otherwise."""
        return list(filter(None, [advice(len(self._membership.voters))]))

    def _about_the_cluster(self, is_fresh: bool) -> list[str]:
        manager = self._manager
        waiting = manager.bootstrap.waiting
        if waiting is not None:
            return [waiting]
        if not manager.bootstrap.has_cluster:
            return ["the cluster is being formed"]
        texts = []
        if manager.leader is None:
            texts.append(self._no_controller())
        elif manager.standing is None or not manager.standing.is_registered:
            refusal = None if manager.standing is None else manager.standing.refusal
            texts.append(
                f"the controller refuses this node: {refusal}" if refusal else "this node is not registered with the controller yet"
            )
        elif not is_fresh and manager.follows_log:
            texts.append(f"no lease: the controller, node {manager.leader}, does not answer; nothing expires, and reads are marked stale")
        elif not is_fresh:
            texts.append(
                f"no lease: no controller has answered since it ended, the last one was node {manager.leader}; nothing expires, and reads "
                "are marked stale"
            )
        return texts + self._about_the_table()

    def _no_controller(self) -> str:
        voters = [candidate for candidate in self._candidates() if candidate["voter"]]
        if self._ownership.is_registered:
            effect = "what is registered stays, can be read and changed, and does not expire"
        else:  # rule N1: it acts for nothing
            effect = "what this node had before it started stays, can be read but not changed, and does not expire"
        if not voters:
            linked = [str(node_id) for node_id, hello in sorted(self._links.peers().items()) if hello.candidate]
            if not linked:
                return f"no controller is known, and no candidate can be reached: {effect}"
            names = f"candidate{'s' * (len(linked) > 1)} {_in_words(linked)}"
            return f"no controller: {names} can be reached and know{'s' * (len(linked) == 1)} of none; until then {effect}"
        missing = [str(candidate["node_id"]) for candidate in voters if not candidate["reachable"]]
        if 2 * (len(voters) - len(missing)) > len(voters):
            return f"no controller: an election is under way; until then {effect}"
        names = f"candidate{'s' * (len(missing) > 1)} {_in_words(missing)}"
        return (
            f"no controller: {names} cannot be reached, and {len(voters) // 2 + 1} of {len(voters)} must agree on one; until then {effect}"
        )

    def _about_the_table(self) -> list[str]:
        manager, table = self._manager, self._ownership.table
        if manager.controller is not None:
            return manager.controller.degraded()
        if manager.meta.version >= table.version and table.version:
            return manager.meta.degraded()
        return _seen_in(table)


def _in_words(names: list[str]) -> str:
    """`1`, `1 and 2`, `1, 2 and 3`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _seen_in(table: Table) -> list[str]:
    """What does not work, as far as the table alone tells it: to a node that has no part in the metadata log."""
    texts = []
    for node in table.nodes:
        slots = sum(run.last - run.first + 1 for run in table.runs if run.primary == node.node_id)
        waiting = sum(run.last - run.first + 1 for run in table.runs if run.primary == node.node_id and run.term < node.registered_at)
        if node.state != UP:
            texts.append(f"node {node.node_id} is down; " + (f"{slots} slots are unavailable" if slots else "it holds no slots"))
        elif waiting:
            texts.append(
                f"{waiting} slots of node {node.node_id} have not come back with it: if that lasts, they were on a disk that it no longer "
                f"has, and govern reset {node.node_id} gives them up"
            )
    if table.version and table.unassigned_count:
        texts.append(f"{table.unassigned_count} slots are not assigned to any node yet")
    return texts
