"""Scope expressions: rendering, checking, what is missing, and the 403 texts (auth.md 5.3 and 6)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.scope_expressions import (
    AllOf,
    AnyOf,
    Expression,
    ForEach,
    Required,
    Scope,
    compile,
    forbidden_message,
)
from server.domain.scopes import ScopeSet
from server.errors import InternalServerError

QUEUE = "<provisionerId>/<workerType>"
CREATE_TASK = AllOf(
    (
        ForEach("scope", "scopes", "<scope>"),
        ForEach("route", "routes", "queue:route:<route>"),
        Scope("queue:create-task:project:<projectId>"),
        Scope("queue:scheduler-id:<schedulerId>"),
        AnyOf(
            (ForEach("priority", "priorities", "queue:create-task:<priority>:<provisionerId>/<workerType>"),)
        ),
    )
)
PARAMS: dict[str, Any] = {
    "scopes": [],
    "routes": ["x"],
    "projectId": "none",
    "schedulerId": "-",
    "priorities": ["lowest", "low"],
    "provisionerId": "p",
    "workerType": "w",
}


def test_create_task_renders_as_published() -> None:
    compiled = compile(CREATE_TASK)
    assert compiled.parameters == frozenset(PARAMS)
    assert compiled.render(PARAMS).to_json() == {
        "AllOf": [
            "queue:route:x",
            "queue:create-task:project:none",
            "queue:scheduler-id:-",
            {"AnyOf": ["queue:create-task:lowest:p/w", "queue:create-task:low:p/w"]},
        ]
    }
    assert compiled.to_json() == {
        "AllOf": [
            {"for": "scope", "in": "scopes", "each": "<scope>"},
            {"for": "route", "in": "routes", "each": "queue:route:<route>"},
            "queue:create-task:project:<projectId>",
            "queue:scheduler-id:<schedulerId>",
            {
                "AnyOf": [
                    {
                        "for": "priority",
                        "in": "priorities",
                        "each": "queue:create-task:<priority>:<provisionerId>/<workerType>",
                    }
                ]
            },
        ]
    }


def test_a_057_the_worked_reduction() -> None:
    """A-057"""
    held = ScopeSet(["queue:scheduler-id:-", "queue:create-task:project:*"])
    required = compile(CREATE_TASK).render(PARAMS)
    missing = required.missing(held)
    assert missing is not None
    assert missing.to_json() == {
        "AllOf": ["queue:route:x", {"AnyOf": ["queue:create-task:lowest:p/w", "queue:create-task:low:p/w"]}]
    }


def test_a_057_the_text_for_a_known_client_names_what_is_missing_and_the_whole() -> None:
    """A-057"""
    required = compile(AllOf((Scope("a:<n>"), Scope("b")))).render({"n": 7})
    assert forbidden_message("me/1", required, ScopeSet(["b"])) == (
        "Client ID me/1 does not have sufficient scopes and is missing the following scopes:\n"
        "\n"
        "```\n"
        "a:7\n"
        "```\n"
        "\n"
        "This request requires the client to satisfy the following scope expression:\n"
        "\n"
        "```\n"
        '{\n  "AllOf": [\n    "a:7",\n    "b"\n  ]\n}\n'
        "```"
    )


def test_a_057_the_text_without_credentials_names_only_the_whole() -> None:
    """A-057"""
    required = compile(Scope("queue:status:<taskId>")).render({"taskId": "x"})
    assert forbidden_message(None, required, ScopeSet()) == (
        "This request requires Taskcluster credentials that satisfy the following scope expression:\n"
        "\n"
        "```\n"
        "queue:status:x\n"
        "```"
    )


@pytest.mark.parametrize(
    ("node", "held", "expected"),
    [
        ("a", ["a"], None),
        ("a", [], "a"),
        ({"AllOf": []}, [], None),
        ({"AllOf": ["a", "b"]}, ["a"], "b"),
        ({"AllOf": ["a", {"AllOf": ["b", "c"]}]}, ["a", "b"], "c"),
        ({"AnyOf": ["a", "b"]}, ["b"], None),
        ({"AnyOf": ["a"]}, [], "a"),
        ({"AnyOf": []}, [], {"AnyOf": []}),
        ({"AnyOf": [{"AllOf": ["a", "b"]}, "c"]}, ["a"], {"AnyOf": ["b", "c"]}),
    ],
)
def test_the_reduction_rule_by_rule(node: Any, held: list[str], expected: Any) -> None:
    missing = Required(node).missing(ScopeSet(held))
    assert (None if missing is None else missing.to_json()) == expected
    assert Required(node).satisfied_by(ScopeSet(held)) is (expected is None)


LEAF: st.SearchStrategy[Expression] = st.one_of(
    st.sampled_from(["a", "a:<p>", "<p>", "b:<p>/<q>", "100%:<p>-<q>%"]).map(Scope),
    st.sampled_from(["<v>", "a:<v>", "a:<p>:<v>", "<v><v>/<q>"]).map(lambda each: ForEach("v", "list", each)),
)
PARTS = st.recursive(
    LEAF,
    lambda inner: st.builds(
        lambda kind, parts: kind(tuple(parts)), st.sampled_from([AllOf, AnyOf]), st.lists(inner, max_size=3)
    ),
    max_leaves=8,
)
EXPRESSION = PARTS.filter(lambda e: not isinstance(e, ForEach))


@given(
    EXPRESSION,
    st.lists(st.sampled_from(["a", "a:*", "a:1", "1", "x", "b:1/2", "x*", "100%*"]), max_size=4),
    st.lists(st.sampled_from(["x", "y"]), max_size=2),
)
def test_the_quick_check_agrees_with_rendering_and_with_what_is_missing(
    expression: Expression, held: list[str], values: list[str]
) -> None:
    compiled = compile(expression)
    scopes = ScopeSet(held)
    params: dict[str, str | int | list[str]] = {"p": "1", "q": 2, "list": values}
    required = compiled.render(params)
    answer = compiled.satisfied(params, scopes)
    assert required.satisfied_by(scopes) is answer
    missing = required.missing(scopes)
    assert (missing is None) is answer
    assert missing is None or not missing.satisfied_by(scopes)


def test_values_are_not_templates_again() -> None:
    compiled = compile(AllOf((Scope("a:<p>"), Scope("b:<p>:<q>"))))
    assert compiled.render({"p": "<q>", "q": "%s"}).to_json() == {"AllOf": ["a:<q>", "b:<q>:%s"]}


@pytest.mark.parametrize(
    ("expression", "params"),
    [
        (Scope("a:<p>"), {}),
        (Scope("a:<p>"), {"p": None}),
        (Scope("a:<p>"), {"p": True}),
        (Scope("a:<p>"), {"p": 1.5}),
        (Scope("a:<p>:<p>"), {"p": ["x"]}),
        (AllOf((ForEach("v", "list", "<v>"),)), {}),
        (AllOf((ForEach("v", "list", "<v>"),)), {"list": "text"}),
        (AllOf((ForEach("v", "list", "a:<v>"),)), {"list": [1]}),
        (AllOf((ForEach("v", "list", "<v>"),)), {"list": [None]}),
    ],
)
def test_a_missing_or_mistyped_parameter_is_our_own_bug(expression: Expression, params: Any) -> None:
    compiled = compile(expression)
    with pytest.raises(InternalServerError):
        compiled.render(params)
    with pytest.raises(InternalServerError):
        compiled.satisfied(params, ScopeSet(["*"]))


def test_the_grammar_is_checked_when_compiling() -> None:
    with pytest.raises(ValueError, match="top"):
        compile(ForEach("v", "list", "<v>"))
    with pytest.raises(ValueError, match="names"):
        compile(AllOf((ForEach("v!", "list", "<v>"),)))
