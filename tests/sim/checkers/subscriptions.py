"""What a subscriber was shown, compared with what was committed.

A stream is what one `subscribe` block saw, in order. `suspect` is said by the node beside the log, so it counts as `up` here.

T31  The lsn of a stream never goes back, except with a full view.
T32  No change is shown twice: what a step says was added, changed and removed is just the difference to the step before.
T34  A view at lsn L is the committed view at L: all of it, and nothing of anything later (33, 34 and 36 of the protocol's list).
T37  A view is empty only when it was empty as committed.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..history import History, Sight
from . import Violation
from .shadow import Shadow

Shown = Mapping[str, tuple[tuple[int, int], str, str]]


def plain(values: Shown) -> dict[str, tuple[tuple[int, int], str, str]]:
    """Without the opinion of the node on who is silent."""
    return {key: (lease, "up" if status == "suspect" else status, value) for key, (lease, status, value) in values.items()}


class Subscriptions:
    """Judges the sights at the end of a run. With `forgiven` lists may be older than the truth: a node forgot what it had said."""

    def __init__(self, history: History, shadow: Shadow) -> None:
        self.forgiven = False
        self._history = history
        self._shadow = shadow
        self._judged = 0
        self._last: dict[tuple[str, int, int], Sight] = {}

    def sweep(self) -> None:
        """Judge what was shown since the last time."""
        sights = self._history.sights
        while self._judged < len(sights):
            sight = sights[self._judged]
            self._judged += 1
            stream = (sight.client, sight.life, sight.number)
            self._judge(sight, self._last.get(stream))
            self._last[stream] = sight

    def end(self) -> None:
        """The rest."""
        self.sweep()

    def _judge(self, sight: Sight, before: Sight | None) -> None:
        where = f"{sight.client} (life {sight.life}, stream {sight.number}) of {sight.service} at {sight.lsn}, {sight.at:.3f} s"
        if before is not None:
            if sight.lsn < before.lsn and not sight.reset:
                raise Violation(f"31: {where}: the lsn went back from {before.lsn} without a full view")
            self._judge_difference(sight, before, where)
        if self.forgiven or sight.lsn == (0, 0):
            return  # a view of nothing: no node has been asked yet
        committed = self._shadow.view_at(sight.service, sight.lsn)
        if committed is None:
            raise Violation(f"36: {where}: nothing was committed at that lsn")
        if not sight.values and committed:
            raise Violation(f"37: {where}: the list is empty, but {dict(committed)} was committed")
        if plain(sight.values) != dict(committed):
            raise Violation(f"34: {where}: shown {plain(sight.values)}, committed {dict(committed)}")

    @staticmethod
    def _judge_difference(sight: Sight, before: Sight, where: str) -> None:
        for what, said, real in (
            ("added", sight.added, [key for key in sight.values if key not in before.values]),
            ("removed", sight.removed, [key for key in before.values if key not in sight.values]),
        ):
            if sorted(said) != sorted(real):
                raise Violation(f"32: {where}: says {what} {said}, but it is {real}")
        changed = [key for key, value in sight.values.items() if key in before.values and before.values[key] != value]
        missing = [key for key in changed if key not in sight.changed]
        if missing:
            raise Violation(f"32: {where}: {missing} changed without being told")
