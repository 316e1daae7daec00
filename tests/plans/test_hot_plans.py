"""The batched statements on tables that were emptied, analysed empty, and filled again (perf.md, lesson 3).

Each is planned while the tables are empty, as on a connection of a quiet night, and keeps that plan. What
is asserted is that a batch touches the rows of the batch, not those of the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from server.store.statements import load
from tests.plans.explaining import Guard, assert_by_index, touched

TRANSITIONS = load("transitions")
CLAIMS = load("claims")
CREATION = load("creation")
LOOPS = load("loops")

ROWS = 3000
BATCH = 20
NOW = datetime.now(UTC)
SOON = NOW + timedelta(minutes=20)
TABLES = ("tasks", "runs", "task_groups", "task_dependencies")

_FILL = (
    """
    INSERT INTO tasks
    SELECT 'task' || i, 'prov/q', 'group' || i, '-', 'none', 1, now() + interval '1 day',
           now() + interval '1 year', 5, 5, 0, 0, 'all-completed', '\\x00', ''
    FROM generate_series(1, 3000) i
    """,
    """
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled,
                      claimed, taken_until, stream_id, process_id)
    SELECT 'task' || i, 0, 'prov/q', CASE WHEN i <= 1500 THEN 'running' ELSE 'pending' END, 1,
           now() + interval '1 day', 'scheduled', now(), now(), now() + interval '20 minutes', 's', 'p'
    FROM generate_series(1, 3000) i
    """,
    """
    INSERT INTO task_groups SELECT 'group' || i, '-', now() + interval '1 year', NULL, 1
    FROM generate_series(1, 3000) i
    """,
    """
    INSERT INTO task_dependencies
    SELECT 'task' || i, 'task' || i + 1, 'all-completed', false, now() + interval '1 day'
    FROM generate_series(1, 2999) i
    """,
)


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection whose server believes every table to be empty."""
    # psycopg must prepare nothing itself: after a rollback it would deallocate ours with its own.
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        yield connection


def _running(n: int) -> list[str]:
    return [f"task{i}" for i in range(1, n + 1)]


def _pending(n: int) -> list[str]:
    return [f"task{i}" for i in range(2001, 2001 + n)]


def _cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    ids, offered = _running(BATCH), _pending(BATCH)
    zeros, streams = [0] * BATCH, ["s"] * BATCH
    completed, nobody = ["completed"] * BATCH, [""] * BATCH
    retried = ["claim-expired"] * BATCH
    return {
        "lock_tasks": (TRANSITIONS["lock_tasks"], (ids,)),
        "resolve_runs": (TRANSITIONS["resolve_runs"], (ids, zeros, completed, completed, nobody)),
        "retry_runs": (TRANSITIONS["retry_runs"], (ids, retried)),
        "release_dependents": (TRANSITIONS["release_dependents"], (ids, completed, 1000)),
        "close_groups": (TRANSITIONS["close_groups"], (ids,)),
        "end_tasks": (TRANSITIONS["end_tasks"], (ids, "canceled", 60.0)),
        "schedule_tasks": (TRANSITIONS["schedule_tasks"], (ids,)),
        "rerun_tasks": (TRANSITIONS["rerun_tasks"], (ids,)),
        "change_priorities": (TRANSITIONS["change_priorities"], (offered, 3)),
        "read_tasks": (TRANSITIONS["read_tasks"], (ids,)),
        "read_runs": (TRANSITIONS["read_runs"], (ids,)),
        "read_unresolved": (TRANSITIONS["read_unresolved"], (ids, zeros)),
        "offer_runs": (CLAIMS["offer_runs"], ("prov/q", streams, "p", 10.0, 1200.0)),
        "claim_runs": (CLAIMS["claim_runs"], ("prov/q", ["g"] * BATCH, ["w"] * BATCH, 1200.0)),
        "accept_runs": (
            CLAIMS["accept_runs"],
            (offered, zeros, streams, streams, streams, [NOW] * BATCH, [SOON] * BATCH),
        ),
        "finish_runs": (
            CLAIMS["finish_runs"],
            (
                *(offered, zeros, streams, streams, streams),
                *([NOW] * BATCH, [SOON] * BATCH, completed, completed),
            ),
        ),
        "withdraw_offers": (CLAIMS["withdraw_offers"], (offered, streams)),
        "reclaim_runs": (CLAIMS["reclaim_runs"], (ids, zeros, streams, 1200.0)),
        "judge_reclaims": (CLAIMS["judge_reclaims"], (ids, zeros)),
        "lease_runs": (CLAIMS["lease_runs"], (ids, streams, 45.0)),
        "lost_runs": (CLAIMS["lost_runs"], (ids, zeros, streams)),
        "readopt_runs": (CLAIMS["readopt_runs"], (ids, streams)),
        "ensure_groups": (
            CREATION["ensure_groups"],
            ([f"group{i}" for i in range(BATCH)], ["-"] * BATCH, [SOON] * BATCH),
        ),
        "enter_groups": (
            CREATION["enter_groups"],
            (
                [*(f"group{i}" for i in range(BATCH // 2)), *(f"new{i}" for i in range(BATCH // 2))],
                ["-"] * BATCH,
                [1] * BATCH,
                [SOON] * BATCH,
            ),
        ),
        "lock_dependencies": (CREATION["lock_dependencies"], (ids,)),
        "read_dependencies": (CREATION["read_dependencies"], (ids,)),
        "judge_tasks": (CREATION["judge_tasks"], (ids, [f"group{i}" for i in range(BATCH)], ["-"] * BATCH)),
        "count_into_groups": (
            CREATION["count_into_groups"],
            ([f"group{i}" for i in range(BATCH)], [1] * BATCH, [SOON] * BATCH),
        ),
    }


@pytest.mark.parametrize("name", sorted(_cases()))
def test_a_batch_touches_what_a_batch_holds(connection: psycopg.Connection, name: str) -> None:
    """Planned on empty tables, run on full ones."""
    statement, parameters = _cases()[name]
    for table in TABLES:
        connection.execute(f"ANALYZE {table}".encode())
    guard = Guard(connection, hot=True)
    guard.prepare(statement)
    with connection.transaction(force_rollback=True):
        guard.execute(statement, *parameters)
    for fill in _FILL:
        connection.execute(fill.encode())
    with connection.transaction(force_rollback=True):
        nodes = guard.execute(statement, *parameters)
    for table in TABLES:
        # A statement may look the same row up a few times; none may walk the table.
        assert touched(nodes, table) <= 8 * BATCH, f"{name} walked {table}"
    assert all(node["Node Type"] != "Seq Scan" for node in nodes)


def test_every_hot_statement_is_guarded() -> None:
    """A new statement of these files must be guarded here or named with its reason."""
    cold = {
        "read_task_definitions": "one task at a time",
        "read_standing": "one task at a time",
        "insert_events": "reads nothing",
        "insert_dated_events": "reads nothing",
        "insert_edges": "reads nothing",
        "insert_tasks": "reads task_groups behind the same fence as judge_tasks",
        "insert_all_tasks": "guarded by its own test below, as it fails on empty tables",
        "lock_task": "one task at a time",
        "claim_run_by_name": "one task at a time",
        "resume_runs": "once for a stream that comes back",
        "renew_process": "touches the process table only",
        "bury_processes": "scans running runs, and only after a death",
        "forget_process": "touches the process table only",
        "expired_claims": "guarded by its own test below",
        "append_recent_tasks": "touches workers only",
        "runs_of_worker": "once for a worker that is gone",
    }
    names = {*TRANSITIONS, *CLAIMS, *CREATION}
    assert names == {*_cases(), *cold}


def _fill(connection: psycopg.Connection) -> None:
    """Full tables whose statistics still say that they are empty."""
    for table in TABLES:
        connection.execute(f"ANALYZE {table}".encode())
    for fill in _FILL:
        connection.execute(fill.encode())


def test_expired_claims_walk_their_index(connection: psycopg.Connection) -> None:
    """The loop that runs every few seconds reads what has expired and not what runs."""
    guard = Guard(connection, hot=False)
    _fill(connection)
    connection.execute("UPDATE runs SET taken_until = now() - interval '1 second' WHERE task_id < 'task101'")
    assert touched(guard.run(CLAIMS["expired_claims"], 10), "runs") <= 40


def test_overdue_tasks_walk_their_indexes(connection: psycopg.Connection) -> None:
    """The deadline loop reads what is overdue and open, not what ended or has time left."""
    guard = Guard(connection, hot=False)
    _fill(connection)
    connection.execute("UPDATE runs SET deadline = now() WHERE task_id < 'task15'")
    connection.execute("UPDATE runs SET state = 'completed' WHERE task_id < 'task14'")
    connection.execute("UPDATE tasks SET last_run = -1 WHERE task_id > 'task29'")
    connection.execute("UPDATE tasks SET deadline = now() WHERE task_id > 'task299'")
    nodes = guard.run(LOOPS["overdue_tasks"], 0.0, 10)
    assert_by_index(nodes, "runs", "runs_by_deadline")
    assert_by_index(nodes, "tasks", "tasks_unscheduled")
    assert touched(nodes, "runs") + touched(nodes, "tasks") <= 20


def test_tasks_inserted_at_once_look_up_their_groups(connection: psycopg.Connection) -> None:
    """Planned while there are no groups but their own, run among many."""
    for table in TABLES:
        connection.execute(f"ANALYZE {table}".encode())
    columns = (
        *([f"new{i}" for i in range(BATCH)], ["prov/q"] * BATCH, [f"group{i}" for i in range(1, BATCH + 1)]),
        *(["-"] * BATCH, ["none"] * BATCH, [1] * BATCH, [SOON] * BATCH, [SOON] * BATCH),
        *([5] * BATCH, ["all-completed"] * BATCH, [0] * BATCH, [b""] * BATCH, [""] * BATCH),
    )
    guard = Guard(connection, hot=True)
    guard.prepare(CREATION["insert_all_tasks"])
    with connection.transaction(force_rollback=True):
        connection.execute(_FILL[2].encode())
        guard.execute(CREATION["insert_all_tasks"], *columns)
    for fill in _FILL:
        connection.execute(fill.encode())
    nodes = guard.execute(CREATION["insert_all_tasks"], *columns)
    for table in TABLES:
        assert touched(nodes, table) <= 8 * BATCH, f"{table} was walked"
    assert all(node["Node Type"] != "Seq Scan" for node in nodes)
    inserted = connection.execute("SELECT count(*) FROM runs WHERE task_id LIKE 'new%'").fetchone()
    assert inserted == (BATCH,)
