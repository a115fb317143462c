"""A web server that can be replaced without anybody noticing: told to stop, it first leaves the traffic, then finishes what it has.

    python examples/polite_greeter.py 127.0.0.1:7400 greeter-1

On SIGTERM it drains: when `drain` returns, every caller that subscribes to `greeter` has taken it out of its choice. Who chose it just
before may still be on the way, so it serves on until nobody has called for a moment, and waits for the requests under way.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from http.server import ThreadingHTTPServer

import trio
from greeter import Greeter

import govern

WORK_SECONDS = 0.01
QUIET_SECONDS = 0.2


class Worker(Greeter):
    """A greeter whose answers take a while, as real ones do."""

    def do_GET(self) -> None:
        time.sleep(WORK_SECONDS)
        super().do_GET()


class Server(ThreadingHTTPServer):
    """Counts the calls. Closing it waits for those under way."""

    daemon_threads = False
    request_queue_size = 128
    calls = 0

    def process_request_thread(self, request: object, client_address: object) -> None:
        self.calls += 1
        super().process_request_thread(request, client_address)  # type: ignore[arg-type]


async def wait_quiet(server: Server) -> None:
    """Wait until nobody has called for a moment."""
    calls = -1
    while calls != server.calls:
        calls = server.calls
        await trio.sleep(QUIET_SECONDS)


async def main(address: str, name: str) -> None:
    server = Server(("127.0.0.1", 0), Worker)
    serving = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    serving.start()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with govern.connect(address) as registry:
            async with registry.register("greeter", id=name, port=server.server_port, protocol="http") as registration:
                print("registered:", registration.instance.address, flush=True)
                await anext(signals)
                drained = await registration.drain()
                print("drained:", drained.applied, "told,", drained.missing_count, "missing", flush=True)
                await wait_quiet(server)
    await trio.to_thread.run_sync(server.shutdown)
    await trio.to_thread.run_sync(server.server_close)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/polite_greeter.py HOST:PORT NAME")
    try:
        trio.run(main, sys.argv[1], sys.argv[2])
    except govern.GovernError as error:
        sys.exit(str(error))
