"""Creating and extending task graphs (scheduler.md 3, 5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import orjson

from server import definitions
from server.call import Call
from server.domain import legacy
from server.domain.graph_nodes import Fault, Node, faults
from server.domain.scope_expressions import AllOf, AnyOf, ForEach, Scope, compile
from server.domain.scopes import ScopeSet
from server.errors import BadRequest, InputError, TaskGraphError
from server.handlers import inputs
from server.handlers.task_graph_reading import read_graph, status_of
from server.store.statements import load
from server.transitions import graph_creating
from server.transitions.graph_creating import NewGraph, NewNode
from tcqueue.v1.task_graph_pb2 import (
    CreateTaskGraphRequest,
    CreateTaskGraphResponse,
    ExtendTaskGraphRequest,
    ExtendTaskGraphResponse,
    NewTaskGraphNode,
)
from tcqueue.v1.task_pb2 import Requires, TaskDefinition

_SQL = load("graphs")

#: What the scopes of a graph must hold for each of its tasks. Scheduler and project are granted with it.
_NEEDED = compile(
    AllOf(
        (
            AnyOf(
                (
                    Scope("queue:define-task:<taskQueueId>"),
                    Scope("queue:create-task:<taskQueueId>"),
                    ForEach("priority", "priorities", "queue:create-task:<priority>:<taskQueueId>"),
                )
            ),
            ForEach("scope", "scopes", "<scope>"),
            ForEach("route", "routes", "queue:route:<route>"),
        )
    )
)


async def create_task_graph(call: Call, request: CreateTaskGraphRequest) -> CreateTaskGraphResponse:
    """Creates a graph, or finds it created alike."""
    nodes = request.tasks.nodes
    # A graph that is there already has nodes: what requires them makes it another graph, which is a conflict.
    known = await _known(call, request.task_graph_id, nodes)
    prepared = await _prepare(call, request.task_graph_id, nodes, request.scopes, known)
    metadata = request.metadata
    new = NewGraph(
        task_graph_id=request.task_graph_id,
        scheduler_id=call.services.settings.scheduler_id,
        scopes=_json(list(request.scopes)),
        routes=_json(list(request.routes)),
        metadata=_json(
            {
                "name": metadata.name,
                "description": metadata.description,
                "owner": metadata.owner,
                "source": metadata.source,
            }
        ),
        tags=_json(dict(request.tags)),
        nodes=prepared,
    )
    graph = await graph_creating.create_graph(call.services.machine, new, definitions.same)
    return CreateTaskGraphResponse(status=status_of(graph))


async def extend_task_graph(call: Call, request: ExtendTaskGraphRequest) -> ExtendTaskGraphResponse:
    """Adds tasks to a graph, or finds them added alike."""
    graph = await read_graph(call, request.task_graph_id)
    nodes = request.tasks.nodes
    known = await _known(call, graph.task_graph_id, nodes)
    prepared = await _prepare(call, graph.task_graph_id, nodes, orjson.loads(graph.scopes), known)
    extended = await graph_creating.extend_graph(
        call.services.machine, graph.task_graph_id, prepared, definitions.same
    )
    return ExtendTaskGraphResponse(status=status_of(extended))


async def _known(call: Call, graph_id: str, nodes: Sequence[NewTaskGraphNode]) -> set[str]:
    """What the nodes require of those that the graph has already."""
    required = {required for node in nodes for required in node.requires}
    elsewhere = sorted(required - {node.task_id for node in nodes})
    if not elsewhere:
        return set()
    rows = await call.services.db.fetch(_SQL["known_nodes"], (elsewhere,))
    return {row[0] for row in rows if row[1] == graph_id}


async def _prepare(
    call: Call,
    graph_id: str,
    nodes: Sequence[NewTaskGraphNode],
    scopes: Iterable[str],
    known: Collection[str],
) -> list[NewNode]:
    """Everything that is checked before the database is needed. Raises TaskGraphError with all that is wrong
    with the nodes, or else with all that the graph's scopes do not allow."""
    settings = call.services.settings
    for node in nodes:
        # From the request alone, never from the clock: a repeat must come to the same.
        if not node.task.HasField("scheduler_id"):
            node.task.scheduler_id = settings.scheduler_id
        if not node.task.HasField("task_group_id"):
            node.task.task_group_id = graph_id
    wrong = faults(
        [
            Node(n.task_id, n.task.scheduler_id, n.task.task_group_id, n.requires, n.task.dependencies)
            for n in nodes
        ],
        scheduler_id=settings.scheduler_id,
        graph_id=graph_id,
        known=known,
    )
    for index, node in enumerate(nodes):
        try:
            _complete(call, node)
        except BadRequest as e:
            wrong.append(Fault(index, "task", e.message, {"taskId": node.task_id}))
    if wrong:
        raise TaskGraphError("Errors found in task nodes", wrong)
    held = await call.services.authenticator.effective(list(scopes))
    refused = [fault for index, node in enumerate(nodes) for fault in _beyond(index, node, held)]
    if refused:
        raise TaskGraphError(
            "You didn't give the task-graph scopes allowing it define tasks on the queue.", refused
        )
    return [
        NewNode(
            task=definitions.new_task(node.task_id, node.task),
            name=node.task.metadata.name,
            requires=list(node.requires),
            reruns=node.reruns,
        )
        for node in nodes
    ]


def _complete(call: Call, node: NewTaskGraphNode) -> None:
    """Fills in the rest of a task's definition, in place, and checks what the queue would (queue.md 2.2).
    Raises BadRequest."""
    settings, task = call.services.settings, node.task
    if node.requires:
        named = set(task.dependencies)
        task.dependencies.extend(required for required in node.requires if required not in named)
        task.requires = Requires.REQUIRES_ALL_COMPLETED
    if len(task.dependencies) > settings.task_max_dependencies:
        raise InputError(
            f"a task may have at most {settings.task_max_dependencies} dependencies, with what it requires, "
            f"not {len(task.dependencies)}"
        )
    definitions.check_rules(task)
    definitions.resolve_queue(task)
    definitions.fill_defaults(node.task_id, task)
    inputs.text(task.metadata.name, "task.metadata.name")
    definitions.check_dates(
        task, call.services.clock.now(), max(legacy.MAX_DEADLINE_DAYS, settings.max_task_deadline_days)
    )
    definitions.check_scopes(task)


def _beyond(index: int, node: NewTaskGraphNode, held: ScopeSet) -> list[Fault]:
    """What a task demands of the graph's scopes and does not get."""
    parameters = _parameters(node.task)
    if _NEEDED.satisfied(parameters, held):
        return []
    missing = _NEEDED.render(parameters).missing(held)
    assert missing is not None
    text = f"Task {node.task_id} needs what the scopes of its task-graph do not give: {missing.to_text()}"
    facts: Mapping[str, object] = {"taskId": node.task_id, "missing": missing.to_json()}
    return [Fault(index, "task", text, facts)]


def _parameters(task: TaskDefinition) -> dict[str, str | list[str]]:
    return {
        "taskQueueId": task.task_queue_id,
        "priorities": definitions.create_priorities(task.priority),
        "scopes": list(task.scopes),
        "routes": list(task.routes),
    }


def _json(value: object) -> str:
    """JSON text in which equal values are spelled alike."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
