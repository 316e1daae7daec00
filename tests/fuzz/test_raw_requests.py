"""Bytes on a socket that no client would send: each is answered by HTTP, in time, and never as a fault of
the server's; and the server serves on."""

from __future__ import annotations

import gzip
import json
import random
import socket
import time
import zlib
from collections.abc import Callable

import pytest

from server.domain import slugid
from tests.fuzz.cases import cases

API = "/api/queue/v1"
PATIENCE_S = 10.0

VERBS = [
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "get",
    "G\u00cbT",
    "",
    "GET GET",
]
SEGMENTS = [
    "task",
    "tasks",
    "status",
    "claim-work",
    "task-queues",
    "provisioners",
    "worker-types",
    "workers",
    "runs",
    "0",
    "00",
    "-1",
    "99999999999999999999",
    "artifacts",
    "a",
    "..",
    ".",
    "",
    "%2F",
    "%2f%2F",
    "%00",
    "%zz",
    "%",
    "%ff",
    "%C3%BC",
    "\u00fc",
    "a" * 300,
    "p%2Fw",
    "p",
    "w",
    "clients",
    "roles",
    "root",
    "*",
    "x;y",
    "a b",
    "?",
    "#",
    "&",
    "counts",
    "pending",
    "scopes",
    "current",
    "__heartbeat__",
    "ping",
    "claim",
    "define",
    "completed",
    "pending-tasks",
    "task-graph",
    "extend",
    "inspect",
    "job",
    "new",
    "jobs",
    "b6350478-f39f-4ac2-b4b0-871800b7c355",
]
BASES = [
    API,
    "/api/auth/v1",
    "/api/scheduler/v1",
    "/v1",
    "/v1",
    "/0.1.0",
    "/api",
    "",
    "http://elsewhere/api/queue/v1",
    "//",
    "*",
]
QUERIES = [
    "",
    "?state=PENDING",
    "?",
    "?limit=1",
    "?limit=-1",
    "?limit=1&limit=2",
    "?bewit=",
    "?bewit=abc",
    "?bewit=%00",
    "?=",
    "?&&",
    "?x",
    "?continuationToken=%F0",
    "?limit=" + "9" * 400,
    "?quarantined=maybe",
]
HOSTS = ["h", "queue.x", "auth.x", "[::1]:80", "h:x", "", "h:99999", "\u00fc"]
TYPES = [
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "",
    "application/JSON;",
    "\u00e9",
]
ENCODINGS = ["", "", "", "gzip", "deflate", "br", "zstd", "gzip, gzip", "identity"]
AUTHORIZATIONS = [
    "",
    "",
    "Hawk",
    "Hawk ",
    "Hawk id=",
    'Hawk id="root", ts="1", nonce="n", mac="x"',
    "Basic eDp5",
    "Bearer x",
    'Hawk id="root", ts="' + "9" * 40 + '", nonce="n", mac="x"',
    'Hawk ext="' + "A" * 20_000 + '"',
    "\u00ff" * 50,
    'Hawk id="root", ts="1", nonce="n", mac="x", ext="bnVsbA=="',
    'Hawk id="root"' + ', app="a"' * 3,
]
BODIES: list[bytes] = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"{",
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b'{"a": NaN}',
    b'{"a": 1e999999}',
    b'{"\\ud800": "\\udfff"}',
    b'{"a":1,"a":2}',
    b"[" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"taskIds": ["x"]}',
    b'{"workerGroup": "g", "workerId": "w", "tasks": 1.0}',
    b'{"payload": ' + b"9" * 5000 + b"}",
    json.dumps({"tags": {"k": "v" * 5000}}).encode(),
    gzip.compress(b"\0" * 12_000_000),
    zlib.compress(b"{}"),
]


def request(rng: random.Random) -> bytes:
    """Some request, or something like one."""
    base = rng.choice(BASES)
    path = base + "".join(f"/{rng.choice([*SEGMENTS, slugid.nice()])}" for _ in range(rng.randrange(6)))
    body = rng.choice(BODIES)
    lines = [f"{rng.choice(VERBS)} {path}{rng.choice(QUERIES)} HTTP/1.{rng.choice('1111019')}"]
    if rng.random() < 0.95:
        lines.append(f"Host: {rng.choice(HOSTS)}")
    for name, values in (
        ("Content-Type", TYPES),
        ("Content-Encoding", ENCODINGS),
        ("Authorization", AUTHORIZATIONS),
        ("Expect", ["", "", "100-continue", "nothing"]),
        ("Connection", ["", "", "close", "upgrade"]),
        ("Upgrade", ["", "", "", "websocket", "h2c"]),
        ("X-Taskcluster-Trace-Id", ["", "t", "x" * 9000, "\u00e9"]),
        ("If-None-Match", ["", "*", 'W/"']),
        ("Accept-Encoding", ["", "gzip", "gzip;q=0", ";;;", "\u00e9"]),
    ):
        value = rng.choice(values)
        if value:
            lines.append(f"{name}: {value}")
    length = rng.choice([len(body)] * 12 + [len(body) + 7, max(0, len(body) - 1), -1, 10**12])
    if rng.random() < 0.1:
        lines.append("Transfer-Encoding: chunked")
        body = rng.choice([b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), b"zz\r\n", b"5\r\nab", body])
    else:
        lines.append(f"Content-Length: {length}")
    if rng.random() < 0.05:
        lines += [rng.choice(["Content-Length: 1", "no colon", ": empty", "X: " + "y" * 70_000])]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8" if rng.random() < 0.5 else "latin-1", "replace")
    return head + body


def answers(address: tuple[str, int], data: bytes, cut: int | None) -> bytes:
    """All that comes back. The sending side is closed, after `cut` bytes if that is not None."""
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(data if cut is None else data[:cut])
            connection.shutdown(socket.SHUT_WR)
            received = []
            while part := connection.recv(65536):
                received.append(part)
            return b"".join(received)
        except TimeoutError:
            raise
        except OSError:  # it was closed on us
            return b""


def check(answer: bytes, data: bytes) -> None:
    """Whatever was answered is HTTP, no fault, and if it is an error of the API's it has its form."""
    if not answer:
        return  # the connection was closed: it was no HTTP, or not all of it
    if answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not answer:
            return
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    status = int(answer[9:12])
    assert 200 <= status < 500, (data[:3000], answer[:3000])
    if data.startswith(b"HEAD"):
        return  # what follows the head belongs to the next answer
    head, _, body = answer.partition(b"\r\n\r\n")
    if status >= 400 and b"x-for-request-id" in head and b"content-encoding" not in head and body:
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found = json.loads(body[:length])
        found.pop("error", None)
        assert not found or set(found) == {"code", "message", "requestInfo"}


@pytest.mark.timeout(600)
def test_raw_requests(root_url: str, record_property: Callable[[str, object], None]) -> None:
    """One by one, in pairs on one connection, and cut off somewhere."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    record_property("seed", seed)
    rng = random.Random(seed)
    host, _, port = root_url.removeprefix("http://").partition(":")
    address = (host, int(port))
    for _ in range(cases(2)):
        data = request(rng)
        if rng.random() < 0.2:
            data += request(rng)
        cut = rng.randrange(len(data)) if rng.random() < 0.15 else None
        began = time.monotonic()
        check(answers(address, data, cut), data)
        assert time.monotonic() - began < PATIENCE_S, data[:3000]
    alive = answers(
        address, f"GET {API}/ping HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode(), None
    )
    assert alive.startswith(b"HTTP/1.1 200 OK")
