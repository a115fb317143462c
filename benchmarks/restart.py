"""Restart: from the start of the process to the line that says it is ready, with a hundred thousand instances on the disk.

The node is killed before, so the log ends where it ended. Once everything is in the log, once nearly everything is in a snapshot.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

from govern.messages import AskStatus, NodeStatus, encode

from . import _frames
from ._load import CORES, Lane, WrongAnswer, node, undisturbed
from ._report import Emit, Figure, Settings, main, quietest
from .memory import INSTANCES, filled

KINDS = {"log": 1 << 30, "snapshot": 4 << 20}
"""After how many bytes of log a snapshot is written."""


def import_seconds() -> float:
    """What the interpreter and the libraries alone take."""
    command = "import attrs, msgpack, sortedcontainers, trio"

    def pin() -> None:
        if CORES:
            os.sched_setaffinity(0, {CORES[0]})

    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", command], check=True, preexec_fn=pin)
    return time.perf_counter() - began


def _restart(keys: dict[str, object], instances: int) -> tuple[tuple[float, int, float], float]:
    """One start: its seconds and the resident bytes after it, and how disturbed it was."""
    with undisturbed() as others, node(**keys) as server:
        lane = Lane(server)
        lane.ask(_frames.hello(session=False))
        (answer,) = _frames.messages(lane.ask(encode(AskStatus(), 2)))
        if not isinstance(answer, NodeStatus) or answer.status["instances"] != instances:
            raise WrongAnswer(f"the instances are not all back: {answer!r}")
        lane.socket.close()
        resident = server.resident_bytes()
        server.process.send_signal(signal.SIGKILL)
    return (server.start_seconds, resident, others["other_cpu"]), others["other_cpu"]


def measure(settings: Settings, emit: Emit) -> None:
    instances = INSTANCES // 10 if settings.quick else INSTANCES
    base = sorted(import_seconds() for _ in range(max(3, settings.runs)))[1]
    for kind, snapshot_bytes in KINDS.items():
        with tempfile.TemporaryDirectory(prefix="govern-bench-", dir=os.environ.get("BENCHMARK_DIR")) as path:
            keys: dict[str, object] = {"data_dir": os.path.join(path, "node"), "snapshot_bytes": snapshot_bytes}
            with node(**keys) as server, filled(server, instances):
                time.sleep(1.0)  # a snapshot that is being written is finished
                server.process.send_signal(signal.SIGKILL)
            keys["snapshot_bytes"] = 1 << 30  # nothing is written while it is measured
            found = [quietest(settings, lambda keys=keys: _restart(keys, instances)) for _ in range(settings.runs)]  # type: ignore[misc]
        seconds, (_, rss, disturbed) = [run[0] for run in found], found[-1]
        conditions = {
            "instances": instances,
            "snapshot_bytes": snapshot_bytes,
            "resident_mb": rss / 1e6,
            "imports_alone": base,
            "other_cpu": disturbed,
            "ratio": sorted(seconds)[len(seconds) // 2] / base,
        }
        emit(Figure(benchmark="restart", figure=f"restart_100k_instances_{kind}", unit="s", values=seconds, conditions=conditions))


if __name__ == "__main__":
    main(measure)
