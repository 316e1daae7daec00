"""Following the statuses of tasks through events: what is news to a watcher, and what is not.

Events come in order, but a watcher first reads the present state, so those that were under way at
that moment come late; and repeated calls publish again what was so before. A status is judged by how
far it is: number of runs, and how far the last one is. That never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any

from server.domain import frames
from server.transitions.facts import RunFacts, TaskFacts
from server.views import run_message, stamp
from tcqueue.v1.run_pb2 import RunState
from tcqueue.v1.task_pb2 import Priority, TaskState, TaskStatus

_RANKS = {RunState.RUN_STATE_PENDING: 1, RunState.RUN_STATE_RUNNING: 2}
_RESOLVED = 3


class Verdict(Enum):
    """What an event's status is to somebody who knows an earlier one."""

    NEWS = "news"
    OLD = "old"
    #: As far as the known one, and yet different: only the database can say which is right.
    DOUBTFUL = "doubtful"


class KnownStatuses:
    """What a watcher has been told of its tasks; a few words for each, not the statuses themselves."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], int]] = {}
        #: Tasks that no run has ever resolved.
        self.unresolved: set[str] = set()

    def judge(self, status: TaskStatus) -> Verdict:
        """Compares an event's status with what is known of the task."""
        known = self._known.get(status.task_id)
        if known is None or progress(status) > known[0]:
            return Verdict.NEWS
        if progress(status) == known[0] and status.priority != known[1]:
            return Verdict.DOUBTFUL
        return Verdict.OLD

    def told(self, status: TaskStatus, *, ever_resolved: bool = False) -> bool:
        """Notes a status that is true. False if it says nothing new and need not be told."""
        present = (progress(status), status.priority)
        known = self._known.get(status.task_id)
        if ever_resolved or is_resolved(status):
            self.unresolved.discard(status.task_id)
        elif known is None:
            self.unresolved.add(status.task_id)
        if known is not None and (present == known or present[0] < known[0]):
            return False
        self._known[status.task_id] = present
        return True


def progress(status: TaskStatus) -> tuple[int, int]:
    """How far a task is: its number of runs, and how far the last one is."""
    if not status.runs:
        return 0, 0
    return len(status.runs), _RANKS.get(status.runs[-1].state, _RESOLVED)


def is_resolved(status: TaskStatus) -> bool:
    """Whether the last run is resolved."""
    return progress(status)[1] == _RESOLVED


def from_event(status: Mapping[str, Any]) -> TaskStatus:
    """The status in an event's payload (queue.md 1.4) as a message."""
    return TaskStatus(
        task_id=status["taskId"],
        provisioner_id=status["provisionerId"],
        worker_type=status["workerType"],
        task_queue_id=status["taskQueueId"],
        scheduler_id=status["schedulerId"],
        project_id=status["projectId"],
        task_group_id=status["taskGroupId"],
        deadline=stamp(_instant(status["deadline"])),
        expires=stamp(_instant(status["expires"])),
        retries_left=status["retriesLeft"],
        state=TaskState.Value(f"TASK_STATE_{status['state'].upper()}"),
        runs=[run_message(_run(run)) for run in status["runs"]],
        priority=Priority.Value(f"PRIORITY_{status['priority'].replace('-', '_').upper()}"),
    )


def _run(run: Mapping[str, Any]) -> RunFacts:
    def moment(name: str) -> datetime | None:
        return _instant(run[name]) if name in run else None

    return RunFacts(
        run["runId"],
        run["state"],
        run["reasonCreated"],
        run.get("reasonResolved"),
        run.get("workerGroup"),
        run.get("workerId"),
        moment("takenUntil"),
        _instant(run["scheduled"]),
        moment("started"),
        moment("resolved"),
    )


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def collect(rows: Sequence[tuple[Any, ...]]) -> list[tuple[TaskFacts, bool]]:
    """Facts, and whether the task was ever resolved, from the rows of `read_status` and its kin."""
    found: dict[str, tuple[TaskFacts, bool]] = {}
    for task_id, queue_id, frame, priority, retries_left, ever_resolved, *run in rows:
        if task_id not in found:
            facts = TaskFacts(task_id, queue_id, frames.split(frame), priority, retries_left, [])
            found[task_id] = facts, ever_resolved
        if run[0] is not None:
            found[task_id][0].runs.append(RunFacts(*run))
    return list(found.values())
