"""`serve`: a node of its own, in a process of its own.

Everything that belongs to the process and not to the node is set here and nowhere else: logging, the limit of open files, the
garbage collector, signals, exit codes.

    0    ended by Ctrl-C or SIGTERM: what was acknowledged is on the disk, as always
    1    could not start: the data directory or the address cannot be used
    2    wrong usage or configuration
    70   the node met an error that it must not survive; it ends at once, without any cleanup that a failed disk could hold up
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import socket
from collections.abc import Mapping
from typing import Final

import trio

from .._version import VERSION
from ..actors.node import Node, open_node
from ..actors.peer_connector import PEERS_NOTE
from ..config import Config
from ..environment import real_environment
from ..errors import ConfigError, NodeFailed, StorageError
from ..model import join_address
from ..storage.salvage import salvage as salvage_directory
from .effective import read_effective
from .logs import open_logs, tell
from .output import OutputFailed, ReaderGone, print_error, print_line
from .process import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE, run_verb

EXIT_FAILED: Final = 70
FILES_RESERVED: Final = 256  # beside client connections: the log, snapshots, the listener, what Python itself has open
GC_THRESHOLDS: Final = (
    50_000,
    20,
    100,
)  # the state is bytes and dictionaries without cycles; Python's usual thresholds would walk it too often

_log = logging.getLogger(__name__)


def serve(path: str | None, flags: Mapping[str, str], *, salvage: bool) -> int:
    """Run a node until a signal ends it; returns the exit code."""
    try:
        config, _, warnings = read_effective(path, flags)
        if salvage and not config.data_dir:
            raise ConfigError("--salvage repairs a data directory, and data_dir is empty: name one")
        open_logs(config)
    except ConfigError as error:
        print_error(str(error))
        return EXIT_USAGE
    for warning in warnings:
        _log.warning("%s", warning)
    _raise_files_max(config.connections_max + FILES_RESERVED)
    gc.disable()  # while loading: it would walk a state that only grows, again and again

    async def verb() -> int:
        return await _serve(config, salvage=salvage)

    return run_verb(verb, code_when_ended=EXIT_DONE)


async def _serve(config: Config, *, salvage: bool) -> int:
    try:
        if salvage:
            await _salvage(config)
        async with open_node(config) as node:
            _tune_collector()
            _say_ready(node)
            try:
                await trio.sleep_forever()
            finally:
                _log.info("node %d is stopping", config.node_id)
    except NodeFailed as error:
        tell(str(error))
        os._exit(EXIT_FAILED)
    except StorageError as error:
        tell(str(error))
    except OSError as error:
        tell(_explain_bind(config, error))
    return EXIT_REFUSED


async def _salvage(config: Config) -> None:
    storage = real_environment(config.data_dir).storage
    assert storage is not None
    report = await salvage_directory(storage)
    for line in report.lines():
        tell(line, logging.WARNING)


def _say_ready(node: Node) -> None:
    config = node.config
    _log.info("node %d of govern %s is ready for clients at %s", config.node_id, VERSION, join_address(*node.address))
    peers = "none" if node.peers_address is None else join_address(*node.peers_address)
    line = f"govern node {config.node_id} ready: clients {join_address(*node.address)}, peers {peers}, data {config.data_dir or 'memory'}"
    try:
        print_line(line)
    except (ReaderGone, OutputFailed) as error:  # whoever started the node may be gone; its clients are not
        _log.warning("the ready line could not be printed: %s", error)


def _explain_bind(config: Config, error: OSError) -> str:
    """One line for an address that cannot be listened on."""
    is_for_peers = PEERS_NOTE in getattr(error, "__notes__", ())
    flag = "--peer-listen" if is_for_peers else "--listen"
    listen = join_address(*config.peer_address) if is_for_peers and config.peer_address is not None else config.listen
    if error.errno == errno.EADDRINUSE:
        reason = f"something listens there already: stop it, or give another address with {flag}"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason = f"this machine has no such address: give one of its own with {flag}"
    elif isinstance(error, PermissionError):
        reason = f"this user may not use that port: give one above 1023 with {flag}"
    elif isinstance(error, socket.gaierror):
        reason = f"the name cannot be resolved: give an IP address with {flag}"
    else:
        reason = error.strerror or str(error)
    return f"cannot listen on {listen}: {reason}"


# --- the process ----------------------------------------------------------------------------------------------------------------


def _raise_files_max(wanted: int) -> None:
    """Raise the limit of open files as far as `wanted`, or as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
            soft = reachable
        except (ValueError, OSError) as error:  # macOS names a hard limit that it does not grant
            _log.warning("the limit of %d open files cannot be raised: %s", soft, error)
    if soft != resource.RLIM_INFINITY and soft < wanted - FILES_RESERVED:
        _log.info(
            "connections_max needs %d open files, this process may have %d: raise the hard limit (ulimit -Hn) to use all", wanted, soft
        )


def _tune_collector() -> None:
    """What was loaded stays: the garbage collector, off until now, never looks at it."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()
