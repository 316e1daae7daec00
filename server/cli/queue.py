"""`tcqueue queue`: task queues, what waits and runs in them, and their workers."""

from __future__ import annotations

import click

from server.cli.base import (
    CONTEXT,
    DURATION,
    CommandError,
    Group,
    from_now,
    json_option,
    moment,
    print_fields,
    print_json,
    print_table,
)
from server.cli.calls import Queue, with_queue
from server.cli.shown import when
from server.client.json_form import to_json, word
from tcqueue.v1.options_pb2 import Stability
from tcqueue.v1.run_pb2 import RunReference
from tcqueue.v1.task_pb2 import Priority
from tcqueue.v1.task_queue_pb2 import (
    GetTaskQueueCountsRequest,
    GetTaskQueueRequest,
    ListClaimedTasksRequest,
    ListPendingTasksRequest,
    ListTaskQueuesRequest,
)
from tcqueue.v1.worker_pb2 import GetWorkerRequest, ListWorkersRequest, QuarantineWorkerRequest


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue queue list
  tcqueue queue counts demo/linux
  tcqueue queue quarantine demo/linux rack-1 machine-7 --for 2h --why 'bad disk'
""",
)
def queue() -> None:
    """Look at task queues and their workers."""


@queue.command("list", epilog="\b\nExample:\n  tcqueue queue list --json | jq -r '.[].taskQueueId'")
@json_option
@with_queue
def list_(queue: Queue, as_json: bool) -> None:
    """List the queues that workers have been seen on, or that were declared."""
    pages = queue.pages(queue.stub.ListTaskQueues, ListTaskQueuesRequest())
    found = [entry for page in pages for entry in page.task_queues]
    if as_json:
        print_json([to_json(entry) for entry in found])
        return
    print_table(
        ("queue", "last active", "expires", "description"),
        [
            (q.task_queue_id, moment(when(q.last_date_active)), moment(when(q.expires)), q.description)
            for q in found
        ],
        empty="no queues yet: they appear when a worker asks for work",
    )


@queue.command(epilog="\b\nExample:\n  tcqueue queue show demo/linux")
@click.argument("task_queue_id", metavar="QUEUE")
@json_option
@with_queue
def show(queue: Queue, task_queue_id: str, as_json: bool) -> None:
    """Show a queue and its counts."""
    found = queue.call(queue.stub.GetTaskQueue, GetTaskQueueRequest(task_queue_id=task_queue_id)).task_queue
    counts = queue.call(queue.stub.GetTaskQueueCounts, GetTaskQueueCountsRequest(task_queue_id=task_queue_id))
    if as_json:
        print_json(
            {**to_json(found), "pendingTasks": counts.pending_tasks, "claimedTasks": counts.claimed_tasks}
        )
        return
    print_fields(
        [
            ("queue", found.task_queue_id),
            ("description", found.description),
            ("stability", word(Stability.DESCRIPTOR, found.stability)),
            ("last active", moment(when(found.last_date_active))),
            ("expires", moment(when(found.expires))),
            ("pending", str(counts.pending_tasks)),
            ("claimed", str(counts.claimed_tasks)),
        ]
    )


@queue.command(epilog="\b\nExample:\n  watch -n1 tcqueue queue counts demo/linux")
@click.argument("task_queue_id", metavar="QUEUE")
@json_option
@with_queue
def counts(queue: Queue, task_queue_id: str, as_json: bool) -> None:
    """Say how many runs are pending and how many are claimed."""
    answer = queue.call(queue.stub.GetTaskQueueCounts, GetTaskQueueCountsRequest(task_queue_id=task_queue_id))
    if as_json:
        print_json({"pendingTasks": answer.pending_tasks, "claimedTasks": answer.claimed_tasks})
    else:
        click.echo(f"{answer.pending_tasks} pending, {answer.claimed_tasks} claimed")


@queue.command(epilog="\b\nExample:\n  tcqueue queue pending demo/linux")
@click.argument("task_queue_id", metavar="QUEUE")
@json_option
@with_queue
def pending(queue: Queue, task_queue_id: str, as_json: bool) -> None:
    """List the runs that wait for a worker, oldest first."""
    request = ListPendingTasksRequest(task_queue_id=task_queue_id)
    found = [entry for page in queue.pages(queue.stub.ListPendingTasks, request) for entry in page.tasks]
    if as_json:
        print_json([to_json(entry) for entry in found])
        return
    print_table(
        ("task", "run", "name", "priority", "since"),
        [
            (
                entry.task_id,
                str(entry.run_id),
                entry.task.metadata.name,
                word(Priority.DESCRIPTOR, entry.task.priority),
                moment(when(entry.inserted)),
            )
            for entry in found
        ],
        empty="nothing is pending",
    )


@queue.command(epilog="\b\nExample:\n  tcqueue queue claimed demo/linux")
@click.argument("task_queue_id", metavar="QUEUE")
@json_option
@with_queue
def claimed(queue: Queue, task_queue_id: str, as_json: bool) -> None:
    """List the runs that workers hold, by the time they were last claimed or reclaimed."""
    request = ListClaimedTasksRequest(task_queue_id=task_queue_id)
    found = [entry for page in queue.pages(queue.stub.ListClaimedTasks, request) for entry in page.tasks]
    if as_json:
        print_json([to_json(entry) for entry in found])
        return
    print_table(
        ("task", "run", "name", "worker", "claimed"),
        [
            (
                entry.task_id,
                str(entry.run_id),
                entry.task.metadata.name,
                f"{entry.worker_group}/{entry.worker_id}",
                moment(when(entry.claimed)),
            )
            for entry in found
        ],
        empty="nothing is claimed",
    )


@queue.command(
    epilog="""
\b
Examples:
  tcqueue queue workers demo/linux
  tcqueue queue workers demo/linux --quarantined
  tcqueue queue workers demo/linux rack-1 machine-7
"""
)
@click.argument("task_queue_id", metavar="QUEUE")
@click.argument("worker_group", required=False)
@click.argument("worker_id", required=False)
@click.option("--quarantined/--not-quarantined", default=None, help="Only those that are, or are not.")
@json_option
@with_queue
def workers(
    queue: Queue,
    task_queue_id: str,
    worker_group: str | None,
    worker_id: str | None,
    quarantined: bool | None,
    as_json: bool,
) -> None:
    """List a queue's workers, or show one of them with its recent runs."""
    provisioner_id, worker_type = _halves(task_queue_id)
    if worker_group is not None:
        if worker_id is None:
            raise CommandError("a worker is named by its group and its id")
        _worker(queue, provisioner_id, worker_type, worker_group, worker_id, as_json)
        return
    request = ListWorkersRequest(
        provisioner_id=provisioner_id, worker_type=worker_type, quarantined=quarantined
    )
    found = [entry for page in queue.pages(queue.stub.ListWorkers, request) for entry in page.workers]
    if as_json:
        print_json([to_json(entry) for entry in found])
        return
    print_table(
        ("group", "worker", "first seen", "last seen", "latest run", "quarantine"),
        [
            (
                entry.worker_group,
                entry.worker_id,
                moment(when(entry.first_claim)),
                moment(when(entry.last_date_active)),
                _reference(entry.latest_task),
                moment(when(entry.quarantine_until)),
            )
            for entry in found
        ],
        empty="no workers",
    )


def _worker(
    queue: Queue, provisioner_id: str, worker_type: str, worker_group: str, worker_id: str, as_json: bool
) -> None:
    request = GetWorkerRequest(
        provisioner_id=provisioner_id, worker_type=worker_type, worker_group=worker_group, worker_id=worker_id
    )
    found = queue.call(queue.stub.GetWorker, request).worker
    if as_json:
        print_json(to_json(found))
        return
    print_fields(
        [
            ("worker", f"{found.worker_group}/{found.worker_id}"),
            ("queue", found.task_queue_id),
            ("first seen", moment(when(found.first_claim))),
            ("last seen", moment(when(found.last_date_active))),
            ("quarantine", moment(when(found.quarantine_until))),
            ("expires", moment(when(found.expires))),
            ("recent runs", "\n".join(map(_reference, found.recent_tasks))),
        ]
    )


@queue.command(
    epilog="""
\b
Examples:
  tcqueue queue quarantine demo/linux rack-1 machine-7 --for 2h --why 'bad disk'
  tcqueue queue quarantine demo/linux rack-1 machine-7 --lift
"""
)
@click.argument("task_queue_id", metavar="QUEUE")
@click.argument("worker_group")
@click.argument("worker_id")
@click.option("--for", "seconds", type=DURATION, help="How long the worker gets no work.")
@click.option("--lift", is_flag=True, help="Let it work again.")
@click.option("--why", help="Reason, for the history.")
@json_option
@with_queue
def quarantine(
    queue: Queue,
    task_queue_id: str,
    worker_group: str,
    worker_id: str,
    seconds: float | None,
    lift: bool,
    why: str | None,
    as_json: bool,
) -> None:
    """Withhold work from a worker for a while, or lift that."""
    if lift == (seconds is not None):
        raise CommandError("say either how long with --for, or --lift")
    provisioner_id, worker_type = _halves(task_queue_id)
    request = QuarantineWorkerRequest(
        provisioner_id=provisioner_id,
        worker_type=worker_type,
        worker_group=worker_group,
        worker_id=worker_id,
        quarantine_info=why,
    )
    request.quarantine_until.FromDatetime(from_now(-1.0 if seconds is None else seconds))
    found = queue.call(queue.stub.QuarantineWorker, request).worker
    if as_json:
        print_json(to_json(found))
    elif lift:
        click.echo(f"{worker_group}/{worker_id} gets work again")
    else:
        click.echo(f"{worker_group}/{worker_id} gets no work until {moment(when(found.quarantine_until))}")


def _halves(task_queue_id: str) -> tuple[str, str]:
    provisioner_id, slash, worker_type = task_queue_id.partition("/")
    if not slash:
        raise CommandError(f"a queue is named PROVISIONER/TYPE, not {task_queue_id!r}")
    return provisioner_id, worker_type


def _reference(run: RunReference) -> str:
    return f"{run.task_id}/{run.run_id}" if run.task_id else ""
