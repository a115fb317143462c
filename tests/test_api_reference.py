"""The API reference is made of the docstrings: `docs/api.md` is what this module renders, or the test says how to render it anew."""

from __future__ import annotations

import inspect
import re
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
ANNOTATION = re.compile(r"(?<=: )'([^']*)'")


def signature_of(name: str, thing: object) -> str:
    """How it is called; on several lines when one would be long."""
    assert callable(thing)
    signature = inspect.signature(thing)
    parameters = [ANNOTATION.sub(r"\1", DEFAULT_TEXT.sub("…", str(each))) for each in signature.parameters.values() if each.name != "self"]
    if signature.parameters and any(each.kind is each.KEYWORD_ONLY for each in signature.parameters.values()):
        first = next(place for place, each in enumerate(signature.parameters.values()) if each.kind is each.KEYWORD_ONLY)
        parameters.insert(first - ("self" in signature.parameters), "*")
    returned = "" if inspect.isclass(thing) or signature.return_annotation in (None, "None") else f" -> {signature.return_annotation}"
    line = f"{name}({', '.join(parameters)}){returned}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){returned}"


def members_of(thing: type) -> list[tuple[str, str, str]]:
    """The public methods and properties of a class: how each is written, and its docstring."""
    found = []
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
        title = name if is_error or (inspect.isclass(thing) and issubclass(thing, str)) else signature_of(name, thing)
        parts.append(f"## {name}\n\n```\n{title}\n```\n\n{inspect.getdoc(thing)}\n")
        if inspect.isclass(thing) and not is_error and not issubclass(thing, tuple | str):
            parts.extend(f"### {name}.{member}\n\n```\n{shown}\n```\n\n{text}\n" for member, shown, text in members_of(thing))
    return "\n".join(parts)


def test_the_reference_says_what_the_docstrings_say(rewrite: bool) -> None:
    """The page in the repository is the rendered one."""
    if rewrite:
        PAGE.write_text(render(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == render(), "python -m pytest tests/test_api_reference.py --rewrite"
