"""The statements of task graphs on tables that were emptied, analysed empty, and filled again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from server.store.statements import load
from tests.plans.explaining import Guard, touched

GRAPHS = load("graphs")

BATCH = 20
TABLES = ("tasks", "runs", "task_graphs", "task_graph_nodes")
LATER = datetime.now(UTC) + timedelta(days=1)

#: 300 graphs of ten tasks in a chain, every task's run running, the last task a leaf.
_FILL = (
    """
    INSERT INTO tasks
    SELECT 'task' || i || '.' || j, 'prov/q', 'graph' || i, 's', 'none', 1, now() + interval '1 day',
           now() + interval '1 year', 5, 5, 0, 0, 'all-completed', '\\x00', ''
    FROM generate_series(1, 300) i, generate_series(1, 10) j
    """,
    """
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT 'task' || i || '.' || j, 0, 'prov/q', 'completed', 1, now() + interval '1 day', 'scheduled', now()
    FROM generate_series(1, 300) i, generate_series(1, 10) j
    """,
    """
    INSERT INTO task_graphs
    SELECT 'graph' || i, 's', 'running', '[]', '[]', '{}', '{}', 1, now() + interval '1 year'
    FROM generate_series(1, 300) i
    """,
    """
    INSERT INTO task_graph_nodes
    SELECT 'task' || i || '.' || j, 'graph' || i, 'name',
           CASE WHEN j > 1 THEN ARRAY['task' || i || '.' || j - 1] ELSE '{}'::text[] END, 5, 5, j = 10, false
    FROM generate_series(1, 300) i, generate_series(1, 10) j
    """,
)


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection whose server believes every table to be empty."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        for table in TABLES:
            connection.execute(f"ANALYZE {table}".encode())
        yield connection


def _cases() -> dict[str, tuple[Any, tuple[Any, ...], bool, int]]:
    """Statement, parameters, whether it runs on the hot pool, and how many rows of a table it may touch."""
    leaves = [f"task{i}.10" for i in range(1, BATCH + 1)]
    first = [f"task{i}.1" for i in range(1, BATCH + 1)]
    graphs = [f"graph{i}" for i in range(1, BATCH + 1)]
    fresh = [f"fresh{i}" for i in range(1, BATCH + 1)]
    names, requires = ["name"] * BATCH, ["task1.1,task1.2"] * BATCH
    return {
        "lock_graphs": (GRAPHS["lock_graphs"], (graphs,), True, BATCH),
        "insert_graph": (
            GRAPHS["insert_graph"],
            ("fresh", "s", "[]", "[]", "{}", "{}", LATER),
            True,
            1,
        ),
        "insert_nodes": (
            GRAPHS["insert_nodes"],
            ("graph1", [*fresh, *leaves], names * 2, requires * 2, [0] * 2 * BATCH, [True] * 2 * BATCH),
            True,
            2 * BATCH,
        ),
        "known_nodes": (GRAPHS["known_nodes"], (leaves,), True, BATCH),
        "graph_leaves": (GRAPHS["graph_leaves"], ("graph1",), True, 10),
        "cover_leaves": (GRAPHS["cover_leaves"], ("graph1", leaves), True, 2 * BATCH),
        "count_leaves": (GRAPHS["count_leaves"], ("graph1", LATER), True, 10),
        "spend_reruns": (GRAPHS["spend_reruns"], (first,), True, 2 * BATCH),
        "settle_graphs": (GRAPHS["settle_graphs"], (graphs, leaves, first), True, 3 * BATCH),
        "read_graph": (GRAPHS["read_graph"], ("graph1",), False, 1),
        "read_nodes": (GRAPHS["read_nodes"], ("graph1",), False, 10),
        "read_node": (GRAPHS["read_node"], ("graph1", "task1.5"), False, 20),
    }


@pytest.mark.parametrize("name", sorted(_cases()))
def test_a_statement_touches_what_it_is_about(connection: psycopg.Connection, name: str) -> None:
    """Planned on empty tables if it keeps its plan; on full ones, whose statistics are stale, otherwise."""
    statement, parameters, hot, most = _cases()[name]
    guard = Guard(connection, hot=hot)
    guard.prepare(statement)
    with connection.transaction(force_rollback=True):
        guard.execute(statement, *parameters)
    for fill in _FILL:
        connection.execute(fill.encode())
    with connection.transaction(force_rollback=True):
        nodes = guard.execute(statement, *parameters)
    for table in TABLES:
        assert touched(nodes, table) <= most, f"{name} walked {table}"
    assert all(node["Node Type"] != "Seq Scan" for node in nodes)


def test_every_statement_is_guarded() -> None:
    """A new statement must be guarded here."""
    assert {*GRAPHS} == {*_cases()}
