"""Changing priorities (queue.md 2.10, 3.3, 3.5)."""

from __future__ import annotations

import pytest

from tcqueue.v1.task_pb2 import TaskDefinition
from tests.conformance.building import QUEUE, definition, new_id, priority
from tests.conformance.door import refused
from tests.conformance.shown import ids, priority_of, state
from tests.plugins.server import Queue

HIGH, LOWEST = priority("high"), priority("lowest")


async def test_changing_a_priority(queue: Queue) -> None:
    """Q-202: in the status, the definition and the order of claims."""
    first, second = [(await queue.create()).task_id for _ in range(2)]
    await queue.published()
    status = (await queue("ChangeTaskPriority", task_id=second, new_priority=HIGH)).status
    assert priority_of(status) == "high" == priority_of(await queue.task(second))
    assert await queue.status(second) == status
    event = (await queue.published()).one("task-priority-changed")
    assert (event.payload["oldPriority"], event.payload["newPriority"]) == ("lowest", "high")
    assert ids(await queue.claim(2)) == [second, first]


async def test_a_change_makes_another_task(queue: Queue) -> None:
    """Q-202 Q-010: a repeat of the creation conflicts then, unless it asks for what the priority is now."""
    task_id, task = new_id(), definition()
    await queue("CreateTask", task_id=task_id, task=task)
    await queue("ChangeTaskPriority", task_id=task_id, new_priority=HIGH)
    with refused("RequestConflict"):
        await queue("CreateTask", task_id=task_id, task=task)
    changed = TaskDefinition()
    changed.CopyFrom(task)
    changed.priority = HIGH
    assert (await queue("CreateTask", task_id=task_id, task=changed)).status == await queue.status(task_id)
    await queue("ChangeTaskPriority", task_id=task_id, new_priority=LOWEST)
    await queue("CreateTask", task_id=task_id, task=task)


async def test_what_cannot_be_changed(queue: Queue) -> None:
    """Q-203 Q-234 T-36 T-37: resolved tasks, rerun ones, and to what it is already."""
    for outcome in ("completed", "failed", "canceled", "internal-error"):
        task_id = (await queue.resolved(outcome)).task_id
        with refused("RequestConflict"):
            await queue("ChangeTaskPriority", task_id=task_id, new_priority=HIGH)
        await queue("RerunTask", task_id=task_id)
        with refused("RequestConflict"):
            await queue("ChangeTaskPriority", task_id=task_id, new_priority=HIGH)
        await queue("CancelTask", task_id=task_id)
    task_id = (await queue.create(priority="high")).task_id
    await queue.published()
    with refused("RequestConflict"):
        await queue("ChangeTaskPriority", task_id=task_id, new_priority=HIGH)
    await queue("ChangeTaskPriority", task_id=task_id, new_priority=LOWEST)
    with refused("RequestConflict"):
        await queue("ChangeTaskPriority", task_id=task_id, new_priority=LOWEST)
    assert (await queue.published()).exchanges == ["task-priority-changed"]


async def test_unknown_and_unscheduled_tasks(queue: Queue) -> None:
    """Q-203: 404; a task that waits can be changed, and keeps it."""
    with refused("ResourceNotFound"):
        await queue.having("nothing")("ChangeTaskPriority", task_id=new_id(), new_priority=HIGH)
    task_id = new_id()
    await queue.create(task_id, dependencies=[task_id])
    await queue("ChangeTaskPriority", task_id=task_id, new_priority=HIGH)
    await queue.create()
    await queue("ScheduleTask", task_id=task_id)
    assert ids(await queue.claim()) == [task_id]


async def test_scopes(queue: Queue) -> None:
    """Q-203: of the task or of its queue."""
    task_id = (await queue.create()).task_id
    enough = [f"queue:change-task-priority:{task_id}", f"queue:change-task-priority-in-queue:{QUEUE}"]
    for n, scope in enumerate(enough):
        await queue.having(scope)("ChangeTaskPriority", task_id=task_id, new_priority=HIGH - n)
    with refused("InsufficientScopes"):
        await queue.having("queue:change-task-priority-in-queue:a/b")(
            "ChangeTaskPriority", task_id=task_id, new_priority=HIGH
        )


async def test_later_runs(queue: Queue) -> None:
    """Q-204: the run that is claimed stays; its retry has the new priority."""
    claim = await queue.running()
    task_id = claim.status.task_id
    status = (await queue("ChangeTaskPriority", task_id=task_id, new_priority=HIGH)).status
    assert state(status) == "running"
    other = (await queue.create(priority="medium")).task_id
    await queue.resolve(task_id, "worker-shutdown")
    assert ids(await queue.claim(2)) == [task_id, other]
    for done, run_id in ((task_id, 1), (other, 0)):
        await queue.resolve(done, "completed", run_id)
    await queue.create(priority="medium")
    await queue("RerunTask", task_id=task_id)
    assert ids(await queue.claim()) == [task_id]


async def test_a_group(queue: Queue) -> None:
    """Q-205 Q-234: all members that were never resolved and have another priority; one event."""
    group = new_id()
    done = await queue.resolved(task_group_id=group)
    canceled = await queue.resolved("canceled", task_group_id=group)
    running = (await queue.running(task_group_id=group)).status.task_id
    pending = [
        (await queue.create(task_group_id=group, priority=p)).task_id for p in ("lowest", "high", "low")
    ]
    await queue.published()
    reply = await queue("ChangeTaskGroupPriority", task_group_id=group, new_priority=HIGH)
    changed = sorted([running, pending[0], pending[2]])
    assert (reply.task_group_id, reply.scheduler_id, reply.new_priority) == (group, "-", HIGH)
    assert (reply.tasks_affected, sorted(reply.task_ids)) == (3, changed)
    for task_id in changed:
        assert priority_of(await queue.status(task_id)) == "high"
    for status in (done, canceled):
        assert await queue.status(status.task_id) == status
    events = await queue.published()
    assert events.exchanges == ["task-group-priority-changed"]
    assert (events[0].payload["tasksAffected"], events[0].payload["newPriority"]) == (3, "high")


async def test_a_group_with_nothing_to_change(queue: Queue) -> None:
    """Q-205: unknown is 404, before the scope; zero tasks are fine and told."""
    with refused("ResourceNotFound"):
        await queue.having("nothing")("ChangeTaskGroupPriority", task_group_id=new_id(), new_priority=HIGH)
    group = (await queue.resolved()).task_group_id
    await queue.published()
    reply = await queue("ChangeTaskGroupPriority", task_group_id=group, new_priority=HIGH)
    assert (reply.tasks_affected, list(reply.task_ids)) == (0, [])
    assert (await queue.published()).exchanges == ["task-group-priority-changed"]
    caller = queue.having(f"queue:change-task-group-priority:-/{group}")
    await caller("ChangeTaskGroupPriority", task_group_id=group, new_priority=HIGH)
    with refused("InsufficientScopes"):
        await queue.having("nothing")("ChangeTaskGroupPriority", task_group_id=group, new_priority=HIGH)


@pytest.mark.parametrize("name", ["highest", "very-high", "high", "medium", "low", "very-low"])
async def test_all_priorities(queue: Queue, name: str) -> None:
    """Q-202: each has its name."""
    task_id = (await queue.create()).task_id
    status = (await queue("ChangeTaskPriority", task_id=task_id, new_priority=priority(name))).status
    assert priority_of(status) == name
    assert (await queue.published()).one("task-priority-changed").status["priority"] == name
