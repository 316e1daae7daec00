"""What identity needs before the first call: run by every process at its start, harmless to repeat.

The first start ever makes the root client and fills the anonymous role; a row remembers that, so
neither comes back after an operator deleted it. Static clients follow the settings at every start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from server.config import Settings, SettingsError
from server.domain.roles import ANONYMOUS_ROLE, ANONYMOUS_SCOPES
from server.domain.scopes import is_scope
from server.identity.changes import ROLES, Changes, News, about_client
from server.identity.clients import STATIC
from server.identity.model import is_access_token, is_client_id
from server.identity.secrets import SecretBox, new_access_token
from server.store.database import Database, Transaction
from server.store.hub import NotifyHub
from server.store.statements import load

QUEUE_CLIENT = "static/tcqueue/queue"
"""The queue's own client: holds everything and signs the credentials of tasks."""
ROOT_CLIENT = "root"

_OWN = "static/tcqueue/"
_UPSTREAM = "static/taskcluster/"
# Ids with which an upstream deployment's settings come; such ids take their scopes from code.
_UPSTREAM_SCOPES = {f"{_UPSTREAM}root": ("*",), f"{_UPSTREAM}queue": ("*",)}
_FOREVER = datetime(3000, 1, 1, tzinfo=UTC)

_SQL = load("identity")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` found or made.

    `root_access_token` is there only when this very call made one up: it is in no log and nowhere
    else in the clear, so it must be shown now. `queue_access_token` belongs to QUEUE_CLIENT.
    """

    first_start: bool
    root_access_token: str | None
    queue_access_token: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A client as the settings or this module want it; without a token, any it has will do."""

    client_id: str
    description: str
    scopes: tuple[str, ...]
    access_token: str | None


async def prepare(db: Database, hub: NotifyHub | None, settings: Settings, box: SecretBox) -> Prepared:
    """Make what is missing, in one transaction, one process at a time.

    Raises SettingsError for unusable static clients or root token, SecretError when the database's
    secrets were encrypted with another key than the box has.
    """
    static = _static_clients(_entries(settings))
    if settings.root_access_token and not is_access_token(settings.root_access_token):
        raise SettingsError("TCQUEUE_ROOT_ACCESS_TOKEN takes 22 to 66 letters, digits, _ and -")

    async def run(tx: Transaction, news: News) -> Prepared:
        await tx.run(_SQL["bootstrap_lock"], [])
        seen = await tx.run(_SQL["first_start_get"], [])
        first_start, anonymous_filled = not seen, bool(seen and seen[0][0])
        sync = _Sync(tx, box, news)
        queue_token = await sync.ensure(_Wanted(QUEUE_CLIENT, "the queue itself", ("*",), None))
        await sync.static(static)
        root_token = None
        if settings.root_access_token:
            await sync.root(settings.root_access_token)
        elif first_start:
            root_token = await sync.root(None)
        fill = settings.default_anonymous_role and not anonymous_filled
        if fill:
            await sync.anonymous()
        if first_start or fill:
            await tx.run(_SQL["first_start_note"], [fill])
        return Prepared(first_start, root_token, queue_token)

    return await Changes(db, hub).make(run)


class _Sync:
    """Brings clients and the anonymous role to what is wanted; adds what it changed to the news."""

    def __init__(self, tx: Transaction, box: SecretBox, news: News) -> None:
        self._tx = tx
        self._box = box
        self._news = news

    async def ensure(self, wanted: _Wanted) -> str:
        """Make the client or mend what differs; returns its access token."""
        rows = await self._tx.run(_SQL["client_lock"], [wanted.client_id])
        if not rows:
            return await self._insert(wanted)
        _, description, scopes, _, disabled, *_ = rows[0]
        token = self._box.open(rows[0][10])
        if (description, tuple(scopes), disabled) != (wanted.description, wanted.scopes, False):
            params = [
                wanted.client_id,
                wanted.description,
                list(wanted.scopes),
                _FOREVER,
                False,
                QUEUE_CLIENT,
            ]
            await self._tx.run(_SQL["client_update"], params)
            if disabled:
                await self._tx.run(_SQL["client_set_disabled"], [wanted.client_id, False, QUEUE_CLIENT])
            self._news.topics.add(about_client(wanted.client_id))
        if wanted.access_token not in (None, token):
            token = await self._rekey(wanted.client_id, wanted.access_token)
        return token

    async def static(self, wanted: Mapping[str, _Wanted]) -> None:
        """Make the static clients, apart from our own, exactly those of the settings."""
        after = STATIC
        while True:
            rows = await self._tx.run(_SQL["client_list"], [STATIC, after, 1000])
            for client_id, *_ in rows:
                if client_id not in wanted and not client_id.startswith(_OWN):
                    await self._tx.run(_SQL["client_delete"], [client_id, QUEUE_CLIENT])
                    self._news.topics.add(about_client(client_id))
            if len(rows) < 1000:
                break
            after = rows[-1][0]
        for client in wanted.values():
            await self.ensure(client)

    async def root(self, token: str | None) -> str | None:
        """Make the root client and return its token; of one that is there, only a given token is brought
        in line: its other properties are the operator's, who may have disabled it for good."""
        rows = await self._tx.run(_SQL["client_lock"], [ROOT_CLIENT])
        if not rows:
            return await self._insert(_Wanted(ROOT_CLIENT, "root client of the first start", ("*",), token))
        if token not in (None, self._box.open(rows[0][10])):
            await self._rekey(ROOT_CLIENT, token)
        return None

    async def anonymous(self) -> None:
        """Fill the anonymous role unless there is one."""
        params = [
            ANONYMOUS_ROLE,
            "what callers without credentials may do",
            list(ANONYMOUS_SCOPES),
            QUEUE_CLIENT,
        ]
        await self._tx.run(_SQL["roles_lock"], [])
        if await self._tx.run(_SQL["role_insert"], params):
            self._news.topics.add(ROLES)

    async def _insert(self, wanted: _Wanted) -> str:
        token = wanted.access_token or new_access_token()
        sealed = self._box.seal(token)
        params = [
            wanted.client_id,
            wanted.description,
            sealed,
            list(wanted.scopes),
            _FOREVER,
            False,
            QUEUE_CLIENT,
        ]
        await self._tx.run(_SQL["client_insert"], params)
        self._news.topics.add(about_client(wanted.client_id))
        return token

    async def _rekey(self, client_id: str, token: str | None) -> str:
        token = token or new_access_token()
        await self._tx.run(_SQL["client_reset"], [client_id, self._box.seal(token), QUEUE_CLIENT])
        self._news.topics.add(about_client(client_id))
        return token


def _entries(settings: Settings) -> list[dict[str, Any]]:
    """The static clients of the settings, and with them, where signatures are checked elsewhere, the one
    that signs task credentials: over gRPC they are checked here."""
    entries = list(settings.static_clients)
    if settings.auth_mode == "remote":
        entries.append(
            {
                "clientId": settings.queue_client_id,
                "accessToken": settings.queue_access_token,
                "description": "signs task credentials",
                # Those ids take their scopes from code.
                **({} if settings.queue_client_id.startswith(_UPSTREAM) else {"scopes": ["*"]}),
            }
        )
    return entries


def _static_clients(entries: Sequence[object]) -> dict[str, _Wanted]:
    found: dict[str, _Wanted] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number} of TCQUEUE_STATIC_CLIENTS"
        if not isinstance(entry, dict):
            raise SettingsError(f"{where} must be an object")
        wanted = _static_client(where, entry)
        if wanted.client_id in found:
            raise SettingsError(f"{where} repeats clientId {wanted.client_id}")
        found[wanted.client_id] = wanted
    return found


def _static_client(where: str, entry: Mapping[str, Any]) -> _Wanted:
    unknown = sorted(set(entry) - {"clientId", "accessToken", "description", "scopes"})
    if unknown:
        raise SettingsError(f"{where} has the unknown key {unknown[0]}")
    client_id, token = entry.get("clientId", ""), entry.get("accessToken")
    description, scopes = entry.get("description", ""), entry.get("scopes")
    if not is_client_id(client_id) or not client_id.startswith(STATIC):
        raise SettingsError(f"{where} needs a clientId that begins with {STATIC}")
    if client_id.startswith(_OWN):
        raise SettingsError(f"{where}: clientIds that begin with {_OWN} are the queue's own")
    if not is_access_token(token):
        raise SettingsError(f"{where} needs an accessToken of 22 to 66 letters, digits, _ and -")
    if not isinstance(description, str):
        raise SettingsError(f"{where} needs a text as its description")
    if client_id.startswith(_UPSTREAM):
        given = _UPSTREAM_SCOPES.get(client_id)
        if given is None:
            raise SettingsError(f"{where}: {client_id} is no client this service knows the scopes of")
        if scopes is not None:
            raise SettingsError(f"{where}: {client_id} has its scopes by itself and may not list any")
        return _Wanted(client_id, description, given, token)
    if not isinstance(scopes, list) or not all(map(is_scope, scopes)):
        raise SettingsError(f"{where} needs a list of scopes")
    if any(scope.endswith("**") for scope in scopes):
        raise SettingsError(f"{where}: scopes must not end with `**`")
    return _Wanted(client_id, description, tuple(dict.fromkeys(scopes)), token)
