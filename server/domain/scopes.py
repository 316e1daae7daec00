"""Scopes: who may do what, as strings (auth.md 5).

A scope is printable ASCII without structure. Held scope `s` satisfies required scope `r` when
they are equal, or when `s` ends with `*` and `r` begins with the rest of `s`. Only that final
star is special: `ab*` does not satisfy `a*`, and `*` satisfies everything.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from server.errors import InputError

SCOPE_PATTERN = r"[\x20-\x7e]*"
"""What a scope may be made of; for fullmatch, since `$` would let a trailing newline by."""

_fullmatch = re.compile(SCOPE_PATTERN).fullmatch


def is_scope(value: object) -> bool:
    """Whether a value of unknown origin is a well-formed scope."""
    return isinstance(value, str) and _fullmatch(value) is not None


def refuse_double_star(scopes: Iterable[str]) -> None:
    """Raise InputError when a scope ends with `**`, which nobody ever means (auth.md 5)."""
    if any(scope.endswith("**") for scope in scopes):
        raise InputError("scopes must not end with `**`")


def satisfies(held: str, required: str) -> bool:
    """Whether the one held scope grants the required one."""
    return held == required or (held.endswith("*") and required.startswith(held[:-1]))


def canonical_key(scope: str) -> tuple[str, bool]:
    """Sort key of the canonical order: by the text without its final star, a starred one first."""
    return (scope[:-1], False) if scope.endswith("*") else (scope, True)


def normalize(scopes: Iterable[str]) -> list[str]:
    """The scopes in canonical order, without duplicates and without what another one satisfies."""
    kept: list[str] = []
    # In canonical order everything a starred scope covers follows it directly, so only the last
    # starred scope kept can cover the one at hand.
    covering: str | None = None
    for scope in sorted(set(scopes), key=canonical_key):
        if covering is not None and scope.startswith(covering):
            continue
        kept.append(scope)
        if scope.endswith("*"):
            covering = scope[:-1]
    return kept


class ScopeSet:
    """An immutable set of scopes, built once per credential and asked many times.

    `scopes` holds them normalized, in canonical order.
    """

    __slots__ = ("_exact", "_prefixes", "_sorted_prefixes", "scopes")

    # str.startswith with a tuple walks it in C at some 15 ns an entry; beyond this many a
    # bisection (some 250 ns whatever the size) is quicker.
    _BISECT_FROM = 16

    scopes: tuple[str, ...]

    def __init__(self, scopes: Iterable[str] = ()) -> None:
        self._fill(tuple(normalize(scopes)))

    @classmethod
    def of_normalized(cls, scopes: Iterable[str]) -> ScopeSet:
        """A set of what `normalize` (or RoleSet.expand) returned, without doing it again."""
        self = cls.__new__(cls)
        self._fill(tuple(scopes))
        return self

    def _fill(self, scopes: tuple[str, ...]) -> None:
        self.scopes = scopes
        self._exact = frozenset(scopes)
        prefixes = tuple(scope[:-1] for scope in scopes if scope.endswith("*"))
        large = len(prefixes) >= self._BISECT_FROM
        # Normalized prefixes come sorted and none begins with another, so the greatest one not
        # above a text is the only one that can begin it.
        self._sorted_prefixes = prefixes if large else ()
        self._prefixes = () if large else prefixes

    def satisfies(self, required: str) -> bool:
        """Whether any scope of the set grants the required one."""
        if required in self._exact or required.startswith(self._prefixes):
            return True
        ordered = self._sorted_prefixes
        if not ordered:
            return False
        at = bisect_right(ordered, required)
        return at > 0 and required.startswith(ordered[at - 1])

    def satisfies_all(self, required: Iterable[str]) -> bool:
        """Whether each of the scopes is granted; true for none."""
        return all(map(self.satisfies, required))

    def __iter__(self) -> Iterator[str]:
        return iter(self.scopes)

    def __len__(self) -> int:
        return len(self.scopes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScopeSet) and self.scopes == other.scopes

    def __hash__(self) -> int:
        return hash(self.scopes)

    def __repr__(self) -> str:
        return f"ScopeSet({list(self.scopes)!r})"


NO_SCOPES = ScopeSet()
