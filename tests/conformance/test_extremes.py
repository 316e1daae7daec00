"""Values at the edges of what is legal, and credentials that do not hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from server.client.credentials import Credentials
from server.views import stamp
from tests.conformance.building import at, definition, metadata, new_id
from tests.conformance.door import refused
from tests.conformance.shown import moment, runs, state, text
from tests.conformance.test_artifacts import Run
from tests.plugins.server import Caller, Queue

LAST = datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC)
WORKER = {"provisioner_id": "prov", "worker_type": "work", "worker_group": "group", "worker_id": "worker"}


async def test_the_last_day(queue: Queue) -> None:
    """Q-017 Q-058: a task may live until the calendar ends, and so does its group."""
    task_id = (await queue.running(expires=stamp(LAST))).status.task_id
    group = (await queue("GetTaskGroup", task_group_id=task_id)).task_group
    assert moment(group.expires) == LAST
    status = await queue.resolve(task_id, "completed")
    assert text(status.expires) == "9999-12-31T23:59:59.999Z"
    (await queue.published()).one("task-group-resolved")
    await queue.create(task_group_id=task_id, expires=stamp(LAST))


@pytest.mark.doors("grpc")  # JSON has no words for them
async def test_dates_beyond_the_calendar(queue: Queue) -> None:
    """Q-014: are no dates at all."""
    for seconds in (253_402_300_800, -62_135_596_801):
        for name in ("created", "deadline", "expires"):
            dates: dict[str, Any] = {name: Timestamp(seconds=seconds)}
            with refused("InputValidationError"):
                await queue.create(**dates)
        with refused("InputValidationError"):
            await queue("QuarantineWorker", **WORKER, quarantine_until=Timestamp(seconds=seconds))


async def test_quarantines_long_past_and_far_ahead(queue: Queue) -> None:
    """Q-189: come back as they were given."""
    await queue("DeclareWorker", **WORKER)
    for until in (LAST, datetime(1969, 12, 31, 23, 59, 58, 250_000, UTC), datetime(2, 1, 1, tzinfo=UTC)):
        exact = Timestamp()
        exact.FromDatetime(until)
        worker = (await queue("QuarantineWorker", **WORKER, quarantine_until=exact)).worker
        assert (worker.quarantine_until, (await queue("GetWorker", **WORKER)).worker) == (exact, worker)


async def test_strange_texts(queue: Queue) -> None:
    """Q-031 Q-150 Q-152: control characters, quotes and other alphabets come through everywhere."""
    strange = 'NUL \0, tab \t, line\nbreak, "quote", \\, é, 漢字, 🦊, \u2028'
    status = await queue.create(
        routes=[strange],
        tags={strange: strange},
        metadata=metadata(name=strange),
        payload=json.dumps({strange: strange}),
    )
    task = await queue.task(status.task_id)
    assert (task.routes[0], task.tags[strange], task.metadata.name) == (strange,) * 3
    assert json.loads(task.payload) == {strange: strange}
    for event in await queue.published():
        assert (event.cc, event.payload["task"]["tags"]) == ([f"route.{strange}"], {strange: strange})


async def test_what_is_json(queue: Queue) -> None:
    """Q-009 Q-010: numbers are kept as written, and compared by value; what is no JSON is refused."""
    numbers = '{"big": 123456789012345678901234567890, "float": 1.0, "exp": 1E40, "int": 3600}'
    dates = {"created": at(), "deadline": at(hours=1)}
    status = (await queue("CreateTask", task_id=new_id(), task=definition(payload=numbers, **dates))).status
    assert (await queue.task(status.task_id)).payload == numbers
    for broken in ('{"a": NaN}', '{"a": 1} more', "null", '"text"', "", "{'a': 1}", '{"a": 01}', '{"a'):
        with refused("InputValidationError|MalformedPayload"):
            await queue.create(payload=broken)
    for value, same in (("1.0", True), ("true", False), ('"1"', False), ("2", False)):
        first = await queue("CreateTask", task_id=new_id(), task=definition(payload='{"a":1}', **dates))
        again = {"task_id": first.status.task_id, "task": definition(payload=f'{{"a":{value}}}', **dates)}
        if same:
            await queue("CreateTask", **again)
        else:
            with refused("RequestConflict"):
                await queue("CreateTask", **again)


async def test_a_repeat_after_a_retry(queue: Queue) -> None:
    """Q-012 T-8: task-defined shows the task as it was defined."""
    task_id, task = new_id(), definition(retries=3)
    await queue("CreateTask", task_id=task_id, task=task)
    defined = (await queue.published()).one("task-defined")
    await queue.claim()
    await queue.resolve(task_id, "worker-shutdown")
    await queue.published()
    status = (await queue("CreateTask", task_id=task_id, task=task)).status
    assert (status.retries_left, state(status)) == (2, "pending")
    assert await queue.published() == [defined]


async def test_the_longest_names(queue: Queue) -> None:
    """Q-149: ids of 38 characters, of every kind they may have."""
    name = "aZ09-_" + "x" * 32
    queue_id, worker = f"{name}/a{'0' * 36}z", f"{name}/{name}"
    status = await queue.create(task_queue_id=queue_id, scheduler_id=name)
    (claim,) = await queue.claim(queue_id=queue_id, worker=worker)
    assert runs(await queue.resolve(claim.status.task_id, "failed")) == ["scheduled failed failed"]
    event = (await queue.published()).one("task-failed")
    assert event.words[2:8] == ["0", name, name, *queue_id.split("/"), name]
    assert max(map(len, event.words)) == 38 and status.task_queue_id == queue_id


async def test_run_numbers(queue: Queue) -> None:
    """Q-122, queue.md 1.1: 0 to 1000; in a path any digits, of which more name no run."""
    task_id = (await queue.create()).task_id
    with refused("ResourceNotFound"):
        await queue("ReportCompleted", task_id=task_id, run_id=1000)
    with refused("InvalidRequestArguments"):
        await queue("ReportCompleted", task_id=task_id, run_id=-1)
    for run_id in (1001, 2**31 - 1):
        with refused("ResourceNotFound" if queue.door.in_paths else "InvalidRequestArguments"):
            await queue("ReportCompleted", task_id=task_id, run_id=run_id)
        with refused("InputError" if queue.door.in_paths else "InvalidRequestArguments"):
            await Run(queue, task_id, run_id).create("s3", expires=at(minutes=10))


async def test_who_is_refused_how(queue: Queue) -> None:
    """T-2 T-1: no credentials lack scopes; only credentials that do not hold fail. Where scopes need stored
    or body values, those are looked at first."""
    task_id = (await queue.create()).task_id
    with refused("InsufficientScopes"):
        await queue.anonymous("GetTask", task_id=task_id)
    root = queue.credentials
    for wrong in (Credentials("root", "x" * 44), Credentials("nobody", root.access_token)):
        caller = Caller(queue.door, wrong)
        for method, fields in (("GetTask", {"task_id": "malformed"}), ("CancelTask", {"task_id": task_id})):
            with refused("AuthenticationFailed"):
                await caller(method, **fields)
        with refused("ResourceNotFound"):
            await caller("CancelTask", task_id=new_id())
        with refused("InvalidRequestArguments"):
            await caller("CancelTask", task_id="malformed")
        await caller("Ping")
    assert state(await queue.status(task_id)) == "pending"
