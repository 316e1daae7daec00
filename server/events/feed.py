"""The shared reading: one task that reads the log for all watchers of a process and pushes to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from server.errors import CursorTooOld, Unavailable
from server.events.cursors import Position
from server.events.reader import LogReader, Page
from server.events.subscriptions import Subscription, SubscriptionIndex, Tail
from server.store.database import Database

_log = structlog.get_logger(__name__)

_GAP_PAUSE_S = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes are in characters, times in seconds."""

    #: A watcher that has not taken so much leaves the feed.
    queue_events: int = 256
    queue_size: int = 1 << 20
    #: The most that one Batch holds, if it holds more than one event.
    batch_events: int = 256
    batch_size: int = 1 << 20
    #: The most that one reading brings, if it brings more than one row.
    page_rows: int = 256
    page_size: int = 1 << 18
    #: How many ids one reading looks through for one task or group.
    search_ids: int = 20_000
    #: What is kept for watchers that fall a little behind.
    tail_rows: int = 4096
    tail_size: int = 16 << 20
    #: Watchers that may read the table by themselves at the same time.
    own_readings: int = 2
    #: Pause between checkpoints, less up to a quarter so that they do not come all at once.
    checkpoint_s: float = 10.0
    #: Pause between readings while nobody says that there is something.
    poll_s: float = 1.0
    #: Pause after a reading that brought something, so that a busy log is read many rows at once.
    linger_s: float = 0.003
    #: Longest pause before a missing id is looked for again.
    gap_pause_s: float = 0.05
    #: Pause after a reading that failed.
    retry_s: float = 0.5


class Hub(Protocol):
    """The part of NotifyHub that is used here."""

    def subscribe(self, channel: str, callback: Callable[[str], None], /) -> Callable[[], None]: ...

    def subscribe_gap(self, callback: Callable[[], None], /) -> Callable[[], None]: ...


class Feed:
    """Reads from `start` to `stop`. `log_id`, `end` and `tail` mean something once `ready` is set."""

    def __init__(self, db: Database, hub: Hub, limits: Limits) -> None:
        self._limits = limits
        self.reader = LogReader(db, page_rows=limits.page_rows, page_bytes=limits.page_size)
        self.ready = asyncio.Event()
        self.log_id = b""
        #: Everything before this is final and has been pushed to those who are live.
        self.end = Position(0)
        self.tail = self._new_tail()
        #: Watches that use this feed, those that still wait for it to be ready included.
        self.users = 0
        self._hub = hub
        self._live = SubscriptionIndex()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: list[Callable[[], None]] = []

    def start(self) -> None:
        """Starts reading."""
        self._unsubscribe = [
            self._hub.subscribe("events", lambda _: self._wake.set()),
            self._hub.subscribe_gap(self._wake.set),
        ]
        self._task = asyncio.get_running_loop().create_task(self._run(), name="event feed")

    def stop(self) -> asyncio.Task[None] | None:
        """Stops reading; returns the task that ends."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []
        if self._task is not None:
            self._task.cancel()
        return self._task

    def attach(self, subscription: Subscription) -> None:
        """Pushes to a watcher from now on; it must have sifted everything before `end`."""
        subscription.live = True
        self._live.add(subscription)

    def detach(self, subscription: Subscription) -> None:
        """Pushes no more."""
        subscription.live = False
        self._live.remove(subscription)

    async def _run(self) -> None:
        trouble = ""
        while True:
            try:
                if not self.ready.is_set():
                    await self._begin()
                self._wake.clear()
                before = self.reader.next_id
                page = await self.reader.read()
            except Exception as e:
                if str(e) != trouble:
                    trouble = str(e)
                    # A database that is away is no news with a traceback.
                    known = isinstance(e, Unavailable)
                    _log.warning("events cannot be read; trying on", error=trouble, exc_info=not known)
                await asyncio.sleep(self._limits.retry_s)
                continue
            trouble = ""
            if page.horizon >= before:
                self._overtaken(page.horizon)
            self._push(page)
            await self._pause(page)

    async def _begin(self) -> None:
        """Begins behind the ids drawn so far, once the last of them is final."""
        state = await self.reader.state()
        writers = await self.reader.writers()
        while writers:
            await asyncio.sleep(_GAP_PAUSE_S)
            writers &= await self.reader.writers()
        self.reader.start(state.drawn + 1)
        self.log_id = state.log_id
        self.end = Position(state.drawn + 1)
        self.tail = self._new_tail()
        self.ready.set()

    def _push(self, page: Page) -> None:
        most_events, most_size = self._limits.queue_events, self._limits.queue_size
        for row in page.rows:
            self.tail.append(row)
            for event in row.events:
                full = [
                    watcher
                    for watcher in self._live.watchers(event)
                    if not watcher.push(event, most_events=most_events, most_size=most_size)
                ]
                for watcher in full:
                    self.detach(watcher)
        self.end = page.end

    def _overtaken(self, horizon: int) -> None:
        """Retention has deleted rows before they were read here: nobody may believe to have seen all."""
        for watcher in list(self._live):
            watcher.fail(too_old())
        self.end = Position(horizon + 1)
        self.tail = self._new_tail()

    async def _pause(self, page: Page) -> None:
        looks = self.reader.blocked_looks
        if looks:
            await asyncio.sleep(min(_GAP_PAUSE_S * looks, self._limits.gap_pause_s))
        elif page.more:
            await asyncio.sleep(0)
        else:
            if page.rows:
                await asyncio.sleep(self._limits.linger_s)
            try:
                async with asyncio.timeout(self._limits.poll_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _new_tail(self) -> Tail:
        return Tail(self.end, most_rows=self._limits.tail_rows, most_size=self._limits.tail_size)


def too_old() -> CursorTooOld:
    """What ends a watch that retention has overtaken."""
    return CursorTooOld("events behind this cursor have been deleted; start anew, or with from_start")
