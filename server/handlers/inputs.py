"""Input that the declared rules let through and the database, or the calendar, does not know."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from server import definitions
from server.errors import InputValidationError, Violation


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


def _refused(name: str, description: str) -> InputValidationError:
    return InputValidationError(f"{name} {description}", [Violation(name, description)])
