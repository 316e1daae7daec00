"""createTaskGraph: what is refused, with which words, and that nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest

from server.codec import writing
from tcqueue.v1.task_graph_pb2 import CreateTaskGraphRequest
from tests.conformance.building import QUEUE, at, new_id, new_ids
from tests.conformance.door import Refused, refused, strange
from tests.conformance.json_door import signature
from tests.plugins.server import Caller, Queue
from tests.scheduler.building import (
    SCHEDULER,
    SCOPES,
    graph,
    state,
    submit,
)

INVALID = "InputValidationError|InvalidRequestArguments"


async def faults(queue: Queue, request: CreateTaskGraphRequest) -> list[str]:
    """What is wrong with the nodes; none of the tasks may have come to be."""
    with refused("InputError") as caught:
        await queue.send("CreateTaskGraph", request)
    for each in request.tasks.nodes:
        with refused("ResourceNotFound"):
            await queue("GetTaskStatus", task_id=each.task_id)
    with refused("ResourceNotFound"):
        await state(queue, request.task_graph_id)
    assert await queue.published() == []
    return caught.value.faults


async def test_scopes_that_do_not_suffice(queue: Queue) -> None:
    """S-005 S-019 S-020: only the graph's count, whoever submits it, and nothing is left behind."""
    text = "scopes of its task-graph do not give"
    assert [text in fault for fault in await faults(queue, graph({new_id(): []}, scopes=[]))] == [True]
    other = [
        f"queue:define-task:{QUEUE}-2",
        f"queue:create-task:highest:{QUEUE}x",
        f"queue:create-task:{QUEUE}/",
    ]
    assert len(await faults(queue, graph({new_id(): []}, scopes=other))) == 1
    high = graph({new_id(): []}, scopes=[f"queue:create-task:lowest:{QUEUE}"], priority="high")
    assert len(await faults(queue, high)) == 1
    a, b = new_ids(2)
    request = graph({a: [], b: [a]})
    request.tasks.nodes[1].task.scopes.append("docker-worker:secret")
    (fault,) = await faults(queue, request)
    assert b in fault and "docker-worker:secret" in fault
    request.tasks.nodes[0].task.routes.append("index.a")
    assert len(await faults(queue, request)) == 2
    request.scopes.extend(["docker-worker:*", "queue:route:index.*"])
    await submit(queue, request)
    assert list((await queue.task(b)).scopes) == ["docker-worker:secret"]


async def test_foreign_schedulers_and_groups(queue: Queue) -> None:
    """S-006 S-007: both must be the graph's own where they are given."""
    (fault,) = await faults(queue, graph({new_id(): []}, scheduler_id="another"))
    assert fault == "schedulerId must match schedulerId for this scheduler"
    (fault,) = await faults(queue, graph({new_id(): []}, task_group_id=new_id()))
    assert fault == "taskGroupId must be set to taskGraphId for this scheduler"
    graph_id = new_id()
    await submit(queue, graph({new_id(): []}, graph_id, scheduler_id=SCHEDULER, task_group_id=graph_id))


async def test_requires(queue: Queue) -> None:
    """S-008 S-009 S-015: undefined, doubled, in a circle, of itself."""
    a, b, c, unknown = *new_ids(3), new_id()
    elsewhere = (await queue.create()).task_id
    await queue.published()
    for missing in (unknown, elsewhere):
        text = f"Requires for {a} references undefined taskId: {missing}"
        assert await faults(queue, graph({a: [missing]})) == [text]
    text = f"Requires for {b} contains duplicates, this is not allowed"
    assert await faults(queue, graph({a: [], b: [a, a]})) == [text]
    (fault,) = await faults(queue, graph({a: [c], b: [a], c: [b]}))
    assert fault.startswith("Requires of the tasks form a cycle: ")
    text = f"Requires for {a} contains the task itself, this is not allowed"
    assert await faults(queue, graph({a: [a]})) == [text]
    request = graph({a: [], b: []})
    request.tasks.nodes.append(request.tasks.nodes[0])
    text = f"Task {a} is listed more than once, this is not allowed"
    assert await faults(queue, request) == [text]


async def test_a_circle_through_dependencies(queue: Queue) -> None:
    """S-015: what tasks depend on besides what they require is part of it."""
    a, b = new_ids(2)
    request = graph({a: [], b: [a]})
    request.tasks.nodes[0].task.dependencies.append(b)
    (fault,) = await faults(queue, request)
    assert "cycle" in fault


@pytest.mark.elder("scheduler.createTaskGraph")
async def test_all_faults_are_told(queue: Queue) -> None:
    """S-010: those of all nodes, and what the queue would find, in one answer."""
    a, b, c = new_ids(3)
    request = graph({a: [], b: [a, a, new_id()], c: []}, scheduler_id="another")
    request.tasks.nodes[2].task.deadline.CopyFrom(at(days=8))
    request.tasks.nodes[2].task.scheduler_id = SCHEDULER
    found = await faults(queue, request)
    assert len(found) == 5
    assert sum("schedulerId" in fault for fault in found) == 2
    assert any("deadline" in fault for fault in found)


@pytest.mark.doors("http")
async def test_faults_have_facts(queue: Queue) -> None:
    """S-010: each names its task, and what was expected."""
    task_id, graph_id, group = new_ids(3)
    request = graph({task_id: []}, graph_id, scheduler_id="another", task_group_id=group)
    body = (await put(queue, graph_id, as_json(request))).json()
    assert body["message"].startswith("Errors found in task nodes\n")
    assert [fault["error"] for fault in body["error"]] == [
        {"thisSchedulerId": SCHEDULER, "GivenSchedulerId": "another", "taskId": task_id},
        {"taskGraphId": graph_id, "taskGroupId": group, "taskId": task_id},
    ]
    answer = await put(queue, graph_id, as_json(graph({task_id: []}, scopes=[])))
    assert answer.status_code == 400
    text = "You didn't give the task-graph scopes allowing it define tasks on the queue."
    assert answer.json()["message"].startswith(text)
    (fault,) = answer.json()["error"]
    assert fault["error"]["taskId"] == task_id


async def put(caller: Caller, graph_id: str, value: Any) -> Any:
    """The raw answer to a graph as JSON values."""
    door: Any = caller.door
    path, kind = f"/api/scheduler/v1/task-graph/{graph_id}", "application/json"
    content = writing.to_bytes(value, indent=False)
    header = signature(caller.credentials, "PUT", door.base + path, content, kind)
    headers = {"Content-Type": kind, "Authorization": header}
    return await door.client.put(path, content=content, headers=headers)


def as_json(request: CreateTaskGraphRequest) -> dict[str, Any]:
    """The request's body as JSON values."""
    value: dict[str, Any] = writing.to_value(request)
    del value["taskGraphId"]
    return value


@pytest.mark.doors("http")
async def test_places_of_faults(queue: Queue) -> None:
    """3.3: what the schema refuses is told with where it stands in the request, once."""
    request = graph({new_id(): [], new_id(): []}, tags={"a.long_key": "x" * 4097})
    value = as_json(request)
    value["tasks"][1]["reruns"] = 101
    del value["tasks"][0]["task"]["metadata"]["name"]
    answer = (await put(queue, request.task_graph_id, value)).json()
    assert answer["message"].startswith("Request payload must follow the schema: ")
    places = {fault["error"]["path"] for fault in answer["error"]}
    assert places == {"tags/a.long_key", "tasks/1/reruns", "tasks/0/task/metadata/name"}


async def test_ids(queue: Queue) -> None:
    """S-011: of tasks, of what they require, and of graphs."""
    for request in (
        graph({"not-a-slug": []}),
        graph({new_id(): ["not-a-slug"]}),
        graph({new_id(): []}, "AAAAAAAAAAAAAAAAAAAAAA"),
        graph({new_id() + "\n": []}),
    ):
        with refused(INVALID):
            await queue.send("CreateTaskGraph", request)


async def test_unknown_keys(queue: Queue) -> None:
    """S-012: in a graph."""
    with refused(INVALID):
        await queue.send("CreateTaskGraph", strange(graph({new_id(): []})))


@pytest.mark.doors("http")
async def test_unknown_keys_of_json(queue: Queue) -> None:
    """S-012: `params` is one; further keys of a node are none of our business."""
    request = graph({new_id(): []})
    value = as_json(request)
    value["tasks"][0]["label"] = {"anything": [1]}

    async def answer() -> Any:
        return await put(queue, request.task_graph_id, value)

    value["params"] = {}
    assert (await answer()).status_code == 400
    del value["params"]
    value["tasks"][0]["task"]["label"] = "x"
    assert (await answer()).status_code == 400
    del value["tasks"][0]["task"]["label"]
    for lacking in ("tasks", "metadata"):
        kept = value.pop(lacking)
        assert (await answer()).status_code == 400
        value[lacking] = kept
    assert (await answer()).status_code == 200


@pytest.mark.parametrize("field", ["name", "description", "owner", "source"])
async def test_metadata(queue: Queue, field: Any) -> None:
    """S-013: all four, and no graph without."""
    request = graph({new_id(): []})
    request.metadata.ClearField(field)
    with refused(INVALID):
        await queue.send("CreateTaskGraph", request)
    request.ClearField("metadata")
    with refused(INVALID):
        await queue.send("CreateTaskGraph", request)


async def test_limits(queue: Queue) -> None:
    """S-014: ten routes, none twice, none empty or long; a hundred reruns; short tags; an address."""
    good = graph({new_id(): []}, routes=[f"route.{n}" for n in range(10)], reruns=100)
    await submit(queue, good)
    for routes in ([f"route.{n}" for n in range(11)], ["a", "a"], [""], ["x" * 250]):
        with refused(INVALID):
            await queue.send("CreateTaskGraph", graph({new_id(): []}, routes=routes))
    for reruns in (-1, 101):
        with refused(INVALID):
            await queue.send("CreateTaskGraph", graph({new_id(): []}, reruns=reruns))
    with refused(INVALID):
        await queue.send("CreateTaskGraph", graph({new_id(): []}, tags={"a": "x" * 4097}))
    for field, value in (("owner", "nobody"), ("source", "nowhere"), ("name", "x" * 256)):
        request = graph({new_id(): []})
        setattr(request.metadata, field, value)
        with refused(INVALID):
            await queue.send("CreateTaskGraph", request)


@pytest.mark.elder("scheduler.createTaskGraph")
async def test_scopes_of_the_caller(queue: Queue) -> None:
    """S-016 S-017 S-018: to create graphs, all that the graph shall have, and its routes."""
    needed = ["scheduler:create-task-graph", *SCOPES, "scheduler:route:a.b"]
    for lacking in needed:
        caller = queue.having(*(scope for scope in needed if scope != lacking))
        with refused("InsufficientScopes", lacking):
            await caller.send("CreateTaskGraph", graph({new_id(): []}, routes=["a.b"]))
    with refused("InsufficientScopes"):
        await queue.anonymous.send("CreateTaskGraph", graph({new_id(): []}))
    request = graph({new_id(): []}, scopes=["queue:*"])
    with refused("InsufficientScopes"):
        await queue.having(*needed).send("CreateTaskGraph", request)
    await submit(queue.having(*needed), graph({new_id(): []}, routes=["a.b"]))


async def test_scopes_come_before_everything_else(queue: Queue) -> None:
    """S-016 S-017 S-018: who may not create a graph is not told what is wrong with it."""
    caller = queue.having("scheduler:create-task-graph")
    lacking = CreateTaskGraphRequest(task_graph_id=new_id(), scopes=["a.scope"])
    with refused("InsufficientScopes", "a.scope"):
        await caller.send("CreateTaskGraph", lacking)
    lacking = CreateTaskGraphRequest(task_graph_id=new_id(), routes=["a.route"])
    with refused("InsufficientScopes", "scheduler:route:a.route"):
        await caller.send("CreateTaskGraph", lacking)
    nothing = CreateTaskGraphRequest(task_graph_id="not-a-slug")
    with refused("InsufficientScopes", "scheduler:create-task-graph"):
        await queue.anonymous.send("CreateTaskGraph", nothing)
    with refused(INVALID):
        await caller.send("CreateTaskGraph", nothing)


@pytest.mark.doors("http")
@pytest.mark.parametrize("strange", ["a.scope", ["a.scope", 1], {"a.scope": 1}, None])
@pytest.mark.parametrize("member", ["scopes", "routes"])
async def test_what_is_no_list_of_scopes(queue: Queue, member: str, strange: Any) -> None:
    """S-016: it counts as empty, and the schema refuses it afterwards."""
    value = {**as_json(graph({}, scopes=[])), member: strange}
    assert (await put(queue.having(), new_id(), value)).json()["code"] == "InsufficientScopes"
    answer = await put(queue.having("scheduler:create-task-graph"), new_id(), value)
    assert answer.json()["code"] == "InputValidationError"
    assert (await put(queue.having(), new_id(), [strange])).status_code == 403


async def test_unknown_faults_are_not_swallowed(queue: Queue) -> None:
    """A sealed group takes no graph, and says so."""
    graph_id = (await queue.create(new_id(), scheduler_id=SCHEDULER)).task_id
    await queue("SealTaskGroup", task_group_id=graph_id)
    with refused("RequestConflict", "sealed"):
        await queue.send("CreateTaskGraph", graph({new_id(): []}, graph_id))
    other = (await queue.create()).task_id
    with refused("RequestConflict", "another scheduler"):
        await queue.send("CreateTaskGraph", graph({new_id(): []}, other))


async def test_a_failure_has_no_effect(queue: Queue) -> None:
    """The last task of many is refused by the database: none of the others is there."""
    edges: dict[str, list[str]] = {task_id: [] for task_id in new_ids(5)}
    request = graph(edges)
    request.tasks.nodes[-1].task.dependencies.append(new_id())
    with pytest.raises(Refused):
        await queue.send("CreateTaskGraph", request)
    for task_id in edges:
        with refused("ResourceNotFound"):
            await queue("GetTaskStatus", task_id=task_id)
    assert await queue.published() == []
