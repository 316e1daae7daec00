"""Task graphs driven by their tasks: inside the transaction that resolves a task, its graph goes on
(scheduler.md 4).

Dependents start by the queue's own dependencies. What is added here is what the queue does not know: that
a failed task has reruns left, that a graph is blocked, that it has finished. There are no messages between
the two that could get lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from server.store.database import Statement, Transaction
from server.store.statements import load
from server.transitions import messages
from server.transitions.facts import TaskFacts, collect
from server.transitions.machine import TRANSITIONS, Effects, Row

GRAPHS = load("graphs")

_RESOLVED = frozenset({"completed", "failed", "exception"})


def mark(scheduler_id: str) -> str:
    """A text that the routing keys of every task of this scheduler hold, and of few others. Looking for it
    costs 40 ns, and is all that graphs cost the tasks of other schedulers."""
    return f".{scheduler_id}."


async def advance(tx: Transaction, scheduler_id: str, tasks: Sequence[TaskFacts], effects: Effects) -> None:
    """Makes the graphs' steps for tasks that this transaction resolved: failed ones run again as long as they
    may, and graphs become blocked or finished. Tasks with another run behind the resolved one, those of other
    schedulers, and those that no graph knows are passed over.

    The transaction holds the tasks' locks and those of their groups.
    """
    ended = [task for task in tasks if task.state in _RESOLVED and _words(task)[2] == scheduler_id]
    if not ended:
        return
    failed = [task.task_id for task in ended if task.state == "failed"]
    again: list[str] = []
    if failed:
        again = [row[0] for row in await tx.run(GRAPHS["spend_reruns"], (failed,))]
    graphs = sorted({_words(task)[3] for task in ended})
    completed = [task.task_id for task in ended if task.state == "completed"]
    lost = [task.task_id for task in ended if task.state != "completed" and task.task_id not in again]
    statements: list[Statement] = []
    if completed or lost:
        statements += [
            (GRAPHS["lock_graphs"], (graphs,)),
            (GRAPHS["settle_graphs"], (graphs, completed, lost)),
        ]
    if again:
        statements += [
            (TRANSITIONS["rerun_tasks"], (again,)),
            (TRANSITIONS["read_tasks"], (again,)),
            (TRANSITIONS["read_runs"], (again,)),
        ]
    rows = await tx.pipeline(statements)
    if again:
        for task in collect(*rows[-2:]).values():
            effects.events.append(messages.task_pending(task, len(task.runs) - 1))
            effects.queues.add(task.task_queue_id)
    if completed or lost:
        _changed(rows[1], effects)


def _changed(rows: Sequence[Row], effects: Effects) -> None:
    for graph_id, scheduler_id, state, routes, culprit in rows:
        task_id = culprit if state == "blocked" else None
        effects.events.append(
            messages.task_graph(
                f"task-graph-{state}", graph_id, scheduler_id, state, orjson.loads(routes), task_id
            )
        )


def _words(task: TaskFacts) -> list[str]:
    """Provisioner, worker type, scheduler, group."""
    return task.frame.key_tail.split(".")
