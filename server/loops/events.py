"""Retention of the event log: what is older than the configured time, or too much, is deleted (design 6)."""

from __future__ import annotations

from server import metrics
from server.events.relay import NAME, backlog
from server.store.database import Database
from server.store.statements import load

_SQL = load("events")


class EventRetention:
    """Deletes from the old end of the log, batch by batch, and moves the horizon along in the same
    transaction, so that a cursor which points at deleted events is told so. What a broker has still to get
    is kept, however long that takes. Also measures the log, and how far the relay is behind."""

    name = "expire-events"

    def __init__(
        self, db: Database, *, retention_s: float, max_bytes: int = 0, relayed: bool = False, batch: int
    ) -> None:
        """`max_bytes` of 0 is no limit; `relayed` says that there is a broker."""
        self._db = db
        self._retention_s = retention_s
        self._max_bytes = max_bytes
        self._relay = NAME if relayed else ""
        self.full = batch
        # Often enough that the log is never much older than it may be, and no more than once a second.
        self.pause_s = min(10.0, max(1.0, retention_s / 100))

    async def run_once(self) -> int:
        """Deletes a batch; returns how many rows. Does nothing while another process is at it."""
        size = int((await self._db.fetch(_SQL["estimate_log_size"]))[0][0])
        metrics.EVENT_LOG_BYTES.set(size)
        if self._relay:
            rows, lag = await backlog(self._db)
            metrics.RELAY_BACKLOG.set(rows)
            metrics.RELAY_LAG.set(lag)
        too_much = 0 < self._max_bytes < size
        age = 0.0 if too_much else self._retention_s
        deleted = await self._db.fetch(_SQL["delete_old_rows"], (age, self.full, self._relay))
        return int(deleted[0][0])
