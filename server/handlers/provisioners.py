"""The older names of task queues: provisioners, derived from them, and worker types (queue.md 3.8)."""

from __future__ import annotations

from google.protobuf.message import Message

from server.call import Call
from server.domain import paging
from server.errors import InputError, ResourceNotFound
from server.handlers.inputs import instant, text
from server.handlers.pages import read
from server.handlers.task_queues import QUEUES, read_queue, stability_value, stability_word
from server.store.database import Row, Transaction
from server.views import stamp
from tcqueue.v1.options_pb2 import Stability
from tcqueue.v1.task_queue_pb2 import (
    Actions,
    DeclareProvisionerRequest,
    DeclareProvisionerResponse,
    DeclareWorkerTypeRequest,
    DeclareWorkerTypeResponse,
    GetProvisionerRequest,
    GetProvisionerResponse,
    GetWorkerTypeRequest,
    GetWorkerTypeResponse,
    ListProvisionersRequest,
    ListProvisionersResponse,
    ListWorkerTypesRequest,
    ListWorkerTypesResponse,
    Provisioner,
    WorkerType,
)

_EXPIRES_S = 5 * 86400.0


async def list_provisioners(call: Call, request: ListProvisionersRequest) -> ListProvisionersResponse:
    """The provisioners that live task queues have."""
    (after,) = paging.position(request.continuation_token, ("",), strict=True)
    (rows,) = await read(
        call.services.db, (QUEUES["list_provisioners"], (after, paging.size(request.limit) + 1))
    )
    page, more = paging.cut(rows, request.limit)
    return ListProvisionersResponse(
        provisioners=[_provisioner(row) for row in page],
        continuation_token=paging.token(page[-1][0]) if more else "",
    )


async def get_provisioner(call: Call, request: GetProvisionerRequest) -> GetProvisionerResponse:
    """A provisioner of at least one live task queue."""
    return GetProvisionerResponse(provisioner=await _read_provisioner(call, request.provisioner_id))


async def declare_provisioner(call: Call, request: DeclareProvisionerRequest) -> DeclareProvisionerResponse:
    """Checks scopes and changes nothing."""
    properties = _given(request, "stability", "description", "expires", "actions")
    call.authorize({"provisionerId": request.provisioner_id, "properties": properties})
    return DeclareProvisionerResponse(provisioner=await _read_provisioner(call, request.provisioner_id))


async def list_worker_types(call: Call, request: ListWorkerTypesRequest) -> ListWorkerTypesResponse:
    """The live task queues of a provisioner; none for an unknown one."""
    (after,) = paging.position(request.continuation_token, ("",), strict=True)
    (rows,) = await read(
        call.services.db,
        (QUEUES["list_worker_types"], (request.provisioner_id, after, paging.size(request.limit) + 1)),
    )
    page, more = paging.cut(rows, request.limit)
    return ListWorkerTypesResponse(
        worker_types=[_worker_type(row) for row in page],
        continuation_token=paging.token(page[-1][0]) if more else "",
    )


async def get_worker_type(call: Call, request: GetWorkerTypeRequest) -> GetWorkerTypeResponse:
    """A live task queue under its older name."""
    row = await read_queue(call, f"{request.provisioner_id}/{request.worker_type}")
    return GetWorkerTypeResponse(worker_type=_worker_type(row, Actions()))


async def declare_worker_type(call: Call, request: DeclareWorkerTypeRequest) -> DeclareWorkerTypeResponse:
    """Makes or updates a task queue. One that would have expired already is refused."""
    queue_id = f"{request.provisioner_id}/{request.worker_type}"
    description = text(request.description, "description") if request.HasField("description") else None
    stability = stability_word(request.stability)
    expires = instant(request.expires, "expires") if request.HasField("expires") else None
    call.authorize(
        {
            "provisionerId": request.provisioner_id,
            "workerType": request.worker_type,
            "properties": _given(request, "stability", "description", "expires"),
        }
    )

    async def run(tx: Transaction) -> Row:
        rows = await tx.run(
            QUEUES["declare_task_queue"], (queue_id, description, stability, expires, _EXPIRES_S)
        )
        live, *row = rows[0]
        if not live:
            raise InputError(f"expires lies in the past, and task queue {queue_id} is not there otherwise")
        await tx.commit()
        return tuple(row)

    row = await call.services.db.in_transaction(run, hot=False)
    return DeclareWorkerTypeResponse(worker_type=_worker_type(row, Actions()))


async def _read_provisioner(call: Call, provisioner_id: str) -> Provisioner:
    rows = await call.services.db.fetch(QUEUES["get_provisioner"], (provisioner_id,), hot=True)
    if not rows:
        raise ResourceNotFound(f"provisioner {provisioner_id} does not exist", provisionerId=provisioner_id)
    return _provisioner(rows[0])


def _given(request: Message, *names: str) -> list[str]:
    """Which of these properties a declaration has: each needs its own scope."""
    return [name for name in names if request.HasField(name)]


def _provisioner(row: Row) -> Provisioner:
    provisioner_id, expires, last_date_active = row
    return Provisioner(
        provisioner_id=provisioner_id,
        stability=Stability.STABILITY_EXPERIMENTAL,
        expires=stamp(expires),
        last_date_active=stamp(last_date_active),
        actions=Actions(),
    )


def _worker_type(row: Row, actions: Actions | None = None) -> WorkerType:
    """A worker type; `actions` stands in replies about one, and not in lists (queue.md 1.7)."""
    task_queue_id, description, stability, expires, last_date_active = row
    provisioner_id, _, worker_type = task_queue_id.partition("/")
    return WorkerType(
        provisioner_id=provisioner_id,
        worker_type=worker_type,
        task_queue_id=task_queue_id,
        description=description,
        stability=stability_value(stability),
        expires=stamp(expires),
        last_date_active=stamp(last_date_active),
        actions=actions,
    )
