"""A client of 2014: one `http.client` connection, on which it sends whatever comes next."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

NOBODY = "00000000-0000-0000-0000-000000000000"
#: What the tests of that time sent.
EXAMPLE: dict[str, Any] = {
    "version": "0.1.0",
    "task_id": "7f2ac1c9",
    "group_id": "a group",
    "command": ["bash", "-c", "true"],
    "tags": {"name": "an example", "requester": "somebody@example.com"},
    "parameters": {"hardware": "x86", "software": "linux"},
    "priority": 3,
    "max_retries": 5,
    "max_runtime_seconds": 600,
    "max_pending_seconds": 1200,
    "results_server": "http://results.example.com/",
    "data": {"big": 12345678901234567890, "exact": 1.10, "none": None},
    "state": "PENDING",
    "result": {},
}


class Answer(NamedTuple):
    """An answer that has been read."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Its JSON, which it must be."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


class OldClient:
    """Asks under `/0.1.0`."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=30)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    async def __call__(
        self, verb: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to a request; what is no text is sent as JSON."""
        return await asyncio.to_thread(self._ask, verb, path, body, headers or {})

    def send_unread(self, verb: str, path: str, body: object = None) -> int:
        """The status of an answer whose body is left where it is."""
        self._connection.request(verb, f"/0.1.0{path}", _bytes(body))
        return self._connection.getresponse().status

    def _ask(self, verb: str, path: str, body: object, headers: Mapping[str, str]) -> Answer:
        self._connection.request(verb, f"/0.1.0{path}", _bytes(body), dict(headers))
        response = self._connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, response.reason, found, response.read())

    # -- what a job goes through

    async def new(self, body: object = None) -> str:
        """A new job's id."""
        answer = await self("POST", "/job/new", {"version": "0.1.0"} if body is None else body)
        assert answer.status == 200, answer
        return str(answer.json()["job_id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        """A job."""
        answer = await self("GET", f"/job/{job_id}")
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json()
        return found

    async def change(self, job_id: str, what: str, body: object = None) -> int:
        """The status that claim, cancel, complete or finish answers with."""
        answer = await self("POST", f"/job/{job_id}/{what}", body)
        if answer.status == 200:
            assert answer.body == b"{}"
        return answer.status

    async def jobs(self, query: str = "") -> set[str]:
        """The ids of the jobs listed."""
        answer = await self("GET", f"/jobs{query}")
        assert answer.status == 200, answer
        return {job["job_id"] for job in answer.json()}

    async def running(self, body: object = None) -> str:
        """A new job, claimed."""
        job_id = await self.new(body)
        assert await self.change(job_id, "claim") == 200
        return job_id


def _bytes(body: object) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()
