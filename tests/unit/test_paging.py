"""Tokens of pages (queue.md 8.8)."""

from __future__ import annotations

from base64 import b32encode

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain import paging
from server.errors import InputError

TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
NUMBERS = st.integers(min_value=-1, max_value=253_402_300_799_999)


@given(TEXTS, NUMBERS)
def test_a_token_leads_back_to_its_key(text: str, number: int) -> None:
    token = paging.token(text, number)
    assert token.isascii() and token.isalnum()
    assert paging.position(token, ("", 0), strict=True) == (text, number)


def test_no_token_is_the_beginning() -> None:
    assert paging.position("", ("",), strict=True) == ("",)


@pytest.mark.parametrize("token", ["!", "a b", "abc-", "abc_", "abc=", "é", "abc\n", "%2F"])
def test_illegal_characters(token: str) -> None:
    """Q-215: refused where upstream decodes an offset, the beginning elsewhere."""
    with pytest.raises(InputError):
        paging.position(token, ("",), strict=True)
    assert paging.position(token, (0,), strict=False) == (0,)


@pytest.mark.parametrize(
    "token",
    ["abc", "ABCDEFGH", "0189", "a" * 10_000, paging.token("x", "y"), paging.token(5), paging.token()],
)
def test_well_formed_but_meaningless(token: str) -> None:
    """Q-215: such a token starts at the beginning."""
    assert paging.position(token, ("",), strict=True) == ("",)


@pytest.mark.parametrize(
    "key", ["\0", "é", "\n", 5, None, ["x"], True, -2, 10**15, 2**70, 1.5, {"x": 1}], ids=repr
)
def test_a_forged_key_reaches_no_statement(key: object) -> None:
    """What PostgreSQL or the calendar would choke on is meaningless too."""
    option = orjson.OPT_NON_STR_KEYS
    raw = orjson.dumps([key], option=option) if key != 2**70 else b"[1180591620717411303424]"
    token = b32encode(raw).decode().rstrip("=")
    assert paging.position(token, ("",), strict=True) == ("",)
    expected = (5,) if key == 5 and not isinstance(key, bool) else (0,)
    assert paging.position(token, (0,), strict=True) == expected


def test_sizes() -> None:
    """Q-214: a page has at most 1000 rows, which is the default."""
    assert [paging.size(limit) for limit in (0, 1, 999, 1000, 1001, 2**31 - 1)] == [1000, 1, 999, *[1000] * 3]
    assert paging.cut([1, 2, 3], 2) == ([1, 2], True)
    assert paging.cut([1, 2], 2) == ([1, 2], False)
    assert paging.cut([], 2) == ([], False)
