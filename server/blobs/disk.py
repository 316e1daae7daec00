"""Blobs as files: the store of a deployment without S3.

A file's name is a hash of bucket and key, so no key can lead out of the folder or collide with another by
its letters' case. Its first block holds what is known of the blob as JSON, the bytes follow. A blob is
written beside its place, forced to the disk, and renamed there: it is whole or absent, whenever the
power fails.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from server.blobs.signing import Terms, UrlSigner, blob_path
from server.blobs.store import SLACK_S, BlobMeta, Found, Reading
from server.errors import InputError, OutOfSpace, Unavailable

T = TypeVar("T")

HEAD_BYTES = 4096
"""Size of the first block, and of the gap that a staged upload begins with."""

CHUNK_BYTES = 1024 * 1024
"""How much is read or written at once."""

_VERSION = 1
_BLOBS = "[0-9a-f][0-9a-f]/*"
_USAGE_VALID_S = 60.0
_STALE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What the first block of a file says."""

    bucket: str
    key: str
    meta: BlobMeta
    length: int
    etag: str


class OpenBlob:
    """A blob opened for reading; to be closed. Methods block."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises ValueError for a file that is no blob."""
        self._file = file
        self.stored = _head(file.read(HEAD_BYTES))
        self.modified = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)

    def read(self, offset: int, most: int) -> bytes:
        """Up to so many of the blob's bytes from an offset."""
        return os.pread(self._file.fileno(), most, HEAD_BYTES + offset)

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()


class IncomingBlob:
    """A blob being written: `write` what comes, then `keep` or `drop` it. Methods block."""

    def __init__(self, path: Path, store: DiskStore) -> None:
        self._path = path
        self._store = store
        self._file = open(path, "xb", buffering=0)
        self._file.seek(HEAD_BYTES)
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Adds bytes. Raises OutOfSpace."""
        self._store.reserve(len(data))
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) or 0 :]
        except OSError as e:
            raise _failed(e) from e
        self.length += len(data)

    def write_all(self, pieces: Iterable[bytes]) -> None:
        """Adds the bytes of all pieces."""
        for piece in pieces:
            self.write(piece)

    def settle(self, bucket: str, key: str, meta: BlobMeta) -> Stored:
        """Makes sure that all of it is on the disk; what is left is to put it in its place."""
        with self._file:
            return self._store.settle(self._file, bucket, key, meta, self.length)

    def place(self, stored: Stored) -> None:
        """Puts the blob in its place, in place of what was there."""
        self._store.place(self._path, stored)

    def drop(self) -> None:
        """Forgets it."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class DiskStore:
    """Blobs below a folder. `root_url` says where the HTTP door is, which serves the URLs made here."""

    public_bucket = "public"
    private_bucket = "private"

    def __init__(
        self, folder: Path, signer: UrlSigner, root_url: Callable[[], str], *, quota: int = 0
    ) -> None:
        """`quota` is the most bytes to hold; 0 leaves the disk as the limit."""
        self.signer = signer
        self._folder = folder
        self._incoming = folder / "incoming"
        self._root_url = root_url
        self._quota = quota
        self._usage = 0
        self._usage_known_at = float("-inf")
        self._threads = ThreadPoolExecutor(16, "disk-store")

    # -- URLs

    def put_url(
        self,
        bucket: str,
        key: str,
        meta: BlobMeta,
        *,
        now: datetime,
        lifetime_s: int,
        length: int | None = None,
    ) -> str:
        """See BlobStore."""
        expires = int(now.timestamp()) + lifetime_s + SLACK_S
        terms = Terms("PUT", bucket, key, expires, meta.content_type, length, meta.attachment)
        return self._root_url() + self.signer.path(terms)

    def get_url(self, bucket: str, key: str, *, now: datetime, lifetime_s: int) -> str:
        """See BlobStore."""
        return self._root_url() + self.signer.path(
            Terms("GET", bucket, key, int(now.timestamp()) + lifetime_s)
        )

    def plain_url(self, bucket: str, key: str) -> str:
        """See BlobStore."""
        return self._root_url() + blob_path(bucket, key)

    def cdn_url(self, key: str) -> str | None:
        """See BlobStore; a disk has none."""
        return None

    # -- bytes

    async def put(self, bucket: str, key: str, meta: BlobMeta, data: bytes) -> None:
        """See BlobStore."""

        def write() -> None:
            incoming = self.incoming()
            try:
                incoming.write(data)
                incoming.place(incoming.settle(bucket, key, meta))
            except BaseException:
                incoming.drop()
                raise

        await self.blocking(write)

    async def put_file(self, bucket: str, key: str, meta: BlobMeta, staged: Path) -> None:
        """See BlobStore."""

        def move() -> None:
            with open(staged, "r+b", buffering=0) as file:
                length = os.fstat(file.fileno()).st_size - HEAD_BYTES
                self.reserve(length)
                self.place(staged, self.settle(file, bucket, key, meta, length))

        await self.blocking(move)

    async def read(self, bucket: str, key: str, offset: int = 0) -> Reading | None:
        """See BlobStore."""
        blob = await self.blocking(lambda: self.open(bucket, key))
        if blob is None:
            return None
        stored = blob.stored
        if offset > stored.length:
            blob.close()
            raise InputError(f"offset {offset} lies beyond the end, which is {stored.length}")
        chunks = self.chunks(blob, offset, stored.length)
        return Reading(stored.meta, stored.length, stored.etag, chunks, blob.close)

    async def chunks(self, blob: OpenBlob, begin: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `begin` up to `end`, one piece read ahead. Leaves the blob open."""
        ahead: asyncio.Future[bytes] | None = None
        try:
            while begin < end:
                if ahead is None:
                    ahead = self._reading(blob, begin, end)
                piece = await ahead
                begin += len(piece)
                ahead = self._reading(blob, begin, end) if begin < end and piece else None
                if not piece:
                    raise Unavailable("the artifact's file is shorter than it was")
                yield piece
        finally:
            if ahead is not None:
                await asyncio.wait([ahead])

    def _reading(self, blob: OpenBlob, begin: int, end: int) -> asyncio.Future[bytes]:
        most = min(CHUNK_BYTES, end - begin)
        return asyncio.get_running_loop().run_in_executor(self._threads, blob.read, begin, most)

    async def delete(self, bucket: str, keys: Sequence[str]) -> Mapping[str, str]:
        """See BlobStore."""

        def unlink() -> dict[str, str]:
            failed = {}
            for key in keys:
                try:
                    self._place(bucket, key).unlink(missing_ok=True)
                except OSError as e:
                    failed[key] = str(e)
            return failed

        return await self.blocking(unlink)

    async def walk(self, bucket: str) -> AsyncIterator[Found]:
        """See BlobStore."""
        files = self._files()
        while True:
            batch = await self.blocking(lambda: [found for _, found in zip(range(500), files, strict=False)])
            if not batch:
                return
            for stored, modified in batch:
                if stored.bucket == bucket:
                    yield Found(stored.key, modified)

    async def setup(self) -> Iterable[str]:
        """See BlobStore."""
        await self.blocking(lambda: self._incoming.mkdir(parents=True, exist_ok=True))
        return [f"folder {self._folder} is ready"]

    async def close(self) -> None:
        """See BlobStore."""
        self._threads.shutdown(wait=True)

    async def tidy(self) -> int:
        """Deletes what uploads left behind that broke off a day ago, and returns how many."""

        def remove() -> int:
            removed = 0
            for file in self._incoming.glob("*"):
                with suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime > _STALE_S:
                        file.unlink()
                        removed += 1
            return removed

        return await self.blocking(remove)

    # -- for the HTTP door, which streams; these block

    async def blocking(self, work: Callable[[], T]) -> T:
        """Does blocking work beside the event loop. A disk that fails is Unavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as e:
            raise _failed(e) from e

    def open(self, bucket: str, key: str) -> OpenBlob | None:
        """The blob, opened; None when there is none."""
        try:
            file = open(self._place(bucket, key), "rb", buffering=0)
        except FileNotFoundError:
            return None
        try:
            return OpenBlob(file)
        except BaseException:
            file.close()
            raise

    def incoming(self) -> IncomingBlob:
        """A place to write a blob to."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        return IncomingBlob(self._incoming / secrets.token_hex(16), self)

    def reserve(self, size: int) -> None:
        """Makes sure that so many bytes more may be held. Raises OutOfSpace. The sum is taken from the disk
        once a minute, and counted on from there by this process."""
        if not self._quota:
            return
        if time.monotonic() - self._usage_known_at > _USAGE_VALID_S:
            self._usage_known_at = time.monotonic()
            self._usage = sum(map(_size, self._folder.glob(_BLOBS))) + sum(
                map(_size, self._incoming.glob("*"))
            )
        if self._usage + size > self._quota:
            raise OutOfSpace("the artifact store is full (TCQUEUE_DISK_QUOTA_BYTES)")
        self._usage += size

    def settle(self, file: BinaryIO, bucket: str, key: str, meta: BlobMeta, length: int) -> Stored:
        """Writes the first block of a file whose bytes are there, and waits until the disk has it all."""
        stored = Stored(bucket, key, meta, length, secrets.token_hex(12))
        try:
            os.pwrite(file.fileno(), _head_block(stored), 0)
            os.fsync(file.fileno())
        except OSError as e:
            raise _failed(e) from e
        return stored

    def place(self, path: Path, stored: Stored) -> None:
        """Puts a settled file in its place."""
        place = self._place(stored.bucket, stored.key)
        try:
            if not place.parent.is_dir():
                place.parent.mkdir(exist_ok=True)
                _sync_folder(self._folder)
            os.replace(path, place)
            _sync_folder(place.parent)
        except OSError as e:
            raise _failed(e) from e

    def _place(self, bucket: str, key: str) -> Path:
        digest = hashlib.sha256(f"{bucket}/{key}".encode()).hexdigest()
        return self._folder / digest[:2] / digest[2:]

    def _files(self) -> Iterator[tuple[Stored, datetime]]:
        for path in self._folder.glob(_BLOBS):
            with suppress(FileNotFoundError, ValueError), open(path, "rb") as file:
                blob = OpenBlob(file)
                yield blob.stored, blob.modified


def _head_block(stored: Stored) -> bytes:
    meta = stored.meta
    text = json.dumps(
        {
            "version": _VERSION,
            "bucket": stored.bucket,
            "key": stored.key,
            "contentType": meta.content_type,
            "contentEncoding": meta.content_encoding,
            "attachment": meta.attachment,
            "length": stored.length,
            "etag": stored.etag,
        }
    ).encode()
    if len(text) >= HEAD_BYTES:
        raise InputError("the artifact's name is too long to be stored")
    return text.ljust(HEAD_BYTES - 1) + b"\n"


def _head(block: bytes) -> Stored:
    fields = json.loads(block)
    if fields.get("version") != _VERSION:
        raise ValueError("the file was written by another version")
    meta = BlobMeta(fields["contentType"], fields["contentEncoding"], fields["attachment"])
    return Stored(fields["bucket"], fields["key"], meta, fields["length"], fields["etag"])


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace("the disk of the artifact store is full")
    return Unavailable(f"the artifact store's disk fails: {error.strerror}")
