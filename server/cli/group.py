"""`tcqueue group`: task groups, and whole graphs of tasks created at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from server.cli.base import (
    CONTEXT,
    Group,
    colored,
    json_option,
    moment,
    print_fields,
    print_json,
)
from server.cli.calls import Queue, with_queue
from server.cli.definitions import read_env, read_json
from server.cli.graphs import read_graph
from server.cli.shown import PRIORITIES, print_statuses, state_word, when
from server.cli.watching import watch_group
from server.client.json_form import to_json
from server.domain import slugid
from tcqueue.v1.task_group_pb2 import (
    CancelTaskGroupRequest,
    ChangeTaskGroupPriorityRequest,
    GetTaskGroupRequest,
    ListTaskGroupRequest,
    SealTaskGroupRequest,
    TaskGroup,
)
from tcqueue.v1.task_pb2 import CreateTasksRequest, TaskStatus


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue group create graph.json --watch
  tcqueue group list fN1SbArXTPSVFNUvaOlinQ
  tcqueue group seal fN1SbArXTPSVFNUvaOlinQ && tcqueue group cancel fN1SbArXTPSVFNUvaOlinQ
""",
)
def group() -> None:
    """Create, look at and change task groups."""


@group.command(
    epilog="""
\b
Examples:
  tcqueue group create graph.json --watch
  tcqueue group create graph.json --queue demo/linux --json | jq -r .taskGroupId

\b
FILE maps names to definitions, and dependencies may use the names:
  {
    "build": {"taskQueueId": "demo/linux", "payload": {"command": "make"}},
    "test":  {"taskQueueId": "demo/linux", "payload": {"command": "make test"},
              "dependencies": ["build"]}
  }
Names that are task ids already are kept. All tasks are created, or none.
"""
)
@click.argument("file", metavar="FILE")
@click.option("--queue", "-q", "task_queue_id", metavar="PROVISIONER/TYPE", help="For tasks that name none.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="Variable for all; repeatable.")
@click.option("--group", "group_id", metavar="GROUP_ID", help="The group. [default: a new one]")
@click.option("--watch", is_flag=True, help="Follow the group until resolved; fail unless all completed.")
@json_option
@with_queue
def create(
    queue: Queue,
    file: str,
    task_queue_id: str | None,
    env: Sequence[str],
    group_id: str | None,
    watch: bool,
    as_json: bool,
) -> None:
    """Create the graph of tasks in FILE (`-` reads standard input), all or none."""
    group_id = group_id or slugid.nice()
    tasks, names = read_graph(read_json(file), group_id, task_queue_id=task_queue_id, env=read_env(env))
    answer = queue.call(queue.stub.CreateTasks, CreateTasksRequest(tasks=tasks))
    if watch:
        _watch(queue, group_id, as_json, names)
    elif as_json:
        statuses = {names[status.task_id]: to_json(status) for status in answer.statuses}
        print_json({"taskGroupId": group_id, "tasks": statuses})
    else:
        print_statuses((status, names[status.task_id]) for status in answer.statuses)
        click.echo(f"\ngroup {group_id}: {len(tasks)} tasks")


@group.command(epilog="\b\nExample:\n  tcqueue group show fN1SbArXTPSVFNUvaOlinQ")
@click.argument("group_id")
@json_option
@with_queue
def show(queue: Queue, group_id: str, as_json: bool) -> None:
    """Show a group's own data and how many tasks are in which state."""
    found = queue.call(queue.stub.GetTaskGroup, GetTaskGroupRequest(task_group_id=group_id)).task_group
    statuses = [status for status, _ in _tasks(queue, group_id)]
    counts: dict[str, int] = {}
    for status in statuses:
        state = click.unstyle(state_word(status)).partition("/")[0]
        counts[state] = counts.get(state, 0) + 1
    if as_json:
        print_json({**to_json(found), "counts": counts})
        return
    _print_group(found)
    summary = ", ".join(f"{count} {colored(state)}" for state, count in counts.items())
    print_fields([("tasks", f"{len(statuses)}: {summary}" if statuses else "none")])


def _print_group(found: TaskGroup) -> None:
    print_fields(
        [
            ("group", found.task_group_id),
            ("scheduler", found.scheduler_id),
            ("sealed", moment(when(found.sealed)) or "no"),
            ("expires", moment(when(found.expires))),
        ]
    )


def _tasks(queue: Queue, group_id: str) -> list[tuple[TaskStatus, str]]:
    pages = queue.pages(queue.stub.ListTaskGroup, ListTaskGroupRequest(task_group_id=group_id))
    return [(entry.status, entry.task.metadata.name) for page in pages for entry in page.tasks]


@group.command("list", epilog="\b\nExample:\n  tcqueue group list fN1SbArXTPSVFNUvaOlinQ --json")
@click.argument("group_id")
@json_option
@with_queue
def list_(queue: Queue, group_id: str, as_json: bool) -> None:
    """List a group's tasks."""
    tasks = _tasks(queue, group_id)
    if as_json:
        print_json([{"name": name, "status": to_json(status)} for status, name in tasks])
    else:
        print_statuses(tasks)


@group.command(epilog="\b\nExample:\n  tcqueue group seal fN1SbArXTPSVFNUvaOlinQ")
@click.argument("group_id")
@json_option
@with_queue
def seal(queue: Queue, group_id: str, as_json: bool) -> None:
    """Seal a group: it takes no new tasks from now on. There is no way back."""
    found = queue.call(queue.stub.SealTaskGroup, SealTaskGroupRequest(task_group_id=group_id)).task_group
    if as_json:
        print_json(to_json(found))
    else:
        _print_group(found)


@group.command(epilog="\b\nExample:\n  tcqueue group cancel fN1SbArXTPSVFNUvaOlinQ")
@click.argument("group_id")
@json_option
@with_queue
def cancel(queue: Queue, group_id: str, as_json: bool) -> None:
    """Cancel what is unresolved in a sealed group."""
    answer = queue.call(queue.stub.CancelTaskGroup, CancelTaskGroupRequest(task_group_id=group_id))
    if as_json:
        print_json(to_json(answer))
        return
    for task_id in answer.task_ids:
        click.echo(task_id)
    click.echo(f"canceled {answer.cancelled_count} of {answer.task_group_size} tasks")


@group.command(epilog="\b\nExample:\n  tcqueue group priority fN1SbArXTPSVFNUvaOlinQ high")
@click.argument("group_id")
@click.argument("priority", type=click.Choice(list(PRIORITIES)))
@json_option
@with_queue
def priority(queue: Queue, group_id: str, priority: str, as_json: bool) -> None:
    """Change the priority of every task that has never been resolved."""
    request = ChangeTaskGroupPriorityRequest(task_group_id=group_id, new_priority=PRIORITIES[priority])
    answer = queue.call(queue.stub.ChangeTaskGroupPriority, request)
    if as_json:
        print_json(to_json(answer))
    else:
        click.echo(f"{answer.tasks_affected} tasks have priority {priority} now")


@group.command(epilog="\b\nExample:\n  tcqueue group watch fN1SbArXTPSVFNUvaOlinQ && echo all completed")
@click.argument("group_id")
@json_option
@with_queue
def watch(queue: Queue, group_id: str, as_json: bool) -> None:
    """Follow a group until all its tasks are resolved; fails unless all completed."""
    names = {} if as_json else {status.task_id: name for status, name in _tasks(queue, group_id)}
    _watch(queue, group_id, as_json, names)


def _watch(queue: Queue, group_id: str, as_json: bool, names: dict[str, str]) -> None:
    if not watch_group(queue, group_id, names, as_json=as_json):
        sys.exit(1)
