"""The exchanges of 2014: what is on them after each change of a task (queue.md 4.3)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pika
import pytest
from jsonschema import Draft6Validator
from referencing import Registry
from referencing.jsonschema import DRAFT6

from server.app import ELDERS
from server.events.legacy import exchange_names, with_legacy
from server.events.relay import Relay
from server.events.rows import read_row
from server.references.catalogue import Catalogue
from server.references.legacy import documents
from tests.conformance.building import new_id, now
from tests.elders.building import PROVISIONER, WORKER, WORKER_TYPE, iso, task
from tests.plugins.elders import Elder
from tests.plugins.rabbitmq import Broker
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("http")

PATIENCE_S = 20.0


def _schemas() -> Registry[Any]:
    registry: Registry[Any] = Registry()
    for schema in documents(Catalogue(ELDERS[0])).values():
        if "$id" in schema:
            resource = DRAFT6.create_resource(schema)
            registry = registry.with_resource(schema["$id"].removesuffix("#"), resource)
    return registry


class Listener:
    """A consumer bound to every exchange of 2014, and a relay that fills them."""

    def __init__(self, url: str, prefix: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue
        self._prefix = prefix
        for name in exchange_names(prefix).values():
            self._channel.exchange_declare(name, "topic", durable=True)
            self._channel.queue_bind(self._queue, name, "primary.#")
            self._channel.queue_bind(self._queue, name, "route.wanted")
        self._schemas = _schemas()

    async def take(self, *exchanges: str) -> list[dict[str, Any]]:
        """The payloads of as many messages, which must be of these exchanges in this order; each is held
        against its schema, and its routing key has ten words."""
        found = []
        async with asyncio.timeout(PATIENCE_S):
            for exchange in exchanges:
                while (got := self._channel.basic_get(self._queue, auto_ack=True))[0] is None:
                    await asyncio.sleep(0.005)
                method, properties, body = got
                assert method.exchange == self._prefix + exchange
                assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
                words = method.routing_key.split(".")
                assert (len(words), words[0], words[-1]) == (10, "primary", "_")
                payload = json.loads(body)
                schema = {"$ref": f"http://schemas.taskcluster.net/queue/v1/{exchange}-message.json"}
                Draft6Validator(schema, registry=self._schemas).validate(payload)
                found.append(payload)
        return found

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
async def listener(queue: Queue, rabbitmq: Broker) -> AsyncIterator[Listener]:
    mine = uuid.uuid4().hex
    settings = dataclasses.replace(
        queue.settings,
        amqp_url=rabbitmq.url,
        amqp_exchange_prefix=f"{mine}/{{service}}/v1/",
        amqp_legacy_exchange_prefix=f"{mine}/queue-2014/v1/",
    )
    relay = Relay(queue.services.db, queue.services.hub, settings)
    await relay.enter()
    stop = asyncio.Event()
    running = asyncio.create_task(relay.run(stop))
    listener = Listener(rabbitmq.url, settings.amqp_legacy_exchange_prefix)
    yield listener
    stop.set()
    await running
    listener.close()


@pytest.mark.elder("queue.taskDefined", "queue.taskPending", "queue.taskRunning", "queue.taskCompleted")
async def test_a_life(elder: Elder, listener: Listener) -> None:
    """Defined as pending, pending, running, completed with success: in the shapes of that time."""
    task_id = new_id()
    await elder.queue("createTask", task_id, payload=task(routes=["wanted"]))
    await elder.queue("claimWork", PROVISIONER, WORKER_TYPE, payload=WORKER)
    await elder.queue("reportCompleted", task_id, 0, payload={"success": True})
    defined, pending, running, completed = await listener.take(
        "task-defined", "task-pending", "task-running", "task-completed"
    )
    assert defined == {"version": 1, "status": pending["status"]}
    assert (pending["status"]["state"], pending["runId"]) == ("pending", 0)
    assert (running["status"]["state"], running["workerId"]) == ("running", "worker")
    assert running["takenUntil"] == running["status"]["runs"][0]["takenUntil"]
    assert completed["success"] is True
    assert completed["status"] == (await elder.queue("status", task_id)).json["status"]


@pytest.mark.elder("queue.taskCompleted", "queue.taskPending")
async def test_a_failure(elder: Elder, listener: Listener) -> None:
    """What failed was completed without success; what was rerun is pending again."""
    task_id = new_id()
    await elder.queue("defineTask", task_id, payload=task())
    await elder.queue("scheduleTask", task_id)
    await elder.queue("claimTask", task_id, 0, payload=WORKER)
    await elder.queue("reportCompleted", task_id, 0, payload={"success": False})
    await elder.queue("rerunTask", task_id)
    defined, _, _, completed, again = await listener.take(
        "task-defined", "task-pending", "task-running", "task-completed", "task-pending"
    )
    assert defined["status"]["state"] == "unscheduled"
    assert (completed["success"], completed["status"]["state"]) == (False, "completed")
    assert again["runId"] == 1


@pytest.mark.elder("queue.taskFailed", "queue.taskPending")
async def test_ends_from_outside(elder: Elder, queue: Queue, listener: Listener) -> None:
    """A lost run that is tried again is only pending again; the last one and a cancellation are failures."""
    task_id = new_id()
    await elder.queue("createTask", task_id, payload=task(retries=1))
    await listener.take("task-defined", "task-pending")
    for run_id in (0, 1):
        await elder.queue("claimTask", task_id, run_id, payload=WORKER)
        await queue.pass_time(hours=1)
        await queue.expire_claims()
    _, retried, _, failed = await listener.take("task-running", "task-pending", "task-running", "task-failed")
    assert (retried["runId"], failed["runId"], failed["workerGroup"]) == (1, 1, "group")
    assert failed["status"]["runs"][1]["reasonResolved"] == "claim-expired"
    canceled = new_id()
    await elder.queue("createTask", canceled, payload=task())
    await queue("CancelTask", task_id=canceled)
    *_, failed = await listener.take("task-defined", "task-pending", "task-failed")
    assert (failed["status"]["taskId"], failed["status"]["state"]) == (canceled, "failed")
    assert "workerGroup" not in failed


@pytest.mark.elder("queue.artifactCreated")
async def test_an_artifact(elder: Elder, queue: Queue, listener: Listener) -> None:
    """References are announced; what is younger than 2014 is a reference, too, and so for clients of then."""
    task_id = new_id()
    await elder.queue("createTask", task_id, payload=task())
    await elder.queue("claimTask", task_id, 0, payload=WORKER)
    artifact = {
        "storageType": "reference",
        "expires": iso(days=1),
        "contentType": "text/plain",
        "url": "https://example.com/",
    }
    await elder.queue("createArtifact", task_id, 0, "public/a", payload=artifact)
    link = {**artifact, "storageType": "link", "artifact": "public/a"}
    del link["url"]
    made = await elder.send("POST", f"/task/{task_id}/runs/0/artifacts/public/b", link)
    assert made.json == {"storageType": "link"}
    *_, first, second = await listener.take(
        "task-defined", "task-pending", "task-running", "artifact-created", "artifact-created"
    )
    assert first["artifact"] == {
        **{key: artifact[key] for key in ("storageType", "expires", "contentType")},
        "name": "public/a",
    }
    assert (second["artifact"]["storageType"], second["artifact"]["name"]) == ("reference", "public/b")


def test_what_is_no_event_of_ours() -> None:
    """What has another shape goes to today's exchange as it is, and holds up nothing."""
    text = '[{"exchange":"task-pending","key":"a.b","cc":[],"payload":{"mark":1}}]'
    events = read_row(7, now(), text).events
    assert [event.exchange for event in with_legacy(events)] == ["task-pending"]
