"""Many command lines at once: `python -m tests.process.each '[["lookup", "orders"], ["status"]]'`.

Each runs in a process of its own, as `python -m govern` would run it: its own exit code, stdout and stderr. But Python is started and
everything imported once, for all of them; that is most of what a verb costs. The last line on stdout has the exit codes; command N writes
to `N.out` and `N.err` in the working directory.
"""

from __future__ import annotations

import json
import os
import sys

import govern.cli.parser  # noqa: F401 - before there are children, so that none of them has to
from govern.__main__ import main


def run_as(number: int, arguments: list[str]) -> int:
    """What a child does."""
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["govern", *arguments]
    return main()


def run_all(commands: list[list[str]]) -> list[int]:
    """What their parent does; the exit codes."""
    children = []
    for number, arguments in enumerate(commands):
        child = os.fork()
        if child == 0:
            sys.exit(run_as(number, arguments))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    print(json.dumps(run_all(json.loads(sys.argv[1]))))
