"""Reading task groups (queue.md 3.3)."""

from __future__ import annotations

from server.call import Call
from server.domain import paging
from server.handlers.pages import BUDGET, READING, gently, read, tasks_and_statuses
from server.handlers.task_groups import read_group
from tcqueue.v1.task_group_pb2 import (
    GetTaskGroupRequest,
    GetTaskGroupResponse,
    ListTaskGroupRequest,
    ListTaskGroupResponse,
)


async def get_task_group(call: Call, request: GetTaskGroupRequest) -> GetTaskGroupResponse:
    """A group's own data."""
    return GetTaskGroupResponse(task_group=(await read_group(call, request.task_group_id)).message())


async def list_task_group(call: Call, request: ListTaskGroupRequest) -> ListTaskGroupResponse:
    """A group's tasks. A group whose row has expired is unknown, even while it still has tasks."""
    (after,) = paging.position(request.continuation_token, ("",), strict=True)
    group = (await read_group(call, request.task_group_id)).message()
    (rows,) = await read(
        call.services.db,
        (READING["list_group"], (request.task_group_id, after, paging.size(request.limit), BUDGET)),
    )
    return ListTaskGroupResponse(
        task_group_id=group.task_group_id,
        scheduler_id=group.scheduler_id,
        expires=group.expires,
        sealed=group.sealed if group.HasField("sealed") else None,
        tasks=await gently(tasks_and_statuses(rows)),
        continuation_token=paging.token(rows[-1][1]) if rows and rows[-1][0] else "",
    )
