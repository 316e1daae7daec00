"""PostgreSQL for tests: one server per session, a fresh database per test.

The first test that asks starts an embedded server without fsync, makes a template database from the
migrations, and every test gets its own clone (about 15 ms). Under xdist the controller does this
once for all workers. With TCQUEUE_TEST_DATABASE_URL set that server is used instead; its role must be
allowed to create databases, and everything made there is dropped at the end.

Fixtures: `dsn` (a migrated clone), `blank_dsn` (an empty database), `db` (an opened Database on
`dsn`), `make_dsn` (more clones), `private_postgres` (a server of this test's own, to kill and restart).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from server.store import embedded, migrator
from server.store.database import Database, PoolSettings

_FOLDER_PREFIX = "tcqueue-tests-"
_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30
_YOUNG_S = 60.0


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """Where tests make their databases: an administrator's DSN and the migrated template's name."""

    dsn: str
    template: str

    def database_dsn(self, name: str) -> str:
        return make_conninfo(self.dsn, dbname=name)


class _Session:
    """Starts the server on first use and takes everything down at the end; lives in one process only."""

    def __init__(self) -> None:
        self._folders = ExitStack()
        self._server: embedded.EmbeddedPostgres | None = None
        self._made: PostgresServer | None = None

    def server(self) -> PostgresServer:
        if self._made is None:
            dsn = os.environ.get("TCQUEUE_TEST_DATABASE_URL") or self._start_embedded()
            self._made = PostgresServer(dsn, f"tcqueue_test_{uuid.uuid4().hex[:8]}_template")
            _make_template(self._made)
        return self._made

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
        elif self._made is not None:
            _drop_leftovers(self._made)
        self._folders.close()

    def _start_embedded(self) -> str:
        _sweep()
        self._server = embedded.start(self._folders.enter_context(_folder()), fast=True)
        return self._server.dsn


_session = pytest.StashKey[_Session]()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[_session] = _Session()


def pytest_unconfigure(config: pytest.Config) -> None:
    session = config.stash.get(_session, None)
    if session is not None:
        session.close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist, in the controller, before each worker starts."""
    made = node.config.stash[_session].server()
    node.workerinput["postgres"] = (made.dsn, made.template)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> PostgresServer:
    """The session's server."""
    given = getattr(request.config, "workerinput", None)
    if given is not None:
        return PostgresServer(*given["postgres"])
    return request.config.stash[_session].server()


@pytest.fixture(scope="session")
def _admin(postgres: PostgresServer) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def dsn(postgres: PostgresServer, _admin: psycopg.Connection) -> Iterator[str]:
    """DSN of a fresh, migrated database that only this test uses."""
    with _database(postgres, _admin, postgres.template) as fresh:
        yield fresh


@pytest.fixture
def blank_dsn(postgres: PostgresServer, _admin: psycopg.Connection) -> Iterator[str]:
    """DSN of a fresh database with nothing in it."""
    with _database(postgres, _admin, "template0") as fresh:
        yield fresh


@pytest.fixture
def make_dsn(postgres: PostgresServer, _admin: psycopg.Connection) -> Iterator[Callable[[], str]]:
    """Makes further migrated databases for tests that need several."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(_database(postgres, _admin, postgres.template))


@pytest.fixture
async def db(dsn: str) -> AsyncIterator[Database]:
    """An opened Database on this test's clone, with small pools."""
    database = await Database.open(dsn, settings=PoolSettings(hot_pool_size=2, cold_pool_size=3))
    yield database
    await database.close()


@pytest.fixture(scope="session")
def _blank_cluster() -> Iterator[Path]:
    """A stopped server's folder: copying it is several times quicker than initdb."""
    with _folder() as folder:
        embedded.start(folder, fast=True).stop()
        yield folder


@pytest.fixture
def private_postgres(_blank_cluster: Path) -> Iterator[embedded.EmbeddedPostgres]:
    """A server of this test's own with an empty database; kill it, restart it."""
    with _folder() as folder:
        copy = folder / "copy"
        subprocess.run(["cp", "-a", str(_blank_cluster), str(copy)], check=True)
        server = embedded.start(copy, fast=True)
        yield server
        server.stop()


@contextmanager
def _database(server: PostgresServer, admin: psycopg.Connection, template: str) -> Iterator[str]:
    name = f"{server.template.removesuffix('template')}{uuid.uuid4().hex[:12]}"
    _admin_command(admin, "create database {} template {}", name, template)
    try:
        yield server.database_dsn(name)
    finally:
        _admin_command(admin, "drop database {} with (force)", name)


def _make_template(server: PostgresServer) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        _admin_command(admin, "create database {} template template0", server.template)
        asyncio.run(migrator.migrate(server.database_dsn(server.template)))
        # Nothing may connect to it any more: a single session there makes cloning fail.
        _admin_command(admin, "alter database {} with allow_connections false", server.template)


def _drop_leftovers(server: PostgresServer) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        like = server.template.removesuffix("template") + "%"
        for (name,) in admin.execute(
            "select datname from pg_database where datname like %s", [like]
        ).fetchall():
            _admin_command(admin, "drop database {} with (force)", name)


def _admin_command(admin: psycopg.Connection, text: LiteralString, *names: str) -> None:
    admin.execute(sql.SQL(text).format(*map(sql.Identifier, names)))


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for a server, in memory where there is room: clones are quicker, and steadily so."""
    base = _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM else None
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=base))
    lock = _try_lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.close()


def _sweep() -> None:
    """Ends servers and removes folders of sessions that were killed."""
    for base in (_MEMORY, Path(tempfile.gettempdir())):
        for folder in base.glob(f"{_FOLDER_PREFIX}*"):
            with suppress(OSError, embedded.EmbeddedError):
                if time.time() - folder.stat().st_mtime < _YOUNG_S:
                    continue  # perhaps just made and not locked yet
                lock = _try_lock(folder)
                if lock is not None:
                    for servers in (folder, folder / "copy"):
                        if (servers / "postgres").is_dir():
                            embedded.stop_abandoned(servers)
                    shutil.rmtree(folder, ignore_errors=True)
                    lock.close()


def _try_lock(folder: Path) -> IO[bytes] | None:
    """The session's own lock; None when a live session holds it."""
    lock = (folder / "session.lock").open("a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
