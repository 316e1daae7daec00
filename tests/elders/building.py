"""Tasks as clients of 2014 wrote them."""

from __future__ import annotations

from typing import Any

from tests.conformance.building import now

PROVISIONER, WORKER_TYPE = "prov", "work"
WORKER = {"workerGroup": "group", "workerId": "worker"}


def iso(**offset: float) -> str:
    """A moment so far from now."""
    return now(**offset).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def task(**changes: Any) -> dict[str, Any]:
    """A definition with all that was required, due in a day. A member given as None is left out."""
    members = {
        "provisionerId": PROVISIONER,
        "workerType": WORKER_TYPE,
        "schedulerId": "my-scheduler",
        "routes": [],
        "retries": 5,
        "created": iso(),
        "deadline": iso(days=1),
        "scopes": [],
        "payload": {"command": ["true"]},
        "metadata": {
            "name": "Unit testing task",
            "description": "A task of 2014",
            "owner": "me@example.com",
            "source": "https://example.com/task",
        },
        "tags": {"objective": "Test task definition"},
        **changes,
    }
    return {name: value for name, value in members.items() if value is not None}
