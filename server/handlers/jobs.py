"""The job queue of 2014 on tasks (jobqueue.md 2, 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, TypeVar

from server import definitions
from server.call import Call
from server.domain import jobs, slugid
from server.domain.jobs import Submitted, UnusableJob
from server.domain.times import cut
from server.errors import InputValidationError, RequestConflict, ResourceNotFound, Violation
from server.handlers.pages import gently, read
from server.store.database import Row
from server.store.statements import load
from server.transitions import jobs as transitions
from server.views import job_message, stamp
from tcqueue.v1.job_pb2 import (
    CancelJobRequest,
    CancelJobResponse,
    ClaimJobRequest,
    ClaimJobResponse,
    CompleteJobRequest,
    CompleteJobResponse,
    CreateJobRequest,
    CreateJobResponse,
    GetJobRequest,
    GetJobResponse,
    JobState,
    ListJobsRequest,
    ListJobsResponse,
)
from tcqueue.v1.task_pb2 import Priority, TaskDefinition, TaskMetadata

_SQL = load("jobs")

_READ_ON_THE_LOOP = 64 * 1024

T = TypeVar("T")


async def create_job(call: Call, request: CreateJobRequest) -> CreateJobResponse:
    """Creates a job, and tells the broker before it answers."""
    services = call.services
    settings = services.settings
    call.authorize({"taskQueueId": settings.job_queue_task_queue_id})
    try:
        job = await _read(jobs.submitted, request.job)
    except UnusableJob as e:
        raise InputValidationError(str(e), [Violation("job", str(e))]) from None
    task_id = slugid.nice()
    job_id = jobs.job_id_of(task_id)
    task = _definition(call, task_id, job)
    definitions.check_rules(task)
    definitions.resolve_queue(task)
    definitions.fill_defaults(task_id, task)
    definitions.check_dates(task, services.clock.now(), settings.max_task_deadline_days)
    await transitions.create_job(
        services.machine,
        definitions.new_task(task_id, task),
        job,
        announced=not settings.amqp_url,
    )
    if services.announcer is not None:
        await services.announcer.announce([job_message(await _find(call, job_id, "read_job"))])
    return CreateJobResponse(job_id=job_id)


def _definition(call: Call, task_id: str, job: Submitted) -> TaskDefinition:
    """The task that a job is."""
    settings = call.services.settings
    job_id = jobs.job_id_of(task_id)
    address = call.services.root_url.known or "http://localhost"
    created = cut(call.services.clock.now())
    longest = timedelta(days=settings.max_task_deadline_days)
    lifetime = min(timedelta(seconds=job.max_pending_seconds + job.runtime_s), longest)
    return TaskDefinition(
        task_queue_id=settings.job_queue_task_queue_id,
        scheduler_id=jobs.SCHEDULER,
        priority=Priority.PRIORITY_LOWEST,
        retries=0,
        created=stamp(created),
        deadline=stamp(created + lifetime),
        payload=f'{{"job":{job.text}}}',
        metadata=TaskMetadata(
            name=job.name or f"job {job_id}",
            description=f"Job {job_id} of the job queue 0.1.0",
            owner=job.requester or settings.job_queue_owner,
            source=settings.job_queue_source or f"{address}/0.1.0/job/{job_id}",
        ),
    )


async def get_job(call: Call, request: GetJobRequest) -> GetJobResponse:
    """A job."""
    row = await _find(call, request.job_id, "read_job")
    call.authorize({"taskId": row[0]})
    return GetJobResponse(job=job_message(row))


async def cancel_job(call: Call, request: CancelJobRequest) -> CancelJobResponse:
    """Ends a job that is not finished."""
    job = _Standing(*await _find(call, request.job_id, "read_job_standing"))
    call.authorize({"schedulerId": job.scheduler_id, "taskGroupId": job.task_group_id, "taskId": job.task_id})
    await transitions.cancel_job(call.services.machine, job.task_id)
    return CancelJobResponse()


async def claim_job(call: Call, request: ClaimJobRequest) -> ClaimJobResponse:
    """Takes a pending job."""
    seen = call.services.seen
    job = _Standing(*await _find(call, request.job_id, "read_job_standing"))
    call.authorize({"taskQueueId": job.task_queue_id})
    await seen.saw_queue(job.task_queue_id)
    if await seen.quarantined(job.task_queue_id, jobs.WORKER_GROUP, jobs.WORKER_ID):
        raise RequestConflict(f"worker {jobs.WORKER_GROUP}/{jobs.WORKER_ID} is quarantined")
    await transitions.claim_job(call.services.machine, job.task_id)
    return ClaimJobResponse()


async def complete_job(call: Call, request: CompleteJobRequest) -> CompleteJobResponse:
    """Ends a job that was claimed here."""
    job = _Standing(*await _find(call, request.job_id, "read_job_standing"))
    call.authorize({"taskId": job.task_id, "runId": max(job.last_run, 0)})
    results, failed = await _read(jobs.results, request.job_results)
    await transitions.complete_job(call.services.machine, job.task_id, results, failed=failed)
    return CompleteJobResponse()


async def list_jobs(call: Call, request: ListJobsRequest) -> ListJobsResponse:
    """The jobs that are not finished."""
    queue_id = call.services.settings.job_queue_task_queue_id
    call.authorize({"taskQueueId": queue_id})
    pending = request.state != JobState.JOB_STATE_RUNNING
    running = request.state != JobState.JOB_STATE_PENDING
    (rows,) = await read(call.services.db, (_SQL["list_jobs"], (queue_id, pending, running)))
    return ListJobsResponse(jobs=await gently(map(job_message, rows)))


class _Standing(NamedTuple):
    """The stored facts of a job's task that scope expressions need."""

    task_id: str
    task_queue_id: str
    scheduler_id: str
    task_group_id: str
    last_run: int


async def _read(how: Callable[[str], T], text: str) -> T:
    """What a text says. The largest take a tenth of a second, which others need not wait for."""
    return how(text) if len(text) < _READ_ON_THE_LOOP else await asyncio.to_thread(how, text)


async def _find(call: Call, job_id: str, statement: str) -> Row:
    """The row of a statement about one job. Raises ResourceNotFound where there is no such job."""
    task_id = jobs.task_id_of(job_id)
    rows = await call.services.db.fetch(_SQL[statement], (task_id,), hot=True) if task_id else []
    if not rows:
        raise ResourceNotFound(f"job {job_id} does not exist", jobId=job_id)
    return rows[0]
