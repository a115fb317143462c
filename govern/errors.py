"""Every error a user of govern can meet.

The one question an application has after a failed write is whether the write happened. The class answers it:

* `Rejected`: it certainly did not happen.
* `Indeterminate`: it may have happened; repeating it is safe, because requests carry an id that the store remembers.
* `Unreachable`, `Stopped`: there is no registry (any more) to ask.

Below them lie the errors of the parts: a peer that breaks the protocol (`ProtocolError`) costs its own connection
and nothing else; a data directory that cannot be used (`StorageError`) keeps a node from starting, with one line
that says what to do; a disk that fails while serving (`NodeFailed`) ends the node, because after a failed fsync
nobody can know what is on the disk.
"""

from __future__ import annotations

from typing import Final


class GovernError(Exception):
    """The base of every error that govern raises on purpose."""


class Rejected(GovernError):
    """The request certainly had no effect.

    `reason` is the short code that travels on the wire; `retry_after` is the number of seconds after which a repetition may
    succeed, or None when the same request can never succeed.
    """

    reason = "rejected"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Invalid(Rejected, ValueError):
    """A value is outside its documented limits; the message names the value and the limit."""

    reason = "invalid"


class Gone(Rejected):
    """The registration that was to be changed no longer exists under that lease."""

    reason = "gone"


class Superseded(Rejected):
    """A newer registration of the same instance id, made by another session, holds the id now.

    A registration that ends with this is not in force, and will not be; over a connection that broke it may have been for a while, before
    the other one took the id.
    """

    reason = "superseded"


class Evicted(Rejected):
    """An operator removed this registration and barred this client from registering the instance id again; others may.

    A registration that ends with this is not in force; it may have been, until the operator removed it.
    """

    reason = "evicted"


class Overloaded(Rejected):
    """A bounded queue of the node is full, or the deadline of the request passed before it was looked at."""

    reason = "overloaded"


class DiskFull(Rejected):
    """The node cannot write to its disk: registrations are refused until there is space, everything else goes on."""

    reason = "disk_full"


class Unassigned(Rejected):
    """Nobody acts for the slot of this service now: it was not assigned yet, or its node was not given it in its present life. Clients
    wait and try again by themselves."""

    reason = "unassigned"


class NoController(Rejected):
    """There is no controller that could decide now: most candidates cannot be reached, or an election is under way."""

    reason = "no_controller"


class Indeterminate(GovernError):
    """The request may or may not have had its effect: the connection or the node ended before it was answered."""

    reason = "unknown"


class Stopped(GovernError):
    """The node, the client or the actor that was asked has stopped."""

    reason = "stopping"


class Unreachable(GovernError):
    """No node answered at any of the given addresses within the timeout."""


class NodeFailed(GovernError):
    """The node met an error it must not survive, such as a failed fsync; it acknowledges nothing any more."""


class ConfigError(GovernError):
    """A configuration key or value is not usable; the message is one line that says what to do."""


class ProtocolError(GovernError):
    """The wire protocol was broken. Only the connection on which it happened is closed."""


class LocalProtocolError(ProtocolError):
    """We were about to send something that the protocol does not allow: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol does not allow."""


class StorageError(GovernError):
    """A data directory cannot be used; the message is one line that says why and what to do."""


class DirectoryInUse(StorageError):
    """Another process, or another node of this process, holds the lock of the data directory."""


class FormatTooNew(StorageError):
    """The data directory was written by a newer version of govern."""


class Corrupt(StorageError):
    """Proven records of the write-ahead log, or every snapshot, cannot be read back."""


class NoSpace(StorageError):
    """The file system has no space left for a new file."""


class StorageFailed(StorageError):
    """A write or an fsync failed while serving. Nothing may be retried: see rule W4 in docs/protocol.md."""


REJECTIONS: Final[dict[str, type[Rejected]]] = {
    kind.reason: kind for kind in (Rejected, Invalid, Gone, Superseded, Evicted, Overloaded, DiskFull, Unassigned, NoController)
}
