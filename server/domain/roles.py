"""Roles: names for bundles of scopes, and what a scope set means once they are applied (auth.md 5.1).

Holding `assume:<roleId>` gives the role's scopes. A role whose id ends with `*` serves every
`assume:` scope with its prefix and may pass on what follows it: `<..>` in its scopes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from server.domain.scopes import canonical_key, normalize, refuse_double_star
from server.errors import InputError, InternalServerError

PARAMETER = "<..>"
ASSUME = "assume:"
ROLE_ID_PATTERN = r"[\x20-\x7e]+"

_role_id_fullmatch = re.compile(ROLE_ID_PATTERN).fullmatch
_MAX_REACHED = 1024
_AFTER_ALL_PREFIXES = "\x7f"
# `*`, `a*`, ... `assume*`: short of the colon, so what they assume is every role at once.
_ASSUME_ANYTHING = frozenset(f"{'assume'[:n]}*" for n in range(len("assume") + 1))


def is_role_id(value: object) -> bool:
    """Whether a value of unknown origin is a well-formed role id."""
    return isinstance(value, str) and _role_id_fullmatch(value) is not None


def assumed(scope: str) -> str | None:
    """What role id (or, ending with `*`, which of them) a scope assumes; None when none at all."""
    if scope.startswith(ASSUME):
        return scope[len(ASSUME) :]
    return "*" if scope in _ASSUME_ANYTHING else None


@dataclass(frozen=True, slots=True)
class _Role:
    """A role made ready: `fixed` scopes as they are, `templates` split around their `<..>`."""

    role_id: str
    fixed: tuple[str, ...]
    templates: tuple[tuple[str, str], ...]

    def scopes(self, parameter: str) -> Iterator[str]:
        yield from self.fixed
        starred = parameter.endswith("*")
        for before, after in self.templates:
            # A parameter that stands for anything makes whatever would follow it unknowable.
            yield before + parameter if starred else before + parameter + after


def _prepare(role_id: str, scopes: Iterable[str]) -> _Role:
    if not role_id.endswith("*"):
        return _Role(role_id, tuple(scopes), ())
    fixed: list[str] = []
    templates: list[tuple[str, str]] = []
    for scope in scopes:
        before, mark, after = scope.partition(PARAMETER)
        if mark:
            templates.append((before, after))
        else:
            fixed.append(scope)
    return _Role(role_id, tuple(fixed), tuple(templates))


class RoleSet:
    """All roles at one moment, indexed for expansion. Immutable; built anew when a role changes."""

    def __init__(self, roles: Mapping[str, Iterable[str]]) -> None:
        prepared = {role_id: _prepare(role_id, scopes) for role_id, scopes in roles.items()}
        self._exact = {i: role for i, role in prepared.items() if not i.endswith("*")}
        self._starred = {i[:-1]: role for i, role in prepared.items() if i.endswith("*")}
        self._exact_ids = sorted(self._exact)
        self._starred_prefixes = sorted(self._starred)
        self._starred_lengths = sorted({len(prefix) for prefix in self._starred})
        #: What sets of assuming scopes come to, as far as anybody has asked.
        self._reached: dict[frozenset[str], frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self._exact) + len(self._starred)

    def expand(self, scopes: Iterable[str]) -> list[str]:
        """The scopes with everything their roles give, to the fixed point, normalized.

        Raises InternalServerError for a set of roles that never comes to an end, which
        `check_roles` keeps out of the store.
        """
        held = set(scopes)
        # Of task credentials every one has scopes of its own, but they assume the same few roles.
        assuming = frozenset([scope for scope in held if assumed(scope) is not None])
        reached = self._reached.get(assuming)
        if reached is None:
            if len(self._reached) >= _MAX_REACHED:
                self._reached.clear()
            reached = self._reached[assuming] = self._closure(assuming)
        return normalize(held | reached)

    def _closure(self, assuming: frozenset[str]) -> frozenset[str]:
        held = set(assuming)
        frontier: Iterable[str] = held
        # Without cycles a chain meets each role at most once, so it is never longer than their number.
        for _ in range(len(self) + 2):
            frontier = {given for scope in frontier for given in self._given(scope)} - held
            if not frontier:
                return frozenset(held)
            held |= frontier
        raise InternalServerError("the stored roles form a cycle")

    def _given(self, scope: str) -> Iterator[str]:
        target = assumed(scope)
        if target is not None:
            for role, parameter in self._matches(target):
                yield from role.scopes(parameter)

    def _matches(self, target: str) -> Iterator[tuple[_Role, str]]:
        """The roles that `assume:<target>` reaches, each with the parameter it is reached with."""
        exact = self._exact.get(target)
        if exact is not None:
            yield exact, ""
        open_ended = target.endswith("*")
        stem = target[:-1] if open_ended else target
        for length in self._starred_lengths:
            if length > len(stem):
                break
            starred = self._starred.get(stem[:length])
            if starred is not None:
                yield starred, target[length:]
        if open_ended:
            for role_id in _with_prefix(self._exact_ids, stem):
                yield self._exact[role_id], ""
            for prefix in _with_prefix(self._starred_prefixes, stem):
                if prefix != stem:
                    yield self._starred[prefix], "*"


def _with_prefix(ordered: Sequence[str], prefix: str) -> Sequence[str]:
    end = bisect_left(ordered, prefix + _AFTER_ALL_PREFIXES)
    return ordered[bisect_left(ordered, prefix) : end]


def check_role(role_id: str, scopes: Sequence[str]) -> None:
    """Raise InputError for a role that may not be made, whatever the others are (auth.md 5.1)."""
    if not is_role_id(role_id):
        raise InputError("roleId must be printable ASCII and not empty")
    refuse_double_star(scopes)
    if not role_id.endswith("*"):
        return
    for scope in scopes:
        if scope.count(PARAMETER) > 1:
            raise InputError(f"scope '{scope}' of a role may hold `{PARAMETER}` only once")
        if scope.endswith("*" + PARAMETER):
            raise InputError(f"scope '{scope}' of a role must not end with `*{PARAMETER}`")


def check_cycles(roles: Mapping[str, Iterable[str]]) -> None:
    """Raise InputError naming the cycle when roles give each other, judged with parameter `*`.

    With `*` as the parameter a role gives at least what it gives with any other, so a set that
    passes always expands to an end.
    """
    everything = RoleSet(roles)
    prepared = everything._exact | {role.role_id: role for role in everything._starred.values()}
    done: set[str] = set()
    for start in sorted(prepared):
        if start in done:
            continue
        path: list[str] = [start]
        on_path = {start}
        walks = [_reached_from(everything, prepared[start])]
        while walks:
            following = next(walks[-1], None)
            if following is None:
                walks.pop()
                left = path.pop()
                on_path.discard(left)
                done.add(left)
            elif following in on_path:
                cycle = [*path[path.index(following) :], following]
                chain = " -> ".join(f"'{ASSUME}{role_id}'" for role_id in cycle)
                raise InputError(f"Roles may not contain dependency cycles, found: {chain}")
            elif following not in done:
                path.append(following)
                on_path.add(following)
                walks.append(_reached_from(everything, prepared[following]))


def _reached_from(roles: RoleSet, role: _Role) -> Iterator[str]:
    reached: set[str] = set()
    for scope in sorted(role.scopes("*"), key=canonical_key):
        target = assumed(scope)
        if target is not None:
            reached.update(found.role_id for found, _ in roles._matches(target))
    yield from sorted(reached)


# What a public deployment lets everybody do, credentials or none (auth.md 5.2). Workers count on
# `queue:status:*`.
ANONYMOUS_ROLE = "anonymous"
ANONYMOUS_SCOPES: Sequence[str] = (
    "auth:current-scopes",
    "auth:expand-scopes",
    "auth:get-client:*",
    "auth:get-role:*",
    "auth:list-clients",
    "auth:list-roles",
    "queue:get-artifact:public/*",
    "queue:get-provisioner:*",
    "queue:get-task:*",
    "queue:get-worker-type:*",
    "queue:get-worker:*",
    "queue:list-artifacts:*",
    "queue:list-dependent-tasks:*",
    "queue:list-provisioners",
    "queue:list-task-group:*",
    "queue:list-worker-types:*",
    "queue:list-workers:*",
    "queue:pending-count:*",
    "queue:status:*",
)
