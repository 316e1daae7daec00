"""Today's tasks in the shapes of 2014, and the other way round (queue.md 4)."""

from __future__ import annotations

from server.domain import legacy
from server.views import REASON_WORDS, REASONS_CREATED, RUN_STATES, TASK_STATES
from tcqueue.v1.claim_pb2 import Claim
from tcqueue.v1.legacy_claim_pb2 import LegacyClaim
from tcqueue.v1.legacy_task_pb2 import (
    LegacyRun,
    LegacyRunState,
    LegacyTaskDefinition,
    LegacyTaskMetadata,
    LegacyTaskState,
    LegacyTaskStatus,
)
from tcqueue.v1.run_pb2 import Run
from tcqueue.v1.task_pb2 import TaskDefinition, TaskMetadata, TaskStatus

_MOST_RETRIES = 49
"""Most retries a task has: 50 runs. In 2014 one more could be asked for."""

_RUN_WORDS = {number: word for word, number in RUN_STATES.items()}
_TASK_WORDS = {number: word for word, number in TASK_STATES.items()}
_CREATED_WORDS = {number: word for word, number in REASONS_CREATED.items()}


def definition_of(task: LegacyTaskDefinition) -> TaskDefinition:
    """A definition of 2014 as one of today; what it does not know is left to the defaults."""
    found = TaskDefinition(
        provisioner_id=task.provisioner_id,
        worker_type=task.worker_type,
        routes=task.routes,
        created=task.created,
        deadline=task.deadline,
        scopes=task.scopes,
        payload=task.payload,
        metadata=TaskMetadata(
            name=task.metadata.name,
            description=task.metadata.description,
            owner=task.metadata.owner,
            source=task.metadata.source,
        ),
        tags=task.tags,
    )
    for name in ("scheduler_id", "task_group_id", "extra"):
        if task.HasField(name):
            setattr(found, name, getattr(task, name))
    if task.HasField("retries"):
        found.retries = min(task.retries, _MOST_RETRIES)
    return found


def legacy_definition(task: TaskDefinition) -> LegacyTaskDefinition:
    """A complete definition of today as one of 2014."""
    return LegacyTaskDefinition(
        provisioner_id=task.provisioner_id,
        worker_type=task.worker_type,
        scheduler_id=task.scheduler_id,
        task_group_id=task.task_group_id,
        routes=task.routes,
        retries=task.retries,
        created=task.created,
        deadline=task.deadline,
        scopes=task.scopes,
        payload=task.payload,
        metadata=LegacyTaskMetadata(
            name=task.metadata.name,
            description=task.metadata.description,
            owner=task.metadata.owner,
            source=task.metadata.source,
        ),
        tags=task.tags,
        extra=task.extra,
    )


def legacy_status(status: TaskStatus) -> LegacyTaskStatus:
    """A status of today as one of 2014."""
    return LegacyTaskStatus(
        task_id=status.task_id,
        provisioner_id=status.provisioner_id,
        worker_type=status.worker_type,
        scheduler_id=status.scheduler_id,
        task_group_id=status.task_group_id,
        deadline=status.deadline,
        retries_left=status.retries_left,
        state=LegacyTaskState.Value(_name("TASK", _TASK_WORDS[status.state])),
        runs=[_run(run) for run in status.runs],
    )


def legacy_claim(claim: Claim) -> LegacyClaim:
    """A claim of today as one of 2014, which had neither the task nor credentials."""
    return LegacyClaim(
        status=legacy_status(claim.status),
        run_id=claim.run_id,
        worker_group=claim.worker_group,
        worker_id=claim.worker_id,
        taken_until=claim.taken_until,
    )


def _run(run: Run) -> LegacyRun:
    words = legacy.run(
        _RUN_WORDS[run.state],
        _CREATED_WORDS[run.reason_created],
        REASON_WORDS[run.reason_resolved] if run.HasField("reason_resolved") else None,
    )
    found = LegacyRun(
        run_id=run.run_id,
        state=LegacyRunState.Value(_name("RUN", words.state)),
        reason_created=words.reason_created,
        scheduled=run.scheduled,
    )
    if words.reason_resolved is not None:
        found.reason_resolved = words.reason_resolved
    if words.success is not None:
        found.success = words.success
    if run.HasField("taken_until"):
        found.worker_group, found.worker_id = run.worker_group, run.worker_id
        found.taken_until.CopyFrom(run.taken_until)
    for name in ("started", "resolved"):
        if run.HasField(name):
            getattr(found, name).CopyFrom(getattr(run, name))
    return found


def _name(kind: str, state: str) -> str:
    """The name of an enum's value for a state of 2014."""
    return f"LEGACY_{kind}_STATE_{legacy.state(state) if kind == 'TASK' else state}".upper()
