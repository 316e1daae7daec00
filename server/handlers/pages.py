"""Reading pages of tasks: by index, within a budget of bytes, into messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from server import definitions
from server.domain import frames
from server.store.database import Database, Row, Statement, Transaction
from server.store.statements import load
from server.transitions.facts import RunFacts, TaskFacts
from server.views import status_message
from tcqueue.v1.task_pb2 import TaskAndStatus, TaskStatus

READING = load("reading")

T = TypeVar("T")

BUDGET = 3 * 1024 * 1024
"""Bytes of definitions after which a page ends early, with a token: a gRPC client takes no message
over 4 MiB unless told to, and a thousand definitions may come to far more."""

#: A status made from the definition needs nothing of the frame.
_NO_FRAME = frames.Frame("", "[]", "{}", "")


async def read(db: Database, *statements: Statement) -> list[list[Row]]:
    """The rows of each statement, in one round trip. For pages and what goes with them: statements
    here never leave the indexes, and wait for no connection of the batched statements."""

    async def run(tx: Transaction) -> list[list[Row]]:
        return await tx.pipeline([(READING["prefer_indexes"], ()), *statements], commit=True)

    return (await db.in_transaction(run, hot=False))[1:]


async def gently(messages: Iterable[T]) -> list[T]:
    """The list of them. A page of a thousand takes 10 to 15 ms to build, and workers wait for their
    claims meanwhile, so others get their turn after every hundred."""
    found: list[T] = []
    for message in messages:
        found.append(message)
        if len(found) % 100 == 0:
            await asyncio.sleep(0)
    return found


def statuses(rows: Iterable[Row]) -> Iterator[TaskStatus]:
    """Statuses out of the rows of `read_status` or `list_statuses`."""
    for (task_id, queue_id, frame, rank, retries_left), runs in groupby(rows, itemgetter(0, 1, 2, 3, 4)):
        facts = TaskFacts(task_id, queue_id, frames.split(frame), rank, retries_left, _runs(runs, 5))
        yield status_message(facts)


def tasks_and_statuses(rows: Iterable[Row]) -> Iterator[TaskAndStatus]:
    """Statuses with definitions out of the rows of `list_group` or `list_dependents`."""
    for (task_id, queue_id, rank, retries_left), group in groupby(rows, itemgetter(1, 2, 3, 4)):
        of_task = list(group)
        task = definitions.load(of_task[0][5], rank)
        facts = TaskFacts(task_id, queue_id, _NO_FRAME, rank, retries_left, _runs(of_task, 6))
        yield TaskAndStatus(status=status_message(facts, task), task=task)


def _runs(rows: Iterable[tuple[Any, ...]], at: int) -> list[RunFacts]:
    """The runs that stand in the columns from `at`; a task without any has one row of nulls."""
    return [RunFacts(*row[at:]) for row in rows if row[at] is not None]
