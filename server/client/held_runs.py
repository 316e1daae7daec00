"""The runs a worker has, as its code sees them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tcqueue.v1.claim_pb2 import (
    Claim,
    Outcome,
    ReclaimedRun,
    Resolution,
    RevocationReason,
    TaskCredentials,
)
from tcqueue.v1.run_pb2 import ReasonResolved, RunReference
from tcqueue.v1.task_pb2 import TaskDefinition

RunKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended; `reason` goes with an exception and with nothing else."""

    outcome: Outcome.ValueType
    reason: ReasonResolved.ValueType = ReasonResolved.REASON_RESOLVED_UNSPECIFIED


COMPLETED = Result(Outcome.OUTCOME_COMPLETED)
FAILED = Result(Outcome.OUTCOME_FAILED)


def exception(reason: ReasonResolved.ValueType) -> Result:
    """Something else than success or failure of the task itself."""
    return Result(Outcome.OUTCOME_EXCEPTION, reason)


WORKER_SHUTDOWN = exception(ReasonResolved.REASON_RESOLVED_WORKER_SHUTDOWN)
MALFORMED_PAYLOAD = exception(ReasonResolved.REASON_RESOLVED_MALFORMED_PAYLOAD)
RESOURCE_UNAVAILABLE = exception(ReasonResolved.REASON_RESOLVED_RESOURCE_UNAVAILABLE)
INTERNAL_ERROR = exception(ReasonResolved.REASON_RESOLVED_INTERNAL_ERROR)
INTERMITTENT_TASK = exception(ReasonResolved.REASON_RESOLVED_INTERMITTENT_TASK)


class HeldRun:
    """A run this worker holds.

    `credentials` and `taken_until` are the latest ones. `revocation` is set once the queue has taken
    the run away: whoever works on it is cancelled then, and what it returns is thrown away.
    """

    __slots__ = ("credentials", "key", "resolution", "revocation", "shutting_down", "taken_until", "task")

    def __init__(self, claim: Claim) -> None:
        self.key: RunKey = (claim.status.task_id, claim.run_id)
        self.task: TaskDefinition = claim.task
        self.credentials: TaskCredentials = claim.credentials
        self.taken_until: datetime = claim.taken_until.ToDatetime(UTC)
        self.revocation: RevocationReason.ValueType | None = None
        self.shutting_down = False
        self.resolution: Resolution | None = None

    @property
    def task_id(self) -> str:
        """The task."""
        return self.key[0]

    @property
    def run_id(self) -> int:
        """Index of the run in its task."""
        return self.key[1]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.metadata.name

    @property
    def payload(self) -> Any:
        """What is to be done, as JSON values."""
        return json.loads(self.task.payload)

    @property
    def reference(self) -> RunReference:
        """The run as messages name it."""
        return RunReference(task_id=self.key[0], run_id=self.key[1])

    def renew(self, reclaimed: ReclaimedRun) -> None:
        """Takes over a renewed claim."""
        self.taken_until = reclaimed.taken_until.ToDatetime(UTC)
        self.credentials = reclaimed.credentials

    def resolve(self, result: Result) -> Resolution:
        """Notes how the run ended; kept until the queue has answered, over as many streams as that takes."""
        self.resolution = Resolution(
            task_id=self.key[0], run_id=self.key[1], outcome=result.outcome, reason=result.reason
        )
        return self.resolution
