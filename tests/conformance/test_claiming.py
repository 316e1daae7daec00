"""Claiming and reclaiming by unary calls (queue.md 2.5, 3.6)."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from typing import Any

import pytest

from tests.conformance.building import QUEUE, WORKER, at, definition, new_id, now
from tests.conformance.door import Refused, refused
from tests.conformance.shown import ids, moment, runs, state, status_json, text
from tests.plugins.server import Queue

CLAIM: dict[str, Any] = {"task_queue_id": QUEUE, "worker_group": "group", "worker_id": "worker"}
BY_NAME: dict[str, Any] = {"run_id": 0, "worker_group": "group", "worker_id": "worker"}


async def test_a_claim(queue: Queue) -> None:
    """Q-095 Q-104 T-21: what a claim holds."""
    created = await queue.create()
    before = now()
    (claim,) = await queue.claim()
    assert (claim.run_id, f"{claim.worker_group}/{claim.worker_id}") == (0, WORKER)
    assert claim.status == await queue.status(created.task_id)
    assert claim.task == await queue.task(created.task_id)
    assert runs(claim.status) == ["scheduled running"]
    (run,) = claim.status.runs
    assert run.taken_until == claim.taken_until
    assert timedelta(seconds=1199) < moment(claim.taken_until) - before < timedelta(seconds=1230)
    assert moment(run.started) + timedelta(seconds=1200) == moment(run.taken_until)
    assert all((claim.credentials.client_id, claim.credentials.access_token, claim.credentials.certificate))


async def test_how_many(queue: Queue) -> None:
    """Q-096 Q-101 T-26: as many as asked for or as there are, without waiting; one unless asked."""
    created = [(await queue.create()).task_id for _ in range(6)]
    assert ids(await queue.claim(3)) == created[:3]
    assert ids((await queue("ClaimTasks", **CLAIM)).tasks) == created[3:4]
    assert ids(await queue.claim(32)) == created[4:]
    for count in (0, 33, -1):
        with refused("InputValidationError"):
            await queue("ClaimTasks", **CLAIM, tasks=count)


@pytest.mark.slow
@pytest.mark.settings(claim_poll_s=20.0)
async def test_an_empty_queue(queue: Queue) -> None:
    """Q-097 T-25: 20 s as the caller measures them, never less, under 30; also for a quarantined worker."""
    await queue("DeclareWorker", provisioner_id="prov", worker_type="work", worker_group="g", worker_id="bad")
    await _quarantine(queue, "g", "bad", hours=1)

    async def poll(queue_id: str, worker: str) -> float:
        begin = time.monotonic()
        assert await queue.claim(queue_id=queue_id, worker=worker) == []
        return time.monotonic() - begin

    await queue.create()
    for took in await asyncio.gather(poll("prov/empty", "g/w"), poll(QUEUE, "g/bad")):
        assert 20.0 <= took < 30.0


@pytest.mark.settings(claim_poll_s=0.3)
async def test_an_empty_queue_with_a_shorter_poll(queue: Queue) -> None:
    """Q-097: the poll is never shorter than configured."""
    begin = time.monotonic()
    assert await queue.claim() == []
    assert time.monotonic() - begin >= 0.3


@pytest.mark.settings(claim_poll_s=15.0)
async def test_a_task_wakes_a_waiting_call(queue: Queue) -> None:
    """Q-098: created, released by a dependency, run again or retried, it comes at once."""

    async def woken(worker_id: str, change: Any) -> str:
        waiting = asyncio.ensure_future(queue.claim(worker=f"g/{worker_id}"))
        await _seen(queue, worker_id)
        begin = time.monotonic()
        await change
        (claim,) = await waiting
        assert time.monotonic() - begin < 5
        return str(claim.status.task_id)

    first = new_id()
    assert await woken("a", queue.create(first)) == first
    second = (await queue.create(dependencies=[first])).task_id
    assert await woken("b", queue.resolve(first, "completed")) == second
    assert await woken("c", queue.resolve(second, "worker-shutdown")) == second
    assert await woken("d", queue("RerunTask", task_id=first)) == first


async def test_the_order(queue: Queue) -> None:
    """Q-099 T-27: by priority, then by age; the pending list by age alone."""
    priorities = ["lowest", "highest", "medium", "highest", "very-low", "low", "high", "very-high", "lowest"]
    created = [(await queue.create(priority=priority)).task_id for priority in priorities]
    listed = (await queue("ListPendingTasks", task_queue_id=QUEUE)).tasks
    assert ids(listed) == created
    expected = [created[n] for n in (1, 3, 7, 6, 2, 5, 4, 0, 8)]
    assert ids(await queue.claim(4)) == expected[:4]
    assert ids(await queue.claim(32)) == expected[4:]


async def test_no_run_goes_to_two_workers(queue: Queue) -> None:
    """Q-100 T-28: many that claim at once share the runs, and get all."""
    tasks = [{"task_id": new_id(), "task": definition()} for _ in range(60)]
    await queue("CreateTasks", tasks=tasks)
    claims = await asyncio.gather(*(queue.claim(4, worker=f"g/w{n}") for n in range(20)))
    got = [claim.status.task_id for share in claims for claim in share]
    assert len(got) == len(set(got)) == 60


async def test_scopes_to_claim(queue: Queue) -> None:
    """Q-102 T-1: for the queue and for the worker's name; checked after the schema."""
    needed = [f"queue:claim-work:{QUEUE}", f"queue:worker-id:{WORKER}"]
    await queue.having(*needed)("ClaimTasks", **CLAIM)
    for held in (needed[:1], needed[1:], [needed[0], "queue:worker-id:group/another"]):
        with refused("InsufficientScopes"):
            await queue.having(*held)("ClaimTasks", **CLAIM)
    with refused("InputValidationError"):
        await queue.having("nothing")("ClaimTasks", **CLAIM, tasks=99)


async def test_what_claiming_publishes(queue: Queue) -> None:
    """Q-103 Q-155: task-running, with the worker and until when."""
    claim = await queue.running(tags={"a": "b"})
    event = (await queue.published()).one("task-running")
    assert event.payload == {
        "version": 1,
        "status": status_json(claim.status),
        "task": {"tags": {"a": "b"}},
        "runId": 0,
        "workerGroup": "group",
        "workerId": "worker",
        "takenUntil": text(claim.taken_until),
    }
    assert event.words[2:5] == ["0", "group", "worker"]


async def test_credentials(queue: Queue) -> None:
    """Q-105: temporary ones for the run and the task's own scopes, until the claim ends."""
    claim = await queue.running(scopes=["task:scope", "other:*"])
    task_id, certificate = claim.status.task_id, json.loads(claim.credentials.certificate)
    assert certificate["scopes"] == [
        f"queue:reclaim-task:{task_id}/0",
        f"queue:resolve-task:{task_id}/0",
        f"queue:create-artifact:{task_id}/0",
        "task:scope",
        "other:*",
    ]
    until = moment(claim.taken_until).timestamp()
    assert certificate["expiry"] == round(until * 1000)
    assert abs(certificate["start"] / 1000 - now().timestamp()) < 60
    name, _, end = claim.credentials.client_id.rpartition("/until/")
    assert name == f"task-client/{task_id}/0/on/{WORKER}"
    assert float(end) == pytest.approx(until, abs=0.0005)


async def test_credentials_suffice_for_the_run(queue: Queue) -> None:
    """Q-106: to reclaim and to report, and for nothing else."""
    claim = await queue.running()
    worker, run = queue.worker(claim.credentials), {"task_id": claim.status.task_id, "run_id": 0}
    with refused("InsufficientScopes"):
        await worker("GetTask", task_id=run["task_id"])
    with refused("InsufficientScopes"):
        await worker("ReportCompleted", task_id=run["task_id"], run_id=1)
    renewed = await worker("ReclaimTask", **run)
    assert state((await queue.worker(renewed.credentials)("ReportCompleted", **run)).status) == "completed"


async def test_a_quarantined_worker(queue: Queue) -> None:
    """Q-107 T-25: gets nothing until the quarantine is lifted, and is seen all the same."""
    assert await queue.claim() == []
    await _quarantine(queue, "group", "worker", hours=1)
    await queue.create()
    assert await queue.claim() == []
    assert (await queue.claim(worker="group/other")) != []
    await queue.create()
    await _quarantine(queue, "group", "worker", hours=-1)
    assert len(await queue.claim()) == 1


async def test_no_tasks_past_their_deadline(queue: Queue) -> None:
    """Q-108: they are neither handed out nor counted nor listed."""
    await queue.create(deadline=at(minutes=5))
    await queue.pass_time(minutes=6)
    assert await queue.claim() == []
    assert await queue.pending_count() == 0
    assert not (await queue("ListPendingTasks", task_queue_id=QUEUE)).tasks


async def test_claim_by_name(queue: Queue) -> None:
    """Q-109 Q-112 Q-103 T-23: again for the same worker, which does not extend the claim; not for another."""
    task_id = (await queue.create()).task_id
    first = (await queue("ClaimTask", task_id=task_id, **BY_NAME)).claim
    assert runs(first.status) == ["scheduled running"]
    assert first.task == await queue.task(task_id)
    await queue.pass_time(seconds=60)
    await queue.published()
    again = (await queue("ClaimTask", task_id=task_id, **BY_NAME)).claim
    assert again.taken_until == again.status.runs[0].taken_until
    assert moment(first.taken_until) - moment(again.taken_until) == timedelta(seconds=60)
    later = json.loads(again.credentials.certificate)["expiry"] / 1000
    assert later > moment(again.taken_until).timestamp() + 50
    assert (await queue.published()).exchanges == ["task-running"]
    for other in ({"worker_id": "other"}, {"worker_group": "other"}):
        with refused("RequestConflict"):
            await queue("ClaimTask", task_id=task_id, **{**BY_NAME, **other})
    await queue.pass_time(seconds=1150)
    assert await queue.expire_claims() == 1


async def test_claim_by_name_after_a_poll(queue: Queue) -> None:
    """Q-109: what a poll claimed cannot be claimed by name, even by the same worker."""
    claim = await queue.running()
    with refused("RequestConflict"):
        await queue("ClaimTask", task_id=claim.status.task_id, **BY_NAME)


async def test_what_cannot_be_claimed_by_name(queue: Queue) -> None:
    """Q-110 Q-111: unknown tasks and runs, older runs, past deadlines; without scopes."""
    task_id = (await queue.running()).status.task_id
    await queue.resolve(task_id, "worker-shutdown")
    with refused("ResourceNotFound"):
        await queue.having("nothing")("ClaimTask", task_id=new_id(), **BY_NAME)
    with refused("ResourceNotFound"):
        await queue("ClaimTask", task_id=task_id, **{**BY_NAME, "run_id": 2})
    with refused("RequestConflict"):
        await queue("ClaimTask", task_id=task_id, **BY_NAME)
    needed = [f"queue:claim-task:{QUEUE}", f"queue:worker-id:{WORKER}"]
    for held in (needed[:1], needed[1:]):
        with refused("InsufficientScopes"):
            await queue.having(*held)("ClaimTask", task_id=task_id, **{**BY_NAME, "run_id": 1})
    late = await queue.create(deadline=at(minutes=5))
    await queue.pass_time(minutes=6)
    with refused("RequestConflict"):
        await queue("ClaimTask", task_id=late.task_id, **BY_NAME)
    await queue.having(*needed)("ClaimTask", task_id=task_id, **{**BY_NAME, "run_id": 1})


async def test_claim_by_name_of_a_quarantined_worker(queue: Queue) -> None:
    """Q-107: refused."""
    await queue.claim()
    await _quarantine(queue, "group", "worker", hours=1)
    task_id = (await queue.create()).task_id
    with refused("RequestConflict"):
        await queue("ClaimTask", task_id=task_id, **BY_NAME)


async def test_reclaim(queue: Queue) -> None:
    """Q-113 Q-115: the claim ends later, with fresh credentials; no task in the reply, no event."""
    claim = await queue.running()
    task_id = claim.status.task_id
    await queue.pass_time(minutes=10)
    await queue.published()
    before = now()
    reply = await queue("ReclaimTask", task_id=task_id, run_id=0)
    assert (reply.run_id, f"{reply.worker_group}/{reply.worker_id}") == (0, WORKER)
    assert "task" not in reply.DESCRIPTOR.fields_by_name
    assert timedelta(seconds=1199) < moment(reply.taken_until) - before < timedelta(seconds=1230)
    assert reply.status == await queue.status(task_id)
    assert reply.status.runs[0].taken_until == reply.taken_until
    assert reply.credentials.client_id != claim.credentials.client_id
    certificate = json.loads(reply.credentials.certificate)
    assert certificate["expiry"] == round(moment(reply.taken_until).timestamp() * 1000)
    assert certificate["scopes"] == json.loads(claim.credentials.certificate)["scopes"]
    assert await queue.published() == []


async def test_older_credentials_still_reclaim(queue: Queue) -> None:
    """T-22 T-60: until their own end; after the run they only meet conflicts."""
    claim = await queue.running()
    run = {"task_id": claim.status.task_id, "run_id": 0}
    await queue.worker(claim.credentials)("ReclaimTask", **run)
    await queue.worker(claim.credentials)("ReclaimTask", **run)
    await queue.worker(claim.credentials)("ReportCompleted", **run)
    for method in ("ReclaimTask", "ReportFailed"):
        with refused("RequestConflict"):
            await queue.worker(claim.credentials)(method, **run)


async def test_what_cannot_be_reclaimed(queue: Queue) -> None:
    """Q-114 T-30: resolved, canceled, expired and pending runs; runs past the deadline; unknown ones."""
    completed = (await queue.resolved()).task_id
    canceled = (await queue.running()).status.task_id
    await queue("CancelTask", task_id=canceled)
    expired = (await queue.running()).status.task_id
    await queue.pass_time(minutes=21)
    await queue.expire_claims()
    for task_id, run_id in ((completed, 0), (canceled, 0), (expired, 0), (expired, 1)):
        with refused("RequestConflict"):
            await queue("ReclaimTask", task_id=task_id, run_id=run_id)
    with refused("ResourceNotFound"):
        await queue("ReclaimTask", task_id=expired, run_id=2)
    with refused("ResourceNotFound"):
        await queue("ReclaimTask", task_id=new_id(), run_id=0)
    with refused("InsufficientScopes"):
        await queue.having("nothing")("ReclaimTask", task_id=new_id(), run_id=0)
    await queue.claim()
    late = (await queue.running(deadline=at(minutes=5))).status.task_id
    await queue.pass_time(minutes=6)
    with refused("RequestConflict"):
        await queue("ReclaimTask", task_id=late, run_id=0)
    assert state(await queue.resolve(late, "completed")) == "completed"


async def test_malformed_queue_ids(queue: Queue) -> None:
    """Q-116: two ids with a slash between them."""
    for queue_id in ("", "prov", "prov/", "/work", "prov/work/more", "prov/Work", "prov/wo rk"):
        with refused("InvalidRequestArguments"):
            await queue("ClaimTasks", **{**CLAIM, "task_queue_id": queue_id})
        for method in ("GetPendingTasksCount", "ListPendingTasks", "ListClaimedTasks", "GetTaskQueue"):
            if queue.door.in_paths and (queue_id, method) == ("", "GetTaskQueue"):
                continue  # this path lists the queues
            with refused("InvalidRequestArguments"):
                await queue(method, task_queue_id=queue_id)


@pytest.mark.settings(claim_poll_s=30.0)
async def test_a_caller_goes_away(queue: Queue) -> None:
    """Q-117 Q-098: nothing is claimed for who no longer waits."""
    waiting = asyncio.ensure_future(queue.claim(worker="g/gone"))
    await _seen(queue, "gone")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    created = await queue.create()
    assert ids(await queue.claim()) == [created.task_id]
    assert (await queue.status(created.task_id)).runs[0].worker_id == "worker"


async def _seen(queue: Queue, worker_id: str) -> None:
    """Waits until a worker that polls has arrived and waits."""
    while True:
        try:
            await queue(
                "GetWorker", provisioner_id="prov", worker_type="work", worker_group="g", worker_id=worker_id
            )
            return
        except Refused:
            await asyncio.sleep(0.01)


async def _quarantine(queue: Queue, group: str, worker_id: str, **until: float) -> None:
    await queue(
        "QuarantineWorker",
        provisioner_id="prov",
        worker_type="work",
        worker_group=group,
        worker_id=worker_id,
        quarantine_until=at(**until),
    )
