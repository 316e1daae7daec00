"""Task definitions: from what a creator sent to what is stored, and back (queue.md 1.2, 1.3, 2.2)."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from server.domain import frames, json_values, priority, times
from server.errors import InputError, InputValidationError, Violation
from server.transitions.creating import NewTask
from tcqueue.v1.legacy_task_pb2 import LegacyTaskDefinition
from tcqueue.v1.task_pb2 import Priority, Requires, TaskDefinition

#: Priorities by rank: their enum numbers are the ranks.
_RANKED: dict[int, Any] = {int(value): value for value in Priority.values()}

# An enum's names are looked up anew at each use, which is dear here.
_LOWEST = Priority.PRIORITY_LOWEST
_LOWEST_TOO = (Priority.PRIORITY_UNSPECIFIED, Priority.PRIORITY_NORMAL)
_ALL_COMPLETED = Requires.REQUIRES_ALL_COMPLETED
_ALL_RESOLVED = Requires.REQUIRES_ALL_RESOLVED

_DRIFT_MS = 15 * 60 * 1000
_DAY_MS = 86_400_000
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]*")


def milliseconds(stamp: Timestamp) -> int:
    """Milliseconds since the epoch, what lies below them cut off."""
    return stamp.seconds * 1000 + stamp.nanos // 1_000_000


def moment(stamp: Timestamp) -> datetime:
    """A timestamp as an aware UTC instant in whole milliseconds."""
    return times.from_milliseconds(milliseconds(stamp))


def resolve_queue(task: TaskDefinition) -> None:
    """Settles provisioner, worker type and queue id among themselves, in place (queue.md 1.3).

    Raises InputError when they are missing or contradict each other.
    """
    halves = task.HasField("provisioner_id") and task.HasField("worker_type")
    if task.HasField("task_queue_id"):
        if halves and f"{task.provisioner_id}/{task.worker_type}" != task.task_queue_id:
            raise InputError(
                f"taskQueueId {task.task_queue_id} is not provisionerId/workerType "
                f"{task.provisioner_id}/{task.worker_type}"
            )
        task.provisioner_id, _, task.worker_type = task.task_queue_id.partition("/")
    elif halves:
        task.task_queue_id = f"{task.provisioner_id}/{task.worker_type}"
    else:
        raise InputError("either taskQueueId or both provisionerId and workerType must be given")


def broken_rules(task: TaskDefinition | LegacyTaskDefinition) -> list[Violation]:
    """What the schema of a definition refuses (queue.md 1.2) and the rules in the proto cannot tell: JSON
    that is no object, a source that is no link. What is missing altogether is theirs."""
    found = []
    if task.payload and not json_values.is_object(task.payload):
        found.append(Violation("payload", "must be a JSON object"))
    if task.HasField("extra") and not json_values.is_object(task.extra):
        found.append(Violation("extra", "must be a JSON object"))
    if task.metadata.HasField("source") and not _is_link(task.metadata.source):
        found.append(Violation("metadata.source", "must be a URI or a repository address"))
    return found


def check_rules(task: TaskDefinition) -> None:
    """The same for one of many definitions, which are not judged with their request. Raises
    InputValidationError."""
    for violation in broken_rules(task):
        raise _violation(f"task.{violation.field}", violation.description)


def fill_defaults(task_id: str, task: TaskDefinition) -> None:
    """Fills in, in place, every default but `expires`."""
    if not task.HasField("scheduler_id"):
        task.scheduler_id = "-"
    if not task.HasField("project_id"):
        task.project_id = "none"
    if not task.HasField("task_group_id"):
        task.task_group_id = task_id
    if task.priority in _LOWEST_TOO:
        task.priority = _LOWEST
    if not task.requires:
        task.requires = _ALL_COMPLETED
    if not task.HasField("retries"):
        task.retries = 5
    if not task.HasField("extra"):
        task.extra = "{}"


def check_dates(task: TaskDefinition, now: datetime, max_deadline_days: float) -> None:
    """Applies the date rules of queue.md 2.2 in their order, cuts dates to milliseconds and fills in
    `expires`, in place. Raises InputError, or InputValidationError for a date no calendar has."""
    created, deadline = milliseconds(task.created), milliseconds(task.deadline)
    try:
        if task.HasField("expires"):
            expires = milliseconds(task.expires)
            times.from_milliseconds(expires)
        else:
            expires = times.to_milliseconds(times.add_years(times.from_milliseconds(deadline), 1))
        times.from_milliseconds(created)
    except (OverflowError, ValueError, OSError) as e:
        raise _violation("task", "holds a date beyond the calendar") from e
    present = now.timestamp() * 1000
    if created < present - _DRIFT_MS:
        raise InputError("created lies more than 15 minutes in the past")
    if created > present + _DRIFT_MS:
        raise InputError("created lies more than 15 minutes in the future")
    if created > deadline:
        raise InputError("created lies after the deadline")
    if deadline < present:
        raise InputError("the deadline has passed already")
    if deadline > present + max_deadline_days * _DAY_MS + _DRIFT_MS:
        raise InputError(f"the deadline lies more than {max_deadline_days:g} days in the future")
    if expires < deadline:
        raise InputError("expires lies before the deadline")
    _set(task.created, created)
    _set(task.deadline, deadline)
    _set(task.expires, expires)


def _set(stamp: Timestamp, value: int) -> None:
    """What FromMilliseconds does, without looking whether the calendar has it: that has been done."""
    stamp.seconds, rest = divmod(value, 1000)
    stamp.nanos = rest * 1_000_000


def check_scopes(task: TaskDefinition) -> None:
    """Refuses scopes ending in `**` (queue.md 2.2). Raises InputError."""
    for scope in task.scopes:
        if scope.endswith("**"):
            raise InputError("scopes must not end with `**`")


def new_task(task_id: str, task: TaskDefinition) -> NewTask:
    """What creation stores for a complete definition."""
    deadline, expires = moment(task.deadline), moment(task.expires)
    tags = task.tags
    return NewTask(
        task_id=task_id,
        task_queue_id=task.task_queue_id,
        task_group_id=task.task_group_id,
        scheduler_id=task.scheduler_id,
        project_id=task.project_id,
        priority=task.priority,
        deadline=deadline,
        expires=expires,
        retries=task.retries,
        requires="all-resolved" if task.requires == _ALL_RESOLVED else "all-completed",
        definition=task.SerializeToString(deterministic=True),
        frame=frames.build(
            task_id=task_id,
            task_queue_id=task.task_queue_id,
            scheduler_id=task.scheduler_id,
            project_id=task.project_id,
            task_group_id=task.task_group_id,
            deadline=times.to_text(deadline),
            expires=times.to_text(expires),
            routes=task.routes[:],
            tags={key: tags[key] for key in tags},
        ),
        dependencies=task.dependencies[:],
    )


def load(definition: bytes, rank: int) -> TaskDefinition:
    """A stored definition with its current priority."""
    task = TaskDefinition.FromString(definition)
    task.priority = _RANKED[rank]
    return task


def same(one: bytes, other: bytes) -> bool:
    """Whether two stored definitions mean the same: free JSON by value, everything else exactly. Their
    priorities do not matter: the current one is kept beside the definition, and compared there."""
    if one == other:
        return True
    a, b = TaskDefinition.FromString(one), TaskDefinition.FromString(other)
    if not (json_values.same(a.payload, b.payload) and json_values.same(a.extra, b.extra)):
        return False
    b.payload, b.extra, b.priority = a.payload, a.extra, a.priority
    return a == b


def create_priorities(rank: int) -> list[str]:
    """Priorities whose create-task scope suffices for a task of this rank (queue.md 3.4)."""
    return priority.ALLOWED_BY[rank]


def _is_link(source: str) -> bool:
    if _URI.fullmatch(source):
        return True
    try:
        re.compile(source)
    except re.error:
        return False
    return True


def _violation(field: str, description: str) -> InputValidationError:
    return InputValidationError(f"{field} {description}", [Violation(field, description)])
