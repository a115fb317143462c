"""The log of a standalone node: stderr, and files that are rotated by size.

An application that embeds a node sets up logging as it likes; nothing of this module is used then.

J1  One record is one line, whatever a client called itself: control characters are escaped. The lines of an exception follow
    their text record behind a bar; in JSON they are a part of the object.
J2  A file that cannot be used is found out at the start (`ConfigError`). Later nothing that happens to a log stops the node: the trouble is
    told on stderr, once until it changes, and the record may be lost.
J3  What ends the node is in every log.

Records are written where they arise, in the event loop, into the page cache and without any fsync.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from ..config import Config
from ..errors import ConfigError
from ..model import format_time_ms
from .output import print_error, printable

BAR: Final = "  | "

_log = logging.getLogger("govern")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z warning govern.actors.node: text`, on one line (J1)."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"{_moment(record)} {record.levelname.lower()} {record.name}: {printable(record.message)}"

    def formatException(self, ei: object) -> str:
        return "\n".join(BAR + printable(line) for line in super().formatException(ei).splitlines())  # type: ignore[arg-type]


class JsonFormatter(logging.Formatter):
    """One JSON object: `time`, `level`, `logger`, `message`, and `exception` where there is one; nothing but printable ASCII (J1)."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": _moment(record), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields).replace("\x7f", "\\u007f")


def _moment(record: logging.LogRecord) -> str:
    return format_time_ms(round(record.created * 1000))


class LogFile(RotatingFileHandler):
    """A file of at most so many bytes; older ones are kept beside it as `.1` (the newest), `.2` and so on."""

    def __init__(self, path: str, *, bytes_max: int, files_max: int) -> None:
        super().__init__(path, maxBytes=bytes_max, backupCount=files_max - 1, encoding="utf-8", errors="backslashreplace")
        self._path = path
        self._told = ""
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        if not self._failed:
            self._told = ""

    def doRollover(self) -> None:
        """Begin the next file. Where the file system refuses, the present one grows: a long log is better than none."""
        try:
            super().doRollover()
        except OSError as error:
            self.stream = None  # it is closed; the record opens the file again
            self._tell(f"cannot rotate the log file {self._path}: {error.strerror or error}")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._tell(f"cannot write the log file {self._path}: {error.strerror or error}")
        else:
            super().handleError(record)  # our own bug: it is told on stderr, and the node goes on

    def _tell(self, text: str) -> None:
        self._failed = True
        if text != self._told:
            self._told = text
            with contextlib.suppress(OSError):  # J2, also when stderr is gone
                print_error(text)


def open_logs(config: Config) -> None:
    """Send the records of this process where the configuration says; raises `ConfigError` when a file cannot be used (J2)."""
    formatter = JsonFormatter() if config.log_format == "json" else TextFormatter()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if config.log_file:
        handlers.append(_open_file("log_file", config.log_file, config))
    if config.log_error_file:
        handlers.append(_open_file("log_error_file", config.log_error_file, config))
        handlers[-1].setLevel(logging.WARNING)
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=config.log_level.upper(), handlers=handlers, force=True)


def _open_file(key: str, path: str, config: Config) -> LogFile:
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError(0, "it is not a file")
        file = LogFile(path, bytes_max=config.log_file_bytes_max, files_max=config.log_files_max)
        space = os.statvfs(path)
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot write the log file {path}: {reason}; give another one with {key}") from None
    if space.f_blocks and not space.f_bfree:
        file.close()
        raise ConfigError(f"cannot write the log file {path}: no space left on device; make space, or give another one with {key}")
    return file


def tell(text: str, level: int = logging.ERROR) -> None:
    """One line for whoever started the node, as every verb prints it, which no log lacks either (J3)."""
    record = _log.makeRecord(_log.name, level, "", 0, "%s", (text,), None)
    is_told = False
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile) or isinstance(handler.formatter, JsonFormatter):
            handler.handle(record)
            is_told = is_told or not isinstance(handler, LogFile)
    if not is_told:
        print_error(text)
