"""Frames: the never-changing part of a task's events, rendered once when the task is created.

A frame is four lines of text, stored with the task: the tail of its routing keys, the JSON list of
its further routing keys, the JSON of its tags, and the JSON of its immutable status fields, left
open so that the changing ones can follow (queue.md 1.4, 5.2, 5.3).
"""

from __future__ import annotations

from typing import NamedTuple

import orjson


class Frame(NamedTuple):
    """The four parts; each is text ready to be pasted."""

    key_tail: str
    cc: str
    tags: str
    status_head: str


def build(
    *,
    task_id: str,
    task_queue_id: str,
    scheduler_id: str,
    project_id: str,
    task_group_id: str,
    deadline: str,
    expires: str,
    routes: list[str],
    tags: dict[str, str],
) -> str:
    """The frame of a new task; dates as the API shows them. No part can hold a line break: ids have
    none, and JSON escapes them."""
    provisioner_id, _, worker_type = task_queue_id.partition("/")
    cc = orjson.dumps([f"route.{route}" for route in routes]).decode() if routes else "[]"
    tags_json = orjson.dumps(tags).decode() if tags else "{}"
    return (
        f"{provisioner_id}.{worker_type}.{scheduler_id}.{task_group_id}._\n{cc}\n{tags_json}\n"
        f'{{"taskId":"{task_id}","provisionerId":"{provisioner_id}","workerType":"{worker_type}",'
        f'"taskQueueId":"{task_queue_id}","schedulerId":"{scheduler_id}","projectId":"{project_id}",'
        f'"taskGroupId":"{task_group_id}","deadline":"{deadline}","expires":"{expires}"'
    )


def split(frame: str) -> Frame:
    """The parts of a stored frame."""
    return Frame(*frame.split("\n", 3))
