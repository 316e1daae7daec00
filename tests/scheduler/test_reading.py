"""The four reads, and what an answer looks like on the wire."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from referencing import Registry
from referencing.jsonschema import DRAFT6

from server import app
from server.references.documents import References
from tcqueue.v1.task_graph_pb2 import TaskGraphState
from tests.conformance.building import new_id, new_ids
from tests.conformance.door import refused
from tests.plugins.server import Queue
from tests.scheduler.building import METADATA, SCHEDULER, SCOPES, extend, graph, nodes, run, submit

READS = ("GetTaskGraphStatus", "GetTaskGraphInfo", "InspectTaskGraph")


@pytest.mark.elder("scheduler.info", "scheduler.inspect")
async def test_as_submitted(queue: Queue) -> None:
    """S-028 S-032: metadata, tags and scopes; a status each time."""
    scopes = [*SCOPES, "b:*", "a"]
    graph_id = await submit(queue, graph({new_id(): []}, scopes=scopes, tags={"b": "1", "a": ""}))
    shown = await queue("InspectTaskGraph", task_graph_id=graph_id)
    info = await queue("GetTaskGraphInfo", task_graph_id=graph_id)
    status = (await queue("GetTaskGraphStatus", task_graph_id=graph_id)).status
    assert (status.task_graph_id, status.scheduler_id) == (graph_id, SCHEDULER)
    assert status.state == TaskGraphState.TASK_GRAPH_STATE_RUNNING
    assert shown.status == info.status == status
    assert shown.metadata == info.metadata == METADATA
    assert dict(shown.tags) == dict(info.tags) == {"b": "1", "a": ""}
    assert list(shown.scopes) == scopes


@pytest.mark.elder("scheduler.status", "scheduler.info", "scheduler.inspect")
async def test_anybody_may_read(queue: Queue) -> None:
    """S-033: without credentials, and with those that do not hold."""
    a = new_id()
    graph_id = await submit(queue, graph({a: []}))
    for method in READS:
        assert (await queue.anonymous(method, task_graph_id=graph_id)).status.task_graph_id == graph_id
    answer = await queue.anonymous("InspectTaskGraphTask", task_graph_id=graph_id, task_id=a)
    assert answer.task.task_id == a


@pytest.mark.elder("scheduler.status", "scheduler.info", "scheduler.inspect")
async def test_what_nobody_knows(queue: Queue) -> None:
    """S-034: graphs, tasks, and tasks of other graphs; ids that are none."""
    graph_id = await submit(queue, graph({new_id(): []}))
    elsewhere = new_id()
    await submit(queue, graph({elsewhere: []}))
    for method in READS:
        with refused("ResourceNotFound", "task-graph not found!"):
            await queue(method, task_graph_id=new_id())
        with refused("InvalidRequestArguments"):
            await queue(method, task_graph_id="not-a-slug")
    for given in ((new_id(), elsewhere), (graph_id, new_id()), (graph_id, elsewhere)):
        with refused("ResourceNotFound", "task-graph not found!"):
            await queue("InspectTaskGraphTask", task_graph_id=given[0], task_id=given[1])
    with refused("InvalidRequestArguments"):
        await queue("InspectTaskGraphTask", task_graph_id=graph_id, task_id="x")


@cache
def _schemas() -> Registry[Any]:
    references = References(app.SERVICES)
    registry: Registry[Any] = Registry()
    for path in references.reference_paths():
        if path.startswith("/schemas/scheduler/"):
            schema = json.loads(references.documents[path].body)
            registry = registry.with_resource(path, DRAFT6.create_resource(schema))
    return registry


def valid(name: str, value: Any) -> Any:
    """The value, if the published schema of this name allows it."""
    path = {"$ref": f"/schemas/scheduler/v1/{name}.json#"}
    jsonschema.Draft6Validator(path, registry=_schemas()).validate(value)
    return value


@pytest.mark.doors("http")
async def test_on_the_wire(queue: Queue) -> None:
    """S-029 S-031 S-032: exactly these keys; inspectTask answers the bare task."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: [], b: [a]}, tags={"k": "v"}))
    door: Any = queue.door
    base = f"/api/scheduler/v1/task-graph/{graph_id}"

    async def get(path: str) -> Any:
        answer = await door.client.get(base + path)
        assert answer.status_code == 200
        return answer.json()

    status = {"taskGraphId": graph_id, "schedulerId": SCHEDULER, "state": "running"}
    metadata = {
        "name": "a graph",
        "description": "for a test",
        "owner": "me@example.com",
        "source": "https://example.com/graph",
    }
    assert valid("task-graph-status-response", await get("/status")) == {"status": status}
    info = valid("task-graph-info-response", await get("/info"))
    assert info == {"status": status, "metadata": metadata, "tags": {"k": "v"}}
    nodes = [
        {
            "taskId": a,
            "name": "a task",
            "requires": [],
            "requiresLeft": [],
            "reruns": 0,
            "rerunsLeft": 0,
            "state": "scheduled",
            "satisfied": False,
            "dependents": [b],
        },
        {
            "taskId": b,
            "name": "a task",
            "requires": [a],
            "requiresLeft": [a],
            "reruns": 0,
            "rerunsLeft": 0,
            "state": "unscheduled",
            "satisfied": False,
            "dependents": [],
        },
    ]
    assert valid("inspect-task-graph-response", await get("/inspect")) == {
        "status": status,
        "tasks": nodes,
        "metadata": metadata,
        "tags": {"k": "v"},
        "scopes": SCOPES,
    }
    for node in nodes:
        assert valid("inspect-task-graph-task-response", await get(f"/inspect/{node['taskId']}")) == node
    answer = await door.client.get(f"/api/scheduler/v1/task-graph/{new_id()}/status")
    assert answer.status_code == 404
    assert answer.json()["message"].split("\n")[0] == "task-graph not found!"
    assert "error" not in answer.json()


async def test_messages_have_their_schemas(queue: Queue) -> None:
    """S-054: each kind has its keys and no others."""
    a, b, c = new_ids(3)
    graph_id = await submit(queue, graph({a: [], b: []}))
    await extend(queue, graph_id, nodes({c: []}))
    await run(queue, a, "failed")
    await queue("RerunTask", task_id=a)
    for task_id, run_id in ((a, 1), (b, 0), (c, 0)):
        await run(queue, task_id, run_id=run_id)
    events = [e for e in await queue.published() if e.exchange.startswith("task-graph-")]
    seen = []
    for event in events:
        payload = valid(f"{event.exchange}-message", event.payload)
        state = {"extended": "running"}.get(event.exchange.removeprefix("task-graph-"))
        status = {
            "taskGraphId": graph_id,
            "schedulerId": SCHEDULER,
            "state": state or event.exchange.removeprefix("task-graph-"),
        }
        extra = {"taskId": a} if event.exchange == "task-graph-blocked" else {}
        assert payload == {"version": 1, "status": status, **extra}
        with pytest.raises(jsonschema.ValidationError):
            valid(f"{event.exchange}-message", {**payload, "more": 1})
        seen.append(event.exchange.removeprefix("task-graph-"))
    assert seen == ["running", "extended", "blocked", "finished"]
