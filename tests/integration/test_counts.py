"""How many runs are pending and claimed (queue.md 3.8; design 3: counts asked every second)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from server.dispatch import counts as counts_module
from server.dispatch.counts import QueueCounts
from server.domain.slugid import nice
from server.errors import InsufficientScopes
from server.services import Services
from tests.plugins.services import Api, definition

QUEUE = {"task_queue_id": "prov/work"}


async def test_pending(api: Api, services: Services) -> None:
    """Q-199: counted exactly; 0 for an unknown queue; a repeated creation does not count twice."""
    assert (await api("GetPendingTasksCount", **QUEUE)).pending_tasks == 0
    task = definition(datetime.now(UTC), task_queue_id="prov/work")
    task_id = nice()
    for _ in range(3):
        await api("CreateTask", task_id=task_id, task=task)
    await api.create("prov/other")
    answer = await api("GetPendingTasksCount", **QUEUE)
    assert (answer.provisioner_id, answer.worker_type, answer.task_queue_id) == ("prov", "work", "prov/work")
    assert answer.pending_tasks == 1
    await api.create()
    assert (await api("GetPendingTasksCount", **QUEUE)).pending_tasks == 2
    await services.db.fetch("UPDATE runs SET deadline = now() WHERE task_id = $1::text", (task_id,))
    assert (await api("GetPendingTasksCount", **QUEUE)).pending_tasks == 1


async def test_claimed(api: Api) -> None:
    """Q-200: distinct runs however often they are reclaimed; both scopes are needed."""
    ids = [await api.create() for _ in range(3)]
    await api.claim(tasks=2)
    for _ in range(2):
        await api("ReclaimTask", task_id=ids[0], run_id=0)
    answer = await api("GetTaskQueueCounts", **QUEUE)
    assert (answer.provisioner_id, answer.worker_type, answer.task_queue_id) == ("prov", "work", "prov/work")
    assert (answer.pending_tasks, answer.claimed_tasks) == (1, 2)
    await api("ReportCompleted", task_id=ids[0], run_id=0)
    assert (await api("GetTaskQueueCounts", **QUEUE)).claimed_tasks == 1
    both = ["queue:pending-count:prov/work", "queue:claimed-count:prov/work"]
    await api.having(*both)("GetTaskQueueCounts", **QUEUE)
    for scope in both:
        with pytest.raises(InsufficientScopes):
            await api.having(scope)("GetTaskQueueCounts", **QUEUE)


@dataclass
class Bench:
    """A QueueCounts with a clock of its own, on a queue that counts as large from 3 runs on."""

    counts: QueueCounts
    api: Api
    time: float = 0.0
    whole: int = 0

    async def pending(self) -> int:
        return await self.counts.pending("prov/work")

    async def settle(self) -> None:
        await asyncio.gather(*self.counts._counting.values())


@pytest.fixture
async def bench(api: Api, services: Services, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(counts_module, "EXACT", 2)
    bench = Bench(None, api)  # type: ignore[arg-type]
    fetch = services.db.fetch

    async def slow(sql: str, parameters: Any = (), **options: Any) -> Any:
        if parameters == ("prov/work", None):
            bench.whole += 1
            bench.time += 0.3
        return await fetch(sql, parameters, **options)

    monkeypatch.setattr(services.db, "fetch", slow)
    bench.counts = QueueCounts(services.db, lambda: bench.time)
    yield bench
    await bench.counts.close()


async def test_large_queues_are_counted_now_and_then(bench: Bench) -> None:
    """A count that took 0.3 s is good for 10 s, then it is made anew behind the asker's back."""
    for _ in range(2):
        await bench.api.create()
    assert await bench.pending() == 2 and bench.whole == 0
    for _ in range(3):
        await bench.api.create()
    assert await asyncio.gather(*[bench.pending() for _ in range(5)]) == [5] * 5
    assert bench.whole == 1
    await bench.api.create()
    bench.time += 9.9
    assert await bench.pending() == 5 and bench.whole == 1
    bench.time += 0.2
    assert await bench.pending() == 5
    await bench.settle()
    assert bench.whole == 2 and await bench.pending() == 6


async def test_an_old_count_is_not_shown(bench: Bench) -> None:
    """Who asks after a long time waits for a new count."""
    for _ in range(4):
        await bench.api.create()
    assert await bench.pending() == 4
    await bench.api.create()
    bench.time += 3600
    assert await bench.pending() == 5 and bench.whole == 2


async def test_a_queue_that_has_become_small_is_exact_again(bench: Bench) -> None:
    """Nothing of the large count remains."""
    for _ in range(4):
        await bench.api.create()
    assert await bench.pending() == 4
    await bench.api.claim(tasks=3)
    bench.time += 11
    assert await bench.pending() == 1
    assert not bench.counts._large and bench.whole == 1


async def test_forgets_queues_nobody_asks_about(bench: Bench) -> None:
    """Memory is bounded by what is asked."""
    for _ in range(4):
        await bench.api.create()
    await bench.pending()
    bench.counts._large["count_pending", "old/queue"] = bench.counts._large["count_pending", "prov/work"]
    bench.time += 3600
    await bench.pending()
    assert list(bench.counts._large) == [("count_pending", "prov/work")]
