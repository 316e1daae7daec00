"""The database for commands that work on it directly: the one of DATABASE_URL, that of a server
running beside them, or the embedded one started for as long as the command takes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from server.cli.base import CommandError
from server.config import Settings, SettingsError
from server.errors import QueueError, Unavailable
from server.identity.changes import Changes
from server.identity.clients import Clients
from server.identity.roles import Roles
from server.identity.secrets import KEY_FILE, SecretBox, SecretError
from server.store import embedded, migrator
from server.store.database import Database
from server.store.hub import NotifyHub

T = TypeVar("T")


@asynccontextmanager
async def database_url(settings: Settings) -> AsyncIterator[str]:
    """A URL that answers while the block runs; CommandError."""
    if settings.database_url:
        yield settings.database_url
        return
    running = embedded.running_dsn(settings.data_dir)
    if running is not None:
        yield running
        return
    server = await asyncio.to_thread(start_embedded, settings)
    try:
        yield server.dsn
    finally:
        await asyncio.to_thread(server.stop)


def start_embedded(settings: Settings) -> embedded.EmbeddedPostgres:
    """The embedded server of `data_dir`, owned by this process; CommandError."""
    try:
        return embedded.start(settings.data_dir)
    except embedded.EmbeddedError as e:
        raise CommandError(str(e), "use another one with DATABASE_URL or --data-dir") from None
    except OSError as e:
        raise CommandError(f"cannot use the folder {settings.data_dir}: {e.strerror}") from None


def with_keys(settings: Settings, dsn: str) -> Settings:
    """Settings that lead other processes to the same database and the same encryption key."""
    if settings.database_url:
        return settings
    SecretBox.from_settings(settings)  # makes the key file at the very first start
    key = (embedded_key_file(settings)).read_text("ascii").strip()
    return dataclasses.replace(settings, database_url=dsn, encryption_key=settings.encryption_key or key)


@asynccontextmanager
async def identity(settings: Settings) -> AsyncIterator[tuple[Clients, Roles]]:
    """Clients and roles as stored; servers that run are told of changes. CommandError for what a person
    can mend: no database, no key, no schema, a refused change."""
    async with database_url(settings) as dsn:
        await require_schema(dsn)
        try:
            box = SecretBox.from_settings(settings)
        except SettingsError as e:
            raise CommandError(str(e)) from None
        db = await Database.open(dsn, settings=settings)
        try:
            hub = NotifyHub(db, f"command-{os.getpid()}")
            await hub.start()
            try:
                changes = Changes(db, hub)
                yield Clients(db, box, changes), Roles(db, changes)
            finally:
                await hub.stop()
        except Unavailable:
            raise
        except (QueueError, SecretError) as e:
            raise CommandError(str(e)) from None
        finally:
            await db.close()


async def require_schema(dsn: str) -> None:
    """Raises CommandError unless the database's schema is this program's."""
    try:
        status = await migrator.status(dsn)
    except migrator.MigrationError as e:
        raise CommandError(str(e)) from None
    if status.pending:
        raise CommandError(
            f"the database lacks {len(status.pending)} migrations, {status.pending[0]} first",
            "run `tcqueue migrate up`",
        )


def unreachable(error: Exception) -> CommandError:
    """The database does not answer."""
    text = str(error)
    prefix = "" if "cannot be reached" in text else "the database cannot be reached: "
    return CommandError(f"{prefix}{text.strip()}", "check DATABASE_URL, or run `tcqueue check`")


def run(work: Awaitable[T]) -> T:
    """Runs a command's asynchronous work; a database that is away ends it with a message."""

    async def main() -> T:
        return await work

    quiet()
    try:
        return asyncio.run(main())
    except Unavailable as e:
        raise unreachable(e) from None
    except migrator.MigrationError as e:
        raise CommandError(str(e)) from None


def quiet() -> None:
    """What fails is said by the command itself, not also by the log."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def embedded_key_file(settings: Settings) -> Path:
    """Where the embedded deployment keeps its encryption key."""
    return Path(settings.data_dir) / KEY_FILE


Work = Callable[[Clients, Roles], Awaitable[T]]


def with_identity(settings: Settings, work: Work[T]) -> T:
    """Runs work on clients and roles."""

    async def main() -> T:
        async with identity(settings) as (clients, roles):
            return await work(clients, roles)

    return run(main())
