"""Task definitions from files and options: what people leave out is filled in."""

from __future__ import annotations

import getpass
import json
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from server.cli.base import DURATION, CommandError, from_now, parse_duration
from server.cli.shown import PRIORITIES
from server.client.json_form import JsonFormError, parse_into
from tcqueue.v1.task_pb2 import TaskDefinition

F = TypeVar("F", bound=Callable[..., Any])

_DEADLINE_S = 86400.0
_SOURCE = "https://tcqueue.invalid/command-line"

_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.argument("file", required=False, metavar="[FILE]"),
    click.option("--queue", "-q", "task_queue_id", metavar="PROVISIONER/TYPE", help="Queue to go to."),
    click.option("--command", "-c", metavar="TEXT", help="Command for the worker's shell: payload.command."),
    click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="Variable; repeatable."),
    click.option("--max-run-time", type=DURATION, help="Longest a run may take: payload.maxRunTime."),
    click.option("--payload", metavar="JSON", help="The whole payload, instead of the three above."),
    click.option("--name", help="Short name. [default: the command]"),
    click.option("--description", help="What it is for."),
    click.option("--owner", help="Who to ask. [default: you at this machine]"),
    click.option("--source", help="Link to what defines it."),
    click.option("--deadline", type=DURATION, help="Time until it ends, run or not. [default: 1 day]"),
    click.option("--expires", type=DURATION, help="Time until it may be forgotten. [default: a year later]"),
    click.option("--depends-on", "dependencies", multiple=True, metavar="ID", help="A task to wait for."),
    click.option(
        "--requires",
        type=click.Choice(["all-completed", "all-resolved"]),
        help="How dependencies must end. [default: all-completed]",
    ),
    click.option("--priority", type=click.Choice(list(PRIORITIES)), help="Claim order. [default: lowest]"),
    click.option("--retries", type=click.IntRange(0, 49), help="Retries of lost runs. [default: 5]"),
    click.option("--group", "task_group_id", metavar="GROUP_ID", help="Group. [default: one of its own]"),
    click.option("--scheduler", "scheduler_id", help="Scheduler, one to a group. [default: -]"),
    click.option("--project", "project_id", help="Project, for scopes. [default: none]"),
    click.option("--route", "routes", multiple=True, help="Extra routing key of its events; repeatable."),
    click.option("--scope", "scopes", multiple=True, help="Scope for its worker; repeatable."),
)  # fmt: skip

_PLAIN = {
    "task_queue_id": "taskQueueId",
    "requires": "requires",
    "priority": "priority",
    "retries": "retries",
    "task_group_id": "taskGroupId",
    "scheduler_id": "schedulerId",
    "project_id": "projectId",
}
_LISTS = {"dependencies": "dependencies", "routes": "routes", "scopes": "scopes"}
_DATES = ("created", "deadline", "expires")


def definition_options(function: F) -> F:
    """The options that make up a definition, and FILE."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_json(file: str) -> Any:
    """A JSON file, or standard input for `-`; CommandError."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        return json.loads(text)
    except OSError as e:
        raise CommandError(f"cannot read {file}: {e.strerror}") from e
    except ValueError as e:
        raise CommandError(f"{file} is not JSON: {e}") from e


def read_env(pairs: Sequence[str]) -> dict[str, str]:
    """What `--env NAME=VALUE` says; CommandError."""
    env = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise CommandError(f"--env takes NAME=VALUE, not {pair!r}")
        env[name] = value
    return env


def define(file: str | None, options: Mapping[str, Any]) -> TaskDefinition:
    """The definition that a file and options make; CommandError."""
    fields: Any = read_json(file) if file else {}
    if not isinstance(fields, dict):
        raise CommandError(f"{file} must hold a JSON object: one task's definition")
    for option, name in _PLAIN.items():
        if options[option] is not None:
            fields[name] = options[option]
    for option, name in _LISTS.items():
        if options[option]:
            fields[name] = [*fields.get(name, []), *options[option]]
    for name in ("deadline", "expires"):
        if options[name] is not None:
            fields[name] = {"$fromNow": str(options[name])}
    _payload(fields, options)
    metadata = fields.setdefault("metadata", {})
    if isinstance(metadata, dict):
        metadata.update({k: options[k] for k in ("name", "description", "owner", "source") if options[k]})
    if not fields.get("taskQueueId") and not fields.get("workerType"):
        raise CommandError("no queue is given", "name one with --queue, for instance --queue demo/linux")
    return definition_of(fields)


def definition_of(fields: dict[str, Any]) -> TaskDefinition:
    """A definition from the API's JSON, defaults for dates and metadata filled in; CommandError."""
    fields = dict(fields)
    fields.setdefault("created", {"$fromNow": "0"})
    fields.setdefault("deadline", {"$fromNow": str(_DEADLINE_S)})
    fields.setdefault("payload", {})
    for name in _DATES:
        if name in fields:
            fields[name] = _date(name, fields[name])
    if isinstance(fields.get("metadata", {}), dict):
        fields["metadata"] = _metadata(fields)
    definition = TaskDefinition()
    try:
        parse_into(definition, fields)
    except JsonFormError as e:
        raise CommandError(str(e)) from None
    return definition


def _payload(fields: dict[str, Any], options: Mapping[str, Any]) -> None:
    if options["payload"] is not None:
        try:
            fields["payload"] = json.loads(options["payload"])
        except ValueError as e:
            raise CommandError(f"--payload is not JSON: {e}") from e
    payload = fields.setdefault("payload", {})
    if not isinstance(payload, dict):
        raise CommandError("the payload must be a JSON object")
    if options["command"] is not None:
        payload["command"] = options["command"]
    if options["env"]:
        payload["env"] = {**payload.get("env", {}), **read_env(options["env"])}
    if options["max_run_time"] is not None:
        payload["maxRunTime"] = options["max_run_time"]


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    metadata = dict(fields.get("metadata", {}))
    payload = fields.get("payload")
    command = payload.get("command", "") if isinstance(payload, dict) else ""
    shown = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    metadata.setdefault("name", shown.strip().split("\n")[0][:80] or "unnamed")
    metadata.setdefault("description", metadata["name"])
    metadata.setdefault("owner", f"{_user()}@{socket.gethostname()}")
    metadata.setdefault("source", _SOURCE)
    return metadata


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "somebody"


def _date(name: str, value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"$fromNow"}:
        seconds = parse_duration(str(value["$fromNow"]))
        if seconds is None:
            raise CommandError(f"{name}: $fromNow takes a length of time such as '2 hours'")
        moment: datetime = from_now(seconds).astimezone(UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value
