"""Errors as the API's JSON: code, message with its trailer, requestInfo (queue.md 8.1, auth.md 6)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from server.errors import QueueError


def body_of(error: QueueError, method: str, parameters: Mapping[str, str], payload: object) -> dict[str, Any]:
    """The body of an error answer. `payload` is the request's body, `{}` without one."""
    time = f"{datetime.now(UTC).isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"
    trailer = (
        f"\n\n---\n\n* method:     {method}\n* errorCode:  {error.code}\n"
        f"* statusCode: {error.http_status}\n* time:       {time}"
    )
    return {
        "code": error.code,
        "message": error.message + trailer,
        "requestInfo": {"method": method, "params": parameters, "payload": payload, "time": time},
        **error.extra,
    }
