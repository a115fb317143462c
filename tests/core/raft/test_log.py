"""The log in memory, its marks of the disk, and the searches in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from govern.core.raft.log import Log
from govern.core.raft.types import DATA, VOTERS, Membership, Snapshot, SnapshotMeta
from govern.peer_messages import Entry

from .rig import make_member

EMPTY = Snapshot(SnapshotMeta(0, 0, Membership()), b"")


def make_entries(first: int, *terms: int) -> list[Entry]:
    """Entries of these terms."""
    return [Entry(first + at, term, DATA, b"x" * 10) for at, term in enumerate(terms)]


def make_voters(index: int, term: int, *voters: int) -> Entry:
    """A change of the membership."""
    return Entry(index, term, VOTERS, Membership(tuple(make_member(each) for each in voters)).pack())


def write(log: Log) -> None:
    """One write from beginning to end."""
    log.begin_write()
    log.end_write()


def test_marks_follow_the_disk() -> None:
    """What is appended is written by the next write, and counts when that is done."""
    log = Log(EMPTY, [])
    log.append(make_entries(1, 1, 1))
    assert log.unwritten
    assert log.begin_write() == (tuple(make_entries(1, 1, 1)), None)
    log.append(make_entries(3, 2))
    assert log.written == 0
    log.end_write()
    assert (log.written, log.last_index, log.unwritten) == (2, 3, True)
    write(log)
    assert (log.written, log.unwritten) == (3, False)
    log.validate()


def test_an_entry_that_comes_back_is_written_again() -> None:
    """A, B, A: the late end of the first write counts for nothing (L2)."""
    log = Log(EMPTY, make_entries(1, 1))
    log.append(make_entries(2, 1))
    log.begin_write()
    log.cut(2)
    log.append(make_entries(2, 2))
    log.cut(2)
    log.append(make_entries(2, 1))
    log.end_write()
    assert log.written == 1
    assert log.begin_write() == (tuple(make_entries(2, 1)), None)
    log.end_write()
    assert log.written == 2


def test_a_snapshot_that_comes_during_a_write() -> None:
    """Nothing of the outstanding write counts, and the snapshot is written by the next one."""
    log = Log(EMPTY, make_entries(1, 1))
    log.append(make_entries(2, 1))
    log.begin_write()
    snapshot = Snapshot(SnapshotMeta(9, 3, Membership((make_member(1),))), b"state")
    log.install(snapshot)
    log.append(make_entries(10, 3))
    log.end_write()
    assert log.written == 0
    assert log.begin_write() == (tuple(make_entries(10, 3)), snapshot)
    log.end_write()
    assert (log.written, log.base_index, log.membership) == (10, 9, snapshot.meta.membership)
    log.validate()


def test_the_membership_is_that_of_the_log() -> None:
    """In force from the append, gone with the cut, kept by compaction (L3)."""
    log = Log(EMPTY, [make_voters(1, 1, 1, 2), *make_entries(2, 1, 1)])
    before = log.membership
    log.append([make_voters(4, 2, 1, 2, 3), *make_entries(5, 2)])
    assert len(log.membership.voters) == 3
    assert (log.membership_index, log.membership_at(3)) == (4, before)
    log.compact(Snapshot(SnapshotMeta(3, 1, log.membership_at(3)), b""), keep=1)
    assert (log.base_index, log.membership_index, log.membership_at(3)) == (2, 4, before)
    log.cut(4)
    assert (log.membership, log.membership_index) == (before, 3)
    log.validate()


@pytest.mark.parametrize(("first", "terms", "base", "last"), [(3, (2, 2, 3, 3), 3, 6), (6, (3,), 5, 6), (2, (1, 1), 5, 5), (5, (2,), 5, 5)])
def test_what_a_disk_may_have(first: int, terms: tuple[int, ...], base: int, last: int) -> None:
    """Entries that reach over the snapshot, begin behind it, end before it, or end with it."""
    log = Log(Snapshot(SnapshotMeta(5, terms[2] if len(terms) > 2 else 2, Membership()), b""), make_entries(first, *terms))
    assert (log.base_index, log.last_index, log.written) == (base, last, last)
    log.validate()


def test_a_beginning_lies_where_the_first_entry_says() -> None:
    """A snapshot of term 0 has no place of its own (L5)."""
    blank = Snapshot(SnapshotMeta(7, 0, Membership()), b"")
    assert (Log(blank, []).last_index, Log(blank, []).is_blank) == (0, True)
    log = Log(blank, make_entries(4, 1))
    assert (log.base_index, log.term_of(3), log.is_blank) == (3, 0, False)


def test_slices_are_bounded() -> None:
    """By bytes, but never empty."""
    log = Log(EMPTY, make_entries(1, 1, 1, 1, 1))
    assert len(log.slice(1, 4)) == 4
    assert len(log.slice(2, 4, bytes_max=90)) == 2
    assert len(log.slice(2, 4, bytes_max=1)) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=12), st.integers(0, 14), st.integers(0, 7), st.integers(0, 4))
def test_the_search_agrees_with_a_walk(terms: list[int], index: int, term: int, base: int) -> None:
    """`last_not_after` finds what looking at every entry finds."""
    entries = make_entries(base + 1, *sorted(terms))
    log = Log(Snapshot(SnapshotMeta(base, 0, Membership()), b""), entries)
    found = [(entry.index, entry.term) for entry in entries if entry.index <= index and entry.term <= term]
    assert log.last_not_after(index, term) == (found[-1] if found else (log.base_index, 0))
