"""Graph files: definitions by name, with dependencies by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server.cli.base import CommandError
from server.cli.definitions import definition_of
from server.domain import slugid
from tcqueue.v1.task_pb2 import NewTask

# Names that stand for ids still to be made up: build, unit-tests.
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,60}")


def read_graph(
    document: Any, group_id: str, *, task_queue_id: str | None = None, env: Mapping[str, str] | None = None
) -> tuple[list[NewTask], dict[str, str]]:
    """The tasks of a graph file, and the name behind each of their ids; CommandError.

    `task_queue_id` is for tasks that name no queue, `env` for the payloads of all.
    """
    if not isinstance(document, dict) or not document:
        raise CommandError("a graph file holds a JSON object: definitions by name")
    ids: dict[str, str] = {}
    for name in document:
        if not slugid.is_slugid(name) and not _LABEL.fullmatch(name):
            raise CommandError(f"{name!r} can be no task's name: give letters, digits, _ . and -")
        ids[name] = name if slugid.is_slugid(name) else slugid.nice()
    tasks = []
    for name, fields in document.items():
        try:
            filled = _filled(name, fields, group_id, task_queue_id, env or {})
            waits_for = [ids.get(other, other) for other in filled.get("dependencies", [])]
            definition = definition_of(filled | {"dependencies": waits_for})
        except CommandError as e:
            raise CommandError(f"task {name}: {e.message}") from None
        tasks.append(NewTask(task_id=ids[name], task=definition))
    return tasks, {task_id: name for name, task_id in ids.items()}


def _filled(
    name: str, fields: Any, group_id: str, task_queue_id: str | None, env: Mapping[str, str]
) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise CommandError("a definition is a JSON object")
    filled: dict[str, Any] = {"taskGroupId": group_id, **fields}
    if task_queue_id and not {"taskQueueId", "workerType"} & set(fields):
        filled["taskQueueId"] = task_queue_id
    metadata, payload = fields.get("metadata", {}), fields.get("payload", {})
    if isinstance(metadata, dict):
        filled["metadata"] = {"name": name, **metadata}
    if env and isinstance(payload, dict):
        filled["payload"] = {**payload, "env": {**payload.get("env", {}), **env}}
    if not isinstance(filled.get("dependencies", []), list):
        raise CommandError("dependencies must be a list")
    return filled
