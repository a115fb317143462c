"""Many runs of one heap, in several processes, and what happened in all of them together: a campaign that found nothing because nothing
happened in it would look like one that found nothing because nothing is there."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence

Summary = Callable[[int], tuple[str | None, tuple[float, ...]]]
"""Runs one seed: what broke, if anything did, and what happened in it (nothing of a run that broke). A function of a module."""


def run_many(one: Summary, names: Sequence[str], seeds: range, jobs: int | None = None) -> list[str]:
    """Run the seeds and print each failure, ten lines of progress, and of what is counted under `names` the totals and the largest; returns
    the failures. Without `jobs` there is a process for each processor."""
    failures: list[str] = []
    sums, most = [0.0] * len(names), [0.0] * len(names)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for number, (failure, counts) in enumerate(pool.imap_unordered(one, seeds, chunksize=50), 1):
            if failure is not None:
                failures.append(failure)
                print(failure, flush=True)
            for at, count in enumerate(counts):
                sums[at], most[at] = sums[at] + count, max(most[at], count)
            if number % max(1, len(seeds) // 10) == 0:
                print(f"{number}/{len(seeds)} runs, {len(failures)} failed", file=sys.stderr, flush=True)
    for name, total, largest in zip(names, sums, most, strict=True):
        print(f"{name:>13}: {total:>12,.0f} in all, {total / max(1, len(seeds)):10.2f} a run, at most {largest:g}")
    return failures
