"""Expiry of artifacts and objects: their bytes first, then their rows (queue.md 7.8, object.md 1).

What is chosen for deletion is taken out of sight in a transaction of its own, so nobody goes on with it
while its bytes are deleted. A row is deleted only when its bytes are gone: whatever ends the loop half-way,
the next round finds the rest. A blob that the store will not delete keeps its row, and the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import structlog

from server import metrics
from server.blobs.azure import AzureStore
from server.blobs.disk import DiskStore
from server.blobs.staging import Staging
from server.blobs.store import BlobStore
from server.domain import artifact_keys
from server.objects.backends import Backends
from server.store.database import Database, Row
from server.store.statements import load

log = structlog.get_logger(__name__)

_ARTIFACTS = load("artifacts")
_OBJECTS = load("objects")

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

BATCH = 1000
"""Rows chosen at once: as many as S3 deletes in one request."""


class ArtifactExpiry:
    """Deletes expired artifacts in batches, those that expired first."""

    name = "expire-artifacts"
    full = 1

    def __init__(
        self,
        db: Database,
        store: BlobStore,
        azure: AzureStore | None = None,
        *,
        delay_s: float,
        pause_s: float,
    ) -> None:
        """Artifacts expire `delay_s` after their time, or before it where that is positive."""
        self.pause_s = pause_s
        self._db = db
        self._store = store
        self._azure = azure
        self._delay_s = delay_s
        # What could not be deleted must not be chosen again before the others had their turn.
        self._after: tuple[datetime, str, int, str] = (_BEGINNING, "", -1, "")

    async def run_once(self) -> int:
        """Deletes a batch of which anything can be deleted; returns how many artifacts it was. Raises
        Unavailable when the store is away."""
        gone: list[Row] = []
        while not gone:
            rows = await self._db.fetch(_ARTIFACTS["doom_artifacts"], (self._delay_s, BATCH, *self._after))
            if not rows:
                self._after = (_BEGINNING, "", -1, "")
                return 0
            stuck = await self._delete_bytes(rows)
            gone = [row for row in rows if artifact_keys.key(*row[1:4]) not in stuck]
            if stuck:
                first = next(iter(stuck.items()))
                log.warning("artifacts could not be deleted", count=len(stuck), first=first)
            self._after = max((row[0], row[1], row[2], row[3]) for row in rows)
        columns = [list(column) for column in zip(*(row[1:4] for row in gone), strict=True)]
        await self._db.fetch(_ARTIFACTS["drop_artifacts"], columns)
        metrics.DELETED_BLOBS.inc(sum(row[4] is not None for row in gone))
        return len(gone)

    async def _delete_bytes(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Deletes what the rows have in the store; returns what is still there, and why, by key."""
        stuck: dict[str, str] = {}
        for bucket in {row[4] for row in rows if row[4] is not None}:
            keys = [artifact_keys.key(*row[1:4]) for row in rows if row[4] == bucket]
            if self._azure is not None and bucket == self._azure.bucket:
                stuck.update(await self._azure.delete(keys))
                continue
            if bucket not in (self._store.public_bucket, self._store.private_bucket):
                log.warning(
                    "artifacts lay in a bucket that is not configured", bucket=bucket, count=len(keys)
                )
                continue
            stuck.update(await self._store.delete(bucket, keys))
        return stuck


class ObjectExpiry:
    """Deletes expired objects, or uploads that nobody finished, in batches."""

    full = 1

    def __init__(
        self,
        name: str,
        db: Database,
        store: BlobStore,
        backends: Backends,
        statement: str,
        *,
        pause_s: float,
    ) -> None:
        self.name = name
        self.pause_s = pause_s
        self._db = db
        self._store = store
        self._backends = backends
        self._statement = _OBJECTS[statement]
        self._after: tuple[datetime, str] = (_BEGINNING, "")

    async def run_once(self) -> int:
        """As for artifacts."""
        gone: list[str] = []
        while not gone:
            rows = await self._db.fetch(self._statement, (BATCH, *self._after))
            if not rows:
                self._after = (_BEGINNING, "")
                return 0
            known = [row for row in rows if row[2] in self._backends.ids]
            keys = [row[3] for row in known]
            stuck = await self._store.delete(self._store.private_bucket, keys) if keys else {}
            gone = [row[1] for row in known if row[3] not in stuck]
            if len(gone) < len(rows):
                log.warning("objects could not be deleted", loop=self.name, count=len(rows) - len(gone))
            self._after = max((row[0], row[1]) for row in rows)
        await self._db.fetch(_OBJECTS["drop_objects"], (gone,))
        metrics.DELETED_BLOBS.inc(len(gone))
        return len(gone)


class UploadTidying:
    """Deletes what broken uploads left on this machine's disk a day ago."""

    name = "tidy-uploads"
    full = 10**9

    def __init__(self, staging: Staging, store: BlobStore, *, pause_s: float) -> None:
        self.pause_s = pause_s
        self._staging = staging
        self._store = store

    async def run_once(self) -> int:
        """Looks through all of them; returns how many it deleted."""
        removed = await asyncio.to_thread(self._staging.tidy)
        if isinstance(self._store, DiskStore):
            removed += await self._store.tidy()
        return removed


def artifact_loops(
    db: Database,
    store: BlobStore,
    azure: AzureStore | None,
    staging: Staging,
    backends: Backends,
    *,
    delay_s: float,
    pause_s: float,
) -> list[ArtifactExpiry | ObjectExpiry | UploadTidying]:
    """All loops that delete bytes."""
    return [
        ArtifactExpiry(db, store, azure, delay_s=delay_s, pause_s=pause_s),
        ObjectExpiry("expire-objects", db, store, backends, "doom_objects", pause_s=pause_s),
        ObjectExpiry("expire-uploads", db, store, backends, "doom_uploads", pause_s=pause_s),
        UploadTidying(staging, store, pause_s=pause_s),
    ]
