"""Schedule, rerun, cancel (queue.md 2.8, 2.9, 3.5)."""

from __future__ import annotations

import asyncio

import pytest

from tests.conformance.building import WORKER, at, definition, new_id
from tests.conformance.door import refused
from tests.conformance.shown import runs, state, status_json
from tests.plugins.server import Queue

CHANGES = {"ScheduleTask": "schedule", "RerunTask": "rerun", "CancelTask": "cancel"}
OUTCOMES = ("completed", "failed", "malformed-payload", "canceled")


async def unscheduled(queue: Queue) -> str:
    """A task that waits for itself."""
    task_id = new_id()
    await queue.create(task_id, dependencies=[task_id])
    return task_id


async def test_schedule_an_unscheduled_task(queue: Queue) -> None:
    """Q-076: pending, whatever it waits for, and told."""
    task_id = await unscheduled(queue)
    await queue.published()
    status = (await queue("ScheduleTask", task_id=task_id)).status
    assert (state(status), runs(status)) == ("pending", ["scheduled pending"])
    event = (await queue.published()).one("task-pending")
    assert (event.status, event.payload["runId"]) == (status_json(status), 0)
    assert len(await queue.claim()) == 1


async def test_schedule_any_other_task(queue: Queue) -> None:
    """Q-077 T-16: nothing happens to a pending, running or resolved one."""
    before = [await queue.resolved(outcome) for outcome in OUTCOMES]
    before.append((await queue.running()).status)
    before.append(await queue.create())
    await queue.published()
    for status in before:
        assert (await queue("ScheduleTask", task_id=status.task_id)).status == status
    assert await queue.published() == []


async def test_unknown_tasks_and_past_deadlines(queue: Queue) -> None:
    """Q-078 Q-086 Q-093: 404 before scopes, 409 after them."""
    waiting = new_id()
    await queue.create(waiting, dependencies=[waiting], deadline=at(minutes=5))
    others = [
        (await queue.resolved(deadline=at(minutes=5))).task_id,
        (await queue.create(deadline=at(minutes=5))).task_id,
    ]
    await queue.pass_time(minutes=6)
    await queue.published()
    for method in CHANGES:
        with refused("ResourceNotFound"):
            await queue.having("nothing")(method, task_id=new_id())
        for task_id in (waiting, *others):
            with refused("RequestConflict"):
                await queue(method, task_id=task_id)
        with refused("InsufficientScopes"):
            await queue.having("nothing")(method, task_id=waiting)
    assert await queue.published() == []


@pytest.mark.parametrize(("method", "verb"), CHANGES.items())
async def test_scopes(queue: Queue, method: str, verb: str) -> None:
    """Q-079 Q-087 Q-093: of the task, of its project, or the older pair, which needs both halves."""
    status = await queue.create(scheduler_id="s", project_id="p")
    task_id, group = status.task_id, status.task_group_id
    pair = [f"queue:{verb}-task", f"assume:scheduler-id:s/{group}"]
    for enough in ([f"queue:{verb}-task:s/{group}/{task_id}"], [f"queue:{verb}-task-in-project:p"], pair):
        await queue.having(*enough)(method, task_id=task_id)
    for too_little in (pair[:1], pair[1:], [f"queue:{verb}-task-in-project:none"], ["queue:status:*"]):
        with refused("InsufficientScopes"):
            await queue.having(*too_little)(method, task_id=task_id)
    with refused("InsufficientScopes"):
        await queue.anonymous(method, task_id=task_id)


async def test_rerun_resolved_tasks(queue: Queue) -> None:
    """Q-080: another pending run, and told."""
    for outcome in OUTCOMES:
        before = await queue.resolved(outcome)
        await queue.published()
        status = (await queue("RerunTask", task_id=before.task_id)).status
        assert (state(status), runs(status)) == ("pending", [*runs(before), "rerun pending"])
        event = (await queue.published()).one("task-pending")
        assert (event.status, event.payload["runId"]) == (status_json(status), 1)
        assert [claim.run_id for claim in await queue.claim()] == [1]


async def test_rerun_a_pending_task(queue: Queue) -> None:
    """Q-081: no further run; told again, of the last run."""
    before = await queue.create()
    await queue.published()
    assert (await queue("RerunTask", task_id=before.task_id)).status == before
    assert (await queue.published()).exchanges == ["task-pending"]
    await queue.claim()
    retried = await queue.resolve(before.task_id, "worker-shutdown")
    await queue.published()
    assert (await queue("RerunTask", task_id=before.task_id)).status == retried
    assert (await queue.published()).one("task-pending").payload["runId"] == 1


async def test_rerun_a_running_task(queue: Queue) -> None:
    """Q-082: nothing happens."""
    before = (await queue.running()).status
    await queue.published()
    assert (await queue("RerunTask", task_id=before.task_id)).status == before
    assert await queue.published() == []


async def test_rerun_an_unscheduled_task(queue: Queue) -> None:
    """Q-083: its first run is a rerun."""
    task_id = await unscheduled(queue)
    status = (await queue("RerunTask", task_id=task_id)).status
    assert (runs(status), status.retries_left) == (["rerun pending"], 5)


async def test_rerun_gives_the_retries_back(queue: Queue) -> None:
    """Q-084: as many as the definition says."""
    claim = await queue.running(retries=2)
    task_id = claim.status.task_id
    assert (await queue.resolve(task_id, "worker-shutdown")).retries_left == 1
    await queue("CancelTask", task_id=task_id)
    assert (await queue("RerunTask", task_id=task_id)).status.retries_left == 2


async def test_the_limit_of_runs(queue: Queue) -> None:
    """Q-084 Q-085 T-36: retries are capped so that there are never more than 50 runs; the 51st is refused."""
    task_id = (await queue.resolved("canceled", retries=5)).task_id
    left = []
    for _ in range(49):
        left.append((await queue("RerunTask", task_id=task_id)).status.retries_left)
        status = (await queue("CancelTask", task_id=task_id)).status
    assert left == [5] * 44 + [4, 3, 2, 1, 0]
    assert len(status.runs) == 50
    await queue.published()
    with refused("RequestConflict", "50"):
        await queue("RerunTask", task_id=task_id)
    assert await queue.published() == []
    assert await queue.status(task_id) == status


async def test_cancel_an_unscheduled_task(queue: Queue) -> None:
    """Q-088 T-17: gets a run that was never one; scheduling does nothing then, a rerun makes run 1."""
    task_id = await unscheduled(queue)
    await queue.published()
    status = (await queue("CancelTask", task_id=task_id)).status
    assert (state(status), runs(status)) == ("exception", ["exception exception canceled"])
    assert status.runs[0].scheduled == status.runs[0].resolved
    assert not status.runs[0].HasField("started") and not status.runs[0].HasField("worker_id")
    event = (await queue.published()).one("task-exception")
    assert (event.payload["runId"], event.words[2:5]) == (0, ["0", "_", "_"])
    assert (await queue("ScheduleTask", task_id=task_id)).status == status
    status = (await queue("RerunTask", task_id=task_id)).status
    assert runs(status) == ["exception exception canceled", "rerun pending"]


async def test_cancel_a_pending_task(queue: Queue) -> None:
    """Q-089 Q-094: it cannot be claimed or counted any more."""
    task_id = (await queue.create()).task_id
    assert await queue.pending_count() == 1
    status = (await queue("CancelTask", task_id=task_id)).status
    assert (runs(status), status.retries_left) == (["scheduled exception canceled"], 5)
    assert await queue.pending_count() == 0
    assert await queue.claim() == []
    event = (await queue.published()).one("task-exception")
    assert "workerGroup" not in event.payload and "workerId" not in event.payload


async def test_cancel_a_running_task(queue: Queue) -> None:
    """Q-090 Q-094: the worker's name stays, in the event too; it cannot reclaim."""
    claim = await queue.running()
    task_id = claim.status.task_id
    status = (await queue("CancelTask", task_id=task_id)).status
    (run,) = status.runs
    assert runs(status) == ["scheduled exception canceled"]
    assert (f"{run.worker_group}/{run.worker_id}", run.taken_until) == (WORKER, claim.taken_until)
    assert status.retries_left == 5
    event = (await queue.published()).one("task-exception")
    assert (
        f"{event.payload['workerGroup']}/{event.payload['workerId']}" == WORKER == "/".join(event.words[3:5])
    )
    with refused("RequestConflict"):
        await queue.worker(claim.credentials)("ReclaimTask", task_id=task_id, run_id=0)


async def test_cancel_twice(queue: Queue) -> None:
    """Q-091 Q-233 T-18: the same status, told again with it."""
    for before in ((await queue.running()).status, await queue.create()):
        await queue.published()
        first = (await queue("CancelTask", task_id=before.task_id)).status
        again = (await queue("CancelTask", task_id=before.task_id)).status
        assert first == again
        events = (await queue.published()).of("task-exception")
        assert [event.status for event in events] == [status_json(first)] * 2


async def test_cancel_a_resolved_task(queue: Queue) -> None:
    """Q-092 T-18: nothing happens."""
    for outcome in ("completed", "failed", "malformed-payload"):
        before = await queue.resolved(outcome)
        await queue.published()
        assert (await queue("CancelTask", task_id=before.task_id)).status == before
        assert await queue.published() == []


async def test_ten_cancels_at_once(queue: Queue) -> None:
    """Q-236: all succeed, and there is one run."""
    for task_id in (await unscheduled(queue), (await queue.create()).task_id):
        replies = await asyncio.gather(*(queue("CancelTask", task_id=task_id) for _ in range(10)))
        assert all(reply.status == replies[0].status for reply in replies)
        assert len(replies[0].status.runs) == 1


async def test_changes_of_state_meet_their_conditions_in_any_order(queue: Queue) -> None:
    """Q-080 Q-091: rerun and cancel, again and again."""
    task_id, task = new_id(), definition()
    await queue("CreateTask", task_id=task_id, task=task)
    for n in range(3):
        await queue("CancelTask", task_id=task_id)
        status = (await queue("RerunTask", task_id=task_id)).status
        assert len(status.runs) == n + 2
    assert len(await queue.claim(4)) == 1
