"""PyPI taskcluster, both halves of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from typing import Any

import requests
import slugid
import taskcluster
from common import CREDENTIALS, ROOT_URL, definition, run
from taskcluster.aio import Queue as AsyncQueue
from taskcluster.exceptions import TaskclusterAuthFailure, TaskclusterRestFailure

OPTIONS = {"rootUrl": ROOT_URL, "credentials": CREDENTIALS}
ANYONE = {"rootUrl": ROOT_URL}
queue, auth = taskcluster.Queue(OPTIONS), taskcluster.Auth(OPTIONS)
WORKER = {"workerGroup": "g", "workerId": "w"}


def nice() -> str:
    return slugid.nice()


def refused(status: int, call: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    try:
        call(*arguments, **options)
    except TaskclusterRestFailure as e:
        assert e.status_code == status, (e.status_code, e.body)
        return e.body
    raise AssertionError(f"{call} was not refused")


def with_(credentials: dict[str, Any], **options: Any) -> Any:
    return taskcluster.Queue({"rootUrl": ROOT_URL, "credentials": credentials, **options})


def life() -> None:
    """create, claim, reclaim, complete, with the credentials of each step."""
    task_id, task = nice(), definition("py/life", routes=["a.b"], tags={"k": "v"}, retries=0)
    status = queue.createTask(task_id, task)["status"]
    assert status["state"] == "pending" and status["retriesLeft"] == 0
    assert queue.createTask(task_id, task)["status"] == status
    stored = queue.task(task_id)
    assert stored["payload"] == task["payload"] and isinstance(stored["payload"]["float"], float)
    assert stored["dependencies"] == [] and stored["expires"]
    (claim,) = queue.claimWork("py/life", {**WORKER, "tasks": 4})["tasks"]
    assert claim["status"]["taskId"] == task_id and claim["runId"] == 0
    assert claim["task"] == stored
    own = with_(claim["credentials"])
    reclaim = own.reclaimTask(task_id, 0)
    assert reclaim["takenUntil"] >= claim["takenUntil"]
    newest = with_(reclaim["credentials"])
    assert newest.reportCompleted(task_id, 0)["status"]["state"] == "completed"
    assert taskcluster.Queue(ANYONE).status(task_id)["status"]["runs"][0]["reasonResolved"] == "completed"
    refused(409, newest.reportFailed, task_id, 0)
    refused(403, newest.cancelTask, task_id)


def graph() -> None:
    """Dependencies, groups, pages, cancellation, rerun."""
    group, ids = nice(), [nice() for _ in range(3)]
    for i, task_id in enumerate(ids):
        queue.createTask(
            task_id, definition("py/graph", taskGroupId=group, dependencies=ids[:1] if i else [])
        )
    found: list[str] = []
    queue.listTaskGroup(
        group,
        query={"limit": 1},
        paginationHandler=lambda page: found.extend(t["status"]["taskId"] for t in page["tasks"]),
    )
    assert sorted(found) == sorted(ids)
    assert len(queue.listDependentTasks(ids[0])["tasks"]) == 2
    assert queue.getTaskGroup(group)["taskGroupId"] == group
    assert queue.cancelTask(ids[0])["status"]["state"] == "exception"
    assert queue.rerunTask(ids[0])["status"]["state"] == "pending"
    assert queue.scheduleTask(ids[1])["status"]["state"] == "pending"
    queue.sealTaskGroup(group)
    assert sorted(queue.cancelTaskGroup(group)["taskIds"]) == sorted(ids)
    assert {t["taskId"] for t in queue.statuses({"taskIds": [*ids, nice()]})["statuses"]} == set(ids)


#: What stands for each argument; slashes and the like must survive the way.
ARGUMENTS = {
    "taskId": nice(), "taskGroupId": nice(), "runId": "0", "taskQueueId": "py/any", "provisionerId": "py",
    "workerType": "any", "workerGroup": "g", "workerId": "w", "name": "public/a b%?.txt", "clientId": "a/b|c",
    "roleId": "a b/*", "entityType": "role", "entityId": "x/y",
}  # fmt: skip
BODIES = {
    "createTask": lambda: definition("py/any"), "claimWork": lambda: WORKER, "claimTask": lambda: WORKER,
    "reportException": lambda: {"reason": "worker-shutdown"}, "tasks": lambda: {"taskIds": []},
    "statuses": lambda: {"taskIds": []}, "changeTaskPriority": lambda: {"newPriority": "high"},
    "changeTaskGroupPriority": lambda: {"newPriority": "high"}, "declareWorker": dict,
    "quarantineWorker": lambda: {"quarantineUntil": "2030-01-01T00:00:00Z"},
    "createArtifact": lambda: {"storageType": "link", "artifact": "x", "expires": "2030-01-01T00:00:00Z"},
    "finishArtifact": lambda: {"uploadId": nice()},
}  # fmt: skip
NOT_SERVED = {"taskQueueCountsBatch"}


def every_method() -> None:
    """Each answers in the API's form, and those that are not served with a clean 404."""
    for name, info in queue.funcinfo.items():
        arguments: list[Any] = [ARGUMENTS[arg] for arg in info["args"]]
        if info.get("input"):
            arguments.append(BODIES.get(name, dict)())
        try:
            getattr(queue, name)(*arguments)
        except TaskclusterRestFailure as e:
            if name in NOT_SERVED:
                assert (e.status_code, e.body) == (404, {"error": "Not found"}), (name, e.body)
            else:
                assert e.status_code in (400, 404, 409), (name, e.status_code, e.body)
                assert e.body["requestInfo"]["method"] == name, (name, e.body)
        else:
            assert name not in NOT_SERVED


def signed_urls() -> None:
    """A bewit in the URL is enough; a changed one is not."""
    task_id = nice()
    queue.createTask(task_id, definition("py/url"))
    url = queue.buildSignedUrl("status", task_id)
    assert requests.get(url, timeout=10).json()["status"]["taskId"] == task_id
    assert requests.head(url, timeout=10).status_code == 200
    assert requests.get(url.replace(task_id, nice()), timeout=10).status_code == 401
    unsigned = queue.buildUrl("task", task_id)
    assert requests.get(unsigned, timeout=10).status_code == 200  # as role anonymous


def temporary_credentials() -> None:
    """Made by the client: named, unnamed, and of a client whose scopes are narrower."""
    now = time.time()
    for name in (None, "py/temporary"):
        made = taskcluster.createTemporaryCredentials(
            CREDENTIALS["clientId"],
            CREDENTIALS["accessToken"],
            taskcluster.fromNow("-1 minute"),
            taskcluster.fromNow("1 hour"),
            ["queue:list-provisioners", "auth:current-scopes"],
            name=name,
        )
        scopes = taskcluster.Auth({"rootUrl": ROOT_URL, "credentials": made}).currentScopes()["scopes"]
        assert "queue:list-provisioners" in scopes and "*" not in scopes
        refused(403, with_(made).createTask, nice(), definition("py/t"))
    late = taskcluster.createTemporaryCredentials(
        CREDENTIALS["clientId"],
        CREDENTIALS["accessToken"],
        taskcluster.fromNow("-2 hours"),
        taskcluster.fromNow("-1 hour"),
        ["auth:current-scopes"],
    )
    try:
        taskcluster.Auth({"rootUrl": ROOT_URL, "credentials": late}).currentScopes()
    except TaskclusterAuthFailure as e:
        assert "ext.certificate.expiry < now" in str(e)
    else:
        raise AssertionError("credentials of the past were taken")
    assert now


def authorized_scopes() -> None:
    """A client narrows itself."""
    narrow = taskcluster.Auth({**OPTIONS, "authorizedScopes": ["auth:current-scopes", "a:b"]})
    assert set(narrow.currentScopes()["scopes"]) >= {"a:b", "auth:current-scopes"}
    assert "*" not in narrow.currentScopes()["scopes"]
    body = refused(403, with_(CREDENTIALS, authorizedScopes=[]).createTask, nice(), definition("py/t"))
    assert body["code"] == "InsufficientScopes"


def testers() -> None:
    """A-033: what the client's own test-suite does, given only the root URL and the tester."""
    tester = taskcluster.Auth(
        {"rootUrl": ROOT_URL, "credentials": {"clientId": "tester", "accessToken": "no-secret"}}
    )
    asked = {"clientScopes": ["test:*"], "requiredScopes": ["test:a"]}
    assert tester.testAuthenticate(asked) == {"clientId": "tester", "scopes": ["assume:anonymous", "test:*"]}
    assert tester.testAuthenticateGet()["clientId"] == "tester"


def clients_and_roles() -> None:
    """The Auth service as administrators use it."""
    client = {"expires": taskcluster.fromNowJSON("1 day"), "description": "x", "scopes": ["assume:py-role"]}
    made = auth.createClient("py/client", client)
    assert len(made["accessToken"]) == 44
    auth.createRole("py-role", {"description": "", "scopes": ["queue:create-task:*", "auth:current-scopes"]})
    own = taskcluster.Auth(
        {"rootUrl": ROOT_URL, "credentials": {"clientId": "py/client", "accessToken": made["accessToken"]}}
    )
    assert "queue:create-task:*" in own.currentScopes()["scopes"]
    assert [c["clientId"] for c in auth.listClients(query={"prefix": "py/"})["clients"]] == ["py/client"]
    assert "py-role" in [role["roleId"] for role in auth.listRoles()]
    assert auth.expandScopes({"scopes": ["assume:py-role"]})["scopes"][-1] == "queue:create-task:*"
    assert auth.deleteClient("py/client") is None
    try:
        own.currentScopes()
    except TaskclusterAuthFailure as e:
        assert "not found" in str(e)
    else:
        raise AssertionError("a deleted client was let in")


def retries() -> None:
    """A 500 and a broken connection in between are gone over: the repeats are harmless."""
    flaky = taskcluster.Queue({"rootUrl": os.environ["FLAKY_ROOT_URL"], "credentials": CREDENTIALS})
    task_id = nice()
    assert flaky.createTask(task_id, definition("py/flaky"))["status"]["taskId"] == task_id
    (claim,) = flaky.claimWork("py/flaky", WORKER)["tasks"]
    assert flaky.reportCompleted(task_id, claim["runId"])["status"]["state"] == "completed"


def errors() -> None:
    """Bodies, codes and messages as the client reads them."""
    body = refused(400, queue.createTask, nice(), {**definition("py/t"), "strange": 1})
    assert body["code"] == "InputValidationError" and "strange" in body["message"]
    body = refused(404, queue.task, nice())
    assert body["code"] == "ResourceNotFound" and re.search(r"statusCode: 404", body["message"])
    bad = with_({"clientId": "root", "accessToken": "wrong" * 5})
    try:
        bad.status(nice())
    except TaskclusterAuthFailure:
        pass
    else:
        raise AssertionError("a wrong token was taken")


def waiting() -> None:
    """An empty queue: 200 and no tasks, after the poll."""
    assert queue.claimWork("py/empty", WORKER) == {"tasks": []}


def metadata() -> None:
    """Workers and queues as tools list them."""
    queue.claimWork("py/seen", WORKER)
    assert "py/seen" in [q["taskQueueId"] for q in queue.listTaskQueues()["taskQueues"]]
    assert queue.getTaskQueue("py/seen")["taskQueueId"] == "py/seen"
    assert queue.listWorkers("py", "seen")["workers"][0]["workerId"] == "w"
    assert queue.pendingTasks("py/seen")["pendingTasks"] == 0
    until = taskcluster.fromNowJSON("1 day")
    assert queue.quarantineWorker("py", "seen", "g", "w", {"quarantineUntil": until})["workerId"] == "w"


def asynchronous() -> None:
    """The same life with the client's other half, many at once."""

    async def lives() -> None:
        async with taskcluster.aio.createSession() as session:
            client = AsyncQueue(OPTIONS, session=session)
            ids = [nice() for _ in range(8)]
            await asyncio.gather(*(client.createTask(i, definition("py/async")) for i in ids))
            done: list[str] = []
            while len(done) < len(ids):
                for claim in (await client.claimWork("py/async", {**WORKER, "tasks": 3}))["tasks"]:
                    own = AsyncQueue(
                        {"rootUrl": ROOT_URL, "credentials": claim["credentials"]}, session=session
                    )
                    status = (await own.reportCompleted(claim["status"]["taskId"], claim["runId"]))["status"]
                    assert status["state"] == "completed"
                    done.append(status["taskId"])
            assert sorted(done) == sorted(ids)

    asyncio.run(lives())


def published() -> None:
    """The references describe every method that the client was generated with and we serve."""
    api = requests.get(f"{ROOT_URL}/references/queue/v1/api.json", timeout=10).json()
    served = {entry["name"] for entry in api["entries"]}
    assert set(queue.funcinfo) - served == NOT_SERVED, set(queue.funcinfo) - served
    assert json.dumps(api)


if __name__ == "__main__":
    run(
        {
            check.__name__: check
            for check in (
                life, graph, every_method, signed_urls, temporary_credentials, authorized_scopes, testers,
                clients_and_roles, retries, errors, waiting, metadata, asynchronous, published,
            )
        }
    )  # fmt: skip
