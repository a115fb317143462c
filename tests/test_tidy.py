"""The habits of the house that a reader counts on and a linter does not know.

Each rule is a function over one module; it is shown to catch its bad examples and to leave good ones alone. What each rule protects is
the first sentence of its docstring, and its message says what to do instead.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGE_FILES: Final = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "govern").rglob("*.py"))
TEST_FILES: Final = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))

FUNCTION_LINES_MAX: Final = 70
MODULE_LINES_MAX: Final = 600
STATEFUL: Final = ("govern/core/", "govern/actors/", "govern/client/", "govern/net/", "govern/storage/", "govern/testing/")
_unfinished = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")))

Functions = (ast.FunctionDef, ast.AsyncFunctionDef)


def is_final(node: ast.Assign | ast.AnnAssign) -> bool:
    annotation = node.annotation if isinstance(node, ast.AnnAssign) else None
    return annotation is not None and "Final" in ast.unparse(annotation)


def is_constant_frozenset(node: ast.AST, tree: ast.Module) -> bool:
    """Whether a set is only the argument of a frozenset that a module keeps as a constant."""
    return any(
        isinstance(statement, (ast.Assign, ast.AnnAssign))
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Name)
        and statement.value.func.id == "frozenset"
        and node in statement.value.args
        for statement in tree.body
    )


def used_at_once(tree: ast.Module) -> Iterator[ast.AST]:
    """What is only counted, sorted, or compared with, so that its order is never seen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("len", "sorted", "min", "max", "sum"):
            yield from node.args
        elif isinstance(node, ast.Compare):
            yield from (node.left, *node.comparators)


def find_sets(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """Nothing stateful keeps a `set`: its order differs between runs, and no test sees it being iterated."""
    if not path.startswith(STATEFUL):
        return
    constants = [statement for statement in tree.body if not isinstance(statement, (*Functions, ast.ClassDef))]
    module_level = {id(part) for statement in constants for part in ast.walk(statement)}
    harmless = {id(node) for node in used_at_once(tree)}
    for node in ast.walk(tree):
        made = isinstance(node, (ast.Set, ast.SetComp))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            made = node.func.id == "set" or (node.func.id == "frozenset" and id(node) not in module_level)
        if made and id(node) not in harmless and not is_constant_frozenset(node, tree):
            yield f"{path}:{getattr(node, 'lineno', 0)} a set has no order: use a dict with None as values, or a tuple"


def find_long_functions(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """A function fits on one page."""
    for node in ast.walk(tree):
        if isinstance(node, Functions):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno} {node.name} has {lines} lines: at most {FUNCTION_LINES_MAX}; move the arithmetic into leaves"


def find_long_modules(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """A module is about one noun."""
    lines = source.count("\n")
    if lines > MODULE_LINES_MAX:
        yield f"{path} has {lines} lines: at most {MODULE_LINES_MAX}; it is about more than one thing"


def find_swallowed(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """No error disappears: an `except` names its type, and everything that catches all does something or raises."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            yield f"{path}:{node.lineno} name the exception that is expected here"
            continue
        names = [ast.unparse(kind).rpartition(".")[2] for kind in (node.type.elts if isinstance(node.type, ast.Tuple) else [node.type])]
        does_nothing = all(
            isinstance(part, ast.Pass) or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)) for part in node.body
        )
        raises = any(isinstance(part, ast.Raise) for part in ast.walk(node))
        keeps = any(isinstance(part, ast.Assign) and ast.unparse(part.value) == node.name for part in ast.walk(node))
        catches_cancelled = "Cancelled" in names or "BaseException" in names
        if does_nothing and ("Exception" in names or catches_cancelled):
            yield f"{path}:{node.lineno} this swallows every error, our own bugs too: name the one that is expected"
        elif catches_cancelled and not raises and not keeps:
            yield f"{path}:{node.lineno} a cancellation must go on: raise again, or keep the error and raise it later"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "suppress":
            broad = [kind for kind in node.args if ast.unparse(kind) in ("Exception", "BaseException", "trio.Cancelled")]
            if broad:
                yield f"{path}:{node.lineno} this swallows every error, our own bugs too: name the one that is expected"


def find_endless_shields(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """A shield has a deadline, or a stop can hang for ever; the supervisor alone decides when that is meant."""
    if path == "govern/actors/supervisor.py":
        return
    limits = ("move_on_after", "move_on_at", "fail_after", "fail_at")
    bounded_names = {
        ast.unparse(item.optional_vars)
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if item.optional_vars
        and isinstance(item.context_expr, ast.Call)
        and ast.unparse(item.context_expr.func).rpartition(".")[2] in limits
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            shielded = "shield" in keywords and ast.unparse(keywords["shield"]) != "False"
            if shielded and "deadline" not in keywords and ast.unparse(node.func).rpartition(".")[2] not in limits:
                yield f"{path}:{node.lineno} give this shield a deadline"
        elif isinstance(node, ast.Assign) and ast.unparse(node.value) != "False":
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr == "shield" and ast.unparse(target.value) not in bounded_names:
                    yield f"{path}:{node.lineno} give this shield a deadline: trio.move_on_after(..., shield=True)"


def find_module_state(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """Ten nodes live in one process: nothing that changes is kept in a module."""
    makers = ("dict", "list", "set", "bytearray", "deque", "defaultdict", "OrderedDict", "Counter", "SortedDict", "SortedList", "count")
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        names = [ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])]
        value = node.value
        called = ast.unparse(value.func).rpartition(".")[2] if isinstance(value, ast.Call) else ""
        mutable = isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)) or called in makers
        if mutable and not is_final(node) and names != ["__all__"]:
            yield f"{path}:{node.lineno} {', '.join(names)}: module state is shared by all nodes; mark a table that never changes as Final"
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Global):
            yield f"{path}:{inner.lineno} module state is shared by all nodes: keep it in an object"


def find_unfinished(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """What is not done is not promised in a comment."""
    for number, line in enumerate(source.splitlines(), 1):
        if _unfinished.search(line):
            yield f"{path}:{number} finish it or leave it out"


def find_missing_theory(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """A module says what it is about before anything else."""
    if not ast.get_docstring(tree):
        yield f"{path}:1 begin with a docstring: the problem, the model, the invariants"


def find_constant_asserts(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """A test can fail."""
    for node in ast.walk(tree):
        constant = isinstance(node, ast.Assert) and isinstance(node.test, (ast.Constant, ast.Tuple, ast.JoinedStr))
        if isinstance(node, ast.Assert) and constant and ast.unparse(node.test) != "False":
            yield f"{path}:{node.lineno} this assertion always holds"


PACKAGE_RULES: Final = (
    find_sets,
    find_long_functions,
    find_long_modules,
    find_swallowed,
    find_endless_shields,
    find_module_state,
    find_unfinished,
    find_missing_theory,
    find_constant_asserts,
)
TEST_RULES: Final = (find_long_functions, find_unfinished, find_missing_theory, find_constant_asserts)

_LONG_FUNCTION: Final = "def long():\n" + "    pass\n" * FUNCTION_LINES_MAX
EXAMPLES: Final = (  # rule, bad examples, good examples
    (
        find_sets,
        ("x = set()", "def f(a):\n    return {a}", "y = [a for a in {1, 2}]", "def f(a):\n    return frozenset(a)", "z = {a for a in b}"),
        (
            "_A: Final = frozenset({1, 2})",
            "_B: Final = frozenset(x for x in y)",
            "x = dict.fromkeys(y)",
            "def f(x):\n    x.set()",
            "def f(x):\n    return len({y for y in x})",
        ),
    ),
    (find_long_functions, (_LONG_FUNCTION,), ("def f():\n    pass\n",)),
    (find_long_modules, ("\n" * (MODULE_LINES_MAX + 1),), ("\n" * MODULE_LINES_MAX,)),
    (
        find_swallowed,
        (
            "try:\n    f()\nexcept:\n    raise",
            "try:\n    f()\nexcept Exception:\n    pass",
            "try:\n    f()\nexcept (OSError, BaseException):\n    ...",
            "try:\n    f()\nexcept trio.Cancelled:\n    g()",
            "with contextlib.suppress(Exception):\n    f()",
        ),
        (
            "try:\n    f()\nexcept OSError:\n    pass",
            "try:\n    f()\nexcept BaseException:\n    g()\n    raise",
            "try:\n    f()\nexcept BaseException as error:\n    failure = error",
            "try:\n    f()\nexcept Exception as error:\n    tell(error)",
            "with suppress(OSError):\n    f()",
        ),
    ),
    (
        find_endless_shields,
        ("trio.CancelScope(shield=True)", "trio.CancelScope(shield=flag)", "scope.shield = True"),
        (
            "trio.CancelScope(deadline=d, shield=True)",
            "trio.move_on_after(1, shield=True)",
            "with move_on_at(t) as s:\n    s.shield = True",
        ),
    ),
    (
        find_module_state,
        (
            "cache = {}",
            "seen: list[int] = []",
            "queue = collections.deque()",
            "numbers = itertools.count()",
            "def f():\n    global x\n    x = 1",
        ),
        (
            "TABLE: Final = {1: 2}",
            "TABLE: Final[dict[int, int]] = dict(a)",
            "__all__ = ['a']",
            "NAMES = ('a', 'b')",
            "def f():\n    x = []",
        ),
    ),
    (find_unfinished, ("# TO" + "DO: later", "'FIX" + "ME'"), ("# done",)),
    (find_missing_theory, ("x = 1", ""), ("'''About.'''",)),
    (
        find_constant_asserts,
        ("assert True", "assert 'text'", "assert (x == 1, 'told')"),
        ("assert x", "assert False, 'never reached'", "assert x == (1, 2)"),
    ),
)


Parsed = dict[str, tuple[str, ast.Module]]


def parse(paths: list[str]) -> Parsed:
    """Each file, as text and as a tree. The empty `__init__.py` files that make packages of directories are left out."""
    sources = {path: (ROOT / path).read_text() for path in paths}
    return {path: (source, ast.parse(source)) for path, source in sources.items() if source}


# One test for all rules: with several processes each would have to read and parse everything once more.


def test_the_package_is_tidy() -> None:
    """No module of the package breaks a rule, and each says at least what it is about."""
    package = parse(PACKAGE_FILES)
    assert [problem for rule in PACKAGE_RULES for path, (source, tree) in package.items() for problem in rule(path, source, tree)] == []
    assert list(package) == PACKAGE_FILES


def test_the_tests_are_tidy() -> None:
    """No test module breaks a rule; the empty `__init__.py` files that make packages of directories need no theory."""
    tests = parse(TEST_FILES)
    assert [problem for rule in TEST_RULES for path, (source, tree) in tests.items() for problem in rule(path, source, tree)] == []


@pytest.mark.parametrize(("rule", "bad", "good"), EXAMPLES, ids=[example[0].__name__.removeprefix("find_") for example in EXAMPLES])
def test_each_rule_tells_bad_from_good(rule: object, bad: tuple[str, ...], good: tuple[str, ...]) -> None:
    """A rule that has gone blind, or that hinders ordinary code, fails here."""
    assert callable(rule)
    for source in bad:
        assert list(rule("govern/core/example.py", source, ast.parse(source))), f"not caught:\n{source}"
    for source in good:
        assert not list(rule("govern/core/example.py", source, ast.parse(source))), f"wrongly caught:\n{source}"


def test_every_rule_has_examples() -> None:
    """A rule is not added without showing what it catches."""
    assert [example[0] for example in EXAMPLES] == list(PACKAGE_RULES)
