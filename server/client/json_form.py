"""Messages as the API's JSON and back, for what people write into files and scripts read from commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from server.codec import reading, writing
from server.codec.words import word, words
from server.errors import Violation

__all__ = ["JsonFormError", "parse_into", "to_json", "word", "words"]


class JsonFormError(ValueError):
    """JSON that does not fit the message; the text names every place where it does not."""


def to_json(message: Message) -> dict[str, Any]:
    """The message as JSON values, as the API would answer them."""
    value: dict[str, Any] = json.loads(writing.to_bytes(writing.to_value(message), indent=False))
    return value


def parse_into(message: Message, value: Any) -> None:
    """Fills an empty message from JSON values; null stands for what is absent. Raises JsonFormError."""
    if not isinstance(value, Mapping):
        raise JsonFormError("the document must be an object")
    given = {name: item for name, item in value.items() if item is not None}
    found: list[Violation] = []
    reading.fill(message, given, json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode(), found)
    if found:
        raise JsonFormError("; ".join(f"{v.field or 'the document'} {v.description}" for v in found))
