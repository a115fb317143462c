"""The verbs of operators: `drain` and `evict` an instance, whoever holds it, and `explain` why it is in a view or not.

The JSON shapes are fixed, as those of the verbs that look. The text of `explain` is sentences: whoever asks is looking for a fault, often
at night, and should not have to know what the fields mean.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..client import Drained, Explanation
from .output import print_error, print_json, print_line, printable
from .process import EXIT_DONE, EXIT_REFUSED, run_verb
from .reads import WIDTH, in_time, open_registry

INDENT: Final = "  "
REMOVED: Final = {"expired": "it expired", "deregistered": "it was deregistered", "evicted": "it was evicted"}
BY_ANOTHER: Final = ("draining", "evicted", "superseded")
"""What somebody else does to an instance, who is worth naming; for all else the session stands, and its connection tells whose it is."""


def drain(found: argparse.Namespace) -> int:
    """Take an instance out of traffic and wait until every subscriber knows; exit code 1 when somebody is missing."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            drained: Drained = await registry.drain(found.name, found.id, found.timeout)
        if found.json:
            print_json({"applied": drained.applied, "missing": list(drained.missing), "missing_count": drained.missing_count})
        else:
            _show_drained(f"{found.name} {found.id}", drained)
        return EXIT_DONE if drained.complete else EXIT_REFUSED

    return run_verb(verb)


def _show_drained(what: str, drained: Drained) -> None:
    if drained.complete:
        who = f"{_subscribers(drained.applied)} applied it, nobody is missing" if drained.applied else "nobody subscribes to its service"
        print_line(f"{printable(what)} is draining: {who}")
        return
    print_line(f"{printable(what)}: {_subscribers(drained.applied)} applied the drain; missing:")
    for name in drained.missing:
        print_line(INDENT + printable(name))
    if drained.missing_count > len(drained.missing):
        print_line(f"{INDENT}and {drained.missing_count - len(drained.missing)} more")


def _subscribers(count: int) -> str:
    return "1 subscriber has" if count == 1 else f"{count} subscribers have"


def evict(found: argparse.Namespace) -> int:
    """Remove an instance and bar its session from registering that id again.

    It has no time limit but the client's own, which knows whether the eviction was asked for when the answer does not come.
    """

    async def verb() -> int:
        async with open_registry(found) as registry:
            await registry.evict(found.name, found.id)
        print_line(f"{printable(f'{found.name} {found.id}')} is evicted: its session cannot register this id again")
        return EXIT_DONE

    return run_verb(verb)


# --- explain --------------------------------------------------------------------------------------------------------------------


def explain(found: argparse.Namespace) -> int:
    """Tell why each instance of a service, or one, is in the view or not; exit code 1 when nothing is known of it."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            explanation: Explanation = await in_time(found, registry, lambda: registry.explain(found.name, found.id))
        is_known = bool(explanation.instances or explanation.events)
        if found.json:
            print_json({"instances": list(explanation.instances), "events": list(explanation.events)})
        elif is_known:
            for line in explanation_lines(explanation):
                print_line(line)
        else:
            what = f"{found.name} {found.id}" if found.id else found.name
            print_error(f"nothing is known of {what} in namespace {found.namespace}, and nothing happened to it since the node started")
        return EXIT_DONE if is_known else EXIT_REFUSED

    return run_verb(verb)


def explanation_lines(explanation: Explanation) -> list[str]:
    """An explanation as sentences, then what happened, in lines that a narrow terminal does not break."""
    lines: list[str] = []
    for row in explanation.instances:
        lines += _wrapped(_present(row) if row["in_view"] else _gone(row, explanation.events))
    if explanation.events:
        lines += ["", "What happened, oldest first (times are UTC):"]
    for event in explanation.events:
        lines += _wrapped(_event(event))
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, subsequent_indent=INDENT, break_on_hyphens=False, break_long_words=False)


def _present(row: Mapping[str, Any]) -> str:
    """Why an instance is in the view."""
    sentences = [f"{row['id']} is in the view: registered {_moment(row['registered_at'])}{_by(row)}{_heard(row)}."]
    if row["suspect_seconds"] is not None:
        sentences.append(f"It has been suspect for {row['suspect_seconds']:.1f} s: its client is silent or lost its connection.")
    elif row["ephemeral"] and not row["connected"]:
        sentences.append("Its client is not connected.")
    if row["status"] == "draining":
        sentences.append("It is draining: it gets no new traffic.")
    elif row["status"] == "down":
        sentences.append("Its own program says that it is down.")
    if not row["ephemeral"]:
        sentences.append("It is persistent: it stays until somebody deregisters or evicts it.")
    return " ".join(sentences)


def _by(row: Mapping[str, Any]) -> str:
    if not row["session"]:
        return ""
    client = " at ".join(filter(None, (row["who"], row["peer"])))
    return f" by session {row['session']}" + (f" ({client})" if client else "")


def _heard(row: Mapping[str, Any]) -> str:
    seconds = row["last_heard_seconds"]
    if seconds is None or not row["ephemeral"]:
        return ""
    return f", last heard {seconds:.1f} s ago of a ttl of {row['ttl']:g} s"


def _gone(row: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """Why an instance is not in the view: the last that happened to it."""
    own = [event for event in events if event["id"] == row["id"] and event["kind"] in REMOVED]
    if not own:
        return f"{row['id']} is not in the view; the node does not remember why."
    event = own[-1]
    by = f" by {event['who']}" if event["who"] else ""
    detail = f"{',' if event['kind'] == 'expired' else ':'} {event['detail']}" if event["detail"] else ""
    return f"{row['id']} is not in the view: {REMOVED[event['kind']]} {_moment(event['at'])}{by}{detail}."


def _event(event: Mapping[str, Any]) -> str:
    words = [_moment(event["at"]), event["kind"], event["id"]]
    words += [f"session {event['session']}"] if event["session"] else []
    if event["who"] and event["kind"] == "connected":
        words.append(f"of {event['who']}")
    elif event["who"] and event["kind"] in BY_ANOTHER:
        words.append(f"by {event['who']}")
    return " ".join(filter(None, words)) + (f": {event['detail']}" if event["detail"] else "")


def _moment(text: str) -> str:
    """`2026-01-31 12:00:00` of an ISO text in UTC."""
    return text.partition(".")[0].removesuffix("Z").replace("T", " ")
