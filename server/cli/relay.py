"""`tcqueue relay`: what goes to the broker and comes from it, in a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import click

from server import app
from server.cli import logs
from server.cli.base import CONTEXT, CommandError
from server.cli.databases import database_url, require_schema, unreachable, with_keys
from server.cli.loops import for_ever
from server.cli.settings import read_settings, settings_options
from server.config import Settings, SettingsError
from server.errors import Unavailable
from server.identity.secrets import SecretError
from server.store import migrator


@click.command(
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  TCQUEUE_AMQP_URL=amqps://queue:secret@broker/taskcluster tcqueue relay
  TCQUEUE_RELAY=false tcqueue serve      # on the others

\b
Several may run, in serve or alone: one leads, and the next takes over within a second.
""",
)
@settings_options(
    [
        "database_url",
        "data_dir",
        "amqp_url",
        "amqp_exchange_prefix",
        "amqp_scheduler_prefix",
        "log_level",
        "log_format",
    ]
)
def relay(**overrides: Any) -> None:
    """Bring events to the broker, and hear of workers that are gone."""
    settings = read_settings(**overrides)
    if not settings.amqp_url:
        raise CommandError("TCQUEUE_AMQP_URL is not set", "say where the broker is, or give --amqp-url")
    try:
        logs.configure(settings, command="relay")
        asyncio.run(_run(settings))
    except (SettingsError, SecretError, migrator.MigrationError) as e:
        raise CommandError(str(e)) from None
    except Unavailable as e:
        raise unreachable(e) from None


async def _run(settings: Settings) -> None:
    async with database_url(settings) as dsn:
        await require_schema(dsn)
        process = await app.start(dataclasses.replace(with_keys(settings, dsn), database_url=dsn))
        try:
            assert process.relay is not None
            consumer = app.removed_workers(process.services)
            await for_ever([process.heartbeat.run, process.relay.run, consumer.run])
        finally:
            await process.close()
