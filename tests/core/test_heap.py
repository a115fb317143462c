"""Short runs of the cores alone, and the mutants that they must find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from govern.core.dispatch import Dispatch
from govern.core.entries import ExpireOp
from govern.core.sessions import Sessions, Silent

from . import test_mutants
from .heap import COUNTED, Run, failure_of, summary_of
from .many import run_many

RUNS = 150
RUNS_DEEP = 100_000


def test_short_runs() -> None:
    """No promise is broken, and the runs are not empty: things are committed, the node dies, requests repeat, connections are open at one
    end only, messages of one are overtaken by those of the next, mail is lost, sockets are full."""
    committed = lives = repeats = 0
    counts: dict[str, int] = {}
    for seed in range(RUNS):
        run = Run(seed)
        run.play()
        committed += len(run.log)
        lives += run.term
        repeats += run.repeats
        counts = {kind: counts.get(kind, 0) + count for kind, count in run.counts.items()}
    assert committed > 10 * RUNS
    assert lives > 2 * RUNS
    assert repeats > RUNS / 5
    assert min(counts["half open"], counts["overtaken"], counts["choked"]) > RUNS / 5
    assert counts["mail lost"] > RUNS / 50


@pytest.mark.deep
def test_many_short_runs() -> None:
    """A hundred thousand of them; the totals are printed."""
    assert run_many(summary_of, COUNTED, range(RUNS_DEEP)) == []


def lived_time_runs_on(patch: pytest.MonkeyPatch) -> None:
    """Silence is counted twice as fast."""
    due = Sessions.due

    def mutant(self: Sessions, limit: int) -> object:
        self.now_us += 100_000
        return due(self, limit)

    patch.setattr(Sessions, "due", mutant)


def the_heard_are_expired(patch: pytest.MonkeyPatch) -> None:
    """What a last read has read does not count."""
    expiries = Sessions.expiries

    def mutant(silent: Iterable[Silent], limit: int) -> list[ExpireOp]:
        return expiries([one._replace(stamp_us=one.session.stamp_us) for one in silent], limit)

    patch.setattr(Sessions, "expiries", staticmethod(mutant))


def repetitions_are_written(patch: pytest.MonkeyPatch) -> None:
    """Also when the first one has not yet come to its end."""
    write = Dispatch._write

    def mutant(self: Dispatch, *arguments: Any, **keys: Any) -> Any:
        answer = write(self, *arguments, **keys)
        self._registering = Forgetful()
        return answer

    patch.setattr(Dispatch, "_write", mutant)


class Forgetful(dict[Any, Any]):
    """Remembers nothing, and has nothing to give back."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget it."""

    def pop(self, key: Any, default: Any = ()) -> Any:
        return ()


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], range]] = [
    (test_mutants.ring_floor_ignored, range(20)),
    (test_mutants.ring_off_by_one, range(5)),
    (test_mutants.stale_view_kept, range(80)),
    (test_mutants.leases_of_the_loser_kept, range(60)),
    (test_mutants.digest_without_service, range(5)),
    (test_mutants.late_links_forgotten, range(200)),
    (lived_time_runs_on, range(150)),
    (the_heard_are_expired, range(250)),
    (repetitions_are_written, range(200, 250)),
    (test_mutants.repeated_registrations_not_recognised, range(20)),
]


@pytest.mark.parametrize(("mutant", "runs"), MUTANTS, ids=[mutant.__name__ for mutant, _ in MUTANTS])
def test_every_mutant_is_found(mutant: Callable[[pytest.MonkeyPatch], None], runs: range) -> None:
    """By one of these runs, all of which pass without it; which one is printed."""
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        found = next((seed for seed in runs if failure_of(seed) is not None), None)
    assert found is not None, f"nothing found {mutant.__name__} in {runs}"
    print(f"{mutant.__name__}: found by run {found} of {runs}")
