"""Waiting for the answer to a question, and a question to all nodes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import trio

from ..core.slots import slot_of
from ..errors import Unreachable
from ..messages import Services
from ..model import ServiceInfo, ServiceKey
from .links import Links
from .reads import Question

READ_SECONDS_MAX: Final = 10.0
"""So long a read waits for an answer, over however many connections."""


async def wait_answer(links: Links, *questions: Question, deadline: float = math.inf) -> None:
    """Wait until all questions are answered, ten seconds at most and not beyond the deadline. Raises the first error, or `Unreachable` with
    the node that has not answered; after that nobody waits for any of them."""
    links.flush()
    try:
        with trio.move_on_at(min(deadline, trio.current_time() + READ_SECONDS_MAX)):
            for question in questions:
                await links.wait_done(question)
        for question in questions:
            if not question.done:
                raise Unreachable(_explain(links, question))
    finally:
        for question in questions:
            if not question.done:
                links.note_unanswered(links.cores.where(question), question.delay)
            links.cores.forget(question)


def _explain(links: Links, question: Question) -> str:
    core = links.cores.where(question)
    if core is None or not core.connected:
        return links.explain(core)
    return f"no answer from node {core.node_id} within {READ_SECONDS_MAX:g} s"


async def gather_services(links: Links, message: Services) -> list[ServiceInfo]:
    """The services of all nodes together. Which nodes there are may change while they are asked: those that came are asked too. A client
    that has only just connected waits for the table: without it, it would ask one node and take that for all."""
    links.check_open()
    cores = links.cores
    deadline = trio.current_time() + READ_SECONDS_MAX
    answers: dict[int, list[ServiceInfo]] = {}
    while True:
        await _wait_table(links, deadline)
        missing = [node_id for node_id in cores.routing.owners() if node_id not in answers]
        if not missing and answers:
            return _merge(links, answers)
        if missing:
            answers.update(await _ask_nodes(links, message, missing, deadline))
            continue
        question = cores.ask(message, trio.current_time())
        await wait_answer(links, question, deadline=deadline)
        if not cores.routing.is_behind and not cores.routing.owners():  # nobody has a table: this node is all there is
            return list(question.answer)


async def _ask_nodes(links: Links, message: Services, node_ids: Sequence[int], deadline: float) -> dict[int, list[ServiceInfo]]:
    questions: list[Question] = []
    try:
        for node_id in node_ids:
            questions.append(links.cores.ask(message, trio.current_time(), node_id=node_id))
        await wait_answer(links, *questions, deadline=deadline)
    finally:
        for question in questions:
            links.cores.forget(question)
    return {node_id: question.answer for node_id, question in zip(node_ids, questions, strict=True)}


async def _wait_table(links: Links, deadline: float) -> None:
    """Wait until the table is here that a node has named, if one has."""
    with trio.move_on_at(deadline):
        while links.cores.routing.is_behind:
            await links.wait(links.cores.memory)


def _merge(links: Links, answers: dict[int, list[ServiceInfo]]) -> list[ServiceInfo]:
    """Each service once: as the node says that answers for it, if two name it."""
    merged: dict[ServiceKey, ServiceInfo] = {}
    for node_id, infos in answers.items():
        for info in infos:
            service = ServiceKey(info.namespace, info.name)
            if service not in merged or links.cores.routing.owner(slot_of(service)) == node_id:
                merged[service] = info
    return list(merged.values())
