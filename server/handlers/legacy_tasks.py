"""Tasks for clients of 2014 (queue.md 4.1): thin over what today's API does."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from server.call import Call
from server.domain import legacy
from server.errors import InputTooLarge, ResourceNotFound
from server.handlers import task_reading, tasks
from server.handlers.legacy_shapes import definition_of, legacy_definition, legacy_status
from server.handlers.pages import READING, gently, read, statuses
from server.store.statements import load
from server.views import status_message
from tcqueue.v1.legacy_task_pb2 import (
    LegacyQueueCreateTaskRequest,
    LegacyQueueCreateTaskResponse,
    LegacyQueueDefineTaskRequest,
    LegacyQueueDefineTaskResponse,
    LegacyQueueGetAmqpConnectionStringRequest,
    LegacyQueueGetAmqpConnectionStringResponse,
    LegacyQueueGetTaskRequest,
    LegacyQueueGetTaskResponse,
    LegacyQueueGetTaskStatusRequest,
    LegacyQueueGetTaskStatusResponse,
    LegacyQueueListPendingTasksRequest,
    LegacyQueueListPendingTasksResponse,
    LegacyQueueRerunTaskRequest,
    LegacyQueueRerunTaskResponse,
    LegacyQueueScheduleTaskRequest,
    LegacyQueueScheduleTaskResponse,
    LegacyTaskStatus,
)
from tcqueue.v1.task_pb2 import (
    GetTaskRequest,
    GetTaskStatusRequest,
    RerunTaskRequest,
    ScheduleTaskRequest,
    TaskDefinition,
)

_SQL = load("legacy")

MOST_PENDING = 20_000
"""Most tasks of one answer: there are no pages, and each has its whole status."""


async def create_task(call: Call, request: LegacyQueueCreateTaskRequest) -> LegacyQueueCreateTaskResponse:
    """Creates a task, or finds it created alike."""
    return LegacyQueueCreateTaskResponse(
        status=await _create(call, request.task_id, definition_of(request.task))
    )


async def define_task(call: Call, request: LegacyQueueDefineTaskRequest) -> LegacyQueueDefineTaskResponse:
    """Creates a task that waits for scheduleTask."""
    task = tasks.holding_itself_back(request.task_id, definition_of(request.task))
    return LegacyQueueDefineTaskResponse(status=await _create(call, request.task_id, task))


async def _create(call: Call, task_id: str, task: TaskDefinition) -> LegacyTaskStatus:
    days = max(legacy.MAX_DEADLINE_DAYS, call.services.settings.max_task_deadline_days)
    facts = await call.services.creations.submit(tasks.prepare(call, task_id, task, max_deadline_days=days))
    return legacy_status(status_message(facts, task))


async def get_task(call: Call, request: LegacyQueueGetTaskRequest) -> LegacyQueueGetTaskResponse:
    """A task's definition."""
    found = await task_reading.get_task(call, GetTaskRequest(task_id=request.task_id))
    return LegacyQueueGetTaskResponse(task=legacy_definition(found.task))


async def get_task_status(
    call: Call, request: LegacyQueueGetTaskStatusRequest
) -> LegacyQueueGetTaskStatusResponse:
    """A task's status."""
    found = await task_reading.get_task_status(call, GetTaskStatusRequest(task_id=request.task_id))
    return LegacyQueueGetTaskStatusResponse(status=legacy_status(found.status))


async def schedule_task(
    call: Call, request: LegacyQueueScheduleTaskRequest
) -> LegacyQueueScheduleTaskResponse:
    """Makes an unscheduled task pending."""
    found = await tasks.schedule_task(call, ScheduleTaskRequest(task_id=request.task_id))
    return LegacyQueueScheduleTaskResponse(status=legacy_status(found.status))


async def rerun_task(call: Call, request: LegacyQueueRerunTaskRequest) -> LegacyQueueRerunTaskResponse:
    """Gives a resolved task another run."""
    found = await tasks.rerun_task(call, RerunTaskRequest(task_id=request.task_id))
    return LegacyQueueRerunTaskResponse(status=legacy_status(found.status))


async def list_pending_tasks(
    call: Call, request: LegacyQueueListPendingTasksRequest
) -> LegacyQueueListPendingTasksResponse:
    """All tasks of a provisioner that have a pending run. Raises InputTooLarge beyond MOST_PENDING."""
    # "0" is the character behind "/", so nothing but this provisioner's queues lies between the two.
    first, beyond = f"{request.provisioner_id}/", f"{request.provisioner_id}0"
    db = call.services.db
    (rows,) = await read(db, (_SQL["pending_tasks_between"], (first, beyond, MOST_PENDING + 1)))
    if len(rows) > MOST_PENDING:
        raise InputTooLarge(
            f"provisioner {request.provisioner_id} has more than {MOST_PENDING} pending tasks, and this call "
            "has no pages: use listPendingTasks of each task queue"
        )
    ids = [row[0] for row in rows]
    (rows,) = await read(db, (READING["list_statuses"], (ids, len(ids))))
    found = {status.task_id: status for status in await gently(statuses(rows))}
    return LegacyQueueListPendingTasksResponse(
        tasks=await gently(legacy_status(found[task_id]) for task_id in ids if task_id in found)
    )


async def get_amqp_connection_string(
    call: Call, _: LegacyQueueGetAmqpConnectionStringRequest
) -> LegacyQueueGetAmqpConnectionStringResponse:
    """Where the broker is. Everybody may ask, so without an address meant for them the one that we use is
    told without its user and password. Raises ResourceNotFound without a broker."""
    settings = call.services.settings
    if settings.amqp_public_url:
        return LegacyQueueGetAmqpConnectionStringResponse(url=settings.amqp_public_url)
    if not settings.amqp_url:
        raise ResourceNotFound("this deployment has no message broker")
    parts = urlsplit(settings.amqp_url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
    return LegacyQueueGetAmqpConnectionStringResponse(url=urlunsplit(bare))
