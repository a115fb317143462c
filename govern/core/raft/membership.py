"""Changes of the membership, one member at a time, and when they are refused.

Two majorities of memberships that differ by one voter have a voter in common; of memberships that differ by two they may not. Therefore a
change names one member, the next one waits until it is committed, and a leader's first one until an entry of its own term is (without that
two leaders could each change the same committed membership, and both changes could commit).

A new disk is a new member: it joins as a learner, catches up, and is promoted. No change is allowed after which a majority would need
members that the leader has not heard lately: it could not even be undone. The refusals are lines for people, and say what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...peer_messages import MEMBERS_MAX, Member
from .types import ChangeRefused, Membership

VOTERS_MAX: Final = 7
"""More voters make every decision slower and survive nothing that seven do not."""
LAG_MAX: Final = 64
"""A learner this few committed entries behind has caught up: a moment of proposals, not a history. It gets each of
them after the voters, so in a burst the promotion may have to be asked for again."""


def majority(count: int) -> int:
    """So many of them are more than half."""
    return count // 2 + 1


def advice(voters: int) -> str:
    """What is to be said about a number of voters that is worse than another one, for people; empty when there is nothing to say."""
    if voters and voters % 2 == 0:
        return f"{voters} voters survive no more losses than {voters - 1}: use {voters - 1} or {voters + 1}"
    return ""


def add_learner(now: Membership, member: Member) -> Membership:
    """The membership with one more learner."""
    if member in now.voters:
        raise ChangeRefused(f"node {member.node_id} is a voter already: there is nothing to add")
    if member in now.learners:
        raise ChangeRefused(f"node {member.node_id} is a learner already: promote it when it has caught up")
    if len(now.members) >= MEMBERS_MAX:
        raise ChangeRefused(f"there are {MEMBERS_MAX} members, and there cannot be more: remove one first")
    return Membership.of(now.voters, (*now.learners, member))


def promote(now: Membership, member: Member, lag: int, is_near: Callable[[Member], bool]) -> Membership:
    """The membership with a learner as a voter. `lag` is how many entries it is behind; `is_near` tells who was heard lately."""
    if member in now.voters:
        raise ChangeRefused(f"node {member.node_id} is a voter already: there is nothing to promote")
    if member not in now.learners:
        raise ChangeRefused(f"node {member.node_id} is no learner: add it first, and promote it when it has caught up")
    if any(voter.node_id == member.node_id for voter in now.voters):
        raise ChangeRefused(f"node {member.node_id} is still a voter with its former disk: remove that member first")
    if len(now.voters) >= VOTERS_MAX:
        raise ChangeRefused(f"there are {VOTERS_MAX} voters already: leave it a learner, or remove a voter first")
    if not is_near(member):
        raise ChangeRefused(f"node {member.node_id} does not answer: start it, or see to its network, and promote it then")
    if lag > LAG_MAX:
        raise ChangeRefused(f"node {member.node_id} is {lag} entries behind: wait until it has caught up")
    after = Membership.of((*now.voters, member), tuple(each for each in now.learners if each != member))
    _check_reach(after, is_near)
    return after


def remove(now: Membership, member: Member, me: Member, is_near: Callable[[Member], bool]) -> Membership:
    """The membership without a voter or learner. `me` leads."""
    if member in now.learners:
        return Membership(now.voters, tuple(each for each in now.learners if each != member))
    if member not in now.voters:
        raise ChangeRefused(f"node {member.node_id} with this disk is no member: there is nothing to remove")
    if len(now.voters) == 1:
        raise ChangeRefused(f"node {member.node_id} is the last voter: add and promote another one first")
    if member == me:
        raise ChangeRefused(f"node {member.node_id} leads: hand the leadership to another voter first, then remove it")
    after = Membership(tuple(each for each in now.voters if each != member), now.learners)
    _check_reach(after, is_near)
    return after


def _check_reach(after: Membership, is_near: Callable[[Member], bool]) -> None:
    """Whether a majority of the new voters is there to carry the change, and the next one."""
    away = [voter.node_id for voter in after.voters if not is_near(voter)]
    need = majority(len(after.voters))
    if len(after.voters) - len(away) < need:
        names = " and ".join(f"node {node_id}" for node_id in away)
        raise ChangeRefused(
            f"{need} of the then {len(after.voters)} voters would be needed, and {names} cannot be reached now: "
            "bring it back, or remove it, first"
        )
