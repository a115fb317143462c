"""The floors of the house: who may import whom, and who may touch the machine.

The rules are data below; each is also shown to catch a small bad example, so that a rule that no longer sees anything fails here.

    core      plain rules: model, messages, errors and itself; no trio, no clock, no chance, no machine
    client    never actors: a client runs without a node in its process
    machine   sockets, files, clocks, chance and threads are behind the doors of `environment.py`; the simulated twins may only build
              seeded generators; the command line may look at its process
    trio      its private names belong to `testing/scheduler.py`
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = ROOT / "govern"
MODULES: Final = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))

CORE_MAY_IMPORT: Final = (
    "govern.model",
    "govern.messages",
    "govern.peer_messages",
    "govern.errors",
    "govern.core",
    "attrs",
    "msgpack",
    "sortedcontainers",
)
NOT_FOR_CORE: Final = frozenset(("asyncio", "contextvars", "ctypes", "logging", "pathlib", "shutil", "subprocess", "sys", "tempfile"))
LOWER_FLOORS: Final = {  # floor: what it must never import
    "govern/model.py": ("govern.messages", "govern.core", "govern.actors", "govern.net", "govern.storage", "govern.client", "govern.cli"),
    "govern/messages.py": ("govern.core", "govern.actors", "govern.net", "govern.storage", "govern.client", "govern.cli"),
    "govern/wire.py": ("govern.messages", "govern.peer_messages", "govern.model", "govern.core"),
    "govern/net/": ("govern.core", "govern.actors", "govern.storage", "govern.client", "govern.cli", "govern.environment"),
    "govern/storage/": ("govern.actors", "govern.net", "govern.client", "govern.cli"),
    "govern/client/": ("govern.actors", "govern.storage", "govern.cli"),
    "govern/actors/": ("govern.client", "govern.cli", "govern.testing"),
}
MACHINE: Final = frozenset(
    [
        *("asyncio", "ctypes", "fcntl", "mmap", "multiprocessing", "os", "random", "resource", "secrets", "select", "selectors"),
        *("shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "uuid"),
    ]
)
MACHINE_ALLOWED: Final = {  # a path, or the start of one: which modules of the machine it may use
    "govern/net/tcp.py": ("select", "selectors", "socket", "ssl", "os"),
    "govern/storage/files.py": ("fcntl", "os", "sys", "threading"),
    "govern/environment.py": ("random", "time"),
    "govern/cli/": ("os", "resource", "select", "shutil", "signal", "socket", "subprocess", "sys"),
    "govern/__main__.py": ("os", "signal", "sys"),
    "govern/client/where.py": ("os",),  # GOVERN_CONNECT, and nothing else of it
}
SEEDED_ONLY: Final = ("govern/net/sim.py", "govern/net/sim_faults.py", "govern/net/sim_link.py", "govern/storage/sim.py", "govern/testing/")
MACHINE_CALLS: Final = {  # names that reach for the machine without importing it: where they are allowed
    "datetime.now": (),
    "datetime.utcnow": (),
    "date.today": (),
    "trio.to_thread": ("govern/storage/files.py",),
    "trio.from_thread": ("govern/storage/files.py",),
    "trio.open_file": ("govern/storage/files.py",),
    "trio.Path": ("govern/storage/files.py",),
    "trio.open_tcp_stream": ("govern/net/tcp.py",),
    "trio.serve_tcp": (),
    "trio.socket": ("govern/net/tcp.py",),
    "trio.run_process": ("govern/cli/",),
    "trio.lowlevel.open_process": ("govern/cli/",),
    "trio.open_signal_receiver": ("govern/cli/",),
}


def allowed(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    head = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{head}.{node.attr}" if head and isinstance(node, ast.Attribute) else ""


def imported(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported: relative names resolved, each imported name with its module before it."""
    parts = path.removesuffix(".py").split("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def inside(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def find_core_imports(path: str, tree: ast.Module) -> Iterator[str]:
    """Core imports the lower floors, three libraries and the harmless part of the standard library."""
    if not path.startswith("govern/core/"):
        return
    for line, name in imported(path, tree):
        top = name.partition(".")[0]
        harmless = top in sys.stdlib_module_names and top not in MACHINE | NOT_FOR_CORE
        if not harmless and not any(inside(name, module) for module in CORE_MAY_IMPORT):
            yield f"{path}:{line} core must not import {name}"


def find_upward_imports(path: str, tree: ast.Module) -> Iterator[str]:
    """A floor imports from below."""
    for floor, forbidden in LOWER_FLOORS.items():
        if allowed(path, (floor,)):
            for line, name in imported(path, tree):
                if any(inside(name, module) for module in forbidden):
                    yield f"{path}:{line} must not import {name}: it lies on another floor"


def find_machine(path: str, tree: ast.Module) -> Iterator[str]:
    """Only the doors touch the machine."""
    for line, name in imported(path, tree):
        top = name.partition(".")[0]
        if top not in MACHINE or (top == "random" and allowed(path, SEEDED_ONLY)):
            continue
        if not any(allowed(path, (place,)) and top in modules for place, modules in MACHINE_ALLOWED.items()):
            yield f"{path}:{line} must not import {name}: take it from the environment (govern/environment.py)"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used = dotted(node)
            for name, places in MACHINE_CALLS.items():
                if (used == name or used.endswith("." + name)) and not allowed(path, places):
                    yield f"{path}:{node.lineno} must not use {used}: take it from the environment (govern/environment.py)"


def find_unseeded_chance(path: str, tree: ast.Module) -> Iterator[str]:
    """In a simulated twin chance is `random.Random(seed)`, never the generator of the process or of the machine."""
    if not allowed(path, SEEDED_ONLY):
        return
    types = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args}
    annotations = {
        id(part)
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
        for part in ast.walk(annotation)
    }
    for line, name in imported(path, tree):
        if inside(name, "random") and name != "random":
            yield f"{path}:{line} import random itself, so that its use can be seen"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not dotted(node).startswith("random."):
            continue
        seeded = dotted(node) == "random.Random" and (id(node) in types or id(node) in annotations)
        if not seeded:
            yield f"{path}:{node.lineno} only random.Random(seed) is repeatable, not {dotted(node)}"


def find_private_trio(path: str, tree: ast.Module) -> Iterator[str]:
    """Private names of trio are touched in one file, so that a new trio breaks one file."""
    if path == "govern/testing/scheduler.py":
        return
    for line, name in imported(path, tree):
        if inside(name, "trio") and any(part.startswith("_") for part in name.split(".")):
            yield f"{path}:{line} must not import {name}: private names of trio belong to govern/testing/scheduler.py"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and inside(dotted(node), "trio")
            and any(part.startswith("_") for part in dotted(node).split("."))
        ):
            yield f"{path}:{node.lineno} must not use {dotted(node)}: private names of trio belong to govern/testing/scheduler.py"


RULES: Final = (find_core_imports, find_upward_imports, find_machine, find_unseeded_chance, find_private_trio)

BAD_EXAMPLES: Final = (
    (find_core_imports, "govern/core/bad.py", "import trio"),
    (find_core_imports, "govern/core/bad.py", "from time import monotonic"),
    (find_core_imports, "govern/core/bad.py", "from ..net.frames import FrameReader"),
    (find_core_imports, "govern/core/bad.py", "def late():\n    import random"),
    (find_core_imports, "govern/core/raft/bad.py", "from ...environment import Clock"),
    (find_upward_imports, "govern/client/bad.py", "from ..actors import node"),
    (find_upward_imports, "govern/client/bad.py", "import govern.actors.node"),
    (find_upward_imports, "govern/net/tcp.py", "from ..environment import Network"),
    (find_upward_imports, "govern/actors/bad.py", "from .. import client"),
    (find_machine, "govern/actors/bad.py", "import socket"),
    (find_machine, "govern/actors/bad.py", "from random import random"),
    (find_machine, "govern/client/where.py", "import time"),
    (find_machine, "govern/net/sim.py", "import time"),
    (find_machine, "govern/model.py", "import datetime\nnow = datetime.datetime.now()"),
    (find_machine, "govern/actors/bad.py", "import trio\nasync def f():\n    await trio.to_thread.run_sync(print)"),
    (find_machine, "govern/client/bad.py", "import trio\nasync def f():\n    await trio.open_tcp_stream('a', 1)"),
    (find_unseeded_chance, "govern/net/sim.py", "import random\nrandom.random()"),
    (find_unseeded_chance, "govern/net/sim.py", "import random\nchance = random.Random()"),
    (find_unseeded_chance, "govern/storage/sim.py", "from random import Random"),
    (find_private_trio, "govern/actors/bad.py", "from trio._core import _run"),
    (find_private_trio, "govern/actors/bad.py", "import trio\ntrio._core._run._r.seed(1)"),
)

GOOD_EXAMPLES: Final = (
    ("govern/core/good.py", "import binascii, hashlib, attrs\nfrom ..model import Lsn\nfrom .slots import slot_of"),
    ("govern/client/good.py", "import trio\nfrom ..net.frames import FrameReader\nfrom ..core.digests import lease_digest"),
    ("govern/net/sim.py", "import random\ndef f(chance: random.Random) -> random.Random:\n    return random.Random('seed/name')"),
    ("govern/environment.py", "import random, time\nfrom .net.tcp import TcpNetwork"),
)


def test_floors() -> None:
    """No module of the package breaks a rule."""
    trees = {path: ast.parse((ROOT / path).read_text()) for path in MODULES}
    assert [problem for rule in RULES for path, tree in trees.items() for problem in rule(path, tree)] == []


@pytest.mark.parametrize(("rule", "path", "source"), BAD_EXAMPLES)
def test_each_rule_catches_its_bad_example(rule: object, path: str, source: str) -> None:
    """A rule that has gone blind fails here."""
    assert callable(rule)
    assert list(rule(path, ast.parse(source))) != []


@pytest.mark.parametrize(("path", "source"), GOOD_EXAMPLES)
def test_what_is_meant_is_allowed(path: str, source: str) -> None:
    """Ordinary modules of each floor break no rule."""
    assert [problem for rule in RULES for problem in rule(path, ast.parse(source))] == []


def test_the_package_is_seen() -> None:
    """The rules read the real tree: the modules of which they speak exist."""
    for path in ("govern/core/slots.py", "govern/net/tcp.py", "govern/storage/files.py", "govern/testing/scheduler.py"):
        assert path in MODULES
