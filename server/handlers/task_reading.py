"""Reading tasks: definitions, statuses, dependents (queue.md 3.2)."""

from __future__ import annotations

from collections.abc import Iterable

from server import definitions
from server.call import Call
from server.domain import paging, slugid
from server.errors import ResourceNotFound
from server.handlers.pages import BUDGET, READING, gently, read, statuses, tasks_and_statuses
from tcqueue.v1.task_pb2 import (
    BatchGetTasksRequest,
    BatchGetTasksResponse,
    BatchGetTaskStatusesRequest,
    BatchGetTaskStatusesResponse,
    GetTaskRequest,
    GetTaskResponse,
    GetTaskStatusRequest,
    GetTaskStatusResponse,
    ListDependentTasksRequest,
    ListDependentTasksResponse,
    NamedTask,
    NamedTaskStatus,
)


async def get_task(call: Call, request: GetTaskRequest) -> GetTaskResponse:
    """A task's definition with its current priority."""
    rows = await call.services.db.fetch(READING["read_definition"], (request.task_id,), hot=True)
    if not rows:
        raise _unknown(request.task_id)
    return GetTaskResponse(task=definitions.load(*rows[0]))


async def get_task_status(call: Call, request: GetTaskStatusRequest) -> GetTaskStatusResponse:
    """A task's status."""
    rows = await call.services.db.fetch(READING["read_status"], (request.task_id,), hot=True)
    if not rows:
        raise _unknown(request.task_id)
    return GetTaskStatusResponse(status=next(statuses(rows)))


async def batch_get_tasks(call: Call, request: BatchGetTasksRequest) -> BatchGetTasksResponse:
    """The definitions of the known ones of the tasks named, a page at a time, in the order of ids."""
    call.authorize({"taskIds": request.task_ids})
    ids = _wanted(request.task_ids, request.continuation_token)
    (rows,) = await read(
        call.services.db,
        (READING["list_definitions"], (ids, paging.size(request.limit), BUDGET)),
    )
    return BatchGetTasksResponse(
        tasks=await gently(
            NamedTask(task_id=task_id, task=definitions.load(definition, rank))
            for _, task_id, definition, rank in rows
        ),
        continuation_token=paging.token(rows[-1][1]) if rows and rows[-1][0] else "",
    )


async def batch_get_task_statuses(
    call: Call, request: BatchGetTaskStatusesRequest
) -> BatchGetTaskStatusesResponse:
    """The statuses of the known ones of the tasks named, a page at a time, in the order of ids."""
    call.authorize({"taskIds": request.task_ids})
    ids = _wanted(request.task_ids, request.continuation_token)
    (rows,) = await read(call.services.db, (READING["list_statuses"], (ids, paging.size(request.limit) + 1)))
    page, more = paging.cut(await gently(statuses(rows)), request.limit)
    return BatchGetTaskStatusesResponse(
        statuses=[NamedTaskStatus(task_id=status.task_id, status=status) for status in page],
        continuation_token=paging.token(page[-1].task_id) if more else "",
    )


async def list_dependent_tasks(call: Call, request: ListDependentTasksRequest) -> ListDependentTasksResponse:
    """The tasks that wait, or waited, for a task."""
    (after,) = paging.position(request.continuation_token, ("",), strict=True)
    known, rows = await read(
        call.services.db,
        (READING["task_exists"], (request.task_id,)),
        (READING["list_dependents"], (request.task_id, after, paging.size(request.limit), BUDGET)),
    )
    if not known:
        raise _unknown(request.task_id)
    return ListDependentTasksResponse(
        task_id=request.task_id,
        tasks=await gently(tasks_and_statuses(rows)),
        continuation_token=paging.token(rows[-1][1]) if rows and rows[-1][0] else "",
    )


def _wanted(task_ids: Iterable[str], token: str) -> list[str]:
    """What is left to look for: each id once, in order, and only those that a task can have."""
    (after,) = paging.position(token, ("",), strict=True)
    return sorted({task_id for task_id in task_ids if task_id > after and slugid.is_slugid(task_id)})


def _unknown(task_id: str) -> ResourceNotFound:
    return ResourceNotFound(f"task {task_id} does not exist", taskId=task_id)
