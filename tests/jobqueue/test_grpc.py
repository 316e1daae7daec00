"""The job queue over gRPC: the same handlers, with callers who have to be somebody."""

from __future__ import annotations

import json

import pytest

from server.domain import jobs
from tcqueue.v1.job_pb2 import JobState
from tests.conformance.building import new_id
from tests.conformance.door import refused
from tests.jobqueue.old_client import NOBODY, OldClient
from tests.plugins.server import Queue

CREATE = ["queue:create-task:lowest:jobqueue/default", "queue:create-task:project:none"]
LISTS = ["queue:pending-list:jobqueue/default", "queue:claimed-list:jobqueue/default"]


async def test_the_life_of_a_job(modern: Queue, old: OldClient) -> None:
    """The six methods; what the old API shows is the same."""
    job_id = (await modern("CreateJob", job='{"version": "0.1.0", "priority": "7"}')).job_id
    job = (await modern("GetJob", job_id=job_id)).job
    assert (job.job_id, job.state, job.priority) == (job_id, JobState.JOB_STATE_PENDING, 7)
    assert jobs.job_id_of(job.task_id) == job_id
    assert json.loads(job.job_object) == {"version": "0.1.0", "priority": "7"}
    assert not job.HasField("worker_id") and not job.HasField("started_running_time")
    assert (await modern("ListJobs")).jobs == [job]
    await modern("ClaimJob", job_id=job_id)
    (running,) = (await modern("ListJobs", state=JobState.JOB_STATE_RUNNING)).jobs
    assert (running.worker_id, running.state) == ("0", JobState.JOB_STATE_RUNNING)
    assert not (await modern("ListJobs", state=JobState.JOB_STATE_PENDING)).jobs
    await modern("CompleteJob", job_id=job_id, job_results="[1]")
    job = (await modern("GetJob", job_id=job_id)).job
    assert (job.state, job.job_results) == (JobState.JOB_STATE_FINISHED, "[1]")
    assert (await old.job(job_id))["job_results"] == "[1]"
    other = (await modern("CreateJob", job='{"a": 1}')).job_id
    await modern("CancelJob", job_id=other)
    assert (await old.job(other))["state"] == "FINISHED"
    assert not (await modern("ListJobs")).jobs


async def test_refusals(modern: Queue) -> None:
    """A job that is none, one that is not there, and a change that comes too late."""
    for job, reason in (("", "describes"), ("[1]", "object"), ('{"priority": 100}', "invalid value 100")):
        with refused("InputValidationError", reason):
            await modern("CreateJob", job=job)
    for method in ("GetJob", "ClaimJob", "CompleteJob", "CancelJob"):
        with refused("ResourceNotFound", NOBODY):
            await modern(method, job_id=NOBODY)
        with refused("InvalidRequestArguments", "job_id"):
            await modern(method, job_id="None")
    with refused("InputValidationError", "state"):
        await modern("ListJobs", state=JobState.JOB_STATE_FINISHED)
    job_id = (await modern("CreateJob", job='{"a": 1}')).job_id
    with refused("RequestConflict", "cannot be completed"):
        await modern("CompleteJob", job_id=job_id)
    await modern("CancelJob", job_id=job_id)
    for method in ("ClaimJob", "CompleteJob", "CancelJob"):
        with refused("RequestConflict", job_id):
            await modern(method, job_id=job_id)


async def test_scopes(modern: Queue) -> None:
    """Each method asks for what the same would take of a task."""
    job_id = (await modern.having(*CREATE, "queue:scheduler-id:jobqueue")("CreateJob", job='{"a": 1}')).job_id
    task_id = jobs.task_id_of(job_id)
    needed = {
        "GetJob": [f"queue:get-task:{task_id}", f"queue:status:{task_id}"],
        "ClaimJob": ["queue:claim-task:jobqueue/default", "queue:worker-id:jobqueue/0"],
        "CompleteJob": [f"queue:resolve-task:{task_id}/0"],
    }
    for method, scopes in needed.items():
        for missing in scopes:
            with refused("InsufficientScopes", missing):
                await modern.having(*(set(scopes) - {missing}))(method, job_id=job_id)
        await modern.having(*scopes)(method, job_id=job_id)
    with refused("InsufficientScopes", f"queue:cancel-task:jobqueue/{task_id}/{task_id}"):
        await modern.having("queue:cancel-task:other/*")("CancelJob", job_id=job_id)
    with refused("RequestConflict"):
        await modern.having("queue:cancel-task:jobqueue/*")("CancelJob", job_id=job_id)
    for missing in LISTS:
        with refused("InsufficientScopes", missing):
            await modern.having(*(set(LISTS) - {missing}))("ListJobs")
    await modern.having(*LISTS)("ListJobs")
    for missing in (*CREATE, "queue:scheduler-id:jobqueue"):
        with refused("InsufficientScopes", missing):
            held = {*CREATE, "queue:scheduler-id:jobqueue"} - {missing}
            await modern.having(*held)("CreateJob", job='{"a": 1}')


async def test_callers_without_credentials(modern: Queue) -> None:
    """What the old API grants to whoever reaches it is not for callers of gRPC."""
    with refused("InsufficientScopes"):
        await modern.anonymous("CreateJob", job='{"a": 1}')
    with refused("InsufficientScopes"):
        await modern.anonymous("ListJobs")


@pytest.mark.settings(job_queue="off")
async def test_a_deployment_without_jobs(modern: Queue) -> None:
    """The service is not there at all."""
    with refused("UNIMPLEMENTED"):
        await modern("ListJobs")


async def test_a_task_that_is_no_job(modern: Queue) -> None:
    """Its UUID means nothing here."""
    task_id = new_id()
    await modern.create(task_id, task_queue_id="jobqueue/default")
    with refused("ResourceNotFound"):
        await modern("GetJob", job_id=jobs.job_id_of(task_id))
