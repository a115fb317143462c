"""A full disk refuses what would fill it further, keeps everybody alive, and is forgotten when there is space again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from govern.client import Registry, connect
from govern.errors import DiskFull

from .harness import Programs

DISK_BYTES = 6 * 1024 * 1024  # a candidate's log begins with two segments of one MiB
SEGMENT_BYTES = 64 * 1024
REGISTRATIONS_MAX = 5_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs Linux and root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(path: Path) -> None:
    """Take all the space there is."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


async def register_until_full(registry: Registry) -> int:
    """Register persistent instances until one is refused; returns how many were acknowledged."""
    for number in range(REGISTRATIONS_MAX):
        try:
            async with registry.register("filler", port=1 + number, ephemeral=False, metadata={"text": "x" * 500}):
                pass
        except DiskFull as error:
            assert "disk" in str(error)
            return number
    raise AssertionError("the disk was never full")


async def test_a_full_disk_refuses_registrations_and_nothing_else(small_disk: Path, programs: Programs) -> None:
    """With the disk full a registration is refused with a clear error; lookups, heartbeats and removals go on, nobody expires, `status`
    says what is wrong. When there is space again, registrations are taken again, and a restart finds all that was acknowledged."""
    flags = ("--segment-bytes", str(SEGMENT_BYTES))
    data_dir = str(small_disk / "data")
    node = await programs.node(*flags, data_dir=data_dir)
    async with connect(node.address) as registry:
        async with registry.register("faithful", port=80, ttl=2.0) as faithful, registry.register("leaving", port=81) as leaving:
            fill(small_disk / "filler")
            count = await register_until_full(registry)
            code, _, err = await programs.run("register", "late", "--port", "1", "--persistent", "--connect", node.address)
            assert (code, len(err.splitlines())) == (1, 1), err
            assert "disk" in err
            await leaving.deregister()
            assert await registry.lookup("leaving") == ()
            await trio.sleep(3.0)  # longer than the ttl: heartbeats need no disk
            assert faithful.lost is None
            assert [each.port for each in await registry.lookup("faithful")] == [80]
            assert len(await registry.lookup("filler")) == count
            assert any("disk full" in reason for reason in (await registry.status())["degraded"])

            (small_disk / "filler").unlink()
            with trio.fail_after(20):
                while (await registry.status())["degraded"]:
                    await trio.sleep(0.1)
            async with registry.register("late", port=1, ephemeral=False):
                pass
    await node.kill()
    node = await programs.node(*flags, data_dir=data_dir)
    async with connect(node.address) as registry:
        assert len(await registry.lookup("filler")) == count
        assert len(await registry.lookup("late")) == 1
        assert await registry.lookup("leaving") == ()
    assert "Traceback" not in node.err
    await node.kill()
