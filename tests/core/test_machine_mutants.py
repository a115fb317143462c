"""Broken brakes, gates, histories and pages of resync: the machines that compare them with models find every one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from govern.core import links as links_module
from govern.core.history import Event, History
from govern.core.links import Gate

from . import test_liveness_mutants as liveness
from .test_brake_machine import BrakeMachine
from .test_history import HistoryMachine
from .test_links import GateMachine
from .test_mutants import Mutant, machine
from .test_resync import PageMachine

BRAKE, GATE, HISTORY, PAGES = machine(BrakeMachine), machine(GateMachine), machine(HistoryMachine), machine(PageMachine)


def one_host_has_all_places(patch: pytest.MonkeyPatch) -> None:
    admit = Gate.admit

    def mutant(self: Gate, link: Any) -> Any:
        link.peer, host = "everybody", link.peer
        try:
            return admit(self, link)
        finally:
            link.peer = host

    patch.setattr(Gate, "admit", mutant)


def saturated_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(links_module, "SATURATED_US_MAX", 1 << 60)


def every_full_turn_begins_anew(patch: pytest.MonkeyPatch) -> None:
    note = Gate.note_full_accept

    def mutant(self: Gate, now_us: int) -> None:
        self._saturated_until_us = 0
        note(self, now_us)

    patch.setattr(Gate, "note_full_accept", mutant)


def connections_push_out_instances(patch: pytest.MonkeyPatch) -> None:
    note = History.note_connection

    def mutant(self: History, *arguments: Any) -> None:
        note(self, *arguments)
        if len(self._instances) > 1:
            self._instances.popleft()

    patch.setattr(History, "note_connection", mutant)


def ids_of_all_services(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: History, service: object, instance_id: str) -> list[Event]:
        return [event for event in self._instances if event[4] == instance_id or (not instance_id and event[3] == service)]

    patch.setattr(History, "of_instances", mutant)


def looks_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(History, "admit", lambda self, now_us: None)


def strangers_are_told_of(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: History, session_ids: Iterable[bytes]) -> list[Event]:
        return list(self._connections)

    patch.setattr(History, "of_connections", mutant)


MUTANTS = [
    Mutant(liveness.never_engaged, BRAKE, 30),
    Mutant(liveness.engaged_for_few, BRAKE, 30),
    Mutant(liveness.held_for_ever, BRAKE, 60),
    Mutant(liveness.the_heard_are_let_go_too, BRAKE, 60),
    Mutant(liveness.held_twice_for_one_silence, BRAKE, 60),
    Mutant(liveness.only_the_named_are_counted, BRAKE, 30),
    Mutant(one_host_has_all_places, GATE, 10),
    Mutant(saturated_for_ever, GATE, 60),
    Mutant(every_full_turn_begins_anew, GATE, 60),
    Mutant(connections_push_out_instances, HISTORY, 20),
    Mutant(ids_of_all_services, HISTORY, 20),
    Mutant(looks_are_not_counted, HISTORY, 60),
    Mutant(strangers_are_told_of, HISTORY, 20),
    Mutant(liveness.all_differences_are_unknown, PAGES, 30),
    Mutant(liveness.any_other_holder_has_won, PAGES, 30),
    Mutant(liveness.the_barred_are_not_told, PAGES, 300),
    Mutant(liveness.every_page_names_the_extra, PAGES, 60),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks.__name__)
def test_every_broken_core_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its number of examples."""
    mutant.breaks(monkeypatch)
    with pytest.raises(AssertionError):
        mutant.check(mutant.examples)
