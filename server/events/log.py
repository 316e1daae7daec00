"""The event log of one process: one reading for all its watchers, and none at all for none.

What the order of events is, and why none is skipped, is said in `reader`. Each row is read and taken
apart once and pushed to those it concerns. A watcher's queue is bounded: one that falls behind leaves
the feed and reads on by itself at its own pace, first from the rows still at hand, then from the
table, and is back in the feed once it has caught up. So it costs no memory and loses nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from server.errors import InputError, Unavailable
from server.events.cursors import Position, decode, encode
from server.events.feed import Feed, Hub, Limits, too_old
from server.events.filters import EventFilter
from server.events.rows import Event
from server.events.subscriptions import Subscription
from server.store.database import Database

__all__ = ["Batch", "EventFilter", "EventLog", "Limits", "Start"]


class EventSettings(Protocol):
    """The part of Settings that EventLog reads."""

    @property
    def db_wait_timeout_s(self) -> float: ...


class Start(Enum):
    """Where a watch without a cursor begins."""

    NOW = "now"
    OLDEST = "oldest"


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that match, none on a checkpoint; `cursor` resumes behind them."""

    events: Sequence[Event]
    cursor: str


class EventLog:
    """Follows the log on behalf of any number of watchers."""

    def __init__(self, db: Database, hub: Hub, settings: EventSettings, limits: Limits | None = None) -> None:
        self._db = db
        self._hub = hub
        self._settings = settings
        self._limits = limits or Limits()
        self._feed: Feed | None = None
        self._watching: set[Subscription] = set()
        self._own_readings = asyncio.Semaphore(self._limits.own_readings)
        self._stopped = False

    @property
    def watchers(self) -> int:
        """How many watch at the moment."""
        return len(self._watching)

    @property
    def lagging(self) -> int:
        """How many of them read by themselves, because they are behind."""
        return sum(not watcher.live for watcher in self._watching)

    async def watch(self, event_filter: EventFilter, start: str | Start) -> AsyncGenerator[Batch, None]:
        """Batches of matching events from a cursor or a Start on, for ever. Close it when done (aclosing).

        The first batch has no events and says that the watch is established: whatever is committed
        after it will come. Later, whenever nothing has matched for a few seconds, comes a checkpoint:
        again a batch with no events, and a cursor to resume from.

        Raises InputError for a cursor that is none, CursorTooOld if retention has overtaken it (or a
        slow watcher), Unavailable if the log cannot be read at the start, or the server stops.
        """
        feed = self._enter()
        watcher: Subscription | None = None
        try:
            await self._until_ready(feed)
            watcher = Subscription(event_filter, await self._locate(feed, start))
            self._watching.add(watcher)
            yield Batch((), encode(watcher.taken, feed.log_id))
            while True:
                events = await self._next(feed, watcher)
                yield Batch(events, encode(watcher.taken, feed.log_id))
        finally:
            if watcher is not None:
                self._watching.discard(watcher)
                feed.detach(watcher)
            self._leave(feed)

    async def stop(self) -> None:
        """Ends all watches with Unavailable, and the reading."""
        self._stopped = True
        for watcher in self._watching:
            watcher.fail(Unavailable("the server is stopping; resume with the last cursor"))
        if self._feed is not None:
            task = self._feed.stop()
            self._feed = None
            if task is not None:
                await asyncio.gather(task, return_exceptions=True)

    def _enter(self) -> Feed:
        if self._stopped:
            raise Unavailable("the server is stopping")
        if self._feed is None:
            self._feed = Feed(self._db, self._hub, self._limits)
            self._feed.start()
        self._feed.users += 1
        return self._feed

    def _leave(self, feed: Feed) -> None:
        feed.users -= 1
        if feed.users == 0:
            feed.stop()
            if self._feed is feed:
                self._feed = None

    async def _until_ready(self, feed: Feed) -> None:
        try:
            async with asyncio.timeout(self._settings.db_wait_timeout_s):
                await feed.ready.wait()
        except TimeoutError:
            raise Unavailable("the event log cannot be read at the moment; try again soon") from None

    async def _locate(self, feed: Feed, start: str | Start) -> Position:
        """Where a watch begins; what is deleted, or was never written, is found out here."""
        if start is Start.NOW:
            return feed.end
        position = decode(start, feed.log_id) if isinstance(start, str) else None
        if position is not None and feed.tail.start <= position <= feed.end:
            return position
        async with self._own_readings:
            state = await feed.reader.state()
        if position is None:
            return Position(state.horizon + 1)
        if position.row <= state.horizon:
            raise too_old()
        # Other processes may be a little ahead of this one, but not of the database.
        if position > Position(state.drawn + 1):
            raise InputError("the cursor is ahead of the log; was the database restored from a backup?")
        return position

    async def _next(self, feed: Feed, watcher: Subscription) -> Sequence[Event]:
        """The next events, or none when it is time for a checkpoint."""
        clock = asyncio.get_running_loop().time
        limits = self._limits
        until = clock() + limits.checkpoint_s * random.uniform(0.75, 1.0)
        while True:
            if watcher.failure is not None:
                raise watcher.failure
            if watcher.queue or clock() >= until:
                return watcher.take(feed.end, most_events=limits.batch_events, most_size=limits.batch_size)
            if watcher.live:
                await watcher.wait(until)
            elif watcher.sifted >= feed.end:
                feed.attach(watcher)
            else:
                await self._read_on(feed, watcher)

    async def _read_on(self, feed: Feed, watcher: Subscription) -> None:
        """One page of what a watcher outside the feed has still to see."""
        most = self._limits.page_rows
        rows = feed.tail.since(watcher.sifted)
        if rows is not None:
            watcher.sift(rows[:most], feed.end if len(rows) <= most else Position(rows[most].id))
            await asyncio.sleep(0)
            return
        end = min(feed.end, Position(watcher.sifted.row + self._limits.search_ids))
        try:
            async with self._own_readings:
                page = await feed.reader.page(watcher.sifted, end, watcher.filter.needle)
        except Unavailable:
            await asyncio.sleep(self._limits.retry_s)
            return
        if watcher.sifted.row <= page.horizon:
            raise too_old()
        watcher.sift(page.rows, page.end)
