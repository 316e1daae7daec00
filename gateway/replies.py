"""Answers on the wire: the headers every one carries, ETag, gzip (queue.md 8.6, 8.7; compat.md 7)."""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections.abc import Mapping, Sequence

from gateway.protocol import Exchange

Header = tuple[bytes, bytes]

JSON = b"application/json; charset=utf-8"
TEXT = b"text/plain; charset=utf-8"

GZIP_FROM = 1024
"""Answers of so many bytes are compressed for those who ask."""

_GZIPPED_ON_THE_LOOP = 64 * 1024
"""What is smaller is compressed in less than a millisecond; pages of a thousand tasks are not."""

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

#: Said over TLS only, which a door that speaks it at all asks of everybody: 90 days of it.
_OVER_TLS = b"strict-transport-security: max-age=7776000\r\n"

_ALWAYS = b"".join(b"%s: %s\r\n" % header for header in ALWAYS)
#: What makes 128 random bits a UUID of version 4.
_UUID_FREE = ~(0xF << 76 | 0x3 << 62)
_UUID_FIXED = 0x4 << 76 | 0x2 << 62

_TRACE = b"x-taskcluster-trace-id"
#: What else comes as a trace id is replaced: it would break our own header, or somebody's log.
_plausible_trace = re.compile(rb"[\x21-\x7e]{1,256}").fullmatch


async def send(
    exchange: Exchange,
    headers: Mapping[bytes, bytes],
    verb: str,
    status: int,
    body: bytes,
    *,
    content_type: bytes = JSON,
    extra: Sequence[Header] = (),
) -> None:
    """Sends an API answer. `headers` are the request's; `extra` are further ones for the answer."""
    lines = [_ALWAYS, trace_lines(headers)]
    if exchange.over_tls:
        lines.append(_OVER_TLS)
    if extra:
        lines += [b"%s: %s\r\n" % header for header in extra]
    if status != 204:
        etag = etag_of(body)
        lines.append(b"etag: %s\r\n" % etag)
        if status == 200 and verb in ("GET", "HEAD") and _unchanged(headers, etag):
            status = 304
    if status in (204, 304):
        body = b""
    else:
        if len(body) >= GZIP_FROM and accepts_gzip(headers):
            body = _gzip(body) if len(body) < _GZIPPED_ON_THE_LOOP else await asyncio.to_thread(_gzip, body)
            lines.append(b"content-encoding: gzip\r\n")
        lines.append(b"content-type: %s\r\ncontent-length: %d\r\n" % (content_type, len(body)))
    await exchange.reply(status, b"".join(lines), b"" if verb == "HEAD" else body)


def etag_of(body: bytes) -> bytes:
    """The weak ETag of an answer (traps.md, wire)."""
    return b'W/"%x-%08x"' % (len(body), zlib.crc32(body))


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, 1, wbits=zlib.MAX_WBITS | 16)


def traces(headers: Mapping[bytes, bytes]) -> list[Header]:
    """The headers of `trace_lines`, for answers that are not written in one piece."""
    lines = trace_lines(headers).split(b"\r\n")
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines) if name]


def trace_lines(headers: Mapping[bytes, bytes]) -> bytes:
    """The caller's trace id, or a fresh one, and an id for this request."""
    trace = headers.get(_TRACE, b"")
    if not _plausible_trace(trace):
        trace = _uuid()
    return b"x-for-trace-id: %s\r\nx-for-request-id: %s\r\n" % (trace, _uuid())


def _uuid() -> bytes:
    """A random UUID's text; the library's way to it costs three times as much."""
    text = b"%032x" % (random.getrandbits(128) & _UUID_FREE | _UUID_FIXED)
    return b"-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


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
