"""`simulate`: the same seed is the same run, everywhere; and a run ends, whatever the scenario does."""

from __future__ import annotations

import itertools
import os
import runpy
import subprocess
import sys

import pytest
import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

from govern.net.sim import SimNetwork
from govern.testing import Deadlock, HorizonPassed, Livelock, Outcome, simulate
from govern.testing.scheduler import make_clock

Log = list[tuple[int, int, str, float]]

CLIENTS = 5
REQUESTS = 12


async def _serve_echo(network: SimNetwork, task_status: trio.TaskStatus[int]) -> None:
    poller = await network.host("server").open_poller("0.0.0.0", 0)
    task_status.started(poller.address[1])
    while True:
        await poller.wait()
        poller.accept(2)
        for connection in poller.ready(3):
            data = connection.recv()
            if data == b"":
                connection.close()
            while data:
                sent = connection.send(data)
                if sent <= 0:
                    break  # broken: the next `recv` says so; the answers here are far smaller than the window
                data = data[sent:]


async def _ask(network: SimNetwork, port: int, client: int, log: Log) -> None:
    """Send numbered requests and wait for each echo; after a reset dial again and repeat the request."""
    number = 0
    while number < REQUESTS:
        try:
            async with await network.host(f"client{client}").dial("server", port) as stream:
                while number < REQUESTS:
                    request = f"{client}/{number}".encode()
                    await stream.send_all(request)
                    answer = b""
                    while answer != request:
                        piece = await stream.receive_some()
                        if not piece:
                            raise trio.BrokenResourceError
                        answer += piece
                    log.append((client, number, "answered", trio.current_time()))
                    number += 1
        except (OSError, trio.BrokenResourceError) as error:
            log.append((client, number, type(error).__name__, trio.current_time()))


async def echo_with_cuts(seed: int) -> Log:
    """Clients ask a server over the simulated network while connections are cut at drawn moments."""
    network = SimNetwork(seed)
    chance = network.new_random("cuts")
    log: Log = []
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        port = await nursery.start(_serve_echo, network)

        async def cut_now_and_then() -> None:
            while True:
                await trio.sleep(chance.uniform(0.001, 0.01))
                network.cut(f"client{chance.randrange(CLIENTS)}")

        nursery.start_soon(cut_now_and_then)
        async with trio.open_nursery() as clients:
            for client in range(CLIENTS):
                clients.start_soon(_ask, network, port, client, log)
        nursery.cancel_scope.cancel()
    return log


def run_in_another_process(seed: int, hash_seed: str) -> str:
    """The trace and the log of the same scenario, from a fresh interpreter with its own PYTHONHASHSEED."""
    program = (
        "import runpy, sys\n"
        f"names = runpy.run_path({__file__!r})\n"
        f"outcome = names['simulate']({seed}, names['echo_with_cuts'])\n"
        "print(outcome.trace, outcome.result)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def simulate_as_file(seed: int) -> Outcome[Log]:
    """The scenario under the name it has in another process: task names are part of the trace."""
    names = runpy.run_path(__file__)
    outcome: Outcome[Log] = simulate(seed, names["echo_with_cuts"])
    return outcome


# --- R1: determinism --------------------------------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_run() -> None:
    """Twice in one process: the same trace, steps, results and times; and the scenario did meet resets."""
    first, second = simulate(7, echo_with_cuts), simulate(7, echo_with_cuts)
    assert first == second
    assert sum(what == "answered" for _, _, what, _ in first.result) == CLIENTS * REQUESTS
    assert any(what != "answered" for _, _, what, _ in first.result)


def test_another_process_with_other_hashes_has_the_same_run() -> None:
    """Two fresh interpreters with different PYTHONHASHSEED give the trace and the log of this one."""
    here = simulate_as_file(7)
    expected = f"{here.trace} {here.result}"
    assert run_in_another_process(7, "1") == expected
    assert run_in_another_process(7, "4242") == expected


def test_other_seeds_are_other_runs() -> None:
    """Eight seeds give eight traces: the schedule and the network really depend on the seed."""
    traces = [simulate(seed, echo_with_cuts).trace for seed in range(8)]
    assert len(dict.fromkeys(traces)) == 8


def test_the_schedule_alone_depends_on_the_seed() -> None:
    """Without any network, tasks that are ready together run in an order drawn from the seed, and the same each time."""

    async def race(seed: int) -> str:
        order: list[str] = []

        async def run(name: str) -> None:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                order.append(name)

        async with trio.open_nursery() as nursery:
            for name in "abcdef":
                nursery.start_soon(run, name)
        return "".join(order)

    orders = [simulate(seed, race).result for seed in (1, 2, 3, 1, 2, 3)]
    assert orders[:3] == orders[3:]
    assert len(dict.fromkeys(orders)) == 3


def test_a_run_leaves_the_scheduler_as_it_was() -> None:
    """The flag and the generator of trio are put back, also when the scenario fails."""

    async def fail(seed: int) -> None:
        raise KeyError("on purpose")

    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    simulate(3, echo_with_cuts)
    with pytest.raises(KeyError):
        simulate(3, fail)
    assert (trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()) == before


def test_trio_still_has_the_private_names() -> None:
    """Canary: when a new trio fails here, govern/testing/scheduler.py must learn its new way to order tasks, or to keep the time."""
    assert type(vars(trio_run).get("_ALLOW_DETERMINISTIC_SCHEDULING")) is bool
    assert callable(getattr(vars(trio_run).get("_r"), "shuffle", None))
    ours, plain = make_clock(), MockClock()
    for clock in (ours, plain):
        clock.jump(2.5)
    assert ours.current_time() == plain.current_time() == 2.5


def test_the_clock_stands_still_while_a_task_can_run() -> None:
    """S4"""

    async def sleep(seed: int) -> list[float]:
        seen = []
        for deadline in (0.5, 0.75, 1e6):
            for _ in range(10):
                await trio.lowlevel.checkpoint()
                seen.append(trio.current_time())
            await trio.sleep_until(deadline)
        return [*seen, trio.current_time()]

    assert simulate(0, sleep, horizon=2e6).result == [0.0] * 10 + [0.5] * 10 + [0.75] * 10 + [1e6]


# --- R2: every run ends -----------------------------------------------------------------------------------------------------


def test_a_deadlock_is_told() -> None:
    """Two tasks that wait for each other for ever end the run with `Deadlock`, and cleanups run."""
    cleaned: list[str] = []

    async def wait_for_each_other(seed: int) -> None:
        first, second = trio.Event(), trio.Event()

        async def wait(mine: trio.Event, other: trio.Event) -> None:
            try:
                await other.wait()
                mine.set()
            finally:
                cleaned.append("cleaned")

        await trio.sleep(50)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, first, second)
            nursery.start_soon(wait, second, first)

    with pytest.raises(Deadlock, match=r"seed 9, 50\.000000 simulated seconds"):
        simulate(9, wait_for_each_other)
    assert cleaned == ["cleaned", "cleaned"]


def test_a_scenario_that_never_finishes_meets_its_horizon() -> None:
    """A tick that never idles hides a deadlock from the watch; the horizon, in virtual seconds, does not let it go on."""

    async def tick(seed: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for ticks in itertools.count():
                await trio.sleep_until(ticks / 10)

    with pytest.raises(HorizonPassed, match=r"seed 9, 20\.\d+ simulated seconds"):
        simulate(9, tick, horizon=20.0)


def test_tasks_that_spin_without_time_passing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that are always ready keep the virtual clock from moving: a bounded number of steps per moment ends it."""
    monkeypatch.setattr("govern.testing.run._STEPS_PER_MOMENT_MAX", 10_000)

    async def spin(seed: int) -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(Livelock, match="seed 9"):
        simulate(9, spin)


def test_idle_time_costs_nothing() -> None:
    """A year of sleeping is a few steps: the clock jumps."""

    async def sleep_a_year(seed: int) -> float:
        await trio.sleep(365 * 86400)
        return trio.current_time()

    outcome = simulate(1, sleep_a_year, horizon=1e9)
    assert outcome.result == outcome.simulated_seconds == 365 * 86400
    assert outcome.steps < 20


# --- R3: what a scenario raises ---------------------------------------------------------------------------------------------


def test_a_single_exception_comes_out_of_its_groups_with_the_seed() -> None:
    """An exception alone in nested groups is raised itself, and its notes say how to run it again."""

    async def fail(seed: int) -> None:
        async with trio.open_nursery() as outer:
            outer.start_soon(trio.sleep, 1)
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep, 1)
                raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        simulate(11, fail)
    assert "seed 11" in caught.value.__notes__[0]


def test_several_exceptions_stay_together() -> None:
    """Two failures are a group of two."""

    async def fail_twice(seed: int) -> None:
        async def fail(error: Exception) -> None:
            raise error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, KeyError())
            nursery.start_soon(fail, ValueError())

    with pytest.raises(ExceptionGroup) as caught:
        simulate(11, fail_twice)
    assert sorted(type(error).__name__ for error in caught.value.exceptions) == ["KeyError", "ValueError"]


def test_arguments_reach_the_scenario() -> None:
    """The scenario is called with the seed and the further arguments, and its result comes back."""

    async def add(seed: int, one: int, other: int) -> int:
        await trio.sleep(1.5)
        return seed + one + other

    outcome = simulate(100, add, 20, 3)
    assert (outcome.result, outcome.simulated_seconds) == (123, 1.5)
