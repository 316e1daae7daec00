"""The statements of artifacts and objects on tables that were emptied, analysed empty, and filled again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from server.store.statements import load
from tests.plans.explaining import Guard, touched

ARTIFACTS = load("artifacts")
OBJECTS = load("objects")

BATCH = 20
TABLES = ("tasks", "runs", "artifacts", "objects")
LATER = datetime.now(UTC) + timedelta(days=1)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

#: 500 tasks with 8 artifacts each, links to the next one; one in ten is about to expire. As many objects.
_FILL = (
    """
    INSERT INTO tasks
    SELECT 'task' || i, 'prov/q', 'group' || i, '-', 'none', 1, now() + interval '1 day',
           now() + interval '1 year', 5, 5, 0, 0, 'all-completed', '\\x00', ''
    FROM generate_series(1, 500) i
    """,
    """
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT 'task' || i, 0, 'prov/q', 'running', 1, now() + interval '1 day', 'scheduled', now()
    FROM generate_series(1, 500) i
    """,
    """
    INSERT INTO artifacts (task_id, run_id, name, storage_type, content_type, expires, present, bucket,
                           target)
    SELECT 'task' || i, 0, 'name' || j, CASE WHEN j < 8 THEN 'link' ELSE 's3' END, 'text/plain',
           now() + CASE WHEN i % 10 = 0 THEN interval '-1 day' ELSE interval '1 day' END, true, 'private',
           CASE WHEN j < 8 THEN 'name' || j + 1 END
    FROM generate_series(1, 500) i, generate_series(1, 8) j
    """,
    """
    INSERT INTO objects (name, project_id, backend_id, expires, upload_id, upload_expires, blob_key)
    SELECT 'object' || i, 'none', 'store',
           now() + CASE WHEN i % 10 = 0 THEN interval '-1 day' ELSE interval '1 day' END,
           CASE WHEN i % 2 = 0 THEN 'upload' || i END,
           CASE WHEN i % 2 = 0
                THEN now() + CASE WHEN i % 20 = 0 THEN interval '-1 day' ELSE interval '1 day' END END,
           'o/' || i
    FROM generate_series(1, 4000) i
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
    ids = [f"task{i}" for i in range(1, BATCH + 1)]
    zeros, names = [0] * BATCH, ["name1"] * BATCH
    texts: list[str | None] = [None] * BATCH
    return {
        "read_context": (ARTIFACTS["read_context"], (ids, zeros, names), True, 3 * BATCH),
        "write_artifacts": (
            ARTIFACTS["write_artifacts"],
            (
                *(ids, zeros, ["fresh"] * BATCH, ["s3"] * BATCH, ["text/plain"] * BATCH),
                *([None] * BATCH, [LATER] * BATCH, [True] * BATCH, ["private"] * BATCH),
                *(texts, texts, texts, texts, texts),
            ),
            True,
            3 * BATCH,
        ),
        "follow_links": (ARTIFACTS["follow_links"], ("task1", None, "name1"), True, 40),
        "read_artifact": (ARTIFACTS["read_artifact"], ("task1", None, "name1"), True, 5),
        "has_blob": (ARTIFACTS["has_blob"], ("task1", 0, "name8", "private"), True, 5),
        "last_run": (ARTIFACTS["last_run"], ("task1",), True, 2),
        "list_artifacts": (ARTIFACTS["list_artifacts"], ("task1", None, "name3", 4), False, 10),
        "doom_artifacts": (
            ARTIFACTS["doom_artifacts"],
            (-1800.0, BATCH, BEGINNING, "", -1, ""),
            False,
            4 * BATCH,
        ),
        "is_uploading": (OBJECTS["is_uploading"], ("o/2",), True, 3),
        "read_object": (OBJECTS["read_object"], ("object1",), False, 3),
        "doom_objects": (OBJECTS["doom_objects"], (BATCH, BEGINNING, ""), False, 4 * BATCH),
        "doom_uploads": (OBJECTS["doom_uploads"], (BATCH, BEGINNING, ""), False, 4 * BATCH),
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


def test_every_statement_is_guarded() -> None:
    """A new statement must be guarded here or named with its reason."""
    by_key = {"drop_artifacts", "drop_objects", "create_object", "finish_object"}
    walks = {"known_blobs"}  # asked by a command that walks the store
    no_table = {"lock_upload"}
    assert {*ARTIFACTS, *OBJECTS} == {*_cases(), *by_key, *walks, *no_table}
