"""Content of artifacts over HTTP, where the store is a folder: URLs, uploads, downloads (object.md 2.4)."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from server.blobs.disk import DiskStore, OpenBlob
from server.blobs.store import BlobMeta
from tests.conformance.test_artifacts import Run, begun
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("http")

PUBLIC, PRIVATE = "public/a", "private/a"
TEXT = {"Content-Type": "text/plain"}
DATA = b"0123456789"

STRANGE_NAMES = [
    "a b",
    "100%",
    "a%2Fb",
    "a?b=c&d",
    "a#b",
    "a+b",
    "~a",
    "a//b",
    "/a",
    "a/",
    "/",
    "a\\b",
    "<a>\"'",
    "x" * 1000,
]
LEAVING_NAMES = [
    "../../etc/passwd",
    "../" * 12 + "etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "a/../../../b",
    "./a",
    "/etc/passwd",
    "C:\\a",
]


LEAVING_PATHS = [
    "../passwd",
    "../../passwd",
    "..%2fpasswd",
    "..%2f..%2fpasswd",
    "%2e%2e/passwd",
    "..\\passwd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "%00",
    "a%00b",
    "%ff",
    "%zz",
    "%0d%0aa",
    "",
]


class Content:
    """An artifact of type s3, and its content as clients without credentials bring and get it."""

    def __init__(self, run: Run, name: str, client: httpx.AsyncClient) -> None:
        self.run = run
        self.name = name
        self.client = client
        self.key = f"{run.task_id}/0/{name}"

    @property
    def store(self) -> DiskStore:
        """Where the bytes are."""
        blobs = self.run.queue.services.blobs
        assert isinstance(blobs, DiskStore)
        return blobs

    @property
    def folder(self) -> Path:
        """The folder that nothing may leave."""
        return Path(self.run.queue.settings.artifact_dir)

    @property
    def bucket(self) -> str:
        """The bucket that the name chooses."""
        return "public" if self.name.startswith("public/") else "private"

    async def create(self, content_type: str = "text/plain") -> str:
        """Creates the artifact; returns the URL for its upload."""
        return str((await self.run.create("s3", self.name, content_type=content_type)).put_url)

    async def url(self) -> str:
        """The URL for its download."""
        return str((await self.run.get(self.name)).url)

    async def put(
        self, data: bytes = DATA, *, content_type: str = "text/plain", encoding: str | None = None
    ) -> httpx.Response:
        """Creates the artifact and uploads its content."""
        headers = {"Content-Type": content_type}
        if encoding is not None:
            headers["Content-Encoding"] = encoding
        return await self.client.put(await self.create(), content=data, headers=headers)

    async def get(self, **headers: str) -> httpx.Response:
        """Downloads it."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.get(await self.url(), headers=named)

    def url_of(
        self, verb: str, *, age_s: float = 0, length: int | None = None, content_type: str = "text/plain"
    ) -> str:
        """A URL as it was made so many seconds ago, good for a minute."""
        now = datetime.now(UTC) - timedelta(seconds=age_s)
        if verb == "GET":
            return self.store.get_url(self.bucket, self.key, now=now, lifetime_s=60)
        meta = BlobMeta(content_type)
        return self.store.put_url(self.bucket, self.key, meta, now=now, lifetime_s=60, length=length)

    async def stored(self) -> list[str]:
        """The keys of all that is stored."""
        return sorted([f.key for bucket in ("public", "private") async for f in self.store.walk(bucket)])

    def incoming(self) -> list[Path]:
        """The files of uploads on their way."""
        return list((self.folder / "incoming").glob("*"))

    async def expect_nothing(self) -> None:
        """Nothing is stored, and nothing is left of what was not."""
        assert await self.stored() == []
        assert self.incoming() == []


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A plain client."""
    async with httpx.AsyncClient(timeout=30) as opened:
        yield opened


@pytest.fixture
async def run(queue: Queue) -> Run:
    """A running run."""
    return await begun(queue)


@pytest.fixture
def public(run: Run, client: httpx.AsyncClient) -> Content:
    """An artifact that everybody may read; to be created."""
    return Content(run, PUBLIC, client)


@pytest.fixture
def private(run: Run, client: httpx.AsyncClient) -> Content:
    """An artifact that nobody may read without a signature; to be created."""
    return Content(run, PRIVATE, client)


async def _until(condition: Callable[[], bool]) -> None:
    """Waits for something that happens in the server."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class Socket:
    """A connection on which a test writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @staticmethod
    async def opened(url: str) -> Socket:
        """A connection to a URL's host."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        return Socket(*await asyncio.open_connection(parts.hostname, parts.port))

    def send(self, verb: str, url: str, *headers: str, body: bytes = b"") -> None:
        """Sends a request with the URL's path as it stands, or the beginning of one."""
        parts = urlsplit(url)
        target = parts.path + ("?" + parts.query if parts.query else "")
        lines = [f"{verb} {target} HTTP/1.1", f"Host: {parts.netloc}", *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer with a content-length."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return int(status.split()[1]), headers, body

    async def close(self) -> None:
        """Ends it."""
        self.writer.close()
        await self.writer.wait_closed()


# -- uploads


async def test_up_and_down(run: Run, client: httpx.AsyncClient) -> None:
    """T-56: any name, in both buckets."""
    contents = [Content(run, f"{top}/{name}", client) for top in ("public", "p") for name in STRANGE_NAMES]
    for content in contents:
        put = await content.put(content.name.encode())
        assert (put.status_code, put.content) == (200, b""), content.name
    for content in contents:
        got = await content.get()
        assert (got.status_code, got.content) == (200, content.name.encode())
    assert await contents[0].stored() == sorted(content.key for content in contents)


async def test_a_large_body(private: Content) -> None:
    """It arrives as it was, and comes back so, at once and in parts."""
    data = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(20 * 1024 * 1024 // 32))
    assert (await private.put(data)).status_code == 200
    got = await private.get()
    assert hashlib.sha256(got.content).hexdigest() == hashlib.sha256(data).hexdigest()
    assert got.headers["content-length"] == str(len(data))
    part = await private.get(range="bytes=3000001-9000000")
    assert part.content == data[3000001:9000001]


async def test_another_content_type(private: Content) -> None:
    """object.md 2.4: refused, and nothing is stored."""
    for content_type in ("text/html", "text/plain; charset=utf-8", "", "text", "text/plain,text/plain"):
        answer = await private.put(content_type=content_type)
        assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")
        await private.expect_nothing()


async def test_no_content_type(private: Content) -> None:
    """The same."""
    answer = await private.client.put(await private.create(), content=DATA)
    assert answer.status_code == 403
    await private.expect_nothing()


async def test_content_types_to_the_letter(run: Run, client: httpx.AsyncClient) -> None:
    """object.md 2.4: as it was announced, however strange."""
    types = ["text/plain; charset=utf-8", 'application/x+json; a="b&c%20?#"', "TEXT/Plain", "a/b"]
    for number, content_type in enumerate(types):
        content = Content(run, f"private/{number}", client)
        url = await content.create(content_type)
        connection = await Socket.opened(url)
        for given in (content_type, content_type.lower(), f" {content_type}\t"):
            connection.send("PUT", url, f"Content-Type: {given}", "Content-Length: 1", body=b"x")
            assert (await connection.answer())[0] == 200
            assert (await content.get()).headers["content-type"] == content_type
        await connection.close()


async def test_a_body_of_unknown_length(private: Content) -> None:
    """object.md 2.4: chunked is as good."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 100_000

    answer = await private.client.put(await private.create(), content=pieces(), headers=TEXT)
    assert "content-length" not in answer.request.headers
    assert answer.status_code == 200
    got = await private.get()
    assert (got.content, got.headers["content-length"]) == (b"x" * 3_000_000, "3000000")


async def test_an_empty_body(private: Content) -> None:
    """object.md 2.4: nothing is content, too."""
    assert (await private.put(b"")).status_code == 200
    got = await private.get()
    assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"", "0")
    part = await private.get(range="bytes=0-")
    assert (part.status_code, part.headers["content-range"]) == (416, "bytes */0")


async def test_nothing_came_yet(private: Content, public: Content) -> None:
    """The artifact is there, its content is not."""
    for content in (private, public):
        await content.create()
        answer = await content.get()
        assert (answer.status_code, answer.json()["code"]) == (404, "ResourceNotFound")


async def test_uploads_again(private: Content) -> None:
    """object.md 2.4: the same URL again replaces what was there, its encoding included."""
    url = await private.create()
    etags = set()
    for data in (DATA, b"", b"longer than before", DATA):
        put = await private.client.put(url, content=data, headers=TEXT)
        got = await private.get()
        assert (got.content, got.headers["etag"]) == (data, put.headers["etag"])
        etags.add(put.headers["etag"])
    assert len(etags) == 4
    packed = await private.client.put(
        url, content=gzip.compress(b"x"), headers={**TEXT, "Content-Encoding": "gzip"}
    )
    assert (packed.status_code, (await private.get()).headers["content-encoding"]) == (200, "gzip")
    await private.client.put(url, content=DATA, headers=TEXT)
    assert "content-encoding" not in (await private.get()).headers
    assert await private.stored() == [private.key]


async def test_two_uploads_on_one_connection(private: Content) -> None:
    """A connection goes on after an upload, and after an answer of 304 or 416."""
    url, get_url = await private.create(), private.url_of("GET")
    connection = await Socket.opened(url)
    for data in (b"first", b"second"):
        connection.send("PUT", url, "Content-Type: text/plain", f"Content-Length: {len(data)}", body=data)
        status, headers, _ = await connection.answer()
        assert status == 200
    connection.send("GET", get_url, f"If-None-Match: {headers['etag']}")
    assert (await connection.answer())[0] == 304
    connection.send("GET", get_url, "Range: bytes=100-")
    assert (await connection.answer())[0] == 416
    connection.send("GET", get_url)
    assert (await connection.answer())[2] == b"second"
    await connection.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("sent", [0, 10, 3_000_000])
@pytest.mark.parametrize("rude", [False, True])
async def test_a_body_that_breaks_off(private: Content, chunked: bool, sent: int, rude: bool) -> None:
    """Nothing is stored, what was there stays, and no file is left."""
    url = await private.create()
    assert (await private.client.put(url, content=DATA, headers=TEXT)).status_code == 200
    connection = await Socket.opened(url)
    if chunked:
        body = b"%x\r\n%s\r\n" % (sent, b"x" * sent) if sent else b""
        connection.send("PUT", url, "Content-Type: text/plain", "Transfer-Encoding: chunked", body=body)
    else:
        connection.send(
            "PUT", url, "Content-Type: text/plain", f"Content-Length: {sent + 1}", body=b"x" * sent
        )
    await connection.writer.drain()
    await _until(lambda: len(private.incoming()) == 1)
    if rude:
        connection.writer.transport.abort()
    else:
        await connection.close()
    await _until(lambda: private.incoming() == [])
    assert (await private.get()).content == DATA
    assert await private.stored() == [private.key]


async def test_refused_before_the_body(private: Content) -> None:
    """Whoever asks before sending learns that there is no point; whoever may goes on."""
    url = await private.create()
    asking = ("Content-Length: 10", "Expect: 100-continue")
    connection = await Socket.opened(url)
    connection.send("PUT", url, "Content-Type: text/html", *asking)
    status, headers, _ = await connection.answer()
    assert (status, headers["connection"]) == (403, "close")
    await connection.close()
    await private.expect_nothing()
    connection = await Socket.opened(url)
    connection.send("PUT", url, "Content-Type: text/plain", *asking)
    assert (await connection.answer())[0] == 100
    connection.writer.write(DATA)
    assert (await connection.answer())[0] == 200
    await connection.close()
    assert (await private.get()).content == DATA


async def test_refused_in_the_middle_of_the_body(private: Content) -> None:
    """object.md 2.4: clients that send without asking learn why, and do not take it for a broken network,
    after which they would try again and again."""
    url = await private.create()
    for _ in range(5):
        answer = await private.client.put(url, content=b"x" * 20_000_000, headers={"Content-Type": "a/b"})
        assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")
    await private.expect_nothing()


@pytest.mark.parametrize(
    "change",
    [
        "delete from artifacts",
        "update artifacts set doomed = true",
        "update artifacts set storage_type = 'reference'",
        "update artifacts set bucket = 'public'",
        "update artifacts set run_id = 1",
    ],
)
async def test_an_artifact_that_is_gone(private: Content, change: str) -> None:
    """Bytes that no row knows would never be deleted: the URL is good no more."""
    url = await private.create()
    await private.run.queue.sql(change)
    answer = await private.client.put(url, content=DATA, headers=TEXT)
    assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")
    await private.expect_nothing()


@pytest.mark.parametrize("change", ["delete from artifacts", "update artifacts set doomed = true"])
async def test_an_artifact_that_goes_while_bytes_come(private: Content, change: str) -> None:
    """They come too late, and nobody would ever delete them."""
    url = await private.create()

    async def pieces() -> AsyncIterator[bytes]:
        yield DATA
        await _until(lambda: len(private.incoming()) == 1)
        await private.run.queue.sql(change)
        yield DATA

    answer = await private.client.put(url, content=pieces(), headers=TEXT)
    assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")
    await private.expect_nothing()


async def test_keys_of_nothing(private: Content) -> None:
    """Signed or not, what is no artifact's key takes nothing."""
    now, meta = datetime.now(UTC), BlobMeta("text/plain")
    for key in ("x", "x/0", "x/0/", "x/y/z", "x/-1/z", "x/9999/z", "x/99999/z", "o/x", "o/", "t/x/0/a"):
        url = private.store.put_url("private", key, meta, now=now, lifetime_s=60)
        assert (await private.client.put(url, content=DATA, headers=TEXT)).status_code == 403, key
    await private.expect_nothing()


async def test_encodings(private: Content) -> None:
    """object.md 2.4: gzip stays gzip, whatever the client says it takes; identity is not said."""
    packed = gzip.compress(DATA)
    put = await private.put(packed, encoding="GZIP")
    assert put.status_code == 200
    for accepted in ("gzip", "identity", "br"):
        got = await private.get(accept_encoding=accepted)
        assert (got.headers["content-encoding"], got.headers["content-length"]) == ("gzip", str(len(packed)))
        assert got.content == DATA
    await private.put(DATA, encoding="identity")
    got = await private.get()
    assert (got.content, "content-encoding" in got.headers) == (DATA, False)


async def test_other_encodings(private: Content) -> None:
    """A name that workers give is told again; what is no name is refused."""
    for encoding in ("gzip, gzip", "a b", "x" * 100, "gzip;q=1"):
        answer = await private.put(encoding=encoding)
        assert (answer.status_code, answer.json()["code"]) == (400, "InputError")
        await private.expect_nothing()
    await private.put(encoding="xz")
    got = await private.get()
    assert (got.content, got.headers["content-encoding"]) == (DATA, "xz")


async def test_nothing_is_packed_by_us(private: Content) -> None:
    """object.md 2.4: no transparent compression, however long the text."""
    await private.put(b"x" * 10_000)
    got = await private.get(accept_encoding="gzip")
    assert (got.headers["content-length"], "content-encoding" in got.headers) == ("10000", False)


async def test_signed_lengths(private: Content) -> None:
    """Where the length is signed, no other comes in, be it said or not."""
    await private.create()
    url = private.url_of("PUT", length=len(DATA))

    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        yield data[:5]
        yield data[5:]

    for data in (b"", DATA[:-1], DATA + b"x", DATA * 300_000):
        assert (await private.client.put(url, content=pieces(data), headers=TEXT)).status_code == 400
        await private.expect_nothing()
    for data in (b"", DATA[:-1], DATA + b"x"):
        assert (await private.client.put(url, content=data, headers=TEXT)).status_code == 400
        await private.expect_nothing()
    assert (await private.client.put(url, content=pieces(DATA), headers=TEXT)).status_code == 200
    assert (await private.client.put(url, content=DATA, headers=TEXT)).status_code == 200
    assert (await private.get()).content == DATA


@pytest.mark.settings(disk_quota_bytes=100_000)
async def test_a_full_store(private: Content) -> None:
    """Told, and nothing is stored; what was there can be read."""
    content = Content(private.run, "private/kept", private.client)
    assert (await content.put(b"x" * 50_000)).status_code == 200
    answer = await private.put(b"x" * 60_000)
    assert (answer.status_code, answer.json()["code"]) == (507, "OutOfSpace")
    assert await private.stored() == [content.key]
    assert private.incoming() == []
    assert (await content.get()).content == b"x" * 50_000


# -- downloads


async def test_headers_of_downloads(private: Content, public: Content) -> None:
    """object.md 2.4: content type to the letter, length, and what caches and browsers need."""
    for content, caching in ((private, "private, no-cache"), (public, "no-cache")):
        begin = datetime.now(UTC) - timedelta(seconds=2)
        put = await content.put()
        got = await content.get()
        assert got.status_code == 200
        assert got.headers["content-type"] == "text/plain"
        assert got.headers["content-length"] == "10"
        assert got.headers["etag"] == put.headers["etag"]
        assert got.headers["etag"][0] == got.headers["etag"][-1] == '"'
        assert got.headers["accept-ranges"] == "bytes"
        assert got.headers["cache-control"] == caching
        assert begin <= parsedate_to_datetime(got.headers["last-modified"]) <= datetime.now(UTC)
        assert "content-disposition" not in got.headers
        assert "transfer-encoding" not in got.headers


async def test_ranges(private: Content) -> None:
    """Parts, as RFC 9110 has them."""
    await private.put()
    for asked, found, shown in (
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=5-", b"56789", "bytes 5-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-100", DATA, "bytes 0-9/10"),
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=9-9", b"9", "bytes 9-9/10"),
        ("bytes=8-1000", b"89", "bytes 8-9/10"),
        ("bytes=0-", DATA, "bytes 0-9/10"),
    ):
        got = await private.get(range=asked)
        assert (got.status_code, got.content) == (206, found)
        assert got.headers["content-range"] == shown
        assert got.headers["content-length"] == str(len(found))
        assert got.headers["content-type"] == "text/plain"
        assert "etag" in got.headers


async def test_ranges_beyond_the_end(private: Content) -> None:
    """Told with the length there is."""
    await private.put()
    for asked in ("bytes=10-", "bytes=10-20", "bytes=100-", "bytes=-0"):
        got = await private.get(range=asked)
        assert (got.status_code, got.content, got.headers["content-range"]) == (416, b"", "bytes */10")
        assert got.headers["content-length"] == "0"


async def test_ranges_that_mean_nothing(private: Content) -> None:
    """Passed over, as are several at once."""
    await private.put()
    odd = [
        "bytes=4-2",
        "bytes=-",
        "bytes=a-b",
        "bytes",
        "",
        "bytes=0-1,3-4",
        "lines=0-1",
        "bytes=1",
        "bytes=--1",
    ]
    for asked in [*odd, f"bytes={'9' * 30}-", f"bytes=0-{'9' * 30}"]:
        got = await private.get(range=asked)
        assert (got.status_code, got.content) == (200, DATA), asked
        assert "content-range" not in got.headers


async def test_a_range_if_it_is_the_same(private: Content) -> None:
    """If-Range: the part of what was begun, or the whole of what there is now."""
    etag = (await private.put()).headers["etag"]
    same = await private.get(range="bytes=5-", if_range=etag)
    assert (same.status_code, same.content) == (206, b"56789")
    for other in ('"other"', f"W/{etag}", etag.strip('"'), "Tue, 24 Nov 2015 00:00:00 GMT"):
        got = await private.get(range="bytes=5-", if_range=other)
        assert (got.status_code, got.content) == (200, DATA)
    await private.put(b"something new")
    got = await private.get(range="bytes=5-", if_range=etag)
    assert (got.status_code, got.content) == (200, b"something new")


async def test_if_it_is_another(private: Content, public: Content) -> None:
    """If-None-Match: 304 for what the client has, with the headers it needs."""
    for content in (private, public):
        etag = (await content.put()).headers["etag"]
        whole = await content.get()
        for given in (etag, f"W/{etag}", f'"a", {etag}', f'{etag},"b"', "*"):
            got = await content.get(if_none_match=given)
            assert (got.status_code, got.content) == (304, b"")
            for name in ("etag", "last-modified", "cache-control"):
                assert got.headers[name] == whole.headers[name]
        for given in ('"other"', etag.strip('"'), ""):
            assert (await content.get(if_none_match=given)).content == DATA
        await content.put(b"new")
        assert (await content.get(if_none_match=etag)).content == b"new"


async def test_if_it_is_newer(private: Content) -> None:
    """If-Modified-Since, which If-None-Match takes the place of."""
    await private.put()
    modified = (await private.get()).headers["last-modified"]
    earlier = format_datetime(parsedate_to_datetime(modified) - timedelta(seconds=1), usegmt=True)
    got = await private.get(if_modified_since=modified)
    assert (got.status_code, got.content) == (304, b"")
    for given in (earlier, "nonsense", "", "Tue, 99 Nov 2015 00:00:00 GMT", "24 Nov 2099 00:00:00 -0000"):
        assert (await private.get(if_modified_since=given)).content == DATA
    got = await private.get(if_modified_since=modified, if_none_match='"other"')
    assert got.content == DATA


async def test_head(private: Content) -> None:
    """GET without the body, by the same URL."""
    await private.put()
    url = await private.url()
    got, head = await private.client.get(url), await private.client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-type", "content-length", "last-modified", "accept-ranges"):
        assert head.headers[name] == got.headers[name]
    assert (await private.client.head(url, headers={"If-None-Match": got.headers["etag"]})).status_code == 304
    assert (await private.client.head(url.replace("signature=", "signature=A"))).status_code == 403
    missing = Content(private.run, "private/b", private.client)
    assert (await private.client.head(missing.url_of("GET"))).status_code == 404


async def test_what_hangs_up_in_the_middle(private: Content) -> None:
    """The server goes on for the others."""
    await private.put(b"x" * 20_000_000)
    url = private.url_of("GET")
    connection = await Socket.opened(url)
    connection.send("GET", url)
    await connection.reader.readexactly(1000)
    connection.writer.transport.abort()
    assert len((await private.get()).content) == 20_000_000


# -- who may


async def test_what_is_public(public: Content) -> None:
    """The plain URL is enough, whatever else stands there; to write there takes a signature."""
    await public.put()
    url = await public.url()
    assert "?" not in url
    for query in ("", "?x=1", "?expires=1&signature=x"):
        assert (await public.client.get(url + query)).content == DATA
    answer = await public.client.put(url, content=b"changed", headers=TEXT)
    assert answer.status_code == 403
    assert (await public.get()).content == DATA


async def test_what_is_private(private: Content) -> None:
    """Only the signed URL."""
    await private.put()
    url = await private.url()
    assert (await private.client.get(url)).content == DATA
    answer = await private.client.get(url.partition("?")[0])
    assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")


@pytest.mark.settings(sign_public_artifact_urls=True)
async def test_public_urls_are_signed(public: Content) -> None:
    """Q-158: where that is wished, nothing is shown without."""
    await public.put()
    url = await public.url()
    got = await public.client.get(url)
    assert (got.content, got.headers["cache-control"]) == (DATA, "private, no-cache")
    assert (await public.client.get(url.partition("?")[0])).status_code == 403


async def test_urls_whose_time_is_over(private: Content) -> None:
    """Good to the end of the minute, for uploads and the slack, and no longer."""
    await private.put()
    for verb, age_s, expected in (("PUT", 65, 200), ("PUT", 75, 403), ("GET", 55, 200), ("GET", 65, 403)):
        answer = await private.client.request(
            verb, private.url_of(verb, age_s=age_s), content=DATA, headers=TEXT
        )
        assert answer.status_code == expected
    assert "expired" in answer.json()["message"]


def _changed(url: str) -> dict[str, str]:
    """The URL with one thing changed, by what it was."""
    params = httpx.URL(url).params
    expires, signature = params["expires"], params["signature"]
    other = ("A" if signature[0] != "A" else "B") + signature[1:]
    return {
        "signature": url.replace(signature, other),
        "signature, cut": url[:-1],
        "no signature": url.replace(signature, ""),
        "signature of strange letters": url.replace(signature, "%C3%A9%FF"),
        "two signatures": f"{url}&signature={signature}",
        "no parameter of that name": url.partition("&signature=")[0],
        "longer life": url.replace(expires, str(int(expires) + 1000)),
        "no life": url.replace(expires, ""),
        "negative life": url.replace(expires, "-1"),
        "endless life": url.replace(expires, "9" * 40),
        "life in letters": url.replace(expires, "never"),
        "length": f"{url}&length=10",
        "length in letters": f"{url}&length=x",
        "attachment": f"{url}&attachment=1",
        "type": f"{url}&type=text/html",
        "key": url.replace("private/a?", "private/b?"),
        "bucket": url.replace("/private/", "/public/", 1),
        "unknown bucket": url.replace("/private/", "/other/", 1),
        "nothing but the path": url.partition("?")[0],
    }


async def test_changed_urls(private: Content) -> None:
    """Nobody made them: nothing is read, nothing is written."""
    await private.put()
    for name in ("private/b", "public/../private/a"):
        await Content(private.run, name, private.client).create()
    for what, url in _changed(private.url_of("GET")).items():
        got = await private.client.get(url)
        # A public key is readable, and there is nothing.
        assert got.status_code == (404 if what == "bucket" else 403), what
    for what, url in _changed(private.url_of("PUT")).items():
        put = await private.client.put(url, content=b"changed", headers=TEXT)
        assert put.status_code == 403, what
    assert await private.stored() == [private.key]
    assert (await private.get()).content == DATA


async def test_digits_that_are_no_numbers(private: Content) -> None:
    """Such as a superscript two: a URL that nobody made."""
    base = private.url_of("GET").partition("?")[0]
    for text in ("%C2%B2", "1%C2%B3", "%E2%91%A0"):
        for query in (f"expires={text}&signature=x", f"expires=99999999999&length={text}&signature=x"):
            assert (await private.client.get(f"{base}?{query}")).status_code == 403


async def test_urls_for_something_else(private: Content) -> None:
    """A URL to read writes nothing, a URL to write reads nothing; there are no other verbs."""
    await private.put()
    assert (await private.client.get(private.url_of("PUT"))).status_code == 403
    put = await private.client.put(private.url_of("GET"), content=b"changed", headers=TEXT)
    assert put.status_code == 403
    for verb in ("POST", "DELETE", "PATCH"):
        for url in (private.url_of("GET"), private.url_of("PUT")):
            answer = await private.client.request(verb, url, content=b"changed", headers=TEXT)
            assert (answer.status_code, answer.json()["code"]) == (405, "MethodNotAllowed")
    assert (await private.get()).content == DATA


async def test_credentials_are_not_looked_at(private: Content) -> None:
    """object.md 2.4: the URL carries its own authorization, and no header replaces or spoils it."""
    await private.put()
    url = private.url_of("GET")
    headers = {"Authorization": "Hawk nonsense"}
    assert (await private.client.get(url, headers=headers)).content == DATA
    assert (await private.client.get(url.partition("?")[0], headers=headers)).status_code == 403


# -- browsers


async def test_headers_of_every_answer(private: Content, public: Content) -> None:
    """What tasks made may be had from anywhere, and acts as nobody; refusals say the same."""
    await private.put()
    etag = (await public.put()).headers["etag"]
    url = await public.url()
    client = public.client
    answers = {
        200: await client.get(url),
        206: await client.get(url, headers={"Range": "bytes=0-1"}),
        304: await client.get(url, headers={"If-None-Match": etag}),
        416: await client.get(url, headers={"Range": "bytes=99-"}),
        403: await client.get((await private.url()).partition("?")[0]),
        404: await client.get(url + "b"),
        405: await client.delete(url),
        400: await private.put(encoding="a b"),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "etag" in answer.headers["access-control-expose-headers"]
        assert answer.headers["content-security-policy"] == "sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"
        if status in (400, 403, 404, 405):
            assert answer.headers["content-type"] == "application/json; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"


async def test_options(private: Content) -> None:
    """Browsers ask before they put; there is nothing to hide in the answer."""
    for url in (await private.create(), private.url_of("GET").partition("?")[0]):
        answer = await private.client.options(
            url, headers={"Origin": "https://example.com", "Access-Control-Request-Method": "PUT"}
        )
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert {"GET", "HEAD", "PUT"} <= set(answer.headers["access-control-allow-methods"].split(", "))
        assert answer.headers["access-control-allow-headers"] == "*"


# -- paths that lead elsewhere


def _outside(folder: Path) -> set[Path]:
    """The files around the folder of artifacts."""
    return {path for path in folder.parent.rglob("*") if path.is_file() and folder not in path.parents}


async def test_names_that_lead_elsewhere(run: Run, client: httpx.AsyncClient) -> None:
    """T-56: they are names like any other, and lead nowhere."""
    contents = [Content(run, f"{top}{name}", client) for top in ("public/", "") for name in LEAVING_NAMES]
    folder = contents[0].folder
    beside = folder.parent / "passwd"
    beside.write_bytes(b"secret")
    for content in contents:
        assert (await content.put(content.name.encode())).status_code == 200, content.name
    for content in contents:
        assert (await content.get()).content == content.name.encode()
    assert await contents[0].stored() == sorted(content.key for content in contents)
    assert _outside(folder) == {beside}
    assert beside.read_bytes() == b"secret"


@pytest.mark.parametrize("bucket", ["public", "private", "incoming", "..", "", "%2e%2e", "/"])
async def test_paths_that_lead_elsewhere(private: Content, bucket: str) -> None:
    """Sent as they stand: nothing is read and nothing written, signed by nobody."""
    beside = private.folder.parent / "passwd"
    beside.write_bytes(b"secret")
    await private.put()
    base = (await private.url()).partition("/artifacts/")[0]
    for rest in LEAVING_PATHS:
        url = f"{base}/artifacts/{bucket}/{rest}"
        connection = await Socket.opened(base)
        connection.send("GET", url)
        status, _, body = await connection.answer()
        assert status in (403, 404), rest
        assert b"secret" not in body
        assert b"root:" not in body
        connection.send("PUT", url, "Content-Type: text/plain", "Content-Length: 1", body=b"x")
        assert (await connection.answer())[0] in (403, 404), rest
        await connection.close()
    assert await private.stored() == [private.key]
    assert _outside(private.folder) == {beside}
    assert beside.read_bytes() == b"secret"


async def test_no_file_of_the_folder_by_its_name(public: Content) -> None:
    """The files themselves have no URLs."""
    await public.put()
    base = (await public.url()).partition("/artifacts/")[0]
    for path in public.folder.rglob("*"):
        for bucket in ("public/", "private/", ""):
            url = f"{base}/artifacts/{bucket}{path.relative_to(public.folder)}"
            assert (await public.client.get(url)).status_code in (403, 404)


async def test_content_that_breaks_off(private: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle: the connection ends, and nobody takes a part for the whole."""
    data = os.urandom(5_000_000)
    url = await private.create()
    assert (await private.client.put(url, content=data, headers=TEXT)).status_code == 200
    right = OpenBlob.read

    def failing(self: OpenBlob, offset: int, most: int) -> bytes:
        if offset > 2_000_000:
            raise OSError(5, "Input/output error")
        return right(self, offset, most)

    monkeypatch.setattr(OpenBlob, "read", failing)
    with pytest.raises(httpx.HTTPError):
        await private.get()
    monkeypatch.setattr(OpenBlob, "read", right)
    assert (await private.get()).content == data
