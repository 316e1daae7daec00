"""Reading statements on tables that were emptied, analysed empty, and filled again (perf.md, lesson 3).

The planner then thinks of every table as tiny. What is asserted is the index, and that a page costs
what a page holds, not what the queue or group holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from server.store.statements import load
from tests.plans.explaining import Guard, assert_by_index, touched

READING = load("reading")
QUEUES = load("task_queues")
WORKERS = load("workers")
COUNTS = load("counts")
LEGACY = load("legacy")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BUDGET = 2**20
ROWS = 4000
PAGE = 20

_FILL = (
    """
    INSERT INTO tasks
    SELECT 'task' || i, 'prov/q' || i % 2, 'group' || i % 2, '-', 'none', 1 + i % 7, now() + interval '1 day',
           now() + interval '1 year', 5, 5, 0, 0, 'all-completed', '\\x00', ''
    FROM generate_series(1, 4000) i
    """,
    """
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled,
                      claimed, taken_until)
    SELECT task_id, 0, task_queue_id, state, priority, deadline, 'scheduled', now(), now(),
           now() + interval '20 minutes'
    FROM tasks, unnest(ARRAY['pending', 'running']) AS s (state) WHERE (state = 'pending') = (priority < 5)
    """,
    """
    INSERT INTO task_dependencies
    SELECT 'task1', task_id, 'all-completed', false, now() + interval '1 day' FROM tasks
    """,
    """
    INSERT INTO task_queues (task_queue_id, expires, last_date_active)
    SELECT 'prov' || i % 40 || '/q' || i, now() + interval '1 day', now() FROM generate_series(1, 4000) i
    """,
    """
    INSERT INTO workers (task_queue_id, worker_group, worker_id, quarantine_until, expires, first_claim,
                         last_date_active)
    SELECT 'prov/q' || i % 2, 'g' || i % 5, 'w' || i, 'epoch', now() + interval '1 day', now(), now()
    FROM generate_series(1, 4000) i
    """,
    "INSERT INTO task_groups SELECT 'group' || i, '-', now(), NULL, 0 FROM generate_series(1, 4000) i",
)
_TABLES = ("tasks", "runs", "task_dependencies", "task_queues", "workers", "task_groups")


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


def test_definitions(page: Guard) -> None:
    ids = [f"task{i}" for i in range(1, 501)]
    nodes = page.run(READING["list_definitions"], ids, PAGE, BUDGET)
    assert_by_index(nodes, "tasks", "tasks_pkey")
    assert touched(nodes, "tasks") <= len(ids)


def test_statuses(page: Guard) -> None:
    ids = [f"task{i}" for i in range(1, 501)]
    nodes = page.run(READING["list_statuses"], ids, PAGE)
    assert_by_index(nodes, "tasks", "tasks_pkey")
    assert_by_index(nodes, "runs", "runs_pkey")
    assert touched(nodes, "runs") <= PAGE


def test_group(page: Guard) -> None:
    nodes = page.run(READING["list_group"], "group1", "task2", PAGE, BUDGET)
    assert_by_index(nodes, "tasks", "tasks_by_group")
    assert_by_index(nodes, "runs", "runs_pkey")
    assert touched(nodes, "tasks") == PAGE + 1
    assert touched(nodes, "runs") == PAGE


def test_dependents(page: Guard) -> None:
    nodes = page.run(READING["list_dependents"], "task1", "task2", PAGE, BUDGET)
    assert_by_index(nodes, "task_dependencies", "task_dependencies_pkey")
    assert_by_index(nodes, "tasks", "tasks_pkey")
    assert_by_index(nodes, "runs", "runs_pkey")
    assert touched(nodes, "task_dependencies") == touched(nodes, "tasks") == PAGE + 1


@pytest.mark.parametrize("after", [-1, 1000])
def test_pending(page: Guard, after: int) -> None:
    """Seven short walks along the claimers' index, whatever waits behind."""
    nodes = page.run(READING["list_pending"], "prov/q1", after, PAGE, BUDGET)
    assert_by_index(nodes, "runs", "runs_pending")
    assert_by_index(nodes, "tasks", "tasks_pkey")
    assert PAGE < touched(nodes, "runs") <= 7 * (PAGE + 1)
    assert touched(nodes, "tasks") == PAGE + 1


def test_pending_of_a_provisioner(page: Guard) -> None:
    """One walk along the claimers' index over neighbouring queues."""
    nodes = page.run(LEGACY["pending_tasks_between"], "prov/", "prov0", PAGE)
    assert_by_index(nodes, "runs", "runs_pending")
    assert touched(nodes, "runs") == PAGE


def test_claimed(page: Guard) -> None:
    nodes = page.run(READING["list_claimed"], "prov/q1", EPOCH, -1, PAGE, BUDGET)
    assert_by_index(nodes, "runs", "runs_claimed")
    assert_by_index(nodes, "tasks", "tasks_pkey")
    assert touched(nodes, "runs") == touched(nodes, "tasks") == PAGE + 1


def test_task_queues(page: Guard) -> None:
    nodes = page.run(QUEUES["list_task_queues"], "prov2", PAGE)
    assert_by_index(nodes, "task_queues", "task_queues_pkey")
    assert touched(nodes, "task_queues") == PAGE


def test_worker_types(page: Guard) -> None:
    nodes = page.run(QUEUES["list_worker_types"], "prov2", "prov2/q2", PAGE)
    assert_by_index(nodes, "task_queues", "task_queues_pkey")
    assert touched(nodes, "task_queues") == PAGE


@pytest.mark.parametrize("after", [("", ""), ("g3", "w1")])
def test_workers(page: Guard, after: tuple[str, str]) -> None:
    nodes = page.run(WORKERS["list_workers"], "prov/q1", *after, None, PAGE)
    assert_by_index(nodes, "workers", "workers_pkey")
    assert touched(nodes, "workers") == PAGE


def test_counts_stop_at_their_limit(hot: Guard) -> None:
    """Design 3: what is asked every second does not scan."""
    nodes = hot.run(COUNTS["count_pending"], "prov/q1", PAGE)
    assert_by_index(nodes, "runs", "runs_pending")
    assert touched(nodes, "runs") == PAGE
    nodes = hot.run(COUNTS["count_claimed"], "prov/q1", PAGE)
    assert_by_index(nodes, "runs", "runs_claimed")
    assert touched(nodes, "runs") == PAGE


def test_a_claimed_run(hot: Guard) -> None:
    nodes = hot.run(LEGACY["read_claimed_run"], "task1", 0)
    assert_by_index(nodes, "tasks", "tasks_pkey")
    assert_by_index(nodes, "runs", "runs_pkey")
    assert (touched(nodes, "tasks"), touched(nodes, "runs")) == (1, 1)


def test_single_rows(hot: Guard) -> None:
    """Everything that reads one thing touches one row of each table."""
    for statement, parameters, indexes in (
        (READING["read_definition"], ["task7"], {"tasks": "tasks_pkey"}),
        (READING["read_status"], ["task7"], {"tasks": "tasks_pkey", "runs": "runs_pkey"}),
        (READING["task_exists"], ["task7"], {"tasks": "tasks_pkey"}),
        (QUEUES["get_task_queue"], ["prov7/q7"], {"task_queues": "task_queues_pkey"}),
        (WORKERS["read_quarantines"], [["prov/q1"], ["g1"], ["w1"]], {"workers": "workers_pkey"}),
    ):
        nodes = hot.run(statement, *parameters)
        for table, index in indexes.items():
            assert_by_index(nodes, table, index)
            assert touched(nodes, table) == 1


def test_provisioner(hot: Guard) -> None:
    """Only its own queues are looked at."""
    nodes = hot.run(QUEUES["get_provisioner"], "prov7")
    assert_by_index(nodes, "task_queues", "task_queues_pkey")
    assert touched(nodes, "task_queues") == ROWS / 40


def test_gauges_do_not_read_what_ended(connection: psycopg.Connection) -> None:
    """Counted twice a minute by every process, on a connection that plans as it likes."""
    connection.execute("UPDATE runs SET state = 'completed' WHERE task_id NOT LIKE 'task1_'")
    connection.execute("VACUUM FULL ANALYZE runs")
    plan = connection.execute(b"EXPLAIN " + COUNTS["count_queues"].encode()).fetchall()
    assert not [line for (line,) in plan if "Seq Scan on runs" in line]
