"""The command line's grammar: which verb, which flags, and what is said about a wrong one.

`serve` is the default verb, so the verb is found before argparse sees anything: the first word, unless it is a flag. Each
verb has a parser of its own, which knows nothing of the others. What follows a lone `--` is the command of `register`, untouched.

Wrong usage is one line on stderr, with a suggestion where there is a likely one, and exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import attrs

from .._version import VERSION
from ..client.draining import DRAIN_SECONDS
from ..config import key_default, key_doc, key_flag, key_is_flag, key_names
from ..model import Instance
from .cluster import forget, members, nodes, recover, reset, table, transfer
from .effective import STANDALONE_DEFAULTS, default_is_shown, show_config
from .operators import drain, evict, explain
from .output import print_error
from .process import EXIT_DONE, EXIT_USAGE
from .reads import lookup, services, status, watch
from .register import register
from .serve import serve

TIMEOUT_SECONDS_DEFAULT: Final = 5.0
HELP_WIDTH: Final = 80

_OVERVIEW: Final = """\
usage: govern [VERB] [FLAGS]

A service registry: programs register their instances, find those of others,
and are told of every change.

verbs:
  serve       run a node; the default, so `govern` alone runs one too
  register    register an instance and run its program
  lookup      show the instances of a service
  watch       show the instances of a service, then every change
  services    show all services
  explain     tell why an instance is there or is not
  drain       take an instance out of traffic
  evict       remove an instance
  status      show the state of a node; a health check
  nodes       show the nodes of the cluster
  table       show which node answers for which slots
  members     show, add, promote or remove candidates
  transfer    hand the controller's office to another candidate
  reset       give up what was on a lost disk of a node
  forget      take a node that is gone for good from the list
  recover     the way out when most candidates are lost for good
  config      show the configuration of a node, and where each value came from

flags:
  -h, --help  show this text, or after a verb what that verb can do
  --version   show the version

Exit codes: 0 done, 1 refused, not found or not well, 2 wrong usage, 3 cannot
reach the registry, 128 + n ended by signal n. `register` with a command ends
as that does; `serve --help` has those of a node.
"""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def __init__(self, verb: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"govern {verb}",
            usage=f"govern {usage}",
            description=description,
            epilog=epilog or None,
            allow_abbrev=False,
            add_help=False,
            formatter_class=_formatter,
        )
        self.verb = verb
        self._positionals.title = "arguments"
        self._optionals.title = "flags"
        self.add_argument("-h", "--help", action="help", help="Show this text.")

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        print_error(f"{self.verb}: {message} (govern {self.verb} --help tells more)")
        sys.exit(EXIT_USAGE)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments of this verb, nothing left over."""
        found, unknown = self.parse_known_args(arguments)
        for argument in unknown:
            misplaced = [word for word in unknown if word in _VERBS]
            if misplaced and argument.startswith("-"):
                self.error(f"unknown flag {argument}; flags come after the verb: govern {misplaced[0]} {argument} ...")
            if argument.startswith("-"):
                flag = argument.partition("=")[0]
                known = [text for text in self._option_string_actions if text.startswith("--")]
                self.error(f"unknown flag {flag}{_did_you_mean(flag, known)}")
            self.error(f"there is no place for {argument!r}")
        return found


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    bare = word.lstrip("-")
    close = [each for each in known if bare and each.endswith(bare)] or difflib.get_close_matches(bare and word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=26, width=HELP_WIDTH)


# --- kinds of values ----------------------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    value = _number(text)
    if math.isnan(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: give seconds, for example 5, or inf")
    return value


def _some_seconds(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: give more than 0 seconds")
    return value


def _port(text: str) -> int:
    value = _whole_number(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"port {value} is not usable: give one from 1 to 65535")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: give a number") from None


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: give a whole number") from None


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: give KEY=VALUE, for example version=2.1")
    return key, value


# --- the verbs ----------------------------------------------------------------------------------------------------------------

_METAVARS: Final = {
    "listen": "HOST:PORT",
    "peers": "ID=HOST:PORT,...",
    "peer_listen": "HOST:PORT",
    "advertise": "HOST[:PORT]",
    "data_dir": "DIRECTORY",
    "log_level": "LEVEL",
    "log_format": "FORMAT",
    "log_file": "FILE",
    "log_error_file": "FILE",
    "log_file_bytes_max": "BYTES",
    "segment_bytes": "BYTES",
    "snapshot_bytes": "BYTES",
}


def serve_parser() -> Parser:
    """The parser of `serve`: every configuration key is a flag, its value text that `build_config` reads."""
    parser = Parser(
        "serve",
        "[serve] [--config FILE] [FLAGS]",
        "Run a node until it is told to stop by Ctrl-C or SIGTERM. When it is ready it prints one line with its addresses.",
        'Every flag but --config and --salvage is also a key of the file and a variable: --data-dir is data_dir = "..." and '
        "GOVERN_DATA_DIR. Flags win over variables, variables over the file. Exit codes: 0 ended by a signal, 1 the data directory or the "
        "address cannot be used, 2 wrong usage or configuration, 70 the disk failed while serving.",
    )
    _add_keys(parser)
    parser.add_argument(
        "--salvage",
        action="store_true",
        help="Repair a damaged data directory before serving: what cannot be read is set aside, never deleted, and what is lost is named.",
    )
    return parser


def config_parser() -> Parser:
    """The parser of `config`: it takes what `serve` takes."""
    parser = Parser(
        "config",
        "config [--config FILE] [FLAGS]",
        "Show the configuration that serve would run with, given the same file, variables and flags: each key with its meaning, its value, "
        "and where the value came from. The output is itself a configuration file.",
    )
    _add_json(parser, "a JSON array")
    _add_keys(parser)
    return parser


def _add_keys(parser: Parser) -> None:
    parser.add_argument("--config", metavar="FILE", help="A TOML file with configuration keys (also GOVERN_CONFIG).")
    for name in key_names():
        text = key_doc(name).replace("%", "%%")
        if name not in STANDALONE_DEFAULTS and default_is_shown(key_default(name)):  # their text names the default
            text += f" Default {_shown(key_default(name))}."
        if key_is_flag(name):
            parser.add_argument(key_flag(name), dest=name, nargs="?", const="true", metavar="true|false", help=text)
        else:
            metavar = _METAVARS.get(name, "N")
            parser.add_argument(key_flag(name), dest=name, metavar=metavar, help=text)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _client_parser(
    verb: str, usage: str, description: str, epilog: str = "", *, seconds: float = TIMEOUT_SECONDS_DEFAULT, waits_for: str = "the registry"
) -> Parser:
    parser = Parser(verb, usage, description, epilog)
    parser.add_argument(
        "--connect",
        metavar="HOST:PORT",
        help="Where the registry is: one address, or several separated by commas. Default: GOVERN_CONNECT, else 127.0.0.1:7400.",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=seconds,
        help=f"How long to wait for {waits_for}; inf waits for ever. Default {seconds:g}.",
    )
    return parser


def _add_namespace(parser: Parser, default: str | None = "default") -> None:
    text = "Default: default." if default else "Default: all namespaces."
    parser.add_argument("--namespace", metavar="NAME", default=default, help=f"The namespace of the service. {text}")


def _add_json(parser: Parser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"Print {what}.")


def register_parser() -> Parser:
    """The parser of `register`, without the command."""
    standard = {field.name: field.default for field in attrs.fields(Instance)}
    parser = _client_parser(
        "register",
        "register NAME --port PORT [FLAGS] [-- COMMAND ...]",
        "Register an instance of the service NAME. With a command: run it, pass on the signals SIGTERM, SIGINT and SIGHUP, deregister "
        "when it ends, and exit with its exit code (128 + n after signal n). Without one: keep the registration until Ctrl-C.",
        "The program goes on when the registry cannot be reached; the registration comes back with the registry.",
    )
    parser.add_argument("name", metavar="NAME", help="The service.")
    parser.add_argument("--port", type=_port, required=True, metavar="PORT", help="The port of this instance.")
    parser.add_argument("--host", metavar="HOST", help="Its host. Default: this machine's address as the registry sees it.")
    parser.add_argument("--id", metavar="ID", help="Its id, unique in the service. Default HOST:PORT.")
    parser.add_argument("--protocol", metavar="TEXT", default=standard["protocol"], help="How to speak to it. Default tcp.")
    parser.add_argument(
        "--weight", type=_number, metavar="NUMBER", default=standard["weight"], help="Its share of traffic; 0 is none. Default 1."
    )
    parser.add_argument("--zone", metavar="TEXT", default="", help="Where it runs.")
    parser.add_argument("--instance-version", metavar="TEXT", default="", help="The version of the program.")
    parser.add_argument(
        "--metadata", metavar="KEY=VALUE", type=_pair, action="append", default=[], help="Anything else worth telling; may be repeated."
    )
    parser.add_argument(
        "--ttl", type=_number, metavar="SECONDS", default=standard["ttl"], help="A dead instance is removed within this time. Default 5."
    )
    parser.add_argument(
        "--persistent",
        action="store_true",
        help="Stay registered until somebody deregisters it, also after this program has ended. Without a command: register and exit.",
    )
    parser.add_argument(
        "--wait-port",
        metavar="SECONDS",
        type=_some_seconds,
        help="Start the command first, and register it when its port accepts a connection. When it does not within this time, or the "
        "registry refuses it then, the command is ended and so is this program, with exit code 1.",
    )
    _add_namespace(parser)
    return parser


def lookup_parser() -> Parser:
    """The parser of `lookup`."""
    parser = _client_parser("lookup", "lookup NAME [FLAGS]", "Show the instances of the service NAME. Exit code 1 when there is none.")
    parser.add_argument("name", metavar="NAME", help="The service.")
    _add_namespace(parser)
    _add_json(parser, "a JSON array")
    return parser


def watch_parser() -> Parser:
    """The parser of `watch`."""
    parser = _client_parser(
        "watch",
        "watch NAME [FLAGS]",
        "Show the instances of the service NAME, then every change until Ctrl-C: + added, ~ updated, - removed.",
    )
    parser.add_argument("name", metavar="NAME", help="The service.")
    _add_namespace(parser)
    _add_json(parser, "one JSON object per line: first the full view, then each change")
    return parser


def services_parser() -> Parser:
    """The parser of `services`."""
    parser = _client_parser("services", "services [FLAGS]", "Show the services that have instances.")
    _add_namespace(parser, None)
    _add_json(parser, "a JSON array")
    return parser


def status_parser() -> Parser:
    """The parser of `status`."""
    parser = _client_parser(
        "status",
        "status [FLAGS]",
        "Show the state of the node that answers. As a health check: exit code 0 when the node is ready and well, 1 when it is loading or "
        "degraded (the line degraded says why), 3 when nobody answers.",
    )
    _add_json(parser, "a JSON object")
    return parser


def drain_parser() -> Parser:
    """The parser of `drain`."""
    parser = _client_parser(
        "drain",
        "drain SERVICE ID [FLAGS]",
        "Take an instance out of traffic: set it to draining, and wait until every subscriber of the service has applied that. Exit code 1 "
        "when somebody has not in time; who, is printed. The instance stays draining.",
        seconds=DRAIN_SECONDS,
        waits_for="the registry, and then for the subscribers",
    )
    _add_instance(parser)
    _add_namespace(parser)
    _add_json(parser, "a JSON object")
    return parser


def evict_parser() -> Parser:
    """The parser of `evict`."""
    parser = _client_parser(
        "evict",
        "evict SERVICE ID [FLAGS]",
        "Remove an instance whoever holds it, at once. Its program is told, and its session cannot register this id again; the program can "
        "when it is started anew. Drain the instance first if it is to end its work.",
    )
    _add_instance(parser)
    _add_namespace(parser)
    return parser


def explain_parser() -> Parser:
    """The parser of `explain`."""
    parser = _client_parser(
        "explain",
        "explain SERVICE [ID] [FLAGS]",
        "Tell why each instance of a service, or one, is in the view or is not, and what happened to it. The node remembers the last 10000 "
        "events since it started. Exit code 1 when nothing is known.",
    )
    _add_instance(parser, "?")
    _add_namespace(parser)
    _add_json(parser, "a JSON object with instances and events")
    return parser


def _add_instance(parser: Parser, count: str | None = None) -> None:
    parser.add_argument("name", metavar="SERVICE", help="The service.")
    parser.add_argument("id", metavar="ID", nargs=count, help="The id of the instance, as lookup shows it.")


def nodes_parser() -> Parser:
    """The parser of `nodes`."""
    parser = _client_parser(
        "nodes",
        "nodes [FLAGS]",
        "Show the nodes of the cluster: where they are, whether they may be controller (controller, voter, waits: it is not a member yet, "
        "no), and for how many slots they answer. Exit code 1 when one is down, or when there is no controller: then it is what the node "
        "at the other end knows.",
    )
    _add_json(parser, "a JSON array")
    return parser


def table_parser() -> Parser:
    """The parser of `table`."""
    parser = _client_parser("table", "table [FLAGS]", "Show which node answers for which slots. Exit code 1 when slots belong to nobody.")
    _add_json(parser, "a JSON array")
    return parser


def members_parser() -> Parser:
    """The parser of `members`."""
    parser = _client_parser(
        "members",
        "members [add|promote|remove NODE] [FLAGS]",
        "Show who may be controller: the candidates, how many entries of the metadata log each is behind, and whether the controller "
        "hears it; exit code 1 when it does not hear one. Or change that, one step at a time. add: the node, which has joined, receives "
        "the metadata log; promote: once it has caught up, it decides too; remove: it does neither. Use 1, 3 or 5 voters. A candidate "
        "with a new disk is a new member: remove the node, then add and promote it again.",
    )
    parser.add_argument(
        "action", metavar="add|promote|remove", nargs="?", choices=("add", "promote", "remove"), help="What to do; without it, show them."
    )
    _add_node(parser, "?")
    _add_json(parser, "a JSON array; after a change a JSON object with voters and learners")
    return parser


def _parse_members(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of `members`: whoever says what to do says to whom."""
    parser = members_parser()
    found = parser.parse(arguments)
    if found.action is not None and not found.node_id:
        parser.error("the following arguments are required: NODE")
    return found


def transfer_parser() -> Parser:
    """The parser of `transfer`."""
    parser = _client_parser(
        "transfer",
        "transfer [NODE] [FLAGS]",
        "Hand the controller's office to another voter: the one named, or the one most up to date.",
    )
    _add_node(parser, "?")
    return parser


def reset_parser() -> Parser:
    """The parser of `reset`."""
    parser = _client_parser(
        "reset",
        "reset NODE [FLAGS]",
        "Give up what was in the slots of a node whose disk was lost or replaced: they begin again, empty, on the disk that the node has "
        "now. Living clients register again by themselves; what was persistent is lost.",
    )
    _add_node(parser)
    return parser


def forget_parser() -> Parser:
    """The parser of `forget`."""
    parser = _client_parser(
        "forget", "forget NODE [FLAGS]", "Take a node that is gone for good from the list. It must be down, hold no slots and be no member."
    )
    _add_node(parser)
    return parser


def _add_node(parser: Parser, count: str | None = None) -> None:
    parser.add_argument("node_id", metavar="NODE", nargs=count, type=_node_id, default=0, help="The id of the node.")


def _node_id(text: str) -> int:
    value = _whole_number(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"node {value} is not usable: give an id from 1 to 65535")
    return value


def recover_parser() -> Parser:
    """The parser of `recover`."""
    parser = Parser(
        "recover",
        "recover --force-new-cluster --node-id NODE --data-dir DIR [FLAGS]",
        "When most candidates are lost for good: make the data directory of one that is stopped that of the only candidate of its cluster. "
        "Choose the candidate whose log reaches furthest. What only the lost ones knew is gone; numbers that they may have used are "
        "skipped. Afterwards start it, and add candidates with empty directories. If a lost candidate still runs there are two clusters. "
        "Also for a node that is alone, when its directory was put back from a backup: the numbers given since are skipped.",
    )
    parser.add_argument("--force-new-cluster", action="store_true", help="Do it.")
    parser.add_argument("--node-id", type=_node_id, required=True, metavar="NODE", help="The id of that candidate.")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="Its data directory.")
    parser.add_argument("--yes", action="store_true", help="Do not ask.")
    return parser


# --- finding the verb -----------------------------------------------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """Run the verb that the arguments name; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter must not end a verb
    if not __debug__:
        print_error("assertions must stay on: start Python without -O and without PYTHONOPTIMIZE")
        return EXIT_USAGE
    verb, rest = ("serve", arguments) if not arguments or arguments[0].startswith("-") else (arguments[0], arguments[1:])
    if verb == "help" or arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(_OVERVIEW)
        return EXIT_DONE
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"govern {VERSION}\n")
        return EXIT_DONE
    if verb not in _VERBS:
        print_error(f"there is no verb {verb!r}{_did_you_mean(verb, list(_VERBS)) or '; govern --help shows all'}")
        return EXIT_USAGE
    return _VERBS[verb](rest)


def _serve(arguments: Sequence[str]) -> int:
    found = serve_parser().parse(arguments)
    return serve(found.config, _key_flags(found), salvage=found.salvage)


def _config(arguments: Sequence[str]) -> int:
    found = config_parser().parse(arguments)
    return show_config(found.config, _key_flags(found), as_json=found.json)


def _key_flags(found: argparse.Namespace) -> dict[str, str]:
    """The keys that were given as flags, their values as they were written."""
    return {name: getattr(found, name) for name in key_names() if getattr(found, name) is not None}


def _register(arguments: Sequence[str]) -> int:
    command: Sequence[str] | None = None
    if "--" in arguments:
        place = arguments.index("--")
        arguments, command = arguments[:place], arguments[place + 1 :]
    parser = register_parser()
    found = parser.parse(arguments)
    if command is not None and not command:
        parser.error("there is no command after --")
    if command is None and found.wait_port is not None:
        parser.error("--wait-port waits for the port of a command: give one after --")
    return register(found, command or ())


_VERBS: Final[dict[str, Callable[[Sequence[str]], int]]] = {
    "serve": _serve,
    "register": _register,
    "lookup": lambda arguments: lookup(lookup_parser().parse(arguments)),
    "watch": lambda arguments: watch(watch_parser().parse(arguments)),
    "services": lambda arguments: services(services_parser().parse(arguments)),
    "status": lambda arguments: status(status_parser().parse(arguments)),
    "nodes": lambda arguments: nodes(nodes_parser().parse(arguments)),
    "table": lambda arguments: table(table_parser().parse(arguments)),
    "members": lambda arguments: members(_parse_members(arguments)),
    "transfer": lambda arguments: transfer(transfer_parser().parse(arguments)),
    "reset": lambda arguments: reset(reset_parser().parse(arguments)),
    "forget": lambda arguments: forget(forget_parser().parse(arguments)),
    "recover": lambda arguments: recover(recover_parser().parse(arguments)),
    "config": _config,
    "drain": lambda arguments: drain(drain_parser().parse(arguments)),
    "evict": lambda arguments: evict(evict_parser().parse(arguments)),
    "explain": lambda arguments: explain(explain_parser().parse(arguments)),
}
