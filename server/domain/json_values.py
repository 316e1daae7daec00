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
    is not 1, and big numbers are compared digit for digit.

    Values nested deeper than Python's parser goes (about 1,000 levels) are the same only if spelled alike.
    """
    if one == other:
        return True
    try:
        return _same(_load(one), _load(other))
    except RecursionError:
        return False


def _load(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def _same(one: Any, other: Any) -> bool:
    # No recursion: the callers' nesting is not ours to trust.
    pairs = [(one, other)]
    while pairs:
        a, b = pairs.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pairs.extend((value, b[key]) for key, value in a.items())
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pairs.extend(zip(a, b, strict=True))
        elif isinstance(a, bool) or isinstance(b, bool):
            if a is not b:
                return False
        elif a != b:
            return False
    return True
