"""Events: where they go, under which key, and what they hold (queue.md 5)."""

from __future__ import annotations

import os
from typing import Any

import jsonschema
import pytest

from server.events.rows import read_row
from tests.conformance import recording, reference
from tests.conformance.building import at, metadata, new_id
from tests.conformance.recording import Published
from tests.conformance.shown import status_json
from tests.plugins.server import Queue

EXCHANGES = {
    "task-defined",
    "task-pending",
    "task-running",
    "task-completed",
    "task-failed",
    "task-exception",
    "task-group-resolved",
    "task-group-sealed",
    "task-priority-changed",
    "task-group-priority-changed",
}

#: A task with something in each field that events show.
FULL: dict[str, Any] = {
    "task_queue_id": "prov_A-1/work-2",
    "scheduler_id": "sched_3",
    "project_id": "a/project.x",
    "tags": {"kind": "build", "quote": 'a "quoted" \\ value', "ünï": "cödé"},
    "routes": ["index.a.b", "with a space", 'a "quote"'],
}


async def everything(queue: Queue) -> tuple[Published, str]:
    """Events of every kind, of one group of tasks with every field."""
    group = new_id()
    fields = {**FULL, "task_group_id": group}
    first = await queue.create(group, **fields, priority="low")
    await queue("ChangeTaskPriority", task_id=group, new_priority=7)
    await queue("ChangeTaskGroupPriority", task_group_id=group, new_priority=2)
    await queue.claim(queue_id=first.task_queue_id)
    await queue.resolve(group, "worker-shutdown")
    await queue.claim(queue_id=first.task_queue_id)
    await queue.resolve(group, "intermittent-task", 1)
    await queue.claim(queue_id=first.task_queue_id)
    await queue.pass_time(minutes=21)
    await queue.expire_claims()
    await queue.claim(queue_id=first.task_queue_id)
    await queue.resolve(group, "completed", 3)
    for outcome in ("failed", "malformed-payload", "canceled"):
        await queue.resolved(outcome, **fields)
    waiting = new_id()
    await queue.create(waiting, dependencies=[waiting], **fields)
    await queue.create(**fields)
    await queue("SealTaskGroup", task_group_id=group)
    await queue.pass_time(hours=1)
    await queue.enforce_deadlines()
    return await queue.published(), group


async def test_exchanges(queue: Queue) -> None:
    """Q-148: ten kinds of events, each on its exchange."""
    events, _ = await everything(queue)
    assert set(events.exchanges) == EXCHANGES


async def test_routing_keys(queue: Queue) -> None:
    """Q-149 Q-153: ten words for tasks, four for groups, `_` for what is not there."""
    events, group = await everything(queue)
    for event in events:
        if event.exchange.startswith("task-group-"):
            assert event.words == ["primary", group, "sched_3", "_"]
            continue
        payload = event.payload
        assert event.words == [
            "primary",
            event.status["taskId"],
            str(payload.get("runId", "_")),
            payload.get("workerGroup", "_"),
            payload.get("workerId", "_"),
            "prov_A-1",
            "work-2",
            "sched_3",
            group,
            "_",
        ]


async def test_which_words_each_exchange_has(queue: Queue) -> None:
    """Q-149 T-29: run and worker, as the exchange says."""
    events, _ = await everything(queue)
    has = {
        exchange: {tuple(word != "_" for word in e.words[2:5]) for e in events.of(exchange)}
        for exchange in EXCHANGES
        if "group" not in exchange
    }
    nothing, run, worker = (False,) * 3, (True, False, False), (True,) * 3
    assert has == {
        "task-defined": {nothing},
        "task-pending": {run},
        "task-running": {worker},
        "task-completed": {worker},
        "task-failed": {worker},
        "task-exception": {worker, run},
        "task-priority-changed": {nothing},
    }


async def test_routes(queue: Queue) -> None:
    """Q-150 Q-153 T-58: each of the task's routes, word for word, on each of its events; none on groups'."""
    events, _ = await everything(queue)
    for event in events:
        routes = [] if event.exchange.startswith("task-group-") else FULL["routes"]
        assert event.cc == [f"route.{route}" for route in routes]


async def test_versions_and_tags(queue: Queue) -> None:
    """Q-151 Q-152: version 1 everywhere; the tags with every event of a task that has room for them."""
    events, _ = await everything(queue)
    for event in events:
        assert event.payload["version"] == 1
        if event.exchange.startswith("task-") and not {"group", "priority"} & set(event.exchange.split("-")):
            assert event.payload["task"] == {"tags": FULL["tags"]}


async def test_payloads_match_the_reference(queue: Queue) -> None:
    """Q-151 Q-153 T-62: every payload is what the reference's schemas allow, and no field more."""
    if not reference.ROOT.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{reference.ROOT.name}: the reference schemas are not beside the checkout")
        pytest.skip("the reference schemas are not beside this checkout")
    events, _ = await everything(queue)
    for event in events:
        recording.check(event)
        with pytest.raises(jsonschema.ValidationError):
            recording.check(
                recording.Recorded(event.exchange, event.key, event.cc, {**event.payload, "strange": 1})
            )


async def test_priorities_in_events(queue: Queue) -> None:
    """Q-202 Q-205 Q-155: old and new by name."""
    events, group = await everything(queue)
    changed = events.one("task-priority-changed").payload
    assert (changed["oldPriority"], changed["newPriority"]) == ("low", "highest")
    assert changed["status"]["priority"] == "highest"
    assert events.one("task-group-priority-changed").payload == {
        "version": 1,
        "taskGroupId": group,
        "schedulerId": "sched_3",
        "newPriority": "very-low",
        "tasksAffected": 1,
    }


async def test_the_status_is_that_of_the_reply(queue: Queue) -> None:
    """Q-155 Q-233: each call's reply and its event show the same status, whole."""
    task_id = new_id()
    fields = {
        **FULL,
        "task_queue_id": "prov/work",
        "created": at(),
        "deadline": at(hours=1),
        "metadata": metadata(),
    }

    async def told(reply: Any, *exchanges: str) -> None:
        status = reply if hasattr(reply, "task_id") else reply.status
        events = await queue.published()
        for exchange in exchanges:
            assert events.one(exchange).status == status_json(status)

    await told(await queue.create(task_id, **fields), "task-pending")
    await told(await queue.create(task_id, **fields), "task-pending")
    await told((await queue.claim())[0], "task-running")
    await told(await queue.resolve(task_id, "worker-shutdown"), "task-exception", "task-pending")
    await told(await queue.resolve(task_id, "worker-shutdown"), "task-exception", "task-pending")
    await told(await queue("ChangeTaskPriority", task_id=task_id, new_priority=5), "task-priority-changed")
    await told((await queue.claim())[0], "task-running")
    await told(await queue.resolve(task_id, "completed", 1), "task-completed")
    await told(await queue.resolve(task_id, "completed", 1), "task-completed")
    await told(await queue("RerunTask", task_id=task_id), "task-pending")
    await told(await queue("CancelTask", task_id=task_id), "task-exception")
    await told(await queue("CancelTask", task_id=task_id), "task-exception")


async def test_the_order_of_events(queue: Queue) -> None:
    """Q-239 Q-130: a resolution comes before what it releases, and that before the group's end."""
    first = (await queue.running()).status.task_id
    waiting = [(await queue.create(dependencies=[first])).task_id for _ in range(3)]
    await queue.published()
    await queue.resolve(first, "completed")
    events = await queue.published()
    assert events.exchanges == ["task-completed", *["task-pending"] * 3, "task-group-resolved"]
    assert sorted(e.status["taskId"] for e in events.of("task-pending")) == sorted(waiting)


async def test_events_are_written_with_the_state(queue: Queue) -> None:
    """Q-030: in one row, by the transaction that makes the task."""
    await queue.create()
    rows = await queue.sql("select id, time, events from outbox")
    for row_id, time, text in rows:
        row = read_row(row_id, time, text)
        assert [event.exchange for event in row.events] == ["task-defined", "task-pending"]
