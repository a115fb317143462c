"""The API reference is made of the docstrings: `docs/api.md` is what this module renders, or the test says how to render it anew."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import govern
import govern.testing

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
INTRODUCTION = """# The API

Everything that `import govern` gives, and behind it `govern.testing`, in the words of the docstrings. This page is rendered
from them: `python -m pytest tests/test_api_reference.py --rewrite` writes it anew. Times are seconds, sizes are bytes;
everything that waits runs under trio.
"""
DEFAULT_TEXT = re.compile(r"<.*>|\bNOTHING$")
ANNOTATION = re.compile(r"(?<=: )(?:ForwardRef\()?'([^']*)'\)?")
ENTERED = re.compile(r"^AsyncIterator\[(.*)\]$")
MADE_BY_GOVERN = ("Registry", "LiveView", "Registration", "Node", "testing.Cluster")
"""Classes that nobody makes himself: how they are made is no part of the interface."""


def signature_of(name: str, thing: object) -> str:
    """How it is called; on several lines when one would be long."""
    assert callable(thing)
    signature = inspect.signature(thing)
    parameters = [ANNOTATION.sub(r"\1", DEFAULT_TEXT.sub("…", str(each))) for each in signature.parameters.values() if each.name != "self"]
    if signature.parameters and any(each.kind is each.KEYWORD_ONLY for each in signature.parameters.values()):
        first = next(place for place, each in enumerate(signature.parameters.values()) if each.kind is each.KEYWORD_ONLY)
        parameters.insert(first - ("self" in signature.parameters), "*")
    result = str(signature.return_annotation)
    if inspect.isasyncgenfunction(inspect.unwrap(thing)):
        result = ENTERED.sub(r"AbstractAsyncContextManager[\1]", result)
    returned = "" if inspect.isclass(thing) or result == "None" else f" -> {result}"
    line = f"{name}({', '.join(parameters)}){returned}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){returned}"


def attributes_of(thing: type) -> Iterator[tuple[str, str, str]]:
    """The public attributes of a class that have a text of their own behind them."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    assert isinstance(body, ast.ClassDef)
    makes = [each.body for each in body.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    for statements in (body.body, *makes):
        for statement, behind in itertools.pairwise(statements):
            if (
                isinstance(behind, ast.Expr)
                and isinstance(behind.value, ast.Constant)
                and isinstance(statement, ast.Assign | ast.AnnAssign)
            ):
                target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
                name = ast.unparse(target).removeprefix("self.")
                kind = f": {ast.unparse(statement.annotation)}" if isinstance(statement, ast.AnnAssign) else ""
                if not name.startswith("_"):
                    yield name, f"{name}{kind}", inspect.cleandoc(str(behind.value.value))


def members_of(thing: type) -> list[tuple[str, str, str]]:
    """The public methods, properties and attributes of a class: how each is written, and its docstring."""
    found = list(attributes_of(thing))
    for name, value in vars(thing).items():
        if name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
            continue
        shown = name if isinstance(value, property) else signature_of(name, value)
        waits = "await " if inspect.iscoroutinefunction(value) else ""
        found.append((name, f"{waits}{shown}", inspect.getdoc(value) or ""))
    return found


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    public = [(name, getattr(govern, name)) for name in govern.__all__ if name != "__version__"]
    public += [(f"testing.{name}", getattr(govern.testing, name)) for name in govern.testing.__all__]
    for name, thing in public:
        is_error = inspect.isclass(thing) and issubclass(thing, BaseException)
        is_plain = is_error or name in MADE_BY_GOVERN or (inspect.isclass(thing) and issubclass(thing, str))
        title = name if is_plain else signature_of(name, thing)
        parts.append(f"## {name}\n\n```\n{title}\n```\n\n{inspect.getdoc(thing)}\n")
        if inspect.isclass(thing) and not is_error and not issubclass(thing, tuple | str):
            parts.extend(f"### {name}.{member}\n\n```\n{shown}\n```\n\n{text}\n" for member, shown, text in members_of(thing))
    return "\n".join(parts)


def test_the_reference_says_what_the_docstrings_say(rewrite: bool) -> None:
    """The page in the repository is the rendered one."""
    if rewrite:
        PAGE.write_text(render(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == render(), "python -m pytest tests/test_api_reference.py --rewrite"
