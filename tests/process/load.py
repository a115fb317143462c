"""A program full of clients: `python -m tests.process.load ADDRESS --clients 10 --first 0`.

Each client registers instance after instance and keeps them all. For every registration that was acknowledged a line goes to stdout, not
before and not later: `ack CLIENT SERVICE ID TERM SEQ`. After `--count` registrations per client, or after SIGTERM, a client registers no
more and prints `holding CLIENT`; it keeps what it has until the process is killed.
"""

from __future__ import annotations

import argparse
import math
import signal
from contextlib import AsyncExitStack

import trio

from govern.client import connect


async def run_client(number: int, options: argparse.Namespace, stop: trio.Event) -> None:
    """One client of its own connection and session."""
    async with connect(options.address, timeout=math.inf) as registry, AsyncExitStack() as stack:
        made = 0
        while not stop.is_set() and (not options.count or made < options.count):
            service = f"{options.service}-{(number + made) % options.services}" if options.services > 1 else options.service
            entering = registry.register(service, port=1 + made % 65535, id=f"c{number}-{made}", ttl=options.ttl)
            registration = await stack.enter_async_context(entering)
            made += 1
            print("ack", number, service, registration.instance.id, *registration.lease_id, flush=True)
        print("holding", number, flush=True)
        await trio.sleep_forever()


async def main(options: argparse.Namespace) -> None:
    """All clients, until the process is killed."""
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            for number in range(options.first, options.first + options.clients):
                nursery.start_soon(run_client, number, options, stop)
            async for _ in signals:
                stop.set()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--service", default="orders")
    parser.add_argument("--services", type=int, default=1)
    parser.add_argument("--ttl", type=float, default=5.0)
    trio.run(main, parser.parse_args())
