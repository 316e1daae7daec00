"""An event log on the `db` of a test, fed by hand: rows are written straight into the outbox.

Fixtures: `hub` (of one process; publish says that there is something), `log` (an EventLog whose watchers
must all be gone at the end), `connect` (strangers' connections, to hold transactions open).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import orjson
import psycopg
import pytest

from server.events.log import Batch, EventFilter, EventLog, Limits, Start
from server.store.database import Database, PoolSettings

EVERYTHING = EventFilter()
TASK = "fN1SbArXTPSVFNUvaOlinQ"
OTHER = "CQQlEQsiR6SGYSdJGaXLLA"
GROUP = "YhrZ0cEGRQGvuRqoKzzmUQ"

# Nobody polls within a test, so what arrives does so because somebody was told.
LIMITS = Limits(checkpoint_s=60, poll_s=60)


class LocalHub:
    """A hub of one process."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[str], None]] = []
        self.gap_callbacks: list[Callable[[], None]] = []

    def subscribe(self, channel: str, callback: Callable[[str], None], /) -> Callable[[], None]:
        assert channel == "events"
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def subscribe_gap(self, callback: Callable[[], None], /) -> Callable[[], None]:
        self.gap_callbacks.append(callback)
        return lambda: self.gap_callbacks.remove(callback)

    def publish(self) -> None:
        for callback in self.callbacks:
            callback("")


def row(*marks: object, task: str = TASK, group: str = GROUP, cc: Sequence[str] = (), size: int = 0) -> str:
    """The events of a transaction, told apart by their marks."""
    return orjson.dumps(
        [
            {
                "exchange": "task-pending",
                "key": f"primary.{task}.0._._.prov.type.sched.{group}._",
                "cc": cc,
                "payload": {"mark": mark, "filling": "x" * size},
            }
            for mark in marks
        ]
    ).decode()


def marks(batch: Batch) -> list[Any]:
    return [orjson.loads(event.payload)["mark"] for event in batch.events]


async def take(batches: AsyncIterator[Batch], count: int) -> list[Any]:
    """So many marks; more would be a failure, as would be a wait for ever (the test's timeout)."""
    found: list[Any] = []
    while len(found) < count:
        found += marks(await anext(batches))
    assert len(found) == count, found
    return found


#: For a stranger's connection.
INSERT = "INSERT INTO outbox (events) VALUES (%s)"


@pytest.fixture
def hub() -> LocalHub:
    return LocalHub()


@pytest.fixture
async def log(db: Database, hub: LocalHub) -> AsyncIterator[EventLog]:
    event_log = EventLog(db, hub, PoolSettings(), LIMITS)
    yield event_log
    assert event_log.watchers == 0
    assert not hub.callbacks and not hub.gap_callbacks
    assert not [
        task for task in asyncio.all_tasks() if task.get_name() == "event feed" and not task.cancelling()
    ]


@pytest.fixture
async def connect(dsn: str) -> AsyncIterator[Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]]:
    """Opens connections of strangers; what they execute is a transaction until they commit."""
    async with AsyncExitStack() as stack:

        async def make() -> psycopg.AsyncConnection[Any]:
            return await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn))

        yield make


Connect = Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]


@asynccontextmanager
async def watching(
    log: EventLog, start: str | Start = Start.NOW, event_filter: EventFilter = EVERYTHING
) -> AsyncIterator[AsyncGenerator[Batch, None]]:
    """An established watch."""
    async with aclosing(log.watch(event_filter, start)) as batches:
        assert not (await anext(batches)).events
        yield batches


async def write(db: Database, hub: LocalHub | None, *rows: str) -> None:
    """One transaction for each row, all told at the end."""
    for text in rows:
        await db.fetch("INSERT INTO outbox (events) VALUES ($1::text)", (text,), repeat=False)
    if hub is not None:
        hub.publish()
