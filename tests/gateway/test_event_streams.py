"""Events over HTTP as browsers take them: server-sent events, from where the last connection ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from server.client.credentials import Credentials
from tests.auth_api.test_signatures import bewit
from tests.conformance.json_door import HttpDoor
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("http")

EVENTS = "/api/queue/v1/events"
PATIENCE_S = 20.0


@dataclass
class Sent:
    """One server-sent event."""

    type: str
    id: str
    data: Any


class Stream:
    """What an EventSource makes of a stream: events, and the id to come back with."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.last_id = ""
        self._lines = answer.aiter_lines()

    async def next(self) -> Sent:
        """The next event; what has no data is none."""
        kind, data = "message", []
        async with asyncio.timeout(PATIENCE_S):
            async for line in self._lines:
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if name == "id":
                    self.last_id = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    data.append(value)
                elif not line:
                    if data:
                        return Sent(kind, self.last_id, json.loads("\n".join(data)))
                    kind = "message"
        raise AssertionError("the stream has ended")

    async def established(self) -> None:
        """Returns once the watch is: it has given an id."""
        async with asyncio.timeout(PATIENCE_S):
            async for line in self._lines:
                if line.startswith("id:"):
                    self.last_id = line.removeprefix("id:").strip()
                    return


def _path(queue: Queue, query: str = "", scopes: list[str] | None = None) -> str:
    assert isinstance(queue.door, HttpDoor)
    root = queue.credentials
    who = Credentials(root.client_id, root.access_token, authorized_scopes=scopes)
    return bewit(queue.door, f"{EVENTS}?{query}" if query else EVENTS, who)


@asynccontextmanager
async def streaming(queue: Queue, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    """An open stream."""
    assert isinstance(queue.door, HttpDoor)
    async with httpx.AsyncClient(base_url=queue.door.base, timeout=PATIENCE_S) as client:
        async with client.stream("GET", _path(queue, query), headers=headers) as answer:
            assert answer.status_code == 200
            stream = Stream(answer)
            await stream.established()
            yield stream


async def test_events_come(queue: Queue) -> None:
    """With their types, ids and whole messages; the answer is nothing that anybody keeps or gathers."""
    async with streaming(queue) as stream:
        headers = stream.answer.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store no-cache must-revalidate"
        assert headers["access-control-allow-origin"] == "*"
        assert "x-for-trace-id" in headers and "x-for-request-id" in headers
        task_id = (await queue.create(routes=["a.b"])).task_id
        got = [await stream.next(), await stream.next()]
        assert [event.type for event in got] == ["task-defined", "task-pending"]
        published = await queue.published()
        for event, known in zip(got, published, strict=True):
            assert event.data["routingKey"] == known.key
            assert event.data["cc"] == ["route.a.b"]
            assert event.data["payload"] == known.payload
            assert event.data["payload"]["status"]["taskId"] == task_id
        assert got[1].id


async def test_coming_back(queue: Queue) -> None:
    """With the last id, in the header as browsers send it or in the query: nothing is missed or repeated."""
    async with streaming(queue, "exchanges=task-pending") as stream:
        first = (await queue.create()).task_id
        event = await stream.next()
        assert event.data["payload"]["status"]["taskId"] == first
    second = (await queue.create()).task_id
    # The header is the newer one: the query is that of the first connection.
    for query, headers in (
        ("exchanges=task-pending", {"last-event-id": event.id}),
        (f"exchanges=task-pending&cursor={event.id}", {}),
        ("exchanges=task-pending&cursor=old", {"last-event-id": event.id}),
    ):
        async with streaming(queue, query, **headers) as stream:
            assert (await stream.next()).data["payload"]["status"]["taskId"] == second


async def test_filters(queue: Queue) -> None:
    """Lists by repeating their key, patterns as AMQP has them, everything from the start."""
    task_id = (await queue.create()).task_id
    await queue.create()
    await queue.claim(2)
    await queue.resolve(task_id, "completed")
    query = f"exchanges=task-running&exchanges=task-completed&taskId={task_id}&fromStart=true"
    async with streaming(queue, query) as stream:
        assert [(await stream.next()).type for _ in range(2)] == ["task-running", "task-completed"]
    query = f"routingKeys=primary.{task_id}.0.%23&fromStart=true"
    async with streaming(queue, query) as stream:
        types = [(await stream.next()).type for _ in range(3)]
        assert types == ["task-pending", "task-running", "task-completed"]


async def test_refusals(queue: Queue) -> None:
    """As of any call: JSON, with a status."""
    assert isinstance(queue.door, HttpDoor)
    async with httpx.AsyncClient(base_url=queue.door.base) as client:
        for path, status, code in (
            (EVENTS, 403, "InsufficientScopes"),
            (_path(queue, scopes=["queue:watch-event"]), 403, "InsufficientScopes"),
            (_path(queue, "exchanges=unknown"), 400, "InputError"),
            (_path(queue, "cursor=nonsense"), 400, "InputError"),
            (_path(queue, "taskId=nonsense"), 400, "InvalidRequestArguments"),
            (_path(queue, "strange=1"), 400, "InvalidRequestArguments"),
            (_path(queue, "fromStart=maybe"), 400, "InvalidRequestArguments"),
        ):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (status, code), path
        head = await client.head(_path(queue))
        assert (head.status_code, head.content) == (200, b"")


async def test_hanging_up(queue: Queue) -> None:
    """Ends the watch at once."""
    async with streaming(queue):
        assert queue.services.events.watchers == 1
    async with asyncio.timeout(PATIENCE_S):
        while queue.services.events.watchers:
            await asyncio.sleep(0.01)


async def test_the_server_goes(queue: Queue) -> None:
    """It says so, and ends the stream; browsers come back by themselves."""
    async with streaming(queue) as stream:
        await queue.services.events.stop()
        event = await stream.next()
        assert (event.type, event.data["code"]) == ("error", "Unavailable")
