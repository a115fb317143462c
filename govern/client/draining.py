"""Waiting for a drain."""

from __future__ import annotations

from typing import Final

import trio

from .. import messages
from ..model import ServiceKey
from .answers import Drained
from .claims import Claim
from .links import Links

DRAIN_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 1.0
"""The node itself answers at the deadline; so much longer its answer may take."""


async def wait_drained(links: Links, service: ServiceKey, instance_id: str, deadline: float, claim: Claim | None = None) -> Drained:
    """Drain an instance, and wait until all subscribers have applied it or the deadline has come; then who is missing is named, and
    when no node has answered at all, that is the one. Raises what the node refuses with."""
    core = links.home(service)
    command = core.commands.drain(service, instance_id, deadline, claim)
    if core.connected:
        core.commands.pump(trio.current_time())
    links.flush()
    try:
        with trio.move_on_at(deadline + (ANSWER_SECONDS if core.connected else 0.0)):
            await links.wait_done(command)
    finally:
        links.cores.forget_command(command)
    if not command.done:
        return Drained(applied=0, missing=("the registry: it did not answer in time",), missing_count=1)
    answer = command.answer
    assert isinstance(answer, messages.Drained)
    return Drained(applied=answer.applied, missing=tuple(answer.missing), missing_count=answer.missing_count)
