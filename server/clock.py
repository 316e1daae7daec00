"""The database's clock, without asking it: this process's clock plus the offset last measured."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


class Clock:
    """Told the database's time every few seconds (see loops/heartbeat.py)."""

    def __init__(self) -> None:
        self._offset = 0.0

    def now(self) -> datetime:
        """The database's time, as near as it is known."""
        return datetime.now(UTC) + timedelta(seconds=self._offset)

    def seconds(self) -> float:
        """The same as seconds since the epoch."""
        return time.time() + self._offset

    @staticmethod
    def moment(seconds: float) -> datetime:
        """Seconds since the epoch as an instant."""
        return datetime.fromtimestamp(seconds, UTC)

    def learn(self, database_now: datetime, *, asked: float, answered: float) -> None:
        """Takes the offset from one exchange; `asked` and `answered` are `time.time()` around it."""
        self._offset = database_now.timestamp() - (asked + answered) / 2
