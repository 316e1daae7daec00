"""What the scripts share; they run in the clients' own environment, not in ours."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

ROOT_URL = os.environ["TASKCLUSTER_ROOT_URL"]
CREDENTIALS = {
    "clientId": os.environ["TASKCLUSTER_CLIENT_ID"],
    "accessToken": os.environ["TASKCLUSTER_ACCESS_TOKEN"],
}


def definition(queue_id: str, **fields: Any) -> dict[str, Any]:
    """A task as schedulers write them."""
    now = datetime.now(UTC)
    return {
        "taskQueueId": queue_id,
        "created": now.isoformat().replace("+00:00", "Z"),
        "deadline": (now + timedelta(hours=1)).isoformat(),
        "payload": {"maxRunTime": 3600, "big": 12345678901234567890, "float": 1.0},
        "metadata": {
            "name": "task",
            "description": "of a test",
            "owner": "me@example.com",
            "source": "https://example.com/",
        },
        **fields,
    }


def run(checks: dict[str, Callable[[], Any]]) -> None:
    """Runs every check; prints which passed, and for each that did not, why."""
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = "ok"
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))
