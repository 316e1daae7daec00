"""Role expansion and what may be a role (auth.md 5.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.roles import ANONYMOUS_SCOPES, RoleSet, check_cycles, check_role
from server.domain.scopes import normalize, satisfies
from server.errors import InputError, InternalServerError

WORKED = {
    "repo:acme/*": ["queue:route:index.acme.<..>.latest", "assume:project:<..>", "queue:scheduler-id:acme"],
    "project:web": ["queue:create-task:low:web/*"],
    "project:*": ["secrets:get:project/<..>/token"],
}


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (
            "assume:repo:acme/web",
            [
                "assume:project:web",
                "assume:repo:acme/web",
                "queue:create-task:low:web/*",
                "queue:route:index.acme.web.latest",
                "queue:scheduler-id:acme",
                "secrets:get:project/web/token",
            ],
        ),
        (
            "assume:repo:acme/w*",
            [
                "assume:project:w*",
                "assume:repo:acme/w*",
                "queue:create-task:low:web/*",
                "queue:route:index.acme.w*",
                "queue:scheduler-id:acme",
                "secrets:get:project/w*",
            ],
        ),
        (
            "assume:repo:acme/",
            [
                "assume:project:",
                "assume:repo:acme/",
                "queue:route:index.acme..latest",
                "queue:scheduler-id:acme",
                "secrets:get:project//token",
            ],
        ),
        (
            "assume:repo:ac*",
            [
                "assume:project:*",
                "assume:repo:ac*",
                "queue:create-task:low:web/*",
                "queue:route:index.acme.*",
                "queue:scheduler-id:acme",
                "secrets:get:project/*",
            ],
        ),
        ("assume:repo:acme", ["assume:repo:acme"]),
    ],
)
def test_a_054_the_worked_expansions(scope: str, expected: list[str]) -> None:
    """A-054"""
    assert RoleSet(WORKED).expand([scope]) == expected


@pytest.mark.parametrize("start", ["*", "a*", "as*", "assume*", "assume:*"])
def test_a_star_before_the_colon_assumes_every_role(start: str) -> None:
    roles = RoleSet({"one": ["x:1"], "two-*": ["x:2:<..>"]})
    expected = normalize([start, "x:1", "x:2:*"])
    assert roles.expand([start]) == expected


def test_a_star_elsewhere_assumes_nothing() -> None:
    assert RoleSet({"one": ["x"]}).expand(["b*", "assumed*", "as"]) == ["as", "assumed*", "b*"]


def test_a_parameter_means_nothing_in_a_role_without_star() -> None:
    assert RoleSet({"p": ["x:<..>"]}).expand(["assume:p"]) == ["assume:p", "x:<..>"]


def test_the_role_named_star_serves_every_assumption() -> None:
    assert RoleSet({"*": ["all:<..>"]}).expand(["assume:me", "b"]) == ["all:me", "assume:me", "b"]


def test_what_comes_in_stays_and_redundant_scopes_go() -> None:
    assert RoleSet({"r": ["b*"]}).expand(["b:1", "assume:r", "c"]) == ["assume:r", "b*", "c"]
    assert RoleSet({}).expand([]) == []


ROLE_ID = st.text(alphabet="pq*", min_size=1, max_size=3)
GIVEN = st.one_of(
    st.builds("assume:{}{}".format, st.text(alphabet="pq", max_size=2), st.sampled_from(["", "*", "<..>"])),
    st.sampled_from(["x:<..>:y", "x*", "*", "as*", "z", "x:p"]),
)
ROLES = st.dictionaries(ROLE_ID, st.lists(GIVEN, max_size=3), max_size=5)
HELD = st.lists(GIVEN.filter(lambda s: "<" not in s), max_size=3)


def naive_step(roles: dict[str, list[str]], scope: str) -> set[str]:
    """One scope's gifts, written straight from the specification's words."""
    if scope.startswith("assume:"):
        x = scope[7:]
    elif scope in {"*", "a*", "as*", "ass*", "assu*", "assum*", "assume*"}:
        x = "*"
    else:
        return set()
    open_ended = x.endswith("*")
    xs = x[:-1] if open_ended else x
    found = set()
    for role_id, scopes in roles.items():
        if not role_id.endswith("*"):
            if x == role_id or (open_ended and role_id.startswith(xs)):
                found.update(scopes)
            continue
        stem = role_id[:-1]
        if xs.startswith(stem):
            parameter = x[len(stem) :]
        elif open_ended and stem.startswith(xs):
            parameter = "*"
        else:
            continue
        for given_scope in scopes:
            before, mark, after = given_scope.partition("<..>")
            if not mark:
                found.add(given_scope)
            elif parameter.endswith("*"):
                found.add(before + parameter)
            else:
                found.add(before + parameter + after)
    return found


def acyclic(roles: dict[str, list[str]]) -> bool:
    try:
        check_cycles(roles)
    except InputError:
        return False
    return True


@given(ROLES.filter(acyclic), HELD)
def test_expansion_is_the_least_fixed_point_of_the_naive_rule(
    roles: dict[str, list[str]], held: list[str]
) -> None:
    everything = set(held)
    while True:
        found = set().union(*(naive_step(roles, scope) for scope in everything)) - everything
        if not found:
            break
        everything |= found
    role_set = RoleSet(roles)
    expanded = role_set.expand(held)
    assert expanded == normalize(everything)
    assert role_set.expand(expanded) == expanded


@given(ROLES, HELD)
def test_expansion_comes_to_an_end_even_with_cycles(roles: dict[str, list[str]], held: list[str]) -> None:
    try:
        expanded = RoleSet(roles).expand(held)
    except InternalServerError:
        assert not acyclic(roles)
    else:
        assert all(any(satisfies(scope, one) for scope in expanded) for one in held)


def test_an_endless_expansion_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(InternalServerError, match="cycle"):
        RoleSet({"t-*": ["assume:t-a<..>"]}).expand(["assume:t-"])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"a": ["assume:b"], "b": ["assume:a"]}, "'assume:a' -> 'assume:b' -> 'assume:a'"),
        ({"a": ["assume:a"]}, "'assume:a' -> 'assume:a'"),
        ({"t-*": ["assume:<..>"]}, "'assume:t-*' -> 'assume:t-*'"),
        ({"t-*": ["assume:t-a<..>"]}, "'assume:t-*' -> 'assume:t-*'"),
        ({"a": ["assu*"]}, "'assume:a' -> 'assume:a'"),
        ({"a": ["*"]}, "'assume:a' -> 'assume:a'"),
    ],
)
def test_a_049_cycles_are_refused_and_named(roles: dict[str, list[str]], message: str) -> None:
    """A-049"""
    with pytest.raises(InputError) as caught:
        check_cycles(roles)
    assert caught.value.message == f"Roles may not contain dependency cycles, found: {message}"


def test_a_049_a_diamond_is_no_cycle() -> None:
    """A-049"""
    check_cycles({"a": ["assume:b", "assume:c"], "b": ["assume:d"], "c": ["assume:d"], "d": ["x"]})
    check_cycles(WORKED)


def test_a_049_a_long_chain_is_walked_without_deep_recursion() -> None:
    """A-049"""
    chain = {f"r{n:05d}": [f"assume:r{n + 1:05d}"] for n in range(3000)}
    check_cycles(chain)
    with pytest.raises(InputError, match="cycles"):
        check_cycles(chain | {"r03000": ["assume:r00000"]})


@pytest.mark.parametrize(
    ("role_id", "scopes", "message"),
    [
        ("r*", ["a<..>b<..>"], "only once"),
        ("r*", ["a*<..>"], "must not end"),
        ("r", ["a**"], r"scopes must not end with `\*\*`"),
        ("", ["a"], "roleId"),
        ("a\n", ["a"], "roleId"),
    ],
)
def test_what_no_role_may_be(role_id: str, scopes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_role(role_id, scopes)


def test_a_048_odd_role_ids_and_parameters_in_plain_roles_are_fine() -> None:
    """A-048"""
    check_role("a b?/*", ["x:<..>"])
    check_role("plain", ["a<..>b<..>", "a*<..>"])


def test_the_anonymous_scopes_are_in_canonical_order() -> None:
    assert list(ANONYMOUS_SCOPES) == normalize(ANONYMOUS_SCOPES)
