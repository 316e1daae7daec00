"""Clients: the permanent credentials, read and changed in Postgres (auth.md 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from server.errors import AlreadyExists, InputError, InvalidRequestArguments, ResourceNotFound
from server.identity.changes import MAX_ID, Authorize, Changes, News, check_contents, settled
from server.identity.model import is_client_id
from server.identity.secrets import SecretBox, new_access_token
from server.store.database import Database, Transaction
from server.store.statements import load

STATIC = "static/"
MAX_PAGE = 1000

_SQL = load("identity")


@dataclass(frozen=True, slots=True)
class Client:
    """A client as stored, without its access token. `scopes` are as given, not expanded."""

    client_id: str
    description: str
    scopes: tuple[str, ...]
    expires: datetime
    disabled: bool
    delete_on_expiration: bool
    created: datetime
    last_modified: datetime
    last_rotated: datetime
    last_date_used: datetime

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Client:
        """From the columns every statement of identity.sql gives for a client, in their order."""
        return cls(row[0], row[1], tuple(row[2]), *row[3:10])


class Clients:
    """Changes to clients. `actor` is the clientId of whoever makes one, for the audit trail, or what allows
    it and tells.

    Every method raises InvalidRequestArguments for what can be no clientId, and those that change
    one raise InputError for `static/` ids, which only the settings change.
    """

    def __init__(self, db: Database, box: SecretBox, changes: Changes) -> None:
        self._db = db
        self._box = box
        self._changes = changes

    async def get(self, client_id: str) -> Client:
        """One client; ResourceNotFound."""
        rows = await self._db.fetch(_SQL["client_get"], [_checked(client_id)])
        return _found(rows)

    async def credentials(self, client_id: str) -> tuple[Client, str]:
        """One client with its access token; ResourceNotFound. Who asks must be allowed to know."""
        rows = await self._db.fetch(_SQL["client_get_sealed"], [_checked(client_id)])
        return _found(rows), self._box.open(rows[0][10])

    async def page(self, *, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[Client]:
        """Up to `limit` clients in order of their ids, from behind `after`; one more than a page at most."""
        if prefix and not is_client_id(prefix):
            return []  # nor does the database take every text
        rows = await self._db.fetch(_SQL["client_list"], [prefix, after, min(limit, MAX_PAGE + 1)])
        return [Client.of_row(row) for row in rows]

    async def create(
        self,
        client_id: str,
        *,
        description: str,
        expires: datetime,
        scopes: Sequence[str] = (),
        delete_on_expiration: bool = False,
        actor: str | Authorize,
    ) -> tuple[Client, str]:
        """Make a client; gives it with its access token, which nothing but `reset` shows again.

        Within 15 minutes the same description, expiry and scopes make a repeat, answered with the
        stored client and token. AlreadyExists otherwise.
        """
        _refuse_static(client_id)
        check_contents(description, scopes)
        who = settled(actor, scopes)
        token = new_access_token()
        params = [
            client_id,
            description,
            self._box.seal(token),
            list(scopes),
            expires,
            delete_on_expiration,
            who,
        ]

        async def insert(tx: Transaction, news: News) -> tuple[Client, str]:
            news.of_client(client_id, "client-created")
            rows = await tx.run(_SQL["client_insert"], params)
            if rows:
                return Client.of_row(rows[0]), token
            rows = await tx.run(_SQL["client_lock"], [client_id])
            stored = _found(rows)
            same = (stored.description, stored.scopes) == (description, tuple(scopes))
            same = same and stored.expires == expires.replace(microsecond=expires.microsecond // 1000 * 1000)
            recent = rows[0][11]
            if not same or not recent or stored.disabled:
                raise AlreadyExists("Client already exists")
            return stored, self._box.open(rows[0][10])

        return await self._changes.make(insert)

    async def update(
        self,
        client_id: str,
        *,
        description: str,
        expires: datetime,
        scopes: Sequence[str] | None = None,
        delete_on_expiration: bool = False,
        actor: str | Authorize,
    ) -> Client:
        """Replace what a client says of itself; None keeps its scopes. ResourceNotFound.

        `actor` is asked about the scopes that are not literally among the old ones.
        """
        _refuse_static(client_id)
        check_contents(description, scopes or ())

        async def update(tx: Transaction, news: News) -> Client:
            stored = _found(await tx.run(_SQL["client_lock"], [client_id]))
            wanted = stored.scopes if scopes is None else tuple(scopes)
            who = settled(actor, [scope for scope in wanted if scope not in stored.scopes])
            params = [client_id, description, list(wanted), expires, delete_on_expiration, who]
            news.of_client(client_id, "client-updated")
            return _found(await tx.run(_SQL["client_update"], params))

        return await self._changes.make(update)

    async def reset_access_token(self, client_id: str, *, actor: str) -> tuple[Client, str]:
        """Give a client another access token; the old one stops working at once. ResourceNotFound."""
        _refuse_static(client_id)
        token = new_access_token()
        params = [client_id, self._box.seal(token), actor]

        async def reset(tx: Transaction, news: News) -> Client:
            news.of_client(client_id, "client-updated")
            return _found(await tx.run(_SQL["client_reset"], params))

        return await self._changes.make(reset), token

    async def enable(self, client_id: str, *, actor: str) -> Client:
        """Let a disabled client in again; harmless when it is enabled. ResourceNotFound."""
        return await self._set_disabled(client_id, False, actor)

    async def disable(self, client_id: str, *, actor: str) -> Client:
        """Refuse a client from its next request on, until enabled. ResourceNotFound."""
        return await self._set_disabled(client_id, True, actor)

    async def _set_disabled(self, client_id: str, disabled: bool, actor: str) -> Client:
        _refuse_static(client_id)

        async def set_disabled(tx: Transaction, news: News) -> Client:
            news.of_client(client_id, "client-updated")
            return _found(await tx.run(_SQL["client_set_disabled"], [client_id, disabled, actor]))

        return await self._changes.make(set_disabled)

    async def delete(self, client_id: str, *, actor: str) -> None:
        """Delete a client; no error when there is none."""
        _refuse_static(client_id)

        async def delete(tx: Transaction, news: News) -> None:
            await tx.run(_SQL["client_delete"], [client_id, actor])
            news.of_client(client_id, "client-deleted")

        await self._changes.make(delete)

    async def delete_expired(self, *, actor: str, limit: int = 1000) -> Sequence[str]:
        """Delete up to `limit` expired clients that asked for it; returns their ids."""

        async def delete(tx: Transaction, news: News) -> Sequence[str]:
            rows = await tx.run(_SQL["clients_delete_expired"], [limit, actor])
            for (client_id,) in rows:
                news.of_client(client_id, "client-deleted")
            return [client_id for (client_id,) in rows]

        return await self._changes.make(delete)


def _found(rows: Sequence[Sequence[Any]]) -> Client:
    if not rows:
        raise ResourceNotFound("Client not found")
    return Client.of_row(rows[0])


def _checked(client_id: str) -> str:
    if not is_client_id(client_id) or len(client_id) > MAX_ID:
        raise InvalidRequestArguments(f"clientId must be 1 to {MAX_ID} letters, digits and !@/:.+|_-")
    return client_id


def _refuse_static(client_id: str) -> None:
    if _checked(client_id).startswith(STATIC):
        raise InputError("clients whose ids begin with static/ are changed in the settings only")
