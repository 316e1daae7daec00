"""A whole process without its doors, on a database of the test's own, and a way to call its methods.

Fixtures: `settings` (override it to change one), `services`, `api`. An Api goes a call's way as the
pipeline does, with the caller's scopes given instead of proven:

    response = await api("GetTask", task_id=task_id)
    response = await api.having("queue:get-task:*")("GetTask", task_id=task_id)
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from server.call import Call
from server.config import Settings
from server.domain import slugid
from server.domain.scopes import ScopeSet
from server.handlers import registry
from server.identity.model import Identity
from server.identity.secrets import new_key
from server.methods import Method, read_service
from server.services import Services
from server.validation import RequestValidator
from server.views import stamp
from tcqueue.v1 import queue_service_pb2
from tcqueue.v1.task_pb2 import TaskDefinition, TaskMetadata


class _Rules(NamedTuple):
    methods: Mapping[str, Method]
    validator: RequestValidator
    handlers: Mapping[str, Any]


@cache
def _rules() -> _Rules:
    """Read once, and only by sessions with a test that calls something."""
    service = queue_service_pb2.DESCRIPTOR.services_by_name["Queue"]
    methods = read_service(service)
    handlers = registry.find(service.full_name, methods.values())
    return _Rules(methods, RequestValidator(list(methods.values())), handlers)


class Api:
    """Calls methods as one caller."""

    def __init__(self, services: Services, *scopes: str, client_id: str = "test/client") -> None:
        self.services = services
        self.identity = Identity(client_id, ScopeSet(scopes), math.inf, "bearer")

    def having(self, *scopes: str) -> Api:
        """Another caller, who holds these scopes and no others."""
        return Api(self.services, *scopes, client_id=self.identity.client_id)

    def call(self, name: str) -> Call:
        """A call of a method, for a handler to be given directly."""
        return Call(_rules().methods[name], self.identity, self.services)

    async def __call__(self, name: str, /, **fields: Any) -> Any:
        """The response to a unary method's request with these fields. Raises what the caller would get."""
        rules = _rules()
        method = rules.methods[name]
        request = method.request_class(**fields)
        call = self.call(name)
        if method.early:
            call.authorize(method.read_parameters(request))
        rules.validator.check(method, request)
        response = await rules.handlers[name](call, request)
        assert call.authorized, f"{name} answered without having authorised its caller"
        return response

    async def create(self, queue_id: str = "prov/work", **fields: Any) -> str:
        """Creates a task with these fields of its definition; returns its id."""
        task_id = fields.pop("task_id", None) or slugid.nice()
        now = fields.pop("now", None) or self.services.clock.now()
        await self("CreateTask", task_id=task_id, task=definition(now, task_queue_id=queue_id, **fields))
        return str(task_id)

    async def claim(self, queue_id: str = "prov/work", worker: str = "g/w", tasks: int = 1) -> list[Any]:
        """Claims what is pending; the queue must not be empty, or this waits."""
        group, _, worker_id = worker.partition("/")
        response = await self(
            "ClaimTasks", task_queue_id=queue_id, worker_group=group, worker_id=worker_id, tasks=tasks
        )
        return list(response.tasks)


def definition(now: datetime, **fields: Any) -> TaskDefinition:
    """A definition with all that is required, created now, due in an hour."""
    required: dict[str, Any] = {
        "created": stamp(now),
        "deadline": stamp(now + timedelta(hours=1)),
        "payload": json.dumps({"command": ["true"]}),
        "metadata": TaskMetadata(
            name="a task", description="for a test", owner="me@example.com", source="https://example.com/"
        ),
    }
    return TaskDefinition(**{**required, **fields})


@pytest.fixture
def settings(dsn: str, tmp_path: Path) -> Settings:
    """Small pools on the test's database; artifacts in a folder of the test's own."""
    return Settings(
        database_url=dsn,
        encryption_key=new_key(),
        artifact_dir=str(tmp_path / "artifacts"),
        root_access_token=slugid.v4() + slugid.v4(),
        hot_pool_size=3,
        cold_pool_size=3,
        claim_poll_s=2.0,
    )


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    """The services of a process."""
    from server import app  # with all its doors: not for sessions that need none of them

    process = await app.start(settings)
    yield process.services
    await process.close()


@pytest.fixture
def api(services: Services) -> Api:
    """A caller who may do everything."""
    return Api(services, "*")
