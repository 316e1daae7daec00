"""Following a group: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from server.cli.base import print_json_line, span
from server.cli.calls import Queue
from server.cli.shown import STATUS_HEADINGS, run_word, run_worker, state_word, status_row
from server.client.json_form import to_json
from tcqueue.v1.task_group_pb2 import WatchTaskGroupRequest, WatchTaskGroupResponse
from tcqueue.v1.task_pb2 import TaskState, TaskStatus

if TYPE_CHECKING:
    from rich.console import RenderableType


class GroupProgress:
    """The latest statuses of a group's tasks, and how they are shown."""

    def __init__(self, names: Mapping[str, str], *, began: float | None = None) -> None:
        """`began` is the moment that times are counted from, by the monotonic clock; now by default."""
        self.statuses: dict[str, TaskStatus] = {}
        self.resolved = False
        self.names = names
        self._began = time.monotonic() if began is None else began
        self._said: dict[str, str] = {}
        self._width = max((len(name) for name in names.values()), default=22)

    def update(self, status: TaskStatus) -> str:
        """Takes a new status over; the line to print about it, empty when nothing visible changed."""
        self.statuses[status.task_id] = status
        text = state_word(status)
        if status.runs:
            run = status.runs[-1]
            worker = f" on {run_worker(run)}" if run.HasField("worker_id") else ""
            text = f"run {run.run_id} {run_word(run)}{worker}"
            lost = status.runs[-2] if len(status.runs) > 1 else None
            if lost is not None and not run.HasField("worker_id"):
                text += f" (run {lost.run_id} was {run_word(lost)})"
        if self._said.get(status.task_id) == text:
            return ""
        self._said[status.task_id] = text
        seconds = time.monotonic() - self._began
        return f"{seconds:6.1f}s  {self.names.get(status.task_id, status.task_id):<{self._width}}  {text}"

    @property
    def completed(self) -> bool:
        """Whether every task has completed."""
        return all(s.state == TaskState.TASK_STATE_COMPLETED for s in self.statuses.values())

    @property
    def stuck(self) -> bool:
        """Whether a failure keeps the rest from ever starting, so that there is nothing to wait for."""
        states = {status.state for status in self.statuses.values()}
        failed = {TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_EXCEPTION}
        moving = {TaskState.TASK_STATE_PENDING, TaskState.TASK_STATE_RUNNING}
        return bool(states & failed) and not states & moving

    def summary(self) -> str:
        """How many tasks are in which state."""
        counts: dict[str, int] = {}
        for status in self.statuses.values():
            counts[state_word(status)] = counts.get(state_word(status), 0) + 1
        return ", ".join(f"{count} {word}" for word, count in counts.items())

    def in_order(self) -> list[TaskStatus]:
        """The statuses as the tasks were named, those without a name last."""
        place = {task_id: number for number, task_id in enumerate(self.names)}
        return sorted(self.statuses.values(), key=lambda status: place.get(status.task_id, len(place)))

    def __rich__(self) -> RenderableType:
        """The live table."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, caption_justify="left")
        for heading in STATUS_HEADINGS:
            table.add_column(heading.upper(), header_style="dim", no_wrap=True)
        for status in self.in_order():
            row = status_row(status, self.names.get(status.task_id, ""))
            table.add_row(*(Text.from_ansi(cell) for cell in row))
        table.caption = Text.from_ansi(f"{span(time.monotonic() - self._began)}  {self.summary()}")
        return table


@contextmanager
def shown_live(progress: GroupProgress) -> Iterator[Callable[[str], None]]:
    """Shows the table while the block runs, on a terminal; nothing elsewhere. Gives a function that
    prints a line, above the table."""
    if not sys.stdout.isatty():
        yield _say
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(progress, console=console, refresh_per_second=4):
        yield lambda line: console.print(Text.from_ansi(line))


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def watch_group(queue: Queue, group_id: str, names: Mapping[str, str], *, as_json: bool = False) -> bool:
    """Follows a group until it is resolved; whether every task completed."""
    progress = GroupProgress(names)
    live = sys.stdout.isatty() and not as_json
    answers = queue.follow(queue.stub.WatchTaskGroup, WatchTaskGroupRequest(task_group_id=group_id))
    if live:
        with shown_live(progress):
            _follow(answers, progress, quiet=True, as_json=False)
    else:
        _follow(answers, progress, quiet=False, as_json=as_json)
    if not as_json and not live:
        click.echo(progress.summary())
    return progress.resolved and progress.completed


def _follow(
    answers: Iterator[WatchTaskGroupResponse], progress: GroupProgress, *, quiet: bool, as_json: bool
) -> None:
    for answer in answers:
        for status in answer.statuses:
            line = progress.update(status)
            if as_json:
                print_json_line(to_json(status))
            elif line and not quiet:
                _say(line)
        if answer.resolved:
            progress.resolved = True
            return
