"""Reports of workers (queue.md 2.1 S8-S12, 2.8, 3.6)."""

from __future__ import annotations

import uuid

import pytest
from prometheus_client import REGISTRY

from tcqueue.v1.task_pb2 import Requires
from tests.conformance.building import WORKER, at, new_id
from tests.conformance.door import refused
from tests.conformance.shown import moment, runs, state, status_json
from tests.plugins.server import Queue

FINAL = ("malformed-payload", "resource-unavailable", "internal-error")
RETRIED = {"worker-shutdown": "retry", "intermittent-task": "task-retry"}


@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_completed_and_failed(queue: Queue, outcome: str) -> None:
    """Q-118 Q-120 Q-155 T-60: resolved, with an event that names the worker."""
    claim = await queue.running()
    await queue.published()
    status = await queue.resolve(claim.status.task_id, outcome)
    assert (state(status), runs(status)) == (outcome, [f"scheduled {outcome} {outcome}"])
    assert moment(status.runs[0].resolved) >= moment(status.runs[0].started)
    assert await queue.status(status.task_id) == status
    event = (await queue.published()).one(f"task-{outcome}")
    assert event.status == status_json(status)
    assert (event.payload["runId"], event.words[2:5]) == (0, ["0", *WORKER.split("/")])
    assert f"{event.payload['workerGroup']}/{event.payload['workerId']}" == WORKER


@pytest.mark.parametrize("outcome", ["completed", "failed", "malformed-payload"])
async def test_the_same_report_again(queue: Queue, outcome: str) -> None:
    """Q-119 Q-120 Q-126: the same status, told again; another report is refused."""
    status = await queue.resolved(outcome)
    first = await queue.published()
    assert await queue.resolve(status.task_id, outcome) == status
    events = await queue.published()
    assert [events[0]] == first.of(events[0].exchange)
    for other in {"completed", "failed", "malformed-payload", "internal-error", "worker-shutdown"} - {
        outcome
    }:
        with refused("RequestConflict"):
            await queue.resolve(status.task_id, other)
    assert await queue.status(status.task_id) == status


async def test_reports_on_other_runs(queue: Queue) -> None:
    """Q-121 Q-122: pending runs, unknown runs, unknown tasks."""
    task_id = (await queue.create()).task_id
    for outcome in ("completed", "failed", *FINAL, *RETRIED):
        with refused("RequestConflict"):
            await queue.resolve(task_id, outcome)
        with refused("ResourceNotFound"):
            await queue.resolve(task_id, outcome, 1)
        with refused("ResourceNotFound"):
            await queue.resolve(new_id(), outcome)
    waiting = new_id()
    await queue.create(waiting, dependencies=[waiting])
    with refused("ResourceNotFound"):
        await queue.resolve(waiting, "completed")


async def test_success_false(queue: Queue) -> None:
    """Q-123: a very old worker's way to fail."""
    for success, expected in ((False, "failed"), (True, "completed")):
        claim = await queue.running()
        reply = await queue("ReportCompleted", task_id=claim.status.task_id, run_id=0, success=success)
        assert state(reply.status) == expected


async def test_scopes(queue: Queue) -> None:
    """Q-124 T-1: the scope comes before everything else."""
    task_id = (await queue.running()).status.task_id
    reports = {"ReportCompleted": {}, "ReportFailed": {}, "ReportException": {"reason": 7}}
    for method, fields in reports.items():
        for asked in (task_id, new_id(), "malformed"):
            with refused("InsufficientScopes"):
                await queue.having(f"queue:resolve-task:{task_id}/1")(
                    method, task_id=asked, run_id=0, **fields
                )
        with refused("InvalidRequestArguments"):
            await queue(method, task_id="malformed", run_id=0, **fields)
    await queue.having(f"queue:resolve-task:{task_id}/0")("ReportCompleted", task_id=task_id, run_id=0)


@pytest.mark.parametrize("reason", FINAL)
async def test_final_exceptions(queue: Queue, reason: str) -> None:
    """Q-125 Q-126 Q-155: no retry, and the reason stays."""
    claim = await queue.running()
    await queue.published()
    status = await queue.resolve(claim.status.task_id, reason)
    assert (state(status), runs(status)) == ("exception", [f"scheduled exception {reason}"])
    assert status.retries_left == 5
    events = await queue.published()
    assert events.exchanges == ["task-exception", "task-group-resolved"]
    assert (events[0].status, events[0].words[2:5]) == (status_json(status), ["0", *WORKER.split("/")])


@pytest.mark.parametrize(("reason", "created"), RETRIED.items())
async def test_retries(queue: Queue, reason: str, created: str) -> None:
    """Q-127 Q-128 Q-130 Q-233 T-19 T-20: another pending run for one of the retries."""
    claim = await queue.running()
    await queue.published()
    status = await queue.resolve(claim.status.task_id, reason)
    assert (state(status), status.retries_left) == ("pending", 4)
    assert runs(status) == [f"scheduled exception {reason}", f"{created} pending"]
    exception, pending = await queue.published()
    assert (exception.exchange, pending.exchange) == ("task-exception", "task-pending")
    assert (exception.payload["runId"], pending.payload["runId"]) == (0, 1)
    assert exception.status == pending.status == status_json(status)
    assert exception.words[2:5] == ["0", *WORKER.split("/")]
    assert pending.words[2:5] == ["1", "_", "_"]


@pytest.mark.parametrize("reason", RETRIED)
async def test_no_retries_left(queue: Queue, reason: str) -> None:
    """Q-129 T-19: the task is resolved, and whoever waited for that goes on."""
    claim = await queue.running(retries=0)
    task_id = claim.status.task_id
    waiting = await queue.create(dependencies=[task_id], requires=Requires.REQUIRES_ALL_RESOLVED)
    await queue.published()
    status = await queue.resolve(task_id, reason)
    assert (runs(status), status.retries_left) == ([f"scheduled exception {reason}"], 0)
    assert state(await queue.status(waiting.task_id)) == "pending"
    assert (await queue.published()).exchanges == ["task-exception", "task-pending", "task-group-resolved"]


@pytest.mark.parametrize("reason", RETRIED)
async def test_a_retrying_report_again(queue: Queue, reason: str) -> None:
    """Q-131 Q-233 T-61: the same status and events while the retry waits, and no third run."""
    task_id = (await queue.running()).status.task_id
    status = await queue.resolve(task_id, reason)
    first = await queue.published()
    assert await queue.resolve(task_id, reason) == status
    assert await queue.published() == first[-2:]
    for other in ("completed", "failed", "internal-error"):
        with refused("RequestConflict"):
            await queue.resolve(task_id, other)


async def test_a_retrying_report_after_the_retry_was_claimed(queue: Queue) -> None:
    """Q-131 T-61: accepted, and it resolves nothing; refused once there are two newer runs."""
    task_id = (await queue.running()).status.task_id
    waiting = await queue.create(dependencies=[task_id], requires=Requires.REQUIRES_ALL_RESOLVED)
    await queue.resolve(task_id, "worker-shutdown")
    (claim,) = await queue.claim()
    await queue.published()
    assert await queue.resolve(task_id, "worker-shutdown") == claim.status
    assert (await queue.published()).exchanges == ["task-exception"]
    assert state(await queue.status(waiting.task_id)) == "unscheduled"
    assert state((await queue("ChangeTaskPriority", task_id=task_id, new_priority=7)).status) == "running"
    await queue.resolve(task_id, "worker-shutdown", 1)
    with refused("RequestConflict"):
        await queue.resolve(task_id, "worker-shutdown")


async def test_unknown_reasons(queue: Queue) -> None:
    """Q-132: none, those that only the queue gives, and others."""
    task_id = (await queue.running()).status.task_id
    for reason in (0, 1, 2, 3, 4, 5, 11, 99):
        with refused("InputValidationError"):
            await queue("ReportException", task_id=task_id, run_id=0, reason=reason)


async def test_a_retry_does_not_hang_on_its_event(queue: Queue) -> None:
    """Q-133: nobody carries events on here, and the retry can be claimed."""
    task_id = (await queue.running()).status.task_id
    await queue.resolve(task_id, "worker-shutdown")
    (claim,) = await queue.claim()
    assert (claim.status.task_id, claim.run_id) == (task_id, 1)
    assert runs(claim.status) == ["scheduled exception worker-shutdown", "retry running"]


@pytest.mark.parametrize("outcome", ["completed", "failed", "internal-error", "worker-shutdown"])
async def test_reports_after_the_deadline(queue: Queue, outcome: str) -> None:
    """Q-134 T-30: until the deadline is enforced a worker can still report."""
    task_id = (await queue.running(deadline=at(minutes=5))).status.task_id
    await queue.pass_time(minutes=5, seconds=30)
    status = await queue.resolve(task_id, outcome)
    assert state(status) == {"internal-error": "exception", "worker-shutdown": "pending"}.get(
        outcome, outcome
    )


async def test_reports_on_an_older_run(queue: Queue) -> None:
    """T-61: refused once a rerun has begun, but the same exception."""
    for outcome, accepted in (("completed", False), ("failed", False), ("internal-error", True)):
        task_id = (await queue.resolved(outcome)).task_id
        status = (await queue("RerunTask", task_id=task_id)).status
        if accepted:
            assert await queue.resolve(task_id, outcome) == status
        else:
            with refused("RequestConflict"):
                await queue.resolve(task_id, outcome)
        await queue("CancelTask", task_id=task_id)


async def test_counters(queue: Queue) -> None:
    """queue.md 6.2: every end of a run is counted once, by queue and reason, with a retry or without."""
    labels = {"provisionerId": "prov", "workerType": f"w{uuid.uuid4().hex}"}
    queue_id = "/".join(labels.values())

    def counted(kind: str, **more: str) -> float | None:
        return REGISTRY.get_sample_value(f"queue_{kind}_tasks_total", {**labels, **more})

    for outcome in ("completed", "failed", "worker-shutdown", "malformed-payload"):
        task_id = (await queue.create(task_queue_id=queue_id)).task_id
        await queue.claim(queue_id=queue_id)
        for _ in range(2):
            await queue.resolve(task_id, outcome)
        await queue("CancelTask", task_id=task_id)
    assert counted("completed") == 1
    assert counted("failed", reasonResolved="failed") == 1
    for reason in ("worker-shutdown", "malformed-payload", "canceled"):
        # What was shut down was tried again, and canceled then.
        assert counted("exception", reasonResolved=reason) == 1
