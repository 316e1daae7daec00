"""Input that the declared rules let through and the database, or the calendar, does not know."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from server import definitions
from server.domain.artifact_keys import MAX_NAME
from server.errors import InputError, InputValidationError, Violation

MAX_OBJECT_NAME = 2000
"""Longest name of an object: what an index entry of the database holds."""


def instant(stamp: Timestamp, name: str) -> datetime:
    """A timestamp as an aware instant in whole milliseconds. Raises InputValidationError for a date that
    no calendar has; `name` is the field's."""
    try:
        return definitions.moment(stamp)
    except (OverflowError, ValueError, OSError) as e:
        raise _refused(name, "is a date beyond the calendar") from e


def text(value: str, name: str) -> str:
    """A text that can be stored. Raises InputValidationError for one with a NUL character."""
    if "\0" in value:
        raise _refused(name, "must not contain a NUL character")
    return value


def artifact_name(name: str) -> str:
    """A name that replies have room for. Raises InputError."""
    if len(name) > MAX_NAME:
        raise InputError(f"an artifact's name has at most {MAX_NAME} characters")
    return name


def _refused(name: str, description: str) -> InputValidationError:
    return InputValidationError(f"{name} {description}", [Violation(name, description)])
