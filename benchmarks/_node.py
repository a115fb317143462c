"""A node to be measured: `python -m benchmarks._node [key=value …]`.

It prints one line of JSON when clients can connect, `{"host": …, "port": …}`, and stops when its standard input ends. It is started
the way an application would embed it, so what is measured is the library and nothing around it.
"""

from __future__ import annotations

import json
import os
import sys

import trio

from govern.actors.node import open_node
from govern.config import build_config, from_flags


async def _serve(keys: dict[str, str]) -> None:
    config = build_config(*from_flags(keys))
    async with open_node(config) as node:
        host, port = node.address
        print(json.dumps({"host": host, "port": port}), flush=True)
        while True:
            await trio.lowlevel.wait_readable(0)
            if not os.read(0, 4096):
                return


if __name__ == "__main__":
    trio.run(_serve, dict(argument.split("=", 1) for argument in sys.argv[1:]))
