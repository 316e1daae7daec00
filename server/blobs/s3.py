"""Blobs in S3, MinIO, or what speaks their language, through the `minio` SDK.

The SDK blocks, so it works in threads of its own; presigning asks nobody, since the region is a setting.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import structlog
import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule

from server.blobs.disk import HEAD_BYTES
from server.blobs.presigning import presign
from server.blobs.store import SLACK_S, BlobMeta, Found, Reading
from server.config import Settings, SettingsError
from server.errors import InputError, Unavailable

T = TypeVar("T")

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 1024 * 1024
_PART_BYTES = 16 * 1024 * 1024
_THREADS = 16
_CORS = (
    b"<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
    b"<AllowedMethod>HEAD</AllowedMethod><AllowedMethod>PUT</AllowedMethod><AllowedHeader>*</AllowedHeader>"
    b"<ExposeHeader>ETag</ExposeHeader><ExposeHeader>Content-Range</ExposeHeader>"
    b"<MaxAgeSeconds>900</MaxAgeSeconds></CORSRule></CORSConfiguration>"
)
#: A segment that `_safe` or `_given` may have to write in another way.
_DOTS = re.compile(r"(?:^|/)(?:\.|\.\.|(?:%25)*(?:%2E){1,2})(?:/|$)")
_LIKE_DOTS = re.compile(r"(?:%25)*(?:%2E){1,2}")
_MISSING = frozenset({"NoSuchKey", "NoSuchObject", "NoSuchVersion"})


class S3Store:
    """Two buckets of an S3 service."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for settings that cannot work."""
        url = urlsplit(settings.s3_endpoint)
        if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
            raise SettingsError(
                "TCQUEUE_S3_ENDPOINT takes a URL without a path, such as https://s3.us-west-2.amazonaws.com"
            )
        self.public_bucket = settings.s3_public_bucket
        self.private_bucket = settings.s3_private_bucket
        self._endpoint = settings.s3_endpoint
        self._access_key = settings.s3_access_key
        self._secret_key = settings.s3_secret_key
        self._region = settings.s3_region
        self._cdn = settings.s3_public_cdn_url.rstrip("/")
        self._pool = urllib3.PoolManager(
            num_pools=4,
            maxsize=_THREADS,
            timeout=urllib3.Timeout(connect=5, read=30),
            retries=urllib3.Retry(total=2, backoff_factor=0.1, status_forcelist=[500, 502, 503, 504]),
        )
        self._client = Minio(
            url.netloc,
            access_key=self._access_key,
            secret_key=self._secret_key,
            region=self._region,
            secure=url.scheme == "https",
            http_client=self._pool,
        )
        self._bases: dict[str, str] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "s3-store")

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
        """See BlobStore. The length is not part of the signature: not every client can tell it to us as it
        will send it."""
        return self._presign("PUT", bucket, key, now, lifetime_s + SLACK_S, meta.headers())

    def get_url(self, bucket: str, key: str, *, now: datetime, lifetime_s: int) -> str:
        """See BlobStore."""
        return self._presign("GET", bucket, key, now, lifetime_s, {})

    def plain_url(self, bucket: str, key: str) -> str:
        """See BlobStore."""
        return self._url(bucket, key)

    def cdn_url(self, key: str) -> str | None:
        """The URL of a public blob at the content delivery network; None where there is none."""
        return f"{self._cdn}/{quote(_safe(key), safe='/-_.~')}" if self._cdn else None

    def _presign(
        self, verb: str, bucket: str, key: str, now: datetime, lifetime_s: int, headers: Mapping[str, str]
    ) -> str:
        return presign(
            verb,
            self._url(bucket, key),
            access_key=self._access_key,
            secret_key=self._secret_key,
            region=self._region,
            now=now,
            lifetime_s=lifetime_s,
            headers=headers,
        )

    def _url(self, bucket: str, key: str) -> str:
        base = self._bases.get(bucket)
        if base is None:
            # The SDK knows where a bucket is: in the path, or, at Amazon's, in the host's name.
            example = urlsplit(self._client.get_presigned_url("GET", bucket, "x"))
            base = self._bases[bucket] = f"{example.scheme}://{example.netloc}{example.path[:-1]}"
        return base + quote(_safe(key), safe="/-_.~")

    # -- bytes

    async def put(self, bucket: str, key: str, meta: BlobMeta, data: bytes) -> None:
        """See BlobStore."""
        await self._blocking(lambda: self._upload(bucket, key, meta, io.BytesIO(data), len(data)))

    async def put_file(self, bucket: str, key: str, meta: BlobMeta, staged: Path) -> None:
        """See BlobStore."""

        def upload() -> None:
            with open(staged, "rb") as file:
                length = file.seek(0, io.SEEK_END) - HEAD_BYTES
                file.seek(HEAD_BYTES)
                self._upload(bucket, key, meta, file, length)
            staged.unlink(missing_ok=True)

        await self._blocking(upload)

    def _upload(self, bucket: str, key: str, meta: BlobMeta, source: Any, length: int) -> None:
        headers: Any = meta.headers()
        content_type = headers.pop("Content-Type")
        self._client.put_object(
            bucket,
            _safe(key),
            source,
            length,
            content_type=content_type,
            metadata=headers,
            part_size=_PART_BYTES,
        )

    async def read(self, bucket: str, key: str, offset: int = 0) -> Reading | None:
        """See BlobStore."""

        name = _safe(key)

        def open_() -> tuple[Any, int, str, BlobMeta] | None:
            try:
                # Asked first, because a range that holds nothing is an error to S3.
                found = self._client.stat_object(bucket, name)
            except S3Error as e:
                if e.code in _MISSING:
                    return None
                raise
            length = found.size or 0
            headers = found.metadata or {}
            meta = BlobMeta(
                found.content_type or "",
                headers.get("content-encoding", "").replace("identity", ""),
                headers.get("content-disposition", "").startswith("attachment"),
            )
            etag = (found.etag or "").strip('"')
            if offset > length:
                raise InputError(f"offset {offset} lies beyond the end, which is {length}")
            if offset == length:
                return None, length, etag, meta
            response = self._client.get_object(
                bucket, name, offset=offset, request_headers={"If-Match": f'"{etag}"'}
            )
            return response, length, etag, meta

        opened = await self._blocking(open_)
        if opened is None:
            return None
        response, length, etag, meta = opened
        chunks = self._chunks(response, length - offset)
        return Reading(meta, length, etag, chunks, partial(_release, response))

    async def _chunks(self, response: Any, left: int) -> AsyncGenerator[bytes, None]:
        while left > 0:
            piece = await self._blocking(lambda: response.read(_CHUNK_BYTES, decode_content=False))
            if not piece:
                raise Unavailable("the artifact store ended its answer too early")
            left -= len(piece)
            yield piece

    async def delete(self, bucket: str, keys: Sequence[str]) -> Mapping[str, str]:
        """See BlobStore."""

        def remove() -> dict[str, str]:
            errors = self._client.remove_objects(bucket, [DeleteObject(_safe(key)) for key in keys])
            return {
                _given(error.name or ""): f"{error.code}: {error.message}"
                for error in errors
                if error.code not in _MISSING
            }

        return await self._blocking(remove)

    async def walk(self, bucket: str) -> AsyncIterator[Found]:
        """See BlobStore."""
        listing: Iterator[Any] = iter(self._client.list_objects(bucket, recursive=True))
        while True:
            batch = await self._blocking(
                lambda: [item for _, item in zip(range(1000), listing, strict=False)]
            )
            if not batch:
                return
            for item in batch:
                yield Found(_given(item.object_name), item.last_modified or datetime.now(UTC))

    async def setup(self) -> Iterable[str]:
        """Makes the buckets if need be, lets browsers read and put by URL, lets everybody read the public
        one, and has the store forget uploads in parts that were left behind."""
        return await self._blocking(lambda: list(self._set_up()))

    def _set_up(self) -> Iterator[str]:
        for bucket in dict.fromkeys((self.public_bucket, self.private_bucket)):
            if self._client.bucket_exists(bucket):
                yield f"bucket {bucket} exists"
            else:
                self._client.make_bucket(bucket, self._region)
                yield f"bucket {bucket} made"
            yield _try(f"bucket {bucket}: CORS", lambda bucket=bucket: self._set_cors(bucket))  # type: ignore[misc]
            yield _try(
                f"bucket {bucket}: unfinished uploads end after a day",
                lambda bucket=bucket: self._client.set_bucket_lifecycle(bucket, _lifecycle()),  # type: ignore[misc]
            )
        yield _try(
            f"bucket {self.public_bucket}: everybody may read",
            lambda: self._client.set_bucket_policy(self.public_bucket, _public_read(self.public_bucket)),
        )

    def _set_cors(self, bucket: str) -> None:
        """The SDK has no call for this one."""
        checksum = base64.b64encode(hashlib.md5(_CORS, usedforsecurity=False).digest()).decode()
        headers = {"content-md5": checksum}
        url = presign(
            "PUT",
            self._url(bucket, ""),
            access_key=self._access_key,
            secret_key=self._secret_key,
            region=self._region,
            now=datetime.now(UTC),
            lifetime_s=60,
            headers=headers,
            parameters={"cors": ""},
        )
        response = self._pool.request("PUT", url, body=_CORS, headers=headers)
        if response.status not in (200, 204):
            raise ValueError(f"the store answers {response.status}")

    async def close(self) -> None:
        """See BlobStore."""
        self._threads.shutdown(wait=True)
        self._pool.clear()

    async def _blocking(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except S3Error as e:
            raise Unavailable(f"the artifact store refuses it: {e.code}: {e.message}") from e
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as e:
            log.warning("the artifact store does not answer", endpoint=self._endpoint, error=str(e))
            raise Unavailable("the artifact store does not answer") from e


def _safe(key: str) -> str:
    """The key as stores get it. Segments of one or two dots lead elsewhere in many of them, and in every HTTP
    client; they are written in another way, and so is what would look the same."""
    if not _DOTS.search(key):
        return key
    return "/".join(
        segment.replace(".", "%2E")
        if segment in (".", "..")
        else f"%25{segment}"
        if _LIKE_DOTS.fullmatch(segment)
        else segment
        for segment in key.split("/")
    )


def _given(key: str) -> str:
    """The key that `_safe` was given."""
    if not _DOTS.search(key):
        return key
    return "/".join(
        segment.replace("%2E", ".")
        if segment in ("%2E", "%2E%2E")
        else segment.removeprefix("%25")
        if _LIKE_DOTS.fullmatch(segment)
        else segment
        for segment in key.split("/")
    )


def _release(response: Any) -> None:
    if response is not None:
        response.close()
        response.release_conn()


def _try(what: str, work: Callable[[], Any]) -> str:
    try:
        work()
    except (MinioException, urllib3.exceptions.HTTPError, ValueError) as e:
        return f"{what}: NOT done: {getattr(e, 'message', None) or e}"
    return f"{what}: done"


def _lifecycle() -> LifecycleConfig:
    rule = Rule(
        ENABLED,
        rule_filter=Filter(prefix=""),
        rule_id="unfinished-uploads",
        abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=1),
    )
    return LifecycleConfig([rule])


def _public_read(bucket: str) -> str:
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": ["*"]},
                    "Action": ["s3:GetObject"],
                    "Resource": [f"arn:aws:s3:::{bucket}/*"],
                }
            ],
        }
    )
