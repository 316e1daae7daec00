"""Building requests: task definitions, ids in a wanted order, instants."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from server.domain import slugid
from server.views import stamp
from tcqueue.v1.task_pb2 import Priority, TaskDefinition, TaskMetadata

QUEUE = "prov/work"
WORKER = "group/worker"


def now(**offset: float) -> datetime:
    """This moment, or one so far from it: `now(hours=1)`."""
    return datetime.now(UTC) + timedelta(**offset)


def at(**offset: float) -> Timestamp:
    """The same as a timestamp."""
    return stamp(now(**offset))


def new_id() -> str:
    """A task id that nothing has."""
    return slugid.nice()


def new_ids(count: int) -> list[str]:
    """Such ids, in their order."""
    return sorted(slugid.nice() for _ in range(count))


def metadata(**fields: str) -> TaskMetadata:
    """Metadata with all that is required."""
    required = {"name": "a task", "description": "for a test", "owner": "me@example.com"}
    return TaskMetadata(**{**required, "source": "https://example.com/", **fields})


def definition(**fields: Any) -> TaskDefinition:
    """A definition with all that is required, created now, due in an hour. A field given as None is left
    out; `priority` may be given by name."""
    all_fields: dict[str, Any] = {
        "task_queue_id": QUEUE,
        "created": at(),
        "deadline": at(hours=1),
        "payload": json.dumps({"command": ["true"]}),
        "metadata": metadata(),
        **fields,
    }
    if isinstance(all_fields.get("priority"), str):
        all_fields["priority"] = priority(all_fields["priority"])
    return TaskDefinition(**{name: value for name, value in all_fields.items() if value is not None})


def priority(name: str) -> Priority.ValueType:
    """A priority by the API's name for it."""
    return Priority.Value(f"PRIORITY_{name.upper().replace('-', '_')}")


def scopes_to_create(
    *, queue_id: str = QUEUE, priority: str = "lowest", project: str = "none", scheduler: str = "-"
) -> list[str]:
    """What it takes to create a task without scopes and routes of its own."""
    return [
        f"queue:create-task:{priority}:{queue_id}",
        f"queue:create-task:project:{project}",
        f"queue:scheduler-id:{scheduler}",
    ]
