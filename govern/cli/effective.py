"""The effective configuration: read from everywhere a process is told something, and shown by `config`.

What `config` prints for people is itself a configuration file that says the same: the meaning of each key as a comment, its value, and
behind it where the value came from.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import Any, Final

from ..config import (
    DATA_DIR_STANDALONE,
    LISTEN_STANDALONE,
    ORIGIN_DEFAULT,
    Config,
    advise,
    from_flags,
    from_variables,
    key_default,
    key_doc,
    key_names,
    read_toml,
    resolve_config,
)
from ..errors import ConfigError
from .output import OutputFailed, ReaderGone, print_error, print_json, print_line, printable
from .process import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE

STANDALONE_DEFAULTS: Final = {"listen": LISTEN_STANDALONE, "data_dir": DATA_DIR_STANDALONE}
WIDTH: Final = 80


def read_effective(path: str | None, flags: Mapping[str, str]) -> tuple[Config, dict[str, str], list[str]]:
    """The configuration of a node of this process, the origin of each value, and warnings: variables that mean nothing, unwise values.

    The file is the one named, else the one that GOVERN_CONFIG names. Raises `ConfigError`.
    """
    path = path or os.environ.get("GOVERN_CONFIG")
    variables, warnings = from_variables(os.environ)
    files = [read_toml(path)] if path else []
    config, origins = resolve_config((ORIGIN_DEFAULT, STANDALONE_DEFAULTS), *files, *variables, *from_flags(flags))
    return config, origins, [*warnings, *advise(config)]


def show_config(path: str | None, flags: Mapping[str, str], *, as_json: bool) -> int:
    """Print what `serve` would run with, given the same; returns the exit code."""
    try:
        config, origins, warnings = read_effective(path, flags)
    except ConfigError as error:
        print_error(str(error))
        return EXIT_USAGE
    for warning in warnings:
        print_error(warning)
    rows = [_row(config, origins, name) for name in key_names()]
    try:
        if as_json:
            print_json(rows)
        else:
            for row in rows:
                print_line(_text(row))
    except ReaderGone:
        return EXIT_DONE
    except OutputFailed as error:
        print_error(str(error))
        return EXIT_REFUSED
    return EXIT_DONE


def _row(config: Config, origins: Mapping[str, str], name: str) -> dict[str, Any]:
    default = STANDALONE_DEFAULTS.get(name, key_default(name))
    return {"key": name, "value": getattr(config, name), "origin": origins[name], "default": default, "doc": key_doc(name)}


def _text(row: Mapping[str, Any]) -> str:
    """One key for people, as a part of a TOML file."""
    about = (
        row["doc"]
        if row["key"] in STANDALONE_DEFAULTS or not default_is_shown(row["default"])
        else f"{row['doc']} Default {toml_value(row['default'])}."
    )
    comment = textwrap.fill(about, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    line = f"{row['key']} = {toml_value(row['value'])}"
    origin = f"# {printable(row['origin'])}"
    # A long value or a long path gets a line of its own rather than one that the terminal breaks.
    ending = f"{line}  {origin}" if len(line) + 2 + len(origin) <= WIDTH else f"{origin}\n{line}"
    return f"{comment}\n{ending}\n"


def default_is_shown(default: object) -> bool:
    """Whether a default is shown; what an empty one means is in the text of its key."""
    return default not in ("", {})


def toml_value(value: object) -> str:
    """A value as TOML writes it; text without any control character."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):  # of `peers`: the ids are bare keys
        return f"{{ {', '.join(f'{key} = {toml_value(item)}' for key, item in value.items())} }}" if value else "{}"
    return f'"{"".join(map(_toml_letter, value))}"' if isinstance(value, str) else str(value)


def _toml_letter(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04X}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08X}"
