"""Stories of candidates, in `tests/data/raft`: who says what to whom, and what comes of it.

voters 1 2 3 learners=(4) blank=(5)   candidates that know these voters, and some that know nothing
elect 1                               1 becomes leader, and everybody knows (nothing is shown)
campaign 1                            1 stands for election now
propose 1 a b                         entries
deliver [from=1] [to=2] [kind=vote]   what waits; without arguments also everything that comes of it
drop [from=1] [to=2] [kind=append]    what waits is lost
keep / replay                         remember what waits; let it arrive (again) later
cut 1-2 2-1 | cut 3 | mend            nothing arrives from 1 at 2; nothing from or at 3; all links work
advance 1.5 [quiet]                   seconds go by
slow 1 / write 1 / fast 1             the disk of 1 waits for `write`
crash 1                               1 begins a new life with what is on its disk
wipe 1                                with an empty disk: it is another member
add 4 / promote 4 / remove 3          changes by the leader; disk=2 for a member on another disk
transfer 1 to=2, read 1 token, compact 1
status                                all candidates in a line each; `log 1` one log
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from govern.core.raft.core import Role
from govern.core.raft.types import ChangeRefused, NotLeader
from govern.errors import Overloaded
from govern.peer_messages import RaftMessage
from tests.datadriven import run_file, transcripts

from .disk import Disk
from .rig import Rig, make_member
from .words import describe_entries, describe_membership

Args = dict[str, list[str]]


class Teller:
    """Carries out the cases of one transcript."""

    def __init__(self) -> None:
        self.rig = Rig(())
        self.kept: list[RaftMessage] = []

    def handle(self, command: str, args: Args, body: str) -> str:
        """One case."""
        assert not body
        act: Callable[[Args], None] = getattr(self, f"do_{command}")
        try:
            act(args)
        except (ChangeRefused, NotLeader, Overloaded) as error:
            self.rig.say(f"{type(error).__name__}: {error}")
        lines, self.rig.lines = self.rig.lines, []
        return "\n".join(lines) or "nothing happens"

    def do_voters(self, args: Args) -> None:
        learners, blank = args.pop("learners", []), args.pop("blank", [])
        self.rig = Rig(map(int, args), map(int, learners), map(int, blank))
        self.do_status({})

    def do_elect(self, args: Args) -> None:
        self.rig.quiet = True
        self.rig.elect(_node(args))
        self.rig.quiet = False
        self.rig.lines = self.rig.lines[-1:]

    def do_campaign(self, args: Args) -> None:
        self.rig.core(_node(args)).campaign(self.rig.now_us)
        self.rig.settle(_node(args))

    def do_propose(self, args: Args) -> None:
        node_id, *words = args
        for word in words:
            index = self.rig.core(int(node_id)).propose(word.encode(), self.rig.now_us)
            self.rig.say(f"{word} is entry {index}")
        self.rig.settle(int(node_id))

    def _select(self, args: Args) -> tuple[int | None, int | None, str | None]:
        numbers = [int(args[name][0]) if name in args else None for name in ("from", "to")]
        return numbers[0], numbers[1], args["kind"][0] if "kind" in args else None

    def do_deliver(self, args: Args) -> None:
        self.rig.quiet = "quiet" in args
        self.rig.deliver(*self._select(args))
        self.rig.quiet = False

    def do_drop(self, args: Args) -> None:
        self.rig.say(f"{len(self.rig.take(*self._select(args)))} lost")

    def do_keep(self, args: Args) -> None:
        self.kept = self.rig.take(*self._select(args))
        self.rig.say(f"{len(self.kept)} kept")

    def do_replay(self, args: Args) -> None:
        for message in self.kept:
            self.rig.hand(message)

    def do_cut(self, args: Args) -> None:
        for word in args:
            one, _, other = word.partition("-")
            for each in self.rig.seats:
                if not other:
                    self.rig.cut[int(one), each] = self.rig.cut[each, int(one)] = None
            if other:
                self.rig.cut[int(one), int(other)] = None

    def do_mend(self, args: Args) -> None:
        self.rig.cut.clear()

    def do_advance(self, args: Args) -> None:
        seconds, *_ = args
        self.rig.quiet = "quiet" in args
        self.rig.advance(float(seconds))
        self.rig.quiet = False

    def do_slow(self, args: Args) -> None:
        self.rig.seats[_node(args)].slow = True

    def do_write(self, args: Args) -> None:
        self.rig.finish_write(_node(args))

    def do_fast(self, args: Args) -> None:
        self.rig.seats[_node(args)].slow = False
        while self.rig.seats[_node(args)].writing is not None:
            self.rig.finish_write(_node(args))

    def do_crash(self, args: Args) -> None:
        seat = self.rig.seats[_node(args)]
        self.rig.sit(seat.member, seat.disk)

    def do_wipe(self, args: Args) -> None:
        self.rig.sit(make_member(_node(args), 2), Disk())

    def _change(self, args: Args, act: str) -> None:
        leader = next(seat for seat in self.rig.seats.values() if seat.core.role is Role.LEADER)
        member = make_member(_node(args), int(args.get("disk", ["1"])[0]))
        getattr(leader.core, act)(member, self.rig.now_us)
        self.rig.say(f"in force at {leader.member.node_id}: {describe_membership(leader.core.membership)}")
        self.rig.settle(leader.member.node_id)

    def do_add(self, args: Args) -> None:
        self._change(args, "add_learner")

    def do_promote(self, args: Args) -> None:
        self._change(args, "promote")

    def do_remove(self, args: Args) -> None:
        self._change(args, "remove")

    def do_transfer(self, args: Args) -> None:
        self.rig.core(_node(args)).transfer(make_member(int(args["to"][0])), self.rig.now_us)
        self.rig.settle(_node(args))

    def do_read(self, args: Args) -> None:
        node_id, token = args
        self.rig.seats[int(node_id)].core.read(token, self.rig.now_us)
        self.rig.settle(int(node_id))

    def do_compact(self, args: Args) -> None:
        seat = self.rig.seats[_node(args)]
        snapshot = seat.core.compact(b"the state as of then", seat.core.applied)
        seat.disk.save_snapshot(snapshot, *seat.core.kept())
        self.rig.say(f"snapshot of {snapshot.meta.index}/{snapshot.meta.term}, the log begins behind {seat.core.log.base_index}")

    def do_status(self, args: Args) -> None:
        for seat in self.rig.seats.values():
            self.rig.say(repr(seat.core))

    def do_log(self, args: Args) -> None:
        log = self.rig.core(_node(args)).log
        self.rig.say(f"behind {log.base_index}: {describe_entries(log.slice(log.base_index + 1, log.last_index))}")


def _node(args: Args) -> int:
    return int(next(iter(args)))


@pytest.mark.parametrize("path", transcripts("raft"), ids=lambda path: path.stem)
def test_story(path: Path, rewrite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes as it is written down."""
    monkeypatch.setattr("govern.core.raft.core.KEEP_BEHIND", 2)
    monkeypatch.setattr("govern.core.raft.leading.SNAPSHOT_CHUNK_BYTES", 12)
    run_file(path, Teller().handle, rewrite)
