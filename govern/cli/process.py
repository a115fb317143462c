"""One verb, one process: its event loop, its signals, and the exit codes that its errors become.

X1  Ctrl-C and SIGTERM end a verb in order, never with a traceback. A second signal ends the process at once, by its default action.
X2  An error of the world is one line on stderr and an exit code: 1 refused or not found, 2 wrong usage, 3 the registry cannot be reached.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..errors import ConfigError, GovernError, Invalid, Unreachable
from .output import ReaderGone, print_error

EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_SIGNALLED: Final = 128  # plus the number of the signal, as shells do it


class NotInTime(Unreachable):
    """The registry can be reached, and did not answer within the time that the command has."""


Verb = Callable[[], Awaitable[int]]


def exit_code_of(error: GovernError) -> int:
    """The exit code for an error (X2)."""
    if isinstance(error, Unreachable):
        return EXIT_UNREACHABLE
    return EXIT_USAGE if isinstance(error, Invalid | ConfigError) else EXIT_REFUSED


def print_failure(error: GovernError, more: str = "") -> None:
    """One line about an error, with what to do where the error itself cannot know it."""
    is_nowhere = isinstance(error, Unreachable) and not isinstance(error, NotInTime)
    hint = "; start one, or say where it is with --connect" if is_nowhere else ""
    print_error(f"{error}{hint}{more}")


def run_verb(verb: Verb, *, code_when_ended: int | None = None) -> int:
    """Run a verb until it returns its exit code or a signal ends it.

    A verb that is meant to be ended by a signal names its exit code for that; for others it is 128 plus the number of the signal.
    """
    return trio.run(_run, verb, code_when_ended)


async def _run(verb: Verb, code_when_ended: int | None) -> int:
    ended_by: list[int] = []
    code = EXIT_DONE
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch_signals() -> None:
                async for number in signals:
                    ended_by.append(number)
                    for each in (signal.SIGINT, signal.SIGTERM):
                        signal.signal(each, signal.SIG_DFL)  # X1
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch_signals)
            code = await _guard(verb)
            nursery.cancel_scope.cancel()
    if not ended_by:
        return code
    return EXIT_SIGNALLED + ended_by[0] if code_when_ended is None else code_when_ended


async def _guard(verb: Verb) -> int:
    try:
        return await verb()
    except ReaderGone:
        return EXIT_DONE
    except GovernError as error:
        print_failure(error)
        return exit_code_of(error)
