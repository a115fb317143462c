"""Configuration: one table of keys, four sources, one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.config import (
    Config,
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


def test_every_bound_that_is_a_key_reaches_the_cores() -> None:
    """A key with the name of a bound sets that bound."""
    assert build_config(("flags", {"connections_max": 5, "history_ops_max": 9})).limits == Limits(connections_max=5, history_ops_max=9)
    shared = {field.name for field in attrs.fields(Limits)} & set(key_names())
    defaults = attrs.asdict(Limits())
    assert {name: getattr(Config(), name) for name in shared} == {name: defaults[name] for name in shared}


def test_every_key_is_documented() -> None:
    """One sentence at least for each; those that are true or false may be bare flags."""
    assert all(key_doc(name).rstrip().endswith(".") for name in key_names())
    assert [name for name in key_names() if key_is_flag(name)] == ["insecure", "brake"]


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
