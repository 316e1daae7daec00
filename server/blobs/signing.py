"""URLs of the disk store: made here, and believed only if they were made here.

    <root>/artifacts/<bucket>/<key>?expires=<epoch seconds>&...&signature=<HMAC>

The signature covers the verb, bucket, key and every parameter, so nothing of a URL can be changed.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

PATH = "/artifacts/"
"""What the paths of blobs begin with."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a signed URL allows: one verb on one blob until `expires` (epoch seconds). Of an upload also the
    MIME type, the length if it is known, and whether downloads are to be attachments."""

    verb: str
    bucket: str
    key: str
    expires: int
    content_type: str = ""
    length: int | None = None
    attachment: bool = False


class BadUrl(ValueError):
    """A URL that nobody here made, or that was changed."""


class UrlSigner:
    """Signs with a key that all processes of the deployment have."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def path(self, terms: Terms) -> str:
        """Path and query of the URL with these terms."""
        query = {"expires": str(terms.expires)}
        if terms.content_type:
            query["type"] = terms.content_type
        if terms.length is not None:
            query["length"] = str(terms.length)
        if terms.attachment:
            query["attachment"] = "1"
        return f"{blob_path(terms.bucket, terms.key)}?{urlencode({**query, 'signature': self._sign(terms)})}"

    def terms(self, verb: str, bucket: str, key: str, query: str) -> Terms:
        """The terms of a request's URL. Raises BadUrl."""
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
        except ValueError as e:
            raise BadUrl("the URL is not signed") from e
        found = dict(pairs)
        if len(found) != len(pairs) or "signature" not in found or not _is_number(found.get("expires", "")):
            raise BadUrl("the URL is not signed")
        length = found.get("length")
        if length is not None and not _is_number(length):
            raise BadUrl("the signature does not fit")
        terms = Terms(
            verb,
            bucket,
            key,
            int(found["expires"]),
            found.get("type", ""),
            None if length is None else int(length),
            found.get("attachment") == "1",
        )
        if not hmac.compare_digest(self._sign(terms).encode(), found["signature"].encode()):
            raise BadUrl("the signature does not fit")
        return terms

    def _sign(self, terms: Terms) -> str:
        length = "" if terms.length is None else str(terms.length)
        text = "\n".join(
            [
                terms.verb,
                terms.bucket,
                quote(terms.key, safe=""),
                str(terms.expires),
                quote(terms.content_type, safe=""),
                length,
                str(int(terms.attachment)),
            ]
        )
        return urlsafe_b64encode(hmac.digest(self._key, text.encode(), "sha256")).decode().rstrip("=")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18


def blob_path(bucket: str, key: str) -> str:
    """The path of a blob. Slashes stay where every client leaves them alone; clients tidy up `..`, `.` and
    empty segments, so keys with one of these are one long segment."""
    tidy = all(segment not in ("", ".", "..") for segment in key.split("/"))
    return f"{PATH}{bucket}/{quote(key, safe='/' if tidy else '')}"


def split_path(path: str) -> tuple[str, str] | None:
    """Bucket and key of a raw path below PATH; None for one that names no blob."""
    bucket, slash, rest = path.removeprefix(PATH).partition("/")
    try:
        key = unquote_to_bytes(rest.encode("latin-1")).decode("ascii")
    except UnicodeError:
        return None
    return (bucket, key) if slash and key and key.isprintable() else None
