"""A node that cannot start, or should not, says so in one line that tells what to do, with the right exit code, and leaves everything as
it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import trio

from govern.client import Registry, connect

from .harness import NodeProgram, Program, Programs, Said

ANYWHERE = ("--listen", "127.0.0.1:0")
INSTANCES = 1_500
SEGMENT_BYTES = 64 * 1024


def fingerprint(directory: Path, pattern: str = "log-*") -> dict[str, str]:
    """The files of a data directory with hashes of their content. (The file `identity` counts the starts, `lock` names a process.)"""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.glob(pattern))}


async def expect_refusal(program: Program, code: int, *words: str) -> str:
    """The program ends with the code, says nothing on stdout and one line on stderr, in which each of the words occurs."""
    return check_refusal(code, Said((), await program.wait_exit(), program.out, program.err), *words)


def check_refusal(code: int, said: Said, *words: str) -> str:
    """The same for one that has ended."""
    assert (said.code, said.out) == (code, ""), said
    lines = [line for line in said.err.splitlines() if not re.match(r"\d{4}-\S+Z info ", line)]
    assert len(lines) == 1, said
    for word in words:
        assert word in lines[0], lines
    return lines[0]


WRONG_USAGE: list[tuple[list[str], list[str]]] = [
    (["--data-dri", "x"], ["unknown flag --data-dri", "did you mean --data-dir?"]),
    (["--node-id", "first"], ["node_id = 'first'", "give a whole number"]),
    (["--node-id", "0"], ["node_id = 0", "from 1 to 65535"]),
    (["--listen", "localhost"], ["'localhost'", "HOST:PORT"]),
    (["--listen", "0.0.0.0:0"], ["'0.0.0.0:0'", "insecure = true", "127.0.0.1"]),
    (["--log-level", "loud"], ["log_level = 'loud'", "debug, info, warning, error"]),
    (["--log-format", "xml"], ["log_format = 'xml'", "text, json"]),
    (["--log-file", "absent/node.log"], ["log file absent/node.log", "No such file"]),
    (["--log-file", "x.log", "--log-error-file", "./x.log"], ["log_error_file = './x.log'", "log_file already"]),
    (["--insecure=perhaps"], ["insecure = 'perhaps'", "true or false"]),
    (["--config", "absent.toml"], ["absent.toml", "No such file"]),
    (["--config", "broken.toml"], ["broken.toml", "not a TOML file"]),
    (["--config", "unknown.toml"], ["unknown.toml: unknown key 'lisen'", "did you mean 'listen'?"]),
    (["--config", "wrong.toml"], ["wrong.toml", "node_id = True"]),
    (["--salvage", "--data-dir", ""], ["--salvage", "data_dir"]),
    (["serv"], ["no verb 'serv'", "did you mean serve?"]),
    (["--connect", "localhost", "lookup", "orders"], ["--connect", "flags come after the verb", "govern lookup --connect"]),
]


async def test_wrong_usage_is_one_line_that_helps(programs: Programs) -> None:
    """An unknown flag, key or verb and a value out of bounds are each named with what to give instead; exit code 2, nothing is made."""
    (programs.directory / "broken.toml").write_text("node_id = \n")
    (programs.directory / "unknown.toml").write_text('lisen = "127.0.0.1:0"\n')
    (programs.directory / "wrong.toml").write_text("node_id = true\n")
    told = await programs.each([arguments for arguments, _ in WRONG_USAGE])
    for said, (_, words) in zip(told, WRONG_USAGE, strict=True):
        check_refusal(2, said, *words)
    assert not (programs.directory / "govern-data").exists()


async def test_every_source_of_configuration_counts_and_the_later_wins(programs: Programs) -> None:
    """File, variables and flags are read in this order, GOVERN_CONFIG names the file, and a variable that means nothing is one warning."""
    (programs.directory / "govern.toml").write_text('node_id = 5\nlisten = "127.0.0.1:1"\ndata_dir = "nowhere"\nconnections_max = 1000\n')
    variables = {
        "GOVERN_CONFIG": "govern.toml",
        "GOVERN_DATA_DIR": "variable",
        "GOVERN_LISTEN": "127.0.0.1:2",
        "GOVERN_PORT": "tcp://1.2.3.4:5",
    }
    node = programs.govern("--listen", "127.0.0.1:0", variables=variables)
    await node.wait_out("\n")
    assert re.fullmatch(r"govern node 5 ready: clients 127\.0\.0\.1:[1-9]\d*, peers none, data variable\n", node.out)
    assert node.err.count("warning") == 1
    assert "GOVERN_PORT is not a configuration key and is ignored" in node.err
    assert (programs.directory / "variable").is_dir()
    assert not (programs.directory / "nowhere").exists()


async def test_a_standalone_node_has_the_documented_defaults(programs: Programs) -> None:
    """Without a data directory being named the data is in ./govern-data; an empty one means memory; -O is refused."""
    standard, memory = programs.govern(*ANYWHERE), programs.govern(*ANYWHERE, "--data-dir", "")
    optimised = programs.govern(*ANYWHERE, variables={"PYTHONOPTIMIZE": "1"})
    await standard.wait_out(", peers none, data ./govern-data\n")
    await memory.wait_out(", peers none, data memory\n")
    await expect_refusal(optimised, 2, "without -O")
    assert len(standard.out.splitlines()) == 1


async def test_the_log_goes_to_stderr_and_to_its_files(programs: Programs, tmp_path: Path) -> None:
    """With JSON each line of stderr and of the files is an object; the file of errors has the warnings and why a node could not start,
    and nothing else."""
    flags = ("--log-format", "json", "--log-file", "node.log", "--log-error-file", "errors.log", "--data-dir", "data")
    node = programs.govern(*ANYWHERE, *flags, variables={"GOVERN_PORT": "tcp://1.2.3.4:5"})
    await node.wait_out("ready")
    second = programs.govern(*ANYWHERE, *flags)
    assert await second.wait_exit() == 1
    node.send(signal.SIGTERM)
    assert await node.wait_exit() == 0
    log = [json.loads(line) for line in (tmp_path / "node.log").read_text().splitlines()]
    errors = [json.loads(line) for line in (tmp_path / "errors.log").read_text().splitlines()]
    told = [json.loads(line) for program in (node, second) for line in program.err.splitlines()]
    assert sorted(map(str, told)) == sorted(map(str, log))
    assert errors == [each for each in log if each["level"] != "info"]
    assert [each["level"] for each in errors] == ["warning", "error"]
    assert "GOVERN_PORT" in errors[0]["message"]
    assert "in use by process" in errors[1]["message"]
    assert [each["message"] for each in log][-1] == "node 1 is stopping"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_a_node_in_order(programs: Programs, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end a node with exit code 0 and one line, never with a traceback."""
    node = await programs.node(data_dir="data")
    node.send(number)
    assert await node.wait_exit() == 0
    assert node.err.count("stopping") == 1
    assert "Traceback" not in node.err


async def test_a_directory_belongs_to_one_node(programs: Programs) -> None:
    """A second node on a directory is refused and told who holds it; the first one and its files do not notice. After kill -9 of the
    first one the directory is free."""
    first = await programs.node(data_dir="data")
    first_segment = "log-*1"  # the next one is still being made ready
    before = fingerprint(programs.directory / "data", first_segment)
    assert len(before) == 1
    for arguments in ([], ["--salvage"]):
        second = programs.govern(*ANYWHERE, "--data-dir", "data", *arguments)
        await expect_refusal(second, 1, "the data directory data is in use by process", str(first.process.pid), "data_dir")
    assert fingerprint(programs.directory / "data", first_segment) == before
    await first.kill()
    await programs.node(data_dir="data")


async def test_a_port_in_use_is_named(programs: Programs) -> None:
    """A node whose address is taken says which one and what to do, and leaves a directory that can be used."""
    first = await programs.node()
    second = programs.govern("--listen", first.address, "--data-dir", "data")
    await expect_refusal(second, 1, first.address, "something listens there already", "--listen")
    await programs.node(data_dir="data")


AS_NOBODY = """
import os, sys
import govern.cli.parser, govern.cli.serve  # read while the checkout may be read
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
sys.exit(govern.cli.parser.run(sys.argv[1:]))
"""


async def test_a_directory_that_cannot_be_used_is_named(programs: Programs, tmp_path: Path) -> None:
    """A directory without permission to write, and a path that is no directory, are each told apart."""
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        await expect_refusal(programs.govern(*ANYWHERE, "--data-dir", name), 1, f"cannot use the data directory {name}", "not a directory")
    (tmp_path / "locked").mkdir(mode=0o555)
    program = Program("nobody", [sys.executable, "-c", AS_NOBODY, *ANYWHERE, "--data-dir", "locked"], tmp_path, programs.environment())
    try:
        await expect_refusal(program, 1, "cannot use the data directory locked", "no permission")
    finally:
        program.process.kill()
    assert list((tmp_path / "locked").iterdir()) == []


# --- damage ---------------------------------------------------------------------------------------------------------------------------


async def register_persistent(registry: Registry, first: int, count: int) -> None:
    """Register instances that stay."""
    for number in range(first, first + count):
        async with registry.register("orders", port=1 + number, id=f"i{number:05}", ephemeral=False):
            pass


async def fill(node: NodeProgram) -> None:
    """Enough registrations for several log segments."""
    async with connect(node.address) as registry, trio.open_nursery() as nursery:
        for first in range(0, INSTANCES, INSTANCES // 30):
            nursery.start_soon(register_persistent, registry, first, INSTANCES // 30)


async def look_up_ids(node: NodeProgram) -> list[str]:
    """The ids of all instances that `fill` made."""
    async with connect(node.address) as registry:
        return [instance.id for instance in await registry.lookup("orders")]


async def test_damage_in_the_middle_of_the_log_is_refused_and_salvaged(programs: Programs, tmp_path: Path) -> None:
    """A node whose log is damaged before its end does not start, does not touch a file, and names --salvage. That sets the damaged part
    aside, says what it kept, and serves what came before the damage; the next start needs nothing more."""
    flags = ("--segment-bytes", str(SEGMENT_BYTES))
    node = await programs.node(*flags, data_dir="data")
    await fill(node)
    assert len(await look_up_ids(node)) == INSTANCES
    node.send(signal.SIGTERM)
    assert await node.wait_exit() == 0
    segments = sorted(path for path in (tmp_path / "data").iterdir() if path.stat().st_size == SEGMENT_BYTES)
    assert len(segments) >= 3, "the damage is to lie in a segment with others behind it"
    damage(segments[0])
    before = fingerprint(tmp_path / "data")
    for _ in range(2):
        await expect_refusal(programs.govern(*ANYWHERE, *flags, "--data-dir", "data"), 1, "data", "damage", "--salvage")
        assert fingerprint(tmp_path / "data") == before

    node = await programs.node(*flags, "--salvage", data_dir="data")
    kept = await look_up_ids(node)
    assert 0 < len(kept) < INSTANCES
    assert kept == sorted(set(kept))
    told = [line for line in node.err.splitlines() if line.startswith("govern: ")]
    assert len(told) >= 2, node.err
    assert any(".damaged" in line for line in told), told
    assert any(path.name.endswith(".damaged") for path in (tmp_path / "data").iterdir())
    async with connect(node.address) as registry:
        await register_persistent(registry, INSTANCES, 10)
    await node.kill()
    node = await programs.node(*flags, data_dir="data")
    assert len(await look_up_ids(node)) == len(kept) + 10


def damage(path: Path) -> None:
    """Flip some bytes in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(SEGMENT_BYTES // 2)
        data = file.read(16)
        file.seek(SEGMENT_BYTES // 2)
        file.write(bytes(byte ^ 0xFF for byte in data))
        os.fsync(file.fileno())
