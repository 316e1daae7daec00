"""Creating tasks, one by one or as a graph (queue.md 2.1 S1-S3, 2.2, 2.3, 2.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter

from server.domain import frames
from server.errors import AlreadyExists, InputError, QueueError, RequestConflict
from server.store.database import REFUSALS, Statement, Transaction
from server.transitions import messages
from server.transitions.claiming import offer_statement, offered
from server.transitions.facts import TaskFacts, new_run
from server.transitions.machine import (
    CREATION,
    TRANSITIONS,
    Effects,
    Machine,
    Row,
    insert_events,
    read_facts,
    rounds,
)


@dataclass(slots=True)
class NewTask:
    """A task to create, complete and checked as far as that needs no database. `priority` is a rank."""

    task_id: str
    task_queue_id: str
    task_group_id: str
    scheduler_id: str
    project_id: str
    priority: int
    deadline: datetime
    expires: datetime
    retries: int
    requires: str
    definition: bytes
    frame: str
    dependencies: Sequence[str] = ()


#: Most runs that a creation offers itself; what comes in larger numbers is the claimer's.
_OFFERED_AT_ONCE = 8

#: Whether two serialized definitions mean the same.
Equal = Callable[[bytes, bytes], bool]


@dataclass(slots=True)
class _Plan:
    """What the dependencies say about the items, by index."""

    #: Edges (required, satisfied) of each item.
    edges: dict[int, list[tuple[str, bool]]] = field(default_factory=dict)
    refused: dict[int, QueueError] = field(default_factory=dict)

    def blockers(self, index: int) -> int:
        if not self.edges:
            return 0
        return sum(not satisfied for _, satisfied in self.edges.get(index, ()))


async def create_tasks(
    machine: Machine, items: Sequence[NewTask], equal: Equal
) -> list[TaskFacts | QueueError]:
    """Creates each task that can be, whatever becomes of the others; returns facts or why not.

    A task whose id holds an equal definition is a repeat: its events are published again and its
    current facts returned.
    """
    results: list[TaskFacts | QueueError] = [InputError("unreached")] * len(items)
    for indexes in rounds(items, lambda item: item.task_id):
        batch = [items[i] for i in indexes]

        async def run(
            tx: Transaction, batch: list[NewTask] = batch
        ) -> tuple[list[TaskFacts | QueueError], Effects]:
            outcomes, effects, ending = await create_in(tx, batch, equal, whole=False)
            await tx.commit(ending)
            return outcomes, effects

        outcomes: Sequence[TaskFacts | QueueError]
        if (created := await _create_at_once(machine, batch, whole=False)) is not None:
            outcomes = created
        else:
            outcomes, effects = await machine.db.in_transaction(run, hot=True)
            machine.tell(effects)
        for index, outcome in zip(indexes, outcomes, strict=True):
            results[index] = outcome
    return results


async def create_graph(machine: Machine, items: Sequence[NewTask], equal: Equal) -> list[TaskFacts]:
    """Creates all the tasks or none; raises what the first refused one is refused for."""

    async def run(tx: Transaction) -> tuple[list[TaskFacts], Effects]:
        outcomes, effects, ending = await create_in(tx, items, equal, whole=True)
        facts: list[TaskFacts] = []
        for outcome in outcomes:
            if isinstance(outcome, QueueError):
                raise outcome
            facts.append(outcome)
        await tx.commit(ending)
        return facts, effects

    created = await _create_at_once(machine, items, whole=True)
    if created is not None:
        return created
    facts, effects = await machine.db.in_transaction(run, hot=True)
    machine.tell(effects)
    return facts


async def _create_at_once(
    machine: Machine, items: Sequence[NewTask], *, whole: bool
) -> list[TaskFacts] | None:
    """Creates tasks that depend on nothing older in one round trip, all or none. None if anything stands
    against one of them: `_create` then finds out what, and what is to become of the others."""
    plan = _Plan()
    if any(item.dependencies for item in items):
        plan = _plan(items, (), whole=whole)
    groups = _groups(items, range(len(items)))
    if plan.refused or any(groups[item.task_group_id].scheduler_id != item.scheduler_id for item in items):
        return None
    events = []
    facts = []
    queues = set()
    for index, item in enumerate(items):
        frame = frames.split(item.frame)
        pending = not plan.blockers(index)
        events.append(
            messages.task_created(item.task_id, frame, item.priority, item.retries, pending=pending)
        )
        task = TaskFacts(item.task_id, item.task_queue_id, frame, item.priority, item.retries, [])
        facts.append(task)
        if pending:
            queues.add(item.task_queue_id)
    ids = sorted(groups)
    statements: list[Statement] = [
        (
            CREATION["enter_groups"],
            (
                ids,
                [groups[g].scheduler_id for g in ids],
                [groups[g].count for g in ids],
                [groups[g].expires for g in ids],
            ),
        ),
        _insertion("insert_all_tasks", items, plan),
        *_edges(items, range(len(items)), plan),
        (TRANSITIONS["insert_dated_events"], (messages.join(events),)),
    ]

    streams: Sequence[tuple[str, str, str]] = ()
    if machine.desk is not None and not whole and len(queues) == 1:
        # Workers that wait get the runs with the commit that makes them. Not those of a whole graph: its
        # caller may leave before the answer, and the offers would stand until they are taken back.
        (queue_id,) = queues
        streams = machine.desk.idle_slots(queue_id, min(len(items), _OFFERED_AT_ONCE))
        if streams:
            statements.append(offer_statement(machine, queue_id, streams))

    async def run(tx: Transaction) -> Sequence[Sequence[Row]]:
        return await tx.pipeline(statements, commit=True)

    try:
        _, ((now,),), *_, last = await machine.db.in_transaction(run, hot=True)
    except REFUSALS:
        return None
    if streams and machine.desk is not None:
        machine.desk.hand_out(queue_id, await offered(machine, queue_id, streams, last))
        if len(last) == sum(not plan.blockers(index) for index in range(len(items))):
            # As many are pending as were before, and whoever made those has told of them.
            queues.clear()
    for index, task in enumerate(facts):
        if not plan.blockers(index):
            task.runs.append(new_run(0, "scheduled", now))
    machine.tell(Effects(events, queues))
    return facts


async def create_in(
    tx: Transaction, items: Sequence[NewTask], equal: Equal, *, whole: bool
) -> tuple[list[TaskFacts | QueueError], Effects, list[tuple[str, Sequence[object]]]]:
    groups = (
        CREATION["ensure_groups"],
        (
            [item.task_group_id for item in items],
            [item.scheduler_id for item in items],
            [item.expires for item in items],
        ),
    )
    required = sorted({dependency for item in items for dependency in item.dependencies})
    if required:
        _, _, rows = await tx.pipeline(
            [
                groups,
                (CREATION["lock_dependencies"], (required,)),
                (CREATION["read_dependencies"], (required,)),
            ]
        )
        plan = _plan(items, rows, whole=whole)
        (rows,) = await tx.pipeline([_insertion("insert_tasks", items, plan)])
    else:
        plan = _Plan()
        _, rows = await tx.pipeline([groups, _insertion("insert_tasks", items, plan)])
    created: dict[str, datetime] = {task_id: now for task_id, now in rows}
    rest = [item for item in items if item.task_id not in created]
    standing: dict[str, Row] = {}
    facts: dict[str, TaskFacts] = {}
    if rest:
        (judged,) = await tx.pipeline(
            [
                (
                    CREATION["judge_tasks"],
                    (
                        [item.task_id for item in rest],
                        [item.task_group_id for item in rest],
                        [item.scheduler_id for item in rest],
                    ),
                )
            ]
        )
        standing = {rest[row[0] - 1].task_id: row for row in judged}
        facts = await read_facts(tx, [item.task_id for item in rest])
    effects = Effects()
    outcomes: list[TaskFacts | QueueError] = []
    inserted: list[int] = []
    for index, item in enumerate(items):
        if item.task_id in created:
            inserted.append(index)
            outcomes.append(_created(item, plan.blockers(index) == 0, created[item.task_id], effects))
        else:
            refusal = _refusal(item, standing[item.task_id], equal) or plan.refused.get(index)
            outcomes.append(refusal or _repeated(item, facts[item.task_id], effects))
    return outcomes, effects, [*_bookkeeping(items, inserted, plan), *insert_events(effects)]


def _plan(items: Sequence[NewTask], rows: Sequence[Row], *, whole: bool) -> _Plan:
    """Judges every dependency. Tasks created as a `whole` know each other and are unresolved; others
    know only themselves, for their neighbours may yet be refused."""
    plan = _Plan()
    found = {task_id: (expires, state) for task_id, expires, state in rows}
    if whole:
        for item in items:
            found.setdefault(item.task_id, (item.expires, None))
    for index, item in enumerate(items):
        if not item.dependencies:
            continue
        states = found
        if item.task_id in item.dependencies and item.task_id not in found:
            states = {**found, item.task_id: (item.expires, None)}
        missing = [d for d in item.dependencies if d not in states]
        early = [d for d in item.dependencies if d in states and states[d][0] < item.deadline]
        if missing:
            plan.refused[index] = InputError(
                f"dependencies of task {item.task_id} do not exist: {', '.join(missing[:20])}",
                taskId=item.task_id,
            )
        elif early:
            plan.refused[index] = InputError(
                f"dependencies of task {item.task_id} expire before its deadline: {', '.join(early[:20])}",
                taskId=item.task_id,
            )
        else:
            good = ("completed", "failed", "exception") if item.requires == "all-resolved" else ("completed",)
            plan.edges[index] = [(d, states[d][1] in good) for d in item.dependencies]
    return plan


#: The columns of insert_tasks and insert_all_tasks; number 10 holds the blockers.
_COLUMNS = attrgetter(
    "task_id",
    "task_queue_id",
    "task_group_id",
    "scheduler_id",
    "project_id",
    "priority",
    "deadline",
    "expires",
    "retries",
    "requires",
    "definition",
    "frame",
)


def _insertion(statement: str, items: Sequence[NewTask], plan: _Plan) -> Statement:
    """Inserts all items but those that the plan refuses."""
    chosen = [i for i in range(len(items)) if i not in plan.refused]
    columns: list[Sequence[object]] = list(zip(*[_COLUMNS(items[i]) for i in chosen], strict=True))
    columns = columns or [()] * 12
    columns.insert(10, [plan.blockers(i) for i in chosen])
    return CREATION[statement], columns


def _created(item: NewTask, pending: bool, now: datetime, effects: Effects) -> TaskFacts:
    facts = TaskFacts(
        item.task_id, item.task_queue_id, frames.split(item.frame), item.priority, item.retries, []
    )
    effects.events.append(messages.task_defined(facts))
    if pending:
        facts.runs.append(new_run(0, "scheduled", now))
        effects.events.append(messages.task_pending(facts, 0))
        effects.queues.add(item.task_queue_id)
    return facts


def _refusal(item: NewTask, row: Row, equal: Equal) -> QueueError | None:
    """Why a task was not inserted; None for a repeat, or if only its dependencies stand against it."""
    _, same_scheduler, is_sealed, definition, rank = row
    if not same_scheduler:
        return RequestConflict(
            f"task group {item.task_group_id} belongs to another scheduler than {item.scheduler_id}",
            taskId=item.task_id,
            taskGroupId=item.task_group_id,
        )
    if is_sealed:
        return RequestConflict(
            f"task group {item.task_group_id} is sealed and takes no more tasks",
            taskId=item.task_id,
            taskGroupId=item.task_group_id,
        )
    if definition is not None and (rank != item.priority or not equal(definition, item.definition)):
        return AlreadyExists(
            f"task {item.task_id} exists with another definition; ids cannot be used twice",
            taskId=item.task_id,
        )
    return None


def _repeated(item: NewTask, facts: TaskFacts, effects: Effects) -> TaskFacts:
    unscheduled = TaskFacts(facts.task_id, facts.task_queue_id, facts.frame, facts.priority, item.retries, [])
    effects.events.append(messages.task_defined(unscheduled))
    if facts.runs and facts.runs[0].state == "pending":
        effects.events.append(messages.task_pending(facts, 0))
    return facts


def _bookkeeping(
    items: Sequence[NewTask], inserted: list[int], plan: _Plan
) -> list[tuple[str, Sequence[object]]]:
    """Edges and group counters of the new tasks."""
    statements = _edges(items, inserted, plan)
    groups = _groups(items, inserted)
    if groups:
        ids = sorted(groups)
        counts, latest = [groups[g].count for g in ids], [groups[g].expires for g in ids]
        statements.append((CREATION["count_into_groups"], (ids, counts, latest)))
    return statements


def _edges(items: Sequence[NewTask], inserted: Iterable[int], plan: _Plan) -> list[Statement]:
    """Who of the new tasks waits for whom; nothing if nobody does."""
    if not plan.edges:
        return []
    edges = [
        (required, items[index].task_id, items[index].requires, satisfied, items[index].expires)
        for index in inserted
        for required, satisfied in plan.edges.get(index, ())
    ]
    if not edges:
        return []
    return [(CREATION["insert_edges"], [list(column) for column in zip(*edges, strict=True)])]


@dataclass(slots=True)
class _Group:
    """New tasks of a group: the first one's scheduler, how many there are, the latest expiry."""

    scheduler_id: str
    count: int
    expires: datetime


def _groups(items: Sequence[NewTask], inserted: Iterable[int]) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for index in inserted:
        item = items[index]
        group = groups.get(item.task_group_id)
        if group is None:
            groups[item.task_group_id] = _Group(item.scheduler_id, 1, item.expires)
        else:
            group.count += 1
            if item.expires > group.expires:
                group.expires = item.expires
    return groups
