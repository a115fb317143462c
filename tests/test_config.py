"""Configuration: one table of keys, four sources, one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.config import Config, build_config, from_variables, key_doc, key_is_flag, key_names, read_toml
from govern.core.limits import Limits
from govern.errors import ConfigError


def test_later_sources_win() -> None:
    """Defaults, then the file, then variables, then flags."""
    config = build_config(
        ("file", {"node_id": 2, "log_level": "debug"}), ("environment", {"node_id": "3"}), ("flags", {"log_level": "error"})
    )
    assert (config.node_id, config.log_level, config.segment_bytes) == (3, "error", Config().segment_bytes)


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
    assert build_config(("flags", {"listen": "0.0.0.0:1", "insecure": "true"})).address == ("0.0.0.0", 1)


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
    assert build_config(("flags", {"connections_max": 5, "history_ops_max": "9"})).limits == Limits(connections_max=5, history_ops_max=9)
    shared = {field.name for field in attrs.fields(Limits)} & set(key_names())
    defaults = attrs.asdict(Limits())
    assert {name: getattr(Config(), name) for name in shared} == {name: defaults[name] for name in shared}


def test_every_key_is_documented() -> None:
    """One sentence at least for each; those that are true or false may be bare flags."""
    assert all(key_doc(name).rstrip().endswith(".") for name in key_names())
    assert [name for name in key_names() if key_is_flag(name)] == ["insecure", "brake"]


def test_variables_of_strangers_are_warnings() -> None:
    """Container platforms inject names such as GOVERN_PORT_7400_TCP; a key's own variable counts, and the client's are not the node's."""
    source, warnings = from_variables(
        {"GOVERN_NODE_ID": "4", "GOVERN_SERVICE_HOST": "10.0.0.1", "GOVERN_CONNECT": "h:1", "GOVERN_CONFIG": "x", "PATH": "/bin"}
    )
    assert source == ("environment", {"node_id": "4"})
    assert warnings == ["the variable GOVERN_SERVICE_HOST is not a configuration key and is ignored"]


def test_a_file_is_read_as_toml(tmp_path: Path) -> None:
    """Values keep their TOML types; a missing or broken file is one line."""
    path = tmp_path / "govern.toml"
    path.write_text('node_id = 7\nlisten = "127.0.0.1:0"\n')
    assert build_config(read_toml(str(path))).node_id == 7
    path.write_text("node_id 7")
    with pytest.raises(ConfigError, match="is not a TOML file"):
        read_toml(str(path))
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        read_toml(str(tmp_path / "none.toml"))
