"""The fixed client with which clients' test suites try their signing (auth.md 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from server.domain.scopes import ScopeSet, canonical_key, satisfies
from server.errors import AuthenticationFailed
from server.identity import certificates, hawk, tokens
from server.identity.certificates import Issuer
from server.identity.directory import EVERYONE, check_authorized
from server.identity.model import NOBODY, Credential, Delegate, HawkRequest

CLIENT_ID = "tester"
ACCESS_TOKEN = "no-secret"


def authenticate(credential: Credential, client_scopes: Sequence[str], now: float) -> tuple[str, list[str]]:
    """Who calls, and their scopes in the order of auth.md 5: no roles are applied.

    `client_scopes` are those of the fixed client. A caller without credentials is NOBODY. Raises
    AuthenticationFailed, for every other client too.
    """
    if credential is None:
        return NOBODY, with_everyone(())
    issuer = Issuer(CLIENT_ID, ACCESS_TOKEN, ScopeSet(client_scopes), math.inf)
    if isinstance(credential, HawkRequest):
        request = credential
        signed = hawk.read(request, now)
        if signed is None:
            return NOBODY, with_everyone(())
        key, scopes = _granted(
            issuer, signed.client_id, signed.certificate, signed.authorized_scopes, client_scopes, now
        )
        hawk.verify(signed, key, request, now)
        return signed.client_id, with_everyone(scopes)
    if isinstance(credential, Delegate):
        raise AuthenticationFailed("a front door acts as no tester")
    claims = tokens.read(credential)
    key, scopes = _granted(
        issuer, claims.client_id, claims.certificate, claims.authorized_scopes, client_scopes, now
    )
    tokens.verify(credential, claims, key, now)
    return claims.client_id, with_everyone(scopes)


def _granted(
    issuer: Issuer,
    client_id: str,
    certificate: object,
    authorized: object,
    client_scopes: Sequence[str],
    now: float,
) -> tuple[str, list[str]]:
    """The key that such a caller signs with, and the scopes it has if it does."""
    issuer_id = client_id if certificate is None else certificates.issuer_of(certificate, client_id)
    if issuer_id != CLIENT_ID:
        raise AuthenticationFailed(f"Client with clientId '{issuer_id}' not found")
    key, scopes = ACCESS_TOKEN, list(client_scopes)
    if certificate is not None:
        verified = certificates.verify(certificate, client_id=client_id, issuer=issuer, now_ms=now * 1000)
        key, scopes = certificates.key_of(certificate, issuer) or "", list(verified.scopes)
    if authorized is not None:
        scopes = check_authorized(authorized, ScopeSet(with_everyone(scopes)))
    return key, scopes


def with_everyone(scopes: Sequence[str]) -> list[str]:
    """The scopes in their order, and everyone's before the first that sorts after it, unless one met on
    the way satisfies it (auth.md 5)."""
    merged = list(scopes)
    for at, scope in enumerate(scopes):
        if satisfies(scope, EVERYONE):
            return merged
        if canonical_key(scope) > canonical_key(EVERYONE):
            merged.insert(at, EVERYONE)
            return merged
    return [*merged, EVERYONE]
