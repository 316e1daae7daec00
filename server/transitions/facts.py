"""What is known of a task at one moment: enough for its status and its events (queue.md 1.4, 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from server.domain import frames, priority
from server.domain.times import to_text

Moment: TypeAlias = datetime | None


@dataclass(slots=True)
class RunFacts:
    """One run. Worker and claim fields of a run that was never claimed are None."""

    run_id: int
    state: str
    reason_created: str
    reason_resolved: str | None
    worker_group: str | None
    worker_id: str | None
    taken_until: Moment
    scheduled: datetime
    started: Moment
    resolved: Moment

    def to_json(self) -> str:
        """The run as JSON text; absent fields are left out. All values are safe to paste: states and
        reasons are fixed words, worker names hold no quotes."""
        parts = [f'{{"runId":{self.run_id},"state":"{self.state}","reasonCreated":"{self.reason_created}"']
        if self.reason_resolved is not None:
            parts.append(f'"reasonResolved":"{self.reason_resolved}"')
        if self.worker_group is not None and self.taken_until is not None:
            parts.append(
                f'"workerGroup":"{self.worker_group}","workerId":"{self.worker_id}",'
                f'"takenUntil":"{to_text(self.taken_until)}"'
            )
        parts.append(f'"scheduled":"{to_text(self.scheduled)}"')
        if self.started is not None:
            parts.append(f'"started":"{to_text(self.started)}"')
        if self.resolved is not None:
            parts.append(f'"resolved":"{to_text(self.resolved)}"')
        return ",".join(parts) + "}"


@dataclass(slots=True)
class TaskFacts:
    """A task with all its runs, as it is after the transition that asks."""

    task_id: str
    task_queue_id: str
    frame: frames.Frame
    priority: int
    retries_left: int
    runs: list[RunFacts]

    @property
    def state(self) -> str:
        """State of the last run, or unscheduled."""
        return self.runs[-1].state if self.runs else "unscheduled"

    def status_json(self) -> str:
        """The task status as JSON text."""
        return (
            f'{self.frame.status_head},"retriesLeft":{self.retries_left},"state":"{self.state}",'
            f'"runs":[{",".join([run.to_json() for run in self.runs])}],'
            f'"priority":"{priority.NAMES[self.priority]}"}}'
        )


def new_run(run_id: int, reason_created: str, scheduled: datetime) -> RunFacts:
    """A run that has just become pending."""
    return RunFacts(run_id, "pending", reason_created, None, None, None, None, scheduled, None, None)


def collect(tasks: Sequence[tuple[Any, ...]], runs: Sequence[tuple[Any, ...]]) -> dict[str, TaskFacts]:
    """Facts by task id from the rows of `read_tasks` and `read_runs`."""
    facts = {row[0]: TaskFacts(row[0], row[1], frames.split(row[2]), row[3], row[4], []) for row in tasks}
    for task_id, *run in runs:
        if task_id in facts:
            facts[task_id].runs.append(RunFacts(*run))
    return facts
