"""WatchEvents, WatchTask and WatchTaskGroup on a whole process (design 6; Q-153, Q-155, Q-233)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from server.config import Settings
from server.domain import slugid
from server.errors import CursorTooOld, InputError, ResourceNotFound
from server.events.statuses import from_event
from server.handlers import events as handlers
from server.handlers.events import watch_events, watch_task, watch_task_group
from server.services import Services
from server.transitions.resolving import Resolve
from server.views import TASK_STATES
from tcqueue.v1.event_pb2 import Event, WatchEventsRequest
from tcqueue.v1.run_pb2 import ReasonResolved
from tcqueue.v1.task_group_pb2 import WatchTaskGroupRequest
from tcqueue.v1.task_pb2 import Priority, TaskStatus, WatchTaskRequest
from tests.plugins.services import Api

STATES = {number: word for word, number in TASK_STATES.items()}


@pytest.fixture(autouse=True)
def nobody_is_left_watching(services: Services) -> Any:
    yield
    assert services.events.watchers == 0


@asynccontextmanager
async def events(api: Api, **fields: Any) -> AsyncIterator[AsyncGenerator[Any, None]]:
    """An established WatchEvents."""
    stream: Any = watch_events(api.call("WatchEvents"), WatchEventsRequest(**fields))
    async with aclosing(stream):
        first = await anext(stream)
        assert first.cursor and not first.events
        yield stream


async def take(stream: AsyncIterator[Any], count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        found += (await anext(stream)).events
    assert len(found) == count, [event.exchange for event in found]
    return found


def words(status: TaskStatus) -> str:
    """A status in short: its state and the number of its runs."""
    return f"{STATES[status.state]} {len(status.runs)}"


@asynccontextmanager
async def task(api: Api, task_id: str) -> AsyncIterator[AsyncGenerator[TaskStatus, None]]:
    responses: Any = watch_task(api.call("WatchTask"), WatchTaskRequest(task_id=task_id))

    async def statuses() -> AsyncGenerator[TaskStatus, None]:
        async with aclosing(responses):
            async for response in responses:
                yield response.status

    async with aclosing(statuses()) as stream:
        yield stream


@asynccontextmanager
async def group(api: Api, group_id: str) -> AsyncIterator[AsyncGenerator[Any, None]]:
    request = WatchTaskGroupRequest(task_group_id=group_id)
    stream: Any = watch_task_group(api.call("WatchTaskGroup"), request)
    async with aclosing(stream):
        yield stream


async def report(api: Api, rpc: str, task_id: str, run_id: int = 0, **fields: Any) -> TaskStatus:
    status: TaskStatus = (await api(rpc, task_id=task_id, run_id=run_id, **fields)).status
    return status


async def run(api: Api, task_id: str, *, queue_id: str = "prov/work") -> TaskStatus:
    """Claims the one pending task of a queue and completes it."""
    assert [claim.status.task_id for claim in await api.claim(queue_id)] == [task_id]
    return await report(api, "ReportCompleted", task_id)


# --- WatchEvents


async def test_a_life_in_events(api: Api) -> None:
    """Q-155: each event shows the state after its transition; Q-153: the group's has four words."""
    group_id = slugid.nice()
    async with events(api, task_group_id=group_id) as stream:
        await api.create(task_group_id=slugid.nice())
        await api.claim()
        task_id = await api.create(task_group_id=group_id, routes=["index.a", "b"], tags={"k": "v"})
        await run(api, task_id)
        found = await take(stream, 5)
    assert [event.exchange for event in found] == [
        "task-defined", "task-pending", "task-running", "task-completed", "task-group-resolved"
    ]  # fmt: skip
    payloads = [json.loads(event.payload) for event in found]
    assert [p["status"]["state"] for p in payloads[:4]] == ["unscheduled", "pending", "running", "completed"]
    assert all(list(event.cc) == ["route.index.a", "route.b"] for event in found[:4])
    assert all(p["task"] == {"tags": {"k": "v"}} for p in payloads[:4])
    assert found[3].routing_key == f"primary.{task_id}.0.g.w.prov.work.-.{group_id}._"
    assert (found[4].routing_key, list(found[4].cc)) == (f"primary.{group_id}.-._", [])
    assert len({event.id for event in found}) == 5
    assert all(event.time.seconds > 0 for event in found)


async def test_resuming_with_a_cursor(api: Api) -> None:
    async with events(api) as stream:
        first = await api.create()
        response = await anext(stream)
        assert {json.loads(e.payload)["status"]["taskId"] for e in response.events} == {first}
    second = await api.create()
    async with events(api, cursor=response.cursor) as stream:
        assert second in (await take(stream, 2))[0].routing_key
    async with events(api, from_start=True) as stream:
        assert [e.exchange for e in await take(stream, 4)] == ["task-defined", "task-pending"] * 2


async def test_filters_of_the_request(api: Api) -> None:
    async with (
        events(api, exchanges=["task-pending"], task_queue_id="prov/other") as by_queue,
        events(api, routing_keys=["route.x.#", "primary.nothing.*"]) as by_key,
    ):
        await api.create()
        other = await api.create("prov/other", routes=["x.y.z"])
        assert [e.routing_key.split(".")[1] for e in await take(by_queue, 1)] == [other]
        assert [e.exchange for e in await take(by_key, 2)] == ["task-defined", "task-pending"]


async def test_refused_watches(api: Api, services: Services) -> None:
    for fields in ({"exchanges": ["task-done"]}, {"cursor": "nonsense"}, {"cursor": ""}):
        with pytest.raises(InputError):
            async with events(api, **fields):
                pass
    async with events(api) as stream:
        await api.create()
        cursor = (await anext(stream)).cursor
    await api.create()
    await services.db.fetch("UPDATE outbox SET time = time - interval '30 days'")
    from server.app import loops

    (retention,) = [loop for loop in loops(services) if loop.name == "expire-events"]
    assert await retention.run_once() == 2
    with pytest.raises(CursorTooOld):
        async with events(api, cursor=cursor):
            pass


async def test_watching_in_another_process(api: Api, settings: Settings) -> None:
    """The safety-net poll comes once a second; what comes sooner was told by the other process."""
    from server import app

    other = await app.start(settings)
    latencies = []
    async with events(Api(other.services, "*")) as stream:
        for _ in range(10):
            following = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            started = time.perf_counter()
            await api.create()
            assert len((await following).events) == 2
            latencies.append((time.perf_counter() - started) * 1000)
    await other.close()
    print(f"\ncreateTask in one process to a watcher in another: {sorted(latencies)[5]:.1f} ms (median)")
    assert sorted(latencies)[5] < 500


# --- WatchTask


async def test_watch_task_until_it_is_resolved(api: Api) -> None:
    task_id = await api.create()
    async with task(api, task_id) as stream:
        assert words(await anext(stream)) == "pending 1"
        completed = await run(api, task_id)
        rest = [status async for status in stream]
    assert [words(status) for status in rest] == ["running 1", "completed 1"]
    assert rest[-1] == completed  # field for field what the reply says


async def test_watch_task_that_is_resolved_already(api: Api) -> None:
    task_id = await api.create()
    completed = await run(api, task_id)
    async with task(api, task_id) as stream:
        assert [status async for status in stream] == [completed]


async def test_watch_unknown(api: Api) -> None:
    for watch in (task, group):
        with pytest.raises(ResourceNotFound):
            async with watch(api, slugid.nice()) as stream:
                await anext(stream)


async def test_watch_task_through_dependencies_and_retries(api: Api) -> None:
    first = await api.create()
    task_id = await api.create(dependencies=[first])
    async with task(api, task_id) as stream:
        assert words(await anext(stream)) == "unscheduled 0"
        await run(api, first)
        assert words(await anext(stream)) == "pending 1"
        await api.claim()
        assert words(await anext(stream)) == "running 1"
        reason = ReasonResolved.REASON_RESOLVED_WORKER_SHUTDOWN
        retried = await report(api, "ReportException", task_id, reason=reason)
        # The exception of run 0 and the pending run 1 are one and the same status, told once.
        assert await anext(stream) == retried
        canceled = (await api("CancelTask", task_id=task_id)).status
        assert [status async for status in stream] == [canceled]


async def test_repeats_and_stale_events_are_not_told(api: Api, services: Services) -> None:
    now = services.clock.now()
    task_id = await api.create(now=now)
    async with task(api, task_id) as stream:
        assert words(await anext(stream)) == "pending 1"
        await api.create(task_id=task_id, now=now)  # publishes task-defined and task-pending again
        completed = await run(api, task_id)
        assert [words(status) async for status in stream] == ["running 1", "completed 1"]
    await api("RerunTask", task_id=task_id)
    async with task(api, task_id) as stream:
        assert words(await anext(stream)) == "pending 2"
        # Events of run 0 once more, as a repeated report publishes them.
        repeat = Resolve(task_id, 0, "completed", "completed")
        assert isinstance((await services.changes.submit_many([repeat]))[0], Exception)
        await api.create(task_id=task_id, now=now)
        await api.claim()
        await report(api, "ReportFailed", task_id, 1)
        assert [words(status) async for status in stream] == ["running 2", "failed 2"]
    assert completed.runs[0].run_id == 0


async def test_a_change_of_priority_is_told(api: Api) -> None:
    task_id = await api.create()
    async with task(api, task_id) as stream:
        assert (await anext(stream)).priority == Priority.PRIORITY_LOWEST
        await api("ChangeTaskPriority", task_id=task_id, new_priority=Priority.PRIORITY_HIGH)
        changed = await anext(stream)
        assert (changed.priority, words(changed)) == (Priority.PRIORITY_HIGH, "pending 1")


async def test_nothing_is_lost_between_reading_and_following(
    api: Api, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task goes through its whole life right before, and right after, the watcher reads it."""
    read = handlers._read
    for moment in ("before", "after"):
        task_id = await api.create()

        async def reading(*arguments: Any, moment: str = moment, task_id: str = task_id) -> Any:
            monkeypatch.setattr(handlers, "_read", read)
            if moment == "before":
                await run(api, task_id)
            statuses = await read(*arguments)
            if moment == "after":
                await run(api, task_id)
            return statuses

        monkeypatch.setattr(handlers, "_read", reading)
        async with task(api, task_id) as stream:
            told = [words(status) async for status in stream]
        assert told == {"before": ["completed 1"], "after": ["pending 1", "running 1", "completed 1"]}[moment]


async def test_event_and_reply_hold_the_same_status(api: Api) -> None:
    """Q-233 for a run with everything in it: claimed, retried, resolved, with priority and project."""
    task_id = await api.create(priority=Priority.PRIORITY_VERY_HIGH, project_id="a/b", retries=1)
    async with events(api, task_id=task_id) as stream:
        await api.claim()
        reason = ReasonResolved.REASON_RESOLVED_INTERMITTENT_TASK
        reply = await report(api, "ReportException", task_id, reason=reason)
        told = await take(stream, 3)
    assert [from_event(json.loads(event.payload)["status"]) for event in told[1:]] == [reply, reply]


# --- WatchTaskGroup


async def test_watch_group_until_it_is_resolved(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "_PAGE", 2)
    group_id = slugid.nice()
    ids = [await api.create(task_group_id=group_id) for _ in range(5)]
    async with group(api, group_id) as stream:
        pages = [await anext(stream) for _ in range(3)]
        assert [len(page.statuses) for page in pages] == [2, 2, 1]
        assert [s.task_id for page in pages for s in page.statuses] == sorted(ids)
        assert not any(page.resolved for page in pages)
        late = await api.create(task_group_id=group_id)
        claims = await api.claim(tasks=6)
        for claim in claims:
            await report(api, "ReportCompleted", claim.status.task_id)
        responses = [response async for response in stream]
    told: dict[str, list[str]] = {}
    for response in responses:
        for status in response.statuses:
            told.setdefault(status.task_id, []).append(words(status))
    assert set(told) == {*ids, late}
    assert all(states[-1] == "completed 1" for states in told.values())
    assert [response.resolved for response in responses] == [False] * (len(responses) - 1) + [True]


async def test_watch_group_that_is_resolved_already(api: Api) -> None:
    group_id = slugid.nice()
    task_id = await api.create(task_group_id=group_id)
    await run(api, task_id)
    async with group(api, group_id) as stream:
        responses = [response async for response in stream]
    assert [words(s) for response in responses for s in response.statuses] == ["completed 1"]
    assert responses[-1].resolved


async def test_a_group_with_a_rerun_counts_as_resolved(api: Api) -> None:
    """A task that was resolved once does not hold up its group (queue.md 2.4)."""
    group_id = slugid.nice()
    task_id = await api.create(task_group_id=group_id)
    await run(api, task_id)
    await api("RerunTask", task_id=task_id)
    async with group(api, group_id) as stream:
        responses = [response async for response in stream]
    assert [words(s) for response in responses for s in response.statuses] == ["pending 2"]
    assert responses[-1].resolved


async def test_a_group_that_goes_on(api: Api, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q-073: a group resolves, gets another task before the watcher has listed it, and resolves again.
    The first resolution comes to the watcher as an event, and must not end the watch."""
    group_id = slugid.nice()
    first = await api.create(task_group_id=group_id)
    second = ""
    pages = handlers._pages

    async def listing(*arguments: Any) -> AsyncGenerator[list[TaskStatus], None]:
        nonlocal second
        await run(api, first)
        second = await api.create(task_group_id=group_id)
        async for page in pages(*arguments):
            yield page

    monkeypatch.setattr(handlers, "_pages", listing)
    async with group(api, group_id) as stream:
        listed = {s.task_id: words(s) for s in (await anext(stream)).statuses}
        assert listed == {first: "completed 1", second: "pending 1"}
        following = asyncio.ensure_future(anext(stream))
        await api.claim()
        assert [words(s) for s in (await following).statuses] == ["running 1"]
        await report(api, "ReportCompleted", second)
        last = [response async for response in stream]
    assert [(r.resolved, [words(s) for s in r.statuses]) for r in last] == [(True, ["completed 1"])]


async def test_an_unresolved_group_with_priorities_changed(api: Api) -> None:
    group_id = slugid.nice()
    ids = {await api.create(task_group_id=group_id) for _ in range(3)}
    async with group(api, group_id) as stream:
        await anext(stream)
        await api("ChangeTaskGroupPriority", task_group_id=group_id, new_priority=Priority.PRIORITY_LOW)
        for task_id in ids:
            await api("ChangeTaskPriority", task_id=task_id, new_priority=Priority.PRIORITY_HIGH)
        told: dict[str, int] = {}
        while set(told.values()) != {Priority.PRIORITY_HIGH} or set(told) != ids:
            told.update((s.task_id, s.priority) for s in (await anext(stream)).statuses)
