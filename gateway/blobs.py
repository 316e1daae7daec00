"""The disk store over HTTP: uploads and downloads by URLs that this deployment has signed.

Bytes go through in pieces, so a blob of any size costs a few megabytes of memory, and files are touched
beside the event loop only.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import partial
from typing import Any

import orjson
import structlog

from server.blobs.disk import DiskStore, IncomingBlob, OpenBlob, Stored
from server.blobs.signing import BadUrl, Terms, split_path
from server.blobs.store import BlobMeta
from server.domain import artifact_keys
from server.errors import QueueError
from server.objects.service import BLOB_PREFIX
from server.pipeline import incident_of
from server.services import Services
from server.store.database import Statement, Transaction
from server.store.statements import load

_ARTIFACTS = load("artifacts")
_OBJECTS = load("objects")

log = structlog.get_logger(__name__)

Header = tuple[bytes, bytes]

_BEGUN = "tcqueue.begun"
"""In the scope once an answer's head has gone out."""

_GATHERED_BYTES = 1024 * 1024
"""How much of an upload is gathered before it is written."""

_ALWAYS: Sequence[Header] = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"etag, content-range, accept-ranges"),
    # What tasks made is shown as if it came from an origin of its own: no script of a page may call the
    # API with what this origin's visitors hold.
    (b"content-security-policy", b"sandbox"),
    (b"x-content-type-options", b"nosniff"),
)
_PREFLIGHT: Sequence[Header] = (
    (b"access-control-allow-methods", b"GET, HEAD, PUT, OPTIONS"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"900"),
    (b"allow", b"GET, HEAD, PUT, OPTIONS"),
)
_RANGE = re.compile(rb"bytes=(\d{0,18})-(\d{0,18})")
_ENCODING = re.compile(rb"[a-z0-9._-]{0,40}")


class _Refused(Exception):
    """Ends a request with a status and a text."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class _Gone(Exception):
    """The client hung up before its upload was complete."""


class BlobDoor:
    """The ASGI application below `/artifacts/`."""

    def __init__(self, services: Services, store: DiskStore) -> None:
        self._services = services
        self._store = store

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answers one request."""
        verb: str = scope["method"]
        try:
            if verb == "OPTIONS":
                await _answer(send, 200, _PREFLIGHT)
            elif verb == "PUT":
                stored = await self._take(scope, receive)
                await _answer(send, 200, [(b"etag", _quoted(stored.etag))])
            elif verb in ("GET", "HEAD"):
                await self._give(scope, send, verb)
            else:
                raise _Refused(405, "MethodNotAllowed", f"{verb} is not for artifacts")
        except _Gone:
            return
        except _Refused as e:
            await _refuse(scope, send, e)
        except Exception as e:
            error = e if isinstance(e, QueueError) else incident_of("artifact content", e)
            if scope.get(_BEGUN):
                # The client sees by its length that the content is not whole.
                log.warning("an artifact's content broke off", error=error.message)
                scope["exchange"].hang_up()
                return
            await _refuse(scope, send, _Refused(error.http_status, error.code, error.message))

    def _terms(self, scope: MutableMapping[str, Any], verb: str) -> Terms:
        """What the request's URL allows. Raises _Refused."""
        path, _, query = scope["exchange"].target.partition("?")
        place = split_path(path)
        if place is None:
            raise _Refused(404, "ResourceNotFound", "there is no such artifact")
        bucket, key = place
        open_to_all = bucket == self._store.public_bucket and not (
            self._services.settings.sign_public_artifact_urls
        )
        if verb == "GET" and open_to_all:
            return Terms(verb, bucket, key, 0)
        try:
            terms = self._store.signer.terms(verb, bucket, key, query)
        except BadUrl as e:
            raise _Refused(403, "AccessDenied", str(e)) from None
        if terms.expires < self._services.clock.now().timestamp():
            raise _Refused(403, "AccessDenied", "the URL has expired")
        return terms

    # -- uploads

    async def _take(self, scope: MutableMapping[str, Any], receive: Any) -> Stored:
        terms = self._terms(scope, "PUT")
        headers = dict(scope["headers"])
        meta = _meta(terms, headers)
        length = _length(terms, headers)
        wanted = _wanted(terms)
        if wanted is None or not await self._services.db.fetch(*wanted, hot=True):
            raise _unwanted()
        incoming: IncomingBlob = await self._store.blocking(self._store.incoming)
        try:
            await self._write(incoming, receive, terms.length if length is None else length)
            stored = await self._store.blocking(lambda: incoming.settle(terms.bucket, terms.key, meta))
            placed = False

            async def place(tx: Transaction) -> None:
                nonlocal placed
                # Asked again, and kept so: the upload may have been finished, or the artifact have
                # expired, while the bytes came.
                if not await tx.run(*wanted):
                    raise _unwanted()
                if not placed:
                    await self._store.blocking(lambda: incoming.place(stored))
                placed = True

            await self._services.db.in_transaction(place, hot=False)
            return stored
        except BaseException:
            await asyncio.shield(self._store.blocking(incoming.drop))
            raise

    async def _write(self, incoming: IncomingBlob, receive: Any, length: int | None) -> None:
        pieces: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            body: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            pieces.append(body)
            size += len(body)
            if length is not None and incoming.length + size > length:
                raise _Refused(400, "InputError", f"more than the {length} bytes announced")
            if size >= _GATHERED_BYTES or not more:
                writing, pieces, size = pieces, [], 0
                await self._store.blocking(partial(incoming.write_all, writing))
        if length is not None and incoming.length != length:
            raise _Refused(400, "InputError", f"{incoming.length} bytes came, {length} were announced")

    # -- downloads

    async def _give(self, scope: MutableMapping[str, Any], send: Any, verb: str) -> None:
        terms = self._terms(scope, "GET")
        blob = await self._store.blocking(lambda: self._store.open(terms.bucket, terms.key))
        if blob is None:
            raise _Refused(404, "ResourceNotFound", "there is no such artifact, or its content never came")
        chunks: AsyncGenerator[bytes, None] | None = None
        try:
            status, begin, end, extra = _selected(blob, dict(scope["headers"]), partial_too=verb == "GET")
            size = 0 if status in (304, 416) else end - begin
            head = [*_describe(blob, public=terms.expires == 0), *extra]
            if status != 304:
                head.append((b"content-length", b"%d" % size))
            if verb == "HEAD" or not size:
                await _answer(send, status, head)
                return
            await send({"type": "http.response.start", "status": status, "headers": [*_ALWAYS, *head]})
            scope[_BEGUN] = True
            chunks = self._store.chunks(blob, begin, end)
            async for piece in chunks:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if scope["exchange"].gone:
                    return
            await send({"type": "http.response.body", "body": b""})
        finally:
            if chunks is not None:
                await chunks.aclose()
            blob.close()


def _wanted(terms: Terms) -> Statement | None:
    """What finds, and holds, the row that the bytes are for: bytes that no row knows would never be deleted,
    and those of a finished object never change. None for a key that no row can have."""
    if terms.key.startswith(BLOB_PREFIX):
        return _OBJECTS["is_uploading"], (terms.key,)
    place = artifact_keys.split(terms.key)
    return None if place is None else (_ARTIFACTS["has_blob"], (*place, terms.bucket))


def _unwanted() -> _Refused:
    return _Refused(403, "AccessDenied", "nothing is to be uploaded here any more")


def _meta(terms: Terms, headers: dict[bytes, bytes]) -> BlobMeta:
    """What is kept beside the bytes. Raises _Refused for an upload that is not the one announced."""
    given = headers.get(b"content-type", b"").decode("latin-1")
    if given.strip().lower() != terms.content_type.strip().lower():
        raise _Refused(
            403, "AccessDenied", f"the upload is signed for content-type {terms.content_type}, not {given}"
        )
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if not _ENCODING.fullmatch(encoding):
        raise _Refused(400, "InputError", "content-encoding is a name, such as gzip")
    # Whatever it is, downloads are told: workers put archives up as what Python takes for an encoding.
    kept = "" if encoding == b"identity" else encoding.decode("ascii")
    return BlobMeta(terms.content_type, kept, terms.attachment)


def _length(terms: Terms, headers: dict[bytes, bytes]) -> int | None:
    """The length of the body if the request says it. Raises _Refused for another one than was signed."""
    text = headers.get(b"content-length")
    if text is None:
        return None
    length = int(text)
    if terms.length is not None and length != terms.length:
        raise _Refused(400, "InputError", f"the upload is signed for {terms.length} bytes, not {length}")
    return length


def _selected(
    blob: OpenBlob, headers: dict[bytes, bytes], *, partial_too: bool
) -> tuple[int, int, int, list[Header]]:
    """Status, begin, end and further headers of the answer to a conditional or partial request (RFC 9110)."""
    length, etag = blob.stored.length, _quoted(blob.stored.etag)
    unless = headers.get(b"if-none-match")
    if unless is not None:
        if unless.strip() == b"*" or etag in (tag.strip().removeprefix(b"W/") for tag in unless.split(b",")):
            return 304, 0, 0, []
    elif _not_since(headers.get(b"if-modified-since"), blob.modified):
        return 304, 0, 0, []
    wanted = _RANGE.fullmatch(headers.get(b"range", b"").strip().replace(b" ", b""))
    only_if = headers.get(b"if-range")
    if (
        not partial_too
        or wanted is None
        or not any(wanted.groups())
        or (only_if is not None and only_if.strip() != etag)
    ):
        return 200, 0, length, []
    first, last = wanted.groups()
    begin = int(first) if first else max(0, length - int(last))
    end = min(length, int(last) + 1) if first and last else length
    if first and last and int(last) < begin:
        return 200, 0, length, []
    if begin >= length:
        return 416, 0, 0, [(b"content-range", b"bytes */%d" % length)]
    return 206, begin, end, [(b"content-range", b"bytes %d-%d/%d" % (begin, end - 1, length))]


def _not_since(header: bytes | None, modified: datetime) -> bool:
    try:
        since = parsedate_to_datetime((header or b"").decode("latin-1"))
        return modified.replace(microsecond=0) <= since
    except (TypeError, ValueError):
        return False


def _describe(blob: OpenBlob, *, public: bool) -> list[Header]:
    stored = blob.stored
    found = [
        (b"etag", _quoted(stored.etag)),
        (b"last-modified", format_datetime(blob.modified, usegmt=True).encode()),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", b"no-cache" if public else b"private, no-cache"),
        (b"content-type", stored.meta.content_type.encode("latin-1")),
    ]
    if stored.meta.content_encoding:
        found.append((b"content-encoding", stored.meta.content_encoding.encode()))
    if stored.meta.attachment:
        found.append((b"content-disposition", b"attachment"))
    return found


def _quoted(etag: str) -> bytes:
    return f'"{etag}"'.encode()


async def _refuse(scope: MutableMapping[str, Any], send: Any, refused: _Refused) -> None:
    body = orjson.dumps({"code": refused.code, "message": refused.message}, option=orjson.OPT_INDENT_2)
    head = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    if any(name == b"expect" for name, _ in scope["headers"]):
        # Nobody knows whether the body comes now.
        head.append((b"connection", b"close"))
    # Otherwise what is left of a body is read and dropped: a connection closed with bytes unread is reset,
    # and the client would never see why.
    await _answer(send, refused.status, head, b"" if scope["method"] == "HEAD" else body)


async def _answer(send: Any, status: int, head: Sequence[Header], body: bytes = b"") -> None:
    known = any(name == b"content-length" for name, _ in head)
    extra = [] if known or status == 304 else [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": [*_ALWAYS, *head, *extra]})
    await send({"type": "http.response.body", "body": body})
