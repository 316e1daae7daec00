"""Claims that run out and deadlines that pass (queue.md 2.6, 2.7)."""

from __future__ import annotations

import pytest

from tcqueue.v1.task_pb2 import Requires
from tests.conformance.building import QUEUE, WORKER, at, new_id
from tests.conformance.door import refused
from tests.conformance.shown import runs, state, status_json
from tests.plugins.server import Queue

ALL_RESOLVED = Requires.REQUIRES_ALL_RESOLVED


async def test_a_claim_runs_out(queue: Queue) -> None:
    """Q-135 Q-138 Q-155: the run is lost, and retried for one of the retries."""
    task_id = (await queue.running()).status.task_id
    await queue.published()
    await queue.pass_time(minutes=19)
    assert await queue.expire_claims() == 0
    await queue.pass_time(minutes=2)
    assert await queue.expire_claims() == 1
    status = await queue.status(task_id)
    assert runs(status) == ["scheduled exception claim-expired", "retry pending"]
    assert (state(status), status.retries_left) == ("pending", 4)
    exception, pending = await queue.published()
    assert (exception.exchange, pending.exchange) == ("task-exception", "task-pending")
    assert (exception.words[2:5], pending.words[2:5]) == (["0", *WORKER.split("/")], ["1", "_", "_"])
    assert f"{exception.payload['workerGroup']}/{exception.payload['workerId']}" == WORKER
    assert exception.status == pending.status == status_json(status)
    assert await queue.expire_claims() == 0


async def test_claims_run_out_until_no_retries_are_left(queue: Queue) -> None:
    """Q-136 Q-139: then the task stays an exception, which counts as resolved."""
    task_id = (await queue.running(retries=2, deadline=at(hours=4))).status.task_id
    waiting = await queue.create(dependencies=[task_id], requires=ALL_RESOLVED, deadline=at(hours=4))
    for left in (1, 0):
        await queue.pass_time(minutes=21)
        assert await queue.expire_claims() == 1
        assert (await queue.status(task_id)).retries_left == left
        await queue.claim()
    assert state(await queue.status(waiting.task_id)) == "unscheduled"
    await queue.published()
    await queue.pass_time(minutes=21)
    await queue.expire_claims()
    status = await queue.status(task_id)
    assert [run.split(" ")[-1] for run in runs(status)] == ["claim-expired"] * 3
    assert (state(status), status.retries_left) == ("exception", 0)
    assert state(await queue.status(waiting.task_id)) == "pending"
    assert (await queue.published()).exchanges == ["task-exception", "task-pending", "task-group-resolved"]


async def test_a_reclaimed_claim(queue: Queue) -> None:
    """Q-137: lasts until its new end."""
    task_id = (await queue.running()).status.task_id
    await queue.pass_time(minutes=15)
    await queue("ReclaimTask", task_id=task_id, run_id=0)
    await queue.pass_time(minutes=15)
    assert await queue.expire_claims() == 0
    assert state(await queue.status(task_id)) == "running"
    await queue.pass_time(minutes=6)
    assert await queue.expire_claims() == 1


async def test_a_claim_runs_out_after_the_deadline(queue: Queue) -> None:
    """Q-140 T-31 T-29: it is left to the deadline, which makes no retry."""
    task_id = (await queue.running(deadline=at(minutes=20))).status.task_id
    await queue.pass_time(minutes=20, seconds=30)
    assert await queue.expire_claims() == 0
    assert await queue.enforce_deadlines() == 0
    assert state(await queue.status(task_id)) == "running"
    await queue.pass_time(seconds=31)
    assert await queue.enforce_deadlines() == 1
    assert runs(await queue.status(task_id)) == ["scheduled exception deadline-exceeded"]


async def test_the_deadline_of_an_unscheduled_task(queue: Queue) -> None:
    """Q-141 Q-143: gets a run that was never one."""
    task_id = new_id()
    await queue.create(task_id, dependencies=[task_id])
    await queue.published()
    await queue.pass_time(hours=1, minutes=2)
    await queue.enforce_deadlines()
    status = await queue.status(task_id)
    assert (runs(status), status.retries_left) == (["exception exception deadline-exceeded"], 5)
    assert status.runs[0].scheduled == status.runs[0].resolved
    event = (await queue.published()).one("task-exception")
    assert (event.payload["runId"], event.words[2:5]) == (0, ["0", "_", "_"])
    assert event.status["runs"] == status_json(status)["runs"]


async def test_the_deadline_of_pending_and_running_tasks(queue: Queue) -> None:
    """Q-142 Q-143 Q-145 T-29: no retry; the event names no worker; nothing can be claimed."""
    running = (await queue.running()).status.task_id
    pending = (await queue.create()).task_id
    await queue.published()
    await queue.pass_time(hours=1, minutes=2)
    assert await queue.enforce_deadlines() == 2
    events = (await queue.published()).of("task-exception")
    assert {e.status["taskId"] for e in events} == {running, pending}
    for event in events:
        assert (event.payload["runId"], event.words[2:5]) == (0, ["0", "_", "_"])
        assert "workerGroup" not in event.payload and "workerId" not in event.payload
    for task_id in (running, pending):
        assert runs(await queue.status(task_id)) == ["scheduled exception deadline-exceeded"]
    assert (await queue.status(running)).runs[0].worker_id == "worker"
    counts = await queue("GetTaskQueueCounts", task_queue_id=QUEUE)
    assert (counts.pending_tasks, counts.claimed_tasks) == (0, 0)


async def test_the_deadline_of_a_resolved_task(queue: Queue) -> None:
    """Q-144: changes nothing and tells nothing."""
    before = [(await queue.resolved(outcome)).task_id for outcome in ("completed", "failed", "canceled")]
    shown = [runs(await queue.status(task_id)) for task_id in before]
    await queue.pass_time(hours=1, minutes=2)
    await queue.published()
    assert await queue.enforce_deadlines() == 0
    assert [runs(await queue.status(task_id)) for task_id in before] == shown
    assert await queue.published() == []


async def test_who_waits_for_a_deadline(queue: Queue) -> None:
    """Q-145: dependents go on, and groups end."""
    task_id = (await queue.create(deadline=at(minutes=5))).task_id
    waiting = await queue.create(dependencies=[task_id], requires=ALL_RESOLVED)
    await queue.published()
    await queue.pass_time(minutes=7)
    await queue.enforce_deadlines()
    assert state(await queue.status(waiting.task_id)) == "pending"
    events = await queue.published()
    assert events.one("task-group-resolved").payload["taskGroupId"] == task_id
    assert events.one("task-pending").status["taskId"] == waiting.task_id


async def test_a_rerun_is_pending_at_the_deadline(queue: Queue) -> None:
    """Q-146: it is resolved by it."""
    task_id = (await queue.resolved()).task_id
    await queue("RerunTask", task_id=task_id)
    await queue.pass_time(hours=1, minutes=2)
    await queue.enforce_deadlines()
    assert runs(await queue.status(task_id)) == [
        "scheduled completed completed",
        "rerun exception deadline-exceeded",
    ]


async def test_changes_after_the_deadline(queue: Queue) -> None:
    """Q-142 Q-203: refused before and after it is enforced."""
    task_id = (await queue.create(deadline=at(minutes=5))).task_id
    await queue.pass_time(minutes=5, seconds=30)
    for _ in range(2):
        for method in ("ScheduleTask", "RerunTask", "CancelTask"):
            with refused("RequestConflict"):
                await queue(method, task_id=task_id)
        with refused("RequestConflict"):
            await queue("ChangeTaskPriority", task_id=task_id, new_priority=7)
        await queue.pass_time(minutes=1)
        await queue.enforce_deadlines()


@pytest.mark.settings(loop_batch_size=2)
async def test_more_than_a_batch(queue: Queue) -> None:
    """Q-135 Q-142: rounds go on until nothing is left."""
    for _ in range(5):
        await queue.create()
    await queue.claim(5)
    await queue.pass_time(minutes=21)
    assert await queue.round("claim-expiry") == 5
    await queue.pass_time(hours=1)
    assert await queue.round("deadlines") == 5
