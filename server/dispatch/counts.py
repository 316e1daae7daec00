"""How many runs of a queue are pending or claimed, cheap enough to be asked every second."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from server.store.database import Database
from server.store.statements import load

_SQL = load("counts")

EXACT = 10_000
"""Up to here an answer is counted for the asker; that takes a walk over so many index entries."""

_SHARE = 0.03
_KEPT_S = 60.0

Kind: TypeAlias = Literal["count_pending", "count_claimed"]


@dataclass(slots=True)
class _Large:
    """A count of a large queue: how many there were, when, and how long counting them took."""

    found: int
    at: float
    took: float

    def age(self, now: float) -> float:
        """How long it has been due for being counted anew; below zero it is not."""
        return now - self.at - self.took / _SHARE


class QueueCounts:
    """Counts that are exact while they are small.

    Beyond EXACT a queue is counted in the background when somebody asks, and not again until 33 times
    as long has passed as counting took, so that counting takes at most 3 % of one connection's
    time per queue. Meanwhile askers get the last count, which is that old at most (a million
    pending runs take about half a second, so some 15 s). Nothing is counted that nobody asks for.
    """

    def __init__(self, db: Database, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._monotonic = monotonic
        self._large: dict[tuple[Kind, str], _Large] = {}
        self._counting: dict[tuple[Kind, str], asyncio.Task[_Large]] = {}

    async def pending(self, task_queue_id: str) -> int:
        """Pending runs before their deadline (queue.md 3.8 pendingTasks); 0 for an unknown queue."""
        return await self._count("count_pending", task_queue_id)

    async def claimed(self, task_queue_id: str) -> int:
        """Running runs whose claim has not run out (queue.md 3.8 taskQueueCounts)."""
        return await self._count("count_claimed", task_queue_id)

    async def close(self) -> None:
        """Ends counts under way."""
        tasks = list(self._counting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _count(self, kind: Kind, queue_id: str) -> int:
        key = (kind, queue_id)
        large = self._large.get(key)
        if large is not None and large.age(self._monotonic()) < 0:
            return large.found
        ((small,),) = await self._db.fetch(_SQL[kind], (queue_id, EXACT + 1), hot=True)
        if small <= EXACT:
            self._large.pop(key, None)
            return int(small)
        large = self._large.get(key)  # somebody else may have counted meanwhile
        age = math.inf if large is None else large.age(self._monotonic())
        if large is None or age >= 0:
            counting = self._start(key)
            if large is None or age > _KEPT_S:
                large = await asyncio.shield(counting)
        return max(large.found, EXACT + 1)

    def _start(self, key: tuple[Kind, str]) -> asyncio.Task[_Large]:
        task = self._counting.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._count_all(key), name=f"{key[0]} {key[1]}")
            self._counting[key] = task
            task.add_done_callback(lambda done: self._counted(key, done))
        return task

    async def _count_all(self, key: tuple[Kind, str]) -> _Large:
        kind, queue_id = key
        begin = self._monotonic()
        ((found,),) = await self._db.fetch(_SQL[kind], (queue_id, None))
        end = self._monotonic()
        return _Large(int(found), end, end - begin)

    def _counted(self, key: tuple[Kind, str], task: asyncio.Task[_Large]) -> None:
        del self._counting[key]
        now = self._monotonic()
        for stale in [
            k for k, large in self._large.items() if now > large.at + large.took / _SHARE + _KEPT_S
        ]:
            del self._large[stale]
        if not task.cancelled() and task.exception() is None:
            self._large[key] = task.result()
