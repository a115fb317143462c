"""Questions to a node beside writes and subscriptions: reads, and an operator's word to the cluster.

Q1  A read is repeated over connections, after pauses and at other nodes until it is answered or nobody waits for it any more.
Q2  What changes something is sent once. If a connection breaks after that, whoever asked is told that nobody knows.
Q3  What is for one node alone (`pinned`) goes to no other.
"""

from __future__ import annotations

import math
from typing import Any, Final

import attrs

from ..core.table import ROWS_MAX
from ..errors import REJECTIONS, GovernError, Indeterminate, Overloaded, Rejected, RemoteProtocolError
from ..messages import (
    Administer,
    Administered,
    AskStatus,
    AskTable,
    Explain,
    Explained,
    Lookup,
    Message,
    NodeStatus,
    Refused,
    ServiceList,
    Services,
    TableRows,
    View,
)
from ..model import ServiceInfo, ServiceKey
from .answers import Explanation
from .outbox import Alarms, Outbox, Request
from .outcomes import STOPPING, UNASSIGNED, UNKNOWN, error_of
from .views import INSTANCES_MAX, read_instances

READS_PENDING_MAX: Final = 1024
"""Questions to one node that wait for their answer; one more is refused with `Overloaded`."""

Asked = Lookup | Services | AskStatus | Explain | AskTable | Administer


@attrs.define(eq=False, kw_only=True)
class Question(Request):
    """One question."""

    once: bool = False
    """It changes something: it is not repeated when it may have arrived (Q2)."""
    pinned: bool = False
    """It is for this node and for no other (Q3)."""
    sent: bool = False
    delay: str = ""
    """Why it was not answered when it was asked last, in the words of the node; it is asked again."""
    rows: int = 0
    """Of a table, so far."""

    @property
    def service(self) -> ServiceKey | None:
        """The service that it is about, if it is about one."""
        return self.message.service if isinstance(self.message, Lookup | Explain) else None


class Reads:
    """All questions to one node that are not over."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._connected = False
        self._pending: dict[int, Question] = {}
        self._retries: Alarms[Question] = Alarms()

    def __repr__(self) -> str:
        return f"<Reads {len(self._pending)}>"

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, question: Question) -> bool:
        return self._pending.get(question.request_id) is question

    @property
    def is_needed(self) -> bool:
        """Whether somebody waits for an answer; nobody waits for a table."""
        return any(not isinstance(question.message, AskTable) for question in self._pending.values())

    @property
    def deadline(self) -> float:
        return self._retries.deadline if self._connected else math.inf

    # --- what the owner asks for ----------------------------------------------------------------------------------------------

    def ask(self, message: Asked, *, once: bool = False, pinned: bool = False) -> Question:
        """Ask; raises `Overloaded` beyond the limit."""
        if len(self._pending) >= READS_PENDING_MAX and not isinstance(message, AskTable):
            raise Overloaded(f"{READS_PENDING_MAX} reads of this client wait for an answer", 1.0)
        question = Question(message, self._outbox.draw_id(), once=once, pinned=pinned)
        self._pending[question.request_id] = question
        if self._connected:
            self._send(question)
        return question

    def forget(self, question: Question) -> None:
        """Nobody waits for it any more."""
        self._pending.pop(question.request_id, None)
        self._retries.cancel(question)

    def _send(self, question: Question) -> None:
        question.sent = True
        self._outbox.send(question.message, question.request_id)

    # --- the connection -------------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """A connection is up: ask everything that was not answered (Q1)."""
        self._connected = True
        for question in self._pending.values():
            self._retries.cancel(question)
            self._send(question)

    def disconnected(self) -> None:
        """The connection is gone."""
        self._connected = False
        for question in list(self._pending.values()):
            question.pages, question.rows = [], 0
            if question.sent and question.once:
                self._end(question, Indeterminate("the connection broke before the node answered: look what has become of it"))  # Q2
            question.sent = False

    def wake(self, now: float) -> None:
        """The moment of `deadline` has come."""
        for question in self._retries.due(now):
            self._send(question)

    def close(self, error: GovernError) -> None:
        """The client leaves the node: whoever waits gets `error`."""
        for question in list(self._pending.values()):
            self._end(question, error)

    # --- to another node and back -------------------------------------------------------------------------------------------------

    def services(self) -> dict[ServiceKey, None]:
        """The services that are asked about."""
        return {question.service: None for question in self._pending.values() if question.service is not None}

    def take_out(self, service: ServiceKey | None) -> list[Question]:
        """Hand over what is asked about a service; with None what is about no service and may be asked of any node."""
        taken = [each for each in self._pending.values() if each.service == service and not self._stays(each)]
        for question in taken:
            self.forget(question)
            question.pages, question.rows, question.sent = [], 0, False
        return taken

    def take_all(self) -> list[Question]:
        """Hand over everything, to another core of the same node."""
        taken = list(self._pending.values())
        for question in taken:
            self.forget(question)
            question.pages, question.rows, question.sent = [], 0, False
        return taken

    def _stays(self, question: Question) -> bool:
        return question.pinned or (question.once and question.sent)

    def put_in(self, questions: list[Question]) -> None:
        """Take over questions from another node."""
        for question in questions:
            self._pending[question.request_id] = question
            if self._connected:
                self._send(question)

    # --- what the node says ---------------------------------------------------------------------------------------------------

    def answered(self, request_id: int, message: Message, now: float) -> bool:
        """Take an answer; False when it is not for one of ours. Raises `RemoteProtocolError` when it does not fit its question."""
        question = self._pending.get(request_id)
        if question is None:
            return False
        if isinstance(message, Refused):
            self._refused(question, message, now)
            return True
        more = self._collect(question, message)
        if len(question.pages) > INSTANCES_MAX or question.rows > ROWS_MAX:
            raise RemoteProtocolError(f"an answer of more than {INSTANCES_MAX if not question.rows else ROWS_MAX} items")
        if not more:
            self.forget(question)
            self._outbox.finish(question, question.pages)
        return True

    def _refused(self, question: Question, message: Refused, now: float) -> None:
        if message.code == UNASSIGNED:
            question.sent, question.delay = False, message.text
            self._retries.set(question, now + self._outbox.pause(message))
        elif message.code == STOPPING:
            question.sent = False  # the next connection asks again
        else:
            self._end(question, _refusal_of(message) if isinstance(question.message, Administer) else error_of(message))

    def _collect(self, question: Question, message: Message) -> bool:
        """Take one page; returns whether there are more."""
        asked = question.message
        if isinstance(asked, Lookup) and isinstance(message, View) and message.service == asked.service:
            question.pages += read_instances(message.instances).values()
            return message.more
        if isinstance(asked, Services) and isinstance(message, ServiceList):
            question.pages += map(_read_service, message.services)
            return message.more
        if isinstance(asked, AskTable) and isinstance(message, TableRows):
            question.pages.append(message)
            question.rows += 1 + len(message.nodes) + len(message.gone) + len(message.runs)
            return message.more
        if isinstance(asked, AskStatus) and isinstance(message, NodeStatus):
            question.pages.append(message.status)
        elif isinstance(asked, Explain) and isinstance(message, Explained):
            question.pages.append(Explanation(instances=_read_mappings(message.instances), events=_read_mappings(message.events)))
        elif isinstance(asked, Administer) and isinstance(message, Administered):
            question.pages.append(message.result)
        else:
            raise RemoteProtocolError(f"{type(message).__name__} is no answer to {type(asked).__name__}")
        return False

    def _end(self, question: Question, error: GovernError) -> None:
        self.forget(question)
        self._outbox.finish(question, error=error)

    def validate(self) -> None:
        """Assert that every question is on its way, or waits for something that will come; for tests."""
        for request_id, question in self._pending.items():
            assert (question.request_id, question.done) == (request_id, False), question
            assert self._connected or not question.sent, question


def _refusal_of(message: Refused) -> GovernError:
    """The controller has said no: whatever its code, the operator's word had no effect, unless the code itself says that nobody knows."""
    if message.code == UNKNOWN or message.code in REJECTIONS:
        return error_of(message)
    return Rejected(f"{message.text} ({message.code})", message.retry_after_ms / 1000 or None)


def _read_mappings(rows: list[Any]) -> tuple[dict[str, Any], ...]:
    if not all(type(row) is dict and all(type(key) is str for key in row) for row in rows):
        raise RemoteProtocolError("an explanation is made of mappings from text")
    return tuple(rows)


def _read_service(row: Any) -> ServiceInfo:
    if type(row) is not list or [type(value) for value in row[:4]] != [str, str, int, int]:
        raise RemoteProtocolError("a service must be [namespace, name, slot, instances]")
    return ServiceInfo(*row[:4])
