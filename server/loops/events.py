"""Retention of the event log: what is older than the configured time is deleted (design 6)."""

from __future__ import annotations

from server.store.database import Database
from server.store.statements import load

_SQL = load("events")


class EventRetention:
    """Deletes from the old end of the log, batch by batch, and moves the horizon along in the same
    transaction, so that a cursor which points at deleted events is told so."""

    name = "expire-events"

    def __init__(self, db: Database, *, retention_s: float, batch: int) -> None:
        self._db = db
        self._retention_s = retention_s
        self.full = batch
        # Often enough that the log is never much older than it may be, and no more than once a second.
        self.pause_s = min(60.0, max(1.0, retention_s / 100))

    async def run_once(self) -> int:
        """Deletes a batch; returns how many rows. Does nothing while another process is at it."""
        rows = await self._db.fetch(_SQL["delete_old_rows"], (self._retention_s, self.full))
        return int(rows[0][0])
