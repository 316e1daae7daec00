"""Task queues: what there are, what waits in them and what is claimed (queue.md 3.8)."""

from __future__ import annotations

from server import definitions
from server.call import Call
from server.domain import paging, times
from server.errors import ResourceNotFound
from server.handlers.pages import BUDGET, READING, gently, read
from server.store.database import Row
from server.store.statements import load
from server.views import stamp
from tcqueue.v1.options_pb2 import Stability
from tcqueue.v1.task_queue_pb2 import (
    ClaimedTask,
    GetPendingTasksCountRequest,
    GetPendingTasksCountResponse,
    GetTaskQueueCountsRequest,
    GetTaskQueueCountsResponse,
    GetTaskQueueRequest,
    GetTaskQueueResponse,
    ListClaimedTasksRequest,
    ListClaimedTasksResponse,
    ListPendingTasksRequest,
    ListPendingTasksResponse,
    ListTaskQueuesRequest,
    ListTaskQueuesResponse,
    PendingTask,
    TaskQueue,
)

QUEUES = load("task_queues")


async def list_task_queues(call: Call, request: ListTaskQueuesRequest) -> ListTaskQueuesResponse:
    """The live task queues."""
    (after,) = paging.position(request.continuation_token, ("",), strict=True)
    (rows,) = await read(
        call.services.db, (QUEUES["list_task_queues"], (after, paging.size(request.limit) + 1))
    )
    page, more = paging.cut(rows, request.limit)
    return ListTaskQueuesResponse(
        task_queues=[_task_queue(row) for row in page],
        continuation_token=paging.token(page[-1][0]) if more else "",
    )


async def get_task_queue(call: Call, request: GetTaskQueueRequest) -> GetTaskQueueResponse:
    """A live task queue."""
    return GetTaskQueueResponse(task_queue=_task_queue(await read_queue(call, request.task_queue_id)))


async def get_pending_tasks_count(
    call: Call, request: GetPendingTasksCountRequest
) -> GetPendingTasksCountResponse:
    """How many runs wait for a worker."""
    provisioner_id, _, worker_type = request.task_queue_id.partition("/")
    return GetPendingTasksCountResponse(
        provisioner_id=provisioner_id,
        worker_type=worker_type,
        task_queue_id=request.task_queue_id,
        pending_tasks=await call.services.counts.pending(request.task_queue_id),
    )


async def get_task_queue_counts(call: Call, request: GetTaskQueueCountsRequest) -> GetTaskQueueCountsResponse:
    """How many runs wait for a worker, and how many are held by one."""
    provisioner_id, _, worker_type = request.task_queue_id.partition("/")
    return GetTaskQueueCountsResponse(
        provisioner_id=provisioner_id,
        worker_type=worker_type,
        task_queue_id=request.task_queue_id,
        pending_tasks=await call.services.counts.pending(request.task_queue_id),
        claimed_tasks=await call.services.counts.claimed(request.task_queue_id),
    )


async def list_pending_tasks(call: Call, request: ListPendingTasksRequest) -> ListPendingTasksResponse:
    """The runs that wait for a worker, oldest first, whatever their priority."""
    (after,) = paging.position(request.continuation_token, (-1,), strict=False)
    (rows,) = await read(
        call.services.db,
        (READING["list_pending"], (request.task_queue_id, after, paging.size(request.limit), BUDGET)),
    )
    return ListPendingTasksResponse(
        tasks=await gently(
            PendingTask(
                task_id=task_id,
                run_id=run_id,
                task=definitions.load(definition, rank),
                inserted=stamp(scheduled),
            )
            for _, task_id, run_id, _, scheduled, definition, rank in rows
        ),
        continuation_token=paging.token(rows[-1][3]) if rows and rows[-1][0] else "",
    )


async def list_claimed_tasks(call: Call, request: ListClaimedTasksRequest) -> ListClaimedTasksResponse:
    """The runs that workers hold, by the time of their last claim or reclaim, overdue ones included."""
    claimed, seq = paging.position(request.continuation_token, (0, -1), strict=False)
    after = times.from_milliseconds(max(claimed, 0))
    (rows,) = await read(
        call.services.db,
        (READING["list_claimed"], (request.task_queue_id, after, seq, paging.size(request.limit), BUDGET)),
    )
    return ListClaimedTasksResponse(
        tasks=await gently(
            ClaimedTask(
                task_id=task_id,
                run_id=run_id,
                worker_group=worker_group,
                worker_id=worker_id,
                claimed=stamp(at),
                task=definitions.load(definition, rank),
            )
            for _, task_id, run_id, worker_group, worker_id, at, _, definition, rank in rows
        ),
        continuation_token=_claimed_token(rows[-1]) if rows and rows[-1][0] else "",
    )


async def read_queue(call: Call, task_queue_id: str) -> Row:
    """The row of a live queue: id, description, stability, expires, last active. Raises ResourceNotFound."""
    rows = await call.services.db.fetch(QUEUES["get_task_queue"], (task_queue_id,), hot=True)
    if not rows:
        raise ResourceNotFound(f"task queue {task_queue_id} does not exist", taskQueueId=task_queue_id)
    return rows[0]


def stability_value(word: str) -> Stability.ValueType:
    """The enum's value for a stored stability."""
    return Stability.Value(f"STABILITY_{word.upper()}")


def stability_word(value: Stability.ValueType) -> str | None:
    """What is stored for a stability; None for an unstated one."""
    return Stability.Name(value).removeprefix("STABILITY_").lower() if value else None


def _task_queue(row: Row) -> TaskQueue:
    task_queue_id, description, stability, expires, last_date_active = row
    return TaskQueue(
        task_queue_id=task_queue_id,
        description=description,
        stability=stability_value(stability),
        expires=stamp(expires),
        last_date_active=stamp(last_date_active),
    )


def _claimed_token(row: Row) -> str:
    return paging.token(times.to_milliseconds(row[5]), row[6])
