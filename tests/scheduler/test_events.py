"""What is told of graphs: at a real broker, and to those who watch."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pika
import pytest

from server.config import Settings
from server.events.filters import EventFilter
from server.events.publishing import exchange_names
from server.events.relay import Relay
from server.events.rows import read_row
from server.transitions import messages
from tcqueue.v1.event_pb2 import WatchEventsRequest
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.task_group_pb2 import WatchTaskGroupRequest
from tests.conformance.building import new_id, new_ids
from tests.plugins.rabbitmq import Broker
from tests.plugins.server import Queue
from tests.scheduler.building import SCHEDULER, extend, graph, nodes, run, submit
from tests.scheduler.test_reading import valid

PATIENCE_S = 20.0
NAMES = ("task-graph-running", "task-graph-extended", "task-graph-blocked", "task-graph-finished")


@asynccontextmanager
async def relaying(queue: Queue, broker: Broker, template: str) -> AsyncIterator[dict[str, str]]:
    """The server's events go to the broker; the exchanges' names by ours."""
    prefix = template.replace("{service}", "dummy")
    settings: Settings = dataclasses.replace(
        queue.settings,
        amqp_url=broker.url,
        amqp_exchange_prefix=template,
        amqp_scheduler_prefix=prefix,
    )
    relay = Relay(queue.services.db, queue.services.hub, settings)
    await relay.enter()
    stop = asyncio.Event()
    work = asyncio.create_task(relay.run(stop))
    try:
        yield dict(exchange_names(template, prefix))
    finally:
        stop.set()
        await work


class Listener:
    """A queue at the broker, bound before anything happens."""

    def __init__(self, url: str, bindings: dict[str, str]) -> None:
        """`bindings`: exchange to pattern."""
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue
        for name, pattern in bindings.items():
            self._channel.exchange_declare(name, "topic", durable=True)
            self._channel.queue_bind(self._queue, name, pattern)

    async def take(self, count: int) -> list[tuple[str, str, Any, Any]]:
        """So many messages: exchange, key, headers, payload."""
        found: list[tuple[str, str, Any, Any]] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < count:
                method, properties, body = self._channel.basic_get(self._queue, auto_ack=True)
                if method is None:
                    await asyncio.sleep(0.005)
                else:
                    found.append((method.exchange, method.routing_key, properties.headers, json.loads(body)))
        assert self._channel.basic_get(self._queue, auto_ack=True)[0] is None
        return found

    def close(self) -> None:
        self._connection.close()


@pytest.mark.doors("grpc")
async def test_at_the_broker(queue: Queue, rabbitmq: Broker, amqp_prefix: str) -> None:
    """S-021 S-024 S-051 S-052 S-053 S-054: four exchanges; keys of ten words with the graph's id where tasks
    have their group's, so that one pattern gets both; copies to the graph's routes."""
    async with relaying(queue, rabbitmq, amqp_prefix) as names:
        own = {names[name]: name for name in NAMES}
        graph_id, other, a, b = new_ids(4)
        whole = {name: f"primary.#.{SCHEDULER}.{graph_id}.#" for name in own}
        everything = Listener(rabbitmq.url, {**whole, names["task-completed"]: whole[next(iter(own))]})
        routed = Listener(rabbitmq.url, dict.fromkeys(own, "route.a.route"))
        request = graph({a: []}, graph_id, routes=["a.route", "another"])
        await submit(queue, request)
        await submit(queue, graph({new_id(): []}, other))
        await extend(queue, graph_id, nodes({b: [a]}))
        await run(queue, a, "failed")
        await queue("RerunTask", task_id=a)
        await run(queue, a, run_id=1)
        await run(queue, b)
        taken = await everything.take(6)
        kinds = [own.get(exchange, "task-completed") for exchange, *_ in taken]
        assert kinds == [*NAMES[:3], "task-completed", "task-completed", NAMES[3]]
        for exchange, key, headers, payload in taken:
            words = key.split(".")
            assert len(words) == 10
            assert (words[0], words[7], words[8]) == ("primary", SCHEDULER, graph_id)
            if exchange in own:
                assert words == ["primary", *"______", SCHEDULER, graph_id, "_"]
                assert headers["CC"] == ["route.a.route", "route.another"]
                valid(f"{own[exchange]}-message", payload)
        copies = await routed.take(4)
        assert [own[exchange] for exchange, *_ in copies] == list(NAMES)
        everything.close()
        routed.close()


def test_names_at_the_broker() -> None:
    """S-052: they begin with `scheduler/v1/`, whatever those of the queue begin with."""
    for template in ("exchange/taskcluster-{service}/v1/", "x/{service}/"):
        names = exchange_names(template)
        assert [names[name] for name in NAMES] == [f"scheduler/v1/{name}" for name in NAMES]
        assert names["task-pending"] == template.replace("{service}", "queue") + "task-pending"
    assert exchange_names("x", "dummy-test-scheduler/")[NAMES[0]] == f"dummy-test-scheduler/{NAMES[0]}"


@pytest.mark.doors("grpc")
async def test_watching(queue: Queue) -> None:
    """S-052: those who watch events over gRPC can ask for those of a graph, by its id and by exchange."""
    graph_id, a = new_ids(2)
    door: Any = queue.door
    stub = QueueStub(door.channel)
    call = stub.WatchEvents(
        WatchEventsRequest(exchanges=list(NAMES), task_group_id=graph_id),
        metadata=queue.credentials.metadata(),
    )
    responses = call.__aiter__()
    await anext(responses)
    await submit(queue, graph({new_id(): []}))
    await submit(queue, graph({a: []}, graph_id))
    await run(queue, a)
    seen: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(seen) < 2:
            seen += list((await anext(responses)).events)
    assert [event.exchange for event in seen] == ["task-graph-running", "task-graph-finished"]
    call.cancel()


@pytest.mark.doors("grpc")
async def test_watching_its_group(queue: Queue) -> None:
    """Those who watch the tasks of a graph as a group are told of the tasks alone."""
    graph_id, a, b = new_ids(3)
    await submit(queue, graph({a: [], b: [a]}, graph_id))
    door: Any = queue.door
    wanted = WatchTaskGroupRequest(task_group_id=graph_id)
    call = QueueStub(door.channel).WatchTaskGroup(wanted, metadata=queue.credentials.metadata())
    responses = call.__aiter__()
    first = await anext(responses)
    assert [status.task_id for status in first.statuses] == [a, b]
    for task_id in (a, b):
        await run(queue, task_id)
    seen = [status.task_id async for response in responses for status in response.statuses]
    assert {*seen} == {a, b}


def test_ids_of_an_event() -> None:
    """A `_` in a key is no id."""
    graph_id = new_id()
    text = messages.join([messages.task_graph(NAMES[0], graph_id, SCHEDULER, "running", [])])
    (event,) = read_row(1, datetime.now(UTC), text).events
    assert (event.task_id, event.task_group_id, event.task_queue_id) == ("", graph_id, "")
    assert EventFilter.build([NAMES[0]], [], "", graph_id, "").matches(event)
    assert not EventFilter.build([], [], "", "", "_/_").matches(event)
