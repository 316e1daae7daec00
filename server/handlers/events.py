"""Watching: the event log itself, one task, or a group of tasks, each as a stream (queue.md 5; design 6)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

import orjson

from server.call import Call
from server.errors import ResourceNotFound
from server.events import rows
from server.events.log import EventFilter, Start
from server.events.statuses import KnownStatuses, Verdict, collect, from_event, is_resolved
from server.store.database import Database
from server.store.statements import load
from server.views import stamp, status_message
from tcqueue.v1.event_pb2 import Event, WatchEventsRequest, WatchEventsResponse
from tcqueue.v1.task_group_pb2 import WatchTaskGroupRequest, WatchTaskGroupResponse
from tcqueue.v1.task_pb2 import TaskStatus, WatchTaskRequest, WatchTaskResponse

_SQL = load("events")

#: Statuses in one message of WatchTaskGroup; with 50 runs a status has some 5 KB.
_PAGE = 500


async def watch_events(call: Call, request: WatchEventsRequest) -> AsyncIterator[WatchEventsResponse]:
    """Events that match, from a cursor, from the oldest, or from now on, and checkpoints between them."""
    wanted = EventFilter.build(
        request.exchanges,
        request.routing_keys,
        request.task_id,
        request.task_group_id,
        request.task_queue_id,
    )
    start: str | Start = Start.OLDEST if request.from_start else Start.NOW
    if request.HasField("cursor"):
        start = request.cursor
    async with aclosing(call.services.events.watch(wanted, start)) as batches:
        async for batch in batches:
            yield WatchEventsResponse(events=map(_event_message, batch.events), cursor=batch.cursor)


async def watch_task(call: Call, request: WatchTaskRequest) -> AsyncIterator[WatchTaskResponse]:
    """The task's status, then each that is news, until the task is resolved."""
    async with aclosing(_statuses_of_task(call, request.task_id)) as statuses:
        async for status in statuses:
            yield WatchTaskResponse(status=status)
            if is_resolved(status):
                return


async def watch_task_group(
    call: Call, request: WatchTaskGroupRequest
) -> AsyncIterator[WatchTaskGroupResponse]:
    """The statuses of the group's tasks, then each that is news, until the group is resolved."""
    group_id = request.task_group_id
    db = call.services.db
    known = KnownStatuses()
    async with aclosing(
        call.services.events.watch(EventFilter(task_group_id=group_id), Start.NOW)
    ) as batches:
        # From here on every change comes as an event, so that nothing is lost after what is read now.
        await anext(batches)
        found = await db.fetch(_SQL["read_group_open"], (group_id,))
        if not found:
            raise ResourceNotFound(f"task group {group_id} does not exist", taskGroupId=group_id)
        async for page in _pages(db, group_id, known):
            yield WatchTaskGroupResponse(statuses=page)
        if not found[0][0] and not known.unresolved:
            yield WatchTaskGroupResponse(resolved=True)
            return
        async for batch in batches:
            news, resolved = await _group_news(db, batch.events, known)
            if news or resolved:
                yield WatchTaskGroupResponse(statuses=news, resolved=resolved)
            if resolved:
                return


async def _statuses_of_task(call: Call, task_id: str) -> AsyncGenerator[TaskStatus, None]:
    db = call.services.db
    known = KnownStatuses()
    async with aclosing(call.services.events.watch(EventFilter(task_id=task_id), Start.NOW)) as batches:
        await anext(batches)
        present = await _read(db, [task_id], known)
        if not present:
            raise ResourceNotFound(f"task {task_id} does not exist", taskId=task_id)
        yield present[0]
        async for batch in batches:
            for event in batch.events:
                status = from_event(orjson.loads(event.payload)["status"])
                verdict = known.judge(status)
                if verdict is Verdict.NEWS and known.told(status):
                    yield status
                elif verdict is Verdict.DOUBTFUL:
                    for status in await _read(db, [task_id], known):
                        yield status


async def _group_news(
    db: Database, events: Sequence[rows.Event], known: KnownStatuses
) -> tuple[Iterable[TaskStatus], bool]:
    """The newest status of each task that these events tell news of, and whether they end the watch.

    The group is resolved as of an event that says so, unless the watcher has been told of an
    unresolved task, which then was created later: there will be another such event.
    """
    news: dict[str, TaskStatus] = {}
    doubtful: set[str] = set()
    resolved = False
    for event in events:
        if event.exchange == "task-group-resolved":
            resolved = not known.unresolved
        elif event.task_id:
            status = from_event(orjson.loads(event.payload)["status"])
            verdict = known.judge(status)
            if verdict is Verdict.NEWS and known.told(status):
                news[status.task_id] = status
            elif verdict is Verdict.DOUBTFUL:
                doubtful.add(status.task_id)
        if resolved:
            break
    if doubtful:
        news.update((status.task_id, status) for status in await _read(db, sorted(doubtful), known))
    return news.values(), resolved


async def _read(db: Database, task_ids: Sequence[str], known: KnownStatuses) -> list[TaskStatus]:
    """The present statuses of those tasks of which something new can be told."""
    found = collect(await db.fetch(_SQL["read_statuses"], (list(task_ids),)))
    statuses = [(status_message(facts), ever_resolved) for facts, ever_resolved in found]
    return [status for status, ever_resolved in statuses if known.told(status, ever_resolved=ever_resolved)]


async def _pages(db: Database, group_id: str, known: KnownStatuses) -> AsyncGenerator[list[TaskStatus], None]:
    """The present statuses of a group's tasks, page by page."""
    after = ""
    while True:
        found = collect(await db.fetch(_SQL["read_group_statuses"], (group_id, after, _PAGE)))
        page = []
        for facts, ever_resolved in found:
            status = status_message(facts)
            known.told(status, ever_resolved=ever_resolved)
            page.append(status)
        if page:
            yield page
            after = page[-1].task_id
        if len(page) < _PAGE:
            return


def _event_message(event: rows.Event) -> Event:
    return Event(
        id=event.id,
        exchange=event.exchange,
        routing_key=event.key,
        cc=event.cc,
        payload=event.payload,
        time=stamp(event.time),
    )
