"""A web server that registers itself: it answers every GET with its own address, and is found under the name `greeter`.

    python examples/greeter.py 127.0.0.1:7400

The server takes any free port. While this program lives it is registered; however it ends, its callers are told.
"""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trio

import govern


class Greeter(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        host, port = self.request.getsockname()
        body = f"hello from {host}:{port}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing about each request."""


async def main(address: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Greeter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    async with govern.connect(address) as registry:
        async with registry.register("greeter", port=server.server_port, protocol="http", metadata={"language": "python"}):
            await trio.sleep_forever()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/greeter.py HOST:PORT")
    try:
        trio.run(main, sys.argv[1])
    except govern.GovernError as error:
        sys.exit(str(error))
