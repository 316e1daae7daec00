"""The event log against a real outbox: nothing skipped, nothing out of place, bounded, resumable.

Design 6; behind Q-155 and the promise of queue.md 2.1 that events come in the order of their causes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import orjson
import psycopg
import pytest

from server.errors import CursorTooOld, InputError, Unavailable
from server.events.cursors import Position, decode, encode
from server.events.log import Batch, EventFilter, EventLog, Limits, Start
from server.loops.events import EventRetention
from server.store.database import Database, PoolSettings
from server.store.embedded import EmbeddedPostgres
from server.store.migrator import migrate
from server.store.statements import load

EVERYTHING = EventFilter()
TASK = "fN1SbArXTPSVFNUvaOlinQ"
OTHER = "CQQlEQsiR6SGYSdJGaXLLA"
GROUP = "YhrZ0cEGRQGvuRqoKzzmUQ"

# Nobody polls within a test, so what arrives does so because somebody was told.
LIMITS = Limits(checkpoint_s=60, poll_s=60)


class LocalHub:
    """A hub of one process."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[str], None]] = []
        self.gap_callbacks: list[Callable[[], None]] = []

    def subscribe(self, channel: str, callback: Callable[[str], None], /) -> Callable[[], None]:
        assert channel == "events"
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def subscribe_gap(self, callback: Callable[[], None], /) -> Callable[[], None]:
        self.gap_callbacks.append(callback)
        return lambda: self.gap_callbacks.remove(callback)

    def publish(self) -> None:
        for callback in self.callbacks:
            callback("")


def row(*marks: object, task: str = TASK, group: str = GROUP, cc: Sequence[str] = (), size: int = 0) -> str:
    """The events of a transaction, told apart by their marks."""
    return orjson.dumps(
        [
            {
                "exchange": "task-pending",
                "key": f"primary.{task}.0._._.prov.type.sched.{group}._",
                "cc": cc,
                "payload": {"mark": mark, "filling": "x" * size},
            }
            for mark in marks
        ]
    ).decode()


def marks(batch: Batch) -> list[Any]:
    return [orjson.loads(event.payload)["mark"] for event in batch.events]


async def take(batches: AsyncIterator[Batch], count: int) -> list[Any]:
    """So many marks; more would be a failure, as would be a wait for ever (the test's timeout)."""
    found: list[Any] = []
    while len(found) < count:
        found += marks(await anext(batches))
    assert len(found) == count, found
    return found


INSERT = "INSERT INTO outbox (events) VALUES (%s)"


@pytest.fixture
def hub() -> LocalHub:
    return LocalHub()


@pytest.fixture
async def log(db: Database, hub: LocalHub) -> AsyncIterator[EventLog]:
    event_log = EventLog(db, hub, PoolSettings(), LIMITS)
    yield event_log
    assert event_log.watchers == 0
    assert not hub.callbacks and not hub.gap_callbacks
    assert not [
        task for task in asyncio.all_tasks() if task.get_name() == "event feed" and not task.cancelling()
    ]


@pytest.fixture
async def connect(dsn: str) -> AsyncIterator[Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]]:
    """Opens connections of strangers; what they execute is a transaction until they commit."""
    async with AsyncExitStack() as stack:

        async def make() -> psycopg.AsyncConnection[Any]:
            return await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn))

        yield make


Connect = Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]


@asynccontextmanager
async def watching(
    log: EventLog, start: str | Start = Start.NOW, event_filter: EventFilter = EVERYTHING
) -> AsyncIterator[AsyncGenerator[Batch, None]]:
    """An established watch."""
    async with aclosing(log.watch(event_filter, start)) as batches:
        assert not (await anext(batches)).events
        yield batches


async def write(db: Database, hub: LocalHub | None, *rows: str) -> None:
    """One transaction for each row, all told at the end."""
    for text in rows:
        await db.fetch("INSERT INTO outbox (events) VALUES ($1::text)", (text,), repeat=False)
    if hub is not None:
        hub.publish()


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
        xids = await (await setup.execute("SELECT xid::text::bigint FROM outbox ORDER BY id")).fetchall()
        assert xids[0] > xids[1]


async def test_each_task_in_order_under_concurrent_writers(
    log: EventLog, hub: LocalHub, connect: Connect
) -> None:
    """Writers that take several things at once, and one in ten gives up after writing its events."""
    things, writers, rounds = 6, 6, 60
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
    ("read_kept_rows", (100, 200, "", 256, 1 << 18)), ("delete_old_rows", (0, 100))])  # fmt: skip
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
