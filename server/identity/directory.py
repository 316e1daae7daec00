"""All clients and roles in memory, so that authentication asks the database nothing.

Loaded at start and reloaded by name when told of a change. Secrets are decrypted at first use, and a
client's scopes expanded then, so that loading thousands costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from server.domain.roles import ANONYMOUS_ROLE, ASSUME, RoleSet
from server.domain.scopes import ScopeSet, is_scope
from server.errors import AuthenticationFailed
from server.identity.certificates import Issuer
from server.identity.secrets import SecretBox

EVERYONE = ASSUME + ANONYMOUS_ROLE
"""The scope every caller holds (auth.md 5.2)."""


@dataclass(slots=True)
class _Entry:
    """A client as loaded; `issuer` once it was needed, until clients or roles change."""

    sealed_token: bytes
    scopes: Sequence[str]
    expires: float
    disabled: bool
    last_used: float
    issuer: Issuer | None = None


class Directory:
    """Clients and roles as of the last load."""

    def __init__(self, box: SecretBox) -> None:
        self._box = box
        self._entries: dict[str, _Entry] = {}
        self._roles = RoleSet({})

    def load_clients(self, rows: Iterable[Sequence[Any]], named: Iterable[str] | None) -> None:
        """Take over rows of `directory_clients`: all there are, or what became of the named ones."""
        entries = self._entries if named is not None else {}
        for client_id in named or ():
            entries.pop(client_id, None)
        for client_id, sealed_token, scopes, expires, disabled, last_used in rows:
            entries[client_id] = _Entry(
                sealed_token, scopes, expires.timestamp(), disabled, last_used.timestamp()
            )
        self._entries = entries

    def load_roles(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take over rows of `directory_roles`, all of them."""
        self._roles = RoleSet(dict((role_id, scopes) for role_id, scopes in rows))
        for entry in self._entries.values():
            entry.issuer = None

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._entries

    def issuer(self, client_id: str, now: float) -> Issuer:
        """A client that is there, enabled and unexpired, with its key and expanded scopes.

        AuthenticationFailed with the texts of auth.md 1.5 otherwise.
        """
        entry = self._entries.get(client_id)
        if entry is None:
            raise AuthenticationFailed(f"Client with clientId '{client_id}' not found")
        if entry.disabled:
            raise AuthenticationFailed(f"Client with clientId '{client_id}' is disabled")
        if entry.expires <= now:
            raise AuthenticationFailed(f"Client with clientId: '{client_id}' has expired")
        if entry.issuer is None:
            entry.issuer = Issuer(
                client_id,
                self._box.open(entry.sealed_token),
                ScopeSet.of_normalized(self._roles.expand(entry.scopes)),
                entry.expires,
            )
        return entry.issuer

    def used(self, client_id: str, now: float, interval_s: float) -> bool:
        """Note the use of a client; whether it is long enough after the last one to be written down."""
        entry = self._entries.get(client_id)
        if entry is None or now - entry.last_used < interval_s:
            return False
        entry.last_used = now
        return True

    def expand(self, scopes: Iterable[str]) -> list[str]:
        """The scopes with all that roles give them, normalized; without the anonymous role."""
        return self._roles.expand(scopes)

    def effective(self, scopes: Iterable[str], authorized: object = None) -> ScopeSet:
        """What a request with these scopes may do: the anonymous role added, all roles applied.

        `authorized`, unless None, narrows it first (auth.md 4.4); AuthenticationFailed when it is no
        list of scopes, or asks for more than is held.
        """
        held = ScopeSet.of_normalized(self._roles.expand([*scopes, EVERYONE]))
        if authorized is None:
            return held
        return ScopeSet.of_normalized(self._roles.expand([*check_authorized(authorized, held), EVERYONE]))


def check_authorized(authorized: object, held: ScopeSet) -> list[str]:
    """The scopes that a credential narrows itself to; AuthenticationFailed when they are no list of
    scopes, or more than is held."""
    if not isinstance(authorized, list):
        raise AuthenticationFailed("ext.authorizedScopes must be an array")
    if not all(map(is_scope, authorized)):
        raise AuthenticationFailed("ext.authorizedScopes must be an array of valid scopes")
    if not held.satisfies_all(authorized):
        raise AuthenticationFailed(
            "Supplied credentials do not satisfy authorizedScopes; credentials have scopes:\n\n"
            f"{_fenced(held)}\nauthorizedScopes are:\n{_fenced(authorized)}"
        )
    return authorized


def _fenced(scopes: Iterable[str]) -> str:
    return "\n".join(("```", *scopes, "```"))
