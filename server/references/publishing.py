"""Writing what is published to a folder or to S3 buckets, as deployments without their own web server do."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from server.references.documents import Document


class Target(Protocol):
    """Somewhere to publish to."""

    def put(self, path: str, document: Document) -> bool:
        """Makes the target hold the document; whether that changed anything. OSError or the store's own
        error when it cannot."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder: `/schemas/queue/v1/task.json` becomes the file of that path below it."""

    root: Path

    def put(self, path: str, document: Document) -> bool:
        """Writes the file unless it is there already."""
        file = self.root / path.lstrip("/")
        if file.is_file() and file.read_bytes() == document.body:
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(document.body)
        return True


class Buckets:
    """Two buckets; keys lack the first part of the path, which says which bucket it is:
    `/schemas/queue/v1/task.json` is `queue/v1/task.json` in the bucket of schemas.

    Who may read them is the business of their policies; no object gets an ACL.
    """

    def __init__(self, client: Any, *, references: str, schemas: str) -> None:
        """`client` is a minio.Minio."""
        self._client = client
        self._buckets: Mapping[str, str] = {"references": references, "schemas": schemas}

    def missing(self) -> list[str]:
        """The buckets that do not exist. Raises minio's errors."""
        return [
            name for name in dict.fromkeys(self._buckets.values()) if not self._client.bucket_exists(name)
        ]

    def put(self, path: str, document: Document) -> bool:
        """Uploads the object unless an equal one is there already. Raises minio's errors."""
        _, kind, key = path.split("/", 2)
        bucket = self._buckets[kind]
        if self._holds(bucket, key, document):
            return False
        body = io.BytesIO(document.body)
        self._client.put_object(bucket, key, body, len(document.body), content_type=document.content_type)
        return True

    def _holds(self, bucket: str, key: str, document: Document) -> bool:
        """Whether the object is this one. The ETag of a plain upload is its MD5; where a store makes
        other ETags, everything is uploaded anew, which is harmless."""
        from minio.error import S3Error

        try:
            found = self._client.stat_object(bucket, key)
        except S3Error as e:
            if e.code in ("NoSuchKey", "NoSuchObject"):
                return False
            raise
        md5 = hashlib.md5(document.body, usedforsecurity=False).hexdigest()
        return (found.etag or "").strip('"') == md5 and found.content_type == document.content_type


def publish(documents: Mapping[str, Document], target: Target) -> Iterator[tuple[str, bool]]:
    """Publishes one document after the other; yields its path and whether it was new or changed.

    The manifest comes last, so that it never names what is not there yet.
    """
    for path in sorted(documents, key=lambda path: (path.endswith("/manifest.json"), path)):
        yield path, target.put(path, documents[path])
