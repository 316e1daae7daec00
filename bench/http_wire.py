"""A client of the HTTP door that costs next to nothing: signed requests as bytes, one at a time on each
connection, answers cut out of the stream by their content-length."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.wire import ROOT_TOKEN

API = "/api/queue/v1"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who signs; `ext` is the base64 of a certificate, empty for a permanent client."""

    client_id: str
    key: bytes
    ext: str = ""

    @classmethod
    def of_task(cls, credentials: dict[str, str]) -> Credentials:
        """The temporary credentials of a claim."""
        ext = b64encode(b'{"certificate":' + credentials["certificate"].encode() + b"}").decode()
        return cls(credentials["clientId"], credentials["accessToken"].encode(), ext)


ROOT = Credentials("root", ROOT_TOKEN.encode())


def definition(queue: str) -> bytes:
    """The JSON of a task as bench.wire makes it."""
    now = datetime.now(UTC)
    return json.dumps(
        {
            "taskQueueId": queue,
            "schedulerId": "bench",
            "created": now.isoformat(timespec="milliseconds"),
            "deadline": (now + timedelta(hours=3)).isoformat(timespec="milliseconds"),
            "payload": {
                "command": ["bash", "-c", "make -j4 test"],
                "image": "debian:12",
                "maxRunTime": 3600,
                "env": {"CI": "true", "HEAD": "0123456789abcdef0123456789abcdef01234567"},
            },
            "extra": {"treeherder": {"symbol": "B", "tier": 1}},
            "tags": {"kind": "build", "os": "linux"},
            "metadata": {
                "name": "bench task",
                "description": "a task that a benchmark creates, claims and completes",
                "owner": "bench@example.com",
                "source": "https://example.com/bench",
            },
        }
    ).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: Any = None

    @classmethod
    async def open(cls, address: str) -> Connection:
        """Connects to `host:port`."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(host, int(port)), host, int(port))
        return connection

    async def call(self, verb: str, path: str, body: bytes = b"", who: Credentials = ROOT) -> Any:
        """The JSON of a 200 answer; RuntimeError for any other."""
        status, answer = await self.send(verb, path, body, who)
        if status != 200:
            raise RuntimeError(f"{verb} {path} answered {status}: {answer[:2000].decode()}")
        return json.loads(answer)

    def send(self, verb: str, path: str, body: bytes, who: Credentials) -> asyncio.Future[tuple[int, bytes]]:
        """The status and body of the answer."""
        ts = str(int(time.time()))
        text = f"hawk.1.header\n{ts}\nn\n{verb}\n{path}\n{self._host}\n{self._port}\n\n{who.ext}\n"
        mac = b64encode(hmac.digest(who.key, text.encode(), "sha256")).decode()
        ext = f', ext="{who.ext}"' if who.ext else ""
        kind = "Content-Type: application/json\r\n" if body else ""
        head = (
            f"{verb} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f'Authorization: Hawk id="{who.client_id}", ts="{ts}", nonce="n", mac="{mac}"{ext}\r\n'
            f"{kind}Content-Length: {len(body)}\r\n\r\n"
        )
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end >= 0:
            at = buffer.find(b"content-length: ", 0, end) + 16
            length = int(buffer[at : buffer.find(b"\r", at)])
            if len(buffer) >= end + 4 + length:
                self._buffer = b""
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result((int(buffer[9:12]), buffer[end + 4 :]))
                return
        self._buffer = buffer

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has hung up."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server hung up"))
