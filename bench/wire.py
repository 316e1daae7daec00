"""Requests as ready-made bytes: the driver must not cost what the server is measured by."""

from __future__ import annotations

import os
import time
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta

import jwt

from tcqueue.v1.claim_pb2 import ClaimWorkOpen, ClaimWorkRequest, ClaimWorkResponse
from tcqueue.v1.task_pb2 import TaskDefinition

SERVICE = "/tcqueue.v1.Queue"
ROOT_TOKEN = "bench-root-access-token-0123456789-abcdefgh"
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
]


def metadata() -> tuple[tuple[str, str], ...]:
    """Call metadata with root's bearer token, good for an hour."""
    token = jwt.encode({"iss": "root", "exp": int(time.time()) + 3600}, ROOT_TOKEN, algorithm="HS256")
    return (("authorization", f"Bearer {token}"),)


def slugid() -> bytes:
    """A fresh nice slugid as ASCII bytes."""
    raw = bytearray(os.urandom(16))
    raw[0] &= 0x7F
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return urlsafe_b64encode(raw)[:22]


def definition(queue: str, group: bytes | None = None) -> bytes:
    """A serialized definition of realistic size: about 600 bytes with metadata and a payload."""
    task = TaskDefinition(
        task_queue_id=queue,
        scheduler_id="bench",
        payload='{"command":["bash","-c","make -j4 test"],"image":"debian:12","maxRunTime":3600,'
        '"env":{"CI":"true","HEAD":"0123456789abcdef0123456789abcdef01234567"}}',
        extra='{"treeherder":{"symbol":"B","tier":1}}',
        tags={"kind": "build", "os": "linux"},
    )
    if group is not None:
        task.task_group_id = group.decode()
    task.metadata.name = "bench task"
    task.metadata.description = "a task that a benchmark creates, claims and completes"
    task.metadata.owner = "bench@example.com"
    task.metadata.source = "https://example.com/bench"
    now = datetime.now(UTC)
    task.created.FromDatetime(now)
    task.deadline.FromDatetime(now + timedelta(hours=3))
    return task.SerializeToString()


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def create_task(task_id: bytes, task: bytes) -> bytes:
    """A CreateTaskRequest."""
    return b"\n\x16" + task_id + _field(2, task)


def create_tasks(ids: list[bytes], task: bytes) -> bytes:
    """A CreateTasksRequest."""
    return b"".join(_field(1, create_task(task_id, task)) for task_id in ids)


def open_stream(queue: str, worker: str, slots: int) -> bytes:
    """The first message of a stream."""
    opening = ClaimWorkOpen(task_queue_id=queue, worker_group="bench", worker_id=worker, slots=slots)
    return ClaimWorkRequest(open=opening).SerializeToString()


def accept(ids: list[bytes]) -> bytes:
    """Accepts run 0 of each task."""
    return _field(2, b"".join(_field(1, b"\n\x16" + task_id) for task_id in ids))


def resolve(ids: list[bytes]) -> bytes:
    """Resolves run 0 of each task as completed."""
    return _field(4, b"".join(_field(1, b"\n\x16" + task_id + b"\x18\x01") for task_id in ids))


def read(message: bytes) -> tuple[str, list[bytes]]:
    """The kind of a stream message, and the ids of the tasks claimed or resolved."""
    response = ClaimWorkResponse.FromString(message)
    kind = response.WhichOneof("message") or ""
    if kind == "claims":
        return kind, [claim.status.task_id.encode() for claim in response.claims.claims]
    if kind == "resolved":
        refused = [result for result in response.resolved.results if result.HasField("error")]
        if refused:
            raise RuntimeError(f"a resolution was refused: {refused[0].error.message}")
        return kind, [result.task_id.encode() for result in response.resolved.results]
    if kind in ("revoked", "drain"):
        raise RuntimeError(f"unexpected {kind}: {response}")
    return kind, []
