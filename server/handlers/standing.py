"""What a task's stored state says about who may change it, and whether it is too late."""

from __future__ import annotations

from typing import NamedTuple

from server.call import Call
from server.errors import ResourceNotFound
from server.store.statements import load

_SQL = load("transitions")


class Standing(NamedTuple):
    """The stored facts that scope expressions and deadline checks need. `past_deadline` is deadline <
    now, `deadline_reached` deadline <= now (queue.md 2.7 tells which call asks which)."""

    task_queue_id: str
    scheduler_id: str
    task_group_id: str
    project_id: str
    past_deadline: bool
    deadline_reached: bool
    last_run: int


async def read_standing(call: Call, task_id: str) -> Standing:
    """Reads it. Raises ResourceNotFound."""
    rows = await call.services.db.fetch(_SQL["read_standing"], (task_id,))
    if not rows:
        raise ResourceNotFound(f"task {task_id} does not exist", taskId=task_id)
    return Standing(*rows[0])
