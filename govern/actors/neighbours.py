"""Which node this is, and how it reaches the others: what the actors of the cluster need of each other and of the links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs

from ..messages import Message
from ..peer_messages import Member, PeerHello


@attrs.frozen(kw_only=True)
class Myself:
    """Which node this is, in which life, and what it is meant to be. `initial` are the initial candidates; empty: it is alone."""

    member: Member
    boot_no: int
    initial: tuple[int, ...]
    is_candidate: bool
    is_volatile: bool

    @property
    def node_id(self) -> int:
        return self.member.node_id


class Links(Protocol):
    """The peer connector, as far as it is needed here."""

    def send(self, node_id: int, message: Message) -> bool:
        """Send over the link to a node; False when it is dropped."""

    def send_to_all(self, node_ids: Iterable[int], message: Message) -> None:
        """Send the same to several nodes; for some of them it may be dropped."""

    def peers(self) -> Mapping[int, PeerHello]:
        """Who is linked now, and what they said of themselves."""

    def refusals(self) -> Mapping[int, str]:
        """With whom there can be no link as things are, and why."""

    def set_peers(self, addresses: Mapping[int, str]) -> None:
        """To whom links are to be kept."""

    def set_boots(self, boots: Mapping[Member, int]) -> None:
        """The highest boot number that is known of each disk: no life with a lower one has a link."""

    @property
    def expelled(self) -> str:
        """Why this node has no part in the cluster any more; empty as long as it has one."""

    def recheck(self) -> None:
        """This node has found its cluster: tell everybody, and drop the links to nodes of other clusters."""

    def drop(self, node_id: int, reason: str) -> None:
        """End the link to a node that said what no node of ours says."""
