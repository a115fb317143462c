"""A claim: one instance that this client wants to be registered, or wants to be gone again; and the updates of it that wait."""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs

from ..errors import GovernError
from ..model import LSN_ZERO, Instance, Lsn, ServiceKey, Status
from .outbox import Request


@attrs.define(eq=False, kw_only=True)
class UpdateRequest(Request):
    """An update; its message is built anew, under the lease of the moment, whenever it gets a new id."""

    changes: dict[str, Any]
    tries: int = 0


@attrs.define(eq=False)
class Claim:
    """One instance that is to be registered (`wanted`), or to be removed (`wanted` is None)."""

    service: ServiceKey
    instance_id: str
    ephemeral: bool
    wanted: Instance | None
    shown: Instance
    """What the owner sees: the last acknowledged values, with lease and lsn."""
    lease: Lsn = LSN_ZERO
    """The newest lease known, held or not."""
    held: bool = False
    acknowledged: bool = False
    """True from the first acknowledgement on."""
    refusal: GovernError | None = None
    """Why the first registration failed for good."""
    lost: str | None = None
    removed: bool = False
    status_before: Status | None = None
    """The status to return to when a drain that was asked for is refused."""
    status_lsn: Lsn = LSN_ZERO
    """Of the last acknowledged change of status: a drain that was carried out before it is history."""
    after: Claim | None = None
    """The claim that waits for the removal of this one (R5)."""
    sent: Request | None = None
    repeat: Request | None = None
    updates: deque[UpdateRequest] = attrs.field(factory=deque)

    @property
    def key(self) -> tuple[ServiceKey, str]:
        return self.service, self.instance_id

    @property
    def over(self) -> bool:
        """Whether nothing will ever be sent for it again."""
        return self.removed or self.lost is not None or self.refusal is not None

    def __repr__(self) -> str:
        state = self.lost or ("removed" if self.removed else "held" if self.held else "wanted" if self.wanted else "leaving")
        return f"<Claim {self.service} {self.instance_id} {state} lease={tuple(self.lease)}>"
