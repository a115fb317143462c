"""What a drain and an explanation come back with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Drained:
    """How a drain ended: so many subscribers have applied it, and these have not within the time."""

    applied: int
    missing: tuple[str, ...] = ()
    """Who has not, by what they call themselves and their address; at most 100 of them are named."""
    missing_count: int = 0
    """How many have not."""

    @property
    def complete(self) -> bool:
        """Whether nobody is missing: no caller that subscribes sends new traffic."""
        return not self.missing_count


@attrs.frozen(kw_only=True)
class Explanation:
    """Why instances are in a view or not: how they stand now, and what the node remembers of them, oldest first.

    The mappings have the shapes of `explain --json`: rule EX2 of docs/protocol.md.
    """

    instances: tuple[Mapping[str, Any], ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
