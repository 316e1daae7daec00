"""Reading answers: states in words, and a status as JSON shows it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tcqueue.v1.run_pb2 import ReasonCreated, ReasonResolved, Run, RunState
from tcqueue.v1.task_pb2 import Priority, TaskState, TaskStatus


def state(status: TaskStatus) -> str:
    """The task's state in the API's words."""
    return _word(TaskState.Name(status.state), "TASK_STATE_")


def runs(status: TaskStatus) -> list[str]:
    """Each run as `<reason created> <state> [<reason resolved>]`."""
    return [_run(run) for run in status.runs]


def priority_of(status: Any) -> str:
    """The priority of a status or a definition, by name."""
    return _word(Priority.Name(status.priority), "PRIORITY_")


def moment(stamp: Timestamp) -> datetime:
    """A timestamp as an instant."""
    return stamp.ToDatetime(UTC)


def ids(items: Iterable[Any]) -> list[str]:
    """Task ids of claims, of named tasks, or of tasks with their status."""
    return [
        item.task_id if "task_id" in item.DESCRIPTOR.fields_by_name else item.status.task_id for item in items
    ]


def status_json(status: TaskStatus) -> dict[str, Any]:
    """The status as queue.md 1.4 and 1.5 have it in JSON."""
    return {
        "taskId": status.task_id,
        "provisionerId": status.provisioner_id,
        "workerType": status.worker_type,
        "taskQueueId": status.task_queue_id,
        "schedulerId": status.scheduler_id,
        "projectId": status.project_id,
        "taskGroupId": status.task_group_id,
        "deadline": text(status.deadline),
        "expires": text(status.expires),
        "retriesLeft": status.retries_left,
        "state": state(status),
        "runs": [_run_json(run) for run in status.runs],
        "priority": priority_of(status),
    }


def text(stamp: Timestamp) -> str:
    """A timestamp in the API's form."""
    return moment(stamp).strftime("%Y-%m-%dT%H:%M:%S.") + f"{stamp.nanos // 1_000_000:03}Z"


def _run(run: Run) -> str:
    words = [_word(ReasonCreated.Name(run.reason_created), "REASON_CREATED_")]
    words.append(_word(RunState.Name(run.state), "RUN_STATE_"))
    if run.HasField("reason_resolved"):
        words.append(_word(ReasonResolved.Name(run.reason_resolved), "REASON_RESOLVED_"))
    return " ".join(words)


def _run_json(run: Run) -> dict[str, Any]:
    created, now, *resolved = _run(run).split(" ")
    shown: dict[str, Any] = {"runId": run.run_id, "state": now, "reasonCreated": created}
    if resolved:
        shown["reasonResolved"] = resolved[0]
    for name, value in (("workerGroup", "worker_group"), ("workerId", "worker_id")):
        if run.HasField(value):  # type: ignore[arg-type]
            shown[name] = getattr(run, value)
    for name, value in (
        ("takenUntil", "taken_until"),
        ("scheduled", "scheduled"),
        ("started", "started"),
        ("resolved", "resolved"),
    ):
        if run.HasField(value):  # type: ignore[arg-type]
            shown[name] = text(getattr(run, value))
    return shown


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", "-")
