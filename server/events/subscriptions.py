"""Who watches what: one watcher's queue, and the index that finds the watchers of an event."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from server.errors import QueueError
from server.events.cursors import Position
from server.events.filters import EventFilter
from server.events.rows import Event, LogRow


class Subscription:
    """One watcher's state, between the log that pushes and the watcher that takes.

    While `live` the log pushes to it, and everything before the log's end has been sifted. Otherwise
    the watcher reads by itself, and everything before `sifted` has been.
    """

    __slots__ = ("_size", "_waiter", "failure", "filter", "live", "queue", "sifted", "taken")

    def __init__(self, event_filter: EventFilter, start: Position) -> None:
        self.filter = event_filter
        self.live = False
        self.sifted = start
        #: Everything matching before this has been handed to the watcher.
        self.taken = start
        #: What ends the watch, once set.
        self.failure: QueueError | None = None
        self.queue: deque[Event] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None

    def push(self, event: Event, *, most_events: int, most_size: int) -> bool:
        """Takes an event of the live feed. False: there is no room; the watcher has to read by itself
        from this very event on, once it has worked off what is queued."""
        if (event.row, event.index) < self.sifted:
            return True  # it resumed at a place that this process had not reached yet
        if self.queue and (len(self.queue) >= most_events or self._size + len(event.payload) > most_size):
            self.live = False
            self.sifted = Position(event.row, event.index)
            return False
        self.queue.append(event)
        self._size += len(event.payload)
        self.wake()
        return True

    def sift(self, rows: Iterable[LogRow], end: Position) -> None:
        """Takes what the watcher read by itself: rows from `sifted` on, up to `end`."""
        for row in rows:
            for event in row.events:
                if (event.row, event.index) >= self.sifted and self.filter.matches(event):
                    self.queue.append(event)
                    self._size += len(event.payload)
        self.sifted = max(self.sifted, end)

    def take(self, log_end: Position, *, most_events: int, most_size: int) -> Sequence[Event]:
        """The next events, at least one if any are queued, and moves `taken` behind them."""
        batch: list[Event] = []
        size = 0
        while self.queue and len(batch) < most_events and (not batch or size < most_size):
            event = self.queue.popleft()
            batch.append(event)
            size += len(event.payload)
        self._size -= size
        if self.queue:
            self.taken = Position(batch[-1].row, batch[-1].index + 1)
        else:
            self.taken = max(self.sifted, log_end) if self.live else self.sifted
        return batch

    def fail(self, error: QueueError) -> None:
        """Ends the watch."""
        self.live = False
        self.failure = error
        self.wake()

    def wake(self) -> None:
        """Lets `wait` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, until: float) -> None:
        """Returns when something was pushed, or at that time of the loop's clock."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_at(until, self.wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


#: Watchers with equal filters share one test.
_Bucket = dict[EventFilter, set[Subscription]]


class SubscriptionIndex:
    """Finds the watchers of an event without asking those that watch something else.

    Each watcher stands in one bucket: its task's, else its group's, else its queue's, else the one for
    everything. An event is tested against the distinct filters of at most four buckets.
    """

    def __init__(self) -> None:
        self._by_task: dict[str, _Bucket] = {}
        self._by_group: dict[str, _Bucket] = {}
        self._by_queue: dict[str, _Bucket] = {}
        self._others: dict[str, _Bucket] = {}

    def add(self, subscription: Subscription) -> None:
        """Adds a watcher; it must not be there already."""
        buckets, key = self._place(subscription.filter)
        buckets.setdefault(key, {}).setdefault(subscription.filter, set()).add(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Removes a watcher; nothing happens if it is not there."""
        buckets, key = self._place(subscription.filter)
        bucket = buckets.get(key, {})
        equals = bucket.get(subscription.filter, set())
        equals.discard(subscription)
        if not equals:
            bucket.pop(subscription.filter, None)
        if not bucket:
            buckets.pop(key, None)

    def watchers(self, event: Event) -> Iterator[Subscription]:
        """The watchers that want the event. Add and remove none before the last."""
        for bucket in (
            self._by_task.get(event.task_id),
            self._by_group.get(event.task_group_id),
            self._by_queue.get(event.task_queue_id),
            self._others.get(""),
        ):
            if bucket is not None:
                for event_filter, equals in bucket.items():
                    if event_filter.matches(event):
                        yield from equals

    def __iter__(self) -> Iterator[Subscription]:
        for buckets in (self._by_task, self._by_group, self._by_queue, self._others):
            for bucket in buckets.values():
                for equals in bucket.values():
                    yield from equals

    def _place(self, event_filter: EventFilter) -> tuple[dict[str, _Bucket], str]:
        if event_filter.task_id:
            return self._by_task, event_filter.task_id
        if event_filter.task_group_id:
            return self._by_group, event_filter.task_group_id
        if event_filter.task_queue_id:
            return self._by_queue, event_filter.task_queue_id
        return self._others, ""


class Tail:
    """The latest rows, kept for watchers that fall a little behind or come back after a short while."""

    def __init__(self, start: Position, *, most_rows: int, most_size: int) -> None:
        #: Everything from here to the log's end is at hand.
        self.start = start
        self._rows: deque[LogRow] = deque()
        self._size = 0
        self._most_rows = most_rows
        self._most_size = most_size

    def append(self, row: LogRow) -> None:
        """Adds the next row and lets go of the oldest if there are too many."""
        self._rows.append(row)
        self._size += row.size
        while len(self._rows) > self._most_rows or self._size > self._most_size:
            gone = self._rows.popleft()
            self._size -= gone.size
            self.start = Position(gone.id + 1)

    def since(self, start: Position) -> Sequence[LogRow] | None:
        """The rows from there on; None if some of them are not at hand any more."""
        if start < self.start:
            return None
        found: list[LogRow] = []
        for row in reversed(self._rows):
            if row.id < start.row:
                break
            found.append(row)
        found.reverse()
        return found
