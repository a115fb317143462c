"""Children and sockets for the tests of real processes.

A `Program` is a child whose output goes to two files: nothing it prints can block it, and everything it ever printed can be read at any
time. `Programs` starts them in the test's own directory, with an environment that holds no GOVERN_ variable, and kills all of them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import msgpack
import trio

from govern.messages import PROTOCOL_VERSION, Hello, Message, decode, encode

PATIENCE_SECONDS: Final = 30.0
CHECK_SECONDS: Final = 0.02
FILES_WANTED: Final = 4096
PORTS_OWN: Final = 100
"""Several times what the largest cluster of a test needs."""
READY: Final = "govern node 1 ready: clients "
REPOSITORY: Final = Path(__file__).parent.parent.parent


async def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until the condition holds; fails the test when it does not within the time."""
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(CHECK_SECONDS)
    assert condition(), f"waited {seconds:g} s in vain for {what}"


def raise_files_max() -> None:
    """The tests hold a thousand sockets and more; the usual soft limit is below that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_WANTED:
        reachable = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))


def free_port() -> int:
    """A port that nobody listens on, outside of the range from which the kernel serves port 0.

    A node that is killed and started again on its port needs one of these: a client that redials a port of the kernel's range may
    be given that very port for its own side, and then it is connected to itself and the node cannot bind.
    """
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many different ones. No other process that runs these tests is given any of them, also before somebody listens there."""
    found: list[int] = []
    for port in _own_ports():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"no {count} ports are free")


@functools.cache
def _own_ports() -> range:
    """The ports of this process. Whoever holds the first of a block has the others: it stays bound for as long as the process lives."""
    blocks = range(10_000, 32_000, PORTS_OWN)
    for turn in range(len(blocks)):
        first = blocks[(os.getpid() + turn) % len(blocks)]
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", first))
        except OSError:
            claim.close()
            continue
        claim.detach()  # the system closes it with the process
        return range(first + 1, min(first + PORTS_OWN, 32_000))
    raise AssertionError("all blocks of ports are in use")


class Program:
    """A child process."""

    def __init__(self, name: str, command: Sequence[str], directory: Path, environment: Mapping[str, str], **options: Any) -> None:
        self.name = name
        self._out, self._err = directory / f"{name}.out", directory / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            self.process = subprocess.Popen(command, cwd=directory, env=environment, **streams | options)

    def __repr__(self) -> str:
        return f"<Program {self.name} pid={self.process.pid} code={self.process.poll()}>"

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return self._err.read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, to this process only."""
        self.process.send_signal(number)

    async def wait_exit(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; the exit code, or the negative number of the signal."""
        await wait_until(lambda: self.process.poll() is not None, f"the end of {self.name}; stderr: {self.err}", seconds)
        code = self.process.returncode
        assert isinstance(code, int)
        return code

    async def wait_out(self, text: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until its stdout contains the text."""
        await wait_until(
            lambda: text in self.out or self.process.poll() is not None, f"{text!r} from {self.name}; stderr: {self.err}", seconds
        )
        assert text in self.out, f"{self.name} ended with {self.process.returncode}: {self.out} {self.err}"

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        await self.wait_exit()


class NodeProgram(Program):
    """`python -m govern`, ready."""

    address = ""
    port = 0


@attrs.frozen
class Said:
    """A verb that has ended."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str


class Programs:
    """All children of one test, in its directory. What they compile is kept in `compiled` when it must not lie beside the sources."""

    def __init__(self, directory: Path, compiled: Path) -> None:
        self.directory = directory
        self._compiled = compiled
        self._started: list[Program] = []

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._started:
            if program.process.poll() is None:
                program.process.kill()
        for program in self._started:
            program.process.wait(PATIENCE_SECONDS)

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of a child: this one without GOVERN_ variables, and able to import this checkout."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GOVERN_")}
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH", ""))))
        if sys.dont_write_bytecode:  # then each of these many children would compile all of its modules: more than half of its work
            kept |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self._compiled)}
        return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"} | variables

    def start(self, *arguments: str, variables: Mapping[str, str] | None = None, kind: type[Program] = Program, **options: Any) -> Program:
        """Start `python -m ...` and do not wait for anything."""
        name = f"{len(self._started):02}-{arguments[0].rpartition('.')[2]}"
        command = [sys.executable, "-m", *arguments]
        program = kind(name, command, self.directory, self.environment(**variables or {}), **options)
        self._started.append(program)
        return program

    def govern(self, *arguments: str, connect: str | None = None, variables: Mapping[str, str] | None = None, **options: Any) -> Program:
        """Start one verb of the command line."""
        return self.start(
            "govern", *arguments, variables={**(variables or {}), **({"GOVERN_CONNECT": connect} if connect else {})}, **options
        )

    async def run(
        self, *arguments: str, connect: str | None = None, variables: Mapping[str, str] | None = None, **options: Any
    ) -> tuple[int, str, str]:
        """Run one verb to its end: exit code, stdout, stderr."""
        program = self.govern(*arguments, connect=connect, variables=variables, **options)
        code = await program.wait_exit()
        return code, program.out, program.err

    async def each(
        self, commands: Sequence[Sequence[str]], connect: str | None = None, variables: Mapping[str, str] | None = None
    ) -> list[Said]:
        """Run verbs to their ends, all at once and in this order, each in a process, for the price of one start (`each.py`)."""
        where = {"GOVERN_CONNECT": connect} if connect else {}
        program = self.start(
            "tests.process.each", json.dumps([list(words) for words in commands]), variables={**(variables or {}), **where}
        )
        assert await program.wait_exit() == 0, program.err
        said = []
        for number, (words, code) in enumerate(zip(commands, json.loads(program.out), strict=True)):
            out, err = (self.directory / f"{number}.{name}" for name in ("out", "err"))
            said.append(Said(tuple(words), code, out.read_text(), err.read_text()))
            out.unlink()
            err.unlink()
        return said

    async def node(self, *flags: str, port: int = 0, data_dir: str = "", **options: Any) -> NodeProgram:
        """A node that has printed its ready line; in memory unless a directory is named."""
        node = self.start("govern", "--listen", f"127.0.0.1:{port}", "--data-dir", data_dir, *flags, kind=NodeProgram, **options)
        assert isinstance(node, NodeProgram)
        await node.wait_out("\n")
        assert node.out.startswith(READY), node.out
        node.address = node.out.removeprefix(READY).partition(",")[0]
        node.port = int(node.address.rpartition(":")[2])
        return node


# --- raw connections --------------------------------------------------------------------------------------------------------------


class Raw:
    """A TCP connection to a node that may say anything."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = b""
        self.messages: list[Message] = []

    async def send(self, data: bytes) -> bool:
        """Send; False when the node has closed the connection."""
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            return False
        return True

    async def finish(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self._stream.send_eof()

    async def read_to_end(self, seconds: float = PATIENCE_SECONDS) -> list[Message]:
        """Read until the node closes, and return what it said; fails the test when it does not close in time."""
        with trio.move_on_after(seconds) as scope:
            with contextlib.suppress(trio.BrokenResourceError):  # a reset is an end as well
                while data := await self._stream.receive_some(65536):
                    self._take(data)
        assert not scope.cancelled_caught, f"the node did not close the connection within {seconds:g} s"
        return self.messages

    async def read_message(self, seconds: float = PATIENCE_SECONDS) -> Message:
        """The next message of the node."""
        with trio.fail_after(seconds):
            while not self.messages:
                data = await self._stream.receive_some(65536)
                assert data, "the node closed the connection"
                self._take(data)
        return self.messages.pop(0)

    def _take(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 4:
            (length,) = struct.unpack_from(">I", self._received)
            if len(self._received) < 4 + length:
                return
            payload, self._received = self._received[4 : 4 + length], self._received[4 + length :]
            self.messages.append(decode(payload)[0])


@contextlib.asynccontextmanager
async def raw_connection(port: int) -> AsyncIterator[Raw]:
    """A connection on which nothing was said yet."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        yield Raw(stream)


def hello(session_id: bytes = b"", attempt: int = 1) -> bytes:
    """The frame of a well-behaved Hello."""
    return encode(Hello(PROTOCOL_VERSION, "", "test", "", session_id, attempt), 1)


def frame_of(*values: object) -> bytes:
    """A frame of any values at all."""
    payload = msgpack.packb(list(values))
    assert isinstance(payload, bytes)
    return struct.pack(">I", len(payload)) + payload
