"""Reading a request's body: up to the limit, its Content-Encoding undone, its JSON parsed (auth.md 6)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

import brotli

from server.codec import reading
from server.errors import InputTooLarge, MalformedPayload

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_BODY_BYTES = 10 * 1024 * 1024
"""Largest body taken, before and after its Content-Encoding is undone (compat.md 4)."""


_DECODED_ON_THE_LOOP = 64 * 1024
"""What is smaller is decoded in less time than a thread takes to start."""


class ClientGone(Exception):
    """The connection was closed before the request was complete."""


async def read(receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
    """The body with its Content-Encoding undone. Raises InputTooLarge, MalformedPayload, ClientGone."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    message = await receive()
    body = _part(message)
    if message.get("more_body"):
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            part = _part(message)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            parts.append(part)
        body = b"".join(parts)
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if not body or encoding in (b"", b"identity"):
        return body
    decoder = encoding.decode("latin-1")
    if len(body) < _DECODED_ON_THE_LOOP:
        return _decoded(body, decoder)
    return await asyncio.to_thread(_decoded, body, decoder)


def is_json(content_type: str | None) -> bool:
    """Whether a Content-Type, with or without parameters, says JSON."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() == "application/json"


def parse(body: bytes) -> object:
    """A JSON body's object or array. Raises MalformedPayload for anything else."""
    try:
        value = reading.parse(body)
    except ValueError as e:
        raise MalformedPayload(f"Failed to parse JSON: {e}") from None
    if not isinstance(value, (dict, list)):
        raise MalformedPayload("Failed to parse JSON: the body must be an object or an array")
    return value


class _Decoder(Protocol):
    def __call__(self, data: bytes, limit: int) -> bytes | None:
        """What comes out, cut off at the limit; None when the data ends too early."""


def _decoded(body: bytes, encoding: str) -> bytes:
    decoder = _DECODERS.get(encoding)
    if decoder is None:
        raise MalformedPayload(f"Content-Encoding {encoding} is not supported: use {', '.join(_DECODERS)}")
    try:
        # One byte more than is taken, so that what is too large shows itself without being held whole.
        decoded = decoder(body, MAX_BODY_BYTES + 1)
    except (zlib.error, brotli.error):
        decoded = None
    if decoded is None:
        raise MalformedPayload(f"the body is not valid {encoding}")
    if len(decoded) > MAX_BODY_BYTES:
        raise _too_large()
    return decoded


def _gunzip(data: bytes, limit: int) -> bytes | None:
    return _inflate_with(zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), data, limit)


def _inflate(data: bytes, limit: int) -> bytes | None:
    try:
        return _inflate_with(zlib.decompressobj(), data, limit)
    except zlib.error:
        # Half of the clients take `deflate` to mean the bare stream, without zlib's header.
        return _inflate_with(zlib.decompressobj(wbits=-zlib.MAX_WBITS), data, limit)


def _inflate_with(decompressor: Any, data: bytes, limit: int) -> bytes | None:
    decoded: bytes = decompressor.decompress(data, limit)
    return decoded if decompressor.eof or len(decoded) >= limit else None


def _unbrotli(data: bytes, limit: int) -> bytes | None:
    decompressor = brotli.Decompressor()
    decoded: bytes = decompressor.process(data, output_buffer_limit=limit)
    while not decompressor.is_finished() and len(decoded) < limit:
        if decompressor.can_accept_more_data():
            return None
        decoded += decompressor.process(b"", output_buffer_limit=limit - len(decoded))
    return decoded


_DECODERS: Mapping[str, _Decoder] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
}


def _part(message: Mapping[str, Any]) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    return body


def _too_large() -> InputTooLarge:
    return InputTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
