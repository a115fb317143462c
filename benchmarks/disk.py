"""The disk: what one write costs that must not be lost, with nothing else around it.

A loop of its own writes 4 registrations' worth of bytes into a file of real zeros and syncs the data, as the log does.
"""

from __future__ import annotations

import os
import tempfile
import time

from ._frames import FILE_BYTES
from ._load import undisturbed
from ._report import Emit, Figure, Settings, main

WRITE_BYTES = 1024


def sync_times(path: str, seconds: float) -> list[float]:
    """The seconds that each write with its sync took."""
    descriptor = os.open(os.path.join(path, "disk"), os.O_RDWR | os.O_CREAT, 0o600)
    sync = getattr(os, "fdatasync", os.fsync)
    try:
        os.pwrite(descriptor, bytes(FILE_BYTES), 0)
        os.fsync(descriptor)
        taken: list[float] = []
        place, end_at = 0, time.perf_counter() + seconds
        while not taken or time.perf_counter() < end_at:
            began = time.perf_counter()
            os.pwrite(descriptor, b"\xa5" * WRITE_BYTES, place)
            sync(descriptor)
            taken.append(time.perf_counter() - began)
            place = (place + WRITE_BYTES) % FILE_BYTES
        return sorted(taken)
    finally:
        os.close(descriptor)


def measure(settings: Settings, emit: Emit) -> None:
    with undisturbed() as others, tempfile.TemporaryDirectory(prefix="govern-bench-", dir=os.environ.get("BENCHMARK_DIR")) as path:
        runs = [sync_times(path, settings.seconds) for _ in range(settings.runs)]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        values = [times[int(len(times) * share)] * 1e6 for times in runs]
        conditions = {
            "write_bytes": WRITE_BYTES,
            "file": "preallocated zeros",
            "worst_us": max(times[-1] for times in runs) * 1e6,
            **others,
        }
        emit(Figure(benchmark="disk", figure=f"write_and_sync_{name}", unit="us", values=values, conditions=conditions))


if __name__ == "__main__":
    main(measure)
