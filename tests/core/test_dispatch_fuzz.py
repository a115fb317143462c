"""Dispatch under frames that no client of ours would send."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from govern.core.limits import Limits
from govern.core.links import Link
from govern.messages import (
    TO_CLIENT,
    TO_NODE,
    Applied,
    AskStatus,
    Delta,
    Deregister,
    Drain,
    Evict,
    Explain,
    Goodbye,
    Heartbeat,
    Hello,
    Lookup,
    Lost,
    Register,
    Resync,
    Services,
    Subscribe,
    Unsubscribe,
    Update,
)

from .rig import A, B, Rig

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(max_size=5), st.binary(max_size=17), st.just(A)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.binary(max_size=2), inner, max_size=3)
)
SILENT = (Unsubscribe.TYPE, Applied.TYPE)
SILENT_ID = 99  # never answered, unless it is wrong
good_fields: dict[int, list[Any]] = {
    Hello.TYPE: [1, "", "who", "", A, 1],
    Heartbeat.TYPE: [0, 0],
    Register.TYPE: [["default", "orders"], ["i1", "h", 1, "tcp", 1.0, "", "", {}, 0, True, 5000], [0, 0], 0],
    Update.TYPE: [["default", "orders"], "i1", [1, 1], {"weight": 2.0}, 0],
    Deregister.TYPE: [["default", "orders"], "i1", [1, 1], 0],
    Lookup.TYPE: [["default", "orders"]],
    Subscribe.TYPE: [["default", "orders"], [1, 1]],
    Unsubscribe.TYPE: [["default", "orders"]],
    Services.TYPE: ["default"],
    AskStatus.TYPE: [],
    Applied.TYPE: [["default", "orders"], [1, 1]],
    Drain.TYPE: [["default", "orders"], "i1", [0, 0], 1000],
    Evict.TYPE: [["default", "orders"], "i1"],
    Explain.TYPE: [["default", "orders"], "i1"],
    Goodbye.TYPE: [],
    Resync.TYPE: [[["default", "orders", "i1", 1, 1]], False],
}


@st.composite
def raw_frames(draw: st.DrawFn) -> list[Any]:
    """A frame of a client: mostly right, with one value wrong, missing or added; sometimes of a type that does not exist."""
    number = draw(st.sampled_from(sorted(TO_NODE) * 3 + [0, 2, 77, -3, 1 << 60]))
    fields = list(good_fields.get(number, [1, 2]))
    mutation = draw(st.integers(0, 5))
    if mutation == 0 and fields:
        fields[draw(st.integers(0, len(fields) - 1))] = draw(values)
    elif mutation == 1:
        fields = fields[: draw(st.integers(0, len(fields)))]
    elif mutation == 2:
        fields.append(draw(values))
    elif mutation == 3 and number == Register.TYPE:
        instance = list(fields[1])
        instance[draw(st.integers(0, len(instance) - 1))] = draw(values)
        fields[1] = instance
    return [number, SILENT_ID if number in SILENT else draw(st.integers(0, 40)), *fields]


@given(st.lists(st.tuples(st.integers(0, 2), raw_frames(), st.integers(0, 3)), max_size=25), st.booleans())
@settings(max_examples=150, derandomize=True, database=None, deadline=None)
def test_no_frame_whatever_raises_or_corrupts(schedule: list[tuple[int, list[Any], int]], loaded: bool) -> None:
    """Right and wrong frames of three links in any order, while the store commits now and then: every request is answered once or its link
    is closed, every answer can be read by a client, and the state stays sound."""
    rig = Rig(Limits(subscriptions_per_connection_max=2, instances_per_session_max=3, requests_parked_max=4), loaded=loaded)
    links = [rig.link(A), rig.link(B), rig.link()]
    asked: list[list[int]] = [[], [], []]
    answered: list[list[int]] = [[], [], []]
    for place, raw, store in schedule:
        link = links[place]
        if link.closing is None and raw[0] not in SILENT:
            asked[place].append(raw[1])
        rig.dispatch.receive(link, raw)
        if store == 0 and rig.shard.loaded:
            rig.commit(2)
        rig.validate()
        for number, each in enumerate(links):
            answered[number] += heard(rig, each)
    rig.shard.loaded = True
    rig.dispatch.release_parked(1000)
    while rig.dispatch.writes:
        rig.commit()
    assert rig.dispatch.writes_pending == 0
    rig.dispatch.drains.check(1 << 62)  # the time of every drain is over
    assert rig.dispatch.drains.open_count == 0
    for number, link in enumerate(links):
        answered[number] += heard(rig, link)
        if link.closing is None:
            assert sorted(answered[number]) == sorted(asked[number])
        else:
            assert link in rig.dispatch.to_close


def heard(rig: Rig, link: Link) -> list[int]:
    """The ids of the requests that were answered; pages of one answer count once."""
    found = rig.said(link)
    assert all(message.TYPE in TO_CLIENT for message, _ in found)
    pages = (Delta, Lost)
    return [
        number for message, number in found if not (isinstance(message, pages) or getattr(message, "more", False) or number == SILENT_ID)
    ]
