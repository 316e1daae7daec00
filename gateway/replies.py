"""Answers on the wire: the headers every one carries, ETag, gzip (queue.md 8.6, 8.7; compat.md 7)."""

from __future__ import annotations

import re
import uuid
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

Header = tuple[bytes, bytes]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

JSON = b"application/json; charset=utf-8"
TEXT = b"text/plain; charset=utf-8"

GZIP_FROM = 1024
"""Answers of so many bytes are compressed for those who ask."""

ALWAYS: Sequence[Header] = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-max-age", b"900"),
    (b"access-control-allow-methods", b"OPTIONS,GET,HEAD,POST,PUT,DELETE,TRACE,CONNECT"),
    (b"access-control-request-method", b"*"),
    (
        b"access-control-allow-headers",
        b"X-Requested-With,Content-Type,Authorization,Accept,Origin,Cache-Control",
    ),
    (b"cache-control", b"no-store no-cache must-revalidate"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'"),
    (b"vary", b"Accept-Encoding"),
)
"""What every API answer says, errors and unknown routes included."""

_TRACE = b"x-taskcluster-trace-id"
#: What else comes as a trace id is replaced: it would break our own header, or somebody's log.
_plausible_trace = re.compile(rb"[\x21-\x7e]{1,256}").fullmatch


async def send(
    send: Send,
    headers: Mapping[bytes, bytes],
    verb: str,
    status: int,
    body: bytes,
    *,
    content_type: bytes = JSON,
    extra: Sequence[Header] = (),
) -> None:
    """Sends an API answer. `headers` are the request's; `extra` are further ones for the answer."""
    out = [*ALWAYS, *trace_headers(headers), *extra]
    if status in (204, 304):
        body = b""
    else:
        if status == 200 and verb in ("GET", "HEAD"):
            etag = b'W/"%x-%08x"' % (len(body), zlib.crc32(body))
            out.append((b"etag", etag))
            if _unchanged(headers, etag):
                await _write(send, 304, out, b"")
                return
        out.append((b"content-type", content_type))
        if len(body) >= GZIP_FROM and accepts_gzip(headers):
            body = zlib.compress(body, 1, wbits=zlib.MAX_WBITS | 16)
            out.append((b"content-encoding", b"gzip"))
        out.append((b"content-length", b"%d" % len(body)))
    await _write(send, status, out, b"" if verb == "HEAD" else body)


def trace_headers(headers: Mapping[bytes, bytes]) -> tuple[Header, Header]:
    """The caller's trace id, or a fresh one, and an id for this request."""
    trace = headers.get(_TRACE, b"")
    if not _plausible_trace(trace):
        trace = str(uuid.uuid4()).encode()
    return (b"x-for-trace-id", trace), (b"x-for-request-id", str(uuid.uuid4()).encode())


def accepts_gzip(headers: Mapping[bytes, bytes]) -> bool:
    """Whether Accept-Encoding asks for gzip, and not with a weight of zero."""
    accepted = headers.get(b"accept-encoding")
    if accepted is None or b"gzip" not in accepted:
        return False
    for choice in accepted.lower().split(b","):
        name, _, parameters = choice.partition(b";")
        if name.strip() in (b"gzip", b"x-gzip"):
            key, _, weight = parameters.partition(b"=")
            return not (key.strip() == b"q" and weight.strip(b" 0.") == b"")
    return False


def _unchanged(headers: Mapping[bytes, bytes], etag: bytes) -> bool:
    known = headers.get(b"if-none-match")
    if known is None or b"no-cache" in headers.get(b"cache-control", b""):
        return False
    return known.strip() == b"*" or etag in [one.strip() for one in known.split(b",")]


async def _write(send: Send, status: int, headers: list[Header], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
