"""JSON texts as values: what counts as the same, and what counts as an object (queue.md 2.2)."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import orjson


def is_object(text: str) -> bool:
    """Whether the text is one JSON object; False also for what is no JSON at all."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def same(one: str, other: str) -> bool:
    """Whether two JSON texts mean the same value: key order and number spelling do not matter, `true`
    is not 1, and big numbers are compared digit for digit."""
    return one == other or _same(_load(one), _load(other))


def _load(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
