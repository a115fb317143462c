"""The log of a standalone node: one line a record, files that stay small, and no trouble with a file that reaches the node."""

from __future__ import annotations

import json
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from govern.cli.logs import JsonFormatter, TextFormatter, open_logs, tell
from govern.config import Config
from govern.errors import ConfigError

log = logging.getLogger("govern.some.part")


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger without the handlers of others, and put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)


def record(text: str, *, failing: str = "") -> logging.LogRecord:
    """A warning, with an exception of that text if there is any."""
    exc_info = None
    if failing:
        try:
            raise ValueError(failing)
        except ValueError as error:
            exc_info = (ValueError, error, error.__traceback__)
    return logging.LogRecord("govern.some.part", logging.WARNING, "file", 1, "said %s", (text,), exc_info)


@given(st.text(), st.text(min_size=1))
def test_a_record_is_one_line_whatever_it_says(text: str, failing: str) -> None:
    """No control character leaves a formatter. As text a record begins with its time and level, and each line of an exception with a
    bar, so that nobody can forge a record; as JSON it is one object from which the message comes back as it was."""
    first, *others = TextFormatter().format(record(text, failing=failing)).split("\n")
    assert first.startswith("20")
    assert " warning govern.some.part: said " in first
    assert first.isprintable()
    assert all(line.startswith("  | ") and line.isprintable() for line in others)
    assert "\n" not in TextFormatter().format(record(text))

    line = JsonFormatter().format(record(text, failing=failing))
    assert line.isascii()
    assert line.isprintable()
    fields = json.loads(line)
    assert list(fields) == ["time", "level", "logger", "message", "exception"]
    assert (fields["level"], fields["logger"], fields["message"]) == ("warning", "govern.some.part", f"said {text}")
    assert "ValueError" in fields["exception"]
    assert "exception" not in json.loads(JsonFormatter().format(record(text)))


def test_files_are_rotated_by_size_and_bounded_in_number(tmp_path: Path) -> None:
    """However much is logged there are so many files of so many bytes, the newest records in the file itself, none lost between; the
    error file has the warnings alone."""
    path, errors = tmp_path / "node.log", tmp_path / "errors.log"
    open_logs(Config(log_file=str(path), log_error_file=str(errors), log_file_bytes_max=1000, log_files_max=3))
    for number in range(200):
        log.log(logging.WARNING if number % 100 == 0 else logging.INFO, "number %d", number)
        log.debug("of no interest")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["errors.log", "node.log", "node.log.1", "node.log.2"]
    assert all(each.stat().st_size <= 1000 for each in tmp_path.iterdir())
    text = "".join((tmp_path / name).read_text() for name in ("node.log.2", "node.log.1", "node.log"))
    kept = [int(line.rpartition(" ")[2]) for line in text.splitlines()]
    assert kept == list(range(kept[0], 200))
    assert [line.split(" ", 1)[1] for line in errors.read_text().splitlines()] == [
        f"warning govern.some.part: number {number}" for number in (0, 100)
    ]


def test_a_file_goes_on_where_it_was(tmp_path: Path) -> None:
    """A node that is started again appends."""
    (tmp_path / "node.log").write_text("of yesterday\n")
    open_logs(Config(log_file=str(tmp_path / "node.log"), log_format="json"))
    log.info("today")
    yesterday, today = (tmp_path / "node.log").read_text().splitlines()
    assert (yesterday, json.loads(today)["message"]) == ("of yesterday", "today")


@pytest.mark.parametrize("key", ["log_file", "log_error_file"])
def test_a_file_that_cannot_be_used_is_an_error_of_the_configuration(tmp_path: Path, key: str) -> None:
    """A missing directory, a directory, a device and an impossible name are one line each that names file and key."""
    for path in (str(tmp_path / "absent" / "node.log"), str(tmp_path), "/dev/null", "a\0b"):
        with pytest.raises(ConfigError, match=rf"cannot write the log file [^\n]*; give another one with {key}$"):
            open_logs(Config(**{key: path}))  # type: ignore[arg-type]


def test_trouble_with_a_file_is_told_once_and_lets_the_node_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While a file cannot be written nothing is raised and one line is told; afterwards records are written again, and the next
    trouble is told again."""
    path = tmp_path / "node.log"
    open_logs(Config(log_file=str(path)))
    logging.getLogger().handlers.pop(0)  # stderr, which is to show the trouble alone
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.info("before")
    for _ in range(2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
        try:
            log.info("lost")
            log.info("lost")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert capsys.readouterr().err == f"govern: cannot write the log file {path}: File too large\n"
        log.info("after")
    assert [line.rpartition(" ")[2] for line in path.read_text().splitlines()].count("after") == 2
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_rotated_is_written_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the file system refuses to rename, no record is lost, and it is told once."""
    path = tmp_path / "node.log"
    open_logs(Config(log_file=str(path), log_file_bytes_max=200, log_files_max=2))
    logging.getLogger().handlers.pop(0)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        for number in range(10):
            log.info("number %d", number)
    assert len(path.read_text().splitlines()) == 10
    assert capsys.readouterr().err == f"govern: cannot rotate the log file {path}: Permission denied\n"
    log.info("number 10")
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_ends_a_node_is_told_on_stderr_and_in_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    """The last words are one line on stderr: as every verb prints errors, or an object where stderr is JSON. The files have them too."""
    path, errors = tmp_path / "node.log", tmp_path / "errors.log"
    open_logs(Config(log_file=str(path), log_error_file=str(errors), log_format=log_format))
    tell("the disk is gone")
    told = capsys.readouterr().err
    assert path.read_text() == errors.read_text() != ""
    assert path.read_text().count("the disk is gone") == 1
    if log_format == "json":
        assert told == path.read_text()
        assert json.loads(told)["level"] == "error"
    else:
        assert told == "govern: the disk is gone\n"
