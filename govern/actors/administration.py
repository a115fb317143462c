"""Words of operators: from whichever node they reach, to the controller, and the answer back.

    client ─▶ client_sessions ─▶ Administration of that node ─▶ (link) ─▶ Administration of the controller ─▶ its cores
    client ◀─ client_sessions ◀─ Administration of that node ◀─ (link) ◀─ ControllerAnswer ◀────────────────────┘

A part of the slot manager, in a module of its own. What is decided is decided by `core.controller` and by the Raft rules.

O1  Every word is answered once: by the controller, or after `WORD_SECONDS` with "nobody knows". It is never passed on twice.
O2  An answer "done" means that the record or the change is committed. What is read was confirmed by a majority after it was asked for.
O3  What was answered with "nobody knows" is not begun any more; what was on its way into the log by then may still happen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from ..core.controller import DecisionRefused
from ..core.ownership import Ownership
from ..core.raft.membership import advice
from ..core.requests import Word
from ..environment import Random
from ..errors import Indeterminate, NoController, Rejected
from ..messages import Administered, Message, Refused
from ..peer_messages import AskController, ControllerAnswer, Member
from .election import Election
from .mail import ChangeMembers, Confirm, Confirmed, ElectionMail, MembersChanged, SessionsMail, WordAnswered
from .runtime import Mailbox, MailboxFull

if TYPE_CHECKING:
    from .slot_manager import SlotManager

WORD_SECONDS: Final = 9.0
"""Less than a client waits, so that it hears what is known."""
ASKED_MAX: Final = 256
"""Words that wait on the controller; more are refused."""


@attrs.define(eq=False)
class _Asked:
    """A word on the controller, until it is settled."""

    message: AskController
    until: float


class Administration:
    """The words that came to this node, and those that came to this controller."""

    def __init__(
        self,
        *,
        node_id: int,
        ownership: Ownership,
        election: Election | None,
        election_mailbox: Mailbox[ElectionMail],
        sessions_mailbox: Mailbox[SessionsMail],
        random: Random,
    ) -> None:
        self._node_id = node_id
        self._ownership = ownership
        self._election = election
        self._election_mailbox = election_mailbox
        self._sessions_mailbox = sessions_mailbox
        self._words: dict[int, tuple[Word, float]] = {}  # number → who asked, and until when it is waited for
        self._asked: dict[int, _Asked] = {}
        self._number = int.from_bytes(random.randbytes(6), "big")  # an answer to a former life of this node is not one to this
        self._verbs: dict[str, Callable[[SlotManager, int, AskController], None]] = {
            "nodes": self._ask_nodes,
            "members.add": self._change_members,
            "members.promote": self._change_members,
            "members.remove": self._change_members,
            "transfer": self._change_members,
            "reset": self._reset,
            "forget": self._forget,
        }

    @property
    def due_at(self) -> float:
        """When `tick` has something to do."""
        waits = [until for _, until in self._words.values()] + [asked.until for asked in self._asked.values()]
        return min(waits, default=math.inf)

    # --- the node that was asked ----------------------------------------------------------------------------------------------

    def take_words(self, manager: SlotManager, words: Sequence[Word]) -> None:
        """Words of clients of this node."""
        for word in words:
            self._number += 1
            self._words[self._number] = (word, trio.current_time() + WORD_SECONDS)
            asked = AskController(self._node_id, self._number, word.message.verb, word.message.node_id, word.message.options)
            if manager.controller is not None:
                self.asked(manager, asked)
            elif manager.leader is None or manager.leader == self._node_id:
                self._nobody(self._number, "there is no controller now: govern status tells why; try again when there is one")
            elif not manager.deliver(manager.leader, asked):
                self._nobody(self._number, f"node {self._node_id} has no link to the controller, node {manager.leader}: ask another node")

    def _nobody(self, number: int, text: str) -> None:
        self.take_answer(ControllerAnswer(self._node_id, number, NoController.reason, text, {}))

    def take_answer(self, answer: ControllerAnswer) -> None:
        """The controller's answer to a word that came to this node."""
        if answer.origin != self._node_id or answer.number not in self._words:
            return
        word, _ = self._words.pop(answer.number)
        retry_ms = 1000 if answer.code == NoController.reason else 0
        said: Message = Refused(answer.code, answer.text, retry_ms) if answer.code else Administered(answer.result)
        try:
            self._sessions_mailbox.post(WordAnswered(word, said))
        except MailboxFull:
            self._words[answer.number] = (word, trio.current_time() + 0.1)  # the sessions are busy: "nobody knows", in a moment

    def tick(self, manager: SlotManager) -> None:
        """Give up what waited for too long (O1), and answer what the controller has decided."""
        now = trio.current_time()
        for token in [token for token, asked in self._asked.items() if asked.until <= now]:
            if manager.controller is not None:
                manager.controller.abandon(token)  # O3
            self._answer(manager, token, Indeterminate.reason, "it was not decided in time: look whether it has happened")
        for number in [number for number, (_, until) in self._words.items() if until <= now]:
            text = f"the controller did not answer within {WORD_SECONDS:g} s: look whether it has happened"
            self.take_answer(ControllerAnswer(self._node_id, number, Indeterminate.reason, text, {}))
        if manager.controller is not None:
            for decided in manager.controller.take_decided():
                assert isinstance(decided.token, int)
                self._answer(manager, decided.token, Rejected.reason if decided.refused else "", decided.refused)

    # --- the controller -------------------------------------------------------------------------------------------------------

    def asked(self, manager: SlotManager, message: AskController) -> None:
        """A word has come to this node as the controller."""
        self._number += 1
        token = self._number
        self._asked[token] = _Asked(message, trio.current_time() + WORD_SECONDS)
        handler = self._verbs.get(message.verb)
        if manager.controller is None:
            self._answer(manager, token, NoController.reason, f"node {self._node_id} is not the controller any more: try again")
        elif handler is None:
            self._answer(manager, token, Rejected.reason, f"there is no verb {message.verb[:64]!r}: upgrade the controller's node")
        elif len(self._asked) > ASKED_MAX:
            self._answer(manager, token, Rejected.reason, f"{ASKED_MAX} words of operators wait already: try again")
        else:
            try:
                handler(manager, token, message)
            except (DecisionRefused, MailboxFull) as error:
                self._answer(manager, token, Rejected.reason, str(error))

    def leader_changed(self, manager: SlotManager) -> None:
        """What this node was asked as the controller, and is it no longer, is not decided here any more."""
        if manager.controller is None:
            for token in list(self._asked):
                text = "the controller changed before it was decided: look whether it has happened, and try again"
                self._answer(manager, token, Indeterminate.reason, text)

    def answered(self, manager: SlotManager, mail: MembersChanged | Confirmed) -> None:
        """The election has done, refused or confirmed what it was asked."""
        if isinstance(mail, MembersChanged):
            self._answer(manager, mail.number, Rejected.reason if mail.problem else "", mail.problem, self._members())
        elif mail.leads:
            self._answer(manager, mail.number, "", "", self._nodes(manager))  # O2
        else:
            self._answer(manager, mail.number, NoController.reason, "this node could not show that it is still the controller: try again")

    def _answer(self, manager: SlotManager, token: int, code: str, text: str, result: dict[str, Any] | None = None) -> None:
        asked = self._asked.pop(token, None)
        if asked is not None:
            message = asked.message
            manager.deliver(message.origin, ControllerAnswer(message.origin, message.number, code, text, result or {}))

    # --- verbs ----------------------------------------------------------------------------------------------------------------

    def _ask_nodes(self, manager: SlotManager, token: int, message: AskController) -> None:
        self._election_mailbox.post(Confirm(token))

    def _change_members(self, manager: SlotManager, token: int, message: AskController) -> None:
        verb = message.verb.removeprefix("members.")
        self._election_mailbox.post(ChangeMembers(token, verb, self._member(verb, message.node_id)))

    def _reset(self, manager: SlotManager, token: int, message: AskController) -> None:
        assert manager.controller is not None
        manager.controller.reset(message.node_id, token)

    def _forget(self, manager: SlotManager, token: int, message: AskController) -> None:
        assert manager.controller is not None
        members = [] if self._election is None else [member.node_id for member in self._election.membership.members]
        manager.controller.forget(message.node_id, members, token)

    def _member(self, verb: str, node_id: int) -> Member:
        """Whom a change of the candidates means: for `add` the node on the disk it has now, else a member of that id."""
        assert self._election is not None
        membership = self._election.membership
        node = self._ownership.table.node(node_id)
        if verb == "add":
            if node is None:
                raise DecisionRefused(f"node {node_id} has not registered: start it with this cluster in its `peers`, then add it")
            if not node.candidate:
                raise DecisionRefused(f"node {node_id} runs with candidate = false: restart it with candidate = true, then add it")
            return Member(node_id, node.disk_id)
        found = [member for member in membership.members if member.node_id == node_id]
        if verb == "promote":
            found = [member for member in membership.learners if member.node_id == node_id] or found
        if verb == "transfer" and node_id == 0:
            others = [progress for progress in self._election.progress() if progress.voter and progress.member.node_id != self._node_id]
            found = [progress.member for progress in sorted(others, key=lambda progress: (progress.recent, progress.match))][-1:]
        if not found:
            name = "no other voter" if node_id == 0 else f"node {node_id} is not a member"
            known = ", ".join(str(member.node_id) for member in membership.members)
            raise DecisionRefused(f"{name}: members are {known}")
        here = [member for member in found if node is not None and member.disk_id == node.disk_id]
        gone = [member for member in found if member not in here]
        return (gone + here if verb == "remove" else here + gone)[0]  # of two with one id; who is removed is the one whose disk is gone

    # --- what is told -----------------------------------------------------------------------------------------------------------

    def _members(self) -> dict[str, Any]:
        """The candidates after a change, and advice about their number."""
        assert self._election is not None
        membership = self._election.membership
        told: dict[str, Any] = {
            "voters": [member.node_id for member in membership.voters],
            "learners": [member.node_id for member in membership.learners],
        }
        warning = advice(len(membership.voters))
        if warning:
            told["warning"] = warning
        return told

    def _nodes(self, manager: SlotManager) -> dict[str, Any]:
        """The rows of `nodes`."""
        assert self._election is not None
        membership = self._election.membership
        rows = []
        for row in manager.meta.rows():
            node = self._ownership.table.node(row["node_id"])
            disk_id = b"" if node is None else node.disk_id
            is_voter = Member(row["node_id"], disk_id) in membership.voters
            rows.append({**row, "voter": is_voter})
        behind = self._election.entries_behind()
        members = [
            {
                "node_id": progress.member.node_id,
                "disk_id": progress.member.disk_id.hex(),
                "voter": progress.voter,
                "match": progress.match,
                "behind": behind.get(progress.member),
                "recent": progress.recent,
            }
            for progress in self._election.progress()
        ]
        return {"nodes": rows, "members": members, "controller": self._node_id, "term": self._election.term}
