"""The verbs about the whole cluster: who its nodes are, who answers for what, who may be controller, and the way out of a lost majority.

`nodes` and `table` look; while there is no controller they show what the node at the other end knows, and say so. `members`, `transfer`,
`reset` and `forget` ask the controller, through whichever node is reached; `members` alone shows what only the controller knows. `recover`
works on the data directory of a stopped node.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from ..actors.metadata_log import fold_metadata
from ..client import Registry
from ..core.table import Table
from ..environment import real_environment
from ..errors import NoController, StorageError
from ..storage.recover import force_new_cluster
from .output import columns, print_error, print_json, print_line
from .process import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE, run_verb
from .reads import in_time, open_registry

CONFIRMATION: Final = "force new cluster"


# --- looking ------------------------------------------------------------------------------------------------------------------


def nodes(found: argparse.Namespace) -> int:
    """Print the nodes of the cluster; exit code 1 when one is down, or when there is no controller."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            rows, is_whole = await _nodes(found, registry)
        if found.json:
            print_json(rows)
        elif rows:
            _print_rows(
                ("NODE", "CLIENTS", "PEERS", "CANDIDATE", "STATE", "PRIMARIES", "COPIES"),
                [
                    (str(row["node_id"]), row["clients"], row["peers"], _candidacy(row), row["state"], *map(str, _counts(row)))
                    for row in rows
                ],
            )
        return EXIT_DONE if is_whole and all(row["state"] == "up" for row in rows) else EXIT_REFUSED

    return run_verb(verb)


async def _nodes(found: argparse.Namespace, registry: Registry) -> tuple[list[dict[str, Any]], bool]:
    """The rows, and whether they come from the controller; without one they are what the node at the other end knows."""
    try:
        answer = await in_time(found, registry, lambda: registry.administer("nodes"))
        rows: list[dict[str, Any]] = answer["nodes"]
        return [{**row, "controller": row["node_id"] == answer["controller"]} for row in rows], True
    except NoController as error:
        state = await in_time(found, registry, registry.status)
        table: Table = await in_time(found, registry, registry.table)
        print_error(f"{str(error).partition(':')[0]}; this is what node {state['node_id']} knows")
        voters = [candidate["node_id"] for candidate in state["candidates"] if candidate["voter"]]
        return [
            {
                "node_id": node.node_id,
                "clients": node.clients,
                "peers": node.peers,
                "candidate": node.candidate,
                "voter": node.node_id in voters,
                "state": node.state,
                "primaries": table.primaries(node.node_id),
                "copies": table.copies(node.node_id),
                "controller": node.node_id == state["controller"],
            }
            for node in table.nodes
        ], False


def _candidacy(row: dict[str, Any]) -> str:
    """What part a node has in elections, in one word."""
    return "controller" if row["controller"] else "voter" if row["voter"] else "waits" if row["candidate"] else "no"


def _counts(row: dict[str, Any]) -> tuple[int, int]:
    return row["primaries"], row["copies"]


def table(found: argparse.Namespace) -> int:
    """Print which node answers for which slots; exit code 1 when slots belong to nobody."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            known: Table = await in_time(found, registry, registry.table)
        rows = [
            {
                "first": run.first,
                "last": run.last,
                "primary": run.primary,
                "copies": [node_id for node_id, _ in run.copies],
                "in_sync": list(run.in_sync),
                "term": run.term,
            }
            for run in known.runs
        ]
        if found.json:
            print_json(rows)
        elif rows:
            _print_rows(
                ("SLOTS", "COUNT", "PRIMARY", "COPIES", "IN SYNC", "TERM"),
                [
                    (
                        f"{run.first}-{run.last}",
                        str(run.last - run.first + 1),
                        str(run.primary),
                        " ".join(str(node_id) for node_id, _ in run.copies),
                        " ".join(map(str, run.in_sync)),
                        str(run.term),
                    )
                    for run in known.runs
                ],
            )
        is_whole = known.unassigned_count == 0
        if not is_whole:
            print_error(f"{known.unassigned_count} slots belong to nobody yet")
        return EXIT_DONE if is_whole else EXIT_REFUSED

    return run_verb(verb)


def _print_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for line in columns([head, *rows]):
        print_line(line)


# --- asking the controller ------------------------------------------------------------------------------------------------------


def members(found: argparse.Namespace) -> int:
    """Show the candidates; or add, promote or remove one: then the answer comes when the change is committed."""
    return _show_members(found) if found.action is None else _change_members(found)


def _show_members(found: argparse.Namespace) -> int:
    """Exit code 1 when the controller does not hear one of them."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            answer = await in_time(found, registry, lambda: registry.administer("nodes"))
        rows = [{**row, "controller": row["node_id"] == answer["controller"] and row["recent"]} for row in answer["members"]]
        if found.json:
            print_json(rows)
        else:
            _print_rows(
                ("NODE", "PART", "BEHIND", "ANSWERS", "DISK"),
                [
                    (
                        str(row["node_id"]),
                        "controller" if row["controller"] else "voter" if row["voter"] else "learner",
                        "unknown" if row["behind"] is None else str(row["behind"]),
                        "yes" if row["recent"] else "no",
                        row["disk_id"],
                    )
                    for row in rows
                ],
            )
        return EXIT_DONE if all(row["recent"] for row in rows) else EXIT_REFUSED

    return run_verb(verb)


def _change_members(found: argparse.Namespace) -> int:
    done = {"add": "is a learner now; when it has caught up: govern members promote", "promote": "is a voter now", "remove": "is removed"}

    async def verb() -> int:
        async with open_registry(found) as registry:
            result = await registry.administer(f"members.{found.action}", found.node_id)
        if found.json:
            print_json(result)
        else:
            more = f" {found.node_id}" if found.action == "add" else ""
            print_line(f"node {found.node_id} {done[found.action]}{more}; voters: {_ids(result['voters'])}")
        if "warning" in result:
            print_error(f"warning: {result['warning']}")
        return EXIT_DONE

    return run_verb(verb)


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "none"


def transfer(found: argparse.Namespace) -> int:
    """Hand the controller's office to another candidate."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            await registry.administer("transfer", found.node_id)
        whom = f"node {found.node_id}" if found.node_id else "another candidate"
        print_line(f"{whom} is told to stand for election: govern nodes shows who won")
        return EXIT_DONE

    return run_verb(verb)


def reset(found: argparse.Namespace) -> int:
    """Give up what was on a disk that a node no longer has: its slots begin again, empty."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            await registry.administer("reset", found.node_id)
        print_line(f"the lost slots of node {found.node_id} begin again, empty; living clients register again by themselves")
        return EXIT_DONE

    return run_verb(verb)


def forget(found: argparse.Namespace) -> int:
    """Take a node that is gone for good from the list."""

    async def verb() -> int:
        async with open_registry(found) as registry:
            await registry.administer("forget", found.node_id)
        print_line(f"node {found.node_id} is forgotten")
        return EXIT_DONE

    return run_verb(verb)


# --- recovering -----------------------------------------------------------------------------------------------------------------


def recover(found: argparse.Namespace) -> int:
    """Make the data directory of a stopped candidate that of the only candidate of its cluster."""
    if not found.force_new_cluster:
        print_error("recover: say --force-new-cluster, for that is all it can do (govern recover --help tells what it costs)")
        return EXIT_USAGE
    if not os.path.isdir(found.data_dir):
        print_error(f"there is no directory {found.data_dir}: nothing was changed")
        return EXIT_REFUSED
    if not _confirmed(found.yes):
        print_error("nothing was changed")
        return EXIT_REFUSED

    async def verb() -> int:
        storage = real_environment(found.data_dir).storage
        assert storage is not None
        try:
            report = await force_new_cluster(storage, node_id=found.node_id, fold=fold_metadata)
        except StorageError as error:
            print_error(f"nothing was changed: {error}")
            return EXIT_REFUSED
        for line in report.lines():
            print_line(line)
        return EXIT_DONE

    return run_verb(verb)


def _confirmed(is_said: bool) -> bool:
    """Whether a person means it."""
    if is_said:
        return True
    print_line("This makes one candidate a cluster of its own. Do it when most candidates are")
    print_line("lost for good, or when a node that is alone was put back from a backup. If one")
    print_line("of the others still runs there will be two clusters.")
    print_line(f"Type `{CONFIRMATION}` to go on:")
    return sys.stdin.readline().strip() == CONFIRMATION
