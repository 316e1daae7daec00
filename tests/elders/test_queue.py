"""The queue of 2014: its calls in the order of its reference (queue.md 4)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conformance.building import new_id
from tests.elders.building import PROVISIONER, WORKER, WORKER_TYPE, iso, task
from tests.plugins.elders import Answer, Elder
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("http")

STATUS = {
    *("taskId", "provisionerId", "workerType", "schedulerId", "taskGroupId", "deadline", "retriesLeft"),
    *("state", "runs"),
}
HERE = f"{PROVISIONER}/{WORKER_TYPE}"
AS_WORKER = "assume:worker-id:group/worker"


def _status(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    status: dict[str, Any] = answer.json["status"]
    assert set(status) == STATUS
    return status


def _error(answer: Answer) -> tuple[int, str]:
    assert {"code", "message"} <= set(answer.json)
    return answer.status, answer.json["code"]


async def _created(elder: Elder, **changes: object) -> str:
    task_id = new_id()
    assert _status(await elder.queue("createTask", task_id, payload=task(**changes)))["state"] == "pending"
    return task_id


async def _running(elder: Elder, **changes: object) -> str:
    task_id = await _created(elder, **changes)
    assert (await elder.queue("claimTask", task_id, 0, payload=WORKER)).status == 200
    return task_id


@pytest.mark.elder("queue.createTask", "queue.getTask", "queue.status")
async def test_creating(elder: Elder, queue: Queue) -> None:
    """The task is pending, its definition comes back, a repeat is harmless, another definition is not."""
    task_id, definition = new_id(), task(deadline=iso(days=6.9), payload={"n": 1.0, "big": 2**60})
    status = _status(await elder.queue("createTask", task_id, payload=definition))
    assert (status["state"], status["taskGroupId"], status["retriesLeft"]) == ("pending", task_id, 5)
    again = await elder.queue("createTask", task_id, payload=definition)
    assert again.json == {"status": status}
    assert (await elder.queue("status", task_id)).json == {"status": status}
    assert _error(await elder.queue("createTask", task_id, payload={**definition, "retries": 4})) == (
        409,
        "RequestConflict",
    )
    read = await elder.anonymous.queue("getTask", task_id)
    assert read.json == {**definition, "taskGroupId": task_id, "extra": {}}
    now = await queue.task(task_id)
    assert (now.task_queue_id, now.project_id, now.metadata.name) == (HERE, "none", "Unit testing task")


@pytest.mark.elder("queue.createTask")
async def test_what_creation_refuses(elder: Elder) -> None:
    """Limits of 2014: seven days, ten routes, fifty retries, an owner with an e-mail address, a source that
    is a link; nothing of a refused task is left."""
    task_id = new_id()
    bad = [
        task(deadline=iso(days=7.1)),
        task(deadline=iso(hours=-1)),
        task(routes=[f"route.{i}" for i in range(11)]),
        task(retries=51),
        task(metadata={**task()["metadata"], "owner": "nobody"}),
        task(metadata={**task()["metadata"], "source": "no link"}),
        task(payload=None),
        task(workerType=None),
        {**task(), "nonsense": 1},
    ]
    for definition in bad:
        answer = await elder.queue("createTask", task_id, payload=definition)
        assert answer.status == 400, (answer, definition)
        assert {"code", "message", "requestInfo", "error"} >= set(answer.json)
        if answer.json["code"] == "InputValidationError":
            assert answer.json["message"].startswith(
                "Request payload must follow the schema: "
                "http://schemas.taskcluster.net/queue/v1/create-task-request.json#\n"
            )
            assert answer.json["error"]
    assert _error(await elder.queue("createTask", "no-slugid", payload=task()))[0] == 400
    assert _error(await elder.queue("status", task_id)) == (404, "ResourceNotFound")
    assert _error(await elder.queue("getTask", task_id)) == (404, "ResourceNotFound")
    assert (await elder.queue("createTask", task_id, payload=task(retries=50))).json["status"][
        "retriesLeft"
    ] == 49


@pytest.mark.elder("queue.createTask", "queue.defineTask")
async def test_scopes_of_creation(elder: Elder) -> None:
    """The worker type's scope, every scope of the task, one for every route; to define, either of two."""
    definition = task(scopes=["some:scope"], routes=["some.route"])
    needed = [f"queue:create-task:{HERE}", "some:scope", "queue:route:some.route"]
    for missing in needed:
        caller = elder.having(*(scope for scope in needed if scope != missing))
        for call in ("createTask", "defineTask"):
            assert _error(await caller.queue(call, new_id(), payload=definition)) == (
                403,
                "InsufficientScopes",
            )
    assert (await elder.having(*needed).queue("createTask", new_id(), payload=definition)).status == 200
    assert (await elder.having(*needed).queue("defineTask", new_id(), payload=definition)).status == 200
    define = [f"queue:define-task:{HERE}", *needed[1:]]
    assert (await elder.having(*define).queue("defineTask", new_id(), payload=definition)).status == 200
    assert (await elder.having(*define).queue("createTask", new_id(), payload=definition)).status == 403
    assert (await elder.anonymous.queue("createTask", new_id(), payload=task())).status == 403


@pytest.mark.elder("queue.defineTask", "queue.scheduleTask")
async def test_defining(elder: Elder, queue: Queue) -> None:
    """Q-218: unscheduled until it is scheduled; defined in the log, and not pending. A repeat is harmless."""
    task_id, definition = new_id(), task()
    defined = await elder.queue("defineTask", task_id, payload=definition)
    assert (_status(defined)["state"], _status(defined)["runs"]) == ("unscheduled", [])
    assert (await elder.queue("defineTask", task_id, payload=definition)).json == defined.json
    assert set((await queue.published()).about(task_id).exchanges) == {"task-defined"}
    other = {**definition, "retries": 1}
    assert _error(await elder.queue("defineTask", task_id, payload=other)) == (409, "RequestConflict")
    claim = await elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload=WORKER)
    assert (claim.status, claim.json) == (204, None)
    scopes = ["queue:schedule-task", f"assume:scheduler-id:my-scheduler/{task_id}"]
    for scope in scopes:
        assert _error(await elder.having(scope).queue("scheduleTask", task_id)) == (403, "InsufficientScopes")
    scheduled = await elder.having(*scopes).queue("scheduleTask", task_id)
    assert _status(scheduled)["state"] == "pending"
    assert (await elder.queue("scheduleTask", task_id)).json == scheduled.json
    assert _error(await elder.queue("scheduleTask", new_id())) == (404, "ResourceNotFound")


async def test_defining_over_grpc(queue: Queue) -> None:
    """DefineTask of today's service is the same: a task that only scheduleTask starts."""
    from tests.conformance.building import definition

    task_id = new_id()
    response = await queue("DefineTask", task_id=task_id, task=definition())
    assert not response.status.runs
    assert list((await queue.task(task_id)).dependencies) == [task_id]
    status = (await queue("ScheduleTask", task_id=task_id)).status
    assert len(status.runs) == 1


@pytest.mark.elder("queue.claimTask", "queue.reclaimTask")
async def test_claiming_by_name(elder: Elder) -> None:
    """Q-224: a claim holds neither the task nor credentials. Its worker may claim again, nobody else may."""
    task_id = await _created(elder)
    answer = await elder.queue("claimTask", task_id, 0, payload=WORKER)
    assert set(answer.json) == {"status", "runId", "workerGroup", "workerId", "takenUntil"}
    assert _status(answer)["state"] == "running"
    assert (answer.json["runId"], answer.json["workerId"]) == (0, "worker")
    again = await elder.queue("claimTask", task_id, 0, payload=WORKER)
    assert again.json["takenUntil"] == answer.json["takenUntil"]
    other = {**WORKER, "workerId": "other"}
    assert _error(await elder.queue("claimTask", task_id, 0, payload=other)) == (409, "RequestConflict")
    assert _error(await elder.queue("claimTask", task_id, 1, payload=WORKER)) == (404, "ResourceNotFound")
    assert _error(await elder.queue("claimTask", new_id(), 0, payload=WORKER)) == (404, "ResourceNotFound")
    renewed = await elder.queue("reclaimTask", task_id, 0)
    assert set(renewed.json) == {"status", "runId", "workerGroup", "workerId", "takenUntil"}
    assert renewed.json["takenUntil"] >= answer.json["takenUntil"]


@pytest.mark.elder("queue.claimTask", "queue.reclaimTask", "queue.claimWork", "queue.reportCompleted")
async def test_scopes_of_workers(elder: Elder) -> None:
    """Each call with all its scopes, and refused without any one of them."""
    claim = ["queue:claim-task", f"assume:worker-type:{HERE}", AS_WORKER]
    task_id = await _created(elder)

    async def check(needed: list[str], name: str, *arguments: object, payload: object = None) -> None:
        for missing in needed:
            caller = elder.having(*(scope for scope in needed if scope != missing))
            answer = await caller.queue(name, *arguments, payload=payload)
            assert _error(answer) == (403, "InsufficientScopes"), (name, missing)
            assert missing in answer.json["message"]
        answer = await elder.having(*needed).queue(name, *arguments, payload=payload)
        assert answer.status == 200, answer

    await check(claim, "claimTask", task_id, 0, payload=WORKER)
    await check(["queue:claim-task", AS_WORKER], "reclaimTask", task_id, 0)
    report = ["queue:report-task-completed", AS_WORKER]
    await check(report, "reportCompleted", task_id, 0, payload={"success": True})
    await _created(elder)
    await check(claim, "claimWork", PROVISIONER, WORKER_TYPE, payload=WORKER)
    rerun = ["queue:rerun-task", f"assume:scheduler-id:my-scheduler/{task_id}"]
    await check(rerun, "rerunTask", task_id)


@pytest.mark.elder("queue.claimWork")
async def test_claiming_work(elder: Elder) -> None:
    """Q-217: one claim, the oldest first; nothing is 204 at once, without a body."""
    ids = [await _created(elder) for _ in range(3)]
    for task_id in ids:
        answer = await elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload=WORKER)
        assert set(answer.json) == {"status", "runId", "workerGroup", "workerId", "takenUntil"}
        assert (_status(answer)["taskId"], answer.json["runId"]) == (task_id, 0)
    async with asyncio.timeout(5):
        empty = await elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload=WORKER)
    assert (empty.status, empty.json) == (204, None)


@pytest.mark.elder("queue.claimWork")
async def test_each_run_is_claimed_once(elder: Elder) -> None:
    """Twenty workers at once get ten tasks once each, and ten get nothing."""
    ids = {await _created(elder) for _ in range(10)}
    workers = [{**WORKER, "workerId": f"w{i}"} for i in range(20)]
    answers = await asyncio.gather(
        *(elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload=worker) for worker in workers)
    )
    claimed = [answer.json["status"]["taskId"] for answer in answers if answer.status == 200]
    assert (sorted(claimed), len([a for a in answers if a.status == 204])) == (sorted(ids), 10)


@pytest.mark.elder("queue.claimWork")
async def test_a_quarantined_worker_gets_nothing(elder: Elder, queue: Queue) -> None:
    """What today's API says of a worker holds for that of 2014."""
    await elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload=WORKER)
    path = f"/provisioners/{PROVISIONER}/worker-types/{WORKER_TYPE}/workers/group/worker"
    assert (await elder.send("PUT", path, {"quarantineUntil": iso(days=1)})).status == 200
    await _created(elder)
    assert (await elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload=WORKER)).status == 204


@pytest.mark.elder("queue.reportCompleted")
@pytest.mark.parametrize("success", [True, False])
async def test_reporting(elder: Elder, queue: Queue, success: bool) -> None:
    """Q-219: without success the task is failed, which was called completed; a repeat that differs is 409."""
    task_id = await _running(elder)
    answer = await elder.queue("reportCompleted", task_id, 0, payload={"success": success})
    (run,) = _status(answer)["runs"]
    assert (answer.json["status"]["state"], run["state"], run["success"]) == (
        "completed",
        "completed",
        success,
    )
    assert run["reasonResolved"] == "completed"
    again = await elder.queue("reportCompleted", task_id, 0, payload={"success": success})
    assert again.json == answer.json
    differs = await elder.queue("reportCompleted", task_id, 0, payload={"success": not success})
    assert _error(differs) == (409, "RequestConflict")
    assert {event.exchange for event in await queue.published()} >= {
        "task-completed" if success else "task-failed"
    }
    for body in ({}, {"success": "yes"}, {"success": True, "more": 1}):
        assert (await elder.queue("reportCompleted", task_id, 0, payload=body)).status == 400


@pytest.mark.elder("queue.reportCompleted", "queue.reclaimTask")
async def test_ends_that_cannot_be(elder: Elder) -> None:
    """Unknown tasks and runs are 404, a run that nobody claimed is 409."""
    task_id = await _created(elder)
    report = {"success": True}
    assert _error(await elder.queue("reportCompleted", new_id(), 0, payload=report))[0] == 404
    assert _error(await elder.queue("reportCompleted", task_id, 3, payload=report))[0] == 404
    assert _error(await elder.queue("reportCompleted", task_id, 0, payload=report))[0] == 409
    assert _error(await elder.queue("reclaimTask", task_id, 0))[0] == 409
    assert _error(await elder.queue("reclaimTask", task_id, 1))[0] == 404


@pytest.mark.elder("queue.rerunTask", "queue.status")
async def test_rerunning(elder: Elder) -> None:
    """A resolved task gets another run and its retries; a pending or running one stays as it is."""
    task_id = await _running(elder)
    assert _status(await elder.queue("rerunTask", task_id))["state"] == "running"
    await elder.queue("reportCompleted", task_id, 0, payload={"success": False})
    status = _status(await elder.queue("rerunTask", task_id))
    assert (status["state"], len(status["runs"])) == ("pending", 2)
    assert status["runs"][1]["reasonCreated"] == "rerun"
    assert (await elder.queue("rerunTask", task_id)).json["status"] == status


@pytest.mark.elder("queue.status")
async def test_words_for_what_2014_did_not_know(elder: Elder, queue: Queue) -> None:
    """queue.md 4.3: an exception is a failed run without success, with its reason; an unscheduled task that
    was canceled got its run when it would have been scheduled."""
    canceled = new_id()
    await elder.queue("defineTask", canceled, payload=task())
    await queue("CancelTask", task_id=canceled)
    status = _status(await elder.queue("status", canceled))
    (run,) = status["runs"]
    assert (status["state"], run["state"], run["success"]) == ("failed", "failed", False)
    assert (run["reasonCreated"], run["reasonResolved"]) == ("scheduled", "canceled")
    task_id = await _running(elder, retries=1)
    await queue.resolve(task_id, "intermittent-task")
    status = _status(await elder.queue("status", task_id))
    assert [run["reasonCreated"] for run in status["runs"]] == ["scheduled", "retry"]
    assert (status["state"], status["retriesLeft"]) == ("pending", 0)


@pytest.mark.elder("queue.getPendingTasks")
async def test_pending_tasks(elder: Elder) -> None:
    """Q-221: of all worker types of the provisioner, and of no other; without credentials."""
    first = await _created(elder)
    second = await _created(elder, workerType="other")
    await _created(elder, provisionerId="prov-2")
    await _created(elder, provisionerId="pro")
    await _running(elder, workerType="third")
    answer = await elder.anonymous.queue("getPendingTasks", PROVISIONER)
    assert set(answer.json) == {"tasks"}
    assert [status["taskId"] for status in answer.json["tasks"]] == [second, first]
    assert all(set(status) == STATUS for status in answer.json["tasks"])
    assert (await elder.anonymous.queue("getPendingTasks", "nobody")).json == {"tasks": []}


@pytest.mark.elder("queue.getAMQPConnectionString")
async def test_no_broker(elder: Elder) -> None:
    """A deployment without a broker says so."""
    assert _error(await elder.queue("getAMQPConnectionString")) == (404, "ResourceNotFound")


@pytest.mark.elder("queue.getAMQPConnectionString")
@pytest.mark.settings(amqp_url="amqps://me:secret@mq.example.com:5671/%2Fhost?heartbeat=1", loops=False)
async def test_the_broker(elder: Elder) -> None:
    """Q-222: its address and nothing else; everybody may ask, so nothing of our own account is in it."""
    answer = await elder.anonymous.queue("getAMQPConnectionString")
    assert (answer.status, answer.json) == (200, {"url": "amqps://mq.example.com:5671/%2Fhost"})


@pytest.mark.elder("queue.getAMQPConnectionString")
@pytest.mark.settings(amqp_public_url="amqps://reader:reader@mq.example.com")
async def test_the_brokers_address_for_everybody(elder: Elder) -> None:
    """A setting says what they are told."""
    answer = await elder.anonymous.queue("getAMQPConnectionString")
    assert answer.json == {"url": "amqps://reader:reader@mq.example.com"}


@pytest.mark.elder("queue.ping")
async def test_ping(elder: Elder) -> None:
    """Alive."""
    answer = await elder.anonymous.queue("ping")
    assert (answer.status, answer.json["alive"]) == (200, True)


async def test_what_only_today_can_mean(elder: Elder, queue: Queue) -> None:
    """queue.md 4.1, compat.md 1: clients of between then and now have today's shapes at `/v1`, too."""
    task_id = new_id()
    now = {**task(), "priority": "high", "dependencies": []}
    created = await elder.queue("createTask", task_id, payload=now)
    assert created.json["status"]["projectId"] == "none"
    claimed = await elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload={**WORKER, "tasks": 2})
    assert claimed.json["tasks"][0]["task"]["priority"] == "high"
    assert (
        await elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload={**WORKER, "tasks": 1})
    ).json == {"tasks": []}
    resolved = await elder.send("POST", f"/task/{task_id}/runs/0/completed")
    assert resolved.json["status"]["taskQueueId"] == HERE
    assert (await elder.send("GET", f"/task-group/{task_id}/list")).json["tasks"]
    assert (await elder.send("GET", "/no-such-thing")).json == {"error": "Not found"}
