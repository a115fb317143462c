"""A program that calls the greeters, and knows at any time which ones there are.

    python examples/caller.py 127.0.0.1:7400

It never asks twice: its live view is kept current by the registry. Each time the greeters change it says what changed and calls all
that are there. It ends when it has seen two greeters come and one of them go.
"""

from __future__ import annotations

import sys
import urllib.request

import trio

import govern


def call(instance: govern.Instance) -> str:
    """What one instance answers. One that died a moment ago does not, and its removal is on its way."""
    try:
        with urllib.request.urlopen(f"http://{instance.address}/", timeout=5) as answer:
            return f"answer: {answer.read().decode().strip()}"
    except OSError as error:
        return f"no answer from {instance.address}: {error}"


async def call_all(greeters: govern.LiveView) -> None:
    for instance in greeters.instances:
        print(await trio.to_thread.run_sync(call, instance), flush=True)


async def main(address: str) -> None:
    async with govern.connect(address) as registry:
        async with registry.subscribe("greeter") as greeters:
            await call_all(greeters)
            most = len(greeters.instances)
            async for change in greeters:
                for instance in change.added:
                    print("new:", instance.id, flush=True)
                for instance_id in change.removed:
                    print("gone:", instance_id, flush=True)
                await call_all(greeters)
                most = max(most, len(greeters.instances))
                if most == 2 and change.removed:
                    return


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/caller.py HOST:PORT")
    try:
        trio.run(main, sys.argv[1])
    except govern.GovernError as error:
        sys.exit(str(error))
