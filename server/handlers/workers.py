"""Workers: who has been seen, who is quarantined (queue.md 2.11, 3.8)."""

from __future__ import annotations

from server.call import Call
from server.domain import paging
from server.errors import InputError, ResourceNotFound
from server.handlers.inputs import instant, text
from server.handlers.pages import read
from server.store.database import Row, Transaction
from server.store.statements import load
from server.views import stamp
from tcqueue.v1.run_pb2 import RunReference
from tcqueue.v1.task_queue_pb2 import Actions
from tcqueue.v1.worker_pb2 import (
    DeclareWorkerRequest,
    DeclareWorkerResponse,
    GetWorkerRequest,
    GetWorkerResponse,
    ListWorkersRequest,
    ListWorkersResponse,
    QuarantineWorkerRequest,
    QuarantineWorkerResponse,
    Worker,
    WorkerSummary,
)

_WORKERS = load("workers")
_QUEUES = load("task_queues")

_EXPIRES_S = 86400.0


async def list_workers(call: Call, request: ListWorkersRequest) -> ListWorkersResponse:
    """The live and the quarantined workers of a queue. The filter comes before the paging, so pages are
    full, which queue.md 3.8 does not ask for but allows."""
    group, worker_id = paging.position(request.continuation_token, ("", ""), strict=True)
    quarantined = request.quarantined if request.HasField("quarantined") else None
    queue_id = f"{request.provisioner_id}/{request.worker_type}"
    (rows,) = await read(
        call.services.db,
        (_WORKERS["list_workers"], (queue_id, group, worker_id, quarantined, paging.size(request.limit) + 1)),
    )
    page, more = paging.cut(rows, request.limit)
    return ListWorkersResponse(
        workers=[_summary(row) for row in page],
        continuation_token=paging.token(page[-1][0], page[-1][1]) if more else "",
    )


async def get_worker(call: Call, request: GetWorkerRequest) -> GetWorkerResponse:
    """A worker that is live or quarantined, of a live queue."""
    rows = await call.services.db.fetch(_WORKERS["get_worker"], _key(request), hot=True)
    if not rows:
        raise _unknown(request)
    return GetWorkerResponse(worker=_worker(rows[0]))


async def quarantine_worker(call: Call, request: QuarantineWorkerRequest) -> QuarantineWorkerResponse:
    """Withholds work from a worker until a time; it takes effect everywhere at once."""
    until = instant(request.quarantine_until, "quarantineUntil")
    info = text(request.quarantine_info, "quarantineInfo") or "[unspecified]"
    key = _key(request)

    async def run(tx: Transaction) -> list[Row]:
        statement = (_WORKERS["quarantine_worker"], (*key, until, call.identity.client_id, info))
        return (await tx.pipeline([statement], commit=True))[0]

    rows = await call.services.db.in_transaction(run, hot=False)
    if not rows:
        raise _unknown(request)
    call.services.seen.announce(*key, until.timestamp())
    return QuarantineWorkerResponse(worker=_worker(rows[0]))


async def declare_worker(call: Call, request: DeclareWorkerRequest) -> DeclareWorkerResponse:
    """Makes a worker and its queue known. One that nobody could see is refused."""
    expires = instant(request.expires, "expires") if request.HasField("expires") else None
    call.authorize(
        {
            "provisionerId": request.provisioner_id,
            "workerType": request.worker_type,
            "workerGroup": request.worker_group,
            "workerId": request.worker_id,
            "properties": ["expires"] if expires else [],
        }
    )
    key = _key(request)

    async def run(tx: Transaction) -> Row:
        (worker,), (queue,) = await tx.pipeline(
            [
                (_WORKERS["declare_worker"], (*key, expires)),
                (_QUEUES["declare_task_queue"], (key[0], None, None, expires, _EXPIRES_S)),
            ]
        )
        if not (worker[0] and queue[0]):
            raise InputError("expires lies in the past, and the worker is not there otherwise")
        await tx.commit()
        return worker[1:]

    row = await call.services.db.in_transaction(run, hot=False)
    return DeclareWorkerResponse(worker=_worker(row))


def _key(
    request: GetWorkerRequest | QuarantineWorkerRequest | DeclareWorkerRequest,
) -> tuple[str, str, str]:
    return f"{request.provisioner_id}/{request.worker_type}", request.worker_group, request.worker_id


def _unknown(request: GetWorkerRequest | QuarantineWorkerRequest) -> ResourceNotFound:
    queue_id, group, worker_id = _key(request)
    return ResourceNotFound(
        f"worker {group}/{worker_id} of task queue {queue_id} does not exist",
        taskQueueId=queue_id,
        workerGroup=group,
        workerId=worker_id,
    )


def _worker(row: Row) -> Worker:
    task_queue_id, group, worker_id, recent_tasks, expires, quarantine_until, first_claim, last_active = row
    provisioner_id, _, worker_type = task_queue_id.partition("/")
    return Worker(
        provisioner_id=provisioner_id,
        worker_type=worker_type,
        task_queue_id=task_queue_id,
        worker_group=group,
        worker_id=worker_id,
        recent_tasks=[_run(text) for text in recent_tasks],
        expires=stamp(expires),
        quarantine_until=stamp(quarantine_until),
        first_claim=stamp(first_claim),
        last_date_active=stamp(last_active),
        actions=Actions(),
    )


def _summary(row: Row) -> WorkerSummary:
    group, worker_id, first_claim, last_active, latest_run, quarantine_until = row
    return WorkerSummary(
        worker_group=group,
        worker_id=worker_id,
        first_claim=stamp(first_claim),
        last_date_active=stamp(last_active),
        latest_task=_run(latest_run) if latest_run else None,
        quarantine_until=stamp(quarantine_until) if quarantine_until else None,
    )


def _run(text: str) -> RunReference:
    task_id, _, run_id = text.partition("/")
    return RunReference(task_id=task_id, run_id=int(run_id))
