"""Jobs of the job queue of 2014: each change of a job is the change of its task, in the same transaction as
what only the job knows (jobqueue.md 3, 6)."""

from __future__ import annotations

from collections.abc import Sequence

from server.domain import jobs
from server.domain.jobs import Submitted
from server.errors import QueueError, RequestConflict, ResourceNotFound
from server.store.database import Statement, Transaction
from server.store.statements import load
from server.transitions import messages
from server.transitions.creating import NewTask, create_in
from server.transitions.ending import end_in
from server.transitions.facts import TaskFacts
from server.transitions.machine import CLAIMS, TRANSITIONS, Effects, Machine, insert_events, read_facts
from server.transitions.resolving import Resolutions, Resolve

JOBS = load("jobs")


async def create_job(machine: Machine, task: NewTask, job: Submitted, *, announced: bool) -> TaskFacts:
    """Creates a job's task and the job. `announced`: nobody has to be told of it."""
    row = (
        task.task_id,
        job.text,
        job.priority,
        job.max_pending_seconds,
        job.max_runtime_seconds,
        job.results_server,
        task.expires,
        announced,
    )

    async def run(tx: Transaction) -> tuple[TaskFacts, Effects]:
        (outcome,), effects, ending = await create_in(tx, [task], _never, whole=True)
        if isinstance(outcome, QueueError):
            raise outcome
        await tx.commit([(JOBS["insert_job"], row), *ending])
        return outcome, effects

    facts, effects = await machine.db.in_transaction(run, hot=True)
    machine.tell(effects)
    return facts


async def claim_job(machine: Machine, task_id: str) -> None:
    """Claims a job that is pending. Raises RequestConflict, also when it was claimed before by anybody."""

    async def run(tx: Transaction) -> Effects:
        _, rows = await tx.pipeline(
            [
                (TRANSITIONS["lock_tasks"], ([task_id],)),
                (
                    JOBS["claim_jobs"],
                    ([task_id], jobs.WORKER_GROUP, jobs.WORKER_ID, jobs.DEFAULT_RUNTIME_S),
                ),
            ]
        )
        if not rows:
            raise _not_in(task_id, "claimed", "pending")
        ((_, run_id, taken_until),) = rows
        facts = (await read_facts(tx, [task_id]))[task_id]
        effects = Effects()
        effects.events.append(
            messages.task_running(facts, run_id, jobs.WORKER_GROUP, jobs.WORKER_ID, taken_until)
        )
        recent = (
            CLAIMS["append_recent_tasks"],
            ([facts.task_queue_id], [jobs.WORKER_GROUP], [jobs.WORKER_ID], [f"{task_id}/{run_id}"]),
        )
        await tx.commit([recent, *insert_events(effects)])
        return effects

    machine.tell(await machine.db.in_transaction(run, hot=True))


async def complete_job(machine: Machine, task_id: str, results: str, *, failed: bool) -> None:
    """Ends a job that was claimed as a job and is running. Raises RequestConflict for any other."""
    state = "failed" if failed else "completed"

    async def run(tx: Transaction) -> Effects:
        _, rows = await tx.pipeline(
            [(TRANSITIONS["lock_tasks"], ([task_id],)), (JOBS["judge_jobs"], ([task_id],))]
        )
        if not rows:
            raise ResourceNotFound(f"job {jobs.job_id_of(task_id)} does not exist", taskId=task_id)
        _, run_id, running, group, worker = rows[0]
        if running != "running" or (group, worker) != (jobs.WORKER_GROUP, jobs.WORKER_ID):
            raise _not_in(task_id, "completed", "running, or not claimed as a job")
        resolutions = Resolutions([Resolve(task_id, run_id, state, state)], machine.settings)
        results_of = await tx.pipeline(resolutions.statements())
        effects = Effects()
        (outcome,) = await resolutions.outcomes(tx, results_of, effects)
        if isinstance(outcome, QueueError):
            raise outcome
        await tx.commit([_results([task_id], results), *insert_events(effects)])
        return effects

    machine.tell(await machine.db.in_transaction(run, hot=True))


async def cancel_job(machine: Machine, task_id: str) -> None:
    """Cancels a job that is not finished. Of several calls one does; the others raise RequestConflict."""

    async def run(tx: Transaction) -> Effects:
        _, ended, effects = await end_in(tx, machine, [task_id], "canceled")
        if not ended:
            raise _not_in(task_id, "canceled", "unfinished, or past its deadline")
        await tx.commit([_results(ended, "null"), *insert_events(effects)])
        return effects

    machine.tell(await machine.db.in_transaction(run, hot=True))


def _results(task_ids: Sequence[str], results: str) -> Statement:
    return JOBS["store_results"], (list(task_ids), [results] * len(task_ids))


def _not_in(task_id: str, change: str, needed: str) -> RequestConflict:
    return RequestConflict(
        f"job {jobs.job_id_of(task_id)} cannot be {change}: it is not {needed}", taskId=task_id
    )


def _never(_: bytes, __: bytes) -> bool:
    """No two jobs are the same."""
    return False
