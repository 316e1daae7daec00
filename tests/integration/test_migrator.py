"""Migrations: applied once, in order, whole, and never different from what they were."""

from __future__ import annotations

import asyncio
import re

import psycopg
import pytest

from server.store.migrator import Migration, MigrationError, available, migrate, read_files, status

FIRST = b"create table a (x int);\ninsert into a values (1);\n"
SECOND = b"-- A comment; with a semicolon.\nalter table a add column y int default 2;\n"


def files(**contents: bytes) -> list[Migration]:
    return read_files({f"{name.removeprefix('n')}.sql": content for name, content in contents.items()})


def query(dsn: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


async def test_missing_ones_are_applied_in_order_and_once(blank_dsn: str) -> None:
    one, both = files(n0001_first=FIRST), files(n0001_first=FIRST, n0002_second=SECOND)
    assert [str(m) for m in await migrate(blank_dsn, one)] == ["0001_first"]
    assert [str(m) for m in await migrate(blank_dsn, both)] == ["0002_second"]
    assert await migrate(blank_dsn, both) == []
    assert query(blank_dsn, "select * from a") == [(1, 2)]


async def test_status_tells_and_changes_nothing(blank_dsn: str) -> None:
    both = files(n0001_first=FIRST, n0002_second=SECOND)
    before = await status(blank_dsn, both)
    assert (before.applied, before.pending) == ([], both)
    assert query(blank_dsn, "select to_regclass('schema_migrations')") == [(None,)]
    await migrate(blank_dsn, both[:1])
    after = await status(blank_dsn, both)
    assert [str(a) for a in after.applied] == ["0001_first"]
    assert after.applied[0].checksum == both[0].checksum
    assert after.applied[0].applied.utcoffset() is not None
    assert after.pending == both[1:]


async def test_processes_that_migrate_at_once_do_it_once(blank_dsn: str) -> None:
    slow = files(n0001_first=FIRST + b"select pg_sleep(0.05);", n0002_second=SECOND)
    outcomes = await asyncio.gather(*(migrate(blank_dsn, slow) for _ in range(4)))
    assert sorted(len(applied) for applied in outcomes) == [0, 0, 0, 2]


async def test_a_failing_one_leaves_nothing_and_earlier_ones_stay(blank_dsn: str) -> None:
    broken = files(n0001_first=FIRST, n0002_broken=b"create table b ();\nselect 1 / 0;\n")
    with pytest.raises(MigrationError, match=r"migration 0002_broken failed and left nothing.*division"):
        await migrate(blank_dsn, broken)
    assert query(blank_dsn, "select to_regclass('b'), (select max(version) from schema_migrations)") == [
        (None, 1)
    ]
    mended = files(n0001_first=FIRST, n0002_broken=b"create table b ();\n")
    assert [str(m) for m in await migrate(blank_dsn, mended)] == ["0002_broken"]


async def test_a_changed_file_is_refused(blank_dsn: str) -> None:
    await migrate(blank_dsn, files(n0001_first=FIRST))
    for changed in (files(n0001_first=FIRST + b"\n"), files(n0001_other=FIRST)):
        for ask in (migrate, status):
            with pytest.raises(MigrationError, match="0001_first was applied with another content"):
                await ask(blank_dsn, changed)


async def test_a_newer_database_is_refused(blank_dsn: str) -> None:
    await migrate(blank_dsn, files(n0001_first=FIRST, n0002_second=SECOND))
    for ask in (migrate, status):
        with pytest.raises(MigrationError, match=r"newer than this code: it has 0002_second.*0001_first"):
            await ask(blank_dsn, files(n0001_first=FIRST))


async def test_a_hole_in_the_history_is_refused(blank_dsn: str) -> None:
    both = files(n0001_first=FIRST, n0002_second=SECOND)
    await migrate(blank_dsn, both)
    with psycopg.connect(blank_dsn, autocommit=True) as connection:
        connection.execute("delete from schema_migrations where version = 1")
    with pytest.raises(MigrationError, match="lacks 0001_first although"):
        await migrate(blank_dsn, both)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["0002_a.sql"], "0002_a is out of line"),
        (["0001_a.sql", "0003_b.sql"], "0003_b is out of line"),
        (["0001_a.sql", "0001_b.sql"], "0001_b is out of line"),
        (["1_a.sql"], "1_a.sql is not named"),
        (["0001-A.sql"], "0001-A.sql is not named"),
    ],
)
def test_file_names_count_up_from_one(names: list[str], complaint: str) -> None:
    with pytest.raises(MigrationError, match=complaint):
        read_files(dict.fromkeys(names, b"select 1"))


async def test_the_real_ones_make_the_template(dsn: str, blank_dsn: str) -> None:
    assert (await status(dsn)).pending == []
    assert await migrate(blank_dsn) == available()
    tables = "select count(*) from pg_tables where schemaname = 'public'"
    assert query(dsn, tables) == query(blank_dsn, tables)


def test_the_real_ones_can_run_in_a_transaction() -> None:
    for migration in available():
        sql = re.sub(r"--.*", "", migration.sql.lower())
        assert not {"commit", "rollback", "concurrently", "vacuum"} & set(re.findall(r"\w+", sql)), migration
