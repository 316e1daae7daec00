"""Building task graphs, running their tasks, and reading how far they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tcqueue.v1.task_graph_pb2 import (
    CreateTaskGraphRequest,
    ExtendTaskGraphRequest,
    NewTaskGraphNode,
    NewTaskGraphNodes,
    TaskGraphMetadata,
    TaskGraphNodeState,
    TaskGraphState,
)
from tests.conformance.building import QUEUE, at, definition, new_id
from tests.plugins.server import Caller, Queue

SCHEDULER = "task-graph-scheduler"
SCOPES = [f"queue:define-task:{QUEUE}"]

METADATA = TaskGraphMetadata(
    name="a graph", description="for a test", owner="me@example.com", source="https://example.com/graph"
)


def node(
    task_id: str,
    requires: Sequence[str] = (),
    *,
    reruns: int | None = None,
    task_scopes: Sequence[str] = (),
    **fields: Any,
) -> NewTaskGraphNode:
    """A node whose task has these fields; `task_scopes` are the task's own."""
    task = definition(scopes=task_scopes, **fields)
    made = NewTaskGraphNode(task_id=task_id, requires=requires, task=task)
    if reruns is not None:
        made.reruns = reruns
    return made


def nodes(edges: Mapping[str, Sequence[str]], **fields: Any) -> NewTaskGraphNodes:
    """Nodes with what they require, all alike."""
    fields = {"created": at(), "deadline": at(hours=1), **fields}
    return NewTaskGraphNodes(nodes=[node(task_id, requires, **fields) for task_id, requires in edges.items()])


def graph(
    edges: Mapping[str, Sequence[str]],
    graph_id: str = "",
    *,
    scopes: Sequence[str] = SCOPES,
    routes: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    **fields: Any,
) -> CreateTaskGraphRequest:
    """A graph of such nodes."""
    return CreateTaskGraphRequest(
        task_graph_id=graph_id or new_id(),
        scopes=scopes,
        routes=routes,
        tasks=nodes(edges, **fields),
        metadata=METADATA,
        tags=tags or {},
    )


async def submit(queue: Caller, request: CreateTaskGraphRequest) -> str:
    """Creates a graph; its id."""
    status = (await queue.send("CreateTaskGraph", request)).status
    assert (status.task_graph_id, status.scheduler_id) == (request.task_graph_id, SCHEDULER)
    assert status.state == TaskGraphState.TASK_GRAPH_STATE_RUNNING
    return request.task_graph_id


async def extend(queue: Caller, graph_id: str, added: NewTaskGraphNodes) -> str:
    """Extends a graph; its state."""
    request = ExtendTaskGraphRequest(task_graph_id=graph_id, tasks=added)
    return _word(TaskGraphState, (await queue.send("ExtendTaskGraph", request)).status.state)


async def run(queue: Queue, task_id: str, outcome: str = "completed", run_id: int = 0) -> None:
    """A worker claims a run and resolves it."""
    await queue("ClaimTask", task_id=task_id, run_id=run_id, worker_group="group", worker_id="worker")
    await queue.resolve(task_id, outcome, run_id)


async def state(queue: Caller, graph_id: str) -> str:
    """running, blocked or finished."""
    status = (await queue("GetTaskGraphStatus", task_graph_id=graph_id)).status
    return _word(TaskGraphState, status.state)


async def inspected(queue: Caller, graph_id: str) -> dict[str, Any]:
    """The nodes by id; each is what inspectTask answers, too."""
    answer = await queue("InspectTaskGraph", task_graph_id=graph_id)
    found = {node.task_id: node for node in answer.tasks}
    assert list(found) == sorted(found) and len(found) == len(answer.tasks)
    for task_id, shown in found.items():
        alone = await queue("InspectTaskGraphTask", task_graph_id=graph_id, task_id=task_id)
        assert alone.task == shown
    return found


async def node_states(queue: Caller, graph_id: str) -> dict[str, str]:
    """How far each node is."""
    return {
        task_id: _word(TaskGraphNodeState, shown.state)
        for task_id, shown in (await inspected(queue, graph_id)).items()
    }


async def exchanges(queue: Queue) -> list[str]:
    """What was published of graphs since the last look, without `task-graph-`."""
    return [
        event.exchange.removeprefix("task-graph-")
        for event in await queue.published()
        if event.exchange.startswith("task-graph-")
    ]


def _word(enum: Any, number: int) -> str:
    return str(enum.Name(number)).rpartition("_STATE_")[2].lower()
