"""Giving tasks a run on request: scheduleTask and rerunTask (queue.md 2.1 S5, S17, 2.8, 2.9)."""

from __future__ import annotations

from collections.abc import Sequence

from server.store.database import Transaction
from server.transitions import messages
from server.transitions.facts import TaskFacts
from server.transitions.machine import TRANSITIONS, Effects, Machine, insert_events, read_facts


async def schedule_tasks(machine: Machine, task_ids: Sequence[str]) -> dict[str, TaskFacts]:
    """Starts those tasks that are unscheduled and before their deadline; returns the facts of all."""
    return await _start(machine, task_ids, "schedule_tasks", repeat_events=False)


async def rerun_tasks(machine: Machine, task_ids: Sequence[str]) -> dict[str, TaskFacts]:
    """Gives resolved and unscheduled tasks another run; publishes task-pending again for a pending one."""
    return await _start(machine, task_ids, "rerun_tasks", repeat_events=True)


async def _start(
    machine: Machine, task_ids: Sequence[str], statement: str, *, repeat_events: bool
) -> dict[str, TaskFacts]:
    ids = sorted(set(task_ids))

    async def run(tx: Transaction) -> tuple[dict[str, TaskFacts], Effects]:
        _, started = await tx.pipeline(
            [(TRANSITIONS["lock_tasks"], (ids,)), (TRANSITIONS[statement], (ids,))]
        )
        facts = await read_facts(tx, ids)
        new = {row[0] for row in started}
        effects = Effects()
        for task_id, task in facts.items():
            if task_id in new:
                effects.queues.add(task.task_queue_id)
            if task_id in new or (repeat_events and task.state == "pending"):
                effects.events.append(messages.task_pending(task, len(task.runs) - 1))
        await tx.commit(insert_events(effects))
        return facts, effects

    facts, effects = await machine.db.in_transaction(run)
    machine.tell(effects)
    return facts
