"""`register`: an instance for a program that knows nothing of the registry.

The order is: reach the registry, register, start the command, wait for it, deregister. A command that does not exist is found out
before anything is registered.

G1  The command depends on the registry for its start only: once it runs, nothing that happens to the registration ends it.
G2  The exit code is the command's; 128 + n when signal n ended it.
G3  SIGTERM, SIGINT and SIGHUP are passed on to the command, and govern ends when the command has. A Ctrl-C of the terminal is not
    passed on, because the terminal sends it to both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import trio

from ..client import Registration, connect
from ..errors import GovernError
from .output import print_error
from .process import EXIT_DONE, EXIT_REFUSED, EXIT_SIGNALLED, NotInTime, exit_code_of, print_failure

PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def register(found: argparse.Namespace, command: Sequence[str]) -> int:
    """Register the instance and run the command, or wait for a signal when there is none; returns the exit code."""
    if command and shutil.which(command[0]) is None:
        print_error(f"cannot run {command[0]}: there is no such program; nothing was registered")
        return EXIT_REFUSED
    return trio.run(Wrapper(found, command).run)


class Wrapper:
    """One registration, one command, and what passes between them."""

    def __init__(self, found: argparse.Namespace, command: Sequence[str]) -> None:
        self._found = found
        self._command = list(command)
        self._starting = False
        self._running = trio.Event()
        self._process: trio.Process | None = None
        self._ended = trio.Event()  # the command has ended; without a command: the registration has
        self._code = EXIT_DONE

    async def run(self) -> int:
        """Run until the command has ended and its instance is deregistered; returns the exit code."""
        # Who ignores a signal (nohup does) means the command to ignore it too.
        wanted = [number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN] or [signal.SIGTERM]
        with trio.open_signal_receiver(*wanted) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_signals, signals, nursery.cancel_scope)
                await self._work()
                nursery.cancel_scope.cancel()
        return self._code

    async def _pass_signals(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            if not self._starting:
                self._code = EXIT_SIGNALLED + number if self._command else EXIT_DONE
                scope.cancel()
                continue
            await self._running.wait()
            if self._process is not None and not (number == signal.SIGINT and _is_foreground()):
                self._process.send_signal(number)  # G3

    async def _work(self) -> None:
        """The registration lives in a task of its own, so that the command goes on without it (G1)."""
        async with trio.open_nursery() as nursery:
            is_registered = await nursery.start(self._keep_registered)
            if is_registered and self._command:
                await self._run_command()
                self._ended.set()

    async def _run_command(self) -> None:
        self._starting = True
        try:
            self._process = await trio.lowlevel.open_process(self._command)
        except OSError as error:
            print_error(f"cannot run {self._command[0]}: {error.strerror or error}; it is not registered any more")
            self._code = EXIT_REFUSED
            return
        self._running.set()
        code = await self._process.wait()
        self._code = code if code >= 0 else EXIT_SIGNALLED - code  # G2

    # --- the registration -----------------------------------------------------------------------------------------------------

    async def _keep_registered(self, *, task_status: trio.TaskStatus[bool]) -> None:
        """Hold the registration until `_ended`. Tells True when it is acknowledged, False when it could not be made."""
        is_registered = False
        try:
            async with AsyncExitStack() as stack:
                registration = await self._register(stack)
                is_registered = True
                task_status.started(True)
                await self._hold(registration)
        except GovernError as error:
            print_failure(error, "; the program goes on" if is_registered and self._command else "")
            if not (is_registered and self._command):
                self._code = exit_code_of(error)
        except Exception:
            if not is_registered:
                raise
            traceback.print_exc()  # a fault of govern's own must not end the command either (G1)
        if not is_registered:
            task_status.started(False)

    async def _register(self, stack: AsyncExitStack) -> Registration:
        """The acknowledged registration; raises `Unreachable` when the registry cannot be reached, `NotInTime` when it does not answer."""
        found = self._found
        registry = await stack.enter_async_context(connect(found.connect, namespace=found.namespace, timeout=found.timeout))
        instance: dict[str, Any] = {
            "port": found.port,
            "host": found.host,
            "id": found.id,
            "protocol": found.protocol,
            "weight": found.weight,
            "zone": found.zone,
            "version": found.instance_version,
            "metadata": dict(found.metadata),
            "ttl": found.ttl,
            "ephemeral": not found.persistent,
        }
        with trio.move_on_after(found.timeout):
            return await stack.enter_async_context(registry.register(found.name, **instance))
        raise NotInTime(f"the registry did not acknowledge the registration within {found.timeout:g} s")

    async def _hold(self, registration: Registration) -> None:
        instance = registration.instance
        if not self._command:
            way_out = "it stays until it is deregistered" if self._found.persistent else "Ctrl-C deregisters it"
            print_error(f"{registration.service.name} {instance.id} is registered: {way_out}")
            if self._found.persistent:
                return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_lost, registration)
            await self._ended.wait()
            nursery.cancel_scope.cancel()

    async def _tell_lost(self, registration: Registration) -> None:
        reason = await registration.wait_lost()
        what = f"the registration of {registration.service.name} {registration.instance.id} was lost: {reason}"
        if self._command:
            print_error(f"{what}; the program goes on")
        else:
            print_error(what)
            self._code = EXIT_REFUSED
            self._ended.set()


def _is_foreground() -> bool:
    """Whether this process is in the foreground of a terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
