"""Three web servers are restarted one after the other under full load, and not one request fails.

    python examples/rolling_restart.py

This process calls them in a tight loop, four calls at a time, each on a fresh connection to an address that `choose` has just drawn. The
servers (polite_greeter.py) and the node are processes of their own. Each server drains, stops, and is replaced by a new one on another
port. It ends by itself in less than 20 seconds, with exit code 0 only if no call failed and all three were replaced. Where the servers were
killed with SIGKILL instead, the same three restarts made about 120 of 1,700 calls fail.
"""

from __future__ import annotations

import sys
import tempfile
import urllib.request
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from quickstart import Lines, program

import govern

HERE = Path(__file__).parent
NAMES = ("greeter-1", "greeter-2", "greeter-3")
CALLERS = 4
BETWEEN_SECONDS = 0.5
PATIENCE_SECONDS = 60.0


class Caller:
    """Calls greeters without pause, and keeps count."""

    def __init__(self, greeters: govern.LiveView) -> None:
        self.greeters = greeters
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []

    async def call(self) -> None:
        """Call whoever `choose` draws, again and again."""
        while True:
            instance = self.greeters.choose()
            if instance is None:
                self.failures.append("there was nobody to call")
                await trio.sleep(0.01)
                continue
            try:
                await trio.to_thread.run_sync(fetch, instance.address)
                self.answers[instance.address] += 1
            except OSError as error:
                self.failures.append(f"{instance.address}: {error}")

    async def wait_answer(self, address: str) -> None:
        """Wait until the server at that address has answered."""
        while not self.answers[address]:  # noqa: ASYNC110 - simpler than an event, and as quick as anybody could tell
            await trio.sleep(0.01)


def fetch(address: str) -> None:
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
        answer.read()


class Greeters:
    """The server processes, by name, and where each of them listens."""

    def __init__(self, node: str, stack: AsyncExitStack) -> None:
        self.addresses: dict[str, str] = {}
        self._node = node
        self._stack = stack
        self._processes: dict[str, tuple[trio.Process, Lines]] = {}

    async def start(self, name: str) -> None:
        """Start a server; returns when it is registered."""
        process = await self._stack.enter_async_context(program(f"{HERE}/polite_greeter.py", self._node, name))
        lines = Lines(process)
        self._processes[name] = process, lines
        self.addresses[name] = await lines.find("registered: ")

    async def stop(self, name: str) -> str:
        """Ask a server to stop; returns what it said of its drain when it has ended."""
        process, lines = self._processes[name]
        process.terminate()
        drained = await lines.find("drained: ")
        assert await process.wait() == 0
        return drained


async def restart_all(greeters: Greeters, caller: Caller) -> None:
    for name in NAMES:
        await trio.sleep(BETWEEN_SECONDS)
        old, calls, stopped_at = greeters.addresses[name], caller.answers.total(), trio.current_time()
        drained = await greeters.stop(name)
        print(f"{name} at {old}: drained ({drained}), stopped after {caller.answers[old]} calls.")
        await greeters.start(name)
        new = greeters.addresses[name]
        await caller.wait_answer(new)
        seconds, calls = trio.current_time() - stopped_at, caller.answers.total() - calls
        print(f"  After {seconds:.1f} s its successor at {new} answers; {calls} calls meanwhile.")
        assert new != old


async def tell(directory: str) -> bool:
    """The whole story; whether no call failed."""
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(
            program("-m", "govern", "--listen", "127.0.0.1:0", "--data-dir", f"{directory}/data", "--log-level", "warning")
        )
        address = (await Lines(node).find("govern node 1 ready: clients ")).partition(",")[0]
        greeters = Greeters(address, stack)
        async with trio.open_nursery() as nursery:
            for name in NAMES:
                nursery.start_soon(greeters.start, name)
        print(f"Three greeters run: {', '.join(sorted(greeters.addresses.values()))}.")

        async with govern.connect(address) as registry, registry.subscribe("greeter") as view:
            caller = Caller(view)
            async with trio.open_nursery() as nursery:
                for _ in range(CALLERS):
                    nursery.start_soon(caller.call)
                await restart_all(greeters, caller)
                await trio.sleep(BETWEEN_SECONDS)
                nursery.cancel_scope.cancel()
    print(f"All three were replaced: {caller.answers.total()} calls were answered, {len(caller.failures)} failed.")
    for failure in caller.failures:
        print("failed:", failure, file=sys.stderr)
    return not caller.failures


async def main() -> int:
    with tempfile.TemporaryDirectory() as directory, trio.fail_after(PATIENCE_SECONDS):
        return 0 if await tell(directory) else 1


if __name__ == "__main__":
    if len(sys.argv) != 1:
        sys.exit("usage: python examples/rolling_restart.py")
    sys.exit(trio.run(main))
