"""Transactions, retries and pools against a real PostgreSQL: what they cost, and what survives what."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors

from server.errors import Unavailable
from server.store.database import Database, PoolSettings, Transaction
from server.store.embedded import EmbeddedPostgres
from server.store.wire import Row, Statement, Wire

ONE_EACH = PoolSettings(hot_pool_size=1, cold_pool_size=1, db_wait_timeout_s=5.0)
COUNTER = "create table counter (id text primary key, value int not null)"
INCREASE = "update counter set value = value + 1 where id = $1 returning value"


@pytest.fixture
async def single(dsn: str) -> AsyncIterator[Database]:
    """A Database with one connection a pool, so that tests meet the same one again."""
    database = await Database.open(dsn, settings=ONE_EACH)
    yield database
    await database.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every round trip of the test, as its statements."""
    trips: list[list[str]] = []
    send = Wire.send

    def note(self: Wire, statements: Sequence[Statement], timeout: float) -> asyncio.Future[list[list[Row]]]:
        trips.append([sql for sql, _ in statements])
        return send(self, statements, timeout)

    monkeypatch.setattr(Wire, "send", note)
    return trips


# Values


@given(
    st.lists(st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
    st.lists(st.none() | st.binary()),
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_arrays_come_back_as_they_went(
    postgres_runner: tuple[asyncio.Runner, Database],
    texts: list[str | None],
    blobs: list[bytes | None],
    numbers: list[int | None],
) -> None:
    runner, database = postgres_runner
    rows = runner.run(database.fetch("select $1::text[], $2::bytea[], $3::bigint[]", (texts, blobs, numbers)))
    assert rows == [(texts, blobs, numbers)]


@pytest.fixture
def postgres_runner(dsn: str) -> Any:
    """A loop and a Database that outlive Hypothesis's many calls of one test."""
    with asyncio.Runner() as runner:
        database = runner.run(Database.open(dsn, settings=ONE_EACH))
        yield runner, database
        runner.run(database.close())


async def test_scalars_come_back_typed_and_in_utc(db: Database) -> None:
    east = datetime(2024, 5, 6, 7, 8, 9, 123000, timezone(timedelta(hours=2)))
    sql = "select $1::timestamptz, $2::int, $3::float8, $4::bool, $5::text, $6::bytea, $7::jsonb, $8::text"
    rows = await db.fetch(sql, (east, 5, 0.1, True, "x", b"\0\1", '{"a": [1, null]}', None))
    assert rows == [(east, 5, 0.1, True, "x", b"\0\1", {"a": [1, None]}, None)]
    assert rows[0][0].utcoffset() == timedelta(0)


async def test_more_data_than_socket_buffers_hold_passes_in_both_directions(db: Database) -> None:
    big = ["x" * 1_000_000] * 8
    async with db.transaction() as tx:
        results = await tx.pipeline([("select $1::text[]", (big,))] * 3)
    assert results == [[(big,)]] * 3


async def test_a_value_python_cannot_hold_is_an_error_that_the_connection_survives(single: Database) -> None:
    with pytest.raises(psycopg.DataError):
        await single.fetch("select 'infinity'::timestamptz")
    assert await single.fetch("select 1") == [(1,)]


async def test_parameters_that_cannot_be_encoded_send_nothing(single: Database, sent: list[Any]) -> None:
    with pytest.raises(psycopg.DataError):
        await single.fetch("select $1::text", ("a\0b",))
    with pytest.raises(TypeError):
        await single.fetch("select $1::text", ({"a": 1},))
    assert await single.fetch("select 1") == [(1,)]


# Round trips and settings


async def test_the_typical_mutation_costs_two_round_trips(db: Database, sent: list[list[str]]) -> None:
    await db.fetch(COUNTER, hot=True)
    del sent[:]
    async with db.transaction() as tx:
        assert await tx.pipeline([("select 1", ()), ("select 2 where false", ())]) == [[(1,)], []]
        assert await tx.run("insert into counter values ($1, 1)", ["a"], commit=True) == []
    insert = "insert into counter values ($1, 1)"
    assert sent == [["BEGIN", "select 1", "select 2 where false"], [insert, "COMMIT"]]
    assert await db.fetch("select value from counter") == [(1,)]


async def test_a_transaction_of_one_statement_costs_one(db: Database, sent: list[list[str]]) -> None:
    async with db.transaction() as tx:
        await tx.run("select 1", commit=True)
    assert sent[-1] == ["BEGIN", "select 1", "COMMIT"]


async def test_commit_is_sent_on_leaving_and_nothing_at_all_for_nothing(
    db: Database, sent: list[list[str]]
) -> None:
    async with db.transaction(hot=False) as tx:
        await tx.run("select 1")
    assert sent[-1] == ["COMMIT"]
    before = len(sent)
    async with db.transaction(hot=False):
        pass
    assert len(sent) == before


async def test_each_statement_is_prepared_once_per_connection(single: Database) -> None:
    for n in (1, 70_000, 5_000_000_000):  # widths that psycopg's own dumpers would prepare one by one
        assert await single.fetch("select $1::bigint", (n,)) == [(n,)]
    sql = "select count(*) from pg_prepared_statements where statement = 'select $1::bigint'"
    assert await single.fetch(sql) == [(1,)]


async def test_hot_connections_plan_by_index_only_and_all_are_bounded(db: Database) -> None:
    sql = "select name, setting from pg_settings"
    hot: dict[str, str] = dict(await db.fetch(sql, hot=True))
    cold: dict[str, str] = dict(await db.fetch(sql))
    for name in ("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin"):
        assert (hot[name], cold[name]) == ("off", "on"), name
    assert (hot["plan_cache_mode"], hot["jit"]) == ("force_generic_plan", "off")
    assert hot["deadlock_timeout"] == "100"
    for both in (hot, cold):
        assert both["TimeZone"] == "UTC"
        assert both["statement_timeout"] == both["idle_in_transaction_session_timeout"] == "30000"
        assert both["application_name"] == "tcqueue"


# Errors


async def test_the_first_failure_is_raised_and_the_rest_is_not_run(db: Database) -> None:
    await db.fetch(COUNTER)
    with pytest.raises(errors.DivisionByZero):
        async with db.transaction() as tx:
            await tx.pipeline(
                [
                    ("insert into counter values ('a', 1)", ()),
                    ("select 1 / 0", ()),
                    ("insert into no_such_table values (1)", ()),
                ],
                commit=True,
            )
    assert await db.fetch("select * from counter") == []


async def test_an_exception_rolls_back(single: Database) -> None:
    await single.fetch(COUNTER)
    with pytest.raises(KeyError):
        async with single.transaction() as tx:
            await tx.run("insert into counter values ('a', 1)")
            raise KeyError("mine")
    assert await single.fetch("select * from counter", hot=True) == []


async def test_a_swallowed_failure_cannot_pass_for_a_commit(db: Database) -> None:
    await db.fetch(COUNTER)
    with pytest.raises(RuntimeError, match="a statement of this transaction failed"):
        async with db.transaction() as tx:
            await tx.run("insert into counter values ('a', 1)")
            with pytest.raises(errors.UndefinedTable):
                await tx.run("select * from nowhere")
            with pytest.raises(RuntimeError, match="has ended"):
                await tx.run("select 1")
    assert await db.fetch("select * from counter") == []


async def test_nothing_may_follow_commit(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.run("select 1", commit=True)
        with pytest.raises(RuntimeError, match="has ended"):
            await tx.run("select 2")


async def test_a_deferred_constraint_fails_the_commit(db: Database) -> None:
    await db.fetch("create table d (id int primary key deferrable initially deferred)")
    with pytest.raises(errors.UniqueViolation):
        async with db.transaction() as tx:
            await tx.run("insert into d values (1), (1)", commit=True)
    with pytest.raises(errors.UniqueViolation):
        async with db.transaction() as tx:
            await tx.run("insert into d values (1), (1)")
    assert await db.fetch("select * from d") == []


async def test_deadlocks_are_run_again(db: Database) -> None:
    await db.fetch(COUNTER)
    await db.fetch("insert into counter values ('a', 0), ('b', 0)")
    both_hold_one = asyncio.Barrier(2)
    attempts = 0

    async def crossing(tx: Transaction, first: str, second: str) -> None:
        nonlocal attempts
        attempts += 1
        await tx.run(INCREASE, [first])
        if attempts <= 2:
            await both_hold_one.wait()
        await tx.run(INCREASE, [second], commit=True)

    await asyncio.gather(
        db.in_transaction(lambda tx: crossing(tx, "a", "b")),
        db.in_transaction(lambda tx: crossing(tx, "b", "a")),
    )
    assert attempts == 3
    assert await db.fetch("select value from counter order by id") == [(2,), (2,)]


async def test_what_keeps_conflicting_becomes_unavailable(db: Database, sent: list[list[str]]) -> None:
    conflict = "do $$ begin raise exception 'again' using errcode = '40001'; end $$"
    with pytest.raises(Unavailable, match="too many others"):
        await db.in_transaction(lambda tx: tx.run(conflict, commit=True))
    assert sent.count(["BEGIN", conflict, "COMMIT"]) == 8


async def test_own_exceptions_are_not_run_again(db: Database) -> None:
    calls = 0

    async def fails(tx: Transaction) -> None:
        nonlocal calls
        calls += 1
        raise LookupError("mine")

    with pytest.raises(LookupError):
        await db.in_transaction(fails)
    assert calls == 1


async def test_a_slow_statement_is_ended_by_the_server(dsn: str) -> None:
    database = await Database.open(
        dsn, settings=PoolSettings(hot_pool_size=1, cold_pool_size=1, statement_timeout_s=0.05)
    )
    for hot in (True, False):
        with pytest.raises(Unavailable, match="took too long"):
            await database.fetch("select pg_sleep(10)", hot=hot)
        with pytest.raises(Unavailable, match="took too long"):
            await database.in_transaction(lambda tx: tx.run("select pg_sleep(10)", commit=True), hot=hot)
        assert await database.fetch("select 1", hot=hot) == [(1,)]
    await database.close()


async def test_a_statement_prepared_before_a_migration_is_prepared_anew(single: Database) -> None:
    await single.fetch("create table t (a int)")
    await single.fetch("insert into t values (1)", hot=True)
    assert await single.fetch("select * from t", hot=True) == [(1,)]
    await single.fetch("alter table t add column b int default 2")
    assert await single.fetch("select * from t", hot=True) == [(1, 2)]
    await single.fetch("alter table t add column c int default 3")
    assert await single.in_transaction(lambda tx: tx.run("select * from t", commit=True)) == [(1, 2, 3)]


async def test_a_real_lack_of_support_is_no_reason_to_try_again(db: Database, sent: list[list[str]]) -> None:
    with pytest.raises(errors.FeatureNotSupported):
        await db.fetch("select count(*) from pg_class for update")
    assert sent == [["select count(*) from pg_class for update"]]


async def test_a_replica_is_left_for_another_connection(db: Database, sent: list[list[str]]) -> None:
    await db.fetch(COUNTER)
    del sent[:]
    with pytest.raises(Unavailable, match="nothing was changed"):
        await db.in_transaction(
            lambda tx: tx.pipeline(
                [("set transaction read only", ()), ("insert into counter values ('a', 1)", ())], commit=True
            )
        )
    assert len([trip for trip in sent if "COMMIT" in trip]) == 8


async def test_open_says_early_that_there_is_nothing_to_open() -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        await Database.open("host=/nonexistent dbname=x", settings=PoolSettings(db_wait_timeout_s=0.1))


# Pools and cancellation


async def test_waiting_for_a_connection_ends_in_unavailable(dsn: str) -> None:
    database = await Database.open(
        dsn, settings=PoolSettings(hot_pool_size=1, cold_pool_size=1, db_wait_timeout_s=0.05)
    )
    async with database.transaction():
        with pytest.raises(Unavailable, match="too busy"):
            await database.fetch("select 1", hot=True)
    assert await database.fetch("select 1", hot=True) == [(1,)]
    await database.close()


async def test_many_callers_share_few_connections(db: Database) -> None:
    sql = "select pg_backend_pid()"
    pids = {row[0] for rows in await asyncio.gather(*(db.fetch(sql) for _ in range(100))) for row in rows}
    assert 1 <= len(pids) <= 3


async def test_a_cancelled_call_gives_its_connection_back_in_good_order(single: Database) -> None:
    (before,) = await single.fetch("select pg_backend_pid()", hot=True)
    call = asyncio.ensure_future(single.fetch("select pg_sleep(0.1)", hot=True))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await single.fetch("select pg_backend_pid()", hot=True) == [before]


async def test_a_cancelled_transaction_is_rolled_back(single: Database) -> None:
    await single.fetch(COUNTER)
    inserted = asyncio.Event()

    async def insert() -> None:
        async with single.transaction() as tx:
            await tx.run("insert into counter values ('a', 1)")
            inserted.set()
            await tx.run("select pg_sleep(0.1)")
            raise AssertionError("was to be cancelled")

    call = asyncio.ensure_future(insert())
    await inserted.wait()
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await single.fetch("select * from counter", hot=True) == []


async def test_a_cancelled_wait_loses_no_connection(single: Database) -> None:
    for _ in range(3):
        async with single.transaction():
            waiting = [asyncio.ensure_future(single.fetch("select 1", hot=True)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        waiting[1].cancel()
        assert await waiting[2] == [(1,)]
        await asyncio.gather(*waiting[:2], return_exceptions=True)
    assert await single.fetch("select 1", hot=True) == [(1,)]


async def test_close_turns_waiters_away(dsn: str) -> None:
    database = await Database.open(dsn, settings=ONE_EACH)
    async with database.transaction() as tx:
        waiting = asyncio.ensure_future(database.fetch("select 1", hot=True))
        await asyncio.sleep(0)
        await database.close()
        with pytest.raises(Unavailable, match="shutting down"):
            await waiting
        assert await tx.run("select 1", commit=True) == [(1,)]
    with pytest.raises(Unavailable, match="shutting down"):
        await database.fetch("select 1")


# The server goes away


async def terminate(database: Database, victim: int) -> None:
    await database.fetch("select pg_terminate_backend($1, 5000)", (victim,))


async def test_a_connection_lost_while_idle_is_never_used(single: Database, sent: list[list[str]]) -> None:
    sql = "select pg_backend_pid()"
    ((pid,),) = await single.fetch(sql, hot=True)
    await terminate(single, pid)
    del sent[:]
    ((other,),) = await single.fetch(sql, hot=True)
    assert other != pid
    assert [trip for trip in sent if trip == [sql]] == [[sql]]


async def test_a_loss_before_commit_is_run_again(single: Database) -> None:
    await single.fetch(COUNTER)
    await single.fetch("insert into counter values ('a', 0)")
    attempts = 0

    async def work(tx: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        (_, ((pid,),)) = await tx.pipeline([(INCREASE, ["a"]), ("select pg_backend_pid()", ())])
        if attempts == 1:
            await terminate(single, pid)
        await tx.run(INCREASE, ["a"], commit=True)

    # The end of the connection has been noticed by the time COMMIT would be sent, so it is not.
    await single.in_transaction(work)
    assert attempts == 2
    assert await single.fetch("select value from counter") == [(2,)]


async def test_a_server_that_says_goodbye_before_commit_has_not_committed(single: Database) -> None:
    attempts = 0

    async def work(tx: Transaction) -> list[Row]:
        nonlocal attempts
        attempts += 1
        suicide = "select pg_terminate_backend(pg_backend_pid())" if attempts == 1 else "select 1"
        return await tx.run(suicide, commit=True)

    assert await single.in_transaction(work) == [(1,)]
    assert attempts == 2


async def test_a_fetch_that_loses_its_connection_is_repeated_if_it_may_be(single: Database) -> None:
    async def kill_when_it_runs() -> None:
        sql = (
            "select pid from pg_stat_activity where query like '%pg_sleep(0.4)%' and pid <> pg_backend_pid()"
        )
        while not (rows := await single.fetch(sql)):
            pass
        await terminate(single, rows[0][0])

    sleep = "select 'slept' from pg_sleep(0.4)"
    rows, _ = await asyncio.gather(single.fetch(sleep, hot=True), kill_when_it_runs())
    assert rows == [("slept",)]


async def test_commit_lost_without_a_word_is_reported_as_unknown(private_postgres: EmbeddedPostgres) -> None:
    database = await Database.open(private_postgres.dsn, settings=ONE_EACH)

    async def kill_when_it_runs() -> None:
        sql = "select 1 from pg_stat_activity where query like '%pg_sleep(30)%' and pid <> pg_backend_pid()"
        while not await database.fetch(sql):
            pass
        await asyncio.to_thread(private_postgres.kill)

    commit = database.in_transaction(lambda tx: tx.run("select pg_sleep(30)", commit=True))
    outcome, _ = await asyncio.gather(commit, kill_when_it_runs(), return_exceptions=True)
    assert isinstance(outcome, Unavailable)
    assert outcome.details == {"outcome": "unknown"}
    await database.close()


async def test_a_database_that_is_away_is_unavailable_in_time_and_back_by_itself(
    private_postgres: EmbeddedPostgres,
) -> None:
    options = PoolSettings(hot_pool_size=2, cold_pool_size=2, db_wait_timeout_s=0.2)
    database = await Database.open(private_postgres.dsn, settings=options)
    assert await database.fetch("select 1") == [(1,)]
    await asyncio.to_thread(private_postgres.kill)
    started = time.monotonic()
    calls = [database.fetch("select 1"), database.in_transaction(lambda tx: tx.run("select 1"))]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    assert time.monotonic() - started < 2
    await asyncio.to_thread(private_postgres.restart)
    while True:
        try:
            assert await database.fetch("select 2") == [(2,)]
            break
        except Unavailable:
            assert time.monotonic() - started < 10
    await database.close()


async def test_a_restart_shorter_than_the_wait_goes_unnoticed(private_postgres: EmbeddedPostgres) -> None:
    database = await Database.open(private_postgres.dsn, settings=ONE_EACH)
    for end in (private_postgres.kill, private_postgres.restart):
        assert await database.fetch("select 1", hot=True) == [(1,)]
        await asyncio.to_thread(end)
        restart = asyncio.ensure_future(asyncio.to_thread(private_postgres.restart))
        assert await database.in_transaction(lambda tx: tx.run("select 2", commit=True)) == [(2,)]
        await restart
    await database.close()


async def test_kill_and_restart_under_load_lose_and_double_nothing(
    private_postgres: EmbeddedPostgres,
) -> None:
    database = await Database.open(private_postgres.dsn, settings=PoolSettings(db_wait_timeout_s=10.0))
    await database.fetch(COUNTER)
    workers = [f"w{n}" for n in range(12)]
    await database.fetch("insert into counter select unnest($1::text[]), 0", (workers,))
    done = dict.fromkeys(workers, 0)
    unknown = dict.fromkeys(workers, 0)
    stop = asyncio.Event()

    async def work(name: str) -> None:
        async def once(tx: Transaction) -> None:
            await tx.run("select value from counter where id = $1 for update", [name])
            await tx.run(INCREASE, [name], commit=True)

        while not stop.is_set():
            try:
                await database.in_transaction(once, hot=name < "w5")
                done[name] += 1
            except Unavailable as e:
                assert e.details == {"outcome": "unknown"}, e
                unknown[name] += 1

    async def progress(beyond: dict[str, int]) -> None:
        while not all(done[name] > beyond[name] for name in workers):
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as tasks:
        for name in workers:
            tasks.create_task(work(name))
        for _ in range(3):
            await progress(dict(done))
            await asyncio.to_thread(private_postgres.kill)
            await asyncio.to_thread(private_postgres.restart)
            await progress(dict(done))
        stop.set()
    stored: dict[str, int] = dict(await database.fetch("select id, value from counter"))
    for name in workers:
        assert done[name] <= stored[name] <= done[name] + unknown[name]
    await database.close()


async def test_a_frozen_server_is_given_up(
    private_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.database._GRACE_S", 0.1)
    options = PoolSettings(hot_pool_size=1, cold_pool_size=1, statement_timeout_s=0.1, db_wait_timeout_s=0.1)
    database = await Database.open(private_postgres.dsn, settings=options)
    ((pid,),) = await database.fetch("select pg_backend_pid()")
    stopped = [pid, private_postgres.pid]
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            await database.fetch("select 1")
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
    started = time.monotonic()
    while True:
        try:
            assert await database.fetch("select $1::timestamptz", (datetime.now(UTC),))
            break
        except Unavailable:
            assert time.monotonic() - started < 20
    await database.close()
