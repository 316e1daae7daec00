"""worker-manager's messages, over a real broker: the runs of workers that are gone are retried at once."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pika
import pytest

from server.errors import Unavailable
from server.loops import removed_workers
from server.loops.removed_workers import EXCHANGES, RemovedWorkers
from server.services import Services
from server.transitions import resolving
from tcqueue.v1.run_pb2 import ReasonCreated, ReasonResolved
from tcqueue.v1.task_pb2 import TaskState
from tests.conformance import recording
from tests.plugins.rabbitmq import Broker
from tests.plugins.services import Api

PATIENCE_S = 20.0
QUEUE = "prov/work"


class Manager:
    """worker-manager, as far as it speaks to us."""

    def __init__(self, broker: Broker, prefix: str, queue: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        self._channel = self._connection.channel()
        self._prefix = prefix
        self.queue = queue

    def say(self, exchange: str, body: bytes) -> None:
        """A message."""
        key = "primary.provider.prov.work.g.w._._"
        self._channel.basic_publish(f"{self._prefix}{exchange}", key, body)

    def gone(self, exchange: str, worker: str = "g/w", queue: str = QUEUE) -> None:
        """A worker is gone."""
        group, _, worker_id = worker.partition("/")
        payload: dict[str, Any] = {
            "workerPoolId": queue,
            "providerId": "provider",
            "workerGroup": group,
            "workerId": worker_id,
            "capacity": 1,
            "timestamp": "2026-01-01T00:00:00.000Z",
        }
        if exchange == "worker-removed":
            payload["reason"] = "terminated"
        self.say(exchange, json.dumps(payload).encode())

    async def until_read(self) -> None:
        """Returns when all that was said has been acknowledged."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self._connection.process_data_events()
                try:
                    self._connection.channel().queue_declare(self.queue, passive=True)
                    break
                except pika.exceptions.ChannelClosedByBroker:
                    await asyncio.sleep(0.05)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
async def manager(services: Services, rabbitmq: Broker) -> AsyncIterator[Manager]:
    """With our consumer running beside it."""
    name = uuid.uuid4().hex
    queue, prefix = f"queue/{name}", f"{name}/"
    stop = asyncio.Event()
    consumer = RemovedWorkers(services.machine, rabbitmq.url, queue=queue, exchange_prefix=prefix)
    running = asyncio.create_task(consumer.run(stop))
    manager = Manager(rabbitmq, prefix, queue)
    await manager.until_read()
    yield manager
    stop.set()
    await running
    manager.close()


async def _state(api: Api, task_id: str) -> Any:
    return (await api("GetTaskStatus", task_id=task_id)).status


async def _retried(api: Api, task_id: str) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status = await _state(api, task_id)
            if len(status.runs) > 1 or status.state == TaskState.TASK_STATE_EXCEPTION:
                return status
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("exchange", EXCHANGES)
async def test_runs_are_retried(services: Services, api: Api, manager: Manager, exchange: str) -> None:
    """Q-147 Q-235: as worker-shutdown, with a retry, for every run of this worker and of no other."""
    mine = [await api.create(), await api.create()]
    await api.claim(tasks=2)
    other = await api.create()
    await api.claim(worker="g/other")
    manager.gone(exchange)
    for task_id in mine:
        status = await _retried(api, task_id)
        assert status.runs[0].reason_resolved == ReasonResolved.REASON_RESOLVED_WORKER_SHUTDOWN
        assert status.runs[1].reason_created == ReasonCreated.REASON_CREATED_RETRY
        assert (status.state, status.retries_left) == (TaskState.TASK_STATE_PENDING, 4)
    assert (await _state(api, other)).state == TaskState.TASK_STATE_RUNNING
    rows = await services.db.fetch("select id, time, events from outbox order by id")
    events = recording.recorded((row[0], row[1], row[2]) for row in rows).about(mine[0])
    assert events.exchanges[-2:] == ["task-exception", "task-pending"]
    for event in events:
        recording.check(event)


async def test_without_retries(api: Api, manager: Manager) -> None:
    """The task ends."""
    task_id = await api.create(retries=0)
    await api.claim()
    manager.gone("worker-stopped")
    assert (await _retried(api, task_id)).state == TaskState.TASK_STATE_EXCEPTION


async def test_what_changes_nothing(services: Services, api: Api, manager: Manager) -> None:
    """Q-147 Q-235: repeats, unknown workers, runs that have been reported, messages that make no sense."""
    done = await api.create()
    await api.claim()
    await api("ReportCompleted", task_id=done, run_id=0)
    before = await services.db.fetch("select count(*) from outbox")
    for exchange in EXCHANGES:
        manager.gone(exchange)
        manager.gone(exchange, worker="nobody/knows")
        manager.gone(exchange, queue="no/queue")
    for nonsense in (
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"{}",
        b'{"workerPoolId": 5, "workerGroup": "", "workerId": null}',
    ):
        manager.say("worker-removed", nonsense)
    last = await api.create()
    await api.claim()
    manager.gone("worker-removed")
    manager.gone("worker-stopped")
    assert len((await _retried(api, last)).runs) == 2
    events = await services.db.fetch("select count(*) from outbox")
    # What happened is what became of the last task, and nothing else.
    rows = await services.db.fetch("select id, time, events from outbox order by id")
    found = recording.recorded((row[0], row[1], row[2]) for row in rows)
    assert events > before
    assert found.about(done).exchanges[-1] == "task-completed"
    assert (await _state(api, last)).retries_left == 4


async def test_a_message_survives_a_database_that_is_away(
    services: Services, api: Api, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is acknowledged once it is done, and tried until then."""
    task_id = await api.create()
    await api.claim()
    right = resolving.resolve_runs
    tries = 0

    async def away_at_first(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Unavailable("away")
        return await right(*arguments)

    monkeypatch.setattr(removed_workers, "resolve_runs", away_at_first)
    manager.gone("worker-stopped")
    assert len((await _retried(api, task_id)).runs) == 2
    assert tries == 2
