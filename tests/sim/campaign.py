"""Many runs, and how they went: in this process or in several, with progress, and for each failure everything that a person needs."""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import attrs

from .columns import Columns
from .differences import find_difference, record_steps
from .episode import run_episode
from .options import Options, draw_options

LINES_SHOWN = 50
TWICE_EVERY = 50
"""So often a seed runs a second time, and both traces must be the same."""


@attrs.frozen(kw_only=True)
class Finding:
    """One seed: how it went."""

    seed: int
    simulated_seconds: float
    real_seconds: float
    operations: int = 0
    healed_after: float = 0.0
    failure: str = ""
    replay: str = ""


# --- one seed ---------------------------------------------------------------------------------------------------------------


def replay_command(options: Options) -> str:
    """The one line that runs a seed again."""
    return f"python -m tests.sim --seed {options.seed} --seconds {options.seconds:g} --nodes {options.nodes} --verbose"


def explain_failure(options: Options, columns: Columns, error: BaseException) -> str:
    """Everything that a person needs: what broke, the options, the last events, and how to see it again."""
    what = "".join(traceback.format_exception_only(error)).strip()
    events = "\n".join(columns.lines(LINES_SHOWN))
    where = "" if isinstance(error, AssertionError) else "".join(traceback.format_exception(error))[-3000:]
    return f"seed {options.seed} FAILED: {what}\n{where}\n{options}\n\n{events}\n\nagain: {replay_command(options)}"


def run_seed(task: tuple[int, float] | tuple[int, float, int | None]) -> Finding:
    """Run one seed, and some of them twice: its number, the simulated seconds, and how many nodes if the seed is not to draw it."""
    seed, seconds, nodes = (*task, None)[:3]
    options = draw_options(seed, seconds, nodes=nodes)
    began = time.perf_counter()
    columns = Columns(options.node_names)
    try:
        outcome = run_episode(options, columns)
        if seed % TWICE_EVERY == 0:
            again = run_episode(options)
            assert again.trace == outcome.trace, f"two runs of seed {seed} differ: {_explain_difference(options)}"
    except Exception as error:
        return Finding(
            seed=seed,
            simulated_seconds=seconds,
            real_seconds=time.perf_counter() - began,
            failure=explain_failure(options, columns, error),
            replay=replay_command(options),
        )
    report = outcome.result
    return Finding(
        seed=seed,
        simulated_seconds=outcome.simulated_seconds,
        real_seconds=time.perf_counter() - began,
        operations=report.operations,
        healed_after=report.healed_after,
    )


def _explain_difference(options: Options) -> str:
    one, other = (record_steps(lambda on_step: run_episode(options, on_step=on_step)) for _ in range(2))
    return find_difference(one, other) or "not when they were run again to see where"


def run_one(options: Options, *, verbose: bool, steps: str | None) -> int:
    """Run one seed in front of a person."""
    print(f"seed {options.seed}\n{options}\n", flush=True)
    columns = Columns(options.node_names, echo=verbose)
    began = time.perf_counter()
    with _step_writer(steps) as on_step:
        try:
            outcome = run_episode(options, columns, on_step=on_step)
        except Exception as error:
            print(explain_failure(options, columns, error), file=sys.stderr)
            what = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
            _print_line(options.seed, trace="", simulated=columns.last_at, real=time.perf_counter() - began, operations=0, violation=what)
            return 1
    real = time.perf_counter() - began
    print(outcome.result)
    print(
        f"{outcome.simulated_seconds:.0f} simulated seconds in {real:.1f} s ({outcome.simulated_seconds / real:.0f} times faster),"
        f" {outcome.steps} steps, trace {outcome.trace}"
    )
    operations, simulated = outcome.result.operations, outcome.simulated_seconds
    _print_line(options.seed, trace=outcome.trace, simulated=simulated, real=real, operations=operations, violation=None)
    return 0


def _print_line(seed: int, *, trace: str, simulated: float, real: float, operations: int, violation: str | None) -> None:
    """The last line of one seed, for programs."""
    line = {
        "seed": seed,
        "ok": violation is None,
        "trace": trace,
        "simulated_seconds": round(simulated, 3),
        "real_seconds": round(real, 3),
        "operations": operations,
        "violation": violation,
    }
    print(json.dumps(line), flush=True)


@contextmanager
def _step_writer(path: str | None) -> Iterator[Callable[[float, str], None] | None]:
    if path is None:
        yield None
        return
    with open(path, "w", encoding="utf-8") as file:

        def write(seconds: float, task: str) -> None:
            file.write(f"{seconds:.9f} {task}\n")

        yield write


# --- many -------------------------------------------------------------------------------------------------------------------


def run_many(seeds: range, seconds: float, jobs: int, nodes: int | None = None) -> int:
    """Run a campaign; returns how many failed. Ctrl-C ends it with what was done so far. The last line is for programs."""
    began = time.perf_counter()
    findings: list[Finding] = []
    tasks = [(seed, seconds, nodes) for seed in seeds]
    try:
        for finding in _results(tasks, jobs):
            findings.append(finding)
            if finding.failure:
                _clear_line()
                print(finding.failure, "\n", flush=True)
            _show_progress(findings, len(tasks), time.perf_counter() - began)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
    _clear_line()
    failed = [finding for finding in findings if finding.failure]
    print(summary(findings, time.perf_counter() - began))
    for finding in failed[:20]:
        print(f"  again: {finding.replay}")
    line = {
        "runs": len(findings),
        "violations": len(failed),
        "failed_seeds": [finding.seed for finding in failed],
        "simulated_hours": round(sum(finding.simulated_seconds for finding in findings) / 3600, 3),
        "real_seconds": round(time.perf_counter() - began, 3),
    }
    print(json.dumps(line), flush=True)
    return len(failed) if findings else 1


def summary(findings: Sequence[Finding], real_seconds: float) -> str:
    """What a campaign came to, in one line."""
    simulated = sum(finding.simulated_seconds for finding in findings)
    worked = sum(finding.real_seconds for finding in findings) or 1.0
    failed = sum(bool(finding.failure) for finding in findings)
    slowest = max((finding.healed_after for finding in findings), default=0.0)
    return (
        f"{len(findings)} seeds, {failed} failed: {simulated / 3600:.2f} simulated hours, {sum(f.operations for f in findings)} operations"
        f" in {real_seconds:.0f} s ({simulated / worked:.0f} times faster than real time per core); slowest healing {slowest:.1f} s"
    )


def _results(tasks: Sequence[tuple[int, float, int | None]], jobs: int) -> Iterator[Finding]:
    if jobs == 1:
        with _silence():
            yield from map(run_seed, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=logging.disable, maxtasksperchild=50) as pool:
        yield from pool.imap_unordered(run_seed, tasks)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is logged: what thousands of nodes complain of while they are broken would hide the progress."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _show_progress(findings: Sequence[Finding], total: int, real_seconds: float) -> None:
    line = f"{len(findings)}/{total}: {summary(findings, real_seconds)}"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line[:150]}", end="", file=sys.stderr, flush=True)
    elif len(findings) % max(1, total // 10) == 0:
        print(line, file=sys.stderr, flush=True)


def _clear_line() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
