"""Which workers and queues have shown up, noted now and then, and who is quarantined (queue.md 2.11)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from server.clock import Clock
from server.config import Settings
from server.errors import QueueError
from server.store.batcher import Batcher
from server.store.database import Database
from server.store.hub import NotifyHub
from server.store.statements import load

log = structlog.get_logger(__name__)

_WORKERS = load("workers")
_QUEUES = load("task_queues")

CHANNEL = "quarantine"
"""Hub channel that carries `<queue> <group> <worker> <until>`; `until` in seconds since the epoch."""

_MOST_REMEMBERED = 100_000  # workers, some 300 bytes each
_QUEUE_EXPIRES_S = 5 * 86400.0
_REREAD_AT_ONCE = 1000

#: Task queue, worker group, worker id.
Key: TypeAlias = tuple[str, str, str]
#: Told of a worker's new quarantine: queue, group, id, and until when (seconds since the epoch).
Listener: TypeAlias = Callable[[str, str, str, float], None]


@dataclass(slots=True)
class _Worker:
    """What this process knows of a worker. `due` is when its row is to be written again, on the
    monotonic clock; `heard` counts messages, so that what a statement read before one does not undo it."""

    until: float = 0.0
    due: float = 0.0
    heard: int = 0
    read: bool = False


class SeenWorkers:
    """Answers from memory, and writes a row at first sight and then once per `worker_info_update_s`.

    A worker that holds a stream should be reported at least that often, which keeps its row alive.
    One not reported for twice that long is forgotten, as is the oldest when there are too many; both
    cost no more than a write at its return.
    """

    def __init__(self, db: Database, hub: NotifyHub, settings: Settings, clock: Clock) -> None:
        self._db = db
        self._hub = hub
        self._clock = clock
        self._every_s = settings.worker_info_update_s
        self._workers: dict[Key, _Worker] = {}
        self._queues: dict[str, float] = {}
        self._swept = time.monotonic()
        self._listeners: list[Listener] = []
        self._rereading: asyncio.Task[None] | None = None
        self._writes: Batcher[Key, float] = Batcher("seen", self._write, lanes=1)
        self._unsubscribe = [
            hub.subscribe(CHANNEL, self._told),
            hub.subscribe_gap(self._missed_some),
        ]

    async def saw(self, task_queue_id: str, worker_group: str, worker_id: str) -> float | None:
        """Notes that a worker asked for work or renewed a claim. Its row and its queue's are there when
        this returns. Returns until when it is quarantined (seconds since the epoch), None if it is not."""
        key = (task_queue_id, worker_group, worker_id)
        now = time.monotonic()
        worker = self._workers.get(key)
        if worker is None:
            worker = self._remember(key, now)
        if now >= worker.due or not worker.read:
            await self._renew(key, worker, now)
        return worker.until if worker.until > self._clock.seconds() else None

    async def saw_queue(self, task_queue_id: str) -> None:
        """Notes that a queue's task was claimed by name: its row lives five days more, no worker's does."""
        now = time.monotonic()
        if now < self._queues.get(task_queue_id, 0.0):
            return
        self._sweep(now)
        await self._db.fetch(
            _QUEUES["declare_task_queue"], (task_queue_id, None, None, None, _QUEUE_EXPIRES_S), hot=True
        )
        self._queues[task_queue_id] = now + self._every_s

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` for every change of a quarantine, made anywhere; returns how to end that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def quarantined(self, task_queue_id: str, worker_group: str, worker_id: str) -> float | None:
        """Until when a worker is quarantined, None if it is not; notes nothing. An unknown worker is not."""
        worker = self._workers.get((task_queue_id, worker_group, worker_id))
        if worker is not None and worker.read:
            until = worker.until
        else:
            rows = await self._db.fetch(
                _WORKERS["read_quarantines"], ([task_queue_id], [worker_group], [worker_id]), hot=True
            )
            until = rows[0][3] if rows else 0.0
        return until if until > self._clock.seconds() else None

    def announce(self, task_queue_id: str, worker_group: str, worker_id: str, until: float) -> None:
        """Tells all processes of a quarantine that has been committed; here it holds from now on."""
        self._hub.publish(CHANNEL, f"{task_queue_id} {worker_group} {worker_id} {until!r}")

    async def close(self) -> None:
        """Stops listening and lets running statements end."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        if self._rereading is not None:
            self._rereading.cancel()
            await asyncio.wait([self._rereading])
        await self._writes.drain()

    def _remember(self, key: Key, now: float) -> _Worker:
        self._sweep(now)
        if len(self._workers) >= _MOST_REMEMBERED:
            del self._workers[next(iter(self._workers))]
        worker = self._workers[key] = _Worker()
        return worker

    def _sweep(self, now: float) -> None:
        """Forgets who has not come back; `due` lies one update after the last write."""
        if now - self._swept < self._every_s:
            return
        self._swept = now
        for key in [k for k, worker in self._workers.items() if now > worker.due + self._every_s]:
            del self._workers[key]
        for queue_id in [q for q, due in self._queues.items() if now > due]:
            del self._queues[queue_id]

    async def _renew(self, key: Key, worker: _Worker, now: float) -> None:
        due, heard = worker.due, worker.heard
        worker.due = now + self._every_s  # others need not wait, unless nothing has been read yet
        try:
            until = await self._writes.submit(key)
        except BaseException:
            worker.due = due
            raise
        worker.read = True
        if worker.heard == heard:
            worker.until = until

    async def _write(self, keys: list[Key]) -> Sequence[float]:
        distinct = sorted(set(keys))
        columns = [list(column) for column in zip(*distinct, strict=True)]
        rows = await self._db.fetch(_WORKERS["see_workers"], columns, hot=True)
        until = {(queue_id, group, worker_id): seconds for queue_id, group, worker_id, seconds in rows}
        return [until[key] for key in keys]

    def _told(self, message: str) -> None:
        queue_id, group, worker_id, until = message.split(" ")
        self._learn((queue_id, group, worker_id), float(until))

    def _learn(self, key: Key, until: float) -> None:
        worker = self._workers.get(key)
        if worker is not None:
            worker.until = until
            worker.heard += 1
        for listener in list(self._listeners):
            listener(*key, until)

    def _missed_some(self) -> None:
        """Messages were lost: what is known may be wrong until it has been read again."""
        if self._rereading is not None:
            self._rereading.cancel()
        self._rereading = asyncio.get_running_loop().create_task(self._reread(), name="reread quarantines")

    async def _reread(self) -> None:
        keys = list(self._workers)
        try:
            for start in range(0, len(keys), _REREAD_AT_ONCE):
                part = keys[start : start + _REREAD_AT_ONCE]
                heard = {key: worker.heard for key in part if (worker := self._workers.get(key))}
                columns = [list(column) for column in zip(*part, strict=True)]
                rows = await self._db.fetch(_WORKERS["read_quarantines"], columns, hot=True)
                for *names, until in rows:
                    key = (names[0], names[1], names[2])
                    worker = self._workers.get(key)
                    if worker is not None and worker.heard == heard.get(key) and worker.until != until:
                        self._learn(key, until)
        except QueueError as e:
            # The rows are written, and with that read, again in time; the next gap tries this again.
            log.warning("quarantines could not be read again", error=e.message)
