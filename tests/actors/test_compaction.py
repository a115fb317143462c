"""When the slot manager has the metadata log cut: after so many entries, or so many bytes of them, and as of what it has applied."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from govern.actors import slot_manager
from govern.actors.mail import Compact, Entries, Propose
from govern.core.meta import ClusterInit, MetaState
from govern.core.raft.types import DATA, NOOP
from govern.peer_messages import Entry

from .test_slot_manager import CLUSTER, Files, Rig, make_rig

FIRST = Entry(1, 1, DATA, ClusterInit(CLUSTER).pack())


def noops(first: int, last: int, data: bytes = b"") -> list[Entry]:
    return [Entry(index, 1, NOOP, data) for index in range(first, last + 1)]


@asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch, entries: int, size: int) -> AsyncIterator[Rig]:
    """A slot manager with these bounds, that has taken what it asks for at its start."""
    monkeypatch.setattr(slot_manager, "COMPACT_ENTRIES", entries)
    monkeypatch.setattr(slot_manager, "COMPACT_BYTES", size)
    rig = make_rig(Files())
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: rig.manager.run(task_status=task_status))
        await rig.wants()
        yield rig
        nursery.cancel_scope.cancel()


async def asked(rig: Rig, *entries: Entry) -> list[tuple[int, bytes]]:
    """What the log is to be cut to after these."""
    await rig.mailbox.put(Entries(list(entries)))
    return [(mail.index, mail.state) for mail in await rig.wants() if isinstance(mail, Compact)]


async def test_after_so_many_entries(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any kind; with the state as of the last of them; and then after so many more."""
    async with running(monkeypatch, 3, 1000) as rig:
        state = MetaState()
        state.apply(1, FIRST.data)
        assert await asked(rig, FIRST, *noops(2, 2)) == []
        assert await asked(rig, *noops(3, 4)) == [(4, state.pack())]
        assert await asked(rig, *noops(5, 6)) == []
        assert await asked(rig, *noops(7, 7)) == [(7, state.pack())]


async def test_after_so_many_bytes(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few entries they are."""
    async with running(monkeypatch, 1000, 100) as rig:
        assert await asked(rig, FIRST, *noops(2, 2, b"x" * 50)) == []
        assert [index for index, _ in await asked(rig, *noops(3, 3, b"x" * 50))] == [3]
        assert await asked(rig, *noops(4, 4, b"x" * 99)) == []


async def test_a_word_that_found_no_room_is_said_again(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next entries, and as of those."""
    async with running(monkeypatch, 2, 1000) as rig:
        while rig.wanted.statistics().depth < rig.wanted.statistics().capacity:
            rig.wanted.post(Propose(0, ()))
        assert await asked(rig, FIRST, *noops(2, 3)) == []
        assert [index for index, _ in await asked(rig, *noops(4, 4))] == [4]
