"""A client of 2014: `elder`, and the marker that says which of its calls a test is about.

    answer = await elder.queue("createTask", task_id, payload={...})       # root's credentials
    answer = await elder.having("queue:claim-task").queue("claimTask", ...)
    assert (answer.status, answer.json["status"]["state"]) == (200, "pending")

It is made from a reference, as clients were then, and knows nothing else: routes, verbs, arguments.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest

from server.app import ELDERS, SERVICES
from server.client.credentials import Credentials
from server.references.catalogue import Catalogue
from server.references.legacy import documents
from tests.conformance.json_door import HttpDoor, signature

if TYPE_CHECKING:
    from tests.plugins.server import Queue


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `json` is None for no body."""

    status: int
    json: Any
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Elder:
    """Calls at an address with one caller's credentials; `entries` are those of the references by service,
    then name."""

    base: str
    entries: Mapping[str, Mapping[str, Any]]
    http: httpx.AsyncClient
    credentials: Credentials

    def having(self, *scopes: str) -> Elder:
        """The same for a caller who holds these scopes and no others."""
        root = self.credentials
        narrowed = Credentials(root.client_id, root.access_token, authorized_scopes=list(scopes))
        return Elder(self.base, self.entries, self.http, narrowed)

    @property
    def anonymous(self) -> Elder:
        """The same without credentials."""
        return Elder(self.base, self.entries, self.http, Credentials())

    async def queue(self, name: str, *arguments: Any, payload: object = None) -> Answer:
        """A call of the queue's."""
        return await self.call("queue", name, *arguments, payload=payload)

    async def scheduler(self, name: str, *arguments: Any, payload: object = None) -> Answer:
        """A call of the scheduler's."""
        return await self.call("scheduler", name, *arguments, payload=payload)

    async def call(self, service: str, name: str, *arguments: Any, payload: object = None) -> Answer:
        """A call by its name in the reference, its arguments in the order of the route."""
        entry = self.entries[service][name]
        path = entry["route"]
        for argument, value in zip(entry["args"], arguments, strict=True):
            path = path.replace(f"<{argument}>", quote(str(value), safe=""))
        assert ("input" in entry) == (payload is not None), f"{name} takes {entry.get('input', 'no body')}"
        return await self.send(entry["method"].upper(), path, payload)

    async def send(self, verb: str, path: str, payload: object = None) -> Answer:
        """A request below `/v1`."""
        url = f"{self.base}/v1{path}"
        content = b"" if payload is None else json.dumps(payload).encode()
        headers = {} if payload is None else {"Content-Type": "application/json"}
        if not self.credentials.anonymous:
            headers["Authorization"] = signature(
                self.credentials, verb, url, content, headers.get("Content-Type", "")
            )
        request = self.http.build_request(verb, self.base, content=content, headers=headers)
        request.url = httpx.URL(self.base, raw_path=url.removeprefix(self.base).encode())
        answer = await self.http.send(request)
        return Answer(answer.status_code, answer.json() if answer.content else None, answer.headers)


def entries_by_service() -> dict[str, dict[str, Any]]:
    """The entries of our references in the form of 2014."""
    found: dict[str, dict[str, Any]] = {}
    for service in (*SERVICES, *ELDERS):
        catalogue = Catalogue(service)
        for path, document in documents(catalogue).items():
            if path.endswith("/api.json"):
                entries = {entry["name"]: entry for entry in document["entries"]}
                found.setdefault(catalogue.rules.name, {}).update(entries)
    return found


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "elder(*calls): calls of older interfaces, such as queue.createTask")


@pytest.fixture
async def elder(queue: Queue) -> AsyncIterator[Elder]:
    """A client of 2014 with root's credentials, at the server of `queue`, which must be at its HTTP door."""
    door = queue.door
    assert isinstance(door, HttpDoor), "mark the test with doors('http')"
    async with httpx.AsyncClient(timeout=30) as http:
        yield Elder(door.base, entries_by_service(), http, queue.credentials)
