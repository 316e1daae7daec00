"""PyPI taskcluster-taskgraph: creates a graph as a decision task does."""

from __future__ import annotations

import slugid
import taskcluster
from common import CREDENTIALS, ROOT_URL, definition, run
from taskgraph.create import create_tasks
from taskgraph.graph import Graph
from taskgraph.task import Task
from taskgraph.taskgraph import TaskGraph

queue = taskcluster.Queue({"rootUrl": ROOT_URL, "credentials": CREDENTIALS})


def creation() -> None:
    decision = slugid.nice()
    queue.createTask(
        decision, definition("graph/decision", schedulerId="trust-level-1", taskGroupId=decision)
    )
    ids = {label: slugid.nice() for label in ("build", "test", "sign")}
    edges = {("test", "build"), ("sign", "build"), ("sign", "test")}
    tasks = {}
    for label, task_id in ids.items():
        fields = definition("graph/work")
        fields["dependencies"] = [ids[on] for of, on in edges if of == label]
        fields["created"] = {"relative-datestamp": "0 seconds"}
        fields["deadline"] = {"relative-datestamp": "1 day"}
        tasks[task_id] = Task(kind="test", label=label, attributes={}, task=fields)
        tasks[task_id].task_id = task_id
    graph = Graph(frozenset(tasks), frozenset((ids[of], ids[on], "edge") for of, on in edges))
    create_tasks(
        {"trust-domain": "trust"},
        TaskGraph(tasks, graph),
        ids,
        {"level": "1"},
        decision_task_id=decision,
    )
    states = {label: queue.status(task_id)["status"] for label, task_id in ids.items()}
    assert {status["state"] for status in states.values()} == {"unscheduled"}
    assert {status["taskGroupId"] for status in states.values()} == {decision}
    worker = {"workerGroup": "g", "workerId": "w"}
    order = []
    for queue_id in ("graph/decision", "graph/work", "graph/work", "graph/work"):
        (claim,) = queue.claimWork(queue_id, worker)["tasks"]
        queue.reportCompleted(claim["status"]["taskId"], claim["runId"])
        order.append(claim["status"]["taskId"])
    assert order == [decision, ids["build"], ids["test"], ids["sign"]]


if __name__ == "__main__":
    run({"creation": creation})
