"""What verbs print: JSON for scripts, plain columns for people, errors of one line.

O1  Results go to stdout, everything else to stderr. Each result is flushed when it is printed: the other end may be a pipe.
O2  In text for people nothing that came from elsewhere reaches the terminal as a control character.
O3  When the reader of stdout is gone, printing raises `ReaderGone`, and the verb ends quietly.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterable, Sequence

from ..errors import GovernError
from ..model import Instance

INSTANCE_COLUMNS = ("ID", "ADDRESS", "STATUS", "WEIGHT", "ZONE", "VERSION", "METADATA")


class ReaderGone(Exception):
    """Nobody reads stdout any more."""


class OutputFailed(GovernError):
    """What was to be printed could not be written."""


def print_line(text: str) -> None:
    """One line on stdout, flushed (O1); raises `ReaderGone` (O3), or `OutputFailed` for any other reason."""
    if sys.stdout is None:  # the process was started with stdout closed
        raise ReaderGone("stdout is closed")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes once more at its end, and that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise ReaderGone("nobody reads stdout") from None
        raise OutputFailed(f"cannot write to stdout: {error.strerror or error}") from None


def reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more, known without writing to it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def print_json(value: object) -> None:
    """One JSON value on one line of stdout; raises `ReaderGone`."""
    print_line(json.dumps(value))


def print_error(text: str) -> None:
    """One line on stderr, with the program's name before it."""
    print(f"govern: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with everything escaped that is no visible character or plain blank (O2)."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its widest cell and two blanks apart; an empty cell shows as `-`."""
    cells = [[printable(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def format_number(value: float) -> str:
    """A number for people: 1 and not 1.0."""
    return f"{value:g}"


def describe(instance: Instance) -> str:
    """One instance as one line that says only what is not as usual."""
    parts = [
        instance.id,
        "" if instance.address == instance.id else instance.address,
        str(instance.status),
        "" if instance.weight == 1 else f"weight {format_number(instance.weight)}",
        f"zone {instance.zone}" if instance.zone else "",
        f"version {instance.version}" if instance.version else "",
        _metadata_text(instance),
    ]
    return printable("  ".join(part for part in parts if part))


def _metadata_text(instance: Instance) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(instance.metadata.items()))


def instance_cells(instance: Instance) -> list[str]:
    """One instance as the cells of `INSTANCE_COLUMNS`."""
    return [
        instance.id,
        instance.address,
        str(instance.status),
        format_number(instance.weight),
        instance.zone,
        instance.version,
        _metadata_text(instance),
    ]
