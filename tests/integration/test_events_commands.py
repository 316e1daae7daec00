"""`tcqueue events` and `tcqueue relay` as people use them, with a real broker; and consumers as clients of
Taskcluster build them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kombu
import pytest

from server.domain import slugid
from tests.plugins.deployment import PLAIN, TOKEN, deployed
from tests.plugins.rabbitmq import Broker

PATIENCE_S = 20.0


class Deployment:
    """A server that relays to a broker, and commands that know where both are."""

    def __init__(self, folder: Path, said: dict[str, str], broker: str, prefix: str) -> None:
        self._folder = folder
        self.broker = broker
        self.prefix = prefix
        self._environment = {
            **PLAIN,
            "TCQUEUE_CLIENT_ADDRESS": said["grpc"],
            "TCQUEUE_CLIENT_ID": "root",
            "TCQUEUE_CLIENT_ACCESS_TOKEN": TOKEN,
            "TCQUEUE_AMQP_URL": broker,
            "TCQUEUE_AMQP_EXCHANGE_PREFIX": prefix,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that runs beside the test."""
        return subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[str, str, int]:
        """Output, errors and exit code of a command."""
        process = self.start(*arguments)
        out, errors = process.communicate(timeout=PATIENCE_S)
        return out, errors, process.returncode

    def create(self, *arguments: str) -> str:
        """A task."""
        out, errors, code = self.run(
            "task", "create", "-q", "live/events", "-c", "true", "--json", *arguments
        )
        assert code == 0, errors
        task_id: str = json.loads(out)["taskId"]
        return task_id


class Listener:
    """A kombu consumer, bound as the generated client says (compat.md 2)."""

    def __init__(self, url: str) -> None:
        self._connection = kombu.Connection(url)
        self._channel = self._connection.channel()
        self.messages: list[tuple[str, Any, Any]] = []

    def bind(self, exchange: str, pattern: str) -> None:
        """Wants what fits."""
        queue = kombu.Queue(
            exchange=kombu.Exchange(
                exchange, type="topic", durable=True, passive=True, channel=self._channel
            ),
            routing_key=pattern,
            exclusive=True,
            auto_delete=True,
            channel=self._channel,
        )
        consumer = kombu.Consumer(
            self._channel, [queue], callbacks=[self._note], accept=["json"], no_ack=True
        )
        consumer.consume()

    def _note(self, body: Any, message: Any) -> None:
        self.messages.append((message.delivery_info["exchange"], body, message.headers))

    def until(self, count: int) -> None:
        """Returns when so many have come."""
        end = time.monotonic() + PATIENCE_S
        while len(self.messages) < count:
            assert time.monotonic() < end, self.messages
            try:
                self._connection.drain_events(timeout=0.2)
            except TimeoutError:
                continue

    def close(self) -> None:
        self._connection.release()


@pytest.fixture
def deployment(tmp_path: Path, rabbitmq: Broker, amqp_prefix: str) -> Iterator[Deployment]:
    broker = {"TCQUEUE_AMQP_URL": rabbitmq.url, "TCQUEUE_AMQP_EXCHANGE_PREFIX": amqp_prefix}
    with deployed(tmp_path, **broker, TCQUEUE_AMQP_QUEUE_PREFIX=amqp_prefix) as (said, _):
        found = Deployment(tmp_path, said, rabbitmq.url, amqp_prefix)
        _until_declared(found)
        yield found


def _until_declared(deployment: Deployment) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        connection = kombu.Connection(deployment.broker)
        name = deployment.prefix.replace("{service}", "queue") + "task-pending"
        try:
            kombu.Exchange(name, type="topic", durable=True, passive=True)(connection.channel()).declare()
            return
        except connection.channel_errors:
            assert time.monotonic() < end
            time.sleep(0.05)
        finally:
            connection.release()


@pytest.fixture
def listener(deployment: Deployment) -> Iterator[Listener]:
    listener = Listener(deployment.broker)
    yield listener
    listener.close()


def test_consumers_as_clients_bind_them(deployment: Deployment, listener: Listener) -> None:
    """With the patterns that the generated clients make of what a consumer wants."""
    prefix = deployment.prefix.replace("{service}", "queue")
    listener.bind(f"{prefix}task-pending", "primary.*.*.*.*.live.events.*.*.#")
    listener.bind(f"{prefix}task-defined", "route.index.*")
    listener.bind(f"{prefix}task-exception", "#")
    deployment.create("--route", "index.a")
    other = deployment.create()
    deployment.run("task", "cancel", other)
    listener.until(4)
    names = sorted(exchange.rpartition("/")[2] for exchange, _, _ in listener.messages)
    assert names == ["task-defined", "task-exception", "task-pending", "task-pending"]
    for _, body, headers in listener.messages:
        assert body["version"] == 1
        assert headers["x-event-id"] and headers["x-sequence"]


def test_a_scheduler_of_its_own(deployment: Deployment, listener: Listener) -> None:
    """A consumer that lets tasks start when it hears that others are done, as task-graph schedulers do."""
    prefix = deployment.prefix.replace("{service}", "queue")
    listener.bind(f"{prefix}task-completed", "route.graph.#")
    waiting = [slugid.nice() for _ in range(2)]
    for task_id in waiting:
        # It depends on itself: only who schedules it lets it start.
        deployment.create("--task-id", task_id, "--depends-on", task_id, "--route", f"graph.{task_id}")
    deployment.create("--route", "graph.first")
    worker = deployment.start("worker", "live/events", "--live-log", "off")
    try:
        for done, task_id in enumerate([*waiting, ""], 1):
            listener.until(done)
            if task_id:
                assert deployment.run("task", "schedule", task_id)[2] == 0
        ended = [body["status"]["taskId"] for _, body, _ in listener.messages]
        assert ended[1:] == waiting
    finally:
        worker.terminate()
        worker.communicate(timeout=PATIENCE_S)


def test_tail(deployment: Deployment) -> None:
    """A line an event, from the start or from a cursor."""
    task_id = deployment.create()
    tail = deployment.start("events", "tail", "--from-start", "--task", task_id)
    assert tail.stdout is not None
    lines = [tail.stdout.readline(), tail.stdout.readline()]
    assert "task-defined" in lines[0] and "task-pending" in lines[1] and task_id in lines[1]
    tail.send_signal(signal.SIGINT)
    _, errors = tail.communicate(timeout=PATIENCE_S)
    cursor = errors.split("--cursor ")[1].strip()
    deployment.run("task", "cancel", task_id)
    tail = deployment.start("events", "tail", "--json", "--cursor", cursor, "--task", task_id)
    assert tail.stdout is not None
    # The cursor may be the one before: what was printed last may come again.
    while (event := json.loads(tail.stdout.readline()))["exchange"] != "task-exception":
        assert event["exchange"] in ("task-defined", "task-pending")
    assert event["payload"]["status"]["state"] == "exception"
    tail.send_signal(signal.SIGINT)
    tail.communicate(timeout=PATIENCE_S)
    assert "there is no exchange" in deployment.run("events", "tail", "--exchange", "task-done")[1]


def test_replay(deployment: Deployment, listener: Listener) -> None:
    """Everything again, with the ids that it had."""
    prefix = deployment.prefix.replace("{service}", "queue")
    listener.bind(f"{prefix}task-pending", "#")
    deployment.create()
    listener.until(1)
    out, errors, code = deployment.run("events", "replay", "--from", "oldest", "--to", "amqp")
    assert code == 0, errors
    assert "events sent, and confirmed" in out
    listener.until(2)
    first, again = listener.messages
    assert first == again
    assert "cursor" in deployment.run("events", "replay", "--from", "nonsense", "--to", "amqp")[1]


def test_relay_alone(tmp_path: Path, rabbitmq: Broker, amqp_prefix: str) -> None:
    """A server that does not relay, and a process that does nothing else."""
    broker = {
        "TCQUEUE_AMQP_URL": rabbitmq.url,
        "TCQUEUE_AMQP_EXCHANGE_PREFIX": amqp_prefix,
        "TCQUEUE_AMQP_QUEUE_PREFIX": amqp_prefix,
    }
    with deployed(tmp_path, **broker, TCQUEUE_RELAY="false", TCQUEUE_LOOPS="false") as (said, _):
        deployment = Deployment(tmp_path, said, rabbitmq.url, amqp_prefix)
        relay = deployment.start("relay")
        try:
            _until_declared(deployment)
            listener = Listener(rabbitmq.url)
            listener.bind(amqp_prefix.replace("{service}", "queue") + "task-pending", "#")
            task_id = deployment.create()
            listener.until(1)
            assert listener.messages[0][1]["status"]["taskId"] == task_id
            listener.close()
        finally:
            relay.terminate()
            relay.communicate(timeout=PATIENCE_S)
        assert relay.returncode == 0
        assert httpx.get(f"http://{said['http']}/metrics").status_code == 200
