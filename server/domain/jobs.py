"""Jobs as the job queue of 2014 defines them: what may be submitted, what an end means (jobqueue.md 2).

A job's id is the UUID of its task in the form with hyphens; the task's id is the slugid of the same UUID.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from server.domain import slugid

SCHEDULER = "jobqueue"
WORKER_GROUP = "jobqueue"
WORKER_ID = "0"

DEFAULT_RUNTIME_S = 7200
"""What a maximum of no seconds stands for, too: nothing could run otherwise."""

_LIMITS = {
    "priority": (0, 99),
    "max_pending_seconds": (86_400, 604_800),
    "max_runtime_seconds": (DEFAULT_RUNTIME_S, 86_400),
}
"""Default and largest value of each number, in the order in which they are looked at."""

_MIN_SERVER = 11
_SHOWN = 200
_MAX_NAME = 255


class UnusableJob(ValueError):
    """What was submitted is no job; the text says why."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job as submitted, and what its members mean. `name` and `requester` are empty for none."""

    text: str
    priority: int
    max_pending_seconds: int
    max_runtime_seconds: int
    results_server: str
    name: str
    requester: str

    @property
    def runtime_s(self) -> int:
        """How long a claim lasts."""
        return self.max_runtime_seconds or DEFAULT_RUNTIME_S


def submitted(text: str) -> Submitted:
    """Reads a job. Raises UnusableJob for the first thing that is wrong."""
    job = _value(text)
    if not job:
        raise UnusableJob("the body must be a JSON object that describes the job")
    if not isinstance(job, dict):
        raise UnusableJob("the body must be a JSON object")
    numbers = {name: _number(job, name) for name in _LIMITS}
    server = job.get("results_server", "")
    if "results_server" in job and not (isinstance(server, str) and len(server) >= _MIN_SERVER):
        raise UnusableJob(f"invalid results_server {_shown(server)}")
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as e:
        # Python's parser takes it; what is to be read by others must be JSON to all of them.
        raise UnusableJob(f"the body must be plain JSON: {e}") from None
    if "\0" in server:
        raise UnusableJob(f"invalid results_server {_shown(server)}")
    tags = job.get("tags")
    tags = tags if isinstance(tags, dict) else {}
    return Submitted(
        text=text,
        **numbers,
        results_server=server,
        name=_label(tags.get("name")),
        requester=_label(tags.get("requester")),
    )


def results(text: str) -> tuple[str, bool]:
    """What is stored of results, and whether they say that the job failed."""
    value = _value(text)
    if not value:
        return "null", False
    return text, any(_failed(part) for part in (value, value.get("result") if _is_object(value) else None))


def job_id_of(task_id: str) -> str:
    """The id of the job that a task is."""
    return str(slugid.to_uuid(task_id))


def task_id_of(job_id: str) -> str | None:
    """The id of the task that a job is; None for a UUID that no task can have."""
    task_id = slugid.from_uuid(UUID(job_id))
    return task_id if slugid.is_slugid(task_id) else None


def state_of(run_state: str) -> str:
    """The job's state, in the word of the API, for the state of its task's last run."""
    return {"pending": "PENDING", "unscheduled": "PENDING", "running": "RUNNING"}.get(run_state, "FINISHED")


def _value(text: str) -> Any:
    """What a text says as JSON; None for what is none."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _number(job: dict[str, Any], name: str) -> int:
    default, most = _LIMITS[name]
    value = job.get(name, default)
    try:
        # `true` is no number, though it is one to Python.
        number = -1 if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number <= most:
        raise UnusableJob(f"invalid value {_shown(value)} for {name}")
    return number


def _shown(value: object) -> str:
    return str(value)[:_SHOWN].encode(errors="replace").decode()


def _label(value: object) -> str:
    """A text fit for a task's metadata, or none."""
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        return ""
    return value.strip()[:_MAX_NAME]


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _failed(value: object) -> bool:
    part = value.get("task_result") if isinstance(value, dict) else None
    status = part.get("exit_status") if isinstance(part, dict) else None
    return isinstance(status, int | float) and not isinstance(status, bool) and status != 0
