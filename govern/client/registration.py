"""A registration in the hands of its owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from ..errors import Gone, Invalid
from ..model import Instance, Lsn, ServiceKey, Status
from .answers import Drained
from .claims import Claim
from .draining import DRAIN_SECONDS, wait_drained
from .links import Links


def read_status(value: Status | str) -> Status:
    """A status that an owner may set; raises `Invalid`."""
    try:
        status = Status(value)
    except ValueError:
        status = Status.SUSPECT
    if status is Status.SUSPECT:
        raise Invalid(f"status {value!r} is not valid: use up, draining or down")
    return status


class Registration:
    """One instance that is registered for as long as the block that made it lasts, or until it is lost."""

    def __init__(self, links: Links, claim: Claim) -> None:
        self._links = links
        self._claim = claim

    def __repr__(self) -> str:
        return f"<Registration {self._claim.service} {self._claim.instance_id} lost={self._claim.lost}>"

    @property
    def service(self) -> ServiceKey:
        """The service that it is of."""
        return self._claim.service

    @property
    def instance(self) -> Instance:
        """The values as they were acknowledged last."""
        return self._claim.shown

    @property
    def lease_id(self) -> Lsn:
        """The lsn of the registration; another one when it had to be made anew."""
        return self._claim.shown.lease_id

    @property
    def lost(self) -> str | None:
        """None, or why the registration is no longer held and will not be fought for: `superseded` when another client took the id,
        `evicted` when an operator removed it."""
        return self._claim.lost

    async def wait_lost(self) -> str:
        """Wait until the registration is lost; returns the reason. Raises `Gone` when it was deregistered, `Stopped` when the registry was
        left."""
        await trio.lowlevel.checkpoint()
        while self._claim.lost is None:
            if self._claim.removed:
                raise Gone(f"instance {self._claim.instance_id} of {self._claim.service} was deregistered")
            self._links.check_open()
            await self._links.wait(self._claim)
        return self._claim.lost

    async def update(
        self,
        *,
        weight: float | None = None,
        zone: str | None = None,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
        status: Status | str | None = None,
    ) -> None:
        """Change what is given; returns when the change is durable and visible.

        Over a broken connection it waits for the next one, and repeats the request under its id: the change is made once. Cancelling
        stops the waiting; the change may then happen or not. Raises `Invalid` before anything is sent, `Superseded` or `Gone` when the
        registration is not held any more, another `Rejected` when the node refuses, `Indeterminate` when the node itself does not know, or
        in place of all these when a connection broke before that and the update may have been made over it.
        """
        changes: dict[str, Any] = {"weight": weight, "zone": zone, "version": version, "metadata": metadata, "status": status}
        changes = {name: value for name, value in changes.items() if value is not None}
        if metadata is not None:
            changes["metadata"] = dict(metadata)
        if status is not None:
            changes["status"] = read_status(status)
        self._links.check_open()
        if not changes:
            await trio.lowlevel.checkpoint()
            return
        registrations = self._links.home(self._claim.service).registrations
        request = registrations.update(self._claim, changes)
        registrations.pump()
        self._links.flush()
        try:
            await self._links.wait_done(request)
        finally:
            self._links.home(self._claim.service).registrations.forget(self._claim, request)

    async def drain(self, timeout: float = DRAIN_SECONDS) -> Drained:  # noqa: ASYNC109
        """Take the instance out of traffic, and wait until everybody who subscribes to its service has noticed.

        The instance shows as draining from the moment on at which the node has it on disk. Returned means: no live subscriber chooses it
        any more, or `timeout` seconds have passed; then `missing` names those who have not told. Never raises at the timeout, also
        when there is no connection: then the registry itself is the one that is missing. Raises `Gone`, `Superseded` or `Evicted` when
        the registration is not held any more, another `Rejected` when the node refuses, `Indeterminate` in place of all these when a
        connection broke before that and the drain may have been carried out over it, `Stopped` when the registry was left. Cancelling
        stops the waiting; the instance may be draining or not. Draining twice is fine.
        """
        self._links.check_open()
        deadline = trio.current_time() + timeout
        return await wait_drained(self._links, self._claim.service, self._claim.instance_id, deadline, self._claim)

    async def deregister(self) -> None:
        """Remove the instance now, also a persistent one; returns when the removal is durable and visible. One that is gone already, or
        lost, needs nothing. Waits over broken connections; cancelling stops the waiting, the removal goes on."""
        await trio.lowlevel.checkpoint()
        registrations = self._links.home(self._claim.service).registrations
        registrations.leave(self._claim)
        registrations.pump()
        self._links.flush()
        while not self._claim.over:
            self._links.check_open()
            await self._links.wait(self._claim)
