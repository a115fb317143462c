"""Registrations as a client sees them: what it wants, what it believes to hold, and the next write that brings the two together.

A *claim* is one instance that this client wants to be registered, or wants to be gone again. Connections come and go, a
claim stays until it is settled: held as wanted, lost to somebody else, or removed.

R1  A claim has at most one write in flight. The store judges repetitions by the request id of the last write of an instance, so two
    writes of one instance never overtake each other.
R2  A write that was not answered is repeated under its id until it is; its effect happens once.
R3  `count` and `digest` are those of the held ephemeral claims, and nothing else.
R4  A lost claim is never sent again. Expiry is not a loss: nobody else holds the id, so it is claimed again, with the old lease as
    `prior`, and if somebody does hold it by then the node says `superseded`.
R5  A claim that is being left is kept until the node has confirmed its removal, also over broken connections; the id can be
    claimed anew meanwhile, and then the removal goes first.
R6  A persistent instance is claimed again only when the cluster is another one. With the same cluster it is still in the log, and if it
    is not, an operator removed it.
R7  A refusal of a repeated update speaks of the repetition alone: the update itself may have happened over the connection before, and
    its owner is told so. What became of the lease is told by the registration.
R8  A claim can be taken to another node, with all of its service. Its lease is not held there, as far as anybody knows, and goes along as
    `prior`; its write on the way is in doubt, and repeated there under its id. A persistent instance is in the log of its slot, wherever
    that is (R6).
R9  A refusal for want of a node that answers is not the end of anything: the write is made again after a pause, or at the node that does;
    under its id if it is in doubt.
R10 What a node holds for the session is removed when nobody wants it at any node. After a failover the new node may hold what is claimed
    at the former one still: that claim is on its way.
R11 A registration that is repeated over another connection keeps its id until it is settled, also when its repetition is refused for the
    moment. Under a new id it would be another registration, and take the id back from whoever has registered it in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from ..core.digests import lease_digest
from ..errors import Evicted, Gone, GovernError, Indeterminate, Invalid, Rejected, RemoteProtocolError, Superseded
from ..messages import Deregister, Done, Lost, Message, Refused, Register, Registered, Update
from ..model import LSN_ZERO, Instance, Lsn, ServiceKey, Status, check_instance, client_fields
from .claims import Claim, UpdateRequest
from .outbox import Alarms, Outbox, Request
from .outcomes import STOPPING, UNASSIGNED, UNKNOWN, error_of

WRITES_IN_FLIGHT_MAX: Final = 256
"""Writes on the way at the same time; the others wait in the client. Raising it costs a longer queue at the node after a reconnect."""
EXPIRED: Final = "expired"
"""Why a lease ended that nobody else has taken: it is claimed again."""
_UPDATE_TRIES_MAX: Final = 3
_CHANGEABLE: Final = {"weight": 4, "zone": 5, "version": 6, "metadata": 7, "status": 8}  # name -> place in the client part


class Registrations:
    """All claims of one session."""

    def __init__(self, outbox: Outbox, claimed: dict[tuple[ServiceKey, str], Registrations] | None = None) -> None:
        self.count = 0
        self.digest = 0
        self.movements = 0
        """Grows whenever what the node holds for us may change: with each write sent or answered, and with each loss."""
        self._outbox = outbox
        self._claimed = {} if claimed is None else claimed  # every id that is claimed at any node, and where (R10)
        self._connected = False
        self._claims: dict[tuple[ServiceKey, str], Claim] = {}
        self._services: dict[ServiceKey, dict[Claim, None]] = {}  # the same claims, by their service
        self._queue: dict[Claim, None] = {}  # those that may have something to send
        self._in_flight: dict[int, Claim] = {}
        self._retries: Alarms[Claim] = Alarms()
        self._ttls: dict[float, int] = {}  # ttl -> how many claims have it

    def __repr__(self) -> str:
        return f"<Registrations {len(self._claims)} held={self.count} queued={len(self._queue)} in_flight={len(self._in_flight)}>"

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def settled(self) -> bool:
        """Whether no write is on its way and none is due: only then count and digest can be compared with the node's."""
        return not (self._queue or self._in_flight or self._retries)

    @property
    def ttl_min(self) -> float | None:
        return min(self._ttls, default=None)

    @property
    def deadline(self) -> float:
        return self._retries.deadline if self._connected else float("inf")

    # --- what the owner asks for ----------------------------------------------------------------------------------------------

    def register(self, service: ServiceKey, instance: Instance) -> Claim:
        """Want this instance; raises `Invalid` when it breaks a limit or this client claims that id already."""
        check_instance(instance)
        claim = Claim(service, instance.id, instance.ephemeral, instance, instance)
        former = self._claims.get(claim.key)
        if former is None:
            self._install(claim)
        elif former.wanted is None and (former.after is None or former.after.wanted is None):
            former.after = claim
        else:
            raise Invalid(f"instance {instance.id} of {service} is registered by this client already: give it another id")
        return claim

    def _install(self, claim: Claim) -> None:
        self._claims[claim.key] = claim
        self._claimed[claim.key] = self
        self._services.setdefault(claim.service, {})[claim] = None
        if claim.ephemeral:
            ttl = claim.shown.ttl
            self._ttls[ttl] = self._ttls.get(ttl, 0) + 1
        self._enqueue(claim)

    def leave(self, claim: Claim) -> None:
        """Want the instance to be gone; `claim.removed` tells when it is. What still waits to be updated fails with `Gone`."""
        if claim.over or claim.wanted is None:
            return
        claim.wanted = None
        self._fail_updates(claim, Gone(f"instance {claim.instance_id} of {claim.service} was deregistered"))
        if self._claims.get(claim.key) is not claim:
            self._remove(claim)  # it waited for its predecessor and was never sent
            return
        self._retries.cancel(claim)
        self._enqueue(claim)

    def keep(self, claim: Claim) -> None:
        """Stop caring for a persistent instance: it stays as it is."""
        if claim.over:
            return
        claim.wanted = None
        self._fail_updates(claim, Gone(f"the registration of {claim.instance_id} was left"))
        if claim.sent is not None:
            del self._in_flight[claim.sent.request_id]
        for request in (claim.sent, claim.repeat):
            if isinstance(request, UpdateRequest):
                self._outbox.finish(request, error=Indeterminate(f"the registration of {claim.instance_id} was left meanwhile"))
        claim.sent = claim.repeat = None
        self._remove(claim)

    def update(self, claim: Claim, changes: dict[str, Any]) -> UpdateRequest:
        """Change the instance; raises `Invalid` for bad values. Updates of one claim happen in order."""
        assert changes.keys() <= _CHANGEABLE.keys(), changes
        check_instance(attrs.evolve(claim.shown, **changes))
        request = UpdateRequest(Update(claim.service, claim.instance_id, claim.lease, {}), changes=dict(changes))
        if claim.over or claim.wanted is None:
            self._outbox.finish(request, error=self.no_longer(claim))
            return request
        claim.updates.append(request)
        self._enqueue(claim)
        return request

    def forget(self, claim: Claim, request: UpdateRequest) -> None:
        """The owner does not wait for this update any more: it is not sent if it was not sent yet."""
        if request in claim.updates:
            claim.updates.remove(request)

    def want_draining(self, claim: Claim) -> None:
        """The owner drains the instance: a registration made anew from now on says so too."""
        if claim.wanted is not None and claim.status_before is None:
            claim.status_before = claim.wanted.status
            claim.wanted = attrs.evolve(claim.wanted, status=Status.DRAINING)

    def drained(self, claim: Claim, lsn: Lsn) -> None:
        """The node has set the instance to draining, at `lsn`; the answer may come long after later changes."""
        if claim.wanted is not None and lsn > claim.status_lsn:
            claim.status_before, claim.status_lsn = None, lsn
            claim.wanted = attrs.evolve(claim.wanted, status=Status.DRAINING)
            claim.shown = attrs.evolve(claim.wanted, lease_id=claim.lease, lsn=max(lsn, claim.shown.lsn))

    def not_drained(self, claim: Claim) -> None:
        """The node has refused to drain the instance."""
        if claim.wanted is not None and claim.status_before is not None:
            claim.wanted = attrs.evolve(claim.wanted, status=claim.status_before)
        claim.status_before = None

    def held(self) -> Iterator[Claim]:
        """The claims that `count` and `digest` speak of."""
        return (claim for claim in self._claims.values() if claim.held and claim.ephemeral)

    def no_longer(self, claim: Claim) -> GovernError:
        """The error of whoever wants to change an instance that this client does not hold any more."""
        if claim.lost is None:
            return Gone(f"instance {claim.instance_id} of {claim.service} was deregistered")
        kind = {Superseded.reason: Superseded, Evicted.reason: Evicted}.get(claim.lost, Gone)
        return kind(f"the registration of {claim.instance_id} of {claim.service} was lost: {claim.lost}")

    # --- the connection -------------------------------------------------------------------------------------------------------

    def connected(self, *, resumed: bool, other_cluster: bool) -> None:
        """A connection is up: repeat what was not answered, and register what the node cannot hold any more."""
        self._connected = True
        for claim in list(self._claims.values()):
            if other_cluster:
                self._forget_cluster(claim)
            elif not resumed and claim.ephemeral and claim.repeat is None:
                self._drop_lease(claim)
            self._enqueue(claim)
        self.pump()

    def _forget_cluster(self, claim: Claim) -> None:
        """Leases and writes of another cluster mean nothing here: start from what is wanted."""
        self._drop_lease(claim)
        claim.lease = claim.status_lsn = LSN_ZERO
        repeat, claim.repeat = claim.repeat, None
        if isinstance(repeat, UpdateRequest):
            self._again_later(claim, repeat)

    def _again_later(self, claim: Claim, request: UpdateRequest) -> None:
        """This update certainly had no effect: it goes first among those that wait, to be sent under a new id."""
        if claim.over or claim.wanted is None:
            self._refuse_update(request, self.no_longer(claim))
            return
        request.request_id = 0
        claim.updates.appendleft(request)

    def disconnected(self) -> None:
        """The connection is gone; every write in flight is to be repeated."""
        self._connected = False
        for claim in self._in_flight.values():
            self._doubt(claim)
            if claim.over:
                self._give_up_repeat(claim)
        self._in_flight.clear()
        for claim in self._claims.values():
            if claim.wanted is None:
                self._outbox.tell(claim)  # whoever leaves does not wait for the next connection

    def _doubt(self, claim: Claim) -> None:
        """What is on its way will not be answered any more: it is to be repeated (R2)."""
        assert claim.sent is not None, claim
        claim.sent.in_doubt = True
        claim.repeat, claim.sent = claim.sent, None

    def _give_up_repeat(self, claim: Claim) -> None:
        repeat, claim.repeat = claim.repeat, None
        if isinstance(repeat, UpdateRequest):
            self._refuse_update(repeat, self.no_longer(claim))

    def _refuse_update(self, request: UpdateRequest, error: GovernError) -> None:
        """End an update that is not made any more; what was in doubt stays so (R7)."""
        if request.in_doubt and isinstance(error, Rejected) and not isinstance(error, Invalid):
            text = f"{error} ({error.reason}), and the connection broke when the update was sent first: it may have happened"
            error = Indeterminate(text)
        self._outbox.finish(request, error=error)

    def wake(self, now: float) -> None:
        """The moment of `deadline` has come."""
        for claim in self._retries.due(now):
            self._enqueue(claim)
        self.pump()

    def pump(self) -> None:
        """Send what is due, as far as the window allows."""
        while self._connected and self._queue and len(self._in_flight) < WRITES_IN_FLIGHT_MAX:
            claim = next(iter(self._queue))
            del self._queue[claim]
            request = self._next_write(claim)
            if request is None:
                continue
            request.request_id = request.request_id or self._outbox.draw_id()
            claim.sent = request
            self._in_flight[request.request_id] = claim
            self.movements += 1
            self._outbox.send(request.message, request.request_id)

    def _next_write(self, claim: Claim) -> Request | None:
        assert claim.sent is None, claim  # R1
        if claim.repeat is not None:
            request, claim.repeat = claim.repeat, None  # R2
            return request
        if claim.over:
            return None  # R4
        if claim.wanted is None:
            if claim.lease == LSN_ZERO:
                self._remove(claim)
                return None
            return Request(Deregister(claim.service, claim.instance_id, claim.lease))
        if not claim.held:
            return Request(Register(claim.service, client_fields(claim.wanted), claim.lease))
        if claim.updates:
            return self._build_update(claim, claim.updates.popleft())
        return None

    def _build_update(self, claim: Claim, request: UpdateRequest) -> UpdateRequest:
        """The update under the lease of this moment, its values in the form of the client part."""
        assert claim.wanted is not None
        fields = client_fields(attrs.evolve(claim.wanted, **request.changes))
        changes = {name: fields[_CHANGEABLE[name]] for name in request.changes}
        request.message = Update(claim.service, claim.instance_id, claim.lease, changes)
        request.tries += 1
        return request

    def _enqueue(self, claim: Claim) -> None:
        if claim.sent is None and claim not in self._retries:
            self._queue[claim] = None

    # --- to another node and back -------------------------------------------------------------------------------------------------

    def services(self) -> Iterable[ServiceKey]:
        """The services that have claims."""
        return self._services

    def take_out(self, service: ServiceKey) -> list[Claim]:
        """Hand over all claims of a service (R8). What is over stays until it is answered."""
        claims = list(self._services.get(service, ()))
        for claim in claims:
            if claim.sent is not None:
                del self._in_flight[claim.sent.request_id]
                self._doubt(claim)
            if claim.ephemeral:
                self._drop_lease(claim)
            self._queue.pop(claim, None)
            self._retries.cancel(claim)
            self._remove_from_books(claim)
        self.movements += len(claims)
        return claims

    def put_in(self, claims: list[Claim]) -> None:
        """Take over claims from another node (R8). What this node held for the session, and nobody wanted, is on its way out and goes
        first."""
        for claim in claims:
            former = self._claims.get(claim.key)
            if former is None:
                self._install(claim)
                continue
            assert (former.wanted, former.after) == (None, None), (former, claim)
            former.after = claim if claim.wanted is not None else claim.after
            if claim.wanted is None:
                claim.removed = True
                self._outbox.tell(claim)
        self.movements += len(claims)

    # --- what the node says ---------------------------------------------------------------------------------------------------

    def answered(self, request_id: int, message: Message, now: float) -> bool:
        """Take an answer; False when it is not for one of ours. Raises `RemoteProtocolError` when it does not fit its question."""
        claim = self._in_flight.get(request_id)
        if claim is None:
            return False
        request = claim.sent
        assert request is not None
        asked = request.message
        if not isinstance(message, Refused | (Registered if isinstance(asked, Register) else Done)):
            raise RemoteProtocolError(f"{type(message).__name__} is no answer to {type(asked).__name__}")
        del self._in_flight[request_id]
        claim.sent = None
        self.movements += 1
        if isinstance(asked, Register):
            self._register_answered(claim, request, message, now)
        elif isinstance(request, UpdateRequest):
            self._update_answered(claim, request, message, now)
        else:
            self._removal_answered(claim, request, message, now)
        if not claim.removed:
            self._enqueue(claim)
        self.pump()
        return True

    def _register_answered(self, claim: Claim, request: Request, message: Message, now: float) -> None:
        if isinstance(message, Registered):
            self._take_lease(claim, message)
            return
        assert isinstance(message, Refused)
        if self._is_repeated(request, message):
            claim.repeat = request
            self._retries.set(claim, now + self._outbox.pause(message))
            return
        if claim.wanted is None:
            return
        patient = message.code in (STOPPING, UNASSIGNED) or (message.retry_after_ms > 0 and message.code != "disk_full")
        if claim.acknowledged:
            patient = patient or message.code in ("overloaded", "disk_full")
        if patient:
            claim.repeat = request if request.in_doubt else None  # R11
            self._retries.set(claim, now + self._outbox.pause(message))
        elif claim.acknowledged:
            self._lose(claim, message.code)
        else:
            claim.refusal = error_of(message)
            self._discard(claim)
        self._outbox.tell(claim)

    def _is_repeated(self, request: Request, refused: Refused) -> bool:
        """Whether the refusal leaves open what became of the request: then it goes out again under its id."""
        return refused.code == UNKNOWN or (refused.code == UNASSIGNED and request.in_doubt)  # R9

    def _take_lease(self, claim: Claim, message: Registered) -> None:
        self._drop_lease(claim)
        claim.lease, claim.held, claim.acknowledged = message.lease_id, True, True
        if claim.ephemeral:
            self.count += 1  # R3
            self.digest ^= lease_digest(claim.service, claim.instance_id, claim.lease)
        if claim.wanted is not None:
            claim.shown = attrs.evolve(claim.wanted, lease_id=message.lease_id, lsn=message.lsn)
        self._outbox.tell(claim)

    def _drop_lease(self, claim: Claim) -> None:
        if claim.held:
            claim.held = False
            if claim.ephemeral:
                self.count -= 1  # R3
                self.digest ^= lease_digest(claim.service, claim.instance_id, claim.lease)

    def _update_answered(self, claim: Claim, request: UpdateRequest, message: Message, now: float) -> None:
        if isinstance(message, Done):
            if claim.wanted is not None:
                claim.wanted = attrs.evolve(claim.wanted, **request.changes)
                if "status" in request.changes:
                    claim.status_before, claim.status_lsn = None, message.lsn
                claim.shown = attrs.evolve(claim.wanted, lease_id=claim.lease, lsn=message.lsn)
            self._outbox.finish(request)
            return
        assert isinstance(message, Refused)
        if message.code == UNASSIGNED and request.in_doubt and not claim.over:
            claim.repeat = request  # R9
            self._retries.set(claim, now + self._outbox.pause(message))
        elif message.code in (STOPPING, UNASSIGNED):
            self._retries.set(claim, now + self._outbox.pause(message))
            self._again_later(claim, request)
        elif message.code == Gone.reason and (claim.over or request.tries < _UPDATE_TRIES_MAX):
            self._drop_lease(claim)  # the node does not hold that lease: claim it again first, then change it under the new one
            self._again_later(claim, request)
        else:
            self._refuse_update(request, error_of(message))

    def _removal_answered(self, claim: Claim, request: Request, message: Message, now: float) -> None:
        if isinstance(message, Refused) and message.code != Gone.reason:
            claim.repeat = request if self._is_repeated(request, message) else None
            self._retries.set(claim, now + self._outbox.pause(message))
            return
        self._remove(claim)  # R5

    def lost(self, message: Lost) -> None:
        """The node says that a lease of this session is no longer held."""
        self.end_lease(message.service, message.instance_id, message.lease_id, message.reason)

    def end_lease(self, service: ServiceKey, instance_id: str, lease: Lsn, reason: str = EXPIRED) -> None:
        """A lease that is not held any more, and why. Means nothing when that very lease is not in hand."""
        claim = self._claims.get((service, instance_id))
        if claim is None or not claim.held or claim.lease != lease:
            return
        self.movements += 1
        self._drop_lease(claim)
        if claim.wanted is None:
            if claim.sent is None and claim.repeat is None:
                self._remove(claim)
        elif reason == EXPIRED:
            self._enqueue(claim)  # R4
        else:
            self._lose(claim, reason)
        self.pump()

    def disown(self, service: ServiceKey, instance_id: str, lease: Lsn) -> None:
        """The node holds an instance for this session: remove it, unless it is wanted, here or at another node (R10), or on its way."""
        claim = self._claims.get((service, instance_id))
        if claim is None and (service, instance_id) in self._claimed:
            return
        if claim is None:
            nobody = Instance(id=instance_id, host="", port=0)
            self._install(Claim(service, instance_id, ephemeral=True, wanted=None, shown=nobody, lease=lease))
        elif claim.wanted is None and not claim.held and claim.lease < lease and claim.sent is None and claim.repeat is None:
            claim.lease = lease
            self._enqueue(claim)
        self.pump()

    # --- ends -----------------------------------------------------------------------------------------------------------------

    def _lose(self, claim: Claim, reason: str) -> None:
        claim.lost = reason
        self._fail_updates(claim, self.no_longer(claim))
        self._give_up_repeat(claim)
        self._discard(claim)
        self._outbox.tell(claim)

    def _remove(self, claim: Claim) -> None:
        claim.removed = True
        self._discard(claim)
        self._outbox.tell(claim)

    def _discard(self, claim: Claim) -> None:
        """Take a claim that is over out of all books, and let the one that waits for its id begin."""
        self._drop_lease(claim)
        self._queue.pop(claim, None)
        self._retries.cancel(claim)
        if self._claims.get(claim.key) is not claim:
            return
        self._remove_from_books(claim)
        if claim.after is not None and claim.after.wanted is not None:
            self._install(claim.after)

    def _remove_from_books(self, claim: Claim) -> None:
        del self._claims[claim.key]
        if self._claimed.get(claim.key) is self:
            del self._claimed[claim.key]
        of_service = self._services[claim.service]
        del of_service[claim]
        if not of_service:
            del self._services[claim.service]
        if claim.ephemeral:
            ttl = claim.shown.ttl
            self._ttls[ttl] -= 1
            if not self._ttls[ttl]:
                del self._ttls[ttl]

    def _fail_updates(self, claim: Claim, error: GovernError) -> None:
        while claim.updates:
            self._refuse_update(claim.updates.popleft(), error)

    def close(self, error: GovernError) -> None:
        """The client leaves: every update that somebody waits for ends with `error`."""
        for claim in list(self._claims.values()):
            for request in (claim.sent, claim.repeat):
                if isinstance(request, UpdateRequest):
                    self._outbox.finish(request, error=error)
            claim.sent = claim.repeat = None
            self._fail_updates(claim, error)
            self._outbox.tell(claim)

    def validate(self) -> None:
        """Assert the invariants; for tests."""
        held = [claim for claim in self._claims.values() if claim.held and claim.ephemeral]
        digest = 0
        for claim in held:
            digest ^= lease_digest(claim.service, claim.instance_id, claim.lease)
        assert (self.count, self.digest) == (len(held), digest)  # R3
        for request_id, claim in self._in_flight.items():
            assert claim.sent is not None
            assert (claim.sent.request_id, claim.repeat) == (request_id, None), claim  # R1
        for claim in self._claims.values():
            assert not claim.over
            waits = claim in self._queue or claim in self._retries or claim.sent is not None
            settled = claim.held and claim.wanted is not None and not claim.updates
            assert waits or settled or not self._connected, claim  # nothing is forgotten
        assert all(key in self._claimed for key in self._claims)
        assert sum(map(len, self._services.values())) == len(self._claims)
        assert sum(self._ttls.values()) == sum(claim.ephemeral for claim in self._claims.values())
