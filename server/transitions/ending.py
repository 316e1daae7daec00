"""Resolving tasks from outside: cancellation and deadlines (queue.md 2.1 S14-S16, 2.7, 2.8)."""

from __future__ import annotations

from collections.abc import Sequence

from server.store.database import Transaction
from server.transitions import graphs, messages
from server.transitions.facts import TaskFacts
from server.transitions.machine import (
    TRANSITIONS,
    Effects,
    Machine,
    dependents_started,
    groups_closed,
    insert_events,
    read_facts,
)


async def cancel_tasks(
    machine: Machine, task_ids: Sequence[str], *, repeat_events: bool = True
) -> tuple[dict[str, TaskFacts], list[str]]:
    """Cancels what is unresolved and before its deadline.

    Returns the facts of all tasks that exist, and the ids of those canceled by this very call. A task
    that had been canceled before has its event published again if `repeat_events`.
    """
    ids = sorted(set(task_ids))

    async def run(tx: Transaction) -> tuple[dict[str, TaskFacts], list[str], Effects]:
        facts, ended, effects = await end_in(tx, machine, ids, "canceled")
        if repeat_events:
            for task_id in ids:
                task = facts.get(task_id)
                if (
                    task
                    and task_id not in ended
                    and task.runs
                    and task.runs[-1].reason_resolved == "canceled"
                ):
                    effects.events.insert(0, messages.task_resolved(task, len(task.runs) - 1))
        await tx.commit(insert_events(effects))
        return facts, ended, effects

    facts, ended, effects = await machine.db.in_transaction(run)
    machine.tell(effects)
    return facts, ended


async def exceed_deadlines(machine: Machine, task_ids: Sequence[str]) -> list[str]:
    """Resolves the tasks whose deadline passed longer ago than the configured delay; returns their ids."""
    ids = sorted(set(task_ids))

    async def run(tx: Transaction) -> tuple[list[str], Effects]:
        _, ended, effects = await end_in(tx, machine, ids, "deadline-exceeded")
        await tx.commit(insert_events(effects))
        return ended, effects

    ended, effects = await machine.db.in_transaction(run)
    machine.tell(effects)
    return ended


async def end_in(
    tx: Transaction, machine: Machine, ids: list[str], reason: str
) -> tuple[dict[str, TaskFacts], list[str], Effects]:
    """The ending part of a transaction: locks the tasks and ends those that may be ended.

    Returns the facts of all that exist, the ids of those ended, and what is to be told.
    """
    settings = machine.settings
    _, ended, dependents, groups = await tx.pipeline(
        [
            (TRANSITIONS["lock_tasks"], (ids,)),
            (TRANSITIONS["end_tasks"], (ids, reason, settings.deadline_delay_s)),
            (
                TRANSITIONS["release_dependents"],
                (ids, ["exception"] * len(ids), settings.dependency_page_size),
            ),
            (TRANSITIONS["close_groups"], (ids,)),
        ]
    )
    facts = await read_facts(tx, ids)
    effects = Effects()
    for task_id, run_id, _, stream_id in sorted(ended):
        effects.events.append(messages.task_resolved(facts[task_id], run_id))
        effects.resolved[facts[task_id].task_queue_id, "exception", reason] += 1
        effects.revoke(stream_id, task_id, run_id, reason)
    dependents_started(dependents, effects)
    groups_closed(groups, effects)
    mark = graphs.mark(settings.scheduler_id)
    in_graphs = [facts[row[0]] for row in ended if mark in facts[row[0]].frame.key_tail]
    if in_graphs:
        await graphs.advance(tx, settings.scheduler_id, in_graphs, effects)
    return facts, [row[0] for row in ended], effects
