"""Handing runs to workers: offers and accepts of streams, claims and reclaims of unary callers
(queue.md 2.1 S6-S7, 2.5; design 5)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime

from server.domain import frames
from server.errors import QueueError, RequestConflict, ResourceNotFound
from server.store.database import Statement, Transaction
from server.transitions import messages
from server.transitions.facts import RunFacts, TaskFacts
from server.transitions.machine import CLAIMS, Effects, Machine, Row, insert_events, read_facts, rounds


@dataclass(slots=True)
class Offered:
    """A run on offer to a stream, or claimed by a unary caller. `facts` shows it as running already;
    `position` tells which of the slots asked for it fills, from 0."""

    position: int
    facts: TaskFacts
    run_id: int
    definition: bytes
    started: datetime
    taken_until: datetime
    #: The stream it is offered to; empty for unary claims.
    stream_id: str = ""

    def run(self) -> RunFacts:
        """The run itself."""
        return self.facts.runs[self.run_id]


@dataclass(slots=True)
class Reclaim:
    """A claim to renew; `stream_id` is empty for a unary caller."""

    task_id: str
    run_id: int
    stream_id: str = ""


@dataclass(slots=True)
class Reclaimed:
    """A renewed claim, as far as credentials need it."""

    task_id: str
    run_id: int
    task_queue_id: str
    worker_group: str
    worker_id: str
    taken_until: datetime
    now: datetime
    definition: bytes


async def offer_runs(
    machine: Machine, queue_id: str, streams: Sequence[tuple[str, str, str]]
) -> list[Offered]:
    """Puts up to one run on offer for each slot; slots are (stream id, worker group, worker id).

    The runs stay pending until accepted; nobody else is offered them for the accept timeout.
    """
    sql, parameters = offer_statement(machine, queue_id, streams)
    return await offered(machine, queue_id, streams, await machine.db.fetch(sql, parameters, hot=True))


def offer_statement(machine: Machine, queue_id: str, streams: Sequence[tuple[str, str, str]]) -> Statement:
    """What `offer_runs` runs; `offered` reads its rows."""
    return (
        CLAIMS["offer_runs"],
        (
            queue_id,
            [stream_id for stream_id, _, _ in streams],
            machine.process_id,
            machine.settings.offer_s,
            machine.settings.claim_timeout_s,
        ),
    )


async def offered(
    machine: Machine, queue_id: str, streams: Sequence[tuple[str, str, str]], rows: Sequence[Row]
) -> list[Offered]:
    """The offers made, given the rows of their statement, which has been committed."""
    offers = []
    for n, task_id, run_id, stream_id, definition, frame, rank, left, created, scheduled, now, until in rows:
        _, group, worker = streams[n - 1]
        run = RunFacts(run_id, "running", created, None, group, worker, until, scheduled, now, None)
        facts = TaskFacts(task_id, queue_id, frames.split(frame), rank, left, [run])
        offers.append(Offered(n - 1, facts, run_id, definition, now, until, stream_id))
    await _complete(machine, offers)
    offers.sort(key=lambda offer: offer.position)
    return offers


async def _complete(machine: Machine, offers: Sequence[Offered]) -> None:
    """Fetches the earlier runs of those offers that have some."""
    ids = [offer.facts.task_id for offer in offers if offer.run_id > 0]
    if not ids:
        return

    async def run(tx: Transaction) -> dict[str, TaskFacts]:
        facts = await read_facts(tx, ids)
        await tx.commit([])
        return facts

    known = await machine.db.in_transaction(run, hot=True)
    for offer in offers:
        if offer.run_id > 0 and offer.facts.task_id in known:
            offer.facts.runs = [*known[offer.facts.task_id].runs[: offer.run_id], offer.facts.runs[0]]


def accept_statement(offers: Sequence[Offered]) -> Statement:
    """Makes offered runs running; each task at most once."""
    return CLAIMS["accept_runs"], accept_columns(offers)


def accept_columns(offers: Sequence[Offered]) -> list[Sequence[object]]:
    """What becomes of the runs that are accepted, a column each."""
    rows = []
    for offer in offers:
        run = offer.run()
        rows.append(
            (
                offer.facts.task_id,
                offer.run_id,
                offer.stream_id,
                run.worker_group,
                run.worker_id,
                offer.started,
                offer.taken_until,
            )
        )
    return list(zip(*rows, strict=True))


def accepted(
    offers: Sequence[Offered], ids: Container[str], effects: Effects
) -> tuple[list[bool], list[Statement]]:
    """Which offers still stood, given the tasks accepted, and what else is to be written; task-running
    goes into the effects."""
    taken = [offer for offer in offers if offer.facts.task_id in ids]
    _running(taken, effects)
    return [offer.facts.task_id in ids for offer in offers], _recent(taken)


async def withdraw_offers(machine: Machine, offers: Sequence[tuple[str, int, str]]) -> None:
    """Takes back offers (task, run, stream) that will not be accepted, without a trace."""
    for indexes in rounds(offers, lambda offer: offer[0]):
        batch = [offers[i] for i in indexes]
        rows = await machine.db.fetch(
            CLAIMS["withdraw_offers"], ([o[0] for o in batch], [o[2] for o in batch]), hot=True
        )
        machine.tell(Effects(queues={row[0] for row in rows}))


async def claim_runs(machine: Machine, queue_id: str, workers: Sequence[tuple[str, str]]) -> list[Offered]:
    """Claims up to one run for each wanted place; places are (worker group, worker id)."""

    async def run(tx: Transaction) -> tuple[list[Offered], Effects]:
        (rows,) = await tx.pipeline(
            [
                (
                    CLAIMS["claim_runs"],
                    (
                        queue_id,
                        [group for group, _ in workers],
                        [worker for _, worker in workers],
                        machine.settings.claim_timeout_s,
                    ),
                )
            ]
        )
        claims = []
        for n, task_id, run_id, definition, frame, rank, left, created, scheduled, started, until in rows:
            group, worker = workers[n - 1]
            facts_run = RunFacts(
                run_id, "running", created, None, group, worker, until, scheduled, started, None
            )
            facts = TaskFacts(task_id, queue_id, frames.split(frame), rank, left, [facts_run])
            claims.append(Offered(n - 1, facts, run_id, definition, started, until))
        claims.sort(key=lambda claim: claim.position)
        later = [claim.facts.task_id for claim in claims if claim.run_id > 0]
        known = await read_facts(tx, later) if later else {}
        for claim in claims:
            claim.facts = known.get(claim.facts.task_id, claim.facts)
        effects = Effects()
        _running(claims, effects)
        await tx.commit([*_recent(claims), *insert_events(effects)])
        return claims, effects

    claims, effects = await machine.db.in_transaction(run, hot=True)
    machine.tell(effects)
    return claims


async def claim_run_by_name(
    machine: Machine, task_id: str, run_id: int, worker_group: str, worker_id: str
) -> TaskFacts | None:
    """Claims one given run, or finds it claimed by name by the same worker; None if neither.

    The task's deadline and the run's existence are the caller's to check. Returns the task's facts.
    """

    async def run(tx: Transaction) -> tuple[TaskFacts | None, Effects]:
        _, rows = await tx.pipeline(
            [
                (CLAIMS["lock_task"], (task_id,)),
                (
                    CLAIMS["claim_run_by_name"],
                    (task_id, run_id, worker_group, worker_id, machine.settings.claim_timeout_s),
                ),
            ]
        )
        effects = Effects()
        statements: list[Statement] = []
        facts = None
        if rows:
            facts = (await read_facts(tx, [task_id]))[task_id]
            effects.events.append(messages.task_running(facts, run_id, worker_group, worker_id, rows[0][0]))
            if rows[0][1]:
                statements = [
                    _append_recent([(facts.task_queue_id, worker_group, worker_id, f"{task_id}/{run_id}")])
                ]
        await tx.commit([*statements, *insert_events(effects)])
        return facts, effects

    facts, effects = await machine.db.in_transaction(run)
    machine.tell(effects)
    return facts


async def reclaim_runs(machine: Machine, items: Sequence[Reclaim]) -> list[Reclaimed | QueueError]:
    """Moves the end of each claim to now plus the claim timeout, or says why not."""
    results: list[Reclaimed | QueueError] = [ResourceNotFound("unreached")] * len(items)
    for indexes in rounds(items, lambda item: item.task_id):
        batch = sorted((items[i] for i in indexes), key=lambda item: item.task_id)
        order = sorted(indexes, key=lambda i: items[i].task_id)
        rows = await machine.db.fetch(
            CLAIMS["reclaim_runs"],
            (
                [item.task_id for item in batch],
                [item.run_id for item in batch],
                [item.stream_id for item in batch],
                machine.settings.claim_timeout_s,
            ),
            hot=True,
        )
        renewed = {row[0] - 1: row for row in rows}
        standing: dict[int, Row] = {}
        if len(renewed) < len(batch):
            judged = await machine.db.fetch(
                CLAIMS["judge_reclaims"],
                ([item.task_id for item in batch], [item.run_id for item in batch]),
                hot=True,
            )
            standing = {row[0] - 1: row for row in judged}
        effects = Effects()
        for position, (index, item) in enumerate(zip(order, batch, strict=True)):
            if position in renewed:
                results[index] = _renewed(item, renewed[position], effects)
            else:
                results[index] = _not_renewed(item, standing.get(position))
        machine.tell(effects)
    return results


def _renewed(item: Reclaim, row: Row, effects: Effects) -> Reclaimed:
    _, queue_id, group, worker, until, definition, now, had_process, stream_id = row
    if not item.stream_id and had_process:
        effects.revoke(stream_id, item.task_id, item.run_id, "detached")
    return Reclaimed(item.task_id, item.run_id, queue_id, group, worker, until, now, definition)


def _not_renewed(item: Reclaim, row: Row | None) -> QueueError:
    if row is None:
        return ResourceNotFound(f"task {item.task_id} does not exist", taskId=item.task_id)
    _, past, last_run, state, reason = row
    if state is None:
        return ResourceNotFound(f"task {item.task_id} has no run {item.run_id}", taskId=item.task_id)
    if past and state == "running":
        return RequestConflict(
            f"the deadline of task {item.task_id} has passed", taskId=item.task_id, reason="deadline-exceeded"
        )
    return RequestConflict(
        f"run {item.run_id} of task {item.task_id} cannot be reclaimed: it is {state}"
        f"{f'/{reason}' if reason else ''} and the last run is {last_run}",
        taskId=item.task_id,
        reason=reason or "",
    )


def _running(claims: Sequence[Offered], effects: Effects) -> None:
    for claim in claims:
        run = claim.run()
        effects.events.append(
            messages.task_running(
                claim.facts, claim.run_id, run.worker_group or "", run.worker_id or "", claim.taken_until
            )
        )


def _recent(claims: Sequence[Offered]) -> list[Statement]:
    """Appends the claims to their workers' lists, in the order handed out."""
    ordered = sorted(claims, key=lambda claim: claim.position)
    rows = [
        (
            c.facts.task_queue_id,
            c.run().worker_group or "",
            c.run().worker_id or "",
            f"{c.facts.task_id}/{c.run_id}",
        )
        for c in ordered
    ]
    return [_append_recent(rows)] if rows else []


def _append_recent(rows: Sequence[tuple[str, str, str, str]]) -> Statement:
    return CLAIMS["append_recent_tasks"], [list(column) for column in zip(*rows, strict=True)]
