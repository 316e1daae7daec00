"""createTaskGraph: what is taken, also when it comes twice."""

from __future__ import annotations

from typing import Any

import pytest

from tcqueue.v1.task_graph_pb2 import CreateTaskGraphRequest
from tcqueue.v1.task_pb2 import Requires
from tests.conformance.building import QUEUE, at, metadata, new_id, new_ids
from tests.conformance.door import refused
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

IN_VAIN = "already exists, if this your attempt at an idempotent operation then you've failed!\n"
OTHER_GRAPH = f"Different TaskGraph with given taskGraphId {IN_VAIN}"
OTHER_TASK = f"Different TaskId with given TaskId {IN_VAIN}"


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
        with refused("RequestConflict", OTHER_GRAPH, f"differs: {', '.join(changes)}"):
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
    await conflict(tasks=graph({new: [a]}).tasks)
    with refused("ResourceNotFound"):
        await queue("GetTaskStatus", task_id=new)
    for field, value in (("reruns", 3), ("requires", [])):
        other = CreateTaskGraphRequest()
        other.CopyFrom(request)
        other.tasks.nodes[1].ClearField(field)  # type: ignore[arg-type]
        if field == "reruns":
            other.tasks.nodes[1].reruns = value  # type: ignore[assignment]
        with refused("RequestConflict", OTHER_TASK, b):
            await queue.send("CreateTaskGraph", other)
    await run(queue, a)
    await run(queue, b)
    with refused("RequestConflict", OTHER_GRAPH, "differs: state"):
        await queue.send("CreateTaskGraph", request)


async def test_a_task_that_exists(queue: Queue) -> None:
    """Another task under the id refuses the whole graph; an equal one becomes part of it."""
    a, b, graph_id = new_ids(3)
    await queue.create(a, task_group_id=graph_id, scheduler_id=SCHEDULER, tags={"other": "one"})
    await queue.published()
    request = graph({a: [], b: [a]}, graph_id)
    with refused("RequestConflict", OTHER_TASK, a):
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
