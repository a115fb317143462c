"""Drain and evict: requests that change the registry beside the writes of the claims.

Both act on an instance, but neither takes a turn in the order of a claim's writes: a drain waits for others, for seconds, and its owner
may update or leave meanwhile.

CM1  A drain may be repeated: an instance that is draining stays so, and only the waiting begins again. So it is sent anew over every
     connection until it is answered, with the time that is left.
CM2  The owner's drain is sent under the lease of the moment, and waits while there is none.
CM3  An eviction is sent once. When its answer is lost nobody knows whether it happened, and a repetition might hit whoever registered
     the id since: the one who asked is told so and looks for himself.
CM4  What the node has refused because it does not answer for the slot certainly did not happen. It is sent again, after a pause or to the
     node that does. An eviction on its way stays with the node that it was sent to.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from ..errors import Gone, GovernError, Indeterminate, Overloaded, Rejected
from ..messages import Done, Drain, Drained, Evict, Message, Refused
from ..model import LSN_ZERO, Lsn, ServiceKey
from .claims import Claim
from .outbox import Outbox, Request
from .outcomes import STOPPING, UNASSIGNED, error_of
from .registrations import Registrations

COMMANDS_PENDING_MAX: Final = 1024
"""Drains and evictions that wait for their answer; one more is refused with `Overloaded`."""
DRAIN_MS_MAX: Final = 24 * 3600 * 1000


@attrs.define(eq=False, kw_only=True)
class Command(Request):
    """A drain or an eviction."""

    claim: Claim | None = None
    """The claim of the owner who drains; None when anybody else does."""
    deadline: float = 0.0
    """Until when the node is to wait for subscribers."""
    sent: bool = False
    """On its way over this connection."""
    not_before: float = -math.inf
    """Until then the node wants to be left alone (CM4)."""
    lease: Lsn = LSN_ZERO
    """The lease under which it was sent."""

    @property
    def service(self) -> ServiceKey:
        """The service of the instance."""
        assert isinstance(self.message, Drain | Evict)
        return self.message.service


class Commands:
    """All drains and evictions that are not over."""

    def __init__(self, outbox: Outbox, registrations: Registrations) -> None:
        self._outbox = outbox
        self._registrations = registrations
        self._pending: dict[int, Command] = {}

    def __repr__(self) -> str:
        return f"<Commands {len(self._pending)}>"

    def __len__(self) -> int:
        return len(self._pending)

    # --- what the owner asks for ----------------------------------------------------------------------------------------------

    def drain(self, service: ServiceKey, instance_id: str, deadline: float, claim: Claim | None = None) -> Command:
        """Ask for a drain; with a claim it is wanted to be draining from now on, also when it has to be registered anew."""
        command = self._add(Command(Drain(service, instance_id), claim=claim, deadline=deadline))
        if claim is not None and (claim.over or claim.wanted is None):
            self._end(command, self._registrations.no_longer(claim))
        elif claim is not None:
            self._registrations.want_draining(claim)
        return command

    def evict(self, service: ServiceKey, instance_id: str) -> Command:
        """Ask for an eviction."""
        return self._add(Command(Evict(service, instance_id)))

    def _add(self, command: Command) -> Command:
        if len(self._pending) >= COMMANDS_PENDING_MAX:
            raise Overloaded(f"{COMMANDS_PENDING_MAX} drains and evictions of this client wait for an answer", 1.0)
        command.request_id = self._outbox.draw_id()
        self._pending[command.request_id] = command
        return command

    def forget(self, command: Command) -> None:
        """Nobody waits for it any more: it is not sent if it was not sent yet."""
        self._pending.pop(command.request_id, None)

    # --- the connection -------------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> None:
        """Send what can be sent; the connection is up."""
        for command in [command for command in self._pending.values() if not command.sent]:
            claim = command.claim
            if claim is not None and (claim.over or claim.wanted is None):
                self._end(command, self._registrations.no_longer(claim))
            elif now >= command.not_before and (claim is None or claim.held):  # CM2
                self._send(command, now)

    @property
    def deadline(self) -> float:
        """When `pump` is to be called next, if nothing else happens."""
        waiting = [command for command in self._pending.values() if not command.sent and (command.claim is None or command.claim.held)]
        return min((command.not_before for command in waiting if command.not_before > -math.inf), default=math.inf)

    def _send(self, command: Command, now: float) -> None:
        if isinstance(command.message, Drain):
            command.lease = LSN_ZERO if command.claim is None else command.claim.lease
            timeout_ms = max(1, round(min((command.deadline - now) * 1000, DRAIN_MS_MAX)))
            command.message = attrs.evolve(command.message, lease_id=command.lease, timeout_ms=timeout_ms)
        command.sent = True
        self._outbox.send(command.message, command.request_id)

    def disconnected(self) -> None:
        """The connection is gone: drains are to be repeated, the outcome of evictions is unknown."""
        for command in [command for command in self._pending.values() if command.sent]:
            command.sent, command.in_doubt = False, True  # CM1
            if isinstance(command.message, Evict):
                self._end(
                    command, Indeterminate("the connection broke before the eviction was answered: look whether the instance is gone")
                )

    def services(self) -> dict[ServiceKey, None]:
        """The services of which something can be taken out."""
        return {command.service: None for command in self._pending.values() if not self._stays(command)}

    def _stays(self, command: Command) -> bool:
        return command.sent and isinstance(command.message, Evict)  # CM4

    def take_out(self, service: ServiceKey) -> list[Command]:
        """Hand over what is to be asked of another node."""
        commands = [each for each in self._pending.values() if each.service == service and not self._stays(each)]
        for command in commands:
            del self._pending[command.request_id]
            command.in_doubt = command.in_doubt or command.sent
            command.sent, command.not_before = False, -math.inf
        return commands

    def put_in(self, commands: list[Command]) -> None:
        """Take over what was asked of another node before."""
        self._pending.update({command.request_id: command for command in commands})

    def answered(self, request_id: int, message: Message, now: float) -> bool:
        """Take an answer; False when it is not for one of ours."""
        command = self._pending.get(request_id)
        if command is None or not isinstance(message, Refused | (Drained if isinstance(command.message, Drain) else Done)):
            return False
        if not isinstance(message, Refused):
            if command.claim is not None:
                self._registrations.drained(command.claim, message.lsn)
            del self._pending[request_id]
            self._outbox.finish(command, message)
        elif message.code == Gone.reason and command.claim is not None and not command.claim.over and command.claim.wanted is not None:
            command.sent = False  # CM2: the lease went, not the wish
            self._registrations.end_lease(command.claim.service, command.claim.instance_id, command.lease)
        elif message.code == UNASSIGNED:
            command.sent, command.not_before = False, now + self._outbox.pause(message)  # CM4
        elif message.code != STOPPING:  # the node that comes next is asked
            self._end(command, error_of(message))
        elif isinstance(command.message, Evict):
            command.sent = False  # it certainly did not happen
        return True

    def _end(self, command: Command, error: GovernError) -> None:
        del self._pending[command.request_id]
        if command.claim is not None:
            self._registrations.not_drained(command.claim)
        if command.in_doubt and isinstance(error, Rejected):  # it speaks of the repetition alone
            error = Indeterminate(f"{error}; it may have been set to draining before, over the connection that broke")
        self._outbox.finish(command, error=error)

    def close(self, error: GovernError) -> None:
        """The client leaves: whoever waits gets `error`."""
        for command in list(self._pending.values()):
            self._end(command, error)

    def validate(self) -> None:
        """Assert the invariants; for tests."""
        for request_id, command in self._pending.items():
            assert command.request_id == request_id
            assert not command.done, command
