"""Configuration: every key, once.

A key has one name everywhere: in the TOML file, as `--flag-with-dashes`, as `GOVERN_UPPER_CASE` variable and as keyword of `open_node`.
Everything is checked here, and an error is one line that names the key, where it came from and what to do.

K1  Later sources win: defaults, file, environment, flags or keywords.
K2  Each value has an origin, the name of the source that won: `default`, the file's path, the variable, the flag. It stands beside the
    `Config` and not in it: two nodes with the same values have equal configurations.
K3  Only flags and variables, which cannot be anything but text, are converted. In a file and as a keyword a number is a number. The one
    mapping, `peers`, is a table in a file and a dictionary as keyword; its ids may be text, because the keys of TOML are nothing else.
K4  A node that takes links from others has an address to tell them, or it is refused: nobody can reach 0.0.0.0.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from .core.limits import Limits
from .core.raft.membership import VOTERS_MAX
from .errors import ConfigError, Invalid
from .model import NODE_ID_MAX, join_address, split_address

ENVIRONMENT_PREFIX: Final = "GOVERN_"
CLIENT_VARIABLES: Final = ("GOVERN_CONNECT", "GOVERN_CONFIG")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")
MIB: Final = 1024 * 1024
LISTEN_STANDALONE: Final = "127.0.0.1:7400"
DATA_DIR_STANDALONE: Final = "./govern-data"

_TRUE: Final = ("true", "yes", "1")
_FALSE: Final = ("false", "no", "0")
_whole_number_matches: Final = re.compile(r"\s*-?[0-9]{1,100}\s*").fullmatch
_node_id_matches: Final = re.compile(r"[1-9][0-9]{0,4}").fullmatch


ORIGIN_DEFAULT: Final = "default"

Source = tuple[str, Mapping[str, object]]
"""Where values come from, for people, and the values."""


def _key(default: Any, *, doc: str, low: float | None = None, high: float | None = None, choices: Sequence[str] = ()) -> Any:
    """A key. Its kind is that of its default; `dict` stands for a mapping that is empty by default."""
    metadata = {"default": {} if default is dict else default, "doc": doc, "low": low, "high": high, "choices": choices}
    return attrs.field(default=attrs.Factory(dict) if default is dict else default, metadata=metadata)


@attrs.frozen(kw_only=True)
class Config:
    """What a node can be told. Sizes are bytes, times are seconds. `govern config` prints each key with its meaning and its default."""

    node_id: int = _key(1, low=1, high=NODE_ID_MAX, doc="The number of this node, unique in its cluster and never given to another one.")
    listen: str = _key(
        "127.0.0.1:0",
        doc="HOST:PORT for clients; port 0 takes any free one. Standalone default 127.0.0.1:7400. Beyond loopback `insecure` is needed.",
    )
    data_dir: str = _key(
        "",
        doc="The data directory. Empty: everything is kept in memory and is gone with the process. Standalone default ./govern-data.",
    )
    insecure: bool = _key(
        False,
        doc="Allow clients and nodes from other machines without encryption and without authentication: anybody who reaches a port can "
        "register, and can take part in the cluster.",
    )
    peers: Mapping[int, str] = _key(
        dict,
        doc="The first candidates of a cluster, seven at most, ID = HOST:PORT each, this node among them if it is one; the same on all of "
        "them. They wait for each other once, to form the cluster; later it knows its members itself. Empty: the node is a cluster of its "
        "own.",
    )
    peer_listen: str = _key(
        "",
        doc="HOST:PORT for links of other nodes; port 0 takes any free one. Empty: the own entry of `peers`; a node that is not in `peers` "
        "takes the host of `listen` and any free port; without `peers` nothing is opened. Beyond loopback `insecure` is needed.",
    )
    candidate: bool = _key(
        True,
        doc="Whether this node keeps the records of the cluster and can be elected as its controller. A node in `peers` must. Three or "
        "five candidates are enough for any cluster; false makes a node that only serves.",
    )
    advertise: str = _key(
        "",
        doc="HOST, or HOST:PORT, under which clients and other nodes reach this node. Empty: `listen`; if that is every address of the "
        "machine, the host of the own entry of `peers` or of `peer_listen`.",
    )
    log_level: str = _key("info", choices=LOG_LEVELS, doc=f"How much is logged: {', '.join(LOG_LEVELS)}.")
    log_format: str = _key(
        "text", choices=LOG_FORMATS, doc="text, or json: one object per line with time, level, logger, message and, if any, exception."
    )
    log_file: str = _key(
        "", doc="A file for the log, beside stderr. Empty: none. An application that embeds a node sets up its logging itself instead."
    )
    log_error_file: str = _key("", doc="Another file, for warnings and errors alone. Empty: none.")
    log_file_bytes_max: int = _key(
        16 * MIB,
        low=4096,
        high=64 * 1024 * MIB,
        doc="A log file that would grow beyond this is renamed to .1, an older one to .2 and so on.",
    )
    log_files_max: int = _key(5, low=2, high=1000, doc="Files kept of each log, with the one being written.")
    brake: bool = _key(
        True,
        doc="When most clients fall silent together, hold their removal for up to ten seconds and then let it happen slowly.",
    )
    connections_max: int = _key(20_000, low=1, high=1_000_000, doc="Client connections; each costs about 3 KiB and one file descriptor.")
    sessions_max: int = _key(100_000, low=1, high=10_000_000, doc="Client sessions, connected or not; each costs about 1 KiB.")
    instances_max: int = _key(2_000_000, low=1, high=100_000_000, doc="Registered instances; each costs about 700 bytes of memory.")
    instances_per_service_max: int = _key(
        10_000, low=1, high=1_000_000, doc="Instances of one service; a view of all is sent to each subscriber."
    )
    instances_per_session_max: int = _key(10_000, low=1, high=1_000_000, doc="Instances that one client may register.")
    writes_pending_max: int = _key(10_000, low=1, high=1_000_000, doc="Writes waiting for the disk; more are refused as `overloaded`.")
    history_ops_max: int = _key(
        65_536, low=1, high=100_000_000, doc="Recent changes kept for subscribers that come back; each costs about 200 bytes."
    )
    segment_bytes: int = _key(
        16 * MIB, low=64 * 1024, high=1024 * MIB, doc="Size of a log segment; one spare segment is always kept ready."
    )
    snapshot_bytes: int = _key(
        16 * MIB, low=64 * 1024, high=64 * 1024 * MIB, doc="A snapshot is written after this much log; raising it makes restarts slower."
    )

    @property
    def address(self) -> tuple[str, int]:
        """`listen` as host and port."""
        return split_address(self.listen)

    @property
    def peer_address(self) -> tuple[str, int] | None:
        """Where to listen for links of other nodes, as host and port; None when no port is opened."""
        if self.peer_listen:
            return split_address(self.peer_listen)
        if self.node_id in self.peers:
            return split_address(self.peers[self.node_id])
        return (self.address[0], 0) if self.peers else None

    @property
    def advertised_host(self) -> str:
        """The host under which others reach this node; empty when nothing says it."""
        if self.advertise:
            return split_address(self.advertise, port_default=0)[0]
        peer = self.peer_address
        hosts = [self.address[0], *([split_address(self.peers[self.node_id])[0]] if self.node_id in self.peers else [])]
        return next((host for host in (*hosts, *([peer[0]] if peer else [])) if not _is_unspecified(host)), "")

    def clients_address(self, bound_port: int) -> str:
        """What others are told for clients, when `bound_port` is what `listen` really got: HOST:PORT. Alone, and without any host that
        others could reach, it is `listen`."""
        port = split_address(self.advertise, port_default=0)[1] if self.advertise else 0
        return join_address(self.advertised_host or self.address[0], port or bound_port)

    def peers_address(self, bound_port: int) -> str:
        """What others are told for links, when `bound_port` is what `peer_address` really got: HOST:PORT. The own entry of `peers`, for
        the others know that one already."""
        return self.peers.get(self.node_id) or join_address(self.advertised_host, bound_port)

    @property
    def limits(self) -> Limits:
        """The keys that are bounds of the cores."""
        names = {field.name for field in attrs.fields(Limits)}
        return Limits(**{name: getattr(self, name) for name in _FIELDS if name in names})


_FIELDS: Final = {field.name: field for field in attrs.fields(Config)}


def key_names() -> tuple[str, ...]:
    """All keys, in the order in which they are documented."""
    return tuple(_FIELDS)


def key_doc(name: str) -> str:
    """What a key means."""
    return str(_FIELDS[name].metadata["doc"])


def key_default(name: str) -> object:
    """The value of a key that nobody sets."""
    return _FIELDS[name].metadata["default"]


def key_flag(name: str) -> str:
    """A key as a flag of the command line."""
    return "--" + name.replace("_", "-")


def key_is_flag(name: str) -> bool:
    """Whether a key is true or false."""
    return isinstance(key_default(name), bool)


def build_config(*sources: Source) -> Config:
    """A checked `Config`, later sources winning (K1); raises `ConfigError`."""
    return resolve_config(*sources)[0]


def resolve_config(*sources: Source) -> tuple[Config, dict[str, str]]:
    """A checked `Config`, and the origin of the value of each key (K2); raises `ConfigError`."""
    values: dict[str, Any] = {}
    origins = dict.fromkeys(_FIELDS, ORIGIN_DEFAULT)
    for where, source in sources:
        for name, value in source.items():
            if name not in _FIELDS:
                raise ConfigError(f"{where}: unknown key {name!r}{suggestion(name, key_names())}")
            values[name] = _checked(where, name, value)
            origins[name] = where
    config = Config(**values)
    _check_together(config, origins)
    return config, origins


def _check_together(config: Config, origins: Mapping[str, str]) -> None:
    """Check what can be known only when all keys are."""
    host, _ = _split(config.listen, "listen", origins)
    if not config.insecure and not _is_loopback(host):
        raise ConfigError(
            f"listen = {config.listen!r} is reachable from other machines, and there is neither TLS nor authentication yet:"
            " use 127.0.0.1, or set insecure = true (--insecure) if everybody who can reach it may register"
        )
    if config.log_file and Path(config.log_file) == Path(config.log_error_file):
        raise ConfigError(f"{origins['log_error_file']}: log_error_file = {config.log_error_file!r} is log_file already: give another file")
    if config.peer_listen:
        _split(config.peer_listen, "peer_listen", origins)
    if config.advertise and _is_unspecified(_split(config.advertise, "advertise", origins, port_default=0)[0]):
        raise ConfigError(f"{origins['advertise']}: advertise = {config.advertise!r} is no address that others can reach: give one")
    _check_peers(config, origins)


def _split(text: str, name: str, origins: Mapping[str, str], *, port_default: int | None = None) -> tuple[str, int]:
    try:
        return split_address(text, port_default=port_default)
    except Invalid as error:
        raise ConfigError(f"{origins[name]}: {name}: {error}") from None


def _check_peers(config: Config, origins: Mapping[str, str]) -> None:
    """Check what a node says to other nodes, and where it listens to them."""
    if not config.candidate and config.node_id in config.peers:
        raise ConfigError(
            f"{origins['candidate']}: candidate = false, but node {config.node_id} is in peers, where the first candidates are: take it "
            "out there, or leave candidate = true"
        )
    if not config.candidate and not config.peers:
        raise ConfigError(f"{origins['candidate']}: candidate = false needs a cluster with candidates: name them in peers")
    address = config.peer_address
    if address is None:
        return
    name = "peer_listen" if config.peer_listen else "peers" if config.node_id in config.peers else "listen"
    if not config.insecure and not _is_loopback(address[0]):
        raise ConfigError(
            f"{origins[name]}: {name} = {join_address(*address)!r} is reachable from other machines, and there is neither TLS nor "
            "authentication yet: use 127.0.0.1, or set insecure = true (--insecure) if everybody who can reach it may join the cluster"
        )
    if not config.advertised_host:  # K4
        raise ConfigError(
            f"{origins['listen']}: listen = {config.listen!r} is no address that others can reach, and nothing else says one: "
            "set advertise = HOST (--advertise HOST)"
        )
    if _is_loopback(config.advertised_host) and not _is_loopback(address[0]) and not _is_unspecified(address[0]):
        raise ConfigError(
            f"{origins['listen']}: listen = {config.listen!r} is for this machine only, but {name} lets other machines in: "
            "listen on an address that their clients reach, or say it with advertise"
        )


def advise(config: Config) -> list[str]:
    """What is allowed and still unwise, a line each."""
    count = len(config.peers)
    if count and count % 2 == 0:
        bears = (count - 1) // 2
        return [f"peers names {count} candidates: they bear the loss of {bears}, as {count - 1} would; take {count - 1} or {count + 1}"]
    return []


def _checked(where: str, name: str, value: object) -> object:
    """The value, if it is of the type and within the limits of its key."""
    metadata = _FIELDS[name].metadata
    kind = type(metadata["default"])
    if type(value) is not kind:
        wanted = {bool: "true or false", int: "a whole number", str: "text", dict: "ID=HOST:PORT, separated by commas, each ID once"}[kind]
        raise ConfigError(f"{where}: {name} = {value!r} is not usable: give {wanted}")
    if isinstance(value, dict):
        return _checked_peers(where, name, value)
    low, high, choices = metadata["low"], metadata["high"], metadata["choices"]
    if low is not None and not low <= value <= high:
        raise ConfigError(f"{where}: {name} = {value} is out of range: give a number from {low} to {high}")
    if choices and value not in choices:
        raise ConfigError(f"{where}: {name} = {value!r} is not usable: give one of {', '.join(choices)}")
    return value


def _checked_peers(where: str, name: str, value: Mapping[object, object]) -> dict[int, str]:
    """The addresses by id, ascending."""
    if len(value) > VOTERS_MAX:
        raise ConfigError(
            f"{where}: {name} names {len(value)} candidates, and {VOTERS_MAX} are the most: name three or five of them; the other nodes "
            "find the cluster through these"
        )
    peers: dict[int, str] = {}
    for key, address in value.items():
        node_id = int(key) if isinstance(key, str) and _node_id_matches(key) else key
        if type(node_id) is not int or not 1 <= node_id <= NODE_ID_MAX:
            raise ConfigError(f"{where}: {name} has the id {key!r}: give a whole number from 1 to {NODE_ID_MAX}")
        if node_id in peers:
            raise ConfigError(f"{where}: {name} has node {node_id} twice: give each ID once")
        try:
            host, port = split_address(address) if type(address) is str else ("", 0)
        except Invalid:
            host, port = "", 0
        if not port or _is_unspecified(host):
            raise ConfigError(f"{where}: {name} has {address!r} for node {node_id}: give the HOST:PORT under which the others reach it")
        text = join_address(host, port)
        if text in peers.values():
            raise ConfigError(f"{where}: {name} has {text} for two nodes: give each its own address")
        peers[node_id] = text
    return dict(sorted(peers.items()))


def _converted(name: str, text: str) -> object:
    """The text as the type of its key; as it is when that is not possible, and then it is refused with the other wrong values."""
    kind = type(key_default(name)) if name in _FIELDS else str
    if kind is bool and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    if kind is int and _whole_number_matches(text):
        return int(text)
    if kind is dict:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        ids = [node_id.strip() for node_id, _, _ in pairs]
        if all(separator for _, separator, _ in pairs) and len(dict.fromkeys(ids)) == len(ids):
            return {node_id: address.strip() for node_id, (_, _, address) in zip(ids, pairs, strict=True)}
    return text


def suggestion(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(known)}" if len(known) < 8 else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


# --- sources ------------------------------------------------------------------------------------------------------------------


def read_toml(path: str) -> Source:
    """A TOML file as a source; raises `ConfigError`."""
    try:
        return path, tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from None


def from_variables(variables: Mapping[str, str]) -> tuple[list[Source], list[str]]:
    """Each `GOVERN_*` variable as a source, and a warning for each that means nothing (container platforms inject such names)."""
    sources: list[Source] = []
    warnings: list[str] = []
    for variable in sorted(variables):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in CLIENT_VARIABLES:
            continue
        name = variable[len(ENVIRONMENT_PREFIX) :].lower()
        if name in _FIELDS:
            sources.append((variable, {name: _converted(name, variables[variable])}))
        else:
            warnings.append(f"the variable {variable} is not a configuration key and is ignored")
    return sources, warnings


def from_flags(flags: Mapping[str, str]) -> list[Source]:
    """The text of each flag, under the name of its key, as a source."""
    return [(key_flag(name), {name: _converted(name, text)}) for name, text in flags.items()]
