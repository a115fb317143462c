"""Where two runs of one seed part: the first step that is not the same.

A trace hash only tells that two runs differ. The step at which they part names the task that took something from outside of the seed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

Step = tuple[float, str]
"""One step of one task: the virtual time, and the number and name of the task."""

STEPS_BEFORE = 5


def record_steps(run: Callable[[Callable[[float, str], None]], object]) -> list[Step]:
    """All steps of a run, which gets what `simulate` calls `on_step`. A run that fails has the steps until then."""
    steps: list[Step] = []
    try:
        run(lambda seconds, task: steps.append((seconds, task)))
    except Exception as error:
        steps.append((steps[-1][0] if steps else 0.0, f"failed with {type(error).__name__}"))
    return steps


def find_difference(one: list[Step], other: list[Step]) -> str | None:
    """The first step at which two runs part, after the steps before it; None when they are the same."""
    before: deque[Step] = deque(maxlen=STEPS_BEFORE)
    for number, (left, right) in enumerate(itertools.zip_longest(one, other), 1):
        if left != right:
            shared = [f"  {_say(step)}" for step in before]
            return "\n".join([f"step {number} differs, after", *shared, f"  one:   {_say(left)}", f"  other: {_say(right)}"])
        before.append(left)
    return None


def _say(step: Step | None) -> str:
    return "had ended" if step is None else f"{step[0]:.9f} {step[1]}"
