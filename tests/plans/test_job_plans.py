"""Statements about jobs on tables that were emptied, analysed empty, and filled again (perf.md, lesson 3)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from server.store.statements import load
from tests.plans.explaining import Guard, assert_by_index, touched

JOBS = load("jobs")
LOOPS = load("loops")

#: Of 4000 tasks, half in the queue of jobs: 10 pending, 10 running, the others completed.
OPEN = 10
BATCH = 20

_FILL = (
    """
    INSERT INTO tasks
    SELECT 'task' || i, 'prov/q' || i % 2, 'task' || i, 'jobqueue', 'none', 1, now() + interval '1 day',
           now() + interval '1 year', 0, 0, 0, 0, 'all-completed', '\\x00', ''
    FROM generate_series(1, 4000) i
    """,
    """
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled,
                      claimed, taken_until, worker_group, worker_id)
    SELECT 'task' || i, 0, 'prov/q' || i % 2,
           CASE WHEN i <= 20 THEN 'pending' WHEN i <= 40 THEN 'running' ELSE 'completed' END, 1,
           now() + interval '1 day', 'scheduled', now(), now(), now(), 'jobqueue', '0'
    FROM generate_series(1, 4000) i
    """,
    """
    INSERT INTO jobs
    SELECT 'task' || i, '{}', 0, 0, 0, '', now() - interval '1 day', now() + interval '1 year', NULL, NULL,
           i > 200
    FROM generate_series(1, 4000) i
    """,
)
_TABLES = ("tasks", "runs", "jobs")


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in _FILL:
            connection.execute(statement)
        for table in _TABLES:
            connection.execute(f"DELETE FROM {table}")
            connection.execute(f"VACUUM (ANALYZE) {table}")
        for statement in _FILL:
            connection.execute(statement)
        yield connection


@pytest.fixture
def page(connection: psycopg.Connection) -> Guard:
    """Plans as in a reading transaction."""
    return Guard(connection, hot=False)


@pytest.fixture
def hot(connection: psycopg.Connection) -> Guard:
    """Plans as on the hot pool."""
    return Guard(connection, hot=True)


@pytest.mark.parametrize(
    ("pending", "running", "found"), [(True, True, 2 * OPEN), (True, False, OPEN), (False, True, OPEN)]
)
def test_listing(page: Guard, pending: bool, running: bool, found: int) -> None:
    """Along the lists of open runs; what is finished is not looked at."""
    nodes = page.run(JOBS["list_jobs"], "prov/q1", pending, running)
    assert_by_index(nodes, "runs", "runs_pending", "runs_claimed")
    assert_by_index(nodes, "jobs", "jobs_pkey")
    assert touched(nodes, "runs") == touched(nodes, "jobs") == found


@pytest.mark.parametrize("statement", ["read_job", "read_job_standing"])
def test_one_job(hot: Guard, statement: str) -> None:
    nodes = hot.run(JOBS[statement], "task7")
    assert_by_index(nodes, "jobs", "jobs_pkey")
    assert_by_index(nodes, "tasks", "tasks_pkey")
    assert touched(nodes, "jobs") == touched(nodes, "tasks") == 1
    assert touched(nodes, "runs") <= 1


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        ("claim_jobs", [["task7"], "jobqueue", "0", 7200]),
        ("judge_jobs", [["task7"]]),
        ("store_results", [["task7"], ["null"]]),
        ("mark_announced", [["task7"]]),
    ],
)
def test_changes(hot: Guard, statement: str, parameters: list[object]) -> None:
    """What belongs to the job, and nothing else."""
    nodes = hot.run(JOBS[statement], *parameters)
    for table in ("jobs", "tasks", "runs"):
        assert touched(nodes, table) <= 2
    assert_by_index(nodes, "jobs", "jobs_pkey")


def test_creation(hot: Guard) -> None:
    expires = datetime.now(UTC) + timedelta(days=1)
    nodes = hot.run(JOBS["insert_job"], "new", "{}", 0, 0, 0, "", expires, False)
    assert touched(nodes, "jobs") == 0


def test_what_is_to_be_announced(hot: Guard) -> None:
    """A batch of it, along its own index."""
    nodes = hot.run(JOBS["take_unannounced"], 3.0, BATCH)
    assert_by_index(nodes, "jobs", "jobs_unannounced", "jobs_pkey")
    assert_by_index(nodes, "runs", "runs_pkey")
    assert touched(nodes, "jobs") == 2 * BATCH
    assert touched(nodes, "runs") == BATCH


def test_announcing_again(hot: Guard) -> None:
    """What is pending in the queue of jobs."""
    nodes = hot.run(JOBS["announce_again"], "prov/q1")
    assert_by_index(nodes, "runs", "runs_pending")
    assert_by_index(nodes, "jobs", "jobs_pkey")
    assert touched(nodes, "runs") == touched(nodes, "jobs") == OPEN


def test_expiry(connection: psycopg.Connection) -> None:
    """What lives is left alone."""
    connection.execute("UPDATE jobs SET expires = now() - interval '1 hour' WHERE task_id < 'task2'")
    (expired,) = connection.execute("SELECT count(*) FROM jobs WHERE expires < now()").fetchone() or (0,)
    assert expired > BATCH
    nodes = Guard(connection, hot=False).run(LOOPS["expire_jobs"], -1800.0, BATCH)
    assert nodes
    (left,) = connection.execute("SELECT count(*) FROM jobs").fetchone() or (0,)
    assert left == 4000 - BATCH
