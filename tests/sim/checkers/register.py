"""The registry as a linearizable thing: one key is one instance id of one service.

The state of a key is None, or who holds it, its status and its value. Clients' operations come from the history. What happens without
a client's call comes from the log: an expiry, the removal that follows a registration nobody waited for any more, and the registration
that a client repeats by itself after it lost its lease. These are points in time.

T23  There is one order of all these that explains every answer.
T24  In particular a registration that was acknowledged shows in every lookup until it is deregistered, replaced, evicted or expired.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

from ..history import End, History, Operation
from . import Violation
from .linearizability import Call, Verdict, check
from .shadow import Commit, Key, Shadow

State = tuple[str, str, str] | None  # owner, status, value


def step(state: Hashable, call: Call) -> Iterable[Hashable]:
    """Every state that an operation may leave behind."""
    assert state is None or isinstance(state, tuple)
    owner, value = call.arguments
    name = call.name
    if name == "lookup":
        found = None if state is None else state[1:]
        return [state] if found == call.result else []
    if name in ("register", "again"):
        return [(owner, call.result if name == "again" else "up", value)]
    if name in ("evict", "gone"):
        return [None] if state is not None else []
    if state is None:
        return [None] if name == "deregister" else []
    if name == "deregister":
        return [None] if state[0] == owner else [state]
    if name == "drain":
        return [(state[0], "draining", state[2])]
    assert name == "update", name
    return [(owner, state[1], value)] if state[0] == owner else []


class Linearizability:
    """Judges the history at the end of a run."""

    def __init__(self, history: History, shadow: Shadow, clients: dict[bytes, str]) -> None:
        self.unknown = 0
        """Keys for which the budget was spent."""
        self._history = history
        self._shadow = shadow
        self._clients = clients  # session -> client, filled by the workload

    def sweep(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """T23 for every key."""
        keys = dict.fromkeys(operation.key for operation in self._history.operations if operation.key[1])
        for key in keys:
            result = check(self._calls(key), None, step)
            self.unknown += result.verdict is Verdict.UNKNOWN
            if result.verdict is Verdict.ILLEGAL:
                raise Violation(f"23: no order of the operations on {key} explains what was told: {result}")

    def _calls(self, key: Key) -> list[Call]:
        commits = [commit for commit in self._shadow.commits if commit.key == key]
        first: dict[str, Commit] = {}
        calls: list[Call] = []
        for commit in commits:
            after = commit.after
            if commit.kind in ("expire", "deregister"):
                calls.append(Call(name="gone", invoked=commit.at, returned=commit.at, arguments=("", "")))
            elif commit.kind in ("register", "update") and after is not None:
                if after.value in first:
                    owner = self._clients.get(after.session, "?")
                    again = Call(name="again", invoked=commit.at, returned=commit.at, arguments=(owner, after.value), result=after.status)
                    calls.append(again)
                else:
                    first[after.value] = commit
        for operation in self._history.operations:
            if operation.key == key:
                calls += _client_call(operation, first)
            elif operation.kind == "lookup" and operation.key[0] == key[0] and operation.end is End.OK:
                calls.append(_lookup_call(operation, key[1]))
        return calls


def _lookup_call(operation: Operation, instance_id: str) -> Call:
    found = operation.result.get(instance_id)
    result = None if found is None else (found[0], found[1])
    return Call(name="lookup", invoked=operation.invoked, returned=operation.returned, arguments=("", operation.client), result=result)


def _client_call(operation: Operation, first: dict[str, Commit]) -> list[Call]:
    """A client's operation; an update that a lost lease turned into a registration with the new value is one."""
    if operation.end is End.FAIL:
        return []
    sure = operation.end is End.OK
    kind = operation.kind
    committed = first.get(operation.value)
    if kind == "update" and committed is not None and committed.kind == "register":
        kind = "register"
    return [
        Call(
            name=kind,
            invoked=operation.invoked,
            returned=operation.returned if sure else math.inf,
            sure=sure,
            arguments=(operation.client, operation.value),
        )
    ]
