"""Protobuf views of what is known: statuses, runs, claims, jobs (queue.md 1.4, 1.5, 1.7; jobqueue.md 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from server.codec import pieces
from server.codec.words import words
from server.domain import jobs
from server.identity.certificates import TemporaryCredentials
from server.transitions.facts import RunFacts, TaskFacts
from tcqueue.v1.artifact_pb2 import ArtifactErrorReason, StorageType
from tcqueue.v1.claim_pb2 import TaskCredentials
from tcqueue.v1.job_pb2 import Job, JobState
from tcqueue.v1.run_pb2 import ReasonCreated, ReasonResolved, Run, RunState
from tcqueue.v1.task_pb2 import TaskDefinition, TaskState, TaskStatus

RUN_STATES = words(RunState.DESCRIPTOR)
TASK_STATES = words(TaskState.DESCRIPTOR)
REASONS_CREATED = words(ReasonCreated.DESCRIPTOR)
REASONS_RESOLVED = words(ReasonResolved.DESCRIPTOR)
REASON_WORDS = {number: word for word, number in REASONS_RESOLVED.items()}
STORAGE_TYPES = words(StorageType.DESCRIPTOR)
STORAGE_TYPE_WORDS = {number: word for word, number in STORAGE_TYPES.items()}
ARTIFACT_ERROR_REASONS = words(ArtifactErrorReason.DESCRIPTOR)
JOB_STATES = {name.removeprefix("JOB_STATE_"): number for name, number in JobState.items()}
ARTIFACT_ERROR_WORDS = {number: word for word, number in ARTIFACT_ERROR_REASONS.items()}

# Fields of TaskStatus.
_TASK_ID = pieces.tag(TaskStatus.TASK_ID_FIELD_NUMBER)
_RUN = pieces.tag(TaskStatus.RUNS_FIELD_NUMBER)


@lru_cache(maxsize=4096)
def stamp(moment: datetime) -> Timestamp:
    """An instant as a timestamp in whole milliseconds. It is shared: to be copied, never changed."""
    return Timestamp(seconds=int(moment.timestamp() // 1), nanos=moment.microsecond // 1000 * 1_000_000)


def shown_type(storage_type: str) -> StorageType.ValueType:
    """A stored artifact's type in this API. The type azure is of the API before, and is at a URL somewhere
    else to whoever knows only this one."""
    return STORAGE_TYPES["reference" if storage_type == "azure" else storage_type]  # type: ignore[return-value]


def credentials_view(issued: TemporaryCredentials) -> TaskCredentials:
    """Credentials as replies carry them."""
    return TaskCredentials(
        client_id=issued.client_id, access_token=issued.access_token, certificate=issued.certificate
    )


def run_message(run: RunFacts) -> Run:
    """A run; what a run that was never claimed or resolved lacks is absent."""
    message = Run(
        run_id=run.run_id,
        state=RUN_STATES[run.state],  # type: ignore[arg-type]
        reason_created=REASONS_CREATED[run.reason_created],  # type: ignore[arg-type]
        scheduled=stamp(run.scheduled),
    )
    if run.reason_resolved is not None:
        message.reason_resolved = REASONS_RESOLVED[run.reason_resolved]  # type: ignore[assignment]
    if run.worker_group is not None and run.worker_id is not None and run.taken_until is not None:
        message.worker_group = run.worker_group
        message.worker_id = run.worker_id
        message.taken_until.CopyFrom(stamp(run.taken_until))
    if run.started is not None:
        message.started.CopyFrom(stamp(run.started))
    if run.resolved is not None:
        message.resolved.CopyFrom(stamp(run.resolved))
    return message


def status_message(facts: TaskFacts, definition: TaskDefinition | None = None) -> TaskStatus:
    """A task's status. With its definition at hand no text has to be parsed."""
    if definition is not None:
        head = TaskStatus(
            provisioner_id=definition.provisioner_id,
            worker_type=definition.worker_type,
            task_queue_id=definition.task_queue_id,
            scheduler_id=definition.scheduler_id,
            project_id=definition.project_id,
            task_group_id=definition.task_group_id,
            deadline=definition.deadline,
            expires=definition.expires,
        )
    else:
        fields = orjson.loads(facts.frame.status_head + "}")
        head = TaskStatus(
            provisioner_id=fields["provisionerId"],
            worker_type=fields["workerType"],
            task_queue_id=fields["taskQueueId"],
            scheduler_id=fields["schedulerId"],
            project_id=fields["projectId"],
            task_group_id=fields["taskGroupId"],
            deadline=_parsed(fields["deadline"]),
            expires=_parsed(fields["expires"]),
        )
    head.task_id = facts.task_id
    head.retries_left = facts.retries_left
    head.state = TASK_STATES[facts.state]  # type: ignore[assignment]
    head.priority = facts.priority  # type: ignore[assignment]
    head.runs.extend([run_message(run) for run in facts.runs])
    return head


def job_message(row: Sequence[Any]) -> Job:
    """A job out of a row of the statement `read_job`."""
    task_id, job_object, rank, max_pending, max_runtime, created, state, started, resolved, *rest = row
    group, worker, results = rest
    return Job(
        job_id=jobs.job_id_of(task_id),
        job_object=job_object,
        state=JOB_STATES[jobs.state_of(state or "unscheduled")],
        priority=rank,
        max_pending_seconds=max_pending,
        max_runtime_seconds=max_runtime,
        entered_queue_time=stamp(created),
        started_running_time=None if started is None else stamp(started),
        finished_time=None if resolved is None else stamp(resolved),
        worker_id=None if group is None else worker,
        job_results=results,
        task_id=task_id,
    )


def serialized_status(facts: TaskFacts, definition: TaskDefinition) -> bytes:
    """`status_message`, serialized. The tasks of a graph have all but their ids in common, and what is
    claimed or created together its runs, too: what is in common is put together once."""
    deadline, expires = definition.deadline, definition.expires
    common = _common(
        definition.provisioner_id,
        definition.worker_type,
        definition.task_queue_id,
        definition.scheduler_id,
        definition.project_id,
        definition.task_group_id,
        deadline.seconds,
        deadline.nanos,
        expires.seconds,
        expires.nanos,
        facts.retries_left,
        facts.state,
        facts.priority,
    )
    task_id = facts.task_id.encode()
    parts = [_TASK_ID, pieces.varint(len(task_id)), task_id, common]
    for run in facts.runs:
        message = _serialized_run(
            run.run_id,
            run.state,
            run.reason_created,
            run.reason_resolved,
            run.worker_group,
            run.worker_id,
            run.taken_until,
            run.scheduled,
            run.started,
            run.resolved,
        )
        parts += (_RUN, pieces.varint(len(message)), message)
    return b"".join(parts)


@lru_cache(maxsize=4096)
def _common(
    provisioner_id: str,
    worker_type: str,
    task_queue_id: str,
    scheduler_id: str,
    project_id: str,
    task_group_id: str,
    deadline_s: int,
    deadline_ns: int,
    expires_s: int,
    expires_ns: int,
    retries_left: int,
    state: str,
    priority: int,
) -> bytes:
    """All of a serialized status but its id and its runs."""
    return TaskStatus(
        provisioner_id=provisioner_id,
        worker_type=worker_type,
        task_queue_id=task_queue_id,
        scheduler_id=scheduler_id,
        project_id=project_id,
        task_group_id=task_group_id,
        deadline=Timestamp(seconds=deadline_s, nanos=deadline_ns),
        expires=Timestamp(seconds=expires_s, nanos=expires_ns),
        retries_left=retries_left,
        state=TASK_STATES[state],  # type: ignore[arg-type]
        priority=priority,  # type: ignore[arg-type]
    ).SerializeToString()


@lru_cache(maxsize=4096)
def _serialized_run(*fields: Any) -> bytes:
    """A serialized run, given the fields of its facts."""
    return run_message(RunFacts(*fields)).SerializeToString()


def _parsed(text: str) -> Timestamp:
    return stamp(datetime.fromisoformat(text))
