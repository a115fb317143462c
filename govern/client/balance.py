"""Choosing one instance out of a view: by weight among the best that there is.

The tiers, best first: those that are up and take traffic; those that are only suspected to be gone; all. In the last tier too the weights
count, and where all of them are zero each instance has the same chance.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from ..environment import Random
from ..model import Instance, Status


class Choice:
    """The best tier of some instances, prepared so that choosing costs a search among its weights."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        everybody = list(instances)
        weighty = [instance for instance in everybody if instance.weight > 0]
        tier = (
            [instance for instance in weighty if instance.status is Status.UP]
            or [instance for instance in weighty if instance.status is Status.SUSPECT]
            or weighty
            or everybody
        )
        self._tier = tier
        self._sums = list(accumulate(instance.weight or 1.0 for instance in tier))

    def __repr__(self) -> str:
        return f"<Choice among {len(self._tier)}>"

    def pick(self, random: Random) -> Instance | None:
        """One of the tier with a chance in proportion to its weight; None when there is no instance at all."""
        if not self._tier:
            return None
        place = bisect_right(self._sums, random.random() * self._sums[-1])
        return self._tier[min(place, len(self._tier) - 1)]  # a product of floats may round up to the whole sum
