"""Encoding of parameters; the round trip through PostgreSQL is in integration/test_database.py."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from psycopg import DataError

from server.store.parameters import BINARY, TEXT, encode


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (None, None),
        ("ä", "ä".encode()),
        (7, b"7"),
        (True, b"t"),
        (False, b"f"),
        (1.5, b"1.5"),
        (Colour.RED, b"red"),
        (Size.BIG, b"3"),
        (datetime(2024, 1, 2, 3, 4, 5, 6000, UTC), b"2024-01-02T03:04:05.006000+00:00"),
        (date(2024, 1, 2), b"2024-01-02"),
        ([], b"{}"),
        (["a", "", 'q"', "b\\", "NULL", "{,}"], rb'{"a","","q\"","b\\","NULL","{,}"}'),
        (("a", None), b'{"a",NULL}'),
        ([None, "a"], b'{NULL,"a"}'),
        ([None], b"{NULL}"),
        ([1, 2], b"{1,2}"),
        ([1, None], b'{"1",NULL}'),
        ([True, False], b'{"t","f"}'),
        ([1.5], b'{"1.5"}'),
        ([Colour.RED], b'{"red"}'),
        ([datetime(2024, 1, 2, tzinfo=UTC)], b'{"2024-01-02T00:00:00+00:00"}'),
    ],
    ids=repr,
)
def test_text_forms(value: Any, encoded: bytes | None) -> None:
    assert encode([value]) == ([encoded], None)


def test_bytes_go_binary_and_leave_the_others_as_text() -> None:
    assert encode(["a", b"\x00\xff", 1]) == ([b"a", b"\x00\xff", b"1"], [TEXT, BINARY, TEXT])
    values, formats = encode([["a"], [b"x", None]])
    assert formats == [TEXT, BINARY]
    assert values[1] == bytes.fromhex("00000001 00000001 00000011 00000002 00000001 00000001 78 ffffffff")


@pytest.mark.parametrize(
    "value", [{"a": 1}, Ellipsis, datetime(2024, 1, 1), [["nested"]], [{"a": 1}], 1j], ids=repr
)
def test_what_has_no_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        encode([value])


@pytest.mark.parametrize("value", ["a\0b", ["a", "b\0"], [None, "\0"], ["\0", "b"]], ids=repr)
def test_nul_is_refused_rather_than_cut_off(value: Any) -> None:
    with pytest.raises(DataError, match="NUL"):
        encode([value])
