"""What must hold among the nodes of a task graph (scheduler.md 3.4)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from server.domain.graphs import find_cycle


@dataclass(frozen=True, slots=True)
class Node:
    """A node as submitted. `dependencies` are what its task's own definition names."""

    task_id: str
    scheduler_id: str
    task_group_id: str
    requires: Sequence[str]
    dependencies: Sequence[str] = ()


class Fault(NamedTuple):
    """What is wrong with the node `at` a place of the request: the field to blame, a text, and the facts."""

    at: int
    field: str
    text: str
    facts: Mapping[str, object]


def faults(
    nodes: Sequence[Node], *, scheduler_id: str, graph_id: str, known: Collection[str] = ()
) -> list[Fault]:
    """Everything that is wrong with the nodes of a request; `known` are nodes that the graph has already."""
    found: list[Fault] = []
    first: dict[str, int] = {}
    ids = {node.task_id for node in nodes}
    for index, node in enumerate(nodes):
        if first.setdefault(node.task_id, index) != index:
            facts = {"taskId": node.task_id}
            text = f"Task {node.task_id} is listed more than once, this is not allowed"
            found.append(Fault(index, "task_id", text, facts))
        found += _alone(index, node, scheduler_id, graph_id)
        for required in dict.fromkeys(node.requires):
            if required not in ids and required not in known:
                text = f"Requires for {node.task_id} references undefined taskId: {required}"
                found.append(Fault(index, "requires", text, {"taskId": node.task_id, "undefined": required}))
    cycle = find_cycle({node.task_id: [*node.requires, *node.dependencies] for node in nodes})
    if cycle is not None:
        path = " -> ".join(cycle if len(cycle) <= 12 else [*cycle[:6], "...", *cycle[-5:]])
        text = f"Requires of the tasks form a cycle: {path}"
        found.append(Fault(first[cycle[0]], "requires", text, {"cycle": cycle[:200]}))
    return found


def _alone(index: int, node: Node, scheduler_id: str, graph_id: str) -> Iterator[Fault]:
    """What is wrong with a node whatever the others are."""
    if node.scheduler_id != scheduler_id:
        yield Fault(
            index,
            "task.scheduler_id",
            "schedulerId must match schedulerId for this scheduler",
            {
                "thisSchedulerId": scheduler_id,
                "GivenSchedulerId": node.scheduler_id,
                "taskId": node.task_id,
            },
        )
    if node.task_group_id != graph_id:
        yield Fault(
            index,
            "task.task_group_id",
            "taskGroupId must be set to taskGraphId for this scheduler",
            {"taskGraphId": graph_id, "taskGroupId": node.task_group_id, "taskId": node.task_id},
        )
    if len(set(node.requires)) != len(node.requires):
        yield Fault(
            index,
            "requires",
            f"Requires for {node.task_id} contains duplicates, this is not allowed",
            {"taskId": node.task_id, "requires": list(node.requires)},
        )
    if node.task_id in node.requires:
        yield Fault(
            index,
            "requires",
            f"Requires for {node.task_id} contains the task itself, this is not allowed",
            {"taskId": node.task_id, "requires": list(node.requires)},
        )
