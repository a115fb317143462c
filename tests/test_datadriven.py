"""Transcripts are read as they are meant, a wrong one fails, `--rewrite` mends it, and none lies there that nobody runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .datadriven import DATA, parse, run_file

GOOD = """\
# Counting.
add n=1 to=(a, b)
----
a=1 b=1

add n=2 to=(b) quiet
one line
and another
----
b=3
one line
and another

# Nothing comes of this one.
add n=0
----

show
----
----
a=1

b=3
----
----

# The end.
"""


class Counter:
    """A handler with a state."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def __call__(self, command: str, args: dict[str, list[str]], body: str) -> str:
        if command == "show":
            return "\n\n".join(f"{name}={count}" for name, count in self.counts.items())
        assert command == "add", command
        (number,) = args["n"]
        names = args.get("to", [])
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + int(number)
        return "\n".join([" ".join(f"{name}={self.counts[name]}" for name in names) + "  ", *body.splitlines()])


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "counter.txt"
    path.write_text(text)
    return path


def test_what_is_true_passes_and_stays(tmp_path: Path) -> None:
    """Compared and written afresh, not a byte of a good file changes."""
    path = write(tmp_path, GOOD)
    run_file(path, Counter(), rewrite=False)
    run_file(path, Counter(), rewrite=True)
    assert path.read_text() == GOOD


def test_what_is_wrong_fails_and_is_mended(tmp_path: Path) -> None:
    """All wrong cases are named with their lines at once; writing afresh sets right the outputs and touches nothing else."""
    wrong = GOOD.replace("a=1 b=1", "a=9").replace("----\n----\na=1\n\nb=3\n----\n----", "----\na=1")
    path = write(tmp_path, wrong)
    with pytest.raises(AssertionError, match=r"counter\.txt:2: add n=1 to=\(a, b\)\n  - a=9\n  \+ a=1 b=1(.|\n)*counter\.txt:18: show"):
        run_file(path, Counter(), rewrite=False)
    assert path.read_text() == wrong
    run_file(path, Counter(), rewrite=True)
    assert path.read_text() == GOOD
    run_file(path, Counter(), rewrite=False)


def test_an_error_of_the_handler_says_where(tmp_path: Path) -> None:
    """It comes out as it is, with the place, also while writing afresh; then the file is left alone."""
    path = write(tmp_path, GOOD.replace("show", "shout"))
    for rewrite in (False, True):
        with pytest.raises(AssertionError, match="shout") as caught:
            run_file(path, Counter(), rewrite=rewrite)
        assert caught.value.__notes__ == [f"at {path}:18"]
    assert "shout" in path.read_text()


def test_commands_are_taken_apart() -> None:
    """Values, lists, empty values and lists, and words; in their order."""
    ((case,), rest) = parse("do it a=1 b=(x,  y) c= d=() e=default/orders\nbody\n----\nout\n\n# end\n")
    assert (case.command, case.body, case.expected, rest) == ("do", "body", "out", ["", "# end"])
    assert list(case.args.items()) == [("it", []), ("a", ["1"]), ("b", ["x", "y"]), ("c", [""]), ("d", []), ("e", ["default/orders"])]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "transcript"),
        ("# nothing but words\n", "transcript"),
        ("one\n\ntwo\n----\n", "transcript:1"),  # would make the second command the body of the first
        ("one\n----\n\ntwo\n", "transcript:4"),
        ("----\nout\n", "transcript:1"),
        ("do a=(1, 2\n----\n", "transcript:1"),
        ("do a=1)\n----\n", "transcript:1"),
        ("do =1\n----\n", "transcript:1"),
        ("do a=1 a=2\n----\n", "transcript:1"),
        ("do\n----\n----\nout\n----\n\ndo\n----\n", "transcript:3"),
    ],
)
def test_what_is_no_transcript_is_refused(text: str, place: str) -> None:
    """With its place."""
    with pytest.raises(ValueError, match=f"^{place}: "):
        parse(text)


def test_every_transcript_is_run() -> None:
    """Each lies in a directory for which a test module calls `transcripts("…")`; and each such directory is there."""
    called: dict[Path, str] = {}
    for module in sorted(Path(__file__).parent.rglob("test_*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "transcripts":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{module}: call transcripts() with a plain string"
                assert isinstance(argument.value, str)
                called[DATA / argument.value] = module.name
    left = [path for path in sorted(DATA.rglob("*.txt")) if path.parent not in called]
    assert not left, f"no test runs these transcripts: {left}"
    assert [directory for directory in called if not any(directory.glob("*.txt"))] == []
