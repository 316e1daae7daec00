"""The shared reading of the event log: bounded queues, filters, waking up, staying quiet (design 6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from server.errors import InputError, Unavailable
from server.events.log import Batch, EventFilter, EventLog, Limits, Start
from server.store.database import Database, PoolSettings
from server.store.embedded import EmbeddedPostgres
from server.store.migrator import migrate
from server.store.statements import load
from tests.plugins.event_log import (
    EVERYTHING,
    GROUP,
    LIMITS,
    OTHER,
    TASK,
    LocalHub,
    marks,
    row,
    take,
    watching,
    write,
)

# --- back-pressure


async def test_a_slow_watcher_is_left_behind_and_catches_up(db: Database, hub: LocalHub) -> None:
    limits = Limits(
        checkpoint_s=60, poll_s=60, queue_events=5, batch_events=3, tail_rows=10, page_rows=7, linger_s=0
    )
    log = EventLog(db, hub, PoolSettings(), limits)
    async with watching(log) as slow, watching(log) as quick:
        assert await take_one(slow, db, hub) == ["warm"]
        assert await take(quick, 1) == ["warm"]
        for n in range(0, 120, 4):
            await write(db, hub, row(n, n + 1), row(n + 2, n + 3))
            assert await take(quick, 4) == [n, n + 1, n + 2, n + 3]
        assert log.lagging == 1
        assert max(len(watcher.queue) for watcher in log._watching) == 5
        assert await take(slow, 120) == list(range(120))
        # Back in the feed: waiting for the next event is what takes it there.
        following = asyncio.create_task(take(slow, 1))
        await write(db, hub, row("live"))
        assert await following == ["live"]
        assert log.lagging == 0
        assert await take(quick, 1) == ["live"]


async def take_one(batches: AsyncIterator[Batch], db: Database, hub: LocalHub) -> list[Any]:
    """Makes a watcher live: it is when it has waited once."""
    waiting = asyncio.create_task(take(batches, 1))
    await write(db, hub, row("warm"))
    return await waiting


async def test_big_rows_are_read_in_pieces(db: Database, hub: LocalHub) -> None:
    limits = Limits(checkpoint_s=60, poll_s=60, page_size=50_000, batch_size=25_000, tail_size=30_000)
    log = EventLog(db, hub, PoolSettings(), limits)
    big = [row(*range(n, n + 10), size=10_000) for n in range(0, 50, 10)]
    async with watching(log) as batches:
        await write(db, hub, *big)
        found: list[Any] = []
        while len(found) < 50:
            batch = await anext(batches)
            assert len(batch.events) <= 3
            found += marks(batch)
        assert found == list(range(50))
    async with watching(log, Start.OLDEST) as batches:
        assert await take(batches, 50) == list(range(50))


# --- filters


async def test_each_watcher_gets_what_it_asked_for(log: EventLog, db: Database, hub: LocalHub) -> None:
    group_event = {
        "exchange": "task-group-resolved",
        "key": f"primary.{GROUP}.sched._",
        "cc": [],
        "payload": {"mark": "group"},
    }
    rows = [
        row("task", cc=["route.index.a"]),
        row("other", task=OTHER),
        row("elsewhere", task=OTHER, group=OTHER, cc=["route.index.b.c"]).replace("prov.type", "prov.else"),
        orjson.dumps([group_event]).decode(),
        row("end").replace("task-pending", "task-defined"),
    ]
    wanted = [
        (EVERYTHING, ["task", "other", "elsewhere", "group", "end"]),
        (EventFilter(task_id=TASK), ["task", "end"]),
        (EventFilter(task_group_id=GROUP), ["task", "other", "group", "end"]),
        (EventFilter(task_queue_id="prov/type"), ["task", "other", "end"]),
        (EventFilter(task_id=OTHER, task_group_id=OTHER), ["elsewhere"]),
        (EventFilter.build(["task-defined", "task-group-resolved"], [], "", "", ""), ["group", "end"]),
        (EventFilter.build([], ["route.index.*"], "", "", ""), ["task"]),
        (
            EventFilter.build([], ["route.index.#", "primary.*.sched._"], "", "", ""),
            ["task", "elsewhere", "group"],
        ),
        (EventFilter.build(["task-defined"], ["route.#"], "", "", ""), []),
        (EventFilter.build([], [f"primary.{TASK}.#"], TASK, GROUP, "prov/type"), ["task", "end"]),
    ]
    async with AsyncExitStack() as stack:
        watches = [(await stack.enter_async_context(watching(log, event_filter=f)), w) for f, w in wanted]
        again = [(await stack.enter_async_context(watching(log, event_filter=f)), w) for f, w in wanted[:3]]
        takers = [asyncio.create_task(take(batches, len(w))) for batches, w in watches + again]
        await write(db, hub, *rows)
        for taker, (_, expected) in zip(takers, watches + again, strict=True):
            assert await taker == expected
    for event_filter, expected in wanted:
        async with watching(log, Start.OLDEST, event_filter) as batches:
            assert await take(batches, len(expected)) == expected


def test_unknown_exchanges_are_refused() -> None:
    with pytest.raises(InputError, match="task-complete"):
        EventFilter.build(["task-complete"], [], "", "", "")


# --- waking up, and staying quiet


async def test_nobody_watching_means_no_queries(log: EventLog, db: Database, hub: LocalHub) -> None:
    queries = count_queries(db)
    await write(db, hub, row(1))
    assert len(queries) == 1
    async with watching(log) as batches:
        await write(db, hub, row(2))
        assert await take(batches, 1) == [2]
    queries.clear()
    await write(db, hub, row(3))
    hub.publish()
    await asyncio.sleep(0)
    assert len(queries) == 1


def count_queries(db: Database) -> list[str]:
    queries: list[str] = []
    fetch = db.fetch

    async def counting(sql: str, *arguments: Any, **options: Any) -> list[Any]:
        queries.append(sql)
        return await fetch(sql, *arguments, **options)

    db.fetch = counting  # type: ignore[method-assign]
    return queries


async def test_many_watchers_share_one_reading(log: EventLog, db: Database, hub: LocalHub) -> None:
    async with AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(watching(log)) for _ in range(50)]
        takers = [asyncio.create_task(take(batches, 1)) for batches in watches]
        queries = count_queries(db)
        await write(db, hub, row(1))
        assert await asyncio.gather(*takers) == [[1]] * 50
        assert len(queries) <= 3


async def test_an_unheard_commit_is_found_by_the_poll(db: Database, hub: LocalHub) -> None:
    log = EventLog(db, hub, PoolSettings(), Limits(poll_s=0.05))
    async with watching(log) as batches:
        await write(db, None, row(1))
        assert await take(batches, 1) == [1]


async def test_a_gap_of_the_hub_means_reading_at_once(log: EventLog, db: Database, hub: LocalHub) -> None:
    async with watching(log) as batches:
        await write(db, None, row(1))
        for callback in hub.gap_callbacks:
            callback()
        assert await take(batches, 1) == [1]


async def test_checkpoints(db: Database, hub: LocalHub) -> None:
    log = EventLog(db, hub, PoolSettings(), Limits(checkpoint_s=0.05, poll_s=60))
    async with (
        watching(log, event_filter=EventFilter(task_id=OTHER)) as batches,
        watching(log) as all_of_them,
    ):
        before = await anext(batches)
        await write(db, hub, row(1, 2))
        assert await take(all_of_them, 2) == [1, 2]
        after = await anext(batches)
        assert not before.events and not after.events and before.cursor != after.cursor
    async with watching(log, after.cursor) as batches:
        await write(db, hub, row(3))
        assert await take(batches, 1) == [3]


async def test_latency(db: Database, hub: LocalHub) -> None:
    """Printed, not judged: from before the commit to the watcher, on an idle log."""
    log = EventLog(db, hub, PoolSettings(), Limits(linger_s=0))
    times = []
    async with watching(log) as batches:
        for n in range(50):
            taker = asyncio.create_task(take(batches, 1))
            await asyncio.sleep(0)
            started = time.perf_counter()
            await write(db, hub, row(n))
            await taker
            times.append((time.perf_counter() - started) * 1000)
    times.sort()
    print(f"\ninsert to watcher: p50 {times[25]:.2f} ms, p95 {times[47]:.2f} ms")


# --- trouble


async def test_stop_ends_every_watch(db: Database, hub: LocalHub) -> None:
    log = EventLog(db, hub, PoolSettings(), LIMITS)
    async with watching(log) as batches:
        waiting = asyncio.create_task(anext(batches))
        await asyncio.sleep(0)
        await log.stop()
        with pytest.raises(Unavailable):
            await waiting
    with pytest.raises(Unavailable):
        async with watching(log):
            pass


async def test_the_database_restarts(private_postgres: EmbeddedPostgres) -> None:
    await migrate(private_postgres.dsn)
    db = await Database.open(private_postgres.dsn, settings=PoolSettings())
    hub = LocalHub()
    log = EventLog(db, hub, PoolSettings(), Limits(checkpoint_s=60, poll_s=0.1, retry_s=0.05))
    async with watching(log) as batches:
        await write(db, hub, row(1))
        assert await take(batches, 1) == [1]
        following = asyncio.create_task(take(batches, 1))
        await asyncio.to_thread(private_postgres.restart)
        await db.fetch("INSERT INTO outbox (events) VALUES ($1::text)", (row(2),))
        assert await following == [2]
    await db.close()


async def test_unreadable_log_at_the_start(db: Database, hub: LocalHub) -> None:
    log = EventLog(db, hub, PoolSettings(db_wait_timeout_s=0.1), LIMITS)
    await db.close()
    with pytest.raises(Unavailable):
        async with watching(log):
            pass
    assert not hub.callbacks


# --- plans


@pytest.mark.parametrize(("statement", "parameters"), [("read_new_rows", (19_990, 256, 1 << 18)),
    ("read_kept_rows", (100, 200, "", 256, 1 << 18)), ("delete_old_rows", (0, 100, ""))])  # fmt: skip
async def test_plans_use_the_index(db: Database, statement: str, parameters: tuple[Any, ...]) -> None:
    """On a table that was analysed empty and then filled."""
    await db.fetch("ANALYZE outbox")
    await db.fetch(
        "INSERT INTO outbox (events) SELECT $1::text FROM generate_series(1, 20000)", (row(1),), repeat=False
    )
    sql = load("events")[statement]
    plan = "\n".join(
        r[0] for r in await db.fetch(f"EXPLAIN {sql}", parameters, hot=statement == "read_new_rows")
    )
    assert "outbox_pkey" in plan
    assert "Seq Scan on outbox" not in plan, plan
