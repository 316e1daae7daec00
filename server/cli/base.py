"""What all commands share: errors with a hint, tables, JSON, durations, and how help looks."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600,
    "d": 86400, "day": 86400, "w": 604800, "week": 604800,
}  # fmt: skip
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")

_STATE_COLORS = {
    "completed": "green",
    "running": "cyan",
    "pending": "yellow",
    "unscheduled": "bright_black",
    "failed": "red",
    "exception": "magenta",
    "ok": "green",
    "fail": "red",
    "note": "yellow",
}


class CommandError(click.ClickException):
    """Ends a command with a message and, where there is one, a hint at what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: Any = None) -> None:
        """Prints both to the error output."""
        click.echo(f"{click.style('error:', fg='red', bold=True)} {self.message}", err=True)
        if self.hint:
            click.echo(f"{click.style('hint:', fg='yellow')} {self.hint}", err=True)


class Group(click.Group):
    """A group of commands that knows what a misspelt one was meant to be."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            meant = (
                f"did you mean `{near[0]}`?" if near else f"there are {', '.join(self.list_commands(ctx))}"
            )
            raise click.UsageError(f"no command `{name}`: {meant}", ctx)
        return super().resolve_command(ctx, args)


class Duration(click.ParamType[float]):
    """A length of time: `90s`, `15m`, `2 hours`, `1h 30m`; seconds when there is no unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The length in seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no length of time; give one such as 90s, 15m, 2h or '1 day'", param, ctx)
        return seconds


DURATION = Duration()


def parse_duration(text: str) -> float | None:
    """Seconds, or None for what is no length of time."""
    text = text.strip().lower()
    try:
        return float(text)
    except ValueError:
        pass
    total, position = 0.0, 0
    while position < len(text):
        part = _PART.match(text, position)
        unit = _UNITS.get(part[2]) or _UNITS.get(part[2].removesuffix("s")) if part else None
        if part is None or unit is None:
            return None
        total += float(part[1]) * unit
        position = part.end()
    return total if text else None


def json_option(function: F) -> F:
    """`--json`, for scripts."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(function)


def print_json(value: Any) -> None:
    """A JSON document, readable too."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """One JSON document of many, on a line of its own."""
    click.echo(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def colored(word: str) -> str:
    """A state's word in its colour; colours reach terminals only."""
    color = _STATE_COLORS.get(word.partition("/")[0])
    return click.style(word, fg=color) if color else word


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "nothing") -> None:
    """Rows in columns as wide as their contents; only the headings' line on an empty table is a word."""
    kept = [list(row) for row in rows]
    if not kept:
        click.echo(empty)
        return
    widths = [
        max(len(click.unstyle(row[i])) for row in [list(headings), *kept]) for i in range(len(headings))
    ]
    click.echo(_line([click.style(heading.upper(), dim=True) for heading in headings], widths))
    for row in kept:
        click.echo(_line(row, widths))


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line; pairs without a value are left out."""
    kept = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        first, *rest = value.split("\n")
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {first}")
        for line in rest:
            click.echo(f"{' ' * width}  {line}")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(cells, widths, strict=True)
    ]
    return "  ".join(padded).rstrip()


def span(seconds: float) -> str:
    """A length of time for people: `0.4s`, `12s`, `3m 05s`, `2h 10m`, `4d 3h`."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def moment(value: datetime | None) -> str:
    """An instant for people, with how far away it is; empty for none."""
    if value is None:
        return ""
    distance = (value - datetime.now(UTC)).total_seconds()
    relative = f"in {span(distance)}" if distance >= 0 else f"{span(-distance)} ago"
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z ({relative})"


def from_now(seconds: float) -> datetime:
    """The instant so many seconds ahead, in whole milliseconds."""
    now = datetime.now(UTC) + timedelta(seconds=seconds)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
