"""Reading bodies: parts, encodings, limits (compat.md 4)."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import brotli
import pytest

from gateway import bodies
from server.errors import InputTooLarge, MalformedPayload


async def _read(*parts: bytes, **headers: str) -> bytes:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": at < len(parts) - 1}
        for at, part in enumerate(parts)
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    return await bodies.read(
        receive, {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    )


def _bare(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


TEXT = b'{"command": "true"}' * 50
ENCODED = {
    "gzip": gzip.compress(TEXT),
    "GZIP": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "br": brotli.compress(TEXT),
    "identity": TEXT,
}


async def test_parts() -> None:
    assert await _read(b"a", b"", b"bc") == b"abc"
    assert await _read(b"") == b""


@pytest.mark.parametrize("encoding", ENCODED)
async def test_encodings(encoding: str) -> None:
    assert await _read(ENCODED[encoding], content_encoding=encoding) == TEXT


async def test_deflate_without_its_header() -> None:
    assert await _read(_bare(TEXT), content_encoding="deflate") == TEXT


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
@pytest.mark.parametrize("fault", ["cut", "garbage"])
async def test_bodies_that_are_not_what_they_say(encoding: str, fault: str) -> None:
    body = ENCODED[encoding][:-5] if fault == "cut" else b"\x93\x00\xff" * 20
    with pytest.raises(MalformedPayload, match=encoding):
        await _read(body, content_encoding=encoding)


async def test_an_unknown_encoding() -> None:
    with pytest.raises(MalformedPayload, match="zstd is not supported"):
        await _read(TEXT, content_encoding="zstd")


async def test_too_large_by_its_own_word() -> None:
    with pytest.raises(InputTooLarge):
        await _read(b"", content_length=str(bodies.MAX_BODY_BYTES + 1))


async def test_too_large_in_parts() -> None:
    part = b"x" * (bodies.MAX_BODY_BYTES // 2)
    assert len(await _read(part, part)) == bodies.MAX_BODY_BYTES
    with pytest.raises(InputTooLarge):
        await _read(part, part, b"x")


@pytest.mark.parametrize(
    "encode", [gzip.compress, zlib.compress, brotli.compress], ids=["gzip", "deflate", "br"]
)
async def test_bombs(encode: Any) -> None:
    names = {gzip.compress: "gzip", zlib.compress: "deflate", brotli.compress: "br"}
    bomb = encode(b"\0" * (bodies.MAX_BODY_BYTES + 1))
    assert len(bomb) < 100_000
    with pytest.raises(InputTooLarge):
        await _read(bomb, content_encoding=names[encode])


async def test_a_client_that_goes() -> None:
    with pytest.raises(bodies.ClientGone):
        await _read()


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        (" Application/JSON ;x", True),
        ("application/jsonp", False),
        ("text/plain", False),
        ("", False),
        (None, False),
    ],
)
def test_is_json(content_type: str | None, expected: bool) -> None:
    assert bodies.is_json(content_type) is expected


@pytest.mark.parametrize(
    "body", [b"{", b"1", b'"x"', b"null", b"true", b"{}x", b"\xff", b"[1,]", b"{'a': 1}"]
)
def test_what_is_no_json_document(body: bytes) -> None:
    """Q-207."""
    with pytest.raises(MalformedPayload, match="Failed to parse JSON"):
        bodies.parse(body)


def test_documents() -> None:
    assert bodies.parse(b' {"a": 1} ') == {"a": 1}
    assert bodies.parse(b"[]") == []
