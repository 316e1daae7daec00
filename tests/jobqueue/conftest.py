from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from gateway.app import HttpDoor
from server import app
from server.config import Settings
from tests.conformance.door import GrpcDoor
from tests.jobqueue.old_client import OldClient
from tests.plugins.server import Queue


@dataclass
class Served:
    """A server with both doors open: the port of the old API, and a modern client."""

    port: int
    queue: Queue


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[Served]:
    """Such a server, announcing jobs when it has a broker; no loop runs by itself."""
    process = await app.start(settings)
    try:
        if process.services.announcer is not None:
            await process.services.announcer.start()
        pipelines = app.open_pipelines(process.services)
        http = HttpDoor(process.services, pipelines, reuse_port=False)
        grpc = app.GrpcDoor(settings, pipelines, reuse_port=False)
        door = GrpcDoor(await grpc.open())
        try:
            port = await http.open()
            yield Served(port, Queue(door, process.services, app.loops(process.services)))
        finally:
            await door.close()
            await app.close_doors(process.services, grpc, http)
    finally:
        await process.close()


@pytest.fixture
async def server(server_settings: Settings) -> AsyncIterator[Served]:
    """A server without a broker, unless the test's settings say otherwise."""
    async with served(server_settings) as found:
        yield found


@pytest.fixture
def old(server: Served) -> Iterator[OldClient]:
    """A client of 2014."""
    client = OldClient("localhost", server.port)
    yield client
    client.close()


@pytest.fixture
def modern(server: Served) -> Queue:
    """A client of today, with every scope."""
    return server.queue
