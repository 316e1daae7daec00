"""Who sent this credential: verified once, remembered, and forgotten when clients or roles change."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from server.config import Settings
from server.domain.scopes import ScopeSet
from server.errors import QueueError
from server.identity import certificates, hawk, tokens
from server.identity.changes import CHANNEL, CLIENT, ROLES
from server.identity.directory import Directory
from server.identity.hawk import Signed
from server.identity.model import NOBODY, Credential, Delegate, HawkRequest, Identity, is_client_id
from server.identity.secrets import SecretBox
from server.store.database import Database
from server.store.hub import NotifyHub
from server.store.statements import load

_SQL = load("identity")
_log = logging.getLogger(__name__)

_MAX_REMEMBERED = 8192  # verified tokens; with their scopes some 5 KB each
_REMEMBERED_FOR_S = 600.0  # then checked again, which also notes the client's use


@dataclass(frozen=True, slots=True)
class _Signer:
    """A key that has been proven, what it allows, and until when that is remembered (epoch seconds).
    `issuer_id` is the client that it is of, or was made from."""

    issuer_id: str
    key: str
    identity: Identity
    until: float


class Authenticator:
    """Turns bearer tokens into identities out of memory.

    Clients and roles are held in a Directory. A message on the hub's channel `identity` makes it
    stale at once, synchronously: from then on nothing is answered from memory until what changed has
    been read again.
    """

    def __init__(
        self, db: Database, hub: NotifyHub, settings: Settings, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives epoch seconds. Raises SettingsError when there is no usable encryption key."""
        self._db = db
        self._hub = hub
        self._clock = clock
        self._last_used_interval_s = settings.last_used_interval_s
        # What is remembered is not looked at again, nor its client's use noted.
        self._remembered_for_s = min(_REMEMBERED_FOR_S, self._last_used_interval_s)
        self._directory = Directory(SecretBox.from_settings(settings))
        self._remembered: dict[str | None, tuple[Identity, float]] = {}
        #: Who signs by Hawk: the key and what it allows, by clientId and ext.
        self._signers: dict[tuple[str, str], _Signer] = {}
        # What the directory must read again before it may be asked; a message raises the generation.
        self._generation = 0
        self._stale_everything = True
        self._stale_roles = True
        self._stale_clients: set[str] = set()
        # Clients that somebody named and the directory does not have.
        self._sought: set[str] = set()
        self._loading: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._unsubscribe: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Subscribe to changes and load everything. `bootstrap.prepare` comes first."""
        self._unsubscribe = [
            self._hub.subscribe(CHANNEL, self._changed),
            self._hub.subscribe_gap(self._missed_some),
        ]
        await self._fresh()

    async def stop(self) -> None:
        """Unsubscribe and let running statements end."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []
        running = [*self._background, *([self._loading] if self._loading else [])]
        await asyncio.gather(*running, return_exceptions=True)

    def authenticate_now(self, credential: Credential) -> Identity | None:
        """The identity of a credential, when that can be told without waiting for anything; None when
        `authenticate` must be asked. AuthenticationFailed as there."""
        if isinstance(credential, HawkRequest):
            return None if self._stale else self._hawk_known(credential)
        if isinstance(credential, Delegate):
            return None if credential.scopes is None else _bounded(credential, credential.scopes)
        return self.authenticate_cached(credential)

    async def authenticate(self, credential: Credential) -> Identity:
        """The identity behind a credential of any kind; AuthenticationFailed, Unavailable."""
        if isinstance(credential, HawkRequest):
            return (await self.hawk(credential))[0]
        if isinstance(credential, Delegate):
            return await self._delegate(credential)
        return await self.authenticate_bearer(credential)

    async def _delegate(self, delegate: Delegate) -> Identity:
        """The client that a front door lets its callers act as, as it is now."""
        if delegate.scopes is not None:
            return _bounded(delegate, delegate.scopes)
        await self._fresh()
        if delegate.client_id not in self._directory:
            await self._seek(delegate.client_id)
            await self._fresh()
        now = self._clock()
        client = self._directory.issuer(delegate.client_id, now)
        if self._directory.used(delegate.client_id, now, self._last_used_interval_s):
            self._run(self._note_use(delegate.client_id))
        scopes = self._directory.effective(client.scopes.scopes)
        return Identity(delegate.client_id, scopes, client.expires, "delegate")

    async def hawk(self, request: HawkRequest) -> tuple[Identity, str | None]:
        """The identity behind a request signed by Hawk, or by nothing; and the payload hash that the
        signature covers. AuthenticationFailed, Unavailable."""
        await self._fresh()
        now = self._clock()
        signed = hawk.read(request, now)
        if signed is None:
            return await self.authenticate_bearer(None), None
        issuer_id = signed.client_id
        if signed.certificate is not None:
            issuer_id = certificates.issuer_of(signed.certificate, signed.client_id)
        if issuer_id not in self._directory:
            await self._seek(issuer_id)
            await self._fresh()
        # From here to the end nothing is awaited, so the directory is one and the same throughout.
        return self._hawk_verified(signed, request, now), signed.hash

    def _hawk_known(self, request: HawkRequest) -> Identity | None:
        """As `hawk`, for callers whose client is at hand; None for others."""
        now = self._clock()
        signed = hawk.read(request, now)
        if signed is None:
            return self.authenticate_cached(None)
        known = self._signers.get((signed.client_id, signed.ext))
        if known is None or known.until <= now:
            issuer_id = signed.client_id
            if signed.certificate is not None:
                issuer_id = certificates.issuer_of(signed.certificate, signed.client_id)
            if issuer_id not in self._directory:
                return None
        return self._hawk_verified(signed, request, now)

    def _hawk_verified(self, signed: Signed, request: HawkRequest, now: float) -> Identity:
        who = (signed.client_id, signed.ext)
        known = self._signers.get(who)
        if known is None or known.until <= now:
            known = self._signer(signed, now)
            hawk.verify(signed, known.key, request, now)
            # Only now: what anybody may send must not push out what callers have proven, nor count as a use.
            _make_room(self._signers)
            self._signers[who] = known
            if self._directory.used(known.issuer_id, now, self._last_used_interval_s):
                self._run(self._note_use(known.issuer_id))
        else:
            hawk.verify(signed, known.key, request, now)
        return known.identity

    def _signer(self, signed: Signed, now: float) -> _Signer:
        """Who must have signed: steps 4 to 6 of auth.md 1.5."""
        issuer_id = signed.client_id
        if signed.certificate is not None:
            issuer_id = certificates.issuer_of(signed.certificate, signed.client_id)
        issuer = self._directory.issuer(issuer_id, now)
        key, scopes, expires, until = (
            issuer.access_token,
            issuer.scopes.scopes,
            issuer.expires,
            issuer.expires,
        )
        if signed.certificate is not None:
            verified = certificates.verify(
                signed.certificate, client_id=signed.client_id, issuer=issuer, now_ms=now * 1000
            )
            scopes, expires, until = verified.scopes, verified.expires, verified.accepted_until
            key = certificates.key_of(signed.certificate, issuer) or ""
        effective = self._directory.effective(scopes, signed.authorized_scopes)
        identity = Identity(signed.client_id, effective, expires, "hawk")
        return _Signer(issuer_id, key, identity, min(until, now + self._remembered_for_s))

    def authenticate_cached(self, token: str | None) -> Identity | None:
        """The identity of a token verified before; None when `authenticate_bearer` must be asked."""
        found = self._remembered.get(token)
        if found is not None and found[1] > self._clock():
            return found[0]
        return None

    async def authenticate_bearer(self, token: str | None) -> Identity:
        """The identity behind a JWT, or behind no credentials at all for None.

        AuthenticationFailed with a text fit to be shown; Unavailable when clients have changed and the
        database, asked what about, is away.
        """
        found = self.authenticate_cached(token)
        if found is not None:
            return found
        await self._fresh()
        if token is None:
            identity = Identity(NOBODY, self._directory.effective(()), math.inf, "none")
            self._remember(None, identity, math.inf)
            return identity
        claims = tokens.read(token)
        issuer_id = claims.client_id
        if claims.certificate is not None:
            issuer_id = certificates.issuer_of(claims.certificate, claims.client_id)
        if issuer_id not in self._directory:
            await self._seek(issuer_id)
            await self._fresh()
        # From here to the end nothing is awaited, so the directory is one and the same throughout.
        now = self._clock()
        identity, until = self._verify(token, claims, issuer_id, now)
        self._remember(token, identity, min(until, now + self._remembered_for_s))
        if self._directory.used(issuer_id, now, self._last_used_interval_s):
            self._run(self._note_use(issuer_id))
        return identity

    async def expander(self) -> Callable[[list[str]], list[str]]:
        """A function that adds to scopes what the roles of this moment give them, normalized; without
        the anonymous role. Unavailable."""
        await self._fresh()
        return self._directory.expand

    async def effective(self, scopes: Sequence[str]) -> ScopeSet:
        """What these scopes allow: everyone's added, and all that roles give. Unavailable."""
        await self._fresh()
        return self._directory.effective(scopes)

    def _verify(
        self, token: str, claims: tokens.Claims, issuer_id: str, now: float
    ) -> tuple[Identity, float]:
        """The identity, and until when the token is good."""
        issuer = self._directory.issuer(issuer_id, now)
        certificate = claims.certificate
        if certificate is None:
            end = tokens.verify(token, claims, issuer.access_token, now)
            scopes, expires, until = issuer.scopes.scopes, issuer.expires, issuer.expires
        else:
            key = certificates.key_of(certificate, issuer)
            # Without a readable seed there is no key, and `certificates.verify` says what is wrong.
            end = 0.0 if key is None else tokens.verify(token, claims, key, now)
            verified = certificates.verify(
                certificate, client_id=claims.client_id, issuer=issuer, now_ms=now * 1000
            )
            scopes, expires, until = verified.scopes, verified.expires, verified.accepted_until
        effective = self._directory.effective(scopes, claims.authorized_scopes)
        return Identity(claims.client_id, effective, expires, "bearer"), min(end, until)

    def _remember(self, token: str | None, identity: Identity, until: float) -> None:
        _make_room(self._remembered)
        self._remembered[token] = (identity, until)

    # --- keeping the directory current

    def _changed(self, payload: str) -> None:
        topic, _, name = payload.partition(" ")
        if topic == CLIENT:
            self._stale_clients.add(name)
        elif topic == ROLES:
            self._stale_roles = True
        else:
            self._stale_everything = True
        self._forget()

    def _missed_some(self) -> None:
        self._stale_everything = True
        self._forget()

    def _forget(self) -> None:
        self._generation += 1
        self._remembered.clear()
        self._signers.clear()
        self._run(self._fresh())

    @property
    def _stale(self) -> bool:
        return self._stale_everything or self._stale_roles or bool(self._stale_clients)

    async def _fresh(self) -> None:
        """Return when the directory holds everything told of so far."""
        while self._stale:
            await self._load()

    async def _seek(self, client_id: str) -> None:
        """Look a client up that another process may have made a moment ago."""
        if not is_client_id(client_id):
            return  # nobody made it, and not every text is one that the database takes
        self._sought.add(client_id)
        while client_id in self._sought:
            await self._load()

    async def _load(self) -> None:
        """One round of reading, shared by all who wait for one; so are its errors."""
        # A task that is done counts as none: awaiting it would not yield, and a caller in a loop spin.
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._read())
            self._loading.add_done_callback(self._loaded)
        await asyncio.shield(self._loading)

    def _loaded(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.warning("clients and roles could not be read: %s", task.exception())

    async def _read(self) -> None:
        generation, everything = self._generation, self._stale_everything
        roles = everything or self._stale_roles
        sought = set(self._sought)
        named = None if everything else sorted(self._stale_clients | sought)
        try:
            role_rows = await self._db.fetch(_SQL["directory_roles"], []) if roles else None
            client_rows = await self._db.fetch(_SQL["directory_clients"], [named]) if named != [] else []
        finally:
            self._sought -= sought
        self._directory.load_clients(client_rows, named)
        if role_rows is not None:
            self._directory.load_roles(role_rows)
        if generation == self._generation:
            self._stale_everything = self._stale_roles = False
            self._stale_clients.clear()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it run beside the calls; its errors have been logged, or met by whoever waits for it too."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()

    async def _note_use(self, client_id: str) -> None:
        try:
            await self._db.fetch(_SQL["client_touch"], [[client_id], self._last_used_interval_s])
        except QueueError as e:
            _log.warning("the use of client %s could not be noted: %s", client_id, e)


def _bounded(delegate: Delegate, scopes: tuple[str, ...]) -> Identity:
    """A client of ours that is in no table."""
    return Identity(delegate.client_id, ScopeSet(scopes), math.inf, "delegate")


def _make_room(memory: dict[Any, Any]) -> None:
    """Forgets the oldest of a memory that is full."""
    if len(memory) >= _MAX_REMEMBERED:
        for oldest in list(islice(memory, _MAX_REMEMBERED // 8)):
            del memory[oldest]
