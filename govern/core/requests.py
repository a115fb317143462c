"""What a request becomes on its way through a node, for the actors that carry it."""

from __future__ import annotations

from typing import NamedTuple

import attrs

from ..messages import Administer
from .entries import Op
from .links import Link


class Write(NamedTuple):
    """One operation on its way to the log. `request_id` 0 and link None: nobody waits for the answer."""

    op: Op
    link: Link | None = None
    request_id: int = 0
    deadline_us: int = 0  # on the monotonic clock; 0: none
    answer_by_us: int = 0  # of a drain: it is carried out whenever its turn comes, and answered at this time at the latest


class Word(NamedTuple):
    """An operator's word on its way to the controller, and who waits for the answer."""

    link: Link
    request_id: int
    message: Administer


@attrs.define(kw_only=True)
class Identity:
    """What a node tells of itself in Hello. `cluster_id` is empty until it belongs to a cluster."""

    node_id: int
    cluster_id: str
    version: str
