"""The event log against a real outbox: nothing skipped, nothing out of place, every cursor good.

Design 6; behind Q-155 and the promise of queue.md 2.1 that events come in the order of their causes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import orjson
import psycopg
import pytest

from server.errors import CursorTooOld, InputError
from server.events.cursors import Position, decode, encode
from server.events.log import EventFilter, EventLog, Limits, Start
from server.loops.events import EventRetention
from server.store.database import Database, PoolSettings
from server.store.statements import load
from tests.plugins.event_log import (
    EVERYTHING,
    INSERT,
    LIMITS,
    OTHER,
    TASK,
    Connect,
    LocalHub,
    marks,
    row,
    take,
    watching,
    write,
)

# --- order


async def test_a_late_commit_is_waited_for(db: Database, hub: LocalHub, connect: Connect) -> None:
    early, late = await connect(), await connect()
    log = EventLog(db, hub, PoolSettings(), Limits(checkpoint_s=0.15, poll_s=60))
    async with watching(log) as batches:
        await late.execute(INSERT, [row("first")])
        await early.execute(INSERT, [row("second")])
        await early.commit()
        hub.publish()
        # The reader looks again and again, finds the writer still there, and tells nothing meanwhile.
        for _ in range(2):
            assert marks(await anext(batches)) == []
        await late.commit()
        assert await take(batches, 2) == ["first", "second"]


async def test_a_rolled_back_event_is_passed_over(log: EventLog, hub: LocalHub, connect: Connect) -> None:
    fails, succeeds = await connect(), await connect()
    async with watching(log) as batches:
        await fails.execute(INSERT, [row("never")])
        await succeeds.execute(INSERT, [row("told")])
        await succeeds.commit()
        hub.publish()
        await fails.rollback()
        assert await take(batches, 1) == ["told"]


async def test_many_dead_ids_cost_little(log: EventLog, db: Database, hub: LocalHub) -> None:
    async with watching(log) as batches:
        await db.fetch("SELECT nextval(pg_get_serial_sequence('outbox', 'id')) FROM generate_series(1, 5000)")
        started = time.perf_counter()
        await write(db, hub, row("after"))
        assert await take(batches, 1) == ["after"]
        print(f"\npassing over 5000 dead ids took {(time.perf_counter() - started) * 1000:.1f} ms")


async def test_order_of_transaction_ids_does_not_matter(
    log: EventLog, hub: LocalHub, connect: Connect
) -> None:
    """Two batches, of which the one with the higher transaction id changes the common task first, and
    a stranger's transaction between them that does not end. Windows of transaction ids would tell the
    second change before the first."""
    first, second, stranger, setup = [await connect() for _ in range(4)]
    await setup.execute("CREATE TABLE things (name text PRIMARY KEY, n integer)")
    await setup.execute("INSERT INTO things VALUES ('a', 0), ('b', 0)")
    await setup.commit()
    async with watching(log) as batches:
        await second.execute("UPDATE things SET n = 1 WHERE name = 'a'")  # its transaction id is the lowest
        await stranger.execute("CREATE TABLE unrelated ()")
        await first.execute("UPDATE things SET n = 1 WHERE name = 'b'")
        waiting = asyncio.create_task(second.execute("UPDATE things SET n = 2 WHERE name = 'b'"))
        await first.execute(INSERT, [row("first")])
        await first.commit()
        await waiting
        await second.execute(INSERT, [row("second")])
        await second.commit()
        hub.publish()
        assert await take(batches, 2) == ["first", "second"]
        xids = await (await setup.execute("SELECT xmin::text::bigint FROM outbox ORDER BY id")).fetchall()
        assert xids[0] > xids[1]


async def test_each_task_in_order_under_concurrent_writers(
    log: EventLog, hub: LocalHub, connect: Connect
) -> None:
    """Writers that take several things at once, and one in ten gives up after writing its events."""
    things, writers, rounds = 12, 6, 40
    connections = [await connect() for _ in range(writers)]
    await connections[0].execute("CREATE TABLE things (id integer PRIMARY KEY, n integer)")
    await connections[0].execute("INSERT INTO things SELECT i, 0 FROM generate_series(1, %s) i", [things])
    await connections[0].commit()

    async def work(connection: psycopg.AsyncConnection[Any], seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(rounds):
            told = []
            for thing in sorted(choice.sample(range(1, things + 1), choice.randint(1, 3))):
                query = "UPDATE things SET n = n + 1 WHERE id = %s RETURNING n"
                n = await (await connection.execute(query, [thing])).fetchone()
                assert n is not None
                told.append([thing, n[0]])
            await connection.execute(INSERT, [row(*told)])
            await connection.execute("SELECT pg_sleep(%s)", [choice.choice([0, 0, 0.002])])
            if choice.random() < 0.1:
                await connection.rollback()
            else:
                await connection.commit()
                hub.publish()

    async def work_and_end() -> None:
        await asyncio.gather(*(work(c, seed) for seed, c in enumerate(connections)))
        await connections[0].execute(INSERT, [row("end")])
        await connections[0].commit()
        hub.publish()

    seen: list[Any] = []
    async with watching(log) as batches:
        working = asyncio.create_task(work_and_end())
        while not seen or seen[-1] != "end":
            seen += marks(await anext(batches))
        await working
    final = await (await connections[0].execute("SELECT id, n FROM things")).fetchall()
    for thing, count in final:
        assert [n for t, n in seen[:-1] if t == thing] == list(range(1, count + 1))


async def test_ids_are_drawn_one_by_one(db: Database) -> None:
    """A sequence that hands out stocks to connections would break the order."""
    rows = await db.fetch(
        "SELECT seqcache, seqincrement, seqcycle FROM pg_sequence"
        " WHERE seqrelid = pg_get_serial_sequence('outbox', 'id')::regclass"
    )
    assert rows == [(1, 1, False)]


# --- cursors


async def test_every_cursor_resumes_exactly_there(db: Database, hub: LocalHub) -> None:
    choice = random.Random(7)
    tasks = [TASK, OTHER]
    history: list[str] = []
    n = 0
    for _ in range(30):
        size = choice.randint(1, 5)
        history.append(row(*range(n, n + size), task=choice.choice(tasks), size=choice.randint(0, 300)))
        n += size
        if choice.random() < 0.2:
            await db.fetch("SELECT nextval(pg_get_serial_sequence('outbox', 'id'))")
        await write(db, None, history[-1])
    for event_filter in (EVERYTHING, EventFilter(task_id=TASK)):
        small = Limits(checkpoint_s=60, poll_s=60, batch_events=2, page_rows=4, page_size=1000, search_ids=9)
        log = EventLog(db, hub, PoolSettings(), small)
        expected = [
            orjson.loads(event)["mark"]
            for text in history
            for event in (
                orjson.dumps(e["payload"])
                for e in orjson.loads(text)
                if TASK in e["key"] or event_filter is EVERYTHING
            )
        ]
        cursors: list[tuple[str, int]] = []
        async with aclosing(log.watch(event_filter, Start.OLDEST)) as batches:
            told: list[Any] = []
            while len(told) < len(expected):
                batch = await anext(batches)
                assert len(batch.events) <= 2
                told += marks(batch)
                cursors.append((batch.cursor, len(told)))
            assert told == expected
        assert len(cursors) > len(expected) / 2
        for tail_rows in (0, 1000):
            log = EventLog(db, hub, PoolSettings(), Limits(checkpoint_s=60, poll_s=60, tail_rows=tail_rows))
            async with watching(log):
                for cursor, count in cursors:
                    async with aclosing(log.watch(event_filter, cursor)) as batches:
                        first = await anext(batches)
                        assert (first.events, first.cursor) == ((), cursor)
                        if count < len(expected):
                            assert await take(batches, len(expected) - count) == expected[count:]


async def test_a_live_watch_gives_cursors_too(log: EventLog, db: Database, hub: LocalHub) -> None:
    async with watching(log) as batches:
        await write(db, hub, row(1, 2))
        batch = await anext(batches)
        assert marks(batch) == [1, 2]
        await write(db, hub, row(3))
        assert await take(batches, 1) == [3]
        async with watching(log, batch.cursor) as again:
            assert await take(again, 1) == [3]
    async with watching(log, batch.cursor) as again:
        assert await take(again, 1) == [3]


async def test_event_ids_are_stable(log: EventLog, db: Database, hub: LocalHub) -> None:
    async with watching(log) as batches:
        await write(db, hub, row(1, 2))
        live = [event.id for event in (await anext(batches)).events]
    async with watching(log, Start.OLDEST) as batches:
        read = [event.id for event in (await anext(batches)).events]
    assert live == read == ["1-0", "1-1"]


async def test_cursors_that_are_none(
    log: EventLog, db: Database, hub: LocalHub, make_dsn: Callable[[], str]
) -> None:
    await write(db, hub, row(1))
    async with watching(log, Start.OLDEST) as batches:
        cursor = (await anext(batches)).cursor
    other_db = await Database.open(make_dsn(), settings=PoolSettings())
    # Clones of one template are one log; databases that were migrated each for itself are not.
    await other_db.fetch("UPDATE event_log_horizon SET log_id = gen_random_uuid()")
    other = EventLog(other_db, LocalHub(), PoolSettings(), LIMITS)
    async with aclosing(other.watch(EVERYTHING, Start.NOW)) as batches:
        foreign = (await anext(batches)).cursor
    await other_db.close()
    broken = [
        "",
        "garbage",
        "é",
        cursor[:-1],
        cursor + "A",
        cursor.swapcase(),
        cursor + "=",
        " " + cursor,
        foreign,
    ]
    for text in broken:
        with pytest.raises(InputError):
            async with watching(log, text):
                pass
    async with watching(log, cursor):
        pass


async def test_cursor_ahead_of_the_database(log: EventLog, db: Database) -> None:
    """What a restored backup looks like."""
    ((_, _, log_id),) = await db.fetch(load("events")["read_log_state"])
    cursor = encode(Position(17, 0), log_id.bytes)
    assert decode(cursor, log_id.bytes) == Position(17, 0)
    with pytest.raises(InputError, match="ahead of the log"):
        async with watching(log, cursor):
            pass


async def test_cursor_ahead_of_this_process(db: Database, hub: LocalHub) -> None:
    ahead = EventLog(db, hub, PoolSettings(), LIMITS)
    deaf_hub = LocalHub()
    deaf = EventLog(db, deaf_hub, PoolSettings(), LIMITS)
    async with watching(ahead) as batches, watching(deaf) as behind:
        await write(db, hub, row(1, 2))
        batch = await anext(batches)
        async with watching(deaf, batch.cursor) as resumed:
            await write(db, hub, row(3))
            deaf_hub.publish()
            assert await take(resumed, 1) == [3]
            assert await take(behind, 3) == [1, 2, 3]


# --- retention


async def test_retention_and_cursors_too_old(log: EventLog, db: Database, hub: LocalHub) -> None:
    cursors = []
    async with watching(log) as batches:
        for n in range(6):
            await write(db, hub, row(n))
            cursors.append((await anext(batches)).cursor)
    await db.fetch("UPDATE outbox SET time = time - interval '1 hour' WHERE id <= 3", repeat=False)
    retention = EventRetention(db, retention_s=1800, batch=2)
    assert [await retention.run_once() for _ in range(3)] == [2, 1, 0]
    for cursor in cursors[:2]:
        with pytest.raises(CursorTooOld):
            async with watching(log, cursor):
                pass
    async with watching(log, cursors[2]) as batches:
        assert await take(batches, 3) == [3, 4, 5]
    async with watching(log, Start.OLDEST) as batches:
        assert await take(batches, 3) == [3, 4, 5]
    assert await EventRetention(db, retention_s=-1, batch=100).run_once() == 3
    async with watching(log, cursors[5]) as batches, watching(log, Start.OLDEST) as oldest:
        await write(db, hub, row(6))
        assert await take(batches, 1) == [6]
        assert await take(oldest, 1) == [6]


async def test_retention_stops_at_the_first_that_is_young(db: Database) -> None:
    await write(db, None, row(1), row(2), row(3))
    await db.fetch("UPDATE outbox SET time = time - interval '1 hour' WHERE id <> 2", repeat=False)
    assert await EventRetention(db, retention_s=1800, batch=10).run_once() == 1


async def test_only_one_process_deletes(db: Database, connect: Connect) -> None:
    await write(db, None, row(1))
    another = await connect()
    await another.execute("SELECT * FROM event_log_horizon FOR UPDATE")
    retention = EventRetention(db, retention_s=-1, batch=10)
    assert await retention.run_once() == 0
    await another.rollback()
    assert await retention.run_once() == 1


async def test_a_watcher_that_retention_overtakes_is_told(
    db: Database, hub: LocalHub, connect: Connect
) -> None:
    stuck, quick = await connect(), await connect()
    log = EventLog(db, hub, PoolSettings(), Limits(checkpoint_s=0.1, poll_s=60))
    async with watching(log) as batches:
        await stuck.execute(INSERT, [row("stuck")])
        await quick.execute(INSERT, [row("deleted unread")])
        await quick.commit()
        hub.publish()
        assert marks(await anext(batches)) == []
        assert await EventRetention(db, retention_s=-1, batch=10).run_once() == 1
        with pytest.raises(CursorTooOld):
            while True:
                assert marks(await anext(batches)) == []
        await stuck.rollback()
        async with watching(log) as again:
            await write(db, hub, row("next"))
            assert await take(again, 1) == ["next"]
