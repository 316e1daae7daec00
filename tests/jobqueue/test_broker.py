"""Messages about new jobs, on a real broker (jobqueue.md 4)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pika
import pytest

from server.config import Settings
from tests.jobqueue.conftest import Served, served
from tests.jobqueue.old_client import EXAMPLE, OldClient
from tests.plugins.rabbitmq import Broker, need
from tests.plugins.server import Queue

STRESS = Path(__file__).parent / "stress.py"


class Message(NamedTuple):
    """A message that was in the queue, with what the worker needs of its properties."""

    properties: pika.BasicProperties
    value: dict[str, Any]


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Broker]:
    """A broker for this module: the names of exchange and queue are fixed."""
    need()
    with tempfile.TemporaryDirectory(prefix="tcqueue-mq-", ignore_cleanup_errors=True) as folder:
        broker = Broker(Path(folder))
        broker.start()
        yield broker
        broker.end()


@pytest.fixture
def server_settings(server_settings: Settings, own_broker: Broker) -> Settings:
    """With the broker, on which nothing is left of the tests before."""
    with pika.BlockingConnection(pika.URLParameters(own_broker.url)) as connection:
        connection.channel().queue_delete("jobs")
        connection.channel().exchange_delete("jobs_xchg")
    return dataclasses.replace(server_settings, amqp_url=own_broker.url)


class Worker:
    """Reads the queue as old workers do."""

    def __init__(self, broker: Broker) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        self.channel = self._connection.channel()

    def get(self) -> Message | None:
        """A message that is there now."""
        method, properties, body = self.channel.basic_get("jobs", auto_ack=True)
        return None if method is None else Message(properties, json.loads(body))

    def waiting(self) -> int:
        """How many messages are there."""
        return int(self.channel.queue_declare("jobs", passive=True).method.message_count)

    def close(self) -> None:
        """Ends the connection."""
        if self._connection.is_open:
            self._connection.close()


@pytest.fixture
async def worker(server: Served, own_broker: Broker) -> AsyncIterator[Worker]:
    """A worker that connects to the broker once the server is there."""
    worker = await asyncio.to_thread(Worker, own_broker)
    yield worker
    await asyncio.to_thread(worker.close)


async def test_the_message_is_there_at_once(old: OldClient, worker: Worker) -> None:
    """J-041: when the reply is, for every job, with what old libraries need to decode it."""
    for _ in range(20):
        job_id = await old.new()
        message = await asyncio.to_thread(worker.get)
        assert message is not None and message.value["job_id"] == job_id
        assert message.properties.content_type == "application/json"
        assert message.properties.content_encoding == "utf-8"
    assert await asyncio.to_thread(worker.get) is None


async def test_what_the_message_says(old: OldClient, worker: Worker) -> None:
    """J-042: the job's id, at the top and in the job, which is as the API shows it."""
    job_id = await old.new(EXAMPLE)
    message = await asyncio.to_thread(worker.get)
    assert message is not None
    assert set(message.value) == {"job_id", "job", "claim", "finish"}
    assert message.value["job_id"] == message.value["job"]["job_id"] == job_id
    assert message.value["job"] == await old.job(job_id)
    assert message.properties.expiration == "1200000"


async def test_where_the_message_leads(server: Served, old: OldClient, worker: Worker) -> None:
    """J-043: to this server; a worker that follows it runs the job."""
    job_id = await old.new()
    message = await asyncio.to_thread(worker.get)
    assert message is not None
    base = f"http://127.0.0.1:{server.port}/0.1.0"
    assert message.value["claim"] == f"{base}/job/{job_id}/claim"
    assert message.value["finish"] == f"{base}/job/{job_id}/finish"
    for url in (message.value["claim"], message.value["finish"]):
        assert (await old("POST", url.partition("/0.1.0")[2])).status == 200
    assert (await old.job(job_id))["state"] == "FINISHED"


@pytest.mark.settings(job_queue_external_addr="queue.example.com")
async def test_another_address(old: OldClient, worker: Worker) -> None:
    """J-043: a configured one is taken as it is, without a port as well."""
    job_id = await old.new()
    message = await asyncio.to_thread(worker.get)
    assert message is not None
    assert message.value["claim"] == f"http://queue.example.com/0.1.0/job/{job_id}/claim"


async def test_purge_before_the_first_job(old: OldClient, worker: Worker) -> None:
    """J-044: exchange, queue and binding are there from the start, of the kind that old clients declare."""
    await asyncio.to_thread(worker.channel.queue_purge, "jobs")
    await asyncio.to_thread(worker.channel.exchange_declare, "jobs_xchg", "direct")
    await asyncio.to_thread(worker.channel.queue_declare, "jobs", exclusive=False, auto_delete=False)
    await asyncio.to_thread(worker.channel.queue_bind, "jobs", "jobs_xchg", "jobs")
    await old.new()
    assert await asyncio.to_thread(worker.get) is not None


async def test_a_message_expires(old: OldClient, worker: Worker, modern: Queue) -> None:
    """4: after max_pending_seconds; the job stays."""
    job_id = await old.new({"max_pending_seconds": 2})
    assert await asyncio.to_thread(worker.waiting) == 1
    async with asyncio.timeout(20):
        while (await asyncio.to_thread(worker.waiting)) > 0:
            await asyncio.sleep(0.05)
    assert await old.jobs("?state=PENDING") == {job_id}


async def _stress(server: Served, *options: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(STRESS), "--url", f"http://localhost:{server.port}", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_the_stress_client(server: Served, own_broker: Broker) -> None:
    """J-045: ten jobs and three workers; it ends with status 0."""
    status, output = await _stress(
        server,
        *("--rabbitmq", f"127.0.0.1:{own_broker.port}", "--num-jobs", "10", "--num-workers", "3"),
        *("--job-submit-delay", "0.05", "--worker-duration", "0.1"),
    )
    assert status == 0, output


async def test_some_hundred_jobs(server: Served, own_broker: Broker, modern: Queue) -> None:
    """Every one runs exactly once, by the messages and by the log."""
    status, output = await _stress(
        server,
        *("--rabbitmq", f"127.0.0.1:{own_broker.port}", "--num-jobs", "300", "--num-workers", "8"),
        *("--job-submit-delay", "0", "--worker-duration", "0"),
    )
    assert status == 0, output
    exchanges = (await modern.published()).exchanges
    assert exchanges.count("task-running") == exchanges.count("task-completed") == 300
    assert await modern.sql("select count(*) from jobs where not announced") == [(0,)]


# -- when something is away


async def _announced(modern: Queue) -> None:
    """Returns when the broker has confirmed every message; the loop is driven by hand."""
    async with asyncio.timeout(30):
        while await modern.sql("select 1 from jobs where not announced limit 1"):
            await modern.round("announce-jobs")
            await asyncio.sleep(0.05)


async def test_a_crash_before_the_message(old: OldClient, worker: Worker, modern: Queue) -> None:
    """4: a job whose creator's server died in between is announced by whoever lives."""
    kept, claimed, late = [await old.new({"max_pending_seconds": 60}) for _ in range(3)]
    await asyncio.to_thread(worker.channel.queue_purge, "jobs")
    await modern.sql("update jobs set announced = false")
    assert await modern.round("announce-jobs") == 0  # their own servers may still be at it
    await modern.sql("update jobs set created = created - make_interval(secs => 10)")
    task_id = (await modern("GetJob", job_id=late)).job.task_id
    await modern.sql(
        "update jobs set created = created - make_interval(secs => 60) where task_id = $1", task_id
    )
    assert await old.change(claimed, "claim") == 200
    assert await modern.round("announce-jobs") == 3
    message = await asyncio.to_thread(worker.get)
    assert message is not None and message.value["job_id"] == kept
    # What is left of its time, in whole seconds.
    assert 45_000 <= int(message.properties.expiration or 0) <= 50_000
    assert await asyncio.to_thread(worker.get) is None
    assert await modern.round("announce-jobs") == 0


async def test_a_queue_that_somebody_deleted(old: OldClient, worker: Worker, modern: Queue) -> None:
    """4: it is made anew, and every job that waits is announced again."""
    before = await old.new()
    await asyncio.to_thread(worker.channel.queue_delete, "jobs")
    after = await old.new()
    await modern.sql("update jobs set created = created - make_interval(secs => 10)")
    await _announced(modern)
    messages = [await asyncio.to_thread(worker.get) for _ in range(2)]
    assert {message.value["job_id"] for message in messages if message} == {before, after}


@pytest.mark.timeout(120)
async def test_a_broker_that_restarts(server_settings: Settings, broker: Broker) -> None:
    """4: jobs are created all the while, and none is forgotten."""
    settings = dataclasses.replace(server_settings, amqp_url=broker.url)
    async with served(settings) as server:
        old, modern = OldClient("localhost", server.port), server.queue
        before = await old.new()
        await asyncio.to_thread(broker.kill)
        async with asyncio.timeout(20):
            during = [await old.new() for _ in range(3)]
        assert await old.jobs() == {before, *during}
        await asyncio.to_thread(broker.start)
        await modern.sql("update jobs set created = created - make_interval(secs => 10)")
        await _announced(modern)
        worker = await asyncio.to_thread(Worker, broker)
        found = [await asyncio.to_thread(worker.get) for _ in range(5)]
        assert {message.value["job_id"] for message in found if message} == {before, *during}
        worker.close()
        old.close()


@pytest.mark.timeout(120)
async def test_a_broker_that_falls_silent(server_settings: Settings, broker: Broker) -> None:
    """4: a creator waits for it, and not for ever."""
    settings = dataclasses.replace(server_settings, amqp_url=broker.url)
    async with served(settings) as server:
        old, modern = OldClient("localhost", server.port), server.queue
        broker.signal(signal.SIGSTOP)
        async with asyncio.timeout(15):
            job_id = await old.new()
        broker.signal(signal.SIGCONT)
        await modern.sql("update jobs set created = created - make_interval(secs => 10)")
        await _announced(modern)
        assert await old.jobs() == {job_id}
        old.close()


@pytest.mark.timeout(120)
async def test_a_start_without_the_broker(server_settings: Settings, broker: Broker) -> None:
    """4: jobs can be created, and are announced when it comes."""
    settings = dataclasses.replace(server_settings, amqp_url=broker.url)
    await asyncio.to_thread(broker.stop)
    async with served(settings) as server:
        old, modern = OldClient("localhost", server.port), server.queue
        async with asyncio.timeout(5):
            job_id = await old.new()
        assert await modern.round("announce-jobs") == 0
        await asyncio.to_thread(broker.start)
        await modern.sql("update jobs set created = created - make_interval(secs => 10)")
        await _announced(modern)
        worker = await asyncio.to_thread(Worker, broker)
        message = await asyncio.to_thread(worker.get)
        assert message is not None and message.value["job_id"] == job_id
        worker.close()
        old.close()
