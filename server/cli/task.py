"""`tcqueue task`: single tasks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from server.cli.base import CONTEXT, CommandError, Group, json_option, print_json, print_json_line
from server.cli.calls import Queue, address_option, connection_from_env, with_queue
from server.cli.definitions import define, definition_options
from server.cli.shown import (
    PRIORITIES,
    RESOLVED,
    print_status,
    print_statuses,
    run_word,
    run_worker,
    state_word,
)
from server.client.json_form import to_json
from server.domain import slugid
from tcqueue.v1.task_pb2 import (
    BatchGetTaskStatusesRequest,
    CancelTaskRequest,
    ChangeTaskPriorityRequest,
    CreateTaskRequest,
    GetTaskRequest,
    GetTaskStatusRequest,
    ListDependentTasksRequest,
    RerunTaskRequest,
    ScheduleTaskRequest,
    TaskState,
    TaskStatus,
    WatchTaskRequest,
)


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue task create -q demo/linux -c 'make test' --name test --watch
  tcqueue task status 'dSlITZ4yQgmvxxAi4A8fHQ'
  tcqueue task rerun dSlITZ4yQgmvxxAi4A8fHQ
""",
)
def task() -> None:
    """Create, look at and change tasks."""


@task.command(
    epilog="""
\b
Examples:
  tcqueue task create -q demo/linux -c 'echo hello'
  tcqueue task create -q demo/linux -c 'make test' --depends-on $BUILD --priority high --deadline 2h
  tcqueue task create task.json --watch
  jq .payload.env.X=1 task.json | tcqueue task create - --json

FILE holds a definition in the API's JSON; `created`, `deadline` and `metadata` may be left out, dates
may be {"$fromNow": "2 hours"}, and options win over what it says.
"""
)
@definition_options
@click.option("--task-id", help="Id of the new task. [default: a new one]")
@click.option("--watch", is_flag=True, help="Follow it until resolved; fail unless it completed.")
@json_option
@with_queue
def create(
    queue: Queue, file: str | None, task_id: str | None, watch: bool, as_json: bool, **options: Any
) -> None:
    """Create a task from FILE (`-` reads standard input), from options, or from both."""
    chosen = task_id or slugid.nice()
    request = CreateTaskRequest(task_id=chosen, task=define(file, options))
    status = queue.call(queue.stub.CreateTask, request).status
    if watch:
        _watch(queue, chosen, as_json)
    elif as_json:
        print_json(to_json(status))
    else:
        click.echo(f"{chosen}  {state_word(status)}")
        if sys.stdout.isatty():
            click.echo(click.style(f"follow it with `tcqueue task watch {chosen}`", dim=True))


@task.command(epilog="\b\nExample:\n  tcqueue task show dSlITZ4yQgmvxxAi4A8fHQ --json | jq .task.payload")
@click.argument("task_id")
@click.option("--dependents", is_flag=True, help="Also list the tasks that wait, or waited, for it.")
@json_option
@with_queue
def show(queue: Queue, task_id: str, dependents: bool, as_json: bool) -> None:
    """Show a task's definition, its status and its runs."""
    definition = queue.call(queue.stub.GetTask, GetTaskRequest(task_id=task_id)).task
    status = queue.call(queue.stub.GetTaskStatus, GetTaskStatusRequest(task_id=task_id)).status
    waiting = (
        [
            entry
            for page in queue.pages(queue.stub.ListDependentTasks, ListDependentTasksRequest(task_id=task_id))
            for entry in page.tasks
        ]
        if dependents
        else []
    )
    if as_json:
        shown: dict[str, Any] = {"task": to_json(definition), "status": to_json(status)}
        if dependents:
            shown["dependents"] = [to_json(entry) for entry in waiting]
        print_json(shown)
        return
    print_status(status, definition)
    if dependents:
        click.echo("\ndependents:")
        print_statuses((entry.status, entry.task.metadata.name) for entry in waiting)


@task.command(epilog="\b\nExample:\n  tcqueue task status $A $B $C")
@click.argument("task_ids", nargs=-1, required=True)
@json_option
@with_queue
def status(queue: Queue, task_ids: Sequence[str], as_json: bool) -> None:
    """Show where tasks stand. Fails when one of them does not exist."""
    if len(task_ids) == 1:
        found = [queue.call(queue.stub.GetTaskStatus, GetTaskStatusRequest(task_id=task_ids[0])).status]
    else:
        request = BatchGetTaskStatusesRequest(task_ids=task_ids)
        pages = queue.pages(queue.stub.BatchGetTaskStatuses, request)
        found = [entry.status for page in pages for entry in page.statuses]
    if as_json:
        print_json([to_json(status) for status in found])
    elif len(task_ids) == 1:
        print_status(found[0])
    else:
        place = {task_id: number for number, task_id in enumerate(task_ids)}
        print_statuses((status, "") for status in sorted(found, key=lambda status: place[status.task_id]))
    missing = set(task_ids) - {status.task_id for status in found}
    if missing:
        raise CommandError(f"no such task: {', '.join(sorted(missing))}")


@task.command(epilog="\b\nExample:\n  tcqueue task watch dSlITZ4yQgmvxxAi4A8fHQ && echo it worked")
@click.argument("task_id")
@json_option
@with_queue
def watch(queue: Queue, task_id: str, as_json: bool) -> None:
    """Follow a task until it is resolved; fails unless it completed."""
    _watch(queue, task_id, as_json)


def _watch(queue: Queue, task_id: str, as_json: bool) -> None:
    shown = ""
    last: TaskStatus | None = None
    for answer in queue.follow(queue.stub.WatchTask, WatchTaskRequest(task_id=task_id)):
        last = answer.status
        if as_json:
            print_json_line(to_json(last))
        elif (line := _line(last)) != shown:
            click.echo(line)
            shown = line
        if last.state in RESOLVED:
            break
    if last is None or last.state != TaskState.TASK_STATE_COMPLETED:
        sys.exit(1)


def _line(status: TaskStatus) -> str:
    if not status.runs:
        return f"{status.task_id}  {state_word(status)}"
    run = status.runs[-1]
    worker = f"  on {run_worker(run)}" if run.HasField("worker_id") else ""
    return f"{status.task_id}  run {run.run_id}  {run_word(run)}{worker}"


@task.command(epilog="\b\nExample:\n  tcqueue task cancel dSlITZ4yQgmvxxAi4A8fHQ")
@click.argument("task_id")
@json_option
@with_queue
def cancel(queue: Queue, task_id: str, as_json: bool) -> None:
    """Cancel a task; its worker is told at once."""
    _changed(queue.call(queue.stub.CancelTask, CancelTaskRequest(task_id=task_id)).status, as_json)


@task.command(epilog="\b\nExample:\n  tcqueue task rerun dSlITZ4yQgmvxxAi4A8fHQ")
@click.argument("task_id")
@json_option
@with_queue
def rerun(queue: Queue, task_id: str, as_json: bool) -> None:
    """Run a resolved task once more."""
    _changed(queue.call(queue.stub.RerunTask, RerunTaskRequest(task_id=task_id)).status, as_json)


@task.command(epilog="\b\nExample:\n  tcqueue task schedule dSlITZ4yQgmvxxAi4A8fHQ")
@click.argument("task_id")
@json_option
@with_queue
def schedule(queue: Queue, task_id: str, as_json: bool) -> None:
    """Let a task start, whatever it still waits for."""
    _changed(queue.call(queue.stub.ScheduleTask, ScheduleTaskRequest(task_id=task_id)).status, as_json)


@task.command(epilog="\b\nExample:\n  tcqueue task priority dSlITZ4yQgmvxxAi4A8fHQ very-high")
@click.argument("task_id")
@click.argument("priority", type=click.Choice(list(PRIORITIES)))
@json_option
@with_queue
def priority(queue: Queue, task_id: str, priority: str, as_json: bool) -> None:
    """Change the priority of a task that has never been resolved."""
    request = ChangeTaskPriorityRequest(task_id=task_id, new_priority=PRIORITIES[priority])
    _changed(queue.call(queue.stub.ChangeTaskPriority, request).status, as_json)


def _changed(status: TaskStatus, as_json: bool) -> None:
    if as_json:
        print_json(to_json(status))
    else:
        click.echo(_line(status))


@task.command(
    epilog="""
\b
Examples:
  tcqueue task log dSlITZ4yQgmvxxAi4A8fHQ
  tcqueue task log --follow dSlITZ4yQgmvxxAi4A8fHQ
  tcqueue task log dSlITZ4yQgmvxxAi4A8fHQ --run 0
"""
)
@click.argument("task_id")
@click.option("--run", "run_id", type=click.IntRange(min=0), help="Which run. [default: the last with a log]")
@click.option("-f", "--follow", is_flag=True, help="Wait for the run, and print its log as it grows.")
@click.option(
    "--log-dir",
    envvar="TCQUEUE_CLIENT_LOG_DIR",
    help="Read what a worker of this machine left in its log folder, and ask no queue.",
)
@address_option
def log(task_id: str, run_id: int | None, follow: bool, log_dir: str | None, address: str | None) -> None:
    """Print the log of a run."""
    from server.cli import task_logs  # what it needs takes its time to load

    if not slugid.is_slugid(task_id):
        raise CommandError(f"{task_id} is no task id")
    if log_dir is not None:
        sys.stdout.buffer.write(task_logs.local(task_id, run_id, Path(log_dir)))
        return
    task_logs.show(connection_from_env(address), task_id, run_id, follow=follow)
