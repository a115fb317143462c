"""The slots are those of Redis Cluster: a real redis-server is asked."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest
import trio

from govern.core.slots import slot_of
from govern.model import ServiceKey

from .harness import Program, Programs, free_port, wait_until

NAMES = 1000
LETTERS = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789._:/@-"


def draw(chance: random.Random) -> ServiceKey:
    """A service of any valid name; every other one with braces somewhere, which need not be a tag."""
    letters = [chance.choice(LETTERS) for _ in range(chance.randint(1, 40))]
    if chance.random() < 0.5:
        for brace in chance.choice(("{}", "{", "}", "{}{}", "}{", "{{}}")):
            letters.insert(chance.randint(0, len(letters)), brace)
    return ServiceKey(chance.choice(("default", "prod", "a.b-c_d")), "".join(letters))


@pytest.mark.skipif(not (shutil.which("redis-server") and shutil.which("redis-cli")), reason="redis-server and redis-cli are not installed")
async def test_redis_computes_the_same_slots(programs: Programs) -> None:
    """`CLUSTER KEYSLOT namespace/name` is the slot of the service, for a thousand names."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--save", "", "--daemonize", "no"]
    server = Program("redis", command, programs.directory, programs.environment())
    try:
        client = ["redis-cli", "-p", str(port)]
        await wait_until(lambda: subprocess.run([*client, "ping"], capture_output=True).stdout == b"PONG\n", "redis-server")
        chance = random.Random(7)
        services = [draw(chance) for _ in range(NAMES)]
        asked = "".join(f"cluster keyslot {service.namespace}/{service.name}\n" for service in services)
        said = (await trio.run_process(client, stdin=asked.encode(), capture_stdout=True)).stdout
    finally:
        server.process.kill()
        await server.wait_exit()
    assert [int(line) for line in said.split()] == [slot_of(service) for service in services]
