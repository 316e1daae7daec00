"""Task graphs as they are shown (scheduler.md 2.4). How far nodes are is read off the queue's own tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from server.call import Call
from server.codec.words import words
from server.errors import ResourceNotFound
from server.handlers.pages import gently, read
from server.store.database import Row
from server.store.statements import load
from server.transitions.graph_creating import Graph
from tcqueue.v1.task_graph_pb2 import (
    GetTaskGraphInfoRequest,
    GetTaskGraphInfoResponse,
    GetTaskGraphStatusRequest,
    GetTaskGraphStatusResponse,
    InspectTaskGraphRequest,
    InspectTaskGraphResponse,
    InspectTaskGraphTaskRequest,
    InspectTaskGraphTaskResponse,
    TaskGraphMetadata,
    TaskGraphNode,
    TaskGraphNodeState,
    TaskGraphState,
    TaskGraphStatus,
)

_SQL = load("graphs")
_STATES: Any = words(TaskGraphState.DESCRIPTOR)
_NODE_STATES: Any = words(TaskGraphNodeState.DESCRIPTOR)

#: A node's state by that of its task's last run. A failed run is shown only when no rerun was left for it:
#: otherwise the next one came in the same transaction.
_SHOWN = {
    "": "unscheduled",
    "pending": "scheduled",
    "running": "scheduled",
    "completed": "completed",
    "failed": "failed",
    "exception": "exception",
}


async def get_task_graph_status(call: Call, request: GetTaskGraphStatusRequest) -> GetTaskGraphStatusResponse:
    """Whether a graph is running, blocked or finished."""
    return GetTaskGraphStatusResponse(status=status_of(await read_graph(call, request.task_graph_id)))


async def get_task_graph_info(call: Call, request: GetTaskGraphInfoRequest) -> GetTaskGraphInfoResponse:
    """A graph without its tasks."""
    graph = await read_graph(call, request.task_graph_id)
    return GetTaskGraphInfoResponse(
        status=status_of(graph), metadata=_metadata(graph), tags=orjson.loads(graph.tags)
    )


async def inspect_task_graph(call: Call, request: InspectTaskGraphRequest) -> InspectTaskGraphResponse:
    """A graph with its tasks, both of one moment."""
    graph_id = request.task_graph_id
    graphs, nodes = await read(
        call.services.db, (_SQL["read_graph"], (graph_id,)), (_SQL["read_nodes"], (graph_id,))
    )
    graph = _found(graphs, graph_id)
    return InspectTaskGraphResponse(
        status=status_of(graph),
        tasks=await gently(_nodes(nodes)),
        metadata=_metadata(graph),
        tags=orjson.loads(graph.tags),
        scopes=orjson.loads(graph.scopes),
    )


async def inspect_task_graph_task(
    call: Call, request: InspectTaskGraphTaskRequest
) -> InspectTaskGraphTaskResponse:
    """One task of a graph."""
    rows = await call.services.db.fetch(_SQL["read_node"], (request.task_graph_id, request.task_id))
    for node in _nodes(rows):
        if node.task_id == request.task_id:
            return InspectTaskGraphTaskResponse(task=node)
    raise ResourceNotFound(
        f"task-graph not found!\nThere is no task {request.task_id} in a task-graph {request.task_graph_id}.",
        taskGraphId=request.task_graph_id,
        taskId=request.task_id,
    )


async def read_graph(call: Call, graph_id: str) -> Graph:
    """A graph's row. Raises ResourceNotFound."""
    return _found(await call.services.db.fetch(_SQL["read_graph"], (graph_id,)), graph_id)


def status_of(graph: Graph) -> TaskGraphStatus:
    """A graph's status."""
    return TaskGraphStatus(
        task_graph_id=graph.task_graph_id, scheduler_id=graph.scheduler_id, state=_STATES[graph.state]
    )


def _found(rows: list[Row], graph_id: str) -> Graph:
    if not rows:
        raise ResourceNotFound(
            f"task-graph not found!\nThere is no task-graph {graph_id}.", taskGraphId=graph_id
        )
    return Graph(*rows[0])


def _metadata(graph: Graph) -> TaskGraphMetadata:
    return TaskGraphMetadata(**orjson.loads(graph.metadata))


def _nodes(rows: list[Row]) -> Iterable[TaskGraphNode]:
    """The nodes of a graph; or a node, if what it requires and what requires it are among the rows, too."""
    completed = {row[0] for row in rows if _state(row[5], row[6]) == "completed"}
    dependents: dict[str, list[str]] = {}
    for row in rows:
        for required in row[2]:
            dependents.setdefault(required, []).append(row[0])
    for task_id, name, requires, reruns, reruns_left, done, state in rows:
        yield TaskGraphNode(
            task_id=task_id,
            name=name,
            requires=requires,
            requires_left=[required for required in requires if required not in completed],
            reruns=reruns,
            reruns_left=reruns_left,
            state=_NODE_STATES[_state(done, state)],
            satisfied=task_id in completed,
            dependents=dependents.get(task_id, ()),
        )


def _state(done: bool, state: str | None) -> str:
    """A node's state. Of a task that has expired before its graph only its success is remembered."""
    if state is None:
        return "completed" if done else "exception"
    return _SHOWN[state]
