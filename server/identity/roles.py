"""Roles, read and changed in Postgres (auth.md 7); what they mean is in `server.domain.roles`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from server.domain.roles import RoleSet, check_cycles, check_role, is_role_id
from server.domain.scopes import ScopeSet, canonical_key
from server.errors import AlreadyExists, InvalidRequestArguments, ResourceNotFound
from server.identity.changes import MAX_ID, Authorize, Changes, News, check_contents, settled
from server.store.database import Database, Transaction
from server.store.statements import load

MAX_PAGE = 1000

_SQL = load("identity")


@dataclass(frozen=True, slots=True)
class Role:
    """A role as stored; `scopes` in canonical order, redundant ones kept, not expanded."""

    role_id: str
    description: str
    scopes: tuple[str, ...]
    created: datetime
    last_modified: datetime

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Role:
        """From the columns every statement of identity.sql gives for a role, in their order."""
        return cls(row[0], row[1], tuple(row[2]), row[3], row[4])


class Roles:
    """Changes to roles. `actor` is the clientId of whoever makes one, for the audit trail, or what allows
    it and tells.

    Every method raises InvalidRequestArguments for what can be no roleId.
    """

    def __init__(self, db: Database, changes: Changes) -> None:
        self._db = db
        self._changes = changes

    async def get(self, role_id: str) -> Role:
        """One role; ResourceNotFound."""
        return _found(await self._db.fetch(_SQL["role_get"], [_checked(role_id)]))

    async def page(self, *, after: str = "", limit: int = MAX_PAGE) -> list[Role]:
        """Up to `limit` roles in order of their ids, from behind `after`; one more than a page at most."""
        rows = await self._db.fetch(_SQL["role_list"], [after, min(limit, MAX_PAGE + 1)])
        return [Role.of_row(row) for row in rows]

    async def create(
        self,
        role_id: str,
        *,
        description: str,
        scopes: Sequence[str],
        actor: str | Authorize,
    ) -> Role:
        """Make a role; the same description and scopes again give the stored one.

        AlreadyExists for others, InputError for what may be no role (auth.md 5.1). `actor` is
        asked about all the scopes.
        """
        _check(role_id, description, scopes)
        who = settled(actor, scopes)
        ordered = sorted(scopes, key=canonical_key)

        async def insert(tx: Transaction, news: News) -> Role:
            await tx.run(_SQL["roles_lock"], [])
            roles = await _all(tx)
            if role_id not in roles:
                _check_together(roles, role_id, ordered)
            news.of_role(role_id, "role-created")
            rows = await tx.run(_SQL["role_insert"], [role_id, description, ordered, who])
            if rows:
                return Role.of_row(rows[0])
            stored = _found(await tx.run(_SQL["role_get"], [role_id]))
            if (stored.description, list(stored.scopes)) != (description, ordered):
                raise AlreadyExists("Role already exists")
            return stored

        return await self._changes.make(insert)

    async def update(
        self,
        role_id: str,
        *,
        description: str,
        scopes: Sequence[str],
        actor: str | Authorize,
    ) -> Role:
        """Replace a role's description and scopes. ResourceNotFound, or InputError as `create`.

        `actor` is asked about the scopes that the expansion of the old ones does not satisfy.
        """
        _check(role_id, description, scopes)
        ordered = sorted(scopes, key=canonical_key)

        async def update(tx: Transaction, news: News) -> Role:
            await tx.run(_SQL["roles_lock"], [])
            roles = await _all(tx)
            stored = _found(await tx.run(_SQL["role_get"], [role_id]))
            held = ScopeSet.of_normalized(RoleSet(roles).expand(stored.scopes))
            who = settled(actor, [scope for scope in ordered if not held.satisfies(scope)])
            _check_together(roles, role_id, ordered)
            news.of_role(role_id, "role-updated")
            return _found(await tx.run(_SQL["role_update"], [role_id, description, ordered, who]))

        return await self._changes.make(update)

    async def delete(self, role_id: str, *, actor: str) -> None:
        """Delete a role; no error when there is none."""
        _checked(role_id)

        async def delete(tx: Transaction, news: News) -> None:
            await tx.run(_SQL["roles_lock"], [])
            await tx.run(_SQL["role_delete"], [role_id, actor])
            news.of_role(role_id, "role-deleted")

        await self._changes.make(delete)


async def _all(tx: Transaction) -> dict[str, Sequence[str]]:
    return {role_id: scopes for role_id, scopes in await tx.run(_SQL["directory_roles"], [])}


def _check_together(roles: dict[str, Sequence[str]], role_id: str, scopes: Sequence[str]) -> None:
    check_role(role_id, scopes)
    check_cycles(roles | {role_id: scopes})


def _found(rows: Sequence[Sequence[Any]]) -> Role:
    if not rows:
        raise ResourceNotFound("Role not found")
    return Role.of_row(rows[0])


def _checked(role_id: str) -> str:
    if not is_role_id(role_id) or len(role_id) > MAX_ID:
        raise InvalidRequestArguments(f"roleId must be 1 to {MAX_ID} characters of printable ASCII")
    return role_id


def _check(role_id: str, description: str, scopes: Sequence[str]) -> None:
    _checked(role_id)
    check_contents(description, scopes)
