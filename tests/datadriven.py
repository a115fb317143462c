"""Transcripts: text files that say what is done and, below each doing, what comes of it.

    # Anything before a command may be explained.
    register who=a id=i1 tags=(x, y) quiet
    any lines of a body
    ----
    a: Registered lease 1/1

A file is a list of cases. A case is a command line, the lines of a body, `----`, and the expected output up to the next blank line or
the end of the file. Output that has blank lines of its own stands between two pairs of `----`:

    show
    ----
    ----
    first paragraph

    second paragraph
    ----
    ----

The command line is words: the command, then arguments. `key=value` and `key=(one, two)` become `{"key": ["value"]}` and
`{"key": ["one", "two"]}`, a bare word becomes `{"word": []}`; they keep their order. Lines are compared without blanks at their ends.

T1  Every case is run, in the order of the file, by one handler; its state is what makes a file a story.
T2  A wrong expectation fails with the difference, for all cases of the file at once. With `rewrite` the outputs in the file are replaced
    and nothing else of it is touched.
T3  What is no transcript is refused, with its file and line: a mistake in a file must not become a test that tests nothing.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

DATA: Final = Path(__file__).parent / "data"
SEPARATOR: Final = "----"

Handler = Callable[[str, dict[str, list[str]], str], str]
"""Carries out one case: the command, its arguments, its body. Returns what comes of it."""

_argument = re.compile(r"\s*([^\s=()]+)(?:=(\(([^()]*)\)|[^\s()]*))?(?=\s|$)")


@attrs.frozen
class Case:
    """One command and what is expected of it."""

    line: int
    source: tuple[str, ...]
    """What stands in the file up to the separator: comments, command and body."""
    text: str
    """The command line as it stands there."""
    command: str
    args: dict[str, list[str]]
    body: str
    expected: str


def transcripts(directory: str) -> list[Path]:
    """The transcripts directly in `tests/data/<directory>`, for `parametrize`. Call it with a plain string: a test looks for these calls
    to find transcripts that nobody runs."""
    found = sorted((DATA / directory).glob("*.txt"))
    assert found, f"there are no transcripts in {DATA / directory}"
    return found


def run_file(path: Path, handler: Handler, rewrite: bool) -> None:
    """Run a transcript (T1, T2). Raises `AssertionError` for a wrong expectation, `ValueError` for what is no transcript, and whatever the
    handler raises, with a note of the place."""
    text = path.read_text(encoding="utf-8")
    cases, rest = parse(text, str(path))
    outputs = [_carry_out(case, handler, path) for case in cases]
    if rewrite:
        fresh = render(cases, outputs, rest)
        if fresh != text:
            path.write_text(fresh, encoding="utf-8")
        return
    wrong = [
        f"{path}:{case.line}: {case.text}\n{_difference(case.expected, output)}"
        for case, output in zip(cases, outputs, strict=True)
        if case.expected != output
    ]
    assert not wrong, "\n".join([*wrong, "(- expected, + what came; if it is meant: pytest --rewrite, and read the difference)"])


def _carry_out(case: Case, handler: Handler, path: Path) -> str:
    try:
        output = handler(case.command, case.args, case.body)
    except Exception as error:
        error.add_note(f"at {path}:{case.line}")
        raise
    return "\n".join(line.rstrip() for line in output.strip("\n").split("\n"))


def _difference(expected: str, output: str) -> str:
    return "\n".join("  " + line for line in difflib.ndiff(expected.split("\n"), output.split("\n")) if not line.startswith("?"))


# --- reading ----------------------------------------------------------------------------------------------------------------


def parse(text: str, name: str = "transcript") -> tuple[list[Case], list[str]]:
    """The cases of a transcript, and the lines after the last one; raises `ValueError` (T3)."""
    lines = [line.rstrip() for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    cases: list[Case] = []
    at = 0
    while True:
        start = at
        while at < len(lines) and (not lines[at] or lines[at].startswith("#")):
            at += 1
        if at == len(lines):
            break
        begin = at
        while at < len(lines) and lines[at] not in (SEPARATOR, ""):
            at += 1
        if at == begin or lines[at : at + 1] != [SEPARATOR]:
            raise ValueError(f"{name}:{begin + 1}: a case is a command, a body without empty lines, and a line {SEPARATOR}")
        command, args = _parse_command(lines[begin], f"{name}:{begin + 1}")
        body = "\n".join(lines[begin + 1 : at])
        expected, end = _parse_expected(lines, at + 1, name)
        cases.append(Case(begin + 1, tuple(lines[start:at]), lines[begin], command, args, body, expected))
        at = end
    if not cases:
        raise ValueError(f"{name}: there is no case in it")
    return cases, lines[start:]


def _parse_expected(lines: list[str], at: int, name: str) -> tuple[str, int]:
    """The expected output that begins at a line, and where it ends."""
    if lines[at : at + 1] != [SEPARATOR]:
        end = at
        while end < len(lines) and lines[end]:
            end += 1
        return "\n".join(lines[at:end]), end
    for end in range(at + 1, len(lines) - 1):
        if lines[end] == lines[end + 1] == SEPARATOR:
            return "\n".join(lines[at + 1 : end]), end + 2
    raise ValueError(f"{name}:{at + 1}: output between pairs of {SEPARATOR} has no end")


def _parse_command(line: str, where: str) -> tuple[str, dict[str, list[str]]]:
    command, _, rest = line.partition(" ")
    args: dict[str, list[str]] = {}
    at = 0
    while rest[at:].strip():
        found = _argument.match(rest, at)
        if found is None:
            raise ValueError(f"{where}: these are no arguments: {rest[at:]!r}; use key=value, key=(one, two) or a word")
        key, value, many = found.groups()
        if key in args:
            raise ValueError(f"{where}: the argument {key} is there twice")
        if many is not None:
            args[key] = [each.strip() for each in many.split(",")] if many.strip() else []
        else:
            args[key] = [] if value is None else [value]
        at = found.end()
    return command, args


# --- writing ----------------------------------------------------------------------------------------------------------------


def render(cases: list[Case], outputs: list[str], rest: list[str]) -> str:
    """The text of a transcript, with these outputs."""
    lines: list[str] = []
    for case, output in zip(cases, outputs, strict=True):
        lines += [*case.source, SEPARATOR]
        wanted = output.split("\n") if output else []
        if "" in wanted or SEPARATOR in wanted:
            assert all(pair != (SEPARATOR, SEPARATOR) for pair in itertools.pairwise(wanted)), "output has the end mark in it"
            wanted = [SEPARATOR, *wanted, SEPARATOR, SEPARATOR]
        lines += wanted
    return "\n".join([*lines, *rest]) + "\n"
