"""Jobs whose message the broker has not confirmed: it was away, or a process died in between, or it has lost
its queue (jobqueue.md 4)."""

from __future__ import annotations

from server.events.announcing import Announcer
from server.store.database import Database, Transaction
from server.store.statements import load
from server.views import job_message

_SQL = load("jobs")
_READING = load("reading")

_AFTER_S = 3.0
"""By then whoever created the job has told the broker, or given up."""

_PENDING_STATE = 6
"""Column of the run's state."""


class JobAnnouncements:
    """Tells the broker of them, in one process at a time; does nothing while it is away. A job that is
    pending no longer is crossed off."""

    name = "announce-jobs"
    pause_s = 1.0

    def __init__(self, db: Database, announcer: Announcer, *, batch: int) -> None:
        self._db = db
        self._announcer = announcer
        self.full = batch

    async def run_once(self) -> int:
        """Announces a batch; returns how many jobs are done with."""
        if not self._announcer.connected:
            return 0

        async def run(tx: Transaction) -> int:
            _, rows = await tx.pipeline(
                [(_READING["prefer_indexes"], ()), (_SQL["take_unannounced"], (_AFTER_S, self.full))]
            )
            done = [row[0] for row in rows if row[_PENDING_STATE] != "pending"]
            waiting = [job_message(row) for row in rows if row[_PENDING_STATE] == "pending"]
            if waiting:
                done += await self._announcer.publish(waiting)
            await tx.commit([(_SQL["mark_announced"], (done,))] if done else [])
            return len(done)

        # The connection waits for the broker: not one of the few that the queue's statements share.
        return await self._db.in_transaction(run, hot=False)
