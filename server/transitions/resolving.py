"""Resolving runs: reports, resolutions on streams, claims that ran out (queue.md 2.1 S8-S13, 2.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from server.config import Settings
from server.errors import QueueError, RequestConflict, ResourceNotFound
from server.store.database import Statement, Transaction
from server.transitions import graphs, messages
from server.transitions.claiming import Offered, accept_columns
from server.transitions.facts import RunFacts, TaskFacts, collect, new_run
from server.transitions.machine import (
    CLAIMS,
    TRANSITIONS,
    Effects,
    Machine,
    Row,
    dependents_started,
    groups_closed,
    insert_events,
    read_facts,
    rounds,
)

#: Guard of a resolution that only takes effect if the claim or its stream's lease has run out.
EXPIRED = "expired"

_NO_OFFERS: Mapping[str, Offered] = MappingProxyType({})

#: Reasons that give the task another run while retries are left (queue.md 2.1 S11-S13).
RETRIED_REASONS = frozenset({"worker-shutdown", "intermittent-task", "claim-expired"})


@dataclass(slots=True)
class Resolve:
    """One run to resolve. `guard` is empty (whoever holds it), EXPIRED, or the stream that must hold it."""

    task_id: str
    run_id: int
    state: str
    reason: str
    guard: str = ""


async def resolve_runs(machine: Machine, items: Sequence[Resolve]) -> list[TaskFacts | QueueError]:
    """Resolves the runs in as few transactions as possible; returns for each the task's facts, or why
    not: ResourceNotFound for an unknown task or run, RequestConflict for one that ended otherwise.

    A repeat changes nothing and publishes its events again.
    """
    results: list[TaskFacts | QueueError] = [ResourceNotFound("unreached")] * len(items)
    for indexes in rounds(items, lambda item: item.task_id):
        batch = [items[i] for i in indexes]

        async def run(
            tx: Transaction, batch: list[Resolve] = batch
        ) -> tuple[list[TaskFacts | QueueError], Effects]:
            resolutions = Resolutions(batch, machine.settings)
            locked = (TRANSITIONS["lock_tasks"], ([item.task_id for item in batch],))
            _, *rows = await tx.pipeline([locked, *resolutions.statements()])
            effects = Effects()
            outcomes = await resolutions.outcomes(tx, rows, effects)
            await tx.commit(insert_events(effects))
            return outcomes, effects

        outcomes, effects = await machine.db.in_transaction(run, hot=True)
        machine.tell(effects)
        for index, outcome in zip(indexes, outcomes, strict=True):
            results[index] = outcome
    return results


class Resolutions:
    """The resolving part of a transaction that holds the locks of its tasks; each task at most once."""

    def __init__(
        self, items: Sequence[Resolve], settings: Settings, offers: Mapping[str, Offered] = _NO_OFFERS
    ) -> None:
        """`offers` are the runs among the items, by task, that their stream accepts in the same breath: that
        is one change, not two."""
        self._items = items
        self._page = settings.dependency_page_size
        self._scheduler_id = settings.scheduler_id
        self._offers = offers
        self._ids = [item.task_id for item in items]
        self._runs = [item.run_id for item in items]
        self._may_retry = not RETRIED_REASONS.isdisjoint([item.reason for item in items])
        #: The offers that still stood; known once there are outcomes.
        self.accepted: set[str] = set()

    def statements(self) -> list[Statement]:
        """What resolves the runs, to be sent in one pipeline; none for no items."""
        if not self._items:
            return []
        states = [item.state for item in self._items]
        reasons = [item.reason for item in self._items]
        statements = self._resolving()
        if self._may_retry:
            statements.append((TRANSITIONS["retry_runs"], (self._ids, reasons)))
        if held := [item.task_id for item in self._items if item.task_id not in self._offers]:
            statements.append((TRANSITIONS["read_tasks"], (held,)))
        statements += [
            (TRANSITIONS["release_dependents"], (self._ids, states, self._page)),
            (TRANSITIONS["close_groups"], (self._ids,)),
        ]
        return statements

    def _resolving(self) -> list[Statement]:
        held = [item for item in self._items if item.task_id not in self._offers]
        offered = sorted([i for i in self._items if i.task_id in self._offers], key=lambda i: i.task_id)
        statements: list[Statement] = []
        if held:
            columns = zip(*[(i.task_id, i.run_id, i.state, i.reason, i.guard) for i in held], strict=True)
            statements.append((TRANSITIONS["resolve_runs"], list(columns)))
        if offered:
            accepts = accept_columns([self._offers[item.task_id] for item in offered])
            ends = [item.state for item in offered], [item.reason for item in offered]
            statements.append((CLAIMS["finish_runs"], [*accepts, *ends]))
        return statements

    async def outcomes(
        self, tx: Transaction, results: Sequence[Sequence[Row]], effects: Effects
    ) -> list[TaskFacts | QueueError]:
        """What became of each item, given the rows of the statements; events go into the effects."""
        if not self._items:
            return []
        rest = iter(results)
        held = len(self._offers) < len(self._items)
        ended: dict[str, Row] = {}
        tasks: dict[str, TaskFacts] = {}
        if held:
            ended.update({row[0]: row for row in next(rest)})
        if self._offers:
            for task_id, resolved, rank in next(rest):
                offer = self._offers[task_id]
                ended[task_id] = _finished(offer, resolved)
                tasks[task_id] = offer.facts
                offer.facts.priority = rank
                self.accepted.add(task_id)
        retried: dict[str, int] = {}
        if self._may_retry:
            retried.update(next(rest))
        if held:
            tasks.update(collect(next(rest), ()))
        dependents, groups = rest
        standing: dict[int, Row] = {}
        if len(ended) < len(self._items):
            (unchanged,) = await tx.pipeline([(TRANSITIONS["read_unresolved"], (self._ids, self._runs))])
            standing = {row[0] - 1: row for row in unchanged}
        # A first run that was just resolved is all there is; for later runs and repeats, read the history.
        later = [i.task_id for i in self._items if i.run_id > 0 or i.task_id not in ended]
        whole = await read_facts(tx, later) if later else {}
        outcomes: list[TaskFacts | QueueError] = []
        mark = graphs.mark(self._scheduler_id)
        in_graphs: list[TaskFacts] = []
        for i, item in enumerate(self._items):
            task_id = item.task_id
            if task_id in ended:
                facts = whole.get(task_id) or _first_run(
                    item, tasks[task_id], ended[task_id], retried.get(task_id)
                )
                _tell(item, facts, ended[task_id], effects, retried=task_id in retried)
                outcomes.append(facts)
                if mark in facts.frame.key_tail:
                    in_graphs.append(facts)
            else:
                outcomes.append(_judge(item, standing.get(i), whole.get(task_id), effects, mark))
        dependents_started(dependents, effects)
        groups_closed(groups, effects)
        if in_graphs:
            await graphs.advance(tx, self._scheduler_id, in_graphs, effects)
        return outcomes


def _finished(offer: Offered, resolved: datetime) -> Row:
    """What resolve_runs would return for a run that was accepted and resolved at once."""
    run = offer.run()
    return (
        offer.facts.task_id,
        run.reason_created,
        run.worker_group,
        run.worker_id,
        offer.taken_until,
        run.scheduled,
        offer.started,
        resolved,
        offer.stream_id,
    )


def _first_run(item: Resolve, task: TaskFacts, ended: Row, retries_left: int | None) -> TaskFacts:
    """The facts of a task whose first run was just resolved; `task` tells all but the runs. With retries left
    after it, the run was retried."""
    _, created, group, worker, taken_until, scheduled, started, resolved, _ = ended
    run = RunFacts(
        item.run_id,
        item.state,
        created,
        item.reason,
        group,
        worker,
        taken_until,
        scheduled,
        started,
        resolved,
    )
    runs = [run]
    if retries_left is None:
        retries_left = task.retries_left
    else:
        reason = "task-retry" if item.reason == "intermittent-task" else "retry"
        runs.append(new_run(item.run_id + 1, reason, resolved))
    return TaskFacts(task.task_id, task.task_queue_id, task.frame, task.priority, retries_left, runs)


def _tell(item: Resolve, facts: TaskFacts, ended: Row, effects: Effects, *, retried: bool) -> None:
    """The effects of a resolution made by this transaction."""
    stream_id = ended[-1]
    _publish(item, facts, effects)
    effects.resolved[facts.task_queue_id, item.state, item.reason] += 1
    if retried:
        effects.queues.add(facts.task_queue_id)
    if stream_id is not None and stream_id != item.guard:
        reason = "claim-expired" if item.guard == EXPIRED else "resolved-elsewhere"
        effects.revoke(stream_id, item.task_id, item.run_id, reason)


def _judge(
    item: Resolve, row: Row | None, facts: TaskFacts | None, effects: Effects, mark: str
) -> TaskFacts | QueueError:
    """A run that could not be resolved: a repeat, or refused (queue.md 2.8). Behind a failed run of a graph's
    task, too, there may be one that came with its end: a rerun."""
    if row is None or facts is None:
        return ResourceNotFound(f"task {item.task_id} does not exist", taskId=item.task_id)
    _, last_run, state, reason = row
    if state is None:
        return ResourceNotFound(f"task {item.task_id} has no run {item.run_id}", taskId=item.task_id)
    newer = last_run - item.run_id
    same = state == item.state and reason == item.reason
    followed = state == "exception" or (state == "failed" and mark in facts.frame.key_tail)
    if same and newer <= followed and item.guard != EXPIRED:
        _publish(item, facts, effects)
        return facts
    return RequestConflict(
        f"run {item.run_id} of task {item.task_id} cannot be resolved as {item.reason}: it is "
        f"{state}{f'/{reason}' if reason else ''} and the last run is {last_run}",
        taskId=item.task_id,
    )


def _publish(item: Resolve, facts: TaskFacts, effects: Effects) -> None:
    status = facts.status_json()
    effects.events.append(messages.task_resolved(facts, item.run_id, status))
    if len(facts.runs) > item.run_id + 1 and facts.runs[item.run_id + 1].state == "pending":
        effects.events.append(messages.task_pending(facts, item.run_id + 1, status))
