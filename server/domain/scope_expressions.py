"""Scope expressions: what a method demands, as data (auth.md 5.3) and the 403 it answers with (auth.md 6).

    AllOf((Scope("queue:claim-work:<taskQueueId>"), AnyOf((ForEach("p", "priorities", "x:<p>"),))))

`compile` makes one ready once, at start. A call then either asks `satisfied` (the hot path: no
tree is built) or renders what is required of it, to name what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from server.domain.scopes import ScopeSet
from server.errors import InternalServerError

Value: TypeAlias = str | int | Sequence[str]
Parameters: TypeAlias = Mapping[str, Value]
Json: TypeAlias = "str | Mapping[str, str | Sequence[Json]]"

_PARAMETER = re.compile(r"<([a-zA-Z][a-zA-Z0-9_]*)>")
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope; `<name>` stands for the parameter of that name."""

    template: str


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part; satisfied when there are none."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part; never satisfied when there are none."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class ForEach:
    """One scope per string of the list parameter `in_`, spliced into the AllOf or AnyOf around it."""

    variable: str
    in_: str
    each: str


Expression: TypeAlias = Scope | AllOf | AnyOf | ForEach

_Render = Callable[[Parameters], str]
_RenderParts = Callable[[Parameters], Iterator[Json]]
_Check = Callable[[Parameters, Callable[[str], bool]], bool]


class Required:
    """A rendered expression: no parameters left."""

    __slots__ = ("_node",)

    def __init__(self, node: Json) -> None:
        self._node = node

    def satisfied_by(self, scopes: ScopeSet) -> bool:
        """Whether the held scopes meet it."""
        return _holds(self._node, scopes)

    def missing(self, scopes: ScopeSet) -> Required | None:
        """The same without what is held already (auth.md 6); None when nothing is missing."""
        left = _reduce(self._node, scopes)
        return None if left is None else Required(left)

    def to_json(self) -> Json:
        """Strings, `{"AllOf": [...]}` and `{"AnyOf": [...]}`."""
        return self._node

    def to_text(self) -> str:
        """As error messages print it: a lone scope bare, anything else as indented JSON."""
        if isinstance(self._node, str):
            return self._node
        return json.dumps(self._node, indent=2, ensure_ascii=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Required) and self._node == other._node

    def __hash__(self) -> int:
        return hash(self.to_text())

    def __repr__(self) -> str:
        return f"Required({self._node!r})"


class CompiledExpression:
    """An expression made ready; `parameters` are the names it needs a value for."""

    __slots__ = ("_check", "_render", "expression", "parameters")

    def __init__(self, expression: Expression) -> None:
        if isinstance(expression, ForEach):
            raise ValueError("ForEach cannot stand at the top of a scope expression")
        self.expression: Expression = expression
        self.parameters: frozenset[str] = frozenset(_names(expression))
        self._render = _compile_parts(expression)
        self._check = _compile_check(expression)

    def satisfied(self, params: Parameters, scopes: ScopeSet) -> bool:
        """Same as `render(params).satisfied_by(scopes)` without building anything.

        It stops at the first part that decides, so a missing parameter behind it goes unnoticed.
        """
        return self._check(params, scopes.satisfies)

    def render(self, params: Parameters) -> Required:
        """What these parameters demand; InternalServerError for a missing or mistyped one (our bug)."""
        return Required(next(self._render(params)))

    def to_json(self) -> Json:
        """The expression as the published reference writes it, parameters and all."""
        return _as_json(self.expression)


def compile(expression: Expression) -> CompiledExpression:
    """Make an expression ready; ValueError when it breaks the grammar."""
    return CompiledExpression(expression)


def forbidden_message(client_id: str | None, required: Required, scopes: ScopeSet) -> str:
    """The text of a 403 (auth.md 6). `client_id` is None for a caller without credentials, who is
    told only what it takes and not what the anonymous role already gives."""
    if client_id is None:
        return (
            "This request requires Taskcluster credentials that satisfy the following scope expression:"
            f"\n\n{_fenced(required)}"
        )
    missing = required.missing(scopes) or required
    return (
        f"Client ID {client_id} does not have sufficient scopes and is missing the following scopes:"
        f"\n\n{_fenced(missing)}\n\n"
        "This request requires the client to satisfy the following scope expression:"
        f"\n\n{_fenced(required)}"
    )


def _fenced(required: Required) -> str:
    return f"```\n{required.to_text()}\n```"


# --- what is required, held against scopes


def _branches(node: Mapping[str, str | Sequence[Json]]) -> tuple[bool, Sequence[Json]]:
    """Whether all (else any) of a rendered node's parts are asked for, and the parts."""
    all_of = "AllOf" in node
    return all_of, node["AllOf" if all_of else "AnyOf"]


def _holds(node: Json, scopes: ScopeSet) -> bool:
    if isinstance(node, str):
        return scopes.satisfies(node)
    all_of, parts = _branches(node)
    decide = all if all_of else any
    return decide(_holds(part, scopes) for part in parts)


def _reduce(node: Json, scopes: ScopeSet) -> Json | None:
    if isinstance(node, str):
        return None if scopes.satisfies(node) else node
    all_of, parts = _branches(node)
    reduced = [_reduce(part, scopes) for part in parts]
    left = [part for part in reduced if part is not None]
    if all_of:
        if not left:
            return None
    elif len(left) < len(parts):
        return None
    if len(left) == 1:
        return left[0]
    return {"AllOf" if all_of else "AnyOf": left}


# --- expressions


def _names(expression: Expression) -> Iterator[str]:
    match expression:
        case Scope(template):
            yield from _PARAMETER.findall(template)
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from _names(part)
        case ForEach(variable, in_, each):
            if not (_NAME.fullmatch(variable) and _NAME.fullmatch(in_)):
                raise ValueError(f"not parameter names: {variable!r}, {in_!r}")
            yield in_
            yield from (name for name in _PARAMETER.findall(each) if name != variable)


def _as_json(expression: Expression) -> Json:
    match expression:
        case Scope(template):
            return template
        case AllOf(parts):
            return {"AllOf": [_as_json(part) for part in parts]}
        case AnyOf(parts):
            return {"AnyOf": [_as_json(part) for part in parts]}
        case ForEach(variable, in_, each):
            return {"for": variable, "in": in_, "each": each}


def _compile_parts(expression: Expression) -> _RenderParts:
    """A function giving what an expression adds to the list around it: one node, or ForEach's many."""
    match expression:
        case Scope(template):
            render = _compile_template(template)

            def one(params: Parameters) -> Iterator[Json]:
                yield render(params)

            return one
        case ForEach(variable, in_, each):
            around = _around(variable, each)

            def many(params: Parameters) -> Iterator[Json]:
                texts = [render(params) for render in around]
                return (_string(value).join(texts) for value in _list(params, in_))

            return many
        case AllOf(parts) | AnyOf(parts):
            compiled = [_compile_parts(part) for part in parts]
            key = type(expression).__name__

            def nested(params: Parameters) -> Iterator[Json]:
                yield {key: [node for part in compiled for node in part(params)]}

            return nested


def _compile_check(expression: Expression, *, within_any: bool = False) -> _Check:
    """A function deciding an expression; ForEach decides as the AllOf or AnyOf around it does."""
    match expression:
        case Scope(template):
            render = _compile_template(template)
            return lambda params, satisfies: satisfies(render(params))
        case ForEach(variable, in_, each):
            return _compile_loop(in_, _around(variable, each), decided=within_any)
        case AllOf(parts):
            every = tuple(_compile_check(part) for part in parts)

            def all_of(params: Parameters, satisfies: Callable[[str], bool]) -> bool:
                for check in every:  # a generator inside all() would cost more than the checks
                    if not check(params, satisfies):
                        return False
                return True

            return all_of
        case AnyOf(parts):
            some = tuple(_compile_check(part, within_any=True) for part in parts)

            def any_of(params: Parameters, satisfies: Callable[[str], bool]) -> bool:
                for check in some:
                    if check(params, satisfies):
                        return True
                return False

            return any_of


def _compile_loop(in_: str, around: Sequence[_Render], *, decided: bool) -> _Check:
    """ForEach's check: the first scope whose answer is `decided` settles it."""
    if len(around) != 2:

        def loop(params: Parameters, satisfies: Callable[[str], bool]) -> bool:
            texts = [render(params) for render in around]
            for value in _list(params, in_):
                if satisfies(_string(value).join(texts)) is decided:
                    return decided
            return not decided

        return loop
    render_before, render_after = around

    def loop_over_one(params: Parameters, satisfies: Callable[[str], bool]) -> bool:
        values = _list(params, in_)
        if not values:
            return not decided
        before, after = render_before(params), render_after(params)
        for value in values:
            if type(value) is not str:
                _string(value)
            if satisfies(before + value + after) is decided:
                return decided
        return not decided

    return loop_over_one


# --- templates


def _compile_template(template: str) -> _Render:
    """A function filling in a template, as cheap as its number of parameters allows."""
    pieces = _PARAMETER.split(template)
    literals, names = pieces[0::2], pieces[1::2]
    if not names:
        return lambda params: template
    if len(names) == 1:
        (name,), (before, after) = names, literals

        def one(params: Parameters) -> str:
            value = params.get(name)
            return before + (value if type(value) is str else _number(value, name)) + after

        return one
    layout = "%s".join(literal.replace("%", "%%") for literal in literals)

    def several(params: Parameters) -> str:
        get = params.get
        return layout % tuple(
            [value if type(value := get(name)) is str else _number(value, name) for name in names]
        )

    return several


def _around(variable: str, template: str) -> list[_Render]:
    """A ForEach template cut at its variable: to be joined by the variable's value."""
    chunks = [""]
    for index, piece in enumerate(_PARAMETER.split(template)):
        if index % 2 and piece == variable:
            chunks.append("")
        else:
            chunks[-1] += f"<{piece}>" if index % 2 else piece
    return [_compile_template(chunk) for chunk in chunks]


def _number(value: object, name: str) -> str:
    if type(value) is int:
        return str(value)
    raise InternalServerError(f"scope parameter {name} is {_kind(value)}, not a string or number")


def _list(params: Parameters, name: str) -> Sequence[str]:
    value = params.get(name)
    if value is None or isinstance(value, (str, int)):
        raise InternalServerError(f"scope parameter {name} is {_kind(value)}, not a list")
    return value


def _string(value: str) -> str:
    if type(value) is str:
        return value
    raise InternalServerError(f"an item of a scope parameter is {_kind(value)}, not a string")


def _kind(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
