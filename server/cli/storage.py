"""`tcqueue storage`: the store of artifacts, set up and looked after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from server.blobs.disk import DiskStore
from server.blobs.opening import open_azure, open_store
from server.blobs.s3 import S3Store
from server.cli.base import CONTEXT, DURATION, CommandError, Group, json_option, print_json
from server.cli.databases import database_url, quiet, require_schema
from server.cli.settings import read_settings, settings_options
from server.config import Settings, SettingsError
from server.errors import Unavailable

_WHERE = settings_options(
    [
        *("data_dir", "artifact_store", "artifact_dir"),
        *("s3_endpoint", "s3_region", "s3_public_bucket", "s3_private_bucket"),
    ]
)
_NOBODY = b"signs nothing here"


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue storage setup
  tcqueue storage check
""",
)
def storage() -> None:
    """Set up and check where artifacts lie."""


@storage.command(
    epilog="""
\b
Example:
  TCQUEUE_S3_ACCESS_KEY=... TCQUEUE_S3_SECRET_KEY=... tcqueue storage setup \\
      --s3-endpoint https://s3.eu-north-1.amazonaws.com --s3-region eu-north-1 \\
      --s3-public-bucket ci-public --s3-private-bucket ci-private
"""
)
@_WHERE
def setup(**overrides: Any) -> None:
    """Make buckets with their policies, or the folder.

    In S3: the buckets if they are missing, CORS for browsers, read access for everybody on the public one,
    and an end for uploads in parts that nobody finished. A second run changes nothing.
    """
    settings = read_settings(**overrides)

    async def main() -> None:
        async with _store(settings) as store:
            for line in await store.setup():
                click.echo(line)
        azure = open_azure(settings)
        if azure is not None:
            try:
                for line in await azure.setup():
                    click.echo(line)
            finally:
                await azure.close()

    _run(main())


@storage.command(
    epilog="""
\b
Examples:
  tcqueue storage check
  tcqueue storage check --older-than 7d --delete
"""
)
@settings_options(["database_url"])
@_WHERE
@click.option(
    "--older-than",
    type=DURATION,
    default=86400.0,
    help="Leave alone what was written later: it may be an upload under way. [default: 1d]",
)
@click.option("--delete", is_flag=True, help="Delete what is found.")
@json_option
def check(older_than: float, delete: bool, as_json: bool, **overrides: Any) -> None:
    """Find bytes that no artifact and no object knows.

    There should be none. Ends with 1 if there were and they are still there.
    """
    settings = read_settings(**overrides)
    found = _run(_check(settings, older_than, delete))
    if as_json:
        print_json([{"bucket": bucket, "key": key, "deleted": gone} for bucket, key, gone in found])
    else:
        for bucket, key, gone in found:
            click.echo(f"{'deleted' if gone else 'orphan '}  {bucket}/{key}")
        click.echo(f"{len(found)} without an artifact or object")
    if not all(gone for _, _, gone in found):
        raise SystemExit(1)


async def _check(settings: Settings, older_than: float, delete: bool) -> list[tuple[str, str, bool]]:
    from server.loops.orphans import orphans
    from server.store.database import Database

    before = datetime.now(UTC) - timedelta(seconds=older_than)
    found: list[tuple[str, str, bool]] = []
    async with database_url(settings) as dsn, _store(settings) as store:
        await require_schema(dsn)
        db = await Database.open(dsn, settings=settings)
        try:
            async for orphan in orphans(db, store, before):
                gone = delete and not await store.delete(orphan.bucket, [orphan.key])
                found.append((orphan.bucket, orphan.key, gone))
        finally:
            await db.close()
    return found


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[DiskStore | S3Store]:
    store = open_store(settings, _NOBODY, lambda: "")
    try:
        yield store
    finally:
        await store.close()


def _run(work: Any) -> Any:
    quiet()
    try:
        return asyncio.run(work)
    except SettingsError as e:
        raise CommandError(str(e)) from None
    except Unavailable as e:
        raise CommandError(e.message) from None
