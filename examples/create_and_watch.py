"""Creates two tasks, the second waiting for the first, and follows them until both are resolved.

Reads TCQUEUE_CLIENT_ADDRESS, TCQUEUE_CLIENT_ID and TCQUEUE_CLIENT_ACCESS_TOKEN.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta

import grpc

from server.client.channel import DEFAULT_ADDRESS, open_channel
from server.client.credentials import Credentials
from server.client.errors import failure_of
from server.domain import slugid
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.task_group_pb2 import WatchTaskGroupRequest
from tcqueue.v1.task_pb2 import CreateTasksRequest, NewTask, TaskDefinition, TaskMetadata, TaskState

QUEUE = "demo/linux"


def new_task(group_id: str, name: str, command: str, *dependencies: str) -> NewTask:
    """A task that is due in an hour."""
    task = TaskDefinition(
        task_queue_id=QUEUE,
        task_group_id=group_id,
        dependencies=dependencies,
        payload=json.dumps({"command": command}),
        metadata=TaskMetadata(
            name=name, description=name, owner="you@example.com", source="https://example.com/"
        ),
    )
    now = datetime.now(UTC)
    task.created.FromDatetime(now)
    task.deadline.FromDatetime(now + timedelta(hours=1))
    return NewTask(task_id=slugid.nice(), task=task)


def main() -> None:
    """Exits with 1 when the queue refuses, or when a task does not complete."""
    credentials = Credentials.from_env(os.environ)
    with open_channel(os.environ.get("TCQUEUE_CLIENT_ADDRESS", DEFAULT_ADDRESS)) as channel:
        queue = QueueStub(channel)
        group_id = slugid.nice()
        first = new_task(group_id, "first", "echo one; sleep 1")
        second = new_task(group_id, "second", "echo two", first.task_id)
        names = {task.task_id: task.task.metadata.name for task in (first, second)}
        completed = set()
        try:
            queue.CreateTasks(CreateTasksRequest(tasks=[first, second]), metadata=credentials.metadata())
            watch = WatchTaskGroupRequest(task_group_id=group_id)
            for answer in queue.WatchTaskGroup(watch, metadata=credentials.metadata()):
                for status in answer.statuses:
                    print(f"{names[status.task_id]:<8} {TaskState.Name(status.state)}", flush=True)
                    if status.state == TaskState.TASK_STATE_COMPLETED:
                        completed.add(status.task_id)
        except grpc.RpcError as e:
            sys.exit(failure_of(e).message)
    if completed != set(names):
        sys.exit("not all completed")


if __name__ == "__main__":
    main()
