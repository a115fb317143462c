"""Waiting for the answer to a question, and a question to all nodes at once."""

from __future__ import annotations

import math
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
            links.cores.forget(question)


def _explain(links: Links, question: Question) -> str:
    core = links.cores.where(question)
    if core is None or not core.connected:
        return links.explain(core)
    return f"no answer from node {core.node_id} within {READ_SECONDS_MAX:g} s"


async def gather_services(links: Links, message: Services) -> list[ServiceInfo]:
    """The services of all nodes together. Which nodes there are may change while they are asked: those that came are asked too."""
    links.check_open()
    cores, now = links.cores, trio.current_time()
    answers: dict[int, list[ServiceInfo]] = {}
    while missing := [node_id for node_id in cores.routing.owners() if node_id not in answers]:
        questions: list[Question] = []
        try:
            for node_id in missing:
                questions.append(cores.ask(message, now, node_id=node_id))
            await wait_answer(links, *questions, deadline=now + READ_SECONDS_MAX)
        finally:
            for question in questions:
                cores.forget(question)
        answers.update({node_id: question.answer for node_id, question in zip(missing, questions, strict=True)})
    if not answers:
        question = cores.ask(message, now)
        await wait_answer(links, question)
        return list(question.answer)
    return _merge(links, answers)


def _merge(links: Links, answers: dict[int, list[ServiceInfo]]) -> list[ServiceInfo]:
    """Each service once: as the node says that answers for it, if two name it."""
    merged: dict[ServiceKey, ServiceInfo] = {}
    for node_id, infos in answers.items():
        for info in infos:
            service = ServiceKey(info.namespace, info.name)
            if service not in merged or links.cores.routing.owner(slot_of(service)) == node_id:
                merged[service] = info
    return list(merged.values())
