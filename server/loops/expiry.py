"""Expiry: tasks, jobs, groups, graphs, dependency edges, queues and workers whose time is over are deleted
(queue.md 6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.identity.bootstrap import QUEUE_CLIENT
from server.identity.clients import Clients
from server.store.database import Database
from server.store.statements import load

_SQL = load("loops")


class Expiry:
    """Deletes one kind of thing in batches until none is left, then rests. Cut-offs are now plus a
    configured delay, usually minus half an hour."""

    full = 1

    def __init__(
        self, name: str, db: Database, statement: str, delay_s: float, *, batch: int, pause_s: float
    ) -> None:
        self.name = name
        self.pause_s = pause_s
        self._db = db
        self._statement = _SQL[statement]
        self._parameters: Sequence[Any] = (delay_s, batch)

    async def run_once(self) -> int:
        """Deletes a batch; returns how many rows."""
        rows = await self._db.fetch(self._statement, self._parameters, repeat=True)
        return int(rows[0][0])


class ClientExpiry:
    """Deletes expired clients that asked for it, with an entry in their audit trail."""

    name = "expire-clients"
    full = 1

    def __init__(self, clients: Clients, *, pause_s: float) -> None:
        self.pause_s = pause_s
        self._clients = clients

    async def run_once(self) -> int:
        """Deletes a batch; returns how many."""
        return len(await self._clients.delete_expired(actor=QUEUE_CLIENT))


def expiry_loops(
    db: Database, *, task_delay_s: float, worker_delay_s: float, batch: int, pause_s: float
) -> list[Expiry]:
    """All expiry loops of the queue."""
    tasks = {
        "expire-tasks": "expire_tasks",
        "expire-jobs": "expire_jobs",
        "expire-task-groups": "expire_task_groups",
        "expire-task-graphs": "expire_task_graphs",
        "expire-task-dependencies": "expire_task_dependencies",
    }
    workers = {"expire-task-queues": "expire_task_queues", "expire-workers": "expire_workers"}
    return [
        *(Expiry(name, db, sql, task_delay_s, batch=batch, pause_s=pause_s) for name, sql in tasks.items()),
        *(
            Expiry(name, db, sql, worker_delay_s, batch=batch, pause_s=pause_s)
            for name, sql in workers.items()
        ),
    ]
