"""The identity parts of a process on a database of the test's own.

Fixtures: `clients` and `roles` (changes that tell only other processes), `process` (a first start
and everything after it, with a hub).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from server.config import Settings
from server.domain import slugid
from server.errors import AuthenticationFailed
from server.identity import bootstrap, tokens
from server.identity.authenticator import Authenticator
from server.identity.changes import Changes
from server.identity.clients import Clients
from server.identity.model import Identity
from server.identity.roles import Roles
from server.identity.secrets import SecretBox, new_key
from server.store.database import Database
from server.store.hub import NotifyHub

KEY = new_key()
BOX = SecretBox(KEY)
SETTINGS = Settings(database_url="set", encryption_key=KEY, hot_pool_size=1, cold_pool_size=3)
EXPIRES = datetime(2100, 1, 1, tzinfo=UTC)
WHO: dict[str, Any] = {"actor": "tester"}


def client_arguments(**changes: Any) -> dict[str, Any]:
    return {"description": "d", "expires": EXPIRES, "scopes": ["a", "b"], **WHO} | changes


@dataclass(frozen=True)
class Process:
    """The identity parts of one server process."""

    hub: NotifyHub
    authenticator: Authenticator
    clients: Clients
    roles: Roles
    prepared: bootstrap.Prepared

    async def who(self, client_id: str, access_token: str, **how: Any) -> Identity:
        """Authenticate with a token minted for these credentials."""
        return await self.authenticator.authenticate_bearer(tokens.mint(client_id, access_token, **how))

    async def refusal(self, client_id: str, access_token: str, **how: Any) -> str:
        with pytest.raises(AuthenticationFailed) as caught:
            await self.who(client_id, access_token, **how)
        return caught.value.message


@asynccontextmanager
async def running(db: Database, settings: Settings = SETTINGS) -> AsyncIterator[Process]:
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(running_hub(db))
        prepared = await bootstrap.prepare(db, hub, settings, BOX)
        authenticator = Authenticator(db, hub, settings)
        await authenticator.start()
        stack.push_async_callback(authenticator.stop)
        changes = Changes(db, hub)
        yield Process(hub, authenticator, Clients(db, BOX, changes), Roles(db, changes), prepared)


@asynccontextmanager
async def running_hub(db: Database) -> AsyncIterator[NotifyHub]:
    hub = NotifyHub(db, slugid.v4())
    await hub.start()
    try:
        yield hub
    finally:
        await hub.stop()


@pytest.fixture
async def process(db: Database) -> AsyncIterator[Process]:
    async with running(db) as one:
        yield one


@pytest.fixture
def clients(db: Database) -> Clients:
    return Clients(db, BOX, Changes(db, None))


@pytest.fixture
def roles(db: Database) -> Roles:
    return Roles(db, Changes(db, None))
