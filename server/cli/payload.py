"""What `tcqueue worker` understands of a payload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_KEYS = frozenset({"command", "env", "maxRunTime", "onExitStatus"})


class PayloadError(ValueError):
    """The payload makes no sense to this worker; the run ends as malformed-payload."""


@dataclass(frozen=True, slots=True)
class Job:
    """A payload that makes sense. `max_run_time_s` is None for no limit but the deadline's."""

    argv: Sequence[str]
    env: Mapping[str, str]
    max_run_time_s: float | None
    retry_codes: frozenset[int]


def read_payload(payload: Any) -> Job:
    """`command` (a list of arguments, or a text for `sh -c`), and optionally `env` (texts by name),
    `maxRunTime` (seconds) and `onExitStatus.retry` (exit codes that ask for another attempt).
    """
    if not isinstance(payload, dict):
        raise PayloadError("the payload must be an object")
    unknown = sorted(set(payload) - _KEYS)
    if unknown:
        raise PayloadError(f"payload.{unknown[0]} is not known here; there are {', '.join(sorted(_KEYS))}")
    return Job(
        _argv(payload.get("command")),
        _env(payload.get("env", {})),
        _seconds(payload.get("maxRunTime")),
        _codes(payload.get("onExitStatus", {})),
    )


def _argv(command: Any) -> list[str]:
    if isinstance(command, str) and command.strip() and "\0" not in command:
        return ["/bin/sh", "-c", command]
    if (
        isinstance(command, list)
        and command
        and all(isinstance(part, str) for part in command)
        and command[0]
    ):
        if any("\0" in part for part in command):
            raise PayloadError("payload.command must not hold NUL characters")
        return list(command)
    raise PayloadError("payload.command must be a text for the shell, or a list of texts: program, arguments")


def _env(env: Any) -> dict[str, str]:
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise PayloadError("payload.env must be an object of texts")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise PayloadError(f"payload.env has the impossible name or value of {name!r}")
    return dict(env)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise PayloadError("payload.maxRunTime must be a number of seconds above 0")
    return float(value)


def _codes(value: Any) -> frozenset[int]:
    codes = value.get("retry", []) if isinstance(value, dict) else None
    if not isinstance(codes, list) or not all(isinstance(c, int) and not isinstance(c, bool) for c in codes):
        raise PayloadError("payload.onExitStatus must be an object with a list of exit codes as `retry`")
    return frozenset(codes)
