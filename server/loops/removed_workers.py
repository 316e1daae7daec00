"""What worker-manager says of workers that are gone: their runs are retried at once, not when their claims
run out (queue.md 6.2, worker-removed-resolver)."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import structlog

from server import metrics
from server.errors import Unavailable
from server.events.amqp import BrokerLost, Channel
from server.store.statements import load
from server.transitions.machine import Machine
from server.transitions.resolving import Resolve, resolve_runs

_SQL = load("claims")
log = structlog.get_logger(__name__)

EXCHANGES = ("worker-stopped", "worker-removed")
_PREFETCH = 100
_WORDS = ("workerPoolId", "workerGroup", "workerId")


class RemovedWorkers:
    """Consumes until told to stop. A message is acknowledged once what follows from it is committed, so one
    that this process dies over comes again, and then finds it done."""

    def __init__(self, machine: Machine, url: str, *, queue: str, exchange_prefix: str) -> None:
        """`exchange_prefix` is that of worker-manager's exchanges."""
        self._machine = machine
        self._url = url
        self._queue = queue
        self._exchanges = [exchange_prefix + name for name in EXCHANGES]

    async def run(self, stop: asyncio.Event) -> None:
        """Consumes until `stop`."""
        work = asyncio.create_task(self._for_ever())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, stopping):
                task.cancel()
            await asyncio.gather(work, stopping, return_exceptions=True)

    async def _for_ever(self) -> None:
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._consume()
            except BrokerLost as e:
                log.warning("worker-manager's messages cannot be read; trying on", error=e.text)
            except Exception:
                log.exception("worker-manager's messages cannot be read; trying on")
            failures = 0 if asyncio.get_running_loop().time() - began > 10 else failures + 1
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**failures))

    async def _consume(self) -> None:
        channel = await Channel.opened(self._url)
        try:
            raw = channel.raw
            # Nobody else may have made them yet.
            await channel.declare(self._exchanges)
            await channel.call(raw.queue_declare, queue=self._queue, durable=True)
            for exchange in self._exchanges:
                await channel.call(
                    raw.queue_bind, queue=self._queue, exchange=exchange, routing_key="primary.#"
                )
            await channel.call(raw.basic_qos, prefetch_count=_PREFETCH)
            messages: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
            raw.basic_consume(
                self._queue,
                lambda _, method, __, body: messages.put_nowait((method.delivery_tag, body)),
            )
            ended = asyncio.create_task(channel.ended())
            try:
                while channel.lost is None:
                    getting = asyncio.create_task(messages.get())
                    await asyncio.wait({getting, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if not getting.done():
                        getting.cancel()
                        break
                    tag, body = getting.result()
                    await self._handle(body)
                    raw.basic_ack(tag)
            finally:
                ended.cancel()
            raise channel.lost or BrokerLost("the channel has ended")
        finally:
            await channel.close()

    async def _handle(self, body: bytes) -> None:
        """Does what a message asks for. One that makes no sense is said and passed over: no repeat would mend
        it. Waits for a database that is away."""
        worker = _worker(body)
        if worker is None:
            log.warning("a message of worker-manager makes no sense", body=body[:500])
            return
        while True:
            try:
                lost = await self.resolve(*worker)
                break
            except Unavailable as e:
                log.warning("a removed worker waits for the database", error=e.message)
                await asyncio.sleep(0.5)
        if lost:
            log.info("runs of a worker that is gone are retried", worker="/".join(worker), runs=lost)

    async def resolve(self, task_queue_id: str, worker_group: str, worker_id: str) -> int:
        """Resolves all running runs of a worker as worker-shutdown; returns how many it was. Raises
        Unavailable."""
        rows = await self._machine.db.fetch(_SQL["runs_of_worker"], (task_queue_id, worker_group, worker_id))
        items = [Resolve(row[0], row[1], "exception", "worker-shutdown") for row in rows]
        if items:
            await resolve_runs(self._machine, items)
            metrics.REMOVED_WORKERS.inc()
        return len(items)


def _worker(body: bytes) -> tuple[str, str, str] | None:
    """Queue, group and id of the worker that a message is about; None for a message that is none."""
    try:
        payload: Any = json.loads(body)
        pool, group, worker = (payload[word] for word in _WORDS)
    except (ValueError, KeyError, TypeError):
        return None
    if not all(isinstance(word, str) and word and "\0" not in word for word in (pool, group, worker)):
        return None
    return pool, group, worker
