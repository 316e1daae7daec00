"""Settings as commands take them: from the environment, with options made from Settings' own fields."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import click

from server.cli.base import CommandError
from server.config import Settings, SettingsError, environment_name

F = TypeVar("F", bound=Callable[..., Any])

_KINDS: dict[str, Any] = {"str": str, "int": int, "float": float}


def settings_options(names: Sequence[str]) -> Callable[[F], F]:
    """Options for these fields: `--grpc-listen` for `grpc_listen`, with the field's own sentence.

    The values arrive as keyword arguments, None where an option was not given.
    """
    known = {field.name: field for field in fields(Settings)}

    def decorate(function: F) -> F:
        for name in reversed(names):
            field = known[name]
            flag = f"--{name.replace('_', '-')}"
            help_text = f"{field.metadata['help'].capitalize()}. [{environment_name(name)}]"
            if field.type == "bool":
                option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
            else:
                option = click.option(flag, name, type=_KINDS[str(field.type)], help=help_text)
            function = option(function)
        return function

    return decorate


def read_settings(**overrides: Any) -> Settings:
    """The environment's settings with options over them; CommandError."""
    try:
        return Settings.from_env(os.environ, **overrides)
    except SettingsError as e:
        raise CommandError(str(e)) from None


def settings_table() -> str:
    """Every setting: its variable, default and meaning, as lines for a help text."""
    lines = []
    for field in fields(Settings):
        default = "[]" if str(field.type).startswith("list") else str(field.default)
        lines.append(f"  {environment_name(field.name)}={default}")
        lines.append(f"      {field.metadata['help']}")
    return "\n".join(lines)
