"""Bytes that no row knows, found by walking the buckets.

There are none as long as this deployment alone writes there: rows come before bytes, and go after them. They
come from outside: a restored database, a URL for uploads used after its artifact had expired on S3.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from server.blobs.store import BlobStore, Found
from server.domain import artifact_keys
from server.objects.service import BLOB_PREFIX
from server.store.database import Database
from server.store.statements import load

_ARTIFACTS = load("artifacts")
_OBJECTS = load("objects")

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Orphan:
    """A blob without a row."""

    bucket: str
    key: str
    modified: datetime


async def orphans(db: Database, store: BlobStore, before: datetime) -> AsyncIterator[Orphan]:
    """Walks both buckets; yields what no row knows and was written before that moment."""
    for bucket in dict.fromkeys((store.public_bucket, store.private_bucket)):
        batch: list[Found] = []
        async for found in store.walk(bucket):
            if found.modified < before:
                batch.append(found)
            if len(batch) == _BATCH:
                for orphan in await _unknown(db, bucket, batch):
                    yield orphan
                batch = []
        for orphan in await _unknown(db, bucket, batch):
            yield orphan


async def _unknown(db: Database, bucket: str, batch: Sequence[Found]) -> list[Orphan]:
    if not batch:
        return []
    known: set[str] = set()
    objects = [found.key for found in batch if found.key.startswith(BLOB_PREFIX)]
    if objects:
        known.update(row[0] for row in await db.fetch(_OBJECTS["known_blobs"], (objects,)))
    places = [place for found in batch if (place := artifact_keys.split(found.key)) is not None]
    if places:
        columns = [list(column) for column in zip(*places, strict=True)]
        rows = await db.fetch(_ARTIFACTS["known_blobs"], (*columns, bucket))
        known.update(artifact_keys.key(*row) for row in rows)
    return [Orphan(bucket, found.key, found.modified) for found in batch if found.key not in known]
