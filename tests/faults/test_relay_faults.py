"""The relay under load, with its broker, its processes and its database ill-treated: no event lost, none
invented, and the order of every task's events kept; repeats are counted and told by their ids."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pika
import psycopg
import pytest

from server.config import Settings
from server.domain import slugid
from server.events.publishing import exchange_names
from server.events.rows import read_row
from server.identity import tokens
from server.identity.secrets import new_key
from server.store import embedded, migrator
from server.store.embedded import EmbeddedPostgres
from tests.faults.load import Load
from tests.plugins.rabbitmq import Broker
from tests.streams.harness import CHANNEL_OPTIONS, Client, bearer
from tests.streams.serving import ServerProcess

TASKS = 160
WORKERS = 4
PREFIX = "faults/{service}/v1/"
QUEUE = "faults"
PATIENCE_S = 60.0


@dataclass
class Received:
    """What a consumer has got, in the order in which it came."""

    ids: list[str] = field(default_factory=list)
    events: dict[str, tuple[str, str, Any]] = field(default_factory=dict)


class DurableConsumer:
    """Takes from a durable queue, in a thread, over as many connections as it takes; acknowledges what it has
    noted."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.received = Received()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._declare()
        self._thread.start()

    def _declare(self) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)
        for name in exchange_names(PREFIX).values():
            channel.exchange_declare(name, "topic", durable=True)
            channel.queue_bind(QUEUE, name, "#")
        connection.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(pika.exceptions.AMQPError, OSError):
                parameters = pika.URLParameters(self._url)
                parameters.heartbeat = 2
                connection = pika.BlockingConnection(parameters)
                channel = connection.channel()
                for method, properties, body in channel.consume(QUEUE, inactivity_timeout=0.1):
                    if self._stop.is_set():
                        break
                    if method is None:
                        continue
                    self._note(method, properties, body)
                    channel.basic_ack(method.delivery_tag)
                connection.close()
            self._stop.wait(0.1)

    def _note(self, method: Any, properties: Any, body: bytes) -> None:
        exchange = method.exchange.rpartition("/")[2]
        event = (exchange, method.routing_key, json.loads(body))
        known = self.received.events.setdefault(properties.message_id, event)
        assert known == event, "a repeat differs"
        # What the broker gives back because our acknowledgement was lost is no repeat of the relay's.
        if not method.redelivered or properties.message_id not in self.received.ids:
            self.received.ids.append(properties.message_id)

    def stop(self) -> None:
        """Ends."""
        self._stop.set()
        self._thread.join(10)


@pytest.fixture
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """With fsync: what was committed must survive."""
    with tempfile.TemporaryDirectory(prefix="tcqueue-faults-") as folder:
        server = await asyncio.to_thread(embedded.start, folder)
        await migrator.migrate(server.dsn)
        yield server
        await asyncio.to_thread(server.stop)


class World:
    """What a fault may be done to."""

    def __init__(self, broker: Broker, postgres: EmbeddedPostgres, servers: list[ServerProcess]) -> None:
        self.broker = broker
        self.postgres = postgres
        self.servers = servers

    async def broker_stopped(self) -> None:
        await asyncio.to_thread(self.broker.stop)
        await asyncio.sleep(2.0)
        await asyncio.to_thread(self.broker.start)

    async def broker_killed(self) -> None:
        await asyncio.to_thread(self.broker.kill)
        await asyncio.to_thread(self.broker.start)

    async def broker_frozen(self) -> None:
        self.broker.signal(signal.SIGSTOP)
        await asyncio.sleep(4.0)
        self.broker.signal(signal.SIGCONT)

    async def relays_killed(self) -> None:
        for server in self.servers:
            await server.kill()
            await server.start()

    async def relay_frozen(self) -> None:
        self.servers[0].freeze()
        await asyncio.sleep(10.0)
        self.servers[0].thaw()

    async def postgres_restarted(self) -> None:
        await asyncio.to_thread(self.postgres.kill)
        await asyncio.to_thread(self.postgres.restart)


FAULTS: dict[str, Callable[[World], Awaitable[None]]] = {
    name: getattr(World, name)
    for name in (
        "broker_stopped",
        "broker_killed",
        "broker_frozen",
        "relays_killed",
        "relay_frozen",
        "postgres_restarted",
    )
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_is_lost(broker: Broker, postgres: EmbeddedPostgres, fault: str) -> None:
    token = slugid.v4() + slugid.v4()
    settings = Settings(
        database_url=postgres.dsn,
        encryption_key=new_key(),
        root_access_token=token,
        grpc_listen="127.0.0.1:0",
    )
    metadata = bearer(tokens.mint("root", token, lifetime_s=3000))
    load = Load(TASKS)
    consumer = DurableConsumer(broker.url)
    async with AsyncExitStack() as stack:
        stack.callback(consumer.stop)
        servers = [
            ServerProcess(
                settings,
                stream_grace_s=1.0,
                process_lease_s=2.0,
                stream_accept_timeout_s=1.0,
                claim_poll_delay_s=0.2,
                db_wait_timeout_s=2.0,
                amqp_url=broker.url,
                amqp_exchange_prefix=PREFIX,
                amqp_confirm_timeout_s=2.0,
            )
            for _ in range(2)
        ]
        clients = []
        for server in servers:
            await stack.enter_async_context(server.running())
            channel = grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS)
            stack.push_async_callback(channel.close, None)
            clients.append(Client(channel, metadata))
        # The load goes to the second process, which no fault freezes.
        work = [asyncio.create_task(load.work(f"w{n}", lambda: clients[1], 2)) for n in range(WORKERS)]
        creating = asyncio.create_task(load.create(lambda: clients[1], TASKS))
        try:
            await load.reached(TASKS // 4)
            await FAULTS[fault](World(broker, postgres, servers))
            await creating
            written = await _settled(postgres.dsn, consumer.received)
        finally:
            for task in (*work, creating):
                task.cancel()
            await asyncio.gather(*work, creating, return_exceptions=True)
    received = consumer.received
    assert received.events == written
    _check_order(received, written)


async def _settled(dsn: str, received: Received) -> dict[str, tuple[str, str, Any]]:
    """All that was written, once every task is resolved and every event has come."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                ((left, tasks),) = await _rows(
                    connection,
                    "select count(*) filter (where state in ('pending', 'running')), count(distinct task_id)"
                    " from runs",
                )
                if not left and tasks == TASKS:
                    break
                await asyncio.sleep(0.1)
            written = {}
            for row_id, time, text in await _rows(
                connection, "select id, time, events from outbox order by id"
            ):
                for event in read_row(row_id, time, text).events:
                    written[event.id] = (event.exchange, event.key, json.loads(event.payload))
            while len(received.events) < len(written):
                await asyncio.sleep(0.1)
    return written


async def _rows(connection: Any, text: str) -> Any:
    return await (await connection.execute(text)).fetchall()


def _check_order(received: Received, written: dict[str, tuple[str, str, Any]]) -> None:
    """A task's events come in their order, each for the first time; a repeat is of what was there already."""
    order = {event_id: place for place, event_id in enumerate(written)}
    newest: dict[str, int] = {}
    seen: set[str] = set()
    for event_id in received.ids:
        subject = written[event_id][1].split(".")[1]
        if event_id not in seen:
            assert order[event_id] > newest.get(subject, -1), "an event was overtaken"
            newest[subject] = order[event_id]
        seen.add(event_id)
