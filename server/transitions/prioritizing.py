"""Changing the priority of unresolved tasks (queue.md 2.10)."""

from __future__ import annotations

from collections.abc import Sequence

from server.store.database import Transaction
from server.transitions import messages
from server.transitions.facts import TaskFacts
from server.transitions.machine import TRANSITIONS, Effects, Machine, insert_events, read_facts


async def change_priorities(
    machine: Machine, task_ids: Sequence[str], rank: int, *, each_event: bool = True
) -> dict[str, TaskFacts]:
    """Gives a rank to those tasks that were never resolved, are before their deadline and have another.

    Returns the facts of the changed ones. `each_event` publishes task-priority-changed for each.
    """
    ids = sorted(set(task_ids))

    async def run(tx: Transaction) -> tuple[dict[str, TaskFacts], Effects]:
        _, changed = await tx.pipeline(
            [(TRANSITIONS["lock_tasks"], (ids,)), (TRANSITIONS["change_priorities"], (ids, rank))]
        )
        old: dict[str, int] = {task_id: before for task_id, before in changed}
        facts = await read_facts(tx, list(old)) if old else {}
        effects = Effects()
        if each_event:
            for task_id, task in facts.items():
                effects.events.append(messages.task_priority_changed(task, old[task_id], rank))
        await tx.commit(insert_events(effects))
        return facts, effects

    facts, effects = await machine.db.in_transaction(run)
    machine.tell(effects)
    return facts
