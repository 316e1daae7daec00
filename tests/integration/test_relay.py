"""The relay against a real broker: what it sends, in which order, and who leads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pika
import pytest

from server.config import Settings
from server.events.publishing import exchange_names
from server.events.relay import Relay, backlog
from server.loops.events import EventRetention
from server.services import Services
from server.store.database import Database
from tests.conformance import recording
from tests.plugins.event_log import GROUP, OTHER, TASK, LocalHub, row, write
from tests.plugins.rabbitmq import Broker
from tests.plugins.services import Api

PATIENCE_S = 20.0


class Consumer:
    """A plain consumer of its own queue, in a connection of its own."""

    def __init__(self, url: str, prefix: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self._connection.channel()
        self.names = exchange_names(prefix)
        for name in self.names.values():
            self.channel.exchange_declare(name, "topic", durable=True)
        self.queue = self.channel.queue_declare("", exclusive=True).method.queue

    def bind(self, exchange: str, key: str = "#") -> Consumer:
        """Wants what fits."""
        self.channel.queue_bind(self.queue, self.names[exchange], key)
        return self

    def bind_all(self) -> Consumer:
        """Wants everything."""
        for exchange in self.names:
            self.bind(exchange)
        return self

    def _get(self) -> tuple[Any, Any, bytes] | None:
        method, properties, body = self.channel.basic_get(self.queue, auto_ack=True)
        return None if method is None else (method, properties, body)

    async def take(self, count: int) -> list[tuple[Any, Any, Any]]:
        """So many messages: method, properties, payload."""
        found: list[tuple[Any, Any, Any]] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < count:
                got = self._get()
                if got is None:
                    await asyncio.sleep(0.005)
                else:
                    found.append((got[0], got[1], json.loads(got[2])))
        return found

    async def marks(self, count: int) -> list[Any]:
        """The marks of so many messages that a test wrote by hand."""
        return [payload["mark"] for _, _, payload in await self.take(count)]

    async def nothing(self, seconds: float = 0.2) -> bool:
        """Whether nothing more comes for a while."""
        await asyncio.sleep(seconds)
        return self._get() is None

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def relay_settings(settings: Settings, rabbitmq: Broker, amqp_prefix: str) -> Settings:
    return replace(
        settings,
        amqp_url=rabbitmq.url,
        amqp_exchange_prefix=amqp_prefix,
        # Its events are written by hand, in no form that 2014 could know.
        amqp_legacy_exchange_prefix="",
    )


@pytest.fixture
def consumer(relay_settings: Settings) -> Any:
    consumer = Consumer(relay_settings.amqp_url, relay_settings.amqp_exchange_prefix)
    yield consumer
    consumer.close()


class Relays:
    """Relays that run until the test ends, or is told."""

    def __init__(self, db: Database, hub: LocalHub, settings: Settings) -> None:
        self._db = db
        self._hub = hub
        self._settings = settings
        self._running: dict[Relay, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    async def start(self, **changes: Any) -> Relay:
        """Starts one."""
        relay = Relay(self._db, self._hub, replace(self._settings, **changes))
        await relay.enter()
        stop = asyncio.Event()
        self._running[relay] = stop, asyncio.create_task(relay.run(stop))
        return relay

    async def stop(self, relay: Relay) -> None:
        """Ends one."""
        stop, task = self._running.pop(relay)
        stop.set()
        await task

    async def end(self) -> None:
        for relay in list(self._running):
            await self.stop(relay)


@pytest.fixture
async def relays(db: Database, hub: LocalHub, relay_settings: Settings) -> AsyncIterator[Relays]:
    relays = Relays(db, hub, relay_settings)
    yield relays
    await relays.end()


async def _until(what: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await what():
            await asyncio.sleep(0.01)


async def _settled(db: Database) -> None:
    """Returns once everything is confirmed and marked: what is not may come again."""

    async def relayed() -> bool:
        return (await backlog(db))[0] == 0

    await _until(relayed)


async def test_messages(db: Database, hub: LocalHub, relays: Relays, consumer: Consumer) -> None:
    """queue.md 5.1: persistent JSON on a durable topic exchange; ids that are the same in every repeat."""
    consumer.bind_all()
    await relays.start()
    await write(db, hub, row("a", "b", cc=["route.x.y"]), row("c"))
    messages = await consumer.take(3)
    assert [payload["mark"] for _, _, payload in messages] == ["a", "b", "c"]
    method, properties, _ = messages[0]
    assert method.exchange == consumer.names["task-pending"]
    assert method.routing_key == f"primary.{TASK}.0._._.prov.type.sched.{GROUP}._"
    assert (properties.content_type, properties.content_encoding, properties.delivery_mode) == (
        "application/json",
        "utf-8",
        2,
    )
    assert properties.headers["CC"] == ["route.x.y"]
    assert "CC" not in messages[2][1].headers
    ids = [properties.message_id for _, properties, _ in messages]
    assert ids == [properties.headers["x-event-id"] for _, properties, _ in messages]
    assert len(set(ids)) == 3
    sequences = [properties.headers["x-sequence"] for _, properties, _ in messages]
    assert sequences == sorted(set(sequences))


async def test_routing(db: Database, hub: LocalHub, relays: Relays, consumer: Consumer) -> None:
    """By key and by CC, and once for a consumer whom both fit."""
    consumer.bind("task-pending", f"primary.{OTHER}.#").bind("task-pending", "route.a.*")
    await relays.start()
    await write(
        db, hub, row(1), row(2, task=OTHER), row(3, cc=["route.a.b", "route.a.c"]), row(4, cc=["route.a"])
    )
    assert await consumer.marks(2) == [2, 3]
    assert await consumer.nothing()


async def test_what_was_written_before_the_first_relay_stays(
    db: Database, hub: LocalHub, relays: Relays, consumer: Consumer
) -> None:
    """A deployment that gets a broker begins now; what was written while no relay ran comes later."""
    consumer.bind_all()
    await write(db, hub, row("old"))
    relay = await relays.start()
    await write(db, hub, row("new"))
    assert await consumer.marks(1) == ["new"]
    await _settled(db)
    await relays.stop(relay)
    await write(db, hub, *(row(i) for i in range(700)))
    assert (await backlog(db))[0] == 700
    await relays.start()
    assert await consumer.marks(700) == list(range(700))
    await _settled(db)
    assert await backlog(db) == (0, 0.0)


async def test_one_leads(db: Database, hub: LocalHub, relays: Relays, consumer: Consumer) -> None:
    """Of several; the next one takes over at once, and goes on where the mark is."""
    consumer.bind_all()
    started = [await relays.start() for _ in range(3)]
    for number in range(3):
        await write(db, hub, row(number))
        assert await consumer.marks(1) == [number]
        await _settled(db)
        (leader,) = [relay for relay in started if relay.leading]
        started.remove(leader)
        await relays.stop(leader)
    await write(db, hub, row("left"))
    assert await consumer.nothing()
    await relays.start()
    assert await consumer.marks(1) == ["left"]


async def test_a_leader_of_yesterday(db: Database, hub: LocalHub, relays: Relays, consumer: Consumer) -> None:
    """Once another has begun, the mark is not its any more: it begins again, and nothing is lost."""
    consumer.bind_all()
    await relays.start()
    await write(db, hub, row(1))
    assert await consumer.marks(1) == [1]
    await _settled(db)
    await db.fetch("update event_relay set epoch = epoch + 1")
    await write(db, hub, row(2))
    assert await consumer.marks(1) == [2]
    # It was published before the mark was found to be another's, and so it comes again.
    assert await consumer.marks(1) == [2]
    await _settled(db)
    await write(db, hub, row(3))
    assert await consumer.marks(1) == [3]


async def test_the_lead_is_lost_with_its_connection(
    db: Database, hub: LocalHub, relays: Relays, consumer: Consumer
) -> None:
    """The database ends it, as it does with a leader that is frozen."""
    consumer.bind_all()
    first = await relays.start()
    await write(db, hub, row(1))
    await consumer.marks(1)
    await _settled(db)
    second = await relays.start()
    await db.fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'tcqueue relay' and datname = current_database()"
    )

    async def led_by_one() -> bool:
        return first.leading != second.leading

    await _until(led_by_one)
    await write(db, hub, row(2))
    assert 2 in await consumer.marks(1)


async def test_gaps(db: Database, hub: LocalHub, relays: Relays, consumer: Consumer, connect: Any) -> None:
    """What commits late goes out in its place, and what rolls back holds nothing up."""
    consumer.bind_all()
    await relays.start()
    late, gone = await connect(), await connect()
    await late.execute("insert into outbox (events) values (%s)", [row("late")])
    await gone.execute("insert into outbox (events) values (%s)", [row("gone")])
    await write(db, hub, row("after"))
    assert await consumer.nothing()
    await gone.rollback()
    await late.commit()
    assert await consumer.marks(2) == ["late", "after"]


async def test_poison(db: Database, hub: LocalHub, relays: Relays, consumer: Consumer) -> None:
    """What the broker will not have, or nothing can be made of, is set aside; the rest goes its way."""
    consumer.bind_all()
    await relays.start()
    long_key = row("long").replace(f"primary.{TASK}", f"primary.{TASK}{'x' * 300}")
    nowhere = row("nowhere").replace("task-pending", "task-unheard-of")
    await write(db, hub, row(1), long_key, row(2), nowhere, row(3))
    assert await consumer.marks(3) == [1, 2, 3]
    rows = await db.fetch("select exchange, payload, error from events_aside order by event_id")
    assert [json.loads(payload)["mark"] for _, payload, _ in rows] == ["long", "nowhere"]
    assert "task-unheard-of" in rows[1][2]


async def test_what_the_broker_refuses(
    db: Database, hub: LocalHub, relays: Relays, consumer: Consumer, rabbitmq: Broker
) -> None:
    """An exchange that was deleted meanwhile closes the channel; it is made again, and nothing is lost."""
    consumer.bind_all()
    await relays.start()
    await write(db, hub, row(1))
    await consumer.marks(1)
    await _settled(db)
    consumer.channel.exchange_delete(consumer.names["task-pending"])
    await write(db, hub, row(2))

    async def is_there_again() -> bool:
        connection = pika.BlockingConnection(pika.URLParameters(rabbitmq.url))
        try:
            connection.channel().exchange_declare(consumer.names["task-pending"], passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        finally:
            connection.close()
        return True

    await _until(is_there_again)
    consumer.bind("task-pending")
    await write(db, hub, row(3))
    got = await consumer.marks(1)
    assert got in ([2], [3])
    assert await db.fetch("select from events_aside") == []


async def test_all_exchanges(rabbitmq: Broker, relay_settings: Settings) -> None:
    """Every event of real lives, each as the reference's schemas have it, with its routing key."""
    from server import app

    process = await app.start(relay_settings)
    consumer = Consumer(relay_settings.amqp_url, relay_settings.amqp_exchange_prefix).bind_all()
    stop = asyncio.Event()
    assert process.relay is not None
    running = asyncio.create_task(process.relay.run(stop))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(process.close)
        stack.callback(consumer.close)
        try:
            await _lives(process.services)
            rows = await process.services.db.fetch("select id, time, events from outbox order by id")
            written = recording.recorded((r[0], r[1], r[2]) for r in rows)
            received = await consumer.take(len(written))
            short = {full: name for name, full in consumer.names.items()}
            assert [
                (short[method.exchange], method.routing_key, payload) for method, _, payload in received
            ] == [(event.exchange, event.key, event.payload) for event in written]
            for event in written:
                recording.check(event)
            assert {"task-defined", "task-pending", "task-running", "task-completed"} <= set(
                written.exchanges
            )
        finally:
            stop.set()
            await running


async def _lives(services: Services) -> None:
    api = Api(services, "*")
    for outcome in ("ReportCompleted", "ReportFailed"):
        task_id = await api.create()
        await api.claim()
        await api(outcome, task_id=task_id, run_id=0)
    await api("CancelTask", task_id=await api.create())


async def test_what_the_broker_has_no_room_for(
    db: Database, hub: LocalHub, relays: Relays, consumer: Consumer
) -> None:
    """A message that is not taken is tried until it is, in its order, and never set aside."""
    full = consumer.channel.queue_declare(
        "", exclusive=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"}
    ).method.queue
    consumer.channel.queue_bind(full, consumer.names["task-pending"], "#")
    await relays.start()
    await write(db, hub, *(row(i) for i in range(8)))
    found: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(set(found)) < 8:
            method, _, body = consumer.channel.basic_get(full, auto_ack=True)
            if method is None:
                await asyncio.sleep(0.02)
            else:
                found.append(json.loads(body)["mark"])
    assert list(dict.fromkeys(found)) == list(range(8))
    assert await db.fetch("select from events_aside") == []


async def test_retention(db: Database, hub: LocalHub, relays: Relays, consumer: Consumer) -> None:
    """What the broker has still to get is kept, whatever its age and however much it is."""
    relay = await relays.start()
    await relays.stop(relay)
    await write(db, hub, *(row(i, size=1000) for i in range(40)))
    await db.fetch("update outbox set time = now() - interval '1 day'")
    for limits in ({"retention_s": 60.0}, {"retention_s": 1e9, "max_bytes": 5000}):
        kept = EventRetention(db, relayed=True, batch=10, **limits)  # type: ignore[arg-type]
        assert await kept.run_once() == 0
    consumer.bind_all()
    await relays.start()
    assert await consumer.marks(40) == list(range(40))
    await _settled(db)
    large = EventRetention(db, retention_s=1e9, max_bytes=20_000, relayed=True, batch=10)
    while await large.run_once():
        pass
    left = (await db.fetch("select count(*) from outbox"))[0][0]
    assert 10 <= left <= 20
    old = EventRetention(db, retention_s=60.0, relayed=True, batch=100)
    assert await old.run_once() == left
