"""Events as they go into the outbox: exchange, routing key, further keys, payload (queue.md 5).

Each function returns the JSON text of one event. Text is pasted together instead of dumped: a life
has five events, and they are half of what a life costs the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import orjson

from server.domain import priority
from server.domain.frames import Frame
from server.domain.times import to_text
from server.transitions.facts import TaskFacts


def task_defined(facts: TaskFacts) -> str:
    """taskDefined; the facts given must be those of an unscheduled task."""
    return _task_event("task-defined", facts, "_._._", "")


def task_pending(facts: TaskFacts, run_id: int, status: str | None = None) -> str:
    """taskPending for a run; `status` saves rendering it twice."""
    return _task_event("task-pending", facts, f"{run_id}._._", f',"runId":{run_id}', status)


#: Stands in an event for the time at which its transaction writes it: no JSON text holds this character.
NOW = "\x01"


def task_created(task_id: str, frame: Frame, rank: int, retries: int, *, pending: bool) -> str:
    """taskDefined of a new task and, if it waits for nothing, taskPending of its first run, scheduled NOW."""
    head = f'{frame.status_head},"retriesLeft":{retries},"state":"'
    tail = f'"priority":"{priority.NAMES[rank]}"}},"task":{{"tags":{frame.tags}}}'
    end = f'.{frame.key_tail}","cc":{frame.cc},"payload":{{"version":1,"status":{head}'
    defined = (
        f'{{"exchange":"task-defined","key":"primary.{task_id}._._._{end}unscheduled","runs":[],{tail}}}}}'
    )
    if not pending:
        return defined
    return (
        f'{defined},{{"exchange":"task-pending","key":"primary.{task_id}.0._._{end}pending","runs":[{{"runId":0,'
        f'"state":"pending","reasonCreated":"scheduled","scheduled":"{NOW}"}}],{tail},"runId":0}}}}'
    )


def task_running(
    facts: TaskFacts, run_id: int, worker_group: str, worker_id: str, taken_until: datetime
) -> str:
    """taskRunning."""
    return _task_event(
        "task-running",
        facts,
        f"{run_id}.{worker_group}.{worker_id}",
        f',"runId":{run_id},"workerGroup":"{worker_group}","workerId":"{worker_id}",'
        f'"takenUntil":"{to_text(taken_until)}"',
    )


def task_resolved(facts: TaskFacts, run_id: int, status: str | None = None) -> str:
    """taskCompleted, taskFailed or taskException, by the state of the run.

    The worker is named if the run had been claimed, except when the deadline ended it.
    """
    run = facts.runs[run_id]
    words, fields = "_._", ""
    if run.worker_group is not None and run.reason_resolved != "deadline-exceeded":
        words = f"{run.worker_group}.{run.worker_id}"
        fields = f',"workerGroup":"{run.worker_group}","workerId":"{run.worker_id}"'
    return _task_event(f"task-{run.state}", facts, f"{run_id}.{words}", f',"runId":{run_id}{fields}', status)


def task_priority_changed(facts: TaskFacts, old: int, new: int) -> str:
    """taskPriorityChanged, with both ranks by name."""
    return (
        f'{{"exchange":"task-priority-changed","key":"primary.{facts.task_id}._._._.{facts.frame.key_tail}",'
        f'"cc":{facts.frame.cc},"payload":{{"version":1,"status":{facts.status_json()},'
        f'"oldPriority":"{priority.NAMES[old]}","newPriority":"{priority.NAMES[new]}"}}}}'
    )


def artifact_created(
    facts: TaskFacts,
    run_id: int,
    worker_group: str,
    worker_id: str,
    *,
    storage_type: str,
    name: str,
    expires: datetime,
    content_type: str,
) -> str:
    """artifactCreated. Its payload has no member `task`."""
    frame = facts.frame
    artifact = orjson.dumps(
        {
            "storageType": storage_type,
            "name": name,
            "expires": to_text(expires),
            "contentType": content_type,
        }
    ).decode()
    return (
        f'{{"exchange":"artifact-created","key":"primary.{facts.task_id}.{run_id}.{worker_group}.{worker_id}.'
        f'{frame.key_tail}","cc":{frame.cc},"payload":{{"version":1,"status":{facts.status_json()},'
        f'"runId":{run_id},"workerGroup":"{worker_group}","workerId":"{worker_id}","artifact":{artifact}}}}}'
    )


def task_group_resolved(group_id: str, scheduler_id: str, expires: datetime, sealed: datetime | None) -> str:
    """taskGroupResolved."""
    return _group_event("task-group-resolved", group_id, scheduler_id, _group_times(expires, sealed))


def task_group_sealed(group_id: str, scheduler_id: str, expires: datetime, sealed: datetime) -> str:
    """taskGroupSealed."""
    return _group_event("task-group-sealed", group_id, scheduler_id, _group_times(expires, sealed))


def task_group_priority_changed(group_id: str, scheduler_id: str, new: int, affected: int) -> str:
    """taskGroupPriorityChanged."""
    fields = f',"newPriority":"{priority.NAMES[new]}","tasksAffected":{affected}'
    return _group_event("task-group-priority-changed", group_id, scheduler_id, fields)


def task_graph(
    exchange: str,
    graph_id: str,
    scheduler_id: str,
    state: str,
    routes: Sequence[str],
    task_id: str | None = None,
) -> str:
    """taskGraphRunning, -Extended, -Blocked or -Finished; `task_id` is the task that blocks it."""
    cc = orjson.dumps([f"route.{route}" for route in routes]).decode()
    fields = "" if task_id is None else f',"taskId":"{task_id}"'
    return (
        f'{{"exchange":"{exchange}","key":"primary._._._._._._.{scheduler_id}.{graph_id}._","cc":{cc},'
        f'"payload":{{"version":1,"status":{{"taskGraphId":"{graph_id}","schedulerId":"{scheduler_id}",'
        f'"state":"{state}"}}{fields}}}}}'
    )


def join(events: Sequence[str]) -> str:
    """The outbox row of a transaction with these events."""
    return f"[{','.join(events)}]"


def _task_event(exchange: str, facts: TaskFacts, words: str, fields: str, status: str | None = None) -> str:
    frame = facts.frame
    return (
        f'{{"exchange":"{exchange}","key":"primary.{facts.task_id}.{words}.{frame.key_tail}","cc":{frame.cc},'
        f'"payload":{{"version":1,"status":{status or facts.status_json()},'
        f'"task":{{"tags":{frame.tags}}}{fields}}}}}'
    )


def _group_event(exchange: str, group_id: str, scheduler_id: str, fields: str) -> str:
    return (
        f'{{"exchange":"{exchange}","key":"primary.{group_id}.{scheduler_id}._","cc":[],'
        f'"payload":{{"version":1,"taskGroupId":"{group_id}","schedulerId":"{scheduler_id}"{fields}}}}}'
    )


def _group_times(expires: datetime, sealed: datetime | None) -> str:
    text = f',"expires":"{to_text(expires)}"'
    return text if sealed is None else f'{text},"sealed":"{to_text(sealed)}"'
