"""Reading what a test's server has published, and holding it against the reference schemas."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from server.events.rows import read_row
from tests.conformance import reference

_GROUP_MESSAGES = {
    "task-group-resolved": "task-group-changed",
    "task-group-sealed": "task-group-changed",
}


@dataclass(frozen=True)
class Recorded:
    """One event as published."""

    exchange: str
    key: str
    cc: list[str]
    payload: dict[str, Any]

    @property
    def status(self) -> dict[str, Any]:
        """The task status that it carries."""
        status: dict[str, Any] = self.payload["status"]
        return status

    @property
    def words(self) -> list[str]:
        """The routing key's words."""
        return self.key.split(".")


class Published(list[Recorded]):
    """Events in the order of their publication."""

    @property
    def exchanges(self) -> list[str]:
        """Where each went."""
        return [event.exchange for event in self]

    def of(self, exchange: str) -> Published:
        """Those of one exchange."""
        return Published(event for event in self if event.exchange == exchange)

    def about(self, task_id: str) -> Published:
        """Those of one task."""
        return Published(e for e in self if e.payload.get("status", {}).get("taskId") == task_id)

    def one(self, exchange: str) -> Recorded:
        """The only one of its exchange."""
        (event,) = self.of(exchange)
        return event


def recorded(rows: Iterable[tuple[int, datetime, str]]) -> Published:
    """The events of rows of the log."""
    return Published(
        Recorded(event.exchange, event.key, list(event.cc), json.loads(event.payload))
        for row_id, time, text in rows
        for event in read_row(row_id, time, text).events
    )


def check(event: Recorded) -> None:
    """Raises jsonschema.ValidationError for a payload that the reference would not send. Does nothing
    where the schemas are not at hand."""
    name, _, change = event.exchange.partition("-")
    if name in ("client", "role") and change in ("created", "updated", "deleted"):
        schema = f"auth/v1/{name}"
    else:
        schema = f"queue/v1/{_GROUP_MESSAGES.get(event.exchange, event.exchange)}"
    validator = reference.validator(f"{schema}-message.json")
    if validator is not None:
        validator.validate(event.payload)
