"""What every transition shares: its transaction, its events, and whom it wakes after the commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from server import metrics
from server.config import Settings
from server.domain import frames
from server.errors import ResourceNotFound
from server.store.database import Database, Transaction
from server.store.hub import NotifyHub
from server.store.statements import load
from server.transitions import messages
from server.transitions.facts import TaskFacts, collect, new_run

if TYPE_CHECKING:
    from server.transitions.claiming import Offered

CLAIMS = load("claims")
CREATION = load("creation")
TRANSITIONS = load("transitions")

Row = tuple[Any, ...]
T = TypeVar("T")


@dataclass(slots=True)
class Effects:
    """What a transaction leaves to tell: events go into it, the rest is told after its commit."""

    events: list[str] = field(default_factory=list)
    #: Queues that have new pending runs.
    queues: set[str] = field(default_factory=set)
    #: Runs taken from streams: `<stream> <task> <run> <reason>`.
    revocations: list[str] = field(default_factory=list)
    #: How many runs were resolved, repeats aside, by task queue, state and reason.
    resolved: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def revoke(self, stream_id: str | None, task_id: str, run_id: int, reason: str) -> None:
        """Tells the stream that holds a run, if one does, that it is no longer its own."""
        if stream_id is not None:
            self.revocations.append(f"{stream_id} {task_id} {run_id} {reason}")

    def add(self, later: Effects) -> None:
        """Adds what comes after."""
        self.events += later.events
        self.queues |= later.queues
        self.revocations += later.revocations
        self.resolved += later.resolved


class Desk(Protocol):
    """Streams with nothing to do: creation may put new runs on offer to them in its own transaction."""

    def idle_slots(self, queue_id: str, wanted: int) -> Sequence[tuple[str, str, str]]:
        """Up to so many free slots as (stream id, worker group, worker id); none unless the queue is idle."""
        ...

    def hand_out(self, queue_id: str, offers: Sequence[Offered]) -> None:
        """Delivers the offers made, after their commit."""
        ...


class Machine:
    """The parts a transition works with, and its beginning and end.

    Hub channels it publishes on: `pending` (a queue id), `revoked` (see Effects), `events` (empty).
    """

    def __init__(self, db: Database, hub: NotifyHub, settings: Settings, process_id: str) -> None:
        self.db = db
        self.hub = hub
        self.settings = settings
        self.process_id = process_id
        #: Set by the dispatcher of a process that serves streams.
        self.desk: Desk | None = None

    async def read(self, task_id: str) -> TaskFacts:
        """The facts of one task now. Raises ResourceNotFound."""
        ids = [task_id]

        async def run(tx: Transaction) -> dict[str, TaskFacts]:
            return await read_facts(tx, ids)

        facts = await self.db.in_transaction(run)
        if task_id not in facts:
            raise ResourceNotFound(f"task {task_id} does not exist", taskId=task_id)
        return facts[task_id]

    def tell(self, effects: Effects) -> None:
        """After the commit: wakes claimers, streams and watchers, and counts."""
        publish = self.hub.publish
        for queue_id in effects.queues:
            publish("pending", queue_id)
        for revocation in effects.revocations:
            publish("revoked", revocation)
        if effects.events:
            publish("events", "")
        for end, count in effects.resolved.items():
            metrics.resolved(*end, count)


def insert_events(effects: Effects) -> list[tuple[str, Sequence[Any]]]:
    """The statement that writes a transaction's events; none for none."""
    if not effects.events:
        return []
    return [(TRANSITIONS["insert_events"], (messages.join(effects.events),))]


async def read_facts(tx: Transaction, task_ids: Sequence[str]) -> dict[str, TaskFacts]:
    """Facts of the tasks as this transaction sees them; unknown ids are missing."""
    ids = list(task_ids)
    tasks, runs = await tx.pipeline([(TRANSITIONS["read_tasks"], (ids,)), (TRANSITIONS["read_runs"], (ids,))])
    return collect(tasks, runs)


def dependents_started(rows: Iterable[Row], effects: Effects) -> None:
    """Events and wake-ups of the tasks that `release_dependents` started."""
    for task_id, queue_id, frame, rank, retries_left, scheduled in rows:
        run = new_run(0, "scheduled", scheduled)
        facts = TaskFacts(task_id, queue_id, frames.split(frame), rank, retries_left, [run])
        effects.events.append(messages.task_pending(facts, 0))
        effects.queues.add(queue_id)


def groups_closed(rows: Iterable[Row], effects: Effects) -> None:
    """Events of the groups that `close_groups` found with nothing open."""
    for group_id, scheduler_id, expires, sealed in rows:
        effects.events.append(messages.task_group_resolved(group_id, scheduler_id, expires, sealed))


def rounds(items: Sequence[T], key: Callable[[T], Hashable]) -> Iterator[list[int]]:
    """Splits a batch so that no round touches the same thing twice; yields indexes, first come first.

    A set-based statement changes a row once; two calls on one task must see each other's result.
    """
    seen: dict[Hashable, int] = {}
    split: list[list[int]] = []
    for index, item in enumerate(items):
        k = key(item)
        n = seen.get(k, 0)
        seen[k] = n + 1
        if n == len(split):
            split.append([])
        split[n].append(index)
    yield from split
