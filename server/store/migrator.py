"""Brings a database's schema to the sum of the files in the `migrations` package.

Rules in migrations/README.md: forward only, numbered without gaps, each file in one transaction
together with its row in `schema_migrations`, checksums compared on every run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import LiteralString

from psycopg import AsyncConnection, AsyncRawCursor, Error
from psycopg.rows import TupleRow

from server.errors import Unavailable
from server.store.statements import load

_FILE_NAME = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")

# Any fixed number does; it only has to differ from other advisory locks in the same database.
_LOCK = 0x7463_6D69_6772

_SQL = load("migrator")


class MigrationError(Exception):
    """The database's schema and the code's migrations cannot be brought together; the message says why."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of the `migrations` package; `checksum` is the SHA-256 of its bytes in hex."""

    version: int
    name: str
    checksum: str
    sql: LiteralString

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


@dataclass(frozen=True, slots=True)
class Applied:
    """One row of `schema_migrations`."""

    version: int
    name: str
    checksum: str
    applied: datetime

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


@dataclass(frozen=True, slots=True)
class Status:
    """What a database has and what it lacks."""

    applied: Sequence[Applied]
    pending: Sequence[Migration]


def available() -> list[Migration]:
    """The code's migrations in order. Raises MigrationError for a gap, a repeat or a stray file name."""
    return read_files(
        {f.name: f.read_bytes() for f in resources.files("migrations").iterdir() if f.name.endswith(".sql")}
    )


def read_files(files: dict[str, bytes]) -> list[Migration]:
    """Migrations from file names and contents; `available` with the files given."""
    found = []
    for name in sorted(files):
        match = _FILE_NAME.match(name)
        if match is None:
            raise MigrationError(f"{name} is not named NNNN_lower_snake_case.sql")
        checksum = hashlib.sha256(files[name]).hexdigest()
        found.append(Migration(int(match[1]), match[2], checksum, files[name].decode("utf-8")))
    for expected, migration in enumerate(found, start=1):
        if migration.version != expected:
            raise MigrationError(
                f"migrations must count up from 0001 without gaps: {migration} is out of line"
            )
    return found


async def migrate(dsn: str, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Applies what is missing and returns it; an empty list means there was nothing to do.

    Safe to run from several processes at once. Raises MigrationError when the database is newer than
    the code, holds a migration with another content, or a migration's SQL fails (nothing of that one
    stays; earlier ones do); Unavailable when it cannot be reached.
    """
    wanted = available() if migrations is None else list(migrations)
    async with await _connect(dsn) as connection:
        await connection.execute(_SQL["lock"], [_LOCK])
        # The lock goes with the connection, so no unlock is needed, whatever happens.
        await connection.execute(_SQL["create_table"])
        missing = _missing(await _read(connection), wanted)
        for migration in missing:
            await _apply(connection, migration)
        return missing


async def status(dsn: str, migrations: Sequence[Migration] | None = None) -> Status:
    """What is applied and what is pending; changes nothing. Raises MigrationError as `migrate` does."""
    wanted = available() if migrations is None else list(migrations)
    async with await _connect(dsn) as connection:
        row = await (await connection.execute(_SQL["table_exists"])).fetchone()
        applied = await _read(connection) if row and row[0] else []
    return Status(applied, _missing(applied, wanted))


def _missing(applied: Sequence[Applied], wanted: Sequence[Migration]) -> list[Migration]:
    known = {m.version: m for m in wanted}
    for row in applied:
        migration = known.get(row.version)
        if migration is None:
            raise MigrationError(
                f"the database is newer than this code: it has {row}, the newest here is "
                f"{wanted[-1] if wanted else 'none'}. Run the newer tcqueue, or restore an older database."
            )
        if migration.name != row.name or migration.checksum != row.checksum:
            raise MigrationError(
                f"migration {row} was applied with another content than {migration} has here. "
                "A landed migration must never change: put the file back and add a new one."
            )
    done = {row.version for row in applied}
    missing = [m for m in wanted if m.version not in done]
    if missing and done and missing[0].version < max(done):
        raise MigrationError(f"the database lacks {missing[0]} although later migrations were applied")
    return missing


async def _apply(connection: AsyncConnection[TupleRow], migration: Migration) -> None:
    try:
        async with connection.transaction():
            # Without parameters psycopg sends the text by the simple protocol, which takes many statements.
            await connection.execute(migration.sql)
            await connection.execute(_SQL["record"], [migration.version, migration.name, migration.checksum])
    except Exception as e:
        raise MigrationError(f"migration {migration} failed and left nothing behind: {e}") from e


async def _read(connection: AsyncConnection[TupleRow]) -> list[Applied]:
    cursor = await connection.execute(_SQL["read"])
    return [Applied(*row) for row in await cursor.fetchall()]


async def _connect(dsn: str) -> AsyncConnection[TupleRow]:
    try:
        return await AsyncConnection.connect(
            dsn,
            autocommit=True,
            cursor_factory=AsyncRawCursor,
            application_name="tcqueue migrate",
            connect_timeout=10,
        )
    except Error as e:
        raise Unavailable(f"the database cannot be reached: {e}") from e
