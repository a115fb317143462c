"""A registry inside your own program: no server, no port to choose, nothing to install beside it.

    python examples/embedded.py

The node lives in this process, in memory; name a `data_dir` and it keeps what it acknowledges on the disk. Other processes can connect to
`node.address` like to any other node.
"""

from __future__ import annotations

import sys

import trio

import govern


async def main() -> None:
    async with govern.open_node() as node:
        async with govern.connect(node) as registry, registry.subscribe("orders") as orders:
            changes = aiter(orders)
            async with registry.register("orders", port=8080, metadata={"version": "2.1"}) as registration:
                change = await anext(changes)
                print("added:  ", [instance.address for instance in change.added])

                await registration.update(weight=0.5)
                change = await anext(changes)
                print("updated:", [(instance.address, instance.weight) for instance in change.updated])

                assert await registry.lookup("orders") == orders.instances

            change = await anext(changes)
            print("removed:", list(change.removed))


if __name__ == "__main__":
    if len(sys.argv) != 1:
        sys.exit("usage: python examples/embedded.py")
    trio.run(main)
