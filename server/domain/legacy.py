"""Words of today and those of 2014, when a run that failed was one that completed without success and there
were fewer reasons for everything (queue.md 4.3)."""

from __future__ import annotations

from typing import NamedTuple

#: Longest time from now to a deadline, in days; today's limit is a setting, and shorter by default.
MAX_DEADLINE_DAYS = 7.0

#: States of tasks and runs; those not named are the same.
_STATES = {"failed": "completed", "exception": "failed"}

#: Why runs are made; those not named are the same.
_CREATED = {"task-retry": "retry", "exception": "scheduled"}

_RESOLVED = frozenset({"completed", "failed", "exception"})


class Words(NamedTuple):
    """What a run was called in 2014. `reason_resolved` and `success` are None until it is resolved."""

    state: str
    reason_created: str
    reason_resolved: str | None
    success: bool | None


def state(state_now: str) -> str:
    """A task's or run's state as it was called then."""
    return _STATES.get(state_now, state_now)


def run(state_now: str, reason_created: str, reason_resolved: str | None) -> Words:
    """A run as it was called then."""
    return Words(
        state(state_now),
        _CREATED.get(reason_created, reason_created),
        "completed" if state_now == "failed" else reason_resolved,
        state_now == "completed" if state_now in _RESOLVED else None,
    )
