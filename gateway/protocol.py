"""HTTP/1.1 as uvicorn speaks it, and what it does not offer through ASGI: the exact request target, which
signatures cover byte for byte; a limit on the size of a request's headers; word of a client that hangs
up without a task that waits for it; and answers written in one piece."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

MAX_HEADER_BYTES = 64 * 1024
"""Largest sum of request line and headers: a Hawk header may have 16 KiB, and a bewit as much."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/json; charset=utf-8\r\ncontent-length: 36\r\nconnection: close\r\n\r\n"
    b'{"error": "Request headers too big"}'
)


class _HeadersTooLarge(Exception):
    """Ends the parsing of a request."""


class Exchange:
    """One request and its answer, beside ASGI; found in the scope as `exchange`.

    `target` are the path and query as they stood on the request line.
    """

    __slots__ = ("_cycle", "abandoned", "target", "task", "waiting")

    def __init__(self, cycle: RequestResponseCycle, target: str) -> None:
        self._cycle = cycle
        self.target = target
        #: What answers the request.
        self.task: asyncio.Task[None] | None = None
        #: Whether that task is to be cancelled when the client hangs up.
        self.waiting = False
        #: Whether it was.
        self.abandoned = False

    def lost(self) -> None:
        """The client has hung up."""
        if self.waiting and self.task is not None and not self._cycle.response_complete:
            self.abandoned = True
            self.task.cancel()

    @property
    def gone(self) -> bool:
        """Whether the client has hung up."""
        return self._cycle.disconnected

    @property
    def over_tls(self) -> bool:
        """Whether the client speaks TLS with us; then all clients do."""
        return self._cycle.scope["scheme"] == "https"

    def hang_up(self) -> None:
        """Ends the connection in the middle of an answer."""
        self._cycle.transport.abort()

    def ends_connection(self) -> None:
        """The answer will say that the connection closes behind it, which it then does."""
        self._cycle.keep_alive = False

    async def reply(self, status: int, head: bytes, body: bytes, *, line: bytes = b"") -> None:
        """Sends the whole answer; `head` are header lines, each with its end, and `line` the first line where
        it is not the usual one. A client that is gone gets none."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected or cycle.transport.is_closing():
            return
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join((line or STATUS_LINE[status], head, end, body)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._size = 0
        self._exchange: Exchange | None = None

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
        self.scope["target"] = _path_and_query(self.url)  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Requests that came at once are answered one after the other."""
        scope: Any = cycle.scope
        self._exchange = scope["exchange"] = Exchange(cycle, scope["target"])
        task = self._exchange.task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has hung up."""
        super().connection_lost(exc)
        if self._exchange is not None:
            self._exchange.lost()

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
