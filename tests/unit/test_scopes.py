"""Scope satisfaction, canonical order and ScopeSet (auth.md 5), and the slugid text form."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain import slugid
from server.domain.scopes import ScopeSet, canonical_key, is_scope, normalize, refuse_double_star, satisfies
from server.errors import InputError

SCOPE = st.text(alphabet="ab*:", max_size=5)
SCOPES = st.lists(SCOPE, max_size=8)


@pytest.mark.parametrize(
    ("held", "required", "expected"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a*", "a", True),
        ("a*", "ab", True),
        ("a*", "a*", True),
        ("ab*", "a*", False),
        ("*", "", True),
        ("*", "*", True),
        ("", "", True),
        ("", "a", False),
        ("a*b", "a*b", True),
        ("a*b", "axb", False),
        ("A", "a", False),
    ],
)
def test_a_held_scope_grants_its_equal_and_with_a_final_star_its_prefix(
    held: str, required: str, expected: bool
) -> None:
    assert satisfies(held, required) is expected
    assert ScopeSet([held]).satisfies(required) is expected


def test_canonical_order_ignores_the_final_star_and_puts_a_starred_one_first() -> None:
    assert sorted(["b", "a", "a*", "", "*"], key=canonical_key) == ["*", "", "a*", "a", "b"]
    assert normalize(["b", "a", "a*", "", "*"]) == ["*"]
    assert normalize(["b", "", "a*"]) == ["", "a*", "b"]
    assert normalize(["ab", "a:*", "a", "a"]) == ["a", "a:*", "ab"]


@given(SCOPES, SCOPE)
def test_a_set_satisfies_what_any_of_its_scopes_satisfies(held: list[str], required: str) -> None:
    expected = any(satisfies(scope, required) for scope in held)
    assert ScopeSet(held).satisfies(required) is expected
    assert any(satisfies(scope, required) for scope in normalize(held)) is expected


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=80), SCOPE)
def test_a_large_set_of_prefixes_agrees_with_the_plain_rule(stems: list[str], required: str) -> None:
    held = [f"{stem}*" for stem in stems]
    assert ScopeSet(held).satisfies(required) is any(satisfies(scope, required) for scope in held)


def test_the_bisection_of_a_large_set_finds_first_middle_and_last() -> None:
    scopes = ScopeSet(f"queue:get-task:{n:04d}*" for n in range(500))
    for n in (0, 250, 499):
        assert scopes.satisfies(f"queue:get-task:{n:04d}/x")
    assert not scopes.satisfies("queue:get-task:0500")
    assert not scopes.satisfies("a")
    assert not scopes.satisfies("z")


@given(SCOPES)
def test_normalizing_leaves_nothing_redundant_loses_nothing_and_settles(scopes: list[str]) -> None:
    kept = normalize(scopes)
    for index, scope in enumerate(kept):
        assert not any(satisfies(other, scope) for i, other in enumerate(kept) if i != index)
    for scope in scopes:
        assert any(satisfies(other, scope) for other in kept)
    assert normalize(reversed(kept)) == kept


def test_satisfies_all_and_the_empty_set() -> None:
    scopes = ScopeSet(["a", "b*"])
    assert scopes.satisfies_all(["a", "bc"])
    assert not scopes.satisfies_all(["a", "c"])
    assert ScopeSet().satisfies_all([])
    assert not ScopeSet().satisfies("")
    assert ScopeSet.of_normalized(normalize(["b*", "a", "bc"])) == scopes


@pytest.mark.parametrize("bad", ["a\n", "a\tb", "a\r", "ä", "\x7f", 3, None])
def test_a_050_only_printable_ascii_makes_a_scope(bad: object) -> None:
    """A-050"""
    assert not is_scope(bad)


def test_a_050_spaces_and_the_empty_scope_are_scopes() -> None:
    """A-050"""
    assert is_scope("")
    assert is_scope("a b ~")


def test_a_037_two_final_stars_are_refused() -> None:
    """A-037"""
    refuse_double_star(["a*", "a**b", "*"])
    with pytest.raises(InputError, match=r"scopes must not end with `\*\*`"):
        refuse_double_star(["a", "b**"])


@given(st.uuids(version=4))
def test_a_slugid_and_its_uuid_stand_for_each_other(value: uuid.UUID) -> None:
    slug = slugid.from_uuid(value)
    assert slugid.is_slugid(slug)
    assert slugid.to_uuid(slug) == value


def test_slugids_are_random_and_nice_ones_begin_with_a_letter() -> None:
    plain, pleasant = [slugid.v4() for _ in range(500)], [slugid.nice() for _ in range(500)]
    assert len({*plain, *pleasant}) == 1000
    assert all(map(slugid.is_slugid, plain + pleasant))
    assert all(slug[0] in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef" for slug in pleasant)
    assert any(slug[0] not in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef" for slug in plain)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "fN1SbArXTPSVFNUvaOlinQ\n",
        "fN1SbArXTPSVFNUvaOlin",
        "fN1SbArXTPSVFNUvaOlinB",
        "fN1SbArXAPSVFNUvaOlinQ",
        "fN1SbArXTPDVFNUvaOlinQ",
        "fN1SbArX+PSVFNUvaOlinQ",
    ],
)
def test_other_texts_are_no_slugids(bad: str) -> None:
    assert not slugid.is_slugid(bad)
    with pytest.raises(ValueError, match="not a slugid"):
        slugid.to_uuid(bad)
