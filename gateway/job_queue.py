"""The job queue of 2014 over HTTP: its own paths, its own errors, no authentication, and a connection for
each answer (jobqueue.md 1, 2)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qs

import structlog
from google.protobuf.message import Message

from gateway import bodies
from gateway.protocol import Exchange
from gateway.routes import MalformedPath, Route, RouteTable, decode
from server.codec import jobs
from server.config import Settings
from server.domain.jobs import SCHEDULER, WORKER_GROUP, WORKER_ID
from server.errors import (
    AuthenticationFailed,
    BadRequest,
    InputTooLarge,
    InsufficientScopes,
    QueueError,
    RequestConflict,
    ResourceNotFound,
)
from server.identity.model import Delegate
from server.pipeline import Pipeline
from tcqueue.v1.job_pb2 import CreateJobResponse, GetJobResponse, JobState, ListJobsResponse

SERVICE = "tcqueue.v1.JobQueue"

log = structlog.get_logger(__name__)

_JSON = b"application/json"
_HTML = b"text/html"
_NOT_FOUND = b"Not found"
_STATES = {"PENDING": JobState.JOB_STATE_PENDING, "RUNNING": JobState.JOB_STATE_RUNNING}
_SHAPE = re.compile(r"\w{8}-\w{4}-\w{4}-\w{4}-\w{12}", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

#: Their words are in capitals here.
_LINES = {
    200: b"HTTP/1.1 200 OK\r\n",
    403: b"HTTP/1.1 403 FORBIDDEN\r\n",
    404: b"HTTP/1.1 404 NOT FOUND\r\n",
    405: b"HTTP/1.1 405 METHOD NOT ALLOWED\r\n",
    500: b"HTTP/1.1 500 INTERNAL SERVER ERROR\r\n",
    503: b"HTTP/1.1 503 SERVICE UNAVAILABLE\r\n",
}

Answer = tuple[int, bytes, bytes]
"""Status, content type, body."""

_UNKNOWN: Answer = (404, _HTML, _NOT_FOUND)
_REFUSED: Answer = (403, _HTML, _NOT_FOUND)


def is_job_queue(raw_path: bytes) -> bool:
    """Whether a path is one of this door's."""
    return raw_path.startswith(b"/0.1.0/") or raw_path == b"/0.1.0"


def acting_as(settings: Settings) -> Delegate:
    """Whom callers act as: the client that the settings name, else one of ours that may do just what these
    calls need."""
    if settings.job_queue_client:
        return Delegate(settings.job_queue_client)
    queue_id = settings.job_queue_task_queue_id
    return Delegate(
        "static/tcqueue/jobqueue",
        (
            f"queue:create-task:lowest:{queue_id}",
            "queue:create-task:project:none",
            f"queue:scheduler-id:{SCHEDULER}",
            "queue:get-task:*",
            "queue:status:*",
            f"queue:pending-list:{queue_id}",
            f"queue:claimed-list:{queue_id}",
            f"queue:cancel-task:{SCHEDULER}/*",
            # Jobs stay theirs when the setting changes.
            "queue:claim-task:*",
            f"queue:worker-id:{WORKER_GROUP}/{WORKER_ID}",
            "queue:resolve-task:*",
        ),
    )


class JobQueueDoor:
    """The ASGI application of `/0.1.0`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._routes = RouteTable([pipeline])
        self._credential = acting_as(pipeline.services.settings)

    async def __call__(self, scope: MutableMapping[str, Any], receive: bodies.Receive, send: Any) -> None:
        """Answers one request."""
        exchange: Exchange = scope["exchange"]
        # Clients of that time leave answers unread, and manage because the connection is closed.
        exchange.ends_connection()
        try:
            # Read in any case: a connection that is closed on unread bytes takes the answer with it.
            body = await _read(receive)
        except bodies.ClientGone:
            return
        verb: str = scope["method"]
        # What a page of a browser has others send is not meant for us; no client of this API says so.
        foreign = any(name == b"origin" for name, _ in scope["headers"])
        status, content_type, answer = (
            _REFUSED if foreign else await self._answer(exchange.target, verb, body)
        )
        head = b"content-type: %s\r\ncontent-length: %d\r\n" % (content_type, len(answer))
        await exchange.reply(
            status, head, b"" if verb == "HEAD" else answer, line=_LINES.get(status, _LINES[500])
        )

    async def _answer(self, target: str, verb: str, body: bytes | None) -> Answer:
        path, _, query = target.partition("?")
        # Literal places come first: what is `job/new` is no job of the name `new`.
        places = self._routes.find(path, "")
        if not places:
            return _UNKNOWN
        try:
            ids = [decode(text) for text in places[0].texts]
        except MalformedPath:
            return _UNKNOWN
        if not all(map(_SHAPE.fullmatch, ids)):
            return _UNKNOWN
        route = places[0].routes.get(verb)
        if route is None:
            return _reason(405, "Method not allowed")
        if not all(map(_UUID.fullmatch, ids)):
            return _UNKNOWN
        if body is None:
            return _reason(405, f"the body is larger than {bodies.MAX_BODY_BYTES} bytes")
        request = _request(route, ids, body)
        if "state" in request.DESCRIPTOR.fields_by_name:
            wanted = parse_qs(query, keep_blank_values=True).get("state")
            if wanted is not None:
                if wanted[0] not in _STATES:
                    return _REFUSED
                setattr(request, "state", _STATES[wanted[0]])  # noqa: B010
        try:
            response = await route.pipeline.call(route.method, request, self._credential)
        except QueueError as e:
            return _failed(e)
        return 200, _JSON, await _body(response)


async def _read(receive: bodies.Receive) -> bytes | None:
    """The body; None for one that is too large, which is read to its end. Raises ClientGone."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise bodies.ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size <= bodies.MAX_BODY_BYTES:
            parts.append(part)
        else:
            parts.clear()
        more = message.get("more_body", False)
    return b"".join(parts) if size <= bodies.MAX_BODY_BYTES else None


def _request(route: Route, ids: list[str], body: bytes) -> Message:
    """The message for a route: what the path says, and the body as the text that it is."""
    rule = route.method.http
    assert rule is not None
    request = route.method.request_class()
    for field, value in zip(route.fields, ids, strict=True):
        setattr(request, field, value.lower())
    if rule.body:
        try:
            setattr(request, rule.body, body.decode())
        except UnicodeDecodeError:
            # No JSON either: as good as no body.
            setattr(request, rule.body, "")
    return request


async def _body(response: Message) -> bytes:
    if isinstance(response, CreateJobResponse):
        return jobs.to_bytes({"job_id": response.job_id})
    if isinstance(response, GetJobResponse):
        return jobs.to_bytes(jobs.to_value(response.job))
    if isinstance(response, ListJobsResponse):
        values = []
        for job in response.jobs:
            values.append(jobs.to_value(job))
            if len(values) % 100 == 0:
                # The list has no end; others get their turn.
                await asyncio.sleep(0)
        return jobs.to_bytes(values)
    return b"{}"


def _failed(error: QueueError) -> Answer:
    if isinstance(error, ResourceNotFound):
        return _UNKNOWN
    if isinstance(error, RequestConflict):
        return _REFUSED
    if isinstance(error, AuthenticationFailed | InsufficientScopes):
        # Callers have no say in who they act as: it is the operator who wants to know.
        log.warning("the job queue's client may not do this", code=error.code, error=error.message)
        return _REFUSED
    if isinstance(error, BadRequest | InputTooLarge):
        return _reason(405, error.message)
    return _reason(503 if error.http_status == 503 else 500, error.message)


def _reason(status: int, text: str) -> Answer:
    return status, _JSON, jobs.to_bytes({"reason": text})
