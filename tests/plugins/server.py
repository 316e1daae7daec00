"""A server behind its doors, on a database of the test's own: the fixture `queue`.

    status = await queue.create(priority="high")                  # as root
    await queue.having("queue:status:*")("GetTaskStatus", task_id=status.task_id)
    await queue.pass_time(hours=2)                                # for the database
    await queue.expire_claims()                                   # a loop's round, by hand
    assert (await queue.published()).exchanges == ["task-exception", "task-pending"]

No loop runs by itself. `@pytest.mark.settings(claim_timeout_s=1.0)` changes settings for a test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import pytest

from server.client.credentials import Credentials
from server.config import Settings
from server.loops.base import Loop
from server.services import Services
from server.validation import RequestValidator
from tcqueue.v1.claim_pb2 import Claim, TaskCredentials
from tcqueue.v1.run_pb2 import ReasonResolved
from tcqueue.v1.task_pb2 import TaskDefinition, TaskStatus
from tests.conformance import json_door, recording
from tests.conformance.building import QUEUE, WORKER, definition, new_id
from tests.conformance.door import METHODS, Door, GrpcDoor
from tests.conformance.recording import Published

_INSTANTS = {
    "tasks": ("deadline", "expires"),
    "runs": (
        "deadline",
        "scheduled",
        "started",
        "resolved",
        "taken_until",
        "claimed",
        "offered_until",
        "lease_until",
    ),
    "task_dependencies": ("expires",),
    "task_groups": ("expires", "sealed"),
    "task_graphs": ("expires",),
    "task_queues": ("expires", "last_date_active"),
    "workers": ("expires", "quarantine_until", "first_claim", "last_date_active"),
    "artifacts": ("expires",),
    "jobs": ("created", "expires"),
    "objects": ("expires", "upload_expires"),
}


class Caller:
    """Calls methods through a door with one caller's credentials."""

    def __init__(self, door: Door, credentials: Credentials) -> None:
        self.door = door
        self.credentials = credentials

    async def __call__(self, method: str, /, **fields: Any) -> Any:
        """The response to a request with these fields. Raises Refused."""
        return await self.send(method, METHODS[method].request_class(**fields))

    async def send(self, method: str, request: Any) -> Any:
        """The response to a request."""
        return await self.door.call(method, request, self.credentials)


class Queue(Caller):
    """The server as root sees it, and what happens inside."""

    def __init__(self, door: Door, services: Services, background: Sequence[Loop]) -> None:
        super().__init__(door, Credentials("root", services.settings.root_access_token))
        self.services = services
        self.settings = services.settings
        self._loops = {loop.name: loop for loop in background}
        self._read_up_to = 0

    # -- others who call

    def having(self, *scopes: str) -> Caller:
        """A caller who holds these scopes and no others."""
        root = self.credentials
        return Caller(
            self.door, Credentials(root.client_id, root.access_token, authorized_scopes=list(scopes))
        )

    @property
    def anonymous(self) -> Caller:
        """A caller without credentials."""
        return Caller(self.door, Credentials())

    def worker(self, credentials: TaskCredentials) -> Caller:
        """A worker with the credentials of a claim."""
        return Caller(
            self.door, Credentials(credentials.client_id, credentials.access_token, credentials.certificate)
        )

    # -- a task's life

    async def create(self, task_id: str = "", **fields: Any) -> TaskStatus:
        """Creates a task with these fields of its definition; returns its status."""
        request = {"task_id": task_id or new_id(), "task": definition(**fields)}
        status: TaskStatus = (await self("CreateTask", **request)).status
        return status

    async def status(self, task_id: str) -> TaskStatus:
        """A task's status now."""
        status: TaskStatus = (await self("GetTaskStatus", task_id=task_id)).status
        return status

    async def task(self, task_id: str) -> TaskDefinition:
        """A task's definition now."""
        task: TaskDefinition = (await self("GetTask", task_id=task_id)).task
        return task

    async def claim(self, count: int = 1, *, queue_id: str = QUEUE, worker: str = WORKER) -> list[Claim]:
        """Claims up to so many runs; waits as long as a poll lasts when there is none."""
        group, _, worker_id = worker.partition("/")
        response = await self(
            "ClaimTasks", task_queue_id=queue_id, worker_group=group, worker_id=worker_id, tasks=count
        )
        return list(response.tasks)

    async def running(self, task_id: str = "", **fields: Any) -> Claim:
        """A new task, claimed; nothing else may be pending in its queue."""
        status = await self.create(task_id, **fields)
        (claim,) = await self.claim(queue_id=status.task_queue_id)
        assert claim.status.task_id == status.task_id
        return claim

    async def resolve(self, task_id: str, outcome: str, run_id: int = 0) -> TaskStatus:
        """Reports a run as completed, failed, or an exception with this reason."""
        method, fields = {"completed": ("ReportCompleted", {}), "failed": ("ReportFailed", {})}.get(
            outcome, ("ReportException", {"reason": _reason(outcome)})
        )
        status: TaskStatus = (await self(method, task_id=task_id, run_id=run_id, **fields)).status
        return status

    async def resolved(self, outcome: str = "completed", **fields: Any) -> TaskStatus:
        """A new task that has been claimed and resolved, or canceled."""
        if outcome == "canceled":
            status = await self.create(**fields)
            canceled: TaskStatus = (await self("CancelTask", task_id=status.task_id)).status
            return canceled
        claim = await self.running(**fields)
        return await self.resolve(claim.status.task_id, outcome)

    async def pending_count(self, queue_id: str = QUEUE) -> int:
        """How many runs wait in a queue."""
        return int((await self("GetPendingTasksCount", task_queue_id=queue_id)).pending_tasks)

    # -- inside

    async def published(self) -> Published:
        """The events published since this was asked last, each as the reference would send it."""
        rows = await self.sql(
            "select id, time, events from outbox where id > $1 order by id", self._read_up_to
        )
        if rows:
            self._read_up_to = max(row[0] for row in rows)
        events = recording.recorded((row[0], row[1], row[2]) for row in rows)
        for event in events[:500]:
            recording.check(event)
        return events

    async def pass_time(self, **how_long: float) -> None:
        """Lets time pass for everything stored, as if the database's clock had gone forward."""
        seconds = timedelta(**how_long).total_seconds()
        for table, columns in _INSTANTS.items():
            changes = ", ".join(f"{c} = {c} - make_interval(secs => $1::double precision)" for c in columns)
            await self.sql(f"update {table} set {changes}", seconds)

    async def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Asks the database itself."""
        return await self.services.db.fetch(statement, parameters)

    async def round(self, name: str) -> int:
        """Rounds of a loop until it finds nothing more; returns how much it handled."""
        handled = 0
        while count := await self._loops[name].run_once():
            handled += count
        return handled

    async def expire_claims(self) -> int:
        """Handles the claims that have run out."""
        return await self._loops["claim-expiry"].run_once()

    async def enforce_deadlines(self) -> int:
        """Handles the deadlines that have passed."""
        return await self._loops["deadlines"].run_once()

    async def expire(self) -> None:
        """Deletes what has expired, of every kind."""
        for name in self._loops:
            if name.startswith("expire-"):
                await self.round(name)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "settings(**changes): the server's settings for this test")
    config.addinivalue_line("markers", "doors(*kinds): the only doors this test is for, such as grpc")
    config.addinivalue_line("markers", "slow: takes longer than a few seconds by its nature")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _wanted(item)]


def _wanted(item: pytest.Item) -> bool:
    """Whether a test is for the door that this variant of it goes through."""
    marker = item.get_closest_marker("doors")
    callspec = getattr(item, "callspec", None)
    if marker is None or callspec is None or "door_kind" not in callspec.params:
        return True
    return callspec.params["door_kind"] in marker.args


@cache
def _validator() -> RequestValidator:
    """Compiling the rules takes longer than most tests."""
    return RequestValidator(list(METHODS.values()))


@pytest.fixture
def server_settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """Short polls, and what the test's markers ask for."""
    changes: dict[str, Any] = {
        "claim_poll_s": 0.3,
        "default_anonymous_role": False,
        "grpc_listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "shutdown_grace_s": 0.0,
    }
    for marker in reversed(list(request.node.iter_markers("settings"))):
        changes.update(marker.kwargs)
    return dataclasses.replace(settings, **changes)


@asynccontextmanager
async def _grpc(services: Services) -> AsyncIterator[Door]:
    from server import app

    opened = app.GrpcDoor(services.settings, app.open_pipelines(services), reuse_port=False)
    door = GrpcDoor(await opened.open())
    try:
        yield door
    finally:
        await door.close()
        await app.close_doors(services, opened)


@asynccontextmanager
async def _http(services: Services) -> AsyncIterator[Door]:
    from gateway.app import HttpDoor
    from server import app

    opened = HttpDoor(services, app.open_pipelines(services), reuse_port=False)
    async with _grpc(services) as beside:
        door = json_door.HttpDoor(await opened.open(), beside)
        try:
            yield door
        finally:
            await door.close()
            await opened.close()


#: How to open each door, and to end it; the whole suite runs through every one.
DOORS: dict[str, Callable[[Services], AbstractAsyncContextManager[Door]]] = {"grpc": _grpc, "http": _http}


@pytest.fixture(params=DOORS)
def door_kind(request: pytest.FixtureRequest) -> str:
    """The door that the test goes through."""
    return str(request.param)


@pytest.fixture
async def queue(
    server_settings: Settings, door_kind: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Queue]:
    """A server with a door open, and nothing in its database. What it published is checked at the end."""
    from server import app, pipeline

    monkeypatch.setattr(pipeline, "RequestValidator", lambda methods: _validator())
    process = await app.start(server_settings)
    try:
        async with DOORS[door_kind](process.services) as door:
            # Without an HTTP door there is nothing behind URLs, and yet they are given out.
            process.services.root_url.listening("http://localhost:1")
            server = Queue(door, process.services, app.loops(process.services))
            yield server
            await server.published()
    finally:
        await process.close()


def _reason(word: str) -> ReasonResolved.ValueType:
    return ReasonResolved.Value(f"REASON_RESOLVED_{word.upper().replace('-', '_')}")
