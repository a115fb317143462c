"""The election: the shell around the Raft rules of a candidate (`core.raft`), and around the log they keep.

Two tasks. One owns the rules: it takes mail, watches the rules' deadline, sends what may be sent and hands on what is committed. The other
owns the disk: it writes one batch after the other. While a batch is being written votes, heartbeats and answers go on; what depends
on the batch is kept back by the rules until the disk has it.

B1  Nothing that depends on a batch leaves before the batch is durable (invariant 7); the rules see to it, and this shell tells them the
    truth about the disk.
B2  Entries are handed on in order, each once, behind the snapshot that replaces what came before.
B3  After a failed write nothing is sent any more: the actor ends, and the node with it (rule W4). A full disk is different: nothing was
    written, and the batch is tried again every second, while everything that does not need it goes on (rule W5).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import trio

from ..core.raft.core import RaftCore, Role
from ..core.raft.membership import advice
from ..core.raft.types import (
    DATA,
    VOTERS,
    ChangeRefused,
    HardState,
    MemberProgress,
    Membership,
    NotLeader,
    Snapshot,
    SnapshotMeta,
    Timing,
    Write,
)
from ..environment import Random
from ..errors import NoSpace, Overloaded
from ..messages import Message
from ..peer_messages import Entry, Member
from .mail import (
    ChangeMembers,
    Compact,
    Confirm,
    Confirmed,
    ElectionMail,
    Entries,
    Form,
    Formed,
    Installed,
    Join,
    Led,
    ManagerMail,
    MembersChanged,
    Propose,
    RaftMail,
    Unproposed,
    Written,
)
from .metadata_log import MetadataLog
from .runtime import Mailbox

ENTRIES_PER_MAIL: Final = 256
RETRY_SECONDS: Final = 1.0
CHANGES_WAITING_MAX: Final = 16

_log = logging.getLogger(__name__)


class Election:
    """The actor of a candidate. Until a log is begun (`Form`, `Join`) it only waits."""

    def __init__(
        self,
        *,
        me: Member,
        log: MetadataLog,
        random: Random,
        timing: Timing,
        mailbox: Mailbox[ElectionMail],
        manager_mailbox: Mailbox[ManagerMail],
        send: Callable[[int, Message], bool],
    ) -> None:
        self.core: RaftCore | None = None
        self._me = me
        self._log = log
        self._random = random
        self._timing = timing
        self._mailbox = mailbox
        self._manager_mailbox = manager_mailbox
        self._send = send
        self._writing = trio.Event()
        self._write: Write | None = None
        self._to_save: Snapshot | None = None
        self._compact_wanted: Compact | None = None
        self._told: tuple[int, Member | None, bool] | None = None
        self._advised = 0  # for so many voters
        self._heard: tuple[int, int] | None = None  # another node that leads or led, and when it was heard last
        self._changes: deque[tuple[int, int, ChangeMembers]] = deque()  # index and term of the entry, and who asked

    # --- what others may look at --------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return 0 if self.core is None else self.core.term

    @property
    def leader(self) -> Member | None:
        return None if self.core is None else self.core.leader

    @property
    def leads(self) -> bool:
        """Whether this node is the controller: it leads, and its first entry is committed."""
        return self.core is not None and self.core.ready_to_serve

    @property
    def membership(self) -> Membership:
        return Membership() if self.core is None else self.core.membership

    def proved_us(self, now_us: int) -> int | None:
        """When the newest round began that a majority has answered, while it proves that no other leader can have been elected yet (rule
        R7); None when nothing does."""
        core = self.core
        if core is None or not core.ready_to_serve or not core.has_lease(now_us):
            return None
        return core.proved_us

    def progress(self) -> list[MemberProgress]:
        """What a leader knows of the candidates; nothing on others."""
        return [] if self.core is None else self.core.progress()

    def entries_behind(self) -> dict[Member, int]:
        """How many entries of the log each candidate lacks that this leader has written; only of those that it has heard. Nothing on
        others."""
        progress = self.progress()
        last = max((each.match for each in progress), default=0)
        return {each.member: last - each.match for each in progress if each.match}

    # --- running ------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Take part in elections until cancelled. Raises `Corrupt` when the log is damaged, `StorageFailed` when the disk fails (B3)."""
        known = await self._log.load()
        if known is not None:
            hard, snapshot, entries = known
            self._make_core(hard, snapshot, entries)
            await self._manager_mailbox.put(Installed(snapshot.meta.index, snapshot.state))
        async with trio.open_nursery() as nursery:
            await nursery.start(self._log.run)
            nursery.start_soon(self._write_batches)
            task_status.started()
            await self._serve()

    def _make_core(self, hard: HardState, snapshot: Snapshot, entries: Sequence[Entry]) -> None:
        self.core = RaftCore(
            self._me,
            hard=hard,
            snapshot=snapshot,
            entries=entries,
            timing=self._timing,
            random=self._random,
            now_us=self._now_us(),
        )

    def _now_us(self) -> int:
        return round(trio.current_time() * 1e6)

    async def _serve(self) -> None:
        while True:
            if self.core is not None:
                await self._turn(self.core)
            mail: ElectionMail | None = None
            due = float("inf") if self.core is None else self.core.deadline_us / 1e6
            with trio.move_on_at(due):
                mail = await self._mailbox.get()
            if mail is not None:
                await self._take(mail)

    async def _turn(self, core: RaftCore) -> None:
        """What is due, then out with everything that came of it. It stands before each wait: nothing that the rules want is left lying."""
        now_us = self._now_us()
        if now_us >= core.deadline_us:
            core.tick(now_us)
        self._advise(len(core.membership.voters))
        self._compact(core)
        self._send_all()
        self._give_to_disk()
        await self._hand_on()

    def _advise(self, voters: int) -> None:
        """Say once that another number of voters would be better: at the start, when the cluster is formed, and after a change."""
        if voters != self._advised:
            self._advised = voters
            text = advice(voters)
            if text:
                _log.warning("%s", text)

    async def _take(self, mail: ElectionMail) -> None:
        core, now_us = self.core, self._now_us()
        if isinstance(mail, Form | Join):
            await self._begin(mail)
        elif core is None:
            _log.debug("no metadata log was begun yet: %s is dropped", type(mail).__name__)
        elif isinstance(mail, RaftMail):
            leader = core.leader
            core.step(mail.message, now_us)
            if mail.message.sender in (leader, core.leader):  # its last word may be that we shall lead
                self._heard = (mail.message.sender.node_id, now_us)
        elif isinstance(mail, Written):
            pass  # what it means was told to the rules when the disk said so; this mail only wakes the loop
        elif isinstance(mail, Propose):
            await self._propose(core, mail, now_us)
        elif isinstance(mail, Compact):
            self._compact_wanted = mail
        elif isinstance(mail, ChangeMembers):
            await self._change(core, mail, now_us)
        else:
            await self._confirm(core, mail, now_us)

    async def _begin(self, mail: Form | Join) -> None:
        """Begin the log; durable before anybody hears of it. A second wish for the same is nothing: the log is there."""
        if self.core is None:
            hard, entries = HardState(), list[Entry]()
            snapshot = Snapshot(SnapshotMeta(0, 0, Membership()), b"")
            if isinstance(mail, Form):
                hard = HardState(1, None, mail.base)
                snapshot = Snapshot(SnapshotMeta(mail.base, 0, Membership()), b"")
                first = Entry(mail.base + 1, 1, VOTERS, Membership.of(mail.voters, ()).pack())
                entries = [first, Entry(mail.base + 2, 1, DATA, mail.record)]
            await self._until_there_is_space(partial(self._log.begin, hard, snapshot, entries))
            self._make_core(hard, snapshot, entries)
        if isinstance(mail, Form):
            await self._manager_mailbox.put(Formed())
            assert self.core is not None
            self.core.campaign(self._now_us())

    async def _propose(self, core: RaftCore, mail: Propose, now_us: int) -> None:
        """What finds no room is given back: its controller goes on, and would wait for it for ever."""
        if core.term != mail.term:
            _log.debug("records of a leadership that is over were not taken into the metadata log")
            return
        for place, record in enumerate(mail.records):
            try:
                core.propose(record, now_us)
            except NotLeader as error:
                _log.debug("records were not taken into the metadata log: %s", error)
                return
            except Overloaded as error:
                _log.debug("records were not taken into the metadata log: %s", error)
                await self._manager_mailbox.put(Unproposed(mail.records[place:]))
                return

    async def _change(self, core: RaftCore, mail: ChangeMembers, now_us: int) -> None:
        try:
            if len(self._changes) >= CHANGES_WAITING_MAX:
                raise ChangeRefused(f"{len(self._changes)} changes of the candidates wait already; try again")
            if mail.verb == "transfer":
                core.transfer(mail.member, now_us)
                await self._manager_mailbox.put(MembersChanged(mail.number, ""))
                return
            change = {"add": core.add_learner, "promote": core.promote, "remove": core.remove}[mail.verb]
            self._changes.append((change(mail.member, now_us), core.term, mail))
        except (NotLeader, ChangeRefused, Overloaded) as error:
            await self._manager_mailbox.put(MembersChanged(mail.number, str(error)))

    async def _confirm(self, core: RaftCore, mail: Confirm, now_us: int) -> None:
        try:
            core.read(mail.number, now_us)
        except (NotLeader, Overloaded):
            await self._manager_mailbox.put(Confirmed(mail.number, False))

    def _compact(self, core: RaftCore) -> None:
        """Take the owner's state for what it makes needless, as soon as all of that is on the disk here."""
        wanted = self._compact_wanted
        if wanted is None or self._to_save is not None or not core.may_compact:
            return
        self._compact_wanted = None
        if wanted.index > core.log.snapshot.meta.index:  # a later snapshot of the leader may have come meanwhile
            self._to_save = core.compact(wanted.state, wanted.index)
            self._writing.set()

    # --- out ----------------------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        assert self.core is not None
        for message in self.core.take_messages():
            self._send(message.to.node_id, message)

    def _give_to_disk(self) -> None:
        assert self.core is not None
        if self._write is None:
            self._write = self.core.begin_write()
            if self._write is not None:
                self._writing.set()

    async def _hand_on(self) -> None:
        """Tell the slot manager what is committed and who leads (B2). It never waits for anybody, so this never waits for long."""
        core = self.core
        if core is None:
            return
        tell = self._manager_mailbox.put
        while True:
            installed = core.take_installed()
            if installed is not None:
                await tell(Installed(installed.meta.index, installed.state))
            entries = core.take_committed(ENTRIES_PER_MAIL)
            if not entries:
                break
            await tell(Entries(entries))
        for token, _ in core.take_reads():
            assert isinstance(token, int)
            await tell(Confirmed(token, True))
        for token in core.take_failed_reads():
            assert isinstance(token, int)
            await tell(Confirmed(token, False))
        await self._settle_changes(core)
        now = (core.term, core.leader, core.ready_to_serve)
        if now != self._told:
            self._told = now
            if core.ready_to_serve:
                _log.info("this node is the controller, term %d", core.term)
            await tell(Led(*now, self._heard))
            if core.ready_to_serve:
                self._heard = None  # from now on that one is a node like any other

    async def _settle_changes(self, core: RaftCore) -> None:
        """Answer for changes that are committed, or that cannot be any more because this leadership has ended."""
        while self._changes:
            index, term, mail = self._changes[0]
            if core.applied >= index and core.term == term:
                problem = ""
            elif core.term != term or core.role is not Role.LEADER:
                problem = "this node ceased to lead before the change was decided: look at `nodes` whether it has happened"
            else:
                return
            self._changes.popleft()
            await self._manager_mailbox.put(MembersChanged(mail.number, problem))

    # --- the disk -----------------------------------------------------------------------------------------------------------

    async def _write_batches(self) -> None:
        while True:
            await self._writing.wait()
            self._writing = trio.Event()
            if self._write is not None:
                await self._until_there_is_space(partial(self._log.write, self._write))
                assert self.core is not None
                self._write = None
                self.core.end_write(self._now_us())  # B1
                self._send_all()
                self._give_to_disk()
                await self._mailbox.put(Written())
            if self._to_save is not None and self._write is None:
                await self._save()

    async def _until_there_is_space(self, write: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await write()
                return
            except NoSpace as error:
                _log.warning("the metadata log waits for space on the disk: %s", error)
                await trio.sleep(RETRY_SECONDS)

    async def _save(self) -> None:
        snapshot, self._to_save = self._to_save, None
        assert snapshot is not None
        try:
            await self._log.save_snapshot(snapshot)
        except NoSpace as error:
            _log.warning("no snapshot of the metadata was written, the log is kept instead: %s", error)
        self._writing.set()  # a batch may have come meanwhile
