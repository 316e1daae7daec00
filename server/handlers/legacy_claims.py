"""Claims and their ends for workers of 2014, who act under their own names: no credentials came with a claim
then, so scopes name the worker that the run says claimed it (queue.md 4.1)."""

from __future__ import annotations

from typing import NamedTuple

from server.call import Call
from server.errors import RequestConflict, ResourceNotFound
from server.handlers import claims, runs
from server.handlers.legacy_shapes import legacy_claim, legacy_status
from server.store.statements import load
from server.transitions import claiming
from server.views import stamp, status_message
from tcqueue.v1.claim_pb2 import (
    ClaimTaskRequest,
    ReclaimTaskRequest,
    ReportCompletedRequest,
)
from tcqueue.v1.legacy_claim_pb2 import (
    LegacyClaim,
    LegacyQueueClaimTaskRequest,
    LegacyQueueClaimTaskResponse,
    LegacyQueueClaimWorkRequest,
    LegacyQueueClaimWorkResponse,
    LegacyQueueReclaimTaskRequest,
    LegacyQueueReclaimTaskResponse,
    LegacyQueueReportCompletedRequest,
    LegacyQueueReportCompletedResponse,
)

_SQL = load("legacy")


class Claimant(NamedTuple):
    """The worker that claimed a run. A run keeps it for ever, so what it may do can be asked beforehand."""

    worker_group: str
    worker_id: str


async def read_claimant(call: Call, task_id: str, run_id: int) -> Claimant:
    """Who claimed a run. Raises ResourceNotFound for an unknown task or run, RequestConflict for a run that
    nobody claimed."""
    rows = await call.services.db.fetch(_SQL["read_claimed_run"], (task_id, run_id), hot=True)
    if not rows:
        raise ResourceNotFound(f"task {task_id} does not exist", taskId=task_id)
    _, state, group, worker = rows[0]
    if state is None:
        raise ResourceNotFound(f"task {task_id} has no run {run_id}", taskId=task_id)
    if group is None:
        raise RequestConflict(f"run {run_id} of task {task_id} was never claimed", taskId=task_id)
    return Claimant(group, worker)


async def claim_task(call: Call, request: LegacyQueueClaimTaskRequest) -> LegacyQueueClaimTaskResponse:
    """Claims one given run."""
    found = await claims.claim_task(
        call,
        ClaimTaskRequest(
            task_id=request.task_id,
            run_id=request.run_id,
            worker_group=request.worker_group,
            worker_id=request.worker_id,
        ),
    )
    return LegacyQueueClaimTaskResponse(claim=legacy_claim(found.claim))


async def reclaim_task(call: Call, request: LegacyQueueReclaimTaskRequest) -> LegacyQueueReclaimTaskResponse:
    """Renews a claim."""
    claimant = await read_claimant(call, request.task_id, request.run_id)
    call.authorize({"workerGroup": claimant.worker_group, "workerId": claimant.worker_id})
    found = await claims.reclaim_task(
        call, ReclaimTaskRequest(task_id=request.task_id, run_id=request.run_id)
    )
    return LegacyQueueReclaimTaskResponse(
        claim=LegacyClaim(
            status=legacy_status(found.status),
            run_id=found.run_id,
            worker_group=found.worker_group,
            worker_id=found.worker_id,
            taken_until=found.taken_until,
        )
    )


async def claim_work(call: Call, request: LegacyQueueClaimWorkRequest) -> LegacyQueueClaimWorkResponse:
    """Claims the run that is next, if there is one; does not wait for it."""
    call.authorize(
        {
            "provisionerId": request.provisioner_id,
            "workerType": request.worker_type,
            "workerGroup": request.worker_group,
            "workerId": request.worker_id,
        }
    )
    services = call.services
    queue_id = f"{request.provisioner_id}/{request.worker_type}"
    if await services.seen.saw(queue_id, request.worker_group, request.worker_id) is not None:
        return LegacyQueueClaimWorkResponse()
    found = await claiming.claim_runs(services.machine, queue_id, [(request.worker_group, request.worker_id)])
    if not found:
        return LegacyQueueClaimWorkResponse()
    claim = found[0]
    return LegacyQueueClaimWorkResponse(
        claim=LegacyClaim(
            status=legacy_status(status_message(claim.facts)),
            run_id=claim.run_id,
            worker_group=request.worker_group,
            worker_id=request.worker_id,
            taken_until=stamp(claim.taken_until),
        )
    )


async def report_completed(
    call: Call, request: LegacyQueueReportCompletedRequest
) -> LegacyQueueReportCompletedResponse:
    """Resolves a run as completed, or as failed without success."""
    claimant = await read_claimant(call, request.task_id, request.run_id)
    call.authorize({"workerGroup": claimant.worker_group, "workerId": claimant.worker_id})
    found = await runs.report_completed(
        call,
        ReportCompletedRequest(task_id=request.task_id, run_id=request.run_id, success=request.success),
    )
    return LegacyQueueReportCompletedResponse(status=legacy_status(found.status))
