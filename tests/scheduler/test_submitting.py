"""createTaskGraph: what is taken, what is refused, and what is left behind."""

from __future__ import annotations

from typing import Any

import pytest

from server.codec import writing
from tcqueue.v1.task_graph_pb2 import CreateTaskGraphRequest
from tcqueue.v1.task_pb2 import Requires
from tests.conformance.building import QUEUE, at, metadata, new_id, new_ids
from tests.conformance.door import Refused, refused, strange
from tests.conformance.json_door import signature
from tests.conformance.shown import runs
from tests.plugins.server import Queue
from tests.scheduler.building import (
    SCHEDULER,
    SCOPES,
    exchanges,
    graph,
    inspected,
    node,
    run,
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


@pytest.mark.elder("scheduler.createTaskGraph")
async def test_a_graph_is_created(queue: Queue) -> None:
    """S-001 S-002 S-003 S-004 S-021 S-022: with one scope for its queue, without routes; scheduler and group
    are filled in; who requires nothing is pending, and one event says that it runs."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({b: [a], a: []}))
    for task_id, expected in ((a, ["scheduled pending"]), (b, [])):
        task, status = await queue.task(task_id), await queue.status(task_id)
        assert (task.scheduler_id, task.task_group_id) == (SCHEDULER, graph_id)
        assert (status.scheduler_id, status.task_group_id) == (SCHEDULER, graph_id)
        assert runs(status) == expected
    events = await queue.published()
    assert events.exchanges == ["task-defined", "task-pending", "task-defined", "task-graph-running"]
    assert await state(queue, graph_id) == "running"


@pytest.mark.parametrize(
    "scope",
    [
        f"queue:define-task:{QUEUE}",
        f"queue:create-task:{QUEUE}",
        f"queue:create-task:lowest:{QUEUE}",
        f"queue:create-task:highest:{QUEUE}",
        "queue:define-task:prov/*",
        "queue:*",
        "assume:builder",
    ],
)
async def test_scopes_that_suffice(queue: Queue, scope: str) -> None:
    """S-004: the one of old, the one of today, what comes by a role. Scheduler and project need none."""
    await queue("CreateRole", role_id="builder", description="", scopes={"scopes": SCOPES})
    await submit(queue, graph({new_id(): []}, scopes=[scope], project_id="secret/project"))


async def test_everyones_scopes_count(queue: Queue) -> None:
    """What anybody may do a graph may do, too."""
    await queue("CreateRole", role_id="anonymous", description="", scopes={"scopes": SCOPES})
    await submit(queue, graph({new_id(): []}, scopes=[]))


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
    door: Any = queue.door
    url = f"{door.base}/api/scheduler/v1/task-graph/{graph_id}"
    body = (await send_json(queue, "PUT", url, request)).json()
    assert body["message"].startswith("Errors found in task nodes\n")
    assert [fault["error"] for fault in body["error"]] == [
        {"thisSchedulerId": SCHEDULER, "GivenSchedulerId": "another", "taskId": task_id},
        {"taskGraphId": graph_id, "taskGroupId": group, "taskId": task_id},
    ]
    request = graph({task_id: []}, graph_id, scopes=[])
    answer = await send_json(queue, "PUT", url, request)
    assert answer.status_code == 400
    text = "You didn't give the task-graph scopes allowing it define tasks on the queue."
    assert answer.json()["message"].startswith(text)
    (fault,) = answer.json()["error"]
    assert fault["error"]["taskId"] == task_id


async def send_json(queue: Queue, verb: str, url: str, request: CreateTaskGraphRequest) -> Any:
    """The raw answer to a request."""
    door: Any = queue.door
    value = writing.to_value(request)
    del value["taskGraphId"]
    content = writing.to_bytes(value, indent=False)
    headers = {"Content-Type": "application/json"}
    headers["Authorization"] = signature(queue.credentials, verb, url, content, headers["Content-Type"])
    return await door.client.request(verb, url, content=content, headers=headers)


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
    value: dict[str, Any] = writing.to_value(request)
    del value["taskGraphId"]
    value["tasks"][0]["label"] = {"anything": [1]}
    door: Any = queue.door
    path = f"/api/scheduler/v1/task-graph/{request.task_graph_id}"

    async def answer() -> Any:
        content = writing.to_bytes(value, indent=False)
        kind = "application/json"
        header = signature(queue.credentials, "PUT", door.base + path, content, kind)
        return await door.client.put(
            path, content=content, headers={"Content-Type": kind, "Authorization": header}
        )

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


@pytest.mark.elder("scheduler.createTaskGraph")
async def test_a_repeat(queue: Queue) -> None:
    """S-042 S-021: changes nothing, also while tasks run; an event each time."""
    a, b = new_ids(2)
    request = graph({a: [], b: [a]}, tags={"x": "1", "a": "2"}, reruns=2)
    await submit(queue, request)
    await submit(queue, request)
    assert runs(await queue.status(a)) == ["scheduled pending"]
    await run(queue, a, "failed")
    await submit(queue, request)
    assert runs(await queue.status(a)) == ["scheduled failed failed", "rerun pending"]
    assert (await inspected(queue, request.task_graph_id))[a].reruns_left == 1
    await run(queue, a, run_id=1)
    await submit(queue, request)
    assert [runs(await queue.status(t)) for t in (a, b)] == [
        ["scheduled failed failed", "rerun completed completed"],
        ["scheduled pending"],
    ]
    assert await exchanges(queue) == ["running"] * 4


async def test_another_graph_under_the_id(queue: Queue) -> None:
    """S-043: other scopes, routes, metadata or tags, other tasks; a graph that has ended."""
    a, b = new_ids(2)
    request = graph({a: [], b: [a]}, tags={"x": "1"}, scopes=[*SCOPES, "x:*"], routes=["r"])
    await submit(queue, request)

    async def conflict(**changes: Any) -> None:
        other = CreateTaskGraphRequest()
        other.CopyFrom(request)
        for field, value in changes.items():
            other.ClearField(field)  # type: ignore[arg-type]
            other.MergeFrom(CreateTaskGraphRequest(**{field: value}))
        with refused("RequestConflict"):
            await queue.send("CreateTaskGraph", other)

    await conflict(tags={"x": "2"})
    await conflict(tags={})
    await conflict(scopes=SCOPES)
    await conflict(scopes=["x:*", *SCOPES])
    await conflict(routes=["r", "s"])
    metadata = type(request.metadata)()
    metadata.CopyFrom(request.metadata)
    metadata.name = "another"
    await conflict(metadata=metadata)
    new = new_id()
    await conflict(tasks=graph({new: []}).tasks)
    with refused("ResourceNotFound"):
        await queue("GetTaskStatus", task_id=new)
    for field, value in (("reruns", 3), ("requires", [])):
        other = CreateTaskGraphRequest()
        other.CopyFrom(request)
        other.tasks.nodes[1].ClearField(field)  # type: ignore[arg-type]
        if field == "reruns":
            other.tasks.nodes[1].reruns = value  # type: ignore[assignment]
        with refused("RequestConflict"):
            await queue.send("CreateTaskGraph", other)
    await run(queue, a)
    await run(queue, b)
    with refused("RequestConflict"):
        await queue.send("CreateTaskGraph", request)


async def test_a_task_that_exists(queue: Queue) -> None:
    """Another task under the id refuses the whole graph; an equal one becomes part of it."""
    a, b, graph_id = new_ids(3)
    await queue.create(a, task_group_id=graph_id, scheduler_id=SCHEDULER, tags={"other": "one"})
    await queue.published()
    request = graph({a: [], b: [a]}, graph_id)
    with refused("RequestConflict"):
        await queue.send("CreateTaskGraph", request)
    with refused("ResourceNotFound"):
        await queue("GetTaskStatus", task_id=b)
    assert await queue.published() == []
    task, c = await queue.task(a), new_id()
    request.tasks.nodes[0].task.CopyFrom(task)
    request.tasks.nodes.append(node(c))
    await run(queue, a)
    await submit(queue, request)
    shown = await inspected(queue, graph_id)
    assert (shown[a].satisfied, list(shown[b].requires_left)) == (True, [])
    assert runs(await queue.status(b)) == ["scheduled pending"]
    for task_id in (b, c):
        await run(queue, task_id)
    assert await state(queue, graph_id) == "finished"


async def test_dependencies_of_a_definition(queue: Queue) -> None:
    """What a task depends on besides counts, too; with `requires` all must complete."""
    outside, a, b = (await queue.create()).task_id, *new_ids(2)
    request = graph({a: [], b: [a]}, dependencies=[outside])
    for each in request.tasks.nodes:
        each.task.requires = Requires.REQUIRES_ALL_RESOLVED
    await submit(queue, request)
    task = await queue.task(b)
    assert list(task.dependencies) == [outside, a]
    assert task.requires == Requires.REQUIRES_ALL_COMPLETED
    assert (await queue.task(a)).requires == Requires.REQUIRES_ALL_RESOLVED
    assert list((await inspected(queue, request.task_graph_id))[b].requires) == [a]
    await run(queue, outside)
    assert runs(await queue.status(a)) == ["scheduled pending"]
    with refused("InputError", "do not exist"):
        await queue.send("CreateTaskGraph", graph({new_id(): []}, dependencies=[new_id()]))


async def test_deadlines(queue: Queue) -> None:
    """A week, as they were in 2014, although other tasks get five days; expiry a year after."""
    a = new_id()
    with refused("InputError"):
        await queue.create(deadline=at(days=6))
    await submit(queue, graph({a: []}, deadline=at(days=7)))
    task = await queue.task(a)
    assert 364 < (task.expires.seconds - task.deadline.seconds) / 86400 < 367


async def test_a_graph_without_tasks(queue: Queue) -> None:
    """It runs until it has been extended and what was added has completed."""
    graph_id = await submit(queue, graph({}))
    assert await inspected(queue, graph_id) == {}
    assert await state(queue, graph_id) == "running"
    await submit(queue, graph({}, graph_id))
    assert await exchanges(queue) == ["running"] * 2


async def test_text_stays_as_it_is(queue: Queue) -> None:
    """S-035: whatever alphabet it is written in."""
    text = 'Grüße, 世界 \U0001f30d "quoted" \\ {{params}}'
    a = new_id()
    request = graph({a: []}, tags={text: text}, metadata=metadata(name=text))
    request.metadata.name = request.metadata.description = text
    graph_id = await submit(queue, request)
    shown = await queue("InspectTaskGraph", task_graph_id=graph_id)
    assert (shown.metadata, dict(shown.tags)) == (request.metadata, {text: text})
    assert shown.tasks[0].name == text
    info = await queue("GetTaskGraphInfo", task_graph_id=graph_id)
    assert (info.metadata, dict(info.tags)) == (request.metadata, {text: text})
    with refused("InputError"):
        await queue.send("CreateTaskGraph", graph({new_id(): []}, metadata=metadata(name="a\0b")))


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
