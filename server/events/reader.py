"""Reading the outbox so that nothing is skipped and nothing changes places.

**The order is the id.** A transaction draws its outbox id, and all ids are drawn from one uncached
sequence, while it holds the rows it changed. Whoever waits for those rows goes on only after the
first has committed, and draws later. So for events of one task or group, and for any two transactions
of which one began after the other had ended, id order is the order in which things happened; the same
for every watcher, and on every reading.

**Ids become visible out of order**: 8 may be committed while 7 is still on its way. A reader that
went on to 8 would lose 7. So the reader stops in front of a missing id and looks again, a few
milliseconds later. Mostly 7 has come by then. If it does not come, either its transaction still runs,
or it rolled back and the id is dead. That must be known, not guessed:

- INSERT locks the table (ROW EXCLUSIVE) before it computes the new row's id, and the lock is held
  until after the commit has become visible. pg_locks shows who holds it.
- 8 was seen, so 7 had been drawn. If its transaction is not over when pg_locks is read after that, it
  is among the holders. When none of these holders is there any more, it is over.
- What the next reading then still misses below the ids seen before is dead, and is passed over.

This costs two look-ups for each rollback in the very moment of the commit, which is rare, and nothing
else. The log waits for no transaction but one that has written events and not committed.

**Why not by transaction id**, reading all below `pg_snapshot_xmin` and sorting by id in between?
It skips nothing either, but it mixes up tasks. A batch T2 (xid 100) locks task A, then waits for X.
T1 (xid 102) holds X, writes its events and commits; T2 goes on and commits. An unrelated transaction
101 still runs, so xmin is 101: a reader gets T2's events of X now, and those of T1, which happened
before, later. And xmin stands still for any long transaction in the whole cluster, such as the build
of an index; the locks here are those of the outbox only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from server.events.cursors import Position
from server.events.rows import LogRow, read_row
from server.store.database import Database, Row
from server.store.statements import load

_SQL = load("events")
_log = structlog.get_logger(__name__)

# A commit takes less than this nearly always, and the look-ups are for when it does not.
_PATIENCE_S = 0.01
_COMPLAIN_AFTER_S = 5.0


@dataclass(slots=True)
class LogState:
    """Rows up to `horizon` are deleted; ids up to `drawn` have been given out."""

    horizon: int
    drawn: int
    log_id: bytes


@dataclass(slots=True)
class Page:
    """A stretch of the log that is final: its rows, and where it ends. `horizon` as in LogState;
    `more`: rows behind it have been seen."""

    rows: Sequence[LogRow]
    end: Position
    horizon: int
    more: bool = False


@dataclass(slots=True)
class _Gap:
    """An id that is missing although higher ones up to `seen` were there. `writers` are those that
    may still bring it; None until they are looked up."""

    missing: int
    seen: int
    since: float
    looks: int = 1
    writers: frozenset[str] | None = None
    complained: bool = False


class LogReader:
    """Reads on from one place; not to be used by two tasks at once, except for `page` and `state`."""

    def __init__(self, db: Database, *, page_rows: int, page_bytes: int) -> None:
        self._db = db
        self._page_rows = page_rows
        self._page_bytes = page_bytes
        self._gap: _Gap | None = None
        #: Every id below this is final and has been read.
        self.next_id = 0

    @property
    def blocked_looks(self) -> int:
        """How often the missing id in front has been looked for; 0 if nothing is in the way."""
        return 0 if self._gap is None else self._gap.looks

    async def state(self) -> LogState:
        """The log's present bounds."""
        horizon, drawn, log_id = (await self._db.fetch(_SQL["read_log_state"]))[0]
        return LogState(horizon, drawn, log_id.bytes)

    async def writers(self) -> frozenset[str]:
        """The transactions that may have drawn an id and not committed it."""
        rows = await self._db.fetch(_SQL["read_open_writers"], hot=True)
        return frozenset(row[0] for row in rows)

    def start(self, next_id: int) -> None:
        """Puts the reader at a place below which everything is final."""
        self.next_id = next_id
        self._gap = None

    async def read(self) -> Page:
        """What has become final since the last time; `end` is where the reader stands now.

        If the horizon has overtaken the reader, rows were deleted unread: the page then starts behind
        the horizon.
        """
        final_to = await self._final_to()
        found = await self._db.fetch(
            _SQL["read_new_rows"], (self.next_id, self._page_rows, self._page_bytes), hot=True
        )
        horizon, count = found[0][:2]
        next_id = max(self.next_id, horizon + 1)
        rows: list[LogRow] = []
        seen = 0
        for _, _, row_id, moment, text in found:
            if row_id is None:
                break
            seen = row_id
            if row_id == next_id or next_id <= row_id <= final_to + 1:
                rows.append(read_row(row_id, moment, text))
                next_id = row_id + 1
        self.next_id = next_id
        self._note_gap(next_id, seen)
        return Page(rows, Position(next_id), horizon, more=seen > 0 and self._is_cut(found, count))

    async def page(self, start: Position, end: Position, needle: str) -> Page:
        """Rows from `start` on that hold the needle, as far as one page goes, `end` at most; everything
        before `end` must be final. A start before the horizon gives an empty page."""
        found = await self._db.fetch(
            _SQL["read_kept_rows"], (start.row, end.row - 1, needle, self._page_rows, self._page_bytes)
        )
        horizon = found[0][0]
        if start.row <= horizon:
            return Page((), start, horizon)
        if found[0][2] is None:
            return Page((), end, horizon)
        rows = [read_row(row_id, moment, text) for _, _, row_id, moment, text in found]
        if self._is_cut(found, found[0][1]):
            return Page(rows, Position(rows[-1].id + 1), horizon, more=True)
        return Page(rows, end, horizon)

    def _is_cut(self, found: Sequence[Row], count: int) -> bool:
        """Whether rows were left out, by their number or by their size."""
        return count > len(found) or count == self._page_rows

    async def _final_to(self) -> int:
        """The id up to which everything missing in the next reading is dead; 0 if that is not known."""
        gap = self._gap
        if gap is None or time.monotonic() - gap.since < _PATIENCE_S:
            return 0
        writers = await self.writers()
        gap.writers = writers if gap.writers is None else gap.writers & writers
        return 0 if gap.writers else gap.seen

    def _note_gap(self, next_id: int, seen: int) -> None:
        """After a reading that ended at `next_id` and saw ids up to `seen`."""
        gap = self._gap
        if seen < next_id:
            self._gap = None
        elif gap is None or gap.missing != next_id:
            self._gap = _Gap(next_id, seen, time.monotonic())
        else:
            gap.looks += 1
            if gap.writers is None:
                gap.seen = seen
            waited = time.monotonic() - gap.since
            if waited > _COMPLAIN_AFTER_S and not gap.complained:
                gap.complained = True
                _log.warning(
                    "events wait for a transaction that has written some and does not end",
                    row=gap.missing,
                    waited_s=round(waited, 1),
                )
