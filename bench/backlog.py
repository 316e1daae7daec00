"""Fills a queue with a backlog, straight into the tables: a million creations would take the whole run."""

from __future__ import annotations

import psycopg

from bench import wire
from server import definitions
from server.domain import frames
from tcqueue.v1.task_pb2 import TaskDefinition

_TASKS = """
INSERT INTO tasks (task_id, task_queue_id, task_group_id, scheduler_id, project_id, priority, deadline,
                   expires, retries, retries_left, last_run, blockers, requires, definition, frame)
SELECT id, %(queue)s, id, 'bench', 'none', 1, now() + interval '1 hour',
       now() + interval '1 day', 5, 5, 0, 0, 'all-completed',
       %(definition)s, replace(%(frame)s, %(sample)s, id)
FROM (
    SELECT translate(left(encode(uuid_send(gen_random_uuid()), 'base64'), 21) || 'A', '+/', '-_') AS id
    FROM generate_series(1, %(size)s)
) s
"""
_RUNS = """
INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
SELECT task_id, 0, task_queue_id, 'pending', priority, deadline, 'scheduled', now()
FROM tasks WHERE task_queue_id = %(queue)s
"""


def fill(dsn: str, queue: str, size: int) -> None:
    """Adds `size` pending tasks to an empty queue and lets the statistics know."""
    sample = wire.slugid().decode()
    frame = frames.build(
        task_id=sample, task_queue_id=queue, scheduler_id="bench", project_id="none", task_group_id=sample,
        deadline="2030-01-01T00:00:00.000Z", expires="2031-01-01T00:00:00.000Z", routes=[], tags={},
    )  # fmt: skip
    values = {"queue": queue, "size": size, "sample": sample, "frame": frame, "definition": _complete(queue)}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_TASKS, values)
        connection.execute(_RUNS, values)
        connection.execute("VACUUM ANALYZE tasks, runs")


def _complete(queue: str) -> bytes:
    task = TaskDefinition.FromString(wire.definition(queue))
    definitions.resolve_queue(task)
    definitions.fill_defaults(wire.slugid().decode(), task)
    task.expires.CopyFrom(task.deadline)
    return task.SerializeToString(deterministic=True)
