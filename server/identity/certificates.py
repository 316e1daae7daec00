"""Temporary credentials: made offline from a client's own, carried in a signed certificate (auth.md 4).

The issuer's access token is the HMAC key of both the signature and the temporary access token,
so whoever knows the issuer can check them without having been asked when they were made.
"""

from __future__ import annotations

import hmac
import math
from binascii import b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from server.domain import slugid
from server.domain.scopes import ScopeSet, is_scope
from server.errors import AuthenticationFailed
from server.identity.model import MAX_LIFETIME_S, SKEW_S

_SKEW_MS = SKEW_S * 1000
_MAX_LIFETIME_MS = MAX_LIFETIME_S * 1000
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


@dataclass(slots=True)
class TemporaryCredentials:
    """What a temporary caller needs; `certificate` is JSON text, as API payloads carry it."""

    client_id: str
    access_token: str
    certificate: str


@dataclass(frozen=True, slots=True)
class Issuer:
    """A permanent client, live at this moment: `scopes` are expanded, without the anonymous role.

    `expires` in epoch seconds.
    """

    client_id: str
    access_token: str
    scopes: ScopeSet
    expires: float


@dataclass(frozen=True, slots=True)
class VerifiedCertificate:
    """What a certificate that passed every check grants.

    `expires` is the earlier end of issuer and certificate, `accepted_until` the moment from which
    it is refused, later by the clock skew unless the issuer ends first. Epoch seconds both.
    """

    scopes: tuple[str, ...]
    expires: float
    accepted_until: float


def derive_access_token(issuer_token: str, seed: str) -> str:
    """The temporary access token: depends on issuer and seed only, not on name or scopes."""
    # JSON can spell half a surrogate pair, which plain UTF-8 refuses; here it is just a wrong seed.
    digest = hmac.digest(issuer_token.encode(), seed.encode("utf-8", "surrogatepass"), "sha256")
    return b2a_base64(digest, newline=False).translate(_URL_SAFE).rstrip(b"=").decode()


def issue(
    issuer_id: str,
    issuer_token: str,
    *,
    scopes: Sequence[str],
    start_ms: int,
    expiry_ms: int,
    client_id: str | None = None,
    seed: str | None = None,
) -> TemporaryCredentials:
    """Make temporary credentials, named when `client_id` is given. Times in epoch milliseconds.

    Whether the issuer holds the scopes is found out at use. ValueError when the certificate could
    never be accepted: longer than 31 days, or named as its own issuer.
    """
    if expiry_ms - start_ms > _MAX_LIFETIME_MS:
        raise ValueError("temporary credentials cannot last longer than 31 days")
    if client_id == issuer_id:
        raise ValueError("named temporary credentials need a name other than their issuer's")
    if seed is None:
        seed = slugid.pair()
    named = client_id is not None
    name = client_id if client_id is not None else issuer_id
    text = _signed_text(name, issuer_id if named else None, seed, str(start_ms), str(expiry_ms), scopes)
    fields: dict[str, object] = {
        "version": 1,
        "scopes": scopes,
        "start": start_ms,
        "expiry": expiry_ms,
        "seed": seed,
    }
    if named:
        fields["issuer"] = issuer_id
    fields["signature"] = _sign(issuer_token, text)
    return TemporaryCredentials(name, derive_access_token(issuer_token, seed), orjson.dumps(fields).decode())


def issuer_of(certificate: object, client_id: str) -> str:
    """Whose token signed a certificate presented under this name: step 1 of auth.md 4.3.

    An empty issuer counts as none: the certificate is unnamed, and the caller its own issuer.
    """
    issuer = certificate.get("issuer") if isinstance(certificate, dict) else None
    if not issuer and not isinstance(issuer, (list, dict)):
        return client_id
    if not isinstance(issuer, str):
        raise AuthenticationFailed("ext.certificate.issuer must be a string")
    if issuer == client_id:
        raise AuthenticationFailed("ext.certificate.issuer must differ from the supplied clientId")
    return issuer


def key_of(certificate: object, issuer: Issuer) -> str | None:
    """The temporary access token that belongs to a certificate; None when it has no readable seed."""
    seed = certificate.get("seed") if isinstance(certificate, dict) else None
    return derive_access_token(issuer.access_token, seed) if isinstance(seed, str) else None


def verify(certificate: object, *, client_id: str, issuer: Issuer, now_ms: float) -> VerifiedCertificate:
    """Steps 3 to 8 of auth.md 4.3, in their order; AuthenticationFailed with the text given there.

    `issuer` is the client named by `issuer_of`, `client_id` the name the caller goes by.
    """
    if not isinstance(certificate, (dict, list)):
        raise AuthenticationFailed("ext.certificate must be a JSON object")
    # To JavaScript, where these checks come from, a list is an object without our keys.
    fields = certificate if isinstance(certificate, dict) else {}
    version, seed, scopes = fields.get("version"), fields.get("seed"), fields.get("scopes")
    if version != 1 or isinstance(version, bool):
        raise AuthenticationFailed("ext.certificate.version must be 1")
    if not isinstance(seed, str):
        raise AuthenticationFailed("ext.certificate.seed must be a string")
    if len(seed) != 44:
        raise AuthenticationFailed("ext.certificate.seed must be 44 characters")
    start = _number(fields, "start")
    expiry = _number(fields, "expiry")
    if not isinstance(scopes, list):
        raise AuthenticationFailed("ext.certificate.scopes must be an array")
    if not all(map(is_scope, scopes)):
        raise AuthenticationFailed("ext.certificate.scopes must be an array of valid scopes")
    if start > now_ms + _SKEW_MS:
        raise AuthenticationFailed("ext.certificate.start > now")
    if expiry < now_ms - _SKEW_MS:
        raise AuthenticationFailed("ext.certificate.expiry < now")
    if expiry - start > _MAX_LIFETIME_MS:
        raise AuthenticationFailed("ext.certificate cannot last longer than 31 days!")
    named = issuer.client_id != client_id
    if named:
        right = f"auth:create-client:{client_id}"
        if not issuer.scopes.satisfies(right):
            raise AuthenticationFailed(
                f"ext.certificate issuer `{issuer.client_id}` doesn't have `{right}` for supplied clientId."
            )
    elif "clientId" in fields:
        raise AuthenticationFailed("ext.certificate.clientId must only be used with ext.certificate.issuer")
    if not issuer.scopes.satisfies_all(scopes):
        raise AuthenticationFailed(
            f"ext.certificate issuer `{issuer.client_id}` doesn't satisfy all certificate scopes "
            f"{', '.join(scopes)}.  The temporary credentials were not generated correctly."
        )
    text = _signed_text(
        client_id, issuer.client_id if named else None, seed, _print(start), _print(expiry), scopes
    )
    if not _signature_holds(fields.get("signature"), issuer.access_token, text, empty=not scopes):
        suffix = ", or wrong clientId provided" if named else ""
        raise AuthenticationFailed(f"ext.certificate.signature is not valid{suffix}")
    ends = expiry / 1000
    return VerifiedCertificate(tuple(scopes), min(issuer.expires, ends), min(issuer.expires, ends + SKEW_S))


def _signed_text(
    name: str, issuer: str | None, seed: str, start: str, expiry: str, scopes: Sequence[str]
) -> str:
    who = f"clientId:{name}\nissuer:{issuer}\n" if issuer is not None else ""
    head = f"version:1\n{who}seed:{seed}\nstart:{start}\nexpiry:{expiry}\nscopes:"
    return "\n".join((head, *scopes))


def _sign(issuer_token: str, text: str) -> str:
    digest = hmac.digest(issuer_token.encode(), text.encode("utf-8", "surrogatepass"), "sha256")
    return b2a_base64(digest, newline=False).decode()


def _signature_holds(signature: object, issuer_token: str, text: str, *, empty: bool) -> bool:
    if not isinstance(signature, str):
        return False
    given = signature.encode("utf-8", "surrogatepass")
    # The JavaScript issuer ends the text of an empty scope list with a newline, the others do not.
    texts = (text, text + "\n") if empty else (text,)
    return any([hmac.compare_digest(given, _sign(issuer_token, each).encode()) for each in texts])


def _number(fields: dict[str, object], key: str) -> int | float:
    value = fields.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise AuthenticationFailed(f"ext.certificate.{key} must be a number")


def _print(number: int | float) -> str:
    """As JavaScript prints it: whole numbers without a decimal point."""
    return str(int(number)) if number == int(number) else repr(number)
