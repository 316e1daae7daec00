"""Fixtures of the stream tests: `cluster` starts servers, `server` is one with usual settings, `root` a
client of it who may do everything, `proxy` stands between a worker and a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.streams.harness import Client, Cluster, Instance
from tests.streams.proxy import Proxy


@pytest.fixture
async def cluster(dsn: str) -> AsyncIterator[Cluster]:
    """Any number of servers on a database of this test's own."""
    async with AsyncExitStack() as stack:
        yield Cluster(dsn, stack)


@pytest.fixture
async def server(cluster: Cluster) -> Instance:
    """A server."""
    return await cluster.start()


@pytest.fixture
async def root(cluster: Cluster, server: Instance) -> Client:
    """A client of it who may do everything."""
    return await cluster.client(server.address)


@pytest.fixture
async def proxy(server: Instance) -> AsyncIterator[Proxy]:
    """A way to the server that can be frozen and cut."""
    async with Proxy(server.address).open() as opened:
        yield opened
