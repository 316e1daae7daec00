"""The database as the rest of the service sees it: statements, transactions, retries.

Two pools: `hot` for the batched statements of the queue, with a planner that cannot leave the
indexes, and `cold` for everything else. Parameters are native (`$1`), each typed by the statement
(see `parameters`); rows come back as tuples of binary-decoded values, timestamps as UTC datetimes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypeVar

import psycopg
import structlog
from psycopg import errors

from server.errors import Unavailable
from server.store.pool import Pool
from server.store.statements import load
from server.store.wire import ConnectionLost, Row, Statement, Wire

__all__ = ["REFUSALS", "Database", "PoolSettings", "Row", "Statement", "Transaction"]

#: What a statement raises that finds a key taken, or divides by zero to say no.
REFUSALS = (errors.UniqueViolation, errors.DivisionByZero)

T = TypeVar("T")

_log = structlog.get_logger(__name__)
_SQL = load("database")

_BEGIN: Statement = ("BEGIN", ())
_COMMIT: Statement = ("COMMIT", ())

_OLDEST_SERVER = 150000
_ATTEMPTS = 8
_FIRST_PAUSE_S = 0.005
_CONNECT_TIMEOUT_S = 5
# How much longer than the server's own statement timeout we wait before we take it for dead.
_GRACE_S = 3.0

# The queue's tables drain to empty, get analysed empty, and a cached plan then reads the whole table
# for every array element (measured: 310 ms against 0.8). Hot statements find everything by index, so
# nothing is lost by forbidding the rest. Rows are locked in task-id order, so a deadlock is a bug or a
# stranger's doing and had better be found soon.
_HOT = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # Or a nested loop would read a table believed empty once, keep it, and walk it for every element.
    "enable_material": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "deadlock_timeout": "100ms",
}


class DatabaseSettings(Protocol):
    """The part of Settings that Database reads."""

    @property
    def hot_pool_size(self) -> int: ...
    @property
    def cold_pool_size(self) -> int: ...
    @property
    def statement_timeout_s(self) -> float: ...
    @property
    def db_wait_timeout_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """DatabaseSettings for callers without Settings: tests and commands."""

    hot_pool_size: int = 6
    cold_pool_size: int = 8
    statement_timeout_s: float = 30.0
    db_wait_timeout_s: float = 5.0


class WentAway(Unavailable):
    """The connection was lost and nothing has been committed; the same may be tried again at once."""


class Transaction:
    """One database transaction; made by `Database.transaction`.

    BEGIN travels with the first statements, and COMMIT with the last ones if they are sent with
    `commit=True`, so the typical mutation costs two round trips: [BEGIN, S1, S2], [S3, COMMIT].
    Left normally it commits if it has not yet; left by an exception it rolls back.
    """

    __slots__ = ("_begun", "_commit_sent", "_failure", "_pool", "_timeout_s", "_wire")

    def __init__(self, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._begun = False
        self._commit_sent = False
        self._failure: BaseException | None = None
        self._wire: Wire | None = None

    async def run(self, sql: str, parameters: Sequence[Any] = (), *, commit: bool = False) -> list[Row]:
        """One statement, one round trip; errors as for `pipeline`."""
        return (await self.pipeline([(sql, parameters)], commit=commit))[0]

    async def pipeline(self, statements: Sequence[Statement], *, commit: bool = False) -> list[list[Row]]:
        """Several statements in one round trip; the rows of each. With `commit` nothing may follow.

        Raises the psycopg error of the first statement that fails (those behind it are not run) and the
        transaction can then only be left. Raises Unavailable when the database is lost or too slow; if
        COMMIT was on its way, its detail `outcome` is "unknown".
        """
        if self._wire is None or self._failure is not None or self._commit_sent:
            raise RuntimeError("this transaction has ended")
        batch = [*statements]
        if not self._begun:
            batch.insert(0, _BEGIN)
        if commit:
            batch.append(_COMMIT)
            self._commit_sent = True
        first, last = 0 if self._begun else 1, len(batch) - 1
        self._begun = True
        try:
            results = await self._wire.send(batch, self._timeout_s)
        except BaseException as e:
            self._failure = e
            # A server that refused a statement before COMMIT has certainly not committed. One that
            # vanished without a word may have.
            unknown = commit and (e.sent if isinstance(e, ConnectionLost) else self._wire.failed_at >= last)
            _translate(e, self._wire, outcome_unknown=unknown)
        return results[first : first + len(statements)]

    async def commit(self, statements: Sequence[Statement] = ()) -> None:
        """The last statements and COMMIT in one round trip; errors as for `pipeline`."""
        await self.pipeline(statements, commit=True)

    async def __aenter__(self) -> Self:
        self._wire = await self._pool.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._wire is not None
        try:
            if error is None:
                if self._failure is not None:
                    # Somebody swallowed it. COMMIT would answer with a silent rollback.
                    raise RuntimeError("a statement of this transaction failed") from self._failure
                if self._begun and not self._commit_sent:
                    await self.pipeline((), commit=True)
        finally:
            wire, self._wire = self._wire, None
            self._pool.release(wire)  # which rolls back what is open


class Database:
    """Pools of connections to one database. Survives its restarts: calls made meanwhile wait, then
    raise Unavailable; nothing needs to be told when it is back."""

    def __init__(self, dsn: str, settings: DatabaseSettings) -> None:
        self.dsn = dsn
        self._settings = settings
        self._timeout_s = settings.statement_timeout_s + _GRACE_S
        wait = settings.db_wait_timeout_s
        self.hot = Pool("hot", lambda: self.connect(_HOT), size=settings.hot_pool_size, wait_timeout_s=wait)
        self.cold = Pool("cold", lambda: self.connect({}), size=settings.cold_pool_size, wait_timeout_s=wait)

    @property
    def wait_timeout_s(self) -> float:
        """How long a call waits for a connection before it raises Unavailable."""
        return self._settings.db_wait_timeout_s

    @classmethod
    async def open(cls, dsn: str, *, settings: DatabaseSettings) -> Database:
        """Connects once, to find out early whether that works. Raises Unavailable if it does not, and
        RuntimeError if the server is older than PostgreSQL 15."""
        database = cls(dsn, settings)
        try:
            wire = await database.cold.acquire()
            database.cold.release(wire)
            if wire.server_version < _OLDEST_SERVER:
                raise RuntimeError(
                    f"PostgreSQL 15 or newer is needed, this is {wire.server_version // 10000}"
                )
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """Closes all connections, those in use when they are given back; later calls raise Unavailable."""
        await self.hot.close()
        await self.cold.close()

    def transaction(self, *, hot: bool = True) -> Transaction:
        """`async with db.transaction() as tx:` one transaction, tried once."""
        return Transaction(self.hot if hot else self.cold, self._timeout_s)

    async def in_transaction(self, work: Callable[[Transaction], Awaitable[T]], *, hot: bool = True) -> T:
        """`await work(tx)` in a transaction, again if it deadlocked, could not be serialized, or lost its
        connection before COMMIT was sent; so `work` must be ready to run several times.

        Raises what `work` raises, and Unavailable when the database is away, too slow or keeps
        conflicting, or when the outcome of COMMIT is unknown (detail `outcome`).
        """
        started = time.monotonic()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self.transaction(hot=hot) as tx:
                    return await work(tx)
            except (errors.DeadlockDetected, errors.SerializationFailure) as e:
                if attempt == _ATTEMPTS:
                    raise Unavailable("too many others changed the same things; try again soon") from e
                _log.info("transaction runs again", error=e.diag.message_primary, attempt=attempt)
                await asyncio.sleep(random.uniform(0.5, 1.0) * _FIRST_PAUSE_S * 2**attempt)
            except WentAway:
                if attempt == _ATTEMPTS or time.monotonic() - started > self.wait_timeout_s:
                    raise
        raise AssertionError("unreachable")

    async def fetch(
        self, sql: str, parameters: Sequence[Any] = (), *, hot: bool = False, repeat: bool = True
    ) -> list[Row]:
        """One statement in a transaction of its own; its rows.

        Unless `repeat` is false it must be harmless to run twice, since it is run again when the
        connection is lost in the middle. Raises the statement's psycopg error, or Unavailable.
        """
        pool = self.hot if hot else self.cold
        started = time.monotonic()
        for attempt in range(1, _ATTEMPTS + 1):
            wire = await pool.acquire()
            try:
                return (await wire.send(((sql, parameters),), self._timeout_s))[0]
            except BaseException as e:
                try:
                    _translate(e, wire, outcome_unknown=not repeat and getattr(e, "sent", True))
                except WentAway:
                    if attempt == _ATTEMPTS or time.monotonic() - started > self.wait_timeout_s:
                        raise
            finally:
                pool.release(wire)
        raise AssertionError("unreachable")

    async def connect(self, parameters: dict[str, str], *, name: str = "tcqueue") -> Wire:
        """A connection outside the pools with these session parameters, for the hub and for locks."""
        wire = await Wire.connect(
            self.dsn,
            application_name=name,
            client_encoding="UTF8",
            connect_timeout=_CONNECT_TIMEOUT_S,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=int(self._timeout_s * 1000),
        )
        timeout_ms = str(int(self._settings.statement_timeout_s * 1000))
        wanted = {
            "timezone": "UTC",
            "statement_timeout": timeout_ms,
            # A frozen process must not keep rows locked for ever.
            "idle_in_transaction_session_timeout": timeout_ms,
            **parameters,
        }
        try:
            await wire.send([(_SQL["configure"], [list(wanted), list(wanted.values())])], _CONNECT_TIMEOUT_S)
        except BaseException:
            wire.close()
            raise
        return wire


def _translate(error: BaseException, wire: Wire, *, outcome_unknown: bool) -> NoReturn:
    """Raises what callers should see for an error of a round trip."""
    if _is_stale(error):
        wire.close()
    if not isinstance(error, psycopg.Error):
        raise error
    if wire.closed:
        if outcome_unknown:
            raise Unavailable(
                "the database was lost while the change was being stored; it may or may not be there",
                outcome="unknown",
            ) from error
        raise WentAway("the database was lost; nothing was changed") from error
    if isinstance(error, errors.QueryCanceled | errors.LockNotAvailable):
        raise Unavailable("the database took too long; try again soon") from error
    raise error


def _is_stale(error: BaseException) -> bool:
    """Whether another connection would do: this one is bound to a replica, or to an older schema."""
    if isinstance(error, errors.ReadOnlySqlTransaction | errors.InvalidSqlStatementName):
        return True
    # "cached plan must not change result type": prepared before a migration. The code is shared
    # with real mistakes, the routine is not.
    return (
        isinstance(error, errors.FeatureNotSupported)
        and error.diag.source_function == "RevalidateCachedQuery"
    )
