"""HTTP/1.1 as uvicorn speaks it, with two things added: the exact request target, which signatures
cover byte for byte, and a limit on the size of a request's headers."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
"""Largest sum of request line and headers: a Hawk header may have 16 KiB, and a bewit as much."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/json; charset=utf-8\r\ncontent-length: 36\r\nconnection: close\r\n\r\n"
    b'{"error": "Request headers too big"}'
)


class _HeadersTooLarge(Exception):
    """Ends the parsing of a request."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _size = 0

    def on_message_begin(self) -> None:
        """A request begins."""
        self._size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request line and headers are there: the application may begin."""
        super().on_headers_complete()
        self.scope["target"] = _path_and_query(self.url)  # type: ignore[typeddict-unknown-key]

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP, or too much of it."""
        if self._size > MAX_HEADER_BYTES:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HEADER_BYTES:
            raise _HeadersTooLarge


def _path_and_query(target: bytes) -> str:
    """A request target without the scheme and host that proxies may write before it."""
    if target[:1] != b"/" and b"://" in target:
        _, _, rest = target.partition(b"://")
        slash = rest.find(b"/")
        target = rest[slash:] if slash >= 0 else b"/"
    return target.decode("latin-1")
