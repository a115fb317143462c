"""The whole story in one run: two web servers are registered, found and called; one is killed, and the caller is told.

    python examples/quickstart.py

Five real processes: this one, a node (`python -m govern`), two servers (greeter.py) and a caller (caller.py). It ends by itself in
less than 15 seconds, with exit code 0 only if everything happened as it says.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import trio

HERE = Path(__file__).parent
PATIENCE_SECONDS = 30.0
ANSWER = "answer: hello from "


@contextlib.asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[trio.Process]:
    """A Python program that is killed, if it still runs, when the block ends."""
    process = await trio.lowlevel.open_process([sys.executable, *arguments], stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


class Lines:
    """What a program prints, line by line."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._stdout = process.stdout
        self._received = b""

    async def find(self, start: str) -> str:
        """The rest of the next line that begins with `start`; lines before it are passed over."""
        while True:
            while b"\n" not in self._received:
                data = await self._stdout.receive_some()
                if not data:
                    raise SystemExit(f"a program ended before it said {start!r}")
                self._received += data
            line, _, self._received = self._received.partition(b"\n")
            if line.decode().startswith(start):
                return line.decode().removeprefix(start)


async def tell(directory: str) -> None:
    async with program("-m", "govern", "--listen", "127.0.0.1:0", "--data-dir", f"{directory}/data", "--log-level", "warning") as node:
        address = (await Lines(node).find("govern node 1 ready: clients ")).partition(",")[0]
        print(f"A node is ready for clients at {address}; what it knows is on the disk.")

        async with program(f"{HERE}/caller.py", address) as caller:
            told = Lines(caller)
            async with program(f"{HERE}/greeter.py", address) as first, program(f"{HERE}/greeter.py", address) as second:
                names = [await told.find(ANSWER)]
                while len(names) < 2:
                    name = await told.find(ANSWER)
                    names += [name] if name not in names else []
                print(f"Two greeters have registered themselves: {names[0]} and {names[1]}.")
                print("The caller was told of both, has called both, and each has answered.")

                print("Now one of them is killed with SIGKILL: it cannot say goodbye.")
                second.kill()
                killed_at = trio.current_time()
                gone = await told.find("gone: ")
                print(f"After {trio.current_time() - killed_at:.1f} s the caller is told: {gone} is gone.")

                (left,) = (name for name in names if name != gone)
                assert await told.find(ANSWER) == left
                print(f"It goes on with {left}, which was not disturbed.")
                assert first.poll() is None
                assert await caller.wait() == 0


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory, trio.fail_after(PATIENCE_SECONDS):
        await tell(directory)
    print("Everything happened as it should.")


if __name__ == "__main__":
    if len(sys.argv) != 1:
        sys.exit("usage: python examples/quickstart.py")
    trio.run(main)
