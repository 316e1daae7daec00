"""The relay to RabbitMQ: a backlog drained, with confirms, and the lag while work goes on."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pika
import pika.exceptions

from bench.wire import slugid
from server.config import Settings
from server.events.publishing import exchange_names
from server.events.relay import Relay, backlog
from server.store.database import Database, PoolSettings
from tests.plugins.rabbitmq import Broker

QUEUE = "bench"
_EVENTS_A_ROW = 5
_FILL = "INSERT INTO outbox (events) SELECT $1::text FROM generate_series(1, $2::integer)"


class _Hub:
    """Nobody tells anybody: the relay looks by itself."""

    def subscribe(self, channel: str, callback: Any, /) -> Any:
        """Never calls."""
        return lambda: None

    def subscribe_gap(self, callback: Any, /) -> Any:
        """Never calls."""
        return lambda: None


@contextmanager
def broker() -> Iterator[str]:
    """A RabbitMQ with one durable queue that gets everything; its URL."""
    with tempfile.TemporaryDirectory(prefix="tcqueue-bench-mq-", ignore_cleanup_errors=True) as folder:
        running = Broker(Path(folder))
        running.start()
        try:
            connection = pika.BlockingConnection(pika.URLParameters(running.url))
            channel = connection.channel()
            channel.queue_declare(QUEUE, durable=True)
            for name in exchange_names(Settings().amqp_exchange_prefix).values():
                channel.exchange_declare(name, "topic", durable=True)
                channel.queue_bind(QUEUE, name, "#")
            connection.close()
            yield running.url
        finally:
            running.end()


def drain(dsn: str, url: str, count: int, *, elders: bool) -> float:
    """Events a second, of so many that wait, until the broker has confirmed the last; with `elders` each goes
    to the exchange of 2014, too, where nobody waits for it."""

    async def run() -> float:
        db = await Database.open(dsn, settings=PoolSettings())
        settings = (
            Settings(amqp_url=url) if elders else Settings(amqp_url=url, amqp_legacy_exchange_prefix="")
        )
        relay = Relay(db, _Hub(), settings)
        await relay.enter()
        await db.fetch(_FILL, (_row(), count // _EVENTS_A_ROW), repeat=False)
        stop = asyncio.Event()
        began = time.perf_counter()
        task = asyncio.create_task(relay.run(stop))
        while (await backlog(db))[0]:
            await asyncio.sleep(0.02)
        took = time.perf_counter() - began
        stop.set()
        await task
        await db.close()
        return count / took

    return asyncio.run(run())


def _row() -> str:
    """A transaction's events, of the size that a life's have."""
    task_id, moment = slugid().decode(), "2026-11-24T20:00:00.000Z"
    run = {
        "runId": 0, "state": "completed", "reasonCreated": "scheduled", "reasonResolved": "completed",
        "workerGroup": "g", "workerId": "w", "takenUntil": moment, "scheduled": moment, "started": moment,
        "resolved": moment,
    }  # fmt: skip
    status = {
        "taskId": task_id, "provisionerId": "bench", "workerType": "work", "taskQueueId": "bench/work",
        "schedulerId": "bench", "projectId": "none", "taskGroupId": task_id, "deadline": moment,
        "expires": moment, "retriesLeft": 5, "state": "completed", "runs": [run], "priority": "lowest",
    }  # fmt: skip
    event = {
        "exchange": "task-completed",
        "key": f"primary.{task_id}.0.g.w.bench.work.bench.{task_id}._",
        "cc": [],
        "payload": {
            "version": 1, "status": status, "task": {"tags": {"kind": "build"}}, "runId": 0,
            "workerGroup": "g", "workerId": "w",
        },
    }  # fmt: skip
    return orjson.dumps([event] * _EVENTS_A_ROW).decode()


class Lag:
    """Milliseconds from the end of a run to its taskCompleted at a consumer, while open."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.milliseconds: list[float] = []
        self._thread = threading.Thread(target=self._consume, daemon=True)
        self._thread.start()

    def _consume(self) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=500)
        for method, _, body in channel.consume(QUEUE, inactivity_timeout=0.1, auto_ack=True):
            now = time.time()
            if self._stop.is_set():
                break
            if method is not None and method.exchange.endswith("task-completed"):
                resolved = json.loads(body)["status"]["runs"][-1]["resolved"]
                self.milliseconds.append((now - datetime.fromisoformat(resolved).timestamp()) * 1000)
        connection.close()

    def end(self) -> list[float]:
        """What was measured."""
        self._stop.set()
        self._thread.join(10)
        return self.milliseconds
