"""The verbs against a living node: shapes, exit codes, help, and the program that `register` runs."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sys
import tomllib
from collections.abc import Sequence

import pytest
import trio

from govern import _version
from govern.actors.node import open_node
from govern.client import connect
from govern.config import key_names
from govern.model import LSN_ZERO, Instance, join_address

from .harness import NodeProgram, Program, Programs, free_port, wait_until

INSTANCE_FIELDS = set(Instance(id="i", host="h", port=1, lease_id=LSN_ZERO, lsn=LSN_ZERO).to_json())
STATUS_FIELDS = {"node_id", "cluster_id", "version", "role", "controller", "term", "table_version", "fresh", "mode", "sessions"}
STATUS_FIELDS |= {"instances", "services", "subscriptions", "loop_lag_ms", "fsync_ms", "brakes", "notices", "degraded"}
VERBS = (
    *("serve", "register", "lookup", "watch", "services", "status", "config", "drain", "evict", "explain"),
    *("nodes", "table", "members", "transfer", "reset", "forget", "recover"),
)


# --- help -----------------------------------------------------------------------------------------------------------------------------


async def test_help_fits_the_terminal_and_names_everything(programs: Programs) -> None:
    """`--help` names every verb, and the help of each verb every flag, in lines of at most 80 columns; exit code 0."""
    code, out, _ = await programs.run("--help")
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in VERBS)
    for said in await programs.each([(verb, "--help") for verb in VERBS]):
        assert said.code == 0
        assert said.out.startswith("usage: govern ")
        assert "%(" not in said.out
        if said.words[0] in ("register", "lookup", "watch"):
            assert "NAME" in said.out
        out += said.out
    assert max(map(len, out.splitlines())) <= 80


async def test_the_version_is_printed(programs: Programs) -> None:
    """`--version` prints the version of the package."""
    assert await programs.run("--version") == (0, f"govern {_version.VERSION}\n", "")


# --- looking ----------------------------------------------------------------------------------------------------------------------------


async def test_lookup_services_and_status_for_people_and_for_scripts(programs: Programs) -> None:
    """`--json` prints one value of the documented shape; without it columns come, empty cells as `-`, hostile text escaped."""
    node = await programs.node()
    async with connect(node.address) as registry, connect(node.address, namespace="prod") as prod:
        async with (
            registry.register("orders", port=8080, zone="a", version="2.1", weight=0.5, metadata={"colour": "blue\n\x1b[31m"}),
            registry.register("orders", port=8081),
            prod.register("orders", port=9090),
        ):
            asked = {
                "lookup json": "lookup orders --json",
                "lookup": "lookup orders",
                "lookup prod": "lookup orders --namespace prod",
                "services json": "services --json",
                "services prod": "services --namespace prod",
                "status json": "status --json",
                "status": "status",
            }
            told = await programs.each([[*words.split(), "--connect", node.address] for words in asked.values()])
    assert all((said.code, said.err) == (0, "") for said in told), told
    out = {name: said.out for name, said in zip(asked, told, strict=True)}

    instances = json.loads(out["lookup json"])
    assert [instance["id"] for instance in instances] == ["127.0.0.1:8080", "127.0.0.1:8081"]
    assert all(instance.keys() >= INSTANCE_FIELDS for instance in instances)
    assert instances[0]["metadata"] == {"colour": "blue\n\x1b[31m"}
    assert out["lookup"].splitlines() == [
        "ID              ADDRESS         STATUS  WEIGHT  ZONE  VERSION  METADATA",
        "127.0.0.1:8080  127.0.0.1:8080  up      0.5     a     2.1      colour=blue\\n\\x1b[31m",
        "127.0.0.1:8081  127.0.0.1:8081  up      1       -     -        -",
    ]
    assert [line.split()[0] for line in out["lookup prod"].splitlines()] == ["ID", "127.0.0.1:9090"]

    services = json.loads(out["services json"])
    assert [(each["namespace"], each["name"], each["instances"]) for each in services] == [("default", "orders", 2), ("prod", "orders", 1)]
    assert all(each.keys() >= {"namespace", "name", "slot", "instances"} for each in services)
    assert [line.split()[:2] for line in out["services prod"].splitlines()] == [["NAMESPACE", "NAME"], ["prod", "orders"]]

    status = json.loads(out["status json"])
    assert status.keys() >= STATUS_FIELDS
    assert (status["mode"], status["fresh"], status["instances"], status["services"], status["degraded"]) == ("memory", True, 3, 2, [])
    assert re.search(r"^instances +3$", out["status"], re.MULTILINE)


async def test_nothing_found_and_nobody_there_have_their_own_exit_codes(programs: Programs) -> None:
    """A lookup of nothing prints `[]` or one line and ends with 1; a bad name is wrong usage, 2; no registry is 3. Each is one line."""
    node = await programs.node()
    nobody = f"127.0.0.1:{free_port()}"
    assert (await programs.run("lookup", "orders", "--json", connect=node.address)) == (1, "[]\n", "")
    expected: list[tuple[Sequence[str], int, str]] = [
        (["lookup", "orders", "--connect", node.address], 1, "no instance of orders"),
        (["lookup", "bad name", "--connect", node.address], 2, "'bad name'"),
        (["lookup", "orders", "--namespace", "a/b", "--connect", node.address], 2, "'a/b'"),
        (["lookup", "--connect", node.address], 2, "NAME"),
        (["lookup", "orders", "--jsn"], 2, "did you mean --json?"),
        (["lookup", "orders", "again"], 2, "no place for 'again'"),
        (["watch", "orders", "--timeout", "soon"], 2, "'soon'"),
        (["register", "orders"], 2, "--port"),
        (["register", "orders", "--port", "0", "--connect", node.address], 2, "port 0"),
        (["register", "orders", "--port", "80", "--metadata", "x", "--connect", node.address], 2, "KEY=VALUE"),
        (["register", "orders", "--port", "80", "--version", "2"], 2, "did you mean --instance-version?"),
        (["register", "orders", "--port", "80", "--"], 2, "no command"),
        (["register", "orders", "--port", "70000", "--connect", node.address], 2, "port 70000"),
        (["register", "orders", "--port", "80", "--wait-port", "0", "--", "true"], 2, "more than 0 seconds"),
        (["register", "orders", "--port", "80", "--wait-port", "nan", "--", "true"], 2, "'nan'"),
        (["register", "orders", "--port", "80", "--wait-port", "5"], 2, "--wait-port"),
        (["register", "bad name", "--port", "80", "--wait-port", "5", "--connect", node.address, "--", "touch", "started"], 2, "bad name"),
        (["lookup", "orders", "--connect", nobody, "--timeout", "0.5"], 3, nobody),
        (["watch", "orders", "--connect", nobody, "--timeout", "0.5"], 3, nobody),
        (["services", "--connect", nobody, "--timeout", "0.5"], 3, nobody),
        (["status", "--connect", nobody, "--timeout", "0.5"], 3, nobody),
        (["register", "orders", "--port", "80", "--connect", nobody, "--timeout", "0.5", "--", "true"], 3, nobody),
    ]
    for said, (_, code, text) in zip(await programs.each([arguments for arguments, _, _ in expected]), expected, strict=True):
        assert (said.code, said.out, len(said.err.splitlines())) == (code, "", 1), said
        assert text in said.err
    assert not (programs.directory / "started").exists()


async def test_a_registry_that_never_answers_is_unreachable(programs: Programs) -> None:
    """A node that stands still lets a command end after its timeout with exit code 3 and one line."""
    node = await programs.node()
    node.send(signal.SIGSTOP)
    code, out, err = await programs.run("lookup", "orders", "--timeout", "1", connect=node.address)
    assert (code, out, len(err.splitlines())) == (3, "", 1)


async def test_status_is_a_health_check(programs: Programs) -> None:
    """Exit code 0 for a node that is ready and well, 1 for one that is loading or degraded, 3 for none. Every reason is printed, with
    units, in at most 80 columns, and nothing that a terminal would obey; `--json` is what the node said."""
    reasons = ["the last fsync took 2345 ms: the disk is slow, and this sentence is far too long for one line", "and \x1b[31m"]
    states: list[tuple[dict[str, object], int]] = [
        ({}, 0),
        ({"notices": ["2 voters survive no more losses than 1: use 1 or 3"]}, 0),
        ({"fresh": False, "degraded": ["loading"]}, 1),
        ({"fresh": False}, 1),
        ({"degraded": reasons, "fsync_ms": 2345.0, "loop_lag_ms": 0.25, "brakes": ["expiry is held"]}, 1),
    ]
    async with open_node() as node:
        asked = []
        for changes, code in states:
            node._clients._dispatch._status = lambda changes=changes: node.status() | changes  # type: ignore[misc]
            kinds = ([], ["--json"]) if changes is states[-1][0] else ([],)
            running = [programs.govern("status", *flags, connect=join_address(*node.address)) for flags in kinds]
            for program in running:
                assert await program.wait_exit() == code, program.err
                assert program.err == ""
            asked.append(running)
    assert json.loads(asked[-1][1].out).items() >= states[-1][0].items()
    assert re.search(r"^degraded +loading$", asked[2][0].out, re.MULTILINE)
    assert re.search(r"^notices +2 voters survive no more losses than 1: use 1 or 3$", asked[1][0].out, re.MULTILINE)
    assert re.search(r"^brakes +none$", asked[1][0].out, re.MULTILINE)
    out = asked[-1][0].out
    for row in ("fsync +2.3 s", "loop lag +0.2 ms", "brakes +expiry is held", "degraded +the last fsync .*", " +and \\\\x1b\\[31m"):
        assert re.search(f"^{row}$", out, re.MULTILINE), (row, out)
    assert max(map(len, out.splitlines())) <= 80
    assert " ".join(out.split()).find(reasons[0]) > 0


async def test_config_shows_every_key_with_its_origin(programs: Programs) -> None:
    """`config` prints, in at most 80 columns, a file that configures the same; behind each value stands where it came from. `--json`
    carries the same. A wrong value is one line and exit code 2."""
    text = 'node_id = 5\ndata_dir = "/nowhere \\u00e9 \\u001b"\nlog_level = "debug"\n'
    (programs.directory / "govern.toml").write_text(text)
    variables = {"GOVERN_CONFIG": "govern.toml", "GOVERN_LOG_LEVEL": "error", "GOVERN_SESSIONS_MAX": "9", "GOVERN_PORT": "tcp://1.2.3.4:5"}
    asked = [programs.govern("config", *flags, "--sessions-max", "8", variables=variables) for flags in ([], ["--json"])]
    wrong = programs.govern("config", variables=variables | {"GOVERN_SESSIONS_MAX": "many"})
    for program in asked:
        assert await program.wait_exit() == 0
        assert program.err == "govern: the variable GOVERN_PORT is not a configuration key and is ignored\n"
    people, script = (program.out for program in asked)
    rows = json.loads(script)
    assert [row["key"] for row in rows] == list(key_names())
    assert all(row.keys() == {"key", "value", "origin", "default", "doc"} for row in rows)
    changed = {row["key"]: (row["value"], row["origin"]) for row in rows if row["origin"] != "default"}
    assert changed == {
        "node_id": (5, "govern.toml"),
        "data_dir": ("/nowhere \u00e9 \x1b", "govern.toml"),
        "log_level": ("error", "GOVERN_LOG_LEVEL"),
        "sessions_max": (8, "--sessions-max"),
    }
    assert next(row["value"] for row in rows if row["key"] == "listen") == "127.0.0.1:7400"
    assert tomllib.loads(people) == {row["key"]: row["value"] for row in rows}
    assert "node_id = 5  # govern.toml\n" in people
    assert 'listen = "127.0.0.1:7400"  # default\n' in people
    assert max(map(len, people.splitlines())) <= 80
    assert "\x1b" not in people
    assert await wrong.wait_exit() == 2
    assert (wrong.out, wrong.err) == ("", "govern: GOVERN_SESSIONS_MAX: sessions_max = 'many' is not usable: give a whole number\n")


# --- watching ---------------------------------------------------------------------------------------------------------------------------


def read_changes(program: Program) -> list[dict[str, object]]:
    return [json.loads(line) for line in program.out.splitlines(keepends=True) if line.endswith("\n")]


async def test_watch_shows_the_view_then_each_change_and_outlives_its_node(programs: Programs) -> None:
    """`watch` prints the full view and each change at once, tells when it may be out of date and when it is current again, and
    ends with 0 on Ctrl-C."""
    port = free_port()
    node = await programs.node(port=port, data_dir="data")
    async with connect(node.address) as registry, registry.register("orders", port=1):
        watch, people = (
            programs.govern("watch", "orders", "--json", connect=node.address),
            programs.govern("watch", "orders", connect=node.address),
        )
        await watch.wait_out("\n")
        await people.wait_out("\n")
        async with registry.register("orders", port=2) as second:
            await second.update(weight=0.25)
        await wait_until(lambda: "- 127.0.0.1:2" in people.out, "the removal")
        await wait_until(lambda: any(change["removed"] for change in read_changes(watch)), "the removal")
        node.send(signal.SIGTERM)
        await wait_until(lambda: read_changes(watch)[-1]["stale"], "the view to be stale")
        await people.wait_out("?")
        node = await programs.node(port=port, data_dir="data")
        await wait_until(lambda: not read_changes(watch)[-1]["stale"], "the view to be current")
        await people.wait_out("!")
        watch.send(signal.SIGINT)
        people.send(signal.SIGTERM)
        assert [await watch.wait_exit(), await people.wait_exit()] == [0, 0]
    assert (watch.err, people.err) == ("", "")
    changes = read_changes(watch)
    keys = {"namespace", "service", "lsn", "full", "added", "updated", "removed", "stale"}
    assert all(change.keys() == keys and change["service"] == "orders" and len(change["lsn"]) == 2 for change in changes)  # type: ignore[arg-type]
    assert [change["full"] for change in changes] == [True] + [False] * (len(changes) - 1)
    assert [each["port"] for each in changes[0]["added"]] == [1]  # type: ignore[attr-defined]
    assert [each["port"] for change in changes[1:] for each in change["added"]] == [2]  # type: ignore[attr-defined]
    assert [each for change in changes for each in change["removed"]] == ["127.0.0.1:2"]  # type: ignore[attr-defined]
    lines = people.out.splitlines()
    assert lines[:2] == ["orders has 1 instance", "+ 127.0.0.1:1  up"]
    assert "- 127.0.0.1:2" in lines


async def test_watch_ends_when_nobody_reads_any_more(programs: Programs) -> None:
    """When the other end of the pipe is closed `watch` ends by itself, at once and without a word, also when nothing changes."""
    node = await programs.node()
    watch = programs.govern("watch", "orders", "--json", connect=node.address, stdout=-1)
    stdout = watch.process.stdout
    assert stdout is not None
    assert json.loads(await trio.to_thread.run_sync(stdout.readline))["full"]
    stdout.close()
    assert await watch.wait_exit() == 0
    assert watch.err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is there on Linux only")
async def test_a_result_that_cannot_be_written_is_an_error_and_no_reason_for_a_node_to_end(programs: Programs) -> None:
    """A verb whose output cannot be written ends with 1 and one line; a node whose ready line nobody can read serves on."""
    port = free_port()
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        node = programs.govern("--listen", f"127.0.0.1:{port}", "--data-dir", "", stdout=full)
        await wait_until(lambda: "ready line could not be printed" in node.err, "the warning")
        status = programs.govern("status", "--json", connect=f"127.0.0.1:{port}", stdout=full)
        assert await status.wait_exit() == 1
    finally:
        os.close(full)
    assert status.err == "govern: cannot write to stdout: No space left on device\n"
    assert node.process.poll() is None


# --- registering ------------------------------------------------------------------------------------------------------------------------

CHILD = """
import signal, sys, time
def note(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(5)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, note)
print("child ready", flush=True)
while True:
    signal.pause()
"""


def register_child(programs: Programs, node: NodeProgram, *flags: str) -> Program:
    """`register` around a program that tells which signals it got, and ends with 5 on SIGTERM."""
    return programs.govern("register", "orders", "--port", "8080", *flags, "--", sys.executable, "-c", CHILD, connect=node.address)


async def look_up(node: NodeProgram, name: str = "orders") -> list[Instance]:
    async with connect(node.address) as registry:
        return list(await registry.lookup(name))


async def test_a_command_is_registered_while_it_runs(programs: Programs) -> None:
    """The instance is there with all it was given before the command runs; signals reach the command once each; its exit code is that of
    `register`; and when it has ended nothing is left."""
    node = await programs.node()
    flags = ["--host", "10.0.0.9", "--id", "one", "--protocol", "http", "--weight", "0.5", "--zone", "a", "--instance-version", "2.1"]
    flags += ["--metadata", "colour=blue", "--metadata", "empty=", "--ttl", "7", "--namespace", "default"]
    program = register_child(programs, node, *flags)
    await program.wait_out("child ready")
    (instance,) = await look_up(node)
    assert (instance.id, instance.address, instance.protocol) == ("one", "10.0.0.9:8080", "http")
    assert (instance.weight, instance.zone, instance.version, instance.ttl) == (0.5, "a", "2.1", 7.0)
    assert (instance.metadata, instance.ephemeral) == ({"colour": "blue", "empty": ""}, True)
    program.send(signal.SIGHUP)
    await program.wait_out("SIGHUP")
    program.send(signal.SIGINT)
    await program.wait_out("SIGINT")
    program.send(signal.SIGTERM)
    assert await program.wait_exit() == 5
    assert program.out.splitlines() == ["child ready", "got SIGHUP", "got SIGINT", "got SIGTERM"]
    assert program.err == ""
    assert await look_up(node) == []


async def test_a_command_ends_register_with_its_exit_code(programs: Programs) -> None:
    """Exit codes come through, a signal n as 128 + n; a command that cannot be started is one line and exit code 1, and never replaces an
    instance that is there."""
    node = await programs.node()
    async with connect(node.address) as registry, registry.register("orders", port=8080) as registration:
        start = ("register", "orders", "--port")
        code, _, err = await programs.run(*start, "8080", "--", "./absent", connect=node.address)
        assert (code, err.count("\n")) == (1, 1)
        assert "cannot run ./absent" in err
        assert registration.lost is None
        assert (await programs.run(*start, "1", "--", "sh", "-c", "exit 7", connect=node.address))[0] == 7
        assert (await programs.run(*start, "1", "--", "sh", "-c", "kill -9 $$", connect=node.address))[0] == 128 + 9
        (programs.directory / "not-a-program").write_bytes(b"\x7fELF broken")
        (programs.directory / "not-a-program").chmod(0o755)
        code, _, err = await programs.run(*start, "1", "--", "./not-a-program", connect=node.address)
        assert (code, err.count("\n")) == (1, 1)
        assert await look_up(node) == [registration.instance] or [each.port for each in await look_up(node)] == [8080]


async def test_a_command_outlives_the_registry_and_the_loss_of_its_registration(programs: Programs) -> None:
    """While the registry is away the command runs on, and it is registered again when the registry is back; when another client takes the
    id, one line says so and the command runs on."""
    port = free_port()
    node = await programs.node(port=port)  # in memory: after the restart it knows nobody
    program = register_child(programs, node)
    await program.wait_out("child ready")
    await node.kill()
    node = await programs.node(port=port)
    async with connect(node.address) as registry, registry.subscribe("orders") as view:
        await wait_until(lambda: len(view.instances) == 1, "the registration to come back")
        async with registry.register("orders", port=8080):
            await wait_until(lambda: program.err, "the news of the loss")
            assert len(program.err.splitlines()) == 1
            assert "superseded" in program.err
            assert "the program goes on" in program.err
            program.send(signal.SIGTERM)
            assert await program.wait_exit() == 5
            assert len(view.instances) == 1  # the other one's


LISTENER = """
import os, pathlib, signal, socket, sys, time
def end(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    if "stubborn" not in sys.argv:
        sys.exit(5)
signal.signal(signal.SIGTERM, end)
print("child ready", os.getpid(), flush=True)
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.02)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    time.sleep(1)
"""
IMPATIENT = "import sys, govern.cli.register as r, govern.cli.parser as p; r.END_SECONDS = 0.2; sys.exit(p.run(sys.argv[1:]))"


def register_listener(programs: Programs, node: NodeProgram, seconds: str, port: int, gate: str, *words: str) -> Program:
    """`register --wait-port` around a program that listens once a file of that name is there."""
    flags = ("--port", str(port), "--wait-port", seconds, "--timeout", "1", "--connect", node.address)
    return programs.govern("register", "orders", *flags, "--", sys.executable, "-c", LISTENER, str(port), gate, *words)


async def test_wait_port_registers_what_listens(programs: Programs) -> None:
    """A command is registered when its port accepts connections and not before; signals reach it while it is waited for, too."""
    node, port = await programs.node(), free_port()
    program = register_listener(programs, node, "30", port, "gate")
    signalled = register_listener(programs, node, "30", port, "never")
    await program.wait_out("child ready")
    await signalled.wait_out("child ready")
    signalled.send(signal.SIGTERM)
    assert await signalled.wait_exit() == 5
    assert "got SIGTERM" in signalled.out
    assert await look_up(node) == []
    (programs.directory / "gate").touch()
    async with connect(node.address) as registry, registry.subscribe("orders") as view:
        await wait_until(lambda: view.instances, "the registration")
        assert "listening" in program.out
        assert [each.address for each in view.instances] == [f"127.0.0.1:{port}"]
        program.send(signal.SIGTERM)
        assert await program.wait_exit() == 5
        await wait_until(lambda: not view.instances, "the end of the registration")
    assert program.err == ""


async def test_a_start_that_fails_leaves_no_program_behind(programs: Programs) -> None:
    """When its port does not open in time, or the registry is gone by then, the program is ended, if need be by force; when it ends first,
    its exit code counts, and 0 is no success. Each is one line."""
    node, other, port = await programs.node(), await programs.node(), free_port()
    silent = register_listener(programs, node, "0.5", 1, "never")
    orphan = register_listener(programs, other, "30", port, "gate")
    (programs.directory / "impatient.py").write_text(IMPATIENT)
    wait = ("register", "orders", "--connect", node.address, "--port")
    stubborn = programs.start("impatient", *wait, "2", "--wait-port", "0.5", "--", sys.executable, "-c", LISTENER, "2", "never", "stubborn")
    seven, zero, absent = (
        programs.govern(*wait, "3", "--wait-port", "30", "--", *command)
        for command in (["sh", "-c", "exit 7"], ["sh", "-c", "exit 0"], ["./absent"])
    )
    await orphan.wait_out("child ready")
    await other.kill()
    (programs.directory / "gate").touch()
    expected = [
        (silent, 1, "port 1 of 127.0.0.1 did not open within 0.5 s (connection refused)"),
        (stubborn, 1, "is ended"),
        (orphan, 3, "is ended"),
        (seven, 7, "sh ended with exit code 7 before its port 3 was open; nothing was registered"),
        (zero, 1, "ended with exit code 0"),
        (absent, 1, "no such program"),
    ]
    for program, code, text in expected:
        assert await program.wait_exit() == code, program.err
        assert len(program.err.splitlines()) == 1, program.err
        assert text in program.err
    for program in (silent, stubborn, orphan):
        assert program.out.splitlines()[-1] == "got SIGTERM"
        child = int(program.out.splitlines()[0].rpartition(" ")[2])
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert await look_up(node) == []


async def test_without_a_command_a_registration_lasts_until_it_is_ended(programs: Programs) -> None:
    """`register` alone keeps the instance until Ctrl-C and ends with 0; with --persistent it ends at once and the instance stays; when
    another client takes the id it ends with 1."""
    node = await programs.node()
    start = ("register", "orders", "--port")
    ending, losing = programs.govern(*start, "1", connect=node.address), programs.govern(*start, "2", connect=node.address)
    code, out, err = await programs.run(*start, "3", "--persistent", connect=node.address)
    assert (code, out, err.count("\n")) == (0, "", 1)
    for program in (ending, losing):
        await wait_until(lambda program=program: "is registered" in program.err, "the registration")  # type: ignore[misc]
    assert [each.port for each in await look_up(node)] == [1, 2, 3]
    async with connect(node.address) as registry, registry.register("orders", port=2):
        assert await losing.wait_exit() == 1
        assert "superseded" in losing.err.splitlines()[-1]
    ending.send(signal.SIGINT)
    assert await ending.wait_exit() == 0
    assert [each.port for each in await look_up(node)] == [3]


async def test_ctrl_c_of_a_terminal_reaches_the_command_once(programs: Programs) -> None:
    """A terminal sends Ctrl-C to `register` and to the command alike, so it is not passed on a second time."""
    node = await programs.node()
    master, slave = pty.openpty()
    try:
        starter = "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        verb = ("-m", "govern", "register", "orders", "--port", "8080", "--connect", node.address, "--", sys.executable, "-c", CHILD)
        program = Program(
            "terminal", [sys.executable, "-c", starter, sys.executable, *verb], programs.directory, programs.environment(), stdin=slave
        )
        try:
            await program.wait_out("child ready")
            os.write(master, b"\x03")
            await program.wait_out("got SIGINT")
            program.send(signal.SIGTERM)
            assert await program.wait_exit() == 5
            assert program.out.splitlines() == ["child ready", "got SIGINT", "got SIGTERM"]
        finally:
            program.process.kill()
            program.process.wait()
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which signals a process handles")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_command_that_waits_ends_by_a_signal_without_a_traceback(programs: Programs, number: signal.Signals) -> None:
    """A signal ends a lookup that waits for a registry with 128 + n and without a word."""
    program = programs.govern("lookup", "orders", "--timeout", "inf", "--connect", f"127.0.0.1:{free_port()}")
    await wait_until(lambda: is_catching(program), "the signal to be caught")
    program.send(number)
    assert await program.wait_exit() == 128 + number
    assert (program.out, program.err) == ("", "")


def is_catching(program: Program) -> bool:
    """Whether a process has a handler for SIGTERM by now."""
    with open(f"/proc/{program.process.pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)
