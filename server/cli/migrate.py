"""`tcqueue migrate`: the database's schema."""

from __future__ import annotations

import click

from server.cli.base import CONTEXT, Group, json_option, moment, print_json, print_table
from server.cli.databases import database_url, run
from server.cli.settings import read_settings, settings_options
from server.config import Settings
from server.domain.times import to_text
from server.store import migrator

_WHERE = settings_options(["database_url", "data_dir"])


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue migrate status
  DATABASE_URL=postgresql://tcqueue@db/tcqueue tcqueue migrate up

`tcqueue serve` migrates by itself; this is for deployments that want it as a step of its own.
""",
)
def migrate() -> None:
    """Bring the database's schema up to date."""


@migrate.command(epilog="\b\nExample:\n  tcqueue migrate up --data-dir data")
@_WHERE
@json_option
def up(as_json: bool, **overrides: str | None) -> None:
    """Apply what is missing. Safe to run twice, and from several places at once."""
    settings = read_settings(**overrides)
    applied = run(_up(settings))
    if as_json:
        print_json({"applied": [str(migration) for migration in applied]})
        return
    for migration in applied:
        click.echo(f"applied {migration}")
    if not applied:
        click.echo("nothing to do: the schema is up to date")


async def _up(settings: Settings) -> list[migrator.Migration]:
    async with database_url(settings) as dsn:
        return await migrator.migrate(dsn)


@migrate.command(epilog="\b\nExample:\n  tcqueue migrate status --json | jq .pending")
@_WHERE
@json_option
def status(as_json: bool, **overrides: str | None) -> None:
    """Show what is applied and what is missing; changes nothing."""
    found = run(_status(read_settings(**overrides)))
    if as_json:
        applied = [{"migration": str(row), "applied": to_text(row.applied)} for row in found.applied]
        print_json({"applied": applied, "pending": [str(migration) for migration in found.pending]})
        return
    rows = [(str(row), "applied", moment(row.applied)) for row in found.applied]
    rows += [(str(migration), click.style("pending", fg="yellow"), "") for migration in found.pending]
    print_table(("migration", "state", "when"), rows)


async def _status(settings: Settings) -> migrator.Status:
    async with database_url(settings) as dsn:
        return await migrator.status(dsn)
