"""Gauges of every task queue: pending and claimed tasks, workers and what they do (queue.md 6.2)."""

from __future__ import annotations

import sys

from server import metrics
from server.store.database import Database
from server.store.statements import load

_SQL = load("counts")


class QueueMetrics:
    """Counts what is there, however it came there: every process shows the same."""

    name = "queue-metrics"
    #: A round is whole.
    full = sys.maxsize

    def __init__(self, db: Database, *, pause_s: float) -> None:
        self.pause_s = pause_s
        self._db = db
        self._shown: set[str] = set()

    async def run_once(self) -> int:
        """Sets the gauges; returns of how many queues."""
        rows = await self._db.fetch(_SQL["count_queues"], ())
        for task_queue_id, pending, claimed, workers, quarantined in rows:
            for gauge, value in (
                (metrics.PENDING_TASKS, pending),
                (metrics.CLAIMED_TASKS, claimed),
                (metrics.WORKERS, workers),
                (metrics.QUARANTINED_WORKERS, quarantined),
                (metrics.RUNNING_WORKERS, claimed),
                (metrics.IDLE_WORKERS, max(0, workers - quarantined - claimed)),
            ):
                gauge.labels(*task_queue_id.split("/", 1)).set(value)
        queues = {row[0] for row in rows}
        for task_queue_id in self._shown - queues:
            for gauge in metrics.QUEUE_GAUGES:
                gauge.remove(*task_queue_id.split("/", 1))
        self._shown = queues
        return len(rows)
