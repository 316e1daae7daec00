"""Stores of artifact bytes: what both must do, on a folder and on a real S3 server; URLs of S3.

URLs of the disk store need the whole server: tests/gateway/test_blobs.py.
"""

from __future__ import annotations

import gc
import itertools
import re
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from minio import Minio

from server.blobs import s3 as s3_store
from server.blobs.disk import DiskStore
from server.blobs.opening import open_store
from server.blobs.s3 import S3Store
from server.blobs.staging import Staging
from server.blobs.store import BlobMeta, Reading
from server.config import Settings, SettingsError
from server.errors import InputError, OutOfSpace, Unavailable
from tests.plugins.s3 import S3Server

Store = DiskStore | S3Store

TEXT = BlobMeta("text/plain")

STRANGE_KEYS = [
    "task/0/a b",
    "task/0/100%",
    "task/0/%2F..%2f",
    "task/0/a?b=c",
    "task/0/a#b",
    "task/0/a+b",
    "task/0/a&b=<c>",
    "task/0/~a",
    "task/0/a;b,c:d@e!f$g(h)*'\"",
    "task/0/a\\b",
]
"""Keys that any store takes, if only they are encoded well."""

UNTIDY_KEYS = [
    "task/0/a//b",
    "task/0//a",
    "task/0/a/",
    "task/0/..",
    "task/0/../../kept",
    "task/0/../../task/1/kept",
    "task/0/./a",
    "task/0/.",
]
"""Keys that a store may refuse, and must not mistake for others."""

DOTTED_KEYS = [key for key in UNTIDY_KEYS if "/." in key]

#: What names with dots could be taken for.
_KEPT = ("kept", "task/1/kept", "task/0/a")


@pytest.fixture(params=["disk", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which store the test is for."""
    return str(request.param)


@pytest.fixture
def s3_settings(s3_server: S3Server, s3_buckets: tuple[Minio, Callable[[], str]]) -> Settings:
    """Two empty buckets of the real server."""
    _, make = s3_buckets
    return Settings(
        s3_endpoint=s3_server.endpoint,
        s3_access_key=s3_server.access_key,
        s3_secret_key=s3_server.secret_key,
        s3_region=s3_server.region,
        s3_public_bucket=make(),
        s3_private_bucket=make(),
    )


@pytest.fixture
def store_settings(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """The settings of a deployment with such a store."""
    if kind == "disk":
        return Settings(artifact_dir=str(tmp_path / "artifacts"))
    settings: Settings = request.getfixturevalue("s3_settings")
    return settings


def _open(settings: Settings) -> Store:
    return open_store(settings, b"a key", lambda: "http://localhost:1")


@pytest.fixture
async def store(store_settings: Settings) -> AsyncIterator[Store]:
    """An empty store."""
    opened = _open(store_settings)
    yield opened
    await opened.close()


@pytest.fixture
async def s3(s3_settings: Settings) -> AsyncIterator[S3Store]:
    """An empty store in S3."""
    opened = S3Store(s3_settings)
    yield opened
    await opened.close()


async def _reading(store: Store, key: str, offset: int = 0, bucket: str = "") -> tuple[Reading, bytes]:
    """A blob that is there, and its bytes from an offset."""
    reading = await store.read(bucket or store.private_bucket, key, offset)
    assert reading is not None
    try:
        return reading, b"".join([piece async for piece in reading.chunks])
    finally:
        await reading.close()


async def _bytes(store: Store, key: str, offset: int = 0, bucket: str = "") -> bytes:
    return (await _reading(store, key, offset, bucket))[1]


async def _keys(store: Store, bucket: str = "") -> list[str]:
    """The keys of everything in a bucket."""
    return sorted([found.key async for found in store.walk(bucket or store.private_bucket)])


def _staged(folder: Path, key: str, *pieces: bytes) -> Path:
    """An upload that is complete."""
    upload = Staging(folder).open(key, 0)
    upload.write(list(pieces))
    upload.close()
    return upload.path


# -- bytes


async def test_what_was_put_is_read(store: Store) -> None:
    """Whole and from any offset, up to the end; the length is always that of the whole."""
    data = bytes(range(256)) * 20
    await store.put(store.private_bucket, "task/0/a", TEXT, data)
    for offset in (0, 1, 255, 4096, len(data) - 1, len(data)):
        reading, found = await _reading(store, "task/0/a", offset)
        assert found == data[offset:]
        assert (reading.length, reading.meta) == (len(data), TEXT)
    with pytest.raises(InputError, match="beyond the end"):
        await store.read(store.private_bucket, "task/0/a", len(data) + 1)


async def test_nothing_at_all(store: Store) -> None:
    """An empty blob is a blob."""
    await store.put(store.private_bucket, "task/0/empty", TEXT, b"")
    reading, found = await _reading(store, "task/0/empty")
    assert (reading.length, found, reading.meta) == (0, b"", TEXT)
    with pytest.raises(InputError, match="beyond the end"):
        await store.read(store.private_bucket, "task/0/empty", 1)
    assert await _keys(store) == ["task/0/empty"]


async def test_many_pieces(store: Store) -> None:
    """What is longer than a piece comes in its order, from an offset within a piece as well."""
    data = b"".join(i.to_bytes(4, "big") for i in range(700_000))
    await store.put(store.private_bucket, "task/0/long", TEXT, data)
    assert await _bytes(store, "task/0/long") == data
    assert await _bytes(store, "task/0/long", 1_500_001) == data[1_500_001:]


async def test_missing(store: Store) -> None:
    """Unknown keys, and the key of a blob in the other bucket."""
    await store.put(store.private_bucket, "task/0/a", TEXT, b"x")
    assert await store.read(store.private_bucket, "task/0/b") is None
    assert await store.read(store.private_bucket, "task/0") is None
    assert await store.read(store.private_bucket, "task/0/b", 5) is None
    assert await store.read(store.public_bucket, "task/0/a") is None


async def test_replacing(store: Store) -> None:
    """The bytes, their length and their description are those put last, and the etag tells."""
    await store.put(store.private_bucket, "task/0/a", TEXT, b"the first")
    before, _ = await _reading(store, "task/0/a")
    meta = BlobMeta("text/html", "gzip", True)
    await store.put(store.private_bucket, "task/0/a", meta, b"second")
    after, found = await _reading(store, "task/0/a")
    assert (found, after.length, after.meta) == (b"second", 6, meta)
    assert after.etag != before.etag
    assert (await _reading(store, "task/0/a"))[0].etag == after.etag
    assert await _keys(store) == ["task/0/a"]


async def test_a_description_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """What the last upload does not say is no longer so. (The S3 server of the tests keeps it.)"""
    store = _open(Settings(artifact_dir=str(tmp_path)))
    await store.put("private", "task/0/a", BlobMeta("text/html", "gzip", True), b"x")
    await store.put("private", "task/0/a", TEXT, b"x")
    assert (await _reading(store, "task/0/a"))[0].meta == TEXT
    await store.close()


async def test_two_buckets(store: Store) -> None:
    """The same key in both is two blobs."""
    await store.put(store.private_bucket, "task/0/a", TEXT, b"private")
    await store.put(store.public_bucket, "task/0/a", TEXT, b"public")
    await store.put(store.public_bucket, "task/0/b", TEXT, b"public")
    assert await _bytes(store, "task/0/a") == b"private"
    assert await _bytes(store, "task/0/a", bucket=store.public_bucket) == b"public"
    assert await _keys(store) == ["task/0/a"]
    assert await _keys(store, store.public_bucket) == ["task/0/a", "task/0/b"]
    assert await store.delete(store.public_bucket, ["task/0/a"]) == {}
    assert await _bytes(store, "task/0/a") == b"private"


@pytest.mark.parametrize(
    "meta",
    [
        BlobMeta("text/plain; charset=utf-8"),
        BlobMeta("application/x-strange+json;a=b"),
        BlobMeta("text/html", attachment=True),
        BlobMeta("application/octet-stream", "gzip"),
        BlobMeta("text/html; charset=latin-1", "gzip", True),
    ],
)
async def test_descriptions(store: Store, meta: BlobMeta) -> None:
    """object.md 2.4: what is kept beside the bytes comes back to the letter; bytes are never unpacked."""
    await store.put(store.private_bucket, "task/0/a", meta, b"not really packed")
    reading, found = await _reading(store, "task/0/a")
    assert (reading.meta, found) == (meta, b"not really packed")


@pytest.mark.parametrize("key", STRANGE_KEYS)
async def test_strange_keys(store: Store, key: str) -> None:
    """T-56: nothing in a key means anything to a store."""
    await store.put(store.private_bucket, key, TEXT, key.encode())
    assert await _bytes(store, key) == key.encode()
    assert await _keys(store) == [key]
    assert await store.delete(store.private_bucket, [key]) == {}
    assert await store.read(store.private_bucket, key) is None


async def test_untidy_keys_on_disk(tmp_path: Path) -> None:
    """Each is a blob of its own, and none leads out of the folder."""
    folder = tmp_path / "a" / "artifacts"
    store = _open(Settings(artifact_dir=str(folder)))
    more = ["/a", "a/", "//", "..", "../../kept", "/etc/passwd", "C:\\x", "x" * 1200]
    keys = ["kept", "task/0/a/b", "a", "task/0/a", *UNTIDY_KEYS, *more]
    for key in keys:
        await store.put(store.private_bucket, key, TEXT, key.encode())
    for key in keys:
        assert await _bytes(store, key) == key.encode()
    assert await _keys(store) == sorted(keys)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents] == []
    for key in keys[1:]:
        assert await store.delete(store.private_bucket, [key]) == {}
    assert await _keys(store) == ["kept"]
    await store.close()


async def test_letters_of_another_case(store: Store) -> None:
    """Keys are compared byte for byte."""
    await store.put(store.private_bucket, "task/0/README", TEXT, b"large")
    await store.put(store.private_bucket, "task/0/readme", TEXT, b"small")
    assert await _bytes(store, "task/0/README") == b"large"
    assert await _keys(store) == ["task/0/README", "task/0/readme"]


@pytest.mark.parametrize("key", [key for key in UNTIDY_KEYS if key not in DOTTED_KEYS])
async def test_untidy_keys_in_s3(s3: S3Store, key: str) -> None:
    """S3 may refuse them, and touches nothing else by them."""
    await s3.put(s3.private_bucket, "task/1/kept", TEXT, b"kept")
    stored = True
    try:
        await s3.put(s3.private_bucket, key, TEXT, b"strange")
    except Unavailable:
        stored = False
    if stored:
        assert await _bytes(s3, key) == b"strange"
    else:
        assert await s3.read(s3.private_bucket, key) is None
    await s3.delete(s3.private_bucket, [key])
    assert await _keys(s3) == ["task/1/kept"]
    assert await _bytes(s3, "task/1/kept") == b"kept"


@pytest.mark.parametrize("key", DOTTED_KEYS)
async def test_dots_are_names_like_others(store: Store, key: str) -> None:
    """An artifact's name is its owner's choice: it is stored, read, walked over and deleted as itself, and
    never as what the dots would lead to."""
    for kept in _KEPT:
        await store.put(store.private_bucket, kept, TEXT, b"kept")
    assert await store.read(store.private_bucket, key) is None
    await store.put(store.private_bucket, key, TEXT, b"strange")
    assert await _bytes(store, key) == b"strange"
    assert await _keys(store) == sorted([*_KEPT, key])
    for kept in _KEPT:
        assert await _bytes(store, kept) == b"kept"
    assert await store.delete(store.private_bucket, [key]) == {}
    assert await _keys(store) == sorted(_KEPT)


def test_names_that_look_like_rewritten_dots() -> None:
    """However often it was done already, no two names become one."""
    segments = [
        ".",
        "..",
        "...",
        "%2E",
        "%2E%2E",
        "%2e",
        "%25%2E",
        "%25%25%2E%2E",
        "%25",
        "%2E%2E%2E",
        "a",
        "",
    ]
    written: dict[str, str] = {}
    for pair in itertools.product(segments, repeat=2):
        key = "/".join(pair)
        name = s3_store._safe(key)
        assert s3_store._given(name) == key
        assert not {".", ".."}.intersection(name.split("/"))
        assert written.setdefault(name, key) == key


@pytest.mark.parametrize("key", DOTTED_KEYS)
async def test_urls_of_names_with_dots_in_s3(s3: S3Store, key: str) -> None:
    """They lead to the same bytes by a client that tidies up paths."""
    now = datetime.now(UTC)
    async with httpx.AsyncClient() as client:
        put = s3.put_url(s3.private_bucket, key, TEXT, now=now, lifetime_s=60)
        answer = await client.put(put, content=b"strange", headers=TEXT.headers())
        assert answer.status_code == 200, answer.text
        got = await client.get(s3.get_url(s3.private_bucket, key, now=now, lifetime_s=60))
        assert got.content == b"strange"
    assert await _keys(s3) == [key]


# -- deleting and walking


async def test_deleting(store: Store) -> None:
    """What is there goes, what is not there counts as gone, and the rest stays."""
    for name in ("a", "b", "c"):
        await store.put(store.private_bucket, f"task/0/{name}", TEXT, b"x")
    assert await store.delete(store.private_bucket, []) == {}
    assert await store.delete(store.private_bucket, ["task/0/a", "task/0/never", "task/0/c"]) == {}
    assert await _keys(store) == ["task/0/b"]
    assert await store.read(store.private_bucket, "task/0/a") is None
    assert await store.delete(store.private_bucket, ["task/0/a", "task/0/b", "task/0/b"]) == {}
    assert await _keys(store) == []
    await store.put(store.private_bucket, "task/0/a", TEXT, b"again")
    assert await _bytes(store, "task/0/a") == b"again"


async def test_deleting_more_than_a_request_takes(store: Store) -> None:
    """S3 deletes a thousand keys at once; here are more, of which a few are there, the last among them."""
    keys = [f"task/0/{number}" for number in range(2100)]
    there = [keys[0], keys[999], keys[1000], keys[1999], keys[2000], keys[2099]]
    for key in [*there, "task/0/kept"]:
        await store.put(store.private_bucket, key, TEXT, b"x")
    assert await store.delete(store.private_bucket, keys) == {}
    assert await _keys(store) == ["task/0/kept"]


async def test_a_walk(store: Store) -> None:
    """Every blob once, with the instant at which it came."""
    begin = datetime.now(UTC) - timedelta(seconds=2)
    keys = sorted(f"task/{number % 7}/{number}" for number in range(60))
    for key in keys:
        await store.put(store.private_bucket, key, TEXT, b"x")
    found = [item async for item in store.walk(store.private_bucket)]
    assert sorted(item.key for item in found) == keys
    assert all(begin <= item.modified <= datetime.now(UTC) + timedelta(seconds=2) for item in found)


async def test_a_walk_through_nothing(store: Store) -> None:
    """A store in which nothing was ever put."""
    assert await _keys(store) == []
    assert await store.delete(store.private_bucket, ["task/0/a"]) == {}


async def test_files_that_are_no_blobs(tmp_path: Path) -> None:
    """A walk passes over what is not whole, and what other versions wrote."""
    store = _open(Settings(artifact_dir=str(tmp_path)))
    await store.put("private", "task/0/a", TEXT, b"x")
    (tmp_path / "00").mkdir(exist_ok=True)
    for name, content in (("a", b""), ("b", b"{}"), ("c", b'{"version": 99}'), ("d", b"\xff" * 5000)):
        (tmp_path / "00" / name).write_bytes(content)
    assert await _keys(store) == ["task/0/a"]
    await store.close()


# -- staged uploads


@pytest.mark.parametrize("pieces", [[b"one ", b"two"], [b""], [b"x" * 3_000_000, b"end"]])
async def test_staged_uploads(store: Store, tmp_path: Path, pieces: list[bytes]) -> None:
    """They become the blob, in place of what was there, and are no longer on their way."""
    folder = tmp_path / "artifacts" / "uploads"
    await store.put(store.private_bucket, "task/0/a", TEXT, b"what was there")
    staged = _staged(folder, "task/0/a", *pieces)
    meta = BlobMeta("text/html", "gzip", True)
    await store.put_file(store.private_bucket, "task/0/a", meta, staged)
    reading, found = await _reading(store, "task/0/a")
    assert (found, reading.length, reading.meta) == (b"".join(pieces), len(b"".join(pieces)), meta)
    assert Staging(folder).received("task/0/a") == 0
    assert not staged.exists()
    assert await _keys(store) == ["task/0/a"]


async def test_a_staged_upload_goes_on(store: Store, tmp_path: Path) -> None:
    """It broke off, went on from before its end, and is what was sent last; a walk sees none of it."""
    staging = Staging(tmp_path / "artifacts" / "uploads")
    first = staging.open("task/0/a", 0)
    first.write([b"hello, wrong"])
    first.close()
    assert staging.received("task/0/a") == 12
    with pytest.raises(InputError):
        staging.open("task/0/a", 13)
    second = staging.open("task/0/a", 7)
    second.write([b"world"])
    second.close()
    assert await _keys(store) == []
    await store.put_file(store.private_bucket, "task/0/a", TEXT, second.path)
    assert await _bytes(store, "task/0/a") == b"hello, world"


async def test_readings_that_are_left(store: Store) -> None:
    """Whoever reads nothing of a blob, or not all, closes it, and no file or connection stays open."""
    data = b"x" * 5_000_000
    await store.put(store.private_bucket, "task/0/a", TEXT, data)
    for pieces in (0, 1, 2):
        # More than there are connections.
        for _ in range(20):
            reading = await store.read(store.private_bucket, "task/0/a")
            assert reading is not None
            for _ in range(pieces):
                assert await anext(reading.chunks)
            await reading.close()
            await reading.close()
    del reading
    gc.collect()
    assert await _bytes(store, "task/0/a") == data


# -- the disk's limits


async def test_a_quota(tmp_path: Path) -> None:
    """Nothing is stored beyond it, what is there stays, and nothing is left of what was refused."""
    store = _open(Settings(artifact_dir=str(tmp_path), disk_quota_bytes=20_000))
    await store.put("private", "task/0/a", TEXT, b"x" * 8000)
    with pytest.raises(OutOfSpace):
        await store.put("private", "task/0/b", TEXT, b"x" * 30_000)
    staged = _staged(tmp_path / "uploads", "task/0/c", b"x" * 30_000)
    with pytest.raises(OutOfSpace):
        await store.put_file("private", "task/0/c", TEXT, staged)
    assert await _keys(store) == ["task/0/a"]
    assert await _bytes(store, "task/0/a") == b"x" * 8000
    assert list((tmp_path / "incoming").iterdir()) == []
    await store.close()


async def test_a_staged_upload_counts_once(tmp_path: Path) -> None:
    """It lies below the store's folder already, and takes no more room in its place there."""
    store = _open(Settings(artifact_dir=str(tmp_path), disk_quota_bytes=100_000))
    staged = _staged(tmp_path / "uploads", "task/0/a", b"x" * 60_000)
    await store.put_file("private", "task/0/a", TEXT, staged)
    assert await _keys(store) == ["task/0/a"]
    await store.close()


async def test_a_key_without_measure(tmp_path: Path) -> None:
    """What a blob's first block has no room for is refused, and nothing is left of it."""
    store = _open(Settings(artifact_dir=str(tmp_path)))
    with pytest.raises(InputError, match="too long"):
        await store.put("private", "x" * 5000, TEXT, b"x")
    assert await _keys(store) == []
    assert list((tmp_path / "incoming").iterdir()) == []
    await store.close()


# -- a store that is away


def _closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_a_server_that_is_away(tmp_path: Path) -> None:
    """Whatever needs it says so; URLs need it not."""
    endpoint = f"http://127.0.0.1:{_closed_port()}"
    settings = Settings(
        s3_endpoint=endpoint,
        s3_access_key="key",
        s3_secret_key="secret",
        s3_public_bucket="open",
        s3_private_bucket="closed",
    )
    store = S3Store(settings)
    staged = _staged(tmp_path, "task/0/a", b"x")
    for work in (
        store.put("closed", "task/0/a", TEXT, b"x"),
        store.put_file("closed", "task/0/a", TEXT, staged),
        store.read("closed", "task/0/a"),
        store.delete("closed", ["task/0/a"]),
        store.setup(),
        _keys(store),
    ):
        with pytest.raises(Unavailable):
            await work
    assert staged.exists()
    now = datetime.now(UTC)
    assert store.put_url("closed", "a", TEXT, now=now, lifetime_s=60).startswith(f"{endpoint}/closed/a?")
    assert store.get_url("closed", "a", now=now, lifetime_s=60).startswith(f"{endpoint}/closed/a?")
    await store.close()


async def test_a_folder_that_cannot_be_had(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "artifacts").write_bytes(b"")
    store = _open(Settings(artifact_dir=str(tmp_path / "artifacts")))
    with pytest.raises(Unavailable):
        await store.put("private", "task/0/a", TEXT, b"x")
    with pytest.raises(Unavailable):
        await store.read("private", "task/0/a")
    assert set(await store.delete("private", ["task/0/a"])) == {"task/0/a"}
    await store.close()


async def test_a_bucket_that_is_gone(s3: S3Store, s3_buckets: tuple[Minio, Callable[[], str]]) -> None:
    """Bytes are neither put nor said to be deleted."""
    client, _ = s3_buckets
    client.remove_bucket(s3.private_bucket)
    with pytest.raises(Unavailable):
        await s3.put(s3.private_bucket, "task/0/a", TEXT, b"x")
    with pytest.raises(Unavailable):
        await s3.delete(s3.private_bucket, ["task/0/a"])
    with pytest.raises(Unavailable):
        await _keys(s3)


async def test_wrong_keys(s3_settings: Settings, s3_server: S3Server) -> None:
    """The server refuses us: the store is not to be had, and nothing counts as missing or deleted."""
    store = S3Store(
        Settings(
            s3_endpoint=s3_server.endpoint,
            s3_access_key=s3_server.access_key,
            s3_secret_key="wrong",
            s3_region=s3_server.region,
            s3_public_bucket=s3_settings.s3_public_bucket,
            s3_private_bucket=s3_settings.s3_private_bucket,
        )
    )
    for work in (
        store.put(store.private_bucket, "task/0/a", TEXT, b"x"),
        store.read(store.private_bucket, "task/0/a"),
        store.delete(store.private_bucket, ["task/0/a"]),
        store.setup(),
    ):
        with pytest.raises(Unavailable):
            await work
    await store.close()


@pytest.mark.parametrize("endpoint", ["", "s3.example.com", "ftp://s3.example.com", "https://example.com/s3"])
def test_endpoints_that_cannot_be(endpoint: str) -> None:
    """A URL with a scheme that we speak, and without a path."""
    with pytest.raises(SettingsError, match="TCQUEUE_S3_ENDPOINT"):
        S3Store(Settings(s3_endpoint=endpoint, s3_public_bucket="open", s3_private_bucket="closed"))


# -- URLs of S3, for clients that know nothing but HTTP


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A plain client."""
    async with httpx.AsyncClient(timeout=30) as opened:
        yield opened


def _put_url(s3: S3Store, key: str, meta: BlobMeta = TEXT, *, age_s: float = 0) -> str:
    """A URL made so many seconds ago, good for a minute."""
    now = datetime.now(UTC) - timedelta(seconds=age_s)
    return s3.put_url(s3.private_bucket, key, meta, now=now, lifetime_s=60)


def _get_url(s3: S3Store, key: str, *, age_s: float = 0) -> str:
    now = datetime.now(UTC) - timedelta(seconds=age_s)
    return s3.get_url(s3.private_bucket, key, now=now, lifetime_s=60)


@pytest.mark.parametrize("key", ["task/0/a", *STRANGE_KEYS])
async def test_up_and_down_by_url(s3: S3Store, client: httpx.AsyncClient, key: str) -> None:
    """T-56, object.md 2.4: any name; the content type to the letter; parts of it."""
    meta = BlobMeta("text/x-strange")
    put = await client.put(_put_url(s3, key, meta), content=b"hello", headers=meta.headers())
    assert put.status_code == 200
    assert await _bytes(s3, key) == b"hello"
    assert await _keys(s3) == [key]
    url = _get_url(s3, key)
    got = await client.get(url)
    assert (got.status_code, got.content) == (200, b"hello")
    assert (got.headers["content-type"], got.headers["content-length"]) == ("text/x-strange", "5")
    part = await client.get(url, headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.content) == (206, b"el")


async def test_urls_of_before(s3: S3Store, client: httpx.AsyncClient) -> None:
    """A URL is good to the end of its time and the slack."""
    put = await client.put(_put_url(s3, "a", age_s=30), content=b"x", headers=TEXT.headers())
    assert put.status_code == 200
    assert (await client.get(_get_url(s3, "a", age_s=30))).content == b"x"


async def test_uploads_again(s3: S3Store, client: httpx.AsyncClient) -> None:
    """object.md 2.4: the same URL again replaces what was there, be it with nothing."""
    url = _put_url(s3, "task/0/a")
    for data in (b"first", b"second", b""):
        assert (await client.put(url, content=data, headers=TEXT.headers())).status_code == 200
        assert await _bytes(s3, "task/0/a") == data


@pytest.mark.parametrize(
    "meta", [BlobMeta("text/html", attachment=True), BlobMeta("application/x", "gzip", attachment=True)]
)
async def test_headers_of_uploads(s3: S3Store, client: httpx.AsyncClient, meta: BlobMeta) -> None:
    """What an upload had to say is said with every download, and kept."""
    put = await client.put(_put_url(s3, "a", meta), content=b"", headers=meta.headers())
    assert put.status_code == 200
    assert (await _reading(s3, "a"))[0].meta == meta
    got = await client.get(_get_url(s3, "a"))
    for name, value in meta.headers().items():
        assert got.headers[name] == value
    for lacking in meta.headers():
        headers = {name: value for name, value in meta.headers().items() if name != lacking}
        refused = await client.put(_put_url(s3, "b", meta), content=b"x", headers=headers)
        assert 400 <= refused.status_code < 500
    assert await _keys(s3) == ["a"]


@pytest.mark.parametrize("content_type", ["text/html", "text/plain; charset=utf-8", "", None])
async def test_another_content_type(s3: S3Store, client: httpx.AsyncClient, content_type: str | None) -> None:
    """object.md 2.4: refused, and nothing is stored."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await client.put(_put_url(s3, "task/0/a"), content=b"x", headers=headers)
    assert 400 <= answer.status_code < 500
    assert await _keys(s3) == []


async def test_urls_whose_time_is_over(s3: S3Store, client: httpx.AsyncClient) -> None:
    """A minute and the slack have gone by."""
    await s3.put(s3.private_bucket, "a", TEXT, b"kept")
    put = await client.put(_put_url(s3, "a", age_s=75), content=b"x", headers=TEXT.headers())
    got = await client.get(_get_url(s3, "a", age_s=75))
    assert (put.status_code, got.status_code) == (403, 403)
    assert b"kept" not in got.content
    assert await _bytes(s3, "a") == b"kept"


def _changed(url: str) -> dict[str, str]:
    """The URL with one thing changed, by what it was."""
    signature = httpx.URL(url).params["X-Amz-Signature"]
    other = ("0" if signature[0] != "0" else "1") + signature[1:]
    return {
        "signature": url.replace(signature, other),
        "no signature": url.partition("&X-Amz-Signature=")[0],
        "key": url.replace("/a?", "/b?"),
        "longer life": re.sub(r"X-Amz-Expires=\d+", "X-Amz-Expires=700000", url),
        "headers": url.replace("content-type%3B", ""),
        "nothing but the path": url.partition("?")[0],
    }


async def test_changed_urls(s3: S3Store, client: httpx.AsyncClient) -> None:
    """Nobody made them: nothing is read, nothing is written."""
    for key in ("a", "b"):
        await s3.put(s3.private_bucket, key, TEXT, b"kept")
    put_url, get_url = _put_url(s3, "a"), _get_url(s3, "a")
    for what, url in _changed(put_url).items():
        assert url != put_url
        answer = await client.put(url, content=b"x", headers=TEXT.headers())
        assert answer.status_code in (400, 403), what
    for what, url in _changed(get_url).items():
        if what != "headers":
            assert url != get_url
            answer = await client.get(url)
            assert answer.status_code in (400, 403), what
            assert b"kept" not in answer.content
    for key in ("a", "b"):
        assert await _bytes(s3, key) == b"kept"


async def test_a_url_in_another_bucket(s3: S3Store, client: httpx.AsyncClient) -> None:
    """The bucket is signed as well."""
    await s3.put(s3.public_bucket, "a", TEXT, b"kept")
    url = _put_url(s3, "a").replace(s3.private_bucket, s3.public_bucket)
    answer = await client.put(url, content=b"x", headers=TEXT.headers())
    assert answer.status_code == 403
    assert await _bytes(s3, "a", bucket=s3.public_bucket) == b"kept"


async def test_urls_for_something_else(s3: S3Store, client: httpx.AsyncClient) -> None:
    """A URL to read writes nothing and deletes nothing, a URL to write reads nothing."""
    await s3.put(s3.private_bucket, "a", TEXT, b"kept")
    for verb, url in (
        ("PUT", _get_url(s3, "a")),
        ("DELETE", _get_url(s3, "a")),
        ("GET", _put_url(s3, "a")),
        ("DELETE", _put_url(s3, "a")),
    ):
        answer = await client.request(verb, url, content=b"", headers=TEXT.headers())
        assert answer.status_code == 403
        assert b"kept" not in answer.content
    assert await _bytes(s3, "a") == b"kept"


@pytest.mark.parametrize("key", UNTIDY_KEYS)
async def test_urls_of_untidy_keys(s3: S3Store, client: httpx.AsyncClient, key: str) -> None:
    """What clients and servers make of them may be refused; it never means another blob."""
    await s3.put(s3.private_bucket, "kept", TEXT, b"kept")
    put = await client.put(_put_url(s3, key), content=b"strange", headers=TEXT.headers())
    got = await client.get(_get_url(s3, key))
    if put.status_code == 200:
        assert (got.status_code, got.content) == (200, b"strange")
    else:
        assert 400 <= put.status_code < 500
        assert 400 <= got.status_code < 500
    assert await _bytes(s3, "kept") == b"kept"
    assert len(await _keys(s3)) == (2 if put.status_code == 200 else 1)


# -- setting up


async def test_setting_up(s3: S3Store, client: httpx.AsyncClient) -> None:
    """Again and again; then everybody reads the public bucket, and nobody the private one, nor writes."""
    for bucket in (s3.public_bucket, s3.private_bucket):
        await s3.put(bucket, "task/0/a b", TEXT, b"kept")
    before = await client.get(s3.plain_url(s3.public_bucket, "task/0/a b"))
    assert before.status_code == 403
    first, second = list(await s3.setup()), list(await s3.setup())
    assert first == second
    assert f"bucket {s3.private_bucket} exists" in first
    assert f"bucket {s3.public_bucket}: everybody may read: done" in first
    public = await client.get(s3.plain_url(s3.public_bucket, "task/0/a b"))
    assert (public.status_code, public.content) == (200, b"kept")
    assert public.headers["content-type"] == "text/plain"
    private = await client.get(s3.plain_url(s3.private_bucket, "task/0/a b"))
    assert private.status_code == 403
    for bucket in (s3.public_bucket, s3.private_bucket):
        url = s3.plain_url(bucket, "task/0/a b")
        assert (await client.put(url, content=b"x")).status_code == 403
        assert (await client.delete(url)).status_code == 403
        assert (await client.get(s3.plain_url(bucket, ""))).status_code == 403
        assert await _bytes(s3, "task/0/a b", bucket=bucket) == b"kept"


async def test_buckets_are_made(s3_settings: Settings, s3_buckets: tuple[Minio, Callable[[], str]]) -> None:
    """Where there are none yet, they come to be, and can be used at once."""
    client, _ = s3_buckets
    for bucket in (s3_settings.s3_public_bucket, s3_settings.s3_private_bucket):
        client.remove_bucket(bucket)
    store = S3Store(s3_settings)
    done = list(await store.setup())
    assert f"bucket {store.public_bucket} made" in done
    assert f"bucket {store.private_bucket} made" in done
    for bucket in (store.public_bucket, store.private_bucket):
        await store.put(bucket, "a", TEXT, b"x")
        assert await _keys(store, bucket) == ["a"]
    await store.close()


async def test_pages_of_other_origins(s3: S3Store, client: httpx.AsyncClient) -> None:
    """Browsers may put and get by URL once the store is set up."""
    await s3.setup()
    asked = {"Origin": "https://example.com", "Access-Control-Request-Headers": "content-type"}
    for verb, url in (("PUT", _put_url(s3, "a")), ("GET", _get_url(s3, "a"))):
        answer = await client.options(url, headers={**asked, "Access-Control-Request-Method": verb})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in ("*", "https://example.com")
        assert verb in answer.headers["access-control-allow-methods"]
