"""The verbs that only look: `lookup`, `watch`, `services`, `status`.

The JSON shapes are fixed, scripts depend on them: fields may be added, none renamed. The text for people is not.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import trio

from ..client import LiveView, Registry, connect
from ..model import Change, Instance, check_name
from .output import (
    INSTANCE_COLUMNS,
    columns,
    describe,
    format_number,
    instance_cells,
    print_error,
    print_json,
    print_line,
    printable,
    reader_is_gone,
)
from .process import EXIT_DONE, EXIT_REFUSED, NotInTime, run_verb

WIDTH: Final = 80
CHECK_SECONDS: Final = 0.25
"""So often `watch` looks whether its view became stale and whether its output is still read."""


@asynccontextmanager
async def open_registry(found: argparse.Namespace) -> AsyncIterator[Registry]:
    """The registry that the command names, in the namespace that it names. What is not valid is refused before anything is dialled."""
    if getattr(found, "name", None) is not None:
        check_name(found.name)
    if getattr(found, "id", None) is not None:
        check_name(found.id, "instance id")
    namespace = getattr(found, "namespace", None) or "default"
    async with connect(found.connect, namespace=namespace, timeout=found.timeout) as registry:
        yield registry


async def in_time(found: argparse.Namespace, registry: Registry, read: Callable[[], Awaitable[Any]]) -> Any:
    """What a read returns; raises `NotInTime`, with who has not answered, when it takes longer than the command's timeout."""
    with trio.move_on_after(found.timeout):
        return await read()
    if registry.unanswered:
        raise NotInTime(f"{registry.unanswered}; given up after {found.timeout:g} s")
    raise NotInTime(f"the registry did not answer within {found.timeout:g} s")


# --- lookup -------------------------------------------------------------------------------------------------------------------


def lookup(found: argparse.Namespace) -> int:
    """Print the instances of a service; exit code 1 when there is none."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            instances: tuple[Instance, ...] = await in_time(found, registry, lambda: registry.lookup(found.name))
        if found.json:
            print_json([instance.to_json() for instance in instances])
        elif instances:
            _print_rows([INSTANCE_COLUMNS, *map(instance_cells, instances)])
        else:
            print_error(f"no instance of {found.name} is registered in namespace {found.namespace}")
        return EXIT_DONE if instances else EXIT_REFUSED

    return run_verb(verb)


def _print_rows(rows: list[Any]) -> None:
    for line in columns(rows):
        print_line(line)


# --- watch --------------------------------------------------------------------------------------------------------------------


def watch(found: argparse.Namespace) -> int:
    """Print the full view of a service, then every change, until a signal ends it or nobody reads any more."""
    show = _show_json if found.json else _show

    async def verb() -> int:
        async with open_registry(found) as registry, AsyncExitStack() as stack:
            view: LiveView = await in_time(found, registry, lambda: stack.enter_async_context(registry.subscribe(found.name)))
            show(Change(service=view.service, lsn=view.lsn, added=view.instances, full=True), view.stale)
            await _follow(view, show)
        return EXIT_DONE

    return run_verb(verb, code_when_ended=EXIT_DONE)


async def _follow(view: LiveView, show: Callable[[Change, bool], None]) -> None:
    """Show every change, and one without content when the view becomes stale or current again."""
    changes = aiter(view)
    shown_stale = view.stale
    while not reader_is_gone():
        change = None
        with trio.move_on_after(CHECK_SECONDS):
            change = await anext(changes)
        if change is not None or view.stale != shown_stale:
            shown_stale = view.stale
            show(change or Change(service=view.service, lsn=view.lsn), shown_stale)


def _show_json(change: Change, stale: bool) -> None:
    print_json(
        {
            "namespace": change.service.namespace,
            "service": change.service.name,
            "lsn": list(change.lsn),
            "full": change.full,
            "added": [instance.to_json() for instance in change.added],
            "updated": [instance.to_json() for instance in change.updated],
            "removed": list(change.removed),
            "stale": stale,
        }
    )


def _show(change: Change, stale: bool) -> None:
    if change.full:
        count = len(change.added)
        print_line(f"{change.service.name} has {count or 'no'} instance{'' if count == 1 else 's'}" + (" (stale)" if stale else ""))
    elif not change:
        print_line("? the registry is out of reach: this may be out of date" if stale else "! the registry is back: this is up to date")
    for sign, instances in (("+", change.added), ("~", change.updated)):
        for instance in instances:
            print_line(f"{sign} {describe(instance)}")
    for instance_id in change.removed:
        print_line(f"- {printable(instance_id)}")


# --- services and status --------------------------------------------------------------------------------------------------------


def services(found: argparse.Namespace) -> int:
    """Print the services that have instances."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            rows = [info.to_json() for info in await in_time(found, registry, lambda: registry.services(found.namespace or ""))]
        if found.json:
            print_json(rows)
        elif rows:
            _print_rows([[name.upper() for name in rows[0]], *([str(value) for value in row.values()] for row in rows)])
        else:
            print_error("no service has instances")
        return EXIT_DONE

    return run_verb(verb)


def status(found: argparse.Namespace) -> int:
    """Print the state of a node; exit code 1 when it is not ready or not well, so that it serves as a health check."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            state: Mapping[str, Any] = await in_time(found, registry, registry.status)
        if found.json:
            print_json(state)
        else:
            for line in _state_lines(state):
                print_line(line)
        return EXIT_DONE if state["fresh"] and not state["degraded"] else EXIT_REFUSED

    return run_verb(verb)


def _state_lines(state: Mapping[str, Any]) -> list[str]:
    """A row for each field, a name and its value, in lines that a narrow terminal does not break."""
    rows = [(_label(name), _readable(name, value)) for name, value in state.items()]
    width = max(len(label) for label, _ in rows)
    lines: list[str] = []
    for label, texts in rows:
        for text in texts:
            for part in textwrap.wrap(printable(text), WIDTH - width - 2, break_on_hyphens=False, break_long_words=False) or ["-"]:
                lines.append(f"{label.ljust(width)}  {part}")
                label = ""
    return lines


def _candidate(row: Mapping[str, Any]) -> str:
    """One of those who may elect, or will be: `2 voter, 17 entries behind, cannot be reached`."""
    behind = row.get("behind")
    texts = [f"{row['node_id']} {'voter' if row['voter'] else 'learner'}"]
    if behind:
        texts.append(f"{behind} entr{'y' if behind == 1 else 'ies'} behind")
    if not row["reachable"]:
        texts.append("cannot be reached")
    return ", ".join(texts)


def _label(name: str) -> str:
    return name.removesuffix("_ms").replace("_", " ")


def _readable(name: str, value: object) -> list[str]:
    """A value for people, with its unit; one text for each of several, but numbers of nodes stand in a row."""
    if name == "candidates" and isinstance(value, list):
        return [_candidate(each) for each in value] or ["none"]
    if isinstance(value, list):
        texts = [str(each) for each in value] or ["none"]
        return [", ".join(texts)] if name == "links" else texts
    if value is None:
        return ["none"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if name.endswith("_ms") and isinstance(value, int | float):
        return [f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.1f} s"]
    return [format_number(value) if isinstance(value, float) else str(value)]
