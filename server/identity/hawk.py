"""Hawk: requests signed in their Authorization header, or in their URL by a bewit (auth.md 1 to 3).

Nothing here knows any client: `read` takes a request apart, and whoever finds the key asks `verify`.
Texts of errors are those that clients of the reference have always been given.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from server.domain import slugid
from server.errors import AuthenticationFailed
from server.identity.model import HawkRequest

MAX_HEADER = 16 * 1024
"""Longest Authorization header; the reference's 4 KiB do not hold a certificate with many scopes."""
MAX_RESOURCE = 16 * 1024
"""Longest path and query with a bewit."""
TIMESTAMP_SKEW_S = 900
"""How far a request's timestamp may be off, inclusive."""

_NAMES = frozenset({"id", "ts", "nonce", "hash", "ext", "mac", "app", "dlg"})
_header = re.compile(r"(\w+)(?:\s+(.*))?", re.ASCII)
_attribute = re.compile(r'(\w+)="([^"\\]*)"\s*(?:,\s*|$)', re.ASCII)
_value = re.compile(r"[ !#-\[\]-~]+")
_has_bewit = re.compile(r"/.*[?&]bewit=")
_bewit = re.compile(r"(/.*)([?&])bewit=([^&$]*)(?:&(.+))?")
_url_safe = re.compile(r"[A-Za-z0-9_-]*")
_digits = re.compile(r"[0-9]{1,16}")
_STANDARD = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed request, nothing of it believed yet.

    `certificate` and `authorized_scopes` are whatever JSON the ext held, None for what counts as absent.
    `hash` is the payload hash the signature covers, None without one. `text` is what was signed but for
    the key. `timestamp` is when (None where that is no number), for a bewit None: `bewit` is then True.
    """

    client_id: str
    ext: str
    certificate: object
    authorized_scopes: object
    hash: str | None
    mac: str
    text: str
    timestamp: int | None
    bewit: bool


def read(request: HawkRequest, now: float) -> Signed | None:
    """The request taken apart; None when it is not signed. Steps 1 to 3 of auth.md 1.5.

    `now` is in epoch seconds: a bewit that has ended is refused before its client is looked up.
    Raises AuthenticationFailed.
    """
    has_bewit = "bewit=" in request.resource and _has_bewit.match(request.resource) is not None
    if request.authorization is None:
        return _read_bewit(request, now) if has_bewit else None
    if has_bewit:
        raise AuthenticationFailed(
            "Cannot use two authentication schemes at once this request has both bewit in querystring and "
            "'authorization' header"
        )
    attributes = _attributes(request.authorization)
    if not all(attributes.get(name) for name in ("id", "ts", "nonce", "mac")):
        raise AuthenticationFailed("Bad Request: Missing attributes")
    ext = attributes.get("ext", "")
    certificate, authorized_scopes = read_ext(ext)
    text = _normalized(
        "header",
        attributes["ts"],
        attributes["nonce"],
        request.method.upper(),
        request.resource,
        request,
        attributes.get("hash", ""),
        ext,
    )
    if "app" in attributes:
        text += f"{attributes['app']}\n{attributes.get('dlg', '')}\n"
    ts = attributes["ts"]
    return Signed(
        client_id=attributes["id"],
        ext=ext,
        certificate=certificate,
        authorized_scopes=authorized_scopes,
        hash=attributes.get("hash"),
        mac=attributes["mac"],
        text=text,
        timestamp=int(ts) if _digits.fullmatch(ts) else None,
        bewit=False,
    )


def verify(signed: Signed, key: str, request: HawkRequest, now: float) -> None:
    """Steps 7 and 8 of auth.md 1.5, and the payload hash where the request carries its payload.

    Raises AuthenticationFailed.
    """
    if not hmac.compare_digest(sign(key, signed.text), signed.mac.encode()):
        raise AuthenticationFailed("Unauthorized: Bad mac")
    if signed.bewit:
        return
    # In whole milliseconds, as clocks are compared: the limit itself passes.
    if signed.timestamp is None or abs(signed.timestamp * 1000 - int(now * 1000)) > TIMESTAMP_SKEW_S * 1000:
        raise AuthenticationFailed("Unauthorized: Stale timestamp")
    check_payload(signed, request)


def check_payload(signed: Signed, request: HawkRequest) -> None:
    """Holds the payload hash, if the signature covers one, against the payload, if the request carries it.
    Raises AuthenticationFailed."""
    if signed.hash and request.payload is not None:
        expected = payload_hash(*request.payload)
        if not hmac.compare_digest(expected.encode(), signed.hash.encode()):
            raise AuthenticationFailed(f"Invalid payload hash: {signed.hash}, computed hash: {expected}")


def header(
    method: str,
    url: str,
    client_id: str,
    access_token: str,
    *,
    now: float,
    ext: dict[str, object] | None = None,
    payload: tuple[str, bytes] | None = None,
) -> str:
    """The Authorization header for a request of our own. `payload` is its MIME type and body."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    resource = f"{parts.path}?{parts.query}" if parts.query else parts.path
    request = HawkRequest(method, resource, parts.hostname or "", port, None)
    shown = b2a_base64(orjson.dumps(ext), newline=False).decode() if ext else ""
    hash_ = payload_hash(*payload) if payload else ""
    ts, nonce = str(int(now)), slugid.v4()
    text = _normalized("header", ts, nonce, method, resource, request, hash_, shown)
    attributes = {"id": client_id, "ts": ts, "nonce": nonce, "hash": hash_, "ext": shown}
    attributes["mac"] = sign(access_token, text).decode()
    return "Hawk " + ", ".join(f'{name}="{value}"' for name, value in attributes.items() if value)


def sign(key: str, text: str) -> bytes:
    """The MAC of a normalized string, in standard base64."""
    return b2a_base64(
        hmac.digest(key.encode(), text.encode("utf-8", "surrogatepass"), "sha256"), newline=False
    )


def payload_hash(content_type: str | None, body: bytes) -> str:
    """The payload hash of a body, in standard base64 (auth.md 1.2)."""
    kind = "" if content_type is None else content_type.partition(";")[0].strip().lower()
    digest = hashlib.sha256(b"hawk.1.payload\n%s\n%s\n" % (kind.encode("latin-1", "replace"), body)).digest()
    return b2a_base64(digest, newline=False).decode()


def read_ext(ext: str) -> tuple[object, object]:
    """The certificate and authorizedScopes in an ext; None for each that counts as absent (auth.md 3)."""
    if not ext:
        return None, None
    try:
        text = ext.translate(_STANDARD).rstrip("=")
        fields = orjson.loads(a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True))
    except (Base64Error, ValueError):
        raise AuthenticationFailed("Failed to parse ext") from None
    if not isinstance(fields, dict):
        raise AuthenticationFailed("Failed to parse ext")
    return _present(fields.get("certificate")), _present(fields.get("authorizedScopes"))


def _present(value: Any) -> object:
    """As JavaScript decides presence: empty lists and objects are there, other empty values are not."""
    return value if value or isinstance(value, (list, dict)) else None


def _attributes(header: str) -> dict[str, str]:
    if len(header) > MAX_HEADER:
        raise AuthenticationFailed("Bad Request: Header length too long")
    parts = _header.fullmatch(header.strip())
    if parts is None:
        raise AuthenticationFailed("Bad Request: Invalid header syntax")
    if parts[1].lower() != "hawk":
        raise AuthenticationFailed("Unauthorized: Unauthorized")
    if not parts[2]:
        raise AuthenticationFailed("Bad Request: Invalid header syntax")
    attributes: dict[str, str] = {}
    problem, at = "", 0
    for found in _attribute.finditer(parts[2]):
        name, value = found[1], found[2]
        if found.start() != at:
            problem = problem or "Bad header format"
        elif name not in _NAMES:
            problem = f"Unknown attribute: {name}"
        elif not _value.fullmatch(value):
            problem = f"Bad attribute value: {name}"
        elif name in attributes:
            problem = f"Duplicate attribute: {name}"
        attributes[name] = value
        at = found.end()
    if problem or at != len(parts[2]):
        raise AuthenticationFailed(f"Bad Request: {problem or 'Bad header format'}")
    return attributes


def _read_bewit(request: HawkRequest, now: float) -> Signed:
    if len(request.resource) > MAX_RESOURCE:
        raise AuthenticationFailed("Bad Request: Resource path exceeds max length")
    found = _bewit.fullmatch(request.resource)
    if found is None:
        raise AuthenticationFailed("Unauthorized: Unauthorized")
    before, separator, bewit, after = found.groups()
    if not bewit:
        raise AuthenticationFailed("Unauthorized: Empty bewit")
    if request.method not in ("GET", "HEAD"):
        raise AuthenticationFailed("Unauthorized: Invalid method")
    if not _url_safe.fullmatch(bewit):
        raise AuthenticationFailed("Bad Request: Invalid bewit encoding")
    try:
        text = a2b_base64(bewit.translate(_STANDARD) + "=" * (-len(bewit) % 4)).decode("latin-1")
    except Base64Error:
        text = ""
    parts = text.split("\\")
    if len(parts) != 4:
        raise AuthenticationFailed("Bad Request: Invalid bewit structure")
    client_id, exp, mac, ext = parts
    if not client_id or not _digits.fullmatch(exp) or not int(exp) or not mac:
        raise AuthenticationFailed("Bad Request: Missing bewit attributes")
    if int(exp) <= now:
        raise AuthenticationFailed("Unauthorized: Access expired")
    certificate, authorized_scopes = read_ext(ext)
    resource = f"{before}{separator}{after}" if after else before
    return Signed(
        client_id=client_id,
        ext=ext,
        certificate=certificate,
        authorized_scopes=authorized_scopes,
        hash=None,
        mac=mac,
        text=_normalized("bewit", exp, "", "GET", resource, request, "", ext),
        timestamp=None,
        bewit=True,
    )


def _normalized(
    kind: str, ts: str, nonce: str, method: str, resource: str, request: HawkRequest, hash_: str, ext: str
) -> str:
    escaped = ext.replace("\\", "\\\\").replace("\n", "\\n") if ext else ""
    return (
        f"hawk.1.{kind}\n{ts}\n{nonce}\n{method}\n{resource}\n{request.host.lower()}\n{request.port}\n"
        f"{hash_}\n{escaped}\n"
    )
