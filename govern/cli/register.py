"""`register`: an instance for a program that knows nothing of the registry.

The order is: reach the registry, register, start the command, wait for it, deregister. A command that does not exist is found out
before anything is registered. With --wait-port the command starts first, and is registered when its port accepts connections.

G1  The command depends on the registry for its start only: once it runs and is registered, nothing that happens to the registration
    ends it.
G2  The exit code is the command's; 128 + n when signal n ended it.
G3  SIGTERM, SIGINT and SIGHUP are passed on to the command, and govern ends when the command has. A Ctrl-C of the terminal is not
    passed on, because the terminal sends it to both.
G4  A start that fails leaves no command behind: when its port does not open in time, or the registry refuses it then, it is told to end
    by SIGTERM, and killed when it does not within 5 seconds.
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
from ..environment import real_environment
from ..errors import GovernError
from ..model import Instance, check_instance, check_name
from .output import print_error
from .process import EXIT_DONE, EXIT_REFUSED, EXIT_SIGNALLED, NotInTime, exit_code_of, print_failure

PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PAUSE_SECONDS_MIN: Final = 0.05
PAUSE_SECONDS_MAX: Final = 0.5
DIAL_SECONDS_MAX: Final = 2.0
"""So long one try may take: a packet that a firewall drops is answered by nobody."""
END_SECONDS: Final = 5.0


class StartFailed(GovernError):
    """The command was started and cannot be registered; `code` is what `register` ends with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


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
        self._signalled = False
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
            self._signalled = True
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
            elif self._process is not None:
                await self._end_command(self._process)

    async def _run_command(self) -> None:
        """Start the command, unless it waits for its registration already, and wait for its end."""
        try:
            process = self._process or await self._start_command()
        except StartFailed as error:
            print_error(f"{error}; it is not registered any more")
            self._code = error.code
            return
        self._code = _exit_code(await process.wait())

    async def _start_command(self) -> trio.Process:
        self._starting = True
        try:
            self._process = await trio.lowlevel.open_process(self._command)
        except OSError as error:
            raise StartFailed(f"cannot run {self._command[0]}: {error.strerror or error}", EXIT_REFUSED) from None
        finally:
            self._running.set()
        return self._process

    async def _end_command(self, process: trio.Process) -> None:
        """End a command that could not be registered (G4)."""
        process.terminate()
        with trio.move_on_after(END_SECONDS):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()

    # --- the port of the command ------------------------------------------------------------------------------------------------

    async def _start_listening(self, host: str) -> None:
        """Start the command and wait until its port accepts a connection. Raises `StartFailed` when it does not in time, or ends."""
        process = await self._start_command()
        port, command, reason = self._found.port, self._command[0], ""

        async def watch_end() -> None:
            await process.wait()
            nursery.cancel_scope.cancel()

        with trio.move_on_after(self._found.wait_port) as in_time:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_end)
                pause = PAUSE_SECONDS_MIN
                while reason := await _try_port(host, port):
                    await trio.sleep(pause)
                    pause = min(2 * pause, PAUSE_SECONDS_MAX)
                nursery.cancel_scope.cancel()
        if process.returncode is not None:
            code = _exit_code(process.returncode)
            text = f"{command} ended with exit code {code} before its port {port} was open; nothing was registered"
            raise StartFailed(text, code or (EXIT_DONE if self._signalled else EXIT_REFUSED))
        if in_time.cancelled_caught:
            text = f"port {port} of {host} did not open within {self._found.wait_port:g} s ({reason or 'no answer'}): {command} is ended"
            raise StartFailed(text, EXIT_REFUSED)

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
        except StartFailed as error:
            print_error(str(error))
            self._code = error.code
        except GovernError as error:
            print_failure(error, self._what_becomes_of_it(is_registered))
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
        fields: dict[str, Any] = {
            "port": found.port,
            "protocol": found.protocol,
            "weight": found.weight,
            "zone": found.zone,
            "version": found.instance_version,
            "metadata": dict(found.metadata),
            "ttl": found.ttl,
            "ephemeral": not found.persistent,
        }
        check_name(found.name)  # what is not valid is refused before anything is dialled
        check_instance(Instance(id="any" if found.id is None else found.id, host="any" if found.host is None else found.host, **fields))
        registry = await stack.enter_async_context(connect(found.connect, namespace=found.namespace, timeout=found.timeout))
        entering = registry.register(found.name, host=found.host, id=found.id, **fields)
        if found.wait_port is not None:
            await self._start_listening(found.host or registry.local_host)
        with trio.move_on_after(found.timeout):
            return await stack.enter_async_context(entering)
        raise NotInTime(f"the registry did not acknowledge the registration within {found.timeout:g} s")

    def _what_becomes_of_it(self, is_registered: bool) -> str:
        """What an error of the registration means for the command."""
        if is_registered:
            return "; the program goes on" if self._command else ""
        return "" if self._process is None else f"; {self._command[0]} is ended"

    async def _hold(self, registration: Registration) -> None:
        instance = registration.instance
        if not self._command:
            what = f"{registration.service.name} {instance.id}"
            way_out = f"it stays until `govern evict {what}`" if self._found.persistent else "Ctrl-C deregisters it"
            print_error(f"{what} is registered: {way_out}")
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


async def _try_port(host: str, port: int) -> str:
    """Empty when the port accepts a connection, else why not."""
    try:
        with trio.fail_after(DIAL_SECONDS_MAX):
            stream = await real_environment().network.dial(host, port)
            await stream.aclose()
    except trio.TooSlowError:
        return "no answer"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _exit_code(code: int) -> int:
    """The exit code of a process as a shell tells it (G2)."""
    return code if code >= 0 else EXIT_SIGNALLED - code


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
