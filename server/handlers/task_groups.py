"""Changing whole task groups: seal, cancel, priority (queue.md 3.3)."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from server.call import Call
from server.errors import RequestConflict, ResourceNotFound
from server.store.database import Transaction
from server.store.statements import load
from server.transitions import ending, messages, prioritizing
from server.transitions.machine import Effects, insert_events
from server.views import stamp
from tcqueue.v1.task_group_pb2 import (
    CancelTaskGroupRequest,
    CancelTaskGroupResponse,
    ChangeTaskGroupPriorityRequest,
    ChangeTaskGroupPriorityResponse,
    SealTaskGroupRequest,
    SealTaskGroupResponse,
    TaskGroup,
)

_SQL = load("groups")

#: Tasks one transaction of a group-wide change touches.
PAGE = 500


class Group(NamedTuple):
    """A group's row."""

    task_group_id: str
    scheduler_id: str
    expires: datetime
    sealed: datetime | None

    def message(self) -> TaskGroup:
        """The group as shown."""
        return TaskGroup(
            task_group_id=self.task_group_id,
            scheduler_id=self.scheduler_id,
            expires=stamp(self.expires),
            sealed=stamp(self.sealed) if self.sealed else None,
        )


async def read_group(call: Call, task_group_id: str) -> Group:
    """The group's row. Raises ResourceNotFound."""
    rows = await call.services.db.fetch(_SQL["read_group"], (task_group_id,))
    if not rows:
        raise ResourceNotFound(f"task group {task_group_id} does not exist", taskGroupId=task_group_id)
    return Group(*rows[0])


async def seal_task_group(call: Call, request: SealTaskGroupRequest) -> SealTaskGroupResponse:
    """Seals a group; a repeat returns the first time and publishes the event again."""
    group = await read_group(call, request.task_group_id)
    call.authorize({"schedulerId": group.scheduler_id, "taskGroupId": group.task_group_id})

    async def run(tx: Transaction) -> tuple[Group | None, Effects]:
        rows = await tx.run(_SQL["seal_group"], (request.task_group_id,))
        effects = Effects()
        sealed = Group(*rows[0]) if rows else None
        if sealed is not None and sealed.sealed is not None:
            effects.events.append(messages.task_group_sealed(*sealed[:3], sealed.sealed))
        await tx.commit(insert_events(effects))
        return sealed, effects

    machine = call.services.machine
    sealed, effects = await machine.db.in_transaction(run, hot=False)
    machine.tell(effects)
    if sealed is None:
        raise ResourceNotFound(f"task group {request.task_group_id} does not exist")
    return SealTaskGroupResponse(task_group=sealed.message())


async def cancel_task_group(call: Call, request: CancelTaskGroupRequest) -> CancelTaskGroupResponse:
    """Cancels what is unresolved in a sealed group, page by page: a crash in between leaves the rest to
    a repeat of the call."""
    group = await read_group(call, request.task_group_id)
    if group.sealed is None:
        raise RequestConflict(
            f"task group {group.task_group_id} is not sealed; seal it first",
            taskGroupId=group.task_group_id,
        )
    call.authorize({"schedulerId": group.scheduler_id, "taskGroupId": group.task_group_id})
    machine = call.services.machine
    canceled: list[str] = []
    after = ""
    while True:
        rows = await machine.db.fetch(_SQL["unresolved_members"], (request.task_group_id, after, PAGE))
        if not rows:
            break
        ids = [row[0] for row in rows]
        after = ids[-1]
        _, ended = await ending.cancel_tasks(machine, ids, repeat_events=False)
        canceled.extend(ended)
    (size,) = (await machine.db.fetch(_SQL["count_members"], (request.task_group_id,)))[0]
    return CancelTaskGroupResponse(
        task_group_id=request.task_group_id,
        task_group_size=size,
        cancelled_count=len(canceled),
        task_ids=canceled,
    )


async def change_task_group_priority(
    call: Call, request: ChangeTaskGroupPriorityRequest
) -> ChangeTaskGroupPriorityResponse:
    """Changes the priority of every task of the group that was never resolved; one summary event."""
    group = await read_group(call, request.task_group_id)
    call.authorize({"schedulerId": group.scheduler_id, "taskGroupId": group.task_group_id})
    machine = call.services.machine
    changed: list[str] = []
    after = ""
    while True:
        rows = await machine.db.fetch(_SQL["unresolved_members"], (request.task_group_id, after, PAGE))
        if not rows:
            break
        ids = [row[0] for row in rows]
        after = ids[-1]
        facts = await prioritizing.change_priorities(machine, ids, request.new_priority, each_event=False)
        changed.extend(sorted(facts))

    async def run(tx: Transaction) -> Effects:
        effects = Effects()
        effects.events.append(
            messages.task_group_priority_changed(
                group.task_group_id, group.scheduler_id, request.new_priority, len(changed)
            )
        )
        await tx.commit(insert_events(effects))
        return effects

    machine.tell(await machine.db.in_transaction(run, hot=False))
    return ChangeTaskGroupPriorityResponse(
        task_group_id=group.task_group_id,
        scheduler_id=group.scheduler_id,
        new_priority=request.new_priority,
        tasks_affected=len(changed),
        task_ids=changed,
    )
