"""Signatures checked by another deployment's auth service (auth.md 7, authenticateHawk), so that a queue
can stand beside an existing cluster and take that cluster's credentials.

Clients and roles are all there. Here are only the queue's own client, which signs task credentials and
must be known to both sides, and whatever static clients the settings name: they may come in by gRPC,
whose bearer tokens nobody else can check.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import httpx

from server.config import Settings
from server.domain.scopes import ScopeSet, is_scope
from server.errors import AuthenticationFailed, Unavailable
from server.identity import certificates, hawk, tokens
from server.identity.authenticator import Authenticator
from server.identity.clients import STATIC
from server.identity.model import NOBODY, Credential, Delegate, HawkRequest, Identity, is_client_id
from server.store.database import Database
from server.store.hub import NotifyHub

_PATH = "/api/auth/v1/authenticate-hawk"
_TIMEOUT = httpx.Timeout(5.0, connect=2.0)
_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=60)
_NOBODY_FOR_S = 30.0
"""How long the scopes of callers without credentials are remembered."""


class RemoteAuthenticator(Authenticator):
    """As Authenticator, for whom all clients but the static ones are elsewhere."""

    def __init__(
        self, db: Database, hub: NotifyHub, settings: Settings, *, clock: Callable[[], float] = time.time
    ) -> None:
        """The settings have been checked: there is a root URL."""
        super().__init__(db, hub, settings, clock=clock)
        self._now = clock
        self._client = httpx.AsyncClient(
            base_url=settings.auth_root_url.rstrip("/"), timeout=_TIMEOUT, limits=_LIMITS, trust_env=False
        )
        self._queue = settings.queue_client_id, settings.queue_access_token
        self._nobody: tuple[Identity, float] | None = None

    async def stop(self) -> None:
        """Also closes the connections to the other side."""
        await self._client.aclose()
        await super().stop()

    def authenticate_now(self, credential: Credential) -> Identity | None:
        """Only what has been found out before."""
        if isinstance(credential, str | Delegate):
            return super().authenticate_now(credential)
        if credential is not None and hawk.read(credential, self._now()) is not None:
            return None
        known = self._nobody
        return known[0] if known is not None and known[1] > self._now() else None

    async def authenticate(self, credential: Credential) -> Identity:
        """The identity behind a credential; AuthenticationFailed, and Unavailable when the other side
        does not answer as it should."""
        if isinstance(credential, HawkRequest):
            return (await self.hawk(credential))[0]
        if credential is None:
            return await self._anonymous()
        if isinstance(credential, Delegate):
            return await super().authenticate(credential)
        claims = tokens.read(credential)
        issuer_id = claims.client_id
        if claims.certificate is not None:
            issuer_id = certificates.issuer_of(claims.certificate, claims.client_id)
        if not issuer_id.startswith(STATIC):
            raise AuthenticationFailed(
                f"client '{issuer_id}' is not known here: clients are checked by another deployment, which "
                "takes Hawk signatures only; over gRPC there are static clients and task credentials"
            )
        return await super().authenticate(credential)

    async def hawk(self, request: HawkRequest) -> tuple[Identity, str | None]:
        """As Authenticator; the payload hash is checked here, where the payload is."""
        signed = hawk.read(request, self._now())
        if signed is None:
            return await self._anonymous(), None
        answer = await self._ask(request)
        status = answer.get("status")
        if status == "auth-failed":
            raise AuthenticationFailed(str(answer.get("message", "Unauthorized")))
        if status != "auth-success":
            raise _nonsense()
        hawk.check_payload(signed, request)
        client_id = answer.get("clientId")
        if (
            not isinstance(client_id, str)
            or not is_client_id(client_id)
            or self._expiry(answer) <= self._now()
        ):
            raise _nonsense()
        identity = Identity(client_id, _scopes(answer), self._expiry(answer), "hawk")
        return identity, signed.hash

    async def effective(self, scopes: Sequence[str]) -> ScopeSet:
        """As Authenticator. The roles are on the other side: it is shown a request of the queue's own client
        that claims no more than these scopes."""
        resource = "/scopes"
        signed = hawk.header(
            "GET",
            f"http://localhost{resource}",
            self._queue[0],
            self._queue[1],
            now=self._now(),
            ext={"authorizedScopes": list(scopes)},
        )
        answer = await self._ask(HawkRequest("GET", resource, "localhost", 80, signed))
        if answer.get("status") != "auth-success":
            raise _nonsense()
        return _scopes(answer)

    async def _anonymous(self) -> Identity:
        known = self._nobody
        if known is not None and known[1] > self._now():
            return known[0]
        answer = await self._ask(HawkRequest("GET", "/", "localhost", 80, None))
        if answer.get("status") != "no-auth":
            raise _nonsense()
        identity = Identity(NOBODY, _scopes(answer), math.inf, "none")
        self._nobody = (identity, self._now() + _NOBODY_FOR_S)
        return identity

    async def _ask(self, request: HawkRequest) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "method": request.method.lower(),
            "resource": request.resource,
            "host": request.host,
            "port": request.port,
        }
        if request.authorization is not None:
            asked["authorization"] = request.authorization
        try:
            answer = await self._client.post(_PATH, json=asked)
            if answer.status_code == 400:
                # Such as a Host that is no host name: nothing that a repeat would mend.
                raise AuthenticationFailed(
                    "the auth service cannot check a request with such a host or method"
                )
            answer.raise_for_status()
            value = answer.json()
        except (httpx.HTTPError, ValueError) as e:
            raise Unavailable(
                f"the auth service that checks signatures does not answer: {type(e).__name__}"
            ) from e
        if not isinstance(value, dict):
            raise _nonsense()
        return value

    @staticmethod
    def _expiry(answer: dict[str, Any]) -> float:
        """When the credentials end, in epoch seconds."""
        try:
            return datetime.fromisoformat(answer["expires"]).timestamp()
        except (KeyError, TypeError, ValueError) as e:
            raise _nonsense() from e


def _scopes(answer: dict[str, Any]) -> ScopeSet:
    """The scopes of an answer: nothing but a list of them will do."""
    scopes = answer.get("scopes")
    if not isinstance(scopes, list) or not all(map(is_scope, scopes)):
        raise _nonsense()
    return ScopeSet(scopes)


def _nonsense() -> Unavailable:
    return Unavailable("the auth service that checks signatures answers what nobody documented")
