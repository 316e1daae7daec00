"""Events in the shapes of 2014, for the exchanges of that time (queue.md 4.3).

They are made from today's when these are relayed, so that the log has each event once. What 2014 had no word
for is left out: groups, priorities, runs that are lost and tried again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import structlog

from server.domain import legacy
from server.events.rows import Event
from tcqueue.v1 import legacy_queue_service_pb2, options_pb2

log = structlog.get_logger(__name__)

Json = dict[str, Any]

_MARK = "2014:"
"""What the names of these exchanges begin with among ours: they have the same names as today's."""

_STATUS = ("taskId", "provisionerId", "workerType", "schedulerId", "taskGroupId", "deadline", "retriesLeft")
_RUN = ("workerGroup", "workerId", "takenUntil", "scheduled", "started", "resolved")
_ARTIFACT = ("name", "expires", "contentType")
_STORAGE_TYPES = frozenset({"s3", "azure", "reference", "error"})


def exchange_names(prefix: str) -> Mapping[str, str]:
    """The broker's name of every exchange of 2014, by ours; none without a prefix."""
    if not prefix:
        return {}
    service = legacy_queue_service_pb2.DESCRIPTOR.services_by_name["LegacyQueue"]
    rules: options_pb2.ServiceRules = service.GetOptions().Extensions[options_pb2.service]
    return {_MARK + exchange.name: prefix + exchange.name for exchange in rules.exchanges}


def with_legacy(events: Sequence[Event]) -> Iterator[Event]:
    """A transaction's events, each followed by its form of 2014 if it has one.

    An event that is not shaped as this version shapes them has none: it must not hold up the others.
    """
    for event in events:
        yield event
        shape = _SHAPES.get(event.exchange)
        if shape is None:
            continue
        try:
            found = shape(event, orjson.loads(event.payload), events)
        except (LookupError, TypeError) as e:
            log.error("an event has no form of 2014", event_id=event.id, error=f"{type(e).__name__}: {e}")
            continue
        if found is not None:
            name, payload = found
            yield dataclasses.replace(event, exchange=_MARK + name, payload=orjson.dumps(payload).decode())


Shape = Callable[[Event, Json, Sequence[Event]], tuple[str, Json] | None]


def _defined(event: Event, payload: Json, events: Sequence[Event]) -> tuple[str, Json]:
    """A task that is created pending was defined pending, too."""
    for other in events:
        if other.exchange == "task-pending" and other.task_id == event.task_id:
            return "task-defined", _message(orjson.loads(other.payload))
    return "task-defined", _message(payload)


def _pending(_: Event, payload: Json, __: Sequence[Event]) -> tuple[str, Json]:
    return "task-pending", _message(payload, "runId")


def _running(_: Event, payload: Json, __: Sequence[Event]) -> tuple[str, Json]:
    return "task-running", _message(payload, "runId", "workerGroup", "workerId", "takenUntil")


def _artifact(_: Event, payload: Json, __: Sequence[Event]) -> tuple[str, Json]:
    found = _message(payload, "runId", "workerGroup", "workerId")
    artifact = payload["artifact"]
    kind = artifact["storageType"]
    found["artifact"] = {
        "storageType": kind if kind in _STORAGE_TYPES else "reference",
        **{name: artifact[name] for name in _ARTIFACT if name in artifact},
    }
    return "artifact-created", found


def _reported(_: Event, payload: Json, __: Sequence[Event]) -> tuple[str, Json]:
    found = _message(payload, "runId", "workerGroup", "workerId")
    found["success"] = payload["status"]["runs"][payload["runId"]]["state"] == "completed"
    return "task-completed", found


def _ended(_: Event, payload: Json, __: Sequence[Event]) -> tuple[str, Json] | None:
    if payload["runId"] < len(payload["status"]["runs"]) - 1:
        return None
    return "task-failed", _message(payload, "runId", "workerGroup", "workerId")


_SHAPES: Mapping[str, Shape] = {
    "task-defined": _defined,
    "task-pending": _pending,
    "task-running": _running,
    "artifact-created": _artifact,
    "task-completed": _reported,
    "task-failed": _reported,
    "task-exception": _ended,
}


def _message(payload: Json, *members: str) -> Json:
    """The payload with its status of 2014, and those of these members that it has."""
    status = payload["status"]
    return {
        "version": 1,
        "status": {
            **{name: status[name] for name in _STATUS},
            "state": legacy.state(status["state"]),
            "runs": [_run(run) for run in status["runs"]],
        },
        **{name: payload[name] for name in members if name in payload},
    }


def _run(run: Json) -> Json:
    words = legacy.run(run["state"], run["reasonCreated"], run.get("reasonResolved"))
    found = {"runId": run["runId"], "state": words.state, "reasonCreated": words.reason_created}
    if words.reason_resolved is not None:
        found["reasonResolved"] = words.reason_resolved
    if words.success is not None:
        found["success"] = words.success
    return {**found, **{name: run[name] for name in _RUN if name in run}}
