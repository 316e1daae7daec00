"""Bearer tokens: JWTs that a client signs with its own access token (HS256).

Claims: `iss` is the clientId, `exp` the end, required and at most 31 days ahead; `certificate` (for
temporary credentials, auth.md 4, as an object or as the JSON text that payloads carry) and
`authorizedScopes` (a list, auth.md 4.4) are optional; others are ignored. Any JWT library makes one. No
error text ever holds the secret.
"""

from __future__ import annotations

import math
import time
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt
import orjson
from jwt.algorithms import HMACAlgorithm

from server.errors import AuthenticationFailed
from server.identity.model import MAX_LIFETIME_S, SKEW_S, is_client_id

MAX_TOKEN_BYTES = 16 * 1024
_MAX_CLIENT_ID = 1000
_ALGORITHM = "HS256"
_STANDARD = str.maketrans("-_", "+/")


class _AnyLength(HMACAlgorithm):
    """HMAC without the library's advice on key length: an access token may have 22 characters."""

    def check_key_length(self, key: Any) -> str | None:
        return None


_jws = jwt.PyJWS(algorithms=[])
_jws.register_algorithm(_ALGORITHM, _AnyLength(HMACAlgorithm.SHA256))


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says, nothing of it checked yet but its form.

    `certificate` and `authorized_scopes` are whatever JSON stood there, None when absent or null; a
    certificate that stood there as text is the object it spells.
    `payload` are the bytes the signature must cover.
    """

    client_id: str
    certificate: object
    authorized_scopes: object
    fields: Mapping[str, object]
    payload: bytes


def mint(
    client_id: str,
    access_token: str,
    *,
    certificate: Mapping[str, object] | str | None = None,
    authorized_scopes: Sequence[str] | None = None,
    lifetime_s: float = 900,
    now: float | None = None,
) -> str:
    """A token for these credentials; `certificate` as an object or as the JSON text payloads carry."""
    claims: dict[str, object] = {
        "iss": client_id,
        "exp": math.ceil((time.time() if now is None else now) + lifetime_s),
    }
    if certificate is not None:
        claims["certificate"] = orjson.loads(certificate) if isinstance(certificate, str) else certificate
    if authorized_scopes is not None:
        claims["authorizedScopes"] = list(authorized_scopes)
    return _jws.encode(orjson.dumps(claims), access_token, algorithm=_ALGORITHM)


def read(token: str) -> Claims:
    """Take a token apart without believing it, to learn whose key it is to be checked with.

    AuthenticationFailed when it is larger than 16 KiB, no JWT, or names no possible client.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise AuthenticationFailed(f"bearer token is longer than {MAX_TOKEN_BYTES} bytes")
    segments = token.split(".")
    if len(segments) != 3:
        raise AuthenticationFailed("bearer token is malformed: a JWT has three segments")
    text = segments[1]
    try:
        payload = a2b_base64(text.translate(_STANDARD) + "=" * (-len(text) % 4))
        fields = orjson.loads(payload)
    except (Base64Error, ValueError):
        raise AuthenticationFailed("bearer token is malformed: its claims cannot be read") from None
    if not isinstance(fields, dict):
        raise AuthenticationFailed("bearer token is malformed: its claims are no JSON object")
    issuer = fields.get("iss")
    if not isinstance(issuer, str) or len(issuer) > _MAX_CLIENT_ID or not is_client_id(issuer):
        raise AuthenticationFailed("bearer token must have a clientId as its iss claim")
    certificate = _object(fields.get("certificate"))
    return Claims(issuer, certificate, fields.get("authorizedScopes"), fields, payload)


def verify(token: str, claims: Claims, access_token: str, now: float) -> float:
    """Check a token taken apart by `read` against its client's key; returns its end in epoch seconds.

    AuthenticationFailed for another algorithm than HS256 (`none` included), a wrong signature, an
    end that is missing, past or more than 31 days ahead, or a beginning still to come.
    """
    try:
        payload = _jws.decode(token, access_token, algorithms=[_ALGORITHM])
    except jwt.InvalidSignatureError:
        raise AuthenticationFailed(
            f"bearer token is not signed with the access token of '{claims.client_id}'"
        ) from None
    except jwt.InvalidAlgorithmError:
        raise AuthenticationFailed("bearer token must be signed with HS256") from None
    except (jwt.InvalidTokenError, ValueError):
        raise AuthenticationFailed("bearer token is malformed: its header cannot be read") from None
    if payload != claims.payload:
        raise AuthenticationFailed("bearer token is malformed: its claims can be read in two ways")
    end = _instant(claims.fields, "exp")
    if end is None:
        raise AuthenticationFailed("bearer token must have an exp claim")
    if end <= now:
        raise AuthenticationFailed("bearer token has expired")
    if end > now + MAX_LIFETIME_S:
        raise AuthenticationFailed("bearer token must not last longer than 31 days")
    begin = _instant(claims.fields, "nbf")
    if begin is not None and begin > now + SKEW_S:
        raise AuthenticationFailed("bearer token is not valid yet")
    return end


def _object(certificate: object) -> object:
    """A certificate that may have come as JSON text; text of anything but an object stays what it is."""
    if not isinstance(certificate, str):
        return certificate
    try:
        value = orjson.loads(certificate)
    except ValueError:
        return certificate
    return value if isinstance(value, dict) else certificate


def _instant(fields: Mapping[str, object], claim: str) -> float | None:
    value = fields.get(claim)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise AuthenticationFailed(f"bearer token's {claim} claim must be a number of seconds")
    return float(value)
