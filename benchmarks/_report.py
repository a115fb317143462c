"""Figures: what a benchmark says, as a line of JSON for machines and a line for people."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import attrs

from ._load import Sample, pin_generator, wait_until_quiet


@attrs.frozen(kw_only=True)
class Figure:
    """A median of several runs."""

    benchmark: str
    figure: str
    unit: str
    values: Sequence[float]
    conditions: dict[str, Any]

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> str:
        return json.dumps(
            {
                "benchmark": self.benchmark,
                "figure": self.figure,
                "unit": self.unit,
                "value": _short(self.value),
                "min": _short(min(self.values)),
                "max": _short(max(self.values)),
                "runs": len(self.values),
                "conditions": {name: _short(value) for name, value in self.conditions.items()},
            }
        )

    @property
    def ratio(self) -> float | None:
        """The figure over its baseline; for rates by processor time, which other programs disturb less than the wall clock."""
        found = self.conditions.get("ratio_per_cpu_second", self.conditions.get("ratio"))
        return None if found is None else float(found)

    def as_text(self) -> str:
        ratio = "" if self.ratio is None else f", {self.ratio:.3g} of the baseline"
        return f"{self.figure}: {_short(self.value)} {self.unit} [{_short(min(self.values))} to {_short(max(self.values))}]{ratio}"


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value) if abs(value) >= 1000 else float(f"{value:.4g}")


@attrs.frozen
class Settings:
    """How long and how often."""

    quick: bool

    @property
    def runs(self) -> int:
        return 1 if self.quick else 3

    @property
    def seconds(self) -> float:
        return 0.7 if self.quick else 1.5

    @property
    def attempts(self) -> int:
        return 1 if self.quick else 3


Emit = Callable[[Figure], None]
T = TypeVar("T")
QUIET_CPU: Final = 0.1
"""A run during which other programs had no more of a core than this counts as undisturbed."""
WAIT_SECONDS_MAX: Final = 8.0
"""A node closes connections that say nothing for 15 seconds, so the load does not wait longer than this."""


def quietest(settings: Settings, attempt: Callable[[], tuple[T, float]]) -> T:
    """What the least disturbed of a few attempts measured. `attempt` gives what it measured and the share of a core that other
    programs had; the choice looks only at the latter, so it does not favour good figures."""
    if not settings.quick:
        wait_until_quiet(WAIT_SECONDS_MAX)
    best, disturbed = attempt()
    for _ in range(settings.attempts - 1):
        if disturbed <= QUIET_CPU:
            break
        wait_until_quiet(WAIT_SECONDS_MAX)
        other, disturbed_then = attempt()
        if disturbed_then < disturbed:
            best, disturbed = other, disturbed_then
    return best


def pairs(settings: Settings, take: Callable[[], Sample], take_baseline: Callable[[], Sample]) -> tuple[list[Sample], list[Sample]]:
    """The runs of a figure and of its baseline, in turn."""

    def attempt() -> tuple[tuple[Sample, Sample], float]:
        sample, baseline = take(), take_baseline()
        return (sample, baseline), max(sample.other_cpu, baseline.other_cpu)

    found = [quietest(settings, attempt) for _ in range(settings.runs)]
    return [sample for sample, _ in found], [baseline for _, baseline in found]


def rate_figure(benchmark: str, name: str, samples: Sequence[Sample], baselines: Sequence[Sample], **conditions: Any) -> Figure:
    """Operations per second of a node beside those of a baseline, by the wall clock and by processor time."""
    middle = sorted(samples, key=lambda sample: sample.rate)[len(samples) // 2]
    found = dict(conditions)
    found.update(middle.conditions())
    per_cpu = statistics.median(sample.per_cpu_second for sample in samples)
    found["per_server_cpu_second"] = per_cpu
    found["us_per_operation"] = 1e6 / per_cpu
    found["other_cpu"] = statistics.median(sample.other_cpu for sample in samples)
    if baselines:
        found["baseline_rate"] = statistics.median(sample.rate for sample in baselines)
        found["baseline_per_server_cpu_second"] = statistics.median(sample.per_cpu_second for sample in baselines)
        found["ratio"] = statistics.median(sample.rate for sample in samples) / found["baseline_rate"]
        found["ratio_per_cpu_second"] = per_cpu / found["baseline_per_server_cpu_second"]
    return Figure(benchmark=benchmark, figure=name, unit="1/s", values=[sample.rate for sample in samples], conditions=found)


def main(measure: Callable[[Settings, Emit], None]) -> None:
    """The command of one benchmark."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run of each figure")
    arguments = parser.parse_args()

    def emit(figure: Figure) -> None:
        print(figure.as_text(), file=sys.stderr, flush=True)
        print(figure.as_json(), flush=True)

    pin_generator()
    measure(Settings(arguments.quick), emit)
