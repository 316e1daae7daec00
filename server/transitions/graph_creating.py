"""Creating and extending task graphs: tasks, edges, nodes, events in one transaction (scheduler.md 3, 5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from server.errors import AlreadyExists, QueueError, ResourceNotFound
from server.store.database import Statement, Transaction
from server.transitions import messages
from server.transitions.creating import Equal, NewTask, create_in
from server.transitions.graphs import GRAPHS
from server.transitions.machine import CREATION, TRANSITIONS, Effects, Machine, Row, insert_events

# First lines of conflicts, word for word (scheduler.md 3).
_OTHER_GRAPH = (
    "Different TaskGraph with given taskGraphId already exists, "
    "if this your attempt at an idempotent operation then you've failed!"
)
_OTHER_TASK = (
    "Different TaskId with given TaskId already exists, "
    "if this your attempt at an idempotent operation then you've failed!"
)


@dataclass(slots=True)
class NewNode:
    """A task of a graph. The task's dependencies hold what it requires."""

    task: NewTask
    name: str
    requires: Sequence[str]
    reruns: int


@dataclass(slots=True)
class NewGraph:
    """A graph to create. Scopes, routes, metadata and tags are JSON texts in which equal ones are alike."""

    task_graph_id: str
    scheduler_id: str
    scopes: str
    routes: str
    metadata: str
    tags: str
    nodes: Sequence[NewNode]


@dataclass(slots=True)
class Graph:
    """A graph as it is stored."""

    task_graph_id: str
    scheduler_id: str
    state: str
    scopes: str
    routes: str
    metadata: str
    tags: str

    def event(self, exchange: str) -> str:
        """An event about it."""
        routes: list[str] = orjson.loads(self.routes)
        return messages.task_graph(exchange, self.task_graph_id, self.scheduler_id, self.state, routes)


async def create_graph(machine: Machine, new: NewGraph, equal: Equal) -> Graph:
    """Creates a graph with all its tasks, or nothing. A repeat changes nothing, and publishes its events
    again. Raises AlreadyExists for another graph or task under one of the ids, and what creation raises."""

    async def run(tx: Transaction) -> tuple[Graph, Effects]:
        effects, ending = await _define(tx, new.nodes, equal)
        graph_id = new.task_graph_id
        latest = max((node.task.expires for node in new.nodes), default=None)
        header = (graph_id, new.scheduler_id, new.scopes, new.routes, new.metadata, new.tags, latest)
        *_, made, locked, added, known, leaves = await tx.pipeline(
            [
                *ending,
                (GRAPHS["insert_graph"], header),
                (GRAPHS["lock_graphs"], ([graph_id],)),
                _insertion(graph_id, new.nodes),
                _look_up(new.nodes),
                (GRAPHS["graph_leaves"], (graph_id,)),
            ]
        )
        graph = Graph(*locked[0])
        _refuse_other_nodes(graph_id, new.nodes, known)
        if not made:
            _refuse_other_graph(graph, new, bool(added), {row[0] for row in leaves})
        effects.events.append(graph.event("task-graph-running"))
        counting: list[Statement] = [(GRAPHS["count_leaves"], (graph_id, latest))] if made else []
        await tx.commit([*counting, *insert_events(effects)])
        return graph, effects

    graph, effects = await machine.db.in_transaction(run, hot=True)
    machine.tell(effects)
    return graph


async def extend_graph(machine: Machine, graph_id: str, nodes: Sequence[NewNode], equal: Equal) -> Graph:
    """Adds all the tasks to a graph, or nothing; its state stays. Repeats are as those of `create_graph`.
    Raises also ResourceNotFound."""

    async def run(tx: Transaction) -> tuple[Graph, Effects]:
        effects, ending = await _define(tx, nodes, equal)
        *_, locked, _, known = await tx.pipeline(
            [
                *ending,
                (GRAPHS["lock_graphs"], ([graph_id],)),
                _insertion(graph_id, nodes),
                _look_up(nodes),
            ]
        )
        if not locked:
            raise ResourceNotFound("task-graph not found!", taskGraphId=graph_id)
        graph = Graph(*locked[0])
        _refuse_other_nodes(graph_id, nodes, known)
        effects.events.append(graph.event("task-graph-extended"))
        latest = max((node.task.expires for node in nodes), default=None)
        await tx.commit(
            [
                (GRAPHS["cover_leaves"], (graph_id, sorted(_required(nodes)))),
                (GRAPHS["count_leaves"], (graph_id, latest)),
                *insert_events(effects),
            ]
        )
        return graph, effects

    graph, effects = await machine.db.in_transaction(run, hot=True)
    machine.tell(effects)
    return graph


async def _define(
    tx: Transaction, nodes: Sequence[NewNode], equal: Equal
) -> tuple[Effects, list[tuple[str, Sequence[object]]]]:
    """Creates the tasks of the nodes. Returns their events, which are not written yet, and the statements
    that are still to be sent. Raises what a task is refused for."""
    if not nodes:
        return Effects(), []
    items = sorted((node.task for node in nodes), key=lambda task: task.task_id)
    # Whichever of them exists is held as it is, so that it resolves before it is a node, or sees that it is.
    held = sorted({item.task_id for item in items}.union(*(item.dependencies for item in items)))
    await tx.run(CREATION["lock_dependencies"], (held,))
    outcomes, effects, ending = await create_in(tx, items, equal, whole=True)
    for outcome in outcomes:
        if isinstance(outcome, AlreadyExists):
            raise AlreadyExists(f"{_OTHER_TASK}\n{outcome.message}", **outcome.details)
        if isinstance(outcome, QueueError):
            raise outcome
    return effects, [statement for statement in ending if statement[0] != TRANSITIONS["insert_events"]]


def _required(nodes: Iterable[NewNode]) -> set[str]:
    return {required for node in nodes for required in node.requires}


def _insertion(graph_id: str, nodes: Sequence[NewNode]) -> Statement:
    required = _required(nodes)
    return (
        GRAPHS["insert_nodes"],
        (
            graph_id,
            [node.task.task_id for node in nodes],
            [node.name for node in nodes],
            [",".join(node.requires) for node in nodes],
            [node.reruns for node in nodes],
            [node.task.task_id not in required for node in nodes],
        ),
    )


def _look_up(nodes: Sequence[NewNode]) -> Statement:
    return (GRAPHS["known_nodes"], ([node.task.task_id for node in nodes],))


def _refuse_other_nodes(graph_id: str, nodes: Sequence[NewNode], rows: Sequence[Row]) -> None:
    """Raises AlreadyExists for a node that stands there otherwise than it is asked for."""
    known = {row[0]: row for row in rows}
    for node in nodes:
        _, stored_graph, requires, reruns, _ = known[node.task.task_id]
        if (stored_graph, set(requires), reruns) != (graph_id, set(node.requires), node.reruns):
            raise AlreadyExists(
                f"{_OTHER_TASK}\ntask {node.task.task_id} is in a graph, with other requires or reruns, "
                "or in another graph",
                taskId=node.task.task_id,
            )


def _refuse_other_graph(graph: Graph, new: NewGraph, grown: bool, leaves: set[str]) -> None:
    """Raises AlreadyExists unless the stored graph is what was asked for, and runs."""
    wanted = {node.task.task_id for node in new.nodes} - _required(new.nodes)
    different = [
        name
        for name, differs in (
            ("scopes", graph.scopes != new.scopes),
            ("routes", graph.routes != new.routes),
            ("metadata", graph.metadata != new.metadata),
            ("tags", graph.tags != new.tags),
            ("tasks", grown or leaves != wanted),
            ("state", graph.state != "running"),
        )
        if differs
    ]
    if different:
        raise AlreadyExists(
            f"{_OTHER_GRAPH}\nwhat differs: {', '.join(different)}",
            taskGraphId=graph.task_graph_id,
        )
