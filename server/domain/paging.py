"""Pages of lists: how long they are, and the tokens that say where the next one begins (queue.md 8.8).

A token is the sort key of the last row of a page, so a page is found by index whatever lies before
it, and rows that come and go do not shift it. Written in letters and digits only, because a token
with any other character in it is what some methods must refuse.
"""

from __future__ import annotations

from base64 import b32decode, b32encode
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import orjson

from server.errors import InputError

MAX_SIZE = 1000
"""Rows on a page when no limit, or a larger one, is asked for."""

_MAX_INT = 253_402_300_800_000
"""No key holds a larger number: as milliseconds it is the end of the calendar."""

Row = TypeVar("Row")
Key = TypeVar("Key", bound="tuple[str | int, ...]")


def size(limit: int) -> int:
    """Rows to put on a page; a limit of 0 stands for none given."""
    return min(limit or MAX_SIZE, MAX_SIZE)


def cut(rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], bool]:
    """The page out of rows that were read up to `size(limit) + 1`, and whether there is more."""
    most = size(limit)
    return rows[:most], len(rows) > most


def token(*key: str | int) -> str:
    """The token of a page whose last row has this sort key."""
    return b32encode(orjson.dumps(key)).decode().rstrip("=")


def position(given: str, first: Key, *, strict: bool) -> Key:
    """The sort key after which a page begins; `first` lies before all rows and shows the key's types.

    Without a token, and for one that means nothing here, that is `first`. `strict` refuses tokens
    that hold characters no token has (InputError), as the methods with offsets upstream do.
    """
    if not given:
        return first
    if strict and not (given.isascii() and given.isalnum()):
        raise InputError("the continuationToken is not one that this method gave out")
    key = _decode(given)
    if len(key) == len(first) and all(_fits(k, f) for k, f in zip(key, first, strict=True)):
        return cast(Key, tuple(key))
    return first


def _decode(given: str) -> list[Any]:
    try:
        key = orjson.loads(b32decode(given + "=" * (-len(given) % 8)))
    except ValueError:
        return []
    return key if isinstance(key, list) else []


def _fits(value: Any, like: str | int) -> bool:
    """Whether a value out of a token may go into a statement where `like` goes."""
    if isinstance(like, str):
        return isinstance(value, str) and value.isascii() and value.isprintable()
    return type(value) is int and -1 <= value < _MAX_INT
