"""Tasks, runs and statuses as lines and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import cast

import click
from google.protobuf.timestamp_pb2 import Timestamp

from server.cli.base import colored, moment, print_fields, print_table, span
from server.client.json_form import word, words
from tcqueue.v1.run_pb2 import ReasonCreated, ReasonResolved, Run, RunState
from tcqueue.v1.task_pb2 import Priority, TaskDefinition, TaskState, TaskStatus

PRIORITIES = {
    name: cast("Priority.ValueType", number)
    for name, number in words(Priority.DESCRIPTOR).items()
    if name != "normal"
}
RESOLVED = frozenset(
    {TaskState.TASK_STATE_COMPLETED, TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_EXCEPTION}
)


def when(stamp: Timestamp) -> datetime | None:
    """The instant, None for a field that is not set."""
    return stamp.ToDatetime(UTC) if stamp.seconds else None


def state_word(status: TaskStatus) -> str:
    """`completed`, `running`, `exception/canceled`, in its colour."""
    state = word(TaskState.DESCRIPTOR, status.state)
    if status.state == TaskState.TASK_STATE_EXCEPTION and status.runs:
        state += "/" + word(ReasonResolved.DESCRIPTOR, status.runs[-1].reason_resolved)
    return colored(state)


def run_word(run: Run) -> str:
    """A run's state with its reason where that says more."""
    state = word(RunState.DESCRIPTOR, run.state)
    if run.state == RunState.RUN_STATE_EXCEPTION:
        state += "/" + word(ReasonResolved.DESCRIPTOR, run.reason_resolved)
    return colored(state)


def run_time(run: Run) -> str:
    """How long a run took, or has taken so far."""
    started, resolved = when(run.started), when(run.resolved)
    if started is None:
        return ""
    return span(max(0.0, ((resolved or datetime.now(UTC)) - started).total_seconds()))


def run_worker(run: Run) -> str:
    """The worker, `group/id`."""
    return f"{run.worker_group}/{run.worker_id}" if run.HasField("worker_id") else ""


def print_runs(runs: Sequence[Run]) -> None:
    """The runs of a task as a table."""
    rows = [
        (
            str(run.run_id),
            run_word(run),
            word(ReasonCreated.DESCRIPTOR, run.reason_created),
            run_worker(run),
            run_time(run),
        )
        for run in runs
    ]
    print_table(("run", "state", "because", "worker", "took"), rows, empty="no runs yet")


def print_status(status: TaskStatus, task: TaskDefinition | None = None) -> None:
    """A task's status, with its definition's main points if they are known."""
    fields = [("task", status.task_id)]
    if task is not None:
        fields += [("name", task.metadata.name), ("description", task.metadata.description)]
    fields += [
        ("state", state_word(status)),
        ("queue", status.task_queue_id),
        ("group", status.task_group_id),
        ("priority", word(Priority.DESCRIPTOR, status.priority)),
        ("deadline", moment(when(status.deadline))),
        ("expires", moment(when(status.expires))),
        ("retries left", str(status.retries_left)),
    ]
    if task is not None:
        fields += [
            ("scheduler", task.scheduler_id),
            ("project", task.project_id),
            ("dependencies", "\n".join(task.dependencies)),
            ("routes", "\n".join(task.routes)),
            ("scopes", "\n".join(task.scopes)),
            ("owner", task.metadata.owner),
            ("source", task.metadata.source),
            ("payload", task.payload),
        ]
    print_fields(fields)
    click.echo()
    print_runs(status.runs)


def status_row(status: TaskStatus, name: str = "") -> tuple[str, ...]:
    """A task on one line: id, name, state, runs, last worker, time."""
    last = status.runs[-1] if status.runs else None
    return (
        status.task_id,
        name,
        state_word(status),
        str(len(status.runs)),
        run_worker(last) if last else "",
        run_time(last) if last else "",
    )


STATUS_HEADINGS = ("task", "name", "state", "runs", "worker", "took")


def print_statuses(statuses: Iterable[tuple[TaskStatus, str]]) -> None:
    """Tasks as a table."""
    print_table(STATUS_HEADINGS, [status_row(status, name) for status, name in statuses], empty="no tasks")
