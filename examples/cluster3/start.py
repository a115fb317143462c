"""A cluster of three nodes on this machine, from three configuration files, with one command.

    python examples/cluster3/start.py             start it in this directory's ./cluster3-data; Ctrl-C stops it
    python examples/cluster3/start.py --story     start it on a fresh directory, kill its controller, tell what happens, and end

Each node is a process of its own: `govern --config examples/cluster3/node1.toml` starts one by hand.
"""

from __future__ import annotations

import argparse
import binascii
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import trio

import govern

HERE = Path(__file__).resolve().parent
FILES = {number: HERE / f"node{number}.toml" for number in (1, 2, 3)}
CLIENTS = {number: f"127.0.0.1:741{number}" for number in FILES}
WHERE = ",".join(CLIENTS.values())
GOVERN = (sys.executable, "-m", "govern")


@contextmanager
def running(number: int, directory: str) -> Iterator[subprocess.Popen[str]]:
    """One node; it is ready when the block is entered, and stopped when it is left."""
    process = subprocess.Popen([*GOVERN, "--config", str(FILES[number])], cwd=directory, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"node {number} did not start: what it says stands above")
        print(line, end="", flush=True)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def ask(*words: str) -> Any:
    """What a verb of the command line says, from any node."""
    done = subprocess.run([*GOVERN, *words, "--json", "--connect", WHERE], capture_output=True, text=True)
    return json.loads(done.stdout) if done.stdout.strip() else None


def wait_for(what: str, is_true: Any, seconds: float = 30.0) -> float:
    """Wait for a condition; how long that took."""
    began = time.monotonic()
    while not is_true():
        if time.monotonic() - began > seconds:
            sys.exit(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - began


def has_all_slots() -> bool:
    rows: list[dict[str, int]] = ask("table") or []
    return sum(row["last"] - row["first"] + 1 for row in rows) == 16384


def controller() -> int | None:
    """Who is controller, by any node that knows."""
    for row in ask("nodes") or []:
        if row["controller"]:
            return int(row["node_id"])
    return None


def names_on(number: int, count: int) -> list[str]:
    """Names of services for whose slots a node answers."""
    mine = [(row["first"], row["last"]) for row in ask("table") if row["primary"] == number]
    names = (f"shop{place}" for place in range(10_000))
    return [name for name in names if any(first <= govern_slot(name) <= last for first, last in mine)][:count]


def govern_slot(name: str) -> int:
    """The slot of a service of the default namespace: CRC16 of its full name."""
    return binascii.crc_hqx(f"default/{name}".encode(), 0) % 16384


async def watch_a_death(processes: dict[int, subprocess.Popen[str]]) -> None:
    """Kill the controller, and show that the services of the other nodes are not concerned."""
    office = controller()
    assert office is not None
    other = next(number for number in FILES if number != office)
    (name,) = names_on(other, 1)
    async with govern.connect(WHERE) as registry, registry.register(name, port=8080), registry.subscribe(name) as view:
        print(f"The service {name} lives on node {other}; node {office} is the controller.")
        processes[office].kill()
        print(f"Now node {office} is killed with SIGKILL.")
        began = trio.current_time()
        seen_stale = False
        while (found := await trio.to_thread.run_sync(controller)) in (None, office):
            seen_stale = seen_stale or view.stale
            if trio.current_time() - began > 30:
                sys.exit("no new controller within 30 s")
        print(f"Node {found} is the controller now.")
        async with registry.register(name, port=8081):
            print(f"Another instance of {name} was registered meanwhile: {sorted(each.id for each in view.instances)}")
        print("Its view was never stale." if not seen_stale else "Its view was stale for a while: this machine is slow.")


def stop(number: int, frame: object) -> None:
    """Leave the blocks of all nodes, which stops them."""
    print("stopping", flush=True)
    sys.exit()


def main() -> None:
    parser = argparse.ArgumentParser(description="Three nodes on this machine that are one registry.")
    parser.add_argument("--story", action="store_true", help="on a fresh directory: kill the controller, tell what happens, and end")
    is_story = parser.parse_args().story
    for number in (signal.SIGINT, signal.SIGTERM):  # also when a shell started this in the background and lets it ignore Ctrl-C
        signal.signal(number, stop)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory()) if is_story else os.getcwd()
        processes = {number: stack.enter_context(running(number, directory)) for number in FILES}
        seconds = wait_for("all slots are assigned", has_all_slots)
        print(f"All 16384 slots are assigned, {seconds:.1f} s after the last node was ready.")
        print(f"Clients enter through any of {WHERE}")
        if is_story:
            trio.run(watch_a_death, processes)
            print("Everything happened as it should.")
            return
        print(f"Look at it:  {sys.executable} -m govern nodes --connect {CLIENTS[1]}")
        print("Ctrl-C stops it.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
