"""What a refusal means for the one who asked.

A refusal says that the request had no effect, except under the code `unknown`: then nobody knows, and only a repetition under the
same request id will tell.
"""

from __future__ import annotations

from typing import Final

from ..errors import REJECTIONS, GovernError, Indeterminate, Rejected
from ..messages import Refused

UNKNOWN: Final = Indeterminate.reason
STOPPING: Final = "stopping"
UNASSIGNED: Final = "unassigned"
"""Nobody answers for the slot at present, or another node does: whoever asked asks again, there or here."""
_CERTAIN: Final = frozenset({STOPPING, UNASSIGNED, "protocol", "cluster", "denied", "loading", "unsupported"})
"""Codes without a class of their own that still promise that nothing happened."""

RETRY_SECONDS: Final = 1.0
"""Pause before a refused registration that must stay is tried again, when the node names none."""
RETRY_SECONDS_MAX: Final = 30.0


def error_of(refused: Refused) -> GovernError:
    """The exception for a refusal: the class of its code, `Rejected` for other codes that are documented as certain, and
    `Indeterminate` for everything else."""
    retry_after = refused.retry_after_ms / 1000 if refused.retry_after_ms else None
    kind = REJECTIONS.get(refused.code)
    if kind is not None:
        return kind(refused.text, retry_after)
    if refused.code in _CERTAIN:
        return Rejected(f"{refused.text} ({refused.code})", retry_after)
    return Indeterminate(f"{refused.text} ({refused.code})")


def pause_of(refused: Refused) -> float:
    """Seconds to wait before the same thing is asked again."""
    return min(refused.retry_after_ms / 1000, RETRY_SECONDS_MAX) or RETRY_SECONDS
