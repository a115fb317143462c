"""Configuration: one table of keys, four sources, one line for every mistake."""

from __future__ import annotations

import tomllib
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.cli.effective import toml_value
from govern.config import (
    Config,
    advise,
    build_config,
    from_flags,
    from_variables,
    key_doc,
    key_flag,
    key_is_flag,
    key_names,
    read_toml,
    resolve_config,
)
from govern.core.limits import Limits
from govern.errors import ConfigError
from govern.model import join_address


def test_later_sources_win_and_each_value_knows_its_origin() -> None:
    """Defaults, then the file, then variables, then flags; beside the configuration stands where each value came from, and two
    configurations with the same values are equal wherever they came from."""
    variables, _ = from_variables({"GOVERN_NODE_ID": "3", "GOVERN_SESSIONS_MAX": "30"})
    file = ("govern.toml", {"node_id": 2, "log_level": "debug", "instances_max": 7, "sessions_max": 20})
    config, origins = resolve_config(file, *variables, *from_flags({"log_level": "error", "sessions_max": "40"}))
    assert (config.node_id, config.log_level, config.segment_bytes) == (3, "error", Config().segment_bytes)
    assert {name: origin for name, origin in origins.items() if origin != "default"} == {
        "node_id": "GOVERN_NODE_ID",
        "log_level": "--log-level",
        "instances_max": "govern.toml",
        "sessions_max": "--sessions-max",
    }
    assert tuple(origins) == key_names()
    assert config == build_config(("elsewhere", {"node_id": 3, "log_level": "error", "instances_max": 7, "sessions_max": 40}))


@pytest.mark.parametrize(("name", "text", "value"), [("node_id", "3", 3), ("insecure", "YES", True), ("insecure", "0", False)])
def test_only_what_cannot_be_anything_but_text_is_converted(name: str, text: str, value: object) -> None:
    """Flags and variables become the type of their key; the same text in a file or as a keyword is refused."""
    (flag,) = from_flags({name: text})
    ((variable,), _) = from_variables({f"GOVERN_{name.upper()}": text})
    assert flag == (key_flag(name), {name: value})
    assert variable == (f"GOVERN_{name.upper()}", {name: value})
    with pytest.raises(ConfigError, match=f"somewhere: {name} = '{text}' is not usable"):
        build_config(("somewhere", {name: text}))


@given(st.sampled_from(key_names()), st.text())
def test_any_text_of_a_flag_leads_to_a_config_or_to_a_config_error(name: str, text: str) -> None:
    """Whatever is written behind a flag or into a variable, the answer is a configuration or one line that names the flag."""
    try:
        config = build_config(*from_flags({name: text}))
    except ConfigError as error:
        assert key_flag(name) in str(error) or name == "listen"
        assert "\n" not in str(error)
    else:
        assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"node_idd": 1}, "unknown key 'node_idd'; did you mean 'node_id'?"),
        ({"node_id": "one"}, "node_id = 'one' is not usable: give a whole number"),
        ({"node_id": 0}, "node_id = 0 is out of range: give a number from 1 to 65535"),
        ({"node_id": True}, "node_id = True is not usable: give a whole number"),
        ({"insecure": "perhaps"}, "give true or false"),
        ({"data_dir": 7}, "give text"),
        ({"log_level": "loud"}, "give one of debug, info, warning, error"),
        ({"listen": "nowhere"}, "listen:"),
        ({"listen": "127.0.0.1:99999"}, "listen:"),
        ({"segment_bytes": 1}, "out of range"),
        ({"listen": "0.0.0.0:7400"}, "insecure = true (--insecure)"),
        ({"listen": "registry.example:7400"}, "insecure = true (--insecure)"),
        ({"listen": "[::]:7400"}, "insecure = true (--insecure)"),
        ({"peers": "1=h:1"}, "peers = '1=h:1' is not usable: give ID=HOST:PORT"),
        ({"peers": {"one": "h:1"}}, "somewhere: peers has the id 'one': give a whole number from 1 to 65535"),
        ({"peers": {0: "h:1"}}, "give a whole number from 1 to 65535"),
        ({"peers": {True: "h:1"}}, "give a whole number from 1 to 65535"),
        ({"peers": {"01": "h:1"}}, "give a whole number from 1 to 65535"),
        ({"peers": {1: "h:1", "1": "h:2"}}, "peers has node 1 twice"),
        ({"peers": {1: "h:1", 2: "h:1"}}, "peers has h:1 for two nodes: give each its own address"),
        ({"peers": {1: "h"}}, "peers has 'h' for node 1: give the HOST:PORT"),
        ({"peers": {1: "h:0"}}, "give the HOST:PORT under which the others reach it"),
        ({"peers": {1: "0.0.0.0:1"}}, "give the HOST:PORT under which the others reach it"),
        ({"peers": {1: 7}}, "peers has 7 for node 1: give the HOST:PORT"),
        ({"peers": {2: "localhost:1"}, "node_id": 2, "candidate": False}, "candidate = false, but node 2 is in peers"),
        ({"candidate": False}, "candidate = false needs a cluster with candidates: name them in peers"),
        ({"peer_listen": "nowhere"}, "somewhere: peer_listen:"),
        ({"peer_listen": "0.0.0.0:1"}, "somewhere: peer_listen = '0.0.0.0:1' is reachable from other machines"),
        ({"peers": {1: "10.0.0.1:1"}}, "somewhere: peers = '10.0.0.1:1' is reachable from other machines"),
        ({"peers": {1: "10.0.0.1:1"}, "insecure": True}, "is for this machine only, but peers lets other machines in"),
        ({"peers": {2: "h:1"}, "listen": "0.0.0.0:1", "insecure": True}, "set advertise = HOST (--advertise HOST)"),
        ({"advertise": "0.0.0.0"}, "advertise = '0.0.0.0' is no address that others can reach"),
        ({"advertise": "a b"}, "somewhere: advertise:"),
    ],
)
def test_each_mistake_is_one_line_that_says_what_to_do(values: dict[str, object], part: str) -> None:
    """The message names the key and the remedy, in one line."""
    with pytest.raises(ConfigError) as caught:
        build_config(("somewhere", values))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.9.10:1", "localhost:7400", "[::1]:7400"])
def test_loopback_needs_no_permission(listen: str) -> None:
    """What only this machine can reach is allowed; with `insecure` everything is."""
    assert build_config(("flags", {"listen": listen})).listen == listen
    assert build_config(("flags", {"listen": "0.0.0.0:1", "insecure": True})).address == ("0.0.0.0", 1)


@given(
    st.dictionaries(st.sampled_from([*key_names(), "other"]), st.one_of(st.integers(), st.text(), st.booleans(), st.floats(), st.none()))
)
def test_any_values_lead_to_a_config_or_to_a_config_error(values: dict[str, object]) -> None:
    """Nothing else ever comes out of the door."""
    try:
        config = build_config(("anywhere", values))
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("keys", "peer", "clients", "peers"),
    [
        ({}, None, "127.0.0.1:9", None),
        ({"listen": "0.0.0.0:0"}, None, "0.0.0.0:9", None),
        ({"peer_listen": "127.0.0.1:5"}, ("127.0.0.1", 5), "127.0.0.1:9", "127.0.0.1:8"),
        ({"peers": {1: "127.0.0.1:7", 2: "127.0.0.1:8"}}, ("127.0.0.1", 7), "127.0.0.1:9", "127.0.0.1:7"),
        ({"peers": {2: "127.0.0.1:8"}}, ("127.0.0.1", 0), "127.0.0.1:9", "127.0.0.1:8"),
        ({"peers": {1: "h:7"}, "listen": "0.0.0.0:0"}, ("h", 7), "h:9", "h:7"),
        ({"peers": {1: "h:7"}, "listen": "[::]:0", "peer_listen": "0.0.0.0:6"}, ("0.0.0.0", 6), "h:9", "h:7"),
        ({"peers": {2: "h:7"}, "listen": "0.0.0.0:0", "peer_listen": "[fd00::1]:6"}, ("fd00::1", 6), "[fd00::1]:9", "[fd00::1]:8"),
        ({"peers": {2: "h:7"}, "listen": "0.0.0.0:0", "advertise": "me"}, ("0.0.0.0", 0), "me:9", "me:8"),
        ({"peers": {1: "h:7"}, "listen": "127.0.0.1:0", "advertise": "me:80"}, ("h", 7), "me:80", "h:7"),
    ],
)
def test_where_a_node_listens_to_others_and_what_it_tells_them(
    keys: dict[str, object], peer: tuple[str, int] | None, clients: str, peers: str | None
) -> None:
    """The address for links comes from `peer_listen`, the own entry of `peers`, or the host of `listen`; what is told can be reached."""
    config = build_config(("keys", {"insecure": True, **keys}))
    assert config.peer_address == peer
    assert config.clients_address(9) == clients
    assert peers is None or config.peers_address(8) == peers


@given(st.dictionaries(st.integers(1, 65535), st.tuples(st.sampled_from(["a", "10.0.0.1", "fd00::1"]), st.integers(1, 65535)), max_size=5))
def test_the_peers_are_the_same_from_every_source(found: dict[int, tuple[str, int]]) -> None:
    """As a flag, as a variable, as a table of TOML and as a keyword with numbers or text: one mapping, ascending by id."""
    addresses = {node_id: join_address(*address) for node_id, address in found.items()}
    if len(dict.fromkeys(addresses.values())) < len(addresses):
        return
    text = ",".join(f"{node_id}={address}" for node_id, address in addresses.items())
    table = tomllib.loads(f"insecure = true\nadvertise = 'me'\npeers = {toml_value(dict(addresses))}\n")
    keys = {"insecure": True, "advertise": "me"}
    expected = build_config(("keyword", {**keys, "peers": addresses}))
    assert list(expected.peers) == sorted(addresses)
    assert expected.peers == addresses
    assert build_config(("keyword", {**keys, "peers": {str(key): value for key, value in addresses.items()}})) == expected
    assert build_config(("keys", keys), *from_flags({"peers": text})) == expected
    assert build_config(("keys", keys), *from_variables({"GOVERN_PEERS": text})[0]) == expected
    assert build_config(("file", table)) == expected


def test_the_peers_of_a_flag_may_have_spaces_and_are_not_shared() -> None:
    """Blanks around commas and equals signs do not matter; a repeated id is refused; two configurations never share their mapping."""
    (source,) = from_flags({"peers": " 2 = h:2 , 1=h:1, "})
    assert build_config(("keys", {"insecure": True, "listen": "h:0"}), source).peers == {1: "h:1", 2: "h:2"}
    with pytest.raises(ConfigError, match=r"^--peers: peers = '1=a:1,1=b:1' is not usable: give .*each ID once$"):
        build_config(*from_flags({"peers": "1=a:1,1=b:1"}))
    assert Config().peers is not Config().peers


def test_even_numbers_of_candidates_are_advised_against_and_more_than_seven_refused() -> None:
    """Two and four bear no more than one and three do. The rest goes without a word, up to the most that a cluster can have."""
    listed = {count: {number: f"h:{number}" for number in range(1, count + 1)} for count in range(9)}
    said = {count: advise(Config(peers=listed[count])) for count in range(8)}
    assert [count for count, lines in said.items() if lines] == [2, 4, 6]
    assert build_config(("keys", {"insecure": True, "listen": "h:0", "peers": listed[7]})).peers == listed[7]
    with pytest.raises(ConfigError, match=r"^keys: peers names 8 candidates, and 7 are the most: name three or five"):
        build_config(("keys", {"insecure": True, "listen": "h:0", "peers": listed[8]}))
    assert said[2] == ["peers names 2 candidates: they bear the loss of 0, as 1 would; take 1 or 3"]
    assert said[4] == ["peers names 4 candidates: they bear the loss of 1, as 3 would; take 3 or 5"]


def test_every_bound_that_is_a_key_reaches_the_cores() -> None:
    """A key with the name of a bound sets that bound."""
    assert build_config(("flags", {"connections_max": 5, "history_ops_max": 9})).limits == Limits(connections_max=5, history_ops_max=9)
    shared = {field.name for field in attrs.fields(Limits)} & set(key_names())
    defaults = attrs.asdict(Limits())
    assert {name: getattr(Config(), name) for name in shared} == {name: defaults[name] for name in shared}


def test_every_key_is_documented() -> None:
    """One sentence at least for each; those that are true or false may be bare flags."""
    assert all(key_doc(name).rstrip().endswith(".") for name in key_names())
    assert [name for name in key_names() if key_is_flag(name)] == ["insecure", "candidate", "brake"]


def test_variables_of_strangers_are_warnings() -> None:
    """Container platforms inject names such as GOVERN_PORT_7400_TCP; a key's own variable counts, and the client's are not the node's."""
    sources, warnings = from_variables(
        {"GOVERN_NODE_ID": "4", "GOVERN_SERVICE_HOST": "10.0.0.1", "GOVERN_CONNECT": "h:1", "GOVERN_CONFIG": "x", "PATH": "/bin"}
    )
    assert sources == [("GOVERN_NODE_ID", {"node_id": 4})]
    assert warnings == ["the variable GOVERN_SERVICE_HOST is not a configuration key and is ignored"]


def test_a_file_is_read_as_toml(tmp_path: Path) -> None:
    """Values keep their TOML types, so text is no number; a missing or broken file is one line."""
    path = tmp_path / "govern.toml"
    path.write_text('node_id = 7\nlisten = "127.0.0.1:0"\n')
    assert build_config(read_toml(str(path))).node_id == 7
    for wrong in ('node_id = "7"', 'insecure = "true"', "data_dir = 7", "node_id = 7.0", "[node_id]"):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"govern\.toml: .* is not usable: give"):
            build_config(read_toml(str(path)))
    path.write_text("node_id 7")
    with pytest.raises(ConfigError, match="is not a TOML file"):
        read_toml(str(path))
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        read_toml(str(tmp_path / "none.toml"))
