"""Accepts and resolutions together, in one transaction for a batch of both.

A stream's accept and the resolution behind it take the same locks and write the same log; written
apart they were two transactions a life. Within a batch a task's accept goes before its resolution,
whatever the distance between them; where one stream asks for both, they are one change of the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from server.errors import QueueError
from server.store.database import Statement, Transaction
from server.transitions.claiming import Offered, accept_statement, accepted
from server.transitions.facts import TaskFacts
from server.transitions.machine import TRANSITIONS, Effects, Machine, insert_events
from server.transitions.resolving import Resolutions, Resolve

Change: TypeAlias = Offered | Resolve
#: Of an accept: whether the offer still stood. Of a resolution: the task, or why it was refused.
Outcome: TypeAlias = bool | TaskFacts | QueueError


async def change_runs(machine: Machine, items: Sequence[Change]) -> list[Outcome]:
    """Makes all the changes in as few transactions as possible; the outcome of each, in their order."""
    outcomes: list[Outcome] = [False] * len(items)
    for indexes in _rounds(items):
        offers = {i: item for i in indexes if isinstance(item := items[i], Offered)}
        resolves = {i: item for i in indexes if isinstance(item := items[i], Resolve)}

        async def run(
            tx: Transaction,
            offers: Sequence[Offered] = tuple(offers.values()),
            resolves: Sequence[Resolve] = tuple(resolves.values()),
        ) -> tuple[list[bool], list[TaskFacts | QueueError], Effects]:
            return await _change(tx, machine, offers, resolves)

        taken, resolved, effects = await machine.db.in_transaction(run, hot=True)
        machine.tell(effects)
        outcomes_of = [*zip(offers, taken, strict=True), *zip(resolves, resolved, strict=True)]
        for index, outcome in outcomes_of:
            outcomes[index] = outcome
    return outcomes


async def _change(
    tx: Transaction, machine: Machine, offers: Sequence[Offered], resolves: Sequence[Resolve]
) -> tuple[list[bool], list[TaskFacts | QueueError], Effects]:
    by_task = {offer.facts.task_id: offer for offer in offers}
    at_once = {
        item.task_id: offer
        for item in resolves
        if (offer := by_task.get(item.task_id))
        and offer.run_id == item.run_id
        and offer.stream_id == item.guard
    }
    to_accept = [offer for offer in offers if offer.facts.task_id not in at_once]
    resolutions = Resolutions(resolves, machine.settings, at_once)
    statements: list[Statement] = []
    if resolves:
        statements.append((TRANSITIONS["lock_tasks"], ([item.task_id for item in resolves],)))
    if to_accept:
        # These change nothing but their run's row, like the claims of unary callers; its lock is enough.
        statements.append(accept_statement(to_accept))
    statements += resolutions.statements()
    results = await tx.pipeline(statements)
    results = results[1:] if resolves else results
    accepts = {row[0] for row in results.pop(0)} if to_accept else set()
    effects = Effects()
    ends = Effects()
    resolved = await resolutions.outcomes(tx, results, ends)
    taken, ending = accepted(offers, accepts | resolutions.accepted, effects)
    effects.add(ends)
    await tx.commit([*ending, *insert_events(effects)])
    return taken, resolved, effects


def _rounds(items: Sequence[Change]) -> Iterator[list[int]]:
    """Splits a batch so that a round accepts a task at most once, resolves it at most once, and in this
    order; a set-based statement changes a row once, and each change must see those before it."""
    at: dict[str, tuple[int, bool]] = {}
    rounds: list[list[int]] = []
    for index, item in enumerate(items):
        resolves = isinstance(item, Resolve)
        task_id = item.task_id if isinstance(item, Resolve) else item.facts.task_id
        number, resolved_there = at.get(task_id, (-1, True))
        if resolved_there or not resolves:
            number += 1
        at[task_id] = (number, resolves)
        while len(rounds) <= number:
            rounds.append([])
        rounds[number].append(index)
    yield from rounds
